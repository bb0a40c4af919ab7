//! Waiting for a change of what a lock protects.
#![allow(unsafe_code)]
//! # Safety
//!
//! Only the claim that the type may live in shared memory: it consists of atomics.
//!
//! # Memory
//!
//! ```text
//! counts     bits  0..15   waiters   registered and not yet gone
//!            bits 15..30   signals   given to them and not yet taken, at most as many
//!            bits 30..36   late      registered while there were signals, which are not theirs
//!            bits 36..48   round     stepped by every notification
//!            bits 48..64   epoch     stepped when the counts were wrong, at most once in a slice
//! sequence   a shared futex, stepped after the counts by every notification
//! ```
//!
//! # Protocol
//!
//! ```text
//! wait     register: waiters + 1 (late + 1 if there are signals), remember round and epoch
//!          unlock; sleep on the sequence, in slices, until there is a signal from a later round, or the deadline
//!          lock; take: signals - 1, waiters - 1; somebody else was faster: unlock, sleep on
//! notify   signals + n, at most as many as waiters; round + 1, late = 0; step the sequence; wake n, and the late ones
//! ```
//!
//! Without waiters a notification does nothing, and costs one load. It reaches those only who waited before: a waiter
//! takes no signal of the round in which it came. The next notification would blur that, as then all of them are from a
//! later round; so it gives at least as many signals as there are late ones, and nobody goes short.
//!
//! A signal is taken *under the lock*. A waiter that dies before has taken nothing: another one finds the signal at the end
//! of its slice. One that dies after holds the lock, and the next one to lock is told.
//!
//! # If a process dies
//!
//! * while it waits: it stays among the waiters, and one day a signal is given that nobody takes. A waiter that sees
//!   signals which are not its own stay untaken for a slice steps the epoch: counts at zero, everybody who was
//!   registered wakes, spuriously, and finds its registration void. (The signals may belong to somebody who is only
//!   slow: he does the same when he comes.) One that is stopped for so long that its own round comes again, after 4096
//!   notifications, sleeps on until the next one or the next epoch. Its epoch comes again after 65,536 slices, which is
//!   more than an hour;
//! * while it notifies, before the compare-and-swap: nothing happened; after it: the signals are there, and sleepers
//!   find them at the end of their slices.

use super::LockError;
use shm_core::crash_point;
use shm_core::futex::{Futex, Wakeup};
use shm_core::owner::Owner;
use shm_core::sync::{AtomicU64, Ordering, ordering};
#[cfg(not(loom))]
use shm_core::wait::next_slice;
use std::fmt;
use std::ops::DerefMut;
use std::time::{Duration, Instant};

/// A field of the counts.
#[derive(Clone, Copy)]
struct Field {
    shift: u32,
    bits: u32,
}

const WAITERS: Field = Field { shift: 0, bits: 15 };
const SIGNALS: Field = Field { shift: 15, bits: 15 };
const LATE: Field = Field { shift: 30, bits: 6 };
const ROUND: Field = Field { shift: 36, bits: 12 };
const EPOCH: Field = Field { shift: 48, bits: 16 };

impl Field {
    const fn max(self) -> u64 {
        (1 << self.bits) - 1
    }

    const fn of(self, counts: u64) -> u64 {
        (counts >> self.shift) & self.max()
    }

    /// The counts with this field at `value`, modulo its size.
    const fn set(self, counts: u64, value: u64) -> u64 {
        (counts & !(self.max() << self.shift)) | ((value & self.max()) << self.shift)
    }
}

/// The orderings that a model can weaken by name.
#[cfg(loom)]
pub const ORDERINGS: &[&str] = &["condvar.step", "condvar.look"];

/// A condition variable for threads of any process: lets a holder of a lock wait until another one changed what the lock
/// protects.
///
/// Works with the guards of [`Mutex`](crate::Mutex), and with those of [`ReentrantMutex`](crate::ReentrantMutex) that are
/// the only one of their lock. Waiters with different locks may use the same condition variable.
///
/// A notification reaches threads that wait at that moment, and no others: it is not stored. Without waiters it does
/// nothing. Wake-ups are rarely spurious: the slices in which a waiter sleeps are hidden, and [`Condvar::notify_one`] wakes
/// one. But a waiter may wake without a notification after another one has died, or when notifications and new waiters come
/// faster than the woken ones get the lock. So wait in a loop, or with [`Condvar::wait_while`].
///
/// # If the peer dies
///
/// A waiter that is killed takes no notification with it: if one was meant for it, another waiter gets it, within a tenth
/// of a second. A waiter that is killed when it has got the lock back dies as a holder of the lock: the next one to lock
/// gets [`LockError::OwnerDied`], and should notify the others after the repair, as what the dead one was
/// woken for is not done. Every call that locks again can return that error, too.
///
/// # Across processes
///
/// As for [`Mutex`](crate::Mutex): it works wherever it lies in shared memory. It takes 16 bytes.
///
/// # Examples
///
/// ```
/// use shm_array::{Condvar, LockError, Mutex};
///
/// # fn main() -> Result<(), LockError<()>> {
/// struct Door { open: Mutex<bool>, changed: Condvar }
/// static DOOR: Door = Door { open: Mutex::new(false), changed: Condvar::new() };
///
/// let visitor = std::thread::spawn(|| {
///     let open = DOOR.open.lock()?;
///     drop(DOOR.changed.wait_while(open, |open| !*open)?);
///     Ok::<_, shm_array::Error>(())
/// });
/// *DOOR.open.lock().map_err(LockError::into_error)? = true;
/// DOOR.changed.notify_all();
/// assert!(visitor.join().unwrap().is_ok());
/// # Ok(()) }
/// ```
#[cfg_attr(not(loom), repr(C))]
pub struct Condvar {
    counts: AtomicU64,
    sequence: Futex,
}

// SAFETY: `repr(C)`, atomics only, without an address or a destructor.
#[cfg(not(loom))]
unsafe impl shm_core::ShmSafe for Condvar {
    const LAYOUT: u64 = shm_core::portable::layout_of::<Self>("shm_array::Condvar");
}

/// Whether a wait ended because its time was up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    /// The time was up before a notification came.
    pub fn timed_out(&self) -> bool {
        self.0
    }
}

/// Guards with which a [`Condvar`] can wait: those of [`Mutex`](crate::Mutex) and of
/// [`ReentrantMutex`](crate::ReentrantMutex). Nobody else can implement it.
pub trait WaitGuard: Sized {
    #[doc(hidden)]
    type Lock: Copy;

    /// Runs `before` and unlocks, unless this guard must not be given back.
    #[doc(hidden)]
    fn release(self, before: impl FnOnce()) -> Result<Self::Lock, LockError<Self>>;

    /// Locks again.
    #[doc(hidden)]
    fn lock_again(lock: Self::Lock) -> Result<Self, LockError<Self>>;
}

/// What a waiter remembers of its registration.
#[derive(Clone, Copy)]
struct Ticket {
    round: u64,
    epoch: u64,
}

/// What the counts say to a waiter.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    /// Sleep on.
    None,
    /// There is a signal for it.
    Signal,
    /// The counts were reset, it is not registered any more.
    Void,
}

impl Ticket {
    fn call(self, counts: u64) -> Call {
        if EPOCH.of(counts) != self.epoch {
            Call::Void
        } else if SIGNALS.of(counts) > 0 && ROUND.of(counts) != self.round {
            Call::Signal
        } else {
            Call::None
        }
    }
}

impl Condvar {
    const_in_memory! {
        /// A condition variable for which nobody waits. All zero bytes are one too.
        pub fn new() -> Self {
            Self { counts: AtomicU64::new(0), sequence: Futex::new(0) }
        }
    }

    /// Unlocks, waits for a notification, and locks again. Blocks; woken by [`Condvar::notify_one`] and its like.
    ///
    /// # Errors
    ///
    /// Those of locking again, with the guard where the lock was taken. At once, without having waited:
    /// [`LockError::OwnerDied`] with the guard if that was not marked consistent; [`LockError::TooMany`] if it is one of
    /// several guards that the thread has of one [`ReentrantMutex`](crate::ReentrantMutex).
    pub fn wait<G: WaitGuard>(&self, guard: G) -> Result<G, LockError<G>> {
        match self.wait_for_signal(guard, None) {
            Ok((guard, _)) => Ok(guard),
            Err(error) => Err(error.map(|(guard, _)| guard)),
        }
    }

    /// Waits as [`Condvar::wait`] does, at most for `timeout`; locking again may take longer.
    ///
    /// # Errors
    ///
    /// As [`Condvar::wait`].
    pub fn wait_timeout<G: WaitGuard>(
        &self,
        guard: G,
        timeout: Duration,
    ) -> Result<(G, WaitTimeoutResult), LockError<(G, WaitTimeoutResult)>> {
        // What the clock cannot express is for ever.
        self.wait_for_signal(guard, Instant::now().checked_add(timeout))
    }

    /// Waits as [`Condvar::wait`] does, at most until `deadline`; locking again may take longer.
    ///
    /// # Errors
    ///
    /// As [`Condvar::wait`].
    pub fn wait_until<G: WaitGuard>(
        &self,
        guard: G,
        deadline: Instant,
    ) -> Result<(G, WaitTimeoutResult), LockError<(G, WaitTimeoutResult)>> {
        self.wait_for_signal(guard, Some(deadline))
    }

    /// Waits as long as `condition` is true of the data; looks first, and then after every wake-up.
    ///
    /// # Errors
    ///
    /// As [`Condvar::wait`]. What `condition` says of data whose holder died is not asked.
    pub fn wait_while<G: WaitGuard + DerefMut>(
        &self,
        mut guard: G,
        mut condition: impl FnMut(&mut G::Target) -> bool,
    ) -> Result<G, LockError<G>> {
        while condition(&mut guard) {
            guard = self.wait(guard)?;
        }
        Ok(guard)
    }

    /// Waits as [`Condvar::wait_while`] does, at most for `timeout`. The result has timed out if the condition is still
    /// true then.
    ///
    /// # Errors
    ///
    /// As [`Condvar::wait`].
    pub fn wait_timeout_while<G: WaitGuard + DerefMut>(
        &self,
        mut guard: G,
        timeout: Duration,
        mut condition: impl FnMut(&mut G::Target) -> bool,
    ) -> Result<(G, WaitTimeoutResult), LockError<(G, WaitTimeoutResult)>> {
        let deadline = Instant::now().checked_add(timeout);
        let mut result = WaitTimeoutResult(false);
        while condition(&mut guard) {
            if result.timed_out() {
                return Ok((guard, result));
            }
            (guard, result) = self.wait_for_signal(guard, deadline)?;
        }
        Ok((guard, WaitTimeoutResult(false)))
    }

    /// Wakes one waiter, if there is one. Never blocks; no system call without waiters. The caller may hold the lock or not;
    /// if not, a waiter that is about to wait may be missed, as usual with condition variables.
    pub fn notify_one(&self) {
        self.notify(1);
    }

    /// Wakes all who wait at this moment.
    pub fn notify_all(&self) {
        self.notify(usize::MAX);
    }

    /// Wakes `count` waiters, or all if there are not so many. See [`Condvar::notify_one`].
    pub fn notify(&self, count: usize) {
        // In a forked child the memory is there only after it was attached again.
        if Owner::here(self).is_err() {
            return;
        }
        let count = count as u64;
        // Relaxed: whoever registered under a lock that the caller has held since is seen.
        let mut counts = self.counts.load(Ordering::Relaxed);
        let given = loop {
            let (signals, late) = (SIGNALS.of(counts), LATE.of(counts));
            let missing = WAITERS.of(counts).saturating_sub(signals);
            if count == 0 || missing == 0 {
                return;
            }
            // From here on the late ones may take signals that were given before they came: as many more are needed.
            let given = if late == LATE.max() { missing } else { missing.min(count.max(late)) };
            let next = SIGNALS.set(LATE.set(counts, 0), signals + given);
            match self.exchange(counts, ROUND.set(next, ROUND.of(next) + 1)) {
                Ok(()) => break given,
                Err(seen) => counts = seen,
            }
        };
        crash_point!("condvar.counted");
        self.step(|| {
            // Whoever came after the counts and before the sequence may sleep in front of those who are meant: wake it too.
            // Relaxed: one that is missed costs another a slice.
            let late = LATE.of(self.counts.load(Ordering::Relaxed));
            u32::try_from(given + late).expect("the fields of the counts are small")
        });
    }

    /// Registers the caller as a waiter. It holds the lock.
    fn register(&self) -> Ticket {
        // Relaxed: whoever notifies under the lock, or after, sees it.
        let mut counts = self.counts.load(Ordering::Relaxed);
        loop {
            let (waiters, epoch) = (WAITERS.of(counts), EPOCH.of(counts));
            if waiters == WAITERS.max() {
                // Not registered: it wakes at once, spuriously.
                return Ticket { round: 0, epoch: EPOCH.max() + 1 };
            }
            let is_late = u64::from(SIGNALS.of(counts) > 0);
            let next = LATE.set(counts, LATE.max().min(LATE.of(counts) + is_late));
            match self.exchange(counts, WAITERS.set(next, waiters + 1)) {
                Ok(()) => return Ticket { round: ROUND.of(counts), epoch },
                Err(seen) => counts = seen,
            }
        }
    }

    fn wait_for_signal<G: WaitGuard>(
        &self,
        guard: G,
        deadline: Option<Instant>,
    ) -> Result<(G, WaitTimeoutResult), LockError<(G, WaitTimeoutResult)>> {
        let woken = WaitTimeoutResult(false);
        Owner::here(self).map_err(|_| LockError::Forked)?;
        let mut ticket = None;
        let mut lock = guard
            .release(|| ticket = Some(self.register()))
            .map_err(|error| error.map(|guard| (guard, woken)))?;
        let ticket = ticket.expect("whoever unlocked is registered");
        crash_point!("condvar.registered");
        loop {
            let timed_out = self.sleep(ticket, deadline);
            crash_point!("condvar.woken");
            match G::lock_again(lock) {
                Ok(guard) => {
                    if let Some(result) = self.leave(ticket, timed_out) {
                        return Ok((guard, result));
                    }
                    // Another one took the signal.
                    lock = guard.release(|| ()).map_err(|error| error.map(|guard| (guard, woken)))?;
                }
                Err(error) => {
                    let result = self.leave(ticket, true).unwrap_or(woken);
                    return Err(error.map(|guard| (guard, result)));
                }
            }
        }
    }

    /// Sleeps until there may be a signal for the ticket, or it is void. Returns whether the time was up instead.
    fn sleep(&self, ticket: Ticket, deadline: Option<Instant>) -> bool {
        loop {
            // SYNC condvar-step: Acquire, so that who finds the sequence stepped finds the signals too; pairs with `step`.
            let sequence = self.sequence.load(ordering("condvar.look", Ordering::Acquire));
            // Relaxed: the lock orders the data.
            let counts = self.counts.load(Ordering::Relaxed);
            if ticket.call(counts) != Call::None {
                return false;
            }
            match self.nap(sequence, deadline) {
                None => return true,
                Some(Wakeup::TimedOut) if SIGNALS.of(counts) > 0 => self.reset_if_still(counts, deadline),
                Some(_) => {}
            }
        }
    }

    /// Sleeps while the sequence is `sequence`, at most for a slice. `None` when the deadline has passed.
    #[cfg(not(loom))]
    fn nap(&self, sequence: u32, deadline: Option<Instant>) -> Option<Wakeup> {
        Some(self.sequence.wait(sequence, Some(next_slice(deadline)?)))
    }

    /// In a model a wait with a deadline gives up at once, and one without must be woken.
    #[cfg(loom)]
    fn nap(&self, sequence: u32, deadline: Option<Instant>) -> Option<Wakeup> {
        let wakeup = self.sequence.wait(sequence, deadline.map(|_| shm_core::wait::SLICE));
        Some(wakeup).filter(|wakeup| *wakeup != Wakeup::TimedOut)
    }

    /// Signals that nobody took for a whole slice: whoever they were for is dead, or will wake all the same.
    fn reset_if_still(&self, counts: u64, deadline: Option<Instant>) {
        let was_whole = deadline.is_none_or(|at| Instant::now() < at);
        if was_whole && self.exchange(counts, EPOCH.set(0, EPOCH.of(counts) + 1)).is_ok() {
            crash_point!("condvar.reset");
            self.step(|| i32::MAX as u32);
        }
    }

    /// Ends the registration if there is a signal, or none any more to wait for. The caller holds the lock.
    fn leave(&self, ticket: Ticket, give_up: bool) -> Option<WaitTimeoutResult> {
        // Relaxed: the lock orders the data.
        let mut counts = self.counts.load(Ordering::Relaxed);
        loop {
            let call = ticket.call(counts);
            let taken = match call {
                Call::Void => return Some(WaitTimeoutResult(false)),
                Call::None if !give_up => return None,
                Call::None => 0,
                Call::Signal => 1,
            };
            // What does not fit together was written by somebody else: bounded, it makes no difference but to him.
            let waiters = WAITERS.of(counts).saturating_sub(1);
            let signals = waiters.min(SIGNALS.of(counts) - taken);
            // Without signals nobody is late.
            let late = if signals == 0 { 0 } else { waiters.min(LATE.of(counts)) };
            let next = LATE.set(SIGNALS.set(WAITERS.set(counts, waiters), signals), late);
            match self.exchange(counts, next) {
                Ok(()) => return Some(WaitTimeoutResult(call == Call::None)),
                Err(seen) => counts = seen,
            }
        }
    }

    fn exchange(&self, from: u64, to: u64) -> Result<(), u64> {
        // Relaxed: the lock orders the data, and `step` whatever a sleeper must see.
        self.counts.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed).map(drop)
    }

    /// Makes sleepers look at the counts; wakes up to `count` of them, asked after the step.
    fn step(&self, count: impl FnOnce() -> u32) {
        // SYNC condvar-step: Release, pairs with the look in `sleep`.
        self.sequence.word().fetch_add(1, ordering("condvar.step", Ordering::Release));
        crash_point!("condvar.stepped");
        self.sequence.wake(count());
    }
}

impl Default for Condvar {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Condvar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = f.debug_struct("Condvar");
        if Owner::here(self).is_ok() {
            // Relaxed: stale at once anyway.
            fields.field("waiters", &WAITERS.of(self.counts.load(Ordering::Relaxed)));
        }
        fields.finish()
    }
}
