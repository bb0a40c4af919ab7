//! The parent's side of a pool: loads in, outcomes out, everything in flight in between.
//!
//! [`Dispatcher`] is what the parent's threads call; what it knows is [`Core`], behind one lock. No user code runs
//! under the lock: arguments are encoded before, results decoded after.
//!
//! # Two paths
//!
//! A *call* reserves the lowest idle worker, puts its record into that worker's mailbox and waits at the cell itself:
//! nobody else is in the path. Everything else goes through the task ring, and comes back through the done ring,
//! which every waiting thread drains for all: what belongs to another job goes to that job's inbox, and its waiter is
//! told. For jobs nobody waits for there is a receiving thread.

use super::arena::Arena;
use super::cell::{DIRECT, Geometry, Record, Shared, State, Worker};
use super::chunk::RunItems;
use super::core::{CELLS, Core, Lane, Phase, SOCKET_PATIENCE, Slot, WorkerHandle, poke};
use super::load::{Batch, Prepared};
use super::scheduler::{Action, Event};
use crate::child::Child;
use crate::control::ToChild;
use crate::error::{Error, Result, TaskError};
use crate::payload::Payload;
use ipc_queue::ring::{Cursor, MAX_SPAN};
use parking_lot::{Condvar, Mutex};
use shm_core::sync::{AtomicBool, AtomicU32, Ordering, light_fence};
use shm_core::wait::Pace;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A waiting caller wakes one more worker when nothing came back for so long.
const WAKE_MORE_AFTER: Duration = Duration::from_micros(20);

/// A job as its owner holds it. Dropping it drops what is left of the job.
#[derive(Debug)]
pub(super) struct JobHandle {
    dispatcher: Arc<Dispatcher>,
    number: u32,
    ready: Arc<AtomicBool>,
}

impl JobHandle {
    pub(super) fn dispatcher(&self) -> &Arc<Dispatcher> {
        &self.dispatcher
    }

    /// See [`Dispatcher::submit`].
    pub(super) fn submit(&self, prepared: &mut Prepared, attended: bool) -> Result<()> {
        self.dispatcher.shared.segment().check()?;
        self.dispatcher.submit(self.number, prepared, attended)
    }

    /// Waits for outcomes of this job; `false` when the deadline passed first.
    ///
    /// # Errors
    ///
    /// Why the pool will not deliver any more.
    pub(super) fn outcomes(
        &self,
        batch: &mut Batch,
        deadline: Option<Instant>,
    ) -> std::result::Result<bool, TaskError> {
        self.dispatcher.shared.segment().check()?;
        self.dispatcher.outcomes(Some(self), batch, deadline)
    }

    /// Whether there may be outcomes, of this job or of others. A cheap look.
    pub(super) fn has_outcomes(&self) -> bool {
        let dispatcher = &self.dispatcher;
        self.ready.load(Ordering::Acquire) || dispatcher.shared.done().is_ready(&dispatcher.done)
    }

    /// Collects outcomes that are there. Never blocks.
    pub(super) fn try_outcomes(&self, batch: &mut Batch) -> std::result::Result<(), TaskError> {
        self.dispatcher.shared.segment().check()?;
        self.dispatcher.collect(Some(self.number), batch)
    }
}

impl Drop for JobHandle {
    fn drop(&mut self) {
        self.dispatcher.drop_job(self.number);
    }
}

/// A pool's parent side; shared by the pool, its jobs, and its two threads.
#[derive(Debug)]
pub(super) struct Dispatcher {
    shared: Shared,
    pub(super) core: Mutex<Core>,
    tasks: Cursor,
    done: Cursor,
    /// Where the workers' side of the task ring was when last looked at.
    backlog: Cursor,
    pace: Pace,
    /// Wakes the supervisor.
    pub(super) poke: Arc<OwnedFd>,
    /// Threads that wait for outcomes.
    callers: AtomicU32,
    /// Loads of jobs that nobody attends; the receiving thread sleeps while there are none. Changed under the lock.
    pub(super) unattended: Arc<AtomicU32>,
    /// There are such loads now, or the last caller left.
    pub(super) unattended_changed: Condvar,
}

impl Dispatcher {
    pub(super) fn new(workers: u32) -> Result<Self> {
        let geometry = Geometry { workers, cells: CELLS };
        let failed = || Error::memory("creating a pool's shared memory");
        let shared = Shared::create(geometry).map_err(failed())?;
        let arena = Arena::create().map_err(failed())?;
        let poke = rustix::event::eventfd(
            0,
            rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK,
        )
        .map_err(|error| Error::system("creating an event descriptor")(error.into()))?;
        let poke = Arc::new(poke);
        let unattended = Arc::new(AtomicU32::new(0));
        let core = Core::new(workers, arena, Arc::clone(&unattended), Arc::clone(&poke));
        Ok(Self {
            shared,
            core: Mutex::new(core),
            tasks: Cursor::new(),
            done: Cursor::new(),
            backlog: Cursor::new(),
            pace: Pace::new(),
            poke,
            callers: AtomicU32::new(0),
            unattended,
            unattended_changed: Condvar::new(),
        })
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// How many workers the pool has.
    pub(super) fn workers(&self) -> usize {
        self.shared.geometry().workers as usize
    }

    /// Collects for others until the deadline, or until something has happened.
    pub(super) fn receive_once(&self, deadline: Instant) {
        self.collect_for_nobody();
        self.wait_for_completions(None, Some(deadline));
        // Also after the wait: the wake-up may have been meant for a caller that came meanwhile.
        self.collect_for_nobody();
    }

    /// Wakes the supervisor.
    pub(super) fn poke(&self) {
        poke(&self.poke);
    }

    /// Opens a job for a function.
    pub(super) fn open_job(
        self: &Arc<Self>,
        code: RunItems,
        label: &'static str,
        retries: u32,
        attended: bool,
    ) -> Result<JobHandle> {
        self.shared.segment().check()?;
        let mut core = self.core.lock();
        core.check_open()?;
        let function = core.define(code, label)?;
        let (number, ready) = core.add_job(function, label, retries, attended);
        Ok(JobHandle { dispatcher: Arc::clone(self), number, ready })
    }

    /// Hands loads to the workers, or lets them wait for cells. Never waits for a worker. `attended`: the caller will
    /// wait for the outcomes, so it is enough to wake one worker now.
    fn submit(&self, job: u32, prepared: &mut Prepared, attended: bool) -> Result<()> {
        let count = prepared.loads.len();
        let (before, added);
        {
            let mut core = self.core.lock();
            core.check_open()?;
            before = self.unattended.load(Ordering::Relaxed);
            added = core.add_loads(job, prepared);
            core.execute(&self.shared, &self.tasks);
        }
        if !attended && before == 0 {
            self.unattended_changed.notify_one();
        }
        if attended {
            self.wake_one_if_all_sleep();
        } else {
            self.wake(count);
        }
        added
    }

    /// Runs one load and waits for its outcome, which is the only one in the batch afterwards.
    ///
    /// # Errors
    ///
    /// Why the pool did not deliver.
    pub(super) fn call(&self, job: &JobHandle, prepared: &mut Prepared, batch: &mut Batch) -> Result<()> {
        let mut direct = None;
        {
            let mut core = self.core.lock();
            core.check_open()?;
            core.add_loads(job.number, prepared)?;
            if let [Action::Send { cell, .. }] = core.actions[..] {
                core.actions.clear();
                let reserved = (0..self.shared.geometry().workers)
                    .find(|&slot| self.shared.worker(slot).take(Worker::RESERVED));
                let record = core.offer(&self.shared, cell, DIRECT);
                if let Some(slot) = reserved {
                    core.cells[cell as usize].lane = Lane::Mailbox(slot);
                    self.shared.worker(slot).mailbox.store(record.to_word(), Ordering::Release);
                } else {
                    core.unsent.push(record);
                    core.flush(&self.shared, &self.tasks);
                }
                direct = Some((record, reserved));
            } else {
                core.execute(&self.shared, &self.tasks);
            }
        }
        match direct {
            Some((record, reserved)) => {
                match reserved {
                    Some(slot) => {
                        let doorbell = &self.shared.worker(slot).doorbell;
                        doorbell.note_cpu();
                        doorbell.notify(1);
                    }
                    None => self.wake_one_if_all_sleep(),
                }
                if let Some(cell) = self.shared.cell(record.cell) {
                    let over =
                        || !matches!(cell.state(record.generation), State::Pending | State::Running(_));
                    let attempt = || over().then_some(());
                    let check = || {
                        // About to sleep: a worker that went to sleep while this record was pushed must hear of it.
                        self.wake_for_backlog(usize::MAX);
                        None
                    };
                    let progress = u64::from(record.generation);
                    cell.line().wait(&self.pace, progress, None, attempt, check);
                }
                let mut core = self.core.lock();
                core.collector = Some(job.number);
                core.complete(&self.shared, record);
                core.execute(&self.shared, &self.tasks);
                core.take_inbox(job.number, batch);
                core.collector = None;
            }
            None => self.wake_one_if_all_sleep(),
        }
        // Usually it is there. Otherwise its worker died and it runs again, or the rest of a large result is under way.
        if batch.is_empty() {
            self.outcomes(Some(job), batch, None)?;
        }
        Ok(())
    }

    /// Waits until outcomes of the job are in the batch; `false` when the deadline passed first. Without a job:
    /// until anything has happened.
    pub(super) fn outcomes(
        &self,
        job: Option<&JobHandle>,
        batch: &mut Batch,
        deadline: Option<Instant>,
    ) -> std::result::Result<bool, TaskError> {
        let number = job.map(|job| job.number);
        self.callers.fetch_add(1, Ordering::Relaxed);
        let result = loop {
            match self.collect(number, batch) {
                Err(error) => break Err(error),
                Ok(()) if !batch.is_empty() => break Ok(true),
                Ok(()) => {}
            }
            if !self.wait_for_completions(job.map(|job| &*job.ready), deadline) {
                break Ok(false);
            }
            if job.is_none() {
                break Ok(true);
            }
        };
        if self.callers.fetch_sub(1, Ordering::Relaxed) == 1 && self.unattended.load(Ordering::Relaxed) > 0 {
            self.unattended_changed.notify_one();
        }
        result
    }

    /// Sleeps until a worker finished something or `ready` is set; `false` when the deadline passed first.
    fn wait_for_completions(&self, ready: Option<&AtomicBool>, deadline: Option<Instant>) -> bool {
        let ring = self.shared.done();
        let (mut polls, mut since) = (0_u32, None);
        let attempt = || {
            if ring.is_ready(&self.done) || ready.is_some_and(|ready| ready.load(Ordering::Acquire)) {
                return Some(());
            }
            polls = polls.wrapping_add(1);
            if polls % 32 == 0 {
                let now = Instant::now();
                if now.duration_since(*since.get_or_insert(now)) >= WAKE_MORE_AFTER {
                    since = Some(now);
                    self.wake_for_backlog(1);
                }
            }
            None
        };
        let check = || {
            // About to sleep: nobody will look after the backlog then.
            self.wake_for_backlog(usize::MAX);
            None
        };
        let progress = self.done.ticket();
        self.shared.completions().wait(&self.pace, progress, deadline, attempt, check).is_some()
    }

    /// Wakes up to `count` workers if records lie in the task ring.
    fn wake_for_backlog(&self, count: usize) {
        if self.shared.tasks().is_ready(&self.backlog) {
            self.wake(count);
        }
    }

    /// Wakes a worker unless one is awake: that one will find what was published, now or when it arms its doorbell.
    fn wake_one_if_all_sleep(&self) {
        // SYNC wait-line: after the records were published; pairs with the heavy fence of a worker that arms.
        light_fence();
        let mut asleep = None;
        for slot in 0..self.shared.geometry().workers {
            let worker = self.shared.worker(slot);
            match worker.status.load(Ordering::Relaxed) {
                Worker::ABSENT => {}
                Worker::IDLE if worker.doorbell.has_sleepers() => asleep = asleep.or(Some(worker)),
                _ => return,
            }
        }
        if let Some(worker) = asleep {
            worker.doorbell.note_cpu();
            worker.doorbell.notify(1);
        }
    }

    /// Wakes up to `count` sleeping workers, lowest first.
    fn wake(&self, count: usize) {
        // SYNC wait-line: after the records were published; pairs with the heavy fence of a worker that arms.
        light_fence();
        let sleeps = |worker: &&Worker| {
            worker.status.load(Ordering::Relaxed) == Worker::IDLE && worker.doorbell.has_sleepers()
        };
        let workers = (0..self.shared.geometry().workers).map(|slot| self.shared.worker(slot));
        for worker in workers.filter(sleeps).take(count) {
            worker.doorbell.note_cpu();
            worker.doorbell.notify(1);
        }
    }

    /// Deals with everything in the done ring, and moves the job's outcomes into the batch. Never blocks for a worker.
    ///
    /// # Errors
    ///
    /// Why the pool will not deliver any more, once everything that it did deliver was taken.
    pub(super) fn collect(&self, job: Option<u32>, batch: &mut Batch) -> std::result::Result<(), TaskError> {
        let (ring, me) = (self.shared.done(), self.shared.me());
        let mut records = [0_u64; MAX_SPAN];
        loop {
            let popped = ring.try_pop_batch(&self.done, me, MAX_SPAN, |i, slot| {
                // SAFETY: a slot of the done ring has 8 bytes.
                #[allow(unsafe_code, reason = "a plain copy out of a ring slot")]
                let word = unsafe { slot.cast::<u64>().read_unaligned() };
                records[i] = word;
            });
            let count = popped.unwrap_or(0);
            for &word in &records[..count] {
                if let Some(cell) = self.shared.cell(Record::from_word(word).cell) {
                    cell.prefetch();
                }
            }
            let (broken, others) = {
                let mut core = self.core.lock();
                core.collector = job;
                for &word in &records[..count] {
                    core.complete(&self.shared, Record::from_word(word));
                }
                core.execute(&self.shared, &self.tasks);
                if let Some(job) = job {
                    core.take_inbox(job, batch);
                }
                let broken = match &core.phase {
                    Phase::Broken(error) if batch.is_empty() => Some(error.clone()),
                    _ => None,
                };
                core.collector = None;
                (broken, std::mem::take(&mut core.others))
            };
            if others {
                self.shared.completions().notify_all();
            }
            match broken {
                Some(error) => return Err(error),
                None if count < MAX_SPAN || !batch.is_empty() => break,
                None => {}
            }
        }
        // Whoever took some while more are there passes the wake-up on.
        let line = self.shared.completions();
        if line.has_sleepers() && ring.is_ready(&self.done) {
            line.notify(1);
        }
        Ok(())
    }

    fn drop_job(&self, job: u32) {
        if self.shared.segment().check().is_err() {
            return;
        }
        let mut core = self.core.lock();
        core.drop_job(&self.shared, job);
        core.execute(&self.shared, &self.tasks);
    }

    /// Whether workers still run what nobody wants any more.
    pub(super) fn has_orphans(&self) -> bool {
        self.core.lock().orphans > 0
    }

    /// Collects whatever is there, for nobody in particular.
    pub(super) fn collect_for_nobody(&self) {
        // Why a pool broke is told to whoever asks for outcomes.
        let _ = self.collect(None, &mut Batch::default());
    }

    /// Whether anybody waits for outcomes.
    pub(super) fn has_callers(&self) -> bool {
        self.callers.load(Ordering::Relaxed) > 0
    }

    // ---- what the supervisor calls ----

    /// Takes note of what a worker sent: `Fetch` is answered, `Spill` completes its cell.
    pub(super) fn fetched(&self, worker: &WorkerHandle, record: Record) -> std::io::Result<()> {
        let core = self.core.lock();
        let (packed, descriptors) = core.attachment(record);
        worker.child.send(
            &ToChild::Attach { record, packed },
            descriptors,
            Some(Instant::now() + SOCKET_PATIENCE),
        )
    }

    pub(super) fn spilled(&self, record: Record, payload: Payload) {
        let mut core = self.core.lock();
        if core.current(record).is_none() {
            return;
        }
        core.spills.insert(record, payload);
        if core.cells[record.cell as usize].awaits_spill {
            core.complete(&self.shared, record);
            core.execute(&self.shared, &self.tasks);
            core.others = false;
            drop(core);
            self.shared.completions().notify_all();
        }
    }

    /// Deals with everything that a dead worker had. Its messages were read and its participant was swept before.
    pub(super) fn bury(&self, slot: u32, incarnation: u16, death: TaskError) {
        // What it finished counts, whether or not it came to say so.
        let _ = self.collect(None, &mut Batch::default());
        let mut core = self.core.lock();
        core.bury(&self.shared, slot, incarnation, death);
        core.execute(&self.shared, &self.tasks);
        core.others = false;
        drop(core);
        self.shared.completions().notify_all();
        self.wake(usize::MAX);
    }

    /// Sends what found no slot in the task ring.
    pub(super) fn flush(&self) {
        let mut core = self.core.lock();
        if !core.has_unsent() {
            return;
        }
        core.flush(&self.shared, &self.tasks);
        drop(core);
        self.wake(usize::MAX);
    }

    /// Makes a child a worker: tells it the pool and every function known so far.
    pub(super) fn enlist(&self, slot: u32, child: Child) -> Result<()> {
        let mut core = self.core.lock();
        let failed = || Error::system("sending a worker its pool");
        if !matches!(core.phase, Phase::Open | Phase::Closed) {
            // First the child, then the slot: an empty slot has no process.
            drop(child);
            core.slots[slot as usize] = Slot::Empty;
            return Err(TaskError::PoolClosed.into());
        }
        let incarnation = core.new_incarnation();
        let segment = self.shared.segment().descriptor().try_clone_to_owned().map_err(failed())?;
        let arena = core.arena.descriptor().map_err(failed())?;
        let work = ToChild::Work { geometry: self.shared.geometry(), slot, incarnation };
        let deadline = Some(Instant::now() + SOCKET_PATIENCE);
        child.send(&work, &[segment, arena], deadline).map_err(failed())?;
        for (number, function) in (0..).zip(&core.functions) {
            child.send(&ToChild::Define { number, code: function.code }, &[], deadline).map_err(failed())?;
        }
        core.slots[slot as usize] = Slot::Running(Arc::new(WorkerHandle { child, incarnation }));
        drop(core);
        self.poke();
        Ok(())
    }

    /// A worker could not be started.
    pub(super) fn not_started(&self, slot: u32, error: &Error) {
        let mut core = self.core.lock();
        core.slots[slot as usize] = Slot::Empty;
        core.death = Some(TaskError::unavailable(format!("a worker cannot be started: {error}")));
        let waiting = !core.is_idle();
        let died = Event::WorkerDied { worker: slot, running: Vec::new(), lost: Vec::new(), waiting };
        core.handle(died);
        core.execute(&self.shared, &self.tasks);
        drop(core);
        self.shared.completions().notify_all();
        self.poke();
    }

    /// No more work is accepted.
    pub(super) fn close(&self) {
        let mut core = self.core.lock();
        if core.phase == Phase::Open {
            core.phase = Phase::Closed;
            core.handle(Event::Closed);
            core.execute(&self.shared, &self.tasks);
        }
        drop(core);
        self.unattended_changed.notify_all();
        self.poke();
    }

    /// Everything ends now: whoever waits gets `error`, the workers are killed.
    pub(super) fn break_off(&self, error: TaskError) {
        let mut core = self.core.lock();
        core.break_off(&self.shared, error);
        drop(core);
        self.shared.completions().notify_all();
        self.unattended_changed.notify_all();
        self.poke();
    }
}
