//! [`Signal`]: a counter that anybody raises and whoever waits lowers.

use super::LockError;
use super::event::must_be_reachable;
use super::line::{Line, deadline_after, must_be_attached};
#[cfg(not(loom))]
use crate::error::{Error, Kind};
use shm_core::crash_point;
use shm_core::sync::{AtomicU32, Ordering, ordering};
use std::fmt;
use std::time::{Duration, Instant};

/// The most units, as with `sem_t`.
const MAX: u32 = i32::MAX as u32;

/// The orderings that a model can weaken by name.
#[cfg(loom)]
pub const ORDERINGS: &[&str] = &["signal.take", "signal.post", "seq_cst"];

/// A counter that anybody raises and whoever waits lowers: POSIX's `sem_t`, Python's `Semaphore`.
///
/// Units have no holders, so they can mean anything ("an item more", "a place more"), and may be posted by others than
/// those who wait for them. Up to 2,147,483,647 of them. Not fair. For permits that somebody holds, see
/// [`Semaphore`](crate::Semaphore).
///
/// # If the peer dies
///
/// A unit that it took is gone; nobody can know what it meant. One that it posted stays. Nobody hangs that would not
/// have waited anyway.
///
/// # Across processes
///
/// Put it into a [`Shared`](crate::Shared). `post` may be called in a signal handler (one atomic, and one system call if
/// somebody sleeps), through a reference; in a forked child only as [`Event::set`](crate::Event::set). All calls panic in a
/// forked child that could not attach again.
///
/// # Examples
///
/// ```
/// use shm_array::{Shared, Signal};
///
/// let ready = Shared::new(Signal::new(0))?;
/// ready.post(2)?;
/// ready.wait();
/// assert!(ready.try_wait());
/// assert!(!ready.try_wait());
/// # Ok::<_, shm_array::Error>(())
/// ```
#[cfg_attr(not(loom), repr(C))]
pub struct Signal {
    units: AtomicU32,
    line: Line,
}

impl Signal {
    const_in_memory! {
        /// A counter that begins with so many units.
        ///
        /// # Panics
        ///
        /// If they are more than 2,147,483,647; at compile time in a constant. See [`Signal::try_new`].
        pub fn new(units: u32) -> Self {
            assert!(units <= MAX, "a signal counts to 2,147,483,647");
            Self { units: AtomicU32::new(units), line: Line::new() }
        }
    }

    /// A counter that begins with so many units.
    ///
    /// # Errors
    ///
    /// `is_out_of_range` if they are more than 2,147,483,647.
    #[cfg(not(loom))]
    pub fn try_new(units: u32) -> Result<Self, Error> {
        if units > MAX {
            let (value, limit) = (units.into(), MAX.into());
            return Err(Kind::Argument { what: "the number of units", value, limit }.into());
        }
        Ok(Self::new(units))
    }

    /// Adds `units` and wakes as many that wait. Never blocks.
    ///
    /// # Errors
    ///
    /// [`LockError::TooMany`] if there would be more than 2,147,483,647; then none is added.
    pub fn post(&self, units: u32) -> Result<(), LockError<()>> {
        must_be_reachable(self);
        // SYNC signal: whatever was done before is seen by whoever takes the unit; pairs with `take`. SeqCst: before the look
        // for sleepers.
        let release = ordering("signal.post", Ordering::SeqCst);
        let raised = |now: u32| now.checked_add(units).filter(|&sum| sum <= MAX);
        if self.units.fetch_update(release, Ordering::Relaxed, raised).is_err() {
            return Err(LockError::TooMany { limit: MAX });
        }
        crash_point!("signal.posted");
        if units > 0 {
            self.line.notify(units);
        }
        Ok(())
    }

    /// Takes a unit. Blocks until there is one; woken by [`Signal::post`].
    pub fn wait(&self) {
        self.wait_before(None);
    }

    /// Takes a unit if there is one. Never blocks.
    pub fn try_wait(&self) -> bool {
        must_be_attached(self);
        self.take().is_some()
    }

    /// Takes a unit. Blocks for at most `timeout`; `false` if there was none.
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        self.wait_before(deadline_after(timeout))
    }

    /// Takes a unit. Blocks until `deadline` at the latest; `false` if there was none.
    pub fn wait_until(&self, deadline: Instant) -> bool {
        self.wait_before(Some(deadline))
    }

    /// How many units there are. May be stale at once.
    pub fn value(&self) -> u32 {
        must_be_attached(self);
        // Relaxed: the answer orders nothing.
        self.units.load(Ordering::Relaxed)
    }

    fn wait_before(&self, deadline: Option<Instant>) -> bool {
        must_be_attached(self);
        if self.take().is_some() {
            return true;
        }
        let taken = self.line.wait(deadline, || self.take(), || None).is_some();
        // Whoever posted twice may have found the mark of sleepers only once.
        if taken && self.value() > 0 {
            self.line.notify(1);
        }
        taken
    }

    #[inline]
    fn take(&self) -> Option<()> {
        // SYNC signal: pairs with `post`.
        let acquire = ordering("signal.take", Ordering::Acquire);
        let lowered = |now: u32| now.checked_sub(1);
        self.units.fetch_update(acquire, Ordering::Relaxed, lowered).ok()?;
        crash_point!("signal.taken");
        Some(())
    }
}

impl Default for Signal {
    /// No units.
    fn default() -> Self {
        Self::new(0)
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signal").field("value", &self.value()).finish()
    }
}

#[cfg(not(loom))]
#[allow(unsafe_code, reason = "the one line")]
// SAFETY: 32-bit atomics in a fixed order.
unsafe impl shm_core::ShmSafe for Signal {
    const LAYOUT: u64 = shm_core::portable::layout_of::<Self>("Signal");
}
