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
        unsafe { slot.cast::<T>().write_unaligned(**message) }
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
