//! [`FrozenArray`]: data that nobody can change any more, lent to every process without a copy and without a lock.
//!
//! The elements lie in a memory file of their own that is sealed against writing, shrinking, growing and further seals.
//! The kernel keeps the promise, so a receiver need not trust whoever sent the file: it checks the seals, and maps.

use crate::array::element_hash;
use crate::error::{Error, Kind, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use shm_core::Plain;
use shm_core::frozen::FrozenBytes;
use shm_core::handle::{send_descriptor, take_descriptor};
use shm_core::mapping::MAX_LEN;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;

/// An array that nobody can change: derefs to `&[T]` in every process that has a handle, zero-copy.
///
/// A clone, in this process or another, is the same memory. It is freed with the last handle of the last process.
/// Nothing blocks here; nothing is locked, and no process that dies leaves anything behind.
///
/// # Across processes
///
/// Travels in any message. A forked child inherits the mapping and goes on reading. Whoever sends the file cannot change
/// it afterwards, and a file that could still change, or is not as long as announced, is refused on arrival. What
/// the elements *mean* is the sender's business: any bits are a value of a [`Plain`] type.
///
/// # Examples
///
/// ```
/// use shm_array::{FrozenArray, SharedArray};
/// # fn main() -> shm_array::Result<()> {
/// let primes = FrozenArray::from_slice(&[2_u32, 3, 5, 7])?;
/// assert_eq!(primes.iter().sum::<u32>(), 17);
///
/// let array = SharedArray::<i64>::zeroed(1000)?;
/// array.lock()?[7] = 1;
/// let frozen: FrozenArray<i64> = array.freeze()?;      // a copy as of now
/// array.lock()?[7] = 2;
/// assert_eq!(frozen[7], 1);
/// # Ok(()) }
/// ```
pub struct FrozenArray<T> {
    bytes: Arc<FrozenBytes>,
    elements: PhantomData<T>,
}

impl<T: Plain> FrozenArray<T> {
    /// Freezes a copy of `elements`.
    ///
    /// # Errors
    ///
    /// `is_out_of_memory`, or the system's error (no descriptors left).
    pub fn from_slice(elements: &[T]) -> Result<Self> {
        Ok(Self::of(FrozenBytes::new(bytemuck::cast_slice(elements))?))
    }

    /// Freezes what the iterator yields, gathered first.
    ///
    /// # Errors
    ///
    /// As [`FrozenArray::from_slice`].
    #[allow(clippy::should_implement_trait, reason = "std's trait cannot fail")]
    pub fn from_iter(elements: impl IntoIterator<Item = T>) -> Result<Self> {
        Self::from_slice(&elements.into_iter().collect::<Vec<T>>())
    }

    fn of(bytes: FrozenBytes) -> Self {
        const {
            assert!(
                size_of::<T>() > 0 && align_of::<T>() <= 4096,
                "elements take room, and a page aligns them"
            )
        };
        Self { bytes: Arc::new(bytes), elements: PhantomData }
    }

    /// The elements; what `Deref` gives.
    pub fn as_slice(&self) -> &[T] {
        // Page-aligned, and a whole number of elements: that is how they were made, or what `arrive` asked for.
        bytemuck::cast_slice(&self.bytes)
    }

    fn arrive(ticket: &Ticket) -> Result<Self, Box<dyn std::error::Error>> {
        let file = take_descriptor(ticket.descriptor)?;
        if ticket.element != element_hash::<T>() {
            return Err(Error::from(Kind::Mismatch { what: "the type of a frozen array's elements" }).into());
        }
        let len = usize::try_from(ticket.len).ok();
        let len_bytes = len.and_then(|len| len.checked_mul(size_of::<T>())).ok_or_else(|| {
            Error::from(Kind::Argument {
                what: "the length of a frozen array",
                value: ticket.len,
                limit: MAX_LEN,
            })
        })?;
        Ok(Self::of(FrozenBytes::attach(file, len_bytes)?))
    }
}

impl<T> FrozenArray<T> {
    /// Whether both are handles of the same memory in this process.
    pub fn ptr_eq(this: &Self, other: &Self) -> bool {
        Arc::ptr_eq(&this.bytes, &other.bytes)
    }
}

impl<T: Plain> Deref for FrozenArray<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        self.as_slice()
    }
}

impl<T: Plain> AsRef<[T]> for FrozenArray<T> {
    fn as_ref(&self) -> &[T] {
        self
    }
}

impl<'a, T: Plain> IntoIterator for &'a FrozenArray<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<T> Clone for FrozenArray<T> {
    fn clone(&self) -> Self {
        Self { bytes: Arc::clone(&self.bytes), elements: PhantomData }
    }
}

/// Compares the elements; see [`FrozenArray::ptr_eq`].
impl<T: Plain + PartialEq> PartialEq for FrozenArray<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Plain + Eq> Eq for FrozenArray<T> {}

impl<T: Plain + fmt::Debug> fmt::Debug for FrozenArray<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

/// A handle in bytes.
#[derive(Serialize, Deserialize)]
#[serde(rename = "FrozenArrayHandle")]
struct Ticket {
    element: u64,
    len: u64,
    /// The file's place in the session.
    descriptor: u32,
}

impl<T: Plain> Serialize for FrozenArray<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let copy = self.bytes.descriptor().try_clone_to_owned().map_err(ser::Error::custom)?;
        let descriptor = send_descriptor(copy).map_err(ser::Error::custom)?;
        Ticket { element: element_hash::<T>(), len: self.len() as u64, descriptor }.serialize(serializer)
    }
}

impl<'de, T: Plain> Deserialize<'de> for FrozenArray<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::arrive(&Ticket::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}
