//! The mutex, and with it the one-word lock: exclusion, wake-ups, and owners that die.

use crate::{Control, RACE, models};
use loom::thread::{JoinHandle, spawn};
use shm_array::{LockError, Mutex, MutexGuard, ReentrantMutex};
use shm_core::owner::model::{die, enter};
use shm_core::sync::Ordering::Relaxed;
use shm_core::sync::{Arc, AtomicU32};
use std::cell::Cell;
use std::time::Instant;

pub(crate) const CONTROLS: &[Control] = &[
    ("lock.take", two_threads_exclude_each_other, RACE),
    ("lock.release", two_threads_exclude_each_other, RACE),
];

fn with_mutex(mutex: &Arc<Mutex<u32>>, body: impl FnOnce(&Mutex<u32>) + 'static) -> JoinHandle<()> {
    let mutex = mutex.clone();
    spawn(move || body(&mutex))
}

/// Takes the lock and repairs if the one before died. Returns whether that was so.
fn add(mutex: &Mutex<u32>, value: u32) -> bool {
    match mutex.lock() {
        Ok(mut data) => {
            *data += value;
            false
        }
        Err(LockError::OwnerDied(mut data)) => {
            *data += value;
            data.mark_consistent();
            true
        }
        Err(error) => panic!("{error:?}"),
    }
}

/// Dies with the lock, after it has changed the data.
fn die_with(mut data: MutexGuard<'_, u32>) {
    *data += 100;
    std::mem::forget(data);
    die();
}

/// A mutex whose owner is dead.
fn inherited() -> Arc<Mutex<u32>> {
    let mutex = Arc::new(Mutex::new(0));
    let dying = with_mutex(&mutex, |m| {
        enter(1);
        die_with(m.lock().unwrap());
    });
    dying.join().unwrap();
    mutex
}

fn two_threads_exclude_each_other() {
    let mutex = Arc::new(Mutex::new(0));
    let other = with_mutex(&mutex, |m| assert!(!add(m, 1)));
    add(&mutex, 2);
    other.join().unwrap();
    assert_eq!(*mutex.lock().unwrap(), 3);
    assert!(!mutex.is_locked());
}

/// With two that sleep at once: whoever has slept leaves the bit for the other.
fn three_threads_lose_no_wake_up() {
    let mutex = Arc::new(Mutex::new(0));
    let others = [1, 2].map(|value| with_mutex(&mutex, move |m| assert!(!add(m, value))));
    add(&mutex, 4);
    for other in others {
        other.join().unwrap();
    }
    assert_eq!(*mutex.lock().unwrap(), 7);
}

fn a_waiter_that_gives_up_takes_no_wake_up_along() {
    let mutex = Arc::new(Mutex::new(0));
    let hasty = with_mutex(&mutex, |m| match m.lock_until(Instant::now()) {
        Ok(mut data) => *data += 1,
        Err(error) => assert!(error.is_timed_out()),
    });
    let patient = with_mutex(&mutex, |m| assert!(!add(m, 2)));
    add(&mutex, 4);
    hasty.join().unwrap();
    patient.join().unwrap();
    assert!([6, 7].contains(&*mutex.lock().unwrap()));
}

fn a_dead_owner_is_found_out_once() {
    let mutex = Arc::new(Mutex::new(0));
    let dying = with_mutex(&mutex, |m| {
        enter(1);
        die_with(m.lock().unwrap());
    });
    enter(2);
    let first = add(&mutex, 1);
    dying.join().unwrap();
    let second = add(&mutex, 1);
    // Before the death, or after it.
    assert!(first != second, "told {}", u32::from(first) + u32::from(second));
    assert_eq!(*mutex.lock().unwrap(), 102);
}

fn two_heirs_do_not_inherit_both() {
    let mutex = inherited();
    let heirs = [2, 3].map(|me| {
        let mutex = mutex.clone();
        spawn(move || {
            enter(me);
            add(&mutex, 1)
        })
    });
    let told = heirs.map(|heir| heir.join().unwrap());
    assert!(told[0] != told[1], "{told:?}");
    enter(4);
    assert_eq!(*mutex.lock().unwrap(), 102);
}

fn an_heir_that_dies_is_found_out_too() {
    let mutex = inherited();
    let second = with_mutex(&mutex, |m| {
        enter(2);
        let data = match m.lock() {
            Ok(data) | Err(LockError::OwnerDied(data)) => data,
            other => panic!("{other:?}"),
        };
        // Marked, but the lock will never be given back.
        data.mark_consistent();
        die_with(data);
    });
    enter(3);
    assert!(add(&mutex, 1), "the one before died, whichever it was");
    second.join().unwrap();
    match mutex.try_lock() {
        Ok(data) | Err(LockError::OwnerDied(data)) => assert_eq!(*data, 201),
        other => panic!("{other:?}"),
    }
}

fn what_nobody_repairs_is_out_of_use_for_all() {
    let mutex = inherited();
    let heirs = [2, 3].map(|me| {
        let mutex = mutex.clone();
        spawn(move || {
            enter(me);
            match mutex.lock() {
                Err(LockError::OwnerDied(_)) => true,
                Err(LockError::Unrecoverable) => false,
                other => panic!("{other:?}"),
            }
        })
    });
    let told = heirs.map(|heir| heir.join().unwrap());
    assert!(told[0] != told[1], "{told:?}");
    enter(4);
    assert_eq!(mutex.renew(5), Ok(()));
    assert_eq!(*mutex.lock().unwrap(), 5);
}

/// Whoever sleeps for a repairer that cannot die is woken when that one gives up.
fn giving_up_wakes_every_sleeper() {
    let mutex = inherited();
    let Err(LockError::OwnerDied(data)) = mutex.lock() else { panic!("the owner died") };
    let sleepers =
        [(); 2].map(|()| with_mutex(&mutex, |m| assert!(matches!(m.lock(), Err(LockError::Unrecoverable)))));
    drop(data);
    for sleeper in sleepers {
        sleeper.join().unwrap();
    }
}

fn one_of_two_renews() {
    let mutex = inherited();
    enter(2);
    assert!(matches!(mutex.try_lock(), Err(LockError::OwnerDied(_))));
    let other = {
        let mutex = mutex.clone();
        spawn(move || {
            enter(3);
            mutex.renew(3).is_ok()
        })
    };
    let ours = mutex.renew(2).is_ok();
    let theirs = other.join().unwrap();
    assert!(ours != theirs);
    assert_eq!(*mutex.lock().unwrap(), if ours { 2 } else { 3 });
}

fn a_reentrant_mutex_excludes_other_threads() {
    let mutex = Arc::new(ReentrantMutex::new(Cell::new(0)));
    let twice = |m: &ReentrantMutex<Cell<u32>>| {
        let outer = m.lock().unwrap();
        let before = outer.get();
        let inner = m.lock().unwrap();
        drop(outer);
        inner.set(before + 1);
    };
    let other = {
        let mutex = mutex.clone();
        spawn(move || twice(&mutex))
    };
    twice(&mutex);
    other.join().unwrap();
    assert_eq!(mutex.lock().unwrap().get(), 2);
}

/// Processes number their threads alike.
fn after_a_death_one_thread_is_inside_a_reentrant_mutex() {
    let mutex = Arc::new(ReentrantMutex::new(AtomicU32::new(0)));
    let with_mutex = |body: fn(&ReentrantMutex<AtomicU32>)| {
        let mutex = mutex.clone();
        spawn(move || body(&mutex))
    };
    let dying = with_mutex(|m| {
        enter(1);
        std::mem::forget(m.lock().unwrap());
        die();
    });
    dying.join().unwrap();
    let go_in = |m: &ReentrantMutex<AtomicU32>| {
        enter(2);
        let (Ok(guard) | Err(LockError::OwnerDied(guard))) = m.lock() else { panic!("repaired by both") };
        assert!(m.is_held_by_this_thread());
        assert_eq!(guard.fetch_add(1, Relaxed), 0, "two are inside");
        guard.fetch_sub(1, Relaxed);
        guard.mark_consistent();
    };
    // This is the first thread of its process from here on, as the dead one was of its own.
    enter(2);
    assert!(!mutex.is_held_by_this_thread());
    let other = with_mutex(go_in);
    assert!(!mutex.is_held_by_this_thread(), "the other one has it");
    go_in(&mutex);
    other.join().unwrap();
}

models! {
    two_threads_exclude_each_other
    three_threads_lose_no_wake_up
    a_waiter_that_gives_up_takes_no_wake_up_along
    a_dead_owner_is_found_out_once
    two_heirs_do_not_inherit_both
    an_heir_that_dies_is_found_out_too
    what_nobody_repairs_is_out_of_use_for_all
    giving_up_wakes_every_sleeper
    one_of_two_renews
    a_reentrant_mutex_excludes_other_threads
    after_a_death_one_thread_is_inside_a_reentrant_mutex
}
