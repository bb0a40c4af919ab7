//! Options for a new array.

use super::SharedArray;
use super::body::{Backing, Body};
use super::geometry::{Flavour, Geometry};
use crate::error::{Kind, Result};
use bytemuck::Zeroable;
use shm_core::Plain;
use std::marker::PhantomData;

/// Options for a new [`SharedArray`]; see [`SharedArray::builder`].
///
/// # Examples
///
/// ```
/// use shm_array::SharedArray;
/// # fn main() -> shm_array::Result<()> {
/// let a = SharedArray::<f32>::builder(4096).chunk_len(1024).read_write().prefault().build()?;
/// a.chunk(0)?.write()?.fill(1.5);
/// assert_eq!(a.read()?.iter().sum::<f32>(), 1024.0 * 1.5);
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "it does nothing until it is built"]
pub struct ArrayBuilder<T> {
    len: usize,
    chunk_len: Option<usize>,
    flavour: Flavour,
    backing: Backing,
    elements: PhantomData<fn() -> T>,
}

impl<T> ArrayBuilder<T> {
    pub(super) fn new(len: usize) -> Self {
        let (flavour, backing) = (Flavour::Exclusive, Backing::Committed);
        Self { len, chunk_len: None, flavour, backing, elements: PhantomData }
    }

    /// A lock for each `chunk_len` elements, instead of one for all.
    pub fn chunk_len(mut self, chunk_len: usize) -> Self {
        self.chunk_len = Some(chunk_len);
        self
    }

    /// Locks with one writer or many readers. Each takes more than 4 KiB: a count per process that may be attached.
    pub fn read_write(mut self) -> Self {
        self.flavour = Flavour::ReadWrite;
        self
    }

    /// Takes the memory at creation and maps it into this process at once, so that no touch costs a page fault. Creating and
    /// filling a large array is faster so. [`SharedArray::prefault`] does the same in another process.
    pub fn prefault(mut self) -> Self {
        self.backing = Backing::Prefaulted;
        self
    }

    /// Takes memory at the first touch of each page only, for arrays of which little is ever used.
    ///
    /// If the system has no memory left then, it ends a process, as for any other memory that was promised and not
    /// there. [`SharedArray::commit`] takes the memory of a range with an error instead.
    pub fn sparse(mut self) -> Self {
        self.backing = Backing::Sparse;
        self
    }
}

impl<T: Zeroable> ArrayBuilder<T> {
    /// Creates the array, with zero elements.
    ///
    /// # Errors
    ///
    /// As [`SharedArray::zeroed`] and [`SharedArray::chunked`].
    pub fn build(self) -> Result<SharedArray<T>> {
        // With one chunk for an array of none, the length is what is refused.
        let chunk_len = self.chunk_len.unwrap_or(self.len.max(1));
        let geometry = Geometry::new(size_of::<T>(), self.len, chunk_len, self.flavour)?;
        Ok(SharedArray::of(Body::create::<T>(geometry, self.backing)?))
    }

    /// Creates the array for a caller who writes all elements at once.
    pub(super) fn written(mut self) -> Result<SharedArray<T>> {
        self.backing = Backing::Written;
        self.build()
    }

    /// Creates the array with a copy of `elements`.
    ///
    /// # Errors
    ///
    /// As [`ArrayBuilder::build`]; `is_out_of_range` if `elements` has another length.
    pub fn build_from(self, elements: &[T]) -> Result<SharedArray<T>>
    where
        T: Plain,
    {
        if elements.len() != self.len {
            let (index, len) = (elements.len() as u64, self.len as u64);
            return Err(Kind::OutOfRange { what: "the end of the elements at", index, len }.into());
        }
        let array = self.written()?;
        array.body.write(0, elements)?;
        array.prefault(0..elements.len())?;
        Ok(array)
    }
}
