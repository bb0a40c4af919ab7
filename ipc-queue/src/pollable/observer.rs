//! A look at a queue by somebody who holds none of its sides.
//!
//! # Safety
//!
//! The mapping stays as long as the `Arc<Segment>`, in the process that made the observer, which had attached. In a forked
//! child an observer is only dropped.
#![allow(unsafe_code)]

use super::arming::{CHUNKS, MORE, Watched};
use crate::bulk::Bulk;
use crate::disconnect;
use crate::end::End;
use crate::layout::{Control, Side};
use crate::lease::Store;
use crate::member::Member;
use crate::ring::{Claim, Cursor, PopError, PushError, Ring};
use crate::spsc::ring::Ring as SpscRing;
use shm_core::segment::Segment;
use shm_core::sync::{AtomicU32, Ordering};
use shm_core::wait::WaitLine;
use std::ptr::NonNull;
use std::sync::Arc;

/// What is the same for every queue.
pub(crate) struct Observer {
    /// Points into the segment.
    control: NonNull<Control>,
    side: Side,
    segment: Arc<Segment>,
}

// SAFETY: the control block consists of atomics, and the mapping may be used by every thread.
unsafe impl Send for Observer {}
// SAFETY: as above.
unsafe impl Sync for Observer {}

impl Observer {
    /// Observes what this handle waits for. The caller has passed [`Member::check`].
    pub(crate) fn of(member: &Member) -> Self {
        Self { control: member.control_block(), side: member.side(), segment: Arc::clone(member.segment()) }
    }

    fn control(&self) -> &Control {
        // SAFETY: in the mapping; see the top.
        unsafe { self.control.as_ref() }
    }

    fn line(&self, wanted: u32) -> &WaitLine {
        if wanted & CHUNKS != 0 { &self.control().freed.0.line } else { self.control().sleeps(self.side) }
    }

    /// Whether nobody holds the other side: every operation would say that it is over, as far as anybody has found out.
    fn is_over(&self) -> bool {
        self.control().is_gone(self.side.other())
    }

    /// How often chunks or cells were freed.
    fn freed(&self) -> u32 {
        // SYNC chunk-count: whoever is told looks at the words behind this; pairs with `note_freed`.
        self.control().freed.0.count.load(Ordering::Acquire)
    }

    /// As [`Observer::is_over`]; asks the system.
    fn is_alone(&self) -> bool {
        disconnect::is_gone(&self.segment, self.control(), self.side.other())
    }
}

/// The ring of a queue with many ends, and its chunks.
pub(crate) struct Watch {
    /// Points into the observer's segment.
    ring: Ring<'static>,
    bulk: Option<Arc<Bulk>>,
    /// Of a queue whose messages are acknowledged.
    store: Option<Store>,
    cursor: Cursor,
    /// How often chunks had been freed when somebody was told last.
    told: AtomicU32,
    observer: Observer,
}

impl Watch {
    /// Watches what this end waits for. The caller has passed [`Member::check`].
    pub(crate) fn of(end: &End) -> Self {
        let observer = Observer::of(end);
        Self {
            ring: *end.ring(),
            bulk: end.bulk.clone(),
            store: end.leasing.as_ref().map(|leasing| *leasing.store()),
            cursor: end.cursor().clone(),
            told: AtomicU32::new(observer.freed()),
            observer,
        }
    }

    /// Whether every operation would say that it is over. A receiver whose senders are gone may get what others have on lease.
    fn is_over(&self) -> bool {
        let Observer { segment, side, .. } = &self.observer;
        let awaits = |store: &Store| store.cells().may_bring(segment.participant());
        // A receiver of a closed queue waits for what a living sender has claimed still.
        let is_closed = || {
            self.observer.control().flags().is_final() && (*side == Side::Sender || self.peek() == Err(None))
        };
        (self.observer.is_over() || is_closed())
            && !(*side == Side::Receiver && self.store.as_ref().is_some_and(awaits))
    }

    /// Whether an operation on the ring would not say "nothing"; if it would, who stands in the way.
    fn peek(&self) -> Result<(), Option<Claim>> {
        match self.observer.side {
            Side::Receiver => match self.ring.peek(&self.cursor) {
                Ok(()) | Err(PopError::Exhausted) => Ok(()),
                Err(PopError::Empty) => Err(None),
                Err(PopError::Claimed(claim)) => Err(Some(claim)),
            },
            Side::Sender => match self.ring.peek_room(&self.cursor) {
                Ok(()) | Err(PushError::Exhausted) => Ok(()),
                Err(PushError::Full | PushError::Refused) => Err(None),
                Err(PushError::Claimed(claim)) => Err(Some(claim)),
            },
        }
    }
}

impl Watched for Watch {
    fn line(&self, wanted: u32) -> &WaitLine {
        self.observer.line(wanted)
    }

    fn is_ready(&self, wanted: u32) -> bool {
        let Observer { side, .. } = self.observer;
        let came_back = || side == Side::Receiver && self.observer.control().returned().is_up();
        let was_freed = || {
            let count = self.observer.freed();
            // Relaxed: two threads that ask at once may both be told.
            self.told.swap(count, Ordering::Relaxed) != count
        };
        (wanted & MORE != 0 && (self.peek().is_ok() || came_back()))
            || (wanted & CHUNKS != 0 && was_freed())
            || self.is_over()
    }

    fn look_around(&self, wanted: u32) -> bool {
        let Observer { segment, .. } = &self.observer;
        if let Some(bulk) = &self.bulk {
            bulk.trim_idle(segment, self.observer.control());
        }
        // What a dead process had on lease, and the memory of what it was taking or freeing, comes back by a sweep, and nobody
        // else may be there to do it. The words alone do not tell: it may have freed some and not said so.
        if (self.store.is_some() || wanted & CHUNKS != 0) && segment.sweep() > 0 {
            return true;
        }
        let is_dead = |claim: Claim| claim.owner() != segment.participant() && segment.is_dead(claim.owner());
        let blocked = || self.peek().is_err_and(|claim| claim.is_some_and(is_dead));
        (wanted & MORE != 0 && blocked()) || (self.observer.is_alone() && self.is_over())
    }
}

/// The ring of one producer and one consumer.
pub(crate) struct SpscWatch {
    /// Points into the observer's segment.
    ring: SpscRing<'static>,
    observer: Observer,
}

impl SpscWatch {
    pub(crate) fn new(ring: SpscRing<'static>, observer: Observer) -> Self {
        Self { ring, observer }
    }
}

impl Watched for SpscWatch {
    fn line(&self, wanted: u32) -> &WaitLine {
        self.observer.line(wanted)
    }

    fn is_ready(&self, _wanted: u32) -> bool {
        let has_something = match self.observer.side {
            Side::Receiver => !self.ring.is_empty(),
            Side::Sender => self.ring.len() < self.ring.capacity(),
        };
        has_something || self.observer.is_over()
    }

    fn look_around(&self, _wanted: u32) -> bool {
        self.observer.is_alone()
    }
}
