//! What a mutex does that a thread may lock again.
#![cfg(not(loom))]

mod common;

use common::{Peer, was_killed, watchdog};
use serde::{Deserialize, Serialize};
use shm_array::{LockError, ReentrantMutex, Shared};
use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

type Counter = Shared<ReentrantMutex<AtomicU64>>;

/// What a child does with the mutex.
#[derive(Serialize, Deserialize)]
enum Orders {
    /// Add 1 so many times, two guards deep and not atomically.
    Add(Counter, u64),
    /// Lock three times, write a value, and keep the lock until killed.
    Hold(Counter, u64),
    /// Report whether another thread's lock keeps this one out.
    Try(Counter),
}

#[test]
fn child() {
    common::child(|orders, reporter| match orders {
        Orders::Add(counter, times) => {
            add(&counter, times);
            reporter.report(&true);
        }
        Orders::Hold(counter, value) => {
            let guards = [(); 3].map(|()| counter.lock().expect("locked"));
            guards[0].store(value, Ordering::Relaxed);
            reporter.report(&true);
            loop {
                std::thread::park();
            }
        }
        Orders::Try(counter) => reporter.report(&matches!(counter.try_lock(), Err(LockError::WouldBlock))),
    });
}

fn add(counter: &ReentrantMutex<AtomicU64>, times: u64) {
    for _ in 0..times {
        let outer = counter.lock().expect("locked");
        let before = outer.load(Ordering::Relaxed);
        counter.lock().expect("locked again").store(before + 1, Ordering::Relaxed);
    }
}

fn shared(value: u64) -> Counter {
    Shared::new(ReentrantMutex::new(AtomicU64::new(value))).expect("memory")
}

fn holder(counter: &Counter, value: u64) -> Peer {
    let peer = Peer::start(&Orders::Hold(counter.clone(), value), None);
    assert_eq!(peer.report(), Some(true));
    peer
}

fn orphan(value: u64) -> Counter {
    let counter = shared(1);
    assert!(was_killed(holder(&counter, value).kill()));
    counter
}

/// Whether another thread is kept out.
fn excludes<T: Send>(mutex: &ReentrantMutex<T>) -> bool {
    std::thread::scope(|scope| {
        let other = scope.spawn(|| matches!(mutex.try_lock(), Err(LockError::WouldBlock)));
        other.join().expect("the thread ends")
    })
}

#[test]
fn conformance_rlock() {
    let mutex = ReentrantMutex::new(());
    let guards = [(); 3].map(|()| mutex.lock().unwrap());
    assert!(mutex.is_held_by_this_thread());
    for guard in guards {
        assert!(mutex.is_locked());
        drop(guard);
    }
    assert!(!mutex.is_locked() && !mutex.is_held_by_this_thread());
    // There is no release beyond that: it takes a guard.
}

#[test]
fn conformance_rlock_locked_2processes() {
    let _watched = watchdog();
    let counter = shared(0);
    let peer = holder(&counter, 5);
    assert!(counter.is_locked() && !counter.is_held_by_this_thread());
    assert!(matches!(counter.try_lock(), Err(LockError::WouldBlock)));
    drop(peer);
}

#[test]
fn conformance_repr_rlock() {
    let _watched = watchdog();
    let counter = shared(5);
    let text = || format!("{:?}", *counter);
    let me = std::process::id();
    assert_eq!(text(), "ReentrantMutex { data: 5, state: free, count: 0 }");
    let guards = [(); 2].map(|()| counter.lock().unwrap());
    let mine = format!("data: 5, state: held by process {me} (this thread), count: 2");
    assert!(text().contains(&mine), "{}", text());
    let other = std::thread::scope(|scope| scope.spawn(|| format!("{:?}", *counter)).join().unwrap());
    let others = format!("data: <locked>, state: held by process {me} (another thread), count: 2");
    assert!(other.contains(&others), "{other}");
    assert!(text().contains(&mine), "printing left it as it was: {}", text());
    drop(guards);
    let peer = holder(&counter, 6);
    assert!(text().contains("count: 3") && !text().contains("thread"), "{}", text());
    drop(peer);
}

#[test]
fn the_guards_may_go_in_any_order() {
    let mutex = ReentrantMutex::new(());
    let (first, second, third) = (mutex.lock(), mutex.try_lock(), mutex.lock_timeout(Duration::ZERO));
    drop(first);
    assert!(excludes(&mutex));
    drop(third);
    assert!(excludes(&mutex));
    drop(second);
    assert!(!excludes(&mutex));
}

#[test]
fn another_thread_of_the_same_process_is_kept_out() {
    let mutex = ReentrantMutex::new(());
    let guard = mutex.lock().unwrap();
    assert!(excludes(&mutex));
    drop(guard);
    assert!(!excludes(&mutex));
}

#[test]
fn a_thread_of_another_process_is_kept_out_whatever_its_number() {
    let _watched = watchdog();
    let counter = shared(0);
    let guard = counter.lock().unwrap();
    let peer = Peer::start(&Orders::Try(counter.clone()), None);
    assert_eq!(peer.report(), Some(true));
    drop(guard);
}

#[test]
fn a_lock_that_a_thread_took_along_when_it_ended_is_no_other_threads() {
    let mutex = ReentrantMutex::new(());
    std::thread::scope(|scope| {
        scope.spawn(|| std::mem::forget(mutex.lock()));
    });
    for _ in 0..10 {
        assert!(excludes(&mutex));
    }
    assert!(matches!(mutex.lock_timeout(Duration::from_millis(1)), Err(LockError::TimedOut)));
}

#[test]
fn processes_and_threads_exclude_each_other() {
    let _watched = watchdog();
    let counter = shared(0);
    let peers = [(); 2].map(|()| Peer::start(&Orders::Add(counter.clone(), 10_000), None));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| add(&counter, 10_000));
        }
    });
    for peer in peers {
        assert_eq!(peer.report(), Some(true));
    }
    assert_eq!(counter.lock().unwrap().load(Ordering::Relaxed), 40_000);
}

#[test]
fn too_many_guards_are_refused() {
    let mutex = ReentrantMutex::new(());
    let limit = loop {
        match mutex.lock() {
            Ok(guard) => std::mem::forget(guard),
            Err(LockError::TooMany { limit }) => break limit,
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(limit, 1 << 20);
}

#[test]
fn the_death_of_the_holder_is_told_until_the_data_is_marked() {
    let _watched = watchdog();
    let counter = orphan(7);
    let Err(LockError::OwnerDied(outer)) = counter.lock() else { panic!("the owner died") };
    assert_eq!(outer.load(Ordering::Relaxed), 7);
    let Err(LockError::OwnerDied(inner)) = counter.lock() else { panic!("and nobody repaired") };
    inner.mark_consistent();
    drop(inner);
    assert!(counter.lock().is_ok());
    drop(outer);
    assert!(counter.lock().is_ok());
    assert!(!counter.is_locked());
}

#[test]
fn data_that_nobody_repairs_is_out_of_use_until_it_is_renewed() {
    let _watched = watchdog();
    let counter = orphan(7);
    assert!(counter.lock().is_err_and(|error| error.is_owner_died()));
    assert!(matches!(counter.lock(), Err(LockError::Unrecoverable)));
    assert!(counter.renew(AtomicU64::new(9)).is_ok());
    assert_eq!(counter.lock().unwrap().load(Ordering::Relaxed), 9);
    assert!(counter.renew(AtomicU64::new(10)).is_err());
}

#[test]
fn a_panic_under_any_of_the_guards_poisons() {
    let mutex = ReentrantMutex::new(());
    let outer = mutex.lock().unwrap();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _inner = mutex.lock();
        panic!("as it should");
    }));
    assert!(panicked.is_err() && mutex.is_poisoned());
    drop(outer);
    let guard = mutex.lock().expect_err("poisoned").into_guard().expect("with the data");
    guard.mark_consistent();
    drop(guard);
    assert!(mutex.lock().is_ok());
}

#[test]
fn the_data_may_be_a_cell() {
    let names = Arc::new(ReentrantMutex::new(RefCell::new(Vec::new())));
    let outer = names.lock().unwrap();
    names.lock().unwrap().borrow_mut().push("one");
    assert_eq!(*outer.borrow(), ["one"]);
    drop(outer);

    let mut mutex = ReentrantMutex::from(Cell::new(1));
    mutex.get_mut().set(2);
    assert_eq!(mutex.into_inner().get(), 2);
    assert_eq!(ReentrantMutex::<Cell<u8>>::default().into_inner().get(), 0);
}
