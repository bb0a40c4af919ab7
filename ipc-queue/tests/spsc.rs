//! The queue of one producer and one consumer: order, bounds, one end in one place, and what a death or a fork leaves.
#![cfg(not(loom))]
#![allow(unsafe_code, reason = "forks")]

mod common;

use common::{Peer, Reporter, child as child_of_test, was_killed, watchdog};
use ipc_queue::{
    Consumer, Producer, RecvError, SendTimeoutError, TryRecvError, TrySendError, bounded, builder, spsc,
    spsc_plain,
};
use rustix::process::{Pid, WaitOptions, waitpid};
use serde::{Deserialize, Serialize};
use shm_core::handle::{ReceiveSession, SendSession};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// What a child does.
#[derive(Serialize, Deserialize)]
enum Orders {
    /// Sends these numbers; then ends, or reports and stays.
    Send { producer: Producer<u64>, from: u64, to: u64, stay: bool },
    /// Receives so many and reports each; then ends, or reports and stays.
    Receive { consumer: Consumer<u64>, count: u64, stay: bool },
}

#[test]
fn child() {
    child_of_test(|orders, reporter: &Reporter| match orders {
        Orders::Send { mut producer, from, to, stay } => {
            for number in from..to {
                producer.send(number).expect("sent");
            }
            linger(reporter, stay);
        }
        Orders::Receive { mut consumer, count, stay } => {
            for _ in 0..count {
                reporter.report(&consumer.recv().expect("received"));
            }
            linger(reporter, stay);
        }
    });
}

fn linger(reporter: &Reporter, stay: bool) {
    if stay {
        reporter.report(&u64::MAX);
        loop {
            std::thread::park();
        }
    }
}

fn queue(capacity: usize) -> (Producer<u64>, Consumer<u64>) {
    spsc(capacity).expect("a queue")
}

/// An end as it travels.
fn pack(end: &impl Serialize) -> (Vec<u8>, Vec<OwnedFd>) {
    let session = SendSession::begin();
    let bytes = postcard::to_stdvec(end).expect("an end can be serialised");
    (bytes, session.finish())
}

fn unpack<T: for<'de> Deserialize<'de>>(
    (bytes, descriptors): (Vec<u8>, Vec<OwnedFd>),
) -> postcard::Result<T> {
    let _session = ReceiveSession::begin(descriptors);
    postcard::from_bytes(&bytes)
}

// ---- one process

#[test]
fn messages_arrive_in_order_through_queues_of_every_small_capacity() {
    for capacity in [1, 2, 3, 5, 7, 8] {
        let (mut tx, mut rx) = queue(capacity);
        let mut next = 0;
        for round in 0..40 {
            let burst = 1 + round % capacity;
            (0..burst as u64).for_each(|i| tx.try_send(next + i).expect("there is room"));
            (0..burst as u64).for_each(|i| assert_eq!(rx.try_recv().expect("received"), next + i));
            next += burst as u64;
        }
    }
}

#[test]
fn full_and_empty_are_exact() {
    for capacity in [1, 3, 64] {
        let (mut tx, mut rx) = queue(capacity);
        assert!(matches!(rx.try_recv(), Err(TryRecvError::Empty)));
        for i in 0..capacity as u64 {
            assert_eq!(tx.len() as u64, i);
            tx.try_send(i).expect("there is room");
        }
        assert!(tx.is_full() && rx.is_full());
        assert!(matches!(tx.try_send(9), Err(TrySendError::Full(9))));
        assert_eq!(rx.try_recv().expect("received"), 0);
        tx.try_send(9).expect("one place is free");
        assert!(tx.try_send(10).is_err());
    }
}

/// Random operations against a `VecDeque`.
#[test]
fn it_behaves_like_a_bounded_queue() {
    let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = move |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    for capacity in [1, 2, 3, 10, 100] {
        let (mut tx, mut rx) = spsc_plain::<[u64; 2]>(capacity).expect("a queue");
        let mut model = VecDeque::new();
        let mut next = 0;
        for _ in 0..3000 {
            match random(4) {
                0 => {
                    let sent = tx.try_send([next; 2]).is_ok();
                    assert_eq!(sent, model.len() < capacity);
                    if sent {
                        model.push_back([next; 2]);
                        next += 1;
                    }
                }
                1 => assert_eq!(rx.try_recv().ok(), model.pop_front()),
                2 => {
                    let batch: Vec<_> = (next..next + random(150)).map(|i| [i; 2]).collect();
                    let room = capacity - model.len();
                    let sent = match tx.try_send_batch(batch.clone()) {
                        Ok(()) => batch.len(),
                        Err(error) => {
                            assert!(error.is_full());
                            let sent = error.sent();
                            assert_eq!(error.into_unsent(), batch[sent..]);
                            sent
                        }
                    };
                    assert_eq!(sent, batch.len().min(room));
                    model.extend(&batch[..sent]);
                    next += sent as u64;
                }
                _ => {
                    let max = usize::try_from(random(150)).expect("small");
                    let taken = rx.try_recv_batch(max).expect("received");
                    let expected: Vec<_> = model.drain(..max.min(model.len())).collect();
                    assert_eq!(taken, expected);
                }
            }
            assert_eq!((tx.len(), rx.len()), (model.len(), model.len()));
        }
    }
}

#[test]
fn two_threads_pass_every_message_once_and_in_order() {
    let _dog = watchdog();
    for capacity in [1, 2, 64] {
        let (mut tx, mut rx) = spsc_plain::<u64>(capacity).expect("a queue");
        let sender = std::thread::spawn(move || (0..20_000).try_for_each(|i| tx.send(i)));
        (0..20_000).for_each(|i| assert_eq!(rx.recv().expect("received"), i));
        sender.join().expect("no panic").expect("sent");
        assert!(rx.recv().expect_err("nothing left").is_disconnected());
    }
}

#[test]
fn two_threads_pass_batches_of_every_size() {
    let _dog = watchdog();
    let (mut tx, mut rx) = queue(50);
    let sender = std::thread::spawn(move || {
        let mut next = 0;
        for size in (0..200).cycle().take(1000) {
            tx.send_batch((next..next + size).collect::<Vec<_>>()).expect("sent");
            next += size;
        }
        next
    });
    let mut got = Vec::new();
    while let Ok(batch) = rx.recv_batch(70) {
        assert!((1..=70).contains(&batch.len()));
        got.extend(batch);
    }
    assert!(got.into_iter().eq(0..sender.join().expect("no panic")));
}

#[test]
fn timed_operations_hand_back_and_time_out() {
    let (mut tx, mut rx) = queue(1);
    let soon = Duration::from_millis(5);
    assert!(rx.recv_timeout(soon).expect_err("empty").is_timeout());
    assert!(rx.recv_until(Instant::now() + soon).expect_err("empty").is_timeout());
    assert!(rx.recv_batch_timeout(3, soon).expect("no error").is_empty());
    tx.send_timeout(1, soon).expect("there is room");
    assert!(matches!(tx.send_timeout(2, soon), Err(SendTimeoutError::Timeout(2))));
    assert!(tx.send_until(3, Instant::now() + soon).expect_err("full").is_timeout());
    assert_eq!(tx.send_batch_timeout([4, 5], soon).expect_err("full").into_unsent(), [4, 5]);
    assert_eq!(rx.recv_timeout(soon).expect("received"), 1);
}

#[test]
fn a_message_that_is_too_long_uses_no_slot() {
    let (mut tx, mut rx) = builder::<String>().capacity(1).slot_bytes(20).build_spsc().expect("a queue");
    let long = "x".repeat(30);
    assert_eq!(tx.send(long.clone()).expect_err("too long").into_inner(), long);
    tx.send("fits".into()).expect("sent");
    assert_eq!(rx.recv().expect("received"), "fits");
    assert_eq!(tx.max_message_len(), 20);
}

#[test]
fn capacities_out_of_range_are_refused() {
    assert!(spsc::<u64>(0).expect_err("no room").is_capacity());
    assert!(spsc_plain::<u64>((1 << 20) + 1).expect_err("too much room").is_capacity());
}

#[test]
fn what_was_sent_outlives_the_producer_and_nothing_else_follows() {
    let (mut tx, mut rx) = queue(4);
    tx.send_batch([1, 2, 3]).expect("sent");
    drop(tx);
    assert_eq!(rx.iter().map(|n| n.expect("received")).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(matches!(rx.try_recv(), Err(TryRecvError::Disconnected)));
}

#[test]
fn a_producer_learns_that_the_consumer_was_dropped() {
    let _dog = watchdog();
    let (mut tx, rx) = queue(1);
    tx.send(1).expect("sent");
    let blocked = std::thread::spawn(move || tx.send(2));
    drop(rx);
    let error = blocked.join().expect("no panic").expect_err("nobody there");
    assert!(error.is_disconnected());
    assert_eq!(error.into_inner(), 2);
}

#[test]
fn messages_with_handles_arrive() {
    let _dog = watchdog();
    let (mut tx, mut rx) = spsc::<(u32, Producer<u64>)>(2).expect("a queue");
    let (reply, mut answers) = queue(1);
    tx.send((20, reply)).expect("sent");
    let (number, mut reply) = rx.recv().expect("received");
    reply.send(u64::from(number) + 1).expect("sent");
    assert_eq!(answers.recv().expect("received"), 21);
}

// ---- one end in one place

#[test]
fn an_end_that_was_given_up_works_where_it_arrives_and_not_here() {
    let (mut tx, mut rx) = queue(3);
    tx.send_batch([1, 2]).expect("sent");
    assert_eq!(rx.recv().expect("received"), 1);
    let mut there: Producer<u64> = unpack(pack(&tx)).expect("arrived");
    let mut rx_there: Consumer<u64> = unpack(pack(&rx)).expect("arrived");
    assert!(matches!(tx.send(3), Err(ipc_queue::SendError::Taken(3))));
    assert!(matches!(rx.recv(), Err(RecvError::Taken)));
    assert!(tx.send_batch([3]).expect_err("elsewhere").is_taken());
    there.send_batch([3, 4]).expect("goes on where the other stopped");
    assert!(there.try_send(5).expect_err("three are in").is_full());
    assert_eq!(rx_there.recv_batch(9).expect("received"), [2, 3, 4]);
}

#[test]
fn an_end_comes_back_from_where_it_was() {
    let (mut tx, mut rx) = queue(3);
    for i in 0..10 {
        tx.send(2 * i).expect("sent");
        let mut there: Producer<u64> = unpack(pack(&tx)).expect("arrived");
        there.send(2 * i + 1).expect("sent");
        drop(there);
        assert_eq!(rx.recv_batch(2).expect("received"), [2 * i, 2 * i + 1]);
    }
}

#[test]
fn an_end_whose_journey_failed_works_again() {
    let (tx, mut rx) = queue(3);
    // A queue whose messages are too short for an end.
    let (carrier, _far) = builder::<Producer<u64>>().slot_bytes(4).byte_budget(0).build().expect("a queue");
    let mut tx = carrier.send(tx).expect_err("too large").into_inner();
    tx.send(1).expect("sent");
    assert_eq!(rx.recv().expect("received"), 1);
}

#[test]
fn an_end_that_is_in_use_again_does_not_arrive() {
    let (mut tx, mut rx) = queue(3);
    let packed = pack(&tx);
    tx.send(1).expect("taken back");
    assert!(unpack::<Producer<u64>>(packed).is_err());
    tx.send(2).expect("still here");
    assert_eq!(rx.recv_batch(2).expect("received"), [1, 2]);
}

#[test]
fn an_end_does_not_arrive_as_another() {
    let (tx, _rx) = queue(3);
    assert!(unpack::<Consumer<u64>>(pack(&tx)).is_err());
    assert!(unpack::<ipc_queue::PlainProducer<u64>>(pack(&tx)).is_err());
    assert!(unpack::<ipc_queue::Sender<u64>>(pack(&tx)).is_err());
    assert!(postcard::to_stdvec(&tx).is_err(), "without a session");
}

#[test]
fn an_end_in_a_message_keeps_its_side() {
    let (carrier, far) = bounded::<Producer<u64>>(1).expect("a queue");
    let (tx, mut rx) = queue(3);
    carrier.send(tx).expect("sent");
    assert!(rx.try_recv().expect_err("on its way").is_empty());
    far.recv().expect("received").send(5).expect("sent");
    assert_eq!(rx.recv().expect("received"), 5);
    assert!(rx.recv().expect_err("dropped").is_disconnected());
}

// ---- processes

#[test]
fn a_child_sends_and_this_process_receives() {
    let _dog = watchdog();
    let (producer, mut rx) = queue(3);
    let peer = Peer::start(&Orders::Send { producer, from: 0, to: 500, stay: false }, None);
    assert!(rx.iter().map(|n| n.expect("received")).eq(0..500));
    assert!(peer.wait().success());
}

#[test]
fn a_child_receives_what_this_process_sends() {
    let _dog = watchdog();
    let (mut tx, consumer) = queue(3);
    let peer = Peer::start(&Orders::Receive { consumer, count: 500, stay: false }, None);
    for i in 0..500 {
        tx.send(i).expect("sent");
        assert_eq!(peer.report(), Some(i));
    }
}

#[test]
fn a_consumer_learns_that_the_producer_was_killed() {
    let _dog = watchdog();
    let (producer, mut rx) = queue(16);
    let peer = Peer::start(&Orders::Send { producer, from: 0, to: 10, stay: true }, None);
    assert_eq!(peer.report(), Some(u64::MAX));
    let receiver = std::thread::spawn(move || rx.iter().map(|n| n.expect("received")).collect::<Vec<_>>());
    assert!(was_killed(peer.kill()));
    assert!(receiver.join().expect("no panic").into_iter().eq(0..10), "what was sent outlives the producer");
}

#[test]
fn a_producer_learns_that_the_consumer_was_killed() {
    let _dog = watchdog();
    let (mut tx, consumer) = queue(4);
    let peer = Peer::start(&Orders::Receive { consumer, count: 0, stay: true }, None);
    assert_eq!(peer.report(), Some(u64::MAX));
    (0..4).for_each(|i| tx.send(i).expect("there is room"));
    let sender = std::thread::spawn(move || tx.send(4));
    assert!(was_killed(peer.kill()));
    assert!(sender.join().expect("no panic").expect_err("nobody there").is_disconnected());
}

#[test]
fn whoever_kept_a_handle_succeeds_a_killed_consumer() {
    let _dog = watchdog();
    let (mut tx, mut rx) = queue(16);
    tx.send_batch([0, 1, 2, 3]).expect("sent");
    let orders = Orders::Receive { consumer: unpack(pack(&rx)).expect("arrived"), count: 2, stay: true };
    let peer = Peer::start(&orders, None);
    drop(orders);
    assert_eq!([peer.report(), peer.report(), peer.report()], [Some(0), Some(1), Some(u64::MAX)]);
    assert!(matches!(rx.try_recv(), Err(TryRecvError::Taken)));
    assert!(was_killed(peer.kill()));
    let next = loop {
        match rx.recv() {
            // The system is not done with the dead one yet.
            Err(RecvError::Taken) => std::thread::yield_now(),
            received => break received.expect("received"),
        }
    };
    assert_eq!(next, 2);
    tx.send(4).expect("sent");
    assert_eq!(rx.recv_batch(2).expect("received"), [3, 4]);
}

// ---- fork

/// Forks; the child exits with 0 if `body` says so.
fn fork(body: impl FnOnce() -> bool) -> Pid {
    // SAFETY: the child runs on the thread that forked, and only `body`.
    let id = unsafe { libc::fork() };
    if id == 0 {
        let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
        let fine = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(false);
        // SAFETY: ends the child without running what belongs to its parent.
        unsafe { libc::_exit(if fine { 0 } else { 1 }) };
    }
    Pid::from_raw(id).expect("forked")
}

#[track_caller]
fn succeeds(child: Pid) {
    let status = waitpid(Some(child), WaitOptions::empty()).expect("collected").expect("a status").1;
    assert_eq!(status.exit_status(), Some(0), "what the child found is not as it should be: {status:?}");
}

#[test]
fn a_forked_copy_says_that_its_parent_has_the_end() {
    let _dog = watchdog();
    let (mut tx, mut rx) = queue(4);
    tx.send(1).expect("sent");
    let child = fork(|| {
        let sent = matches!(tx.send(9), Err(ipc_queue::SendError::Taken(9)));
        let received = matches!(rx.recv(), Err(RecvError::Taken));
        sent && received && rx.len() == 1
    });
    succeeds(child);
    tx.send(2).expect("sent");
    assert_eq!(rx.recv_batch(2).expect("received"), [1, 2]);
}

#[test]
fn a_parent_and_its_child_are_connected_when_each_drops_one_end() {
    let _dog = watchdog();
    let (tx, mut rx) = queue(4);
    let mut ends = Some(tx);
    let child = fork(|| {
        let mut tx = ends.take().expect("a copy");
        (0..100).all(|i| {
            loop {
                match tx.send(i) {
                    // The parent has not dropped its own yet.
                    Err(ipc_queue::SendError::Taken(_)) => std::thread::yield_now(),
                    sent => break sent.is_ok(),
                }
            }
        })
    });
    drop(ends);
    (0..100).for_each(|i| assert_eq!(rx.recv().expect("received"), i));
    succeeds(child);
    assert!(rx.recv().expect_err("the child has ended").is_disconnected());
}
