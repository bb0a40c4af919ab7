//! The latch: readers without a lock see whole values, also when a writer dies in the middle.

use crate::{Control, models};
use loom::sync::Arc;
use loom::thread::spawn;
use shm_array::latch::Latch;
use shm_array::{LockError, Mutex};
use shm_core::owner::model::{die, enter};
use shm_core::sync::{AtomicU64, Ordering};

const TORN: &str = "a mixture of two values";

pub(crate) const CONTROLS: &[Control] = &[
    ("latch.look", a_reader_sees_whole_values, TORN),
    ("latch.reread", a_reader_sees_whole_values, TORN),
    ("latch.refill", a_reader_sees_whole_values, TORN),
    ("latch.publish", a_reader_sees_whole_values, TORN),
];

/// A value of two words that are alike.
struct Value {
    sequence: AtomicU64,
    slots: [[AtomicU64; 2]; 2],
    lock: Mutex<()>,
}

impl Value {
    fn new() -> Arc<Self> {
        let slot = || [AtomicU64::new(0), AtomicU64::new(0)];
        Arc::new(Self { sequence: AtomicU64::new(0), slots: [slot(), slot()], lock: Mutex::new(()) })
    }

    fn read(&self) -> u64 {
        let words = Latch(&self.sequence)
            .read(|slot| self.slots[slot].each_ref().map(|word| word.load(Ordering::Relaxed)));
        assert_eq!(words[0], words[1], "{TORN}");
        words[0]
    }

    fn write(&self, value: u64) {
        let store = |word: &AtomicU64| word.store(value, Ordering::Relaxed);
        Latch(&self.sequence).write(|slot| self.slots[slot].iter().for_each(store));
    }

    fn lock_and_write(&self, value: u64) {
        let guard = match self.lock.lock() {
            Ok(guard) => guard,
            Err(LockError::OwnerDied(guard)) => {
                guard.mark_consistent();
                guard
            }
            Err(error) => panic!("{error:?}"),
        };
        self.write(value);
        drop(guard);
    }
}

fn a_reader_sees_whole_values() {
    let value = Value::new();
    let writer = {
        let value = value.clone();
        spawn(move || (1..=2).for_each(|i| value.write(i)))
    };
    let (one, other) = (value.read(), value.read());
    assert!(one <= other, "values in their order");
    writer.join().unwrap();
    assert_eq!(value.read(), 2);
}

fn what_a_dead_writer_left_is_seen_by_nobody() {
    let value = Value::new();
    let dying = {
        let value = value.clone();
        spawn(move || {
            enter(1);
            let Ok(guard) = value.lock.lock() else { panic!("not the first") };
            // The first half of a write: the sequence is still even.
            value.slots[1][0].store(100, Ordering::Relaxed);
            std::mem::forget(guard);
            die();
        })
    };
    let reader = {
        let value = value.clone();
        spawn(move || assert!(value.read() < 2))
    };
    dying.join().unwrap();
    enter(2);
    value.lock_and_write(1);
    reader.join().unwrap();
    assert_eq!(value.read(), 1);
}

models!(a_reader_sees_whole_values what_a_dead_writer_left_is_seen_by_nobody);
