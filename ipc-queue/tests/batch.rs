//! Batches of messages, within one process. One fact per test.
#![cfg(not(loom))]

mod common;

use common::watchdog;
use ipc_queue::{bounded, builder};
use std::time::Duration;

const SHORT: Duration = Duration::from_millis(2);

#[test]
fn a_batch_wakes_every_receiver_that_it_serves() {
    let _dog = watchdog();
    let (tx, rx) = bounded::<u8>(8).expect("a queue");
    let receivers: Vec<_> = (0..3)
        .map(|_| {
            let rx = rx.clone();
            std::thread::spawn(move || rx.recv().expect("received"))
        })
        .collect();
    // Nobody can say that a thread has fallen asleep. If it has not yet, the outcome is the same.
    std::thread::sleep(Duration::from_millis(20));
    tx.send_batch([1, 2, 3]).expect("sent");
    let sum: u8 = receivers.into_iter().map(|r| r.join().expect("no panic")).sum();
    assert_eq!(sum, 6);
}

#[test]
fn a_batch_arrives_in_order() {
    let _dog = watchdog();
    let (tx, rx) = bounded::<u32>(10).expect("a queue");
    let numbers: Vec<u32> = (0..1000).collect();
    let sender = std::thread::spawn(move || tx.send_batch(numbers));
    let mut got = Vec::new();
    while got.len() < 1000 {
        got.extend(rx.recv_batch(100).expect("received"));
    }
    assert!(got.into_iter().eq(0..1000));
    sender.join().expect("no panic").expect("sent");
}

#[test]
fn an_empty_batch_is_nothing() {
    let _dog = watchdog();
    let (tx, rx) = bounded::<u32>(1).expect("a queue");
    tx.send_batch([]).expect("nothing to send");
    assert!(rx.recv_batch(0).expect("nothing to receive").is_empty());
    assert!(rx.try_recv_batch(5).expect("nothing there").is_empty());
}

#[test]
fn a_batch_takes_at_most_what_was_asked_for() {
    let _dog = watchdog();
    let (tx, rx) = bounded::<u32>(200).expect("a queue");
    tx.send_batch((0..200).collect::<Vec<_>>()).expect("sent");
    assert_eq!(rx.recv_batch(3).expect("received"), [0, 1, 2]);
    assert_eq!(rx.try_recv_batch(usize::MAX).expect("received").len(), 197);
}

#[test]
fn a_failed_batch_says_what_was_sent() {
    let _dog = watchdog();
    let (tx, rx) = builder::<String>().capacity(8).byte_budget(0).build().expect("a queue");
    let batch = ["one".into(), "two".into(), "x".repeat(500), "four".into()];
    let error = tx.send_batch(batch).expect_err("the third is too long");
    assert!(error.is_too_large());
    assert_eq!(error.sent(), 2);
    assert_eq!(
        error.to_string(),
        "2 of 4 messages were sent: a message of 502 bytes is longer than the queue's limit of 240"
    );
    let unsent = error.into_unsent();
    assert_eq!((unsent.len(), unsent[0].len(), unsent[1].as_str()), (2, 500, "four"));
    assert_eq!(rx.recv_batch(8).expect("received"), ["one", "two"]);
}

#[test]
fn a_batch_to_nobody_comes_back() {
    let _dog = watchdog();
    let (tx, rx) = bounded::<u8>(8).expect("a queue");
    drop(rx);
    let error = tx.send_batch([1, 2]).expect_err("nobody there");
    assert!(error.is_disconnected());
    assert_eq!(error.into_unsent(), [1, 2]);
}

#[test]
fn a_batch_that_does_not_wait_sends_what_there_is_room_for() {
    let _dog = watchdog();
    let (tx, rx) = bounded::<u32>(100).expect("a queue");
    let error = tx.try_send_batch((0..130).collect::<Vec<_>>()).expect_err("full");
    assert!(error.is_full() && !error.is_timeout());
    assert_eq!(error.sent(), 100);
    assert_eq!(error.to_string(), "100 of 130 messages were sent: the queue is full");
    assert!(error.into_unsent().into_iter().eq(100..130));
    assert!(rx.try_recv_batch(1000).expect("received").into_iter().eq(0..100));
    tx.try_send_batch([1, 2]).expect("there is room");
    drop(rx);
    assert!(tx.try_send_batch([3]).expect_err("gone").is_disconnected());
}

#[test]
fn a_batch_with_a_deadline_hands_back_what_found_no_room() {
    let _dog = watchdog();
    let (tx, _rx) = bounded::<u32>(3).expect("a queue");
    let error = tx.send_batch_timeout([0, 1, 2, 3, 4], SHORT).expect_err("full");
    assert!(error.is_timeout() && !error.is_full());
    assert_eq!(error.sent(), 3);
    assert_eq!(error.into_unsent(), [3, 4]);
}

#[test]
fn a_batch_with_a_deadline_waits_for_room() {
    let _dog = watchdog();
    let (tx, rx) = bounded::<u32>(2).expect("a queue");
    let receiver = std::thread::spawn(move || rx.iter().map(|n| n.expect("received")).collect::<Vec<_>>());
    tx.send_batch_timeout((0..1000).collect::<Vec<_>>(), Duration::MAX).expect("sent");
    drop(tx);
    assert!(receiver.join().expect("no panic").into_iter().eq(0..1000));
}

#[test]
fn a_batch_received_with_a_deadline_is_what_came_in_time() {
    let _dog = watchdog();
    let (tx, rx) = bounded::<u32>(8).expect("a queue");
    assert_eq!(rx.recv_batch_timeout(8, SHORT).expect("nothing yet"), []);
    let sender = std::thread::spawn(move || tx.send(1));
    assert_eq!(rx.recv_batch_timeout(8, Duration::MAX).expect("received"), [1]);
    sender.join().expect("no panic").expect("sent");
    assert!(rx.recv_batch_timeout(8, SHORT).expect_err("gone").is_disconnected());
}

#[test]
fn large_messages_come_in_batches_too() {
    let _dog = watchdog();
    let (tx, rx) =
        builder::<Vec<u8>>().capacity(100).slot_bytes(1000).byte_budget(0).build().expect("a queue");
    assert_eq!(rx.max_message_len(), 1000);
    assert!(rx.try_recv_batch(100).expect("nothing yet").is_empty());
    let messages: Vec<_> = (0..100_u8).map(|i| vec![i; 900]).collect();
    tx.send_batch(messages.clone()).expect("sent");
    assert_eq!(rx.recv_batch(70).expect("received"), messages[..70]);
    assert_eq!(rx.try_recv_batch(70).expect("received"), messages[70..]);
}
