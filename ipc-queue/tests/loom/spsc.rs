//! The ring of one producer and one consumer, its parking, and successors of either side.

use super::{RACE, STUCK, explore};
use ipc_queue::spsc::ring::{Layout, Memory, ORDERINGS, Popper, Pusher};
use shm_core::sync::Ordering::{Acquire, Release};
use shm_core::sync::{Arc, AtomicBool, UnsafeCell, thread};
use shm_core::wait::{Pace, WaitLine};

struct World {
    memory: Memory,
    not_empty: WaitLine,
    not_full: WaitLine,
    /// Who works on a side has put it down.
    dead: AtomicBool,
}

fn world(capacity: usize) -> Arc<World> {
    Arc::new(World {
        memory: Memory::new(Layout::new(capacity, 8).unwrap()),
        not_empty: WaitLine::new(),
        not_full: WaitLine::new(),
        dead: AtomicBool::new(false),
    })
}

impl World {
    fn pusher(&self) -> Pusher<'_> {
        // SAFETY: each model has one at a time, and its successor has seen its end; loom checks what follows from it.
        unsafe { self.memory.ring().pusher() }
    }

    fn popper(&self) -> Popper<'_> {
        // SAFETY: as above.
        unsafe { self.memory.ring().popper() }
    }
}

fn put(slot: *mut u8, message: u64) {
    // SAFETY: a slot of these rings has 8 bytes, aligned.
    unsafe { slot.cast::<u64>().write(message) }
}

fn get(slot: *const u8) -> u64 {
    // SAFETY: as in `put`.
    unsafe { slot.cast::<u64>().read() }
}

fn push(pusher: &mut Pusher<'_>, message: u64) {
    while pusher.try_push(|slot| put(slot, message)).is_err() {
        thread::yield_now();
    }
}

fn pop(popper: &mut Popper<'_>) -> u64 {
    loop {
        match popper.try_pop(get) {
            Ok(message) => return message,
            Err(_) => thread::yield_now(),
        }
    }
}

fn spawn(world: &Arc<World>, body: impl FnOnce(&World) + 'static) -> loom::thread::JoinHandle<()> {
    let world = world.clone();
    loom::thread::spawn(move || body(&world))
}

fn in_order(capacity: usize) {
    let world = world(capacity);
    let producer = spawn(&world, |w| {
        let mut pusher = w.pusher();
        (10..13).for_each(|message| push(&mut pusher, message));
    });
    let mut popper = world.popper();
    (10..13).for_each(|message| assert_eq!(pop(&mut popper), message));
    assert!(popper.try_pop(get).is_err());
    producer.join().unwrap();
}

pub(crate) fn messages_through_one_slot() {
    in_order(1);
}

pub(crate) fn messages_around_two_slots() {
    in_order(2);
}

/// A batch appears at once, and is released at once.
pub(crate) fn a_batch_is_all_or_nothing() {
    let world = world(2);
    let producer = spawn(&world, |w| {
        let mut pusher = w.pusher();
        assert_eq!(pusher.try_push_batch(2, |i, slot| put(slot, 20 + i as u64)), Ok(2));
        push(&mut pusher, 22);
    });
    let mut popper = world.popper();
    let mut got = Vec::new();
    while got.is_empty() {
        let _ = popper.try_pop_batch(2, |_, slot| got.push(get(slot)));
        thread::yield_now();
    }
    assert_eq!(got, [20, 21]);
    assert_eq!(pop(&mut popper), 22);
    producer.join().unwrap();
}

/// Whoever knows that a message was released knows what its reader did.
pub(crate) fn a_released_message_was_read() {
    let world = world(1);
    let noted = Arc::new(UnsafeCell::new(0));
    push(&mut world.pusher(), 5);
    let consumer = spawn(&world, {
        let noted = noted.clone();
        move |w| {
            let popped = w.popper().try_pop(|slot| {
                // SAFETY: read below only after the release; loom checks that.
                noted.with_mut(|n| unsafe { *n = get(slot) });
            });
            assert_eq!(popped, Ok(()));
        }
    });
    while !world.memory.ring().is_released(0) {
        thread::yield_now();
    }
    // SAFETY: written before the release.
    assert_eq!(noted.with(|n| unsafe { *n }), 5);
    consumer.join().unwrap();
}

/// A producer has written a payload and dies before it publishes; its successor starts where it had stopped.
pub(crate) fn a_producer_dies_before_it_publishes() {
    let world = world(2);
    let victim = spawn(&world, |w| {
        let mut pusher = w.pusher();
        push(&mut pusher, 1);
        let _ = pusher.abandon_push(|slot| put(slot, 99));
        w.dead.store(true, Release);
    });
    let mut popper = world.popper();
    assert_eq!(pop(&mut popper), 1);
    while !world.dead.load(Acquire) {
        thread::yield_now();
    }
    push(&mut world.pusher(), 2);
    assert_eq!(pop(&mut popper), 2);
    victim.join().unwrap();
}

/// A consumer has read a payload and dies before it releases it; its successor takes the message.
pub(crate) fn a_consumer_dies_before_it_releases() {
    let world = world(1);
    let victim = spawn(&world, |w| {
        let mut popper = w.popper();
        assert_eq!(pop(&mut popper), 1);
        // There may be nothing to read yet.
        let _ = popper.abandon_pop(get);
        w.dead.store(true, Release);
    });
    let mut pusher = world.pusher();
    push(&mut pusher, 1);
    push(&mut pusher, 2);
    while !world.dead.load(Acquire) {
        thread::yield_now();
    }
    assert_eq!(pop(&mut world.popper()), 2);
    victim.join().unwrap();
}

/// Both sides sleep without a deadline: a wake-up that is lost is a deadlock.
pub(crate) fn both_sides_are_woken() {
    let world = world(1);
    let producer = spawn(&world, |w| {
        let mut pusher = w.pusher();
        for message in [1, 2] {
            let ticket = pusher.ticket();
            let mut attempt = || pusher.try_push(|slot| put(slot, message)).ok();
            w.not_full.wait(&Pace::new(), ticket, None, &mut attempt, || None).unwrap();
            w.not_empty.notify(1);
        }
    });
    let mut popper = world.popper();
    for message in [1, 2] {
        let ticket = popper.ticket();
        let mut attempt = || popper.try_pop(get).ok();
        assert_eq!(world.not_empty.wait(&Pace::new(), ticket, None, &mut attempt, || None), Some(message));
        world.not_full.notify(1);
    }
    producer.join().unwrap();
}

macro_rules! models {
    ($($name:ident)*) => {
        $(
            mod $name {
                #[test]
                fn holds() {
                    super::explore(super::$name);
                }
            }
        )*
    };
}

models! {
    messages_through_one_slot
    messages_around_two_slots
    a_batch_is_all_or_nothing
    a_released_message_was_read
    a_producer_dies_before_it_publishes
    a_consumer_dies_before_it_releases
    both_sides_are_woken
}

/// Which model notices which weakened ordering, and as what.
pub(crate) const CONTROLS: &[(&str, fn(), &str)] = &[
    ("spsc.push.look", messages_through_one_slot, RACE),
    ("spsc.push.publish", messages_through_one_slot, RACE),
    ("spsc.pop.look", messages_through_one_slot, RACE),
    ("spsc.pop.release", messages_through_one_slot, RACE),
    ("spsc: light_fence", both_sides_are_woken, STUCK),
    ("spsc: heavy_fence", both_sides_are_woken, STUCK),
];

#[test]
fn each_ordering_has_a_control() {
    for name in ORDERINGS {
        assert!(CONTROLS.iter().any(|(control, ..)| control == name), "no control for {name}");
    }
}
