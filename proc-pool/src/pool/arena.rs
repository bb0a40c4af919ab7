//! Space for arguments and results that do not fit into a cell: blocks of a shared mapping.
//!
//! Only the parent hands blocks out and takes them back, and what it knows about them lies in its own memory. A
//! worker follows the numbers in its cell. So no death can damage the arena, and a block comes back when the
//! parent has dealt with the piece that used it.
//!
//! Five sizes, 4 KiB to 1 MiB. Memory is put behind a block when it is first handed out, so that running out of it is
//! `None` here (the value then travels as a memory file of its own) and not a fault in a worker.

use super::cell::append;
use shm_core::SegmentError;
use shm_core::mapping::SharedMapping;
use std::os::fd::OwnedFd;

/// The unit of places and sizes.
pub(super) const PAGE: usize = 4096;
/// Pages of each size of block.
const SIZES: [u32; 5] = [1, 4, 16, 64, 256];
/// The largest block, in bytes.
pub(super) const LARGEST: usize = PAGE * 256;
/// Address space of the arena, in bytes; memory is committed as it is needed.
const LEN: u64 = 256 << 20;

/// A block: where it starts, in pages, and which size it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) page: u32,
    size: u8,
}

impl Block {
    /// Its length in bytes.
    pub(super) fn len(&self) -> usize {
        SIZES[usize::from(self.size)] as usize * PAGE
    }

    /// The offset of its first byte in the arena.
    pub(super) fn offset(&self) -> usize {
        self.page as usize * PAGE
    }
}

/// The parent's side.
#[derive(Debug)]
pub(super) struct Arena {
    mapping: std::sync::Arc<SharedMapping>,
    /// Blocks that came back, by size.
    free: [Vec<u32>; SIZES.len()],
    /// Pages from here on were never handed out.
    next: u32,
    pages: u32,
}

impl Arena {
    /// An arena without memory yet.
    pub(super) fn create() -> Result<Self, SegmentError> {
        let mapping = SharedMapping::create("arena", LEN, 0)?;
        Ok(Self {
            mapping: std::sync::Arc::new(mapping),
            free: Default::default(),
            next: 0,
            pages: u32::try_from(LEN / PAGE as u64).expect("the arena is smaller than 16 TiB"),
        })
    }

    /// The memory.
    pub(super) fn mapping(&self) -> &std::sync::Arc<SharedMapping> {
        &self.mapping
    }

    /// A descriptor of the memory, for a worker.
    pub(super) fn descriptor(&self) -> std::io::Result<OwnedFd> {
        self.mapping.descriptor().try_clone_to_owned()
    }

    /// A block of at least `len` bytes; `None` if `len` is too large for one or space or memory has run out.
    pub(super) fn alloc(&mut self, len: usize) -> Option<Block> {
        let size = SIZES.iter().position(|&pages| len <= pages as usize * PAGE)?;
        let small = u8::try_from(size).expect("there are five sizes");
        if let Some(page) = self.free[size].pop() {
            return Some(Block { page, size: small });
        }
        let (page, end) = (self.next, self.next.checked_add(SIZES[size])?);
        if end > self.pages {
            return None;
        }
        let block = Block { page, size: small };
        self.mapping.commit(block.offset() as u64, block.len() as u64).ok()?;
        self.next = end;
        Some(block)
    }

    /// Copies bytes into a block; they must fit.
    pub(super) fn write(&self, block: Block, bytes: &[u8]) {
        assert!(bytes.len() <= block.len());
        // SAFETY: the block lies inside the mapping, is long enough, and is the parent's until a cell names it.
        #[allow(unsafe_code, reason = "a plain copy into shared memory")]
        unsafe {
            self.mapping()
                .base()
                .add(block.offset())
                .as_ptr()
                .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
    }

    /// Appends the first bytes of a block to `to`; `len` is clamped to the block.
    pub(super) fn read(&self, block: Block, len: usize, to: &mut Vec<u8>) {
        // SAFETY: the block lies inside the mapping; what another process may be writing is copied, not borrowed.
        #[allow(unsafe_code, reason = "a plain copy out of shared memory")]
        unsafe {
            append(self.mapping().base().add(block.offset()), len.min(block.len()), to);
        }
    }

    /// Takes a block back.
    pub(super) fn free(&mut self, block: Block) {
        self.free[usize::from(block.size)].push(block.page);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_large_enough_and_the_next_one_elsewhere() {
        let mut arena = Arena::create().expect("address space");
        let blocks: Vec<Block> =
            [1, 4096, 4097, 70_000, LARGEST].map(|len| arena.alloc(len).expect("space")).into();
        for (block, len) in blocks.iter().zip([1, 4096, 4097, 70_000, LARGEST]) {
            assert!(block.len() >= len);
        }
        for pair in blocks.windows(2) {
            assert!(pair[0].offset() + pair[0].len() <= pair[1].offset());
        }
        assert_eq!(arena.alloc(LARGEST + 1), None);
    }

    #[test]
    fn a_block_that_came_back_is_used_again() {
        let mut arena = Arena::create().expect("address space");
        let block = arena.alloc(5000).expect("space");
        arena.free(block);
        assert_eq!(arena.alloc(9000), Some(block));
    }
}
