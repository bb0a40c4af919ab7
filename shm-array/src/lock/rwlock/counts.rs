//! How many readers each process has: one cell per participant, because a common count could not be repaired after a
//! death.
//!
//! # Memory
//!
//! ```text
//! used       the highest participant index that ever read, plus 1: how far a writer looks
//! cells      1024 of them, 64 lines:  cell of index i at (i % 64) * 16 + i / 64, so that the first 64 indices, the ones
//!            that are given out first, lie in different lines
//!
//! a cell:    bits 12..32  generation of the index   as in the owner's token; 0 = never used
//!            bits 0..12   readers                   of that process
//! ```
//!
//! A process whose generation is in its cell changes the cell with read-modify-writes of all its threads; a cell with another
//! generation counts as zero for the present holder of the index, which overwrites it. Before it does so for the first time,
//! it raises `used`: a writer that looks less far than that has announced itself first, and the reader will see that.
//!
//! # If a process dies
//!
//! Its cell keeps its generation and what it held. A writer that waits for the cell asks the oracle and zeroes it, with a
//! compare-and-swap from the exact value; so does, by overwriting it, the next process with that index.

use shm_core::crash_point;
use shm_core::owner::Owner;
use shm_core::sync::{AtomicU32, Ordering, ordering};
use std::cell::Cell;

/// Bits of a cell that count.
const COUNT_BITS: u32 = 12;
/// The most readers of one process at a time.
pub(crate) const MAX_READERS: u32 = (1 << COUNT_BITS) - 1;

/// One cell for each participant index, and for memory that no segment holds.
#[cfg(not(loom))]
const CELLS: usize = 1024;
/// A model has few processes.
#[cfg(loom)]
const CELLS: usize = 4;

/// See the [module](self).
#[derive(Debug)]
#[cfg_attr(not(loom), repr(C, align(64)))]
pub(super) struct Counts {
    cells: [AtomicU32; CELLS],
}

/// The part of the counts that lies beside the writer's word.
#[derive(Debug)]
#[cfg_attr(not(loom), repr(transparent))]
pub(super) struct Used(AtomicU32);

impl Used {
    const_in_memory! {
        /// Nobody has read.
        pub(super) fn new() -> Self {
            Self(AtomicU32::new(0))
        }
    }
}

/// The place of an index among the cells.
const fn place(index: u16) -> usize {
    let index = index as usize % CELLS;
    if cfg!(loom) { index } else { (index % 64) * 16 + index / 64 }
}

/// The reader count in a cell, whoever raised it.
const fn readers(cell: u32) -> u32 {
    cell & MAX_READERS
}

const fn generation(cell: u32) -> u32 {
    cell >> COUNT_BITS
}

impl Counts {
    /// No readers.
    #[cfg(not(loom))]
    pub(super) const fn new() -> Self {
        Self { cells: [const { AtomicU32::new(0) }; CELLS] }
    }

    /// No readers.
    #[cfg(loom)]
    pub(super) fn new() -> Self {
        Self { cells: std::array::from_fn(|_| AtomicU32::new(0)) }
    }

    /// Counts one reader more of the process `me`; `false` when it has [`MAX_READERS`] already.
    #[inline(always)]
    pub(super) fn raise(&self, used: &Used, me: Owner) -> bool {
        let cell = &self.cells[place(me.index())];
        // Relaxed: compared by the swap.
        let seen = cell.load(Ordering::Relaxed);
        let is_usual = generation(seen) == me.generation() && readers(seen) < MAX_READERS;
        // SYNC rwlock-look: SeqCst, before the look at the writer's word; pairs with the claim of that word. Acquire is
        // of no use here: what protects the data is read from the word.
        is_usual && cell.compare_exchange(seen, seen + 1, Ordering::SeqCst, Ordering::Relaxed).is_ok()
            || self.raise_slow(used, me)
    }

    #[cold]
    fn raise_slow(&self, used: &Used, me: Owner) -> bool {
        let cell = &self.cells[place(me.index())];
        let mut seen = cell.load(Ordering::Relaxed);
        loop {
            let next = if generation(seen) != me.generation() {
                // SYNC rwlock-look: before the cell, so that a writer that has not seen it has announced itself.
                used.0.fetch_max(u32::from(me.index()) + 1, Ordering::SeqCst);
                crash_point!("rwlock.read.announced");
                me.generation() << COUNT_BITS | 1
            } else if readers(seen) == MAX_READERS {
                return false;
            } else {
                seen + 1
            };
            match cell.compare_exchange(seen, next, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
    }

    /// Counts one reader less of the process `me`, which has raised before.
    #[inline(always)]
    pub(super) fn lower(&self, me: Owner) {
        // SYNC rwlock-drain: everything read happens before the writer that finds the count at zero writes; pairs with
        // `are_zero`. SeqCst: before the look whether a writer waits.
        self.cells[place(me.index())].fetch_sub(1, ordering("rwlock.lower", Ordering::SeqCst));
    }

    /// Looks at the counts from `next` on, and leaves it at the first that is not zero. `true` when none is left. What was
    /// seen at zero by a writer whose word is up stays without readers inside.
    pub(super) fn are_zero(&self, used: &Used, next: &Cell<u16>) -> bool {
        while let Some((cell, _)) = self.at(used, next.get()) {
            // SYNC rwlock-drain: pairs with `lower`.
            if readers(cell.load(ordering("rwlock.drain", Ordering::SeqCst))) > 0 {
                return false;
            }
            next.set(next.get() + 1);
        }
        true
    }

    /// Zeroes the count at `next` if its process is dead.
    pub(super) fn forget_dead(&self, used: &Used, next: &Cell<u16>) {
        let Some((cell, index)) = self.at(used, next.get()) else {
            return;
        };
        // Relaxed: compared by the swap.
        let seen = cell.load(Ordering::Relaxed);
        let owner = Owner::from_bits(u32::from(index) << (Owner::BITS - 10) | generation(seen));
        // A generation that no process has is nobody's.
        if readers(seen) > 0 && owner.is_none_or(|owner| owner.is_dead(self)) {
            crash_point!("rwlock.write.forgetting");
            // Relaxed: `are_zero` looks again.
            let _ = cell.compare_exchange(seen, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// How many readers there are, of dead processes too. May be stale at once.
    pub(super) fn total(&self, used: &Used) -> u32 {
        // Relaxed: for people.
        (0..)
            .map_while(|index| self.at(used, index))
            .map(|(cell, _)| readers(cell.load(Ordering::Relaxed)))
            .sum()
    }

    fn at(&self, used: &Used, index: u16) -> Option<(&AtomicU32, u16)> {
        // SYNC rwlock-look: SeqCst, after the claim of the word. Whatever another process writes there, it is a limit only.
        let used = used.0.load(Ordering::SeqCst) as usize;
        (usize::from(index) < used.min(CELLS)).then(|| (&self.cells[place(index)], index))
    }
}
