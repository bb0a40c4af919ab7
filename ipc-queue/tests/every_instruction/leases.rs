//! Operations of at-least-once queues: no message is lost with whoever had it.

use super::common::PATIENCE;
use super::harness::{Forerunner, Operation, Scene, without_straying};
use super::line::{CHUNK, Message};
use super::memory::Memory;
use super::operations::unpacked;
use super::tracer::Parcel;
use ipc_queue::{Lease, LeaseReceiver, LeaseSender, builder};
use shm_core::segment::sweep_all;
use std::time::Duration;

type Tx = LeaseSender<Message>;
type Rx = LeaseReceiver<Message>;

const CAPACITY: u32 = 4;
/// Messages that may be sent and not acknowledged.
const UNFINISHED: u32 = 6;

/// Both ends of an at-least-once queue.
struct Jobs {
    tx: Tx,
    rx: Rx,
}

impl Jobs {
    /// A queue that has been through some laps, with these messages.
    fn with(numbers: std::ops::Range<u32>) -> Self {
        Self::of(240, numbers)
    }

    /// Messages of more than so many bytes lie in chunks.
    fn of(slot_bytes: usize, numbers: std::ops::Range<u32>) -> Self {
        let builder = builder().capacity(CAPACITY as usize).slot_bytes(slot_bytes);
        let builder = builder.byte_budget(UNFINISHED as usize * CHUNK);
        let builder = builder.at_least_once().unfinished(UNFINISHED as usize);
        let (tx, rx) = builder.build().expect("a queue");
        let jobs = Self { tx, rx };
        (0..2 * CAPACITY + 1).for_each(|number| jobs.pass(number));
        numbers.for_each(|number| jobs.send(number));
        jobs
    }

    fn send(&self, number: u32) {
        self.tx.send_timeout(Message::new(number), PATIENCE).expect("room");
    }

    fn recv(&self) -> Lease<Message> {
        self.rx.recv_lease_timeout(PATIENCE).expect("a message")
    }

    fn pass(&self, number: u32) {
        self.send(number);
        assert_eq!(self.recv().ack().number(), number);
    }

    fn scene(self, parcel: Parcel) -> Scene<Self> {
        Scene { memory: Memory::of(parcel.descriptor()), survivors: self, parcel, watch: |_| () }
    }

    /// Finishes everything that is not acknowledged, and checks that the queue goes on. Returns the messages and how often each was
    /// delivered.
    fn finished(self, memory: &Memory) -> Vec<(u32, u32)> {
        let mut finished = Vec::new();
        while self.tx.unfinished() > 0 {
            let lease = self.recv();
            let deliveries = lease.delivery_count();
            finished.push((lease.ack().number(), deliveries));
        }
        self.tx.wait_drained(Duration::ZERO).expect("everything is acknowledged");
        self.goes_on();
        sweep_all();
        assert_eq!(memory.attached(), 1, "only this process is attached");
        finished.sort_unstable();
        finished
    }

    fn goes_on(&self) {
        (0..4 * UNFINISHED).for_each(|number| self.pass(number));
        let send = |number| self.tx.try_send(Message::new(number));
        (0..CAPACITY).for_each(|number| send(number).expect("every slot is usable"));
        assert!(send(0).expect_err("no more than that").is_full());
        let held: Vec<_> = (0..CAPACITY).map(|_| self.recv()).collect();
        (CAPACITY..UNFINISHED).for_each(|number| send(number).expect("every cell is usable"));
        assert!(send(0).expect_err("no more than that").is_full());
        let leases = held.into_iter().chain((CAPACITY..UNFINISHED).map(|_| self.recv()));
        assert!(leases.map(|lease| lease.ack().number()).eq(0..UNFINISHED));
        self.tx.wait_drained(Duration::ZERO).expect("everything is acknowledged");
    }
}

/// What was finished tells what has happened.
fn told(jobs: Jobs, memory: &Memory, outcomes: &[(&'static str, &[(u32, u32)])]) -> &'static str {
    let finished = jobs.finished(memory);
    let outcome = outcomes.iter().find(|(_, messages)| *messages == finished);
    outcome.unwrap_or_else(|| panic!("messages and deliveries: {finished:?}")).0
}

const NOT_SENT: (&str, &[(u32, u32)]) = ("not sent", &[(0, 1)]);
const SENT: (&str, &[(u32, u32)]) = ("sent", &[(0, 1), (1, 1)]);

fn a_send_into(name: &'static str, prepare: fn() -> Scene<Jobs>) {
    let send = Operation {
        name,
        outcomes: &["not sent", "sent"],
        prepare,
        arrive: unpacked::<Tx>,
        operate: |tx| tx.send(Message::new(1)).expect("room"),
        check: |jobs, memory| told(jobs, memory, &[NOT_SENT, SENT]),
    };
    send.die_everywhere();
}

#[test]
fn a_job_arrives_whole_or_not_at_all() {
    a_send_into("send a job", || {
        let jobs = Jobs::with(0..1);
        let parcel = Parcel::pack(&jobs.tx);
        jobs.scene(parcel)
    });
}

#[test]
fn a_large_job_arrives_whole_or_not_at_all() {
    a_send_into("send a large job", || {
        let jobs = Jobs::of(16, 0..1);
        let parcel = Parcel::pack(&jobs.tx);
        jobs.scene(parcel)
    });
}

#[test]
fn a_message_that_was_taken_on_lease_is_delivered_again() {
    let recv_lease = Operation {
        name: "recv_lease",
        outcomes: &["not taken", "taken"],
        prepare: || {
            let jobs = Jobs::with(0..2);
            let parcel = Parcel::pack(&jobs.rx);
            jobs.scene(parcel)
        },
        arrive: unpacked::<Rx>,
        operate: |rx| std::mem::forget(rx.recv_lease().expect("there")),
        check: |jobs, memory| {
            let outcomes: [(_, &[_]); 2] = [("not taken", &[(0, 1), (1, 1)]), ("taken", &[(0, 2), (1, 1)])];
            told(jobs, memory, &outcomes)
        },
    };
    recv_lease.die_everywhere();
}

/// A queue whose message 0 is to be taken on lease by the victim before its operation.
fn with_two_jobs(slot_bytes: usize) -> Scene<Jobs> {
    let jobs = Jobs::of(slot_bytes, 0..2);
    let parcel = Parcel::pack(&jobs.rx);
    jobs.scene(parcel)
}

fn leased(parcel: Parcel) -> (Rx, Option<Lease<Message>>) {
    let rx: Rx = parcel.unpack();
    let lease = rx.recv_lease().expect("there");
    (rx, Some(lease))
}

fn an_ack(name: &'static str, prepare: fn() -> Scene<Jobs>) {
    let ack = Operation {
        name,
        outcomes: &["delivered again", "acknowledged"],
        prepare,
        arrive: leased,
        operate: |(_, lease)| assert_eq!(lease.take().map(|lease| lease.ack().number()), Some(0)),
        check: |jobs, memory| {
            let outcomes: [(_, &[_]); 2] =
                [("delivered again", &[(0, 2), (1, 1)]), ("acknowledged", &[(1, 1)])];
            told(jobs, memory, &outcomes)
        },
    };
    ack.die_everywhere();
}

#[test]
fn a_message_is_acknowledged_or_delivered_again() {
    an_ack("ack", || with_two_jobs(240));
}

#[test]
fn a_large_message_is_acknowledged_or_delivered_again() {
    an_ack("ack a large job", || with_two_jobs(16));
}

#[test]
fn a_message_that_is_given_back_is_delivered_again() {
    let nack = Operation {
        name: "nack",
        outcomes: &["delivered again"],
        prepare: || with_two_jobs(240),
        arrive: leased,
        operate: |(_, lease)| lease.take().expect("taken before").nack(),
        check: |jobs, memory| told(jobs, memory, &[("delivered again", &[(0, 2), (1, 1)])]),
    };
    nack.die_everywhere();
}

#[test]
fn a_message_that_came_back_is_taken_or_stays() {
    let recv_lease = Operation {
        name: "recv_lease of a message that came back",
        outcomes: &["not taken", "taken"],
        prepare: || {
            let jobs = Jobs::with(0..2);
            jobs.recv().nack();
            let parcel = Parcel::pack(&jobs.rx);
            jobs.scene(parcel)
        },
        arrive: unpacked::<Rx>,
        operate: |rx| std::mem::forget(rx.recv_lease().expect("there")),
        check: |jobs, memory| {
            let outcomes: [(_, &[_]); 2] = [("not taken", &[(0, 2), (1, 1)]), ("taken", &[(0, 3), (1, 1)])];
            told(jobs, memory, &outcomes)
        },
    };
    recv_lease.die_everywhere();
}

/// How far a forerunner gets: it has claimed the slot of its message, and then taken the message.
const CLAIMED: u32 = 1;
const TAKEN: u32 = 2;

/// Two messages, the first of which somebody has died over; and how often that one is delivered then in all.
struct AfterDeath {
    jobs: Jobs,
    deliveries: u32,
}

fn after_a_dead_receiver(changes: u32, deliveries: u32) -> Scene<AfterDeath> {
    let jobs = without_straying(|| {
        let receiver = Forerunner::start("a receiver of a job", unpacked::<Rx>, |rx| {
            std::mem::forget(rx.recv_lease().expect("there"));
        });
        let jobs = Jobs::with(0..2);
        receiver.dies(Parcel::pack(&jobs.rx), changes)?;
        Some(jobs)
    });
    let parcel = Parcel::pack(&jobs.rx);
    let memory = Memory::of(parcel.descriptor());
    Scene { memory, survivors: AfterDeath { jobs, deliveries }, parcel, watch: |_| () }
}

fn a_sweep(name: &'static str, prepare: fn() -> Scene<AfterDeath>) {
    const OUTCOMES: [&str; 2] = ["not swept", "swept"];
    let sweep = Operation {
        name,
        outcomes: &OUTCOMES,
        prepare,
        arrive: unpacked::<Rx>,
        operate: |_| assert_eq!(sweep_all(), 1),
        check: |AfterDeath { jobs, deliveries }, memory| {
            let outcome = OUTCOMES[3 - memory.attached()];
            assert_eq!(jobs.finished(memory), [(0, deliveries), (1, 1)]);
            outcome
        },
    };
    sweep.die_everywhere();
}

#[test]
fn a_message_of_the_dead_comes_back_however_often_their_sweeper_dies() {
    a_sweep("sweep up after a receiver that claimed", || after_a_dead_receiver(CLAIMED, 1));
    a_sweep("sweep up after a receiver with a lease", || after_a_dead_receiver(TAKEN, 2));
}
