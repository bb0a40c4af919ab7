//! [`SharedArray`]: elements that processes share, under one lock or under one per chunk.
//!
//! `geometry` says where things lie, `holds` locks chunks, `body` is the memory; here is what users see.
#![allow(unsafe_code)]
//! # Safety
//!
//! Elements are only reached through `Body::at`, within the length that the geometry has; all zero bytes are one, and so
//! is whatever lies there, because `T` is `Plain` or an atomic. `&mut [T]` exists only in a guard that holds the locks
//! of all its chunks exclusively. That other processes keep to the locks is what sharing an array with them means.

mod atomic;
mod body;
mod builder;
mod calls;
mod chunk;
mod exclusion;
mod geometry;
mod guard;
mod holds;
mod travel;
#[cfg(feature = "ndarray")]
mod view;

pub use atomic::Atomic;
pub use builder::ArrayBuilder;
pub use chunk::{Chunk, Chunks};
pub(crate) use geometry::element_hash;
pub use guard::{ArrayGuard, ArrayReadGuard};

use crate::error::{Kind, Result};
use crate::frozen::FrozenArray;
use body::Body;
use bytemuck::Zeroable;
use holds::{Holds, Mode, Wait};
use shm_core::Plain;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, Range};
use std::panic::{RefUnwindSafe, UnwindSafe};

/// Bytes that are gathered before they are written: few enough to stay in the cache.
const AT_ONCE: usize = 1 << 16;

/// A fixed number of elements in memory that processes share, in a segment of their own.
///
/// A clone, in this process or another, is a handle of the same elements; memory goes with the last handle of the last
/// process. Plain data is under a robust lock: one for the whole array, or one per chunk ([`SharedArray::chunked`]), so
/// that processes work on disjoint chunks in parallel. An array of std's atomics needs no lock and derefs to a slice.
///
/// # If the peer dies
///
/// A process that dies with a lock leaves the elements half changed: the next one gets [`OwnerDied`](crate::LockError::OwnerDied) with the
/// guard, repairs them and calls [`ArrayGuard::mark_consistent`]. Nobody hangs.
///
/// # Across processes
///
/// Travels in any message, and works in a forked child. The receiver must mean the same element type: its name, size and
/// alignment are compared. A guard lends `&mut [T]`: it trusts every process that has a handle to keep to the locks.
///
/// # Memory
///
/// Taken at creation, so that a touch never fails later; [`ArrayBuilder::prefault`] and [`ArrayBuilder::sparse`] are the
/// other choices. Each chunk's lock takes 64 bytes. Arrays may be larger than 4 GiB.
///
/// # Examples
///
/// ```
/// use shm_array::SharedArray;
/// # fn main() -> shm_array::Result<()> {
/// let a = SharedArray::<i64>::chunked(1_000_000, 100_000)?;
/// for x in a.chunk(3)?.lock()?.iter_mut() {
///     *x += 2;
/// }
/// for x in a.lock()?.iter_mut() {
///     *x *= 2;
/// }
/// assert_eq!((a.get(299_999)?, a.get(300_000)?), (0, 4));
/// # Ok(()) }
/// ```
pub struct SharedArray<T> {
    body: Body,
    elements: PhantomData<T>,
}

// SAFETY: threads get elements through the locks, or as `&T`; so `T` must allow both ways.
unsafe impl<T: Send + Sync> Send for SharedArray<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for SharedArray<T> {}

// A panic under a guard is told to whoever locks next.
impl<T> UnwindSafe for SharedArray<T> {}
impl<T> RefUnwindSafe for SharedArray<T> {}

impl<T: Zeroable> SharedArray<T> {
    /// Creates `len` zero elements under one lock.
    ///
    /// # Errors
    ///
    /// `is_out_of_range` if `len` is zero or too large, `is_out_of_memory`, or the system's error.
    pub fn zeroed(len: usize) -> Result<Self> {
        Self::builder(len).build()
    }

    /// Creates `len` zero elements in chunks of `chunk_len`, with a lock each. The last chunk may be shorter.
    ///
    /// # Errors
    ///
    /// As [`SharedArray::zeroed`]; `is_out_of_range` also if `chunk_len` is zero.
    pub fn chunked(len: usize, chunk_len: usize) -> Result<Self> {
        Self::builder(len).chunk_len(chunk_len).build()
    }

    /// Options for a new array of `len` elements.
    pub fn builder(len: usize) -> ArrayBuilder<T> {
        ArrayBuilder::new(len)
    }

    fn of(body: Body) -> Self {
        const {
            assert!(
                size_of::<T>() > 0 && align_of::<T>() <= 4096,
                "elements take room, and a page aligns them"
            )
        };
        Self { body, elements: PhantomData }
    }
}

impl<T> SharedArray<T> {
    /// The number of elements.
    #[inline]
    pub fn len(&self) -> usize {
        self.body.geometry().len
    }

    /// Never: an array has at least one element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of elements of each chunk but the last, which may be shorter.
    pub fn chunk_len(&self) -> usize {
        self.body.geometry().chunk_len
    }

    /// The number of chunks.
    pub fn chunk_count(&self) -> usize {
        self.body.geometry().chunks
    }

    /// Whether both are handles of the same elements in this process.
    pub fn ptr_eq(this: &Self, other: &Self) -> bool {
        this.body.at::<T>(0) == other.body.at::<T>(0)
    }

    /// The first element, for whoever brings a protocol of their own.
    ///
    /// # Safety of what you do with it
    ///
    /// The pointer is good for [`SharedArray::len`] elements as long as a handle of this process lives, and in a forked
    /// child once a method of the handle was called there. Whoever dereferences it must keep out of the way of guards,
    /// and of other processes.
    ///
    /// # Errors
    ///
    /// `is_forked` in a forked child that cannot attach again.
    pub fn as_ptr(&self) -> Result<*mut T> {
        self.body.ensure()?;
        Ok(self.body.at(0).as_ptr())
    }

    /// Puts memory behind the elements of a range of a [sparse](ArrayBuilder::sparse) array, so that touching them
    /// cannot fail.
    ///
    /// # Errors
    ///
    /// `is_out_of_memory`, `is_out_of_range`, `is_forked`.
    pub fn commit(&self, range: Range<usize>) -> Result<()> {
        self.body.geometry().touched(range.start, range.len())?;
        self.body.commit(range, size_of::<T>())
    }

    /// Puts memory behind the elements of a range, and maps it into this process: touching them costs no page fault then.
    /// Worth it before a loop over elements that another process has written.
    ///
    /// # Errors
    ///
    /// As [`SharedArray::commit`].
    pub fn prefault(&self, range: Range<usize>) -> Result<()> {
        self.body.geometry().touched(range.start, range.len())?;
        self.body.prefault(range, size_of::<T>())
    }
}

impl<T: Plain> SharedArray<T> {
    /// Creates an array with a copy of `elements`, under one lock.
    ///
    /// # Errors
    ///
    /// As [`SharedArray::zeroed`].
    pub fn from_slice(elements: &[T]) -> Result<Self> {
        Self::builder(elements.len()).build_from(elements)
    }

    /// Creates an array with what the iterator yields. Gathers it first if the iterator does not know how much that is.
    ///
    /// # Errors
    ///
    /// As [`SharedArray::zeroed`].
    #[allow(clippy::should_implement_trait, reason = "std's trait cannot fail")]
    pub fn from_iter(elements: impl IntoIterator<Item = T>) -> Result<Self> {
        let mut elements = elements.into_iter();
        let (len, most) = elements.size_hint();
        if len == 0 || most != Some(len) {
            return Self::from_slice(&elements.collect::<Vec<T>>());
        }
        let array = Self::builder(len).written()?;
        let mut some = vec![T::zeroed(); len.min(AT_ONCE.div_ceil(size_of::<T>()))];
        let mut filled = 0;
        while filled < len {
            let room = some.len().min(len - filled);
            let fresh =
                some[..room].iter_mut().zip(&mut elements).map(|(place, element)| *place = element).count();
            array.body.write(filled, &some[..fresh])?;
            filled += fresh;
            if fresh < room {
                break;
            }
        }
        let further = elements.next();
        if filled == len && further.is_none() {
            array.prefault(0..len)?;
            return Ok(array);
        }
        // The iterator was wrong about itself.
        let all: Vec<T> = array.lock()?[..filled].iter().copied().chain(further).chain(elements).collect();
        Self::from_slice(&all)
    }

    /// A part of the array that has a lock of its own.
    ///
    /// # Errors
    ///
    /// `is_out_of_range` if there is no such chunk.
    pub fn chunk(&self, index: usize) -> Result<Chunk<'_, T>> {
        let chunks = self.chunk_count();
        if index < chunks {
            return Ok(Chunk::new(self, index));
        }
        Err(Kind::OutOfRange { what: "chunk", index: index as u64, len: chunks as u64 }.into())
    }

    /// All chunks, in order.
    pub fn chunks(&self) -> Chunks<'_, T> {
        Chunks::new(self)
    }

    /// The element at `index`, read under its chunk's lock.
    ///
    /// # Errors
    ///
    /// As [`SharedArray::copy_to`].
    pub fn get(&self, index: usize) -> Result<T> {
        let mut element = T::zeroed();
        self.copy_to(index, std::slice::from_mut(&mut element))?;
        Ok(element)
    }

    /// Sets the element at `index` under its chunk's lock.
    ///
    /// # Errors
    ///
    /// As [`SharedArray::copy_to`].
    pub fn set(&self, index: usize, element: T) -> Result<()> {
        self.copy_from(index, &[element])
    }

    /// Copies the elements from `start` on into `to`, under the locks of their chunks, all held at once. Blocks as
    /// [`SharedArray::lock`] does.
    ///
    /// # Errors
    ///
    /// `is_out_of_range` if there are not so many. [`as_lock_error`](crate::Error::as_lock_error) if a holder died or
    /// panicked, and nothing is copied; the chunk stays as it is for whoever locks it next, and repairs it.
    pub fn copy_to(&self, start: usize, to: &mut [T]) -> Result<()> {
        let chunks = self.body.geometry().touched(start, to.len())?;
        if chunks.is_empty() {
            return Ok(());
        }
        let holds = Holds::or_put_back(self.body.lock(chunks, Mode::Read, Wait::Forever))?;
        // SAFETY: so many elements are there, and nobody writes them while their chunks are locked; `to` is not in shared
        // memory, or a guard of these chunks would be alive and the lock not had.
        unsafe { std::ptr::copy_nonoverlapping(self.body.at(start).as_ptr(), to.as_mut_ptr(), to.len()) };
        drop(holds);
        Ok(())
    }

    /// Copies `from` to the elements from `start` on, under the locks of their chunks, all held at once. Blocks as
    /// [`SharedArray::lock`] does.
    ///
    /// # Errors
    ///
    /// As [`SharedArray::copy_to`].
    pub fn copy_from(&self, start: usize, from: &[T]) -> Result<()> {
        let chunks = self.body.geometry().touched(start, from.len())?;
        if chunks.is_empty() {
            return Ok(());
        }
        let holds = Holds::or_put_back(self.body.lock(chunks, Mode::Write, Wait::Forever))?;
        // SAFETY: as in `copy_to`.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.body.at(start).as_ptr(), from.len()) };
        drop(holds);
        Ok(())
    }

    /// A copy of all elements as of one moment.
    ///
    /// # Errors
    ///
    /// As [`SharedArray::copy_to`]; `is_out_of_memory` if the copy finds no room.
    pub fn to_vec(&self) -> Result<Vec<T>> {
        let mut elements = Vec::new();
        elements.try_reserve_exact(self.len()).map_err(|_| Kind::Allocation { len: self.len() as u64 })?;
        let guard = self.read_or_put_back()?;
        elements.extend_from_slice(&guard);
        Ok(elements)
    }

    /// Copies all elements as of one moment into memory that nobody can change.
    ///
    /// # Errors
    ///
    /// As [`SharedArray::copy_to`], and as [`FrozenArray::from_slice`].
    pub fn freeze(&self) -> Result<FrozenArray<T>> {
        FrozenArray::from_slice(&self.read_or_put_back()?)
    }

    fn read_or_put_back(&self) -> Result<ArrayReadGuard<'_, T>> {
        let chunks = 0..self.chunk_count();
        let holds = Holds::or_put_back(self.body.lock(chunks, Mode::Read, Wait::Forever))?;
        Ok(ArrayReadGuard::new(self, 0..self.len(), holds))
    }
}

/// Elements that need no lock.
impl<T: Atomic> Deref for SharedArray<T> {
    type Target = [T];

    /// The elements.
    ///
    /// # Panics
    ///
    /// In a forked child that cannot attach again.
    #[inline]
    fn deref(&self) -> &[T] {
        if let Err(error) = self.body.ensure() {
            forked(error);
        }
        // SAFETY: so many elements are there, and atomics may be shared.
        unsafe { std::slice::from_raw_parts(self.body.at(0).as_ptr(), self.len()) }
    }
}

#[cold]
fn forked(error: impl fmt::Display) -> ! {
    panic!("a shared array cannot be reached after a fork: {error}");
}

impl<T> Clone for SharedArray<T> {
    fn clone(&self) -> Self {
        Self { body: self.body.clone(), elements: PhantomData }
    }
}

impl<T> fmt::Debug for SharedArray<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedArray")
            .field("element", &std::any::type_name::<T>())
            .field("len", &self.len())
            .field("chunk_len", &self.chunk_len())
            .finish_non_exhaustive()
    }
}
