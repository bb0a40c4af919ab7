//! Handles in messages: they arrive and work, and whoever dies on the way takes one message's handles with it at most.
#![cfg(not(loom))]

mod common;

use common::{Peer, Reporter, child as child_of_test, watchdog};
use ipc_queue::{
    DecodeError, PlainSender, Receiver, RecvBatchError, RecvError, SendError, SendTimeoutError, Sender,
    bounded, bounded_plain, builder,
};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use shm_core::handle::SendSession;
use std::time::Duration;

/// A message with all sorts of handles.
#[derive(Debug, Serialize, Deserialize)]
enum Parcel {
    Number(u64),
    Tx(Sender<u64>),
    Rx(Receiver<u64>),
    Plain(PlainSender<u64>),
    Many(Vec<Sender<u64>>),
    /// Of the very queue that the message lies in, beside a witness.
    Own(Sender<Parcel>, Sender<u64>),
    OwnReceiver(Receiver<Parcel>, Sender<u64>),
}

type Parcels = (Sender<Parcel>, Receiver<Parcel>);

fn parcels(capacity: usize) -> Parcels {
    bounded(capacity).expect("a queue")
}

/// What a child does.
#[derive(Serialize, Deserialize)]
enum Orders {
    /// Uses every parcel that comes, until the end.
    Use(Receiver<Parcel>),
    /// Sends so many times a sender of the second queue, and then the number 7; reports its process id and stays.
    Send { parcels: Sender<Parcel>, inner: Sender<u64>, count: usize },
    /// Takes parcels until the end, and reports how many descriptors it had open before and after.
    TakeAndCount(Receiver<Parcel>),
    /// Sends parcels of which each is answered before the next; reports descriptors before and after.
    SendAndCount { parcels: Sender<Parcel>, answers: Receiver<u64>, count: usize },
    /// Sends one, and ends.
    SendAndEnd(Sender<Parcel>, Sender<u64>),
    /// Receives once and uses what came.
    Take(Receiver<Parcel>),
    /// With room for few descriptors: sends until it is refused, reports how many, then sends once more at each word.
    Fill { parcels: Sender<Parcel>, words: Receiver<u64> },
}

#[test]
fn child() {
    child_of_test(obey);
}

fn obey(orders: Orders, reporter: &Reporter) {
    match orders {
        Orders::Use(parcels) => {
            for parcel in &parcels {
                use_parcel(parcel.expect("received"));
            }
        }
        Orders::Send { parcels, inner, count } => {
            for _ in 0..count {
                parcels.send(Parcel::Tx(inner.clone())).expect("sent");
            }
            drop(inner);
            parcels.send(Parcel::Number(7)).expect("sent");
            reporter.report(&std::process::id());
            loop {
                std::thread::park();
            }
        }
        Orders::SendAndEnd(parcels, inner) => parcels.send(Parcel::Tx(inner)).expect("sent"),
        Orders::TakeAndCount(parcels) => {
            use_parcel(parcels.recv().expect("received"));
            let before = open_descriptors();
            let taken = parcels.iter().map(|parcel| use_parcel(parcel.expect("received"))).count();
            reporter.report(&(taken, before, open_descriptors()));
        }
        Orders::SendAndCount { parcels, answers, count } => {
            let send = || {
                let (tx, rx) = bounded(1).expect("a queue");
                parcels.send(Parcel::Tx(tx)).expect("sent");
                assert_eq!(rx.recv().expect("received"), 7);
                answers.recv().expect("received");
            };
            send();
            let before = open_descriptors();
            (0..count).for_each(|_| send());
            reporter.report(&(before, open_descriptors()));
        }
        Orders::Take(parcels) => {
            if let Ok(parcel) = parcels.recv() {
                use_parcel(parcel);
            }
        }
        Orders::Fill { parcels, words } => {
            let limit = rustix::process::Rlimit { current: Some(80), maximum: Some(80) };
            rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).expect("lowered");
            let (inner, _rx) = bounded(1).expect("a queue");
            let mut sent = 0_u64;
            let refused = loop {
                match parcels.send(Parcel::Tx(inner.clone())) {
                    Ok(()) => sent += 1,
                    Err(refused) => break refused,
                }
            };
            let text = refused.to_string();
            assert!(matches!(&refused, SendError::Encode { reason, .. } if reason.is_handle()), "{text}");
            assert!(matches!(refused.into_inner(), Parcel::Tx(_)), "the value comes back");
            reporter.report(&(sent, text));
            words.recv().expect("a word");
            parcels.send(Parcel::Tx(inner)).expect("there is room again");
            reporter.report(&(1_u64, String::new()));
            loop {
                std::thread::park();
            }
        }
    }
}

/// Sends 7 with every sender, checks that every receiver has an 8.
fn use_parcel(parcel: Parcel) {
    match parcel {
        Parcel::Number(number) => assert_eq!(number, 7),
        Parcel::Tx(tx) => tx.send(7).expect("sent"),
        Parcel::Rx(rx) => assert_eq!(rx.recv().expect("received"), 8),
        Parcel::Plain(tx) => tx.send(7).expect("sent"),
        Parcel::Many(all) => all.iter().for_each(|tx| tx.send(7).expect("sent")),
        Parcel::Own(own, tx) => {
            own.send(Parcel::Number(7)).expect("sent");
            tx.send(7).expect("sent");
        }
        Parcel::OwnReceiver(own, tx) => {
            assert!(own.is_empty());
            tx.send(7).expect("sent");
        }
    }
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("procfs").count()
}

/// Waits until every thread of the process is stopped.
fn wait_until_stopped(id: u32) {
    let is_stopped = |task: std::io::Result<std::fs::DirEntry>| {
        let stat = task.and_then(|task| std::fs::read_to_string(task.path().join("stat")));
        // The state is behind the name in parentheses.
        stat.is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')))
    };
    while !std::fs::read_dir(format!("/proc/{id}/task")).expect("procfs").all(is_stopped) {
        std::thread::yield_now();
    }
}

/// What became of a message with handles.
#[track_caller]
fn error(received: Result<Parcel, RecvError>) -> DecodeError {
    match received {
        Err(RecvError::Decode(error)) => error,
        other => panic!("{other:?}"),
    }
}

/// Whether nobody holds a sender any more; blocks until that is so.
fn is_let_go(rx: &Receiver<u64>) -> bool {
    matches!(rx.recv(), Err(RecvError::Disconnected))
}

#[test]
fn handles_of_every_kind_arrive_in_a_child_and_work() {
    let _dog = watchdog();
    let (parcels, there) = parcels(8);
    let (tx, rx) = bounded(8).expect("a queue");
    let (plain, plain_rx) = bounded_plain(1).expect("a queue");
    let (own_tx, own_rx) = bounded(4).expect("a queue");
    let child = Peer::start(&Orders::Use(there), None);
    parcels.send(Parcel::Tx(tx.clone())).expect("sent");
    assert_eq!(rx.recv().expect("received"), 7);
    parcels.send(Parcel::Rx(own_rx)).expect("sent");
    own_tx.send(8).expect("sent");
    parcels.send(Parcel::Plain(plain)).expect("sent");
    assert_eq!(plain_rx.recv().expect("received"), 7);
    parcels.send(Parcel::Many(vec![tx.clone(); 3])).expect("sent");
    parcels.send(Parcel::Own(parcels.clone(), tx)).expect("sent");
    assert_eq!(rx.iter().map(|n| n.expect("received")).collect::<Vec<_>>(), [7; 4]);
    drop(parcels);
    assert!(child.wait().success());
}

#[test]
fn handles_arrive_in_their_own_process() {
    let _dog = watchdog();
    let (parcels, there) = parcels(8);
    let (tx, rx) = bounded(8).expect("a queue");
    parcels.send(Parcel::Many(vec![tx.clone(), tx.clone()])).expect("sent");
    parcels.try_send(Parcel::OwnReceiver(there.clone(), tx.clone())).expect("sent");
    let patience = Duration::from_secs(9);
    parcels.send_timeout(Parcel::Number(7), patience).expect("sent");
    parcels.send_timeout(Parcel::Own(parcels.clone(), tx), patience).expect("sent");
    use_parcel(there.recv().expect("received"));
    let Parcel::OwnReceiver(own, tx) = there.try_recv().expect("received") else { panic!("another") };
    use_parcel(own.recv_timeout(patience).expect("received"));
    drop((own, tx));
    use_parcel(there.recv_timeout(patience).expect("received"));
    drop(parcels);
    use_parcel(there.recv().expect("received"));
    assert!(matches!(there.recv(), Err(RecvError::Disconnected)));
    assert_eq!(rx.iter().map(|n| n.expect("received")).collect::<Vec<_>>(), [7; 3]);
}

#[test]
fn batches_carry_handles() {
    let _dog = watchdog();
    let (parcels, there) = parcels(70);
    let (tx, rx) = bounded(200).expect("a queue");
    let batch = || (0..30).flat_map(|_| [Parcel::Tx(tx.clone()), Parcel::Number(7)]).collect::<Vec<_>>();
    parcels.send_batch(batch()).expect("sent");
    there.recv_batch(64).expect("received").into_iter().for_each(use_parcel);
    let child = Peer::start(&Orders::Use(there), None);
    parcels.send_batch(batch()).expect("sent");
    drop((tx, parcels));
    assert_eq!(rx.iter().map(|n| n.expect("received")).collect::<Vec<_>>(), [7; 60]);
    assert!(child.wait().success());
}

#[test]
fn a_queue_of_handles_passes_values_on_through_a_child() {
    let _dog = watchdog();
    let (parcels, there) = parcels(1);
    let child = Peer::start(&Orders::Use(there), None);
    // The queue has one slot: senders wait for it.
    let all: Vec<_> = (0..100).map(|_| bounded::<u64>(1).expect("a queue")).collect();
    for (tx, _) in &all {
        parcels.send(Parcel::Tx(tx.clone())).expect("sent");
    }
    assert!(all.iter().all(|(_, rx)| rx.recv().expect("received") == 7));
    drop(parcels);
    assert!(child.wait().success());
}

#[test]
fn a_sender_that_is_killed_takes_its_handles_along_and_the_queue_goes_on() {
    let _dog = watchdog();
    let (parcels, there) = parcels(8);
    let (tx, rx) = bounded(1).expect("a queue");
    let child = Peer::start(&Orders::Send { parcels, inner: tx, count: 2 }, None);
    let _: u32 = child.report().expect("a report");
    child.kill();
    let first = error(there.recv());
    assert!(first.is_handle() && first.is_sender_gone() && !first.is_temporary());
    assert_eq!(first.bytes()[0], 1, "the message's own bytes");
    assert!(first.to_string().ends_with("the process that sent the handles has ended"), "{first}");
    let again = there.redeem(first).expect_err("still gone");
    assert!(again.is_sender_gone());
    match there.recv_batch(8) {
        Err(RecvBatchError::Decode { received, failed }) => {
            assert!(matches!(received[..], [Parcel::Number(7)]));
            assert!(failed.len() == 1 && failed[0].is_sender_gone());
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(there.recv(), Err(RecvError::Disconnected)));
    assert!(is_let_go(&rx));
}

#[test]
fn a_sender_that_ends_well_takes_its_handles_along() {
    let _dog = watchdog();
    let (parcels, there) = parcels(8);
    let (tx, _rx) = bounded(1).expect("a queue");
    assert!(Peer::start(&Orders::SendAndEnd(parcels, tx), None).wait().success());
    assert!(error(there.recv()).is_sender_gone());
    assert!(matches!(there.recv(), Err(RecvError::Disconnected)));
}

#[test]
fn the_handles_of_a_stopped_sender_wait_for_another_try() {
    let _dog = watchdog();
    let (parcels, there) = parcels(8);
    let (tx, rx) = bounded(1).expect("a queue");
    let child = Peer::start(&Orders::Send { parcels, inner: tx, count: 1 }, None);
    let id: u32 = child.report().expect("a report");
    let pid = Pid::from_raw(i32::try_from(id).expect("a process id")).expect("a process id");
    kill_process(pid, Signal::STOP).expect("stopped");
    wait_until_stopped(id);
    let stopped = error(there.recv());
    assert!(stopped.is_handle() && stopped.is_temporary(), "{stopped}");
    assert!(matches!(there.recv().expect("the queue goes on"), Parcel::Number(7)));
    kill_process(pid, Signal::CONT).expect("continued");
    // Longer than it takes to give up what nobody wants.
    assert!(rx.recv_timeout(Duration::from_millis(2500)).expect_err("the message is kept").is_timeout());
    use_parcel(there.redeem(stopped).expect("fetched"));
    assert_eq!(rx.recv().expect("received"), 7);
    assert!(is_let_go(&rx));
    child.kill();
}

#[test]
fn an_error_that_is_given_up_gives_the_handles_up() {
    let _dog = watchdog();
    let (parcels, there) = parcels(8);
    let (tx, rx) = bounded(1).expect("a queue");
    let child = Peer::start(&Orders::Send { parcels, inner: tx, count: 1 }, None);
    let id: u32 = child.report().expect("a report");
    let pid = Pid::from_raw(i32::try_from(id).expect("a process id")).expect("a process id");
    kill_process(pid, Signal::STOP).expect("stopped");
    wait_until_stopped(id);
    drop(error(there.recv()));
    kill_process(pid, Signal::CONT).expect("continued");
    assert!(is_let_go(&rx));
    child.kill();
}

#[test]
fn a_message_that_was_not_sent_holds_nothing() {
    let _dog = watchdog();
    let (parcels, there) = parcels(1);
    let (tx, rx) = bounded(1).expect("a queue");
    parcels.send(Parcel::Number(7)).expect("sent");
    let late = parcels.send_timeout(Parcel::Tx(tx), Duration::from_millis(1)).expect_err("full");
    assert!(matches!(&late, SendTimeoutError::Timeout(Parcel::Tx(_))));
    assert!(rx.clone().try_recv().expect_err("nothing").is_empty(), "the value still holds it");
    let full = parcels.try_send_batch([late.into_inner()]).expect_err("full");
    drop(full);
    assert!(rx.clone().try_recv().expect_err("nothing").is_disconnected());
    drop(there);
}

#[test]
fn handles_count_for_the_length_of_a_message() {
    let _dog = watchdog();
    let (tx, _rx) =
        builder::<Sender<u64>>().capacity(1).slot_bytes(32).byte_budget(0).build().expect("a queue");
    let (inner, _inner_rx) = bounded(1).expect("a queue");
    let error = tx.send(inner).expect_err("a claim has 40 bytes");
    assert!(matches!(error, SendError::TooLarge { len, limit: 32, .. } if len > 40));
}

#[test]
fn too_many_waiting_handles_are_refused_until_some_are_fetched() {
    let _dog = watchdog();
    let (parcels, there) = parcels(100);
    let (words, heard) = bounded(1).expect("a queue");
    let child = Peer::start(&Orders::Fill { parcels, words: heard }, None);
    let (sent, text): (u64, String) = child.report().expect("a report");
    assert_eq!(sent, 20, "a quarter of 80");
    assert!(text.contains("1 descriptors beside the 20"), "{text}");
    assert!(matches!(there.recv().expect("received"), Parcel::Tx(_)));
    words.send(0).expect("sent");
    let (more, _): (u64, String) = child.report().expect("a report");
    assert_eq!(more, 1);
}

#[test]
fn what_is_left_in_a_queue_without_receivers_is_given_up() {
    let _dog = watchdog();
    let (parcels, there) = parcels(4);
    let (tx, rx) = bounded(1).expect("a queue");
    parcels.send(Parcel::Tx(tx)).expect("sent");
    drop(there);
    assert!(is_let_go(&rx));
    drop(parcels);
}

#[test]
fn a_queue_does_not_live_on_its_own_sender() {
    let _dog = watchdog();
    let (parcels, there) = parcels(4);
    let (tx, rx) = bounded(1).expect("a queue");
    parcels.send(Parcel::Own(parcels.clone(), tx)).expect("sent");
    drop((parcels, there));
    assert!(is_let_go(&rx));
}

#[test]
fn a_queue_does_not_live_on_its_own_receiver() {
    let _dog = watchdog();
    let (parcels, there) = parcels(4);
    let (tx, rx) = bounded(1).expect("a queue");
    parcels.send(Parcel::OwnReceiver(there, tx)).expect("sent");
    assert!(is_let_go(&rx));
    assert!(parcels.send(Parcel::Number(7)).expect_err("nobody will receive it").is_disconnected());
}

#[test]
fn a_receiver_that_waits_in_its_own_queue_works_when_it_is_received() {
    let _dog = watchdog();
    let (parcels, there) = parcels(4);
    let (tx, rx) = bounded(1).expect("a queue");
    parcels.send(Parcel::OwnReceiver(there.clone(), tx)).expect("sent");
    let Parcel::OwnReceiver(own, tx) = there.recv().expect("received") else { panic!("another message") };
    drop(there);
    parcels.send(Parcel::Number(7)).expect("sent");
    use_parcel(own.recv().expect("received"));
    drop((own, tx));
    assert!(parcels.send(Parcel::Number(7)).expect_err("gone").is_disconnected());
    assert!(is_let_go(&rx));
}

#[test]
fn a_message_outlives_the_handles_of_its_sender() {
    let _dog = watchdog();
    let (parcels, there) = parcels(4);
    let (tx, rx) = bounded(1).expect("a queue");
    parcels.send(Parcel::Tx(tx)).expect("sent");
    drop(parcels);
    // Longer than it takes to give up what nobody wants.
    assert!(rx.recv_timeout(Duration::from_millis(2500)).expect_err("kept").is_timeout());
    use_parcel(there.recv().expect("received"));
    assert_eq!(rx.recv().expect("received"), 7);
    assert!(matches!(there.recv(), Err(RecvError::Disconnected)));
}

#[test]
fn a_message_is_apart_from_what_its_thread_sends_otherwise() {
    let _dog = watchdog();
    let (parcels, there) = parcels(4);
    let (tx, rx) = bounded(1).expect("a queue");
    let session = SendSession::begin();
    parcels.send(Parcel::Tx(tx)).expect("sent");
    assert!(session.finish().is_empty());
    use_parcel(there.recv().expect("received"));
    assert_eq!(rx.recv().expect("received"), 7);
}

#[test]
fn a_message_gets_no_descriptors_of_what_its_thread_receives_otherwise() {
    let _dog = watchdog();
    let (inner, _inner_rx) = bounded::<u64>(1).expect("a queue");
    let session = SendSession::begin();
    let bytes = postcard::to_stdvec(&inner).expect("in a session");
    let descriptors = session.finish();
    // A message that says of itself that it has no handles, and names one.
    let (tx, rx) = bounded::<(u8, u64, u32)>(1).expect("a queue");
    let (side, layout, descriptor): (u8, u64, u32) = postcard::from_bytes(&bytes).expect("a handle's bytes");
    tx.send((side, layout, descriptor)).expect("sent");
    let message = rx.recv().expect("received");
    let _session = shm_core::handle::ReceiveSession::begin(descriptors);
    let (tx, rx) = bounded::<Liar>(1).expect("a queue");
    tx.send(Liar { bytes: message, read: None }).expect("sent");
    assert!(matches!(rx.recv(), Err(RecvError::Decode(_))));
    postcard::from_bytes::<Sender<u64>>(&bytes).expect("the descriptor is still there");
}

/// Writes the bytes of a handle, and reads a handle.
struct Liar {
    bytes: (u8, u64, u32),
    #[expect(dead_code, reason = "it does not get there")]
    read: Option<Sender<u64>>,
}

impl Serialize for Liar {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.bytes.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Liar {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read = Some(Sender::deserialize(deserializer)?);
        Ok(Self { bytes: (0, 0, 0), read })
    }
}

#[test]
fn a_thousand_handles_leave_nothing_behind() {
    let _dog = watchdog();
    let (parcels, there) = parcels(16);
    let (answers, answered) = bounded(16).expect("a queue");
    let sender = Peer::start(&Orders::SendAndCount { parcels, answers: answered, count: 1000 }, None);
    let (forward, last) = bounded(16).expect("a queue");
    let receiver = Peer::start(&Orders::TakeAndCount(last), None);
    for parcel in &there {
        forward.send(parcel.expect("received")).expect("sent");
        answers.send(0).expect("sent");
    }
    let (before, after): (usize, usize) = sender.report().expect("a report");
    assert_eq!(before, after, "descriptors of the sender before and after");
    drop(forward);
    let (taken, before, after): (usize, usize, usize) = receiver.report().expect("a report");
    assert_eq!(taken, 1000);
    assert_eq!(before, after, "descriptors of the receiver before and after");
}

#[cfg(feature = "crash-points")]
mod crash {
    use super::*;
    use common::was_killed;

    /// Receivers that die at a step with a parcel in hand: its handles are given up though its sender lives, and another
    /// receiver too.
    fn receiver_dies_at(point: &str) {
        let (parcels, there) = parcels(8);
        let (tx, rx) = bounded(1).expect("a queue");
        parcels.send(Parcel::Tx(tx)).expect("sent");
        let victim = Peer::start(&Orders::Take(there.clone()), Some(point));
        assert!(was_killed(victim.wait()), "{point} was not reached");
        // What it had in hand before it released the slot is repaired when the slot is needed.
        for _ in 0..8 {
            parcels.send(Parcel::Number(7)).expect("sent");
        }
        match rx.recv() {
            Err(RecvError::Disconnected) => {}
            other => panic!("{point}: {other:?}"),
        }
        there.recv_batch(8).expect("received").into_iter().for_each(use_parcel);
    }

    #[test]
    fn the_handles_of_a_receiver_that_died_with_them_are_given_up() {
        let _dog = watchdog();
        let points = [
            "queue.parcel.in_hand",
            "ring.pop.released",
            "broker.asked",
            "broker.received",
            "broker.acknowledged",
        ];
        points.into_iter().for_each(receiver_dies_at);
    }

    #[test]
    fn a_sender_that_dies_at_any_step_costs_its_own_messages_only() {
        let _dog = watchdog();
        let points =
            [("broker.deposited", 0), ("queue.parcel.pushed", 1), ("broker.lent", 1), ("broker.gave", 2)];
        for (point, arrive) in points {
            let (parcels, there) = parcels(8);
            let (tx, rx) = bounded(4).expect("a queue");
            let orders = Orders::Send { parcels: parcels.clone(), inner: tx, count: 1 };
            let victim = Peer::start(&orders, Some(point));
            drop(orders);
            if arrive == 0 {
                assert!(was_killed(victim.wait()), "{point}");
            } else if point == "queue.parcel.pushed" {
                assert!(was_killed(victim.wait()), "{point}");
                assert!(error(there.recv()).is_sender_gone());
            } else if point == "broker.lent" {
                // Killed between the descriptors' leaving and their arrival: they have arrived.
                match there.recv() {
                    Ok(parcel) => use_parcel(parcel),
                    received => assert!(error(received).is_sender_gone()),
                }
                assert!(was_killed(victim.wait()), "{point}");
            } else {
                use_parcel(there.recv().expect("acknowledged"));
                assert!(was_killed(victim.wait()), "{point}");
            }
            parcels.send(Parcel::Number(7)).expect("sent");
            drop(parcels);
            there.iter().for_each(|parcel| use_parcel(parcel.expect("received")));
            assert!(rx.iter().all(|number| number.expect("received") == 7));
        }
    }
}
