//! The shared part of an arena: states and holders of its objects. See [`super`] for the protocol.
#![allow(unsafe_code)]
//! # Safety
//!
//! The slices cover words inside the body, whose length was compared with the geometry; all processes access them as
//! atomics only. Every index is checked by the slice.

use super::layout::{FORKS, Geometry, ROWS, lane};
use crate::error::{Error, Kind};
use shm_core::segment::Segment;
use shm_core::sync::{AtomicU32, AtomicU64, Ordering};
use std::ptr::NonNull;

/// The value in the block may be in use.
const LIVE: u64 = 1;
/// One step of the epoch.
const EPOCH: u64 = 2;

/// The objects of an arena, while its segment is attached.
#[derive(Clone, Copy)]
pub(super) struct Objects<'s> {
    segment: &'s Segment,
    capacity: usize,
    states: &'s [AtomicU64],
    layouts: &'s [AtomicU64],
    holders: &'s [AtomicU64],
}

/// Writes the numbers that [`geometry`] reads into a new body.
pub(super) fn write_geometry(body: NonNull<u8>, geometry: Geometry) {
    // SAFETY: the body is page-aligned and longer than this; atomics.
    let words = unsafe { body.cast::<[AtomicU32; 2]>().as_ref() };
    for (word, number) in words.iter().zip(geometry.numbers()) {
        // Relaxed: the segment is published with a system call behind it.
        word.store(number, Ordering::Relaxed);
    }
}

/// The shape of a segment's arena, if it can be one.
pub(super) fn geometry(segment: &Segment) -> Option<Geometry> {
    if segment.body_len() < 8 {
        return None;
    }
    // SAFETY: inside the body, page-aligned; atomics.
    let [capacity, block_len] = unsafe { segment.body().cast::<[AtomicU32; 2]>().as_ref() };
    // Relaxed: written before the segment was published.
    let geometry = Geometry::new(capacity.load(Ordering::Relaxed), block_len.load(Ordering::Relaxed))?;
    (geometry.body_len() <= segment.body_len()).then_some(geometry)
}

impl<'s> Objects<'s> {
    /// The objects of an attached segment whose geometry this is. In a forked child only after `Segment::ensure`.
    pub(super) fn of(segment: &'s Segment, geometry: Geometry) -> Self {
        assert!(geometry.body_len() <= segment.body_len(), "an arena fits into its segment");
        let capacity = geometry.capacity();
        let slice = |offset: usize, len: usize| {
            // SAFETY: `len` words at `offset` lie before the blocks, and those inside the body, as was asserted; aligned
            // to words, accessed as atomics only, mapped as long as the segment is borrowed.
            unsafe {
                std::slice::from_raw_parts(segment.body().add(offset).cast::<AtomicU64>().as_ptr(), len)
            }
        };
        let [states, layouts, holders] = geometry.words();
        Self {
            segment,
            capacity,
            states: slice(states, capacity),
            layouts: slice(layouts, capacity),
            holders: slice(holders, capacity * ROWS),
        }
    }

    pub(super) fn is_live(&self, object: usize) -> bool {
        // SYNC freed: Acquire, so that whoever fills a freed block again comes after everybody who used it; pairs with
        // the swap in `try_free`.
        self.states[object].load(Ordering::Acquire) & LIVE != 0
    }

    /// What the value was said to be when it was written.
    pub(super) fn layout(&self, object: usize) -> u64 {
        // Relaxed: written before the object became live, which the caller has seen.
        self.layouts[object].load(Ordering::Relaxed)
    }

    fn holder(&self, participant: u16, object: usize) -> (&'s AtomicU64, u64) {
        let row = usize::from(participant) / 64;
        (&self.holders[row * self.capacity + object], 1 << (participant % 64))
    }

    /// FREE => LIVE, held by this process. The block and nobody's eyes on it are the caller's.
    pub(super) fn bring_to_life(&self, object: usize, layout: u64) {
        // Relaxed: the store of the state publishes it.
        self.layouts[object].store(layout, Ordering::Relaxed);
        self.mark(object);
        shm_core::crash_point!("arena.place.marked");
        let state = &self.states[object];
        // Nobody else writes the state of a free object.
        let next = (state.load(Ordering::Relaxed) & !LIVE).wrapping_add(EPOCH) | LIVE;
        // SYNC object: Release, so that whoever finds it live finds the value; pairs with `step`.
        state.store(next, Ordering::SeqCst);
    }

    fn mark(&self, object: usize) {
        let (word, bit) = self.holder(self.segment.participant(), object);
        word.fetch_or(bit, Ordering::SeqCst);
    }

    /// Takes the bit of this process back. Behind everything that it did with the value.
    pub(super) fn unmark(&self, object: usize) {
        let (word, bit) = self.holder(self.segment.participant(), object);
        word.fetch_and(!bit, Ordering::SeqCst);
    }

    /// Makes this process a holder of an object that something keeps alive meanwhile: a token, or a fork in flight.
    ///
    /// # Errors
    ///
    /// If it was not alive.
    pub(super) fn arrive(&self, object: usize) -> Result<(), Error> {
        self.mark(object);
        shm_core::crash_point!("arena.arrive.marked");
        let stepped = self.step(object);
        if stepped.is_err() {
            self.unmark(object);
        }
        shm_core::crash_point!("arena.arrive.stepped");
        stepped
    }

    /// Steps the epoch, so that scans in progress begin again.
    fn step(&self, object: usize) -> Result<(), Error> {
        let live = |state: u64| (state & LIVE != 0).then_some(state.wrapping_add(EPOCH));
        // SYNC object: Acquire, pairs with `bring_to_life`. SeqCst: see the head of `arena`.
        let stepped = self.states[object].fetch_update(Ordering::SeqCst, Ordering::SeqCst, live);
        stepped.map(drop).map_err(|_| Kind::Corrupt { what: "the state of a shared value" }.into())
    }

    /// The rows that have bits, so far as participants ever attached.
    fn rows(&self) -> std::ops::Range<usize> {
        0..ROWS.min(usize::from(self.segment.participants()) / 64 + 1)
    }

    fn row(&self, row: usize, object: usize) -> u64 {
        self.holders[row * self.capacity + object].load(Ordering::SeqCst)
    }

    /// Whether anybody is marked as a holder: the living, and the dead that nobody swept yet.
    fn is_marked(&self, object: usize) -> bool {
        self.rows().any(|row| self.row(row, object) != 0)
    }

    /// LIVE => FREE, if nobody has the object any more. One attempt is enough: what spoils it is somebody who frees it, or
    /// who has it now and will try when it lets go.
    pub(super) fn try_free(&self, object: usize) -> bool {
        let state = &self.states[object];
        let seen = state.load(Ordering::SeqCst);
        if seen & LIVE == 0 {
            return false;
        }
        let lane = lane(u32::try_from(object).expect("objects are counted in 20 bits"));
        if self.is_marked(object) || self.segment.in_flight(lane) || self.segment.in_flight(FORKS) {
            return false;
        }
        shm_core::crash_point!("arena.free.proven");
        // SYNC freed: Release, pairs with `is_live`.
        let free = seen.wrapping_add(EPOCH) & !LIVE;
        state.compare_exchange(seen, free, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Clears the marks of a participant that is proven dead. What only it had is free for whoever looks.
    pub(super) fn sweep(&self, dead: u16) {
        for object in 0..self.capacity {
            let (word, bit) = self.holder(dead, object);
            // Relaxed: the dead one's marks came before its death, which is proven.
            if word.load(Ordering::Relaxed) & bit != 0 {
                word.fetch_and(!bit, Ordering::SeqCst);
                shm_core::crash_point!("arena.sweep.unmarked");
            }
        }
    }
}
