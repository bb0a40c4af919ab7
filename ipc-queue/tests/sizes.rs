//! Messages of any size: what fits no slot lies in chunks, both bounds hold, and memory goes back.
#![cfg(not(loom))]
#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

mod common;

use common::{Peer, child as child_of_test, was_killed, watchdog};
use ipc_queue::{
    BytesReceiver, BytesSender, Grant, LeaseReceiver, Receiver, Sender, bounded, bounded_bytes, builder,
    bytes_builder,
};
use parking_lot::Mutex;
use rustix::process::{Resource, Rlimit, setrlimit};
use serde::{Deserialize, Serialize};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;
const SHORT: Duration = Duration::from_millis(20);

/// Bytes of which no two neighbouring pages are equal.
fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i ^ (i >> 8) ^ (i >> 16) ^ seed) as u8).collect()
}

#[derive(Serialize, Deserialize)]
enum Orders {
    Echo(Receiver<Vec<u8>>, Sender<Vec<u8>>),
    EchoBytes(BytesReceiver, BytesSender),
    Take(Receiver<Vec<u8>>),
    Hold(BytesSender, BytesReceiver),
    Flood(Sender<Vec<u8>>),
    /// Tries to send a large message, and reports whether the queue was full.
    #[cfg(feature = "crash-points")]
    Try(Sender<Vec<u8>>),
    #[cfg(feature = "crash-points")]
    TryBytes(BytesSender),
    /// Receives large messages without memory for them, then small ones.
    Starve(Receiver<Vec<u8>>, BytesReceiver, LeaseReceiver<Vec<u8>>),
    /// Takes a message and memory for one, forgets both, lets go of the queue, and stays if it is told to.
    Forget {
        tx: BytesSender,
        rx: BytesReceiver,
        stays: bool,
    },
}

#[test]
fn child() {
    child_of_test(|orders, reporter| match orders {
        Orders::Echo(rx, tx) => rx.iter().for_each(|m| tx.send(m.expect("decodes")).expect("sent")),
        Orders::EchoBytes(rx, tx) => {
            while let Ok(message) = rx.recv_ref() {
                tx.send(&message).expect("sent");
            }
        }
        Orders::Take(rx) => rx.iter().for_each(|m| reporter.report(&m.expect("decodes").len())),
        Orders::Hold(tx, rx) => {
            let taken = rx.recv_ref().expect("a message");
            let granted = tx.reserve(MIB).expect("room");
            reporter.report(&(taken.len() + granted.len()));
            std::thread::sleep(Duration::from_secs(3600));
        }
        #[cfg(feature = "crash-points")]
        Orders::Try(tx) => reporter.report(&tx.try_send(pattern(MIB, 1)).is_err_and(|error| error.is_full())),
        #[cfg(feature = "crash-points")]
        Orders::TryBytes(tx) => {
            reporter.report(&tx.try_send(&pattern(MIB, 1)).is_err_and(|error| error.is_full()));
        }
        Orders::Forget { tx, rx, stays } => {
            std::mem::forget(rx.recv_ref().expect("a message"));
            std::mem::forget(tx.reserve(MIB).expect("room"));
            drop((tx, rx));
            reporter.report(&0);
            if stays {
                std::thread::sleep(Duration::from_secs(3600));
            }
        }
        Orders::Starve(rx, bytes, leases) => {
            // What the messages need in chunks has its addresses already; private copies have none left.
            let status = std::fs::read_to_string("/proc/self/statm").expect("read");
            let pages: u64 = status.split(' ').next().and_then(|n| n.parse().ok()).expect("a number");
            let limit = Rlimit { current: Some(pages * 4096 + (16 << 20)), maximum: None };
            setrlimit(Resource::As, limit).expect("limited");
            let error = rx.recv().expect_err("64 MiB");
            reporter.report(&(error.to_string(), rx.recv().expect("small")));
            let error = bytes.recv().expect_err("64 MiB");
            reporter.report(&(error.to_string(), bytes.recv().expect("small")));
            let error = leases.recv_lease().expect_err("64 MiB");
            setrlimit(Resource::As, Rlimit { current: None, maximum: None }).expect("not limited");
            let lease = leases.recv_lease().expect("it came back");
            assert_eq!((lease.len(), lease.delivery_count()), (64 * MIB, 2));
            lease.ack();
            reporter.report(&(error.to_string(), leases.recv_lease().expect("small").ack()));
        }
        Orders::Flood(tx) => {
            for number in 0.. {
                let len = 1000 + (number * 7919) % 300_000;
                tx.send(pattern(len, number)).expect("sent");
                reporter.report(&number);
            }
        }
    });
}

#[test]
fn messages_of_every_size_up_to_the_budget_arrive_as_they_were_sent() {
    let _dog = watchdog();
    let (tx, rx) = builder::<Vec<u8>>().capacity(4).byte_budget(4 * MIB).build().expect("a queue");
    assert_eq!(tx.max_message_len(), 4 * MIB);
    let edges = [0, 1, 238, 239, 240, 4095, 4096, 65_533, 65_536, 65_537, MIB, 4 * MIB - 4];
    for (seed, len) in edges.into_iter().enumerate() {
        let message = pattern(len, seed);
        tx.send(message.clone()).expect("sent");
        assert!(rx.recv().expect("received") == message, "a message of {len} bytes");
    }
}

#[test]
fn a_message_larger_than_the_budget_comes_back_and_takes_nothing() {
    let (tx, rx) = builder::<Vec<u8>>().capacity(4).byte_budget(MIB).build().expect("a queue");
    let error = tx.send(vec![7; MIB]).expect_err("three bytes too long");
    assert!(error.is_too_large());
    assert!(error.to_string().contains("1048579") && error.to_string().contains("1048576"));
    assert_eq!(error.into_inner(), vec![7; MIB]);
    tx.send(vec![7; MIB - 3]).expect("all of the budget is free");
    assert_eq!(rx.recv().expect("received").len(), MIB - 3);
}

#[test]
fn the_byte_budget_is_a_bound_of_its_own() {
    let _dog = watchdog();
    let (tx, rx) = builder::<Vec<u8>>().capacity(100).byte_budget(MIB).build().expect("a queue");
    tx.send(vec![1; 900_000]).expect("room");
    let error = tx.try_send(vec![2; 200_000]).expect_err("no room");
    assert!(error.is_full());
    assert!(tx.send_timeout(vec![2; 200_000], SHORT).expect_err("no room").is_timeout());
    tx.try_send(vec![3; 100]).expect("fits a slot");
    assert_eq!(rx.recv().expect("received").len(), 900_000);
    tx.try_send(vec![2; 200_000]).expect("room again");
    assert_eq!(rx.recv().expect("received").len(), 100);
    assert_eq!(rx.recv().expect("received").len(), 200_000);
}

#[test]
fn the_number_of_messages_bounds_large_ones_too_and_gives_their_bytes_back() {
    let (tx, rx) = builder::<Vec<u8>>().capacity(1).byte_budget(MIB).build().expect("a queue");
    tx.send(vec![1; 300_000]).expect("room");
    for _ in 0..10 {
        assert!(tx.try_send(vec![2; 300_000]).expect_err("one message only").is_full());
    }
    rx.recv().expect("received");
    tx.try_send(vec![2; 900_000]).expect("nothing is left behind");
}

#[test]
fn a_sender_that_waits_for_bytes_is_woken_by_a_receiver() {
    let _dog = watchdog();
    let (tx, rx) = builder::<Vec<u8>>().capacity(100).byte_budget(MIB).build().expect("a queue");
    let senders: Vec<_> = (0..3_usize)
        .map(|seed| {
            let tx = tx.clone();
            std::thread::spawn(move || {
                (0..30).for_each(|i| tx.send(pattern(100_000 * (1 + (seed + i) % 9), seed)).expect("sent"));
            })
        })
        .collect();
    drop(tx);
    let lengths = rx.iter().map(|m| m.expect("decodes").len()).collect::<Vec<_>>();
    assert_eq!(lengths.len(), 90);
    senders.into_iter().for_each(|sender| sender.join().expect("no panic"));
}

/// How many of 50 waits were ended by the end of a time slice, and not by a wake-up. `take_all` leaves no memory to `wait`;
/// what it returns gives it back when it is dropped.
fn slow_waits<R>(take_all: impl Fn() -> R, wait: impl Fn() + Sync) -> usize {
    let is_slow = |_: &i32| {
        let all = take_all();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                wait();
                Instant::now()
            });
            // Time to fall asleep. If it has not, it is not slow either.
            std::thread::sleep(Duration::from_millis(5));
            let freed = Instant::now();
            drop(all);
            let woken = waiter.join().expect("no panic");
            woken.saturating_duration_since(freed) > Duration::from_millis(40)
        })
    };
    (0..50).filter(is_slow).count()
}

/// A message of these bytes, which is received when this is dropped.
struct Sent<'q>(&'q Receiver<Vec<u8>>, usize);

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        assert_eq!(self.0.recv().expect("received").len(), self.1);
    }
}

#[test]
fn whoever_waits_for_memory_is_woken_when_some_is_freed() {
    let _dog = watchdog();
    let (tx, _rx) = bytes_builder().capacity(4).byte_budget(MIB).build().expect("a queue");
    let slow = slow_waits(|| tx.reserve(MIB).expect("all is free"), || drop(tx.reserve(1).expect("freed")));
    // The ends of slices of 100 ms would end all of them.
    assert!(slow < 12, "{slow} of 50 waits were slow");
}

#[test]
fn whoever_waits_for_memory_is_woken_when_a_message_is_received() {
    let _dog = watchdog();
    let (tx, rx) = builder::<Vec<u8>>().capacity(4).byte_budget(MIB).build().expect("a queue");
    let fill = || {
        tx.send(vec![1; MIB - 3]).expect("all is free");
        Sent(&rx, MIB - 3)
    };
    let wait = || {
        tx.send(vec![2; 1000]).expect("freed");
        drop(Sent(&rx, 1000));
    };
    let slow = slow_waits(fill, wait);
    assert!(slow < 12, "{slow} of 50 waits were slow");
}

#[test]
fn a_sender_that_waits_for_bytes_learns_that_the_last_receiver_is_gone() {
    let _dog = watchdog();
    let (tx, rx) = builder::<Vec<u8>>().capacity(100).byte_budget(MIB).build().expect("a queue");
    tx.send(vec![1; 900_000]).expect("room");
    let sender = std::thread::spawn(move || tx.send(vec![2; 900_000]));
    std::thread::sleep(SHORT);
    drop(rx);
    let error = sender.join().expect("no panic").expect_err("nobody will take it");
    assert!(error.is_disconnected());
    assert_eq!(error.into_inner().len(), 900_000);
}

#[test]
fn batches_of_all_sizes_keep_their_order() {
    let _dog = watchdog();
    let (tx, rx) = bounded::<Vec<u8>>(100).expect("a queue");
    let lengths = [1, 100_000, 2, 3, 200_000, 300_000, 4];
    tx.send_batch(lengths.map(|len| pattern(len, len))).expect("sent");
    let received = rx.recv_batch(100).expect("received");
    assert_eq!(received, lengths.map(|len| pattern(len, len)));
}

#[test]
fn a_large_message_that_does_not_decode_keeps_its_bytes() {
    /// Writes bytes and reads a number.
    struct Odd(Vec<u8>);
    impl Serialize for Odd {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_bytes(&self.0)
        }
    }
    impl<'de> Deserialize<'de> for Odd {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            u8::deserialize(deserializer).map(|byte| Self(vec![byte]))
        }
    }
    let (tx, rx) = builder::<Odd>().capacity(4).byte_budget(MIB).build().expect("a queue");
    for _ in 0..5 {
        tx.send(Odd(pattern(500_000, 3))).expect("sent");
        let ipc_queue::RecvError::Decode(error) = rx.recv().err().expect("not a number") else {
            panic!("another error");
        };
        assert!(error.bytes().ends_with(&pattern(500_000, 3)));
    }
}

#[test]
fn large_messages_go_to_another_process_and_back() {
    let _dog = watchdog();
    let (tx, there) = bounded::<Vec<u8>>(4).expect("a queue");
    let (back, rx) = bounded::<Vec<u8>>(4).expect("a queue");
    let echo = Peer::start(&Orders::Echo(there, back), None);
    for len in [10, 1000, 100_000, 10 * MIB] {
        tx.send(pattern(len, 1)).expect("sent");
        assert!(rx.recv().expect("received") == pattern(len, 1), "{len} bytes");
    }
    drop(tx);
    assert!(echo.wait().success());
}

#[test]
fn bytes_go_to_another_process_and_back() {
    let _dog = watchdog();
    let (tx, there) = bounded_bytes(4).expect("a queue");
    let (back, rx) = bounded_bytes(4).expect("a queue");
    let echo = Peer::start(&Orders::EchoBytes(there, back), None);
    for len in [0, 1, 65_536, 65_537, 3 * MIB] {
        let mut grant = tx.reserve(len).expect("room");
        grant.copy_from_slice(&pattern(len, 2));
        grant.commit().expect("sent");
        assert!(rx.recv().expect("received") == pattern(len, 2), "{len} bytes");
    }
    drop(tx);
    assert!(echo.wait().success());
}

#[test]
fn chunks_are_as_long_as_they_should_be() {
    let (tx, rx) =
        bytes_builder().capacity(9).byte_budget(4 * MIB).chunk_bytes(MIB - 5).build().expect("a queue");
    (0..4_u8).for_each(|number| tx.try_send(&[number]).expect("four chunks"));
    assert!(tx.try_send(&[4]).expect_err("no fifth").is_full());
    assert_eq!(rx.try_recv().expect("received"), [0]);
    tx.try_send(&pattern(MIB, 9)).expect("fits one");
}

#[test]
fn a_grant_that_is_dropped_gives_its_memory_back() {
    let (tx, _rx) = bytes_builder().capacity(4).byte_budget(MIB).build().expect("a queue");
    for _ in 0..10 {
        let grant = tx.try_reserve(MIB).expect("all is free");
        assert!(tx.try_reserve(1).expect_err("nothing is free").is_full());
        drop(grant);
    }
}

#[test]
fn a_grant_that_is_forgotten_keeps_its_memory_and_nothing_else() {
    let (tx, rx) = bytes_builder().capacity(2).byte_budget(MIB).build().expect("a queue");
    std::mem::forget(tx.try_reserve(MIB / 2).expect("room"));
    for number in 0..100_usize {
        tx.try_send(&pattern(MIB / 2, number)).expect("the other half");
        assert_eq!(rx.try_recv().expect("received"), pattern(MIB / 2, number));
    }
}

#[test]
fn what_a_process_has_forgotten_is_free_again_when_it_lets_go_of_the_queue() {
    let _dog = watchdog();
    let (tx, rx) = bytes_builder().capacity(4).byte_budget(2 * MIB).build().expect("a queue");
    for stays in [true, false, true] {
        tx.send(&pattern(MIB, 1)).expect("sent");
        let peer = Peer::start(&Orders::Forget { tx: tx.clone(), rx: rx.clone(), stays }, None);
        assert_eq!(peer.report::<i32>(), Some(0));
        let peer = if stays {
            Some(peer)
        } else {
            assert!(peer.wait().success());
            None
        };
        assert_eq!(tx.try_reserve(2 * MIB).expect("all is free").len(), 2 * MIB);
        drop(peer);
    }
}

#[test]
fn a_grant_comes_back_from_a_full_queue() {
    let (tx, rx) = bytes_builder().capacity(1).byte_budget(MIB).build().expect("a queue");
    tx.send(b"first").expect("sent");
    let mut grant = tx.reserve(6).expect("room");
    grant.copy_from_slice(b"second");
    let grant = grant.try_commit().expect_err("full").into_inner();
    let grant = grant.commit_timeout(SHORT).expect_err("full").into_inner();
    assert_eq!(rx.recv().expect("received"), b"first");
    grant.commit().expect("room");
    assert_eq!(&*rx.recv_ref().expect("received"), b"second");
}

#[test]
fn a_grant_may_be_committed_shorter_than_it_was_reserved() {
    let (tx, rx) = bytes_builder().capacity(2).byte_budget(MIB).build().expect("a queue");
    for len in [0, 1, 70_000, MIB, MIB + 1] {
        let mut grant = tx.try_reserve(MIB).expect("all is free again");
        grant.copy_from_slice(&pattern(MIB, len));
        grant.truncate(len);
        assert_eq!(grant.len(), len.min(MIB));
        grant.commit().expect("sent");
        assert_eq!(rx.try_recv().expect("received"), pattern(len.min(MIB), len));
    }
}

#[test]
fn a_shortened_grant_that_is_dropped_gives_all_of_its_memory_back() {
    let (tx, _rx) = bytes_builder().capacity(2).byte_budget(MIB).build().expect("a queue");
    let mut grant = tx.try_reserve(MIB).expect("all is free");
    grant.truncate(1);
    drop(grant);
    assert_eq!(tx.try_reserve(MIB).expect("all is free").len(), MIB);
}

#[test]
fn operations_on_bytes_have_deadlines() {
    let _dog = watchdog();
    let past = Instant::now();
    let (tx, rx) = bytes_builder().capacity(1).byte_budget(MIB).build().expect("a queue");
    assert!(rx.recv_until(past).expect_err("empty").is_timeout());
    assert!(rx.recv_ref_until(Instant::now() + SHORT).expect_err("empty").is_timeout());
    tx.send_until(b"first", past).expect("there is room");
    assert!(tx.send_until(b"second", past).expect_err("full").is_timeout());
    let grant = tx.reserve_until(MIB / 2, past).expect("there is memory");
    assert!(tx.reserve_until(MIB, Instant::now() + SHORT).expect_err("half is taken").is_timeout());
    let grant = grant.commit_until(past).expect_err("full").into_inner();
    assert_eq!(rx.recv_until(past).expect("it is there"), b"first");
    grant.commit_until(past).expect("there is room");
    assert_eq!(rx.recv_ref_until(past).expect("it is there").len(), MIB / 2);
}

#[test]
fn messages_of_bytes_can_be_iterated() {
    let _dog = watchdog();
    let (tx, rx) = bounded_bytes(8).expect("a queue");
    for len in 1..5 {
        tx.send(&pattern(len, 0)).expect("sent");
    }
    assert_eq!(rx.try_iter().take(2).map(|m| m.expect("received").len()).sum::<usize>(), 3);
    let sender = std::thread::spawn(move || {
        std::thread::sleep(SHORT);
        tx.send(&[7; 5]).expect("sent");
    });
    let lengths: Vec<_> = rx.iter().map(|message| message.expect("received").len()).collect();
    assert_eq!(lengths, [3, 4, 5]);
    assert_eq!(rx.try_iter().count(), 0);
    sender.join().expect("fine");
}

#[test]
fn a_message_lent_is_not_overwritten() {
    let (tx, rx) = bytes_builder().capacity(4).byte_budget(MIB).build().expect("a queue");
    tx.send(&pattern(MIB / 2, 1)).expect("sent");
    let lent = rx.recv_ref().expect("received");
    for number in 2..20 {
        tx.send(&pattern(MIB / 2, number)).expect("the other half");
        assert!(tx.try_send(&[0; MIB / 2]).expect_err("one half is lent").is_full());
        assert_eq!(rx.recv().expect("received"), pattern(MIB / 2, number));
    }
    assert_eq!(&*lent, pattern(MIB / 2, 1));
}

#[test]
fn what_a_dead_process_had_in_hand_is_free_again() {
    let _dog = watchdog();
    let (tx, rx) = bytes_builder().capacity(4).byte_budget(2 * MIB).build().expect("a queue");
    tx.send(&pattern(MIB, 1)).expect("sent");
    let holder = Peer::start(&Orders::Hold(tx.clone(), rx.clone()), None);
    assert_eq!(holder.report::<usize>(), Some(2 * MIB));
    assert!(tx.try_reserve(1).expect_err("all is in its hands").is_full());
    assert!(was_killed(holder.kill()));
    let all = tx.reserve(2 * MIB).expect("swept");
    assert_eq!(all.len(), 2 * MIB);
}

#[test]
fn killed_senders_and_receivers_of_large_messages_leave_nothing_taken() {
    let _dog = watchdog();
    let (tx, rx) = builder::<Vec<u8>>().capacity(8).byte_budget(MIB).build().expect("a queue");
    for round in 0..8 {
        let sender = Peer::start(&Orders::Flood(tx.clone()), None);
        let taker = Peer::start(&Orders::Take(rx.clone()), None);
        let turns = 3 + round * 2;
        for _ in 0..turns {
            sender.report::<usize>().expect("it sends");
            taker.report::<usize>().expect("it receives");
        }
        if round % 2 == 0 {
            sender.kill();
            taker.kill();
        } else {
            taker.kill();
            sender.kill();
        }
        // Whole messages only, each as it was sent.
        while let Ok(message) = rx.recv_timeout(Duration::from_millis(300)) {
            let found = (0..100_000).find(|n| 1000 + (n * 7919) % 300_000 == message.len());
            let number = found.expect("a length that was sent");
            assert_eq!(message[300..], pattern(message.len(), number)[300..]);
        }
    }
    tx.send(vec![0; MIB - 3]).expect("all of the budget is free");
}

fn resident(bytes: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("a status");
    let line = status.lines().find_map(|line| line.strip_prefix(bytes)).expect("a line");
    line.trim().trim_end_matches(" kB").trim().parse::<usize>().expect("a number") * 1024
}

/// Tests that look at the memory of this process are alone with it; what others have is little.
static MEMORY: Mutex<()> = Mutex::new(());

/// A message that was written to.
fn written(tx: &BytesSender, len: usize) -> Grant<'_> {
    let mut grant = tx.reserve(len).expect("room");
    grant.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    grant
}

#[test]
fn memory_goes_back_after_each_large_message() {
    let _alone = MEMORY.lock();
    let (tx, rx) = bounded_bytes(4).expect("a queue");
    for _ in 0..3 {
        written(&tx, 200 * MIB).commit().expect("sent");
        let before = resident("RssShmem:");
        assert!(before >= 200 * MIB, "{before}");
        drop(rx.recv_ref().expect("received"));
        let after = resident("RssShmem:");
        assert!(after + 150 * MIB < before, "{before} -> {after}");
    }
    tx.send(&pattern(MIB, 5)).expect("what was given back can be had again");
    assert_eq!(rx.recv().expect("received"), pattern(MIB, 5));
}

/// Many messages of which each may lie idle; `wait` waits at the queue for a moment.
fn lets_idle_memory_go(rx: &BytesReceiver, tx: &BytesSender, mut wait: impl FnMut()) {
    let _dog = watchdog();
    let grants: Vec<_> = (0..8).map(|_| written(tx, 30 * MIB)).collect();
    let before = resident("RssShmem:");
    assert!(before >= 240 * MIB, "{before}");
    drop(grants);
    while resident("RssShmem:") + 150 * MIB > before {
        wait();
    }
    tx.send(&pattern(MIB, 5)).expect("what was given back can be had again");
    assert_eq!(rx.recv().expect("received"), pattern(MIB, 5));
}

#[test]
fn idle_memory_goes_back_while_somebody_waits() {
    let _alone = MEMORY.lock();
    let (tx, rx) = bounded_bytes(4).expect("a queue");
    lets_idle_memory_go(&rx, &tx, || assert!(rx.recv_timeout(SHORT).is_err()));
    lets_idle_memory_go(&rx, &tx, || assert!(rx.try_recv().is_err()));
}

#[test]
fn idle_memory_goes_back_while_somebody_polls() {
    let _alone = MEMORY.lock();
    let (tx, rx) = bounded_bytes(4).expect("a queue");
    let _descriptor = rx.as_fd();
    assert!(rx.try_recv().is_err(), "from here on its bridge waits");
    lets_idle_memory_go(&rx, &tx, || std::thread::sleep(SHORT));
}

#[test]
fn memory_that_is_refused_takes_none_away_that_was_there() {
    let _alone = MEMORY.lock();
    let (tx, _rx) = bytes_builder().capacity(4).byte_budget(1 << 44).build().expect("sparse");
    // The first chunk, and the second.
    drop((tx.reserve(1).expect("room"), written(&tx, 200 * MIB)));
    let before = resident("RssShmem:");
    assert!(before >= 200 * MIB, "{before}");
    assert!(tx.try_reserve(1 << 43).expect_err("8 TiB").is_out_of_memory());
    let after = resident("RssShmem:");
    assert!(after + 100 * MIB > before, "{before} -> {after}");
}

#[cfg(feature = "crash-points")]
#[test]
fn a_large_message_for_which_there_is_no_slot_takes_no_memory() {
    let _dog = watchdog();
    let (tx, _rx) = builder::<Vec<u8>>().capacity(1).byte_budget(4 * MIB).build().expect("a queue");
    tx.send(vec![1]).expect("room");
    // It would die there.
    let peer = Peer::start(&Orders::Try(tx), Some("chunks.claimed"));
    assert_eq!(peer.report::<bool>(), Some(true));
    let (tx, _rx) = bytes_builder().capacity(1).byte_budget(4 * MIB).build().expect("a queue");
    tx.send(&[1]).expect("room");
    let peer = Peer::start(&Orders::TryBytes(tx), Some("chunks.claimed"));
    assert_eq!(peer.report::<bool>(), Some(true));
}

#[test]
fn a_message_for_which_the_machine_has_no_memory_is_an_error() {
    let (tx, rx) = bytes_builder().capacity(4).byte_budget(1 << 44).build().expect("sparse");
    let error = tx.try_reserve(1 << 43).expect_err("8 TiB");
    assert!(error.is_out_of_memory(), "{error}");
    tx.send(b"small").expect("there is memory for this");
    assert_eq!(rx.recv().expect("received"), b"small");
}

#[test]
fn a_message_for_which_its_receiver_has_no_memory_is_an_error_and_the_queue_goes_on() {
    let _dog = watchdog();
    let (tx, rx) = builder::<Vec<u8>>().capacity(4).byte_budget(65 * MIB).build().expect("a queue");
    let (bytes_tx, bytes_rx) = bytes_builder().capacity(4).byte_budget(65 * MIB).build().expect("a queue");
    let leased = builder::<Vec<u8>>().capacity(4).byte_budget(65 * MIB).at_least_once();
    let (lease_tx, lease_rx) = leased.build().expect("a queue");
    for len in [64 * MIB, 1] {
        tx.send(vec![7; len]).expect("sent");
        bytes_tx.send(&vec![7; len]).expect("sent");
        lease_tx.send(vec![7; len]).expect("sent");
    }
    let peer = Peer::start(&Orders::Starve(rx, bytes_rx, lease_rx), None);
    for prefix in [4, 0, 4] {
        let (error, next): (String, Vec<u8>) = peer.report().expect("alive");
        assert!(error.contains(&(64 * MIB + prefix).to_string()), "{error}");
        assert_eq!(next, [7]);
    }
    assert!(peer.wait().success());
}

#[test]
fn a_budget_beyond_an_address_space_is_refused() {
    for budget in [0, usize::MAX, usize::MAX / 2, 1 << 62] {
        let error = bytes_builder().byte_budget(budget).build().expect_err("out of range");
        assert!(error.is_byte_budget(), "{error}");
    }
    for budget in [usize::MAX, 1 << 62] {
        assert!(builder::<u8>().byte_budget(budget).build().expect_err("out of range").is_byte_budget());
    }
}
