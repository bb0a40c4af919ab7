//! Semaphores, whose permits have holders, and signals, whose units have none.
#![cfg(not(loom))]

mod common;

use common::{Peer, Reporter, watchdog};
use serde::{Deserialize, Serialize};
use shm_array::{LockError, Semaphore, Shared, Signal};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const SHORT: Duration = Duration::from_millis(20);

// ---- threads of one process

#[test]
fn test_semaphore() {
    let semaphore = Semaphore::new(2);
    let one = semaphore.acquire().unwrap();
    assert_eq!(semaphore.available(), 1);
    let two = semaphore.acquire().unwrap();
    assert_eq!(semaphore.available(), 0);
    assert!(matches!(semaphore.try_acquire(), Err(LockError::WouldBlock)));
    drop(one);
    assert_eq!(semaphore.available(), 1);
    drop(two);
    assert_eq!(semaphore.available(), 2);
}

#[test]
fn test_bounded_semaphore() {
    let semaphore = Semaphore::new(2);
    semaphore.acquire().unwrap().forget();
    let guarded = semaphore.acquire().unwrap();
    semaphore.release().unwrap();
    assert!(matches!(semaphore.release(), Err(LockError::NotHeld)), "what a guard holds is the guard's");
    drop(guarded);
    assert!(matches!(semaphore.release(), Err(LockError::NotHeld)));
    assert_eq!(semaphore.available(), 2);
}

#[test]
fn test_timeout() {
    let semaphore = Semaphore::new(1);
    let _permit = semaphore.acquire().unwrap();
    assert!(matches!(semaphore.try_acquire(), Err(LockError::WouldBlock)));
    let start = Instant::now();
    assert!(semaphore.acquire_timeout(SHORT).unwrap_err().is_timed_out());
    assert!(start.elapsed() >= SHORT);
    assert!(semaphore.acquire_until(start).unwrap_err().is_timed_out());
}

#[test]
fn a_permit_that_comes_back_wakes_a_sleeper() {
    let _watchdog = watchdog();
    let semaphore = Semaphore::new(1);
    let permit = semaphore.acquire().unwrap();
    thread::scope(|scope| {
        let sleeper = scope.spawn(|| semaphore.acquire().is_ok());
        drop(permit);
        assert!(sleeper.join().unwrap());
    });
}

#[test]
fn never_more_holders_than_permits() {
    let _watchdog = watchdog();
    let (semaphore, inside) = (Semaphore::<3>::with_limit(2), AtomicU32::new(0));
    thread::scope(|scope| {
        for _ in 0..5 {
            scope.spawn(|| {
                for _ in 0..2000 {
                    let _permit = semaphore.acquire().unwrap();
                    assert!(inside.fetch_add(1, Ordering::Relaxed) < 2);
                    thread::yield_now();
                    inside.fetch_sub(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(semaphore.available(), 2);
}

#[test]
fn a_number_of_permits_that_makes_no_sense_is_an_error() {
    for permits in [0, 65, usize::MAX] {
        assert!(Semaphore::try_new(permits).unwrap_err().is_out_of_range());
    }
    let error = Semaphore::<8>::try_with_limit(9).unwrap_err();
    assert_eq!(error.to_string(), "the number of permits, at least 1, is 9; the limit is 8");
    assert_eq!(Semaphore::try_new(64).unwrap().permits(), 64);
    assert_eq!(Semaphore::<8>::try_with_limit(8).unwrap().available(), 8);
}

#[test]
#[should_panic(expected = "a semaphore has 1 to MAX permits")]
fn a_semaphore_without_permits_panics() {
    let _ = Semaphore::new(0);
}

#[test]
fn debug_shows_what_is_left() {
    static SEMAPHORE: Semaphore = Semaphore::new(3);
    let permit = SEMAPHORE.acquire().unwrap();
    assert_eq!(format!("{SEMAPHORE:?}"), "Semaphore { permits: 3, available: 2 }");
    assert!(format!("{permit:?}").starts_with("Permit"));
}

#[test]
fn a_signal_counts_what_anybody_posts() {
    let signal = Signal::new(2);
    signal.wait();
    assert_eq!(signal.value(), 1);
    assert!(signal.try_wait() && !signal.try_wait());
    signal.post(4).unwrap();
    assert_eq!(format!("{signal:?}"), "Signal { value: 4 }");
    assert!(signal.wait_timeout(SHORT) && signal.wait_until(Instant::now()));
}

#[test]
fn a_signal_without_units_times_out() {
    let signal = Signal::default();
    signal.post(0).unwrap();
    assert!(!signal.wait_timeout(SHORT) && !signal.wait_until(Instant::now()));
}

#[test]
fn a_signal_does_not_count_over_its_limit() {
    let limit = i32::MAX as u32;
    let signal = Signal::new(limit - 1);
    assert!(matches!(signal.post(2), Err(LockError::TooMany { limit: l }) if l == limit));
    assert!(matches!(signal.post(u32::MAX), Err(LockError::TooMany { .. })));
    signal.post(1).unwrap();
    assert_eq!(signal.value(), limit);
}

#[test]
fn units_posted_at_once_wake_as_many() {
    let _watchdog = watchdog();
    let signal = Signal::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| signal.wait());
        }
        signal.post(1).unwrap();
        signal.post(1).unwrap();
        signal.post(2).unwrap();
    });
    assert_eq!(signal.value(), 0);
}

// ---- processes

#[derive(Serialize, Deserialize)]
enum Orders {
    /// Take so many permits, say so, and keep them.
    Hold(Shared<Semaphore>, usize),
    /// Take permits and give them back, so often; count who is in.
    Work(Shared<Semaphore>, Shared<AtomicU32>, u32),
    /// One end of a ping-pong.
    Echo(Shared<[Signal; 2]>, u32),
}

#[test]
fn child() {
    common::child(|orders: Orders, reporter: &Reporter| match orders {
        Orders::Hold(semaphore, count) => {
            let (guarded, forgotten) = (count / 2, count - count / 2);
            let _permits: Vec<_> = (0..guarded).map(|_| semaphore.acquire().unwrap()).collect();
            (0..forgotten).for_each(|_| semaphore.acquire().unwrap().forget());
            reporter.report(&true);
            thread::park();
        }
        Orders::Work(semaphore, inside, rounds) => {
            let mut most = 0;
            for _ in 0..rounds {
                let _permit = semaphore.acquire().unwrap();
                most = most.max(inside.fetch_add(1, Ordering::Relaxed) + 1);
                thread::yield_now();
                inside.fetch_sub(1, Ordering::Relaxed);
            }
            reporter.report(&most);
        }
        Orders::Echo(signals, rounds) => {
            for _ in 0..rounds {
                signals[0].wait();
                signals[1].post(1).unwrap();
            }
            reporter.report(&true);
        }
    });
}

fn holder(semaphore: &Shared<Semaphore>, count: usize) -> Peer {
    let peer = Peer::start(&Orders::Hold(semaphore.clone(), count), None);
    assert_eq!(peer.report(), Some(true));
    peer
}

#[test]
fn permits_of_a_dead_holder_come_back() {
    let _watchdog = watchdog();
    let semaphore = Shared::new(Semaphore::new(4)).unwrap();
    let peer = holder(&semaphore, 4);
    assert_eq!(semaphore.available(), 0);
    assert!(matches!(semaphore.try_acquire(), Err(LockError::WouldBlock)));
    peer.kill();
    let permits: Vec<_> = (0..4).map(|_| semaphore.acquire().unwrap()).collect();
    assert!(matches!(semaphore.try_acquire(), Err(LockError::WouldBlock)));
    drop(permits);
    assert_eq!(semaphore.available(), 4);
}

#[test]
fn every_sleeper_gets_a_permit_of_the_dead_holder() {
    let _watchdog = watchdog();
    let semaphore = Shared::new(Semaphore::new(3)).unwrap();
    let peer = holder(&semaphore, 3);
    thread::scope(|scope| {
        let sleepers = [(); 3].map(|()| scope.spawn(|| semaphore.acquire().map(|permit| permit.forget())));
        peer.kill();
        for sleeper in sleepers {
            sleeper.join().unwrap().unwrap();
        }
    });
    (0..3).for_each(|_| semaphore.release().unwrap());
}

#[test]
fn permits_of_another_process_cannot_be_given_back() {
    let _watchdog = watchdog();
    let semaphore = Shared::new(Semaphore::new(2)).unwrap();
    let _peer = holder(&semaphore, 2);
    assert!(matches!(semaphore.release(), Err(LockError::NotHeld)));
}

#[test]
fn processes_share_the_permits() {
    let _watchdog = watchdog();
    let semaphore = Shared::new(Semaphore::new(2)).unwrap();
    let inside = Shared::new(AtomicU32::new(0)).unwrap();
    let orders = Orders::Work(semaphore.clone(), inside, 1000);
    let peers = [(); 4].map(|()| Peer::start(&orders, None));
    for peer in peers {
        assert!(peer.report::<u32>().unwrap() <= 2);
    }
    assert_eq!(semaphore.available(), 2);
}

#[test]
fn signals_pass_between_processes() {
    let _watchdog = watchdog();
    let signals = Shared::new([Signal::new(0), Signal::new(0)]).unwrap();
    let peer = Peer::start(&Orders::Echo(signals.clone(), 500), None);
    for _ in 0..500 {
        signals[0].post(1).unwrap();
        signals[1].wait();
    }
    assert_eq!(peer.report(), Some(true));
}

#[test]
fn a_signal_of_too_many_units_is_an_error() {
    let most = i32::MAX as u32;
    assert_eq!(Signal::try_new(most).unwrap().value(), most);
    assert!(Signal::try_new(most + 1).unwrap_err().is_out_of_range());
}
