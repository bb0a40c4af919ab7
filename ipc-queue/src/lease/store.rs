//! Where the cells of an at-least-once queue lie, and their memory as one process has it mapped.
//!
//! ```text
//! tables   per cell: word, tag
//! memory   per cell: room for a message as a slot has it, in whole cache lines
//! ```
//!
//! # Safety
//!
//! * Number, length and place of the cells are read from shared memory once, checked against the mapping, and kept.
//! * The memory of a cell is written by its owner between claim and `queue` only, and read by whoever has it on lease.
#![allow(unsafe_code)]

use crate::bulk::Reference;
use crate::cells::{Cell, Cells, MAX_CELLS, Place};
use crate::codec::Format;
use crate::end::{End, Miss};
use crate::layout::{Control, Side};
use crate::ring::{Cursor, MAX_PAYLOAD, PopError, Ring};
use shm_core::sync::AtomicU64;
use std::ptr::NonNull;

/// What a cell's memory is a multiple of.
const CELL_ALIGN: usize = 64;

/// Where the cells of a queue lie: offsets in its body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StorePlace {
    pub(crate) count: usize,
    /// Bytes of a message in a cell, as a slot would have them.
    pub(crate) payload_len: usize,
    tables: usize,
    memory: usize,
    pub(crate) end: usize,
}

impl StorePlace {
    /// So many cells behind a ring that ends at `ring_end`; `None` if they do not fit into an address space, or are not as
    /// anybody makes them. Without cells it ends where the ring ends.
    pub(crate) fn new(ring_end: usize, count: usize, payload_len: usize) -> Option<Self> {
        if count == 0 {
            return Some(Self { count, payload_len, tables: ring_end, memory: ring_end, end: ring_end });
        }
        if count > MAX_CELLS || !(1..=MAX_PAYLOAD).contains(&payload_len) {
            return None;
        }
        let tables = ring_end.checked_next_multiple_of(CELL_ALIGN)?;
        let tables_end = tables.checked_add(count.checked_mul(size_of::<[u64; 2]>())?)?;
        let memory = tables_end.checked_next_multiple_of(CELL_ALIGN)?;
        let end = memory.checked_add(count.checked_mul(payload_len.next_multiple_of(CELL_ALIGN))?)?;
        Some(Self { count, payload_len, tables, memory, end })
    }
}

/// The cells of a queue in this process's mapping.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Store {
    body: NonNull<u8>,
    place: StorePlace,
}

// SAFETY: the tables are atomics, and the mapping may be used by every thread; the memory of a cell by those who may.
unsafe impl Send for Store {}
// SAFETY: as above.
unsafe impl Sync for Store {}

impl Store {
    /// `place` lies inside of the body, whose mapping outlives the result.
    pub(crate) fn new(body: NonNull<u8>, place: StorePlace) -> Self {
        Self { body, place }
    }

    pub(crate) fn payload_len(&self) -> usize {
        self.place.payload_len
    }

    /// How many cells there are; touches no shared memory.
    pub(crate) fn count(&self) -> usize {
        self.place.count
    }

    #[inline]
    pub(crate) fn cells(&self) -> Cells<'_> {
        let count = self.place.count;
        // SAFETY: the tables lie inside of the mapping, aligned; they are accessed as atomics in every process; `new`'s caller
        // keeps the mapping, and users have passed `End::check`.
        unsafe {
            let words = self.body.add(self.place.tables).cast::<AtomicU64>();
            let tags = words.add(count);
            Cells::new(
                std::slice::from_raw_parts(words.as_ptr(), count),
                std::slice::from_raw_parts(tags.as_ptr(), count),
            )
        }
    }

    /// The memory of a cell: `payload_len` bytes, aligned to a cache line.
    #[inline]
    pub(crate) fn memory(&self, cell: &Cell) -> *mut u8 {
        let offset = self.place.memory + cell.index() * self.place.payload_len.next_multiple_of(CELL_ALIGN);
        // SAFETY: a cell's index is below the count, and all cells lie inside of the mapping.
        unsafe { self.body.add(offset).as_ptr() }
    }
}

/// The messages. Callers pass what was encoded for this queue, and messages with room for what it holds.
impl Store {
    /// Puts a message into a cell that is the caller's.
    pub(super) fn write<T, C: Format<T>>(&self, cell: &Cell, message: &C::Staged<'_>) {
        // SAFETY: the cell is the caller's to write, and has the payload that the queue's limit comes from.
        unsafe { C::store(message, self.memory(cell)) };
    }

    /// Says in a cell that is the caller's where its message lies.
    pub(super) fn refer(&self, cell: &Cell, reference: Reference) {
        // SAFETY: as above; the payload of a queue with chunks has room for a reference.
        unsafe { reference.store(self.memory(cell), 0) };
    }

    /// Copies a message out of a cell that the caller has on lease.
    pub(super) fn load<T, C: Format<T>>(&self, cell: &Cell, message: &mut C::Message, limit: usize) {
        // SAFETY: nobody writes the cell while it is on lease, and it has the payload that the limit comes from.
        unsafe { C::load(message, self.memory(cell), limit) };
    }

    /// Passes a cell to the ring; `cell` is empty after success.
    #[inline]
    pub(super) fn push(&self, end: &End, cell: &mut Option<Cell>) -> Result<u64, Miss> {
        end.try_push_open(|ticket, slot| {
            if let Some(cell) = cell.take() {
                let bits = cell.place().bits();
                self.cells().queue(cell, ticket);
                // SAFETY: the slot is claimed for writing, aligned to 8 bytes, and has `SLOT_BYTES`.
                unsafe { slot.cast::<u64>().write(bits) };
            }
        })
    }

    /// Takes the next cell from the ring; `None` in it if its slot refers to none.
    #[inline]
    pub(super) fn pop(&self, ring: &Ring<'_>, cursor: &Cursor, me: u16) -> Result<Option<Cell>, PopError> {
        ring.try_pop(cursor, me, |slot| {
            // SAFETY: the slot is claimed for reading, aligned to 8 bytes, and has `SLOT_BYTES`.
            let bits = unsafe { slot.cast::<u64>().read() };
            self.cells().take(me, Place::from_bits(bits))
        })
    }
}

/// Cleans up after a dead participant whose slots are recovered already. Every step may be repeated.
pub(crate) fn sweep(store: &Store, ring: &Ring<'_>, control: &Control, dead: u16) {
    store.cells().sweep(dead);
    shm_core::crash_point!("queue.sweep.cells");
    store.cells().collect(|ticket| ring.is_released(ticket));
    // In any case: the dead one may have given something back, or taken the notice of it, or freed a cell, and not come further.
    control.note_returned();
    control.wake_all(Side::Receiver);
    control.note_freed();
    control.drained.0.notify_all();
}
