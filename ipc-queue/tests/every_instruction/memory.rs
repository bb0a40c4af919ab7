//! The memory of a queue, as anybody sees who maps it.
#![allow(unsafe_code, reason = "looks at shared memory as bytes")]
#![allow(dead_code, reason = "each test binary uses its part")]

use memmap2::MmapRaw;
use rustix::fs::{SeekFrom, seek};
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Where the registry of a segment has its words (see `shm_core::registry`), and how many it has before the first entry.
const REGISTRY: usize = 4096;
const BEFORE_ENTRIES: usize = 8;
const ENTRIES: usize = 1024;

/// A segment, mapped by no participant.
pub(crate) struct Memory {
    file: File,
    map: MmapRaw,
    /// What it was at the last look: the parts that anybody has ever written, which are few in a queue with room for large
    /// messages.
    seen: Contents,
    now: Contents,
}

#[derive(Default, PartialEq, Eq)]
struct Contents {
    parts: Vec<Range<usize>>,
    bytes: Vec<u8>,
}

impl Memory {
    /// The memory that a descriptor leads to which came with a handle.
    pub(crate) fn of(descriptor: BorrowedFd<'_>) -> Self {
        // Another description of the file: that one says that a handle is on its way.
        let path = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
        let file = File::options().read(true).write(true).open(path).expect("procfs");
        let map = MmapRaw::map_raw(&file).expect("mapped");
        let mut memory = Self { file, map, seen: Contents::default(), now: Contents::default() };
        memory.has_changed();
        memory
    }

    /// Whether any byte is different from what it was at the last look.
    pub(crate) fn has_changed(&mut self) -> bool {
        self.look();
        let has_changed = self.now != self.seen;
        std::mem::swap(&mut self.now, &mut self.seen);
        has_changed
    }

    fn look(&mut self) {
        let Contents { parts, bytes } = &mut self.now;
        parts.clear();
        bytes.clear();
        let seek = |to| seek(&self.file, to).map(|at| usize::try_from(at).expect("in memory"));
        let mut end = 0;
        while let Ok(start) = seek(SeekFrom::Data(end as u64)) {
            end = seek(SeekFrom::Hole(start as u64)).expect("the end is a hole");
            let before = bytes.len();
            bytes.resize(before + end - start, 0);
            // SAFETY: inside the mapping, and as long as what was just added. Whoever writes it is stopped.
            unsafe {
                self.map.as_ptr().add(start).copy_to_nonoverlapping(bytes[before..].as_mut_ptr(), end - start)
            };
            parts.push(start..end);
        }
    }

    /// How much memory lies behind it.
    pub(crate) fn blocks(&self) -> i64 {
        rustix::fs::fstat(&self.file).expect("a file").st_blocks
    }

    fn word(&self, index: usize) -> u64 {
        // SAFETY: inside the mapping, whose registry is aligned words. Whoever writes it is stopped.
        unsafe { self.map.as_ptr().add(REGISTRY + index * 8).cast::<u64>().read_volatile() }
    }

    /// How many participants are attached, or dead and not swept.
    pub(crate) fn attached(&self) -> usize {
        (1..ENTRIES).filter(|index| self.word(BEFORE_ENTRIES + index) & 1 != 0).count()
    }

    /// How often this index was taken.
    pub(crate) fn generation(&self, index: usize) -> u64 {
        self.word(BEFORE_ENTRIES + index) >> 1
    }

    /// The highest participant index that was ever taken.
    pub(crate) fn highest_participant(&self) -> u64 {
        self.word(1)
    }

    /// Lets the next participant look for an index from this one on.
    pub(crate) fn hint_at(&self, index: u64) {
        // SAFETY: as in `word`; the hint may be any number.
        unsafe { self.map.as_mut_ptr().add(REGISTRY).cast::<u64>().write_volatile(index - 1) };
    }
}
