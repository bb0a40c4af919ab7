//! Semaphores and signals: as many as there are permits, no permit beside a sleeper, permits of the dead.

use crate::{Control, RACE, STUCK, models};
use loom::thread::{JoinHandle, spawn};
use shm_array::{LockError, Semaphore, Signal};
use shm_core::owner::model::{die, enter};
use shm_core::sync::{Arc, UnsafeCell};
use std::time::Instant;

pub(crate) const CONTROLS: &[Control] =
    &[("semaphore.take", a_permit_protects_data, RACE), ("semaphore.release", a_permit_protects_data, RACE)];

pub(crate) const SIGNAL_CONTROLS: &[Control] = &[
    ("signal.take", a_unit_passes_data_on, RACE),
    ("signal.post", a_unit_passes_data_on, RACE),
    ("seq_cst", a_unit_passes_data_on, STUCK),
];

/// Two cells at most: a model looks at each.
struct World {
    semaphore: Semaphore<2>,
    signal: Signal,
    data: UnsafeCell<u32>,
}

// SAFETY: the data is what the models are about: loom reports a race on it.
unsafe impl Sync for World {}
// SAFETY: as above.
unsafe impl Send for World {}

impl World {
    fn new(permits: usize) -> Arc<World> {
        let (semaphore, signal) = (Semaphore::with_limit(permits), Signal::new(0));
        Arc::new(World { semaphore, signal, data: UnsafeCell::new(0) })
    }

    fn change(&self) {
        // SAFETY: whoever calls it has the only permit, or the unit.
        self.data.with_mut(|data| unsafe { *data += 1 });
    }
}

fn with_world(world: &Arc<World>, body: impl FnOnce(&World) + 'static) -> JoinHandle<()> {
    let world = world.clone();
    spawn(move || body(&world))
}

fn a_permit_protects_data() {
    let world = World::new(1);
    let other = with_world(&world, |world| {
        let _permit = world.semaphore.acquire().unwrap();
        world.change();
    });
    let permit = world.semaphore.acquire().unwrap();
    world.change();
    drop(permit);
    other.join().unwrap();
    assert_eq!(world.semaphore.available(), 1);
}

/// Two permits come back one after the other, and two may sleep.
fn each_sleeper_gets_a_permit() {
    let world = World::new(2);
    let permits = [(); 2].map(|()| world.semaphore.acquire().unwrap());
    let others = [(); 2].map(|()| with_world(&world, |world| world.semaphore.acquire().unwrap().forget()));
    drop(permits);
    for other in others {
        other.join().unwrap();
    }
    assert!(matches!(world.semaphore.try_acquire(), Err(LockError::WouldBlock)));
}

fn one_that_gives_up_takes_no_wake_up_along() {
    let world = World::new(1);
    let permit = world.semaphore.acquire().unwrap();
    let hasty = with_world(&world, |world| drop(world.semaphore.acquire_until(Instant::now())));
    let other = with_world(&world, |world| drop(world.semaphore.acquire().unwrap()));
    drop(permit);
    hasty.join().unwrap();
    other.join().unwrap();
    assert_eq!(world.semaphore.available(), 1);
}

fn die_with_the_permit(world: &World) {
    enter(1);
    let permit = world.semaphore.acquire().unwrap();
    world.change();
    permit.forget();
    die();
}

fn use_the_permit(world: &World) {
    let _permit = world.semaphore.acquire().unwrap();
    world.change();
}

fn a_dead_holders_permit_comes_back() {
    let world = World::new(1);
    let dying = with_world(&world, die_with_the_permit);
    enter(2);
    use_the_permit(&world);
    dying.join().unwrap();
}

fn a_dead_holders_permit_is_taken_once() {
    let world = World::new(1);
    with_world(&world, die_with_the_permit).join().unwrap();
    let other = with_world(&world, |world| {
        enter(2);
        use_the_permit(world);
    });
    enter(3);
    use_the_permit(&world);
    other.join().unwrap();
    assert_eq!(world.semaphore.available(), 1);
}

fn a_forgotten_permit_is_given_back_once() {
    let world = World::new(1);
    world.semaphore.acquire().unwrap().forget();
    let other = with_world(&world, |world| drop(world.semaphore.release()));
    let _ = world.semaphore.release();
    other.join().unwrap();
    assert_eq!(world.semaphore.available(), 1);
    assert!(matches!(world.semaphore.release(), Err(LockError::NotHeld)));
}

fn a_unit_passes_data_on() {
    let world = World::new(1);
    let other = with_world(&world, |world| {
        world.change();
        world.signal.post(1).unwrap();
    });
    world.signal.wait();
    world.change();
    other.join().unwrap();
}

fn each_unit_wakes_a_sleeper() {
    let world = World::new(1);
    let others = [(); 2].map(|()| with_world(&world, |world| world.signal.wait()));
    world.signal.post(1).unwrap();
    world.signal.post(1).unwrap();
    for other in others {
        other.join().unwrap();
    }
    assert_eq!(world.signal.value(), 0);
}

models! {
    a_permit_protects_data
    each_sleeper_gets_a_permit
    one_that_gives_up_takes_no_wake_up_along
    a_dead_holders_permit_comes_back
    a_dead_holders_permit_is_taken_once
    a_forgotten_permit_is_given_back_once
    a_unit_passes_data_on
    each_unit_wakes_a_sleeper
}
