//! What a process that dies leaves in a ring, made in place: for tests of recovery and for models, where a thread
//! that stops between two steps stands for the death.

use super::tickets::small;
use super::{Cursor, PopError, PushError, Ring};

/// How far an abandoned operation got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Claimed, and nothing done with the payload.
    Claimed,
    /// Payload written or read, and so many interior slots of the batch published or freed (from the last one).
    Interior(usize),
}

impl Ring<'_> {
    /// Starts a [`Ring::try_push_batch`] and stops after `step`, as if the caller had died there. Returns ticket and
    /// length of the claim.
    #[doc(hidden)]
    pub fn abandon_push(
        &self,
        cursor: &Cursor,
        me: u16,
        count: usize,
        mut write: impl FnMut(usize, *mut u8),
        step: Step,
    ) -> Result<(u64, usize), PushError> {
        let held = self.claim_free(cursor, me, self.longest(count.max(1)))?;
        if let Step::Interior(published) = step {
            self.each(&held, |i, index| self.slots.write(index, |slot| write(i, slot)));
            for i in (1..held.word.span()).rev().take(published) {
                self.publish_interior(&held, i);
            }
        }
        Ok((held.ticket, small(held.word.span())))
    }

    /// Starts a [`Ring::try_pop_batch`] and stops after `step`, as if the caller had died there. Returns the length
    /// of the claim.
    #[doc(hidden)]
    pub fn abandon_pop(
        &self,
        cursor: &Cursor,
        me: u16,
        max: usize,
        mut read: impl FnMut(usize, *const u8),
        step: Step,
    ) -> Result<usize, PopError> {
        let held = self.claim_full(cursor, me, self.longest(max.max(1)))?;
        if let Step::Interior(freed) = step {
            self.each(&held, |i, index| self.slots.read(index, |slot| read(i, slot)));
            for i in (1..held.word.span()).rev().take(freed) {
                self.release_interior(&held, i);
            }
        }
        Ok(small(held.word.span()))
    }
}
