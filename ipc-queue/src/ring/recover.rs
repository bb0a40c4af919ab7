//! Repair of what a dead participant held, and looks at a ring that take nothing.

use super::tickets::small;
use super::word::{State, Word};
use super::{Claim, Cursor, PopError, PushError, Ring};
use shm_core::crash_point;
use shm_core::sync::Ordering::{Acquire, Relaxed, Release};
use shm_core::sync::ordering;

impl Ring<'_> {
    /// Repairs a claim whose owner was proven dead *after* the claim was read. Returns how many messages died with a
    /// consumer; a producer's unfinished messages were never sent. Does nothing if the claim is gone.
    ///
    /// Any number of participants may recover at once, and one that dies in here is made good by the next; the
    /// messages of one claim are counted once, unless a recoverer dies after the repair and before it returns.
    ///
    /// The proof of death must synchronise with everything that the dead owner did (a kernel lock that fell with
    /// it does, and so does joining a thread).
    pub fn recover(&self, claim: Claim) -> usize {
        let Claim { ticket, word } = claim;
        let Some((lap, header)) = self.tickets.locate(ticket) else {
            return 0;
        };
        // The owner may have finished between the reading of the claim and its death: then the slots are not ours.
        // Relaxed: the proof of death lets us see the owner's last word.
        if !word.is_claimed() || word.lap() != lap || self.look(header, Relaxed) != word {
            return 0;
        }
        crash_point!("ring.recover.started");
        // Only a corrupt word spans more than the ring.
        let span = word.span().min(self.tickets.capacity() as u64);
        for i in word.interior().skip_while(|i| *i >= span) {
            if let Some((lap, index)) = self.tickets.locate(ticket + i) {
                self.recover_interior(word.state(), lap, index);
                crash_point!("ring.recover.interior");
            }
        }
        // WRITING => TOMB, READING => FREE of the next lap
        let writing = word.state() == State::WRITING;
        let next = if writing { Word::tomb(lap) } else { Word::free(lap + 1) };
        // SYNC slot-free: pairs with the looks in `claim_free` and `claim_full`; carries on what the proof of death
        // has let us see of the owner's use of the payload.
        let order = ordering("ring.recover.header", Release);
        let ours = self.swap(header, word, next, order);
        crash_point!("ring.recover.header");
        if ours && !writing { small(span) } else { 0 }
    }

    /// FREE or FULL of the claim's own lap => TOMB, or FULL => FREE of the next lap for a claim READING.
    ///
    /// A word of that lap never comes back, so a late recoverer finds nothing to replace.
    fn recover_interior(&self, held: State, lap: u64, index: usize) {
        loop {
            let seen = self.look(index, Relaxed);
            let next = if held == State::READING && seen == Word::full(lap) {
                Word::free(lap + 1)
            } else if held == State::WRITING && (seen == Word::free(lap) || seen == Word::full(lap)) {
                Word::tomb(lap)
            } else {
                return;
            };
            // SYNC slot-free: as for the header; a laggard may land here without having read it.
            let order = ordering("ring.recover.interior", Release);
            if self.swap(index, seen, next, order) {
                return;
            }
        }
    }

    /// Repairs everything that participant `dead`, proven dead, holds. Looks at every slot. Returns how many
    /// messages died with it, as [`Ring::recover`].
    pub fn recover_owner(&self, dead: u16) -> usize {
        (0..self.capacity())
            .filter_map(|index| self.tickets.claim(index, self.look(index, Relaxed)))
            .filter(|claim| claim.owner() == dead)
            .map(|claim| self.recover(claim))
            .sum()
    }

    /// Whether the message of `ticket` was taken and its slot freed, or buried with its producer. Once true, true
    /// for ever, and everything that the consumer's `read` did has happened before.
    #[inline]
    pub fn is_released(&self, ticket: u64) -> bool {
        let Some((lap, index)) = self.tickets.locate(ticket) else {
            return false;
        };
        // SYNC slot-free: pairs with the store in `release`.
        let seen = self.look(index, ordering("ring.released", Acquire));
        seen.lap() > lap || seen == Word::tomb(lap)
    }

    /// The first ticket, as far as seen, that no producer has claimed. Moves the cursor there. May be stale at once.
    pub fn tail(&self, cursor: &Cursor) -> u64 {
        self.seek(cursor, |ticket, lap, seen| {
            let taken = seen.lap() >= lap && seen != Word::free(lap);
            taken.then(|| self.tickets.after_taken(ticket, lap, seen))
        })
    }

    /// The first ticket, as far as seen, that no consumer has claimed. Moves the cursor there. May be stale at once.
    pub fn head(&self, cursor: &Cursor) -> u64 {
        self.seek(cursor, |ticket, lap, seen| self.past_consumed(ticket, lap, seen))
    }

    /// How many tickets are claimed by producers and not by consumers: messages, messages being written, and what
    /// dead producers left. At most the capacity. May be stale at once.
    pub fn len(&self, pushed: &Cursor, popped: &Cursor) -> usize {
        // The head first: it can only grow, so it never passes a tail that is read later.
        let head = self.head(popped);
        let len = self.tail(pushed).saturating_sub(head);
        small(len.min(self.capacity() as u64))
    }

    /// Whether no ticket is claimed by a producer and not by a consumer, as [`Ring::len`].
    pub fn is_empty(&self, pushed: &Cursor, popped: &Cursor) -> bool {
        self.len(pushed, popped) == 0
    }

    /// Whether a pop from this cursor would find a message. Takes nothing. May be stale at once.
    pub fn is_ready(&self, popped: &Cursor) -> bool {
        self.peek(popped).is_ok()
    }

    /// What a pop from this cursor would say, without taking anything. May be stale at once.
    ///
    /// # Errors
    ///
    /// As [`Ring::try_pop`].
    pub fn peek(&self, popped: &Cursor) -> Result<(), PopError> {
        let mut ticket = self.head(popped);
        loop {
            let Some((lap, index)) = self.tickets.locate(ticket) else {
                return Err(PopError::Exhausted);
            };
            // SYNC slot-ready, slot-free: as in `claim_full`.
            let seen = self.look(index, ordering("ring.pop.look", Acquire));
            if seen == Word::full(lap) {
                return Ok(());
            } else if let Some(next) = self.past_consumed(ticket, lap, seen) {
                ticket = next;
            } else if seen == Word::tomb(lap) {
                ticket += 1;
            } else {
                return Err(match self.tickets.claim(index, seen) {
                    Some(claim) => PopError::Claimed(claim),
                    None => PopError::Empty,
                });
            }
        }
    }

    /// What a push from this cursor would say, without claiming anything. May be stale at once.
    ///
    /// # Errors
    ///
    /// As [`Ring::try_push`].
    pub fn peek_room(&self, pushed: &Cursor) -> Result<(), PushError> {
        let Some((lap, index)) = self.tickets.locate(self.tail(pushed)) else {
            return Err(PushError::Exhausted);
        };
        // SYNC slot-free, slot-ready: as in `claim_free`.
        let seen = self.look(index, ordering("ring.push.look", Acquire));
        // Of its lap: free, or taken in this moment, so that there was room. A tomb of the lap before makes room too.
        if seen.lap() >= lap || seen == Word::tomb(lap - 1) {
            return Ok(());
        }
        Err(match self.tickets.claim(index, seen) {
            Some(claim) => PushError::Claimed(claim),
            None => PushError::Full,
        })
    }

    /// Where a consumer goes on that saw `seen` in the slot of `ticket`, if that was consumed.
    fn past_consumed(&self, ticket: u64, lap: u64, seen: Word) -> Option<u64> {
        let consumed = seen.lap() > lap || (seen.lap() == lap && seen.state() == State::READING);
        consumed.then(|| self.tickets.after_consumed(ticket, lap, seen))
    }

    /// Moves the cursor to the first ticket for which `past` has no next one.
    fn seek(&self, cursor: &Cursor, past: impl Fn(u64, u64, Word) -> Option<u64>) -> u64 {
        let start = cursor.ticket();
        let mut ticket = start;
        while let Some((lap, index)) = self.tickets.locate(ticket) {
            // SYNC slot-ready, slot-free: as in `claim_full`.
            let seen = self.look(index, ordering("ring.pop.look", Acquire));
            match past(ticket, lap, seen) {
                Some(next) => ticket = next,
                None => break,
            }
        }
        if ticket != start {
            cursor.set(ticket);
        }
        ticket
    }
}
