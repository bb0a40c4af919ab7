//! The body of a queue's segment.
//!
//! ```text
//! 0      geometry    capacity, payload bytes of a slot, chunks and their length, cells and their length: written once, before
//!                    anybody else can attach
//! 128    gone        which sides nobody holds any more, whether the queue is closed; the epoch of handles that travelled;
//!                    whether leased messages came back
//! 256    not_empty   where receivers sleep
//! 384    not_full    where senders sleep
//! 512    freed       where senders sleep that wait for chunks; how often some were freed; pages with memory behind them
//! 640    drained     where senders sleep that wait until every message is acknowledged
//! 768    counts      per participant: how many senders and receivers its process holds, and how many messages with
//!                    handles it has in hand
//! 13056  ring        slots
//! ...    cells       of at-least-once queues: see `lease/store.rs`
//! ...    tables      per chunk: word, tag, how many of its first pages have memory behind them
//! ...    chunks      page-aligned; memory is put behind them when they are used
//! ```
//!
//! Lines that different parties write lie 128 bytes apart: processors fetch cache lines in pairs.
#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use crate::cells::Notice;
use crate::chunks::MAX_CHUNKS;
use crate::closing::Flags;
use crate::lease::StorePlace;
use crate::ring::Layout;
use shm_core::segment::MAX_PARTICIPANTS;
use shm_core::sync::{AtomicU32, AtomicU64, Ordering};
use shm_core::wait::WaitLine;
use std::mem::offset_of;

/// What a segment of this crate says it is.
pub(crate) const KIND: u32 = u32::from_le_bytes(*b"ipcq");
/// Changes whenever bodies of old and new programs would misunderstand each other.
pub(crate) const VERSION: u64 = 5;
/// Where the ring starts in the body.
pub(crate) const RING_START: usize = size_of::<Control>();

/// A hash of numbers that both sides must agree on (FNV-1a over their bytes).
pub(crate) const fn hash(numbers: &[u64]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut rest = numbers;
    while let [number, others @ ..] = rest {
        let mut bits = *number;
        let mut byte = 0_u8;
        while byte < 8 {
            hash = (hash ^ (bits & 0xff)).wrapping_mul(0x100_0000_01b3);
            bits >>= 8;
            byte = byte.saturating_add(1);
        }
        rest = others;
    }
    hash
}

/// What a page of memory is, for chunks: a power of two.
pub(crate) const PAGE: usize = 4096;
/// The shortest chunk.
const MIN_CHUNK: usize = 64 << 10;
/// How many chunks a budget is cut into, if they are not the shortest.
const CHUNKS: usize = 4096;

/// Where the chunks of a queue lie: offsets in its body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placement {
    pub(crate) count: usize,
    pub(crate) chunk_len: usize,
    /// Words, then tags, then counts of pages.
    pub(crate) tables: usize,
    pub(crate) chunks: usize,
    pub(crate) end: usize,
}

impl Placement {
    /// Chunks of at least such a length for so many bytes, behind a ring that ends at `ring_end`; `None` if they do not fit
    /// into an address space.
    pub(crate) fn for_budget(ring_end: usize, budget: usize, chunk_len: usize) -> Option<Self> {
        let share = budget.div_ceil(CHUNKS).checked_next_power_of_two()?;
        let chunk_len = share.max(chunk_len.checked_next_power_of_two()?).max(MIN_CHUNK);
        Self::new(ring_end, budget.div_ceil(chunk_len), chunk_len)
    }

    /// So many chunks of such a length; `None` if they do not fit into an address space, or are not as anybody makes them.
    pub(crate) fn new(ring_end: usize, count: usize, chunk_len: usize) -> Option<Self> {
        if !chunk_len.is_power_of_two() || chunk_len < MIN_CHUNK || count >= MAX_CHUNKS {
            return None;
        }
        let tables = ring_end.checked_next_multiple_of(128)?;
        let entries = count.checked_mul(size_of::<[u64; 2]>().checked_add(size_of::<u32>())?)?;
        let tables_end = tables.checked_add(entries)?;
        // A queue without chunks ends with its ring.
        let chunks = if count == 0 { ring_end } else { tables_end.checked_next_multiple_of(PAGE)? };
        let end = chunks.checked_add(count.checked_mul(chunk_len)?)?;
        Some(Self { count, chunk_len, tables, chunks, end })
    }

    /// All bytes of all chunks.
    pub(crate) fn len_bytes(&self) -> usize {
        self.end.saturating_sub(self.chunks)
    }
}

/// One of the two ends of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Sender = 0,
    Receiver = 1,
}

impl Side {
    /// The lane of the segment in which handles of this side travel.
    pub(crate) fn lane(self) -> u8 {
        self as u8
    }

    /// The bit in [`Flags`].
    pub(crate) fn bit(self) -> u32 {
        match self {
            Self::Sender => 1,
            Self::Receiver => 2,
        }
    }

    pub(crate) fn other(self) -> Self {
        match self {
            Self::Sender => Self::Receiver,
            Self::Receiver => Self::Sender,
        }
    }
}

/// Everything before the ring. All zero bytes are a valid, empty control block.
#[derive(Debug)]
#[repr(C, align(128))]
pub(crate) struct Control {
    capacity: AtomicU64,
    payload_len: AtomicU64,
    chunks: AtomicU64,
    chunk_len: AtomicU64,
    cells: AtomicU64,
    cell_len: AtomicU64,
    gone: Line<Gone>,
    pub(crate) not_empty: Line<WaitLine>,
    pub(crate) not_full: Line<WaitLine>,
    pub(crate) freed: Line<Freed>,
    pub(crate) drained: Line<WaitLine>,
    counts: [Counts; MAX_PARTICIPANTS as usize + 1],
}

/// A value with a pair of cache lines of its own.
#[derive(Debug)]
#[repr(C, align(128))]
pub(crate) struct Line<T>(pub(crate) T);

#[derive(Debug)]
#[repr(C)]
struct Gone {
    /// Bits of the sides that are gone, and whether the queue is closed.
    flags: Flags,
    /// Counts the steps of travelling handles, so that a scan notices that one moved behind its back.
    epoch: AtomicU64,
    /// Whether leased messages may have come back.
    returned: Notice,
}

/// The waiting for chunks.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Freed {
    /// Where senders sleep that found too few.
    pub(crate) line: WaitLine,
    /// Steps whenever some were freed, so that whoever polls need not look at all of them.
    pub(crate) count: AtomicU32,
    /// Pages of all chunks that have memory behind them: about, because processes die between doing and counting.
    pub(crate) resident: AtomicU64,
    /// Behind the last chunk that was claimed since somebody looked at what lies idle.
    pub(crate) high: AtomicU64,
    /// When that was, in microseconds of the system's monotonic clock.
    pub(crate) looked: AtomicU64,
}

/// What one participant's process holds.
#[derive(Debug)]
#[repr(C)]
struct Counts {
    /// Handles of each side.
    sides: [AtomicU32; 2],
    /// See [`Control::in_hand`].
    in_hand: AtomicU32,
}

impl Control {
    /// Writes the geometry; for the creator, before anybody else can see the segment.
    pub(crate) fn set_geometry(&self, layout: &Layout) {
        // Relaxed: the segment's publication orders it.
        self.capacity.store(layout.capacity() as u64, Ordering::Relaxed);
        self.payload_len.store(layout.payload_len() as u64, Ordering::Relaxed);
    }

    /// Writes number and length of the chunks, likewise. Without it there are none.
    pub(crate) fn set_chunk_geometry(&self, chunks: &Placement) {
        // Relaxed: as above.
        self.chunks.store(chunks.count as u64, Ordering::Relaxed);
        self.chunk_len.store(chunks.chunk_len as u64, Ordering::Relaxed);
    }

    /// Capacity and payload length as shared memory has them: unchecked, to be read once.
    pub(crate) fn geometry(&self) -> (u64, u64) {
        // Relaxed: written before the segment was published.
        (self.capacity.load(Ordering::Relaxed), self.payload_len.load(Ordering::Relaxed))
    }

    /// Number and length of the chunks, likewise.
    pub(crate) fn chunk_geometry(&self) -> (u64, u64) {
        // Relaxed: as above.
        (self.chunks.load(Ordering::Relaxed), self.chunk_len.load(Ordering::Relaxed))
    }

    /// Writes number and payload length of the cells, likewise. Without it there are none.
    pub(crate) fn set_cell_geometry(&self, cells: &StorePlace) {
        // Relaxed: as above.
        self.cells.store(cells.count as u64, Ordering::Relaxed);
        self.cell_len.store(cells.payload_len as u64, Ordering::Relaxed);
    }

    /// Number and payload length of the cells, likewise.
    pub(crate) fn cell_geometry(&self) -> (u64, u64) {
        // Relaxed: as above.
        (self.cells.load(Ordering::Relaxed), self.cell_len.load(Ordering::Relaxed))
    }

    /// Some leased messages came back: tells receivers to look, and wakes one. If there are more, that one wakes the next.
    pub(crate) fn note_returned(&self) {
        self.returned().put_up();
        self.not_empty.0.notify(1);
    }

    /// Whether leased messages may have come back.
    #[inline(always)]
    pub(crate) fn returned(&self) -> &Notice {
        &self.gone.0.returned
    }

    /// Wakes everybody who sleeps on this side.
    pub(crate) fn wake_all(&self, side: Side) {
        self.sleeps(side).notify_all();
        if side == Side::Sender {
            self.freed.0.line.notify_all();
            self.drained.0.notify_all();
        }
    }

    /// Some chunks were freed: wakes whoever waits for some, all of them, because they want different numbers.
    #[inline]
    pub(crate) fn note_freed(&self) {
        // SYNC chunk-count: behind the words; pairs with the look in `End::claim_run`. Before the look at the sleepers.
        self.freed.0.count.fetch_add(1, Ordering::Release);
        self.freed.0.line.notify_all();
    }

    /// Whether nobody holds this side any more, as far as anybody has found out.
    #[inline(always)]
    pub(crate) fn is_gone(&self, side: Side) -> bool {
        // Whoever sees the bit sees every message of that side.
        self.gone.0.flags.has(side.bit())
    }

    pub(crate) fn set_gone(&self, side: Side) {
        self.gone.0.flags.set(side.bit());
    }

    #[inline(always)]
    pub(crate) fn flags(&self) -> &Flags {
        &self.gone.0.flags
    }

    /// Whether the queue is closed, or the side opposite to `side` is gone, as far as anybody has found out.
    #[inline(always)]
    pub(crate) fn has_ended_for(&self, side: Side) -> bool {
        self.gone.0.flags.has_or_closed(side.other().bit())
    }

    pub(crate) fn epoch(&self) -> u64 {
        // SeqCst: the double collect of `disconnect` needs one order of epochs and counts.
        self.gone.0.epoch.load(Ordering::SeqCst)
    }

    pub(crate) fn advance_epoch(&self) {
        // SeqCst: as above.
        self.gone.0.epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// The number of handles of `side` that the participant's process holds.
    pub(crate) fn count(&self, participant: u16, side: Side) -> &AtomicU32 {
        let entry = self.counts.get(usize::from(participant.min(MAX_PARTICIPANTS)));
        let [senders, receivers] = &entry.expect("the index was just bounded").sides;
        match side {
            Side::Sender => senders,
            Side::Receiver => receivers,
        }
    }

    /// How many messages with handles the participant's process has taken whose handles it is still fetching.
    pub(crate) fn in_hand(&self, participant: u16) -> &AtomicU32 {
        let entry = self.counts.get(usize::from(participant.min(MAX_PARTICIPANTS)));
        &entry.expect("the index was just bounded").in_hand
    }

    /// The line on which handles of `side` sleep.
    #[inline(always)]
    pub(crate) fn sleeps(&self, side: Side) -> &WaitLine {
        match side {
            Side::Sender => &self.not_full.0,
            Side::Receiver => &self.not_empty.0,
        }
    }
}

const _: () = {
    assert!(offset_of!(Control, gone) == 128);
    assert!(offset_of!(Control, not_empty) == 256);
    assert!(offset_of!(Control, not_full) == 384);
    assert!(offset_of!(Control, freed) == 512);
    assert!(offset_of!(Control, drained) == 640);
    assert!(offset_of!(Control, counts) == 768);
    assert!(RING_START == 13056 && RING_START % 64 == 0);
};
