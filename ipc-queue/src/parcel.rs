//! Messages with handles: their descriptors wait with the sender until the receiver has fetched them.
//!
//! ```text
//! sender     deposit the descriptors; push; leave the deposit to a keeper
//! receiver   claim the slot; in_hand += 1; release the slot; fetch; in_hand -= 1
//! ```
//!
//! # How long a deposit waits
//!
//! Until it is fetched. It is given up when nobody will come for it: no living process holds a receiver; or the message has
//! left its slot and no living process has a message with handles in hand. `in_hand` is raised before the slot is released,
//! so whoever sees the slot free sees the count too.
//!
//! A receiver that lies in its own queue does not count as a receiver: only a receiver could take it out. Otherwise the
//! queue would keep itself alive. (Receivers that lie crosswise in two queues do; they end with the senders' processes.)
//!
//! # If a process dies
//!
//! The sender's deposits go with it; its messages stay, and whoever takes one learns that. A receiver that dies in the
//! middle leaves a count that is not believed, so within about a second the deposit is given up.
//!
//! # Safety
//!
//! As in [`end`](crate::end): ring and control block lie in the segment that is held beside them.
#![allow(unsafe_code)]

use crate::disconnect;
use crate::layout::{Control, Side};
use crate::member::Member;
use shm_core::broker::Deposit;
use shm_core::crash_point;
use shm_core::fork::ForkStamp;
use shm_core::segment::Segment;
use shm_core::sync::Ordering;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

/// Knows whether a message may still be received.
struct Watch<F> {
    /// Whether it is in its slot.
    is_queued: F,
    control: NonNull<Control>,
    segment: Arc<Segment>,
}

// SAFETY: the control block consists of atomics, and the mapping may be used by every thread.
unsafe impl<F: Send> Send for Watch<F> {}
// SAFETY: as above.
unsafe impl<F: Sync> Sync for Watch<F> {}

impl<F: Fn() -> bool> Watch<F> {
    fn is_wanted(&self) -> bool {
        if self.segment.check().is_err() {
            return false;
        }
        // SAFETY: in the mapping, which is there and lives as long as the segment beside it.
        let control = unsafe { self.control.as_ref() };
        if disconnect::is_gone(&self.segment, control, Side::Receiver) {
            return false;
        }
        let segment = &self.segment;
        // SYNC in-hand: the look at the slot (Acquire) comes first; pairs with the release of the slot by its receiver.
        let in_hand = |participant| control.in_hand(participant).load(Ordering::Acquire) != 0;
        (self.is_queued)()
            || in_hand(segment.participant())
            || (1..=segment.participants()).any(|other| in_hand(other) && !segment.is_dead(other))
    }
}

/// A message with handles that this process has taken and is not done with.
pub(crate) struct Hand {
    control: NonNull<Control>,
    me: u16,
    stamp: ForkStamp,
    _segment: Arc<Segment>,
}

// SAFETY: the control block consists of atomics, and the mapping may be used by every thread.
unsafe impl Send for Hand {}
// SAFETY: as above.
unsafe impl Sync for Hand {}

impl Drop for Hand {
    fn drop(&mut self) {
        if self.stamp.check().is_ok() {
            // SAFETY: in the mapping, which lives as long as the segment beside it.
            let control = unsafe { self.control.as_ref() };
            // SYNC in-hand: Release, so that whoever sees it sees what was fetched before; pairs with `Watch`.
            control.in_hand(self.me).fetch_sub(1, Ordering::Release);
        }
    }
}

impl fmt::Debug for Hand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hand")
    }
}

impl Member {
    /// A message is in the queue: leaves its descriptors to the broker. `is_queued` tells whether it is there still, and is
    /// asked as long as the segment is mapped.
    #[cold]
    pub(crate) fn leave_deposit(
        &self,
        deposit: &Deposit,
        is_queued: impl Fn() -> bool + Send + Sync + 'static,
    ) {
        crash_point!("queue.parcel.pushed");
        deposit.inspect(|token| self.segment().disarm(token, Side::Receiver.lane().into()));
        let segment = Arc::clone(self.segment());
        let watch = Watch { is_queued, control: self.control_block(), segment };
        deposit.leave(Arc::new(move || watch.is_wanted()));
    }

    /// Counts a message with handles that is being taken. Before its slot is released.
    #[cold]
    pub(crate) fn take_in_hand(&self) {
        // SYNC in-hand: published by the release of the slot.
        self.control().in_hand(self.me()).fetch_add(1, Ordering::Relaxed);
        crash_point!("queue.parcel.in_hand");
    }

    /// Takes over what [`Member::take_in_hand`] has counted.
    #[cold]
    pub(crate) fn hand(&self) -> Hand {
        let _segment = Arc::clone(self.segment());
        Hand { control: self.control_block(), me: self.me(), stamp: ForkStamp::now(), _segment }
    }
}
