//! Where things lie in an arena's body.
//!
//! ```text
//! 0          capacity u32, length of a block u32
//! 64         states    capacity words: epoch 63 | LIVE 1
//!            layouts   capacity words: the layout hash of the value in the block
//!            holders   16 × capacity words: word w of an object has the bits of participants 64 w .. 64 w + 63
//! page       blocks    capacity × length of a block
//! ```
//!
//! Holders lie word by word and not object by object: a sweep walks along one row, and few processes have an index so high
//! that the rows behind the first are looked at. The whole body has memory behind it from its creation on, so that using
//! a block cannot fail; for the smallest blocks the words take more than twice as much of it as the blocks.
#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use shm_core::portable::mix;
use shm_core::segment::{LANES, MAX_LANES, MAX_PARTICIPANTS};

/// The kind of an arena segment.
pub(super) const KIND: u32 = u32::from_le_bytes(*b"aren");
/// The lane that forks pass on; see `Segment::hold`.
pub(super) const FORKS: u32 = 0;
/// The lane of object 0.
const FIRST_LANE: u32 = LANES;

/// The shortest and the longest block.
const BLOCKS: std::ops::RangeInclusive<usize> = 64..=8192;
/// What a block is aligned to at most.
const PAGE: usize = 4096;
/// Where the words begin.
const WORDS_AT: usize = 64;
/// Rows of holder bits.
pub(super) const ROWS: usize = 16;
/// Words of an object: state, layout, holders.
const WORDS: usize = ROWS + 2;

/// Bytes of blocks in the first arena of a length, and objects at least.
const FIRST_BYTES: usize = 16 << 10;
const FIRST_OBJECTS: usize = 8;
/// Bytes of blocks in an arena at most.
const MOST_BYTES: usize = 4 << 20;

/// The shape of an arena: checked once, then private.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    capacity: u32,
    block_len: u32,
}

impl Geometry {
    /// The length of the blocks for values like this, if they are small enough.
    pub(super) fn block_len(len: usize, align: usize) -> Option<usize> {
        let block = len.max(align).max(*BLOCKS.start()).checked_next_power_of_two()?;
        (BLOCKS.contains(&block) && align <= PAGE).then_some(block)
    }

    /// A new arena for a process that has room for `total` objects of this length already: doubles it, within limits.
    pub(super) fn grown(total: usize, block_len: usize) -> Option<Self> {
        let least = FIRST_BYTES.checked_div(block_len)?.max(FIRST_OBJECTS);
        let most = MOST_BYTES.checked_div(block_len)?.max(least);
        Self::new(u32::try_from(total.clamp(least, most)).ok()?, u32::try_from(block_len).ok()?)
    }

    /// The shape that two numbers from shared memory describe, if it can be.
    pub(super) fn new(capacity: u32, block_len: u32) -> Option<Self> {
        let is_block = block_len.is_power_of_two() && BLOCKS.contains(&usize::try_from(block_len).ok()?);
        let is_capacity = capacity > 0 && capacity < MAX_LANES.checked_sub(FIRST_LANE)?;
        (is_block && is_capacity).then_some(Self { capacity, block_len })
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity as usize
    }

    pub(super) fn len_of_block(&self) -> usize {
        self.block_len as usize
    }

    /// The two numbers, as they stand in shared memory.
    pub(super) fn numbers(&self) -> [u32; 2] {
        [self.capacity, self.block_len]
    }

    /// Where states, layouts and holders begin: byte offsets in the body.
    pub(super) fn words(&self) -> [usize; 3] {
        let row = self.capacity().saturating_mul(8);
        [0, 1, 2].map(|n| row.saturating_mul(n).saturating_add(WORDS_AT))
    }

    /// Where the block of an object begins.
    pub(super) fn block(&self, object: usize) -> usize {
        debug_assert!(object < self.capacity(), "object {object} of {}", self.capacity);
        let before = self.len_of_block().saturating_mul(object);
        self.blocks().saturating_add(before)
    }

    fn blocks(&self) -> usize {
        let words = self.capacity().saturating_mul(WORDS).saturating_mul(8);
        words.saturating_add(WORDS_AT).checked_next_multiple_of(PAGE).unwrap_or(usize::MAX)
    }

    /// The length of the body.
    pub(super) fn body_len(&self) -> usize {
        self.blocks().saturating_add(self.capacity().saturating_mul(self.len_of_block()))
    }
}

/// What both sides must agree on about an arena's blocks.
pub(super) fn layout_hash(block_len: usize) -> u64 {
    mix(mix(u64::from(KIND), WORDS as u64), block_len as u64)
}

/// The lane of an object's tokens.
pub(super) fn lane(object: u32) -> u32 {
    FIRST_LANE.saturating_add(object)
}

/// The bits of every participant fit into the rows; lanes and words are enough for the most objects.
const _: () = {
    assert!(MAX_PARTICIPANTS as usize / 64 < ROWS);
    assert!(MOST_BYTES / 64 < (MAX_LANES - FIRST_LANE) as usize);
    assert!(WORDS_AT % 8 == 0 && FORKS < FIRST_LANE);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_as_long_and_as_aligned_as_its_value() {
        assert_eq!(Geometry::block_len(0, 1), Some(64));
        assert_eq!(Geometry::block_len(65, 8), Some(128));
        assert_eq!(Geometry::block_len(8, 4096), Some(4096));
        assert_eq!(Geometry::block_len(8192, 64), Some(8192));
        assert_eq!(Geometry::block_len(8193, 1), None);
        assert_eq!(Geometry::block_len(usize::MAX, 1), None);
    }

    #[test]
    fn arenas_double_up_to_a_limit() {
        let capacity =
            |total, block_len| Geometry::grown(total, block_len).map(|geometry| geometry.capacity());
        assert_eq!(capacity(0, 64), Some(256));
        assert_eq!(capacity(256, 64), Some(256));
        assert_eq!(capacity(512, 64), Some(512));
        assert_eq!(capacity(0, 8192), Some(8));
        assert_eq!(capacity(1 << 30, 8192), Some(512));
        assert_eq!(capacity(1 << 30, 64), Some(65536));
    }

    #[test]
    fn blocks_are_aligned_and_lie_behind_the_words_and_inside_the_body() {
        for block_len in (6..=13).map(|bits| 1_usize << bits) {
            let geometry = Geometry::grown(1000, block_len).expect("a length of blocks");
            let [_, _, holders] = geometry.words();
            let last = geometry.capacity() - 1;
            assert_eq!(geometry.block(0) % PAGE, 0);
            assert!(geometry.block(0) >= holders + ROWS * geometry.capacity() * 8);
            assert_eq!(geometry.block(last) + block_len, geometry.body_len());
        }
    }

    #[test]
    fn numbers_that_make_no_sense_are_refused() {
        for (capacity, block_len) in
            [(0, 64), (8, 0), (8, 65), (8, 32), (8, 16384), (u32::MAX, 64), (1 << 20, 64)]
        {
            assert_eq!(Geometry::new(capacity, block_len), None, "{capacity} × {block_len}");
        }
    }
}
