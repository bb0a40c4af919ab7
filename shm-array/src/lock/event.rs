//! [`Event`]: something has happened, or not yet.
//!
//! # Memory
//!
//! ```text
//! bit 0       SET
//! bit 1       SLEEPERS   somebody may sleep on the word; cleared by whoever sets the event
//! bits 2..32  sets       how often it changed from clear to set
//! ```
//!
//! Everything is in one word, so a sleeper cannot miss a change: the futex compares the very word that a waiter has looked
//! at. The count tells a waiter that the event was set while it slept, also if somebody has cleared it since. (2^30 sets
//! during one sleep would go unnoticed.)
//!
//! # If a process dies
//!
//! Between setting and waking: sleepers look again at the end of their slice. Anywhere else nothing is half done.

use super::line::{ALL, deadline_after, must_be_attached};
use shm_core::crash_point;
use shm_core::futex::Futex;
#[cfg(loom)]
use shm_core::futex::Wakeup;
#[cfg(loom)]
use shm_core::owner::Owner;
use shm_core::sync::{Ordering, ordering};
#[cfg(not(loom))]
use shm_core::wait::next_slice;
use std::fmt;
use std::time::{Duration, Instant};

/// It has happened.
const SET: u32 = 1;
/// Somebody may sleep.
const SLEEPERS: u32 = 2;
/// One change from clear to set.
const STEP: u32 = 4;

/// The orderings that a model can weaken by name.
#[cfg(loom)]
pub const ORDERINGS: &[&str] = &["event.look", "event.set"];

/// Something that processes wait for until one of them says that it has happened: Python's `Event`.
///
/// What a process did before it set the event is seen by whoever finds it set. A waiter that sleeps when the event is set
/// returns, even if it is cleared at once.
///
/// # If the peer dies
///
/// The event stays as it is; nobody holds it. Whoever waits for a dead process to set it waits until its deadline.
///
/// # Across processes
///
/// Put it into a [`Shared`](crate::Shared). All calls panic in a forked child that could not attach again.
///
/// # Examples
///
/// ```
/// use shm_array::{Event, Shared};
/// use std::time::Duration;
///
/// let done = Shared::new(Event::new())?;
/// assert!(!done.wait_timeout(Duration::from_millis(1)));
/// done.set();                                             // or in another process
/// done.wait();
/// # Ok::<_, shm_array::Error>(())
/// ```
#[cfg_attr(not(loom), repr(transparent))]
pub struct Event {
    word: Futex,
}

impl Event {
    const_in_memory! {
        /// An event that has not happened.
        pub fn new() -> Self {
            Self { word: Futex::new(0) }
        }
    }

    /// It has happened: wakes everybody who waits. Setting it again does nothing more.
    ///
    /// Never blocks. One atomic operation, and one system call if somebody sleeps; no lock, no memory: it may be called in a
    /// signal handler, through a reference.
    ///
    /// # Across processes
    ///
    /// In a child that was forked from a process which had attached to shared memory, it first finds out whether the memory
    /// is attached. That takes a lock, and is no matter for a signal handler, unless this thread has used the same memory a
    /// moment ago and the process attached to nothing and detached from nothing since.
    pub fn set(&self) {
        must_be_reachable(self);
        let stepped = |word: u32| {
            let step = if word & SET == 0 { STEP } else { 0 };
            Some((word.wrapping_add(step) | SET) & !SLEEPERS)
        };
        // SYNC event: whatever was done before is seen by whoever finds it set; pairs with `look`. Acquire: one that sets it
        // again passes on what the first did.
        let release = ordering("event.set", Ordering::AcqRel);
        if let Ok(before) = self.word.word().fetch_update(release, Ordering::Relaxed, stepped) {
            crash_point!("event.set");
            if before & SLEEPERS != 0 {
                self.word.wake(ALL);
            }
        }
    }

    /// It has not happened (again). Never blocks.
    pub fn clear(&self) {
        must_be_attached(self);
        // Relaxed: nothing follows from an event that is not set. The word is changed, not replaced, so whoever sees a later
        // one sees what came before.
        self.word.word().fetch_and(!SET, Ordering::Relaxed);
    }

    /// Whether it has happened. May be stale at once where somebody clears it.
    pub fn is_set(&self) -> bool {
        must_be_attached(self);
        self.look() & SET != 0
    }

    /// Blocks until it has happened; woken by [`Event::set`].
    pub fn wait(&self) {
        self.wait_before(None);
    }

    /// Blocks until it has happened, for at most `timeout`; `false` if it has not.
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        self.wait_before(deadline_after(timeout))
    }

    /// Blocks until it has happened, until `deadline` at the latest; `false` if it has not.
    pub fn wait_until(&self, deadline: Instant) -> bool {
        self.wait_before(Some(deadline))
    }

    fn look(&self) -> u32 {
        // SYNC event: pairs with `set`.
        self.word.load(ordering("event.look", Ordering::Acquire))
    }

    fn wait_before(&self, deadline: Option<Instant>) -> bool {
        must_be_attached(self);
        let mut word = self.look();
        let sets = word / STEP;
        // It is set, or was in the meantime.
        let has_happened = |word: u32| word & SET != 0 || word / STEP != sets;
        while !has_happened(word) {
            // Relaxed: the futex compares the word again before it sleeps, and `set` changes this very word.
            let armed = word | SLEEPERS;
            if self.word.word().compare_exchange(word, armed, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                crash_point!("event.armed");
                if !self.sleep(armed, deadline) {
                    return has_happened(self.look());
                }
            }
            word = self.look();
        }
        true
    }

    /// Sleeps while the word is `armed`, at most for a slice; `false` when the deadline has passed.
    #[cfg(not(loom))]
    fn sleep(&self, armed: u32, deadline: Option<Instant>) -> bool {
        let Some(slice) = next_slice(deadline) else {
            return false;
        };
        self.word.wait(armed, Some(slice));
        true
    }

    /// As in `line`: in a model only the threads of one process sleep until they are woken.
    #[cfg(loom)]
    fn sleep(&self, armed: u32, deadline: Option<Instant>) -> bool {
        let mortal = Owner::here(self).is_ok_and(|me| me.index() > 0);
        let slice = (deadline.is_some() || mortal).then_some(shm_core::wait::SLICE);
        self.word.wait(armed, slice) != Wakeup::TimedOut || deadline.is_none()
    }
}

/// [`must_be_attached`] where the answer is not clear, and nothing that a signal handler must not do where it is: a
/// reference is proof that the memory was there, and only a fork takes it away.
#[inline]
#[track_caller]
pub(super) fn must_be_reachable<T>(place: *const T) {
    #[cfg(not(loom))]
    if shm_core::fork::is_first() {
        return;
    }
    must_be_attached(place);
}

impl Default for Event {
    /// It has not happened.
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_set() { "Event(set)" } else { "Event(unset)" })
    }
}

#[cfg(not(loom))]
#[allow(unsafe_code, reason = "the one line")]
// SAFETY: one 32-bit atomic.
unsafe impl shm_core::ShmSafe for Event {
    const LAYOUT: u64 = shm_core::portable::layout_of::<Self>("Event");
}
