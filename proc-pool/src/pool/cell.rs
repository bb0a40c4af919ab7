//! The pool's segment: what the parent and its workers share.
//!
//! # Memory
//!
//! ```text
//! geometry         numbers of workers and cells, for sweepers                64 bytes
//! completions      WaitLine: the parent waits here for the workers           64 bytes
//! workers          doorbell, mailbox and status of each worker slot         128 bytes each
//! cells            one piece of work in flight each                         512 bytes each
//! task ring        cell | generation << 32, for whichever worker is free    (ipc_queue::ring)
//! done ring        cell | generation << 32, finished
//! ```
//!
//! A cell, by cache lines and by who writes it:
//!
//! ```text
//! 0     state, function, range, places of arguments and result     parent (the state: both)
//! 48    inline arguments (144 bytes)                                parent, before it offers the cell
//! 192   progress, result length, flags                              worker
//! 208   inline result (240 bytes)                                   worker
//! 448   WaitLine: the caller of a single call waits here            both
//! ```
//!
//! # States of a cell
//!
//! ```text
//! state = generation << 32 | incarnation << 16 | kind
//! IDLE -> PENDING    parent: store (Release), after everything else of the cell
//! PENDING -> RUNNING worker: CAS (Acquire), between claiming the record and freeing its slot
//! PENDING -> IDLE    parent: CAS, to take back what nobody began
//! RUNNING -> DONE    worker: CAS (Release), after the results
//! PENDING -> FAILED  parent: CAS, when a dead worker had taken the record
//! any -> FAILED      parent, when the worker is dead: wakes a caller that waits at the cell
//! ```
//!
//! The generation counts the uses of a cell: what a late reader or writer of the last use does fails its CAS.
//! The incarnation is the number that the parent gave to this start of a worker, so a death names its cells even
//! when the dead worker's participant index already belongs to its successor.
//!
//! # If a worker dies at each step
//!
//! * before it claims a record: nothing of it is missing;
//! * between the claim and its CAS: the ring recovers the slot, its ticket is gone from the ring and the cell is still
//!   PENDING, which the parent's CAS proves: it sends it again;
//! * RUNNING: `progress` says which items have results and which one was running;
//! * DONE without a record in the done ring: the parent finds the cell by its owner.
#![allow(unsafe_code)]
//! # Safety
//!
//! Offsets are computed from a [`Geometry`] that was checked against the segment's length, cell and worker numbers
//! are checked against it, and the segment stays mapped as long as the `Shared` that lends references. Control words are
//! atomics; arguments and results are copied through raw pointers, and never trusted.

use ipc_queue::ring::{Layout, Ring};
use serde::{Deserialize, Serialize};
use shm_core::SegmentError;
use shm_core::segment::{Segment, Spec};
use shm_core::sync::{AtomicU32, AtomicU64, Ordering};
use shm_core::wait::WaitLine;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;

/// Bytes of arguments inside a cell.
pub(super) const INLINE_ARGUMENTS: usize = 144;
/// Bytes of results inside a cell.
pub(super) const INLINE_RESULT: usize = 240;
/// The most worker slots of a pool.
pub(super) const MAX_WORKERS: u32 = 512;
/// The most cells of a pool.
pub(super) const MAX_CELLS: u32 = 1 << 16;

const KIND: u32 = 0x706f_6f6c;
const LAYOUT_VERSION: u64 = 1;
const CELL_LEN: usize = 512;
const WORKER_LEN: usize = 128;
const COMPLETIONS_AT: usize = 64;
const WORKERS_AT: usize = 128;

/// How many workers and cells a pool has; fixed for its life.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Geometry {
    pub(super) workers: u32,
    pub(super) cells: u32,
}

impl Geometry {
    fn cells_at(self) -> usize {
        WORKERS_AT + self.workers as usize * WORKER_LEN
    }

    fn tasks_at(self) -> usize {
        self.cells_at() + self.cells as usize * CELL_LEN
    }

    /// Every cell in flight has at most one record in the task ring.
    fn task_ring(self) -> Layout {
        Layout::new(self.cells as usize, 8).expect("a pool's geometry is in range")
    }

    /// Every cell in flight has at most one record in the done ring; some belong to cells whose worker died.
    fn done_ring(self) -> Layout {
        Layout::new(2 * self.cells as usize, 8).expect("a pool's geometry is in range")
    }

    fn done_at(self) -> usize {
        self.tasks_at() + self.task_ring().len_bytes()
    }

    fn spec(self) -> Spec {
        Spec {
            kind: KIND,
            layout_hash: LAYOUT_VERSION << 48 | u64::from(self.workers) << 24 | u64::from(self.cells),
            body_len: self.done_at() + self.done_ring().len_bytes(),
            sweep: |segment, dead| {
                let geometry = Geometry::in_body(segment);
                geometry.map(|geometry| Rings::of(segment, geometry).recover(dead)).is_some()
            },
            arrived: |_| (),
        }
    }

    /// The geometry that the body names, if it is one of a body of this length: a peer may have scribbled on it.
    fn in_body(segment: &Segment) -> Option<Self> {
        let word = |at: usize| {
            // SAFETY: the first line of the body, 4-aligned, accessed as atomics only.
            unsafe { segment.body().cast::<AtomicU32>().add(at).as_ref() }.load(Ordering::Relaxed)
        };
        let geometry = Self { workers: word(0), cells: word(1) };
        let fits = geometry.is_valid() && geometry.spec().body_len <= segment.body_len();
        fits.then_some(geometry)
    }

    fn is_valid(self) -> bool {
        (1..=MAX_WORKERS).contains(&self.workers) && (1..=MAX_CELLS).contains(&self.cells)
    }
}

/// The two rings of a pool's segment.
#[derive(Clone, Copy, Debug)]
struct Rings<'s> {
    tasks: Ring<'s>,
    done: Ring<'s>,
}

impl<'s> Rings<'s> {
    /// The rings; the geometry is the checked one of this segment.
    fn of(segment: &'s Segment, geometry: Geometry) -> Self {
        // SAFETY: the segment stays mapped for `'s`.
        unsafe { Self::at(segment, geometry) }
    }

    /// # Safety
    ///
    /// The segment stays mapped for `'s`, and the geometry is the checked one of it.
    unsafe fn at(segment: &Segment, geometry: Geometry) -> Self {
        // SAFETY: the places are 64-aligned, disjoint and inside the body, whose length was checked against the
        // geometry; only rings of this layout touch them; mapped by the caller's promise.
        unsafe {
            Self {
                tasks: Ring::attach(segment.body().add(geometry.tasks_at()), geometry.task_ring()),
                done: Ring::attach(segment.body().add(geometry.done_at()), geometry.done_ring()),
            }
        }
    }

    /// Repairs what a dead participant left in them.
    fn recover(&self, dead: u16) {
        self.tasks.recover_owner(dead);
        self.done.recover_owner(dead);
    }
}

/// A record of the rings and mailboxes: which use of which cell. Never 0, because generations start at 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(super) cell: u32,
    pub(super) generation: u32,
}

impl Record {
    pub(super) fn to_word(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.cell)
    }

    #[allow(clippy::cast_possible_truncation, reason = "the two halves of a word")]
    pub(super) fn from_word(word: u64) -> Self {
        Self { cell: word as u32, generation: (word >> 32) as u32 }
    }
}

/// An attachment to a pool's segment.
#[derive(Debug)]
pub(super) struct Shared {
    segment: Arc<Segment>,
    geometry: Geometry,
    /// Valid as long as `segment` is; lent for the lifetime of `self` only.
    rings: Rings<'static>,
}

impl Shared {
    pub(super) fn create(geometry: Geometry) -> Result<Self, SegmentError> {
        assert!(geometry.is_valid(), "the builder checks its numbers");
        let segment = Segment::create(&geometry.spec(), |body| {
            // SAFETY: the first line of the zeroed body, which nobody else sees yet.
            unsafe { body.cast::<[u32; 2]>().write([geometry.workers, geometry.cells]) };
        })?;
        Ok(Self::over(segment, geometry))
    }

    fn over(segment: Arc<Segment>, geometry: Geometry) -> Self {
        // SAFETY: `create` and `attach` checked the geometry, and `self` keeps the segment mapped as long as it lends
        // the rings.
        let rings = unsafe { Rings::at(&segment, geometry) };
        Self { segment, geometry, rings }
    }

    pub(super) fn attach(descriptor: BorrowedFd<'_>, geometry: Geometry) -> Result<Self, SegmentError> {
        Ok(Self::over(Segment::attach(descriptor, &geometry.spec())?, geometry))
    }

    pub(super) fn segment(&self) -> &Segment {
        &self.segment
    }

    pub(super) fn geometry(&self) -> Geometry {
        self.geometry
    }

    pub(super) fn me(&self) -> u16 {
        self.segment.participant()
    }

    /// Records for whichever worker is free.
    pub(super) fn tasks(&self) -> Ring<'_> {
        self.rings.tasks
    }

    /// Records of finished cells.
    pub(super) fn done(&self) -> Ring<'_> {
        self.rings.done
    }

    /// Where the parent waits for its workers.
    pub(super) fn completions(&self) -> &WaitLine {
        // SAFETY: inside the body, 64-aligned; all zeros are a valid line.
        unsafe { self.segment.body().add(COMPLETIONS_AT).cast::<WaitLine>().as_ref() }
    }

    /// The line of a worker slot.
    ///
    /// # Panics
    ///
    /// If there is no such slot; slots are the parent's own numbers.
    pub(super) fn worker(&self, slot: u32) -> &Worker {
        assert!(slot < self.geometry.workers, "worker slot {slot} of {}", self.geometry.workers);
        // SAFETY: inside the body (checked above), 64-aligned, all zeros are valid, atomics only.
        unsafe { self.segment.body().add(WORKERS_AT + slot as usize * WORKER_LEN).cast::<Worker>().as_ref() }
    }

    /// A cell, if there is one of this number: records come from shared memory.
    pub(super) fn cell(&self, number: u32) -> Option<Cell<'_>> {
        (number < self.geometry.cells).then(|| {
            // SAFETY: inside the body (checked above).
            let base =
                unsafe { self.segment.body().add(self.geometry.cells_at() + number as usize * CELL_LEN) };
            Cell { base, _shared: std::marker::PhantomData }
        })
    }
}

/// A worker slot. Lives in the segment.
#[derive(Debug)]
#[repr(C, align(128))]
pub(super) struct Worker {
    pub(super) doorbell: WaitLine,
    /// A record for this worker alone, 0 if none. Written by the caller that reserved the worker.
    pub(super) mailbox: AtomicU64,
    /// [`Worker::IDLE`], [`Worker::BUSY`] or [`Worker::RESERVED`].
    pub(super) status: AtomicU32,
}

impl Worker {
    /// Not there: starting, stopping or dead.
    pub(super) const ABSENT: u32 = 0;
    /// Waits for work.
    pub(super) const IDLE: u32 = 1;
    /// Runs something, or is about to.
    pub(super) const BUSY: u32 = 2;
    /// A caller is putting a record into the mailbox.
    pub(super) const RESERVED: u32 = 3;

    /// IDLE => `to`, by the worker (BUSY) or by a caller (RESERVED): exactly one of them gets it.
    pub(super) fn take(&self, to: u32) -> bool {
        // Acquire/Relaxed would do: the record synchronises through the mailbox or the ring.
        self.status.compare_exchange(Self::IDLE, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

const _: () = assert!(size_of::<Worker>() == WORKER_LEN);

/// The words of a cell in front of its inline arguments.
#[derive(Debug)]
#[repr(C)]
struct Head {
    state: AtomicU64,
    function: AtomicU32,
    start: AtomicU32,
    end: AtomicU32,
    flags: AtomicU32,
    argument_page: AtomicU32,
    argument_len: AtomicU32,
    result_page: AtomicU32,
    result_capacity: AtomicU32,
    /// The cell that is likely to be begun soon after this one: a hint.
    ahead: AtomicU32,
    _unused: AtomicU32,
}

/// The words that the worker writes while it runs.
#[derive(Debug)]
#[repr(C)]
struct Report {
    /// current << 32 | saved
    progress: AtomicU64,
    result_len: AtomicU32,
    flags: AtomicU32,
}

const ARGUMENTS_AT: usize = 48;
const REPORT_AT: usize = 192;
const RESULT_AT: usize = 208;
const WAIT_AT: usize = 448;
const _: () = assert!(
    size_of::<Head>() == ARGUMENTS_AT
        && ARGUMENTS_AT + INLINE_ARGUMENTS == REPORT_AT
        && REPORT_AT + size_of::<Report>() == RESULT_AT
        && RESULT_AT + INLINE_RESULT == WAIT_AT
        && WAIT_AT + size_of::<WaitLine>() == CELL_LEN
);

const IDLE: u64 = 0;
const PENDING: u64 = 1;
const RUNNING: u64 = 2;
const DONE: u64 = 3;
const FAILED: u64 = 4;

fn state(generation: u32, incarnation: u16, kind: u64) -> u64 {
    u64::from(generation) << 32 | u64::from(incarnation) << 16 | kind
}

/// What a cell is doing, as the parent sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Offered and not begun.
    Pending,
    /// Begun by this incarnation of a worker.
    Running(u16),
    /// Finished by this incarnation of a worker.
    Done(u16),
    /// Given up by the parent, or not in this use.
    Other,
}

/// What a piece of work is, as the cell describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Task {
    pub(super) function: u32,
    pub(super) start: u32,
    pub(super) end: u32,
    pub(super) flags: u32,
    /// `(page, length)` in the arena, or `(INLINE, length)`.
    pub(super) argument: (u32, u32),
    /// `(page, capacity)` in the arena, or `(INLINE, capacity)`.
    pub(super) result: (u32, u32),
}

/// In place of an arena page: the bytes are in the cell.
pub(super) const INLINE: u32 = u32::MAX;
/// Task: the arguments or descriptors of handles must be fetched over the control socket.
pub(super) const FETCH: u32 = 1;
/// Task: a caller waits at the cell; no record in the done ring.
pub(super) const DIRECT: u32 = 2;
/// Report: the rest of the result, or descriptors, came over the control socket.
pub(super) const SPILLED: u32 = 1;

/// A view of one cell.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cell<'s> {
    base: NonNull<u8>,
    _shared: std::marker::PhantomData<&'s Shared>,
}

impl<'s> Cell<'s> {
    fn head(&self) -> &'s Head {
        // SAFETY: a cell is 64-aligned and inside the segment; atomics only.
        unsafe { self.base.cast::<Head>().as_ref() }
    }

    fn report(&self) -> &'s Report {
        // SAFETY: as `head`.
        unsafe { self.base.add(REPORT_AT).cast::<Report>().as_ref() }
    }

    /// Where the caller of a direct task waits.
    pub(super) fn line(&self) -> &'s WaitLine {
        // SAFETY: as `head`; `WAIT_AT` is 64-aligned.
        unsafe { self.base.add(WAIT_AT).cast::<WaitLine>().as_ref() }
    }

    /// Parent: describes the work and offers it.
    pub(super) fn offer(&self, generation: u32, task: &Task) {
        let head = self.head();
        // Relaxed: published by the store of the state.
        head.function.store(task.function, Ordering::Relaxed);
        head.start.store(task.start, Ordering::Relaxed);
        head.end.store(task.end, Ordering::Relaxed);
        head.flags.store(task.flags, Ordering::Relaxed);
        head.argument_page.store(task.argument.0, Ordering::Relaxed);
        head.argument_len.store(task.argument.1, Ordering::Relaxed);
        head.result_page.store(task.result.0, Ordering::Relaxed);
        head.result_capacity.store(task.result.1, Ordering::Relaxed);
        // The progress of the last use must not be taken for this one's: a worker may die right after `begin`.
        self.report().progress.store(u64::from(task.start) << 32 | u64::from(task.start), Ordering::Relaxed);
        // IDLE => PENDING
        // SYNC cell-offered: pairs with `begin`.
        head.state.store(state(generation, 0, PENDING), Ordering::Release);
    }

    /// Parent: names the cell that is offered soon after this one, before this one's record is pushed.
    pub(super) fn point_ahead(&self, ahead: u32) {
        // Relaxed: a hint.
        self.head().ahead.store(ahead, Ordering::Relaxed);
    }

    /// Worker: the cell to fetch early.
    pub(super) fn ahead(&self) -> u32 {
        self.head().ahead.load(Ordering::Relaxed)
    }

    /// Starts to bring the two lines of a small task to this processor, for writing.
    #[inline]
    pub(super) fn prefetch(&self) {
        #[cfg(target_arch = "x86_64")]
        for at in [0, REPORT_AT] {
            use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
            // SAFETY: a prefetch touches nothing; the place lies inside the cell anyway.
            unsafe { _mm_prefetch::<_MM_HINT_ET0>(self.base.add(at).as_ptr().cast()) };
        }
    }

    /// Worker: takes the offer, if it is still this one.
    pub(super) fn begin(&self, generation: u32, me: u16) -> bool {
        let (pending, running) = (state(generation, 0, PENDING), state(generation, me, RUNNING));
        // PENDING => RUNNING. The claim names its owner, so that a death finds it.
        // SYNC cell-offered: Acquire, pairs with `offer`.
        self.head().state.compare_exchange(pending, running, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Worker: what it began.
    pub(super) fn task(&self) -> Task {
        let head = self.head();
        let load = |word: &AtomicU32| word.load(Ordering::Relaxed);
        Task {
            function: load(&head.function),
            start: load(&head.start),
            end: load(&head.end),
            flags: load(&head.flags),
            argument: (load(&head.argument_page), load(&head.argument_len)),
            result: (load(&head.result_page), load(&head.result_capacity)),
        }
    }

    /// Worker: items of the load before `saved` have results, `current` is running.
    #[inline]
    pub(super) fn progress(&self, current: u32, saved: u32) {
        // SYNC cell-progress: Release, so that whoever reads it after our death sees the saved results.
        self.report().progress.store(u64::from(current) << 32 | u64::from(saved), Ordering::Release);
    }

    /// Worker: the results are complete; `false` if the parent has given this use up.
    pub(super) fn finish(&self, generation: u32, me: u16, result_len: u32, flags: u32) -> bool {
        let report = self.report();
        report.result_len.store(result_len, Ordering::Relaxed);
        report.flags.store(flags, Ordering::Relaxed);
        // RUNNING => DONE
        // SYNC cell-done: Release, pairs with `state`.
        let (running, done) = (state(generation, me, RUNNING), state(generation, me, DONE));
        self.head().state.compare_exchange(running, done, Ordering::Release, Ordering::Relaxed).is_ok()
    }

    /// Parent: what became of the use `generation`.
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "the fields of a word")]
    pub(super) fn state(&self, generation: u32) -> State {
        // SYNC cell-done: Acquire, pairs with `finish` (and with `progress`, for the dead).
        let word = self.head().state.load(Ordering::Acquire);
        let incarnation = (word >> 16) as u16;
        match word & 0xffff {
            _ if (word >> 32) as u32 != generation => State::Other,
            PENDING => State::Pending,
            RUNNING => State::Running(incarnation),
            DONE => State::Done(incarnation),
            _ => State::Other,
        }
    }

    /// Parent: takes an offer back that nobody began.
    pub(super) fn revoke(&self, generation: u32) -> bool {
        // PENDING => IDLE
        self.end_pending(generation, IDLE)
    }

    /// Parent: ends an offer that was lost with a worker; `false` if somebody has begun it. A caller that waits at the
    /// cell looks up.
    pub(super) fn lose(&self, generation: u32) -> bool {
        // PENDING => FAILED
        let lost = self.end_pending(generation, FAILED);
        if lost {
            self.line().notify_all();
        }
        lost
    }

    fn end_pending(&self, generation: u32, kind: u64) -> bool {
        let (pending, ended) = (state(generation, 0, PENDING), state(generation, 0, kind));
        self.head().state.compare_exchange(pending, ended, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Parent: ends this use whatever its state; its worker is dead. A caller that waits at the cell looks up.
    pub(super) fn fail(&self, generation: u32) {
        self.head().state.store(state(generation, 0, FAILED), Ordering::Release);
        self.line().notify_all();
    }

    /// Parent: `(current, saved)` of a dead worker.
    #[allow(clippy::cast_possible_truncation, reason = "the two halves of a word")]
    pub(super) fn last_progress(&self) -> (u32, u32) {
        // SYNC cell-progress: Acquire, pairs with `progress`.
        let word = self.report().progress.load(Ordering::Acquire);
        ((word >> 32) as u32, word as u32)
    }

    /// Parent: length of the result and flags, of a finished cell. Not trusted.
    pub(super) fn result(&self) -> (usize, u32) {
        let report = self.report();
        (report.result_len.load(Ordering::Relaxed) as usize, report.flags.load(Ordering::Relaxed))
    }

    /// Copies arguments into the cell; they must fit.
    pub(super) fn write_arguments(&self, bytes: &[u8]) {
        assert!(bytes.len() <= INLINE_ARGUMENTS);
        // SAFETY: checked to fit into the cell's argument bytes; nobody reads them before the offer.
        unsafe { self.base.add(ARGUMENTS_AT).as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// Appends the inline arguments to `to`; `len` is clamped.
    pub(super) fn read_arguments(&self, len: usize, to: &mut Vec<u8>) {
        // SAFETY: inside the cell; another process may change the bytes meanwhile, which is why they are copied.
        unsafe { append(self.base.add(ARGUMENTS_AT), len.min(INLINE_ARGUMENTS), to) };
    }

    /// Copies a part of the result into the cell at `at`; it must fit.
    pub(super) fn write_result(&self, at: usize, bytes: &[u8]) {
        assert!(at <= INLINE_RESULT && bytes.len() <= INLINE_RESULT - at);
        // SAFETY: checked to fit into the cell's result bytes, which are the worker's while it runs.
        unsafe {
            self.base.add(RESULT_AT + at).as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len())
        };
    }

    /// Appends the inline result to `to`; `len` is clamped.
    pub(super) fn read_result(&self, len: usize, to: &mut Vec<u8>) {
        // SAFETY: as `read_arguments`.
        unsafe { append(self.base.add(RESULT_AT), len.min(INLINE_RESULT), to) };
    }
}

/// Appends bytes that another process may be writing.
///
/// # Safety
///
/// `len` bytes from `from` are mapped.
pub(super) unsafe fn append(from: NonNull<u8>, len: usize, to: &mut Vec<u8>) {
    to.reserve(len);
    // SAFETY: mapped by the caller's promise; the vector has room for them; the two do not overlap.
    unsafe {
        to.as_mut_ptr().add(to.len()).copy_from_nonoverlapping(from.as_ptr(), len);
        to.set_len(to.len() + len);
    }
}

#[cfg(test)]
mod tests;
