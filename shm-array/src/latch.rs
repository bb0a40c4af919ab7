//! A value that is replaced as a whole: what [`SharedValue`](crate::SharedValue) and the cells of a
//! [`SharedList`](crate::SharedList) are made of.
//!
//! A sequence lock over two copies, as Linux's `seqcount_latch`; the fences are those of Hans Boehm, "Can seqlocks get along
//! with programming language memory models?" (2012).
//!
//! # Memory
//!
//! ```text
//! sequence    how often the value was replaced; slot `sequence % 2` has the value
//! slots       two of them, beside the latch; words that are only accessed as atomics
//! ```
//!
//! # Normal path
//!
//! ```text
//! write   (alone, under a lock)   fill slot (s + 1) % 2;  sequence = s + 1
//! read    s = sequence;  copy slot s % 2 out;  sequence == s?  otherwise again
//! ```
//!
//! A reader never waits for a writer that sleeps, is stopped or dead: the slot that the sequence names is whole. It tries
//! again only when a write was completed meanwhile, so it is lock-free, and writers never wait for readers.
//!
//! # The race that looks scary
//!
//! A slow reader still copies slot s % 2 when the write after the next one begins to fill that very slot. That writer saw
//! the sequence at s + 1. If the reader copies any word of it, then its fence pairs with the writer's, and the second look
//! at the sequence sees s + 1 at least: the reader throws its copy away.
//!
//! # If a process dies
//!
//! * before the sequence is stored: the slot that is half filled is not the one that readers look at, and the next writer
//!   fills it anew. The value is the old one, whole; nobody has anything to repair;
//! * after it: the value is the new one.
#![cfg_attr(not(loom), allow(unreachable_pub, reason = "models reach it"))]

use shm_core::crash_point;
use shm_core::sync::{AtomicU64, Ordering, fence, hint, ordering};

/// The orderings that a model can weaken by name.
#[cfg(loom)]
pub const ORDERINGS: &[&str] = &["latch.look", "latch.reread", "latch.refill", "latch.publish"];

/// The sequence word of a value; 0 to begin with.
#[derive(Clone, Copy, Debug)]
pub struct Latch<'m>(pub &'m AtomicU64);

impl Latch<'_> {
    /// Copies the value out. `copy` copies the words of a slot, 0 or 1, with relaxed loads; what it made is thrown away if the
    /// slot was refilled meanwhile. Never blocks; tries again while writers are faster.
    #[inline(always)]
    pub fn read<R>(self, mut copy: impl FnMut(usize) -> R) -> R {
        loop {
            // SYNC latch-publish: Acquire, so that the slot's words are seen; pairs with `write`.
            let before = self.0.load(ordering("latch.look", Ordering::Acquire));
            let value = copy(slot(before));
            // SYNC latch-refill: whoever copied a word of a refill sees below the sequence that it was based on; pairs
            // with the fence in `write`.
            weak_fence("latch.reread", Ordering::Acquire);
            // Relaxed: the fence orders it.
            if self.0.load(Ordering::Relaxed) == before {
                return value;
            }
            hint::spin_loop();
        }
    }

    /// Replaces the value. `fill` stores all words of a slot, 0 or 1, with relaxed stores. The caller has a lock that every
    /// writer takes.
    #[inline(always)]
    pub fn write(self, fill: impl FnOnce(usize)) {
        // Relaxed: only writers store it, and the lock orders them.
        let before = self.0.load(Ordering::Relaxed);
        // SYNC latch-refill: the sequence that was seen comes before the words below; pairs with the fence in `read`.
        weak_fence("latch.refill", Ordering::Release);
        fill(slot(before.wrapping_add(1)));
        crash_point!("latch.filled");
        // SYNC latch-publish: the words before the sequence; pairs with the look in `read`.
        self.0.store(before.wrapping_add(1), ordering("latch.publish", Ordering::Release));
        crash_point!("latch.published");
    }
}

#[inline(always)]
fn slot(sequence: u64) -> usize {
    // Also of a sequence that somebody scribbled over.
    usize::from(sequence % 2 == 1)
}

/// A fence that goes by `name` in a model, where a weakened one is missing.
#[inline(always)]
fn weak_fence(name: &str, order: Ordering) {
    match ordering(name, order) {
        Ordering::Relaxed => {}
        order => fence(order),
    }
}
