//! Owners: the token that whoever takes a resource writes into it, in the same compare-and-swap that takes it.
//!
//! ```text
//! bits 0..20   generation, never 0     how often the participant index was taken (modulo 2^20, 0 left out)
//! bits 20..30  participant index       0 = this process alone: memory that no segment holds
//! ```
//!
//! A token names one attachment of one process. It is never zero, and as long as an index is not attached a million
//! times in the life of one token it is never used twice, so a word that holds it can be compared and swapped without
//! fear of another holder of the same index. A freed index is taken first (see `registry`), so that indices stay low; a
//! process that does nothing but attach and detach needs some ten seconds at least to come around. A confusion takes more
//! than that: a thread that has read the token of a dead process out of a word, and is held up for the whole circle
//! between that and its compare-and-swap; and just then a holder of the same number in the same word. Markers of a lock's own (free, out of use) are the 30-bit values below
//! [`Owner::LOCAL`] with index 0.
//!
//! [`Owner::here`] finds the token of this process for the memory at an address: in a thread-local cache, or in the
//! process's table of attachments. [`Owner::is_dead`] asks the segment's death oracle.

use std::fmt;
use std::num::NonZeroU32;

#[cfg(loom)]
pub mod model;
#[cfg(not(loom))]
mod native;

/// Bits of the generation.
const GENERATION_BITS: u32 = 20;
const GENERATION_MASK: u32 = (1 << GENERATION_BITS) - 1;

/// The token of one process's attachment to one segment; fits into [`Owner::BITS`] bits and is never zero.
///
/// # Across processes
///
/// Every process that maps the memory can tell from it who holds the resource, and whether it is alive.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Owner(NonZeroU32);

impl Owner {
    /// How many bits of a word a token needs.
    pub const BITS: u32 = 30;
    /// The bits of a word that a token needs.
    pub const MASK: u32 = (1 << Self::BITS) - 1;
    /// The token of a process for memory that it does not share. Values below it are no tokens.
    pub const LOCAL: u32 = GENERATION_MASK;

    /// The token in a word, if there is one: not free, and not a marker.
    pub const fn from_bits(bits: u32) -> Option<Self> {
        let bits = bits & Self::MASK;
        match NonZeroU32::new(bits) {
            Some(token) if bits >= Self::LOCAL && bits & GENERATION_MASK != 0 => Some(Self(token)),
            _ => None,
        }
    }

    /// The token as it stands in a word.
    #[inline(always)]
    pub const fn bits(self) -> u32 {
        self.0.get()
    }

    /// The participant index; 0 for memory that is not shared.
    #[inline(always)]
    pub const fn index(self) -> u16 {
        Self::index_of(self.0.get())
    }

    /// The participant index in the bits of a token; 0 if there is none.
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "10 bits are left")]
    pub(crate) const fn index_of(bits: u32) -> u16 {
        (bits >> GENERATION_BITS) as u16
    }

    /// The generation of the index, as far as the token keeps it.
    pub const fn generation(self) -> u32 {
        self.0.get() & GENERATION_MASK
    }

    /// The token that the index had before. Where this one is alive, that one is dead.
    pub const fn predecessor(self) -> Self {
        let index = (self.index() as u32) << GENERATION_BITS;
        match Self::from_bits(index | (self.generation() - 1)) {
            Some(before) => before,
            // The circle has no zero.
            None => Self(match NonZeroU32::new(index | GENERATION_MASK) {
                Some(before) => before,
                None => panic!("not zero"),
            }),
        }
    }

    /// The token of a participant index and its generation.
    #[allow(clippy::cast_possible_truncation, reason = "the remainder has 20 bits")]
    pub(crate) const fn new(index: u16, generation: u64) -> Self {
        // 1 to 2^20 - 1 in a circle: never zero.
        let generation = (generation % GENERATION_MASK as u64) as u32 + 1;
        match Self::from_bits(((index as u32) << GENERATION_BITS) | generation) {
            Some(owner) if index > 0 => owner,
            _ => Self::local(),
        }
    }

    const fn local() -> Self {
        match NonZeroU32::new(Self::LOCAL) {
            Some(token) => Self(token),
            None => panic!("not zero"),
        }
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.index() == 0 {
            return f.write_str("Owner(local)");
        }
        write!(f, "Owner({} in its generation {})", self.index(), self.generation())
    }
}
