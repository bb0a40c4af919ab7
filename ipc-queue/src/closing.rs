//! When is a queue closed, and when has everything been received that was sent before?
//!
//! # Memory
//!
//! One word of sticky bits in the control block: which sides are gone (see `disconnect.rs`), and CLOSED.
//!
//! ```text
//! close   set CLOSED; wake everybody
//! send    CLOSED? fail;  claim a slot;  CLOSED? withdraw the claim, wake the receivers, fail;  write; publish
//! recv    a message? take it;  CLOSED? full fence;  a message? take it;  a claim of a living sender? wait;  closed
//! ```
//!
//! Whoever sets the bit has closed the queue. Closing waits for nobody: senders between their claim and its publication find
//! the bit or have been before it, and receivers wait for those.
//!
//! # The scary race
//!
//! A sender looks, finds the queue open, and publishes long after the bit was set. No receiver may take the queue for drained
//! before:
//!
//! 1. The claim, the second look and the setting of the bit are `SeqCst`. So a claim that will be published comes before
//!    the bit in the one order of these accesses: claim, look, bit.
//! 2. A receiver that has seen the bit executes a full fence and looks at the ring again. So it sees that claim, or what
//!    became of it, if it looks at that slot.
//! 3. It looks at one slot only: that of the first ticket that nobody has consumed. But each claim happens before the claim of
//!    the next ticket: a claim releases, and so does every word that is stored behind it and shows that its ticket is taken;
//!    the look of whoever comes next acquires, and so do the cursors that threads share. (A sender that comes by the
//!    inside of a batch alone finds it FULL only if the batch was permitted, so that its claim is before the bit anyway.) So if
//!    any later ticket was claimed in time, this one was too, and its slot shows it: a message, a claim, or the tomb of one
//!    that was withdrawn, which is passed.
//! 4. A slot inside of a batch shows nothing before it is published. Whoever gets there has learned that the ticket in front of
//!    it is consumed, from another consumer's claim, or from a word of a later lap. Both pass on what the consumer's look
//!    at the header has acquired: the claim releases, and so does each word behind it, the inside of a later batch included.
//!
//! The second look costs a load of a line that nobody writes, and no fence: on x86-64 the compare-and-swap of the claim is
//! one, on aarch64 it is a load with acquire order behind a compare-and-swap with release order.
//!
//! # If a process dies
//!
//! | dies after           | leaves                                                                                      |
//! |----------------------|---------------------------------------------------------------------------------------------|
//! | setting the bit      | a closed queue; sleepers find out when their time slice ends, or when anybody closes again |
//! | a claim, looking     | a claim, which receivers bury as that of any dead sender: that send never happened         |
//! | withdrawing          | a tomb; receivers that waited for the claim look again when their time slice ends          |
//!
//! A sender that is stopped behind its claim is alive, and receivers wait for it, as in an open queue.

use shm_core::sync::Ordering::{AcqRel, Acquire, SeqCst};
use shm_core::sync::{AtomicU32, fence, seq_cst_in_model};

/// In [`Flags`]: the queue is closed.
const CLOSED: u32 = 4;

/// What has happened to a queue once and for all: sticky bits. Zero bytes are those of a new queue.
#[derive(Debug)]
#[repr(transparent)]
pub struct Flags(AtomicU32);

impl Flags {
    /// Those of a new queue.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Whether one of these bits is set, as far as anybody has found out; CLOSED is not for the caller to name.
    #[inline(always)]
    pub fn has(&self, bits: u32) -> bool {
        // SYNC side-gone: pairs with `set`. Whoever sees the bit sees what came before it.
        self.0.load(Acquire) & bits != 0
    }

    /// Whether one of these bits is set or the queue is closed.
    #[inline(always)]
    pub fn has_or_closed(&self, bits: u32) -> bool {
        self.has(bits | CLOSED)
    }

    pub fn set(&self, bits: u32) {
        // SYNC side-gone: the scan saw the counts fall (Acquire), so it passes on all that came before.
        self.0.fetch_or(bits, AcqRel);
    }

    /// Closes the queue. Returns whether it was open. Never blocks.
    pub fn close(&self) -> bool {
        // SYNC closed: SeqCst, so behind every claim whose owner found the queue open; pairs with `permits`.
        self.0.fetch_or(CLOSED, SeqCst) & CLOSED == 0
    }

    /// Whether the queue is closed.
    #[inline(always)]
    pub fn is_closed(&self) -> bool {
        self.has(CLOSED)
    }

    /// Whether a message may be published for which a slot was just claimed: see
    /// [`Ring::try_push_if`](crate::ring::Ring::try_push_if).
    #[inline(always)]
    pub fn permits(&self) -> bool {
        seq_cst_in_model();
        // SYNC closed: SeqCst, behind the claim; pairs with `close`.
        self.0.load(SeqCst) & CLOSED == 0
    }

    /// Whether the queue is closed; if so, a consumer that looks at the ring from here on and finds it empty knows that it
    /// stays so.
    pub fn is_final(&self) -> bool {
        // SYNC closed: SeqCst and the fence, so that the bit is before all looks at slots that follow; pairs with `close`.
        let closed = self.0.load(SeqCst) & CLOSED != 0;
        if closed {
            fence(SeqCst);
        }
        closed
    }
}

#[cfg(not(loom))]
mod ends {
    use crate::end::End;
    use crate::layout::Side;

    impl End {
        /// Closes the queue and wakes everybody. Returns whether it was open; `false` where it is not there.
        pub(crate) fn close(&self) -> bool {
            if self.check().is_err() {
                return false;
            }
            let control = self.control();
            let closed = control.flags().close();
            shm_core::crash_point!("queue.close.marked");
            // Again if somebody has before: he may have died in between.
            control.wake_all(Side::Receiver);
            control.wake_all(Side::Sender);
            closed
        }

        /// Whether the queue is closed; `false` where it is not there.
        pub(crate) fn is_closed(&self) -> bool {
            self.check().is_ok() && self.control().flags().is_closed()
        }
    }
}
