//! What one side of a ring knows to be its own, until it must look at the other side's index again.

use super::Spot;

/// Messages that are there, or free slots: `ticket .. until`, for the side's own index `ticket`.
///
/// Nothing in here changes with a message, so an operation writes no private memory: stores are what the rate of short
/// messages depends on.
#[derive(Debug)]
pub(crate) struct Reach {
    /// The number of the message that lies in slot 0 in this lap.
    origin: u64,
    /// The first slot of this lap that is not known to be this side's; at most the capacity.
    end: u64,
    /// The number of the first message that is not known to be this side's.
    until: u64,
    capacity: u64,
    /// How much the last look found.
    found: usize,
}

impl Reach {
    /// Nothing is known yet.
    pub(super) fn new(capacity: usize) -> Self {
        Self { origin: 0, end: 0, until: 0, capacity: capacity as u64, found: 0 }
    }

    /// Where the message of `ticket` belongs, if the slot is known to be this side's. A slot is below the capacity,
    /// whatever `ticket` is.
    #[inline(always)]
    pub(super) fn spot(&self, ticket: u64) -> Option<Spot> {
        let slot = ticket.wrapping_sub(self.origin);
        if slot < self.end { Some(Spot { ticket, slot: small(slot) }) } else { None }
    }

    /// Whether a slot of this lap is this side's as well.
    #[inline(always)]
    pub(super) fn holds(&self, slot: usize) -> bool {
        (slot as u64) < self.end
    }

    /// How many messages from `ticket` on are this side's, as far as it knows.
    #[inline]
    pub(crate) fn left(&self, ticket: u64) -> usize {
        // More than the capacity only if somebody scribbles on the indices.
        let left = self.until.wrapping_sub(ticket);
        if left <= self.capacity { small(left) } else { 0 }
    }

    /// Goes on in the lap of `ticket`, if something is left there. Whether there is.
    pub(super) fn turn(&mut self, ticket: u64) -> bool {
        let left = self.left(ticket);
        let slot = ticket % self.capacity;
        self.origin = ticket.wrapping_sub(slot);
        self.end = slot.saturating_add(left as u64).min(self.capacity);
        left > 0
    }

    /// Notes what a look has found: `count` messages from `ticket` on are this side's.
    pub(super) fn extend(&mut self, ticket: u64, count: usize) {
        self.found = count;
        self.until = ticket.wrapping_add(count as u64);
        self.turn(ticket);
    }

    /// How much the last look found.
    pub(crate) fn found(&self) -> usize {
        self.found
    }
}

/// A number that is no larger than a capacity.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "at most 2^20")]
fn small(value: u64) -> usize {
    value as usize
}
