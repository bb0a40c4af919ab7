//! Locked elements.
#![allow(unsafe_code)]
//! # Safety
//!
//! A guard's elements are those of the chunks whose locks it holds, exclusively or for reading; the array that it borrows
//! from keeps them mapped.

use super::SharedArray;
use super::holds::Holds;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;

/// The elements of an array or a chunk, locked; derefs to `&mut [T]`. Unlocks when it is dropped.
///
/// It belongs to its thread. The slice that it lends may be split and lent to others.
///
/// # Panics
///
/// When it is used in a child that was forked since: the lock is its parent's. There its drop does nothing.
#[must_use = "the elements are unlocked at once when the guard is not kept"]
pub struct ArrayGuard<'a, T> {
    /// Points to the first one; makes the guard `!Send`.
    first: NonNull<T>,
    len: usize,
    holds: Holds<'a>,
    elements: PhantomData<&'a mut [T]>,
}

impl<'a, T> ArrayGuard<'a, T> {
    #[inline]
    pub(super) fn new(array: &'a SharedArray<T>, elements: Range<usize>, holds: Holds<'a>) -> Self {
        Self { first: array.body.at(elements.start), len: elements.len(), holds, elements: PhantomData }
    }

    /// The elements are as they should be: neither the death nor the panic of a holder is remembered.
    ///
    /// For whoever got the guard with [`OwnerDied`](crate::LockError::OwnerDied) or
    /// [`Poisoned`](crate::LockError::Poisoned), after the repair.
    pub fn mark_consistent(&self) {
        self.holds.mark_consistent();
    }
}

impl<T> Deref for ArrayGuard<'_, T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        self.holds.must_be_here();
        // SAFETY: these elements' locks are held exclusively, and `self` is borrowed.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for ArrayGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        self.holds.must_be_here();
        // SAFETY: these elements' locks are held exclusively, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), self.len) }
    }
}

impl<T: fmt::Debug> fmt::Debug for ArrayGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

/// The elements of an array or a chunk, locked for reading; derefs to `&[T]`. Unlocks when it is dropped.
///
/// # Panics
///
/// As [`ArrayGuard`].
#[must_use = "the elements are unlocked at once when the guard is not kept"]
pub struct ArrayReadGuard<'a, T> {
    /// Points to the first one; makes the guard `!Send`.
    first: NonNull<T>,
    len: usize,
    holds: Holds<'a>,
    elements: PhantomData<&'a [T]>,
}

impl<'a, T> ArrayReadGuard<'a, T> {
    #[inline]
    pub(super) fn new(array: &'a SharedArray<T>, elements: Range<usize>, holds: Holds<'a>) -> Self {
        Self { first: array.body.at(elements.start), len: elements.len(), holds, elements: PhantomData }
    }
}

impl<T> Deref for ArrayReadGuard<'_, T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        self.holds.must_be_here();
        // SAFETY: nobody writes while these elements' locks are held for reading.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

impl<T: fmt::Debug> fmt::Debug for ArrayReadGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}
