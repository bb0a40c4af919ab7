//! The private ticket of one end of a ring.

use shm_core::sync::AtomicU64;
use shm_core::sync::Ordering::{Acquire, Release};
use shm_core::sync::ordering;

/// The next ticket of one end (pushing or popping) of one ring: private to a process, shared by the threads of one
/// handle if they like.
///
/// Every ticket below it is taken, so it is never ahead of the ring; it may lag behind, and an operation then
/// walks or jumps to the true place. Threads that share a cursor may move it back a little; that costs a few looks.
///
/// # Across processes
///
/// Not shared: each process starts with a new one, or with a copy from the fork.
#[derive(Debug)]
pub struct Cursor(AtomicU64);

impl Cursor {
    /// A cursor at the first ticket.
    pub fn new() -> Cursor {
        Cursor(AtomicU64::new(0))
    }

    /// The next ticket to try.
    #[inline(always)]
    pub fn ticket(&self) -> u64 {
        // The ticket says only where to look first: every claim is preceded by a look at the slot itself, and a slot that
        // looks older than the ticket is one that looks full or empty a little longer.
        // SYNC ticket-order: but each claim happens before the claim of the next ticket, whoever makes it: see `claim_free`.
        // Pairs with `set`. (In a model the fence that stands for `SeqCst` would do.)
        self.0.load(Acquire)
    }

    #[inline(always)]
    pub(super) fn set(&self, ticket: u64) {
        // SYNC ticket-order: pairs with `ticket`.
        self.0.store(ticket, ordering("ring.cursor.set", Release));
    }
}

impl Default for Cursor {
    fn default() -> Self {
        Cursor::new()
    }
}

impl Clone for Cursor {
    fn clone(&self) -> Self {
        Cursor(AtomicU64::new(self.ticket()))
    }
}
