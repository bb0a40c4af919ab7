//! One queue of a model and its ends: the real ring and the real wait lines, and what happens between them.
//!
//! The order of things is that of the native ends: try; wait on the line of one's own side, looking after a claim's owner
//! and the other side before each sleep; after a success wake the other side, and pass a wake-up on if there is more.
//!
//! # Safety
//!
//! A slot's payload is a length and [`Queue::limit`] bytes. The length is written by an end of this queue, and read after
//! a message was claimed, so it is at most the limit.
#![allow(unsafe_code)]

use crate::closing::Flags;
use crate::ring::{Claim, Cursor, Layout, LayoutError, Memory, PopError, PushError, Ring};
use shm_core::crash_point;
use shm_core::owner::model;
use shm_core::sync::AtomicU32;
use shm_core::sync::Ordering::{AcqRel, Acquire, Relaxed};
use shm_core::wait::{Pace, WaitLine};
use std::cell::{Cell, RefCell};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Bytes of a message's length.
const LEN: usize = 8;
/// The ring's name for the process without an index.
const FIRST_PROCESS: u16 = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Sender,
    Receiver,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Sender => Self::Receiver,
            Self::Receiver => Self::Sender,
        }
    }
}

#[derive(Debug)]
struct Queue {
    memory: Memory,
    limit: usize,
    flags: Flags,
    not_empty: WaitLine,
    not_full: WaitLine,
    senders: AtomicU32,
    receivers: AtomicU32,
}

impl Queue {
    /// Where `side` sleeps.
    fn sleeps(&self, side: Side) -> &WaitLine {
        match side {
            Side::Sender => &self.not_full,
            Side::Receiver => &self.not_empty,
        }
    }

    /// The handles of `side`.
    fn count(&self, side: Side) -> &AtomicU32 {
        match side {
            Side::Sender => &self.senders,
            Side::Receiver => &self.receivers,
        }
    }

    fn wake_all(&self) {
        self.not_empty.notify_all();
        self.not_full.notify_all();
    }
}

/// How long an operation may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    None,
    /// Some time, which is over as soon as the operation would have to sleep.
    Some,
    Forever,
}

/// Why an operation ended without success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    Late,
    Disconnected,
    Closed,
    Exhausted,
}

/// Why the ring gave or took nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Miss {
    Nothing,
    Claimed(Claim),
    Exhausted,
    Closed,
}

impl From<PushError> for Miss {
    fn from(error: PushError) -> Self {
        match error {
            PushError::Full => Self::Nothing,
            PushError::Refused => Self::Closed,
            PushError::Claimed(claim) => Self::Claimed(claim),
            PushError::Exhausted => Self::Exhausted,
        }
    }
}

impl From<PopError> for Miss {
    fn from(error: PopError) -> Self {
        match error {
            PopError::Empty => Self::Nothing,
            PopError::Claimed(claim) => Self::Claimed(claim),
            PopError::Exhausted => Self::Exhausted,
        }
    }
}

/// A handle's way to the queue; one per handle.
pub(super) struct End {
    /// Not loom's: that the queue lives as long as its handles is not what models are about.
    queue: Arc<Queue>,
    side: Side,
    /// This side's ticket, and where the other side was seen last.
    cursor: Cursor,
    far: Cursor,
    pace: Pace,
}

impl End {
    pub(super) fn pair(capacity: usize, limit: usize) -> Result<(Self, Self), LayoutError> {
        let queue = Arc::new(Queue {
            memory: Memory::new(Layout::new(capacity, limit.saturating_add(LEN))?),
            limit,
            flags: Flags::new(),
            not_empty: WaitLine::new(),
            not_full: WaitLine::new(),
            senders: AtomicU32::new(1),
            receivers: AtomicU32::new(1),
        });
        let weak = Arc::downgrade(&queue);
        model::when_slices_end(move || {
            if let Some(queue) = Weak::upgrade(&weak) {
                queue.wake_all();
            }
        });
        Ok((Self::new(queue.clone(), Side::Sender), Self::new(queue, Side::Receiver)))
    }

    fn new(queue: Arc<Queue>, side: Side) -> Self {
        Self { queue, side, cursor: Cursor::new(), far: Cursor::new(), pace: Pace::new() }
    }

    pub(super) fn limit(&self) -> usize {
        self.queue.limit
    }

    pub(super) fn capacity(&self) -> usize {
        self.ring().capacity()
    }

    pub(super) fn len(&self) -> usize {
        match self.side {
            Side::Sender => self.ring().len(&self.cursor, &self.far),
            Side::Receiver => self.ring().len(&self.far, &self.cursor),
        }
    }

    /// Closes the queue and wakes everybody. Returns whether it was open.
    pub(super) fn close(&self) -> bool {
        let closed = self.queue.flags.close();
        crash_point!("queue.close.marked");
        self.queue.wake_all();
        closed
    }

    pub(super) fn is_closed(&self) -> bool {
        self.queue.flags.is_closed()
    }

    /// Sends the bytes of a message, which are not more than the limit.
    pub(super) fn push(&self, bytes: &[u8], patience: Patience) -> Result<(), Stop> {
        if self.is_closed() {
            return Err(Stop::Closed);
        }
        if self.is_alone() {
            return Err(Stop::Disconnected);
        }
        let write = |_, slot: *mut u8| {
            // SAFETY: the slot is claimed for writing and has room for the length and the limit, aligned to 8 bytes.
            unsafe {
                slot.cast::<u64>().write(bytes.len() as u64);
                slot.add(LEN).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            }
        };
        let permit = || self.queue.flags.permits();
        self.operate(patience, || {
            let pushed = self.ring().try_push_if(&self.cursor, me(), permit, write);
            if pushed == Err(PushError::Refused) {
                // Receivers may wait for the claim that was withdrawn.
                self.queue.sleeps(Side::Receiver).notify_all();
            }
            Ok(pushed.map(drop)?)
        })
    }

    /// Takes the bytes of a message.
    pub(super) fn pop(&self, patience: Patience) -> Result<Vec<u8>, Stop> {
        let read = |slot: *const u8| {
            // SAFETY: the slot is claimed for reading, and `push` wrote a length and so many bytes.
            unsafe {
                let len = slot.cast::<u64>().read() as usize;
                std::slice::from_raw_parts(slot.add(LEN), len.min(self.queue.limit)).to_vec()
            }
        };
        self.operate(patience, || Ok(self.ring().try_pop(&self.cursor, me(), read)?))
    }

    fn ring(&self) -> Ring<'_> {
        self.queue.memory.ring()
    }

    /// Whether nobody is left on the other side.
    fn is_alone(&self) -> bool {
        // SYNC last-handle: pairs with `leave`.
        self.queue.count(self.side.other()).load(Acquire) == 0
    }

    /// One operation with all its waiting. `attempt` is one try on the ring.
    fn operate<R>(&self, patience: Patience, attempt: impl FnMut() -> Result<R, Miss>) -> Result<R, Stop> {
        let attempt = RefCell::new(attempt);
        // The claim that was in the way of the last attempt.
        let claim = Cell::new(None);
        let done = if patience == Patience::None {
            self.try_once(&attempt, &claim).or_else(|| self.look_around(&attempt, &claim))
        } else {
            // Any time will do, because it is never waited for; but a clock must not make two runs differ.
            let deadline = Instant::now() + Duration::from_secs(3600);
            self.queue.sleeps(self.side).wait(
                &self.pace,
                self.cursor.ticket(),
                (patience == Patience::Some).then_some(deadline),
                || self.try_once(&attempt, &claim),
                || {
                    // After each wake-up: who was killed in its sleep dies here.
                    crash_point!("queue.wait");
                    self.look_around(&attempt, &claim)
                },
            )
        };
        let done = done.unwrap_or(Err(Stop::Late))?;
        self.done();
        Ok(done)
    }

    fn try_once<R>(
        &self,
        attempt: &RefCell<impl FnMut() -> Result<R, Miss>>,
        claim: &Cell<Option<Claim>>,
    ) -> Option<Result<R, Stop>> {
        let attempt = &mut *attempt.borrow_mut();
        claim.set(None);
        match attempt() {
            Ok(done) => Some(Ok(done)),
            Err(Miss::Exhausted) => Some(Err(Stop::Exhausted)),
            Err(Miss::Closed) => Some(Err(Stop::Closed)),
            Err(miss) if !self.is_on_its_way(miss) && (self.is_alone() || self.is_closed()) => {
                self.last_look(attempt, claim)
            }
            Err(Miss::Claimed(found)) => {
                claim.set(Some(found));
                None
            }
            Err(Miss::Nothing) => None,
        }
    }

    /// After an attempt: repairs what the dead have left in its way, and tries again if there was anything.
    fn look_around<R>(
        &self,
        attempt: &RefCell<impl FnMut() -> Result<R, Miss>>,
        claim: &Cell<Option<Claim>>,
    ) -> Option<Result<R, Stop>> {
        while claim.take().is_some_and(|claim| self.recover(claim)) {
            if let Some(done) = self.try_once(attempt, claim) {
                return Some(done);
            }
        }
        None
    }

    /// Whether a receiver that missed waits for a sender that has claimed a slot.
    fn is_on_its_way(&self, miss: Miss) -> bool {
        let pending = matches!(miss, Miss::Claimed(claim) if claim.is_writing());
        pending && self.side == Side::Receiver && !self.is_alone()
    }

    /// The other side is gone or the queue is closed: what was sent before is still there. Nothing if a sender may still
    /// publish or withdraw what it had claimed.
    fn last_look<R>(
        &self,
        attempt: &mut impl FnMut() -> Result<R, Miss>,
        claim: &Cell<Option<Claim>>,
    ) -> Option<Result<R, Stop>> {
        // Before the looks at the ring.
        let end = if self.queue.flags.is_final() { Stop::Closed } else { Stop::Disconnected };
        if self.side == Side::Sender {
            return Some(Err(end));
        }
        loop {
            match attempt() {
                Ok(done) => return Some(Ok(done)),
                Err(Miss::Exhausted) => return Some(Err(Stop::Exhausted)),
                Err(Miss::Claimed(found)) if self.recover(found) => {}
                Err(Miss::Claimed(found)) if self.is_on_its_way(Miss::Claimed(found)) => {
                    claim.set(Some(found));
                    return None;
                }
                Err(_) => break,
            }
        }
        if end == Stop::Closed {
            // Others may have gone to sleep over a claim that was still on its way.
            self.queue.sleeps(Side::Receiver).notify_all();
        }
        Some(Err(end))
    }

    /// Repairs what a dead owner left. Returns whether it was dead, so that looking again may pay.
    fn recover(&self, claim: Claim) -> bool {
        if !model::is_dead(claim.owner()) {
            return false;
        }
        self.ring().recover(claim);
        // Somebody else may sleep over what the dead one held.
        self.queue.wake_all();
        true
    }

    /// After a success: wakes the other side, and passes a wake-up on to this side's other sleepers.
    fn done(&self) {
        self.queue.sleeps(self.side.other()).notify(1);
        let ours = self.queue.sleeps(self.side);
        if ours.has_sleepers() && (self.is_ready() || self.is_closed()) {
            ours.notify(1);
        }
    }

    /// Whether another handle of this side would find what it waits for.
    fn is_ready(&self) -> bool {
        match self.side {
            Side::Sender => self.len() < self.capacity(),
            Side::Receiver => self.ring().is_ready(&self.cursor),
        }
    }
}

/// The calling process's number in a slot.
fn me() -> u16 {
    match model::index() {
        0 => FIRST_PROCESS,
        index => index,
    }
}

/// One handle of `side` less: dropped, or its process died.
fn leave(queue: &Queue, side: Side) {
    // SYNC last-handle: pairs with `is_alone`, so that whoever finds nobody left finds what they sent.
    if queue.count(side).fetch_sub(1, AcqRel) == 1 {
        queue.sleeps(side.other()).notify_all();
    }
}

impl Clone for End {
    fn clone(&self) -> Self {
        // Relaxed: the cloned handle keeps the count above zero.
        self.queue.count(self.side).fetch_add(1, Relaxed);
        Self {
            queue: self.queue.clone(),
            side: self.side,
            cursor: self.cursor.clone(),
            far: self.far.clone(),
            pace: Pace::new(),
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let (queue, side) = (self.queue.clone(), self.side);
        model::at_death(move || leave(&queue, side));
    }
}
