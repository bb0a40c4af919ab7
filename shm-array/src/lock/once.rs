//! [`Once`] and [`OnceLock`]: something that is done by one process, once, for all.
#![allow(unsafe_code)]
//! # Memory
//!
//! ```text
//! word     0 INCOMPLETE | COMPLETE | POISONED | the token of the process that runs it
//! line     where the others sleep
//! value    written by the runner before COMPLETE, never again
//! ```
//!
//! # If a process dies
//!
//! While it runs: a caller asks the oracle and takes over, by a compare-and-swap from the exact token, and runs it from the
//! start; whoever only waits for it is told. After COMPLETE and before the wake-up: the others find out at the end of their slice.
//!
//! # Safety
//!
//! `value` is written only by the one whose token is in the word, and read only after COMPLETE, which stays for ever.

use super::LockError;
use super::line::{ALL, Line, deadline_after, must_be_attached};
use shm_core::crash_point;
use shm_core::fork::ForkStamp;
use shm_core::owner::Owner;
use shm_core::sync::{AtomicU32, Ordering, UnsafeCell, ordering};
use std::cell::Cell;
use std::fmt;
use std::mem::MaybeUninit;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::time::{Duration, Instant};

/// Not done, and nobody runs it.
const INCOMPLETE: u32 = 0;
/// Done.
const COMPLETE: u32 = 1;
/// Nobody runs it, and whoever did last panicked.
const POISONED: u32 = 2;

const _: () = assert!(POISONED < Owner::LOCAL);

/// The orderings that a model can weaken by name.
#[cfg(loom)]
pub const ORDERINGS: &[&str] = &["once.look", "once.end"];

/// Something that is done once for all processes: std's `Once` between processes.
///
/// # If the peer dies
///
/// In the middle of it: the next one that calls it runs it, from the start. What the dead one had done by then is there; see
/// [`OnceState::is_owner_died`]. Whoever only [waits](Once::wait) is told, and may call it or wait on.
///
/// # Across processes
///
/// Put it into a [`Shared`](crate::Shared), beside what it initialises. Calls without an error for that panic in a forked
/// child that could not attach again.
///
/// # Examples
///
/// ```
/// use shm_array::{Once, Shared};
///
/// let once = Shared::new(Once::new())?;
/// once.call_once(|| println!("once for all processes"))?;
/// once.call_once(|| unreachable!())?;
/// assert!(once.is_completed());
/// # Ok::<_, shm_array::Error>(())
/// ```
#[cfg_attr(not(loom), repr(C))]
pub struct Once {
    word: AtomicU32,
    line: Line,
}

/// How it stood when [`Once::call_once_force`] ran its closure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnceState {
    is_poisoned: bool,
    is_owner_died: bool,
}

impl OnceState {
    /// Whoever ran it last panicked.
    pub fn is_poisoned(&self) -> bool {
        self.is_poisoned
    }

    /// Whoever ran it last died in the middle.
    pub fn is_owner_died(&self) -> bool {
        self.is_owner_died
    }
}

/// What a caller finds.
enum Turn {
    Done,
    Poisoned,
    /// It is the caller's now.
    Mine(OnceState),
}

/// The right to run it; ends with `end`, also in a panic.
struct Run<'a> {
    once: &'a Once,
    stamp: ForkStamp,
    state: OnceState,
    end: Cell<u32>,
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        // A child that was forked in the middle leaves it to its parent.
        if self.stamp.check().is_ok() {
            crash_point!("once.ending");
            // SYNC once: what was done is seen by whoever finds it complete, or runs it next; pairs with `look`.
            self.once.word.swap(self.end.get(), ordering("once.end", Ordering::SeqCst));
            crash_point!("once.ended");
            self.once.line.notify(ALL);
        }
    }
}

impl Once {
    const_in_memory! {
        /// Not done.
        pub fn new() -> Self {
            Self { word: AtomicU32::new(INCOMPLETE), line: Line::new() }
        }
    }

    /// Runs `f`, unless it was done before. Blocks while another one runs it; woken when that is through.
    ///
    /// If `f` calls it again, that waits for ever.
    ///
    /// # Errors
    ///
    /// * [`LockError::Poisoned`]: whoever ran it panicked, see [`call_once_force`](Self::call_once_force);
    /// * [`LockError::Forked`], also in a child that `f` has forked.
    #[inline]
    pub fn call_once(&self, f: impl FnOnce()) -> Result<(), LockError<()>> {
        if self.is_done()? { Ok(()) } else { self.call(false, |_| f()) }
    }

    /// The same, also after a panic.
    ///
    /// # Errors
    ///
    /// [`LockError::Forked`].
    #[inline]
    pub fn call_once_force(&self, f: impl FnOnce(&OnceState)) -> Result<(), LockError<()>> {
        if self.is_done()? { Ok(()) } else { self.call(true, f) }
    }

    /// Whether it is done; once it is, it stays so.
    #[inline]
    pub fn is_completed(&self) -> bool {
        must_be_attached(self);
        self.look() == COMPLETE
    }

    /// Blocks until somebody has done it; woken by that.
    ///
    /// # Errors
    ///
    /// * [`LockError::OwnerDied`]: whoever ran it died, and nobody has begun it again;
    /// * [`LockError::Poisoned`]: whoever ran it panicked;
    /// * [`LockError::Forked`].
    pub fn wait(&self) -> Result<(), LockError<()>> {
        self.wait_before(None)
    }

    /// The same, blocking for at most `timeout`.
    ///
    /// # Errors
    ///
    /// Those of [`wait`](Self::wait), and [`LockError::TimedOut`].
    pub fn wait_timeout(&self, timeout: Duration) -> Result<(), LockError<()>> {
        self.wait_before(deadline_after(timeout))
    }

    /// The same, blocking until `deadline` at the latest.
    ///
    /// # Errors
    ///
    /// Those of [`wait`](Self::wait), and [`LockError::TimedOut`].
    pub fn wait_until(&self, deadline: Instant) -> Result<(), LockError<()>> {
        self.wait_before(Some(deadline))
    }

    /// As [`is_completed`](Self::is_completed), with an error.
    #[inline]
    fn is_done(&self) -> Result<bool, LockError<()>> {
        self.me()?;
        Ok(self.look() == COMPLETE)
    }

    #[inline(always)]
    fn me(&self) -> Result<Owner, LockError<()>> {
        Owner::here(self).map_err(|_| LockError::Forked)
    }

    fn wait_before(&self, deadline: Option<Instant>) -> Result<(), LockError<()>> {
        self.me()?;
        let attempt = || match self.look() {
            COMPLETE => Some(Ok(())),
            POISONED => Some(Err(LockError::Poisoned(()))),
            _ => None,
        };
        let look = || self.runner_died().map(|_| Err(LockError::OwnerDied(())));
        self.line.wait(deadline, attempt, look).unwrap_or(Err(LockError::TimedOut))
    }

    /// The word. In a forked child only after the memory was attached again.
    #[inline(always)]
    fn look(&self) -> u32 {
        // SYNC once: pairs with the end of `Run`.
        self.word.load(ordering("once.look", Ordering::Acquire))
    }

    #[cold]
    fn call(&self, force: bool, f: impl FnOnce(&OnceState)) -> Result<(), LockError<()>> {
        let Some(run) = self.begin(force)? else {
            return Ok(());
        };
        run.end.set(POISONED);
        f(&run.state);
        run.end.set(COMPLETE);
        run.stamp.check().map_err(|_| LockError::Forked)
    }

    /// The right to run it; nothing if it is done. Blocks while another one runs it.
    fn begin(&self, force: bool) -> Result<Option<Run<'_>>, LockError<()>> {
        let me = self.me()?;
        let turn = self.line.wait(None, || self.turn(me, force), || self.take_over(me));
        match turn.expect("a wait without a deadline ends with a result") {
            Turn::Done => Ok(None),
            Turn::Poisoned => Err(LockError::Poisoned(())),
            Turn::Mine(state) => {
                crash_point!("once.running");
                Ok(Some(Run { once: self, stamp: ForkStamp::now(), state, end: Cell::new(INCOMPLETE) }))
            }
        }
    }

    fn turn(&self, me: Owner, force: bool) -> Option<Turn> {
        match self.look() {
            COMPLETE => Some(Turn::Done),
            POISONED if !force => Some(Turn::Poisoned),
            seen @ (INCOMPLETE | POISONED) => {
                let state = OnceState { is_poisoned: seen == POISONED, is_owner_died: false };
                self.swap(seen, me).then_some(Turn::Mine(state))
            }
            _ => None,
        }
    }

    /// Runs it again after the death of whoever ran it.
    fn take_over(&self, me: Owner) -> Option<Turn> {
        let seen = self.runner_died()?;
        let state = OnceState { is_poisoned: false, is_owner_died: true };
        self.swap(seen, me).then_some(Turn::Mine(state))
    }

    /// The word, if it names a dead runner. What no process writes is nobody's.
    fn runner_died(&self) -> Option<u32> {
        let seen = self.look();
        let is_dead = || Owner::from_bits(seen).is_none_or(|owner| owner.is_dead(self));
        (seen > POISONED && is_dead()).then_some(seen)
    }

    fn swap(&self, from: u32, me: Owner) -> bool {
        // Acquire: as `look`, which this follows.
        self.word.compare_exchange(from, me.bits(), Ordering::Acquire, Ordering::Relaxed).is_ok()
    }
}

impl Default for Once {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Once {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        must_be_attached(self);
        let state = match self.look() {
            INCOMPLETE => "incomplete",
            COMPLETE => "complete",
            POISONED => "poisoned",
            running => {
                return match Owner::from_bits(running).and_then(|owner| owner.process_id(self)) {
                    Some(id) => write!(f, "Once(run by process {id})"),
                    None => f.write_str("Once(running)"),
                };
            }
        };
        write!(f, "Once({state})")
    }
}

/// A value that is written once, by one process, for all: std's `OnceLock` between processes.
///
/// Reading it takes a few loads. The value is never dropped in its place; [`take`](OnceLock::take) and
/// [`into_inner`](OnceLock::into_inner) get it out.
///
/// # If the peer dies
///
/// While it initialises: the next one that asks does it instead. Whoever only [waits](OnceLock::wait) is told.
///
/// # Across processes
///
/// Put it into a [`Shared`](crate::Shared). Calls without an error for that panic in a forked child that could not attach
/// again.
///
/// # Examples
///
/// ```
/// use shm_array::{OnceLock, Shared};
///
/// let seed = Shared::new(OnceLock::new())?;
/// assert_eq!(seed.get(), None);
/// let value = *seed.get_or_init(|| 42u64)?;               // the first process decides
/// assert_eq!(seed.set(7), Err(7));
/// assert_eq!(seed.get(), Some(&value));
/// # Ok::<_, shm_array::Error>(())
/// ```
#[cfg_attr(not(loom), repr(C))]
pub struct OnceLock<T> {
    once: Once,
    value: UnsafeCell<MaybeUninit<T>>,
}

// SAFETY: any thread may write the value (`Send`), and then all read it (`Sync`).
unsafe impl<T: Send + Sync> Sync for OnceLock<T> {}
// SAFETY: the value moves with it.
unsafe impl<T: Send> Send for OnceLock<T> {}

// As std's: a value is there as a whole, or not.
impl<T: UnwindSafe> UnwindSafe for OnceLock<T> {}
impl<T: UnwindSafe + RefUnwindSafe> RefUnwindSafe for OnceLock<T> {}

impl<T> OnceLock<T> {
    const_in_memory! {
        /// Without a value.
        pub fn new() -> Self {
            Self { once: Once::new(), value: UnsafeCell::new(MaybeUninit::uninit()) }
        }
    }

    /// The value, if it is there. Never blocks.
    #[inline]
    pub fn get(&self) -> Option<&T> {
        // SAFETY: complete, so it was written and stays.
        self.once.is_completed().then(|| unsafe { self.value() })
    }

    /// Writes the value, if there is none. Blocks while another one initialises.
    ///
    /// # Errors
    ///
    /// The value, if there is one already, or this process was forked and could not attach again.
    pub fn set(&self, value: T) -> Result<(), T> {
        match self.once.begin(true) {
            Ok(Some(run)) => {
                self.write(&run, value);
                Ok(())
            }
            Ok(None) | Err(_) => Err(value),
        }
    }

    /// The value; if there is none, the one that `f` makes. Blocks while another one initialises; woken when that is through.
    ///
    /// If `f` panics, there is no value, and the next one tries. If `f` asks for the value, it waits for ever.
    ///
    /// # Errors
    ///
    /// [`LockError::Forked`], also in a child that `f` has forked.
    #[inline]
    pub fn get_or_init(&self, f: impl FnOnce() -> T) -> Result<&T, LockError<()>> {
        self.get_or_try_init(|| Ok(f()))
    }

    /// The same where making the value may fail; then there is none, and the next one tries.
    ///
    /// # Errors
    ///
    /// That of `f`, and [`LockError::Forked`].
    ///
    /// # Examples
    ///
    /// ```
    /// use shm_array::{Error, OnceLock};
    ///
    /// fn port(text: &str) -> Result<u16, Box<dyn std::error::Error>> {
    ///     static PORT: OnceLock<u16> = OnceLock::new();
    ///     Ok(*PORT.get_or_try_init(|| Ok::<_, Box<dyn std::error::Error>>(text.parse()?))?)
    /// }
    /// assert!(port("no number").is_err());
    /// assert_eq!(port("80").unwrap(), 80);
    /// ```
    pub fn get_or_try_init<E: From<LockError<()>>>(&self, f: impl FnOnce() -> Result<T, E>) -> Result<&T, E> {
        if !self.once.is_done()? {
            if let Some(run) = self.once.begin(true)? {
                let value = f()?;
                if run.stamp.check().is_err() {
                    return Err(LockError::Forked.into());
                }
                self.write(&run, value);
            }
        }
        // SAFETY: complete, by this call or by another's.
        Ok(unsafe { self.value() })
    }

    /// For models: writes a value and stays in the middle, as a process that dies there. Whether it was the one.
    #[cfg(loom)]
    #[doc(hidden)]
    pub fn abandon(&self, value: T) -> bool {
        let run = self.once.begin(true).ok().flatten();
        if let Some(run) = &run {
            self.write(run, value);
        }
        let is_begun = run.is_some();
        std::mem::forget(run);
        is_begun
    }

    /// Blocks until there is a value; woken by whoever makes it.
    ///
    /// # Errors
    ///
    /// [`LockError::OwnerDied`]: whoever made it died, and nobody has begun again. [`LockError::Forked`].
    pub fn wait(&self) -> Result<&T, LockError<()>> {
        self.wait_before(None)
    }

    /// The same, blocking for at most `timeout`.
    ///
    /// # Errors
    ///
    /// Those of [`wait`](Self::wait), and [`LockError::TimedOut`].
    pub fn wait_timeout(&self, timeout: Duration) -> Result<&T, LockError<()>> {
        self.wait_before(deadline_after(timeout))
    }

    /// The same, blocking until `deadline` at the latest.
    ///
    /// # Errors
    ///
    /// Those of [`wait`](Self::wait), and [`LockError::TimedOut`].
    pub fn wait_until(&self, deadline: Instant) -> Result<&T, LockError<()>> {
        self.wait_before(Some(deadline))
    }

    fn wait_before(&self, deadline: Option<Instant>) -> Result<&T, LockError<()>> {
        self.once.wait_before(deadline)?;
        // SAFETY: complete.
        Ok(unsafe { self.value() })
    }

    /// The value, to change: nobody else can have it.
    pub fn get_mut(&mut self) -> Option<&mut T> {
        // SAFETY: complete, and borrowed exclusively.
        self.once.is_completed().then(|| self.value.with_mut(|value| unsafe { (*value).assume_init_mut() }))
    }

    /// Takes the value out; there is none then.
    pub fn take(&mut self) -> Option<T> {
        let taken = std::mem::take(self);
        // SAFETY: complete, and nobody can read it a second time.
        taken.once.is_completed().then(|| taken.value.with(|value| unsafe { (*value).assume_init_read() }))
    }

    /// The value, out of it.
    pub fn into_inner(mut self) -> Option<T> {
        self.take()
    }

    fn write(&self, run: &Run<'_>, value: T) {
        // SAFETY: `run` is the exclusive right to write, and nobody reads before it ends.
        self.value.with_mut(|place| unsafe { (*place).write(value) });
        run.end.set(COMPLETE);
    }

    /// # Safety
    ///
    /// It is complete.
    unsafe fn value(&self) -> &T {
        // SAFETY: the caller's promise: written, and from then on only read.
        self.value.with(|value| unsafe { (*value).assume_init_ref() })
    }
}

impl<T> Default for OnceLock<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> From<T> for OnceLock<T> {
    fn from(value: T) -> Self {
        let lock = Self::new();
        // Nobody else has it: it can be set.
        let _ = lock.set(value);
        lock
    }
}

impl<T: fmt::Debug> fmt::Debug for OnceLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_tuple("OnceLock");
        match self.get() {
            Some(value) => out.field(value),
            None => out.field(&format_args!("<uninit>")),
        };
        out.finish()
    }
}

#[cfg(not(loom))]
// SAFETY: 32-bit atomics in a fixed order.
unsafe impl shm_core::ShmSafe for Once {
    const LAYOUT: u64 = shm_core::portable::layout_of::<Self>("Once");
}

#[cfg(not(loom))]
// SAFETY: atomics and a value that may be shared, in a fixed order; no destructor.
unsafe impl<T: shm_core::ShmSafe> shm_core::ShmSafe for OnceLock<T> {
    const LAYOUT: u64 = shm_core::portable::mix(shm_core::portable::layout_of::<Self>("OnceLock"), T::LAYOUT);
}
