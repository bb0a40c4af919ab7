//! The operations, each with all that may be found when its process dies in it.

use super::harness::{Forerunner, Operation, Scene, without_straying};
use super::line::{Line, Message};
use super::memory::Memory;
use super::tracer::Parcel;
use ipc_queue::{Receiver, Sender};
use serde::de::DeserializeOwned;
use shm_core::segment::sweep_all;
use std::time::Duration;

type Tx = Sender<Message>;
type Rx = Receiver<Message>;

pub(crate) fn numbered(numbers: std::ops::Range<u32>) -> Vec<Message> {
    numbers.map(Message::new).collect()
}

pub(crate) fn unpacked<T: DeserializeOwned>(parcel: Parcel) -> T {
    parcel.unpack()
}

/// What is left in the queue tells what has happened; and the queue goes on.
pub(crate) fn what_is_left(line: Line, memory: &Memory, outcomes: &[(&'static str, &[u32])]) -> &'static str {
    let rest = line.rest();
    line.goes_on(memory);
    let outcome = outcomes.iter().find(|(_, numbers)| *numbers == rest);
    outcome.unwrap_or_else(|| panic!("{rest:?} is left")).0
}

#[test]
fn a_send_arrives_whole_or_not_at_all() {
    let send = Operation {
        name: "send",
        outcomes: &["not sent", "sent"],
        prepare: || {
            let line = Line::new().with(0..2);
            let parcel = Parcel::pack(line.tx());
            line.scene(parcel)
        },
        arrive: unpacked::<Tx>,
        operate: |tx| tx.send(Message::new(2)).expect("room"),
        check: |line, memory| what_is_left(line, memory, &[("not sent", &[0, 1]), ("sent", &[0, 1, 2])]),
    };
    send.die_everywhere();
}

#[test]
fn a_send_that_wakes_arrives_whole_or_not_at_all() {
    let send = Operation {
        name: "send to a sleeper",
        outcomes: &["not sent", "sent"],
        prepare: || {
            let line = Line::new();
            // Whoever has slept leaves the request to be woken to the next sender.
            line.rx().recv_timeout(Duration::from_millis(1)).expect_err("nothing was sent");
            let parcel = Parcel::pack(line.tx());
            line.scene(parcel)
        },
        arrive: unpacked::<Tx>,
        operate: |tx| tx.send(Message::new(0)).expect("room"),
        check: |line, memory| what_is_left(line, memory, &[("not sent", &[]), ("sent", &[0])]),
    };
    send.die_everywhere();
}

#[test]
fn a_receive_that_wakes_loses_its_message_or_nothing() {
    let recv = Operation {
        name: "recv from under a sleeper",
        outcomes: &["not taken", "taken"],
        prepare: || {
            let line = Line::new().with(0..5);
            let sent = line.tx().send_timeout(Message::new(5), Duration::from_millis(1));
            assert!(sent.expect_err("no room").is_timeout());
            let parcel = Parcel::pack(line.rx());
            line.scene(parcel)
        },
        arrive: unpacked::<Rx>,
        operate: |rx| assert_eq!(rx.recv().expect("there").number(), 0),
        check: |line, memory| {
            // Room for what the rest is told by.
            assert!(line.recv() <= 1);
            what_is_left(line, memory, &[("not taken", &[1, 2, 3, 4]), ("taken", &[2, 3, 4])])
        },
    };
    recv.die_everywhere();
}

#[test]
fn a_batch_arrives_whole_or_not_at_all() {
    let send_batch = Operation {
        name: "send_batch",
        outcomes: &["not sent", "sent"],
        prepare: || {
            let line = Line::new().with(0..1);
            let parcel = Parcel::pack(line.tx());
            line.scene(parcel)
        },
        arrive: unpacked::<Tx>,
        operate: |tx| tx.send_batch(numbered(1..4)).expect("room"),
        check: |line, memory| what_is_left(line, memory, &[("not sent", &[0]), ("sent", &[0, 1, 2, 3])]),
    };
    send_batch.die_everywhere();
}

#[test]
fn a_receive_loses_its_message_or_nothing() {
    let recv = Operation {
        name: "recv",
        outcomes: &["not taken", "taken"],
        prepare: || {
            let line = Line::new().with(0..2);
            let parcel = Parcel::pack(line.rx());
            line.scene(parcel)
        },
        arrive: unpacked::<Rx>,
        operate: |rx| assert_eq!(rx.recv().expect("there").number(), 0),
        check: |line, memory| what_is_left(line, memory, &[("not taken", &[0, 1]), ("taken", &[1])]),
    };
    recv.die_everywhere();
}

#[test]
fn a_receive_of_a_batch_loses_the_batch_or_nothing() {
    let recv_batch = Operation {
        name: "recv_batch",
        outcomes: &["not taken", "taken"],
        prepare: || {
            let line = Line::new().with(0..4);
            let parcel = Parcel::pack(line.rx());
            line.scene(parcel)
        },
        arrive: unpacked::<Rx>,
        operate: |rx| assert_eq!(rx.recv_batch(3).expect("there"), numbered(0..3)),
        check: |line, memory| what_is_left(line, memory, &[("not taken", &[0, 1, 2, 3]), ("taken", &[3])]),
    };
    recv_batch.die_everywhere();
}

/// How many are attached, or dead and not swept, beside this process.
fn others(memory: &Memory) -> usize {
    memory.attached() - 1
}

/// A queue whose only sender the victim has, or has yet to attach.
fn with_the_only_sender() -> Scene<Line> {
    let mut line = Line::new();
    let parcel = Parcel::pack(&line.tx.take());
    line.scene(parcel)
}

fn with_the_only_receiver() -> Scene<Line> {
    let mut line = Line::new();
    let parcel = Parcel::pack(&line.rx.take());
    line.scene(parcel)
}

/// The victim has a side, or is about to have it.
fn nobody_is_gone(line: &mut Line) {
    // A handle that is new asks the system.
    match &line.tx {
        Some(tx) => tx.clone().try_send(Message::new(0)).expect("a receiver is there"),
        None => assert!(line.rx().clone().try_recv().expect_err("nothing was sent").is_empty()),
    }
}

fn only_the_registry_tells(line: Line, memory: &Memory, outcomes: [&'static str; 2]) -> &'static str {
    let outcome = outcomes[others(memory)];
    line.ends(memory);
    outcome
}

enum Arrival<T> {
    OnItsWay(Parcel),
    There(T),
    Gone,
}

impl<T: DeserializeOwned> Arrival<T> {
    fn unpack(&mut self) {
        if let Self::OnItsWay(parcel) = std::mem::replace(self, Self::Gone) {
            *self = Self::There(parcel.unpack());
        }
    }
}

const ATTACHES: [&str; 2] = ["not attached", "attached"];

#[test]
fn a_process_that_dies_while_it_attaches_leaves_nothing_to_wait_for() {
    let attach = Operation {
        name: "attach a sender",
        outcomes: &ATTACHES,
        prepare: || Scene { watch: nobody_is_gone, ..with_the_only_sender() },
        arrive: Arrival::<Option<Tx>>::OnItsWay,
        operate: Arrival::unpack,
        check: |line, memory| only_the_registry_tells(line, memory, ATTACHES),
    };
    attach.die_everywhere();
    let attach = Operation {
        name: "attach a receiver",
        outcomes: &ATTACHES,
        prepare: || Scene { watch: nobody_is_gone, ..with_the_only_receiver() },
        arrive: Arrival::<Option<Rx>>::OnItsWay,
        operate: Arrival::unpack,
        check: |line, memory| only_the_registry_tells(line, memory, ATTACHES),
    };
    attach.die_everywhere();
}

#[test]
fn a_queue_goes_on_when_a_process_dies_while_it_attaches() {
    let attach = Operation {
        name: "attach one more sender",
        outcomes: &ATTACHES,
        prepare: || {
            let line = Line::new();
            let parcel = Parcel::pack(line.tx());
            line.scene(parcel)
        },
        arrive: Arrival::<Tx>::OnItsWay,
        operate: Arrival::unpack,
        check: |line, memory| {
            let outcome = ATTACHES[others(memory)];
            line.goes_on(memory);
            outcome
        },
    };
    attach.die_everywhere();
}

const DETACHES: [&str; 2] = ["attached", "detached"];

fn detached(line: Line, memory: &Memory) -> &'static str {
    let [attached, detached] = DETACHES;
    only_the_registry_tells(line, memory, [detached, attached])
}

#[test]
fn a_process_that_dies_while_it_drops_its_last_handle_is_gone() {
    let detach = Operation {
        name: "detach the last sender",
        outcomes: &DETACHES,
        prepare: with_the_only_sender,
        arrive: unpacked::<Option<Tx>>,
        operate: |tx| *tx = None,
        check: detached,
    };
    detach.die_everywhere();
    let detach = Operation {
        name: "detach the last receiver",
        outcomes: &DETACHES,
        prepare: with_the_only_receiver,
        arrive: unpacked::<Option<Rx>>,
        operate: |rx| *rx = None,
        check: detached,
    };
    detach.die_everywhere();
}

#[test]
fn a_queue_goes_on_when_a_process_dies_while_it_detaches() {
    let detach = Operation {
        name: "detach one sender of two",
        outcomes: &DETACHES,
        prepare: || {
            let line = Line::new();
            let parcel = Parcel::pack(&line.tx);
            line.scene(parcel)
        },
        arrive: unpacked::<Option<Tx>>,
        operate: |tx| *tx = None,
        check: |line, memory| {
            let outcome = DETACHES[1 - others(memory)];
            line.goes_on(memory);
            outcome
        },
    };
    detach.die_everywhere();
}

#[test]
fn a_process_that_exits_is_gone() {
    let exit = Operation {
        name: "exit with the last sender",
        outcomes: &["attached"],
        prepare: with_the_only_sender,
        arrive: unpacked::<Option<Tx>>,
        operate: |_| std::process::exit(0),
        check: detached,
    };
    exit.die_everywhere();
}

/// A queue in front of whose receivers a dead sender's batch lies, and behind it a message.
fn behind_an_unfinished_batch(parcel: fn(&Line) -> Parcel, changes: u32) -> Scene<Line> {
    let line = without_straying(|| {
        let sender = Forerunner::start("a sender of a batch", unpacked::<Tx>, |tx| {
            tx.send_batch(numbered(10..13)).expect("room");
        });
        let line = Line::new();
        sender.dies(Parcel::pack(line.tx()), changes)?;
        Some(line)
    });
    let line = line.with(0..1);
    let parcel = parcel(&line);
    line.scene(parcel)
}

/// A full queue of whose messages a dead receiver has taken the first three.
fn behind_a_lost_batch(parcel: fn(&Line) -> Parcel, changes: u32) -> Scene<Line> {
    let line = without_straying(|| {
        let receiver = Forerunner::start("a receiver of a batch", unpacked::<Rx>, |rx| {
            assert_eq!(rx.recv_batch(3).expect("there").len(), 3);
        });
        let line = Line::new().with(0..5);
        receiver.dies(Parcel::pack(line.rx()), changes)?;
        Some(line)
    });
    let parcel = parcel(&line);
    line.scene(parcel)
}

/// How far a forerunner gets: it has claimed its batch, or the memory of its queue has changed once more, or so often that
/// part of the batch is published.
const CLAIMED: u32 = 1;
const FREED_ONE: u32 = 2;
const PUBLISHED_ONE: u32 = 9;

const SWEEPS: [&str; 2] = ["not swept", "swept"];

/// Whether the forerunner was swept when the victim died, which was attached.
fn swept(memory: &Memory) -> &'static str {
    SWEEPS[2 - others(memory)]
}

#[test]
fn a_sweep_that_dies_is_repeated() {
    let sweep = Operation {
        name: "sweep up after a sender",
        outcomes: &SWEEPS,
        prepare: || behind_an_unfinished_batch(|line| Parcel::pack(line.tx()), PUBLISHED_ONE),
        arrive: unpacked::<Tx>,
        operate: |_| assert_eq!(sweep_all(), 1),
        check: |line, memory| {
            let outcome = swept(memory);
            assert_eq!(line.rest(), [0]);
            line.goes_on(memory);
            outcome
        },
    };
    sweep.die_everywhere();
    let sweep = Operation {
        name: "sweep up after a receiver",
        outcomes: &SWEEPS,
        prepare: || behind_a_lost_batch(|line| Parcel::pack(line.rx()), FREED_ONE),
        arrive: unpacked::<Rx>,
        operate: |_| assert_eq!(sweep_all(), 1),
        check: |line, memory| {
            let outcome = swept(memory);
            assert_eq!(line.rest(), [3, 4]);
            line.goes_on(memory);
            outcome
        },
    };
    sweep.die_everywhere();
}

#[test]
fn a_receiver_that_dies_while_it_repairs_loses_its_message_or_nothing() {
    let recv = Operation {
        name: "try_recv behind a dead sender's batch",
        outcomes: &["not taken", "taken"],
        prepare: || behind_an_unfinished_batch(|line| Parcel::pack(line.rx()), CLAIMED),
        arrive: unpacked::<Rx>,
        operate: |rx| assert_eq!(rx.try_recv().expect("there").number(), 0),
        check: |line, memory| what_is_left(line, memory, &[("not taken", &[0]), ("taken", &[])]),
    };
    recv.die_everywhere();
}

#[test]
fn a_send_that_repairs_arrives_whole_or_not_at_all() {
    let send = Operation {
        name: "try_send where a receiver died",
        outcomes: &["not sent", "sent"],
        prepare: || behind_a_lost_batch(|line| Parcel::pack(line.tx()), CLAIMED),
        arrive: unpacked::<Tx>,
        operate: |tx| tx.try_send(Message::new(5)).expect("room"),
        check: |line, memory| what_is_left(line, memory, &[("not sent", &[3, 4]), ("sent", &[3, 4, 5])]),
    };
    send.die_everywhere();
}

#[test]
fn a_process_that_dies_while_it_takes_a_dead_ones_index_leaves_a_queue_that_goes_on() {
    let attach = Operation {
        name: "attach as a dead one's successor",
        outcomes: &["the dead one's", "the successor's"],
        prepare: || {
            let scene = behind_an_unfinished_batch(|line| Parcel::pack(line.tx()), PUBLISHED_ONE);
            scene.memory.hint_at(2);
            scene
        },
        arrive: Arrival::<Tx>::OnItsWay,
        operate: Arrival::unpack,
        check: |line, memory| {
            assert_eq!(memory.highest_participant(), 2);
            let outcome = if memory.generation(2) == 1 { "the dead one's" } else { "the successor's" };
            assert_eq!(line.rest(), [0]);
            line.goes_on(memory);
            outcome
        },
    };
    attach.die_everywhere();
}
