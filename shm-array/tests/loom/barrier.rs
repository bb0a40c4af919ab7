//! Barriers: all pass or none, one leads, the dead are not waited for.

use crate::{Control, STUCK, models};
use loom::thread::{JoinHandle, spawn};
use shm_array::{Barrier, BarrierError, BarrierWaitResult};
use shm_core::owner::model::{die, enter};
use shm_core::sync::Ordering::Relaxed;
use shm_core::sync::{Arc, AtomicU32, UnsafeCell};
use std::time::Instant;

pub(crate) const CONTROLS: &[Control] =
    &[("seq_cst", one_of_two_last_parties_sees_that_all_are_there, STUCK)];

type Passed = Result<BarrierWaitResult, BarrierError>;

/// Two parties: a model looks at each cell.
struct World {
    barrier: Barrier<2>,
    data: [UnsafeCell<u32>; 2],
    leaders: AtomicU32,
}

// SAFETY: the data is what the models are about: loom reports a race on it.
unsafe impl Sync for World {}
// SAFETY: as above.
unsafe impl Send for World {}

impl World {
    fn new() -> Arc<World> {
        let data = [UnsafeCell::new(0), UnsafeCell::new(0)];
        Arc::new(World { barrier: Barrier::with_limit(2), data, leaders: AtomicU32::new(0) })
    }

    fn note(&self, passed: Passed) {
        self.leaders.fetch_add(u32::from(passed.unwrap().is_leader()), Relaxed);
    }

    /// Writes its own, waits, and reads the other's.
    fn exchange(&self, me: usize) {
        // SAFETY: nobody else touches it before the barrier.
        self.data[me].with_mut(|data| unsafe { *data = 7 });
        self.note(self.barrier.wait());
        // SAFETY: nobody writes it after the barrier.
        assert_eq!(self.data[1 - me].with(|data| unsafe { *data }), 7);
    }
}

fn with_world(world: &Arc<World>, body: impl FnOnce(&World) + 'static) -> JoinHandle<()> {
    let world = world.clone();
    spawn(move || body(&world))
}

fn what_was_done_before_is_seen_by_all() {
    let world = World::new();
    let other = with_world(&world, |world| world.exchange(0));
    world.exchange(1);
    other.join().unwrap();
    assert_eq!(world.leaders.load(Relaxed), 1);
}

fn one_of_two_last_parties_sees_that_all_are_there() {
    let world = World::new();
    let other = with_world(&world, |world| world.note(world.barrier.wait()));
    world.note(world.barrier.wait());
    other.join().unwrap();
}

fn rounds_follow_each_other() {
    let world = World::new();
    let twice = |world: &World| (0..2).for_each(|_| world.note(world.barrier.wait()));
    let other = with_world(&world, twice);
    twice(&world);
    other.join().unwrap();
    assert_eq!(world.leaders.load(Relaxed), 2);
}

fn an_action_runs_once_before_anybody_goes_on() {
    let world = World::new();
    let act = |world: &World| {
        world.note(world.barrier.wait_with(|| {
            world.data[0].with_mut(|data| {
                // SAFETY: one runs it, and nobody reads before it is through.
                unsafe { *data += 1 }
            })
        }));
        // SAFETY: nobody writes it after the barrier.
        assert_eq!(world.data[0].with(|data| unsafe { *data }), 1);
    };
    let other = with_world(&world, act);
    act(&world);
    other.join().unwrap();
}

fn all_pass_or_none_when_one_gives_up() {
    let world = World::new();
    let other = with_world(&world, |world| match world.barrier.wait_until(Instant::now()) {
        Ok(_) => drop(world.leaders.fetch_add(1, Relaxed)),
        Err(error) => assert_eq!(error, BarrierError::TimedOut),
    });
    let passed = world.barrier.wait().is_ok();
    other.join().unwrap();
    assert_eq!(passed, world.leaders.load(Relaxed) == 1);
    assert_eq!(passed, !world.barrier.is_broken());
}

fn all_pass_or_none_when_it_is_reset() {
    let world = World::new();
    let parties = [(); 2].map(|()| {
        with_world(&world, |world| match world.barrier.wait_until(Instant::now()) {
            Ok(_) => drop(world.leaders.fetch_add(1, Relaxed)),
            Err(error) => assert!(matches!(error, BarrierError::Broken | BarrierError::TimedOut)),
        })
    });
    world.barrier.reset();
    for party in parties {
        party.join().unwrap();
    }
    assert_ne!(world.leaders.load(Relaxed), 1, "one passed and the other did not");
}

fn a_party_that_dies_while_it_waits_breaks_it() {
    let world = World::new();
    let dying = with_world(&world, |world| {
        enter(1);
        world.barrier.abandon();
        die();
    });
    enter(2);
    match world.barrier.wait() {
        // It was alive when all were there.
        Ok(round) => assert!(round.is_leader()),
        Err(error) => assert_eq!(error, BarrierError::Broken),
    }
    dying.join().unwrap();
    world.barrier.reset();
    let other = with_world(&world, |world| {
        enter(3);
        world.note(world.barrier.wait());
    });
    world.note(world.barrier.wait());
    other.join().unwrap();
}

models! {
    what_was_done_before_is_seen_by_all
    one_of_two_last_parties_sees_that_all_are_there
    rounds_follow_each_other
    an_action_runs_once_before_anybody_goes_on
    all_pass_or_none_when_one_gives_up
    all_pass_or_none_when_it_is_reset
    a_party_that_dies_while_it_waits_breaks_it
}
