//! What processes do with the locks of the crash tests, and what comes of it.

use crate::common::Reporter;
use serde::{Deserialize, Serialize};
use shm_array::{
    Barrier, BarrierError, BarrierWaitResult, Condvar, Event, LockError, Mutex, Once, ReentrantMutex, RwLock,
    RwLockWriteGuard, Semaphore, Shared, SharedValue, Signal,
};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Two numbers that are equal whenever nobody is inside.
type Pair = [u64; 2];
type AtomicPair = [AtomicU64; 2];

pub(crate) const PERMITS: usize = 2;
/// Too short for anything to happen.
const SHORTLY: Duration = Duration::from_millis(1);

/// One of each.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Locks {
    pub(crate) mutex: Shared<Mutex<Pair>>,
    pub(crate) reentrant: Shared<ReentrantMutex<AtomicPair>>,
    pub(crate) rwlock: Shared<RwLock<Pair>>,
    pub(crate) semaphore: Shared<Semaphore<PERMITS>>,
    pub(crate) condvar: Shared<Condvar>,
    pub(crate) event: Shared<Event>,
    pub(crate) signal: Shared<Signal>,
    pub(crate) once: Shared<Once>,
    /// How often the once was done to its end.
    pub(crate) done: Shared<AtomicU64>,
    /// For one party, and for two.
    pub(crate) alone: Shared<Barrier>,
    pub(crate) both: Shared<Barrier>,
    pub(crate) value: SharedValue<[u64; 32]>,
    /// Whoever is inside waits until it is set.
    pub(crate) go: Shared<Event>,
}

/// What a process does once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Deed {
    Lock,
    /// Takes over and leaves the data as it is.
    LockAndGiveUp,
    RenewMutex,
    LockTwice,
    Read,
    Write,
    TryWrite,
    WriteShortly,
    WriteAndGiveUp,
    RenewRwLock,
    Downgrade,
    Acquire,
    ForgetAndRelease,
    WaitForChange,
    Notify,
    SetEvent,
    WaitForEvent,
    Post,
    TakeUnit,
    RunOnce,
    PassAlone,
    PassAloneActing,
    PassBoth,
    SetValue,
}

/// How a deed ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum End {
    Fine,
    /// Somebody died inside; the data is repaired now.
    OwnerDied,
    WriterDied,
    /// Out of use, and stays so.
    Unrecoverable,
    TimedOut,
    WouldBlock,
    Broken,
}

impl Locks {
    pub(crate) fn new() -> Self {
        fn made<T: shm_array::ShmSafe>(value: T) -> Shared<T> {
            Shared::new(value).expect("memory")
        }
        Self {
            mutex: made(Mutex::new([0; 2])),
            reentrant: made(ReentrantMutex::new(AtomicPair::default())),
            rwlock: made(RwLock::new([0; 2])),
            semaphore: made(Semaphore::with_limit(PERMITS)),
            condvar: made(Condvar::new()),
            event: made(Event::new()),
            signal: made(Signal::new(0)),
            once: made(Once::new()),
            done: made(AtomicU64::new(0)),
            alone: made(Barrier::new(1)),
            both: made(Barrier::new(2)),
            value: SharedValue::new([0; 32]).expect("memory"),
            go: made(Event::new()),
        }
    }

    /// Does it. With a reporter, says when it is inside, and waits there until it may go on.
    pub(crate) fn do_it(&self, deed: Deed, reporter: Option<&Reporter>) -> End {
        let inside = || {
            if let Some(reporter) = reporter {
                reporter.report(&true);
                self.go.wait();
            }
        };
        match deed {
            Deed::Lock | Deed::LockAndGiveUp => self.lock(deed, inside),
            Deed::RenewMutex => self.mutex.renew([7; 2]).map_or(End::WouldBlock, |()| End::Fine),
            Deed::LockTwice => self.lock_twice(),
            Deed::Read => match self.rwlock.read() {
                Ok(guard) => {
                    inside();
                    assert_eq!(guard[0], guard[1], "torn, and a reader is let in");
                    End::Fine
                }
                Err(error) => End::of(&error),
            },
            Deed::Write => self.write(self.rwlock.write(), deed, inside),
            Deed::TryWrite => self.write(self.rwlock.try_write(), deed, inside),
            Deed::WriteShortly => self.write(self.rwlock.write_timeout(SHORTLY), deed, inside),
            Deed::WriteAndGiveUp | Deed::Downgrade => self.write(self.rwlock.write(), deed, inside),
            Deed::RenewRwLock => self.rwlock.renew([7; 2]).map_or(End::WouldBlock, |()| End::Fine),
            Deed::Acquire => {
                let permit = self.semaphore.acquire().expect("a permit");
                inside();
                drop(permit);
                End::Fine
            }
            Deed::ForgetAndRelease => {
                self.semaphore.acquire().expect("a permit").forget();
                self.semaphore.release().expect("its own");
                End::Fine
            }
            Deed::WaitForChange => {
                let guard = self.mutex.lock().expect("free");
                inside();
                self.condvar.wait(guard).map_or_else(|error| End::of(&error), |_| End::Fine)
            }
            Deed::Notify => {
                self.condvar.notify_one();
                End::Fine
            }
            Deed::SetEvent => {
                self.event.set();
                End::Fine
            }
            Deed::WaitForEvent => {
                self.event.wait();
                End::Fine
            }
            Deed::Post => {
                self.signal.post(1).expect("there is room");
                End::Fine
            }
            Deed::TakeUnit => {
                self.signal.wait();
                End::Fine
            }
            Deed::RunOnce => {
                let done = self.once.call_once(|| {
                    inside();
                    self.done.fetch_add(1, Ordering::SeqCst);
                });
                done.map_or_else(|error| End::of(&error), |()| End::Fine)
            }
            Deed::PassAlone => passed(&self.alone, self.alone.wait()),
            Deed::PassAloneActing => passed(&self.alone, self.alone.wait_with(inside)),
            Deed::PassBoth => passed(&self.both, self.both.wait()),
            Deed::SetValue => {
                self.value.set([self.value.get()[0] + 1; 32]);
                End::Fine
            }
        }
    }

    fn lock(&self, deed: Deed, inside: impl FnOnce()) -> End {
        let (mut guard, end) = match self.mutex.lock() {
            Ok(guard) => (guard, End::Fine),
            Err(LockError::OwnerDied(guard)) => (guard, End::OwnerDied),
            Err(error) => return End::of(&error),
        };
        if end == End::OwnerDied {
            if deed == Deed::LockAndGiveUp {
                return end;
            }
            guard[1] = guard[0];
            guard.mark_consistent();
        }
        assert_eq!(guard[0], guard[1], "torn without a warning");
        guard[0] += 1;
        inside();
        guard[1] += 1;
        end
    }

    fn lock_twice(&self) -> End {
        let (outer, end) = match self.reentrant.lock() {
            Ok(guard) => (guard, End::Fine),
            Err(LockError::OwnerDied(guard)) => (guard, End::OwnerDied),
            Err(error) => return End::of(&error),
        };
        if end == End::OwnerDied {
            outer[1].store(outer[0].load(Ordering::SeqCst), Ordering::SeqCst);
            outer.mark_consistent();
        }
        let inner = self.reentrant.lock().expect("its own");
        for word in &*inner {
            word.fetch_add(1, Ordering::SeqCst);
        }
        end
    }

    fn write(
        &self,
        locked: Result<RwLockWriteGuard<'_, Pair>, LockError<RwLockWriteGuard<'_, Pair>>>,
        deed: Deed,
        inside: impl FnOnce(),
    ) -> End {
        let (mut guard, end) = match locked {
            Ok(guard) => (guard, End::Fine),
            Err(LockError::OwnerDied(guard)) => (guard, End::OwnerDied),
            Err(error) => return End::of(&error),
        };
        if end == End::OwnerDied {
            if deed == Deed::WriteAndGiveUp {
                return end;
            }
            guard[1] = guard[0];
            guard.mark_consistent();
        }
        assert_eq!(guard[0], guard[1], "torn without a warning");
        guard[0] += 1;
        inside();
        guard[1] += 1;
        if deed == Deed::Downgrade {
            let guard = RwLockWriteGuard::downgrade(guard).expect("nothing is wrong with it");
            assert_eq!(guard[0], guard[1]);
        }
        end
    }

    /// Everything works as if nothing had happened.
    pub(crate) fn work(&self) {
        let deeds = [
            Deed::Lock,
            Deed::LockTwice,
            Deed::Read,
            Deed::Write,
            Deed::TryWrite,
            Deed::Downgrade,
            Deed::Acquire,
            Deed::ForgetAndRelease,
            Deed::Notify,
            Deed::SetEvent,
            Deed::WaitForEvent,
            Deed::Post,
            Deed::TakeUnit,
            Deed::RunOnce,
            Deed::PassAlone,
            Deed::PassAloneActing,
            Deed::SetValue,
        ];
        for deed in deeds {
            assert_eq!(self.do_it(deed, None), End::Fine, "{deed:?}");
        }
        assert_eq!(self.semaphore.available(), PERMITS, "a permit is lost");
        let done = self.done.load(Ordering::SeqCst);
        assert_eq!(self.do_it(Deed::RunOnce, None), End::Fine);
        assert!(self.once.is_completed() && done == self.done.load(Ordering::SeqCst), "done more than once");
        let value = self.value.get();
        assert!(value.iter().all(|word| *word == value[0]), "a torn value");
    }
}

/// A broken barrier is reset.
fn passed(barrier: &Barrier, result: Result<BarrierWaitResult, BarrierError>) -> End {
    match result {
        Ok(_) => End::Fine,
        Err(BarrierError::Broken) => {
            barrier.reset();
            End::Broken
        }
        Err(error) => panic!("{error}"),
    }
}

impl End {
    fn of<G>(error: &LockError<G>) -> Self {
        match error {
            LockError::OwnerDied(_) => Self::OwnerDied,
            LockError::WriterDied => Self::WriterDied,
            LockError::Unrecoverable => Self::Unrecoverable,
            LockError::TimedOut => Self::TimedOut,
            LockError::WouldBlock => Self::WouldBlock,
            error => panic!("{error}"),
        }
    }
}
