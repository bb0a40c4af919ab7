//! The reader-writer lock between threads and between processes.
#![cfg(not(loom))]

mod common;

use common::{Peer, Reporter, watchdog};
use serde::{Deserialize, Serialize};
use shm_array::{LockError, RwLock, RwLockWriteGuard, Shared};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const SHORT: Duration = Duration::from_millis(20);
const LONG: Duration = Duration::from_secs(30);

// ---- threads of one process

#[test]
fn readers_share_the_lock() {
    let lock = RwLock::new(7);
    let (one, other) = (lock.read().unwrap(), lock.read().unwrap());
    assert_eq!(*one + *other, 14);
}

#[test]
fn a_writer_is_alone() {
    let lock = RwLock::new(0);
    let mut guard = lock.write().unwrap();
    *guard = 1;
    assert!(matches!(lock.try_read(), Err(LockError::WouldBlock)));
    assert!(matches!(lock.try_write(), Err(LockError::WouldBlock)));
    drop(guard);
    assert_eq!(*lock.try_read().unwrap(), 1);
    assert_eq!(*lock.try_write().unwrap(), 1);
}

#[test]
fn a_reader_keeps_writers_out_and_lets_readers_in() {
    let lock = RwLock::new(0);
    let _reader = lock.read().unwrap();
    assert!(matches!(lock.try_write(), Err(LockError::WouldBlock)));
    assert!(lock.try_read().is_ok());
}

#[test]
fn a_wait_ends_at_its_deadline() {
    let lock = RwLock::new(0);
    let writer = lock.write().unwrap();
    assert!(lock.read_timeout(SHORT).unwrap_err().is_timed_out());
    assert!(lock.read_until(Instant::now()).unwrap_err().is_timed_out());
    assert!(lock.write_timeout(SHORT).unwrap_err().is_timed_out());
    assert!(lock.write_until(Instant::now()).unwrap_err().is_timed_out());
    drop(writer);
    let _reader = lock.read().unwrap();
    assert!(lock.write_timeout(SHORT).unwrap_err().is_timed_out());
}

#[test]
fn a_timeout_beyond_the_clock_is_no_error() {
    let lock = RwLock::new(0);
    assert!(lock.read_timeout(Duration::MAX).is_ok());
    assert!(lock.write_timeout(Duration::MAX).is_ok());
}

#[test]
fn a_writer_that_gives_up_lets_readers_in_again() {
    let _watchdog = watchdog();
    let lock = RwLock::new(0);
    let _reader = lock.read().unwrap();
    assert!(lock.write_timeout(SHORT).is_err());
    assert!(lock.try_read().is_ok());
}

#[test]
fn a_writer_that_waits_keeps_new_readers_out() {
    let _watchdog = watchdog();
    let lock = RwLock::new(0);
    let first = lock.read().unwrap();
    thread::scope(|scope| {
        let writer = scope.spawn(|| *lock.write().unwrap() = 1);
        // Until the writer has announced itself.
        while lock.try_read().is_ok() {
            thread::yield_now();
        }
        assert!(lock.read_timeout(SHORT).unwrap_err().is_timed_out());
        drop(first);
        writer.join().unwrap();
    });
    assert_eq!(*lock.read().unwrap(), 1);
}

#[test]
fn readers_and_writers_see_whole_data() {
    let _watchdog = watchdog();
    const ROUNDS: u64 = 2000;
    let lock = RwLock::new([0u64; 4]);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..ROUNDS {
                    lock.write().unwrap().iter_mut().for_each(|word| *word += 1);
                }
            });
            scope.spawn(|| {
                let mut last = 0;
                while last < 2 * ROUNDS {
                    let data = *lock.read().unwrap();
                    assert!(data.iter().all(|word| *word == data[0]) && data[0] >= last);
                    last = data[0];
                }
            });
        }
    });
}

#[test]
fn a_writer_becomes_a_reader_without_a_gap() {
    let _watchdog = watchdog();
    let lock = RwLock::new(0);
    let mut writer = lock.write().unwrap();
    *writer = 5;
    thread::scope(|scope| {
        let other = scope.spawn(|| *lock.write().unwrap() = 6);
        let reader = RwLockWriteGuard::downgrade(writer).unwrap();
        assert_eq!(*reader, 5);
        drop(reader);
        other.join().unwrap();
    });
    assert_eq!(*lock.read().unwrap(), 6);
}

#[test]
fn a_panic_of_a_writer_poisons() {
    let lock = RwLock::new(0);
    panic_with(|| lock.write().unwrap());
    assert!(lock.is_poisoned());
    assert!(lock.read().unwrap_err().is_poisoned());
    assert!(lock.try_read().unwrap_err().is_poisoned());
    let writer = lock.write().unwrap_err().into_guard().unwrap();
    drop(writer);
    assert!(lock.is_poisoned(), "nobody said that the data is good");
    lock.write().unwrap_err().into_guard().unwrap().mark_consistent();
    assert!(!lock.is_poisoned() && lock.read().is_ok());
}

#[test]
fn a_panic_of_a_reader_does_not_poison() {
    let lock = RwLock::new(0);
    panic_with(|| lock.read().unwrap());
    assert!(!lock.is_poisoned() && lock.try_write().is_ok());
}

#[test]
fn poison_can_be_cleared() {
    let lock = RwLock::new(0);
    panic_with(|| lock.write().unwrap());
    lock.clear_poison();
    assert!(lock.read().is_ok() && lock.write().is_ok());
}

#[test]
fn the_owner_of_the_lock_has_its_data() {
    let mut lock = RwLock::from(1);
    *lock.get_mut() += 1;
    assert_eq!(lock.into_inner(), 2);
    let mut lock: RwLock<Vec<u8>> = RwLock::default();
    panic_with(|| lock.write().unwrap());
    lock.get_mut().push(1);
    assert_eq!(lock.into_inner(), [1]);
}

#[test]
fn a_process_has_so_many_readers_and_no_more() {
    let lock = RwLock::new(0);
    let readers: Vec<_> = (0..4095).map(|_| lock.read().unwrap()).collect();
    assert!(matches!(lock.read(), Err(LockError::TooMany { limit: 4095 })));
    assert!(matches!(lock.try_read(), Err(LockError::TooMany { limit: 4095 })));
    drop(readers);
    assert!(lock.try_write().is_ok());
}

#[test]
fn debug_shows_who_is_in() {
    let lock = RwLock::new(3);
    assert_eq!(format!("{lock:?}"), "RwLock { state: free, data: 3 }");
    let reader = lock.read().unwrap();
    assert_eq!(format!("{lock:?} {reader:?} {reader}"), "RwLock { state: read by 1, data: 3 } 3 3");
    drop(reader);
    let writer = lock.write().unwrap();
    assert_eq!(
        format!("{lock:?} {writer:?} {writer}"),
        "RwLock { state: held by a writer, data: <locked> } 3 3"
    );
}

#[test]
fn it_lives_in_a_static_and_moves_before_its_use() {
    static LOCK: RwLock<u32> = RwLock::new(4);
    assert_eq!(*LOCK.read().unwrap(), 4);
    let boxed = Box::new(RwLock::new(5));
    assert_eq!(*boxed.write().unwrap(), 5);
}

#[test]
fn it_may_cross_a_caught_panic() {
    fn may<T: std::panic::UnwindSafe + std::panic::RefUnwindSafe>() {}
    may::<RwLock<u32>>();
    may::<shm_array::OnceLock<u32>>();
    may::<shm_array::Barrier>();
    may::<shm_array::Semaphore>();
    may::<shm_array::Event>();
}

fn panic_with<G>(take: impl Fn() -> G) {
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _guard = take();
        std::panic::resume_unwind(Box::new(()));
    }));
    assert!(panicked.is_err());
}

// ---- processes

#[derive(Serialize, Deserialize)]
enum Orders {
    /// Take a guard, say so, and keep it.
    Read(Shared<RwLock<u64>>),
    Write(Shared<RwLock<u64>>),
    /// Wait for a guard, say so, and give it back.
    TryWrite(Shared<RwLock<u64>>),
    /// So many increments under the lock.
    Count(Shared<RwLock<[u64; 2]>>, u64),
}

#[test]
fn child() {
    common::child(|orders: Orders, reporter: &Reporter| match orders {
        Orders::Read(lock) => {
            let _guard = lock.read().unwrap();
            reporter.report(&true);
            thread::park();
        }
        Orders::Write(lock) => {
            *lock.write().unwrap() += 1;
            let _guard = lock.write().unwrap();
            reporter.report(&true);
            thread::park();
        }
        Orders::TryWrite(lock) => {
            reporter.report(&lock.try_write().is_ok());
            reporter.report(&lock.write().is_ok());
        }
        Orders::Count(lock, rounds) => {
            for _ in 0..rounds {
                let mut guard = lock.write().unwrap();
                guard[0] += 1;
                guard[1] += 1;
                drop(guard);
                let seen = *lock.read().unwrap();
                assert_eq!(seen[0], seen[1]);
            }
            reporter.report(&true);
        }
    });
}

fn shared() -> Shared<RwLock<u64>> {
    Shared::new(RwLock::new(10)).unwrap()
}

/// A child that has done the first part of its orders.
fn started(orders: &Orders) -> Peer {
    let peer = Peer::start(orders, None);
    assert_eq!(peer.report(), Some(true));
    peer
}

#[test]
fn processes_exclude_each_other() {
    let _watchdog = watchdog();
    let lock = shared();
    let mut guard = lock.write().unwrap();
    let peer = Peer::start(&Orders::TryWrite(lock.clone()), None);
    assert_eq!(peer.report(), Some(false));
    *guard += 1;
    drop(guard);
    assert_eq!(peer.report(), Some(true));
}

#[test]
fn processes_count_together() {
    let _watchdog = watchdog();
    let lock = Shared::new(RwLock::new([0; 2])).unwrap();
    let peers = [(); 3].map(|()| Peer::start(&Orders::Count(lock.clone(), 1000), None));
    for peer in peers {
        assert_eq!(peer.report(), Some(true));
    }
    assert_eq!(*lock.read().unwrap(), [3000; 2]);
}

#[test]
fn a_dead_reader_counts_no_longer() {
    let _watchdog = watchdog();
    let lock = shared();
    let peer = started(&Orders::Read(lock.clone()));
    assert!(matches!(lock.try_write(), Err(LockError::WouldBlock)));
    peer.kill();
    assert!(lock.write().is_ok());
    assert!(lock.try_write().is_ok());
}

#[test]
fn a_writer_that_waits_for_a_reader_outlives_it() {
    let _watchdog = watchdog();
    let lock = shared();
    let peer = started(&Orders::Read(lock.clone()));
    let other = started(&Orders::Read(lock.clone()));
    thread::scope(|scope| {
        let writer = scope.spawn(|| lock.write_timeout(LONG).map(drop).is_ok());
        while lock.try_read().is_ok() {
            thread::yield_now();
        }
        peer.kill();
        other.kill();
        assert!(writer.join().unwrap());
    });
}

#[test]
fn the_writer_after_a_dead_writer_is_told() {
    let _watchdog = watchdog();
    let lock = shared();
    started(&Orders::Write(lock.clone())).kill();
    let guard = match lock.write() {
        Err(LockError::OwnerDied(guard)) => guard,
        other => panic!("{other:?}"),
    };
    assert_eq!(*guard, 11);
    guard.mark_consistent();
    drop(guard);
    assert!(lock.read().is_ok() && lock.write().is_ok());
}

#[test]
fn readers_after_a_dead_writer_get_an_error_until_a_writer_repairs() {
    let _watchdog = watchdog();
    let lock = shared();
    started(&Orders::Write(lock.clone())).kill();
    for _ in 0..2 {
        assert!(matches!(lock.read(), Err(LockError::WriterDied)));
        assert!(matches!(lock.try_read(), Err(LockError::WriterDied)));
    }
    let guard = lock.try_write().unwrap_err().into_guard().unwrap();
    let guard = RwLockWriteGuard::downgrade(guard).unwrap_err().into_guard().unwrap();
    guard.mark_consistent();
    let reader = RwLockWriteGuard::downgrade(guard).unwrap();
    assert!(lock.read().is_ok());
    drop(reader);
}

#[test]
fn data_that_nobody_repaired_is_out_of_use() {
    let _watchdog = watchdog();
    let lock = shared();
    started(&Orders::Write(lock.clone())).kill();
    drop(lock.write().unwrap_err());
    assert!(matches!(lock.read(), Err(LockError::Unrecoverable)));
    assert!(matches!(lock.try_read(), Err(LockError::Unrecoverable)));
    assert!(matches!(lock.write(), Err(LockError::Unrecoverable)));
    assert!(matches!(lock.try_write(), Err(LockError::Unrecoverable)));
}

#[test]
fn new_data_puts_a_lock_back_into_service() {
    let _watchdog = watchdog();
    let lock = shared();
    assert_eq!(lock.renew(5), Err(5));
    started(&Orders::Write(lock.clone())).kill();
    assert_eq!(lock.renew(5), Err(5), "the next writer may repair it");
    drop(lock.write().unwrap_err());
    assert_eq!(lock.renew(6), Ok(()));
    assert_eq!(*lock.read().unwrap(), 6);
    *lock.write().unwrap() += 1;
}

#[test]
fn a_reader_that_sleeps_learns_of_the_writers_death() {
    let _watchdog = watchdog();
    let lock = shared();
    let peer = started(&Orders::Write(lock.clone()));
    let waits = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            waits.store(true, Ordering::Release);
            matches!(lock.read(), Err(LockError::WriterDied))
        });
        while !waits.load(Ordering::Acquire) {
            thread::yield_now();
        }
        peer.kill();
        assert!(reader.join().unwrap());
    });
}

#[test]
fn debug_names_the_process_of_the_writer() {
    let _watchdog = watchdog();
    let lock = shared();
    let _guard = lock.write().unwrap();
    let text = format!("{:?}", *lock);
    assert!(text.contains(&format!("held by a writer in process {}", std::process::id())), "{text}");
}

/// Has one `fact` for a type that is not `Sync`, and two for one that is.
trait NotSync<Why> {
    fn fact() {}
}
impl<T: ?Sized> NotSync<()> for T {}
impl<T: ?Sized + Sync> NotSync<u8> for T {}

#[test]
fn threads_do_not_share_a_write_guard() {
    // It would not compile: which fact?
    <RwLockWriteGuard<'static, u64> as NotSync<_>>::fact();
}
