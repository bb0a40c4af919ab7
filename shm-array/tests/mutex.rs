//! What a mutex does, between threads and between processes.
#![cfg(not(loom))]
#![allow(unsafe_code, reason = "forks")]

mod common;

use common::{Peer, Reporter, was_killed, watchdog};
use serde::{Deserialize, Serialize};
use shm_array::{LockError, Mutex, Shared};
use std::sync::Arc;
use std::time::{Duration, Instant};

type Counter = Shared<Mutex<u64>>;

/// What a child does with the mutex. It reports when it is done, or holds the lock.
#[derive(Serialize, Deserialize)]
enum Orders {
    /// Add 1 so many times.
    Add(Counter, u64),
    /// Write a value and keep the lock until killed.
    Hold(Counter, u64),
    /// Take over from a dead owner, say whether it was so, and keep the lock until killed.
    Inherit(Counter, bool),
    /// Panic under the lock.
    Panic(Counter),
    /// Lock and report the value, or the error.
    Read(Counter),
    /// Fork, and report whether all was as it should be.
    Fork(Counter, Fork),
}

/// What is done in the forked child.
#[derive(Clone, Copy, Serialize, Deserialize)]
enum Fork {
    Locks,
    IsExcluded,
    UsesGuard,
    Dies,
}

#[test]
fn child() {
    common::child(|orders, reporter| match orders {
        Orders::Add(counter, times) => {
            for _ in 0..times {
                *counter.lock().expect("locked") += 1;
            }
            reporter.report(&true);
        }
        Orders::Hold(counter, value) => {
            let mut data = counter.lock().expect("locked");
            *data = value;
            hold(reporter);
        }
        Orders::Inherit(counter, mark) => {
            let Err(LockError::OwnerDied(data)) = counter.lock() else { panic!("the owner died") };
            if mark {
                data.mark_consistent();
            }
            hold(reporter);
        }
        Orders::Panic(counter) => {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let _data = counter.lock();
                panic!("as it should");
            }));
            reporter.report(&result.is_err());
        }
        Orders::Read(counter) => {
            let read: Result<u64, String> = counter.lock().map(|data| *data).map_err(|e| format!("{e:?}"));
            reporter.report(&read);
        }
        Orders::Fork(counter, case) => reporter.report(&fork_as(case, &counter)),
    });
}

fn hold(reporter: &Reporter) -> ! {
    reporter.report(&true);
    loop {
        std::thread::park();
    }
}

fn shared(value: u64) -> Counter {
    Shared::new(Mutex::new(value)).expect("memory")
}

/// A child that holds the lock, and has written `value`.
fn holder(counter: &Counter, value: u64) -> Peer {
    let peer = Peer::start(&Orders::Hold(counter.clone(), value), None);
    assert_eq!(peer.report(), Some(true));
    peer
}

/// A mutex whose holder was killed.
fn orphan(value: u64) -> Counter {
    let counter = shared(1);
    assert!(was_killed(holder(&counter, value).kill()));
    counter
}

#[test]
fn threads_exclude_each_other() {
    let _watched = watchdog();
    let counter = Arc::new(Mutex::new(0));
    let threads = [(); 4].map(|()| {
        let counter = counter.clone();
        std::thread::spawn(move || {
            for _ in 0..20_000 {
                let mut data = counter.lock().unwrap();
                let before = *data;
                std::hint::black_box(&data);
                *data = before + 1;
            }
        })
    });
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(*counter.lock().unwrap(), 80_000);
}

#[test]
fn processes_exclude_each_other() {
    let _watched = watchdog();
    let counter = shared(0);
    let peers = [(); 3].map(|()| Peer::start(&Orders::Add(counter.clone(), 20_000), None));
    for _ in 0..20_000 {
        *counter.lock().unwrap() += 1;
    }
    for peer in peers {
        assert_eq!(peer.report(), Some(true));
        assert!(peer.wait().success());
    }
    assert_eq!(*counter.lock().unwrap(), 80_000);
}

#[test]
fn conformance_lock() {
    let mutex = Mutex::new(());
    assert!(!mutex.is_locked());
    let guard = mutex.lock().unwrap();
    assert!(mutex.is_locked());
    assert!(matches!(mutex.try_lock(), Err(LockError::WouldBlock)));
    drop(guard);
    assert!(!mutex.is_locked());
    assert!(mutex.try_lock().is_ok());
    // There is no second release: it takes a guard.
}

#[test]
fn conformance_lock_locked_2processes() {
    let _watched = watchdog();
    let counter = shared(0);
    let peer = holder(&counter, 5);
    assert!(counter.is_locked());
    assert!(matches!(counter.try_lock(), Err(LockError::WouldBlock)));
    drop(peer);
}

#[test]
fn conformance_repr_lock() {
    let _watched = watchdog();
    let counter = shared(5);
    assert_eq!(format!("{:?}", *counter), "Mutex { data: 5, state: free }");
    let here = counter.lock().unwrap();
    let me = std::process::id();
    assert_eq!(format!("{:?}", *counter), format!("Mutex {{ data: <locked>, state: held by process {me} }}"));
    drop(here);
    let peer = holder(&counter, 6);
    let text = format!("{:?}", *counter);
    assert!(text.starts_with("Mutex { data: <locked>, state: held by process "), "{text}");
    assert!(!text.contains(&format!("process {me} ")), "{text}");
    drop(peer);
}

#[test]
fn a_lock_that_is_held_is_given_up_at_the_deadline() {
    let _watched = watchdog();
    let counter = shared(0);
    let peer = holder(&counter, 5);
    let start = Instant::now();
    let timeout = Duration::from_millis(150);
    assert!(matches!(counter.lock_timeout(timeout), Err(LockError::TimedOut)));
    assert!(start.elapsed() >= timeout);
    assert!(matches!(counter.lock_until(Instant::now()), Err(LockError::TimedOut)));
    assert!(matches!(counter.lock_timeout(Duration::ZERO), Err(LockError::TimedOut)));
    drop(peer);
}

#[test]
fn a_free_lock_is_taken_whatever_the_deadline() {
    let mutex = Mutex::new(1);
    assert_eq!(*mutex.lock_until(Instant::now()).unwrap(), 1);
    assert_eq!(*mutex.lock_timeout(Duration::ZERO).unwrap(), 1);
    assert_eq!(*mutex.lock_timeout(Duration::MAX).unwrap(), 1);
}

#[test]
fn a_thread_that_holds_the_lock_waits_for_itself_until_the_deadline() {
    let mutex = Mutex::new(1);
    let _guard = mutex.lock().unwrap();
    assert!(matches!(mutex.lock_timeout(Duration::from_millis(1)), Err(LockError::TimedOut)));
}

#[test]
fn the_death_of_the_holder_is_told_with_the_data_as_it_left_it() {
    let _watched = watchdog();
    let counter = orphan(7);
    match counter.lock() {
        Err(LockError::OwnerDied(mut data)) => {
            assert_eq!(*data, 7);
            *data = 8;
            data.mark_consistent();
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(*counter.lock().unwrap(), 8);
}

#[test]
fn a_try_lock_takes_over_too() {
    let _watched = watchdog();
    let counter = orphan(7);
    assert!(matches!(counter.try_lock(), Err(LockError::OwnerDied(data)) if *data == 7));
}

/// Returns when a waiter has left its mark in the word, right before it sleeps.
fn until_somebody_waits_for(counter: &Counter) {
    const WAITERS: u32 = 1 << 31;
    // The word comes first in the mutex.
    let place = std::ptr::from_ref::<Mutex<u64>>(counter);
    // SAFETY: the word is an atomic of 32 bits, at the beginning as the type is `repr(C)`.
    let word = unsafe { &*place.cast::<std::sync::atomic::AtomicU32>() };
    while word.load(std::sync::atomic::Ordering::Relaxed) & WAITERS == 0 {
        std::thread::yield_now();
    }
}

#[test]
fn a_sleeping_waiter_learns_of_the_death() {
    let _watched = watchdog();
    let counter = shared(0);
    let peer = holder(&counter, 7);
    let waiter = std::thread::spawn({
        let counter = counter.clone();
        move || counter.lock().is_err_and(|error| error.is_owner_died())
    });
    until_somebody_waits_for(&counter);
    assert!(was_killed(peer.kill()));
    assert!(waiter.join().unwrap());
}

#[test]
fn data_that_nobody_repairs_is_out_of_use_until_it_is_renewed() {
    let _watched = watchdog();
    let counter = orphan(7);
    assert!(counter.lock().is_err_and(|error| error.is_owner_died()));
    assert!(matches!(counter.lock(), Err(LockError::Unrecoverable)));
    assert!(matches!(counter.try_lock(), Err(LockError::Unrecoverable)));
    assert!(matches!(counter.lock_timeout(Duration::MAX), Err(LockError::Unrecoverable)));
    assert_eq!(format!("{:?}", *counter), "Mutex { data: <locked>, state: out of use }");
    let peer = Peer::start(&Orders::Read(counter.clone()), None);
    assert_eq!(peer.report(), Some(Err::<u64, _>("Unrecoverable".to_owned())));

    assert_eq!(counter.renew(9), Ok(()));
    assert_eq!(*counter.lock().unwrap(), 9);
    assert_eq!(counter.renew(10), Err(10));
    let peer = Peer::start(&Orders::Read(counter.clone()), None);
    assert_eq!(peer.report(), Some(Ok::<_, String>(9_u64)));
}

#[test]
fn a_repairer_that_dies_is_found_out_too_even_if_it_had_marked_the_data() {
    let _watched = watchdog();
    let counter = orphan(7);
    for mark in [false, true] {
        let peer = Peer::start(&Orders::Inherit(counter.clone(), mark), None);
        assert_eq!(peer.report(), Some(true));
        assert!(was_killed(peer.kill()));
    }
    assert!(counter.lock().is_err_and(|error| error.is_owner_died()));
}

#[test]
fn a_sleeping_waiter_is_told_that_nobody_repaired() {
    let _watched = watchdog();
    let counter = orphan(7);
    let data = counter.lock().expect_err("the owner died").into_guard();
    let waiter = std::thread::spawn({
        let counter = counter.clone();
        move || matches!(counter.lock(), Err(LockError::Unrecoverable))
    });
    until_somebody_waits_for(&counter);
    drop(data);
    assert!(waiter.join().unwrap());
}

#[test]
fn an_orphan_that_is_printed_stays_an_orphan() {
    let _watched = watchdog();
    let counter = orphan(7);
    assert!(format!("{:?}", *counter).contains("<locked>"));
    assert!(counter.lock().is_err_and(|error| error.is_owner_died()));
}

#[test]
fn a_panic_under_the_lock_poisons_it_for_all_processes() {
    let _watched = watchdog();
    let counter = shared(3);
    let peer = Peer::start(&Orders::Panic(counter.clone()), None);
    assert_eq!(peer.report(), Some(true));
    assert!(counter.is_poisoned());
    match counter.lock() {
        Err(LockError::Poisoned(data)) => assert_eq!(*data, 3),
        other => panic!("{other:?}"),
    }
    assert!(counter.is_poisoned(), "until somebody says otherwise");
    assert!(format!("{:?}", *counter).contains("free, poisoned"));
}

fn poisoned() -> Mutex<u64> {
    let mutex = Mutex::new(3);
    let panicked = std::panic::catch_unwind(|| {
        let _data = mutex.lock();
        panic!("as it should");
    });
    assert!(panicked.is_err() && mutex.is_poisoned());
    mutex
}

#[test]
fn poison_is_cleared_by_the_guard_or_by_the_mutex() {
    let mutex = poisoned();
    mutex.lock().expect_err("poisoned").into_guard().expect("with the data").mark_consistent();
    assert!(mutex.lock().is_ok());

    let mutex = poisoned();
    mutex.clear_poison();
    assert!(mutex.lock().is_ok());

    let mutex = poisoned();
    let guard = mutex.lock().expect_err("poisoned").into_guard();
    mutex.clear_poison();
    drop(guard);
    assert!(mutex.lock().is_ok(), "cleared under the lock");
}

#[test]
fn a_lock_taken_during_a_panic_is_not_poisoned() {
    struct Log<'a>(&'a Mutex<u64>);
    impl Drop for Log<'_> {
        fn drop(&mut self) {
            *self.0.lock().unwrap() += 1;
        }
    }
    let mutex = Mutex::new(0);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _log = Log(&mutex);
        panic!("as it should");
    }));
    assert!(panicked.is_err());
    assert_eq!(*mutex.lock().unwrap(), 1);
}

#[test]
fn a_panic_over_data_that_nobody_repaired_leaves_it_out_of_use() {
    let _watched = watchdog();
    let counter = orphan(7);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _data = counter.lock();
        panic!("as it should");
    }));
    assert!(panicked.is_err());
    assert!(matches!(counter.lock(), Err(LockError::Unrecoverable)));
}

#[test]
fn a_mutex_works_with_any_data_in_one_process() {
    static NAMES: Mutex<Vec<String>> = Mutex::new(Vec::new());
    NAMES.lock().unwrap().push("one".to_owned());
    assert_eq!(*NAMES.lock().unwrap(), ["one"]);

    let mut mutex = Mutex::from(String::from("a"));
    mutex.get_mut().push('b');
    assert_eq!(mutex.into_inner(), "ab");
    assert_eq!(Mutex::<u8>::default().into_inner(), 0);
    let mutex = Mutex::new(1.5);
    let guard = mutex.lock().unwrap();
    assert_eq!(format!("{guard} {guard:?}"), "1.5 1.5");
}

#[test]
fn data_is_dropped_once() {
    let data = Arc::new(());
    let mutex = Mutex::new(data.clone());
    drop(mutex.into_inner());
    drop(Mutex::new(data.clone()));
    assert_eq!(Arc::strong_count(&data), 1);
}

/// Runs `body` in a forked child and returns its exit code. Forks out of a child of the test, where no other thread can
/// hold what the forked one needs.
fn in_a_fork(body: impl FnOnce() -> bool) -> i32 {
    // SAFETY: no other thread is in the middle of anything; the child only locks and compares.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork");
    if pid == 0 {
        // SAFETY: ends this process if it hangs.
        unsafe { libc::alarm(30) };
        let passed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(false);
        // SAFETY: ends the child, without the destructors of its copies.
        unsafe { libc::_exit(i32::from(!passed)) };
    }
    let mut status = 0;
    // SAFETY: the child of the call above.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    status
}

/// What a process that forks does with the mutex and its child. Returns whether all was as it should be.
fn fork_as(case: Fork, counter: &Counter) -> bool {
    match case {
        Fork::Locks => {
            let status = in_a_fork(|| {
                *counter.lock().expect("attached again") += 1;
                true
            });
            status == 0 && *counter.lock().expect("locked") == 2
        }
        Fork::IsExcluded => {
            let mut guard = counter.lock().expect("locked");
            let status = in_a_fork(|| matches!(counter.try_lock(), Err(LockError::WouldBlock)));
            *guard += 1;
            drop(guard);
            status == 0 && *counter.lock().expect("locked") == 2
        }
        Fork::UsesGuard => {
            let mut guard = Some(counter.lock().expect("locked"));
            let status = in_a_fork(|| {
                let guard = guard.take().expect("a copy of the parent's");
                let read = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| *guard));
                let told = read.is_err_and(|panic| {
                    panic.downcast_ref::<&str>().is_some_and(|message| message.contains("forked"))
                });
                drop(guard);
                told
            });
            let still_held = matches!(counter.try_lock(), Err(LockError::WouldBlock));
            drop(guard);
            status == 0 && still_held && counter.try_lock().is_ok()
        }
        Fork::Dies => {
            let status = in_a_fork(|| {
                std::mem::forget(counter.lock().expect("attached again"));
                true
            });
            status == 0 && counter.lock().is_err_and(|error| error.is_owner_died())
        }
    }
}

#[track_caller]
fn assert_fork(case: Fork) {
    let _watched = watchdog();
    let peer = Peer::start(&Orders::Fork(shared(1), case), None);
    assert_eq!(peer.report(), Some(true));
}

#[test]
fn a_forked_child_locks_as_a_process_of_its_own() {
    assert_fork(Fork::Locks);
}

#[test]
fn a_forked_child_does_not_hold_what_its_parent_holds() {
    assert_fork(Fork::IsExcluded);
}

#[test]
fn a_guard_that_was_forked_lends_nothing_and_unlocks_nothing() {
    assert_fork(Fork::UsesGuard);
}

#[test]
fn a_forked_child_that_dies_with_the_lock_is_found_out() {
    assert_fork(Fork::Dies);
}

#[test]
fn a_mutex_that_was_moved_into_shared_memory_while_it_was_held_is_out_of_use_there() {
    let mutex = Mutex::new(1_u64);
    std::mem::forget(mutex.lock().unwrap());
    let counter = Shared::new(mutex).unwrap();
    assert!(matches!(counter.lock(), Err(LockError::Unrecoverable)));
    assert!(matches!(counter.try_lock(), Err(LockError::Unrecoverable)));
    assert_eq!(counter.renew(2), Ok(()));
    assert_eq!(*counter.lock().unwrap(), 2);
}
