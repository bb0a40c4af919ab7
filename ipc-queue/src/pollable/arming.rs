//! The state of a bridge and what its thread does; the protocol is explained in [`pollable`](crate::pollable).

use shm_core::futex::Futex;
use shm_core::sync::Ordering::{AcqRel, Acquire};
use shm_core::wait::{Pace, WaitLine};

/// Wanted: a message, or room for one.
pub const MORE: u32 = 1;
/// Wanted: chunks of memory for a message that fits no slot.
pub const CHUNKS: u32 = 2;
/// The handle is gone.
const STOPPED: u32 = 1 << 31;

/// A queue as seen by somebody who takes no part in it.
pub trait Watched: Send + Sync {
    /// Where those sleep who want this. If it is several things, one of the lines: at the others it looks in every slice.
    fn line(&self, wanted: u32) -> &WaitLine;

    /// Whether somebody who wants this should try, as far as memory tells. After a yes somebody is told.
    fn is_ready(&self, wanted: u32) -> bool;

    /// Likewise, as far as the system can tell: who is dead, who is gone?
    fn look_around(&self, wanted: u32) -> bool;
}

/// What somebody found missing since the descriptor was made readable; 0 at rest.
#[derive(Debug)]
pub struct Arming {
    word: Futex,
}

impl Arming {
    /// Armed for what is wanted; at rest, if that is nothing.
    pub fn new(wanted: u32) -> Self {
        Self { word: Futex::new(wanted) }
    }

    /// What is wanted now, 0 at rest; nothing when stopped.
    pub fn wanted(&self) -> Option<u32> {
        // SYNC bridge-armed: Acquire, so that what happened before the handle was dropped or armed is seen.
        let word = self.word.load(Acquire);
        (word & STOPPED == 0).then_some(word)
    }

    /// For an end that found nothing and has drained the descriptor. The end must try once more afterwards.
    pub fn arm(&self, wanted: u32, watched: &dyn Watched) {
        // SYNC bridge-armed: Release, behind the drain; pairs with `disarm`, so that the answer is not drained.
        let before = self.word.word().fetch_or(wanted, AcqRel);
        if before == 0 {
            self.word.wake(1);
        } else if before | wanted != before {
            // It sleeps on the other line.
            watched.line(before).notify_all();
        }
    }

    /// Ends the thread.
    pub fn stop(&self, watched: &dyn Watched) {
        let before = self.word.word().fetch_or(STOPPED, AcqRel);
        if before == 0 {
            self.word.wake(1);
        } else {
            watched.line(before).notify_all();
        }
    }

    /// For the thread, before it makes the descriptor readable.
    fn disarm(&self) {
        // SYNC bridge-armed: Acquire, so that the drain of each end whose arming is answered comes before the answer.
        self.word.word().fetch_and(STOPPED, AcqRel);
    }

    /// Sleeps while at rest; returns what is wanted, or nothing when stopped.
    fn rest(&self) -> Option<u32> {
        loop {
            match self.wanted() {
                // Without a time slice: whoever arms or stops is of this process.
                Some(0) => self.word.wait(0, None),
                wanted => return wanted,
            };
        }
    }
}

/// What the thread does: until it is stopped, calls `ring` whenever what is wanted may be there. `ring` makes the
/// descriptor readable.
pub fn watch(arming: &Arming, watched: &dyn Watched, ring: impl Fn()) {
    let pace = Pace::sleeper();
    while let Some(wanted) = arming.rest() {
        let line = watched.line(wanted);
        let attempt = || match arming.wanted() {
            Some(now) if std::ptr::eq(watched.line(now), line) => watched.is_ready(now).then_some(true),
            // Stopped, or to be awaited elsewhere.
            _ => Some(false),
        };
        let check = || arming.wanted().and_then(|now| watched.look_around(now).then_some(true));
        if line.wait(&pace, 0, None, attempt, check) == Some(true) {
            arming.disarm();
            ring();
        }
        // The wake-up may have been meant for somebody who would take what is there.
        if line.has_sleepers() {
            line.notify(1);
        }
    }
}
