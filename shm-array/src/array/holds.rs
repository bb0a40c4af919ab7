//! The locks of an array's chunks, and several of them held at once.
//!
//! Several chunks are locked in the order of their indices, so those who lock several never wait for each other in a
//! circle.
//!
//! # If a process dies
//!
//! Each chunk's lock names its own holder, so a process that dies with several chunks leaves each to be taken over for
//! itself. Whoever locks several is told once, of the worst that it found.
//!
//! # The race that looks scary
//!
//! Somebody who locks several chunks may have taken one over from a dead owner when another one turns out not to be had in
//! time. It was told, but its caller never is. So that chunk goes back to the dead (`RawLock::put_back`), and the next one
//! takes it over and is told.

use crate::lock::raw::{Data, Held, RawLock};
use crate::lock::{LockError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::convert::Infallible;
use std::ops::Range;
use std::time::{Duration, Instant};

/// A lock on cache lines of its own: the locks of two chunks are in two processors' hands.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Line<L>(pub(super) L);

/// The locks of an array's chunks, by their kind.
#[derive(Clone, Copy, Debug)]
pub(super) enum Locks<'a> {
    Exclusive(&'a [Line<RawLock>]),
    ReadWrite(&'a [Line<RwLock<()>>]),
}

/// The elements are to be changed, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Write,
    Read,
}

/// How long to wait for a lock.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wait {
    Not,
    Forever,
    Until(Instant),
}

impl Wait {
    /// No longer than `timeout` from now; for ever if the clock does not reach so far.
    pub(super) fn until(timeout: Duration) -> Self {
        Instant::now().checked_add(timeout).map_or(Self::Forever, Self::Until)
    }
}

/// Why a lock was not had.
pub(super) type Refused = LockError<Infallible>;

/// One chunk's lock, held.
#[derive(Debug)]
enum Hold<'a> {
    Exclusive(Exclusive<'a>),
    Write(RwLockWriteGuard<'a, ()>),
    Read(RwLockReadGuard<'a, ()>),
}

#[derive(Debug)]
struct Exclusive<'a> {
    lock: &'a RawLock,
    held: Held,
}

impl Drop for Exclusive<'_> {
    #[inline]
    fn drop(&mut self) {
        self.lock.unlock(&self.held);
    }
}

impl<'a> Locks<'a> {
    /// Takes the lock of one chunk. Tells what is known of its elements.
    #[inline(always)]
    fn take(self, chunk: usize, mode: Mode, wait: Wait) -> Result<(Hold<'a>, Data), Refused> {
        match self {
            Self::Exclusive(locks) => Exclusive::take(&locks[chunk].0, mode, wait),
            Self::ReadWrite(locks) => take_shareable(&locks[chunk].0, mode, wait),
        }
    }

    /// Takes the lock of one chunk that is out of use.
    pub(super) fn renew(self, chunk: usize) -> Result<Holds<'a>, Refused> {
        let first = match self {
            Self::Exclusive(locks) => {
                let lock = &locks[chunk].0;
                Hold::Exclusive(Exclusive { lock, held: lock.renew()? })
            }
            Self::ReadWrite(locks) => Hold::Write(sort(locks[chunk].0.take_out_of_use())?.0),
        };
        Ok(Holds { first, others: Vec::new() })
    }
}

impl<'a> Exclusive<'a> {
    #[inline(always)]
    fn take(lock: &'a RawLock, mode: Mode, wait: Wait) -> Result<(Hold<'a>, Data), Refused> {
        let data = match wait {
            Wait::Not => lock.try_acquire(),
            Wait::Forever => lock.acquire(None),
            Wait::Until(deadline) => lock.acquire(Some(deadline)),
        }?;
        let hold = Hold::Exclusive(Self { lock, held: Held::new(data) });
        if mode == Mode::Read && data == Data::OwnerDied {
            // As where locks are shared: a reader can repair nothing.
            hold.put_back();
            return Err(Refused::WriterDied);
        }
        Ok((hold, data))
    }
}

fn take_shareable(lock: &RwLock<()>, mode: Mode, wait: Wait) -> Result<(Hold<'_>, Data), Refused> {
    if mode == Mode::Write {
        let (guard, data) = sort(match wait {
            Wait::Not => lock.try_write(),
            Wait::Forever => lock.write(),
            Wait::Until(deadline) => lock.write_until(deadline),
        })?;
        return Ok((Hold::Write(guard), data));
    }
    let (guard, data) = sort(match wait {
        Wait::Not => lock.try_read(),
        Wait::Forever => lock.read(),
        Wait::Until(deadline) => lock.read_until(deadline),
    })?;
    Ok((Hold::Read(guard), data))
}

/// What is known of the data, beside the guard.
fn sort<G>(result: Result<G, LockError<G>>) -> Result<(G, Data), Refused> {
    match result {
        Ok(guard) => Ok((guard, Data::Good)),
        Err(LockError::OwnerDied(guard)) => Ok((guard, Data::OwnerDied)),
        Err(LockError::Poisoned(guard)) => Ok((guard, Data::Poisoned)),
        Err(refused) => Err(refused.map(|_| unreachable!("no other error has a guard"))),
    }
}

impl Hold<'_> {
    fn mark_consistent(&self) {
        match self {
            Self::Exclusive(hold) => hold.held.mark_consistent(),
            Self::Write(guard) => guard.mark_consistent(),
            // Who reads has changed nothing.
            Self::Read(_) => {}
        }
    }

    /// Gives the lock back as it was found.
    fn put_back(self) {
        match self {
            Self::Exclusive(hold) => {
                hold.lock.put_back(&hold.held);
                std::mem::forget(hold);
            }
            Self::Write(guard) => RwLockWriteGuard::put_back(guard),
            Self::Read(guard) => drop(guard),
        }
    }
}

/// One or several chunks' locks, held.
#[derive(Debug)]
pub(super) struct Holds<'a> {
    first: Hold<'a>,
    others: Vec<Hold<'a>>,
}

impl<'a> Holds<'a> {
    /// Takes the locks of chunks, of which there is at least one, in their order.
    #[inline(always)]
    pub(super) fn take(
        locks: Locks<'a>,
        chunks: Range<usize>,
        mode: Mode,
        wait: Wait,
    ) -> Result<(Self, Data), Refused> {
        debug_assert!(!chunks.is_empty());
        let (first, data) = locks.take(chunks.start, mode, wait)?;
        let holds = Self { first, others: Vec::new() };
        if chunks.len() > 1 {
            return holds.take_others(locks, chunks, mode, wait, data);
        }
        Ok((holds, data))
    }

    /// Takes the locks of the chunks behind the first.
    #[inline(never)]
    fn take_others(
        mut self,
        locks: Locks<'a>,
        chunks: Range<usize>,
        mode: Mode,
        wait: Wait,
        mut worst: Data,
    ) -> Result<(Self, Data), Refused> {
        for chunk in chunks.skip(1) {
            match locks.take(chunk, mode, wait) {
                Ok((hold, data)) => {
                    self.others.push(hold);
                    worst = worse(worst, data);
                }
                Err(refused) => {
                    self.put_back();
                    return Err(refused);
                }
            }
        }
        Ok((self, worst))
    }

    /// Every chunk is as it should be.
    pub(super) fn mark_consistent(&self) {
        self.first.mark_consistent();
        self.others.iter().for_each(Hold::mark_consistent);
    }

    /// Gives everything back as it was found: what was a dead process's is its again.
    fn put_back(self) {
        self.first.put_back();
        self.others.into_iter().for_each(Hold::put_back);
    }

    /// The holds, where the caller can do nothing about what happened to the elements: then they are put back.
    pub(super) fn or_put_back(taken: Result<(Self, Data), Refused>) -> Result<Self, LockError<()>> {
        match taken {
            Ok((holds, Data::Good)) => Ok(holds),
            Ok((holds, data)) => {
                holds.put_back();
                Err(if data == Data::OwnerDied { LockError::OwnerDied(()) } else { LockError::Poisoned(()) })
            }
            Err(Refused::WriterDied) => Err(LockError::OwnerDied(())),
            Err(refused) => Err(without(refused)),
        }
    }

    /// Whether this is still the process that took the locks.
    pub(super) fn is_here(&self) -> bool {
        match &self.first {
            Hold::Exclusive(hold) => hold.held.check().is_ok(),
            Hold::Write(_) | Hold::Read(_) => true,
        }
    }

    /// # Panics
    ///
    /// In a child that was forked since.
    #[inline(always)]
    #[track_caller]
    pub(super) fn must_be_here(&self) {
        match &self.first {
            Hold::Exclusive(hold) => hold.held.must_be_here(),
            // Where the lock is another process's, its guard lends nothing.
            Hold::Write(guard) => **guard,
            Hold::Read(guard) => **guard,
        }
    }
}

/// The same, where a guard is expected.
pub(super) fn without<G>(refused: Refused) -> LockError<G> {
    refused.map(|never| match never {})
}

fn worse(one: Data, other: Data) -> Data {
    match (one, other) {
        (Data::OwnerDied, _) | (_, Data::OwnerDied) => Data::OwnerDied,
        (Data::Poisoned, _) | (_, Data::Poisoned) => Data::Poisoned,
        (Data::Good, Data::Good) => Data::Good,
    }
}
