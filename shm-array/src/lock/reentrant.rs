//! Mutual exclusion that a thread may enter again while it is inside.
//!
//! # Memory
//!
//! ```text
//! raw         the one-word robust lock: which process holds it
//! depth       how many guards the holding thread has
//! thread      which thread holds it; 0 = none.  bits 34..64 its process's token  bits 0..34 its number there
//! unrepaired  the last holder died, and the present one has not marked the data consistent
//! ```
//!
//! `depth`, `thread` and `unrepaired` are written by the holder alone, so they are never compared and swapped. Processes
//! may number threads alike, but a token is not used twice, nor the number of a thread that ended: no two threads have the
//! same tag, and a thread is the holder if the cell has its tag.
//!
//! The race that looks scary is a thread that reads the cell while another one takes or releases the lock, or has taken it
//! over from a dead process and not written the cell yet. But only this thread writes its tag, and it clears it before it
//! unlocks, so whatever else it reads there, it never reads its own tag when it is outside.
//!
//! # If a process dies
//!
//! Its token stays in the word whatever the other cells say. Whoever takes over writes all of them anew. Until then the cell
//! has the dead one's tag, which is that of no thread alive.
#![allow(unsafe_code)]
//! # Safety
//!
//! Guards lend the data by shared reference, and exist in one thread at a time: the one that holds the lock.

use super::LockError;
use super::raw::{Data, Held, RawLock, Refused};
use shm_core::crash_point;
use shm_core::owner::Owner;
use shm_core::sync::{AtomicU32, AtomicU64, Ordering, UnsafeCell};
use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::time::{Duration, Instant};

/// How many guards one thread may have of one lock.
const MAX_DEPTH: u32 = 1 << 20;

/// A mutex that the thread which holds it may lock again, for threads of any process: Python's `RLock`.
///
/// The lock is free again when the last of the thread's guards is dropped, in whatever order. As there may be several,
/// they lend the data by shared reference; put a `Cell` or a `RefCell` inside to change it (between processes: atomics, as a
/// `Cell` cannot live there).
///
/// # If the peer dies
///
/// As with [`Mutex`](crate::Mutex), however many guards it had. Until one of the guards of the thread that took over
/// [marks the data consistent](ReentrantMutexGuard::mark_consistent), locking again reports [`LockError::OwnerDied`], too.
///
/// # Across processes
///
/// The holder is one thread of one process. As for [`Mutex`](crate::Mutex): it may be moved into shared memory before its
/// first use, and a forked child does not hold what its parent held.
///
/// # Examples
///
/// ```
/// use shm_array::ReentrantMutex;
/// use std::cell::Cell;
///
/// # fn main() -> shm_array::Result<()> {
/// let total = ReentrantMutex::new(Cell::new(0));
/// let outer = total.lock()?;
/// let inner = total.lock()?;                  // the same thread: no deadlock
/// inner.set(outer.get() + 1);
/// # drop(inner); drop(outer);
/// # assert_eq!(total.into_inner().get(), 1);
/// # Ok(()) }
/// ```
#[cfg_attr(not(loom), repr(C))]
pub struct ReentrantMutex<T> {
    raw: RawLock,
    depth: AtomicU32,
    thread: AtomicU64,
    unrepaired: AtomicU32,
    data: UnsafeCell<T>,
}

// SAFETY: the lock lends the data to one thread at a time, so what is needed is that it may go from thread to thread.
unsafe impl<T: Send> Send for ReentrantMutex<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for ReentrantMutex<T> {}

// A panic under the lock poisons it, so nobody sees the broken data unawares.
impl<T: UnwindSafe> UnwindSafe for ReentrantMutex<T> {}
impl<T: UnwindSafe> RefUnwindSafe for ReentrantMutex<T> {}

#[cfg(not(loom))]
// SAFETY: `repr(C)`, atomics, and data that may live there. No destructor but the data's.
unsafe impl<T: shm_core::ShmSafe> shm_core::ShmSafe for ReentrantMutex<T> {
    const LAYOUT: u64 = shm_core::portable::mix(
        shm_core::portable::layout_of::<Self>("shm_array::ReentrantMutex"),
        T::LAYOUT,
    );
}

/// The data of a [`ReentrantMutex`], locked until this and all other guards of the thread are dropped. Belongs to its
/// thread.
///
/// # Panics
///
/// Lending the data (`*guard`) panics in a process that was forked since the lock was taken: it is the parent's.
#[must_use = "the mutex is unlocked when the guard is dropped"]
pub struct ReentrantMutexGuard<'a, T> {
    mutex: &'a ReentrantMutex<T>,
    held: Held,
    /// The lock belongs to the thread.
    not_send: PhantomData<*mut ()>,
}

/// What the locking calls return.
type LockResult<'a, T> = Result<ReentrantMutexGuard<'a, T>, LockError<ReentrantMutexGuard<'a, T>>>;

/// Bits of a tag for the number of a thread; the token of its process is above.
const NUMBER_BITS: u32 = u64::BITS - Owner::BITS;

/// The number of the calling thread: never 0, and never that of another thread of this process.
fn this_thread() -> u64 {
    #[cfg(not(loom))]
    {
        static LAST: AtomicU64 = AtomicU64::new(0);
        std::thread_local! {
            // Relaxed: only that each value comes once matters.
            static NUMBER: u64 = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        }
        NUMBER.with(|number| *number)
    }
    // In a model each process counts for itself, too.
    #[cfg(loom)]
    {
        loom::lazy_static! {
            static ref LAST: [AtomicU64; 4] = std::array::from_fn(|_| AtomicU64::new(0));
        }
        loom::thread_local! {
            static NUMBER: u64 = {
                let process = Owner::here(&raw const *LAST).map_or(0, Owner::index);
                LAST[usize::from(process) % LAST.len()].fetch_add(1, Ordering::Relaxed) + 1
            };
        }
        NUMBER.with(|number| *number)
    }
}

impl<T> ReentrantMutex<T> {
    const_in_memory! {
        /// A free mutex around `value`.
        pub fn new(value: T) -> Self {
            Self {
                raw: RawLock::new(),
                depth: AtomicU32::new(0),
                thread: AtomicU64::new(0),
                unrepaired: AtomicU32::new(0),
                data: UnsafeCell::new(value),
            }
        }
    }

    /// Locks, or locks again. Blocks while another thread, of this or another process, holds the lock; woken when it is
    /// unlocked.
    ///
    /// # Errors
    ///
    /// [`LockError::OwnerDied`] and [`LockError::Poisoned`] with the guard inside; [`LockError::Unrecoverable`],
    /// [`LockError::Forked`] and, with more than a million guards, [`LockError::TooMany`] without.
    #[inline]
    pub fn lock(&self) -> LockResult<'_, T> {
        self.enter(|raw| raw.lock(None))
    }

    /// Locks if no other thread holds the lock. Never blocks.
    ///
    /// # Errors
    ///
    /// As [`ReentrantMutex::lock`], and [`LockError::WouldBlock`] if another thread of a living process holds it.
    #[inline]
    pub fn try_lock(&self) -> LockResult<'_, T> {
        self.enter(RawLock::try_lock)
    }

    /// Locks as [`ReentrantMutex::lock`] does, and gives up after `timeout`.
    ///
    /// # Errors
    ///
    /// As [`ReentrantMutex::lock`], and [`LockError::TimedOut`].
    pub fn lock_timeout(&self, timeout: Duration) -> LockResult<'_, T> {
        // What the clock cannot express is for ever.
        let deadline = Instant::now().checked_add(timeout);
        self.enter(|raw| raw.lock(deadline))
    }

    /// Locks as [`ReentrantMutex::lock`] does, and gives up at `deadline`.
    ///
    /// # Errors
    ///
    /// As [`ReentrantMutex::lock`], and [`LockError::TimedOut`].
    pub fn lock_until(&self, deadline: Instant) -> LockResult<'_, T> {
        self.enter(|raw| raw.lock(Some(deadline)))
    }

    #[inline]
    fn enter(&self, take: impl FnOnce(&RawLock) -> Result<Held, Refused>) -> LockResult<'_, T> {
        // Before the lock is taken: nothing can fail between that and the cells.
        let me = self.tag()?;
        if self.is_held_by(me) {
            // Relaxed, as all of the holder's own cells.
            let depth = self.depth.load(Ordering::Relaxed);
            if depth >= MAX_DEPTH {
                return Err(LockError::TooMany { limit: MAX_DEPTH });
            }
            self.depth.store(depth + 1, Ordering::Relaxed);
            return Held::outcome(self.data_state(), self.guard(Held::again()));
        }
        let held = take(&self.raw)?;
        let data = held.data();
        // Before the tag: whoever dies in between is a dead holder either way.
        self.unrepaired.store(u32::from(data == Data::OwnerDied), Ordering::Relaxed);
        self.depth.store(1, Ordering::Relaxed);
        self.thread.store(me, Ordering::Relaxed);
        crash_point!("reentrant.entered");
        Held::outcome(data, self.guard(held))
    }

    fn guard(&self, held: Held) -> ReentrantMutexGuard<'_, T> {
        ReentrantMutexGuard { mutex: self, held, not_send: PhantomData }
    }

    /// What is known of the data, for the thread that holds the lock.
    fn data_state(&self) -> Data {
        match self.unrepaired.load(Ordering::Relaxed) {
            0 if self.raw.is_poisoned() => Data::Poisoned,
            0 => Data::Good,
            _ => Data::OwnerDied,
        }
    }

    /// The tag of the calling thread: never 0, and never that of another thread of any process.
    #[inline]
    fn tag(&self) -> Result<u64, Refused> {
        let me = Owner::here(&self.raw)?;
        Ok(u64::from(me.bits()) << NUMBER_BITS | this_thread())
    }

    /// Whether the calling thread, whose tag is `me`, holds the lock.
    #[inline]
    fn is_held_by(&self, me: u64) -> bool {
        // Relaxed: what this thread wrote itself it sees in order.
        self.thread.load(Ordering::Relaxed) == me
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
    pub fn renew(&self, value: T) -> Result<(), T> {
        let Ok(held) = self.raw.renew() else {
            return Err(value);
        };
        // SAFETY: the lock is held, and there is no guard.
        let old = self.data.with_mut(|data| unsafe { std::mem::replace(&mut *data, value) });
        self.raw.unlock(&held);
        // Only now: its destructor may panic, or lock again.
        drop(old);
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

    /// Whether some thread holds the lock, alive or dead. May be wrong as soon as it is said.
    pub fn is_locked(&self) -> bool {
        self.raw.is_locked()
    }

    /// Whether the calling thread holds the lock. Does not go stale.
    #[inline]
    pub fn is_held_by_this_thread(&self) -> bool {
        self.tag().is_ok_and(|me| self.is_held_by(me))
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

impl<T> ReentrantMutexGuard<'_, T> {
    /// The data is good again: after [`LockError::OwnerDied`] or [`LockError::Poisoned`], nobody will find anything amiss.
    ///
    /// # If the peer dies
    ///
    /// If this process dies while it has a guard, the next one gets [`LockError::OwnerDied`] all the same.
    pub fn mark_consistent(&self) {
        if self.held.check().is_ok() {
            self.mutex.unrepaired.store(0, Ordering::Relaxed);
            self.mutex.raw.clear_poison();
        }
    }
}

impl<T> Deref for ReentrantMutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.held.must_be_here();
        // SAFETY: the calling thread holds the lock, and nobody writes while there are guards.
        self.mutex.data.with(|data| unsafe { &*data })
    }
}

impl<T> Drop for ReentrantMutexGuard<'_, T> {
    fn drop(&mut self) {
        if self.held.check().is_err() {
            return;
        }
        let mutex = self.mutex;
        if self.held.must_poison() {
            mutex.raw.poison();
        }
        // A scribbled zero must not become a depth without end.
        let depth = mutex.depth.load(Ordering::Relaxed).saturating_sub(1);
        mutex.depth.store(depth, Ordering::Relaxed);
        if depth == 0 {
            mutex.thread.store(0, Ordering::Relaxed);
            crash_point!("reentrant.left");
            self.held.set_data(mutex.data_state());
            mutex.raw.unlock(&self.held);
        }
    }
}

impl<'a, T> super::WaitGuard for ReentrantMutexGuard<'a, T> {
    type Lock = &'a ReentrantMutex<T>;

    fn release(self, before: impl FnOnce()) -> Result<Self::Lock, LockError<Self>> {
        if self.held.check().is_err() {
            return Err(LockError::Forked);
        }
        if self.mutex.unrepaired.load(Ordering::Relaxed) != 0 {
            return Err(LockError::OwnerDied(self));
        }
        if self.mutex.depth.load(Ordering::Relaxed) > 1 {
            return Err(LockError::TooMany { limit: 1 });
        }
        before();
        Ok(self.mutex)
    }

    fn lock_again(lock: Self::Lock) -> Result<Self, LockError<Self>> {
        lock.lock()
    }
}

impl<T: fmt::Debug> fmt::Debug for ReentrantMutex<T> {
    /// Who holds the lock, and how often; and the data, if it is this thread or nobody.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = format!("{:?}", self.raw);
        let whose = match (self.raw.is_held_here(), self.is_held_by_this_thread()) {
            (_, true) => " (this thread)",
            (Ok(true), false) => " (another thread)",
            _ => "",
        };
        let count = if self.raw.is_locked() { self.depth.load(Ordering::Relaxed) } else { 0 };
        let mut fields = f.debug_struct("ReentrantMutex");
        // Nothing is taken over for the sake of being printed.
        match self.enter(|raw| raw.try_lock_free().ok_or(Refused::WouldBlock)) {
            Ok(guard) | Err(LockError::OwnerDied(guard) | LockError::Poisoned(guard)) => {
                fields.field("data", &*guard)
            }
            Err(_) => fields.field("data", &format_args!("<locked>")),
        };
        fields.field("state", &format_args!("{state}{whose}")).field("count", &count).finish()
    }
}

impl<T: Default> Default for ReentrantMutex<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> From<T> for ReentrantMutex<T> {
    fn from(value: T) -> Self {
        Self::new(value)
    }
}

impl<T: fmt::Debug> fmt::Debug for ReentrantMutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl<T: fmt::Display> fmt::Display for ReentrantMutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&**self, f)
    }
}
