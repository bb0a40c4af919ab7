//! What is done once, by one process.
#![cfg(not(loom))]

mod common;

use common::{Peer, Reporter, watchdog};
use serde::{Deserialize, Serialize};
use shm_array::{LockError, Once, OnceLock, Shared};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

const SHORT: Duration = Duration::from_millis(20);

#[test]
fn it_is_done_once() {
    let _watchdog = watchdog();
    static ONCE: Once = Once::new();
    let runs = AtomicU32::new(0);
    assert!(!ONCE.is_completed());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                ONCE.call_once(|| {
                    thread::yield_now();
                    runs.fetch_add(1, Ordering::Relaxed);
                })
                .unwrap();
                assert_eq!(runs.load(Ordering::Relaxed), 1);
            });
        }
    });
    assert!(ONCE.is_completed());
    ONCE.wait().unwrap();
}

#[test]
fn a_panic_poisons_it() {
    let once = Once::default();
    assert!(catch(|| once.call_once(panic).unwrap()).is_err());
    assert!(matches!(once.call_once(|| ()), Err(LockError::Poisoned(()))));
    assert!(matches!(once.wait(), Err(LockError::Poisoned(()))));
    assert_eq!(format!("{once:?}"), "Once(poisoned)");
}

#[test]
fn force_runs_it_after_a_panic() {
    let once = Once::new();
    assert!(catch(|| once.call_once(panic).unwrap()).is_err());
    once.call_once_force(|state| assert!(state.is_poisoned() && !state.is_owner_died())).unwrap();
    assert!(once.is_completed());
    once.call_once_force(|_| panic()).unwrap();
}

#[test]
fn a_wait_for_what_nobody_does_times_out() {
    let once = Once::new();
    assert!(once.wait_timeout(SHORT).unwrap_err().is_timed_out());
    assert!(once.wait_until(std::time::Instant::now()).unwrap_err().is_timed_out());
    assert_eq!(format!("{once:?}"), "Once(incomplete)");
}

#[test]
fn whoever_waits_is_woken_when_it_is_done() {
    let _watchdog = watchdog();
    let (once, lock) = (Once::new(), OnceLock::new());
    thread::scope(|scope| {
        let waiter = scope.spawn(|| once.wait().and_then(|()| lock.wait()).copied());
        once.call_once(|| ()).unwrap();
        lock.set(3).unwrap();
        assert_eq!(waiter.join().unwrap().unwrap(), 3);
    });
}

#[test]
fn a_value_is_set_once() {
    let lock = OnceLock::new();
    assert_eq!((lock.get(), format!("{lock:?}")), (None, "OnceLock(<uninit>)".into()));
    assert_eq!(lock.set(1), Ok(()));
    assert_eq!(lock.set(2), Err(2));
    assert_eq!(lock.get_or_init(|| 3).unwrap(), &1);
    assert_eq!((lock.get(), format!("{lock:?}")), (Some(&1), "OnceLock(1)".into()));
}

#[test]
fn one_of_many_makes_the_value() {
    let _watchdog = watchdog();
    let (lock, made) = (OnceLock::new(), AtomicU32::new(0));
    thread::scope(|scope| {
        let makers = [1, 2, 3].map(|n| {
            let (lock, made) = (&lock, &made);
            scope.spawn(move || {
                let make = || {
                    made.fetch_add(1, Ordering::Relaxed);
                    vec![n; 10]
                };
                lock.get_or_init(make).unwrap().clone()
            })
        });
        let [one, two, three] = makers.map(|maker| maker.join().unwrap());
        assert!(one == two && two == three);
    });
    assert_eq!(made.into_inner(), 1);
}

#[test]
fn a_failed_try_leaves_no_value() {
    let lock = OnceLock::new();
    let failed: Result<&u8, Box<dyn std::error::Error>> = lock.get_or_try_init(|| Err("no".into()));
    assert_eq!(failed.unwrap_err().to_string(), "no");
    assert!(catch(|| lock.get_or_init(|| -> u8 { panic::<u8>() }).is_ok()).is_err());
    assert_eq!(lock.get(), None);
    assert_eq!(lock.get_or_init(|| 9).unwrap(), &9);
}

#[test]
fn a_wait_for_a_value_that_nobody_makes_times_out() {
    let lock = OnceLock::<u8>::default();
    assert!(lock.wait_timeout(SHORT).unwrap_err().is_timed_out());
    assert!(lock.wait_until(std::time::Instant::now()).unwrap_err().is_timed_out());
}

#[test]
fn the_value_can_be_taken_out() {
    let mut lock = OnceLock::from("one".to_owned());
    lock.get_mut().unwrap().push('!');
    assert_eq!(lock.take().as_deref(), Some("one!"));
    assert_eq!((lock.take(), lock.get_mut()), (None, None));
    lock.set("two".to_owned()).unwrap();
    assert_eq!(lock.into_inner().as_deref(), Some("two"));
}

fn panic<T>() -> T {
    std::panic::resume_unwind(Box::new(()))
}

fn catch<R>(f: impl FnOnce() -> R) -> thread::Result<R> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(f))
}

// ---- processes

#[derive(Serialize, Deserialize)]
enum Orders {
    /// Begin, say so, and never end.
    Begin(Shared<Once>),
    BeginValue(Shared<OnceLock<u64>>),
    /// Make the value, and say which there is.
    Make(Shared<OnceLock<u64>>, u64),
}

#[test]
fn child() {
    common::child(|orders: Orders, reporter: &Reporter| {
        let for_ever = || -> ! {
            reporter.report(&true);
            loop {
                thread::park();
            }
        };
        match orders {
            Orders::Begin(once) => once.call_once(|| for_ever()).unwrap(),
            Orders::BeginValue(lock) => {
                let _ = lock.get_or_init(|| for_ever());
            }
            Orders::Make(lock, value) => {
                let value = *lock.get_or_init(|| value).unwrap();
                reporter.report(&value);
            }
        }
    });
}

fn begun(orders: &Orders) -> Peer {
    let peer = Peer::start(orders, None);
    assert_eq!(peer.report(), Some(true));
    peer
}

#[test]
fn processes_agree_on_the_value() {
    let _watchdog = watchdog();
    let lock = Shared::new(OnceLock::new()).unwrap();
    let peers = [1, 2, 3].map(|n| Peer::start(&Orders::Make(lock.clone(), n), None));
    let values = peers.map(|peer| peer.report::<u64>().unwrap());
    assert!(values.iter().all(|value| Some(value) == lock.get()));
}

#[test]
fn the_next_one_runs_what_a_dead_process_began() {
    let _watchdog = watchdog();
    let once = Shared::new(Once::new()).unwrap();
    let peer = begun(&Orders::Begin(once.clone()));
    assert!(once.wait_timeout(SHORT).unwrap_err().is_timed_out());
    assert!(format!("{:?}", *once).starts_with("Once(run by process"));
    peer.kill();
    once.call_once_force(|state| assert!(state.is_owner_died() && !state.is_poisoned())).unwrap();
    assert!(once.is_completed());
}

#[test]
fn whoever_waits_is_told_when_the_runner_dies() {
    let _watchdog = watchdog();
    let once = Shared::new(Once::new()).unwrap();
    let peer = begun(&Orders::Begin(once.clone()));
    thread::scope(|scope| {
        let waiter = scope.spawn(|| once.wait());
        peer.kill();
        assert!(waiter.join().unwrap().unwrap_err().is_owner_died());
    });
    assert!(once.wait_timeout(SHORT).unwrap_err().is_owner_died(), "as long as nobody runs it again");
    once.call_once(|| ()).unwrap();
    once.wait().unwrap();
}

#[test]
fn whoever_waits_for_a_value_is_told_when_its_maker_dies() {
    let _watchdog = watchdog();
    let lock = Shared::new(OnceLock::new()).unwrap();
    let peer = begun(&Orders::BeginValue(lock.clone()));
    thread::scope(|scope| {
        let waiter = scope.spawn(|| lock.wait());
        peer.kill();
        assert!(waiter.join().unwrap().unwrap_err().is_owner_died());
    });
    assert_eq!(lock.get_or_init(|| 3).unwrap(), lock.wait().unwrap());
}

#[test]
fn whoever_sleeps_makes_the_value_when_the_maker_dies() {
    let _watchdog = watchdog();
    let lock = Shared::new(OnceLock::new()).unwrap();
    let peer = begun(&Orders::BeginValue(lock.clone()));
    thread::scope(|scope| {
        let sleepers = [5, 6].map(|n| {
            let lock = &lock;
            scope.spawn(move || *lock.get_or_init(|| n).unwrap())
        });
        peer.kill();
        let [one, two] = sleepers.map(|sleeper| sleeper.join().unwrap());
        assert_eq!((one, lock.get()), (two, Some(&one)));
    });
}
