//! One end of a queue of one producer and one consumer: its seat, its side of the ring, its waiting.
//!
//! ```text
//! 0       control block, as in every queue
//! 12800   seats     who uses which side: an owner token, or 0        written seldom
//! 12928   ring      indices, slots
//! ```
//!
//! # Seats
//!
//! A handle works only while it sits on the seat of its side, so there is one of each side at a time in all processes.
//!
//! ```text
//! sit       CAS free -> me, or dead -> me; then read where the last one stopped
//! stand up  (serialised, dropped)      me -> free
//! sweep     (dead)                     the dead one -> free
//! ```
//!
//! A token carries the generation of its participant index, so a CAS that expects a dead one's token cannot hit a newcomer
//! with the same index.
//!
//! # If a process dies
//!
//! It leaves its token on the seat. Whoever wants the seat asks the kernel; a sweep clears it. The ring needs no repair.
//!
//! # Safety
//!
//! As in [`member`](crate::member), for seats and ring too: they are touched only by a handle that sits, or behind
//! [`Member::check`].
#![allow(unsafe_code)]

use super::ring::{Layout, Popper, Pusher, Reach, Ring};
use crate::codec::Format;
use crate::error::Error;
use crate::layout::{Control, RING_START, Side};
use crate::member::{self, Member};
use crate::pollable::{MORE, Observer, SpscWatch};
use crate::ring::Layout as Limits;
use crate::travel::Refused;
use crate::wait::Patience;
use shm_core::crash_point;
use shm_core::fork::ForkStamp;
use shm_core::owner::Owner;
use shm_core::segment::{Segment, Spec};
use shm_core::sync::Ordering::{AcqRel, Acquire, Relaxed, Release};
use shm_core::sync::{AtomicU32, hint};
use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::BorrowedFd;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Instant;

/// What a segment of this kind says it is.
const KIND: u32 = u32::from_le_bytes(*b"ipcs");
const SEATS_START: usize = RING_START;
const SLOTS_START: usize = SEATS_START + size_of::<Seats>();

/// Who uses which side: an owner token, or 0.
#[derive(Debug)]
#[repr(C, align(128))]
struct Seats([AtomicU32; 2]);

const _: () = assert!(SEATS_START % 128 == 0 && SLOTS_START % 128 == 0);

/// Why an end cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unseated {
    /// The queue is not there, and cannot be attached.
    Forked,
    /// Somebody else sits there.
    Taken,
}

/// Why an operation ended without success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Patience ran out.
    Late,
    /// The other side is gone (for a consumer: and nothing is left).
    Disconnected,
}

/// A side of the ring.
pub(crate) trait Site {
    const SIDE: Side;

    /// # Safety
    ///
    /// As [`Ring::pusher`].
    unsafe fn enter(ring: &Ring<'static>) -> Self;

    fn ticket(&self) -> u64;

    /// What it knows without a look.
    fn reach(&self) -> &Reach;
}

impl Site for Pusher<'static> {
    const SIDE: Side = Side::Sender;

    unsafe fn enter(ring: &Ring<'static>) -> Self {
        // SAFETY: the caller's promise is the same.
        unsafe { ring.pusher() }
    }

    #[inline(always)]
    fn ticket(&self) -> u64 {
        self.ticket()
    }

    fn reach(&self) -> &Reach {
        self.reach()
    }
}

impl Site for Popper<'static> {
    const SIDE: Side = Side::Receiver;

    unsafe fn enter(ring: &Ring<'static>) -> Self {
        // SAFETY: as above.
        unsafe { ring.popper() }
    }

    #[inline(always)]
    fn ticket(&self) -> u64 {
        self.ticket()
    }

    fn reach(&self) -> &Reach {
        self.reach()
    }
}

/// What lies in a segment, checked against its length.
struct Body {
    control: NonNull<Control>,
    seats: NonNull<Seats>,
    ring: Ring<'static>,
    payload_len: usize,
}

impl Body {
    /// `None` if the numbers do not fit the segment. The result must not outlive the segment.
    fn of(segment: &Segment) -> Option<Self> {
        if segment.body_len() < SLOTS_START {
            return None;
        }
        let control = segment.body().cast::<Control>();
        // SAFETY: the body is page-aligned and long enough; a control block consists of atomics.
        let (capacity, payload_len) = unsafe { control.as_ref() }.geometry();
        let layout = Layout::new(capacity.try_into().ok()?, payload_len.try_into().ok()?).ok()?;
        if layout.len_bytes() > segment.body_len() - SLOTS_START {
            return None;
        }
        // SAFETY: seats and ring fit into the body behind the control block, aligned to 128.
        let (seats, ring) = unsafe {
            let base = segment.body();
            (base.add(SEATS_START).cast(), Ring::attach(base.add(SLOTS_START), layout))
        };
        Some(Self { control, seats, ring, payload_len: layout.payload_len() })
    }
}

/// Cleans up after a dead participant; see [`Spec::sweep`]. Every step may be repeated.
fn sweep(segment: &Segment, dead: u16) -> bool {
    let Some(body) = Body::of(segment) else {
        return false;
    };
    // SAFETY: inside the segment, which outlives this call; atomics.
    let (control, seats) = unsafe { (body.control.as_ref(), body.seats.as_ref()) };
    for seat in &seats.0 {
        let seen = seat.load(Relaxed);
        if Owner::from_bits(seen).is_some_and(|owner| owner.index() == dead) {
            // SYNC spsc-seat: AcqRel passes on what the dead one did.
            let _ = seat.compare_exchange(seen, 0, AcqRel, Relaxed);
        }
    }
    member::sweep(segment, control, dead);
    true
}

fn spec(layout_hash: u64, body_len: usize) -> Spec {
    Spec { kind: KIND, layout_hash, body_len, sweep, arrived: member::arrived }
}

/// The most pauses before a look in a stream, less than a microsecond: time for the other side to get some lines ahead.
const GAP: usize = 31;
/// A shorter run between two misses is no stream.
const STREAM: usize = 8;
/// Messages between two times that a side notes its processor and a producer may ask for the consumer: a power of two.
const NOW_AND_THEN: u64 = 256;

/// A handle's way to the queue; not shared by threads.
pub(crate) struct End<S: Site> {
    site: S,
    /// The longest message, as the codec counts.
    limit: usize,
    /// Sat down in the process of this stamp.
    stamp: ForkStamp,
    seated: Cell<bool>,
    /// The ticket of the last miss.
    last_miss: u64,
    /// Points into the member's segment.
    seats: NonNull<Seats>,
    /// Points into the member's segment.
    ring: Ring<'static>,
    member: Member,
}

// SAFETY: seats are atomics, the ring's side goes with the handle, and the mapping may be used by every thread. `Cell`
// keeps the handle from being shared.
unsafe impl<S: Site> Send for End<S> {}
// A panic can only come from a user's code, which runs while nothing is half done.
impl<S: Site> UnwindSafe for End<S> {}
impl<S: Site> RefUnwindSafe for End<S> {}

/// Creates a queue and its two ends.
pub(crate) fn pair<T, C: Format<T>>(
    capacity: usize,
    slot_bytes: usize,
) -> Result<(End<Pusher<'static>>, End<Popper<'static>>), Error> {
    let payload_len = C::payload_len(slot_bytes, 0);
    let limits = Limits::new(capacity, payload_len)?;
    let body_len = SLOTS_START + Layout::new(capacity, payload_len)?.len_bytes();
    let segment = Segment::create(&spec(C::LAYOUT, body_len), |body| {
        // SAFETY: the body is page-aligned, zeroed and long enough; zeroes are a valid control block.
        unsafe { body.cast::<Control>().as_ref() }.set_geometry(&limits);
    })?;
    let limit = C::limit(payload_len).expect("the codec chose the payload");
    let body = Body::of(&segment).expect("the geometry was just written");
    let free = "nobody else knows of the queue yet";
    Ok((End::new(&segment, &body, limit).expect(free), End::new(&segment, &body, limit).expect(free)))
}

impl<S: Site> End<S> {
    /// Attaches to the queue behind a descriptor, counts a handle and sits down.
    pub(super) fn attach<T, C: Format<T>>(
        descriptor: BorrowedFd<'_>,
    ) -> Result<Result<Self, Unseated>, Refused> {
        let segment = Segment::attach(descriptor, &spec(C::LAYOUT, SLOTS_START + 1))?;
        let body = Body::of(&segment).ok_or(Refused::Geometry)?;
        let limit = C::limit(body.payload_len).ok_or(Refused::Geometry)?;
        Ok(Self::new(&segment, &body, limit))
    }

    fn new(segment: &Arc<Segment>, body: &Body, limit: usize) -> Result<Self, Unseated> {
        let member = Member::new(Arc::clone(segment), body.control, S::SIDE);
        // SAFETY: in the mapping, which is there: the segment was just made or attached.
        take(unsafe { body.seats.as_ref() }, S::SIDE, segment)?;
        Ok(Self {
            // SAFETY: the seat is this handle's.
            site: unsafe { S::enter(&body.ring) },
            limit,
            stamp: ForkStamp::now(),
            seated: Cell::new(true),
            last_miss: 0,
            seats: body.seats,
            ring: body.ring,
            member,
        })
    }

    /// Makes sure that this handle may use the queue. Three loads if there is nothing to do.
    #[inline(always)]
    pub(super) fn ready(&mut self) -> Result<(), Unseated> {
        if self.is_seated() { Ok(()) } else { self.sit() }
    }

    #[inline(always)]
    pub(super) fn is_seated(&self) -> bool {
        self.seated.get() && self.stamp.check().is_ok()
    }

    /// Takes the seat, if it is free, and goes on where the last one stopped.
    #[cold]
    fn sit(&mut self) -> Result<(), Unseated> {
        self.claim()?;
        // SAFETY: the seat is this handle's.
        self.site = unsafe { S::enter(&self.ring) };
        self.last_miss = self.site.ticket();
        self.stamp = ForkStamp::now();
        self.seated.set(true);
        Ok(())
    }

    /// Takes the seat.
    fn claim(&self) -> Result<(), Unseated> {
        self.seated.set(false);
        self.member.check().map_err(|_| Unseated::Forked)?;
        take(self.seats(), S::SIDE, self.member.segment())
    }

    /// Runs `leave` while the seat is this handle's, and gives the seat away if it succeeds.
    pub(super) fn hand_on<R, E: From<Unseated>>(&self, leave: impl FnOnce() -> Result<R, E>) -> Result<R, E> {
        let was_seated = self.is_seated();
        if !was_seated {
            self.claim()?;
        }
        let left = leave();
        if left.is_ok() || !was_seated {
            self.stand_up();
        }
        left
    }

    /// Gives the seat away.
    fn stand_up(&self) {
        self.seated.set(false);
        // SYNC spsc-seat: Release, so that the next one sees what this one did; pairs with `take`.
        self.seats().0[S::SIDE as usize].store(0, Release);
    }

    fn seats(&self) -> &Seats {
        // SAFETY: in the mapping, which lives as long as the member's segment; callers have passed `check`, or sit.
        unsafe { self.seats.as_ref() }
    }

    #[inline(always)]
    pub(super) fn member(&self) -> &Member {
        &self.member
    }

    #[inline(always)]
    pub(super) fn parts(&mut self) -> (&mut S, &Member) {
        (&mut self.site, &self.member)
    }

    #[inline(always)]
    pub(super) fn ticket(&self) -> u64 {
        self.site.ticket()
    }

    pub(super) fn ring(&self) -> Ring<'static> {
        self.ring
    }

    #[inline(always)]
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    pub(super) fn capacity(&self) -> usize {
        self.ring.capacity()
    }

    pub(super) fn len(&self) -> usize {
        self.member.check().map_or(0, |()| self.ring.len())
    }

    /// The descriptor for whoever polls this end.
    pub(super) fn descriptor(&self) -> io::Result<BorrowedFd<'_>> {
        self.member.check().map_err(io::Error::other)?;
        let watch = || SpscWatch::new(self.ring, Observer::of(&self.member));
        self.member.bridge.descriptor(|| Box::new(watch()))
    }

    /// As [`Member::lasting_descriptor`].
    pub(super) fn lasting_descriptor(&self) -> BorrowedFd<'_> {
        self.member.lasting_descriptor()
    }

    /// Whether nobody holds the other side, as far as anybody has found out.
    #[inline(always)]
    pub(super) fn is_alone(&self) -> bool {
        self.member.control().is_gone(S::SIDE.other())
    }

    /// After success with `count` messages, `before` being the ticket before: wakes the other side, if it sleeps.
    #[inline(always)]
    pub(super) fn done(&self, before: u64, count: usize) {
        self.member.control().sleeps(S::SIDE.other()).notify(1);
        if (before.wrapping_add(count as u64) ^ before) / NOW_AND_THEN != 0 {
            self.now_and_then();
        }
    }

    /// What one message of [`NOW_AND_THEN`] is good for. A consumer without a producer finds the queue empty; a producer
    /// without a consumer may find room for long, so it asks.
    #[cold]
    #[inline(never)]
    fn now_and_then(&self) {
        self.member.control().sleeps(S::SIDE.other()).note_cpu();
        if S::SIDE == Side::Sender && self.member.may_look() {
            self.member.is_alone();
        }
    }

    /// After a miss: tries again as `patience` allows.
    #[cold]
    #[inline(never)]
    pub(super) fn retry<R>(
        &mut self,
        patience: Patience,
        mut attempt: impl FnMut(&mut S, &Member) -> Option<R>,
    ) -> Result<R, Stop> {
        match self.wait(patience, &mut attempt) {
            // Somebody may poll this end, and wait for what comes from here on.
            Err(Stop::Late) if self.member.bridge.found_nothing(MORE) => {
                attempt(&mut self.site, &self.member).ok_or(Stop::Late)
            }
            outcome => outcome,
        }
    }

    fn wait<R>(
        &mut self,
        patience: Patience,
        attempt: &mut impl FnMut(&mut S, &Member) -> Option<R>,
    ) -> Result<R, Stop> {
        let deadline = match patience {
            Patience::None => return self.glance(attempt),
            // A deadline beyond the end of time is none.
            Patience::For(timeout) => Instant::now().checked_add(timeout),
            Patience::Until(deadline) => Some(deadline),
            Patience::Forever => None,
        };
        let ticket = self.site.ticket();
        let run = ticket.wrapping_sub(std::mem::replace(&mut self.last_miss, ticket));
        if run >= STREAM as u64 {
            self.pause();
            if let Some(done) = attempt(&mut self.site, &self.member) {
                return Ok(done);
            }
        }
        let Self { site, member, .. } = self;
        let control = member.control();
        // Whoever waits for us should know where we run.
        control.sleeps(S::SIDE.other()).note_cpu();
        let progress = site.ticket();
        let attempt = RefCell::new(|| attempt(site, member));
        let done = control.sleeps(S::SIDE).wait(
            &member.pace,
            progress,
            deadline,
            || try_once::<S, R>(member, &mut *attempt.borrow_mut()),
            || look_around::<S, R>(member, &mut *attempt.borrow_mut()),
        );
        done.unwrap_or(Err(Stop::Late))
    }

    /// After a miss that must not wait: asks now and then whether the other side is alive.
    fn glance<R>(&mut self, attempt: &mut impl FnMut(&mut S, &Member) -> Option<R>) -> Result<R, Stop> {
        if !self.is_alone() {
            self.member.control().sleeps(S::SIDE.other()).note_cpu();
            if !self.member.may_look() {
                return Err(Stop::Late);
            }
        }
        let Self { site, member, .. } = self;
        look_around::<S, R>(member, &mut || attempt(site, member)).unwrap_or(Err(Stop::Late))
    }

    /// To be called before a look that may take its time. In a stream the other side is about to bring more; to look at
    /// its index takes the line away from it. So where the last look found little, let it get some lines ahead first.
    #[inline]
    pub(super) fn linger(&self, patience: Patience) {
        let reach = self.site.reach();
        let is_thin = (STREAM..self.capacity() / 4).contains(&reach.found());
        if is_thin && reach.left(self.site.ticket()) == 0 && !matches!(patience, Patience::None) {
            self.pause();
        }
    }

    /// Gives the other side time for some messages: not so many that it runs out of room, or of messages.
    fn pause(&self) {
        (0..GAP.min(self.capacity() / 32)).for_each(|_| hint::spin_loop());
    }

    /// What `Debug` of a handle prints.
    pub(super) fn fmt_as(&self, name: &str, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct(name);
        debug.field("capacity", &self.capacity());
        // Printing neither attaches nor sits down.
        match self.member.segment().check() {
            Ok(()) => debug.field("len", &self.ring.len()).field("in_use", &self.is_seated()),
            Err(_) => debug.field("forked", &true),
        };
        debug.finish_non_exhaustive()
    }
}

impl<S: Site> Drop for End<S> {
    fn drop(&mut self) {
        if self.is_seated() {
            self.stand_up();
        }
    }
}

/// Takes the seat of a side if nobody or a dead process has it.
fn take(seats: &Seats, side: Side, segment: &Segment) -> Result<(), Unseated> {
    let seat = &seats.0[side as usize];
    // SYNC spsc-seat: Acquire, so that this one sees what the last one did; pairs with `stand_up` and `sweep`. What a dead
    // one did is ordered by the proof of its death.
    let seen = seat.load(Acquire);
    let free = match Owner::from_bits(seen) {
        None => true,
        Some(owner) => segment.is_owner_dead(owner),
    };
    // Whoever loses against somebody else finds the seat taken.
    let won = free && seat.compare_exchange(seen, segment.owner().bits(), AcqRel, Relaxed).is_ok();
    crash_point!("spsc.seat.taken");
    if won { Ok(()) } else { Err(Unseated::Taken) }
}

/// One try that asks no system call.
#[inline(always)]
fn try_once<S: Site, R>(member: &Member, attempt: &mut impl FnMut() -> Option<R>) -> Option<Result<R, Stop>> {
    match attempt() {
        Some(done) => Some(Ok(done)),
        None if member.control().is_gone(S::SIDE.other()) => Some(last_look::<S, R>(attempt)),
        None => None,
    }
}

/// A try with everything that the system can tell: is the other side alive?
#[cold]
fn look_around<S: Site, R>(
    member: &Member,
    attempt: &mut impl FnMut() -> Option<R>,
) -> Option<Result<R, Stop>> {
    match attempt() {
        Some(done) => Some(Ok(done)),
        None if member.is_alone() => Some(last_look::<S, R>(attempt)),
        None => None,
    }
}

/// The other side is gone: what it sent before it went is still there.
#[cold]
fn last_look<S: Site, R>(attempt: &mut impl FnMut() -> Option<R>) -> Result<R, Stop> {
    match S::SIDE {
        Side::Sender => Err(Stop::Disconnected),
        Side::Receiver => attempt().ok_or(Stop::Disconnected),
    }
}
