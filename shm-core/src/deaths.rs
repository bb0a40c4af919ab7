//! Sleeping on a lock's word, and being woken also when somebody in the segment is found dead.
//!
//! A waiter looks for a dead owner before every sleep, and its sleeps are short (see [`crate::wait::SLICE`]). A supervisor
//! that learns of a death at once (from a pidfd, a socket) can do better for everybody: it
//! [sweeps](crate::segment::Segment::sweep), which steps a word of the segment. Waiters sleep on two words, their own
//! and this one (`futex_waitv`, Linux 5.16; before, on their own alone).
//!
//! ```text
//! waiter:   seen = the segment's count of deaths;  whose is the lock, is the owner dead?;
//!           sleep while word == expected and count == seen
//! sweeper:  clean up; free the index; let go of the dead one's lock;  count += 1;  wake everybody on it
//! ```
//!
//! The count is read *before* the oracle is asked: a sweep that is in the middle, and whose lock makes the dead look alive
//! for that moment, steps the count afterwards.
//!
//! # If a process dies
//!
//! A sweeper, before it steps the count: waiters look when their slice ends.

use crate::futex::{Futex, Wakeup};
#[cfg(not(loom))]
use crate::segment::{Segment, neighbourhood};
#[cfg(not(loom))]
use std::sync::Arc;
use std::time::Duration;

/// The deaths that were found so far among those who share the memory at some place.
#[derive(Debug)]
pub struct Deaths {
    #[cfg(not(loom))]
    watched: Option<(Arc<Segment>, u32)>,
}

impl Deaths {
    /// Those of now. Take it before asking whether an owner is dead. Never blocks; some 100 nanoseconds.
    #[cfg(not(loom))]
    pub fn near<T>(place: *const T) -> Self {
        let segment = neighbourhood(place.addr()).segment.filter(|segment| segment.check().is_ok());
        let watched = segment.map(|segment| {
            let seen = segment.deaths().load(crate::sync::Ordering::Acquire);
            (segment, seen)
        });
        Self { watched }
    }

    /// Those of now: a model has no supervisor.
    #[cfg(loom)]
    pub fn near<T>(_place: *const T) -> Self {
        Self {}
    }

    /// Sleeps while `futex` holds `expected` and nobody else was found dead, at most for `timeout`. Woken as
    /// [`Futex::wait`], and by a sweep of the segment.
    pub fn sleep(&self, futex: &Futex, expected: u32, timeout: Option<Duration>) -> Wakeup {
        #[cfg(not(loom))]
        if let Some((segment, seen)) = &self.watched {
            return crate::sys::futex_wait_either(
                [(futex.word(), expected), (segment.deaths().word(), *seen)],
                timeout,
            );
        }
        futex.wait(expected, timeout)
    }
}
