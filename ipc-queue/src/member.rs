//! A handle as its queue counts it: which side it holds, for which process, and whether the queue is there at all.
//!
//! # Safety
//!
//! The mapping stays as long as the `Arc<Segment>`, in the process that attached. In a forked child it is not there until
//! the child has attached again, at the same address. So the control block is touched only after [`Member::check`] (or in
//! code that was reached through it), and never handed out beyond `&self`.
#![allow(unsafe_code)]

use crate::disconnect;
use crate::layout::{Control, Side};
use crate::pollable::Slot;
use shm_core::fork::Forked;
use shm_core::segment::Segment;
use shm_core::sync::{AtomicU64, Ordering};
use shm_core::wait::Pace;
use std::os::fd::BorrowedFd;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Instant;

/// What every handle of a queue has, whatever lies behind the control block.
pub(crate) struct Member {
    /// Points into the segment below.
    control: NonNull<Control>,
    side: Side,
    pub(crate) pace: Pace,
    /// When this handle last looked whether the other side is alive, in microseconds since `born`.
    looked: AtomicU64,
    born: Instant,
    /// For whoever polls this handle.
    pub(crate) bridge: Slot,
    segment: Arc<Segment>,
}

// SAFETY: the control block consists of atomics, and the mapping may be used by every thread.
unsafe impl Send for Member {}
// SAFETY: as above.
unsafe impl Sync for Member {}
// A panic can only come from a user's code, which runs while nothing is half done.
impl UnwindSafe for Member {}
impl RefUnwindSafe for Member {}

/// How often a handle that only polls, or finds room all the time, asks the system whether the other side is alive.
const POLLERS_LOOK_MICROS: u64 = 1000;

/// The part of a [`sweep`](shm_core::segment::Spec::sweep) that concerns the control block. Every step may be repeated.
pub(crate) fn sweep(segment: &Segment, control: &Control, dead: u16) {
    for side in [Side::Sender, Side::Receiver] {
        control.count(dead, side).store(0, Ordering::SeqCst);
    }
    control.in_hand(dead).store(0, Ordering::SeqCst);
    shm_core::crash_point!("queue.sweep.uncounted");
    for side in [Side::Sender, Side::Receiver] {
        disconnect::is_gone(segment, control, side);
        control.wake_all(side);
    }
}

/// Counts the handles that a forked child has inherited; see [`Spec::arrived`](shm_core::segment::Spec::arrived).
pub(crate) fn arrived(segment: &Segment) {
    // SAFETY: the body began with a control block before the first handle was made; atomics.
    let control = unsafe { segment.body().cast::<Control>().as_ref() };
    for side in [Side::Sender, Side::Receiver] {
        let count = control.count(segment.participant(), side);
        // SeqCst: see `disconnect`.
        count.store(segment.held(side.lane().into()), Ordering::SeqCst);
    }
    control.in_hand(segment.participant()).store(0, Ordering::SeqCst);
    control.advance_epoch();
}

impl Member {
    /// A handle of `side`, counted. `control` is the one that the segment's body begins with.
    pub(crate) fn new(segment: Arc<Segment>, control: NonNull<Control>, side: Side) -> Self {
        let member = Self::uncounted(segment, control, side);
        // A fork passes on the lanes that have handles when it begins: none becomes the first of its lane while one is in
        // progress. (A clone never is: what it is a copy of is held.)
        let _window = shm_core::fork::window();
        member.enlist();
        member
    }

    fn uncounted(segment: Arc<Segment>, control: NonNull<Control>, side: Side) -> Self {
        let looked = AtomicU64::new(0);
        let bridge = Slot::default();
        Self { control, side, pace: Pace::new(), looked, born: Instant::now(), bridge, segment }
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

    /// For whoever keeps the segment beside it.
    pub(crate) fn control_block(&self) -> NonNull<Control> {
        self.control
    }

    #[inline(always)]
    pub(crate) fn side(&self) -> Side {
        self.side
    }

    #[inline(always)]
    pub(crate) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// The participant index of this process: another one in a forked child.
    #[inline(always)]
    pub(crate) fn me(&self) -> u16 {
        self.segment.participant()
    }

    /// What the end lends to whoever would poll it, if there is no bridge: `poll` says at any time that it is readable.
    pub(crate) fn lasting_descriptor(&self) -> BorrowedFd<'_> {
        self.segment.descriptor()
    }

    /// Whether nobody holds the other side; asks the system.
    pub(crate) fn is_alone(&self) -> bool {
        disconnect::is_gone(&self.segment, self.control(), self.side.other())
    }

    /// Whether it is time for a handle that does not sleep to ask the system about the other side.
    pub(crate) fn may_look(&self) -> bool {
        self.is_due(&self.looked, POLLERS_LOOK_MICROS)
    }

    /// Whether `last`, in microseconds of this handle's life, is `period` ago, or never was; if so it is now.
    pub(crate) fn is_due(&self, last: &AtomicU64, period: u64) -> bool {
        // Relaxed: how often to look is a matter of cost only.
        let now = u64::try_from(self.born.elapsed().as_micros()).unwrap_or(u64::MAX);
        let before = last.load(Ordering::Relaxed);
        let due = before == 0 || now.saturating_sub(before) >= period;
        if due {
            last.store(now.max(1), Ordering::Relaxed);
        }
        due
    }

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
}

impl Clone for Member {
    fn clone(&self) -> Self {
        let copy = Self::uncounted(Arc::clone(&self.segment), self.control, self.side);
        copy.enlist();
        copy
    }
}

impl Drop for Member {
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
