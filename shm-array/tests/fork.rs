//! Shared values in forked children: the handles that a child inherits work there, and keep what they stand for. One fact
//! per test; one test at a time, because a fork copies what other tests have.
#![cfg(not(loom))]
#![allow(unsafe_code, reason = "forks")]

mod common;

use common::watchdog;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, set_parent_process_death_signal, waitpid};
use serde::Serialize;
use shm_array::{
    Barrier, Event, LockError, Mutex, Once, OnceLock, ReentrantMutex, RwLock, Semaphore, Shared, ValueCell,
    arena_usage,
};
use shm_core::handle::{ReceiveSession, SendSession};
use std::sync::atomic::{AtomicU64, Ordering};

type Value = Shared<AtomicU64>;

fn alone() -> parking_lot::MutexGuard<'static, ()> {
    static ALONE: parking_lot::Mutex<()> = parking_lot::Mutex::new(());
    ALONE.lock()
}

/// A forked process; killed when dropped.
struct Child(Pid);

impl Child {
    /// A child that runs `body`, which must not return unless everything was as it should be.
    fn fork(body: impl FnOnce()) -> Self {
        // SAFETY: the child runs on the thread that forked, and only `body`.
        Self::of(unsafe { libc::fork() }, body)
    }

    /// A fork behind the back of the C library.
    fn clone(body: impl FnOnce()) -> Self {
        // SAFETY: as a fork: nothing is shared, no stack is given.
        let id = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
        Self::of(i32::try_from(id).expect("a process id"), body)
    }

    fn of(id: i32, body: impl FnOnce()) -> Self {
        if id == 0 {
            let body = std::panic::AssertUnwindSafe(|| {
                set_parent_process_death_signal(Some(Signal::KILL)).expect("dies with its parent");
                body();
            });
            let fine = std::panic::catch_unwind(body).is_ok();
            // SAFETY: ends the child without running what belongs to its parent.
            unsafe { libc::_exit(if fine { 0 } else { 1 }) };
        }
        Self(Pid::from_raw(id).expect("forked"))
    }

    #[track_caller]
    fn succeeds(self) {
        let status = waitpid(Some(self.0), WaitOptions::empty()).expect("collected").expect("a status").1;
        std::mem::forget(self);
        assert_eq!(status.exit_status(), Some(0), "the child did not find what it should: {status:?}");
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::KILL);
        let _ = waitpid(Some(self.0), WaitOptions::empty());
    }
}

fn in_arena(number: u64) -> Value {
    Shared::new(AtomicU64::new(number)).expect("made")
}

fn in_own_segment(number: u64) -> Value {
    Shared::builder().own_segment().build(AtomicU64::new(number)).expect("made")
}

/// In either place.
const PLACES: [fn(u64) -> Value; 2] = [in_arena, in_own_segment];

fn wait_for(word: &AtomicU64, number: u64) {
    while word.load(Ordering::SeqCst) != number {
        std::thread::yield_now();
    }
}

fn add(word: &AtomicU64) -> u64 {
    word.fetch_add(1, Ordering::SeqCst)
}

/// Waits until so many blocks are live: the lock of a dead process falls a moment after its end.
fn settles_at(live: usize) {
    while arena_usage().live != live {
        std::thread::yield_now();
    }
}

fn travel<T: Serialize + for<'de> serde::Deserialize<'de>>(handle: &T) -> T {
    let session = SendSession::begin();
    let bytes = postcard::to_stdvec(handle).expect("in a session");
    let _session = ReceiveSession::begin(session.finish());
    postcard::from_bytes(&bytes).expect("arrived")
}

#[test]
fn a_handle_works_in_a_forked_child() {
    let (_alone, _dog) = (alone(), watchdog());
    for place in PLACES {
        let one = place(1);
        Child::fork(|| assert_eq!(add(&one), 1)).succeeds();
        assert_eq!(one.load(Ordering::SeqCst), 2);
    }
}

#[test]
fn references_from_before_the_fork_stay_where_they_are() {
    let (_alone, _dog) = (alone(), watchdog());
    for place in PLACES {
        let one = place(1);
        let before = std::ptr::from_ref(&*one);
        Child::fork(|| assert!(std::ptr::eq(before, &*one))).succeeds();
    }
}

#[test]
fn a_child_keeps_a_value_that_its_parent_drops_right_after_the_fork() {
    let (_alone, _dog) = (alone(), watchdog());
    for place in PLACES {
        let (kept, one) = (place(0), place(7));
        let child = Child::fork(|| {
            wait_for(&kept, 1);
            assert_eq!(one.load(Ordering::SeqCst), 7);
        });
        drop(one);
        // What was freed by mistake would be given out here.
        let _others: Vec<_> = (0..300).map(in_arena).collect();
        kept.store(1, Ordering::SeqCst);
        child.succeeds();
    }
}

/// The child never uses what it inherited before its parent has let go of it.
#[test]
fn a_block_is_kept_for_a_child_that_has_not_attached_yet() {
    let (_alone, _dog) = (alone(), watchdog());
    let (kept, go, one) = (in_arena(0), in_own_segment(0), in_arena(7));
    let child = Child::fork(|| {
        wait_for(&go, 1);
        assert_eq!(one.load(Ordering::SeqCst), 7);
    });
    drop(one);
    assert_eq!(arena_usage().live, 2);
    go.store(1, Ordering::SeqCst);
    child.succeeds();
    settles_at(1);
    drop(kept);
}

#[test]
fn a_block_is_free_when_the_child_that_had_it_lets_go() {
    let (_alone, _dog) = (alone(), watchdog());
    let (kept, one) = (in_arena(0), in_arena(7));
    let child = Child::fork(|| {
        wait_for(&kept, 1);
        // Its own handle, of which it has a copy: the parent's is another.
        drop(unsafe_copy(&one));
        kept.store(2, Ordering::SeqCst);
        wait_for(&kept, 3);
    });
    drop(one);
    assert_eq!(arena_usage().live, 2);
    kept.store(1, Ordering::SeqCst);
    wait_for(&kept, 2);
    assert_eq!(arena_usage().live, 1);
    kept.store(3, Ordering::SeqCst);
    child.succeeds();
}

/// Takes a handle out of a place that will not drop it: the child ends with `_exit`.
fn unsafe_copy(handle: &Value) -> Value {
    // SAFETY: the original is forgotten, since the child unwinds nothing of its parent's stack.
    unsafe { std::ptr::read(handle) }
}

#[test]
fn a_block_is_free_when_the_child_that_had_it_is_killed() {
    let (_alone, _dog) = (alone(), watchdog());
    let (kept, one) = (in_arena(0), in_arena(7));
    let child = Child::fork(|| {
        add(&one);
        kept.store(1, Ordering::SeqCst);
        loop {
            std::thread::park();
        }
    });
    drop(one);
    wait_for(&kept, 1);
    assert_eq!(arena_usage().live, 2);
    drop(child);
    settles_at(1);
}

#[test]
fn a_child_that_does_not_use_its_handles_keeps_nothing_once_it_has_ended() {
    let (_alone, _dog) = (alone(), watchdog());
    let (_kept, one) = (in_arena(0), in_arena(7));
    Child::fork(|| ()).succeeds();
    drop(one);
    assert_eq!(arena_usage().live, 1);
}

#[test]
fn handles_work_in_the_child_of_a_child() {
    let (_alone, _dog) = (alone(), watchdog());
    for place in PLACES {
        // Once through a child that has attached, and once through one that has not.
        for attaches in [true, false] {
            let one = place(1);
            Child::fork(|| {
                if attaches {
                    add(&one);
                }
                Child::fork(|| assert_eq!(add(&one), 1 + u64::from(attaches))).succeeds();
            })
            .succeeds();
            assert_eq!(one.load(Ordering::SeqCst), 2 + u64::from(attaches));
        }
    }
}

#[test]
fn a_grandchild_keeps_a_block_that_everybody_else_has_let_go_of() {
    let (_alone, _dog) = (alone(), watchdog());
    let (kept, one) = (in_arena(0), in_arena(7));
    let child = Child::fork(|| {
        let grandchild = Child::fork(|| {
            wait_for(&kept, 2);
            assert_eq!(one.load(Ordering::SeqCst), 7);
        });
        drop(unsafe_copy(&one));
        kept.store(1, Ordering::SeqCst);
        grandchild.succeeds();
    });
    drop(one);
    wait_for(&kept, 1);
    assert_eq!(arena_usage().live, 2);
    kept.store(2, Ordering::SeqCst);
    child.succeeds();
    settles_at(1);
}

#[test]
fn a_child_makes_values_in_an_arena_of_its_own() {
    let (_alone, _dog) = (alone(), watchdog());
    let one = in_arena(0);
    Child::fork(|| {
        let before = arena_usage();
        let mine = in_arena(5);
        let after = arena_usage();
        assert_eq!((before.arenas, after.arenas, after.live), (1, 2, before.live + 1));
        assert_eq!(travel(&mine).load(Ordering::SeqCst), 5);
        assert_eq!(one.load(Ordering::SeqCst), 0);
    })
    .succeeds();
    assert_eq!((arena_usage().arenas, arena_usage().live), (1, 1));
}

#[test]
fn a_child_can_clone_send_and_drop_what_it_inherited() {
    let (_alone, _dog) = (alone(), watchdog());
    for place in PLACES {
        let one = place(1);
        Child::fork(|| {
            let clone = one.clone();
            let again = travel(&one);
            drop(clone);
            add(&again);
        })
        .succeeds();
        assert_eq!(one.load(Ordering::SeqCst), 2);
    }
}

#[test]
fn a_child_whose_fork_skipped_the_handlers_is_told_so() {
    let (_alone, _dog) = (alone(), watchdog());
    for place in PLACES {
        let one = place(1);
        Child::clone(|| {
            let used = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| add(&one)));
            let message = used.expect_err("it is not there");
            let message = message.downcast::<String>().expect("a message");
            assert!(message.contains("forked"), "{message}");
            // Neither does a clone of it do harm, nor its end.
            drop(one.clone());
            drop(unsafe_copy(&one));
        })
        .succeeds();
        assert_eq!(one.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn a_mutex_excludes_between_parent_and_child() {
    let (_alone, _dog) = (alone(), watchdog());
    let sum = Shared::new(Mutex::new(0_u64)).expect("made");
    let add_many = || (0..2000).for_each(|_| *sum.lock().expect("locked") += 1);
    let child = Child::fork(add_many);
    add_many();
    child.succeeds();
    assert_eq!(*sum.lock().expect("locked"), 4000);
}

#[test]
fn a_guard_that_is_held_at_a_fork_stays_the_parents() {
    let (_alone, _dog) = (alone(), watchdog());
    let lock = Shared::new(Mutex::new(5_u64)).expect("made");
    let guard = lock.lock().expect("locked");
    Child::fork(|| {
        let used = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| *guard));
        assert!(used.is_err(), "the child uses its parent's guard");
        // SAFETY: the original is forgotten with the parent's stack, which nobody unwinds here.
        drop(unsafe { std::ptr::read(&raw const guard) });
        assert!(matches!(lock.try_lock(), Err(LockError::WouldBlock)), "the parent holds it still");
    })
    .succeeds();
    assert_eq!(*guard, 5);
    drop(guard);
    assert!(lock.try_lock().is_ok());
}

#[test]
fn a_lock_that_a_child_dies_with_is_taken_over() {
    let (_alone, _dog) = (alone(), watchdog());
    let lock = Shared::new(Mutex::new(0_u64)).expect("made");
    let go = in_arena(0);
    let child = Child::fork(|| {
        let mut guard = lock.lock().expect("locked");
        *guard = 1;
        go.store(1, Ordering::SeqCst);
        loop {
            std::thread::park();
        }
    });
    wait_for(&go, 1);
    drop(child);
    match lock.lock() {
        Err(LockError::OwnerDied(guard)) => {
            assert_eq!(*guard, 1);
            guard.mark_consistent();
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn forks_while_other_threads_make_and_drop_values_inherit_nothing_half_done() {
    let (_alone, _dog) = (alone(), watchdog());
    let one = in_arena(0);
    let stop = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while stop.load(Ordering::SeqCst) == 0 {
                    let values: Vec<_> = (0..20).map(in_arena).collect();
                    let again: Vec<_> = values.iter().map(travel).collect();
                    drop(values);
                    assert!(again.iter().zip(0..).all(|(value, n)| value.load(Ordering::SeqCst) == n));
                }
            });
        }
        for _ in 0..50 {
            Child::fork(|| {
                add(&one);
                let mine: Vec<_> = (0..20).map(in_arena).collect();
                drop(travel(&mine[19]));
            })
            .succeeds();
        }
        stop.store(1, Ordering::SeqCst);
    });
    assert_eq!(one.load(Ordering::SeqCst), 50);
    settles_at(1);
}

#[test]
fn references_to_every_lock_work_in_a_forked_child() {
    let (_alone, _watchdog) = (alone(), watchdog());
    let table = Shared::new(RwLock::new(1)).unwrap();
    let semaphore = Shared::new(Semaphore::new(1)).unwrap();
    let signal = Shared::new(shm_array::Signal::new(1)).unwrap();
    let event = Shared::new(Event::new()).unwrap();
    let barrier = Shared::new(Barrier::new(2)).unwrap();
    let once = Shared::new(Once::new()).unwrap();
    let value = Shared::new(OnceLock::new()).unwrap();
    let (table, semaphore, signal, event) = (&*table, &*semaphore, &*signal, &*event);
    let (barrier, once, value) = (&*barrier, &*once, &*value);
    let child = Child::fork(|| {
        assert!(!event.is_set() && !once.is_completed() && !barrier.is_broken());
        assert_eq!((signal.value(), semaphore.available(), value.get()), (1, 1, None));
        assert_eq!(*table.read().unwrap(), 1);
        *table.write().unwrap() = 2;
        semaphore.acquire().unwrap().forget();
        signal.wait();
        once.call_once(|| ()).unwrap();
        value.set(7).unwrap();
        event.set();
        barrier.wait().unwrap();
    });
    event.wait();
    assert!(once.is_completed() && !signal.try_wait());
    assert_eq!((value.get(), *table.read().unwrap()), (Some(&7), 2));
    barrier.wait().unwrap();
    child.succeeds();
    assert_eq!(semaphore.available(), 1, "the dead child's permit came back");
}

/// The dead one had the number of this thread in its process: the fork copied it.
#[test]
fn a_reentrant_mutex_that_one_thread_inherits_is_not_anothers() {
    const ROUNDS: u64 = 300;
    let (_alone, _watchdog) = (alone(), watchdog());
    let lock = Shared::new(ReentrantMutex::new(0_u64)).unwrap();
    drop(lock.lock().unwrap());
    let (orphaned, inherited, mut mistaken) = (AtomicU64::new(0), AtomicU64::new(0), 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=ROUNDS {
                wait_for(&orphaned, round);
                let heir = lock.lock().expect_err("the owner died").into_guard().expect("the data");
                heir.mark_consistent();
                drop(heir);
                inherited.store(round, Ordering::SeqCst);
            }
        });
        for round in 1..=ROUNDS {
            Child::fork(|| std::mem::forget(lock.lock().unwrap())).succeeds();
            orphaned.store(round, Ordering::SeqCst);
            while inherited.load(Ordering::SeqCst) != round {
                mistaken += u64::from(lock.is_held_by_this_thread());
            }
        }
    });
    assert_eq!(mistaken, 0);
}

/// Each in a child of its own: the first call through a reference is the first access to the memory.
#[test]
fn the_first_access_of_a_forked_child_may_be_any_call_through_a_reference() {
    let (_alone, _watchdog) = (alone(), watchdog());
    let signal = Shared::new(shm_array::Signal::new(0)).unwrap();
    let event = Shared::new(Event::new()).unwrap();
    let numbers = Shared::new(ValueCell::new([3_u64; 2])).unwrap();
    let nested = Shared::new(ReentrantMutex::new(0_u64)).unwrap();
    let (signal_here, event_here, numbers_here, nested_here) = (&*signal, &*event, &*numbers, &*nested);
    Child::fork(|| signal_here.post(1).unwrap()).succeeds();
    Child::fork(|| event_here.set()).succeeds();
    assert!(event.is_set() && signal.try_wait());
    Child::fork(|| event_here.clear()).succeeds();
    Child::fork(|| assert_eq!(numbers_here.get(), [3; 2])).succeeds();
    Child::fork(|| numbers_here.set([4; 2])).succeeds();
    Child::fork(|| assert_eq!(numbers_here.replace([5; 2]), [4; 2])).succeeds();
    Child::fork(|| assert_eq!(*numbers_here.lock().unwrap(), [5; 2])).succeeds();
    Child::fork(|| assert!(!nested_here.is_held_by_this_thread())).succeeds();
    Child::fork(|| assert!(nested_here.lock().is_ok())).succeeds();
}

/// In a child of a child as well: whoever has inherited attachments looks before it leaps.
#[test]
fn an_event_is_set_by_a_grandchild() {
    let (_alone, _watchdog) = (alone(), watchdog());
    let event = Shared::new(Event::new()).unwrap();
    let event_here = &*event;
    Child::fork(|| Child::fork(|| event_here.set()).succeeds()).succeeds();
    assert!(event.is_set());
}

#[test]
fn shares_and_permits_that_are_held_at_a_fork_stay_the_parents() {
    let (_alone, _watchdog) = (alone(), watchdog());
    let table = Shared::new(RwLock::new(1)).unwrap();
    let semaphore = Shared::new(Semaphore::new(1)).unwrap();
    let (share, permit) = (table.read().unwrap(), semaphore.acquire().unwrap());
    let child = Child::fork(|| {
        let lends = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| *share));
        assert!(lends.is_err());
        // SAFETY: copies, as the fork made them; what is dropped here is forgotten in the parent's sense.
        drop(unsafe { (std::ptr::read(&share), std::ptr::read(&permit)) });
        assert!(matches!(table.try_write(), Err(LockError::WouldBlock)));
        assert!(matches!(semaphore.try_acquire(), Err(LockError::WouldBlock)));
        assert!(matches!(semaphore.release(), Err(LockError::NotHeld)));
    });
    child.succeeds();
    assert_eq!(*share, 1);
    drop((share, permit));
    assert!(table.try_write().is_ok() && semaphore.try_acquire().is_ok());
}
