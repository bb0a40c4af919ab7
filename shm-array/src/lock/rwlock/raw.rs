//! The reader-writer lock without data: one word for writers, a count of readers per process.
//!
//! The idea of per-process counts under a writer's word is that of "big reader" locks (Linux 2.4's `brlock`, folly's
//! `SharedMutex`); the counts are kept per participant here because a process may die with its share of them.
//!
//! # Memory
//!
//! ```text
//! word     bit 31      PENDING   the owner waits until the readers are gone; without it, it is inside
//!          bit 30      POISON    a thread panicked while it wrote; stays until somebody says that the data is good
//!          bits 0..30  owner     0 free | OUT_OF_USE | the writer's token
//! turn     where those sleep who wait for the word
//! drain    where the pending writer sleeps
//! counts   see `counts`
//! ```
//!
//! # States of the word
//!
//! ```text
//! FREE          --claim-->     PENDING(me)            one compare-and-swap: from here on no reader gets in
//! PENDING(me)   --enter-->     HELD(me)               when every count has been seen at zero
//! PENDING(me)   --withdraw-->  FREE                   the deadline has passed
//! HELD(me)      --release-->   FREE, OUT_OF_USE       out of use after an owner's death that nobody repaired
//! PENDING(dead) --any waiter-->      FREE             it has not touched the data
//! HELD(dead)    --another writer-->  HELD(me)         and it is told; no reader was let in since
//! HELD(me)      --put back-->  HELD(dead)             taken over, and left to the next
//! OUT_OF_USE    --renew-->     HELD(me)               new data
//! ```
//!
//! # Normal path
//!
//! A reader raises its process's count, *then* looks at the word, and is in if nobody owns it; otherwise it lowers the count
//! and waits for its turn. Leaving, it lowers the count and looks at the word again: if a writer is PENDING, it is woken. So
//! a reader makes one read-modify-write and one load each way, on a line of its process and on one that no reader writes.
//!
//! # The race that looks scary
//!
//! Reader and writer meet: each writes its own word (count up, PENDING) before it reads the other's, all `SeqCst`. So at
//! least one sees the other; if both do, the reader steps back. The same on the way out: the reader lowers the count before
//! it looks for PENDING, the writer sets PENDING before it looks at the count, so one of them sees the last count go. A
//! count that is raised for a moment by a reader that will step back may be seen by the writer, which then waits for
//! nothing: the reader steps back in the same way as it leaves, and wakes it.
//!
//! # If a process dies
//!
//! * a reader, count raised: the pending writer asks the oracle and zeroes the count;
//! * a reader, after lowering and before the wake-up: the writer finds out at the end of its slice;
//! * a writer, PENDING: whoever meets the word asks the oracle and frees it. The data is as it was, nobody is told;
//! * a writer, HELD, before the swap of `unlock_write`: the next writer takes over and is told. Readers get an error: they
//!   could not repair the data. After the swap: somebody finds the word free at the end of its slice.

use super::counts::{Counts, MAX_READERS, Used};
use crate::lock::LockError;
use crate::lock::line::{ALL, Line};
use crate::lock::raw::{Data, Held};
use shm_core::crash_point;
use shm_core::fork::ForkStamp;
use shm_core::owner::Owner;
use shm_core::sync::{AtomicU32, Ordering, ordering, seq_cst_in_model};
use std::cell::Cell;
use std::convert::Infallible;
use std::fmt;
use std::time::Instant;

/// The owner waits for the readers to leave.
const PENDING: u32 = 1 << 31;
/// A thread panicked while it wrote.
const POISON: u32 = 1 << 30;
/// No writer. With POISON it may be free, too.
const FREE: u32 = 0;
/// In the owner's place: a writer died, and whoever took over did not repair the data.
const OUT_OF_USE: u32 = 1;

const _: () = assert!(Owner::MASK == POISON - 1 && OUT_OF_USE < Owner::LOCAL);

/// The orderings that a model can weaken by name; "seq_cst" is the fence between the own write and the look at the other's.
#[cfg(loom)]
pub const ORDERINGS: &[&str] = &["rwlock.look", "rwlock.lower", "rwlock.drain", "rwlock.unlock", "seq_cst"];

/// Why the lock was not taken: an error that never has a guard.
pub(super) type Refused = LockError<Infallible>;

/// What the word says.
enum Writer {
    Nobody,
    Pending(Owner),
    Inside(Owner),
    /// Also where the word makes no sense: a process wrote what no lock writes.
    OutOfUse,
}

impl Writer {
    fn of(word: u32) -> Self {
        match (word & Owner::MASK, Owner::from_bits(word)) {
            (FREE, _) => Self::Nobody,
            (_, Some(owner)) if word & PENDING != 0 => Self::Pending(owner),
            (_, Some(owner)) => Self::Inside(owner),
            (_, None) => Self::OutOfUse,
        }
    }
}

/// Proof of a read lock: [`RawRwLock::unlock_read`] gives it back.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) stamp: ForkStamp,
    share: Share,
}

/// A share that was taken; small enough to be handed on in registers. The caller makes it a [`Reading`].
#[derive(Debug)]
pub(super) struct Share {
    me: Owner,
    pub(super) is_poisoned: bool,
}

impl Reading {
    #[inline(always)]
    pub(super) fn new(share: Share) -> Self {
        Self { stamp: ForkStamp::now(), share }
    }
}

/// The lock; see the [module](self).
#[cfg_attr(not(loom), repr(C, align(64)))]
pub(super) struct RawRwLock {
    word: AtomicU32,
    turn: Line,
    drain: Line,
    used: Used,
    counts: Counts,
}

impl RawRwLock {
    const_in_memory! {
        /// A free lock. All zero bytes are one too.
        pub(super) fn new() -> Self {
            Self {
                word: AtomicU32::new(FREE),
                turn: Line::new(),
                drain: Line::new(),
                used: Used::new(),
                counts: Counts::new(),
            }
        }
    }

    /// Takes a share of the lock. Blocks while a writer owns the word; woken when that leaves.
    #[inline(always)]
    pub(super) fn read(&self, deadline: Option<Instant>) -> Result<Share, Refused> {
        let me = self.me()?;
        match self.enter(me)? {
            Some(share) => Ok(share),
            None => self.read_contended(me, deadline),
        }
    }

    /// Takes a share of the lock if no living writer owns the word. Never blocks.
    #[inline(always)]
    pub(super) fn try_read(&self) -> Result<Share, Refused> {
        let me = self.me()?;
        match self.enter(me)? {
            Some(reading) => Ok(reading),
            None => self.look_for_reader().and_then(|()| self.enter(me)?.ok_or(Refused::WouldBlock)),
        }
    }

    /// Gives a share back. Does nothing in a child that was forked since. Never blocks; a system call if a writer sleeps.
    #[inline(always)]
    pub(super) fn unlock_read(&self, reading: &Reading) {
        if reading.stamp.check().is_ok() {
            crash_point!("rwlock.read.leaving");
            self.leave(reading.share.me);
        }
    }

    /// Count up, then the look. Nothing if a writer owns the word.
    #[inline(always)]
    fn enter(&self, me: Owner) -> Result<Option<Share>, Refused> {
        if !self.counts.raise(&self.used, me) {
            return Err(Refused::TooMany { limit: MAX_READERS });
        }
        crash_point!("rwlock.read.raised");
        // SYNC rwlock-look: the count before the word, in the order of SeqCst; pairs with `claim` and `are_zero`.
        seq_cst_in_model();
        // SYNC rwlock: Acquire, pairs with the swaps in `unlock_write`.
        let word = self.word.load(ordering("rwlock.look", Ordering::SeqCst));
        if word & !POISON == FREE {
            crash_point!("rwlock.read.inside");
            return Ok(Some(Share { me, is_poisoned: word & POISON != 0 }));
        }
        self.step_back(me);
        Ok(None)
    }

    #[cold]
    fn step_back(&self, me: Owner) {
        self.leave(me);
    }

    /// Count down, then the look whether a writer waits for it.
    #[inline(always)]
    fn leave(&self, me: Owner) {
        self.counts.lower(me);
        crash_point!("rwlock.read.lowered");
        // SYNC rwlock-drain: the count before the word; pairs with `claim` and `are_zero`.
        seq_cst_in_model();
        if self.word.load(Ordering::SeqCst) & PENDING != 0 {
            self.wake_pending();
        }
    }

    #[cold]
    fn wake_pending(&self) {
        self.drain.notify(ALL);
    }

    #[cold]
    fn read_contended(&self, me: Owner, deadline: Option<Instant>) -> Result<Share, Refused> {
        let attempt = || {
            // Relaxed: a look that saves raising the count for nothing; `enter` looks again.
            match Writer::of(self.word.load(Ordering::Relaxed)) {
                Writer::Nobody => self.enter(me).transpose(),
                Writer::Pending(_) | Writer::Inside(_) => None,
                Writer::OutOfUse => Some(Err(Refused::Unrecoverable)),
            }
        };
        let look = || self.look_for_reader().err().map(Err);
        self.turn.wait(deadline, attempt, look).unwrap_or(Err(Refused::TimedOut))
    }

    /// What a reader can do about the owner of the word: free it from a dead PENDING one.
    fn look_for_reader(&self) -> Result<(), Refused> {
        // Relaxed: compared by the swap, or only reported.
        let word = self.word.load(Ordering::Relaxed);
        match Writer::of(word) {
            Writer::Pending(owner) if owner.is_dead(self) => {
                crash_point!("rwlock.read.freeing");
                // PENDING(dead) => FREE. SYNC rwlock: Acquire and Release, the dead one stands between the writer before it
                // and whoever comes now.
                if self.swap(word, word & POISON).is_ok() {
                    self.turn.notify(ALL);
                }
                Ok(())
            }
            Writer::Inside(owner) if owner.is_dead(self) => Err(Refused::WriterDied),
            Writer::OutOfUse => Err(Refused::Unrecoverable),
            Writer::Nobody | Writer::Pending(_) | Writer::Inside(_) => Ok(()),
        }
    }

    /// Takes the whole lock. Blocks until the writer before is out, and then the readers; woken by them.
    #[inline]
    pub(super) fn write(&self, deadline: Option<Instant>) -> Result<Held, Refused> {
        let me = self.me()?;
        let data = match self.swap(FREE, me.bits() | PENDING) {
            Ok(()) => Data::Good,
            Err(_) => match self.claim_contended(me, deadline)? {
                Data::OwnerDied => return Ok(Held::new(Data::OwnerDied)),
                data => data,
            },
        };
        crash_point!("rwlock.write.pending");
        if self.drain(deadline) {
            return Ok(self.enter_to_write(me, data));
        }
        self.withdraw();
        Err(Refused::TimedOut)
    }

    /// Takes the whole lock if nobody alive is in it. Never blocks.
    pub(super) fn try_write(&self) -> Result<Held, Refused> {
        let me = self.me()?;
        // A look first, so that readers are not kept out for nothing.
        if !self.are_readers_gone() {
            return Err(Refused::WouldBlock);
        }
        let data = match self.claim(me) {
            Some(claimed) => claimed?,
            None => self.look_for_writer(me).unwrap_or(Err(Refused::WouldBlock))?,
        };
        if data == Data::OwnerDied {
            return Ok(Held::new(data));
        }
        crash_point!("rwlock.write.pending");
        if self.are_readers_gone() {
            return Ok(self.enter_to_write(me, data));
        }
        self.withdraw();
        Err(Refused::WouldBlock)
    }

    /// Whether each reader has left or is dead, as far as can be seen now.
    fn are_readers_gone(&self) -> bool {
        let next = Cell::new(0);
        // SYNC rwlock-look: as in `drain`.
        seq_cst_in_model();
        self.counts.are_zero(&self.used, &next) || self.are_dead(&next)
    }

    /// Zeroes the counts of the dead from `next` on; `false` at the first count of a living process. All of them at once,
    /// because a waiter looks around once in a slice.
    fn are_dead(&self, next: &Cell<u16>) -> bool {
        loop {
            let stuck = next.get();
            self.counts.forget_dead(&self.used, next);
            if self.counts.are_zero(&self.used, next) {
                return true;
            }
            if next.get() == stuck {
                return false;
            }
        }
    }

    /// For models: FREE => PENDING, as a process that dies there. Whether it came to that.
    #[cfg(loom)]
    pub(super) fn abandon(&self) -> bool {
        let me = self.me().expect("never in a model");
        self.claim(me).is_some()
    }

    /// PENDING => HELD.
    #[inline(always)]
    fn enter_to_write(&self, me: Owner, data: Data) -> Held {
        // Relaxed: the data is published by `unlock_write`. Nobody writes a word with a living owner in it, except that
        // POISON may be cleared: then it must not come back.
        if data == Data::Poisoned {
            self.word.fetch_and(!PENDING, Ordering::Relaxed);
        } else {
            self.word.store(me.bits(), Ordering::Relaxed);
        }
        crash_point!("rwlock.write.inside");
        Held::new(data)
    }

    /// PENDING => FREE: the deadline has passed. Readers and writers may go on.
    #[cold]
    fn withdraw(&self) {
        crash_point!("rwlock.write.withdrawing");
        // SYNC rwlock: Release, because this stands between the writer before and whoever comes now.
        self.word.fetch_and(POISON, Ordering::SeqCst);
        self.turn.notify(ALL);
    }

    /// Gives the whole lock back: for good data free, with POISON after a panic, out of use after an owner's death that
    /// nobody repaired. Does nothing in a child that was forked since. Never blocks; a system call if somebody sleeps.
    #[inline]
    pub(super) fn unlock_write(&self, held: &Held) {
        if held.check().is_err() {
            return;
        }
        crash_point!("rwlock.write.leaving");
        // SYNC rwlock: everything written happens before the next one gets in; pairs with `claim` and the look in `enter`.
        let release = ordering("rwlock.unlock", Ordering::SeqCst);
        match held.data() {
            // HELD => OUT_OF_USE
            Data::OwnerDied => self.word.swap(OUT_OF_USE, release),
            // HELD => FREE, POISON
            _ if held.must_poison() => self.word.swap(POISON, release),
            // HELD => FREE, with POISON unless somebody cleared it.
            Data::Poisoned => self.word.fetch_and(POISON, release),
            // HELD => FREE
            Data::Good => self.word.swap(FREE, release),
        };
        crash_point!("rwlock.write.left");
        self.turn.notify(ALL);
    }

    /// Gives the whole lock back as it was found: after an owner's death to the dead, so that the next writer takes over and
    /// is told. For whoever was told and can do nothing about it.
    #[cfg(not(loom))]
    pub(super) fn put_back(&self, held: &Held) {
        match self.me() {
            Ok(me) if held.check().is_ok() && held.data() == Data::OwnerDied => {
                // HELD(me) => HELD(dead): whoever had this index before is dead, and its token is not used again.
                // SYNC rwlock: as in `unlock_write`.
                self.word.swap(me.predecessor().bits(), ordering("rwlock.unlock", Ordering::SeqCst));
                self.turn.notify(ALL);
            }
            _ => self.unlock_write(held),
        }
    }

    /// Takes the whole lock if it is out of use; the caller writes new data. Never blocks.
    pub(super) fn renew(&self) -> Result<Held, Refused> {
        let me = self.me()?;
        // Relaxed: compared by the swap.
        let word = self.word.load(Ordering::Relaxed);
        match Writer::of(word) {
            // OUT_OF_USE => HELD(me). Nobody reads: the last writer was alone, and nobody got in since. Whoever dies from here
            // on leaves data that is half new: OwnerDied for the next writer.
            Writer::OutOfUse if self.swap(word, me.bits()).is_ok() => {
                crash_point!("rwlock.renewing");
                Ok(Held::new(Data::Good))
            }
            _ => Err(Refused::WouldBlock),
        }
    }

    /// Makes a read lock of the write lock; nobody writes in between. The data is good or poisoned.
    pub(super) fn downgrade(&self, held: &Held) -> Result<Share, Refused> {
        let me = self.me()?;
        held.check().map_err(|_| Refused::Forked)?;
        if !self.counts.raise(&self.used, me) {
            return Err(Refused::TooMany { limit: MAX_READERS });
        }
        crash_point!("rwlock.write.downgrading");
        self.unlock_write(held);
        Ok(Share { me, is_poisoned: held.data() == Data::Poisoned })
    }

    /// FREE => PENDING(me). Nothing if somebody else owns the word.
    fn claim(&self, me: Owner) -> Option<Result<Data, Refused>> {
        // Relaxed: compared by the swap.
        let word = self.word.load(Ordering::Relaxed);
        match Writer::of(word) {
            Writer::Nobody => {
                let poison = word & POISON;
                self.swap(word, me.bits() | PENDING | poison).ok()?;
                Some(Ok(if poison == 0 { Data::Good } else { Data::Poisoned }))
            }
            Writer::Pending(_) | Writer::Inside(_) => None,
            Writer::OutOfUse => Some(Err(Refused::Unrecoverable)),
        }
    }

    #[cold]
    fn claim_contended(&self, me: Owner, deadline: Option<Instant>) -> Result<Data, Refused> {
        let (attempt, look) = (|| self.claim(me), || self.look_for_writer(me));
        self.turn.wait(deadline, attempt, look).unwrap_or(Err(Refused::TimedOut))
    }

    /// Takes over from a dead owner of the word. `OwnerDied` means that the lock is held.
    fn look_for_writer(&self, me: Owner) -> Option<Result<Data, Refused>> {
        // Relaxed: compared by the swap.
        let word = self.word.load(Ordering::Relaxed);
        match Writer::of(word) {
            Writer::Pending(owner) if owner.is_dead(self) => {
                // PENDING(dead) => PENDING(me)
                self.swap(word, me.bits() | PENDING | (word & POISON)).ok()?;
                Some(Ok(if word & POISON == 0 { Data::Good } else { Data::Poisoned }))
            }
            Writer::Inside(owner) if owner.is_dead(self) => {
                // HELD(dead) => HELD(me)
                self.swap(word, me.bits() | (word & POISON)).ok()?;
                crash_point!("rwlock.write.taken_over");
                Some(Ok(Data::OwnerDied))
            }
            Writer::OutOfUse => Some(Err(Refused::Unrecoverable)),
            Writer::Nobody | Writer::Pending(_) | Writer::Inside(_) => None,
        }
    }

    /// Waits until every count has been seen at zero; `false` when the deadline has passed.
    #[inline(always)]
    fn drain(&self, deadline: Option<Instant>) -> bool {
        let next = Cell::new(0);
        // SYNC rwlock-look, rwlock-drain: the word before the counts, in the order of SeqCst; pairs with `enter` and `leave`.
        seq_cst_in_model();
        self.counts.are_zero(&self.used, &next) || self.drain_slow(&next, deadline)
    }

    #[cold]
    fn drain_slow(&self, next: &Cell<u16>, deadline: Option<Instant>) -> bool {
        let attempt = || self.counts.are_zero(&self.used, next).then_some(());
        let look = || self.are_dead(next).then_some(());
        self.drain.wait(deadline, attempt, look).is_some()
    }

    /// One compare-and-swap of the exact word.
    #[inline(always)]
    fn swap(&self, from: u32, to: u32) -> Result<(), u32> {
        // SYNC rwlock: Acquire, pairs with the swaps in `unlock_write`. SeqCst: see `drain`. (A model cannot tell: there the
        // fence in `drain` acquires too.)
        self.word.compare_exchange(from, to, Ordering::SeqCst, Ordering::Relaxed).map(drop)
    }

    #[inline(always)]
    fn me(&self) -> Result<Owner, Refused> {
        Owner::here(self).map_err(|_| Refused::Forked)
    }

    /// The word, for a look. In a forked child it is there only after the memory was attached again.
    fn look(&self) -> Option<u32> {
        // Relaxed: the answer orders nothing.
        self.me().ok().map(|_| self.word.load(Ordering::Relaxed))
    }

    /// Whether a writer panicked over the data. May be stale at once.
    pub(super) fn is_poisoned(&self) -> bool {
        self.look().is_some_and(|word| word & POISON != 0)
    }

    /// Forgets a panic.
    pub(super) fn clear_poison(&self) {
        if self.me().is_ok() {
            // Relaxed: whoever finds the data good has taken the lock.
            self.word.fetch_and(!POISON, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for RawRwLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(word) = self.look() else {
            return f.write_str("of the process before the fork");
        };
        let (what, owner) = match Writer::of(word) {
            Writer::Nobody => match self.counts.total(&self.used) {
                0 => ("free".to_owned(), None),
                readers => (format!("read by {readers}"), None),
            },
            Writer::Pending(owner) => ("awaited by a writer".to_owned(), Some(owner)),
            Writer::Inside(owner) => ("held by a writer".to_owned(), Some(owner)),
            Writer::OutOfUse => return f.write_str("out of use"),
        };
        f.write_str(&what)?;
        if let Some(id) = owner.and_then(|owner| owner.process_id(self)) {
            write!(f, " in process {id}")?;
        }
        if word & POISON == 0 { Ok(()) } else { f.write_str(", poisoned") }
    }
}
