//! A process dies at each named crash point of the queue of one producer and one consumer, and its successor goes on.
#![cfg(all(feature = "crash-points", not(loom)))]

mod common;

use common::{Peer, Reporter, child as child_of_test, was_killed, watchdog};
use ipc_queue::spsc::ring::CRASH_POINTS;
use ipc_queue::{Consumer, Producer, RecvError, SendError, spsc};
use serde::{Deserialize, Serialize};
use shm_core::handle::{ReceiveSession, SendSession};

#[derive(Serialize, Deserialize)]
enum Orders {
    /// Sends numbers from 0 on, so many at once, and reports how many were sent.
    Send { producer: Producer<u64>, batch: u64 },
    /// Receives, so many at once, and reports what it got.
    Receive { consumer: Consumer<u64>, batch: usize },
}

#[test]
fn child() {
    child_of_test(|orders, reporter: &Reporter| match orders {
        Orders::Send { mut producer, batch } => {
            for start in (0..12).step_by(usize::try_from(batch).expect("small")) {
                producer.send_batch((start..start + batch).collect::<Vec<_>>()).expect("sent");
                reporter.report(&(start + batch));
            }
        }
        Orders::Receive { mut consumer, batch } => {
            for _ in 0..12 / batch {
                reporter.report(&consumer.recv_batch(batch).expect("received"));
            }
        }
    });
}

/// A second handle of the same end, which gives the first one's seat up.
fn handed_on<T: Serialize + for<'de> Deserialize<'de>>(end: &T) -> T {
    let session = SendSession::begin();
    let bytes = postcard::to_stdvec(end).expect("an end can be serialised");
    let descriptors = session.finish();
    let _session = ReceiveSession::begin(descriptors);
    postcard::from_bytes(&bytes).expect("arrived")
}

/// What the victim reports until it dies.
fn reports<R: for<'de> Deserialize<'de>>(orders: &Orders, point: &str, passage: u32) -> (Vec<R>, Peer) {
    let peer = Peer::start(orders, Some(&format!("{point}:{passage}")));
    let reports = peer.reports();
    (reports, peer)
}

fn producer_dies_at(point: &str, passage: u32, batch: u64) {
    let (mut tx, mut rx) = spsc(16).expect("a queue");
    let orders = Orders::Send { producer: handed_on(&tx), batch };
    let (sent, victim) = reports::<u64>(&orders, point, passage);
    drop(orders);
    assert!(was_killed(victim.wait()), "{point} was not reached");
    let sent = sent.last().copied().unwrap_or(0);
    while let Err(error) = tx.send(100) {
        // The system is not done with the dead one yet.
        assert!(matches!(error, SendError::Taken(100)), "{error:?}");
        std::thread::yield_now();
    }
    drop(tx);
    let got: Vec<u64> = rx.iter().map(|n| n.expect("received")).collect();
    let (last, before) = got.split_last().expect("at least the successor's");
    let before = before.iter().copied();
    assert_eq!(*last, 100);
    assert!(before.clone().eq(0..before.len() as u64), "{point}: {got:?}");
    let arrived = before.len() as u64;
    assert!(arrived == sent || arrived == sent + batch, "{point}: {sent} sent, {arrived} arrived");
}

fn consumer_dies_at(point: &str, passage: u32, batch: usize) {
    let (mut tx, mut rx) = spsc(16).expect("a queue");
    tx.send_batch((0..12).collect::<Vec<_>>()).expect("sent");
    let orders = Orders::Receive { consumer: handed_on(&rx), batch };
    let (got, victim) = reports::<Vec<u64>>(&orders, point, passage);
    drop(orders);
    assert!(was_killed(victim.wait()), "{point} was not reached");
    let got = got.concat();
    assert!(got.iter().copied().eq(0..got.len() as u64));
    drop(tx);
    let mut rest = Vec::new();
    loop {
        match rx.recv() {
            Ok(number) => rest.push(number),
            // The system is not done with the dead one yet.
            Err(RecvError::Taken) => std::thread::yield_now(),
            Err(RecvError::Disconnected) => break,
            Err(error) => panic!("{error}"),
        }
    }
    // What it was taking is lost as a whole, or not at all.
    let first = 12 - rest.len();
    assert!(rest.into_iter().eq(first as u64..12));
    assert!(first == got.len() || first == got.len() + batch, "{point}: {got:?}, then from {first}");
}

#[test]
fn a_successor_goes_on_after_a_death_at_each_point() {
    let _dog = watchdog();
    for point in CRASH_POINTS {
        for passage in [1, 2] {
            match point.split('.').nth(1) {
                Some("push") => [1, 3].into_iter().for_each(|batch| producer_dies_at(point, passage, batch)),
                Some("pop") => [1, 3].into_iter().for_each(|batch| consumer_dies_at(point, passage, batch)),
                _ => panic!("nobody thought of {point}"),
            }
        }
    }
}

#[test]
fn a_seat_that_was_taken_by_a_dying_process_is_free_again() {
    let _dog = watchdog();
    // The point is passed when the end arrives.
    producer_dies_at("spsc.seat.taken", 1, 1);
    consumer_dies_at("spsc.seat.taken", 1, 1);
}
