//! Models of the ring, of parking on it and of the chunks and cells beside it: every interleaving and every stale read that the memory model allows,
//! within the preemption bound, on the real code.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --profile loom -p ipc-queue --test loom`
//!
//! A process that dies is a thread that stops between two steps and then raises a flag: the proof of death. Whoever
//! repairs what it left has seen the flag.
#![cfg(loom)]
#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

#[path = "loom/cells.rs"]
mod cells;
#[path = "loom/chunks.rs"]
mod chunks;
#[path = "loom/closing.rs"]
mod closing;
#[path = "loom/death.rs"]
mod death;
#[path = "loom/handles.rs"]
mod handles;
#[path = "loom/pollable.rs"]
mod pollable;
#[path = "loom/spsc.rs"]
mod spsc;

use cells::*;
use chunks::*;
use closing::*;
use death::*;
use ipc_queue::ring::{Claim, Cursor, Layout, Memory, ORDERINGS, PopError, PushError, Ring, Step};
use pollable::*;
use shm_core::sync::Ordering::{Acquire, Relaxed, Release};
use shm_core::sync::{Arc, AtomicBool, AtomicU32, UnsafeCell, thread, weakened};
use shm_core::wait::{Pace, WaitLine};

/// Explores `body`, with at most two preemptions unless the environment says otherwise.
fn explore(body: fn()) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(2);
    builder.check(body);
}

/// A ring of 64-bit messages, and a flag for each participant that has died.
struct World {
    memory: Memory,
    dead: [AtomicBool; 4],
    /// Messages that recoveries reported as lost.
    lost: AtomicU32,
}

impl World {
    fn new(capacity: usize) -> Arc<World> {
        Arc::new(World {
            memory: Memory::new(Layout::new(capacity, 8).unwrap()),
            dead: std::array::from_fn(|_| AtomicBool::new(false)),
            lost: AtomicU32::new(0),
        })
    }

    fn ring(&self) -> Ring<'_> {
        self.memory.ring()
    }

    fn die(&self, me: u16) {
        self.dead[usize::from(me)].store(true, Release);
    }

    fn is_dead(&self, participant: u16) -> bool {
        self.dead[usize::from(participant)].load(Acquire)
    }

    fn recover_if_dead(&self, claim: Claim) {
        if self.is_dead(claim.owner()) {
            let lost = self.ring().recover(claim) as u32;
            self.lost.fetch_add(lost, Relaxed);
        } else {
            thread::yield_now();
        }
    }

    /// Pushes, repairing what stands in the way.
    fn push(&self, cursor: &Cursor, me: u16, message: u64) {
        loop {
            match self.ring().try_push(cursor, me, |slot| put(slot, message)) {
                Ok(_) => return,
                Err(PushError::Claimed(claim)) => self.recover_if_dead(claim),
                Err(PushError::Full) => thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn try_pop(&self, cursor: &Cursor, me: u16) -> Result<u64, PopError> {
        self.ring().try_pop(cursor, me, get)
    }

    /// Pops, repairing what stands in the way.
    fn pop(&self, cursor: &Cursor, me: u16) -> u64 {
        loop {
            match self.try_pop(cursor, me) {
                Ok(message) => return message,
                Err(PopError::Claimed(claim)) => self.recover_if_dead(claim),
                Err(PopError::Empty) => thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Pops a batch of what is there.
    fn pop_batch(&self, cursor: &Cursor, me: u16, max: usize) -> Vec<u64> {
        let mut got = Vec::new();
        let _ = self.ring().try_pop_batch(cursor, me, max, |_, slot| got.push(get(slot)));
        got
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

fn spawn(world: &Arc<World>, body: impl FnOnce(&World) + 'static) -> loom::thread::JoinHandle<()> {
    let world = world.clone();
    loom::thread::spawn(move || body(&world))
}

// ---- normal life

fn one_producer_one_consumer_in_order() {
    let world = World::new(1);
    let producer = spawn(&world, |w| {
        let cursor = Cursor::new();
        w.push(&cursor, 1, 10);
        w.push(&cursor, 1, 11);
    });
    let cursor = Cursor::new();
    assert_eq!(world.pop(&cursor, 2), 10);
    assert_eq!(world.pop(&cursor, 2), 11);
    assert_eq!(world.try_pop(&cursor, 2), Err(PopError::Empty));
    producer.join().unwrap();
}

fn two_producers_one_consumer() {
    let world = World::new(2);
    let other = spawn(&world, |w| {
        w.push(&Cursor::new(), 1, 10);
    });
    let another = spawn(&world, |w| {
        w.push(&Cursor::new(), 2, 20);
    });
    let cursor = Cursor::new();
    let mut got = [world.pop(&cursor, 3), world.pop(&cursor, 3)];
    got.sort();
    assert_eq!(got, [10, 20]);
    other.join().unwrap();
    another.join().unwrap();
}

fn one_producer_two_consumers() {
    let world = World::new(2);
    let pushed = Cursor::new();
    world.push(&pushed, 1, 0);
    let taken = Arc::new(AtomicU32::new(0));
    let take = |taken: &AtomicU32, message: u64| {
        assert_eq!(taken.fetch_or(1 << message, Relaxed) & 1 << message, 0, "twice");
    };
    let consumers = [2, 3].map(|me| {
        let taken = taken.clone();
        spawn(&world, move |w| {
            if let Ok(message) = w.try_pop(&Cursor::new(), me) {
                take(&taken, message);
            }
        })
    });
    world.push(&pushed, 1, 1);
    for consumer in consumers {
        consumer.join().unwrap();
    }
    let cursor = Cursor::new();
    while let Ok(message) = world.try_pop(&cursor, 1) {
        take(&taken, message);
    }
    assert_eq!(taken.load(Relaxed), 0b11);
}

/// A batch taken at once whose messages came from two producers.
fn a_batch_of_two_producers_messages() {
    let world = World::new(2);
    let producers = [1, 2].map(|me| {
        spawn(&world, move |w| {
            w.push(&Cursor::new(), me, u64::from(me));
        })
    });
    let cursor = Cursor::new();
    let mut got = Vec::new();
    while got.len() < 2 {
        got.extend(world.pop_batch(&cursor, 3, 2));
        thread::yield_now();
    }
    got.sort();
    assert_eq!(got, [1, 2]);
    for producer in producers {
        producer.join().unwrap();
    }
}

/// A batch pushed into slots that two consumers have freed.
fn a_batch_into_slots_of_two_consumers() {
    let world = World::new(2);
    let pushed = Cursor::new();
    world.push(&pushed, 1, 10);
    world.push(&pushed, 1, 11);
    let consumers = [2, 3].map(|me| {
        spawn(&world, move |w| {
            assert!((10..=11).contains(&w.pop(&Cursor::new(), me)));
        })
    });
    let mut next = 20;
    while next < 22 {
        let write = |i, slot| put(slot, next + i as u64);
        if let Ok((_, count)) = world.ring().try_push_batch(&pushed, 1, 22 - next as usize, write) {
            next += count as u64;
        }
        thread::yield_now();
    }
    for consumer in consumers {
        consumer.join().unwrap();
    }
    let popped = Cursor::new();
    assert_eq!([world.pop(&popped, 1), world.pop(&popped, 1)], [20, 21]);
}

/// A batch against single messages from another producer: it stays together.
fn a_batch_stays_together() {
    let world = World::new(3);
    let single = spawn(&world, |w| {
        w.push(&Cursor::new(), 1, 9);
    });
    let batch = spawn(&world, |w| {
        let pushed = w.ring().try_push_batch(&Cursor::new(), 2, 2, |i, slot| put(slot, i as u64));
        assert!(matches!(pushed, Ok((_, 2))), "{pushed:?}");
    });
    let cursor = Cursor::new();
    let got = [0; 3].map(|_| world.pop(&cursor, 3));
    assert!(got == [9, 0, 1] || got == [0, 1, 9], "{got:?}");
    single.join().unwrap();
    batch.join().unwrap();
}

/// Whoever sees the header of a consumed batch free finds nothing of it behind.
fn a_released_batch_is_gone() {
    let world = World::new(2);
    let pushed = Cursor::new();
    world.push(&pushed, 1, 10);
    world.push(&pushed, 1, 11);
    let consumer = spawn(&world, |w| {
        assert_eq!(w.pop_batch(&Cursor::new(), 2, 2), [10, 11]);
    });
    while !world.ring().is_released(0) {
        thread::yield_now();
    }
    assert_eq!(world.try_pop(&Cursor::new(), 3), Err(PopError::Empty));
    consumer.join().unwrap();
}

/// A consumer that passes another one's claim lands on the interior of a batch whose header nobody has read yet.
fn a_pop_behind_a_batch_in_flight() {
    let world = World::new(4);
    let pushed = Cursor::new();
    world.push(&pushed, 1, 10);
    let producer = spawn(&world, move |w| {
        let write = |i, slot| put(slot, 20 + i as u64);
        assert_eq!(w.ring().try_push_batch(&pushed, 2, 2, write), Ok((1, 2)));
    });
    let batch = spawn(&world, |w| {
        w.pop_batch(&Cursor::new(), 3, 2);
    });
    if let Ok(message) = world.try_pop(&Cursor::new(), 4) {
        assert!(matches!(message, 10 | 20 | 21), "{message}");
    }
    producer.join().unwrap();
    batch.join().unwrap();
}

/// A producer whose old ticket lies in the interior of a later lap's batch learns from it alone that the slots before
/// are taken, and goes on into one that a consumer has freed. Two interior words lie on its way, and the Release of either
/// would do, so no control weakens one for this model.
fn a_push_of_a_laggard() {
    let world = World::new(3);
    let late = Cursor::new();
    world.push(&late, 1, 10);
    let pushed = late.clone();
    let write = |i, slot| put(slot, 20 + i as u64);
    assert_eq!(world.ring().try_push_batch(&pushed, 2, 2, write), Ok((1, 2)));
    let laggard = spawn(&world, move |w| {
        let _ = w.ring().try_push(&late, 1, |slot| put(slot, 40));
    });
    let producer = spawn(&world, move |w| {
        let write = |i, slot| put(slot, 30 + i as u64);
        let _ = w.ring().try_push_batch(&pushed, 2, 2, write);
    });
    assert_eq!(world.pop_batch(&Cursor::new(), 3, 3), [10, 20, 21]);
    producer.join().unwrap();
    laggard.join().unwrap();
}

/// A consumer whose old ticket lies in the interior of a later lap's batch learns from it alone that the lap before was
/// consumed, and jumps into the middle of a batch that it has seen nothing of.
fn a_pop_of_a_laggard() {
    let world = World::new(3);
    let pushed = Cursor::new();
    let write = |first: u64| move |i, slot| put(slot, first + i as u64);
    let (popped, late) = (Cursor::new(), Cursor::new());
    world.push(&pushed, 1, 10);
    assert_eq!(world.pop(&late, 2), 10);
    assert_eq!(world.ring().try_push_batch(&pushed, 1, 2, write(11)), Ok((1, 2)));
    assert_eq!(world.pop_batch(&popped, 3, 2), [11, 12]);
    // The laggard's ticket is 1, the next one is 3.
    let done = Arc::new(AtomicBool::new(false));
    let other = spawn(&world, {
        let done = done.clone();
        move |w| {
            assert_eq!(w.ring().try_push_batch(&pushed, 1, 3, write(13)), Ok((3, 3)));
            if w.pop_batch(&popped, 3, 2) == [13, 14] {
                assert_eq!(w.ring().try_push_batch(&pushed, 1, 2, write(16)), Ok((6, 2)));
            }
            // Relaxed: it only picks the runs that are about something.
            done.store(true, Relaxed);
        }
    });
    if done.load(Relaxed) {
        let popped = world.try_pop(&late, 2);
        assert!(matches!(popped, Ok(13..=15) | Err(PopError::Empty | PopError::Claimed(_))), "{popped:?}");
    }
    other.join().unwrap();
}

/// Whoever knows that a message in the middle of a batch was released knows what its reader did.
fn a_released_message_of_a_batch_was_read() {
    let world = World::new(2);
    let write = |i, slot| put(slot, 20 + i as u64);
    let pushed = world.ring().try_push_batch(&Cursor::new(), 1, 2, write);
    assert_eq!(pushed, Ok((0, 2)));
    let noted = Arc::new(UnsafeCell::new(0));
    let consumer = spawn(&world, {
        let noted = noted.clone();
        move |w| {
            let popped = w.ring().try_pop_batch(&Cursor::new(), 2, 2, |_, slot| {
                // SAFETY: read below only after the release; loom checks that.
                noted.with_mut(|n| unsafe { *n += get(slot) });
            });
            assert_eq!(popped, Ok(2));
        }
    });
    while !world.ring().is_released(1) {
        thread::yield_now();
    }
    // SAFETY: written before the release.
    assert_eq!(noted.with(|n| unsafe { *n }), 41);
    consumer.join().unwrap();
}

/// Two threads that share a cursor: whoever inherits a ticket takes what lies there whole, or sees nothing yet.
fn a_shared_cursor_only_says_where_to_look() {
    let world = World::new(2);
    let cursor = Arc::new(Cursor::new());
    let other = spawn(&world, {
        let cursor = cursor.clone();
        move |w| {
            let pushed = w.ring().try_push_batch(&Cursor::new(), 1, 2, |i, slot| put(slot, i as u64));
            assert_eq!(pushed, Ok((0, 2)));
            assert_eq!(w.try_pop(&cursor, 2), Ok(0));
        }
    });
    while cursor.ticket() == 0 {
        thread::yield_now();
    }
    let popped = world.try_pop(&cursor, 3);
    assert!(matches!(popped, Ok(1) | Err(PopError::Empty)), "{popped:?}");
    other.join().unwrap();
}

/// Whoever knows that a message was released knows what its reader did.
fn a_released_message_was_read() {
    let world = World::new(1);
    let noted = Arc::new(UnsafeCell::new(0));
    let pushed = Cursor::new();
    world.push(&pushed, 1, 5);
    let consumer = spawn(&world, {
        let noted = noted.clone();
        move |w| {
            let popped = w.ring().try_pop(&Cursor::new(), 2, |slot| {
                // SAFETY: read below only after the release; loom checks that.
                noted.with_mut(|n| unsafe { *n = get(slot) });
            });
            assert_eq!(popped, Ok(()));
        }
    });
    while !world.ring().is_released(0) {
        thread::yield_now();
    }
    // SAFETY: written before the release.
    assert_eq!(noted.with(|n| unsafe { *n }), 5);
    consumer.join().unwrap();
}

// ---- parking

/// A ring with a line on which its consumers sleep.
struct Parked {
    world: Arc<World>,
    not_empty: WaitLine,
    closed: AtomicBool,
}

impl Parked {
    fn new(capacity: usize) -> Arc<Parked> {
        Arc::new(Parked {
            world: World::new(capacity),
            not_empty: WaitLine::new(),
            closed: AtomicBool::new(false),
        })
    }

    fn send(&self, cursor: &Cursor, message: u64) {
        self.world.push(cursor, 1, message);
        self.not_empty.notify(1);
    }

    /// Takes a message, or `None` once the ring is closed and empty. Sleeps without a deadline: a wake-up that is
    /// lost is a deadlock.
    fn recv(&self, me: u16) -> Option<u64> {
        let cursor = Cursor::new();
        let attempt = || match self.world.try_pop(&cursor, me) {
            Ok(message) => Some(Some(message)),
            Err(_) => self.closed.load(Acquire).then_some(None),
        };
        let taken =
            self.not_empty.wait(&Pace::new(), cursor.ticket(), None, attempt, || None).expect("no deadline");
        if self.not_empty.has_sleepers() && self.world.ring().is_ready(&cursor) {
            self.not_empty.notify(1);
        }
        taken
    }
}

fn park(parked: &Arc<Parked>, me: u16) -> loom::thread::JoinHandle<Option<u64>> {
    let parked = parked.clone();
    loom::thread::spawn(move || parked.recv(me))
}

fn a_sleeper_is_woken() {
    let parked = Parked::new(1);
    let consumer = park(&parked, 2);
    parked.send(&Cursor::new(), 5);
    assert_eq!(consumer.join().unwrap(), Some(5));
}

fn two_sleepers_are_woken_by_two_messages() {
    let parked = Parked::new(2);
    let consumers = [2, 3].map(|me| park(&parked, me));
    let cursor = Cursor::new();
    parked.send(&cursor, 5);
    parked.send(&cursor, 6);
    let got = consumers.map(|c| c.join().unwrap());
    assert!(got == [Some(5), Some(6)] || got == [Some(6), Some(5)], "{got:?}");
}

fn closing_wakes_every_sleeper() {
    let parked = Parked::new(1);
    let consumers = [2, 3].map(|me| park(&parked, me));
    parked.closed.store(true, Release);
    parked.not_empty.notify_all();
    assert_eq!(consumers.map(|c| c.join().unwrap()), [None, None]);
}

macro_rules! models {
    ($($name:ident)*) => {
        /// Each model under its own name.
        mod model {
            $(
                #[test]
                fn $name() {
                    super::explore(super::$name);
                }
            )*
        }
    };
}

models! {
    one_producer_one_consumer_in_order
    two_producers_one_consumer
    one_producer_two_consumers
    a_batch_of_two_producers_messages
    a_batch_into_slots_of_two_consumers
    a_batch_stays_together
    a_released_batch_is_gone
    a_pop_behind_a_batch_in_flight
    a_push_of_a_laggard
    a_pop_of_a_laggard
    a_released_message_of_a_batch_was_read
    a_recovered_message_of_a_batch_was_read
    a_shared_cursor_only_says_where_to_look
    a_released_message_was_read
    a_producer_dies_with_its_claim
    a_producer_dies_before_it_publishes
    a_producer_dies_with_the_interior_published
    a_consumer_dies_with_its_claim
    a_consumer_dies_before_it_frees
    a_consumer_dies_with_the_interior_freed
    a_sweep_hands_the_slot_of_a_dead_reader_on
    three_recover_at_once
    a_batch_finished_before_the_death_is_delivered
    a_sleeper_is_woken
    two_sleepers_are_woken_by_two_messages
    closing_wakes_every_sleeper
    a_polled_end_gets_its_messages
    a_bridge_passes_a_wake_up_on
    a_bridge_that_is_stopped_ends
    chunks_pass_from_one_owner_to_the_next
    overlapping_claims_share_nothing
    a_collector_frees_only_what_is_lost
    what_a_collector_frees_can_be_used_again
    a_sweep_frees_what_the_dead_had
    cells_pass_from_one_message_to_the_next
    only_what_is_lost_is_brought_back
    a_message_that_comes_back_is_whole
    what_the_dead_had_goes_to_one
    a_follow_up_is_waited_for
    two_that_come_back_are_both_found
    one_that_comes_back_is_found_by_one
    a_sleeper_hears_of_what_comes_back
    one_of_two_knows_that_it_acknowledges_the_last
    the_last_acknowledgement_wakes_who_waits_for_it
    a_send_against_a_close
    one_of_two_closers_closes
    sends_of_two_threads_against_a_close
    a_batch_behind_a_claim_against_a_close
    a_withdrawn_claim_wakes_whoever_waits_for_it
}

/// Which model notices which weakened ordering, and as what.
const CONTROLS: &[(&str, fn(), &str)] = &[
    ("ring.push.look", one_producer_one_consumer_in_order, RACE),
    ("ring.push.interior", a_batch_into_slots_of_two_consumers, RACE),
    ("ring.push.publish", one_producer_one_consumer_in_order, RACE),
    ("ring.push.publish_interior", a_pop_of_a_laggard, RACE),
    ("ring.pop.look", one_producer_one_consumer_in_order, RACE),
    ("ring.pop.interior", a_batch_of_two_producers_messages, RACE),
    ("ring.pop.release", one_producer_one_consumer_in_order, RACE),
    ("ring.pop.release_interior", a_released_message_of_a_batch_was_read, RACE),
    ("ring.recover.interior", a_recovered_message_of_a_batch_was_read, RACE),
    ("ring.recover.header", a_sweep_hands_the_slot_of_a_dead_reader_on, RACE),
    ("ring.released", a_released_message_was_read, RACE),
    ("chunks.look", chunks_pass_from_one_owner_to_the_next, RACE),
    ("chunks.free", chunks_pass_from_one_owner_to_the_next, RACE),
    ("chunks.queue", what_a_collector_frees_can_be_used_again, RACE),
    ("chunks.take", what_a_collector_frees_can_be_used_again, RACE),
    ("light_fence", a_sleeper_is_woken, STUCK),
    ("heavy_fence", a_sleeper_is_woken, STUCK),
];

fn controls() -> impl Iterator<Item = &'static (&'static str, fn(), &'static str)> {
    let others = [cells::CONTROLS, closing::CONTROLS, pollable::CONTROLS, spsc::CONTROLS];
    CONTROLS.iter().chain(others.into_iter().flatten())
}

/// Loom's words for a payload that two use at once, and for a sleeper that nobody wakes.
const RACE: &str = "Causality violation";
const STUCK: &str = "deadlock";

/// The ordering that [`control`] weakens, if it is run by the test below.
const WEAKEN: &str = "RING_MODEL_WEAKEN";

/// A deadlock in a model aborts the process, so each control has one of its own.
#[test]
fn each_weakened_ordering_is_caught() {
    for name in ORDERINGS.iter().chain(ipc_queue::chunks::ORDERINGS).chain(ipc_queue::cells::ORDERINGS) {
        assert!(controls().any(|(control, ..)| control == name), "no control for {name}");
    }
    for (name, _, symptom) in controls() {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "control", "--nocapture"])
            .env(WEAKEN, name)
            .env("RUST_BACKTRACE", "0")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&child.stderr);
        assert!(!child.status.success(), "no model notices that {name} is weakened");
        assert!(text.contains(symptom), "{name} weakened: {symptom} expected, got {text}");
    }
}

/// One control; nothing unless the test above says which.
#[test]
fn control() {
    let Ok(weak) = std::env::var(WEAKEN) else { return };
    std::thread::spawn(|| {
        std::thread::sleep(std::time::Duration::from_secs(120));
        eprintln!("the watchdog barks");
        std::process::exit(86);
    });
    let (name, model, _) = controls().find(|(name, ..)| *name == weak).expect("a control of that name");
    // The same fence has a control in each file.
    let name = name.split_once(": ").map_or(*name, |(_, name)| name);
    weakened(name, || explore(*model));
}
