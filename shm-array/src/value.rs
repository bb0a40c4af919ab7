//! [`SharedValue`]: a number, or a small struct of them, that processes read and replace as a whole.
#![allow(unsafe_code)]
//! # Safety
//!
//! The slots of a cell are only accessed as atomics, in the same pieces by everybody, and every byte of a `T` that is
//! `Plain` is initialised and of any value. `copy_out` and `copy_in` see to it.

use crate::array::element_hash;
use crate::error::{Error, Kind, Result};
use crate::latch::Latch;
use crate::lock::LockError;
use crate::lock::line::must_be_attached;
use crate::lock::raw::{Held, RawLock, Refused};
use crate::shared::Shared;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use shm_core::portable::{layout_of, mix};
use shm_core::sync::{AtomicU8, AtomicU32, AtomicU64, Ordering, UnsafeCell};
use shm_core::{Plain, ShmSafe};
use std::fmt;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::time::{Duration, Instant};

/// A value of plain data in memory that processes share; derefs to its [`ValueCell`], which has the methods.
///
/// A clone, in this process or another, is the same value.
///
/// # Across processes
///
/// Travels in any message, and works in a forked child. The receiver must mean the same type: its name, size and alignment
/// are compared.
///
/// # Examples
///
/// ```
/// use shm_array::SharedValue;
/// # fn main() -> shm_array::Result<()> {
/// let v = SharedValue::new(3.5f64)?;
/// v.set(4.0);
/// assert_eq!(v.update(|x| x + 1.0), 4.0);
/// assert_eq!(v.get(), 5.0);
/// *v.lock()? *= 2.0;
/// assert_eq!(v.get(), 10.0);
/// # Ok(()) }
/// ```
pub struct SharedValue<T: Plain + Send> {
    cell: Shared<ValueCell<T>>,
}

impl<T: Plain + Send> SharedValue<T> {
    /// Creates a value that processes can share.
    ///
    /// # Errors
    ///
    /// `is_out_of_memory`, or the system's error.
    pub fn new(value: T) -> Result<Self> {
        Ok(Self { cell: Shared::new(ValueCell::new(value))? })
    }

    /// Whether both are handles of the same value in this process.
    pub fn ptr_eq(this: &Self, other: &Self) -> bool {
        Shared::ptr_eq(&this.cell, &other.cell)
    }
}

impl<T: Plain + Send> Deref for SharedValue<T> {
    type Target = ValueCell<T>;

    /// The value's cell.
    ///
    /// # Panics
    ///
    /// In a forked child that cannot attach again.
    #[inline(always)]
    fn deref(&self) -> &ValueCell<T> {
        &self.cell
    }
}

impl<T: Plain + Send> Clone for SharedValue<T> {
    fn clone(&self) -> Self {
        Self { cell: self.cell.clone() }
    }
}

impl<T: Plain + Send + fmt::Debug> fmt::Debug for SharedValue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SharedValue").field(&self.get()).finish()
    }
}

impl<T: Plain + Send> Serialize for SharedValue<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (element_hash::<T>(), &self.cell).serialize(serializer)
    }
}

impl<'de, T: Plain + Send> Deserialize<'de> for SharedValue<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (element, cell) = <(u64, Shared<ValueCell<T>>)>::deserialize(deserializer)?;
        if element != element_hash::<T>() {
            return Err(de::Error::custom(Error::from(Kind::Mismatch {
                what: "the type of a shared value",
            })));
        }
        Ok(Self { cell })
    }
}

/// The memory of a [`SharedValue`]; also a field of a user's struct in a [`Shared`].
///
/// Readers copy the value without locking: they never block, never see a value half written, and go on while a writer
/// sleeps, is stopped or dead. Writers take a robust lock in turn.
///
/// # If the peer dies
///
/// A writer that dies in the middle leaves the old value, whole. Nobody is told, because nothing has to be repaired; a waiting
/// writer goes on within a tenth of a second or so. The same holds for one that panics.
///
/// # Panics
///
/// The calls that return no error panic in a forked child that cannot attach again.
#[repr(C)]
pub struct ValueCell<T: Plain + Send> {
    lock: RawLock,
    /// See [`Latch`].
    sequence: AtomicU64,
    slots: [Slot<T>; 2],
}

/// Aligned for words, whatever `T` is.
#[repr(C, align(8))]
struct Slot<T>(UnsafeCell<T>);

// SAFETY: the value is copied in and out as atomics, so threads share nothing but bytes.
unsafe impl<T: Plain + Send> Sync for ValueCell<T> {}

// Whatever panics, the value is whole.
impl<T: Plain + Send> UnwindSafe for ValueCell<T> {}
impl<T: Plain + Send> RefUnwindSafe for ValueCell<T> {}
impl<T: Plain + Send> UnwindSafe for SharedValue<T> {}
impl<T: Plain + Send> RefUnwindSafe for SharedValue<T> {}

// SAFETY: words and plain data in a fixed order, without a destructor; changed as atomics, under a lock that works between
// processes.
unsafe impl<T: Plain + Send> ShmSafe for ValueCell<T> {
    const LAYOUT: u64 = mix(layout_of::<Self>("ValueCell"), layout_of::<T>("plain"));
}

impl<T: Plain + Send> ValueCell<T> {
    /// A cell with `value` in it. May be moved until it is used.
    pub const fn new(value: T) -> Self {
        let slots = [Slot(UnsafeCell::new(value)), Slot(UnsafeCell::new(value))];
        Self { lock: RawLock::new(), sequence: AtomicU64::new(0), slots }
    }

    /// The value. Never blocks; lock-free.
    #[inline]
    pub fn get(&self) -> T {
        must_be_attached(self);
        self.copy()
    }

    /// The value; in a forked child the memory was attached again before.
    #[inline]
    fn copy(&self) -> T {
        // SAFETY: the cell's slots are only accessed as atomics.
        Latch(&self.sequence).read(|slot| unsafe { copy_out(&self.slots[slot]) })
    }

    /// Replaces the value. Blocks while another writer has the lock.
    #[inline]
    pub fn set(&self, value: T) {
        self.writer().publish(value);
    }

    /// Replaces the value and returns the one before. Blocks while another writer has the lock.
    #[inline]
    pub fn replace(&self, value: T) -> T {
        self.update(|_| value)
    }

    /// Replaces the value by what `f` makes of it, while no other writer can come in between; returns the one before. Blocks
    /// while another writer has the lock.
    ///
    /// `f` runs once, under the lock: it must not write to the same cell. In a child that `f` forks, `update` changes nothing:
    /// the lock is the parent's.
    #[inline]
    pub fn update(&self, f: impl FnOnce(T) -> T) -> T {
        let writer = self.writer();
        let before = self.copy();
        writer.publish(f(before));
        before
    }

    /// Replaces the value by `new` if it is `current`. Blocks while another writer has the lock.
    ///
    /// # Errors
    ///
    /// The value there is, if it is not `current`.
    pub fn compare_exchange(&self, current: T, new: T) -> Result<T, T>
    where
        T: PartialEq,
    {
        let writer = self.writer();
        let before = self.copy();
        if before != current {
            return Err(before);
        }
        writer.publish(new);
        Ok(before)
    }

    /// Keeps other writers out until the guard is dropped, which publishes the value in the guard if it was changed. Blocks
    /// while another writer has the lock.
    ///
    /// # Errors
    ///
    /// `Forked` in a forked child that cannot attach again.
    pub fn lock(&self) -> Result<ValueGuard<'_, T>, LockError<ValueGuard<'_, T>>> {
        Ok(ValueGuard::of(self.acquire(|lock| lock.lock(None))?))
    }

    /// The same, if no other writer has the lock. Never blocks.
    ///
    /// # Errors
    ///
    /// `WouldBlock`, `Forked`.
    pub fn try_lock(&self) -> Result<ValueGuard<'_, T>, LockError<ValueGuard<'_, T>>> {
        Ok(ValueGuard::of(self.acquire(RawLock::try_lock)?))
    }

    /// The same, waiting no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// `TimedOut`, `Forked`.
    pub fn lock_timeout(&self, timeout: Duration) -> Result<ValueGuard<'_, T>, LockError<ValueGuard<'_, T>>> {
        let deadline = Instant::now().checked_add(timeout);
        Ok(ValueGuard::of(self.acquire(|lock| lock.lock(deadline))?))
    }

    /// The same, waiting no longer than until `deadline`.
    ///
    /// # Errors
    ///
    /// `TimedOut`, `Forked`.
    pub fn lock_until(&self, deadline: Instant) -> Result<ValueGuard<'_, T>, LockError<ValueGuard<'_, T>>> {
        Ok(ValueGuard::of(self.acquire(|lock| lock.lock(Some(deadline)))?))
    }

    #[inline]
    fn writer(&self) -> Writer<'_, T> {
        match self.acquire(|lock| lock.lock(None)) {
            Ok(writer) => writer,
            Err(refused) => forked(refused),
        }
    }

    #[inline]
    fn acquire(
        &self,
        mut lock: impl FnMut(&RawLock) -> Result<Held, Refused>,
    ) -> Result<Writer<'_, T>, Refused> {
        loop {
            match lock(&self.lock) {
                Ok(held) => {
                    // Whatever happened to the last writer, the value is whole.
                    held.mark_consistent();
                    return Ok(Writer { cell: self, held });
                }
                // Nobody leaves it so, except by scribbling: the value is as good as ever.
                Err(Refused::Unrecoverable) => {
                    if let Ok(held) = self.lock.renew() {
                        return Ok(Writer { cell: self, held });
                    }
                }
                Err(refused) => return Err(refused),
            }
        }
    }
}

#[cold]
fn forked(refused: Refused) -> ! {
    let error = LockError::<()>::from(refused);
    panic!("a shared value cannot be reached after a fork: {error}");
}

impl<T: Plain + Send> From<T> for ValueCell<T> {
    fn from(value: T) -> Self {
        Self::new(value)
    }
}

impl<T: Plain + Send + Default> Default for ValueCell<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: Plain + Send + fmt::Debug> fmt::Debug for ValueCell<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ValueCell").field(&self.get()).finish()
    }
}

/// The cell's lock, held.
struct Writer<'a, T: Plain + Send> {
    cell: &'a ValueCell<T>,
    held: Held,
}

impl<T: Plain + Send> Writer<'_, T> {
    #[inline]
    fn publish(&self, value: T) {
        // A child that was forked since has not got the lock.
        if self.held.check().is_ok() {
            // SAFETY: the cell's slots are only accessed as atomics.
            Latch(&self.cell.sequence).write(|slot| unsafe { copy_in(&self.cell.slots[slot], value) });
        }
    }
}

impl<T: Plain + Send> Drop for Writer<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.cell.lock.unlock(&self.held);
    }
}

/// A copy of the value, while other writers are kept out; see [`ValueCell::lock`].
///
/// When it is dropped, what was changed in it becomes the value, except after a panic. Readers see the value before until
/// then. In a child that was forked since, the drop does nothing.
#[must_use = "a guard that is dropped at once protects nothing"]
pub struct ValueGuard<'a, T: Plain + Send> {
    writer: Writer<'a, T>,
    value: T,
    is_changed: bool,
    /// Stays with the thread that took the lock.
    thread: PhantomData<*const ()>,
}

impl<'a, T: Plain + Send> ValueGuard<'a, T> {
    fn of(writer: Writer<'a, T>) -> Self {
        let value = writer.cell.copy();
        Self { writer, value, is_changed: false, thread: PhantomData }
    }
}

impl<T: Plain + Send> Deref for ValueGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: Plain + Send> DerefMut for ValueGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.is_changed = true;
        &mut self.value
    }
}

impl<T: Plain + Send> Drop for ValueGuard<'_, T> {
    fn drop(&mut self) {
        if self.is_changed && !self.writer.held.must_poison() {
            self.writer.publish(self.value);
        }
    }
}

impl<T: Plain + Send + fmt::Debug> fmt::Debug for ValueGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

/// Calls `each` with the pieces of a `T` in a slot: words, then perhaps half a word, then single bytes.
#[inline(always)]
fn pieces<T>(mut word: impl FnMut(usize), half: impl FnOnce(usize), mut byte: impl FnMut(usize)) {
    let (words, rest) = (size_of::<T>() / 8 * 8, size_of::<T>() % 8);
    (0..words).step_by(8).for_each(&mut word);
    if rest >= 4 {
        half(words);
    }
    (words + rest / 4 * 4..size_of::<T>()).for_each(&mut byte);
}

/// Copies the value of a slot, which others may change meanwhile: then it is a mixture.
///
/// # Safety
///
/// The slot is only accessed by this function and [`copy_in`] since it was shared.
#[inline(always)]
unsafe fn copy_out<T: Plain>(slot: &Slot<T>) -> T {
    let mut value = MaybeUninit::<T>::uninit();
    let to = value.as_mut_ptr().cast::<u8>();
    slot.0.with(|from| {
        let from = from.cast::<u8>().cast_mut();
        // SAFETY: each piece lies inside the slot and inside `value`. In the slot it is aligned and always accessed as an
        // atomic of this size. Relaxed: the latch orders them.
        unsafe {
            pieces::<T>(
                |at| {
                    let word = AtomicU64::from_ptr(from.add(at).cast()).load(Ordering::Relaxed);
                    to.add(at).cast::<u64>().write_unaligned(word);
                },
                |at| {
                    let half = AtomicU32::from_ptr(from.add(at).cast()).load(Ordering::Relaxed);
                    to.add(at).cast::<u32>().write_unaligned(half);
                },
                |at| to.add(at).write(AtomicU8::from_ptr(from.add(at)).load(Ordering::Relaxed)),
            );
        }
    });
    // SAFETY: all bytes are written, and any bytes are a `T`.
    unsafe { value.assume_init() }
}

/// Changes the value of a slot, piece by piece.
///
/// # Safety
///
/// As [`copy_out`].
#[inline(always)]
unsafe fn copy_in<T: Plain>(slot: &Slot<T>, value: T) {
    let from = (&raw const value).cast::<u8>();
    slot.0.with_mut(|to| {
        let to = to.cast::<u8>();
        // SAFETY: as in `copy_out`; a `Plain` value has no byte that is not initialised.
        unsafe {
            pieces::<T>(
                |at| {
                    let word = from.add(at).cast::<u64>().read_unaligned();
                    AtomicU64::from_ptr(to.add(at).cast()).store(word, Ordering::Relaxed);
                },
                |at| {
                    let half = from.add(at).cast::<u32>().read_unaligned();
                    AtomicU32::from_ptr(to.add(at).cast()).store(half, Ordering::Relaxed);
                },
                |at| AtomicU8::from_ptr(to.add(at)).store(from.add(at).read(), Ordering::Relaxed),
            );
        }
    });
}
