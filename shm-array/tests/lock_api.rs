//! The robust lock behind the traits of `lock_api`.
#![cfg(all(feature = "lock_api", not(loom)))]
#![allow(unsafe_code, reason = "raw locks are unlocked by hand")]

mod common;

use common::{Peer, was_killed, watchdog};
use lock_api::{RawMutex as _, RawMutexTimed as _};
use shm_array::Shared;
use shm_array::lock_api::{Mutex, RawMutex};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

#[test]
fn child() {
    // Keeps the lock until killed.
    common::child(|lock: Shared<RawMutex>, reporter| {
        lock.lock();
        reporter.report(&true);
        loop {
            std::thread::park();
        }
    });
}

fn held_by_a_child() -> (Shared<RawMutex>, Peer) {
    let lock = Shared::new(RawMutex::INIT).expect("memory");
    let peer = Peer::start(&lock, None);
    assert_eq!(peer.report(), Some(true));
    (lock, peer)
}

/// What the panic of `f` says.
fn panic_of<R>(f: impl FnOnce() -> R) -> String {
    let panic = catch_unwind(AssertUnwindSafe(f)).map(drop).expect_err("a panic");
    panic.downcast_ref::<&str>().map(|text| (*text).to_owned()).expect("with a text")
}

#[test]
fn it_locks_as_any_mutex_of_lock_api() {
    static COUNTER: Mutex<u32> = Mutex::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| (0..10_000).for_each(|_| *COUNTER.lock() += 1));
        }
    });
    let guard = COUNTER.lock();
    assert_eq!(*guard, 30_000);
    assert!(COUNTER.is_locked() && COUNTER.try_lock().is_none());
    assert!(COUNTER.try_lock_for(Duration::from_millis(1)).is_none());
    drop(guard);
    assert!(COUNTER.try_lock().is_some());
}

#[test]
fn a_panic_unlocks() {
    let mutex = Mutex::new(1);
    catch_unwind(AssertUnwindSafe(|| {
        let _guard = mutex.lock();
        panic!("as it should");
    }))
    .expect_err("a panic");
    assert_eq!(*mutex.lock(), 1);
}

#[test]
fn other_processes_are_kept_out() {
    let _watched = watchdog();
    let (lock, peer) = held_by_a_child();
    assert!(lock.is_locked() && !lock.try_lock());
    assert!(!lock.try_lock_for(Duration::from_millis(1)));
    assert!(!lock.recover(), "its holder is alive");
    drop(peer);
}

#[test]
fn unlocking_what_another_process_holds_does_nothing() {
    let _watched = watchdog();
    let (lock, peer) = held_by_a_child();
    // SAFETY: against the rules; it must not hand the lock to two all the same.
    unsafe { lock.unlock() };
    assert!(!lock.try_lock());
    drop(peer);
}

#[test]
fn the_death_of_the_holder_is_a_panic_until_somebody_recovers() {
    let _watched = watchdog();
    let (lock, peer) = held_by_a_child();
    assert!(was_killed(peer.kill()));
    assert!(panic_of(|| lock.lock()).contains("died"));
    assert!(panic_of(|| lock.try_lock()).contains("nobody has repaired"));
    assert!(panic_of(|| lock.try_lock_for(Duration::ZERO)).contains("RawMutex::recover"));
    assert!(lock.recover());
    assert!(!lock.try_lock(), "recovering has taken the lock");
    assert!(!lock.recover());
    // SAFETY: taken by `recover`.
    unsafe { lock.unlock() };
    assert!(lock.try_lock());
}

#[test]
fn a_try_lock_panics_over_the_dead_too() {
    let _watched = watchdog();
    let (lock, peer) = held_by_a_child();
    assert!(was_killed(peer.kill()));
    assert!(panic_of(|| lock.try_lock()).contains("died"));
}

#[test]
fn whoever_knows_of_the_death_recovers_without_a_panic() {
    let _watched = watchdog();
    let (lock, peer) = held_by_a_child();
    assert!(was_killed(peer.kill()));
    assert!(lock.recover());
}
