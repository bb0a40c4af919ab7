//! Shared values within one process and between several. One fact per test.
#![cfg(not(loom))]
#![allow(unsafe_code, reason = "forks")]
#![allow(clippy::cast_possible_truncation, reason = "any bytes will do")]

mod common;

use common::{Peer, Reporter, child as child_of_test, was_killed, watchdog};
use serde::{Deserialize, Serialize};
use shm_array::{LockError, Shared, SharedValue, ValueCell};
use shm_core::handle::{ReceiveSession, SendSession};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What a child does.
#[derive(Serialize, Deserialize)]
enum Orders {
    Add(SharedValue<u64>, u64),
    /// Locks, changes the copy in the guard, reports, and waits for its end.
    Hold(SharedValue<u64>),
    /// Replaces the value by numbers that are alike, until its end; reports when it has begun.
    Scribe(SharedValue<[u64; 5]>),
    /// Replaces the value once.
    Set(SharedValue<[u64; 5]>),
}

#[test]
fn child() {
    child_of_test(|orders, reporter: &Reporter| match orders {
        Orders::Add(v, times) => (0..times).for_each(|_| {
            v.update(|x| x + 1);
        }),
        Orders::Hold(v) => {
            let mut guard = v.lock().expect("locked");
            *guard = 99;
            reporter.report(&true);
            loop {
                std::thread::park();
            }
        }
        Orders::Set(v) => v.set([9; 5]),
        Orders::Scribe(v) => {
            for i in 0.. {
                v.set([i; 5]);
                if i == 100 {
                    reporter.report(&true);
                }
            }
        }
    });
}

fn travel<A: Serialize, B: for<'de> Deserialize<'de>>(handle: &A) -> postcard::Result<B> {
    let session = SendSession::begin();
    let bytes = postcard::to_stdvec(handle).expect("in a session");
    let _session = ReceiveSession::begin(session.finish());
    postcard::from_bytes(&bytes)
}

#[test]
fn a_value_is_what_was_set_last() {
    let v = SharedValue::new(3.5_f64).expect("a value");
    assert_eq!(v.get().to_bits(), 3.5_f64.to_bits());
    v.set(4.0);
    assert_eq!(v.replace(5.0).to_bits(), 4.0_f64.to_bits());
    assert_eq!(v.update(|x| x + 1.0).to_bits(), 5.0_f64.to_bits());
    assert_eq!(v.get().to_bits(), 6.0_f64.to_bits());
}

#[test]
fn values_of_every_size_come_back() {
    fn check<T: shm_array::Plain + Send + PartialEq + std::fmt::Debug>(one: T, other: T) {
        let v = SharedValue::new(one).expect("a value");
        assert_eq!(v.get(), one);
        v.set(other);
        assert_eq!(v.get(), other);
        v.set(one);
        assert_eq!(v.get(), one);
    }
    check(1_u8, 255);
    check([1_u8, 2, 3], [255, 254, 253]);
    check(-7_i32, 7);
    check(*b"seven b", *b"bytes..");
    check([1_u32, 2, 3], [4, 5, 6]);
    check(*b"thirteen byte", *b"0123456789abc");
    check(1_u128 << 100, 3);
    check([9_u64; 33], [8; 33]);
    check((), ());
}

#[test]
fn an_exchange_happens_only_if_the_value_is_the_expected_one() {
    let v = SharedValue::new(1).expect("a value");
    assert_eq!(v.compare_exchange(2, 3), Err(1));
    assert_eq!(v.compare_exchange(1, 3), Ok(1));
    assert_eq!(v.get(), 3);
}

#[test]
fn a_guard_publishes_what_was_changed_when_it_goes() {
    let v = SharedValue::new([1, 2]).expect("a value");
    let mut guard = v.lock().expect("locked");
    guard[0] = 7;
    assert_eq!(v.get(), [1, 2], "readers go on with the value before");
    drop(guard);
    assert_eq!(v.get(), [7, 2]);
}

#[test]
fn a_guard_keeps_other_writers_out() {
    let _dog = watchdog();
    let v = SharedValue::new(1).expect("a value");
    let guard = v.lock().expect("locked");
    assert!(matches!(v.try_lock(), Err(LockError::WouldBlock)));
    assert!(matches!(v.lock_timeout(Duration::from_millis(2)), Err(LockError::TimedOut)));
    drop(guard);
    drop(v.try_lock().expect("free"));
}

#[test]
fn a_panic_in_an_update_changes_nothing() {
    let v = SharedValue::new(1).expect("a value");
    let w = v.clone();
    std::thread::spawn(move || w.update(|_| panic!("on purpose"))).join().expect_err("it panicked");
    let w = v.clone();
    let guard = std::thread::spawn(move || {
        *w.lock().expect("not poisoned") = 5;
        let mut guard = w.lock().expect("free");
        *guard = 6;
        panic!("on purpose");
    });
    guard.join().expect_err("it panicked");
    assert_eq!(v.update(|x| x + 1), 5);
}

#[test]
fn a_handle_that_travelled_is_the_same_value() {
    let v = SharedValue::new(1_u16).expect("a value");
    let w: SharedValue<u16> = travel(&v).expect("arrived");
    assert!(SharedValue::ptr_eq(&v, &w));
    drop(v);
    w.set(2);
    assert_eq!(format!("{w:?}"), "SharedValue(2)");
}

#[test]
fn a_handle_of_another_type_is_refused() {
    let v = SharedValue::new(1.5_f64).expect("a value");
    assert!(travel::<_, SharedValue<u64>>(&v).is_err(), "f64 is not u64");
}

#[test]
fn a_cell_is_a_field_like_any_other() {
    let cells = Shared::new([ValueCell::new(1_u32), ValueCell::default()]).expect("shared");
    cells[1].set(cells[0].get() + 1);
    assert_eq!(cells[1].get(), 2);
}

#[test]
fn no_update_of_several_processes_is_lost() {
    let _dog = watchdog();
    let v = SharedValue::new(0).expect("a value");
    let children: Vec<_> = (0..3).map(|_| Peer::start(&Orders::Add(v.clone(), 20_000), None)).collect();
    children.into_iter().for_each(|child| assert!(child.wait().success()));
    assert_eq!(v.get(), 60_000);
}

#[test]
fn a_reader_sees_no_mixture_of_what_another_process_writes() {
    let _dog = watchdog();
    let v = SharedValue::new([0; 5]).expect("a value");
    let scribe = Peer::start(&Orders::Scribe(v.clone()), None);
    assert_eq!(scribe.report(), Some(true));
    let mut before = 0;
    for _ in 0..200_000 {
        let value = v.get();
        assert!(value.iter().all(|&x| x == value[0]), "torn: {value:?}");
        assert!(value[0] >= before, "older than before");
        before = value[0];
    }
    assert!(was_killed(scribe.kill()));
}

#[test]
fn a_writer_that_dies_leaves_the_old_value_and_tells_nobody() {
    let _dog = watchdog();
    let v = SharedValue::new(5).expect("a value");
    let holder = Peer::start(&Orders::Hold(v.clone()), None);
    assert_eq!(holder.report(), Some(true));
    assert_eq!(v.get(), 5, "readers do not wait");
    assert!(was_killed(holder.kill()));
    assert_eq!(v.update(|x| x + 1), 5);
    assert_eq!(*v.lock().expect("as ever"), 6);
}

#[test]
fn writers_killed_at_any_moment_leave_whole_values() {
    let _dog = watchdog();
    let v = SharedValue::new([0; 5]).expect("a value");
    for _ in 0..10 {
        let scribe = Peer::start(&Orders::Scribe(v.clone()), None);
        assert_eq!(scribe.report(), Some(true));
        assert!(was_killed(scribe.kill()));
        let value = v.get();
        assert!(value.iter().all(|&x| x == value[0]), "torn: {value:?}");
        v.set([7; 5]);
        assert_eq!(v.get(), [7; 5]);
    }
}

#[test]
fn threads_see_whole_values_too() {
    let _dog = watchdog();
    let v = SharedValue::new([0_u8; 13]).expect("a value");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            (0..20_000).for_each(|i| v.set([i as u8; 13]));
            stop.store(true, Ordering::Relaxed);
        });
        while !stop.load(Ordering::Relaxed) {
            let value = v.get();
            assert!(value.iter().all(|&x| x == value[0]), "torn: {value:?}");
        }
    });
}

#[test]
fn a_forked_child_goes_on_with_its_handle_and_not_with_a_guard() {
    let _dog = watchdog();
    let v = SharedValue::new(1).expect("a value");
    let mut guard = v.lock().expect("locked");
    *guard = 2;
    // SAFETY: the child uses the value and ends.
    let id = unsafe { libc::fork() };
    if id == 0 {
        drop(guard);
        let fine = v.get() == 1 && matches!(v.try_lock(), Err(LockError::WouldBlock));
        // SAFETY: ends the child without running anything of the parent's.
        unsafe { libc::_exit(if fine { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: waits for the child of this test.
    assert_eq!(unsafe { libc::waitpid(id, &raw mut status, 0) }, id);
    assert_eq!(status, 0);
    drop(guard);
    assert_eq!(v.get(), 2);
}

/// A writer dies at each named step.
#[cfg(feature = "crash-points")]
#[test]
fn a_death_at_every_step_leaves_the_old_value_or_the_new_one() {
    let _dog = watchdog();
    let sources = include_str!("../src/latch.rs");
    let points: Vec<_> =
        sources.split("crash_point!(\"").skip(1).filter_map(|call| call.split('"').next()).collect();
    assert_eq!(points, ["latch.filled", "latch.published"]);
    for (point, left) in
        [("lock.taken", 1), ("latch.filled", 1), ("latch.published", 9), ("lock.releasing", 9)]
    {
        let v = SharedValue::new([1; 5]).expect("a value");
        assert!(was_killed(Peer::start(&Orders::Set(v.clone()), Some(point)).wait()), "at {point}");
        assert_eq!(v.get(), [left; 5], "after {point}");
        assert_eq!(v.update(|_| [2; 5]), [left; 5]);
        assert_eq!(v.get(), [2; 5]);
    }
}

#[test]
fn values_and_lists_may_cross_a_caught_panic() {
    fn may_cross<T: std::panic::UnwindSafe + std::panic::RefUnwindSafe>() {}
    may_cross::<shm_array::SharedValue<u64>>();
    may_cross::<shm_array::ValueCell<u64>>();
    may_cross::<shm_array::SharedList>();
}
