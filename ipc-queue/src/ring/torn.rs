//! What a process that dies leaves in a ring, made in place: for tests of recovery and for models, where a thread
//! that stops between two steps stands for the death.

use super::tickets::small;
use super::{Cursor, PopError, PushError, Ring};
use shm_core::sync::Ordering::Relaxed;

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
        let held = self.claim_free(cursor, me, self.longest(count.max(1)), Relaxed)?;
        if let Step::Interior(published) = step {
            self.each(&held, |i, index| self.slots.write(index, |slot| write(i, slot)));
            for i in held.word.interior().take(published) {
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
            for i in held.word.interior().take(freed) {
                self.release_interior(&held, i);
            }
        }
        Ok(small(held.word.span()))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::word::Word;
    use super::super::{Layout, Memory};
    use super::*;

    fn words(ring: &Ring<'_>) -> Vec<Word> {
        (0..ring.capacity()).map(|index| ring.look(index, Relaxed)).collect()
    }

    /// Ascending, a batch torn after its first interior slots would let a consumer that has passed a buried header
    /// meet slots that nobody will ever publish in front of ones that are.
    #[test]
    fn a_batch_is_published_and_freed_from_last_to_first() {
        let memory = Memory::new(Layout::new(4, 0).expect("a small ring"));
        let ring = memory.ring();
        let (pushed, popped) = (Cursor::new(), Cursor::new());
        let torn = ring.abandon_push(&pushed, 1, 4, |_, _| (), Step::Interior(2));
        assert_eq!(torn, Ok((0, 4)));
        assert_eq!(words(&ring), [Word::writing(0, 4, 1), Word::free(0), Word::full(0), Word::full(0)]);
        ring.recover_owner(1);
        assert_eq!(words(&ring), [Word::tomb(0); 4]);

        assert_eq!(ring.try_pop(&popped, 2, |_| ()), Err(PopError::Empty));
        assert_eq!(ring.try_push_batch(&pushed, 1, 4, |_, _| ()), Ok((4, 4)));
        assert_eq!(ring.abandon_pop(&popped, 2, 4, |_, _| (), Step::Interior(1)), Ok(4));
        assert_eq!(words(&ring), [Word::reading(1, 4, 2), Word::full(1), Word::full(1), Word::free(2)]);
        assert_eq!(ring.recover_owner(2), 4);
        assert_eq!(words(&ring), [Word::free(2); 4]);
    }
}
