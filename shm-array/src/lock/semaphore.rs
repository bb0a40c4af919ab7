//! [`Semaphore`]: a number of permits that come back when their holders die.
//!
//! # Memory
//!
//! ```text
//! permits   how many there are, at most MAX
//! cells     one per permit:   bit 31      FORGOTTEN   held without a guard: `release` gives it back
//!                             bits 0..30  owner       0 free | the holder's token
//! line      where those sleep who found no free cell
//! ```
//!
//! # Normal path
//!
//! Taking a permit is one compare-and-swap of a free cell to the holder's token, giving it back one swap to free and, if
//! somebody sleeps, a wake-up of one. Whoever slept and got a permit wakes one more if another cell is free: two permits may
//! have come back before the first sleeper was up (see `line`).
//!
//! # If a process dies
//!
//! * holding permits: a waiter that finds no free cell asks the oracle about the holders and takes a dead one's cell by a
//!   compare-and-swap from the exact token, so of several that try one succeeds;
//! * after giving back and before the wake-up, or woken and before it takes: a sleeper finds the free cell at the end of
//!   its slice.

use super::LockError;
use super::line::{Line, deadline_after, must_be_attached};
#[cfg(not(loom))]
use crate::error::{Error, Kind};
use shm_core::crash_point;
use shm_core::fork::ForkStamp;
use shm_core::owner::Owner;
use shm_core::sync::{AtomicU32, Ordering, ordering};
use std::fmt;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

/// Held without a guard.
const FORGOTTEN: u32 = 1 << 31;
/// Nobody holds the permit.
const FREE: u32 = 0;

/// The orderings that a model can weaken by name.
#[cfg(loom)]
pub const ORDERINGS: &[&str] = &["semaphore.take", "semaphore.release"];

/// A number of permits that processes share.
///
/// Python's `BoundedSemaphore` rather than its `Semaphore`: a permit has a holder, so it comes back when that dies, and there
/// are never more permits than at the start. For a counter that anybody may raise, see [`Signal`](crate::Signal).
/// `MAX` is the most permits that there is room for, 4 bytes each.
///
/// Not fair: whoever comes along may be faster than a sleeper that was just woken.
///
/// # If the peer dies
///
/// Its permits go to whoever asks next, or sleeps; nobody is told, as no data is behind a semaphore.
///
/// # Across processes
///
/// Put it into a [`Shared`](crate::Shared). Permits belong to the process that took them: in a child that is forked meanwhile
/// they do nothing when dropped.
///
/// # Examples
///
/// ```
/// use shm_array::{Semaphore, Shared};
///
/// let downloads = Shared::new(Semaphore::new(4))?;
/// let permit = downloads.acquire()?;
/// assert_eq!(downloads.available(), 3);
/// drop(permit);
/// assert_eq!(downloads.available(), 4);
/// # Ok::<_, shm_array::Error>(())
/// ```
#[cfg_attr(not(loom), repr(C))]
pub struct Semaphore<const MAX: usize = 64> {
    permits: AtomicU32,
    line: Line,
    cells: [AtomicU32; MAX],
}

/// A permit; given back when dropped. Stays with the thread that took it, unless it is [forgotten](Permit::forget).
#[must_use = "a permit that is dropped at once permits nothing"]
pub struct Permit<'a, const MAX: usize = 64> {
    semaphore: &'a Semaphore<MAX>,
    cell: usize,
    stamp: ForkStamp,
    thread: PhantomData<*const ()>,
}

// SAFETY: a shared permit can do nothing. (It is not `Send`: guards stay where they were taken.)
#[allow(unsafe_code, reason = "the one line")]
unsafe impl<const MAX: usize> Sync for Permit<'_, MAX> {}

impl Semaphore {
    const_in_memory! {
        /// A semaphore with so many permits, room for 64.
        ///
        /// # Panics
        ///
        /// If there are none, or more than 64; at compile time in a constant. See [`Semaphore::try_new`].
        pub fn new(permits: usize) -> Self {
            Self::with_limit(permits)
        }
    }

    /// A semaphore with so many permits, room for 64.
    ///
    /// # Errors
    ///
    /// `is_out_of_range` if there are none, or more than 64.
    #[cfg(not(loom))]
    pub fn try_new(permits: usize) -> Result<Self, Error> {
        Self::try_with_limit(permits)
    }
}

impl<const MAX: usize> Semaphore<MAX> {
    const_in_memory! {
        /// A semaphore with so many permits, and room for `MAX`.
        ///
        /// # Panics
        ///
        /// If there are none, or more than `MAX`; at compile time in a constant.
        ///
        /// # Examples
        ///
        /// ```
        /// use shm_array::Semaphore;
        /// let many = Semaphore::<1000>::with_limit(1000);
        /// assert_eq!(many.available(), 1000);
        /// ```
        pub fn with_limit(permits: usize) -> Self {
            assert!(0 < permits && permits <= MAX, "a semaphore has 1 to MAX permits");
            Self::of(permits)
        }
    }

    /// A semaphore with so many permits, and room for `MAX`.
    ///
    /// # Errors
    ///
    /// `is_out_of_range` if there are none, or more than `MAX`.
    ///
    /// # Examples
    ///
    /// ```
    /// use shm_array::Semaphore;
    /// assert!(Semaphore::<2>::try_with_limit(3).unwrap_err().is_out_of_range());
    /// ```
    #[cfg(not(loom))]
    pub fn try_with_limit(permits: usize) -> Result<Self, Error> {
        if permits == 0 || permits > MAX {
            let (value, limit) = (permits as u64, MAX as u64);
            return Err(Kind::Argument { what: "the number of permits, at least 1,", value, limit }.into());
        }
        Ok(Self::of(permits))
    }

    #[cfg(not(loom))]
    #[allow(clippy::cast_possible_truncation, reason = "nobody has room for that many cells")]
    const fn of(permits: usize) -> Self {
        let cells = [const { AtomicU32::new(FREE) }; MAX];
        Self { permits: AtomicU32::new(permits as u32), line: Line::new(), cells }
    }

    #[cfg(loom)]
    fn of(permits: usize) -> Self {
        let cells = std::array::from_fn(|_| AtomicU32::new(FREE));
        Self { permits: AtomicU32::new(permits as u32), line: Line::new(), cells }
    }

    /// Takes a permit. Blocks until there is one; woken when one is given back.
    ///
    /// # Errors
    ///
    /// [`LockError::Forked`].
    #[inline]
    pub fn acquire(&self) -> Result<Permit<'_, MAX>, LockError<()>> {
        self.acquire_before(None)
    }

    /// The same without blocking. Makes a system call per holder if there is no free permit.
    ///
    /// # Errors
    ///
    /// [`LockError::WouldBlock`] if all permits are held by the living, and [`LockError::Forked`].
    #[inline]
    pub fn try_acquire(&self) -> Result<Permit<'_, MAX>, LockError<()>> {
        let me = self.me()?;
        self.take(me).or_else(|| self.take_over(me)).ok_or(LockError::WouldBlock)
    }

    /// The same, blocking for at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`LockError::TimedOut`] and [`LockError::Forked`].
    pub fn acquire_timeout(&self, timeout: Duration) -> Result<Permit<'_, MAX>, LockError<()>> {
        self.acquire_before(deadline_after(timeout))
    }

    /// The same, blocking until `deadline` at the latest.
    ///
    /// # Errors
    ///
    /// [`LockError::TimedOut`] and [`LockError::Forked`].
    pub fn acquire_until(&self, deadline: Instant) -> Result<Permit<'_, MAX>, LockError<()>> {
        self.acquire_before(Some(deadline))
    }

    /// Gives back a permit that this process holds without a guard (see [`Permit::forget`]); any of its threads may.
    /// Never blocks; wakes one that waits.
    ///
    /// # Errors
    ///
    /// [`LockError::NotHeld`] if this process has forgotten no permit, and [`LockError::Forked`].
    ///
    /// # Examples
    ///
    /// As Python's `acquire` and `release`:
    ///
    /// ```
    /// use shm_array::{LockError, Semaphore};
    ///
    /// let semaphore = Semaphore::new(1);
    /// semaphore.acquire()?.forget();
    /// semaphore.release()?;
    /// assert!(matches!(semaphore.release(), Err(LockError::NotHeld)));
    /// # Ok::<_, LockError<()>>(())
    /// ```
    pub fn release(&self) -> Result<(), LockError<()>> {
        let mine = self.me()?.bits() | FORGOTTEN;
        // SYNC semaphore: Release, pairs with `swap`.
        let release = ordering("semaphore.release", Ordering::SeqCst);
        let given_back = |cell: &AtomicU32| {
            cell.load(Ordering::Relaxed) == mine
                && cell.compare_exchange(mine, FREE, release, Ordering::Relaxed).is_ok()
        };
        if !self.cells().iter().any(given_back) {
            return Err(LockError::NotHeld);
        }
        crash_point!("semaphore.released");
        self.line.notify(1);
        Ok(())
    }

    /// How many permits are free or held by the dead. May be stale at once. A system call per holder.
    ///
    /// # Panics
    ///
    /// In a forked child that could not attach again.
    pub fn available(&self) -> usize {
        must_be_attached(self);
        self.cells().iter().filter(|cell| self.is_to_be_had(cell.load(Ordering::Relaxed))).count()
    }

    /// How many permits there are.
    ///
    /// # Panics
    ///
    /// In a forked child that could not attach again.
    pub fn permits(&self) -> usize {
        must_be_attached(self);
        self.cells().len()
    }

    #[inline]
    fn acquire_before(&self, deadline: Option<Instant>) -> Result<Permit<'_, MAX>, LockError<()>> {
        let me = self.me()?;
        match self.take(me) {
            Some(permit) => Ok(permit),
            None => self.acquire_contended(me, deadline),
        }
    }

    #[cold]
    fn acquire_contended(
        &self,
        me: Owner,
        deadline: Option<Instant>,
    ) -> Result<Permit<'_, MAX>, LockError<()>> {
        let permit = self.line.wait(deadline, || self.take(me), || self.take_over(me));
        // Whoever gave back two permits, one after the other, may have found the mark of sleepers only once.
        if permit.is_some() && self.cells().iter().any(|cell| cell.load(Ordering::Relaxed) == FREE) {
            self.line.notify(1);
        }
        permit.ok_or(LockError::TimedOut)
    }

    /// A free cell => me.
    #[inline]
    fn take(&self, me: Owner) -> Option<Permit<'_, MAX>> {
        let len = self.cells().len();
        // Each process begins elsewhere, so that they do not fight for the first.
        let mut start = usize::from(me.index());
        if start >= len {
            // A division takes longer than all the rest.
            start %= len.max(1);
        }
        self.take_at(start, len, me)
            .or_else(|| (start + 1..len).chain(0..start).find_map(|place| self.take_at(place, len, me)))
    }

    #[inline]
    fn take_at(&self, place: usize, len: usize, me: Owner) -> Option<Permit<'_, MAX>> {
        // Relaxed: compared by the swap.
        let is_free = place < len && self.cells[place].load(Ordering::Relaxed) == FREE;
        if is_free { self.swap(place, FREE, me) } else { None }
    }

    /// A dead holder's cell => me.
    #[cold]
    fn take_over(&self, me: Owner) -> Option<Permit<'_, MAX>> {
        self.cells().iter().enumerate().find_map(|(place, cell)| {
            // Relaxed: compared by the swap.
            let seen = cell.load(Ordering::Relaxed);
            if self.is_to_be_had(seen) { self.swap(place, seen, me) } else { None }
        })
    }

    /// Free, or held by a dead process, or overwritten by what no process writes.
    fn is_to_be_had(&self, cell: u32) -> bool {
        cell == FREE || Owner::from_bits(cell).is_none_or(|owner| owner.is_dead(self))
    }

    #[inline]
    fn swap(&self, place: usize, seen: u32, me: Owner) -> Option<Permit<'_, MAX>> {
        // SYNC semaphore: whatever the holder before did is seen; pairs with the swaps in `drop` and `release`.
        let acquire = ordering("semaphore.take", Ordering::Acquire);
        self.cells[place].compare_exchange(seen, me.bits(), acquire, Ordering::Relaxed).ok()?;
        crash_point!("semaphore.taken");
        Some(Permit { semaphore: self, cell: place, stamp: ForkStamp::now(), thread: PhantomData })
    }

    /// One cell per permit; whatever another process writes as their number, not more than there are.
    fn cells(&self) -> &[AtomicU32] {
        // Relaxed: it does not change.
        let permits = self.permits.load(Ordering::Relaxed) as usize;
        &self.cells[..permits.min(MAX)]
    }

    fn me(&self) -> Result<Owner, LockError<()>> {
        Owner::here(self).map_err(|_| LockError::Forked)
    }
}

impl<const MAX: usize> Permit<'_, MAX> {
    /// Keeps the permit without the guard: it stays with this process until [`Semaphore::release`] or the process's end.
    pub fn forget(self) {
        if self.stamp.check().is_ok() {
            // Relaxed: nobody else changes the cell of a living holder, and this thread's release comes later.
            self.semaphore.cells[self.cell].fetch_or(FORGOTTEN, Ordering::Relaxed);
        }
        std::mem::forget(self);
    }
}

impl<const MAX: usize> Drop for Permit<'_, MAX> {
    fn drop(&mut self) {
        if self.stamp.check().is_err() {
            return;
        }
        crash_point!("semaphore.releasing");
        // SYNC semaphore: whatever was done with the permit is seen by the next holder; pairs with `swap`. SeqCst: before
        // the look for sleepers.
        let release = ordering("semaphore.release", Ordering::SeqCst);
        self.semaphore.cells[self.cell].swap(FREE, release);
        crash_point!("semaphore.released");
        self.semaphore.line.notify(1);
    }
}

impl<const MAX: usize> fmt::Debug for Semaphore<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Semaphore")
            .field("permits", &self.permits())
            .field("available", &self.available())
            .finish()
    }
}

impl<const MAX: usize> fmt::Debug for Permit<'_, MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").field("of", self.semaphore).finish()
    }
}

#[cfg(not(loom))]
#[allow(unsafe_code, reason = "the one line")]
// SAFETY: 32-bit atomics in a fixed order.
unsafe impl<const MAX: usize> shm_core::ShmSafe for Semaphore<MAX> {
    const LAYOUT: u64 =
        shm_core::portable::mix(shm_core::portable::layout_of::<Self>("Semaphore"), MAX as u64);
}
