//! Events: what was done before is seen, and whoever sleeps is woken.

use crate::{Control, RACE, models};
use loom::thread::{JoinHandle, spawn};
use shm_array::Event;
use shm_core::sync::{Arc, UnsafeCell};
use std::time::Instant;

pub(crate) const CONTROLS: &[Control] =
    &[("event.look", an_event_passes_data_on, RACE), ("event.set", an_event_passes_data_on, RACE)];

struct World {
    event: Event,
    data: UnsafeCell<u32>,
}

// SAFETY: the data is what the models are about: loom reports a race on it.
unsafe impl Sync for World {}
// SAFETY: as above.
unsafe impl Send for World {}

fn new() -> Arc<World> {
    Arc::new(World { event: Event::new(), data: UnsafeCell::new(0) })
}

fn with_world(world: &Arc<World>, body: impl FnOnce(&World) + 'static) -> JoinHandle<()> {
    let world = world.clone();
    spawn(move || body(&world))
}

fn an_event_passes_data_on() {
    let world = new();
    let other = with_world(&world, |world| {
        // SAFETY: nobody reads it before the event.
        world.data.with_mut(|data| unsafe { *data = 7 });
        world.event.set();
    });
    world.event.wait();
    // SAFETY: nobody writes it after the event.
    assert_eq!(world.data.with(|data| unsafe { *data }), 7);
    other.join().unwrap();
}

fn everybody_is_woken() {
    let world = new();
    let others = [(); 2].map(|()| with_world(&world, |world| world.event.wait()));
    world.event.set();
    world.event.set();
    for other in others {
        other.join().unwrap();
    }
}

/// Each waits for a pulse that it may have missed, so the last one sets the event for good.
fn a_pulse_loses_nobody_who_sleeps() {
    let world = new();
    let other = with_world(&world, |world| world.event.wait());
    world.event.set();
    world.event.clear();
    let late = with_world(&world, |world| {
        world.event.wait_until(Instant::now());
    });
    world.event.set();
    other.join().unwrap();
    late.join().unwrap();
}

models! {
    an_event_passes_data_on
    everybody_is_woken
    a_pulse_loses_nobody_who_sleeps
}
