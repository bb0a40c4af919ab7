//! [`RwLock`]: many readers or one writer.
#![allow(unsafe_code)]
//! # Safety
//!
//! `&mut T` exists only in a write guard and `&T` only in a guard, in the process that took the lock; the algorithm in
//! [`raw`] sees to it that a write guard is alone.

mod counts;
mod raw;

use super::LockError;
use super::line::deadline_after;
use super::raw::{Data, Held, forked};
#[cfg(loom)]
pub use raw::ORDERINGS;
use raw::{RawRwLock, Reading, Refused, Share};
#[cfg(not(loom))]
use shm_core::ShmSafe;
#[cfg(not(loom))]
use shm_core::portable::{layout_of, mix};
use shm_core::sync::UnsafeCell;
use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::time::{Duration, Instant};

/// A reader-writer lock that processes share, with the data under it.
///
/// Like `std::sync::RwLock`, or `parking_lot`'s: any number of readers at a time, or one writer. A reader costs one
/// read-modify-write on a line of its process and one load each way, so readers in different processes do not slow each
/// other. For that the lock is large: 4.2 KB beside the data (4 bytes for each of the 1023 processes that may attach). Use
/// a [`Mutex`](crate::Mutex) where memory matters or sections are short.
///
/// # Fairness
///
/// A writer that waits keeps new readers out, so readers cannot starve a writer. Writers that follow each other closely
/// may delay readers, and nobody is first in, first out. A thread that holds a read lock must not read again: a writer
/// that came in between waits for the first lock, and the second waits for the writer.
///
/// # If the peer dies
///
/// * A reader: its share counts no longer; a writer that waits for it goes on within a tenth of a second or so.
/// * A writer that still waits for its turn: as if it had never come.
/// * A writer inside: the next writer gets [`LockError::OwnerDied`] with the guard, repairs the data and calls
///   [`mark_consistent`](RwLockWriteGuard::mark_consistent). Readers cannot repair anything: until then they get
///   [`LockError::WriterDied`], and should call a writing function instead.
///
/// A *panic* of a writer poisons the lock, as in std: readers and writers get [`LockError::Poisoned`] with their guard until
/// a writer calls `mark_consistent`, or anybody [`clear_poison`](RwLock::clear_poison). A panic of a reader does nothing.
///
/// # Across processes
///
/// Put it into a [`Shared`](crate::Shared), or into a field of what is there. Guards belong to the process that took the lock:
/// in a child that is forked meanwhile they panic when used, and do nothing when dropped.
/// Whoever holds a guard trusts the other processes to respect the lock.
///
/// # Examples
///
/// ```
/// use shm_array::{RwLock, Shared};
///
/// let table = Shared::new(RwLock::new([0f64; 16]))?;
/// table.write()?[3] = 1.5;
/// let (one, other) = (table.read()?, table.read()?);
/// assert_eq!(one[3] + other[3], 3.0);
/// # drop((one, other));
/// # Ok::<_, shm_array::Error>(())
/// ```
#[cfg_attr(not(loom), repr(C))]
pub struct RwLock<T: ?Sized> {
    raw: RawRwLock,
    data: UnsafeCell<T>,
}

// SAFETY: readers of several threads share the data (`Sync`), a writer has it alone (`Send`).
unsafe impl<T: ?Sized + Send + Sync> Sync for RwLock<T> {}
// SAFETY: the data moves with the lock.
unsafe impl<T: ?Sized + Send> Send for RwLock<T> {}

// A panic of a writer poisons it, so nobody meets broken data unawares.
impl<T: ?Sized> UnwindSafe for RwLock<T> {}
impl<T: ?Sized> RefUnwindSafe for RwLock<T> {}

// SAFETY: words and a value that may be shared, in a fixed order; no destructor where `T` has none.
#[cfg(not(loom))]
unsafe impl<T: ShmSafe> ShmSafe for RwLock<T> {
    const LAYOUT: u64 = mix(layout_of::<Self>("RwLock"), T::LAYOUT);
}

/// A share of the lock: the data to read. Given back when dropped. Stays with the thread that took it.
#[must_use = "a guard that is dropped at once protects nothing"]
pub struct RwLockReadGuard<'a, T: ?Sized> {
    lock: &'a RwLock<T>,
    reading: Reading,
    thread: PhantomData<*const ()>,
}

/// The whole lock: the data to write. Given back when dropped. Stays with the thread that took it.
#[must_use = "a guard that is dropped at once protects nothing"]
pub struct RwLockWriteGuard<'a, T: ?Sized> {
    lock: &'a RwLock<T>,
    held: Held,
    thread: PhantomData<*const ()>,
}

// SAFETY: a shared guard gives `&T` only. (It is not `Send`: a count belongs to a process, poison to a thread.)
unsafe impl<T: ?Sized + Sync> Sync for RwLockReadGuard<'_, T> {}

/// What the reading calls return.
type ReadResult<'a, T> = Result<RwLockReadGuard<'a, T>, LockError<RwLockReadGuard<'a, T>>>;
/// What the writing calls return.
type WriteResult<'a, T> = Result<RwLockWriteGuard<'a, T>, LockError<RwLockWriteGuard<'a, T>>>;

impl<T> RwLock<T> {
    const_in_memory! {
        /// A free lock over `value`. May be moved until it is used.
        pub fn new(value: T) -> Self {
            Self { raw: RawRwLock::new(), data: UnsafeCell::new(value) }
        }
    }

    /// Takes the lock if it is out of use; the caller writes new data.
    pub(crate) fn take_out_of_use(&self) -> WriteResult<'_, T> {
        self.writer(self.raw.renew())
    }

    /// The data, out of the lock, in whatever state it is.
    pub fn into_inner(self) -> T {
        let this = ManuallyDrop::new(self);
        // SAFETY: the lock is owned, so nobody borrows the data, and it will not be dropped in its place.
        this.data.with_mut(|data| unsafe { data.read() })
    }

    /// Puts new data into a lock that is [out of use](LockError::Unrecoverable), and with it the lock back into service.
    /// Never blocks.
    ///
    /// # Errors
    ///
    /// The value, if the lock is in service (any more): lock it as usual. Likewise in a forked child that could not attach
    /// again.
    ///
    /// # If the peer dies
    ///
    /// In the middle of this call: the next writer gets [`LockError::OwnerDied`].
    ///
    /// # Examples
    ///
    /// ```
    /// let lock = shm_array::RwLock::new(1);
    /// assert_eq!(lock.renew(2), Err(2));          // nothing is wrong with it
    /// ```
    pub fn renew(&self, value: T) -> Result<(), T> {
        let Ok(mut guard) = self.take_out_of_use() else {
            return Err(value);
        };
        *guard = value;
        Ok(())
    }
}

impl<T: ?Sized> RwLock<T> {
    /// Takes a share of the lock, to read the data. Blocks while a writer is inside or waits; woken when it leaves.
    ///
    /// # Errors
    ///
    /// * [`Poisoned`](LockError::Poisoned), with the guard: a writer panicked;
    /// * [`WriterDied`](LockError::WriterDied): a writer died; the data is to be had from [`write`](Self::write), for repair;
    /// * [`Unrecoverable`](LockError::Unrecoverable): a writer died, and nobody repaired the data;
    /// * [`TooMany`](LockError::TooMany): this process has 4095 read guards;
    /// * [`Forked`](LockError::Forked).
    #[inline(always)]
    pub fn read(&self) -> ReadResult<'_, T> {
        self.reader(self.raw.read(None))
    }

    /// The same without blocking.
    ///
    /// # Errors
    ///
    /// Those of [`read`](Self::read), and [`WouldBlock`](LockError::WouldBlock) if a writer is inside or waits.
    #[inline(always)]
    pub fn try_read(&self) -> ReadResult<'_, T> {
        self.reader(self.raw.try_read())
    }

    /// The same, blocking for at most `timeout`.
    ///
    /// # Errors
    ///
    /// Those of [`read`](Self::read), and [`TimedOut`](LockError::TimedOut).
    pub fn read_timeout(&self, timeout: Duration) -> ReadResult<'_, T> {
        self.reader(self.raw.read(deadline_after(timeout)))
    }

    /// The same, blocking until `deadline` at the latest.
    ///
    /// # Errors
    ///
    /// Those of [`read`](Self::read), and [`TimedOut`](LockError::TimedOut).
    pub fn read_until(&self, deadline: Instant) -> ReadResult<'_, T> {
        self.reader(self.raw.read(Some(deadline)))
    }

    /// Takes the whole lock, to write the data. Blocks until the writer before and then all readers are out; woken by them.
    /// From the time when it is the next writer, no new readers get in.
    ///
    /// # Errors
    ///
    /// * [`OwnerDied`](LockError::OwnerDied), with the guard: a writer died in the middle; repair the data, then call
    ///   [`mark_consistent`](RwLockWriteGuard::mark_consistent);
    /// * [`Poisoned`](LockError::Poisoned), with the guard: a writer panicked;
    /// * [`Unrecoverable`](LockError::Unrecoverable): a writer died, and nobody repaired the data;
    /// * [`Forked`](LockError::Forked).
    #[inline]
    pub fn write(&self) -> WriteResult<'_, T> {
        self.writer(self.raw.write(None))
    }

    /// The same without blocking.
    ///
    /// # Errors
    ///
    /// Those of [`write`](Self::write), and [`WouldBlock`](LockError::WouldBlock) if anybody alive is inside.
    #[inline]
    pub fn try_write(&self) -> WriteResult<'_, T> {
        self.writer(self.raw.try_write())
    }

    /// The same, blocking for at most `timeout`.
    ///
    /// # Errors
    ///
    /// Those of [`write`](Self::write), and [`TimedOut`](LockError::TimedOut).
    pub fn write_timeout(&self, timeout: Duration) -> WriteResult<'_, T> {
        self.writer(self.raw.write(deadline_after(timeout)))
    }

    /// The same, blocking until `deadline` at the latest.
    ///
    /// # Errors
    ///
    /// Those of [`write`](Self::write), and [`TimedOut`](LockError::TimedOut).
    pub fn write_until(&self, deadline: Instant) -> WriteResult<'_, T> {
        self.writer(self.raw.write(Some(deadline)))
    }

    /// For models: a writer that dies while it waits for the readers. Whether it came to that.
    #[cfg(loom)]
    #[doc(hidden)]
    pub fn abandon(&self) -> bool {
        self.raw.abandon()
    }

    /// Whether a writer panicked over the data and nobody said since that it is good. May be stale at once.
    pub fn is_poisoned(&self) -> bool {
        self.raw.is_poisoned()
    }

    /// Says that the data is good in spite of a panic.
    pub fn clear_poison(&self) {
        self.raw.clear_poison();
    }

    /// The data, without locking: nobody else can have it. In whatever state it is.
    pub fn get_mut(&mut self) -> &mut T {
        // SAFETY: the lock is borrowed exclusively, so nobody else has a guard that could be used.
        self.data.with_mut(|data| unsafe { &mut *data })
    }

    #[inline(always)]
    fn reader(&self, taken: Result<Share, Refused>) -> ReadResult<'_, T> {
        match taken {
            Ok(share) => {
                let is_poisoned = share.is_poisoned;
                let guard = RwLockReadGuard { lock: self, reading: Reading::new(share), thread: PhantomData };
                if is_poisoned { Err(LockError::Poisoned(guard)) } else { Ok(guard) }
            }
            Err(refused) => Err(refused.map(|never| match never {})),
        }
    }

    #[inline(always)]
    fn writer(&self, taken: Result<Held, Refused>) -> WriteResult<'_, T> {
        match taken {
            Ok(held) => {
                let data = held.data();
                Held::outcome(data, RwLockWriteGuard { lock: self, held, thread: PhantomData })
            }
            Err(refused) => Err(refused.map(|never| match never {})),
        }
    }
}

impl<T: ?Sized> Deref for RwLockReadGuard<'_, T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        if self.reading.stamp.check().is_err() {
            forked();
        }
        // SAFETY: this process's count is up since before the look at the word, and nobody wrote it down since: no writer.
        self.lock.data.with(|data| unsafe { &*data })
    }
}

impl<T: ?Sized> Drop for RwLockReadGuard<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        self.lock.raw.unlock_read(&self.reading);
    }
}

impl<'a, T: ?Sized> RwLockWriteGuard<'a, T> {
    /// Says that the data is whole again, after `OwnerDied` or `Poisoned`: the next ones get the lock as usual.
    pub fn mark_consistent(&self) {
        self.held.mark_consistent();
    }

    /// Gives the lock back as it was found: after `OwnerDied`, the next writer is told again.
    #[cfg(not(loom))]
    pub(crate) fn put_back(this: Self) {
        let this = ManuallyDrop::new(this);
        this.lock.raw.put_back(&this.held);
    }

    /// Becomes a read guard; no other writer gets in between. Never blocks; wakes the readers that wait.
    ///
    /// # Errors
    ///
    /// With this guard: [`OwnerDied`](LockError::OwnerDied) if the data was not marked as consistent. Without:
    /// [`TooMany`](LockError::TooMany) and [`Forked`](LockError::Forked); the lock is given back.
    pub fn downgrade(this: Self) -> Result<RwLockReadGuard<'a, T>, LockError<Self>> {
        if this.held.data() == Data::OwnerDied {
            return Err(LockError::OwnerDied(this));
        }
        match this.lock.raw.downgrade(&this.held) {
            Ok(share) => {
                let reading = Reading::new(share);
                let lock = this.lock;
                std::mem::forget(this);
                Ok(RwLockReadGuard { lock, reading, thread: PhantomData })
            }
            Err(refused) => Err(refused.map(|never| match never {})),
        }
    }
}

impl<T: ?Sized> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        self.held.must_be_here();
        // SAFETY: a write guard of this process is alone.
        self.lock.data.with(|data| unsafe { &*data })
    }
}

impl<T: ?Sized> DerefMut for RwLockWriteGuard<'_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        self.held.must_be_here();
        // SAFETY: a write guard of this process is alone, and it is borrowed exclusively.
        self.lock.data.with_mut(|data| unsafe { &mut *data })
    }
}

impl<T: ?Sized> Drop for RwLockWriteGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.lock.raw.unlock_write(&self.held);
    }
}

impl<T: Default> Default for RwLock<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> From<T> for RwLock<T> {
    fn from(value: T) -> Self {
        Self::new(value)
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for RwLock<T> {
    /// The data too, if it is to be had without waiting.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("RwLock");
        // Before the look at the data, which would count as a reader.
        out.field("state", &self.raw);
        let guard = self.try_read().or_else(|error| error.into_guard().ok_or(()));
        match &guard {
            Ok(guard) => out.field("data", &&**guard),
            Err(()) => out.field("data", &format_args!("<locked>")),
        };
        out.finish()
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for RwLockReadGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for RwLockWriteGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl<T: ?Sized + fmt::Display> fmt::Display for RwLockReadGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&**self, f)
    }
}

impl<T: ?Sized + fmt::Display> fmt::Display for RwLockWriteGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&**self, f)
    }
}
