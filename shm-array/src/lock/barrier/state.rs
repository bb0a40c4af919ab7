//! The words of a barrier: where its round stands, and who has arrived.

use shm_core::owner::Owner;

/// The phase: parties arrive, or wait while one of them runs the action.
const FILLING: u64 = 0;
/// All have arrived: they leave, and the next round begins when they have.
const PASSED: u64 = 1 << 30;
/// Somebody has reset the barrier: whoever waited leaves with an error.
const RESET: u64 = 2 << 30;
const PHASE: u64 = 3 << 30;

/// In the leader's place: the round, or the one after a round that has ended, is broken.
const BROKEN: u64 = 1;
const LEADER: u64 = Owner::MASK as u64;

const ROUND_SHIFT: u32 = 32;

const _: () = assert!(PHASE & LEADER == 0 && BROKEN < Owner::LOCAL as u64);

/// Where the barrier stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct State(pub(super) u64);

/// What a party in a round makes of the state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    /// Parties arrive.
    Open,
    /// All have arrived, and this process runs the action.
    Acting(Owner),
    /// All have arrived, and leave.
    Passed,
    /// Nobody passes.
    Broken,
    /// Another round: it has arrived too late for its own.
    Over,
}

impl State {
    /// The first round; cells begin in round 0.
    pub(super) const FIRST: Self = Self(1 << ROUND_SHIFT | FILLING);

    #[allow(clippy::cast_possible_truncation, reason = "the upper half")]
    pub(super) const fn round(self) -> u32 {
        (self.0 >> ROUND_SHIFT) as u32
    }

    fn of(round: u32, phase: u64, field: u64) -> Self {
        Self(u64::from(round) << ROUND_SHIFT | phase | field)
    }

    fn phase(self) -> u64 {
        self.0 & PHASE
    }

    #[allow(clippy::cast_possible_truncation, reason = "30 bits")]
    fn leader(self) -> Option<Owner> {
        Owner::from_bits((self.0 & LEADER) as u32)
    }

    pub(super) fn is_broken(self) -> bool {
        self.0 & LEADER == BROKEN
    }

    /// The round has ended, and its parties leave.
    pub(super) fn is_draining(self) -> bool {
        self.phase() == PASSED || self.phase() == RESET
    }

    pub(super) fn standing(self, round: u32) -> Standing {
        match self.phase() {
            _ if self.round() != round => Standing::Over,
            PASSED => Standing::Passed,
            RESET => Standing::Broken,
            _ if self.is_broken() => Standing::Broken,
            _ => self.leader().map_or(Standing::Open, Standing::Acting),
        }
    }

    /// All have arrived, and `leader` runs the action.
    pub(super) fn acting(self, leader: Owner) -> Self {
        Self::of(self.round(), FILLING, leader.bits().into())
    }

    /// All have arrived.
    pub(super) fn passed(self) -> Self {
        Self::of(self.round(), PASSED, 0)
    }

    /// Nobody passes any more. A round that has ended is not touched: what comes after it is broken.
    pub(super) fn broken(self) -> Self {
        Self::of(self.round(), self.phase(), BROKEN)
    }

    /// As new, when whoever waits has left.
    pub(super) fn reset(self) -> Self {
        if self.is_draining() {
            let field = if self.is_broken() { 0 } else { self.0 & LEADER };
            Self::of(self.round(), self.phase(), field)
        } else {
            Self::of(self.round(), RESET, 0)
        }
    }

    /// The next round, when everybody has left this one.
    pub(super) fn next(self) -> Self {
        let field = if self.is_broken() { BROKEN } else { 0 };
        Self::of(self.round().wrapping_add(1), FILLING, field)
    }
}

/// A party's cell: the round in which it was last taken, and by whom; free without an owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Seat(pub(super) u64);

impl Seat {
    pub(super) fn taken(round: u32, owner: Owner) -> Self {
        Self(u64::from(round) << ROUND_SHIFT | u64::from(owner.bits()))
    }

    #[allow(clippy::cast_possible_truncation, reason = "the upper half")]
    pub(super) const fn round(self) -> u32 {
        (self.0 >> ROUND_SHIFT) as u32
    }

    pub(super) const fn is_free(self) -> bool {
        self.0 & LEADER == 0
    }

    /// The same without an owner: nobody takes it in this round again.
    pub(super) const fn freed(self) -> Self {
        Self(self.0 & !(PHASE | LEADER))
    }

    /// The owner; what no process writes has none.
    #[allow(clippy::cast_possible_truncation, reason = "30 bits")]
    pub(super) fn owner(self) -> Option<Owner> {
        Owner::from_bits((self.0 & LEADER) as u32)
    }
}
