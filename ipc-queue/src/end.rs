//! One end of a queue: this process's attachment, the ring in it, and what the end keeps to itself.
//!
//! # Safety
//!
//! * The mapping stays as long as the `Arc<Segment>` beside it, in the process that attached. In a forked child it is
//!   not there until the child has attached again, at the same address. So ring and control block are touched only after
//!   [`End::check`] (or in code that was reached through it), and never handed out beyond `&self`.
//! * Geometry is read from shared memory once, checked against the mapping's length, and kept.
#![allow(unsafe_code)]

use crate::codec::Codec;
use crate::error::Error;
use crate::layout::{Control, KIND, RING_START, Side};
use crate::ring::{Claim, Cursor, Layout, PopError, PushError, Ring};
use crate::{disconnect, travel};
use shm_core::SegmentError;
use shm_core::fork::Forked;
use shm_core::segment::{Segment, Spec};
use shm_core::sync::{AtomicU64, Ordering};
use shm_core::wait::Pace;
use std::os::fd::BorrowedFd;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Instant;

/// A handle's way to the queue; one per handle.
pub(crate) struct End {
    /// Points into the segment below.
    ring: Ring<'static>,
    /// Points into the segment below.
    control: NonNull<Control>,
    side: Side,
    /// The longest message, as the codec counts.
    limit: usize,
    /// This side's ticket.
    cursor: Cursor,
    /// Where the other side was seen last; for `len`.
    far: Cursor,
    pub(crate) pace: Pace,
    /// When this handle last looked whether the other side is alive, in microseconds since `born`.
    looked: AtomicU64,
    born: Instant,
    segment: Arc<Segment>,
}

// SAFETY: the control block consists of atomics, the ring is `Sync`, and the mapping may be used by every thread.
unsafe impl Send for End {}
// SAFETY: as above.
unsafe impl Sync for End {}
// A panic can only come from a user's code, which runs while nothing is half done.
impl UnwindSafe for End {}
impl RefUnwindSafe for End {}

/// Why the ring gave or took nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Miss {
    /// Full or empty.
    Nothing,
    /// Full or empty, unless the owner of this claim is dead.
    Claimed(Claim),
    Exhausted,
}

impl From<PushError> for Miss {
    fn from(error: PushError) -> Self {
        match error {
            PushError::Full => Self::Nothing,
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

/// The control block and ring of a segment, checked against its length.
struct Body {
    control: NonNull<Control>,
    ring: Ring<'static>,
    layout: Layout,
}

impl Body {
    /// Reads the geometry and finds everything; `None` if the numbers do not fit the segment.
    ///
    /// The result must not outlive the segment.
    fn of(segment: &Segment) -> Option<Self> {
        if segment.body_len() < RING_START {
            return None;
        }
        let control = segment.body().cast::<Control>();
        // SAFETY: the body is page-aligned and long enough; a control block consists of atomics.
        let (capacity, payload_len) = unsafe { control.as_ref() }.geometry();
        let layout = Layout::new(capacity.try_into().ok()?, payload_len.try_into().ok()?).ok()?;
        if layout.len_bytes() > segment.body_len() - RING_START {
            return None;
        }
        // SAFETY: the ring fits into the body behind the control block, 64-aligned; every process that attaches
        // reads the same geometry, and one that changed it would break only messages.
        let ring = unsafe { Ring::attach(segment.body().add(RING_START), layout) };
        Some(Self { control, ring, layout })
    }
}

/// Cleans up after a dead participant; see [`Spec::sweep`]. Every step may be repeated.
fn sweep(segment: &Segment, dead: u16) -> bool {
    let Some(body) = Body::of(segment) else {
        return false;
    };
    // SAFETY: inside the segment, which outlives this call; atomics.
    let control = unsafe { body.control.as_ref() };
    body.ring.recover_owner(dead);
    shm_core::crash_point!("queue.sweep.recovered");
    for side in [Side::Sender, Side::Receiver] {
        control.count(dead, side).store(0, Ordering::SeqCst);
    }
    control.in_hand(dead).store(0, Ordering::SeqCst);
    shm_core::crash_point!("queue.sweep.uncounted");
    for side in [Side::Sender, Side::Receiver] {
        disconnect::is_gone(segment, control, side);
        control.sleeps(side).notify_all();
    }
    true
}

/// Counts the handles that a forked child has inherited; see [`Spec::arrived`].
fn arrived(segment: &Segment) {
    // SAFETY: `Body::of` was content with the segment before the first handle was made; atomics.
    let control = unsafe { segment.body().cast::<Control>().as_ref() };
    for side in [Side::Sender, Side::Receiver] {
        let count = control.count(segment.participant(), side);
        // SeqCst: see `disconnect`.
        count.store(segment.held(side.lane().into()), Ordering::SeqCst);
    }
    control.in_hand(segment.participant()).store(0, Ordering::SeqCst);
    control.advance_epoch();
}

fn spec(layout_hash: u64, body_len: usize) -> Spec {
    Spec { kind: KIND, layout_hash, body_len, sweep, arrived }
}

impl End {
    /// Creates a queue and its first two ends.
    pub(crate) fn pair<T, C: Codec<T>>(capacity: usize, slot_bytes: usize) -> Result<(Self, Self), Error> {
        let layout = Layout::new(capacity, C::payload_len(slot_bytes))?;
        // Both numbers are far below usize::MAX: see the ring's limits.
        let body_len = RING_START + layout.len_bytes();
        let segment = Segment::create(&spec(C::LAYOUT, body_len), |body| {
            // SAFETY: the body is page-aligned, zeroed and long enough; zeroes are a valid control block.
            unsafe { body.cast::<Control>().as_ref() }.set_geometry(&layout);
        })?;
        let limit = C::limit(layout.payload_len()).expect("the codec chose the payload");
        let body = Body::of(&segment).expect("the geometry was just written");
        Ok((
            Self::new(&segment, &body, Side::Sender, limit),
            Self::new(&segment, &body, Side::Receiver, limit),
        ))
    }

    /// Attaches to the queue behind a descriptor and counts a handle of `side`.
    pub(crate) fn attach<T, C: Codec<T>>(
        descriptor: BorrowedFd<'_>,
        side: Side,
    ) -> Result<Self, travel::Refused> {
        let segment = Segment::attach(descriptor, &spec(C::LAYOUT, RING_START + 1))?;
        let body = Body::of(&segment).ok_or(travel::Refused::Geometry)?;
        let limit = C::limit(body.layout.payload_len()).ok_or(travel::Refused::Geometry)?;
        Ok(Self::new(&segment, &body, side, limit))
    }

    fn new(segment: &Arc<Segment>, body: &Body, side: Side, limit: usize) -> Self {
        let end = Self {
            ring: body.ring,
            control: body.control,
            side,
            limit,
            cursor: Cursor::new(),
            far: Cursor::new(),
            pace: Pace::new(),
            looked: AtomicU64::new(0),
            born: Instant::now(),
            segment: Arc::clone(segment),
        };
        // A fork passes on the lanes that have handles when it begins: none becomes the first of its lane while one is in
        // progress. (A clone never is: what it is a copy of is held.)
        let _window = shm_core::fork::window();
        end.enlist();
        end
    }

    /// Counts this handle: for everybody, and for children of this process.
    fn enlist(&self) {
        let lane = self.side.lane().into();
        // Where the queue is not there, handles are counted for children all the same, as they are dropped all the same.
        if self.check().is_err() && self.is_away(|| self.segment.hold(lane)) {
            return;
        }
        // SeqCst: see `disconnect`.
        let count = self.control().count(self.me(), self.side);
        count.fetch_add(1, Ordering::SeqCst);
        self.segment.hold(lane);
    }

    /// Makes sure that the queue is there: a forked child attaches again. One load if there is nothing to do.
    #[inline(always)]
    pub(crate) fn check(&self) -> Result<(), Forked> {
        if self.segment.check().is_ok() { Ok(()) } else { self.attach_again() }
    }

    #[cold]
    fn attach_again(&self) -> Result<(), Forked> {
        self.segment.ensure().map_err(|_| Forked)
    }

    #[inline(always)]
    pub(crate) fn control(&self) -> &Control {
        // SAFETY: in the mapping, which lives as long as `self.segment`; callers have passed `check`.
        unsafe { self.control.as_ref() }
    }

    #[inline(always)]
    pub(crate) fn side(&self) -> Side {
        self.side
    }

    #[inline(always)]
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    pub(crate) fn segment(&self) -> &Segment {
        &self.segment
    }

    /// The participant index of this process: another one in a forked child.
    #[inline(always)]
    pub(crate) fn me(&self) -> u16 {
        self.segment.participant()
    }

    /// Ring, control block, and the segment that they need to live as long as they are used.
    pub(crate) fn parts(&self) -> (Ring<'static>, NonNull<Control>, Arc<Segment>) {
        (self.ring, self.control, Arc::clone(&self.segment))
    }

    /// This side's next ticket.
    #[inline(always)]
    pub(crate) fn ticket(&self) -> u64 {
        self.cursor.ticket()
    }

    pub(crate) fn capacity(&self) -> usize {
        self.ring.capacity()
    }

    /// How many messages are claimed by producers and not by consumers.
    pub(crate) fn len(&self) -> usize {
        match self.side {
            Side::Sender => self.ring.len(&self.cursor, &self.far),
            Side::Receiver => self.ring.len(&self.far, &self.cursor),
        }
    }

    /// Whether another handle of this side would find what it waits for.
    pub(crate) fn is_ready(&self) -> bool {
        match self.side {
            Side::Sender => self.len() < self.capacity(),
            Side::Receiver => self.ring.is_ready(&self.cursor),
        }
    }

    /// Pushes a message, and returns its ticket.
    #[inline(always)]
    pub(crate) fn push<T, C: Codec<T>>(&self, message: &C::Staged<'_>) -> Result<u64, Miss> {
        // SAFETY: the slot is claimed for writing, and its payload is the one that `limit` came from.
        let write = |slot| unsafe { C::store(message, slot) };
        Ok(self.ring.try_push(&self.cursor, self.me(), write)?)
    }

    /// Pushes some messages, and returns the first one's ticket and how many.
    #[inline(always)]
    pub(crate) fn push_batch<T, C: Codec<T>>(
        &self,
        messages: &[C::Staged<'_>],
    ) -> Result<(u64, usize), Miss> {
        // SAFETY: as in `push`; the ring counts from 0 to below the length that it was given.
        let write = |i: usize, slot| unsafe { C::store(messages.get_unchecked(i), slot) };
        Ok(self.ring.try_push_batch(&self.cursor, self.me(), messages.len(), write)?)
    }

    #[inline(always)]
    pub(crate) fn pop<T, C: Codec<T>>(&self, message: &mut C::Message) -> Result<(), Miss> {
        if !C::has_room(message, self.limit) {
            // A look first: whoever polls an empty queue shall not allocate each time.
            self.ring.peek(&self.cursor)?;
            C::make_room(message, self.limit);
        }
        let read = |slot| {
            // SAFETY: the slot is claimed for reading, and its payload is the one that `limit` came from; there is room.
            unsafe { C::load(message, slot, self.limit) };
            if C::has_handles(message) {
                self.take_in_hand();
            }
        };
        Ok(self.ring.try_pop(&self.cursor, self.me(), read)?)
    }

    #[inline(always)]
    pub(crate) fn pop_batch<T, C: Codec<T>>(&self, messages: &mut [C::Message]) -> Result<usize, Miss> {
        let mut max = messages.len();
        let roomy = |message: &&C::Message| C::has_room(message, self.limit);
        let ready = messages.iter().take_while(roomy).count();
        if ready < max {
            // As in `pop`, and for no more messages than there are.
            self.ring.peek(&self.cursor)?;
            max = self.len().clamp(ready.max(1), max);
            for message in &mut messages[ready..max] {
                C::make_room(message, self.limit);
            }
        }
        let read = |i: usize, slot| {
            // SAFETY: the ring counts from 0 to below the maximum that it was given.
            let message = unsafe { messages.get_unchecked_mut(i) };
            // SAFETY: as in `pop`.
            unsafe { C::load(message, slot, self.limit) };
            if C::has_handles(message) {
                self.take_in_hand();
            }
        };
        Ok(self.ring.try_pop_batch(&self.cursor, self.me(), max, read)?)
    }

    /// Repairs what a dead owner left. Returns whether it was dead, so that looking again may pay.
    #[cold]
    pub(crate) fn recover(&self, claim: Claim) -> bool {
        if claim.owner() == self.me() || !self.segment.is_dead(claim.owner()) {
            return false;
        }
        self.ring.recover(claim);
        self.segment.sweep();
        // Somebody else may sleep over what the dead one held.
        self.control().not_empty.0.notify_all();
        self.control().not_full.0.notify_all();
        true
    }

    /// Whether the claim of a sender that is gone may be in somebody else's hands: that of a sweep, which holds the
    /// dead one's lock until it has repaired everything. Whoever is not attached has been swept.
    pub(crate) fn is_swept_elsewhere(&self, claim: Claim) -> bool {
        claim.is_writing() && claim.owner() != self.me() && self.segment.is_attached(claim.owner())
    }

    /// Whether nobody holds the other side; asks the system.
    pub(crate) fn is_alone(&self) -> bool {
        disconnect::is_gone(&self.segment, self.control(), self.side.other())
    }

    /// Whether it is time for a handle that does not sleep to ask the system about the other side.
    pub(crate) fn may_look(&self) -> bool {
        // Relaxed: how often to look is a matter of cost only.
        let now = u64::try_from(self.born.elapsed().as_micros()).unwrap_or(u64::MAX);
        let before = self.looked.load(Ordering::Relaxed);
        let due = before == 0 || now.saturating_sub(before) >= POLLERS_LOOK_MICROS;
        if due {
            self.looked.store(now.max(1), Ordering::Relaxed);
        }
        due
    }
}

/// How often a handle that only polls, or finds room all the time, asks the system whether the other side is alive.
const POLLERS_LOOK_MICROS: u64 = 1000;

impl Clone for End {
    fn clone(&self) -> Self {
        let copy = Self {
            ring: self.ring,
            control: self.control,
            side: self.side,
            limit: self.limit,
            cursor: self.cursor.clone(),
            far: self.far.clone(),
            pace: Pace::new(),
            looked: AtomicU64::new(0),
            born: Instant::now(),
            segment: Arc::clone(&self.segment),
        };
        copy.enlist();
        copy
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let lane = self.side.lane().into();
        // A handle that a forked child inherited and did not use: nobody else knows of it.
        if self.segment.check().is_err() && self.is_away(|| self.segment.unhold(lane)) {
            return;
        }
        // Before the other count, so that a child forked in between does not inherit what is going.
        self.segment.unhold(lane);
        // SeqCst: of two processes that let go at once, one sees the other's count fall.
        let count = self.control().count(self.me(), self.side);
        let before = count.fetch_sub(1, Ordering::SeqCst);
        if before == 1 {
            disconnect::is_gone(&self.segment, self.control(), self.side);
        }
    }
}

impl End {
    /// Whether the queue is not there, in a forked child that has not attached again; if so, runs `count` before another
    /// thread attaches and tells everybody what was counted.
    #[cold]
    fn is_away(&self, count: impl FnOnce()) -> bool {
        // Attaching again is inside the window.
        let _window = shm_core::fork::window();
        let away = self.segment.check().is_err();
        if away {
            count();
        }
        away
    }

    /// What `Debug` of a handle prints.
    pub(crate) fn fmt_as(&self, name: &str, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct(name);
        debug.field("capacity", &self.capacity());
        // Printing does not attach.
        match self.segment.check() {
            Ok(()) => debug.field("len", &self.len()),
            Err(_) => debug.field("forked", &true),
        };
        debug.finish_non_exhaustive()
    }
}

const _: () = {
    const fn thread_safe<T: Send + Sync>() {}
    thread_safe::<End>();
};

impl From<SegmentError> for travel::Refused {
    fn from(error: SegmentError) -> Self {
        Self::Segment(error)
    }
}
