//! Closing a queue: what everybody is told, who is woken, and that nothing is left behind.
#![cfg(not(loom))]

mod common;
#[path = "common/wakes.rs"]
mod wakes;

use common::{Peer, Reporter, child as child_of_test, watchdog};
use ipc_queue::{
    BytesReceiver, BytesSender, Receiver, RecvBatchError, RecvError, RecvTimeoutError, SendBatchError,
    SendError, SendTimeoutError, Sender, TryRecvError, TrySendError, bounded, bounded_bytes, bounded_plain,
    builder, bytes_builder,
};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};
use wakes::{ROUNDS, assert_wakes, assert_woken, is_slow};

const SHORT: Duration = Duration::from_millis(2);
const LONG: Duration = Duration::from_secs(50);

/// What a child does.
#[derive(Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "one of them is made per child")]
enum Orders {
    /// Sends numbers until it cannot, one by one or so many at once; reports how many it has, and whether the queue was
    /// closed.
    SendUntilClosed(Sender<u64>, usize),
    /// Receives until it cannot; reports how many it has, and whether the queue was closed.
    RecvUntilClosed(Receiver<u64>),
    /// Fills each queue in turn; reports how many it has sent, when it is about to sleep over the next one, and when the
    /// queue was closed.
    FillEach(Vec<Sender<u64>>),
    /// As `FillEach`, receiving from queues in which there is nothing.
    DrainEach(Vec<Receiver<u64>>),
    /// Closes; reports whether it did it.
    Close(Sender<u64>),
    /// Reports 0 when it has begun, and then whether the queue is closed, whatever it was told before.
    IsClosed(Receiver<u64>, Receiver<()>),
    /// Sends one.
    Send(Sender<u64>),
}

#[test]
fn child() {
    child_of_test(obey);
}

fn obey(orders: Orders, reporter: &Reporter) {
    match orders {
        Orders::SendUntilClosed(tx, batch) => reporter.report(&send_until_closed(&tx, batch)),
        Orders::RecvUntilClosed(rx) => {
            let (mut got, mut next) = (0_u64, rx.recv());
            while next.is_ok() {
                got += 1;
                next = rx.recv();
            }
            reporter.report(&(got, next.is_err_and(|error| error.is_closed())));
        }
        Orders::FillEach(queues) => queues.iter().for_each(|tx| {
            let sent = (0..).take_while(|n| tx.try_send(*n).is_ok()).count() as u64;
            reporter.report(&(sent, false));
            reporter.report(&(0_u64, tx.send(sent).is_err_and(|error| error.is_closed())));
        }),
        Orders::DrainEach(queues) => queues.iter().for_each(|rx| {
            reporter.report(&(0_u64, false));
            reporter.report(&(0_u64, rx.recv().is_err_and(|error| error.is_closed())));
        }),
        Orders::Close(tx) => reporter.report(&(u64::from(tx.close()), true)),
        Orders::IsClosed(rx, word) => {
            reporter.report(&(0_u64, rx.is_closed()));
            word.recv().expect("a word");
            reporter.report(&(0_u64, rx.is_closed()));
        }
        Orders::Send(tx) => drop(tx.send(1)),
    }
}

/// How many messages were sent, and whether the queue was closed then.
fn send_until_closed(tx: &Sender<u64>, batch: usize) -> (u64, bool) {
    let mut sent = 0;
    loop {
        if batch == 1 {
            match tx.send(sent) {
                Ok(()) => sent += 1,
                Err(error) => return (sent, error.is_closed()),
            }
        } else {
            match tx.send_batch(vec![0; batch]) {
                Ok(()) => sent += batch as u64,
                Err(error) => return (sent + error.sent() as u64, error.is_closed()),
            }
        }
    }
}

/// What a child reports.
fn report(peer: &Peer) -> (u64, bool) {
    peer.report().expect("a report")
}

fn closed() -> (Sender<u32>, Receiver<u32>) {
    let (tx, rx) = bounded(4).expect("a queue");
    assert!(tx.close());
    (tx, rx)
}

#[test]
fn every_send_to_a_closed_queue_hands_the_value_back() {
    let (tx, _rx) = closed();
    assert!(matches!(tx.send(1), Err(SendError::Closed(1))));
    assert!(matches!(tx.try_send(1), Err(TrySendError::Closed(1))));
    assert!(matches!(tx.send_timeout(1, LONG), Err(SendTimeoutError::Closed(1))));
    assert!(matches!(tx.send_until(1, Instant::now()), Err(SendTimeoutError::Closed(1))));
    let batches = [tx.send_batch([1, 2]), tx.try_send_batch([1, 2]), tx.send_batch_timeout([1, 2], LONG)];
    for error in batches.map(|sent| sent.expect_err("closed")) {
        assert!(error.is_closed() && error.sent() == 0);
        assert_eq!(error.to_string(), "0 of 2 messages were sent: the queue is closed");
        assert_eq!(error.into_unsent(), [1, 2]);
    }
    assert!(tx.is_empty());
}

#[test]
fn a_closed_queue_of_plain_messages_hands_the_value_back() {
    let (tx, rx) = bounded_plain::<u32>(4).expect("a queue");
    assert!(rx.close());
    assert!(matches!(tx.send(1), Err(SendError::Closed(1))));
    assert!(rx.recv().expect_err("closed").is_closed());
}

#[test]
fn a_message_that_does_not_fit_a_slot_is_handed_back() {
    let (tx, rx) = bounded::<Vec<u8>>(4).expect("a queue");
    tx.send(vec![1; 100_000]).expect("sent");
    assert!(tx.close());
    assert_eq!(tx.send(vec![2; 100_000]).expect_err("closed").into_inner(), [2; 100_000]);
    assert_eq!(rx.recv().expect("sent before"), [1; 100_000]);
    assert!(rx.recv().expect_err("closed").is_closed());
}

#[test]
fn nothing_is_reserved_in_a_closed_queue_and_a_grant_is_handed_back() {
    let (tx, rx) = bounded_bytes(4).expect("a queue");
    tx.send(b"before").expect("sent");
    let grants = [0; 3].map(|_| tx.reserve(5).expect("memory"));
    assert!(rx.close());
    assert!(matches!(tx.reserve(5), Err(SendError::Closed(()))));
    assert!(matches!(tx.try_reserve(5), Err(TrySendError::Closed(()))));
    assert!(matches!(tx.reserve_timeout(5, LONG), Err(SendTimeoutError::Closed(()))));
    assert!(matches!(tx.send(b"x"), Err(SendError::Closed(()))));
    assert!(matches!(tx.try_send(b"x"), Err(TrySendError::Closed(()))));
    assert!(matches!(tx.send_timeout(b"x", LONG), Err(SendTimeoutError::Closed(()))));
    let [first, second, third] = grants;
    assert!(matches!(first.commit(), Err(SendError::Closed(()))));
    let TrySendError::Closed(mut grant) = second.try_commit().expect_err("closed") else { panic!() };
    grant.fill(7);
    let SendTimeoutError::Closed(grant) = third.commit_timeout(LONG).expect_err("closed") else { panic!() };
    assert_eq!(grant.len(), 5);
    assert_eq!(rx.recv().expect("sent before"), b"before");
    assert!(rx.recv().expect_err("closed").is_closed());
    assert!(rx.try_recv_ref().expect_err("closed").is_closed());
    assert!(rx.recv_ref_timeout(LONG).expect_err("closed").is_closed());
}

#[test]
fn what_was_sent_is_received_before_anybody_is_told() {
    let (tx, rx) = bounded(16).expect("a queue");
    tx.send_batch((0..8).collect::<Vec<u32>>()).expect("sent");
    assert!(tx.close());
    assert_eq!(rx.recv().expect("sent"), 0);
    assert_eq!(rx.try_recv().expect("sent"), 1);
    assert_eq!(rx.recv_timeout(SHORT).expect("sent"), 2);
    assert_eq!(rx.recv_until(Instant::now()).expect("sent"), 3);
    assert_eq!(rx.recv_batch(1).expect("sent"), [4]);
    assert_eq!(rx.try_recv_batch(1).expect("sent"), [5]);
    assert_eq!(rx.recv_batch_timeout(9, SHORT).expect("sent"), [6, 7]);

    assert!(matches!(rx.recv(), Err(RecvError::Closed)));
    assert!(matches!(rx.try_recv(), Err(TryRecvError::Closed)));
    assert!(matches!(rx.recv_timeout(LONG), Err(RecvTimeoutError::Closed)));
    assert!(matches!(rx.recv_until(Instant::now()), Err(RecvTimeoutError::Closed)));
    assert!(matches!(rx.recv_batch(1), Err(RecvBatchError::Closed)));
    assert!(matches!(rx.try_recv_batch(1), Err(RecvBatchError::Closed)));
    assert!(rx.recv_batch_timeout(1, LONG).expect_err("closed").is_closed());
    drop(tx);
}

#[test]
fn iterating_ends_when_a_closed_queue_is_empty() {
    let (tx, rx) = bounded(4).expect("a queue");
    tx.send_batch([1, 2]).expect("sent");
    assert!(tx.close());
    assert_eq!(rx.iter().map(|n| n.expect("sent")).collect::<Vec<u32>>(), [1, 2]);
    assert_eq!(rx.try_iter().count(), 0);
    assert_eq!(rx.into_iter().count(), 0);
}

#[test]
fn leased_messages_are_delivered_before_anybody_is_told() {
    let _dog = watchdog();
    let (tx, rx) = builder::<u32>().capacity(4).at_least_once().build().expect("a queue");
    tx.send_batch([1, 2]).expect("sent");
    assert!(tx.close() && rx.is_closed());
    assert!(matches!(tx.send(3), Err(SendError::Closed(3))));
    drop(rx.recv_lease().expect("sent before"));
    assert_eq!(rx.recv_lease().expect("given back").ack(), 1);
    assert_eq!(rx.recv_lease().expect("sent before").ack(), 2);
    assert!(rx.recv_lease().expect_err("closed").is_closed());
    assert!(rx.try_recv_lease().expect_err("closed").is_closed());
    assert_eq!(rx.leases().count(), 0);
    tx.wait_drained(LONG).expect("all is acknowledged");
}

#[test]
fn one_call_closes_and_every_handle_knows() {
    let (tx, rx) = bounded::<u32>(4).expect("a queue");
    let (tx2, rx2) = (tx.clone(), rx.clone());
    assert!(!tx.is_closed() && !rx.is_closed());
    assert!(rx2.close());
    assert!(!rx2.close() && !rx.close() && !tx.close());
    assert!(tx.is_closed() && tx2.is_closed() && rx.is_closed() && rx2.is_closed());
}

#[test]
fn a_closed_queue_says_closed_whoever_is_gone() {
    let (tx, rx) = closed();
    drop(rx);
    assert!(tx.send(1).expect_err("closed").is_closed());
    assert!(tx.is_closed());
    let (tx, rx) = closed();
    drop(tx);
    assert!(rx.recv().expect_err("closed").is_closed());
    assert!(rx.try_recv().expect_err("closed").is_closed());
}

#[test]
fn a_queue_whose_receivers_are_gone_can_be_closed() {
    let (tx, rx) = bounded(4).expect("a queue");
    drop(rx);
    assert!(tx.send(1).expect_err("gone").is_disconnected());
    assert!(tx.close());
    assert!(tx.send(1).expect_err("closed").is_closed());
}

#[test]
fn a_full_queue_says_closed() {
    let (tx, _rx) = bounded(1).expect("a queue");
    tx.send(1).expect("sent");
    assert!(tx.close());
    assert!(tx.try_send(2).expect_err("closed").is_closed());
    assert!(tx.send(2).expect_err("closed").is_closed());
}

#[test]
fn a_message_that_cannot_be_encoded_is_not_even_tried() {
    struct Bad;
    impl Serialize for Bad {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            panic!("no")
        }
    }
    impl<'de> Deserialize<'de> for Bad {
        fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
            Ok(Bad)
        }
    }
    let (tx, _rx) = bounded(1).expect("a queue");
    assert!(tx.close());
    assert!(tx.send(Bad).expect_err("closed").is_closed());
}

#[test]
fn handles_in_messages_outlive_the_closing_of_their_queue() {
    let _dog = watchdog();
    let (tx, rx) = bounded(4).expect("a queue");
    let (inner, answers) = bounded::<u32>(1).expect("a queue");
    tx.send(inner).expect("sent");
    assert!(tx.close());
    rx.recv().expect("sent before").send(7).expect("another queue");
    assert_eq!(answers.recv().expect("received"), 7);
}

#[test]
fn closing_wakes_a_sleeping_receiver() {
    let _dog = watchdog();
    let scene = || {
        let (tx, rx) = bounded::<u32>(1).expect("a queue");
        let closer = tx.clone();
        (move || (rx.recv(), tx), move || assert!(closer.close()))
    };
    assert_wakes(scene, |(received, _tx)| assert!(received.expect_err("closed").is_closed()));
}

#[test]
fn closing_wakes_a_sleeping_sender() {
    let _dog = watchdog();
    let scene = || {
        let (tx, rx) = bounded(1).expect("a queue");
        tx.send(1).expect("sent");
        let closer = rx.clone();
        (move || (tx.send(2), rx), move || assert!(closer.close()))
    };
    assert_wakes(scene, |(sent, _rx)| assert!(matches!(sent, Err(SendError::Closed(2)))));
}

#[test]
fn closing_wakes_a_sender_in_the_middle_of_its_batch() {
    let _dog = watchdog();
    let scene = || {
        let (tx, rx) = bounded(2).expect("a queue");
        let closer = rx.clone();
        (move || (tx.send_batch([1, 2, 3, 4, 5]), rx), move || assert!(closer.close()))
    };
    assert_wakes(scene, |(sent, rx): (Result<_, SendBatchError<i32>>, Receiver<i32>)| {
        let error = sent.expect_err("closed");
        assert!(error.is_closed());
        let received: Vec<_> = rx.iter().map(|n| n.expect("received")).collect();
        assert_eq!(error.sent(), received.len());
        assert_eq!([received, error.into_unsent()].concat(), [1, 2, 3, 4, 5]);
    });
}

#[test]
fn closing_wakes_whoever_waits_for_memory() {
    let _dog = watchdog();
    let scene = || {
        let (tx, rx): (Sender<Vec<u8>>, _) = builder().byte_budget(1 << 16).build().expect("a queue");
        tx.send(vec![1; 60_000]).expect("sent");
        let closer = rx.clone();
        (move || (tx.send(vec![2; 60_000]), rx), move || assert!(closer.close()))
    };
    assert_wakes(scene, |(sent, _rx)| {
        let error = sent.expect_err("closed");
        assert!(error.is_closed() && error.into_inner() == [2; 60_000]);
    });
}

#[test]
fn closing_wakes_whoever_waits_to_reserve_memory() {
    let _dog = watchdog();
    let scene = || {
        let (tx, rx): (BytesSender, BytesReceiver) =
            bytes_builder().byte_budget(1 << 16).build().expect("a queue");
        tx.send(&[1; 60_000]).expect("sent");
        let closer = rx.clone();
        (move || (tx.reserve(60_000).map(drop), rx), move || assert!(closer.close()))
    };
    assert_wakes(scene, |(reserved, _rx)| assert!(reserved.expect_err("closed").is_closed()));
}

#[test]
fn a_close_in_one_process_is_known_in_another() {
    let _dog = watchdog();
    let (tx, rx) = bounded::<u64>(4).expect("a queue");
    let (word, heard) = bounded(1).expect("a queue");
    let peer = Peer::start(&Orders::IsClosed(rx.clone(), heard), None);
    assert_eq!(report(&peer), (0, false));
    let closer = Peer::start(&Orders::Close(tx.clone()), None);
    assert_eq!(report(&closer), (1, true));
    word.send(()).expect("said");
    assert_eq!(report(&peer), (0, true));
    assert!(tx.is_closed() && rx.is_closed() && !rx.close());
    assert!(tx.send(1).expect_err("closed").is_closed());
    // Who arrives later finds it closed.
    let late = Peer::start(&Orders::SendUntilClosed(tx, 1), None);
    assert_eq!(report(&late), (0, true));
}

#[test]
fn closing_wakes_senders_in_other_processes() {
    let _dog = watchdog();
    let queues: Vec<_> = (0..ROUNDS).map(|_| bounded::<u64>(4).expect("a queue")).collect();
    let peer = Peer::start(&Orders::FillEach(queues.iter().map(|(tx, _)| tx.clone()).collect()), None);
    assert_woken(queues.iter().map(|(_, rx)| close_under(&peer, 4, || rx.close())));
}

#[test]
fn closing_wakes_receivers_in_other_processes() {
    let _dog = watchdog();
    let queues: Vec<_> = (0..ROUNDS).map(|_| bounded::<u64>(4).expect("a queue")).collect();
    let peer = Peer::start(&Orders::DrainEach(queues.iter().map(|(_, rx)| rx.clone()).collect()), None);
    assert_woken(queues.iter().map(|(tx, _)| close_under(&peer, 0, || tx.close())));
}

/// Closes the queue on which the peer is about to sleep, after it has moved so many messages. Returns whether that took
/// as long as if nobody woke it.
fn close_under(peer: &Peer, moved: u64, close: impl FnOnce() -> bool) -> bool {
    assert_eq!(report(peer), (moved, false));
    let woken = || {
        assert_eq!(report(peer), (0, true));
        Instant::now()
    };
    is_slow(|| assert!(close()), woken)
}

/// Two processes and two threads send, one by one and in batches, until somebody closes the queue in the middle of it all;
/// two processes and this one receive. As many arrive as were sent.
#[test]
fn what_was_sent_when_the_queue_was_closed_arrives() {
    let _dog = watchdog();
    for round in 0..20_u64 {
        let (tx, rx) = bounded::<u64>([1, 3, 64][(round % 3) as usize]).expect("a queue");
        let senders = [1, 3].map(|batch| Peer::start(&Orders::SendUntilClosed(tx.clone(), batch), None));
        let receiver = Peer::start(&Orders::RecvUntilClosed(rx.clone()), None);
        let threads = [1, 5].map(|batch| {
            let tx = tx.clone();
            std::thread::spawn(move || send_until_closed(&tx, batch))
        });
        let closing = 10 * round;
        let mut got = 0;
        while rx.recv().map_err(|error| assert!(error.is_closed())).is_ok() {
            got += 1;
            if got == closing + 1 {
                assert!(tx.close());
            }
        }
        let mut sent = 0;
        for (count, closed) in threads.map(|thread| thread.join().expect("no panic")) {
            assert!(closed);
            sent += count;
        }
        for (count, closed) in senders.iter().map(report) {
            assert!(closed);
            sent += count;
        }
        let (theirs, closed) = report(&receiver);
        assert!(closed);
        assert_eq!(got + theirs, sent, "in round {round}");
        assert!(rx.try_recv().expect_err("nothing is left").is_closed());
    }
}

/// Processes that die at named steps.
#[cfg(feature = "crash-points")]
mod crash {
    use super::*;
    use common::was_killed;

    #[test]
    fn a_closer_that_dies_has_closed_the_queue_and_sleepers_find_out() {
        let _dog = watchdog();
        let (tx, rx) = bounded::<u64>(1).expect("a queue");
        let sleeper = std::thread::spawn({
            let rx = rx.clone();
            move || rx.recv()
        });
        let closer = Peer::start(&Orders::Close(tx.clone()), Some("queue.close.marked"));
        assert!(was_killed(closer.wait()));
        assert!(sleeper.join().expect("no panic").expect_err("closed").is_closed());
        assert!(!tx.close() && tx.send(1).expect_err("closed").is_closed());
    }

    #[test]
    fn a_sender_that_died_with_a_claim_does_not_keep_receivers_waiting() {
        let _dog = watchdog();
        for point in ["ring.push.claimed", "ring.push.written"] {
            let (tx, rx) = bounded::<u64>(4).expect("a queue");
            let victim = Peer::start(&Orders::Send(tx.clone()), Some(point));
            assert!(was_killed(victim.wait()));
            tx.send(7).expect("there is room");
            assert!(tx.close());
            assert_eq!(rx.recv().expect("behind the dead one's"), 7);
            assert!(rx.recv().expect_err("nothing is left").is_closed());
            assert!(rx.is_empty());
        }
    }
}
