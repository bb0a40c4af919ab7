//! A futex word that works between processes.
//!
//! Natively a plain `AtomicU32` and the *shared* futex operations: `FUTEX_PRIVATE_FLAG`, which every thread
//! library sets, keys the wait queue by address space and would lose every wake-up between processes.
//! In a loom model the word carries a mutex and a condition variable of its own.

use crate::sync::{AtomicU32, Ordering};
use std::time::Duration;

/// How a [`Futex::wait`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wakeup {
    /// A wake-up, a signal or nothing at all (spurious): look at the state again.
    Woken,
    /// The word differed from the expected value; the caller never slept.
    Changed,
    /// The timeout passed.
    TimedOut,
}

/// A 32-bit word on which threads of any process that maps it can sleep.
///
/// All accesses of the value are the caller's, through [`Futex::word`]; the futex itself orders nothing.
#[derive(Debug)]
#[cfg_attr(not(loom), repr(transparent))]
pub struct Futex {
    word: AtomicU32,
    #[cfg(loom)]
    lock: loom::sync::Mutex<()>,
    #[cfg(loom)]
    sleepers: loom::sync::Condvar,
}

impl Futex {
    /// A word with the given value and nobody asleep.
    #[cfg(not(loom))]
    pub const fn new(value: u32) -> Self {
        Self { word: AtomicU32::new(value) }
    }

    /// A word with the given value and nobody asleep.
    #[cfg(loom)]
    pub fn new(value: u32) -> Self {
        Self {
            word: AtomicU32::new(value),
            lock: loom::sync::Mutex::new(()),
            sleepers: loom::sync::Condvar::new(),
        }
    }

    /// The word.
    #[inline(always)]
    pub fn word(&self) -> &AtomicU32 {
        &self.word
    }

    /// Sleeps if the word still holds `expected`, at most for `timeout`; woken by [`Futex::wake`].
    ///
    /// The comparison and falling asleep are one step against a waker that changes the word first. In a model
    /// a wait with a timeout never sleeps: it yields and reports [`Wakeup::TimedOut`].
    ///
    /// # If the peer dies
    ///
    /// A waker that dies between changing the word and waking leaves the sleeper asleep: never wait without a
    /// timeout on a word whose waker may die.
    #[cfg(not(loom))]
    pub fn wait(&self, expected: u32, timeout: Option<Duration>) -> Wakeup {
        crate::sys::futex_wait(&self.word, expected, timeout)
    }

    /// Sleeps if the word still holds `expected`; woken by [`Futex::wake`].
    #[cfg(loom)]
    pub fn wait(&self, expected: u32, timeout: Option<Duration>) -> Wakeup {
        let guard = self.lock.lock().expect("no model thread panics while it holds a futex");
        if self.word.load(Ordering::Relaxed) != expected {
            return Wakeup::Changed;
        }
        if timeout.is_some() {
            drop(guard);
            loom::thread::yield_now();
            return Wakeup::TimedOut;
        }
        drop(self.sleepers.wait(guard));
        Wakeup::Woken
    }

    /// Wakes up to `count` sleepers. The caller has changed the word before. A system call, 12 microseconds and
    /// more if it has to reach another processor: call it only when somebody sleeps.
    #[cfg(not(loom))]
    pub fn wake(&self, count: u32) {
        crate::sys::futex_wake(&self.word, count);
    }

    /// Wakes up to `count` sleepers.
    #[cfg(loom)]
    pub fn wake(&self, count: u32) {
        let _guard = self.lock.lock().expect("no model thread panics while it holds a futex");
        if count == 1 { self.sleepers.notify_one() } else { self.sleepers.notify_all() }
    }

    /// Loads the word with `order`.
    #[inline(always)]
    pub fn load(&self, order: Ordering) -> u32 {
        self.word.load(order)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_changed_word_does_not_sleep() {
        assert_eq!(Futex::new(1).wait(2, None), Wakeup::Changed);
    }

    #[test]
    fn a_timeout_ends_the_wait() {
        assert_eq!(Futex::new(1).wait(1, Some(Duration::from_millis(1))), Wakeup::TimedOut);
        assert_eq!(Futex::new(1).wait(1, Some(Duration::ZERO)), Wakeup::TimedOut);
    }

    #[test]
    fn a_timeout_beyond_the_clock_is_no_error() {
        let word = std::sync::Arc::new(Futex::new(0));
        let sleeper = std::thread::spawn({
            let word = word.clone();
            move || {
                while word.load(Ordering::Acquire) == 0 {
                    word.wait(0, Some(Duration::MAX));
                }
            }
        });
        word.word().store(1, Ordering::Release);
        word.wake(1);
        sleeper.join().expect("the sleeper ends");
    }
}
