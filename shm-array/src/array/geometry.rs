//! Where things lie in an array's segment.
//!
//! ```text
//! 0           control    number of elements, elements per chunk, kind of locks
//! 64          locks      one per chunk, each on cache lines of its own
//! next page   elements   the chunks one behind the other
//! ```
//!
//! A process reads the control block once, when it attaches, checks it against the length of the body, and keeps what it
//! read.

use super::holds::Line;
use crate::error::{Error, Kind, Result};
use crate::lock::RwLock;
use crate::lock::raw::RawLock;
use shm_core::mapping::MAX_LEN;
use shm_core::portable::layout_of;
use shm_core::sync::{AtomicU64, Ordering};
use std::ops::Range;

/// Where the locks start: behind the control block.
pub(super) const LOCKS: usize = 64;

/// Elements start on a page.
const PAGE: usize = 4096;

/// What the body starts with.
#[repr(C)]
pub(super) struct Control {
    len: AtomicU64,
    chunk_len: AtomicU64,
    locks: AtomicU64,
}

const _: () = assert!(size_of::<Control>() <= LOCKS);

/// The kind of an array's locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flavour {
    /// One at a time.
    Exclusive = 1,
    /// One writer or many readers.
    ReadWrite = 2,
}

impl Flavour {
    /// The room that the lock of a chunk takes.
    fn stride(self) -> usize {
        match self {
            Self::Exclusive => size_of::<Line<RawLock>>(),
            Self::ReadWrite => size_of::<Line<RwLock<()>>>(),
        }
    }
}

/// Lengths and places, checked: no sum of them overflows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) len: usize,
    pub(super) chunk_len: usize,
    pub(super) chunks: usize,
    pub(super) flavour: Flavour,
    /// Where the elements start.
    pub(super) data: usize,
    pub(super) body_len: usize,
}

impl Geometry {
    /// The geometry of `len` elements of `size` bytes; chunks longer than the array are as long as the array.
    pub(super) fn new(size: usize, len: usize, chunk_len: usize, flavour: Flavour) -> Result<Self> {
        let limit = MAX_LEN / 2 / size as u64;
        let refuse = |what, value: usize| {
            let limit = if value == 0 { 1 } else { limit };
            Err(Kind::Argument { what, value: value as u64, limit }.into())
        };
        if len == 0 || len as u64 > limit {
            return refuse("the length of an array", len);
        }
        if chunk_len == 0 {
            return refuse("the length of a chunk", chunk_len);
        }
        let chunk_len = chunk_len.min(len);
        let chunks = len.div_ceil(chunk_len);
        let data = chunks.checked_mul(flavour.stride()).and_then(|locks| locks.checked_add(LOCKS));
        let data = data.and_then(|end| end.checked_next_multiple_of(PAGE));
        let Some(data) = data.filter(|&data| data as u64 <= MAX_LEN / 2) else {
            return refuse("the number of chunks", chunks);
        };
        Ok(Self { len, chunk_len, chunks, flavour, data, body_len: data + len * size })
    }

    /// Writes the control block; others see it when the segment is published.
    pub(super) fn store(&self, control: &Control) {
        // Relaxed: the segment's magic is stored after it.
        control.len.store(self.len as u64, Ordering::Relaxed);
        control.chunk_len.store(self.chunk_len as u64, Ordering::Relaxed);
        control.locks.store(self.flavour as u64, Ordering::Relaxed);
    }

    /// Reads the control block of a body of `body_len` bytes, once.
    pub(super) fn load(control: &Control, size: usize, body_len: usize) -> Result<Self> {
        // Relaxed: attaching came after the segment was published, and a scribbled value is as good as any other.
        let read = |word: &AtomicU64| usize::try_from(word.load(Ordering::Relaxed)).unwrap_or(usize::MAX);
        let corrupt = || Error::from(Kind::Corrupt { what: "the geometry of an array" });
        let flavour = match read(&control.locks) {
            1 => Flavour::Exclusive,
            2 => Flavour::ReadWrite,
            _ => return Err(corrupt()),
        };
        let geometry = Self::new(size, read(&control.len), read(&control.chunk_len), flavour);
        let geometry = geometry.map_err(|_| corrupt())?;
        if geometry.body_len == body_len { Ok(geometry) } else { Err(corrupt()) }
    }

    /// The elements of a chunk.
    pub(super) fn elements(&self, chunk: usize) -> Range<usize> {
        self.elements_of(&(chunk..chunk + 1))
    }

    /// The elements of chunks in a row.
    pub(super) fn elements_of(&self, chunks: &Range<usize>) -> Range<usize> {
        let end = chunks.end.saturating_mul(self.chunk_len);
        chunks.start * self.chunk_len..self.len.min(end)
    }

    /// The chunks that `len` elements from `start` lie in.
    pub(super) fn touched(&self, start: usize, len: usize) -> Result<Range<usize>> {
        match start.checked_add(len) {
            Some(end) if end <= self.len => {
                // Nothing lies in no chunk.
                let first = start / self.chunk_len;
                Ok(if len == 0 { first..first } else { first..end.div_ceil(self.chunk_len) })
            }
            _ => {
                let index = start.saturating_add(len) as u64;
                Err(Kind::OutOfRange { what: "the end of a range at", index, len: self.len as u64 }.into())
            }
        }
    }
}

/// What two programs must agree on about the elements: name, size and alignment.
pub(crate) fn element_hash<T>() -> u64 {
    layout_of::<T>(std::any::type_name::<T>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_begin_on_a_page_behind_the_locks() {
        let geometry = Geometry::new(8, 1000, 10, Flavour::Exclusive).expect("fits");
        assert_eq!((geometry.chunks, geometry.data), (100, 8192));
        assert_eq!(geometry.body_len, 8192 + 8000);
        assert_eq!(geometry.elements(99), 990..1000);
    }

    #[test]
    fn the_last_chunk_may_be_shorter() {
        let geometry = Geometry::new(8, 25, 10, Flavour::Exclusive).expect("fits");
        assert_eq!(geometry.elements(2), 20..25);
        assert_eq!(geometry.touched(5, 10).expect("inside"), 0..2);
        assert_eq!(geometry.touched(10, 10).expect("inside"), 1..2);
        assert!(geometry.touched(25, 0).expect("inside").is_empty());
        assert!(geometry.touched(25, 1).expect_err("outside").is_out_of_range());
        assert!(geometry.touched(1, usize::MAX).expect_err("outside").is_out_of_range());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let of = |len, chunk_len| Geometry::new(8, len, chunk_len, Flavour::ReadWrite);
        for (len, chunk_len) in [(0, 1), (1, 0), (usize::MAX, 1), (usize::MAX / 8, 1), (1 << 40, 1)] {
            assert!(of(len, chunk_len).expect_err("refused").is_out_of_range());
        }
    }

    #[test]
    fn a_scribbled_control_block_is_corrupt() {
        let geometry = Geometry::new(8, 25, 10, Flavour::Exclusive).expect("fits");
        let control =
            || Control { len: AtomicU64::new(0), chunk_len: AtomicU64::new(0), locks: AtomicU64::new(0) };
        let (good, body_len) = (control(), geometry.body_len);
        geometry.store(&good);
        assert_eq!(Geometry::load(&good, 8, body_len).expect("as stored"), geometry);
        for scribble in [
            |control: &Control| control.len.store(u64::MAX, Ordering::Relaxed),
            |control: &Control| control.len.store(26, Ordering::Relaxed),
            |control: &Control| control.chunk_len.store(0, Ordering::Relaxed),
            |control: &Control| control.locks.store(7, Ordering::Relaxed),
        ] {
            let bad = control();
            geometry.store(&bad);
            scribble(&bad);
            assert!(Geometry::load(&bad, 8, body_len).expect_err("scribbled").is_corrupt());
        }
    }
}
