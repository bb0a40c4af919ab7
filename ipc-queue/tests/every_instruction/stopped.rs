//! A process that is stopped in the middle of a claim is alive: nobody takes the claim from it, however long it stands
//! still, and it goes on where it was.

use super::common::watchdog;
use super::harness::alone;
use super::line::{CAPACITY, Line, Message};
use super::memory::Memory;
use super::tracer::{Parcel, Victim, is_permitted, mark, report};
use ipc_queue::{LeaseReceiver, Receiver, Sender, builder};
use shm_core::segment::sweep_all;
use std::time::Duration;

/// Many times as long as a waiter sleeps before it looks whether the owner of a claim is alive.
const LONG: Duration = Duration::from_millis(2200);

type Tx = Sender<Message>;
type Rx = Receiver<Message>;

/// A process that sends these messages at once, and then reports.
fn sender(numbers: &'static [u32]) -> Victim {
    Victim::start(|socket| {
        let tx: Tx = Parcel::receive(socket).unpack();
        mark();
        tx.send_batch(numbers.iter().copied().map(Message::new).collect::<Vec<_>>()).expect("room");
        report(socket, &true);
    })
}

/// A process that receives so many messages at once, and reports them.
fn receiver(count: usize) -> Victim {
    Victim::start(move |socket| {
        let rx: Rx = Parcel::receive(socket).unpack();
        mark();
        report(socket, &rx.recv_batch(count).expect("messages"));
    })
}

/// Stops the victim when it has changed the memory of its queue so often since its mark.
fn stop_after(victim: &mut Victim, parcel: Parcel, changes: u32) -> Memory {
    let mut memory = Memory::of(parcel.descriptor());
    victim.give(parcel);
    victim.meet();
    memory.has_changed();
    for _ in 0..changes {
        while !memory.has_changed() {
            assert!(victim.step(), "it is not done yet");
        }
    }
    victim.leave_stopped();
    memory
}

/// Nothing arrives for so long, and nobody is taken for dead.
fn stands_still(line: &Line, memory: &Memory, time: Duration) {
    let error = line.rx().recv_timeout(time).expect_err("the stopped process is alive");
    assert!(error.is_timeout(), "{error:?}");
    assert_eq!(sweep_all(), 0);
    assert_eq!(memory.attached(), 2);
}

/// The claim; or so much more that a part of its messages is written, or published.
const CLAIMED: u32 = 1;
const WRITTEN_IN_PART: u32 = 4;
const PUBLISHED_IN_PART: u32 = 9;

fn a_sender_stops(changes: u32) {
    let (_alone, _dog) = (alone(), watchdog());
    if !is_permitted() {
        return;
    }
    let mut victim = sender(&[1, 2, 3]);
    let line = Line::new().with(0..1);
    let memory = stop_after(&mut victim, Parcel::pack(line.tx()), changes);
    // There is room for one more, behind the claim.
    line.send(4);
    assert!(line.tx().try_send(Message::new(5)).expect_err("no room").is_full());
    assert_eq!(line.recv(), 0);
    stands_still(&line, &memory, LONG);
    victim.go_on();
    assert_eq!([(); 4].map(|()| line.recv()), [1, 2, 3, 4]);
    assert!(victim.reported::<bool>());
    victim.ends();
    line.goes_on(&memory);
}

#[test]
fn messages_wait_behind_the_claim_of_a_stopped_sender() {
    a_sender_stops(CLAIMED);
}

#[test]
fn messages_wait_behind_a_message_that_a_stopped_sender_is_writing() {
    a_sender_stops(WRITTEN_IN_PART);
}

#[test]
fn messages_wait_behind_a_batch_that_a_stopped_sender_is_publishing() {
    a_sender_stops(PUBLISHED_IN_PART);
}

fn a_receiver_stops(changes: u32) {
    let (_alone, _dog) = (alone(), watchdog());
    if !is_permitted() {
        return;
    }
    let mut victim = receiver(3);
    let line = Line::new().with(0..4);
    let memory = stop_after(&mut victim, Parcel::pack(line.rx()), changes);
    // Others go on behind what it has claimed, up to where they need its slots.
    assert_eq!(line.recv(), 3);
    line.send(4);
    assert!(line.tx().send_timeout(Message::new(5), LONG).expect_err("no room").is_timeout());
    assert_eq!(line.recv(), 4);
    stands_still(&line, &memory, Duration::from_millis(200));
    victim.go_on();
    // With room for as many as ever, once it has released its slots.
    (5..5 + CAPACITY).for_each(|number| line.send(number));
    (5..5 + CAPACITY).for_each(|number| assert_eq!(line.recv(), number));
    let received: Vec<Message> = victim.reported();
    assert!(received.into_iter().map(Message::number).eq(0..3));
    victim.ends();
    line.goes_on(&memory);
}

#[test]
fn nobody_else_gets_what_a_stopped_receiver_has_claimed() {
    a_receiver_stops(CLAIMED);
}

#[test]
fn nobody_else_gets_what_a_stopped_receiver_is_releasing() {
    a_receiver_stops(CLAIMED + 1);
}

/// A process that does one job, and reports it.
fn worker() -> Victim {
    Victim::start(|socket| {
        let rx: LeaseReceiver<u32> = Parcel::receive(socket).unpack();
        mark();
        report(socket, &rx.recv_lease().expect("there").ack());
    })
}

#[test]
fn a_receiver_that_is_stopped_at_what_came_back_hides_nothing_else() {
    let (_alone, _dog) = (alone(), watchdog());
    if !is_permitted() {
        return;
    }
    let mut victim = worker();
    let (tx, rx) = builder::<u32>().capacity(4).byte_budget(0).at_least_once().build().expect("a queue");
    tx.send_batch([0, 1]).expect("room");
    drop(rx.recv_leases(2).expect("both"));
    let _memory = stop_after(&mut victim, Parcel::pack(&rx), CLAIMED);
    let other = rx.try_recv_lease().expect("one of them").ack();
    assert!(rx.try_recv_lease().expect_err("no more").is_empty());
    victim.go_on();
    assert_eq!(victim.reported::<u32>() + other, 1);
    victim.ends();
    tx.wait_drained(Duration::ZERO).expect("all is done");
}

#[test]
fn a_receiver_is_not_told_the_end_while_a_stopped_one_is_taking_the_last_job() {
    let (_alone, _dog) = (alone(), watchdog());
    if !is_permitted() {
        return;
    }
    let mut victim = worker();
    // The slot of the next message is the one that the stopped process has claimed.
    let (tx, rx) = builder::<u32>().capacity(1).byte_budget(0).at_least_once().build().expect("a queue");
    tx.send(7).expect("room");
    let _memory = stop_after(&mut victim, Parcel::pack(&rx), CLAIMED);
    drop(tx);
    assert!(rx.try_recv_lease().expect_err("it is another one's").is_empty());
    let error = rx.recv_lease_timeout(Duration::from_millis(300)).expect_err("it is another one's");
    assert!(error.is_timeout(), "{error:?}");
    assert_eq!(rx.unfinished(), 1);
    victim.go_on();
    assert_eq!(victim.reported::<u32>(), 7);
    victim.ends();
    assert!(rx.recv_lease().expect_err("all is done").is_disconnected());
}
