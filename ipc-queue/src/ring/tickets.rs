//! Ticket arithmetic: which slot and lap a ticket has, and how far a laggard may jump.

use super::error::Claim;
use super::word::{LAST_LAP, State, Word};

/// A number that is no larger than a capacity or a span.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "at most 2^20")]
pub(super) const fn small(value: u64) -> usize {
    value as usize
}

/// The arithmetic of a ring of one capacity.
///
/// `ticket div capacity` is a multiplication: for a capacity of `2^(l-1) < C <= 2^l` and tickets below `2^63`,
/// `floor(t / C) = floor(t·m / 2^(63+l))` with `m = ceil(2^(63+l) / C)`, which fits 64 bits
/// (Granlund and Montgomery, *Division by Invariant Integers using Multiplication*, 1994, theorem 4.2).
#[derive(Clone, Copy, Debug)]
pub(super) struct Tickets {
    capacity: u64,
    reciprocal: u64,
    shift: u32,
    /// The first ticket that must not be used.
    end: u64,
}

impl Tickets {
    pub(super) fn new(capacity: usize) -> Tickets {
        let capacity = capacity as u64;
        let shift = capacity.next_power_of_two().trailing_zeros();
        let reciprocal = (1u128 << (63 + shift)).div_ceil(u128::from(capacity));
        Tickets {
            capacity,
            reciprocal: u64::try_from(reciprocal).expect("at most 2^64 - 1, as the type's doc says"),
            shift,
            end: (1 << 63).min((LAST_LAP + 1).saturating_mul(capacity)),
        }
    }

    #[inline(always)]
    pub(super) fn capacity(&self) -> usize {
        small(self.capacity)
    }

    /// Lap and slot index of a ticket; nothing if the tickets are used up.
    #[inline(always)]
    pub(super) fn locate(&self, ticket: u64) -> Option<(u64, usize)> {
        if ticket >= self.end {
            return None;
        }
        let high = ((u128::from(ticket << 1) * u128::from(self.reciprocal)) >> 64) as u64;
        let lap = high >> self.shift;
        Some((lap, small(ticket - lap * self.capacity)))
    }

    /// The next ticket worth trying for a producer that saw `seen`, of lap `lap` or later, in the slot of `ticket`.
    ///
    /// Lap `seen.lap()` of this slot was taken, or the one before it if the slot is FREE.
    #[inline]
    pub(super) fn after_taken(&self, ticket: u64, lap: u64, seen: Word) -> u64 {
        let taken = seen.lap() - u64::from(seen.state() == State::FREE && seen.lap() > lap);
        self.jump(ticket, taken - lap, seen.span())
    }

    /// The next ticket worth trying for a consumer that saw `seen`, READING of `lap` or of a later lap, in the slot
    /// of `ticket`.
    ///
    /// Lap `seen.lap()` of this slot was consumed only if it is READING, otherwise the one before it.
    #[inline]
    pub(super) fn after_consumed(&self, ticket: u64, lap: u64, seen: Word) -> u64 {
        if seen.state() == State::READING {
            self.jump(ticket, seen.lap() - lap, seen.span())
        } else {
            self.jump(ticket, seen.lap() - lap - 1, 1)
        }
    }

    /// Saturates: only a corrupt word leads beyond the last ticket.
    #[inline(always)]
    fn jump(&self, ticket: u64, laps: u64, span: u64) -> u64 {
        ticket.saturating_add(laps.saturating_mul(self.capacity)).saturating_add(span)
    }

    /// The claim that `seen` in slot `index` stands for, if somebody holds it.
    #[inline]
    pub(super) fn claim(&self, index: usize, seen: Word) -> Option<Claim> {
        let ticket = || seen.lap().saturating_mul(self.capacity).saturating_add(index as u64);
        seen.is_claimed().then(|| Claim { ticket: ticket(), word: seen })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn multiplying_by_the_reciprocal_divides() {
        for capacity in [1, 2, 3, 5, 7, 64, 100, 1000, 1 << 19, (1 << 20) - 1, 1 << 20] {
            let tickets = Tickets::new(capacity);
            let c = capacity as u64;
            let near = |t: u64| (t.saturating_sub(2)..=t.saturating_add(2)).collect::<Vec<_>>();
            let samples = [0, c, 7 * c, tickets.end / 3, tickets.end / c * c, tickets.end - 1];
            for t in samples.into_iter().flat_map(near).filter(|t| *t < tickets.end) {
                assert_eq!(tickets.locate(t), Some((t / c, small(t % c))), "ticket {t} of {c} slots");
            }
            assert_eq!(tickets.locate(tickets.end), None);
        }
    }
}
