//! One end of a queue: this process's attachment, the ring in it, and what the end keeps to itself.
//!
//! # Safety
//!
//! * The mapping stays as long as the `Arc<Segment>` beside it, in the process that attached. In a forked child it is
//!   not there until the child has attached again, at the same address. So ring and control block are touched only after
//!   [`End::check`] (or in code that was reached through it), and never handed out beyond `&self`.
//! * Geometry is read from shared memory once, checked against the mapping's length, and kept.
#![allow(unsafe_code)]

use crate::bulk::{self, Bulk};
use crate::codec::{Format, Limits};
use crate::error::{Error, Failure};
use crate::layout::{Control, KIND, Placement, RING_START, Side};
use crate::lease::{self, Leasing, Store, StorePlace};
use crate::member::{self, Member};
use crate::pollable::Watch;
use crate::ring::{Claim, Cursor, Layout, PopError, PushError, Ring};
use crate::{layout, travel};
use shm_core::SegmentError;
use shm_core::broker::Deposit;
use shm_core::segment::{Segment, Spec};
use shm_core::sync::{AtomicU32, AtomicU64};
use std::io;
use std::ops::Deref;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;

/// A handle's way to the queue; one per handle.
pub(crate) struct End {
    /// Points into the member's segment.
    ring: Ring<'static>,
    /// Where messages lie that do not fit a slot, if the queue takes such.
    pub(crate) bulk: Option<Arc<Bulk>>,
    /// Where messages stay until they are acknowledged, if they do.
    pub(crate) leasing: Option<Leasing>,
    /// The longest message that fits a slot (or a cell), as the codec counts.
    limit: usize,
    /// The longest message.
    pub(crate) longest: usize,
    /// This side's ticket.
    cursor: Cursor,
    /// Where the other side was seen last; for `len`.
    far: Cursor,
    /// When this handle last looked after what could keep chunks from it, in microseconds; see `Member::is_due`.
    pub(crate) tidied_at: AtomicU64,
    /// How often it has.
    pub(crate) tidied: AtomicU32,
    member: Member,
}

impl Deref for End {
    type Target = Member;

    #[inline(always)]
    fn deref(&self) -> &Member {
        &self.member
    }
}

/// Why the ring gave or took nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Miss {
    /// Full or empty.
    Nothing,
    /// Full or empty, unless the owner of this claim is dead.
    Claimed(Claim),
    /// Too few chunks or cells are free.
    Scarce,
    Exhausted,
    /// The queue was closed while a slot was claimed.
    Closed,
}

impl From<PushError> for Miss {
    fn from(error: PushError) -> Self {
        match error {
            PushError::Full => Self::Nothing,
            PushError::Claimed(claim) => Self::Claimed(claim),
            PushError::Exhausted => Self::Exhausted,
            PushError::Refused => Self::Closed,
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

/// What both ends of a queue must agree on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) layout: u64,
    /// The longest message that a slot with such a payload takes; `None` if no slot has it.
    pub(crate) limit: fn(usize) -> Option<usize>,
    /// Whether messages stay in cells until they are acknowledged.
    pub(crate) leased: bool,
}

/// How large a queue is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) capacity: usize,
    /// Of a message in a slot or cell.
    pub(crate) payload_len: usize,
    /// Bytes of all chunks.
    pub(crate) budget: usize,
    /// The least bytes of a chunk.
    pub(crate) chunk_len: usize,
    /// How many messages may be sent and not acknowledged, if they are to be.
    pub(crate) cells: Option<usize>,
}

impl Shape {
    pub(crate) fn of<T, C: Format<T>>() -> Self {
        Self { layout: C::LAYOUT, limit: C::limit, leased: false }
    }

    /// That of a queue whose messages are acknowledged.
    pub(crate) fn leased<T, C: Format<T>>() -> Self {
        Self { layout: layout::hash(&[C::LAYOUT, 1]), limit: C::limit, leased: true }
    }
}

/// The control block, ring and chunks of a segment, checked against its length.
pub(crate) struct Body {
    control: NonNull<Control>,
    pub(crate) ring: Ring<'static>,
    layout: Layout,
    pub(crate) bulk: Option<Bulk>,
    pub(crate) store: Option<Store>,
    /// Bytes of all chunks.
    budget: usize,
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
        // SAFETY: as above.
        let ((cells, cell_len), (count, chunk_len)) =
            unsafe { (control.as_ref().cell_geometry(), control.as_ref().chunk_geometry()) };
        let ring_end = RING_START.checked_add(layout.len_bytes())?;
        let cells = StorePlace::new(ring_end, cells.try_into().ok()?, cell_len.try_into().ok()?)?;
        let place = Placement::new(cells.end, count.try_into().ok()?, chunk_len.try_into().ok()?)?;
        if place.end > segment.body_len() {
            return None;
        }
        let bulk = (place.count > 0).then(|| Bulk::new(segment.body(), place));
        let store = (cells.count > 0).then(|| Store::new(segment.body(), cells));
        if store.is_some() && layout.payload_len() != lease::SLOT_BYTES {
            return None;
        }
        // SAFETY: the ring fits into the body behind the control block, 64-aligned; every process that attaches
        // reads the same geometry, and one that changed it would break only messages.
        let ring = unsafe { Ring::attach(segment.body().add(RING_START), layout) };
        Some(Self { control, ring, layout, bulk, store, budget: place.len_bytes() })
    }

    /// Bytes of a message in a slot or cell.
    fn payload_len(&self) -> usize {
        self.store.map_or(self.layout.payload_len(), |store| store.payload_len())
    }

    /// Whether the tag of a run says that nobody will come for it.
    pub(crate) fn is_over(&self, tag: u64) -> bool {
        match &self.store {
            None => self.ring.is_released(tag),
            Some(store) => store.is_over(tag),
        }
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
    if let Some(store) = &body.store {
        lease::sweep(store, &body.ring, control, dead);
    }
    bulk::sweep(&body, control, dead);
    member::sweep(segment, control, dead);
    true
}

fn spec(layout_hash: u64, body_len: usize) -> Spec {
    Spec { kind: KIND, layout_hash, body_len, sweep, arrived: member::arrived }
}

impl End {
    /// Creates a queue and its first two ends.
    pub(crate) fn pair(shape: &Shape, sizes: Sizes) -> Result<(Self, Self), Error> {
        let Sizes { capacity, payload_len, budget, chunk_len, cells } = sizes;
        // Of cells too: the ring's limits are theirs.
        let layout = Layout::new(capacity, payload_len)?;
        let layout = cells.map_or(Ok(layout), |_| Layout::new(capacity, lease::SLOT_BYTES))?;
        // Both numbers are far below usize::MAX: see the ring's limits.
        let ring_end = RING_START + layout.len_bytes();
        let count = cells.unwrap_or(0);
        let cells = StorePlace::new(ring_end, count, payload_len).ok_or(Error::unfinished(count))?;
        let place = Placement::for_budget(cells.end, budget, chunk_len).ok_or(Error::byte_budget(budget))?;
        let segment = Segment::create_sparse(&spec(shape.layout, place.end), place.chunks, |body| {
            // SAFETY: the body is page-aligned, zeroed and long enough; zeroes are a valid control block.
            let control = unsafe { body.cast::<Control>().as_ref() };
            control.set_geometry(&layout);
            control.set_cell_geometry(&cells);
            control.set_chunk_geometry(&place);
        })?;
        let limit = (shape.limit)(payload_len).expect("the codec chose the payload");
        let body = Body::of(&segment).expect("the geometry was just written");
        Ok((
            Self::new(&segment, &body, Side::Sender, limit),
            Self::new(&segment, &body, Side::Receiver, limit),
        ))
    }

    /// Attaches to the queue behind a descriptor and counts a handle of `side`.
    pub(crate) fn attach(
        descriptor: BorrowedFd<'_>,
        shape: &Shape,
        side: Side,
    ) -> Result<Self, travel::Refused> {
        let segment = Segment::attach(descriptor, &spec(shape.layout, RING_START + 1))?;
        let body = Body::of(&segment).ok_or(travel::Refused::Geometry)?;
        let payload_len = body.payload_len();
        if body.store.is_some() != shape.leased {
            return Err(travel::Refused::Geometry);
        }
        let limit = (shape.limit)(payload_len).ok_or(travel::Refused::Geometry)?;
        if body.bulk.is_some() && payload_len < bulk::PREFIX + bulk::Reference::LEN {
            return Err(travel::Refused::Geometry);
        }
        Ok(Self::new(&segment, &body, side, limit))
    }

    fn new(segment: &Arc<Segment>, body: &Body, side: Side, limit: usize) -> Self {
        Self {
            ring: body.ring,
            bulk: body.bulk.map(Arc::new),
            leasing: body.store.map(Leasing::new),
            limit,
            longest: limit.max(body.budget),
            cursor: Cursor::new(),
            far: Cursor::new(),
            tidied_at: AtomicU64::new(0),
            tidied: AtomicU32::new(0),
            member: Member::new(Arc::clone(segment), body.control, side),
        }
    }

    #[inline(always)]
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    #[inline(always)]
    pub(crate) fn limits(&self) -> Limits {
        Limits { slot: self.limit, message: self.longest }
    }

    #[inline(always)]
    pub(crate) fn ring(&self) -> &Ring<'static> {
        &self.ring
    }

    pub(crate) fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// The message of `ticket` is in the queue: leaves its descriptors to the broker.
    #[cold]
    pub(crate) fn leave_deposit(&self, deposit: &Deposit, ticket: u64) {
        let ring = self.ring;
        self.member.leave_deposit(deposit, move || !ring.is_released(ticket));
    }

    /// Whether sending makes sense at all. One load each.
    #[inline(always)]
    pub(crate) fn ready_to_send(&self) -> Result<(), Failure> {
        if self.check().is_err() {
            return Err(Failure::Forked);
        }
        if self.control().has_ended_for(Side::Sender) {
            return Err(if self.is_closed() { Failure::Closed } else { Failure::Disconnected });
        }
        Ok(())
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
        match self.side() {
            Side::Sender => self.ring.len(&self.cursor, &self.far),
            Side::Receiver => self.ring.len(&self.far, &self.cursor),
        }
    }

    /// Whether another handle of this side would find what it waits for.
    pub(crate) fn is_ready(&self) -> bool {
        match self.side() {
            Side::Sender => self.len() < self.capacity(),
            Side::Receiver => self.ring.is_ready(&self.cursor) || self.control().returned().is_up(),
        }
    }

    /// Pushes a message, and returns its ticket.
    #[inline(always)]
    pub(crate) fn push<T, C: Format<T>>(&self, message: &C::Staged<'_>) -> Result<u64, Miss> {
        // SAFETY: the slot is claimed for writing, and its payload is the one that `limit` came from.
        let write = |slot| unsafe { C::store(message, slot) };
        self.try_push_open(|_, slot| write(slot))
    }

    /// Pushes one message, unless the queue is closed, and returns its ticket.
    #[inline(always)]
    pub(crate) fn try_push_open(&self, write: impl FnOnce(u64, *mut u8)) -> Result<u64, Miss> {
        let permit = || self.control().flags().permits();
        let pushed = self.ring.try_push_if(&self.cursor, self.me(), permit, write);
        Ok(pushed.inspect_err(|error| self.note_refusal(*error))?)
    }

    /// Receivers may wait for the claim that was withdrawn.
    #[inline(always)]
    fn note_refusal(&self, error: PushError) {
        if error == PushError::Refused {
            self.control().wake_all(Side::Receiver);
        }
    }

    /// Pushes some messages, and returns the first one's ticket and how many.
    #[inline(always)]
    pub(crate) fn push_batch<T, C: Format<T>>(
        &self,
        messages: &[C::Staged<'_>],
    ) -> Result<(u64, usize), Miss> {
        // SAFETY: as in `push`; the ring counts from 0 to below the length that it was given.
        let write = |i: usize, slot| unsafe { C::store(messages.get_unchecked(i), slot) };
        let permit = || self.control().flags().permits();
        let pushed = self.ring.try_push_batch_if(&self.cursor, self.me(), messages.len(), permit, write);
        Ok(pushed.inspect_err(|error| self.note_refusal(*error))?)
    }

    #[inline(always)]
    pub(crate) fn pop<T, C: Format<T>>(&self, message: &mut C::Message) -> Result<(), Miss> {
        if !C::has_room(message, self.limit) {
            // A look first: whoever polls an empty queue shall not allocate each time.
            self.ring.peek(&self.cursor)?;
            C::make_room(message, self.limit);
        }
        let read = |slot| {
            // SAFETY: the slot is claimed for reading, and its payload is the one that `limit` came from; there is room.
            unsafe { C::load(message, slot, self.limit) };
            if C::is_special(message) {
                self.take_special::<T, C>(message);
            }
        };
        Ok(self.ring.try_pop(&self.cursor, self.me(), read)?)
    }

    #[inline(always)]
    pub(crate) fn pop_batch<T, C: Format<T>>(&self, messages: &mut [C::Message]) -> Result<usize, Miss> {
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
            if C::is_special(message) {
                self.take_special::<T, C>(message);
            }
        };
        Ok(self.ring.try_pop_batch(&self.cursor, self.me(), max, read)?)
    }

    /// What comes with a message that is being taken. Before its slot is released.
    #[cold]
    fn take_special<T, C: Format<T>>(&self, message: &mut C::Message) {
        if let Some(reference) = self.bulk.as_ref().and_then(|_| C::reference(message)) {
            C::set_bulky(message, self.take_bulky(reference));
        }
        if C::has_handles(message) {
            self.take_in_hand();
        }
    }

    /// Repairs what a dead owner left. Returns whether it was dead, so that looking again may pay.
    #[cold]
    pub(crate) fn recover(&self, claim: Claim) -> bool {
        if claim.owner() == self.me() || !self.segment().is_dead(claim.owner()) {
            return false;
        }
        self.ring.recover(claim);
        self.segment().sweep();
        // Somebody else may sleep over what the dead one held.
        self.control().wake_all(Side::Receiver);
        self.control().wake_all(Side::Sender);
        true
    }

    /// Whether the claim of a sender that is gone may be in somebody else's hands: that of a sweep, which holds the
    /// dead one's lock until it has repaired everything. Whoever is not attached has been swept.
    pub(crate) fn is_swept_elsewhere(&self, claim: Claim) -> bool {
        claim.is_writing() && claim.owner() != self.me() && self.segment().is_attached(claim.owner())
    }

    /// The descriptor for whoever polls this end.
    pub(crate) fn descriptor(&self) -> io::Result<BorrowedFd<'_>> {
        self.check().map_err(io::Error::other)?;
        self.bridge.descriptor(|| Box::new(Watch::of(self)))
    }
}

impl Clone for End {
    fn clone(&self) -> Self {
        Self {
            ring: self.ring,
            bulk: self.bulk.clone(),
            leasing: self.leasing.clone(),
            limit: self.limit,
            longest: self.longest,
            cursor: self.cursor.clone(),
            far: self.far.clone(),
            tidied_at: AtomicU64::new(0),
            tidied: AtomicU32::new(0),
            member: self.member.clone(),
        }
    }
}

impl End {
    /// What `Debug` of a handle prints.
    pub(crate) fn fmt_as(&self, name: &str, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct(name);
        debug.field("capacity", &self.capacity());
        // Printing does not attach.
        match self.segment().check() {
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
