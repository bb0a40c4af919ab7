//! Messages of plain old data: the value's bytes are the message.
//!
//! # Safety
//!
//! See [`Transfer`]: a slot of such a queue has exactly the size of the value.
#![allow(unsafe_code)]

use super::{Limits, Refusal, Transfer};
use crate::error::DecodeError;
use crate::layout;
use shm_core::Plain;
use std::mem::MaybeUninit;

/// Messages of plain old data, byte for byte.
#[derive(Clone, Copy, Debug)]
pub enum Verbatim {}

impl<T: Plain> Transfer<T> for Verbatim {
    type Room = ();
    type Staged<'v>
        = &'v T
    where
        T: 'v;
    type Message = MaybeUninit<T>;
    const LAYOUT: u64 = layout::hash(&[layout::VERSION, 2, size_of::<T>() as u64]);

    fn payload_len(_slot_bytes: usize, _budget: usize) -> usize {
        size_of::<T>()
    }

    fn limit(payload_len: usize) -> Option<usize> {
        (payload_len == size_of::<T>()).then_some(payload_len)
    }

    #[inline(always)]
    fn room() {}

    #[inline(always)]
    fn encode<'v>(value: &'v T, _room: &'v mut (), _limits: Limits) -> Result<&'v T, Refusal> {
        Ok(value)
    }

    #[inline(always)]
    unsafe fn store(message: &&T, slot: *mut u8) {
        // SAFETY: the caller's slot has `size_of::<T>()` bytes, and nobody else touches it now.
        unsafe { copy_fresh(std::ptr::from_ref::<T>(message).cast(), slot, size_of::<T>()) }
    }

    #[inline(always)]
    fn blank() -> Self::Message {
        MaybeUninit::uninit()
    }

    #[inline(always)]
    fn has_room(_message: &Self::Message, _limit: usize) -> bool {
        true
    }

    #[inline(always)]
    fn make_room(_message: &mut Self::Message, _limit: usize) {}

    #[inline(always)]
    unsafe fn load(message: &mut Self::Message, slot: *const u8, _limit: usize) {
        // SAFETY: the caller's slot has `size_of::<T>()` bytes; any bytes are a `T`.
        message.write(unsafe { slot.cast::<T>().read_unaligned() });
    }

    #[inline(always)]
    fn decode<E: From<DecodeError>>(message: &Self::Message, _limit: usize) -> Result<T, E> {
        // SAFETY: `decode` gets what `load` has filled; a plain value may be copied.
        Ok(unsafe { message.assume_init_read() })
    }
}

/// Copies a value that its owner has just moved here, as a message given by value is.
///
/// What was just stored is still in the processor's store queue, behind stores into lines that another processor has. A load
/// gets it from there only if one store has all of it; otherwise it waits for all these lines. The compiler moves a value by
/// 16 bytes, `memcpy` would load 32 or 64 at once. (1 KiB between two processes: a send takes about 5 % less time.)
///
/// # Safety
///
/// `from` has so many bytes to be read and `to` to be written, and they do not overlap.
#[inline(always)]
unsafe fn copy_fresh(from: *const u8, to: *mut u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's.
    let done = unsafe { copy_in_small_steps(from, to, len) };
    #[cfg(not(target_arch = "x86_64"))]
    let done = 0;
    // SAFETY: the rest, within both.
    unsafe { to.add(done).copy_from_nonoverlapping(from.add(done), len - done) }
}

/// Copies the first bytes by 16, if there are many, and returns how many they were.
///
/// # Safety
///
/// As [`copy_fresh`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn copy_in_small_steps(from: *const u8, to: *mut u8, len: usize) -> usize {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_storeu_si128};
    const STEP: usize = size_of::<__m128i>();
    /// From so many bytes on it pays.
    const MANY: usize = 256;
    let mut done = 0;
    while len >= MANY && done + 2 * STEP <= len {
        // SAFETY: within both; unaligned loads and stores of a processor that has them always.
        unsafe {
            let first = _mm_loadu_si128(from.add(done).cast());
            let second = _mm_loadu_si128(from.add(done + STEP).cast());
            _mm_storeu_si128(to.add(done).cast(), first);
            _mm_storeu_si128(to.add(done + STEP).cast(), second);
        }
        done += 2 * STEP;
    }
    done
}
