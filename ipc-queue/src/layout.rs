//! The body of a queue's segment.
//!
//! ```text
//! 0      geometry    capacity, payload bytes of a slot     written once, before anybody else can attach
//! 128    gone        which sides nobody holds any more; the epoch of handles that travelled
//! 256    not_empty   where receivers sleep
//! 384    not_full    where senders sleep
//! 512    counts      per participant: how many senders and receivers its process holds, and how many messages with
//!                    handles it has in hand
//! 12800  ring        slots
//! ```
//!
//! Lines that different parties write lie 128 bytes apart: processors fetch cache lines in pairs.
#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use crate::ring::Layout;
use shm_core::segment::MAX_PARTICIPANTS;
use shm_core::sync::{AtomicU32, AtomicU64, Ordering};
use shm_core::wait::WaitLine;
use std::mem::offset_of;

/// What a segment of this crate says it is.
pub(crate) const KIND: u32 = u32::from_le_bytes(*b"ipcq");
/// Changes whenever bodies of old and new programs would misunderstand each other.
pub(crate) const VERSION: u64 = 2;
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

    /// The bit in [`Control::gone`].
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
    gone: Line<Gone>,
    pub(crate) not_empty: Line<WaitLine>,
    pub(crate) not_full: Line<WaitLine>,
    counts: [Counts; MAX_PARTICIPANTS as usize + 1],
}

/// A value with a pair of cache lines of its own.
#[derive(Debug)]
#[repr(C, align(128))]
pub(crate) struct Line<T>(pub(crate) T);

#[derive(Debug)]
#[repr(C)]
struct Gone {
    /// Bits of the sides that are gone. Sticky.
    sides: AtomicU32,
    /// Counts the steps of travelling handles, so that a scan notices that one moved behind its back.
    epoch: AtomicU64,
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

    /// Capacity and payload length as shared memory has them: unchecked, to be read once.
    pub(crate) fn geometry(&self) -> (u64, u64) {
        // Relaxed: written before the segment was published.
        (self.capacity.load(Ordering::Relaxed), self.payload_len.load(Ordering::Relaxed))
    }

    /// Whether nobody holds this side any more, as far as anybody has found out.
    #[inline(always)]
    pub(crate) fn is_gone(&self, side: Side) -> bool {
        // SYNC side-gone: pairs with `set_gone`. Whoever sees the bit sees every message of that side.
        self.gone.0.sides.load(Ordering::Acquire) & side.bit() != 0
    }

    pub(crate) fn set_gone(&self, side: Side) {
        // SYNC side-gone: the scan saw the counts fall (Acquire), so it passes on all that came before.
        self.gone.0.sides.fetch_or(side.bit(), Ordering::AcqRel);
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
    assert!(offset_of!(Control, counts) == 512);
    assert!(RING_START == 12800 && RING_START % 64 == 0);
};
