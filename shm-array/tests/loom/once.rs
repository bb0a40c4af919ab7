//! What is done once: by one, seen by all, and again after a death.

use crate::{Control, RACE, models};
use loom::thread::{JoinHandle, spawn};
use shm_array::{LockError, OnceLock};
use shm_core::owner::model::{die, enter};
use shm_core::sync::Ordering::Relaxed;
use shm_core::sync::{Arc, AtomicU32, thread};

pub(crate) const CONTROLS: &[Control] =
    &[("once.look", a_reader_sees_the_whole_value, RACE), ("once.end", a_reader_sees_the_whole_value, RACE)];

type Lock = Arc<OnceLock<u32>>;

fn with_lock(lock: &Lock, body: impl FnOnce(&OnceLock<u32>) + 'static) -> JoinHandle<()> {
    let lock = lock.clone();
    spawn(move || body(&lock))
}

fn a_reader_sees_the_whole_value() {
    let lock = Lock::default();
    let other = with_lock(&lock, |lock| lock.set(7).unwrap());
    while lock.get().is_none() {
        thread::yield_now();
    }
    assert_eq!(lock.get(), Some(&7));
    other.join().unwrap();
}

fn one_of_two_makes_it() {
    let (lock, made) = (Lock::default(), Arc::new(AtomicU32::new(0)));
    let make = |made: &AtomicU32, value| {
        made.fetch_add(1, Relaxed);
        value
    };
    let other = with_lock(&lock, {
        let made = made.clone();
        move |lock| assert!(*lock.get_or_init(|| make(&made, 1)).unwrap() > 0)
    });
    let value = *lock.get_or_init(|| make(&made, 2)).unwrap();
    other.join().unwrap();
    assert_eq!((lock.get(), made.load(Relaxed)), (Some(&value), 1));
}

fn whoever_waits_is_woken() {
    let lock = Lock::default();
    let others = [(); 2].map(|()| with_lock(&lock, |lock| assert_eq!(*lock.wait().unwrap(), 7)));
    lock.set(7).unwrap();
    for other in others {
        other.join().unwrap();
    }
}

fn after_a_failure_the_next_one_makes_it() {
    let lock = Lock::default();
    let other = with_lock(&lock, |lock| {
        let failed = lock.get_or_try_init(|| Err(LockError::WouldBlock));
        assert!(matches!(failed, Ok(2) | Err(LockError::WouldBlock)));
    });
    assert_eq!(*lock.get_or_init(|| 2).unwrap(), 2);
    other.join().unwrap();
}

fn after_a_death_the_next_one_makes_it() {
    let lock = Lock::default();
    let dying = with_lock(&lock, |lock| {
        enter(1);
        if lock.abandon(1) {
            die();
        }
    });
    enter(2);
    assert_eq!(*lock.get_or_init(|| 2).unwrap(), 2);
    dying.join().unwrap();
}

/// Nobody waits for the dead: the waiter is told, or there was nothing to wait for yet and the heir makes it.
fn whoever_waits_learns_of_the_death() {
    let lock = Lock::default();
    let dying = with_lock(&lock, |lock| {
        enter(1);
        assert!(lock.abandon(1));
        die();
    });
    enter(2);
    assert!(lock.wait().unwrap_err().is_owner_died());
    dying.join().unwrap();
}

fn one_of_two_heirs_makes_it() {
    let lock = Lock::default();
    let dying = with_lock(&lock, |lock| {
        enter(1);
        assert!(lock.abandon(1));
        die();
    });
    dying.join().unwrap();
    let other = with_lock(&lock, |lock| {
        enter(2);
        assert!(*lock.get_or_init(|| 2).unwrap() > 1);
    });
    enter(3);
    let value = *lock.get_or_init(|| 3).unwrap();
    other.join().unwrap();
    assert_eq!(lock.get(), Some(&value));
}

models! {
    a_reader_sees_the_whole_value
    one_of_two_makes_it
    whoever_waits_is_woken
    after_a_failure_the_next_one_makes_it
    after_a_death_the_next_one_makes_it
    whoever_waits_learns_of_the_death
    one_of_two_heirs_makes_it
}
