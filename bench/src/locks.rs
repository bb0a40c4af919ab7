//! Locks over a number: uncontended, contended by processes, and with a holder that dies.
//!
//! Every lock guards a counter that lies beside it, and the counter must be right at the end. Ours and pthread's lie in
//! memory shared by processes; parking_lot's lies in this process.

mod contended;
mod death;
mod pthread;
mod python;
mod turns;
mod uncontended;

use crate::child::{Result, Role};
use crate::pin::Pinning;
use crate::run::{Better, Case, Count, Metric, OURS, Variant};
use death::Supervision;
use pthread::{Pthread, PthreadBarrier, PthreadRwLock, PthreadSemaphore, Robust, Shared as JustShared};
use shm_array::{Barrier, LockError, Mutex, RwLock, Semaphore, Shared, SharedValue};
use turns::{Events, Semaphores};

/// This project's lock under test.
type Ours = Shared<Mutex<u64>>;

/// The children of these benchmarks.
pub const ROLES: &[(&str, Role)] = &[
    ("locks.contended.ours", contended::act::<Ours>),
    (
        "locks.contended.pthread_robust",
        contended::act::<Pthread<Robust>>,
    ),
    (
        "locks.contended.pthread_shared",
        contended::act::<Pthread<JustShared>>,
    ),
    ("locks.event.ours", turns::act::<Events>),
    ("locks.event.sem_t", turns::act::<Semaphores>),
    ("locks.barrier.ours", turns::act::<Shared<Barrier>>),
    ("locks.barrier.pthread_shared", turns::act::<PthreadBarrier>),
    ("locks.holder.ours", death::hold::<Ours>),
    ("locks.waiter.ours", death::wait::<Ours>),
    ("locks.holder.pthread_robust", death::hold::<Pthread<Robust>>),
    ("locks.waiter.pthread_robust", death::wait::<Pthread<Robust>>),
];

/// A lock over a number.
trait Counter: Sized {
    /// A free lock over zero.
    fn create() -> Result<Self>;

    /// Runs `f` under the lock.
    fn with<R>(&self, f: impl FnOnce(&mut u64) -> R) -> Result<R>;
}

/// Such a lock that survives its holder.
trait Survivor: Counter {
    /// Takes the lock and keeps it.
    fn hold(&self) -> Result;

    /// Waits for the lock, repairs it if its holder died, and gives it back. Returns whether that was so.
    fn take_over(&self) -> Result<bool>;
}

impl Counter for Ours {
    fn create() -> Result<Self> {
        Ok(Shared::new(Mutex::new(0))?)
    }

    #[inline(always)]
    fn with<R>(&self, f: impl FnOnce(&mut u64) -> R) -> Result<R> {
        let mut guard = self.lock().map_err(LockError::into_error)?;
        Ok(f(&mut guard))
    }
}

impl Counter for SharedValue<u64> {
    fn create() -> Result<Self> {
        Ok(SharedValue::new(0)?)
    }

    #[inline(always)]
    fn with<R>(&self, f: impl FnOnce(&mut u64) -> R) -> Result<R> {
        let mut result = None;
        self.update(|mut number| {
            result = Some(f(&mut number));
            number
        });
        result.ok_or_else(|| "the update did not run".into())
    }
}

impl Survivor for Ours {
    fn hold(&self) -> Result {
        std::mem::forget(self.lock().map_err(LockError::into_error)?);
        Ok(())
    }

    fn take_over(&self) -> Result<bool> {
        match self.lock() {
            Ok(_) => Ok(false),
            Err(LockError::OwnerDied(guard)) => {
                guard.mark_consistent();
                Ok(true)
            }
            Err(error) => Err(error.into_error().into()),
        }
    }
}

impl Counter for parking_lot::Mutex<u64> {
    fn create() -> Result<Self> {
        Ok(Self::new(0))
    }

    #[inline(always)]
    fn with<R>(&self, f: impl FnOnce(&mut u64) -> R) -> Result<R> {
        Ok(f(&mut self.lock()))
    }
}

/// A lock of many readers over a number.
trait Readable: Sized {
    /// A free lock over `value`.
    fn create(value: u64) -> Result<Self>;

    fn read(&self) -> Result<u64>;
}

impl Readable for Shared<RwLock<u64>> {
    fn create(value: u64) -> Result<Self> {
        Ok(Shared::new(RwLock::new(value))?)
    }

    #[inline(always)]
    fn read(&self) -> Result<u64> {
        Ok(*RwLock::read(self).map_err(LockError::into_error)?)
    }
}

impl Readable for parking_lot::RwLock<u64> {
    fn create(value: u64) -> Result<Self> {
        Ok(Self::new(value))
    }

    #[inline(always)]
    fn read(&self) -> Result<u64> {
        Ok(*parking_lot::RwLock::read(self))
    }
}

/// Permits.
trait Permits: Sized {
    /// So many free ones.
    fn create(permits: u32) -> Result<Self>;

    /// Takes one and gives it back.
    fn take_and_give(&self) -> Result;

    /// How many are free.
    fn free(&self) -> Result<u32>;
}

impl Permits for Shared<Semaphore> {
    fn create(permits: u32) -> Result<Self> {
        Ok(Shared::new(Semaphore::try_new(permits as usize)?)?)
    }

    #[inline(always)]
    fn take_and_give(&self) -> Result {
        drop(self.acquire()?);
        Ok(())
    }

    fn free(&self) -> Result<u32> {
        Ok(u32::try_from(self.available())?)
    }
}

/// The cases.
pub fn cases() -> Vec<Case> {
    let about = "Uncontended: lock, add one, unlock. Contended: as many processes as the name says, half of them on each \
                 side, do that without a pause until the counter has reached its target; the share is what the \
                 process that got least had, of an equal part (1 is fair). pthread's mutexes are \
                 PTHREAD_PROCESS_SHARED in shared memory, robust or not; parking_lot's locks are in the process. Python's \
                 `Lock` is taken with `acquire` and `release`, or with `with`, as its guard. \
                 Owner death: from the kill of the holder until a sleeping waiter in another process has the lock \
                 and knows; *lazy*: nobody helps; *swept*: a supervisor sees the pidfd and calls `sweep_all`. pthread's \
                 robust mutex is woken by the kernel. Semaphore: take one of four permits, give it back; ours \
                 come back when their holder dies. Ping-pong: two events (or `sem_t`), one for each direction, \
                 between two processes. Barrier: rounds of two processes.";
    let case = |name, metrics, variants| Case {
        bench: "locks",
        name,
        about,
        pinnings: &Pinning::ALL,
        metrics,
        variants,
    };
    let metric = |name, unit, better| Metric { name, unit, better };
    let nanos = || vec![metric("", "ns", Better::Lower)];
    let rate = || {
        vec![
            metric("in all", "M/s", Better::Higher),
            metric("least share", "", Better::Higher),
        ]
    };
    let delay = || {
        ["p50", "p99", "most"]
            .map(|name| metric(name, "ms", Better::Lower))
            .into()
    };
    let many = Count::From(100_000);
    let some = Count::From(20_000);
    let trips = Count::From(500);
    let kills = Count::Fixed(100, 4);
    let contended = |name, parties| {
        case(
            name,
            rate(),
            vec![
                Variant::new(
                    OURS,
                    some,
                    contended::run::<Ours>("locks.contended.ours", parties),
                ),
                Variant::new(
                    "pthread_robust",
                    some,
                    contended::run::<Pthread<Robust>>("locks.contended.pthread_robust", parties),
                ),
                Variant::new(
                    "pthread_shared",
                    some,
                    contended::run::<Pthread<JustShared>>("locks.contended.pthread_shared", parties),
                ),
            ],
        )
    };
    let death = |name, supervision| {
        case(
            name,
            delay(),
            vec![
                Variant::new(OURS, kills, death::run::<Ours>("ours", supervision)),
                Variant::new(
                    "pthread_robust",
                    kills,
                    death::run::<Pthread<Robust>>("pthread_robust", Supervision::None),
                ),
            ],
        )
    };
    vec![
        case(
            "uncontended.mutex",
            nanos(),
            vec![
                Variant::new(OURS, many, uncontended::lock::<Ours>),
                Variant::new("parking_lot", many, uncontended::lock::<parking_lot::Mutex<u64>>),
                Variant::new("pthread_robust", many, uncontended::lock::<Pthread<Robust>>),
                Variant::new("pthread_shared", many, uncontended::lock::<Pthread<JustShared>>),
                Variant::new("python_lock", some, python::run("lock")),
                Variant::new("python_lock_with", some, python::run("lock_with")),
            ],
        ),
        case(
            "rwlock.read_uncontended",
            nanos(),
            vec![
                Variant::new(OURS, many, uncontended::read::<Shared<RwLock<u64>>>),
                Variant::new("parking_lot", many, uncontended::read::<parking_lot::RwLock<u64>>),
                Variant::new("pthread_shared", many, uncontended::read::<PthreadRwLock>),
            ],
        ),
        case(
            "value.increment",
            nanos(),
            vec![
                Variant::new(OURS, many, uncontended::lock::<SharedValue<u64>>),
                Variant::new("own_mutex", many, uncontended::lock::<Ours>),
                Variant::new("python_value", some, python::run("value")),
            ],
        ),
        contended("contended2.mutex", 2),
        contended("contended8.mutex", 8),
        case(
            "semaphore.uncontended",
            nanos(),
            vec![
                Variant::new(OURS, many, uncontended::permit::<Shared<Semaphore>>),
                Variant::new("sem_t", many, uncontended::permit::<PthreadSemaphore>),
                Variant::new("python_semaphore", some, python::run("semaphore")),
            ],
        ),
        case(
            "event.ping_pong",
            nanos(),
            vec![
                Variant::new(OURS, trips, turns::run::<Events>("locks.event.ours")),
                Variant::new("sem_t", trips, turns::run::<Semaphores>("locks.event.sem_t")),
                Variant::new("python_event", trips, python::run("event")),
            ],
        ),
        case(
            "barrier.round",
            nanos(),
            vec![
                Variant::new(OURS, trips, turns::run::<Shared<Barrier>>("locks.barrier.ours")),
                Variant::new(
                    "pthread_shared",
                    trips,
                    turns::run::<PthreadBarrier>("locks.barrier.pthread_shared"),
                ),
                Variant::new("python_barrier", trips, python::run("barrier")),
            ],
        ),
        death("owner_death.lazy", Supervision::None),
        death("owner_death.swept", Supervision::Sweep),
    ]
}
