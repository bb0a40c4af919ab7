//! The child's side of a pool: takes work from its mailbox and the task ring, runs it, reports it.
//!
//! The main thread runs user code and nothing else; a second thread listens to the control socket, so that
//! definitions and large arguments arrive while the main thread is busy. Nothing here decides anything: the parent does.
//!
//! # If this process dies
//!
//! See the table in `cell.rs`. # If the parent dies: `crate::startup` ends this process and what it started.
#![allow(unsafe_code)]
//! # Safety
//!
//! Places in the arena come from the parent through shared memory; they are checked against the mapping's length
//! before anything is copied, and the copies are what is used.

use super::arena::PAGE;
use super::cell::{
    Cell, DIRECT, FETCH, Geometry, INLINE, INLINE_RESULT, Record, SPILLED, Shared, Task, Worker, append,
};
use super::chunk::{Items, Outcomes, RunItems, fail_items, failure};
use crate::control::{self, ToChild, ToParent};
use crate::error::TaskError;
use crate::payload::{MAX_HANDLES, Payload};
use ipc_queue::ring::Cursor;
use parking_lot::{Condvar, Mutex};
use shm_core::crash_point;
use shm_core::handle::{ReceiveSession, SendSession};
use shm_core::mapping::SharedMapping;
use shm_core::sync::{AtomicBool, Ordering};
use shm_core::wait::Pace;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a definition that the parent sent before the work may take to arrive.
const DEFINITION_PATIENCE: Duration = Duration::from_secs(10);
/// Operations between two refreshes of the processor hint.
const NOTE_CPU_EVERY: u32 = 64;

/// What arrived over the control socket and was not needed yet.
#[derive(Default)]
struct Inbox {
    functions: Vec<Option<RunItems>>,
    attached: HashMap<Record, Result<Payload, TaskError>>,
}

struct Mail {
    inbox: Mutex<Inbox>,
    arrived: Condvar,
    stop: AtomicBool,
}

/// Runs a worker until the parent says stop; never returns.
pub(crate) fn run(
    socket: BorrowedFd<'_>,
    geometry: Geometry,
    slot: u32,
    incarnation: u16,
    descriptors: Vec<OwnedFd>,
) -> ! {
    let code = match Main::new(socket, geometry, slot, incarnation, descriptors) {
        Ok(mut main) => {
            main.work();
            0
        }
        Err(error) => {
            eprintln!("proc-pool: this worker cannot join its pool: {error}");
            1
        }
    };
    std::process::exit(code)
}

/// The main thread.
struct Main<'a> {
    socket: BorrowedFd<'a>,
    shared: Arc<Shared>,
    arena: SharedMapping,
    slot: u32,
    incarnation: u16,
    mail: Arc<Mail>,
    tasks: Cursor,
    done: Cursor,
    pace: Pace,
    operations: u32,
    /// Resolved functions, by the parent's numbers; a copy of the inbox's without its lock.
    functions: Vec<Option<RunItems>>,
    arguments: Vec<u8>,
    scratch: Vec<u8>,
}

impl<'a> Main<'a> {
    fn new(
        socket: BorrowedFd<'a>,
        geometry: Geometry,
        slot: u32,
        incarnation: u16,
        descriptors: Vec<OwnedFd>,
    ) -> std::io::Result<Self> {
        let [segment, arena] = <[OwnedFd; 2]>::try_from(descriptors)
            .map_err(|all| std::io::Error::other(format!("{} descriptors came, not 2", all.len())))?;
        let shared = Arc::new(Shared::attach(segment.as_fd(), geometry).map_err(std::io::Error::other)?);
        if slot >= geometry.workers {
            return Err(std::io::Error::other(format!("slot {slot} of {}", geometry.workers)));
        }
        let arena = SharedMapping::attach(arena, 1).map_err(std::io::Error::other)?;
        let mail =
            Arc::new(Mail { inbox: Mutex::default(), arrived: Condvar::new(), stop: AtomicBool::new(false) });
        let me = shared.me();
        control::send(
            socket,
            &ToParent::Attached { participant: me, generation: shared.segment().generation(me) },
            &[],
            None,
        )?;
        let listener = socket.try_clone_to_owned()?;
        std::thread::Builder::new().name("proc-pool-control".into()).spawn({
            let (mail, shared) = (Arc::clone(&mail), Arc::clone(&shared));
            move || listen(&listener, &mail, &shared, slot)
        })?;
        Ok(Self {
            socket,
            shared,
            arena,
            slot,
            incarnation,
            mail,
            tasks: Cursor::new(),
            done: Cursor::new(),
            pace: Pace::new(),
            operations: 0,
            functions: Vec::new(),
            arguments: Vec::new(),
            scratch: Vec::new(),
        })
    }

    fn work(&mut self) {
        let shared = Arc::clone(&self.shared);
        let me = shared.worker(self.slot);
        me.status.store(Worker::IDLE, Ordering::Release);
        while !self.mail.stop.load(Ordering::Acquire) {
            if self.take_mail(me) || self.take_shared(me) {
                continue;
            }
            let (mail, tasks) = (&self.mail, &self.tasks);
            let attempt = || {
                let something = me.mailbox.load(Ordering::Acquire) != 0
                    || shared.tasks().is_ready(tasks)
                    || mail.stop.load(Ordering::Acquire);
                something.then_some(())
            };
            // Whatever a death leaves behind is the parent's to clean up.
            me.doorbell.wait(&self.pace, u64::from(self.operations), None, attempt, || None);
        }
        me.status.store(Worker::ABSENT, Ordering::Release);
    }

    /// Runs the record that a caller put into the mailbox, if there is one.
    fn take_mail(&mut self, me: &Worker) -> bool {
        let record = me.mailbox.load(Ordering::Acquire);
        if record == 0 {
            return false;
        }
        me.status.store(Worker::BUSY, Ordering::Relaxed);
        let record = Record::from_word(record);
        let shared = Arc::clone(&self.shared);
        let begun = shared.cell(record.cell).filter(|cell| cell.begin(record.generation, self.incarnation));
        crash_point!("pool.worker.mail_begun");
        // Only now: until the cell says RUNNING, the mailbox is what tells the parent that we had it.
        me.mailbox.store(0, Ordering::Release);
        if let Some(cell) = begun {
            self.run(cell, record);
        }
        me.status.store(Worker::IDLE, Ordering::Release);
        true
    }

    /// Runs records of the task ring until it is empty.
    fn take_shared(&mut self, me: &Worker) -> bool {
        let shared = Arc::clone(&self.shared);
        if !shared.tasks().is_ready(&self.tasks) || !me.take(Worker::BUSY) {
            return false;
        }
        let mut ran = false;
        while !self.mail.stop.load(Ordering::Relaxed) {
            let (incarnation, index) = (self.incarnation, shared.me());
            // Begun between claiming the record and freeing its slot, so that a death in between shows.
            let taken = shared.tasks().try_pop(&self.tasks, index, |slot| {
                // SAFETY: a slot of the task ring has 8 bytes.
                let record = Record::from_word(unsafe { slot.cast::<u64>().read_unaligned() });
                let cell = shared.cell(record.cell).filter(|cell| cell.begin(record.generation, incarnation));
                crash_point!("pool.worker.begun");
                cell.map(|cell| (cell, record))
            });
            match taken {
                Ok(Some((cell, record))) => self.run(cell, record),
                // Revoked.
                Ok(None) => {}
                Err(_) => break,
            }
            ran = true;
        }
        me.status.store(Worker::IDLE, Ordering::Release);
        ran
    }

    /// Runs one cell and reports it.
    fn run(&mut self, cell: Cell<'_>, record: Record) {
        if let Some(ahead) = self.shared.cell(cell.ahead()) {
            ahead.prefetch();
        }
        let task = cell.task();
        let session = SendSession::begin();
        let mut outcomes = CellOutcomes::new(cell, &task, &self.arena, &session);
        self.arguments.clear();
        let mut descriptors = Vec::new();
        let mut failure = None;
        if task.flags & FETCH != 0 {
            match fetch(self.socket, &self.mail, record) {
                Ok(payload) => (self.arguments, descriptors) = (payload.bytes, payload.descriptors),
                Err(error) => failure = Some(error),
            }
        } else if task.argument.0 == INLINE {
            cell.read_arguments(task.argument.1 as usize, &mut self.arguments);
        } else if let Some(at) = place(&self.arena, task.argument) {
            // SAFETY: `place` checked the range against the mapping.
            unsafe { append(at, task.argument.1 as usize, &mut self.arguments) };
        } else {
            failure = Some(TaskError::unavailable("the arguments lie outside of the arena"));
        }
        let function = self.function(task.function);
        let mut items = Items {
            arguments: &self.arguments,
            range: task.start..task.end,
            outcomes: &mut outcomes,
            scratch: &mut self.scratch,
        };
        {
            let _received = ReceiveSession::begin(descriptors);
            match (function, failure) {
                (Ok(function), None) => function(&mut items),
                (Err(error), _) | (_, Some(error)) => fail_items(&mut items, task.start, &error),
            }
        }
        let (len, spill) = (outcomes.len, outcomes.spill.take());
        let handles = session.finish();
        let mut flags = 0;
        if spill.is_some() || !handles.is_empty() {
            flags = SPILLED;
            let payload = Payload { bytes: spill.unwrap_or_default(), descriptors: handles };
            if let Err(error) = self.send_spill(record, payload) {
                // The parent cannot be reached or memory is gone: this cell cannot be finished by this process.
                eprintln!("proc-pool: a result cannot be sent: {error}");
                std::process::exit(1);
            }
        }
        crash_point!("pool.worker.ran");
        let len = u32::try_from(len).expect("a block is smaller than 4 GiB");
        if !cell.finish(record.generation, self.incarnation, len, flags) {
            return;
        }
        crash_point!("pool.worker.finished");
        self.operations = self.operations.wrapping_add(1);
        let line = if task.flags & DIRECT != 0 {
            cell.line()
        } else {
            self.push_done(record);
            self.shared.completions()
        };
        if self.operations % NOTE_CPU_EVERY == 0 || task.flags & DIRECT != 0 {
            line.note_cpu();
        }
        line.notify(1);
    }

    /// Reports a finished cell. The ring has room for every cell in flight, so it is full only while records of
    /// dead workers wait to be collected.
    fn push_done(&self, record: Record) {
        let ring = self.shared.done();
        loop {
            let pushed = ring.try_push(&self.done, self.shared.me(), |slot| {
                // SAFETY: a slot of the done ring has 8 bytes.
                unsafe { slot.cast::<u64>().write_unaligned(record.to_word()) };
            });
            if pushed.is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn send_spill(&self, record: Record, payload: Payload) -> Result<(), Box<dyn std::error::Error>> {
        let (packed, descriptors) = payload.pack()?;
        let message = ToParent::Spill { record, packed };
        Ok(control::send(self.socket, &message, &descriptors, None)?)
    }

    /// The function of this number; its definition was sent before the first record that names it.
    fn function(&mut self, number: u32) -> Result<RunItems, TaskError> {
        let index = number as usize;
        if let Some(Some(function)) = self.functions.get(index) {
            return Ok(*function);
        }
        let deadline = Instant::now() + DEFINITION_PATIENCE;
        let mut inbox = self.mail.inbox.lock();
        loop {
            self.functions.clone_from(&inbox.functions);
            if let Some(Some(function)) = self.functions.get(index) {
                return Ok(*function);
            }
            if self.mail.arrived.wait_until(&mut inbox, deadline).timed_out() {
                return Err(TaskError::unavailable(format!("function number {number} was never defined")));
            }
        }
    }
}

/// Asks the parent for arguments that do not lie in shared memory, and waits for them. No deadline: the parent answers
/// or is gone, and with it this process.
fn fetch(socket: BorrowedFd<'_>, mail: &Mail, record: Record) -> Result<Payload, TaskError> {
    control::send(socket, &ToParent::Fetch { record }, &[], None)
        .map_err(|error| TaskError::unavailable(format!("asking for the arguments: {error}")))?;
    let mut inbox = mail.inbox.lock();
    loop {
        if let Some(payload) = inbox.attached.remove(&record) {
            return payload;
        }
        mail.arrived.wait(&mut inbox);
    }
}

/// The listening thread: puts what arrives where the main thread finds it.
fn listen(socket: &OwnedFd, mail: &Mail, shared: &Shared, slot: u32) {
    loop {
        let heard = match control::receive::<ToChild>(socket.as_fd(), None) {
            Ok(Some((message, descriptors))) => hear(message, descriptors, mail, shared, slot),
            // The end of the parent: `crate::startup` ends this process and what it started.
            Ok(None) => return,
            Err(_) => false,
        };
        if !heard {
            // What is no message for a worker, or no descriptors are left to receive: a worker that cannot hear is of no
            // use. At once, because the main thread may be in user code, which exit handlers must not run beside.
            let me = rustix::process::getpid();
            let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
            return;
        }
    }
}

/// Takes one message in; `false` for one that a worker does not expect.
fn hear(message: ToChild, descriptors: Vec<OwnedFd>, mail: &Mail, shared: &Shared, slot: u32) -> bool {
    match message {
        ToChild::Define { number, code } => {
            let mut inbox = mail.inbox.lock();
            let index = number as usize;
            if inbox.functions.len() <= index {
                inbox.functions.resize(index + 1, None);
            }
            inbox.functions[index] = code.resolve().ok();
        }
        ToChild::Attach { record, packed } => {
            let payload = Payload::unpack(packed, descriptors);
            mail.inbox.lock().attached.insert(record, payload);
        }
        ToChild::Stop => {
            mail.stop.store(true, Ordering::Release);
            shared.worker(slot).doorbell.notify_all();
        }
        ToChild::Run { .. } | ToChild::Work { .. } => return false,
    }
    mail.arrived.notify_all();
    true
}

/// Where a range of the arena lies, if it does.
fn place(arena: &SharedMapping, (page, len): (u32, u32)) -> Option<std::ptr::NonNull<u8>> {
    let offset = (page as usize).checked_mul(PAGE)?;
    let end = offset.checked_add(len as usize)?;
    // SAFETY: the range was just checked to lie inside the mapping.
    (end <= arena.len()).then(|| unsafe { arena.base().add(offset) })
}

/// Stores outcomes where they outlive this process: in the cell or its block of the arena. What does not fit any more is
/// kept here and sent as a whole at the end.
struct CellOutcomes<'a> {
    cell: Cell<'a>,
    /// The block of the arena; the cell's own bytes without.
    block: Option<std::ptr::NonNull<u8>>,
    capacity: usize,
    len: usize,
    /// Items before this one lie in shared memory, complete.
    saved: u32,
    spill: Option<Vec<u8>>,
    session: &'a SendSession,
    /// How many handles the results before the present item carry.
    handles: usize,
}

impl<'a> CellOutcomes<'a> {
    fn new(cell: Cell<'a>, task: &Task, arena: &SharedMapping, session: &'a SendSession) -> Self {
        let block = (task.result.0 != INLINE).then(|| place(arena, task.result)).flatten();
        let capacity = if block.is_some() { task.result.1 as usize } else { INLINE_RESULT };
        Self { cell, block, capacity, len: 0, saved: task.start, spill: None, session, handles: 0 }
    }

    fn store(&mut self, bytes: &[u8]) {
        match self.block {
            // SAFETY: `end` checked that it fits into the block, and `place` that the block lies in the mapping; the
            // block is this worker's until the cell is finished.
            Some(block) => unsafe {
                block.add(self.len).as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            },
            None => self.cell.write_result(self.len, bytes),
        }
        self.len += bytes.len();
    }
}

impl Outcomes for CellOutcomes<'_> {
    #[inline]
    fn begin(&mut self, item: u32) {
        self.handles = self.session.len();
        self.cell.progress(item, self.saved);
        crash_point!("pool.worker.item");
    }

    #[inline]
    fn end(&mut self, item: u32, entry: &[u8]) {
        if self.session.len() > MAX_HANDLES {
            // One message takes no more: the item whose handles are too many for it fails.
            self.session.truncate(self.handles);
            let what = format_args!("the results of its chunk carry more than {MAX_HANDLES} handles");
            let entry = failure(&TaskError::codec("the result cannot be sent", &what));
            return self.end(item, &entry);
        }
        if self.spill.is_none() && self.capacity - self.len >= entry.len() {
            self.store(entry);
            // A result with handles needs their descriptors, which die with this process.
            if self.session.is_empty() {
                self.saved = item + 1;
                self.cell.progress(item + 1, self.saved);
            }
            return;
        }
        self.spill.get_or_insert_default().extend_from_slice(entry);
    }
}
