//! How many bytes a ring needs and where its words and payloads lie.
//!
//! ```text
//! packed (payload up to 24 bytes)    word payload | word payload | ...
//! split  (larger)                    word word word ... | payload | payload | ...
//! ```
//!
//! Packed, a small message costs one cache line and shares it with its neighbours. Split, eight words share a
//! line and a payload of whole lines starts on one.
#![deny(clippy::arithmetic_side_effects)]

use super::{MAX_CAPACITY, MAX_PAYLOAD};

/// Bytes of a slot word.
const WORD: usize = 8;
/// The longest payload that lies beside its word.
const PACKED_MAX: usize = 24;
/// Alignment of the ring's first byte.
pub(super) const ALIGN: usize = 64;

/// Capacity and payload size of a ring, checked.
///
/// # Across processes
///
/// The same capacity and payload size give the same layout in every process that runs this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    capacity: usize,
    payload_len: usize,
}

/// Why a [`Layout`] was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// The capacity is 0 or above [`MAX_CAPACITY`].
    #[error("capacity of {0} messages is not between 1 and {MAX_CAPACITY}")]
    Capacity(usize),
    /// The payload is longer than [`MAX_PAYLOAD`].
    #[error("payload of {0} bytes is longer than {MAX_PAYLOAD}")]
    Payload(usize),
}

/// Byte offsets within a ring's memory. The ring is at most 2^20 slots of about 2^20 bytes, so nothing overflows.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(loom, allow(dead_code, reason = "a model's slots are values"))]
pub(super) struct Offsets {
    pub(super) word_stride: usize,
    pub(super) payload_start: usize,
    pub(super) payload_stride: usize,
}

impl Layout {
    /// A ring of `capacity` slots (any number from 1 to [`MAX_CAPACITY`]) with `payload_len` bytes each.
    ///
    /// # Errors
    ///
    /// The value that is out of range.
    pub fn new(capacity: usize, payload_len: usize) -> Result<Layout, LayoutError> {
        if !(1..=MAX_CAPACITY).contains(&capacity) {
            return Err(LayoutError::Capacity(capacity));
        }
        if payload_len > MAX_PAYLOAD {
            return Err(LayoutError::Payload(payload_len));
        }
        Ok(Layout {
            capacity,
            payload_len,
        })
    }

    /// Slots of the ring.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Payload bytes of each slot.
    pub fn payload_len(&self) -> usize {
        self.payload_len
    }

    /// Bytes of memory that the ring needs, a multiple of 64.
    pub fn len_bytes(&self) -> usize {
        let Offsets {
            payload_start,
            payload_stride,
            ..
        } = self.offsets();
        let start = if self.is_packed() { 0 } else { payload_start };
        round_up(
            start.saturating_add(payload_stride.saturating_mul(self.capacity)),
            ALIGN,
        )
    }

    fn is_packed(&self) -> bool {
        self.payload_len <= PACKED_MAX
    }

    pub(super) fn offsets(&self) -> Offsets {
        if self.is_packed() {
            let stride = round_up(self.payload_len, 8).saturating_add(WORD);
            return Offsets {
                word_stride: stride,
                payload_start: WORD,
                payload_stride: stride,
            };
        }
        let line = if self.payload_len < ALIGN { 8 } else { ALIGN };
        Offsets {
            word_stride: WORD,
            payload_start: round_up(self.capacity.saturating_mul(WORD), ALIGN),
            payload_stride: round_up(self.payload_len, line),
        }
    }
}

fn round_up(value: usize, to: usize) -> usize {
    value.div_ceil(to).saturating_mul(to)
}
