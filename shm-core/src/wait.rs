//! Waiting: one policy for every blocking call, and the line on which two sides of a resource meet.
//!
//! # Memory
//!
//! One cache line per direction of a resource (a queue has one for "not empty" and one for "not full"):
//!
//! ```text
//! word       sequence << 2 | FENCED | SLEEPERS      a shared futex
//! waker_cpu  processor of the last waker + 1         a hint; 0 = unknown
//! ```
//!
//! # Protocol
//!
//! ```text
//! waker:    make the resource ready; light fence; word has SLEEPERS?
//!             no:  done (the usual case: no system call, no fence, one load of a shared line)
//!             yes: CAS to (sequence + 1, SLEEPERS clear); futex wake
//! waiter:   try; poll a while; then
//!           arm: set SLEEPERS; k = word; heavy fence; try again; futex wait while word == k
//!           woken: arm again (a waker cleared it, and others may still sleep) *before* trying
//! taker:    took one, more are ready, SLEEPERS set: wake one more
//! ```
//!
//! The scary race is a publication that is still in the waker's store buffer when the waiter looks. The heavy
//! fence drains it: either the waiter's second look sees the publication, or the waker's load sees SLEEPERS.
//! Arming survives an expired time slice; only a waker clears it, so a sleep episode costs one heavy fence
//! plus one for each wake-up. Where the heavy fence is not to be had, the waiter sets FENCED for good and every
//! waker of this line executes a full fence from then on (a waker that had looked just before may be missed
//! once: that costs one time slice).
//!
//! # If a process dies
//!
//! * a waker, after the CAS and before the wake: its sleeper finds out at the end of its time slice;
//! * a woken waiter, before it takes: likewise, the next sleeper finds the resource ready when its slice ends;
//! * a sleeper: SLEEPERS stays set, one superfluous wake call clears it.
//!
//! Nothing is counted, so nothing has to be repaired. The protocol (with takers that never come back, and with
//! each of its three rules broken in turn) is explored in `ipc-queue/tests/model.rs`.
//!
//! # Polling
//!
//! A wake-up across processors costs some 30 microseconds, a yield on the same one 2, polling 0.3. So the waker
//! leaves its processor number in the line, and a waiter on the same processor yields twice and sleeps, while
//! one on another processor polls about as long as a wake-up would cost. Where that did not pay lately (several
//! peers, more runnable threads than processors), it polls only now and then to see whether it pays again.

use crate::deaths::Deaths;
use crate::futex::{Futex, Wakeup};
use crate::sync::{AtomicU32, Ordering, fence, heavy_fence, light_fence};
#[cfg(not(loom))]
use crate::sync::{hint, thread};
use std::time::{Duration, Instant};

#[cfg(not(loom))]
mod pace;
#[cfg(not(loom))]
pub use pace::Pace;

/// What one handle remembers of its waits: nothing in a model, which looks at every order of events anyway.
#[cfg(loom)]
#[derive(Debug, Default)]
pub struct Pace(());

#[cfg(loom)]
impl Pace {
    /// A handle that has not waited yet.
    pub fn new() -> Self {
        Self(())
    }

    /// One that does not poll.
    pub fn sleeper() -> Self {
        Self(())
    }
}

/// Somebody may sleep.
const SLEEPERS: u32 = 1;
/// The asymmetric fence failed once: wakers fence for themselves.
const FENCED: u32 = 2;
/// One step of the sequence.
const STEP: u32 = 4;

/// The longest sleep between two looks at the state of the peers.
pub const SLICE: Duration = Duration::from_millis(100);

/// Yields to a peer on the same processor before a sleep.
#[cfg(not(loom))]
const YIELDS: u32 = 2;
/// One direction of waiting for a shared resource. Lives in a segment: plain words, no pointers.
#[derive(Debug)]
#[cfg_attr(not(loom), repr(C, align(64)))]
pub struct WaitLine {
    word: Futex,
    waker_cpu: AtomicU32,
}

impl Default for WaitLine {
    fn default() -> Self {
        Self::new()
    }
}

impl WaitLine {
    /// A line with nobody asleep. All zero bytes are a valid line too.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self { word: Futex::new(0), waker_cpu: AtomicU32::new(0) }
    }

    /// A line with nobody asleep.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self { word: Futex::new(0), waker_cpu: AtomicU32::new(0) }
    }

    /// Wakes up to `count` sleepers, if there are any. Call it after the resource was made ready by a `Release`
    /// store. Never blocks; makes a system call only if somebody sleeps.
    #[inline(always)]
    pub fn notify(&self, count: u32) {
        // SYNC wait-line: pairs with `heavy_fence` in `arm`.
        light_fence();
        // Relaxed: the fences order it after the publication.
        let word = self.word.load(Ordering::Relaxed);
        if word & (SLEEPERS | FENCED) != 0 {
            self.notify_slow(count);
        }
    }

    #[cold]
    fn notify_slow(&self, count: u32) {
        // SYNC wait-line: for sleepers whose heavy fence failed; pairs with the full fence in `arm`.
        fence(Ordering::SeqCst);
        let mut word = self.word.load(Ordering::Relaxed);
        while word & SLEEPERS != 0 {
            let next = word.wrapping_add(STEP) & !SLEEPERS;
            // Relaxed: the sleeper synchronises with the resource itself, not with this word.
            match self.word.word().compare_exchange(word, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return self.word.wake(count),
                Err(seen) => word = seen,
            }
        }
    }

    /// Wakes every sleeper whether or not the resource is ready, so that each looks at the state of its peers
    /// (a side was closed, a process died). A system call when somebody sleeps.
    #[inline]
    pub fn notify_all(&self) {
        self.notify(i32::MAX as u32);
    }

    /// Whether somebody may sleep. May be stale at once; for takers that pass a wake-up on.
    #[inline(always)]
    pub fn has_sleepers(&self) -> bool {
        self.word.load(Ordering::Relaxed) & SLEEPERS != 0
    }

    /// Leaves the caller's processor number as a hint for waiters; stores only on change. Call it now and then
    /// (after a miss, every few dozen operations) on the side that makes the resource ready.
    #[inline]
    pub fn note_cpu(&self) {
        let cpu = crate::sys::current_cpu() + 1;
        // Relaxed: a hint.
        if self.waker_cpu.load(Ordering::Relaxed) != cpu {
            self.waker_cpu.store(cpu, Ordering::Relaxed);
        }
    }

    /// Blocks until `attempt` or `check` yields a value, or `deadline` has passed (`None`).
    ///
    /// `attempt` tries to take the resource; it runs often and must be cheap. `check` looks at the state of the
    /// peers (is the other side alive, must something be recovered); it runs before every sleep, thus after each wake-up
    /// that brought nothing and whenever a time slice of at most [`SLICE`] has ended. After each `check` the resource is
    /// tried once more.
    /// `progress` counts the caller's successes so far (a ticket); it paces the polling.
    ///
    /// Woken by [`WaitLine::notify`]. A signal does not end the wait.
    pub fn wait<R>(
        &self,
        pace: &Pace,
        progress: u64,
        deadline: Option<Instant>,
        attempt: impl FnMut() -> Option<R>,
        check: impl FnMut() -> Option<R>,
    ) -> Option<R> {
        self.wait_with(
            pace,
            progress,
            deadline,
            attempt,
            check,
            || (),
            |(), word, expected, slice| word.wait(expected, slice),
        )
    }

    /// As [`WaitLine::wait`], for resources that their owners hold for long, such as locks: the end of a sleep is also that
    /// somebody in the segment was found dead, so that `check` can look at the owners at once (see [`crate::deaths`]).
    pub fn wait_for_owners<R>(
        &self,
        pace: &Pace,
        progress: u64,
        deadline: Option<Instant>,
        attempt: impl FnMut() -> Option<R>,
        check: impl FnMut() -> Option<R>,
    ) -> Option<R> {
        let sleep = |deaths: Deaths, word: &Futex, expected, slice| deaths.sleep(word, expected, slice);
        self.wait_with(pace, progress, deadline, attempt, check, || Deaths::near(self), sleep)
    }

    /// `watch` is called before `check`, and what it returns is given to the `sleep` that follows.
    #[inline]
    #[allow(clippy::too_many_arguments, reason = "the policy and the seven things that it is about")]
    fn wait_with<R, W>(
        &self,
        pace: &Pace,
        progress: u64,
        deadline: Option<Instant>,
        mut attempt: impl FnMut() -> Option<R>,
        mut check: impl FnMut() -> Option<R>,
        watch: impl Fn() -> W,
        sleep: impl Fn(W, &Futex, u32, Option<Duration>) -> Wakeup,
    ) -> Option<R> {
        if let Some(done) = self.poll(pace, progress, deadline, &mut attempt) {
            return Some(done);
        }
        let mut armed = None;
        loop {
            // Arming again before the attempt, after a waker has cleared SLEEPERS, is the rule that keeps the
            // other sleepers reachable; finding it still set after an expired slice costs nothing. The sequence tells
            // whether it is still this sleeper's own arming: otherwise a waker cleared it and another sleeper, whose
            // fence may be yet to come, has set it again.
            let (word, was_set) = self.arm();
            if !(was_set && armed == Some(word)) {
                self.fence_for_sleep();
            }
            armed = Some(word);
            if let Some(done) = attempt() {
                return Some(done);
            }
            let watched = watch();
            // While armed, so that a change of the peers' state from here on ends the sleep.
            if let Some(done) = check() {
                return Some(done);
            }
            if let Some(done) = attempt() {
                return Some(done);
            }
            let slice = next_slice(deadline)?;
            // In a model a wait with a timeout gives up at once, and one without must be woken.
            let timeout = if cfg!(loom) { deadline.map(|_| slice) } else { Some(slice) };
            if sleep(watched, &self.word, word, timeout) == Wakeup::TimedOut && cfg!(loom) {
                return attempt();
            }
        }
    }

    /// Sets SLEEPERS; returns the word to sleep on and whether SLEEPERS was set before.
    fn arm(&self) -> (u32, bool) {
        // Relaxed: ordered by the fence that follows.
        let before = self.word.word().fetch_or(SLEEPERS, Ordering::Relaxed);
        (before | SLEEPERS, before & SLEEPERS != 0)
    }

    /// The sleeper's fence between arming and the last look.
    fn fence_for_sleep(&self) {
        // SYNC wait-line: pairs with `light_fence` in `notify`.
        if !heavy_fence() && self.word.load(Ordering::Relaxed) & FENCED == 0 {
            // The word changes, so this episode's first futex wait returns at once and the loop looks again.
            self.word.word().fetch_or(FENCED, Ordering::Relaxed);
            fence(Ordering::SeqCst);
        }
    }

    /// Polls as long as it is likely to pay.
    #[cfg(not(loom))]
    fn poll<R>(
        &self,
        pace: &Pace,
        progress: u64,
        deadline: Option<Instant>,
        attempt: &mut impl FnMut() -> Option<R>,
    ) -> Option<R> {
        let cpu = crate::sys::current_cpu() + 1;
        if self.waker_cpu.load(Ordering::Relaxed) == cpu {
            return (0..YIELDS).find_map(|_| {
                thread::yield_now();
                attempt()
            });
        }
        let gap = pace.miss(progress);
        let mut left = pace.budget();
        let mut since_look = 0;
        while left > 0 {
            for _ in 0..gap {
                hint::spin_loop();
            }
            if let Some(done) = attempt() {
                pace.paid();
                return Some(done);
            }
            left = left.saturating_sub(gap);
            since_look += gap;
            if since_look >= 256 {
                since_look = 0;
                if deadline.is_some_and(|at| Instant::now() >= at) {
                    return None;
                }
                if self.waker_cpu.load(Ordering::Relaxed) == cpu {
                    break;
                }
            }
        }
        pace.wasted();
        thread::yield_now();
        attempt()
    }

    #[cfg(loom)]
    fn poll<R>(
        &self,
        pace: &Pace,
        progress: u64,
        _deadline: Option<Instant>,
        attempt: &mut impl FnMut() -> Option<R>,
    ) -> Option<R> {
        let _ = (pace, progress);
        attempt()
    }
}

/// How long to sleep until the next look at the peers: a jittered [`SLICE`], or what is left until `deadline`. `None`
/// when the deadline has passed. For waits on words of their own, such as a lock's.
pub fn next_slice(deadline: Option<Instant>) -> Option<Duration> {
    let slice = jittered_slice();
    match deadline {
        None => Some(slice),
        Some(at) => at
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
            .map(|left| left.min(slice)),
    }
}

/// A slice between 60 and 100 ms, so that many sleepers do not look all at once.
fn jittered_slice() -> Duration {
    let now = Instant::now();
    // The address of a stack slot and the clock are random enough to spread sleepers.
    let seed = (&raw const now).addr() as u64 ^ u64::from(crate::sys::monotonic_subsec_nanos());
    SLICE - Duration::from_micros(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 49) - Duration::from_millis(7)
}
