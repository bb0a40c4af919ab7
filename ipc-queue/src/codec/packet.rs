//! A message of bytes outside of its slot.
//!
//! ```text
//! slot    prefix u32: length | flags; bytes ...
//! ```
//!
//! Most messages are short, have no handles and do not wait: they lie in the packet itself, on the stack. What any other
//! needs is in an [`Extra`] behind a pointer, so that making and dropping a packet costs one word. A thread keeps an
//! `Extra` with its memory for its next packet.
//!
//! # Safety
//!
//! The first `min(len, INLINE)` bytes of `inline` are initialised where the packet has no bytes on the heap: [`Filler`]
//! counts what it has written, `load` what it has copied, whatever the prefix says. A filler's room is either `inline` or spare capacity of the
//! vector, of which nothing else gets hold before [`Filler::finish`].
#![allow(unsafe_code)]

use super::Limits;
use crate::bulk::{Bulky, LARGE, PREFIX, Reference};
use shm_core::broker::Deposit;
use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

/// In the prefix, beside the length: the message ends with a claim. A length alone is never so large.
const HANDLES: u32 = 1 << 31;
/// What is not length in the prefix.
const FLAGS: u32 = HANDLES | LARGE;
/// Up to so many bytes of a message lie on the stack.
const INLINE: usize = 256;
/// The longest vector that a thread keeps.
const KEPT: usize = 64 << 10;

/// A message of bytes on its way into a slot, or out of it.
#[derive(Debug)]
pub struct Packet {
    /// Bytes of the message: of one to be sent, all, also if it is too long to be kept; of one that was taken, those that are
    /// here.
    len: usize,
    /// Of a message that was taken: as read from the slot, unchecked.
    prefix: u32,
    /// Of a message that was taken: the chunks in which it lies. Not in `extra`: nothing is allocated while a slot is claimed.
    bulky: Option<Bulky>,
    extra: Option<Box<Extra>>,
    inline: [MaybeUninit<u8>; INLINE],
}

/// What a message has that is not short and simple.
#[derive(Debug, Default)]
struct Extra {
    /// The bytes, if they are not in the packet.
    heap: Vec<u8>,
    /// All bytes of a message that is being filled and is longer than any may be.
    lost: usize,
    /// Of a message to be sent: what belongs to the claim at its end.
    deposit: Option<Deposit>,
}

thread_local! {
    static SPARE: Cell<Option<Box<Extra>>> = const { Cell::new(None) };
}

impl Extra {
    #[cold]
    fn get() -> Box<Self> {
        SPARE.try_with(Cell::take).ok().flatten().unwrap_or_default()
    }

    /// Keeps it for the thread's next packet.
    #[cold]
    fn retire(mut self: Box<Self>) {
        (self.deposit, self.lost) = (None, 0);
        self.heap.clear();
        if (1..=KEPT).contains(&self.heap.capacity()) {
            // A thread that ends keeps nothing.
            let _ = SPARE.try_with(|spare| spare.set(Some(self)));
        }
    }
}

impl Packet {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self { len: 0, prefix: 0, bulky: None, extra: None, inline: [MaybeUninit::uninit(); INLINE] }
    }

    /// Empties the packet for a message.
    #[inline(always)]
    pub(super) fn filler(&mut self, limits: Limits) -> Filler<'_> {
        if let Some(extra) = self.extra.take() {
            extra.retire();
        }
        let start = self.inline.as_mut_ptr().cast::<u8>();
        // SAFETY: at most the end of `inline`.
        let end = unsafe { start.add(limits.slot.min(INLINE)) };
        Filler { start, next: start, end, extra: &mut self.extra, limits }
    }

    /// Empties the packet, for a message that goes to the heap in any case.
    pub(super) fn vector(&mut self) -> &mut Vec<u8> {
        if let Some(extra) = self.extra.take() {
            extra.retire();
        }
        &mut self.extra.insert(Extra::get()).heap
    }

    /// The message has been filled with so many bytes.
    #[inline(always)]
    pub(super) fn set_len(&mut self, len: usize) {
        self.len = len;
    }

    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The length that the slot had claimed.
    #[inline(always)]
    pub(super) fn claimed_len(&self) -> usize {
        (self.prefix & !FLAGS) as usize
    }

    #[inline(always)]
    fn extra(&mut self) -> &mut Extra {
        self.extra.get_or_insert_with(Extra::get)
    }

    /// Whether the bytes are on the heap.
    #[inline(always)]
    fn heap(&self) -> Option<&Vec<u8>> {
        self.extra.as_ref().map(|extra| &extra.heap).filter(|heap| !heap.is_empty())
    }

    /// Adds the claim that belongs to a deposit, to a message that is filled and within its limits.
    #[cold]
    pub(super) fn attach(&mut self, deposit: Deposit, limits: Limits) {
        let claim = deposit.claim().to_bytes();
        let end = self.len.saturating_add(claim.len());
        if self.heap().is_none() && end <= limits.slot.min(INLINE) {
            for (place, byte) in self.inline[self.len..end].iter_mut().zip(claim) {
                place.write(byte);
            }
        } else {
            if self.heap().is_none() {
                let bytes = self.bytes().to_vec();
                self.extra().heap = bytes;
            }
            self.extra().heap.extend_from_slice(&claim);
        }
        self.len = end;
        self.extra().deposit = Some(deposit);
    }

    /// The bytes of the message, if they are kept.
    #[inline(always)]
    pub(super) fn bytes(&self) -> &[u8] {
        match self.heap() {
            Some(heap) => &heap[..self.len],
            None => {
                let bytes = &self.inline[..self.len];
                // SAFETY: so many were initialised: see the top of this file.
                unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len()) }
            }
        }
    }

    /// The flags of the message that is to be sent.
    #[inline(always)]
    fn flags(&self) -> u32 {
        match &self.extra {
            Some(extra) if extra.deposit.is_some() => HANDLES,
            _ => 0,
        }
    }

    /// # Safety
    ///
    /// `slot` is claimed for writing, and has room for the prefix and all bytes.
    #[inline(always)]
    pub(super) unsafe fn store(&self, slot: *mut u8) {
        #[allow(clippy::cast_possible_truncation, reason = "a slot has at most 2^20 bytes")]
        let prefix = self.len as u32 | self.flags();
        let bytes = self.bytes();
        // SAFETY: the caller's slot has room for both, and the alignment of the ring's payloads.
        unsafe {
            slot.cast::<u32>().write(prefix);
            slot.add(PREFIX).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
    }

    #[inline(always)]
    pub(super) fn has_room(&self, limit: usize) -> bool {
        limit <= INLINE || self.extra.as_ref().is_some_and(|extra| extra.heap.capacity() >= limit)
    }

    #[cold]
    pub(super) fn make_room(&mut self, limit: usize) {
        if limit > INLINE {
            let heap = &mut self.extra().heap;
            heap.clear();
            heap.reserve_exact(limit);
        }
    }

    /// # Safety
    ///
    /// `slot` is claimed for reading, and has a prefix and `limit` bytes; the packet has room for them.
    #[inline(always)]
    pub(super) unsafe fn load(&mut self, slot: *const u8, limit: usize) {
        // SAFETY: the slot has so many bytes: the length is read once and clamped to them; and there is room.
        unsafe {
            let prefix = slot.cast::<u32>().read_volatile();
            self.prefix = prefix;
            let len = self.claimed_len().min(limit);
            self.len = len;
            let from = slot.add(PREFIX);
            if let Some(extra) = &mut self.extra {
                extra.heap.clear();
                if len > INLINE {
                    extra.heap.as_mut_ptr().copy_from_nonoverlapping(from, len);
                    extra.heap.set_len(len);
                    return;
                }
            }
            self.inline.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(from, len);
        }
    }

    #[inline(always)]
    pub(super) fn deposit(&self) -> Option<&Deposit> {
        self.extra.as_ref().and_then(|extra| extra.deposit.as_ref())
    }

    /// As [`Transfer::bulk`](super::Transfer::bulk).
    #[inline(always)]
    pub(super) fn bulk(&self, limit: usize) -> Option<(&[u8], u32)> {
        (self.len > limit).then(|| (self.bytes(), self.flags()))
    }

    #[inline(always)]
    pub(super) fn is_special(&self) -> bool {
        self.prefix & FLAGS != 0
    }

    pub(super) fn is_bulky(&self) -> bool {
        self.prefix & LARGE != 0
    }

    #[inline(always)]
    pub(super) fn has_handles(&self) -> bool {
        self.prefix & HANDLES != 0
    }

    pub(super) fn reference(&self) -> Option<Reference> {
        if !self.is_bulky() || self.claimed_len() != Reference::LEN {
            return None;
        }
        // Nothing, if the slot has fewer bytes.
        Reference::read(self.bytes())
    }

    pub(super) fn set_bulky(&mut self, bulky: Option<Bulky>) {
        self.bulky = bulky;
    }

    pub(super) fn take_bulky(&mut self) -> Option<Bulky> {
        self.bulky.take()
    }
}

impl Drop for Packet {
    #[inline(always)]
    fn drop(&mut self) {
        if let Some(extra) = self.extra.take() {
            extra.retire();
        }
    }
}

/// Takes the bytes of a message in one pass: those that fit a slot stay in the packet, longer ones go to the heap, and of
/// those that are longer than any message may be, only the number is kept.
pub(super) struct Filler<'p> {
    /// Of the packet's own room.
    start: *mut u8,
    /// Where the next byte goes, and where the room ends.
    next: *mut u8,
    end: *mut u8,
    /// There is one as soon as the bytes are not in the packet.
    extra: &'p mut Option<Box<Extra>>,
    limits: Limits,
}

impl Filler<'_> {
    #[inline(always)]
    pub(super) fn put(&mut self, bytes: &[u8]) {
        if bytes.len() <= self.end.addr().wrapping_sub(self.next.addr()) {
            // SAFETY: there is room for so many.
            unsafe {
                self.next.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
                self.next = self.next.add(bytes.len());
            }
        } else {
            let filled = self.next.addr().wrapping_sub(self.start.addr());
            // By value, so that the filler's own may stay in registers.
            // SAFETY: the pointers are the filler's.
            let more = unsafe { spill(self.extra, self.start, filled, bytes, self.limits) };
            (self.next, self.end) = more;
        }
    }

    /// How many bytes the message has, kept or not.
    #[inline(always)]
    pub(super) fn finish(self) -> usize {
        match self.extra {
            None => self.next.addr() - self.start.addr(),
            // SAFETY: the pointer is the filler's.
            Some(extra) => unsafe { finish_heap(extra, self.next) },
        }
    }
}

/// There is no room for more bytes: goes on on the heap, or counts. Returns where the next byte goes, and where the room
/// ends.
///
/// # Safety
///
/// `start` is where a packet's own room starts. Without extra, `filled` bytes of it are; otherwise `start + filled` is the
/// address that the last call has returned, advanced by what was written there.
#[cold]
#[inline(never)]
unsafe fn spill(
    extra: &mut Option<Box<Extra>>,
    start: *mut u8,
    filled: usize,
    bytes: &[u8],
    limits: Limits,
) -> (*mut u8, *mut u8) {
    let extra = match extra {
        Some(extra) => {
            if extra.lost == 0 {
                let len = start.addr().wrapping_add(filled).wrapping_sub(extra.heap.as_ptr().addr());
                // SAFETY: the filler has written all bytes from the vector's start to here, within its capacity.
                unsafe { extra.heap.set_len(len) };
            }
            extra
        }
        none => {
            let extra = none.insert(Extra::get());
            // SAFETY: so many bytes were written there.
            extra.heap.extend_from_slice(unsafe { std::slice::from_raw_parts(start, filled) });
            extra
        }
    };
    let len = extra.lost.max(extra.heap.len()).saturating_add(bytes.len());
    if extra.lost > 0 || len > limits.message {
        extra.lost = len;
        let nowhere = NonNull::dangling().as_ptr();
        return (nowhere, nowhere);
    }
    extra.heap.extend_from_slice(bytes);
    let room = extra.heap.capacity().min(limits.message) - len;
    let next = extra.heap.spare_capacity_mut().as_mut_ptr().cast::<u8>();
    // SAFETY: within the spare capacity.
    (next, unsafe { next.add(room) })
}

/// The end of a message that is not in its packet.
///
/// # Safety
///
/// `next` is where the filler would have gone on.
#[cold]
unsafe fn finish_heap(extra: &mut Extra, next: *mut u8) -> usize {
    if extra.lost > 0 {
        return std::mem::take(&mut extra.lost);
    }
    let len = next.addr() - extra.heap.as_ptr().addr();
    // SAFETY: as in `spill`.
    unsafe { extra.heap.set_len(len) };
    len
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a packet makes of a slot of 4 bytes with this prefix.
    fn loaded(prefix: u32) -> Packet {
        let slot = [prefix, 0x0403_0201];
        let mut packet = Packet::new();
        // SAFETY: the slot has prefix and 4 bytes, and the packet has room for them.
        unsafe { packet.load(slot.as_ptr().cast(), 4) };
        packet
    }

    #[test]
    fn a_message_has_no_more_bytes_than_its_slot_whatever_the_prefix_says() {
        for prefix in [5, 240, 300, !FLAGS, LARGE | 16, HANDLES | 16, u32::MAX] {
            assert_eq!(loaded(prefix).bytes(), [1, 2, 3, 4]);
        }
        for prefix in [0, LARGE, HANDLES, FLAGS] {
            assert_eq!(loaded(prefix).bytes(), []);
        }
    }

    #[test]
    fn a_slot_too_short_for_a_reference_has_none() {
        let prefix = LARGE | u32::try_from(Reference::LEN).expect("16");
        assert_eq!(loaded(prefix).reference(), None);
    }
}
