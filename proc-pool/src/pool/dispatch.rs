//! The parent's side of a pool: loads in, outcomes out, everything in flight in between.
//!
//! [`Core`] is what this process knows, behind one lock: scheduler, arena, cells, loads and jobs. [`Dispatcher`]
//! is what its threads call. No user code runs under the lock: arguments are encoded before, results decoded after.
//!
//! # Two paths
//!
//! A *call* reserves the lowest idle worker, puts its record into that worker's mailbox and waits at the cell itself:
//! nobody else is in the path. Everything else goes through the task ring, and comes back through the done ring,
//! which every waiting thread drains for all: what belongs to another job goes to that job's inbox, and its waiter is
//! told. For jobs nobody waits for there is a receiving thread.
//!
//! # Why no outcome is lost or doubled
//!
//! A use of a cell ends exactly once, in `Core::complete` or in `Core::bury`, under the lock: both end with the
//! scheduler taking the piece out of the cell, and a record of a use that has ended is recognised by its generation.
//! A load counts the items that have no outcome yet, and goes with the last one.

use super::arena::{Arena, Block, LARGEST};
use super::cell::{
    Cell, DIRECT, FETCH, Geometry, INLINE, INLINE_ARGUMENTS, INLINE_RESULT, Record, SPILLED, Shared, State,
    Task, Worker, append,
};
use super::chunk::{Results, RunItems};
use super::scheduler::{Action, Event, Fifo, Piece, Running, Scheduler};
use crate::child::Child;
use crate::control::ToChild;
use crate::error::{Error, Result, TaskError};
use crate::function::Code;
use crate::payload::{Packed, Payload};
use ipc_queue::ring::{Cursor, MAX_SPAN};
use parking_lot::{Condvar, Mutex};
use shm_core::sync::{AtomicBool, AtomicU32, Ordering, light_fence};
use shm_core::wait::Pace;
use slab::Slab;
use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Cells of a pool: pieces in flight at once.
pub(super) const CELLS: u32 = 1024;
/// Bytes of arguments that a load keeps without an allocation.
const TINY: usize = 22;
/// How long a worker may leave its control socket unread before it counts as stuck.
const SOCKET_PATIENCE: Duration = Duration::from_secs(2);
/// A waiting caller wakes one more worker when nothing came back for so long.
const WAKE_MORE_AFTER: Duration = Duration::from_micros(20);

/// Encoded items on their way into the pool.
#[derive(Debug, Default)]
pub(super) struct Prepared {
    bytes: Vec<u8>,
    loads: Vec<PreparedLoad>,
}

#[derive(Debug)]
struct PreparedLoad {
    first: u64,
    items: u32,
    range: Range<usize>,
    /// In place of `range`: what cannot go through shared memory.
    sent: Option<(Packed, Vec<OwnedFd>)>,
}

impl Prepared {
    pub(super) fn len(&self) -> usize {
        self.loads.len()
    }

    /// Where the next load's bytes go.
    pub(super) fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Makes a load of the bytes from `start` on.
    ///
    /// # Errors
    ///
    /// When a large load's memory file cannot be made.
    pub(super) fn seal(&mut self, start: usize, first: u64, items: u32, handles: Vec<OwnedFd>) -> Result<()> {
        let range = start..self.bytes.len();
        let sent = if range.len() > LARGEST || !handles.is_empty() {
            let payload = Payload {
                bytes: self.bytes.split_off(start),
                descriptors: handles,
            };
            Some(payload.pack()?)
        } else {
            None
        };
        self.loads.push(PreparedLoad {
            first,
            items,
            range,
            sent,
        });
        Ok(())
    }
}

/// Outcomes of a job, in the order of their arrival.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    first: u64,
    count: u32,
    range: Range<usize>,
    failure: Option<TaskError>,
    descriptors: Vec<OwnedFd>,
}

/// The outcomes of some items of a load.
#[derive(Debug)]
pub(super) struct Outcome<'b> {
    pub(super) first: u64,
    pub(super) count: u32,
    pub(super) content: std::result::Result<Results<'b>, TaskError>,
    pub(super) descriptors: Vec<OwnedFd>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes the outcomes out.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Outcome<'_>> {
        let bytes = &self.bytes;
        self.entries.drain(..).map(move |entry| Outcome {
            first: entry.first,
            count: entry.count,
            content: match entry.failure {
                None => Ok(Results::new(&bytes[entry.range])),
                Some(error) => Err(error),
            },
            descriptors: entry.descriptors,
        })
    }

    /// Forgets what was drained, and keeps the space.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.bytes.clear();
    }
}

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
        self.dispatcher.outcomes(Some(self), batch, deadline)
    }

    /// Collects outcomes that are there. Never blocks.
    pub(super) fn try_outcomes(&self, batch: &mut Batch) -> std::result::Result<(), TaskError> {
        self.dispatcher.collect(Some(self.number), batch)
    }
}

impl Drop for JobHandle {
    fn drop(&mut self) {
        self.dispatcher.drop_job(self.number);
    }
}

/// What a pool is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    /// Nothing new; what is there will be done.
    Closed,
    /// Closed and done: the workers are asked to go.
    Drained,
    /// Nothing will be delivered any more.
    Broken(TaskError),
}

/// A worker slot of the parent.
#[derive(Debug)]
pub(super) enum Slot {
    Empty,
    Starting,
    Running(Arc<WorkerHandle>),
}

/// A worker process.
#[derive(Debug)]
pub(super) struct WorkerHandle {
    pub(super) child: Child,
    pub(super) incarnation: u16,
}

#[derive(Debug)]
struct Job {
    function: u32,
    label: &'static str,
    retries: u32,
    inbox: Batch,
    ready: Arc<AtomicBool>,
    /// Loads that have items without outcome.
    loads: u32,
    dropped: bool,
    /// Whether somebody waits for it; otherwise the receiving thread collects.
    attended: bool,
}

#[derive(Debug)]
struct Load {
    job: u32,
    first: u64,
    body: Body,
    /// Items without outcome.
    left: u32,
}

#[derive(Debug)]
enum Body {
    /// A number or two: most calls and most items of a map have no more.
    Tiny {
        len: u8,
        bytes: [u8; TINY],
    },
    /// What still fits into a cell.
    Small(Box<[u8]>),
    Block {
        block: Block,
        len: u32,
    },
    Sent {
        packed: Packed,
        descriptors: Vec<OwnedFd>,
    },
}

/// How a piece was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    /// In the task ring, under this ticket; `None` while it waits for a slot.
    Shared(Option<u64>),
    /// In the mailbox of this worker slot.
    Mailbox(u32),
}

#[derive(Debug)]
struct CellInfo {
    generation: u32,
    lane: Lane,
    result: Option<Block>,
    /// Finished, but the rest of the result has not arrived over the control socket.
    awaits_spill: bool,
}

#[derive(Debug)]
struct Function {
    code: Code<RunItems>,
    /// The most bytes that an item's outcome took so far, with its header.
    outcome_len: usize,
}

/// What this process knows, under the lock.
#[derive(Debug)]
pub(super) struct Core {
    scheduler: Scheduler<Fifo>,
    actions: Vec<Action>,
    arena: Arena,
    cells: Vec<CellInfo>,
    loads: Slab<Load>,
    jobs: Slab<Job>,
    functions: Vec<Function>,
    numbers: HashMap<usize, u32>,
    /// Records that have yet to go into the task ring.
    unsent: Vec<Record>,
    spills: HashMap<Record, Payload>,
    /// The error of the death that is being dealt with.
    death: Option<TaskError>,
    pub(super) phase: Phase,
    pub(super) slots: Vec<Slot>,
    /// Slots that the scheduler wants a worker in.
    pub(super) spawn: Vec<u32>,
    next_incarnation: u16,
    /// The job whose owner is collecting.
    collector: Option<u32>,
    /// Another job than the collector's got outcomes.
    others: bool,
    /// Loads of jobs that nobody attends.
    unattended: Arc<AtomicU32>,
}

/// A pool's parent side; shared by the pool, its jobs, and its two threads.
#[derive(Debug)]
pub(super) struct Dispatcher {
    shared: Shared,
    pub(super) core: Mutex<Core>,
    /// The phase or a slot changed.
    pub(super) changed: Condvar,
    tasks: Cursor,
    done: Cursor,
    /// Where the workers' side of the task ring was when last looked at.
    backlog: Cursor,
    pace: Pace,
    /// Wakes the supervisor.
    pub(super) poke: OwnedFd,
    /// Threads that wait for outcomes.
    callers: AtomicU32,
    /// Loads of jobs that nobody attends; the receiving thread sleeps while there are none. Changed under the lock.
    pub(super) unattended: Arc<AtomicU32>,
    /// There are such loads now, or the last caller left.
    pub(super) unattended_changed: Condvar,
}

impl Dispatcher {
    pub(super) fn new(workers: u32) -> Result<Self> {
        let geometry = Geometry {
            workers,
            cells: CELLS,
        };
        let failed = || Error::memory("creating a pool's shared memory");
        let shared = Shared::create(geometry).map_err(failed())?;
        let arena = Arena::create().map_err(failed())?;
        let poke = rustix::event::eventfd(
            0,
            rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK,
        )
        .map_err(|error| Error::system("creating an event descriptor")(error.into()))?;
        let unattended = Arc::new(AtomicU32::new(0));
        let cell = |_| CellInfo {
            generation: 0,
            lane: Lane::Shared(None),
            result: None,
            awaits_spill: false,
        };
        let core = Core {
            scheduler: Scheduler::new(Fifo::default(), workers, CELLS),
            actions: Vec::new(),
            arena,
            cells: (0..CELLS).map(cell).collect(),
            loads: Slab::new(),
            jobs: Slab::new(),
            functions: Vec::new(),
            numbers: HashMap::new(),
            unsent: Vec::new(),
            spills: HashMap::new(),
            death: None,
            phase: Phase::Open,
            slots: (0..workers).map(|_| Slot::Empty).collect(),
            spawn: Vec::new(),
            next_incarnation: 0,
            collector: None,
            others: false,
            unattended: Arc::clone(&unattended),
        };
        Ok(Self {
            shared,
            core: Mutex::new(core),
            changed: Condvar::new(),
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
        // Why a pool broke is told to whoever asks for outcomes.
        if self.collect(None, &mut Batch::default()).is_ok() {
            self.wait_for_completions(None, Some(deadline));
        }
    }

    /// Wakes the supervisor.
    pub(super) fn poke(&self) {
        // A full counter is a poke too.
        let _ = rustix::io::write(&self.poke, &1_u64.to_ne_bytes());
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
        let ready = Arc::new(AtomicBool::new(false));
        let number = core.jobs.insert(Job {
            function,
            label,
            retries,
            inbox: Batch::default(),
            ready: Arc::clone(&ready),
            loads: 0,
            dropped: false,
            attended,
        });
        let number = u32::try_from(number).expect("fewer jobs than 2^32");
        Ok(JobHandle {
            dispatcher: Arc::clone(self),
            number,
            ready,
        })
    }

    /// Hands loads to the workers, or lets them wait for cells. Never waits for a worker. `attended`: the caller will
    /// wait for the outcomes, so it is enough to wake one worker now.
    fn submit(&self, job: u32, prepared: &mut Prepared, attended: bool) -> Result<()> {
        let count = prepared.loads.len();
        let before;
        {
            let mut core = self.core.lock();
            core.check_open()?;
            before = self.unattended.load(Ordering::Relaxed);
            for load in prepared.loads.drain(..) {
                core.add_load(job, load, &prepared.bytes)?;
            }
            core.execute(&self.shared, &self.tasks);
        }
        prepared.bytes.clear();
        if !attended && before == 0 {
            self.unattended_changed.notify_one();
        }
        if attended {
            self.wake_one_if_all_sleep();
        } else {
            self.wake(count);
        }
        Ok(())
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
            for load in prepared.loads.drain(..) {
                core.add_load(job.number, load, &prepared.bytes)?;
            }
            if let [Action::Send { cell, .. }] = core.actions[..] {
                core.actions.clear();
                let reserved = (0..self.shared.geometry().workers)
                    .find(|&slot| self.shared.worker(slot).take(Worker::RESERVED));
                let record = core.offer(&self.shared, cell, DIRECT);
                if let Some(slot) = reserved {
                    core.cells[cell as usize].lane = Lane::Mailbox(slot);
                    self.shared
                        .worker(slot)
                        .mailbox
                        .store(record.to_word(), Ordering::Release);
                } else {
                    core.unsent.push(record);
                    core.flush(&self.shared, &self.tasks);
                }
                direct = Some((record, reserved));
            } else {
                core.execute(&self.shared, &self.tasks);
            }
        }
        prepared.bytes.clear();
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
                    cell.line()
                        .wait(&self.pace, u64::from(record.generation), None, attempt, || None);
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
        self.shared
            .completions()
            .wait(&self.pace, progress, deadline, attempt, check)
            .is_some()
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
                None if count < MAX_SPAN || !batch.is_empty() => return Ok(()),
                None => {}
            }
        }
    }

    fn drop_job(&self, job: u32) {
        if self.shared.segment().check().is_err() {
            return;
        }
        let mut core = self.core.lock();
        core.drop_job(&self.shared, job);
        core.execute(&self.shared, &self.tasks);
    }

    /// Whether anybody waits for outcomes.
    pub(super) fn has_callers(&self) -> bool {
        self.callers.load(Ordering::Relaxed) > 0
    }

    // ---- what the supervisor calls ----

    /// Takes note of what a worker sent: `Fetch` is answered, `Spill` completes its cell.
    pub(super) fn fetched(&self, worker: &WorkerHandle, record: Record) -> std::io::Result<()> {
        let core = self.core.lock();
        let load = core.load_of(record);
        let (packed, descriptors) = match load.map(|load| &load.body) {
            Some(Body::Sent { packed, descriptors }) => (packed.clone(), descriptors.as_slice()),
            // It asks for what it does not need: no load, no descriptors, an empty chunk.
            _ => (Packed::Inline(Vec::new()), &[][..]),
        };
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
        self.changed.notify_all();
    }

    /// Sends what found no slot in the task ring.
    pub(super) fn flush(&self) -> bool {
        let mut core = self.core.lock();
        core.flush(&self.shared, &self.tasks);
        let left = !core.unsent.is_empty();
        drop(core);
        self.wake(usize::MAX);
        left
    }

    /// Makes a child a worker: tells it the pool and every function known so far.
    pub(super) fn enlist(&self, slot: u32, child: Child) -> Result<()> {
        let mut core = self.core.lock();
        let failed = || Error::system("sending a worker its pool");
        if !matches!(core.phase, Phase::Open | Phase::Closed) {
            core.slots[slot as usize] = Slot::Empty;
            return Err(TaskError::PoolClosed.into());
        }
        core.next_incarnation = core.next_incarnation.checked_add(1).unwrap_or(1);
        let incarnation = core.next_incarnation;
        let segment = self
            .shared
            .segment()
            .descriptor()
            .try_clone_to_owned()
            .map_err(failed())?;
        let arena = core.arena.descriptor().map_err(failed())?;
        let work = ToChild::Work {
            geometry: self.shared.geometry(),
            slot,
            incarnation,
        };
        let deadline = Some(Instant::now() + SOCKET_PATIENCE);
        child.send(&work, &[segment, arena], deadline).map_err(failed())?;
        for (number, function) in (0..).zip(&core.functions) {
            child
                .send(
                    &ToChild::Define {
                        number,
                        code: function.code,
                    },
                    &[],
                    deadline,
                )
                .map_err(failed())?;
        }
        core.slots[slot as usize] = Slot::Running(Arc::new(WorkerHandle { child, incarnation }));
        drop(core);
        self.poke();
        self.changed.notify_all();
        Ok(())
    }

    /// A worker could not be started.
    pub(super) fn not_started(&self, slot: u32, error: &Error) {
        let mut core = self.core.lock();
        core.slots[slot as usize] = Slot::Empty;
        core.death = Some(TaskError::unavailable(format!(
            "a worker cannot be started: {error}"
        )));
        let died = Event::WorkerDied {
            worker: slot,
            running: Vec::new(),
            lost: Vec::new(),
        };
        core.handle(died);
        core.execute(&self.shared, &self.tasks);
        drop(core);
        self.shared.completions().notify_all();
        self.changed.notify_all();
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
        self.changed.notify_all();
        self.poke();
    }
}

impl Core {
    /// Whether records wait for room in the task ring.
    pub(super) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    fn check_open(&self) -> Result<()> {
        match &self.phase {
            Phase::Open => Ok(()),
            Phase::Broken(error @ TaskError::Unavailable { .. }) => Err(error.clone().into()),
            _ => Err(TaskError::PoolClosed.into()),
        }
    }

    /// The number of a function, which every worker learns before it meets it.
    fn define(&mut self, code: RunItems, label: &str) -> Result<u32> {
        let address = code as usize;
        if let Some(&number) = self.numbers.get(&address) {
            return Ok(number);
        }
        let code = Code::of(code, label)?;
        let number = u32::try_from(self.functions.len()).expect("fewer functions than 2^32");
        for slot in &self.slots {
            if let Slot::Running(worker) = slot {
                let deadline = Some(Instant::now() + SOCKET_PATIENCE);
                if worker
                    .child
                    .send(&ToChild::Define { number, code }, &[], deadline)
                    .is_err()
                {
                    // It is dead, or stuck beyond help; its death will be noticed.
                    let _ = worker.child.kill();
                }
            }
        }
        self.functions.push(Function { code, outcome_len: 0 });
        self.numbers.insert(address, number);
        Ok(number)
    }

    fn handle(&mut self, event: Event) {
        self.scheduler.handle(event, &mut self.actions);
    }

    /// Takes a load in and submits it. The actions are left for the caller.
    fn add_load(&mut self, job: u32, load: PreparedLoad, bytes: &[u8]) -> Result<()> {
        let body = match load.sent {
            Some((packed, descriptors)) => Body::Sent { packed, descriptors },
            None => self.place(&bytes[load.range])?,
        };
        let owner = &mut self.jobs[job as usize];
        owner.loads += 1;
        if !owner.attended {
            self.unattended.fetch_add(1, Ordering::Relaxed);
        }
        let retries = owner.retries;
        let number = self.loads.insert(Load {
            job,
            first: load.first,
            body,
            left: load.items,
        });
        let number = u32::try_from(number).expect("fewer loads than 2^32");
        self.handle(Event::Submitted(Piece {
            job,
            load: number,
            items: 0..load.items,
            retries,
        }));
        Ok(())
    }

    /// Puts arguments where workers find them.
    fn place(&mut self, bytes: &[u8]) -> Result<Body> {
        if bytes.len() <= TINY {
            let mut tiny = [0; TINY];
            tiny[..bytes.len()].copy_from_slice(bytes);
            let len = u8::try_from(bytes.len()).expect("tiny");
            return Ok(Body::Tiny { len, bytes: tiny });
        }
        if bytes.len() <= INLINE_ARGUMENTS {
            return Ok(Body::Small(bytes.into()));
        }
        match self.arena.alloc(bytes.len()) {
            Some(block) => {
                self.arena.write(block, bytes);
                let len = u32::try_from(bytes.len()).expect("a block is smaller than 4 GiB");
                Ok(Body::Block { block, len })
            }
            None => {
                let payload = Payload {
                    bytes: bytes.to_vec(),
                    descriptors: Vec::new(),
                };
                let (packed, descriptors) = payload.pack()?;
                Ok(Body::Sent { packed, descriptors })
            }
        }
    }

    /// Does what the scheduler decided.
    fn execute(&mut self, shared: &Shared, tasks: &Cursor) {
        let mut actions = std::mem::take(&mut self.actions);
        for action in actions.drain(..) {
            match action {
                Action::Send { cell, .. } => {
                    let record = self.offer(shared, cell, 0);
                    self.unsent.push(record);
                }
                Action::Fail { load, item, .. } => self.fail_items(load, item..item + 1),
                Action::Discard(piece) => self.fail_items(piece.load, piece.items),
                Action::Spawn { worker } => self.spawn.push(worker),
                Action::GiveUp => {
                    let error = self.death.clone().unwrap_or(TaskError::PoolClosed);
                    let reason = format!(
                        "the pool gave up because its workers die before they do anything; the last: {error}"
                    );
                    self.break_off(shared, TaskError::unavailable(reason));
                }
                Action::Drained => {
                    if self.phase == Phase::Closed {
                        self.phase = Phase::Drained;
                    }
                }
            }
        }
        // Nothing above asks the scheduler, so the emptied vector can go back.
        self.actions = actions;
        self.flush(shared, tasks);
    }

    /// Describes the piece in a cell and offers it.
    fn offer(&mut self, shared: &Shared, number: u32, flags: u32) -> Record {
        let piece = self
            .scheduler
            .piece(number)
            .expect("the scheduler has just put it there")
            .clone();
        let load = &self.loads[piece.load as usize];
        let function = self.jobs[piece.job as usize].function;
        let expected = self.functions[function as usize].outcome_len * piece.items.len();
        let result = (expected > INLINE_RESULT)
            .then(|| self.arena.alloc(expected.min(LARGEST)))
            .flatten();
        let cell = shared.cell(number).expect("cells are numbered by the geometry");
        let (argument, fetch) = match &load.body {
            Body::Tiny { len, bytes } => {
                cell.write_arguments(&bytes[..usize::from(*len)]);
                ((INLINE, u32::from(*len)), 0)
            }
            Body::Small(bytes) => {
                cell.write_arguments(bytes);
                (
                    (INLINE, u32::try_from(bytes.len()).expect("it fits into a cell")),
                    0,
                )
            }
            Body::Block { block, len } => ((block.page, *len), 0),
            Body::Sent { .. } => ((INLINE, 0), FETCH),
        };
        let info = &mut self.cells[number as usize];
        // Generations are never 0, so that a record never is.
        info.generation = info.generation.checked_add(1).unwrap_or(1);
        info.lane = Lane::Shared(None);
        info.result = result;
        info.awaits_spill = false;
        let capacity = |block: Block| u32::try_from(block.len()).expect("a block is smaller than 4 GiB");
        let task = Task {
            function,
            start: piece.items.start,
            end: piece.items.end,
            flags: flags | fetch,
            argument,
            result: result.map_or((INLINE, 0), |block| (block.page, capacity(block))),
        };
        cell.offer(info.generation, &task);
        Record {
            cell: number,
            generation: info.generation,
        }
    }

    /// Puts records into the task ring.
    fn flush(&mut self, shared: &Shared, tasks: &Cursor) {
        let mut sent = 0;
        while sent < self.unsent.len() {
            let records = &self.unsent[sent..];
            let pushed = shared
                .tasks()
                .try_push_batch(tasks, shared.me(), records.len(), |i, slot| {
                    // SAFETY: a slot of the task ring has 8 bytes.
                    #[allow(unsafe_code, reason = "a plain copy into a ring slot")]
                    unsafe {
                        slot.cast::<u64>().write_unaligned(records[i].to_word());
                    }
                });
            // Full of records that were revoked, or a dead worker holds the slot: the supervisor tries again.
            let Ok((first, count)) = pushed else { break };
            for (ticket, record) in (first..).zip(&records[..count]) {
                let info = &mut self.cells[record.cell as usize];
                if info.generation == record.generation {
                    info.lane = Lane::Shared(Some(ticket));
                }
            }
            sent += count;
        }
        self.unsent.drain(..sent);
    }

    /// The cell of a record, if its use has not ended.
    fn current(&self, record: Record) -> Option<&CellInfo> {
        let info = self.cells.get(record.cell as usize)?;
        (info.generation == record.generation && self.scheduler.piece(record.cell).is_some()).then_some(info)
    }

    fn load_of(&self, record: Record) -> Option<&Load> {
        self.current(record)?;
        self.loads.get(self.scheduler.piece(record.cell)?.load as usize)
    }

    /// Ends a use of a cell whose worker finished it. Records come from shared memory: anything else is ignored.
    fn complete(&mut self, shared: &Shared, record: Record) {
        let (Some(_), Some(cell)) = (self.current(record), shared.cell(record.cell)) else {
            return;
        };
        if !matches!(cell.state(record.generation), State::Done(_)) {
            return;
        }
        let (len, flags) = cell.result();
        let mut spill = None;
        if flags & SPILLED != 0 {
            spill = self.spills.remove(&record);
            if spill.is_none() {
                self.cells[record.cell as usize].awaits_spill = true;
                return;
            }
        }
        let piece = self
            .scheduler
            .piece(record.cell)
            .expect("checked by `current`")
            .clone();
        let count = u32::try_from(piece.items.len()).expect("ranges of u32");
        let (spilled, descriptors) =
            spill.map_or_else(Default::default, |spill| (spill.bytes, spill.descriptors));
        let total = self.deliver(cell, record.cell, &piece, count, len, &spilled, descriptors);
        let function = &mut self.functions[self.jobs[piece.job as usize].function as usize];
        function.outcome_len = function.outcome_len.max(total.div_ceil(piece.items.len().max(1)));
        self.vacate(record.cell);
        self.handle(Event::Finished { cell: record.cell });
        self.settle(piece.load, count);
    }

    /// Puts the outcomes of the first `count` items of a piece into its job's inbox. Returns their bytes.
    #[allow(clippy::too_many_arguments, reason = "the parts of one delivery")]
    fn deliver(
        &mut self,
        cell: Cell<'_>,
        number: u32,
        piece: &Piece,
        count: u32,
        len: usize,
        spilled: &[u8],
        descriptors: Vec<OwnedFd>,
    ) -> usize {
        let block = self.cells[number as usize].result;
        let first = self.loads[piece.load as usize].first + u64::from(piece.items.start);
        let job = &mut self.jobs[piece.job as usize];
        if job.dropped {
            return 0;
        }
        let start = job.inbox.bytes.len();
        match block {
            Some(block) => self.arena.read(block, len, &mut job.inbox.bytes),
            None => cell.read_result(len, &mut job.inbox.bytes),
        }
        job.inbox.bytes.extend_from_slice(spilled);
        let range = start..job.inbox.bytes.len();
        let total = range.len();
        job.inbox.entries.push(Entry {
            first,
            count,
            range,
            failure: None,
            descriptors,
        });
        job.ready.store(true, Ordering::Release);
        self.others |= self.collector != Some(piece.job);
        total
    }

    /// Fails items of a load.
    fn fail_items(&mut self, load: u32, items: Range<u32>) {
        let Some(Load { job, first, .. }) = self.loads.get(load as usize) else {
            return;
        };
        let (number, first) = (*job, *first);
        let job = &mut self.jobs[number as usize];
        if !job.dropped {
            for item in items.clone() {
                let index = first + u64::from(item);
                let failure = match self.death.clone().unwrap_or(TaskError::Cancelled) {
                    TaskError::WorkerDied {
                        pid,
                        signal,
                        code,
                        oom,
                        stderr_tail,
                        ..
                    } => {
                        let label = job.label.to_owned();
                        TaskError::WorkerDied {
                            pid,
                            signal,
                            code,
                            oom,
                            stderr_tail,
                            item: Some(index),
                            label,
                        }
                    }
                    other => other,
                };
                let end = job.inbox.bytes.len();
                let failure = Some(failure);
                job.inbox.entries.push(Entry {
                    first: index,
                    count: 1,
                    range: end..end,
                    failure,
                    descriptors: Vec::new(),
                });
            }
            job.ready.store(true, Ordering::Release);
            self.others |= self.collector != Some(number);
        }
        self.settle(load, u32::try_from(items.len()).expect("ranges of u32"));
    }

    /// So many items of a load have their outcome now.
    fn settle(&mut self, load: u32, items: u32) {
        let Some(entry) = self.loads.get_mut(load as usize) else {
            return;
        };
        entry.left = entry.left.saturating_sub(items);
        if entry.left > 0 {
            return;
        }
        let Load { job, body, .. } = self.loads.remove(load as usize);
        if let Body::Block { block, .. } = body {
            self.arena.free(block);
        }
        let owner = &mut self.jobs[job as usize];
        owner.loads -= 1;
        if !owner.attended {
            self.unattended.fetch_sub(1, Ordering::Relaxed);
        }
        if owner.dropped && owner.loads == 0 {
            self.jobs.remove(job as usize);
        }
    }

    /// Frees what a use of a cell had; the scheduler is told by the caller.
    fn vacate(&mut self, cell: u32) {
        if let Some(block) = self.cells[cell as usize].result.take() {
            self.arena.free(block);
        }
    }

    fn take_inbox(&mut self, job: u32, batch: &mut Batch) {
        let job = &mut self.jobs[job as usize];
        if batch.is_empty() {
            batch.clear();
            std::mem::swap(batch, &mut job.inbox);
            job.ready.store(false, Ordering::Relaxed);
        }
    }

    /// Nothing more of a job is wanted: what waits is discarded, what nobody began is taken back.
    fn drop_job(&mut self, shared: &Shared, job: u32) {
        let Some(owner) = self.jobs.get_mut(job as usize) else {
            return;
        };
        owner.dropped = true;
        owner.inbox = Batch::default();
        if owner.loads == 0 {
            self.jobs.remove(job as usize);
            return;
        }
        self.handle(Event::JobDropped { job });
        let of_job = |(cell, piece): (u32, &Piece)| (piece.job == job).then(|| (cell, piece.clone()));
        let in_flight: Vec<(u32, Piece)> = self.scheduler.in_flight().filter_map(of_job).collect();
        for (number, piece) in in_flight {
            let generation = self.cells[number as usize].generation;
            if shared.cell(number).is_some_and(|cell| cell.revoke(generation)) {
                self.vacate(number);
                self.handle(Event::Finished { cell: number });
                self.settle(
                    piece.load,
                    u32::try_from(piece.items.len()).expect("ranges of u32"),
                );
            }
        }
    }

    /// Finds out what a dead worker had in its hands, keeps what it saved, and lets the scheduler decide.
    fn bury(&mut self, shared: &Shared, slot: u32, incarnation: u16, death: TaskError) {
        let worker = shared.worker(slot);
        worker.status.store(Worker::ABSENT, Ordering::Relaxed);
        worker.mailbox.store(0, Ordering::Relaxed);
        self.slots[slot as usize] = Slot::Empty;
        let (mut running, mut lost) = (Vec::new(), Vec::new());
        let in_flight: Vec<(u32, Piece)> = self
            .scheduler
            .in_flight()
            .map(|(cell, piece)| (cell, piece.clone()))
            .collect();
        for (number, piece) in in_flight {
            let (generation, lane) = (
                self.cells[number as usize].generation,
                self.cells[number as usize].lane,
            );
            let Some(cell) = shared.cell(number) else { continue };
            match cell.state(generation) {
                State::Done(by) if by == incarnation => {
                    let record = Record {
                        cell: number,
                        generation,
                    };
                    self.complete(shared, record);
                    if self.current(record).is_some() {
                        // The rest of its result never arrived.
                        running.push(self.salvage(cell, number, &piece));
                        cell.fail(generation);
                    }
                }
                State::Running(by) if by == incarnation => {
                    running.push(self.salvage(cell, number, &piece));
                    cell.fail(generation);
                }
                State::Pending if self.was_lost(shared, slot, lane) => {
                    lost.push(number);
                    cell.fail(generation);
                }
                _ => {}
            }
        }
        for &cell in lost.iter().chain(running.iter().map(|running| &running.cell)) {
            self.vacate(cell);
        }
        self.death = Some(death);
        self.handle(Event::WorkerDied {
            worker: slot,
            running,
            lost,
        });
    }

    /// Whether an offer that nobody began was in a dead worker's hands.
    fn was_lost(&self, shared: &Shared, slot: u32, lane: Lane) -> bool {
        match lane {
            Lane::Mailbox(of) => of == slot,
            // Whoever lives begins a record before it frees the slot; only a death frees it unbegun.
            Lane::Shared(Some(ticket)) => shared.tasks().is_released(ticket),
            Lane::Shared(None) => false,
        }
    }

    /// Delivers the results that a dead worker saved of a piece.
    fn salvage(&mut self, cell: Cell<'_>, number: u32, piece: &Piece) -> Running {
        let (current, saved) = cell.last_progress();
        let items = piece.items.clone();
        let claimed = saved.clamp(items.start, items.end) - items.start;
        let mut bytes = Vec::new();
        match self.cells[number as usize].result {
            Some(block) => self.arena.read(block, block.len(), &mut bytes),
            None => cell.read_result(INLINE_RESULT, &mut bytes),
        }
        let (count, len) = Results::whole(&bytes, claimed);
        if count > 0 {
            self.deliver(cell, number, piece, count, len, &[], Vec::new());
            self.settle(piece.load, count);
        }
        let saved = items.start + count;
        Running {
            cell: number,
            saved,
            current: current.clamp(saved, items.end),
        }
    }

    /// Nothing will be delivered any more.
    fn break_off(&mut self, shared: &Shared, error: TaskError) {
        if matches!(self.phase, Phase::Broken(_)) {
            return;
        }
        self.phase = Phase::Broken(error);
        for slot in &self.slots {
            if let Slot::Running(worker) = slot {
                let _ = worker.child.kill();
            }
        }
        for (number, info) in (0..).zip(&self.cells) {
            if let Some(cell) = shared.cell(number) {
                cell.fail(info.generation);
            }
        }
    }
}

impl Arena {
    fn write(&self, block: Block, bytes: &[u8]) {
        assert!(bytes.len() <= block.len());
        // SAFETY: the block lies inside the mapping, is long enough, and is the parent's until a cell names it.
        #[allow(unsafe_code, reason = "a plain copy into shared memory")]
        unsafe {
            self.mapping()
                .base()
                .add(block.offset())
                .as_ptr()
                .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
    }

    /// Appends the first bytes of a block to `to`; `len` is clamped to the block.
    fn read(&self, block: Block, len: usize, to: &mut Vec<u8>) {
        // SAFETY: the block lies inside the mapping; what another process may be writing is copied, not borrowed.
        #[allow(unsafe_code, reason = "a plain copy out of shared memory")]
        unsafe {
            append(
                self.mapping().base().add(block.offset()),
                len.min(block.len()),
                to,
            );
        }
    }
}
