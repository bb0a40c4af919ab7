//! The reader-writer lock: exclusion, wake-ups, readers and writers that die.

use crate::{Control, RACE, models};
use loom::thread::{JoinHandle, spawn};
use shm_array::{LockError, RwLock, RwLockWriteGuard};
use shm_core::owner::model::{die, enter};
use shm_core::sync::Ordering::Relaxed;
use shm_core::sync::{Arc, AtomicU32};
use std::time::Instant;

pub(crate) const CONTROLS: &[Control] = &[
    ("rwlock.look", a_reader_and_a_writer_exclude_each_other, RACE),
    ("rwlock.lower", a_reader_and_a_writer_exclude_each_other, RACE),
    ("rwlock.drain", a_reader_and_a_writer_exclude_each_other, RACE),
    ("rwlock.unlock", a_reader_and_a_writer_exclude_each_other, RACE),
    ("seq_cst", a_reader_and_a_writer_exclude_each_other, RACE),
];

type Lock = Arc<RwLock<u32>>;

fn new() -> Lock {
    Arc::new(RwLock::new(0))
}

fn with_lock(lock: &Lock, body: impl FnOnce(&RwLock<u32>) + 'static) -> JoinHandle<()> {
    let lock = lock.clone();
    spawn(move || body(&lock))
}

/// Adds under the lock and repairs if the one before died. Returns whether that was so.
fn add(lock: &RwLock<u32>, value: u32) -> bool {
    match lock.write() {
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

fn a_reader_and_a_writer_exclude_each_other() {
    let lock = new();
    let writer = with_lock(&lock, |lock| assert!(!add(lock, 1)));
    assert!(*lock.read().unwrap() <= 1);
    writer.join().unwrap();
    assert_eq!(*lock.read().unwrap(), 1);
}

fn a_reader_of_another_process_and_a_writer_exclude_each_other() {
    let lock = new();
    let reader = with_lock(&lock, |lock| {
        enter(1);
        assert!(*lock.read().unwrap() <= 1);
    });
    add(&lock, 1);
    reader.join().unwrap();
}

fn two_writers_exclude_each_other() {
    let lock = new();
    let other = with_lock(&lock, |lock| assert!(!add(lock, 1)));
    assert!(!add(&lock, 2));
    other.join().unwrap();
    assert_eq!(*lock.try_read().unwrap(), 3);
}

fn two_readers_and_a_writer_lose_no_wake_up() {
    let lock = new();
    let others = [
        with_lock(&lock, |lock| assert!(!add(lock, 1))),
        with_lock(&lock, |lock| drop(lock.read().unwrap())),
    ];
    assert!(*lock.read().unwrap() <= 1);
    for other in others {
        other.join().unwrap();
    }
}

fn a_writer_that_gives_up_lets_the_others_in() {
    let lock = new();
    let hasty = with_lock(&lock, |lock| match lock.write_until(Instant::now()) {
        Ok(mut data) => *data += 1,
        Err(error) => assert!(error.is_timed_out()),
    });
    let other = with_lock(&lock, |lock| drop(lock.read().unwrap()));
    drop(lock.read().unwrap());
    hasty.join().unwrap();
    other.join().unwrap();
    assert!(lock.try_write().is_ok());
}

fn tries_do_not_disturb() {
    let lock = new();
    let trying = with_lock(&lock, |lock| {
        if let Ok(mut data) = lock.try_write() {
            *data += 1;
        }
    });
    if let Ok(data) = lock.try_read() {
        assert!(*data <= 1);
    }
    assert!(*lock.read().unwrap() <= 1);
    trying.join().unwrap();
}

fn nobody_writes_while_a_writer_becomes_a_reader() {
    let lock = new();
    let other = with_lock(&lock, |lock| assert!(!add(lock, 1)));
    let mut writer = lock.write().unwrap();
    *writer += 2;
    let written = *writer;
    let reader = RwLockWriteGuard::downgrade(writer).unwrap();
    assert_eq!(*reader, written);
    drop(reader);
    other.join().unwrap();
    assert_eq!(*lock.read().unwrap(), 3);
}

fn a_reader_that_dies_stops_no_writer() {
    let lock = new();
    let dying = with_lock(&lock, |lock| {
        enter(1);
        std::mem::forget(lock.read().unwrap());
        die();
    });
    enter(2);
    assert!(!add(&lock, 1));
    dying.join().unwrap();
}

fn two_writers_after_a_dead_reader() {
    let lock = new();
    let dying = with_lock(&lock, |lock| {
        enter(1);
        std::mem::forget(lock.read().unwrap());
        die();
    });
    dying.join().unwrap();
    let other = with_lock(&lock, |lock| {
        enter(2);
        assert!(!add(lock, 1));
    });
    enter(3);
    assert!(!add(&lock, 2));
    other.join().unwrap();
    assert_eq!(*lock.read().unwrap(), 3);
}

fn a_writer_that_dies_before_its_turn_was_never_there() {
    let lock = new();
    let dying = with_lock(&lock, |lock| {
        enter(1);
        if lock.abandon() {
            die();
        }
    });
    dying.join().unwrap();
    let other = with_lock(&lock, |lock| {
        enter(2);
        assert!(*lock.read().unwrap() <= 1);
    });
    enter(3);
    assert!(!add(&lock, 1));
    other.join().unwrap();
    assert_eq!(*lock.read().unwrap(), 1);
}

/// A lock whose writer is dead.
fn inherited() -> Lock {
    let lock = new();
    let dying = with_lock(&lock, |lock| {
        enter(1);
        let mut data = lock.write().unwrap();
        *data += 100;
        std::mem::forget(data);
        die();
    });
    dying.join().unwrap();
    lock
}

fn one_writer_inherits() {
    let lock = inherited();
    let heirs = Arc::new(AtomicU32::new(0));
    let other = with_lock(&lock, {
        let heirs = heirs.clone();
        move |lock| {
            enter(2);
            heirs.fetch_add(u32::from(add(lock, 1)), Relaxed);
        }
    });
    enter(3);
    heirs.fetch_add(u32::from(add(&lock, 2)), Relaxed);
    other.join().unwrap();
    assert_eq!((*lock.read().unwrap(), heirs.load(Relaxed)), (103, 1));
}

fn a_reader_beside_the_heir_sees_no_torn_data() {
    let lock = inherited();
    let heir = with_lock(&lock, |lock| {
        enter(2);
        assert!(add(lock, 1));
    });
    enter(3);
    match lock.read() {
        Ok(data) => assert_eq!(*data, 101),
        Err(error) => assert!(matches!(error, LockError::WriterDied)),
    }
    heir.join().unwrap();
}

fn a_writer_that_dies_among_others() {
    let lock = new();
    let dying = with_lock(&lock, |lock| {
        enter(1);
        let mut data = lock.write().unwrap_or_else(|error| panic!("{error:?}"));
        *data += 100;
        std::mem::forget(data);
        die();
    });
    enter(2);
    let inherited = add(&lock, 1);
    dying.join().unwrap();
    if inherited {
        assert_eq!(*lock.read().unwrap(), 101);
    } else {
        assert!(matches!(lock.read(), Err(LockError::WriterDied)));
        assert!(add(&lock, 1));
    }
}

models! {
    a_reader_and_a_writer_exclude_each_other
    a_reader_of_another_process_and_a_writer_exclude_each_other
    two_writers_exclude_each_other
    two_readers_and_a_writer_lose_no_wake_up
    a_writer_that_gives_up_lets_the_others_in
    tries_do_not_disturb
    nobody_writes_while_a_writer_becomes_a_reader
    a_reader_that_dies_stops_no_writer
    two_writers_after_a_dead_reader
    a_writer_that_dies_before_its_turn_was_never_there
    one_writer_inherits
    a_reader_beside_the_heir_sees_no_torn_data
    a_writer_that_dies_among_others
}
