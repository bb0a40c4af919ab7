//! The robust lock in one word: what [`Mutex`](super::Mutex), the locks of array chunks and others are made of.
//!
//! After Ulrich Drepper's three-state futex mutex ("Futexes are tricky", 2011; std's `sys/sync/mutex/futex.rs` is the
//! shortest correct form), with the owner in the word, written by the very compare-and-swap that takes the lock.
//!
//! # Memory
//!
//! ```text
//! bit 31      WAITERS   somebody may sleep: whoever unlocks wakes one
//! bit 30      POISON    a thread panicked under the lock; stays while it is free and while it is held
//! bits 0..30  owner     0 free | OUT_OF_USE | the owner's token (see `shm_core::owner`)
//! ```
//!
//! # States
//!
//! ```text
//! FREE       --take-->      HELD(me)               one compare-and-swap from the exact word
//! HELD(me)   --release-->   FREE                   one swap, and a wake-up if WAITERS was set
//! HELD(dead) --take over--> HELD(me), OwnerDied    one compare-and-swap from the exact word, after the oracle's proof
//! HELD(me)   --retire-->    OUT_OF_USE             the data was not repaired: everybody is told
//! OUT_OF_USE --renew-->     HELD(me)               new data
//! HELD(me)   --put back-->  HELD(dead)             taken over, and left to the next
//! ```
//!
//! A waiter polls briefly, sets WAITERS and sleeps on the word, in slices. It asks the oracle about the owner in the
//! word before every sleep, and is woken when a sweep finds anybody dead (see `shm_core::deaths`). A token is not used twice,
//! so a compare-and-swap from a word with a dead owner in it can succeed only while that owner still holds the lock, and for
//! one of those who try.
//!
//! # The race that looks scary
//!
//! The swap of an unlock forgets WAITERS although several may sleep, and wakes only one of them. Somebody who never slept
//! may take the lock then, without the bit. But the one that was woken sets the bit before it sleeps again or gives
//! up, and if it gets the lock instead, it takes it with the bit set: it cannot know whether others still sleep. So while
//! somebody sleeps, either the bit is set, or one that was woken is on its way to set it.
//!
//! # If a process dies
//!
//! * before the compare-and-swap of `take`: nothing happened. After it, up to the swap of `release`: the word names a
//!   dead owner, and the next one takes over and is told;
//! * after setting WAITERS: one superfluous wake-up;
//! * after the swap and before the wake-up, or woken and before the bit is set again: the lock is free, or held by the
//!   living, and a sleeper finds out at the end of its slice;
//! * after a take-over: as any holder; the next one is told again. Whoever takes over never makes the data look good by
//!   dying.

use super::LockError;
use shm_core::crash_point;
use shm_core::deaths::Deaths;
use shm_core::fork::{ForkStamp, Forked};
use shm_core::futex::Futex;
#[cfg(loom)]
use shm_core::futex::Wakeup;
use shm_core::owner::Owner;
#[cfg(not(loom))]
use shm_core::sync::hint;
use shm_core::sync::{Ordering, ordering};
#[cfg(not(loom))]
use shm_core::wait::next_slice;
use std::cell::Cell;
use std::fmt;
use std::time::Instant;

/// Somebody may sleep on the word.
const WAITERS: u32 = 1 << 31;
/// A thread panicked while it held the lock.
const POISON: u32 = 1 << 30;
/// Nobody holds the lock. With POISON it may be free, too.
const FREE: u32 = 0;
/// In the owner's place: a holder died, and whoever took over did not repair the data.
const OUT_OF_USE: u32 = 1;

const _: () = assert!(Owner::MASK == POISON - 1 && OUT_OF_USE < Owner::LOCAL);

/// Looks at a held lock before the first sleep and after each: some two microseconds.
#[cfg(not(loom))]
const POLLS: u32 = 100;

/// The orderings that a model can weaken by name.
#[cfg(loom)]
pub const ORDERINGS: &[&str] = &["lock.take", "lock.release"];

/// One robust lock, without data.
#[cfg_attr(not(loom), repr(transparent))]
pub(crate) struct RawLock {
    word: Futex,
}

/// Proof of a lock taken, and what to do on release. Whoever has it releases the lock with [`RawLock::unlock`].
#[derive(Debug)]
pub(crate) struct Held {
    stamp: ForkStamp,
    was_panicking: bool,
    data: Cell<Data>,
}

/// What the holder knows of the data under the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Data {
    /// As the last holder wanted it to be, or repaired.
    Good,
    /// A thread panicked over it some time ago.
    Poisoned,
    /// Its last holder died in the middle.
    OwnerDied,
}

/// Why the lock was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    TimedOut,
    WouldBlock,
    Unrecoverable,
    Forked,
}

/// Who holds the lock, as a word says.
enum Holder {
    Nobody,
    Somebody(Owner),
    /// Also where the word makes no sense: a process wrote what no lock writes.
    OutOfUse,
}

impl Holder {
    fn of(word: u32) -> Self {
        match (word & Owner::MASK, Owner::from_bits(word)) {
            (FREE, _) => Self::Nobody,
            (_, Some(owner)) => Self::Somebody(owner),
            (_, None) => Self::OutOfUse,
        }
    }

    /// The same for `me`. In memory that processes share nobody is the holder that stands for one process alone: the lock
    /// was moved there while it was held, and is given back by nobody.
    #[cfg(not(loom))]
    fn seen_by(me: Owner, word: u32) -> Self {
        match Self::of(word) {
            Self::Somebody(owner) if owner.index() == 0 && me.index() != 0 => Self::OutOfUse,
            holder => holder,
        }
    }

    /// In a model the threads without a process are one more process.
    #[cfg(loom)]
    fn seen_by(_: Owner, word: u32) -> Self {
        Self::of(word)
    }
}

impl RawLock {
    const_in_memory! {
        /// A free lock. All zero bytes are one too.
        pub(crate) fn new() -> Self {
            Self { word: Futex::new(FREE) }
        }
    }

    /// Takes the lock. Blocks until it is free, its holder died, or the deadline has passed; woken by
    /// [`RawLock::unlock`].
    #[inline(always)]
    pub(crate) fn lock(&self, deadline: Option<Instant>) -> Result<Held, Refused> {
        self.acquire(deadline).map(Held::new)
    }

    /// [`RawLock::lock`] for the fast paths: what it returns stays in registers. The caller makes it [`Held`].
    #[inline(always)]
    pub(crate) fn acquire(&self, deadline: Option<Instant>) -> Result<Data, Refused> {
        let me = Owner::here(self)?;
        match self.take(FREE, me.bits()) {
            Ok(()) => Ok(Data::Good),
            Err(_) => self.lock_contended(me, deadline),
        }
    }

    /// Takes the lock if it is free or its holder is dead. Never blocks.
    #[inline(always)]
    pub(crate) fn try_lock(&self) -> Result<Held, Refused> {
        self.try_acquire().map(Held::new)
    }

    /// As [`RawLock::acquire`].
    #[inline(always)]
    pub(crate) fn try_acquire(&self) -> Result<Data, Refused> {
        let me = Owner::here(self)?;
        match self.take(FREE, me.bits()) {
            Ok(()) => Ok(Data::Good),
            Err(word) => self.try_lock_contended(me, word),
        }
    }

    /// Takes the lock if it is free; never takes over.
    pub(crate) fn try_lock_free(&self) -> Option<Held> {
        let me = Owner::here(self).ok()?;
        // Relaxed: `take` compares it.
        let word = self.word.load(Ordering::Relaxed);
        match Holder::seen_by(me, word) {
            Holder::Nobody => self.take_free(word, me, 0).ok().map(Held::new),
            Holder::Somebody(_) | Holder::OutOfUse => None,
        }
    }

    /// Gives the lock back: for good data free, with POISON after a panic, out of use after an owner's death that nobody
    /// repaired. Does nothing in a child that was forked since. Never blocks; a system call if somebody sleeps.
    #[inline(always)]
    pub(crate) fn unlock(&self, held: &Held) {
        if held.check().is_err() {
            return;
        }
        crash_point!("lock.releasing");
        // SYNC lock: everything done under the lock happens before the next one takes it; pairs with `take`.
        let release = ordering("lock.release", Ordering::Release);
        let word = self.word.word();
        let before = match held.data.get() {
            Data::OwnerDied => {
                // HELD => OUT_OF_USE
                word.swap(OUT_OF_USE, release);
                crash_point!("lock.retired");
                // Nobody passes this wake-up on.
                return self.word.wake(i32::MAX as u32);
            }
            // HELD => FREE, POISON
            _ if held.must_poison() => word.swap(POISON, release),
            // HELD => FREE, with POISON unless somebody cleared it.
            Data::Poisoned => word.fetch_and(POISON, release),
            // HELD => FREE
            Data::Good => word.swap(FREE, release),
        };
        crash_point!("lock.released");
        if before & WAITERS != 0 {
            self.wake_one();
        }
    }

    /// Gives back a lock whose holder kept no proof, for good data. Does nothing in a child that was forked since: there the
    /// word names another process.
    #[cfg(all(feature = "lock_api", not(loom)))]
    #[inline]
    pub(crate) fn unlock_here(&self) {
        if self.is_held_here() == Ok(true) {
            self.unlock(&Held::new(Data::Good));
        }
    }

    /// Gives the lock back as it was found: after an owner's death to the dead, so that the next one takes over and is told.
    /// For whoever was told and can do nothing about it.
    #[cfg(not(loom))]
    pub(crate) fn put_back(&self, held: &Held) {
        match Owner::here(self) {
            Ok(me) if held.check().is_ok() && held.data.get() == Data::OwnerDied => {
                // HELD(me) => HELD(dead): whoever had this index before is dead, and its token is not used again.
                // SYNC lock: as in `unlock`.
                let before = self
                    .word
                    .word()
                    .swap(me.predecessor().bits(), ordering("lock.release", Ordering::Release));
                if before & WAITERS != 0 {
                    self.wake_one();
                }
            }
            _ => self.unlock(held),
        }
    }

    #[cold]
    fn wake_one(&self) {
        self.word.wake(1);
    }

    /// Takes the lock if it is out of use; the caller writes new data. Never blocks.
    pub(crate) fn renew(&self) -> Result<Held, Refused> {
        let me = Owner::here(self)?;
        // Relaxed: `take` compares it.
        let word = self.word.load(Ordering::Relaxed);
        match Holder::seen_by(me, word) {
            // OUT_OF_USE => HELD(me). Whoever dies from here on leaves data that is half new: OwnerDied for the next.
            Holder::OutOfUse if self.take(word, me.bits()).is_ok() => {
                crash_point!("lock.renewing");
                Ok(Held::new(Data::Good))
            }
            _ => Err(Refused::WouldBlock),
        }
    }

    /// The word, for a look. In a forked child it is there only after the memory was attached again.
    #[inline]
    fn look(&self) -> Option<u32> {
        // Relaxed: the answer orders nothing.
        Owner::here(self).ok().map(|_| self.word.load(Ordering::Relaxed))
    }

    /// Whether somebody holds the lock, dead or alive. May be stale at once.
    pub(crate) fn is_locked(&self) -> bool {
        self.look().is_some_and(|word| matches!(Holder::of(word), Holder::Somebody(_)))
    }

    /// Whether this process holds the lock. Stale at once, unless it is the calling thread that holds it.
    #[inline]
    pub(crate) fn is_held_here(&self) -> Result<bool, Refused> {
        let me = Owner::here(self)?;
        // Relaxed: the answer orders nothing.
        Ok(self.word.load(Ordering::Relaxed) & Owner::MASK == me.bits())
    }

    /// Remembers a panic; only the holder may call it.
    pub(crate) fn poison(&self) {
        // Relaxed: comes before the swap of the unlock, which keeps it.
        self.word.word().fetch_or(POISON, Ordering::Relaxed);
    }

    /// Whether the lock is poisoned. May be stale at once.
    #[inline]
    pub(crate) fn is_poisoned(&self) -> bool {
        self.look().is_some_and(|word| word & POISON != 0)
    }

    /// Forgets a panic.
    pub(crate) fn clear_poison(&self) {
        if Owner::here(self).is_ok() {
            // Relaxed: whoever finds the data good has taken the lock.
            self.word.word().fetch_and(!POISON, Ordering::Relaxed);
        }
    }

    /// One compare-and-swap from the exact word; otherwise the word there is.
    #[inline(always)]
    fn take(&self, from: u32, to: u32) -> Result<(), u32> {
        // SYNC lock: pairs with the swaps in `unlock`. Relaxed on failure: the word is looked at, no data behind it.
        let acquire = ordering("lock.take", Ordering::Acquire);
        self.word.word().compare_exchange(from, to, acquire, Ordering::Relaxed)?;
        crash_point!("lock.taken");
        Ok(())
    }

    /// FREE => HELD(me): keeps POISON, and WAITERS too if the caller has slept.
    fn take_free(&self, word: u32, me: Owner, slept: u32) -> Result<Data, u32> {
        self.take(word, me.bits() | (word & POISON) | slept)?;
        Ok(if word & POISON == 0 { Data::Good } else { Data::Poisoned })
    }

    /// HELD(dead) => HELD(me), if the owner in the word is dead; otherwise the word there is.
    fn take_over(&self, word: u32, owner: Owner, me: Owner) -> Result<Data, u32> {
        if !owner.is_dead(self) {
            return Err(word);
        }
        // The flags stay: others may sleep.
        self.take(word, me.bits() | (word & (WAITERS | POISON)))?;
        crash_point!("lock.taken_over");
        Ok(Data::OwnerDied)
    }

    #[cold]
    fn try_lock_contended(&self, me: Owner, mut word: u32) -> Result<Data, Refused> {
        loop {
            let taken = match Holder::seen_by(me, word) {
                Holder::Nobody => self.take_free(word, me, word & WAITERS),
                Holder::Somebody(owner) => self.take_over(word, owner, me),
                Holder::OutOfUse => return Err(Refused::Unrecoverable),
            };
            match taken {
                Ok(data) => return Ok(data),
                Err(seen) if seen == word => return Err(Refused::WouldBlock),
                // It has changed hands: that is progress of somebody else's.
                Err(seen) => word = seen,
            }
        }
    }

    #[cold]
    fn lock_contended(&self, me: Owner, deadline: Option<Instant>) -> Result<Data, Refused> {
        let mut slept = 0;
        let mut word = self.poll();
        loop {
            word = match Holder::seen_by(me, word) {
                Holder::OutOfUse => return Err(Refused::Unrecoverable),
                Holder::Nobody => match self.take_free(word, me, slept | (word & WAITERS)) {
                    Ok(data) => return Ok(data),
                    Err(seen) => seen,
                },
                // Also where the deadline has passed: the wake-up that this waiter may have had goes on to another.
                Holder::Somebody(_) if word & WAITERS == 0 => self.announce(word),
                Holder::Somebody(owner) => {
                    slept = WAITERS;
                    let deaths = Deaths::near(self);
                    match self.take_over(word, owner, me) {
                        Ok(data) => return Ok(data),
                        Err(seen) if seen != word => seen,
                        Err(_) => {
                            self.sleep(&deaths, word, owner, deadline)?;
                            self.poll()
                        }
                    }
                }
            };
        }
    }

    /// HELD => HELD with WAITERS. Returns the word there is now.
    fn announce(&self, word: u32) -> u32 {
        // Relaxed: the futex compares the word again before it sleeps, and an unlock swaps this very word.
        match self.word.word().compare_exchange(word, word | WAITERS, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => {
                crash_point!("lock.announced");
                word | WAITERS
            }
            Err(seen) => seen,
        }
    }

    /// Looks at the word until it is not held, somebody else sleeps already, or it has looked often enough. Whoever sleeps
    /// there makes polling useless: the lock is handed on more slowly than a poller looks.
    #[cfg(not(loom))]
    fn poll(&self) -> u32 {
        for _ in 0..POLLS {
            // Relaxed: `take` compares it.
            let word = self.word.load(Ordering::Relaxed);
            if word & WAITERS != 0 || !matches!(Holder::of(word), Holder::Somebody(_)) {
                return word;
            }
            hint::spin_loop();
        }
        self.word.load(Ordering::Relaxed)
    }

    #[cfg(loom)]
    fn poll(&self) -> u32 {
        self.word.load(Ordering::Relaxed)
    }

    /// Sleeps while the word is `word` and nobody else was found dead, at most for a slice. `TimedOut` when the deadline has
    /// passed.
    #[cfg(not(loom))]
    fn sleep(&self, deaths: &Deaths, word: u32, _: Owner, deadline: Option<Instant>) -> Result<(), Refused> {
        let slice = next_slice(deadline).ok_or(Refused::TimedOut)?;
        deaths.sleep(&self.word, word, Some(slice));
        Ok(())
    }

    /// In a model a wait with a deadline gives up at once, and one for an owner that cannot die must be woken.
    #[cfg(loom)]
    fn sleep(
        &self,
        deaths: &Deaths,
        word: u32,
        owner: Owner,
        deadline: Option<Instant>,
    ) -> Result<(), Refused> {
        let slice = (deadline.is_some() || owner.index() > 0).then_some(shm_core::wait::SLICE);
        match deaths.sleep(&self.word, word, slice) {
            Wakeup::TimedOut if deadline.is_some() => Err(Refused::TimedOut),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for RawLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(word) = self.look() else {
            return f.write_str("out of reach of this forked process");
        };
        match Holder::of(word) {
            Holder::Nobody => f.write_str("free")?,
            Holder::OutOfUse => return f.write_str("out of use"),
            Holder::Somebody(owner) => match owner.process_id(self) {
                Some(id) => write!(f, "held by process {id}")?,
                None => f.write_str("held")?,
            },
        }
        if word & POISON == 0 { Ok(()) } else { f.write_str(", poisoned") }
    }
}

impl Held {
    #[inline(always)]
    pub(crate) fn new(data: Data) -> Self {
        Self { stamp: ForkStamp::now(), was_panicking: std::thread::panicking(), data: Cell::new(data) }
    }

    /// Whether this is still the process that took the lock.
    ///
    /// # Errors
    ///
    /// [`Forked`] in a child that was forked since: the lock is its parent's.
    #[inline(always)]
    pub(crate) fn check(&self) -> Result<(), Forked> {
        self.stamp.check()
    }

    /// The same, for guards that lend the data.
    ///
    /// # Panics
    ///
    /// In a child that was forked since.
    #[inline(always)]
    #[track_caller]
    pub(crate) fn must_be_here(&self) {
        if self.check().is_err() {
            forked();
        }
    }

    /// What is known of the data.
    pub(crate) fn data(&self) -> Data {
        self.data.get()
    }

    /// For one more guard of a lock that this thread holds.
    pub(crate) fn again() -> Self {
        Self::new(Data::Good)
    }

    /// Says what is known of the data, where that is kept elsewhere while the lock is held.
    pub(crate) fn set_data(&self, data: Data) {
        self.data.set(data);
    }

    /// The holder repaired the data: neither the owner's death nor a panic will be remembered.
    pub(crate) fn mark_consistent(&self) {
        self.data.set(Data::Good);
    }

    /// The guard as the locking calls return it.
    #[inline(always)]
    pub(crate) fn outcome<G>(data: Data, guard: G) -> Result<G, LockError<G>> {
        match data {
            Data::Good => Ok(guard),
            Data::Poisoned => Err(LockError::Poisoned(guard)),
            Data::OwnerDied => Err(LockError::OwnerDied(guard)),
        }
    }

    /// The holder panics under the lock, and did not when it took it.
    #[inline(always)]
    pub(crate) fn must_poison(&self) -> bool {
        !self.was_panicking && std::thread::panicking()
    }
}

#[cold]
#[track_caller]
pub(super) fn forked() -> ! {
    panic!("this process was forked while its parent held the lock: the guard is of use there only")
}

impl From<Forked> for Refused {
    fn from(_: Forked) -> Self {
        Self::Forked
    }
}

impl<G> From<Refused> for LockError<G> {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::TimedOut => Self::TimedOut,
            Refused::WouldBlock => Self::WouldBlock,
            Refused::Unrecoverable => Self::Unrecoverable,
            Refused::Forked => Self::Forked,
        }
    }
}
