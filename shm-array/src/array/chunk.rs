//! Parts of an array that lock separately.

use super::SharedArray;
use shm_core::Plain;
use std::fmt;
use std::iter::FusedIterator;
use std::ops::Range;

/// A part of a [`SharedArray`] that has a lock of its own; see [`SharedArray::chunk`].
///
/// To lock several at once, take them in the order of their indices.
pub struct Chunk<'a, T> {
    pub(super) array: &'a SharedArray<T>,
    pub(super) index: usize,
}

impl<'a, T: Plain> Chunk<'a, T> {
    pub(super) fn new(array: &'a SharedArray<T>, index: usize) -> Self {
        Self { array, index }
    }

    /// Its number.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Which elements of the array it has.
    pub fn range(&self) -> Range<usize> {
        self.array.body.geometry().elements(self.index)
    }

    /// How many elements it has.
    pub fn len(&self) -> usize {
        self.range().len()
    }

    /// Never: a chunk has at least one element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Clone for Chunk<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Chunk<'_, T> {}

impl<T> fmt::Debug for Chunk<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chunk").field("index", &self.index).field("array", self.array).finish()
    }
}

/// The chunks of an array; see [`SharedArray::chunks`].
pub struct Chunks<'a, T> {
    array: &'a SharedArray<T>,
    indices: Range<usize>,
}

impl<'a, T: Plain> Chunks<'a, T> {
    pub(super) fn new(array: &'a SharedArray<T>) -> Self {
        Self { array, indices: 0..array.chunk_count() }
    }
}

impl<'a, T: Plain> Iterator for Chunks<'a, T> {
    type Item = Chunk<'a, T>;

    fn next(&mut self) -> Option<Self::Item> {
        self.indices.next().map(|index| Chunk::new(self.array, index))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.indices.size_hint()
    }
}

impl<T: Plain> DoubleEndedIterator for Chunks<'_, T> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.indices.next_back().map(|index| Chunk::new(self.array, index))
    }
}

impl<T: Plain> ExactSizeIterator for Chunks<'_, T> {}
impl<T: Plain> FusedIterator for Chunks<'_, T> {}

impl<T> fmt::Debug for Chunks<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chunks").field("indices", &self.indices).field("array", self.array).finish()
    }
}
