//! Where the waiters of a lock sleep, for locks whose state is not one word.
//!
//! # Memory
//!
//! ```text
//! bit 0       SLEEPERS   somebody may sleep on the word
//! bits 1..9   CPU        processor of the last waker that found SLEEPERS, modulo 255, + 1; a hint, 0 = unknown
//! bits 9..32  sequence   stepped by every waker that found SLEEPERS
//! ```
//!
//! # Protocol
//!
//! ```text
//! waker:    change the state with a SeqCst read-modify-write; word has SLEEPERS?
//!             no:  done (the usual case: one load)
//!             yes: CAS to (sequence + 1, own CPU, SLEEPERS clear); futex wake
//! waiter:   try; poll a while, or where the last waker ran on this processor, where it cannot run meanwhile: yield; then
//!           arm: set SLEEPERS; fence; try; look at the owners; try; futex wait while the word is as armed, and nobody
//!           else was found dead (see `shm_core::deaths`)
//!           woken, or the slice is over: arm again *before* trying
//! ```
//!
//! `shm_core::wait::WaitLine` has the same protocol with the barrier on the sleeper's side only, for resources that are
//! made ready without one. Here whoever makes something ready has executed a read-modify-write anyway.
//!
//! # The race that looks scary
//!
//! The state changes while the waiter arms. Either the waker's load comes after the arming in the one order of `SeqCst`
//! and sees SLEEPERS, or the waiter's attempt comes after the change and sees that. And a waker that clears SLEEPERS on
//! behalf of several sleepers, and wakes one, hides the others from the next waker until that one has armed again: so
//! whoever wakes fewer than all must let the one that takes pass the wake-up on if there is more to take.
//!
//! # If a process dies
//!
//! A waker between the change and the wake-up, or a woken waiter before it arms again: the others find out at the end
//! of their slice. A sleeper: one superfluous wake-up.

use shm_core::crash_point;
use shm_core::deaths::Deaths;
use shm_core::futex::Futex;
#[cfg(loom)]
use shm_core::futex::Wakeup;
use shm_core::owner::Owner;
use shm_core::sync::{Ordering, fence, seq_cst_in_model};
#[cfg(not(loom))]
use shm_core::sync::{hint, thread};
#[cfg(not(loom))]
use shm_core::wait::next_slice;
use std::time::{Duration, Instant};

/// Somebody may sleep.
const SLEEPERS: u32 = 1;
/// Where the last waker ran.
const CPU: u32 = 0xFF << 1;
/// One step of the sequence.
const STEP: u32 = 1 << 9;
/// Attempts before the first sleep: some microseconds.
#[cfg(not(loom))]
const POLLS: u32 = 60;
/// Yields to a waker on the same processor before the first sleep.
#[cfg(not(loom))]
const YIELDS: u32 = 2;

/// Everybody who sleeps.
pub(crate) const ALL: u32 = i32::MAX as u32;

/// Where waiters sleep. All zero bytes are a line with nobody asleep.
#[derive(Debug)]
#[cfg_attr(not(loom), repr(transparent))]
pub(crate) struct Line {
    word: Futex,
}

/// The moment that is `timeout` away; none where the clock does not reach.
pub(crate) fn deadline_after(timeout: Duration) -> Option<Instant> {
    Instant::now().checked_add(timeout)
}

/// In a forked child the memory is there only after it was attached again: sees to that. For calls that have no error.
///
/// # Panics
///
/// If that is not possible: the next access would be a segmentation fault.
#[inline(always)]
#[track_caller]
pub(crate) fn must_be_attached<T>(place: *const T) {
    if Owner::here(place).is_err() {
        unattached();
    }
}

#[cold]
#[track_caller]
fn unattached() -> ! {
    panic!("this process was forked and could not attach to the shared memory again");
}

impl Line {
    const_in_memory! {
        /// A line with nobody asleep.
        pub(crate) fn new() -> Self {
            Self { word: Futex::new(0) }
        }
    }

    /// Wakes up to `count` sleepers, if there are any. The caller has changed the state by a `SeqCst` read-modify-write
    /// just before. Never blocks; a system call only if somebody sleeps.
    #[inline(always)]
    pub(crate) fn notify(&self, count: u32) {
        // SYNC line: after the change of the state in the order of SeqCst; pairs with the fence in `wait`.
        seq_cst_in_model();
        if self.word.load(Ordering::SeqCst) & SLEEPERS != 0 {
            self.notify_slow(count);
        }
    }

    #[cold]
    fn notify_slow(&self, count: u32) {
        let here = this_cpu();
        // Relaxed: the swap below compares it; the sleeper synchronises with the state itself.
        let mut word = self.word.load(Ordering::Relaxed);
        while word & SLEEPERS != 0 {
            let next = word.wrapping_add(STEP) & !(SLEEPERS | CPU) | here;
            match self.word.word().compare_exchange(word, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    crash_point!("line.waking");
                    return self.word.wake(count);
                }
                Err(seen) => word = seen,
            }
        }
    }

    /// Blocks until `attempt` yields a value, or `deadline` has passed (`None`).
    ///
    /// `attempt` runs often and must be cheap. `look` asks the oracle about the owners that stand in the way, and repairs
    /// or decides; it runs before every sleep, and sleeps end after a slice.
    pub(crate) fn wait<R>(
        &self,
        deadline: Option<Instant>,
        mut attempt: impl FnMut() -> Option<R>,
        mut look: impl FnMut() -> Option<R>,
    ) -> Option<R> {
        if let Some(done) = self.poll(&mut attempt) {
            return Some(done);
        }
        loop {
            // SYNC line: the mark before the attempt, in the order of SeqCst; pairs with the load in `notify`.
            let armed = self.word.word().fetch_or(SLEEPERS, Ordering::SeqCst) | SLEEPERS;
            fence(Ordering::SeqCst);
            crash_point!("line.armed");
            if let Some(done) = attempt() {
                return Some(done);
            }
            let deaths = Deaths::near(self);
            if let Some(done) = look().or_else(&mut attempt) {
                return Some(done);
            }
            if !self.sleep(&deaths, armed, deadline) {
                return None;
            }
        }
    }

    #[cfg(not(loom))]
    fn poll<R>(&self, attempt: &mut impl FnMut() -> Option<R>) -> Option<R> {
        if let Some(done) = attempt() {
            return Some(done);
        }
        // Relaxed: a hint.
        if self.word.load(Ordering::Relaxed) & CPU == this_cpu() {
            return (0..YIELDS).find_map(|_| {
                thread::yield_now();
                attempt()
            });
        }
        (0..POLLS).find_map(|_| {
            hint::spin_loop();
            attempt()
        })
    }

    #[cfg(loom)]
    fn poll<R>(&self, attempt: &mut impl FnMut() -> Option<R>) -> Option<R> {
        attempt()
    }

    /// Sleeps while the word is `armed`, at most for a slice; `false` when the deadline has passed.
    #[cfg(not(loom))]
    fn sleep(&self, deaths: &Deaths, armed: u32, deadline: Option<Instant>) -> bool {
        let Some(slice) = next_slice(deadline) else {
            return false;
        };
        deaths.sleep(&self.word, armed, Some(slice));
        true
    }

    /// In a model a wait with a deadline gives up at once, one among processes that may die ends by itself, and one among
    /// the threads of one process must be woken.
    #[cfg(loom)]
    fn sleep(&self, deaths: &Deaths, armed: u32, deadline: Option<Instant>) -> bool {
        let mortal = Owner::here(self).is_ok_and(|me| me.index() > 0);
        let slice = (deadline.is_some() || mortal).then_some(shm_core::wait::SLICE);
        deaths.sleep(&self.word, armed, slice) != Wakeup::TimedOut || deadline.is_none()
    }
}

/// The processor of the caller, as in the word.
#[cfg(not(loom))]
fn this_cpu() -> u32 {
    let cpu = u32::try_from(rustix::thread::sched_getcpu()).unwrap_or(0);
    (cpu % 0xFF + 1) << CPU.trailing_zeros()
}

/// A model has no processors.
#[cfg(loom)]
fn this_cpu() -> u32 {
    0
}
