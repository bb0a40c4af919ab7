//! The slot word: who may touch a slot, and in which lap.
//!
//! ```text
//! bit  63 ........ 19  18 .... 13  12 ..... 3  2 ... 0
//!      lap (45)        span-1 (6)  owner (10)  state (3)
//! ```
//!
//! | state   | means                                              | next                                    |
//! |---------|----------------------------------------------------|-----------------------------------------|
//! | FREE    | ticket `lap·C + index` may be claimed by a producer | WRITING                                 |
//! | WRITING | `owner` writes `span` slots from here               | FULL; TOMB if the owner died            |
//! | FULL    | holds a message                                    | READING                                 |
//! | READING | `owner` copies `span` messages out from here        | FREE of the next lap, also by recovery  |
//! | TOMB    | was claimed by a producer that died                 | FREE of the next lap                    |
//!
//! FREE, FULL and TOMB carry span 1 and no owner. A word never comes back: laps only grow, and within a lap
//! states only advance. So a compare-and-swap on a word that was read cannot mistake one claim for another.

/// Bits of the lap number.
const LAP_BITS: u32 = 45;
const SPAN_SHIFT: u32 = 13;
const OWNER_SHIFT: u32 = 3;
const LAP_SHIFT: u32 = 64 - LAP_BITS;
const SPAN_MASK: u64 = 0x3f;
const OWNER_MASK: u64 = 0x3ff;
const STATE_MASK: u64 = 0x7;

/// The last lap whose tickets may be claimed: its slots are freed into the lap after it, which must exist.
pub(super) const LAST_LAP: u64 = (1 << LAP_BITS) - 2;

/// What a slot is used for. Other values of the three bits are not written by anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State(u64);

impl State {
    pub(super) const FREE: State = State(0);
    pub(super) const WRITING: State = State(1);
    pub(super) const FULL: State = State(2);
    pub(super) const READING: State = State(3);
    pub(super) const TOMB: State = State(4);
}

/// The word of one slot. All zero bits are `free(0)`, so zeroed memory is an empty ring.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Word(pub(super) u64);

impl Word {
    #[inline(always)]
    const fn plain(lap: u64, state: State) -> Word {
        Word(lap << LAP_SHIFT | state.0)
    }

    #[inline(always)]
    pub(super) const fn free(lap: u64) -> Word {
        Word::plain(lap, State::FREE)
    }

    #[inline(always)]
    pub(super) const fn full(lap: u64) -> Word {
        Word::plain(lap, State::FULL)
    }

    #[inline(always)]
    pub(super) const fn tomb(lap: u64) -> Word {
        Word::plain(lap, State::TOMB)
    }

    #[inline(always)]
    pub(super) fn writing(lap: u64, span: u64, owner: u16) -> Word {
        Word(Word::plain(lap, State::WRITING).0 | Word::holder(span, owner))
    }

    #[inline(always)]
    pub(super) fn reading(lap: u64, span: u64, owner: u16) -> Word {
        Word(Word::plain(lap, State::READING).0 | Word::holder(span, owner))
    }

    #[inline(always)]
    fn holder(span: u64, owner: u16) -> u64 {
        debug_assert!((1..=SPAN_MASK + 1).contains(&span), "span {span} out of 1..=64");
        debug_assert!(u64::from(owner) <= OWNER_MASK, "participant {owner} above 1023");
        (span - 1) << SPAN_SHIFT | (u64::from(owner) & OWNER_MASK) << OWNER_SHIFT
    }

    #[inline(always)]
    pub(super) const fn lap(self) -> u64 {
        self.0 >> LAP_SHIFT
    }

    /// How many tickets the holder of this word has claimed; 1 for a word without a holder.
    #[inline(always)]
    pub(super) const fn span(self) -> u64 {
        (self.0 >> SPAN_SHIFT & SPAN_MASK) + 1
    }

    /// The tickets of a batch behind its header, in the order in which they are published, freed and recovered:
    /// from last to first.
    #[inline(always)]
    pub(super) fn interior(self) -> impl Iterator<Item = u64> {
        (1..self.span()).rev()
    }

    #[inline(always)]
    pub(super) const fn owner(self) -> u16 {
        (self.0 >> OWNER_SHIFT & OWNER_MASK) as u16
    }

    #[inline(always)]
    pub(super) const fn state(self) -> State {
        State(self.0 & STATE_MASK)
    }

    /// Whether somebody holds the slot: the only words that a death leaves behind.
    #[inline(always)]
    pub(super) fn is_claimed(self) -> bool {
        matches!(self.state(), State::WRITING | State::READING)
    }
}

impl std::fmt::Debug for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self.state() {
            State::FREE => "FREE",
            State::WRITING => "WRITING",
            State::FULL => "FULL",
            State::READING => "READING",
            State::TOMB => "TOMB",
            _ => "CORRUPT",
        };
        write!(f, "{name}(lap {}", self.lap())?;
        if self.is_claimed() {
            write!(f, ", span {}, owner {}", self.span(), self.owner())?;
        }
        f.write_str(")")
    }
}
