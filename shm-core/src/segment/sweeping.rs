//! Cleaning up after the dead, and after what a process that detaches has forgotten.

use super::{Segment, attached};
use crate::futex::Futex;
use crate::sync::Ordering;
use crate::sys::files::{self, Lock};
use std::os::fd::AsFd;

impl Segment {
    /// Cleans up after every participant that died, and frees its index. Returns how many it swept. Whoever sleeps on a
    /// lock in the segment is woken to look for a dead owner (see [`crate::deaths`]).
    ///
    /// Makes a system call per attached participant. Blocks only for other attaches and sweeps of this process. A dead
    /// process's lock falls some time after its pidfd or socket shows the death (0.2 ms for a small process,
    /// 27 ms per GiB): a supervisor sweeps again until it counts what it expects.
    ///
    /// # If the peer dies
    ///
    /// If another sweeper dies in the middle, this or the next sweep repeats its work.
    pub fn sweep(&self) -> usize {
        if self.check().is_err() {
            return 0;
        }
        // One at a time in this process; and no child inherits a sweep in the middle.
        let _window = crate::fork::window();
        let registry = self.registry();
        let swept = (1..=registry.highest())
            .filter(|&index| registry.is_attached(index) && self.is_dead(index) && self.sweep_one(index))
            .count();
        if swept > 0 {
            registry.announce_death();
        }
        swept
    }

    /// The count that a sweep steps.
    pub(crate) fn deaths(&self) -> &Futex {
        self.registry().deaths()
    }

    /// Sweeps one index if its lock can be had: proof of death and exclusive right in one.
    fn sweep_one(&self, index: u16) -> bool {
        let Ok(own) = files::reopen(self.mapping.descriptor()) else {
            return false;
        };
        if !matches!(files::try_lock(own.as_fd(), Lock::Write, index.into()), Ok(true)) {
            return false;
        }
        if !self.registry().is_attached(index) {
            return false;
        }
        crate::crash_point!("segment.sweep.locked");
        let clean = (self.sweep)(self, index);
        crate::crash_point!("segment.sweep.cleaned");
        if clean {
            self.registry().free(index);
        }
        clean
    }

    /// From here on a detach of this process cleans up after it as after a dead one ([`Spec::sweep`](super::Spec::sweep)): for users who hand out
    /// what can be forgotten (`std::mem::forget`), and is owned by the participant. Costs a load; may be called often.
    #[inline]
    pub fn sweep_at_detach(&self) {
        // Relaxed: see the drop. A look first, because all threads share the line.
        if !self.leaves_things.load(Ordering::Relaxed) {
            self.leaves_things.store(true, Ordering::Relaxed);
        }
    }

    /// Cleans up after this process, which detaches, if it has asked for that. Returns whether its index can be freed. The caller
    /// drops the segment, so nobody of this process uses it any more; the lock is held still.
    pub(super) fn sweep_own(&self) -> bool {
        let _window = crate::fork::window();
        // Relaxed: the last handle's drop comes behind every other use.
        !self.leaves_things.load(Ordering::Relaxed) || (self.sweep)(self, self.participant())
    }
}

/// Sweeps every segment that this process is attached to; returns how many dead participants it found in all.
///
/// For supervisors: whoever learns of a process's death calls it, so that nobody who waits for what the dead one held has
/// to find out by itself. Costs a system call per attached participant of each segment; the dead one's locks fall some
/// time after its death shows, so call it again until nothing is missing.
///
/// # Examples
///
/// ```
/// assert_eq!(shm_core::segment::sweep_all(), 0);      // nobody died
/// ```
pub fn sweep_all() -> usize {
    let segments = attached::all(&crate::fork::window());
    segments.iter().map(|segment| segment.sweep()).sum()
}
