//! Mutual exclusion between processes, with the data inside.
#![allow(unsafe_code)]
//! # Safety
//!
//! A guard exists only between taking the lock and releasing it in the same process, so whoever has one has the data to
//! itself. A guard that came into a forked child by the fork never lends the data there: it checks first.

use super::LockError;
use super::raw::{Data, Held, RawLock, Refused};
use shm_core::sync::UnsafeCell;
use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::time::{Duration, Instant};

/// A mutex for threads of any process, robust against the death of its holder.
///
/// Inside a [`Shared`](crate::Shared) it excludes every thread of every process that has a handle; anywhere else it is
/// an ordinary mutex between the threads of one process. It takes four bytes besides the data.
///
/// Uncontended, a lock and an unlock are one atomic operation each, without a system call. Otherwise the caller polls for
/// some microseconds and sleeps then. The lock is not fair.
///
/// A thread that locks a mutex which it holds waits for itself, as with std's: for ever, or with
/// [`lock_timeout`](Mutex::lock_timeout) until its time is up. A [`ReentrantMutex`](crate::ReentrantMutex) can be locked
/// again.
///
/// # If the peer dies
///
/// A process that is killed while one of its threads holds the lock leaves the data as it was at that moment, half changed
/// perhaps. The next one to lock gets [`LockError::OwnerDied`] with the guard. It looks at the data, repairs it and says so
/// with [`MutexGuard::mark_consistent`]; from then on all is as before. If it drops the guard without, the mutex is out
/// of use: everybody gets [`LockError::Unrecoverable`] until [`Mutex::renew`] puts a new value in. A sleeping waiter
/// learns of the death within a tenth of a second. A process that is stopped or slow is not dead, and is waited for.
///
/// # Across processes
///
/// A value like any other: it may be moved into shared memory before its first use. The lock names its holder by its
/// process's attachment to the memory that it lies in. A child that was forked while its parent held the lock does not
/// hold it: the guard panics there when it is used, and does nothing when it is dropped.
///
/// # Examples
///
/// ```
/// use shm_array::{LockError, Mutex};
///
/// let account = Mutex::new(100);
/// match account.lock() {
///     Ok(mut balance) => *balance -= 30,
///     // Somebody was killed in the middle of a transfer: look it up in the books, then go on.
///     Err(LockError::OwnerDied(mut balance)) => {
///         *balance = 70;
///         balance.mark_consistent();
///     }
///     Err(error) => panic!("{error}"),
/// }
/// assert_eq!(account.into_inner(), 70);
/// ```
#[cfg_attr(not(loom), repr(C))]
pub struct Mutex<T> {
    raw: RawLock,
    data: UnsafeCell<T>,
}

// SAFETY: the lock hands the data to one thread at a time, so what is needed is that it may go from thread to thread.
unsafe impl<T: Send> Send for Mutex<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Mutex<T> {}

// A panic under the lock poisons it, so nobody sees the broken data unawares.
impl<T> UnwindSafe for Mutex<T> {}
impl<T> RefUnwindSafe for Mutex<T> {}

#[cfg(not(loom))]
// SAFETY: `repr(C)`, a lock that works between processes, and data that may live there. No destructor but the data's.
unsafe impl<T: shm_core::ShmSafe> shm_core::ShmSafe for Mutex<T> {
    const LAYOUT: u64 =
        shm_core::portable::mix(shm_core::portable::layout_of::<Self>("shm_array::Mutex"), T::LAYOUT);
}

/// The data of a [`Mutex`], locked until this is dropped. Belongs to its thread.
///
/// # Panics
///
/// Lending the data (`*guard`) panics in a process that was forked since the lock was taken: it is the parent's.
#[must_use = "the mutex is unlocked when the guard is dropped"]
pub struct MutexGuard<'a, T> {
    mutex: &'a Mutex<T>,
    held: Held,
    /// A guard stays with its thread, as std's does.
    not_send: PhantomData<*mut ()>,
}

/// What the locking calls return.
type LockResult<'a, T> = Result<MutexGuard<'a, T>, LockError<MutexGuard<'a, T>>>;

impl<T> Mutex<T> {
    const_in_memory! {
        /// A free mutex around `value`.
        pub fn new(value: T) -> Self {
            Self { raw: RawLock::new(), data: UnsafeCell::new(value) }
        }
    }

    /// Locks. Blocks while another thread, of this or another process, holds the lock; woken when it is unlocked.
    ///
    /// # Errors
    ///
    /// [`LockError::OwnerDied`] and [`LockError::Poisoned`] with the guard inside; [`LockError::Unrecoverable`],
    /// [`LockError::Forked`] without.
    #[inline(always)]
    pub fn lock(&self) -> LockResult<'_, T> {
        self.guard(self.raw.acquire(None))
    }

    /// Locks if nobody holds the lock. Never blocks.
    ///
    /// # Errors
    ///
    /// As [`Mutex::lock`], and [`LockError::WouldBlock`] if a living process holds it.
    #[inline(always)]
    pub fn try_lock(&self) -> LockResult<'_, T> {
        self.guard(self.raw.try_acquire())
    }

    /// Locks as [`Mutex::lock`] does, and gives up after `timeout`.
    ///
    /// # Errors
    ///
    /// As [`Mutex::lock`], and [`LockError::TimedOut`].
    pub fn lock_timeout(&self, timeout: Duration) -> LockResult<'_, T> {
        // What the clock cannot express is for ever.
        self.guard(self.raw.acquire(Instant::now().checked_add(timeout)))
    }

    /// Locks as [`Mutex::lock`] does, and gives up at `deadline`. A lock that is free is taken even if the deadline has
    /// passed.
    ///
    /// # Errors
    ///
    /// As [`Mutex::lock`], and [`LockError::TimedOut`].
    pub fn lock_until(&self, deadline: Instant) -> LockResult<'_, T> {
        self.guard(self.raw.acquire(Some(deadline)))
    }

    #[inline(always)]
    fn guard(&self, taken: Result<Data, Refused>) -> LockResult<'_, T> {
        let data = taken?;
        Held::outcome(data, MutexGuard { mutex: self, held: Held::new(data), not_send: PhantomData })
    }

    /// Puts a mutex that is out of use ([`LockError::Unrecoverable`]) back into service, with a new value. Never blocks.
    ///
    /// # Errors
    ///
    /// The value, if the mutex is in service (any more): lock it as usual. Likewise in a forked child that could not
    /// attach again.
    ///
    /// # If the peer dies
    ///
    /// In the middle of this call: the next one to lock gets [`LockError::OwnerDied`].
    ///
    /// # Examples
    ///
    /// ```
    /// let mutex = shm_array::Mutex::new(1);
    /// assert_eq!(mutex.renew(2), Err(2));        // nothing is wrong with it
    /// ```
    pub fn renew(&self, value: T) -> Result<(), T> {
        let Ok(held) = self.raw.renew() else {
            return Err(value);
        };
        *MutexGuard { mutex: self, held, not_send: PhantomData } = value;
        Ok(())
    }

    /// The data; without locking, as nobody else can have the mutex now.
    pub fn get_mut(&mut self) -> &mut T {
        // SAFETY: the mutex is borrowed for this alone.
        self.data.with_mut(|data| unsafe { &mut *data })
    }

    /// The data, whatever the mutex says of it.
    pub fn into_inner(self) -> T {
        let this = ManuallyDrop::new(self);
        // SAFETY: the mutex is nobody else's, and is not used again.
        this.data.with_mut(|data| unsafe { data.read() })
    }

    /// Whether somebody holds the lock, alive or dead. May be wrong as soon as it is said.
    pub fn is_locked(&self) -> bool {
        self.raw.is_locked()
    }

    /// Whether a thread panicked while it held the lock. May be stale at once.
    pub fn is_poisoned(&self) -> bool {
        self.raw.is_poisoned()
    }

    /// Forgets that a thread panicked; call it when the data is good again. Does nothing about the death of a holder.
    pub fn clear_poison(&self) {
        self.raw.clear_poison();
    }
}

impl<T> MutexGuard<'_, T> {
    /// The data is good again: after [`LockError::OwnerDied`] or [`LockError::Poisoned`], whoever locks next finds
    /// nothing amiss. Takes effect when the guard is dropped.
    ///
    /// # If the peer dies
    ///
    /// If this process dies while it has the guard, the next one gets [`LockError::OwnerDied`] all the same.
    pub fn mark_consistent(&self) {
        self.held.mark_consistent();
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        self.held.must_be_here();
        // SAFETY: this process holds the lock, and lends the data only through this guard.
        self.mutex.data.with(|data| unsafe { &*data })
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        self.held.must_be_here();
        // SAFETY: as in `deref`, and the guard is borrowed for this alone.
        self.mutex.data.with_mut(|data| unsafe { &mut *data })
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        self.mutex.raw.unlock(&self.held);
    }
}

impl<'a, T> super::WaitGuard for MutexGuard<'a, T> {
    type Lock = &'a Mutex<T>;

    fn release(self, before: impl FnOnce()) -> Result<Self::Lock, LockError<Self>> {
        match self.held.data() {
            _ if self.held.check().is_err() => Err(LockError::Forked),
            Data::OwnerDied => Err(LockError::OwnerDied(self)),
            Data::Good | Data::Poisoned => {
                before();
                Ok(self.mutex)
            }
        }
    }

    fn lock_again(lock: Self::Lock) -> Result<Self, LockError<Self>> {
        lock.lock()
    }
}

impl<T: fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = f.debug_struct("Mutex");
        // Nothing is taken over for the sake of being printed.
        let state = format!("{:?}", self.raw);
        match self.raw.try_lock_free() {
            Some(held) => {
                let guard = MutexGuard { mutex: self, held, not_send: PhantomData };
                fields.field("data", &*guard)
            }
            None => fields.field("data", &format_args!("<locked>")),
        };
        fields.field("state", &format_args!("{state}")).finish()
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> From<T> for Mutex<T> {
    fn from(value: T) -> Self {
        Self::new(value)
    }
}

impl<T: fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl<T: fmt::Display> fmt::Display for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&**self, f)
    }
}
