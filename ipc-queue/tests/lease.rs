//! At-least-once queues in one process: leases, acknowledgements, what comes back, and when everything is done.

#[path = "common/wakes.rs"]
mod wakes;

use ipc_queue::{LeaseReceiver, LeaseSender, RecvError, SendError, builder};
use std::thread;
use std::time::Duration;
use wakes::assert_wakes;

const SOON: Duration = Duration::from_millis(20);
const LONG: Duration = Duration::from_secs(60);

fn queue(capacity: usize) -> (LeaseSender<String>, LeaseReceiver<String>) {
    builder().capacity(capacity).at_least_once().build().expect("a queue")
}

#[test]
fn an_acknowledged_message_is_done() {
    let (tx, rx) = queue(4);
    tx.send("a".into()).expect("sent");
    let lease = rx.recv_lease().expect("received");
    assert_eq!((lease.as_str(), lease.delivery_count(), lease.is_redelivery()), ("a", 1, false));
    assert_eq!((tx.len(), tx.unfinished()), (0, 1));
    assert_eq!(lease.ack(), "a");
    assert_eq!((tx.len(), tx.unfinished()), (0, 0));
    assert!(rx.try_recv_lease().expect_err("nothing").is_empty());
}

#[test]
fn a_lease_that_is_dropped_or_refused_comes_back_before_other_messages() {
    let (tx, rx) = queue(4);
    tx.send_batch(["a".into(), "b".into()]).expect("sent");
    drop(rx.recv_lease().expect("received"));
    rx.recv_lease().expect("received").nack();
    let lease = rx.recv_lease().expect("received");
    assert_eq!((lease.as_str(), lease.delivery_count()), ("a", 3));
    lease.ack();
    let lease = rx.recv_lease().expect("received");
    assert_eq!((lease.as_str(), lease.delivery_count()), ("b", 1));
    lease.ack();
}

#[test]
fn a_panic_gives_the_message_back() {
    let (tx, rx) = queue(4);
    tx.send("a".into()).expect("sent");
    let there = rx.clone();
    thread::spawn(move || {
        let _lease = there.recv_lease().expect("received");
        panic!("on purpose");
    })
    .join()
    .expect_err("it panicked");
    assert_eq!(rx.recv_lease().expect("received").delivery_count(), 2);
}

#[test]
fn a_sleeping_receiver_gets_what_another_one_gives_back() {
    let scene = || {
        let (tx, rx) = queue(4);
        tx.send("a".into()).expect("sent");
        let lease = rx.recv_lease().expect("received");
        let sleep = move || (rx.recv_lease().expect("received").ack(), tx);
        (sleep, move || lease.nack())
    };
    assert_wakes(scene, |(message, _tx)| assert_eq!(message, "a"));
}

#[test]
fn both_bounds_hold() {
    let (tx, rx) = builder::<u32>().capacity(2).at_least_once().unfinished(3).build().expect("a queue");
    assert_eq!((tx.capacity(), rx.max_unfinished()), (2, 3));
    tx.send_batch([1, 2]).expect("sent");
    assert!(tx.try_send(3).expect_err("the ring is full").is_full());
    let first = rx.recv_lease().expect("received");
    tx.try_send(3).expect("room in the ring");
    let second = rx.recv_lease().expect("received");
    assert!(tx.is_full());
    assert!(tx.try_send(4).expect_err("three are unfinished").is_full());
    assert!(tx.send_timeout(4, SOON).expect_err("three are unfinished").is_timeout());
    first.ack();
    tx.try_send(4).expect("room again");
    second.ack();
    assert_eq!(rx.leases().take(2).map(|lease| lease.expect("received").ack()).collect::<Vec<_>>(), [3, 4]);
}

#[test]
fn a_sender_that_waits_for_acknowledgements_is_woken() {
    let scene = || {
        let (tx, rx) = builder::<u32>().capacity(1).at_least_once().unfinished(1).build().expect("a queue");
        tx.send(1).expect("sent");
        let lease = rx.recv_lease().expect("received");
        let sleep = move || (tx.send(2), rx);
        (sleep, move || assert_eq!(lease.ack(), 1))
    };
    assert_wakes(scene, |(sent, rx): (Result<_, _>, LeaseReceiver<u32>)| {
        sent.expect("sent");
        assert_eq!(rx.recv_lease().expect("received").ack(), 2);
    });
}

#[test]
fn waiting_for_the_end_waits_for_every_acknowledgement() {
    let (tx, rx) = queue(8);
    tx.wait_drained(Duration::ZERO).expect("nothing was sent");
    tx.send_batch(["a".into(), "b".into()]).expect("sent");
    assert!(tx.wait_drained(SOON).expect_err("two").is_timeout());
    rx.recv_lease().expect("received").ack();
    let last = rx.recv_lease().expect("received");
    assert!(tx.wait_drained(SOON).expect_err("one").is_timeout());
    let waiting = thread::spawn(move || tx.wait_drained(LONG));
    // Nobody can say that a thread has fallen asleep. If it has not yet, the outcome is the same.
    thread::sleep(SOON);
    last.ack();
    waiting.join().expect("no panic").expect("drained");
}

#[test]
fn a_follow_up_that_is_sent_before_the_acknowledgement_is_waited_for() {
    // Each job of a generation sends the next one before it is acknowledged.
    let (tx, rx) = builder::<u32>().capacity(64).at_least_once().build().expect("a queue");
    for round in 0..200 {
        tx.send(20).expect("sent");
        let workers: Vec<_> = (0..2)
            .map(|_| {
                let (tx, rx) = (tx.clone(), rx.clone());
                thread::spawn(move || {
                    while let Ok(lease) = rx.recv_lease_timeout(Duration::from_millis(5)) {
                        if let Some(next) = lease.checked_sub(1) {
                            tx.send(next).expect("sent");
                        }
                        lease.ack();
                    }
                })
            })
            .collect();
        tx.wait_drained(LONG).expect("drained");
        assert_eq!(rx.unfinished(), 0, "round {round}");
        workers.into_iter().for_each(|worker| worker.join().expect("no panic"));
    }
}

#[test]
fn waiting_for_the_end_fails_when_nobody_can_work() {
    let (tx, rx) = queue(4);
    tx.send("a".into()).expect("sent");
    drop(rx);
    assert!(tx.wait_drained(LONG).expect_err("nobody").is_disconnected());
    assert!(tx.send("b".into()).expect_err("nobody").is_disconnected());
}

#[test]
fn the_end_is_when_nothing_is_left_and_nothing_can_come_back() {
    let (tx, rx) = queue(4);
    tx.send_batch(["a".into(), "b".into()]).expect("sent");
    drop(tx);
    let kept = rx.recv_lease().expect("received");
    assert_eq!(rx.recv_lease().expect("received").ack(), "b");
    // Its own lease does not keep a process waiting.
    assert!(matches!(rx.recv_lease(), Err(RecvError::Disconnected)));
    kept.nack();
    assert_eq!(rx.recv_lease().expect("it came back").ack(), "a");
    assert!(rx.leases().next().is_none());
}

#[test]
fn messages_of_any_size_come_back_too() {
    let (tx, rx) =
        builder::<String>().capacity(4).byte_budget(1 << 20).at_least_once().build().expect("a queue");
    let large = "x".repeat(900_000);
    for _ in 0..10 {
        tx.send(large.clone()).expect("sent");
        assert!(tx.try_send(large.clone()).expect_err("the budget is used up").is_full());
        rx.recv_lease().expect("received").nack();
        let lease = rx.recv_lease().expect("received");
        assert_eq!((lease.len(), lease.delivery_count()), (900_000, 2));
        assert!(tx.try_send(large.clone()).expect_err("a lease keeps its memory").is_full());
        lease.ack();
    }
    assert!(tx.send("x".repeat(2 << 20)).expect_err("more than the budget").is_too_large());
    assert_eq!(tx.unfinished(), 0);
}

#[test]
fn a_message_with_handles_is_refused() {
    let (inner, _rx) = ipc_queue::bounded::<u32>(1).expect("a queue");
    let (tx, rx) = builder::<ipc_queue::Sender<u32>>().at_least_once().build().expect("a queue");
    match tx.send(inner) {
        Err(SendError::Encode { reason, .. }) => assert!(reason.is_handle()),
        other => panic!("{other:?}"),
    }
    assert!(rx.try_recv_lease().expect_err("nothing was sent").is_empty());
}

/// 13 cannot be deserialised.
#[derive(Debug, serde::Serialize)]
struct Odd(u8);

impl<'de> serde::Deserialize<'de> for Odd {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let value = u8::deserialize(from)?;
        if value == 13 { Err(serde::de::Error::custom("13")) } else { Ok(Self(value)) }
    }
}

#[test]
fn a_message_that_does_not_decode_is_an_error_once() {
    let (tx, rx) = builder::<Odd>().at_least_once().build().expect("a queue");
    tx.send_batch([Odd(13), Odd(1)]).expect("sent");
    match rx.recv_lease() {
        Err(RecvError::Decode(error)) => assert_eq!(error.bytes(), [13]),
        other => panic!("{:?}", other.map(|lease| lease.ack().0)),
    }
    assert_eq!(rx.recv_lease().expect("received").ack().0, 1);
    assert_eq!(tx.unfinished(), 0);
}

#[test]
fn bad_numbers_are_errors() {
    let build = |capacity, unfinished| {
        builder::<u32>()
            .capacity(capacity)
            .at_least_once()
            .unfinished(unfinished)
            .build()
            .expect_err("refused")
    };
    assert!(build(4, 3).is_unfinished());
    assert!(build(4, (1 << 21) + 1).is_unfinished());
    assert!(build(0, 4).is_capacity());
}

#[test]
fn many_threads_do_every_job() {
    let (tx, rx) = builder::<u64>().capacity(16).at_least_once().build().expect("a queue");
    let workers: Vec<_> = (0..3)
        .map(|worker| {
            let rx = rx.clone();
            thread::spawn(move || {
                let mut sum = 0;
                for (i, lease) in rx.leases().enumerate() {
                    let lease = lease.expect("received");
                    // Now and then one is not done.
                    if (i + worker) % 7 != 0 || lease.is_redelivery() {
                        sum += lease.ack()
                    } else {
                        drop(lease)
                    }
                }
                sum
            })
        })
        .collect();
    drop(rx);
    for i in 1..=20_000_u64 {
        tx.send(i).expect("sent");
    }
    tx.wait_drained(LONG).expect("drained");
    drop(tx);
    let sum: u64 = workers.into_iter().map(|worker| worker.join().expect("no panic")).sum();
    assert_eq!(sum, 20_000 * 20_001 / 2);
}

#[test]
fn a_batch_is_what_is_there_each_message_on_its_own_lease() {
    let (tx, rx) = builder::<u32>().capacity(8).at_least_once().build().expect("a queue");
    assert!(rx.try_recv_leases(4).expect("nothing").is_empty());
    assert!(rx.recv_leases_timeout(4, SOON).expect("nothing").is_empty());
    tx.send_batch([0, 1, 2, 3, 4]).expect("sent");
    rx.recv_lease().expect("received").nack();
    assert!(rx.recv_leases(0).expect("nothing asked for").is_empty());
    let mut batch = rx.recv_leases(4).expect("received");
    assert_eq!(batch.iter().map(|lease| **lease).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(batch.iter().map(|lease| lease.delivery_count()).collect::<Vec<_>>(), [2, 1, 1, 1]);
    assert_eq!(batch.remove(1).ack(), 1);
    drop(batch);
    let mut rest: Vec<_> = rx.try_leases().map(|lease| lease.expect("decoded").ack()).collect();
    rest.sort_unstable();
    assert_eq!(rest, [0, 2, 3, 4]);
    drop(tx);
    assert!(rx.recv_leases(4).expect_err("the end").is_disconnected());
    assert!(rx.try_recv_leases(4).expect_err("the end").is_disconnected());
}

#[test]
fn a_batch_ends_in_front_of_what_does_not_decode() {
    let (tx, rx) = builder::<Odd>().capacity(4).at_least_once().build().expect("a queue");
    tx.send_batch([Odd(1), Odd(13), Odd(2)]).expect("sent");
    let batch = rx.recv_leases(3).expect("received");
    assert_eq!(batch.into_iter().map(|lease| lease.ack().0).collect::<Vec<_>>(), [1]);
    assert!(matches!(rx.recv_leases(3), Err(RecvError::Decode(error)) if error.bytes() == [13]));
    assert_eq!(rx.recv_lease().expect("received").ack().0, 2);
    assert_eq!(tx.unfinished(), 0);
}

#[test]
fn a_batch_that_finds_no_room_says_what_it_has_sent() {
    let (tx, rx) = builder::<u32>().capacity(2).at_least_once().build().expect("a queue");
    let error = tx.try_send_batch([1, 2, 3]).expect_err("no room");
    assert!(error.is_full());
    assert_eq!((error.sent(), error.into_unsent()), (2, vec![3]));
    let error = tx.send_batch_timeout([4], SOON).expect_err("no room");
    assert!(error.is_timeout());
    assert_eq!(rx.try_leases().map(|lease| lease.expect("received").ack()).collect::<Vec<_>>(), [1, 2]);
    tx.send_batch_timeout([5, 6], LONG).expect("room");
}

#[test]
fn a_closed_queue_is_emptied_and_its_leases_come_back() {
    let (tx, rx) = queue(4);
    tx.send_batch(["a".into(), "b".into()]).expect("sent");
    let kept = rx.recv_lease().expect("received");
    assert!(tx.close());
    assert!(tx.send("c".into()).expect_err("closed").is_closed());
    assert_eq!(rx.recv_lease().expect("sent before").ack(), "b");
    assert!(matches!(rx.recv_lease(), Err(RecvError::Closed)));
    kept.nack();
    assert_eq!(rx.recv_lease().expect("it came back").ack(), "a");
    assert!(matches!(rx.recv_lease(), Err(RecvError::Closed)) && rx.leases().next().is_none());
    tx.wait_drained(Duration::ZERO).expect("all is done");
}

#[test]
fn a_lease_may_be_used_by_any_thread() {
    fn any_thread<T: Send + Sync + std::panic::UnwindSafe>(_: &T) {}
    let (tx, rx) = queue(4);
    tx.send("a".into()).expect("sent");
    let lease = rx.recv_lease().expect("received");
    any_thread(&lease);
    let there = thread::spawn(move || lease.ack());
    assert_eq!(there.join().expect("no panic"), "a");
    assert_eq!(rx.unfinished(), 0);
}
