//! What the parent knows of its pool, behind one lock: cells, loads, jobs, functions, worker slots.
//!
//! # Why no outcome is lost or doubled
//!
//! A use of a cell ends exactly once, in `Core::complete`, `Core::bury` or `Core::drop_job`, under the lock: each takes
//! the piece out of the cell, and a record of a use that has ended is recognised by its generation. A load counts the
//! items that have no outcome yet, and goes with the last one.

use super::arena::{Arena, Block, LARGEST};
use super::cell::{
    Cell, FETCH, INLINE, INLINE_ARGUMENTS, INLINE_RESULT, Record, SPILLED, Shared, State, Task,
};
use super::chunk::RunItems;
use super::load::{Batch, Entry, Prepared, PreparedLoad};
use super::scheduler::{Action, Event, Fifo, Piece, Scheduler};
use crate::child::Child;
use crate::control::ToChild;
use crate::error::{Result, TaskError};
use crate::function::Code;
use crate::payload::{Packed, Payload};
use ipc_queue::ring::Cursor;
use shm_core::sync::{AtomicBool, AtomicU32, Ordering};
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
/// How many cells ahead a worker fetches.
const AHEAD: usize = 2;
/// Bytes that the outcomes of a function's first piece get at least, and those of each of its items.
const FIRST_OUTCOME: usize = 1024;
const FIRST_OUTCOME_ITEM: usize = 16;
/// How long a worker may leave its control socket unread before it counts as stuck.
pub(super) const SOCKET_PATIENCE: Duration = Duration::from_secs(2);

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
pub(super) struct Job {
    pub(super) function: u32,
    pub(super) label: &'static str,
    pub(super) retries: u32,
    pub(super) inbox: Batch,
    pub(super) ready: Arc<AtomicBool>,
    /// Loads that have items without outcome.
    pub(super) loads: u32,
    pub(super) dropped: bool,
    /// Whether somebody waits for it; otherwise the receiving thread collects.
    pub(super) attended: bool,
}

#[derive(Debug)]
pub(super) struct Load {
    pub(super) job: u32,
    pub(super) first: u64,
    pub(super) body: Body,
    /// Items without outcome.
    pub(super) left: u32,
}

#[derive(Debug)]
pub(super) enum Body {
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

/// Wakes whoever polls the event descriptor.
pub(super) fn poke(event: &OwnedFd) {
    // A full counter is a poke too.
    let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
}

impl Body {
    /// Bytes of arguments, where they are in shared memory.
    fn len(&self) -> usize {
        match self {
            Self::Tiny { len, .. } => usize::from(*len),
            Self::Small(bytes) => bytes.len(),
            Self::Block { len, .. } => *len as usize,
            Self::Sent { .. } => 0,
        }
    }
}

/// Generations are never 0, so that a record never is.
fn next_generation(generation: u32) -> u32 {
    generation.checked_add(1).unwrap_or(1)
}

/// How a piece was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// In the task ring, under this ticket; `None` while it waits for a slot.
    Shared(Option<u64>),
    /// In the mailbox of this worker slot.
    Mailbox(u32),
}

#[derive(Debug)]
pub(super) struct CellInfo {
    pub(super) generation: u32,
    pub(super) lane: Lane,
    pub(super) result: Option<Block>,
    /// Finished, but the rest of the result has not arrived over the control socket.
    pub(super) awaits_spill: bool,
}

#[derive(Debug)]
pub(super) struct Function {
    pub(super) code: Code<RunItems>,
    /// The most bytes that an item's outcome took so far, with its header.
    outcome_len: usize,
}

/// What this process knows, under the lock.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) scheduler: Scheduler<Fifo>,
    pub(super) actions: Vec<Action>,
    pub(super) arena: Arena,
    pub(super) cells: Vec<CellInfo>,
    pub(super) loads: Slab<Load>,
    pub(super) jobs: Slab<Job>,
    pub(super) functions: Vec<Function>,
    pub(super) numbers: HashMap<usize, u32>,
    /// Records that have yet to go into the task ring.
    pub(super) unsent: Vec<Record>,
    pub(super) spills: HashMap<Record, Payload>,
    /// The error of the death that is being dealt with.
    pub(super) death: Option<TaskError>,
    pub(super) phase: Phase,
    pub(super) slots: Vec<Slot>,
    /// Slots that the scheduler wants a worker in.
    pub(super) spawn: Vec<u32>,
    pub(super) next_incarnation: u16,
    /// The job whose owner is collecting.
    pub(super) collector: Option<u32>,
    /// Another job than the collector's got outcomes.
    pub(super) others: bool,
    /// Dropped jobs of which something is still under way.
    pub(super) orphans: u32,
    /// Wakes the supervisor.
    poke: Arc<OwnedFd>,
    /// Loads of jobs that nobody attends.
    pub(super) unattended: Arc<AtomicU32>,
}

impl Core {
    pub(super) fn new(workers: u32, arena: Arena, unattended: Arc<AtomicU32>, poke: Arc<OwnedFd>) -> Self {
        let cell =
            |_| CellInfo { generation: 0, lane: Lane::Shared(None), result: None, awaits_spill: false };
        Self {
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
            unattended,
            poke,
            orphans: 0,
        }
    }

    /// Tells the supervisor of jobs that nobody collects for.
    pub(super) fn orphan(&mut self) {
        self.orphans += 1;
        poke(&self.poke);
    }

    /// Whether no piece waits or is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.scheduler.outstanding() == 0
    }

    /// Whether records wait for room in the task ring.
    pub(super) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    pub(super) fn check_open(&self) -> Result<()> {
        match &self.phase {
            Phase::Open => Ok(()),
            Phase::Broken(error @ TaskError::Unavailable { .. }) => Err(error.clone().into()),
            _ => Err(TaskError::PoolClosed.into()),
        }
    }

    /// The number of a function, which every worker learns before it meets it.
    pub(super) fn define(&mut self, code: RunItems, label: &str) -> Result<u32> {
        let address = code as usize;
        if let Some(&number) = self.numbers.get(&address) {
            return Ok(number);
        }
        let code = Code::of(code, label)?;
        let number = u32::try_from(self.functions.len()).expect("fewer functions than 2^32");
        for slot in &self.slots {
            if let Slot::Running(worker) = slot {
                let deadline = Some(Instant::now() + SOCKET_PATIENCE);
                if worker.child.send(&ToChild::Define { number, code }, &[], deadline).is_err() {
                    // It is dead, or stuck beyond help; its death will be noticed.
                    let _ = worker.child.kill();
                }
            }
        }
        self.functions.push(Function { code, outcome_len: 0 });
        self.numbers.insert(address, number);
        Ok(number)
    }

    /// A new job: its number, and the flag that is set when it has outcomes.
    pub(super) fn add_job(
        &mut self,
        function: u32,
        label: &'static str,
        retries: u32,
        attended: bool,
    ) -> (u32, Arc<AtomicBool>) {
        let ready = Arc::new(AtomicBool::new(false));
        let number = self.jobs.insert(Job {
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
        self.handle(Event::JobOpened { job: number });
        (number, ready)
    }

    pub(super) fn handle(&mut self, event: Event) {
        self.scheduler.handle(event, &mut self.actions);
    }

    /// Takes loads in and submits them. The actions are left for the caller, also after an error.
    pub(super) fn add_loads(&mut self, job: u32, prepared: &mut Prepared) -> Result<()> {
        let mut added = Ok(());
        for load in prepared.loads.drain(..) {
            if added.is_ok() {
                added = self.add_load(job, load, &prepared.bytes);
            }
        }
        prepared.bytes.clear();
        added
    }

    /// A number for a worker that starts: no living worker has it.
    pub(super) fn new_incarnation(&mut self) -> u16 {
        loop {
            self.next_incarnation = self.next_incarnation.checked_add(1).unwrap_or(1);
            let next = self.next_incarnation;
            let taken = |slot: &Slot| matches!(slot, Slot::Running(worker) if worker.incarnation == next);
            // There are far fewer slots than numbers.
            if !self.slots.iter().any(taken) {
                return next;
            }
        }
    }

    /// Takes a load in and submits it. The actions are left for the caller.
    pub(super) fn add_load(&mut self, job: u32, load: PreparedLoad, bytes: &[u8]) -> Result<()> {
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
        let number = self.loads.insert(Load { job, first: load.first, body, left: load.items });
        let number = u32::try_from(number).expect("fewer loads than 2^32");
        self.handle(Event::Submitted(Piece { job, load: number, items: 0..load.items, retries }));
        Ok(())
    }

    /// Puts arguments where workers find them.
    pub(super) fn place(&mut self, bytes: &[u8]) -> Result<Body> {
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
                let payload = Payload { bytes: bytes.to_vec(), descriptors: Vec::new() };
                let (packed, descriptors) = payload.pack()?;
                Ok(Body::Sent { packed, descriptors })
            }
        }
    }

    /// Does what the scheduler decided.
    pub(super) fn execute(&mut self, shared: &Shared, tasks: &Cursor) {
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
    pub(super) fn offer(&mut self, shared: &Shared, number: u32, flags: u32) -> Record {
        let piece = self.scheduler.piece(number).expect("the scheduler has just put it there").clone();
        let load = &self.loads[piece.load as usize];
        let function = self.jobs[piece.job as usize].function;
        let expected = self.expected_outcomes(function, load, piece.items.len());
        let result = (expected > INLINE_RESULT).then(|| self.arena.alloc(expected.min(LARGEST))).flatten();
        let cell = shared.cell(number).expect("cells are numbered by the geometry");
        let (argument, fetch) = match &load.body {
            Body::Tiny { len, bytes } => {
                cell.write_arguments(&bytes[..usize::from(*len)]);
                ((INLINE, u32::from(*len)), 0)
            }
            Body::Small(bytes) => {
                cell.write_arguments(bytes);
                ((INLINE, u32::try_from(bytes.len()).expect("it fits into a cell")), 0)
            }
            Body::Block { block, len } => ((block.page, *len), 0),
            Body::Sent { .. } => ((INLINE, 0), FETCH),
        };
        let info = &mut self.cells[number as usize];
        info.generation = next_generation(info.generation);
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
        cell.point_ahead(number);
        cell.offer(info.generation, &task);
        Record { cell: number, generation: info.generation }
    }

    /// How many bytes the outcomes of a piece are likely to take. What turns out longer takes the way over the control
    /// socket, which is slower.
    fn expected_outcomes(&self, function: u32, load: &Load, items: usize) -> usize {
        match self.functions[function as usize].outcome_len {
            // Nothing is known: about as much as the arguments, and not too little.
            0 => load.body.len().saturating_mul(2).max(FIRST_OUTCOME).max(items * FIRST_OUTCOME_ITEM),
            len => len.saturating_mul(items),
        }
    }

    /// Puts records into the task ring.
    pub(super) fn flush(&mut self, shared: &Shared, tasks: &Cursor) {
        // A worker that begins one cell fetches the one after the next: by the time it gets there, it is there.
        for pair in self.unsent.windows(AHEAD + 1) {
            if let Some(cell) = shared.cell(pair[0].cell) {
                cell.point_ahead(pair[AHEAD].cell);
            }
        }
        let mut sent = 0;
        while sent < self.unsent.len() {
            let records = &self.unsent[sent..];
            let pushed = shared.tasks().try_push_batch(tasks, shared.me(), records.len(), |i, slot| {
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
        if !self.unsent.is_empty() {
            poke(&self.poke);
        }
    }

    /// The cell of a record, if its use has not ended.
    pub(super) fn current(&self, record: Record) -> Option<&CellInfo> {
        let info = self.cells.get(record.cell as usize)?;
        (info.generation == record.generation && self.scheduler.piece(record.cell).is_some()).then_some(info)
    }

    /// What a worker may fetch for a record.
    pub(super) fn attachment(&self, record: Record) -> (Packed, &[OwnedFd]) {
        let piece = self.current(record).and_then(|_| self.scheduler.piece(record.cell));
        let load = piece.and_then(|piece| self.loads.get(piece.load as usize));
        match load.map(|load| &load.body) {
            Some(Body::Sent { packed, descriptors }) => (packed.clone(), descriptors),
            // It asks for what it does not need: no load, no descriptors, an empty chunk.
            _ => (Packed::Inline(Vec::new()), &[]),
        }
    }

    /// Ends a use of a cell whose worker finished it. Records come from shared memory: anything else is ignored.
    pub(super) fn complete(&mut self, shared: &Shared, record: Record) {
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
        let piece = self.scheduler.piece(record.cell).expect("checked by `current`").clone();
        let count = u32::try_from(piece.items.len()).expect("ranges of u32");
        let (spilled, descriptors) =
            spill.map_or_else(Default::default, |spill| (spill.bytes, spill.descriptors));
        let total = self.deliver(cell, record.cell, &piece, count, len, &spilled, descriptors);
        let function = &mut self.functions[self.jobs[piece.job as usize].function as usize];
        let (known, now) = (function.outcome_len, total.div_ceil(piece.items.len().max(1)));
        // Up at once, down slowly: one long failure must not cost every later piece a large block.
        function.outcome_len = if now > known { now } else { known - (known - now) / 8 };
        self.vacate(record.cell);
        self.handle(Event::Finished { cell: record.cell });
        self.settle(piece.load, count);
    }

    /// Puts the outcomes of the first `count` items of a piece into its job's inbox. Returns their bytes.
    #[allow(clippy::too_many_arguments, reason = "the parts of one delivery")]
    pub(super) fn deliver(
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
        job.inbox.entries.push(Entry { first, count, range, failure: None, descriptors });
        job.ready.store(true, Ordering::Release);
        self.others |= self.collector != Some(piece.job);
        total
    }

    /// Fails items of a load.
    pub(super) fn fail_items(&mut self, load: u32, items: Range<u32>) {
        let Some(Load { job, first, .. }) = self.loads.get(load as usize) else {
            return;
        };
        let (number, first) = (*job, *first);
        let job = &mut self.jobs[number as usize];
        if !job.dropped {
            for item in items.clone() {
                let index = first + u64::from(item);
                let failure = match self.death.clone().unwrap_or(TaskError::Cancelled) {
                    TaskError::WorkerDied { pid, signal, code, oom, stderr_tail, .. } => {
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
    pub(super) fn settle(&mut self, load: u32, items: u32) {
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
            self.orphans -= 1;
        }
    }

    /// Ends a use of a cell and frees what it had; the scheduler is told by the caller.
    pub(super) fn vacate(&mut self, cell: u32) {
        let info = &mut self.cells[cell as usize];
        let generation = info.generation;
        // At once, not only with the next offer: the scheduler may give the cell to a waiting piece before that.
        info.generation = next_generation(generation);
        if let Some(block) = info.result.take() {
            self.arena.free(block);
        }
        if !self.spills.is_empty() {
            self.spills.remove(&Record { cell, generation });
        }
    }

    pub(super) fn take_inbox(&mut self, job: u32, batch: &mut Batch) {
        let job = &mut self.jobs[job as usize];
        if batch.is_empty() {
            batch.clear();
            std::mem::swap(batch, &mut job.inbox);
            job.ready.store(false, Ordering::Relaxed);
        }
    }
}
