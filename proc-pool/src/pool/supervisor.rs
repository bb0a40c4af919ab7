//! The threads behind a pool.
//!
//! The *supervisor* listens to the workers' control sockets and waits for their ends. What it finds it tells the
//! dispatcher, and does what the scheduler decides: it starts replacements, and ends the workers of a pool that is
//! done. The *receiver* collects the outcomes of tasks that nobody waits for; it sleeps while callers wait for
//! themselves.
//!
//! # If a worker dies
//!
//! Its pidfd becomes readable. First what it had sent is read, then its participant is swept (its lock falls a moment
//! after the pidfd shows the death), then its cells are dealt with, then it is replaced.

use super::core::{Phase, Slot, WorkerHandle};
use super::dispatch::Dispatcher;
use crate::child::{Child, Launch, Received};
use crate::control::{ToChild, ToParent};
use crate::error::{Result, TaskError};
use crate::payload::Payload;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use std::collections::HashMap;

use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a dead worker's lock may take to fall: 27 ms per GiB of its memory, and a core dump.
const SWEEP_PATIENCE: Duration = Duration::from_secs(30);
/// How long a worker may live after it closed its socket.
const DEAF_PATIENCE: Duration = Duration::from_secs(1);
/// How long workers may take to end after they were told to, before each stronger means.
const GRACE: Duration = Duration::from_secs(5);
/// How often the supervisor looks at what nobody tells it.
const TICK: Duration = Duration::from_millis(50);
/// How long a slot stays empty after a worker could not be started.
const START_PAUSE: Duration = Duration::from_millis(250);
/// How long the receiver leaves outcomes to a caller that is about to come.
const RECEIVER_DELAY: Duration = Duration::from_millis(1);

/// What a child needs to know to become a worker.
pub(super) fn launch(settings: &Launch, dispatcher: &Dispatcher, slots: &[u32]) -> Result<()> {
    let children = slots.iter().map(|_| Child::launch(settings)).collect::<Result<Vec<_>>>()?;
    for (slot, child) in slots.iter().zip(children) {
        child.handshake()?;
        dispatcher.enlist(*slot, child)?;
    }
    Ok(())
}

/// The supervising thread.
pub(super) struct Supervisor {
    dispatcher: Arc<Dispatcher>,
    settings: Launch,
    /// Participant index and generation of each incarnation, as it told.
    participants: HashMap<u16, (u16, u64)>,
    /// Incarnations that closed their socket, and when: they are about to end, or their user code closed what is not its
    /// own.
    deaf: HashMap<u16, Instant>,
    /// When each slot's last worker was started.
    started: HashMap<u32, Instant>,
    /// When a drained pool's workers were told to go, and what they were told last.
    stopping: Option<(Instant, u32)>,
}

impl Supervisor {
    pub(super) fn start(
        dispatcher: Arc<Dispatcher>,
        settings: Launch,
    ) -> std::io::Result<std::thread::JoinHandle<()>> {
        let supervisor = Self {
            dispatcher,
            settings,
            participants: HashMap::new(),
            deaf: HashMap::new(),
            started: HashMap::new(),
            stopping: None,
        };
        std::thread::Builder::new().name("proc-pool-supervisor".into()).spawn(move || supervisor.run())
    }

    fn run(mut self) {
        loop {
            let ended = {
                let core = self.dispatcher.core.lock();
                let over = matches!(core.phase, Phase::Broken(_) | Phase::Drained);
                over && core.slots.iter().all(|slot| matches!(slot, Slot::Empty))
            };
            if ended {
                return;
            }
            let workers = self.workers();
            let dead = self.listen(&workers);
            let mut crashed = false;
            for (slot, worker) in dead {
                crashed |= self.bury(slot, &worker);
            }
            self.replace();
            self.wind_down();
            self.dispatcher.flush();
            if crashed {
                // Memory with a name that only the dead had. One look at a directory, after all that somebody waits for; what
                // the kernel has not let go of yet is left to the next who looks.
                let _ = shm_core::named::scavenge();
            }
            if self.dispatcher.has_orphans() {
                self.dispatcher.collect_for_nobody();
            }
        }
    }

    fn workers(&self) -> Vec<(u32, Arc<WorkerHandle>)> {
        let core = self.dispatcher.core.lock();
        let running = |(slot, state): (u32, &Slot)| match state {
            Slot::Running(worker) => Some((slot, Arc::clone(worker))),
            Slot::Empty | Slot::Starting => None,
        };
        (0..).zip(&core.slots).filter_map(running).collect()
    }

    /// Waits until something happens, deals with messages, and returns the workers that ended.
    fn listen(&mut self, workers: &[(u32, Arc<WorkerHandle>)]) -> Vec<(u32, Arc<WorkerHandle>)> {
        let mut polled = vec![PollFd::new(&self.dispatcher.poke, PollFlags::IN)];
        for (_, worker) in workers {
            // A closed socket would be ready for ever.
            let heard = !self.deaf.contains_key(&worker.incarnation);
            let end = if heard { worker.child.socket() } else { worker.child.pidfd() };
            polled.push(PollFd::from_borrowed_fd(end, PollFlags::IN));
            polled.push(PollFd::from_borrowed_fd(worker.child.pidfd(), PollFlags::IN));
        }
        let tick = self.needs_tick().then(|| Timespec::try_from(TICK).expect("a tick is short"));
        // A signal or a lack of memory is an early look.
        let _ = poll(&mut polled, tick.as_ref());
        let ready: Vec<bool> = polled.iter().map(|polled| !polled.revents().is_empty()).collect();
        let _ = rustix::io::read(&self.dispatcher.poke, &mut [0_u8; 8]);
        let mut dead = Vec::new();
        for ((slot, worker), ready) in workers.iter().zip(ready[1..].chunks(2)) {
            if ready[0] {
                self.read_messages(worker);
            }
            if ready[1] {
                dead.push((*slot, Arc::clone(worker)));
            } else if self.deaf.get(&worker.incarnation).is_some_and(|since| since.elapsed() >= DEAF_PATIENCE)
            {
                let _ = worker.child.kill();
            }
        }
        dead
    }

    /// Whether something may change that no descriptor tells of.
    fn needs_tick(&self) -> bool {
        let core = self.dispatcher.core.lock();
        !self.deaf.is_empty()
            || core.phase != Phase::Open
            || core.has_unsent()
            || core.orphans > 0
            || core.slots.iter().any(|slot| matches!(slot, Slot::Starting))
    }

    fn read_messages(&mut self, worker: &Arc<WorkerHandle>) {
        loop {
            match worker.child.try_receive() {
                Ok(Received::Message(message, descriptors)) => match message {
                    ToParent::Attached { participant, generation } => {
                        self.participants.insert(worker.incarnation, (participant, generation));
                    }
                    ToParent::Fetch { record } => {
                        if self.dispatcher.fetched(worker, record).is_err() {
                            // It asked and does not listen: dead, or beyond help.
                            let _ = worker.child.kill();
                        }
                    }
                    ToParent::Spill { record, packed } => match Payload::unpack(packed, descriptors) {
                        Ok(payload) => self.dispatcher.spilled(record, payload),
                        // Without memory for the result the worker's death is the clearest outcome that is left.
                        Err(_) => drop(worker.child.kill()),
                    },
                    ToParent::Done { .. } | ToParent::Failed(_) => {}
                },
                Ok(Received::Nothing) => return,
                Ok(Received::End) => {
                    self.deaf.entry(worker.incarnation).or_insert_with(Instant::now);
                    return;
                }
                Err(_) => {
                    let _ = worker.child.kill();
                    return;
                }
            }
        }
    }

    /// Returns whether it ended otherwise than it should, so that it may have left things.
    fn bury(&mut self, slot: u32, worker: &Arc<WorkerHandle>) -> bool {
        let Some(end) = worker.child.wait_status(Some(Instant::now() + GRACE)) else {
            return false;
        };
        self.read_messages(worker);
        let segment = self.dispatcher.shared().segment();
        let give_up = Instant::now() + SWEEP_PATIENCE;
        if let Some((participant, generation)) = self.participants.remove(&worker.incarnation) {
            let held = || segment.is_attached(participant) && segment.generation(participant) == generation;
            loop {
                segment.sweep();
                if !held() || Instant::now() >= give_up {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        } else {
            // It died before it had told its participant, so it had begun nothing.
            segment.sweep();
        }
        // Whatever else it shared with us: somebody may sleep on a lock that it held.
        shm_core::segment::sweep_all();
        let death = worker.child.death(None, "");
        self.deaf.remove(&worker.incarnation);
        self.dispatcher.bury(slot, worker.incarnation, death);
        !end.success()
    }

    /// Starts the workers that the scheduler asked for, each in a thread of its own: a start takes milliseconds, a failing one
    /// up to its handshake's deadline.
    fn replace(&mut self) {
        let (wanted, nothing_to_do) = {
            let mut core = self.dispatcher.core.lock();
            let wanted = std::mem::take(&mut core.spawn);
            if !matches!(core.phase, Phase::Open | Phase::Closed) {
                return;
            }
            for &slot in &wanted {
                core.slots[slot as usize] = Slot::Starting;
            }
            (wanted, core.is_idle())
        };
        for slot in wanted {
            let (dispatcher, settings) = (Arc::clone(&self.dispatcher), self.settings.clone());
            let last = self.started.insert(slot, Instant::now());
            let start = move || {
                if nothing_to_do && last.is_some_and(|last| last.elapsed() < TICK) {
                    // It died right after its start, and nobody needs it now: not all of the machine for starting workers.
                    std::thread::sleep(TICK);
                }
                if let Err(error) = launch(&settings, &dispatcher, &[slot]) {
                    // Whatever is short now may be there again in a moment.
                    std::thread::sleep(START_PAUSE);
                    dispatcher.not_started(slot, &error);
                }
            };
            if let Err(error) = std::thread::Builder::new().name("proc-pool-start".into()).spawn(start) {
                let error = crate::error::Error::system("starting a thread")(error);
                self.dispatcher.not_started(slot, &error);
            }
        }
    }

    /// Ends the workers of a pool that is done: asks, then insists.
    fn wind_down(&mut self) {
        let phase = self.dispatcher.core.lock().phase.clone();
        let (at, step) = match (phase, self.stopping) {
            (Phase::Open | Phase::Closed, _) => return,
            (Phase::Broken(_), _) => {
                for (_, worker) in self.workers() {
                    let _ = worker.child.kill();
                }
                return;
            }
            (Phase::Drained, None) => (Instant::now(), 0),
            (Phase::Drained, Some((since, step))) if since.elapsed() >= GRACE => (Instant::now(), step + 1),
            (Phase::Drained, Some(_)) => return,
        };
        self.stopping = Some((at, step));
        for (_, worker) in self.workers() {
            let _ = match step {
                0 => worker.child.send(&ToChild::Stop, &[], Some(Instant::now())),
                1 => worker.child.signal(Signal::TERM),
                _ => worker.child.kill(),
            };
        }
    }
}

/// The receiving thread: runs until the pool's end.
pub(super) fn receive(dispatcher: &Dispatcher) {
    use shm_core::sync::Ordering::Relaxed;
    loop {
        {
            let mut core = dispatcher.core.lock();
            loop {
                if matches!(core.phase, Phase::Broken(_) | Phase::Drained) {
                    return;
                }
                if dispatcher.unattended.load(Relaxed) > 0 && !dispatcher.has_callers() {
                    break;
                }
                if dispatcher.unattended.load(Relaxed) == 0 {
                    dispatcher.unattended_changed.wait(&mut core);
                } else {
                    // The last caller leaves without the lock, so its notification may be missed: look again soon.
                    dispatcher.unattended_changed.wait_for(&mut core, TICK);
                }
            }
        }
        std::thread::sleep(RECEIVER_DELAY);
        if dispatcher.unattended.load(Relaxed) > 0 && !dispatcher.has_callers() {
            dispatcher.receive_once(Instant::now() + TICK);
        }
    }
}

/// The error of whoever waits when a pool is ended.
pub(super) fn ended() -> TaskError {
    TaskError::PoolClosed
}
