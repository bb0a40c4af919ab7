//! Participants die between two steps, and others repair what they left.

use super::*;

/// A consumer dies with a batch in hand; whoever learns from a sweeper that a message in its middle is free knows
/// what its reader did.
pub(crate) fn a_recovered_message_of_a_batch_was_read() {
    let world = World::new(2);
    let write = |i, slot| put(slot, 20 + i as u64);
    let pushed = world.ring().try_push_batch(&Cursor::new(), 1, 2, write);
    assert_eq!(pushed, Ok((0, 2)));
    let noted = Arc::new(UnsafeCell::new(0));
    let victim = spawn(&world, {
        let noted = noted.clone();
        move |w| {
            let read = |_, slot| {
                // SAFETY: read below only after the release; loom checks that.
                noted.with_mut(|n| unsafe { *n += get(slot) });
            };
            let claimed = w.ring().abandon_pop(&Cursor::new(), 2, 2, read, Step::Interior(0));
            assert_eq!(claimed, Ok(2));
        }
    });
    let sweeper = spawn(&world, |w| {
        victim.join().unwrap();
        assert_eq!(w.ring().recover_owner(2), 2);
    });
    while !world.ring().is_released(1) {
        thread::yield_now();
    }
    // SAFETY: written before the recovery.
    assert_eq!(noted.with(|n| unsafe { *n }), 41);
    sweeper.join().unwrap();
}

/// A producer dies in a batch of two, at `step`; another producer and a consumer go on.
pub(crate) fn producer_death(step: Step) {
    let world = World::new(3);
    let victim = spawn(&world, move |w| {
        let write = |i, slot| put(slot, 100 + i as u64);
        let claimed = w.ring().abandon_push(&Cursor::new(), 1, 2, write, step);
        assert!(claimed.is_ok());
        w.die(1);
    });
    let survivor = spawn(&world, |w| {
        w.push(&Cursor::new(), 2, 7);
    });
    // All or nothing, and here nothing: the victim never reached its header.
    let cursor = Cursor::new();
    assert_eq!(world.pop(&cursor, 3), 7);
    victim.join().unwrap();
    survivor.join().unwrap();
    match world.try_pop(&cursor, 3) {
        Err(PopError::Claimed(claim)) => world.recover_if_dead(claim),
        other => assert_eq!(other, Err(PopError::Empty)),
    }
    assert_eq!(world.try_pop(&cursor, 3), Err(PopError::Empty));
    // The ring is whole again: three more messages fit.
    let pushed = Cursor::new();
    for message in 0..3 {
        world.push(&pushed, 2, message);
    }
    for message in 0..3 {
        assert_eq!(world.pop(&cursor, 3), message);
    }
    assert_eq!(world.lost.load(Relaxed), 0);
}

pub(crate) fn a_producer_dies_with_its_claim() {
    producer_death(Step::Claimed);
}

pub(crate) fn a_producer_dies_before_it_publishes() {
    producer_death(Step::Interior(0));
}

pub(crate) fn a_producer_dies_with_the_interior_published() {
    producer_death(Step::Interior(1));
}

/// A consumer dies in a batch of two, at `step`; a producer needs the slots and another consumer goes on.
pub(crate) fn consumer_death(step: Step) {
    let world = World::new(2);
    let pushed = Cursor::new();
    world.push(&pushed, 1, 0);
    world.push(&pushed, 1, 1);
    let victim = spawn(&world, move |w| {
        let read = |i, slot| assert_eq!(get(slot), i as u64);
        assert_eq!(w.ring().abandon_pop(&Cursor::new(), 2, 2, read, step), Ok(2));
        w.die(2);
    });
    while !world.is_dead(2) {
        thread::yield_now();
    }
    let survivor = spawn(&world, |w| {
        let cursor = Cursor::new();
        assert_eq!([w.pop(&cursor, 3), w.pop(&cursor, 3)], [20, 21]);
    });
    world.push(&pushed, 1, 20);
    world.push(&pushed, 1, 21);
    victim.join().unwrap();
    survivor.join().unwrap();
    // What the victim had claimed is lost, all of it and nothing else, and it is counted once.
    assert_eq!(world.lost.load(Relaxed), 2);
}

pub(crate) fn a_consumer_dies_with_its_claim() {
    consumer_death(Step::Claimed);
}

pub(crate) fn a_consumer_dies_before_it_frees() {
    consumer_death(Step::Interior(0));
}

pub(crate) fn a_consumer_dies_with_the_interior_freed() {
    consumer_death(Step::Interior(1));
}

/// A consumer dies while it reads; a sweep repairs, and a producer that knows nothing of it writes into the slot.
pub(crate) fn a_sweep_hands_the_slot_of_a_dead_reader_on() {
    let world = World::new(1);
    let pushed = Cursor::new();
    world.push(&pushed, 1, 0);
    let victim = spawn(&world, |w| {
        let read = |_, slot| assert_eq!(get(slot), 0);
        let claimed = w.ring().abandon_pop(&Cursor::new(), 2, 1, read, Step::Interior(0));
        assert_eq!(claimed, Ok(1));
    });
    let sweeper = spawn(&world, |w| {
        victim.join().unwrap();
        assert_eq!(w.ring().recover_owner(2), 1);
    });
    while world.ring().try_push(&pushed, 1, |slot| put(slot, 1)).is_err() {
        thread::yield_now();
    }
    sweeper.join().unwrap();
}

/// A sweep, a producer and a consumer repair the same batch at once.
pub(crate) fn three_recover_at_once() {
    let world = World::new(2);
    let write = |i, slot| put(slot, 100 + i as u64);
    let torn = world.ring().abandon_push(&Cursor::new(), 1, 2, write, Step::Interior(1));
    assert_eq!(torn, Ok((0, 2)));
    world.die(1);
    let sweeper = spawn(&world, |w| assert_eq!(w.ring().recover_owner(1), 0));
    let producer = spawn(&world, |w| w.push(&Cursor::new(), 2, 7));
    let cursor = Cursor::new();
    assert_eq!(world.pop(&cursor, 3), 7);
    sweeper.join().unwrap();
    producer.join().unwrap();
    assert_eq!(world.try_pop(&cursor, 3), Err(PopError::Empty));
    assert_eq!(world.lost.load(Relaxed), 0);
}

/// A claim is read, its producer finishes the batch and only then dies: the batch stands.
pub(crate) fn a_batch_finished_before_the_death_is_delivered() {
    let world = World::new(2);
    let victim = spawn(&world, |w| {
        let pushed = w.ring().try_push_batch(&Cursor::new(), 1, 2, |i, slot| put(slot, i as u64));
        assert_eq!(pushed, Ok((0, 2)));
    });
    let cursor = Cursor::new();
    let mut left = vec![0, 1];
    loop {
        match world.try_pop(&cursor, 2) {
            Ok(message) => assert_eq!(message, left.remove(0)),
            Err(PopError::Claimed(claim)) => {
                victim.join().unwrap();
                assert_eq!(world.ring().recover(claim), 0);
                break;
            }
            Err(_) => thread::yield_now(),
        }
        if left.is_empty() {
            return victim.join().unwrap();
        }
    }
    while let Ok(message) = world.try_pop(&cursor, 2) {
        assert_eq!(message, left.remove(0));
    }
    assert_eq!(left, []);
}
