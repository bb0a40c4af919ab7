//! An array's memory and locks, whatever the elements are.
#![allow(unsafe_code)]
//! # Safety
//!
//! The geometry was checked against the length of the body, and stays in private memory. Locks lie where it says, are only
//! ever used through `&`, and were made before the segment was published. The mapping stays at its address as long as
//! the segment; in a forked child it is there again once [`Body::ensure`] said so, and taking a lock says so, too.

use super::geometry::{Control, Flavour, Geometry, LOCKS, element_hash};
use super::holds::{Holds, Line, Locks, Mode, Refused, Wait};
use crate::error::Result;
use crate::lock::RwLock;
use crate::lock::raw::{Data, RawLock};
use shm_core::segment::{Segment, Spec};
use shm_core::{Plain, SegmentError};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;

/// The kind of an array's segment.
const KIND: u32 = u32::from_le_bytes(*b"arry");

/// When the system's memory is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backing {
    /// At creation.
    Committed,
    /// At creation, and mapped into the creating process at once.
    Prefaulted,
    /// At the first touch.
    Sparse,
    /// By the caller, who writes all elements at once.
    Written,
}

#[derive(Clone, Debug)]
pub(super) struct Body {
    geometry: Geometry,
    /// The first element, in the mapping of the segment below.
    data: NonNull<u8>,
    segment: Arc<Segment>,
}

// SAFETY: plain lengths, and an address in memory that every thread may use through the locks.
unsafe impl Send for Body {}
// SAFETY: as above.
unsafe impl Sync for Body {}

fn spec<T>(body_len: usize) -> Spec {
    // Locks repair themselves when they are used; nothing is counted.
    Spec { kind: KIND, layout_hash: element_hash::<T>(), body_len, sweep: |_, _| true, arrived: |_| () }
}

/// # Safety
///
/// `first` has room for `count` locks, aligned, that nobody else has yet.
unsafe fn fill<L>(first: NonNull<Line<L>>, count: usize, new: impl Fn() -> L) {
    for i in 0..count {
        // SAFETY: as the caller vouches.
        unsafe { first.add(i).write(Line(new())) };
    }
}

/// # Safety
///
/// `first` is the first of `count` locks, which stay for `'a`.
unsafe fn row<'a, L>(first: NonNull<Line<L>>, count: usize) -> &'a [Line<L>] {
    // SAFETY: as the caller vouches.
    unsafe { std::slice::from_raw_parts(first.as_ptr(), count) }
}

impl Body {
    pub(super) fn create<T>(geometry: Geometry, backing: Backing) -> Result<Self> {
        let committed = if backing == Backing::Committed { geometry.body_len } else { geometry.data };
        if backing == Backing::Written {
            shm_core::mapping::check_available(geometry.body_len as u64)?;
        }
        let segment = Segment::create_sparse(&spec::<T>(geometry.body_len), committed, |body| {
            // SAFETY: the body is page-aligned, zeroed, longer than a control block, and nobody else has it yet.
            geometry.store(unsafe { body.cast::<Control>().as_ref() });
            // SAFETY: the geometry has room for so many locks of its kind there, and nobody else has them yet.
            unsafe {
                let first = body.add(LOCKS);
                match geometry.flavour {
                    Flavour::Exclusive => fill(first.cast(), geometry.chunks, RawLock::new),
                    Flavour::ReadWrite => fill(first.cast(), geometry.chunks, || RwLock::new(())),
                }
            }
        })?;
        if backing == Backing::Prefaulted {
            // Nobody else knows the segment yet.
            segment.prefault(geometry.data, geometry.body_len - geometry.data)?;
        }
        Ok(Self::of(geometry, segment))
    }

    pub(super) fn attach<T>(descriptor: BorrowedFd<'_>) -> Result<Self> {
        let segment = Segment::attach(descriptor, &spec::<T>(LOCKS))?;
        // SAFETY: the body is page-aligned and as long as the spec says; a control block is atomics only.
        let control = unsafe { segment.body().cast::<Control>().as_ref() };
        let geometry = Geometry::load(control, size_of::<T>(), segment.body_len())?;
        Ok(Self::of(geometry, segment))
    }

    fn of(geometry: Geometry, segment: Arc<Segment>) -> Self {
        // SAFETY: inside the body.
        let data = unsafe { segment.body().add(geometry.data) };
        Self { geometry, data, segment }
    }

    pub(super) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    pub(super) fn segment(&self) -> &Segment {
        &self.segment
    }

    /// Where element `index`, which there is or which is the end, is for this process.
    #[inline(always)]
    pub(super) fn at<T>(&self, index: usize) -> NonNull<T> {
        debug_assert!(index <= self.geometry.len);
        // SAFETY: inside the body, or its end.
        unsafe { self.data.cast::<T>().add(index) }
    }

    /// Makes the memory usable in this process, if it is a forked child. One load otherwise.
    #[inline(always)]
    pub(super) fn ensure(&self) -> Result<(), SegmentError> {
        self.segment.ensure()
    }

    #[inline(always)]
    fn locks(&self) -> Locks<'_> {
        // SAFETY: so many of this kind were made at creation and lie inside the body; only shared references exist.
        unsafe {
            let first = self.segment.body().add(LOCKS);
            match self.geometry.flavour {
                Flavour::Exclusive => Locks::Exclusive(row(first.cast(), self.geometry.chunks)),
                Flavour::ReadWrite => Locks::ReadWrite(row(first.cast(), self.geometry.chunks)),
            }
        }
    }

    /// Locks the chunks of a range that is not empty, in their order.
    #[inline(always)]
    pub(super) fn lock(
        &self,
        chunks: Range<usize>,
        mode: Mode,
        wait: Wait,
    ) -> Result<(Holds<'_>, Data), Refused> {
        Holds::take(self.locks(), chunks, mode, wait)
    }

    pub(super) fn renew(&self, chunk: usize) -> Result<Holds<'_>, Refused> {
        self.locks().renew(chunk)
    }

    /// Puts memory behind elements of `size` bytes.
    pub(super) fn commit(&self, elements: Range<usize>, size: usize) -> Result<()> {
        let (start, len) = self.bytes(elements, size);
        if len > 0 {
            self.segment.ensure()?;
            self.segment.commit(start, len)?;
        }
        Ok(())
    }

    /// The same, and maps it into this process.
    pub(super) fn prefault(&self, elements: Range<usize>, size: usize) -> Result<()> {
        let (start, len) = self.bytes(elements, size);
        if len > 0 {
            self.segment.ensure()?;
            self.segment.map_in(start, len)?;
        }
        Ok(())
    }

    /// Writes elements, before anybody else has the array.
    pub(super) fn write<T: Plain>(&self, start: usize, elements: &[T]) -> Result<()> {
        let (start, _) = self.bytes(start..start, size_of::<T>());
        Ok(self.segment.write(start, bytemuck::cast_slice(elements))?)
    }

    /// Place and length in the body of elements that there are.
    fn bytes(&self, elements: Range<usize>, size: usize) -> (usize, usize) {
        (self.geometry.data + elements.start * size, elements.len() * size)
    }
}
