//! What the handles do, within one process. One fact per test.
#![cfg(not(loom))]

mod common;
#[path = "api/drain.rs"]
mod drain;

use common::watchdog;
use ipc_queue::{
    DecodeError, Receiver, RecvBatchError, RecvError, RecvTimeoutError, SendError, SendTimeoutError, Sender,
    TryRecvError, TrySendError, bounded, bounded_plain, builder,
};
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::time::{Duration, Instant};

const SHORT: Duration = Duration::from_millis(2);

/// A queue of capacity `n` with the messages 0..n in it.
fn filled(n: u32) -> (Sender<u32>, Receiver<u32>) {
    let (tx, rx) = bounded(n as usize).expect("a queue");
    for i in 0..n {
        tx.send(i).expect("there is room");
    }
    (tx, rx)
}

#[test]
fn a_message_arrives() {
    let _dog = watchdog();
    let (tx, rx) = bounded::<(String, Option<i64>)>(4).expect("a queue");
    tx.send(("hello".into(), Some(-7))).expect("sent");
    assert_eq!(rx.recv().expect("received"), ("hello".into(), Some(-7)));
}

#[test]
fn a_plain_message_arrives() {
    let _dog = watchdog();
    let (tx, rx) = bounded_plain::<[u16; 5]>(4).expect("a queue");
    tx.send([1, 2, 3, 4, 5]).expect("sent");
    assert_eq!(rx.recv().expect("received"), [1, 2, 3, 4, 5]);
}

#[test]
fn messages_of_no_bytes_are_counted() {
    let _dog = watchdog();
    let (tx, rx) = bounded_plain::<()>(2).expect("a queue");
    tx.send(()).expect("sent");
    tx.send(()).expect("sent");
    assert!(tx.try_send(()).expect_err("full").is_full());
    rx.recv().expect("received");
    assert_eq!(rx.len(), 1);
}

#[test]
fn messages_arrive_in_the_order_of_their_sending() {
    let _dog = watchdog();
    let (tx, rx) = bounded::<u32>(7).expect("a queue");
    let sender = std::thread::spawn(move || (0..10_000).try_for_each(|i| tx.send(i)));
    for expected in 0..10_000 {
        assert_eq!(rx.recv().expect("received"), expected);
    }
    sender.join().expect("no panic").expect("sent");
}

#[test]
fn several_senders_and_receivers_share_a_queue() {
    let _dog = watchdog();
    let (tx, rx) = bounded_plain::<u64>(5).expect("a queue");
    let sum: u64 = std::thread::scope(|scope| {
        for part in 0..3 {
            let tx = tx.clone();
            scope.spawn(move || (0..1000).for_each(|i| tx.send(part * 1000 + i).expect("sent")));
        }
        drop(tx);
        let receivers: Vec<_> = (0..3)
            .map(|_| {
                let rx = rx.clone();
                scope.spawn(move || rx.iter().map(|n| n.expect("received")).sum::<u64>())
            })
            .collect();
        receivers.into_iter().map(|r| r.join().expect("no panic")).sum()
    });
    assert_eq!(sum, (0..3000).sum());
}

#[test]
fn threads_may_share_one_handle() {
    let _dog = watchdog();
    let (tx, rx) = bounded_plain::<u64>(64).expect("a queue");
    let sum: u64 = std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..1000).for_each(|i| tx.send(i).expect("sent")));
        }
        let take = || (0..1000).map(|_| rx.recv().expect("received")).sum::<u64>();
        let (one, two) = (scope.spawn(take), scope.spawn(take));
        one.join().expect("no panic") + two.join().expect("no panic")
    });
    assert_eq!(sum, 2 * (0..1000).sum::<u64>());
}

#[test]
fn any_capacity_is_kept_exactly() {
    let _dog = watchdog();
    for capacity in [1, 2, 3, 7, 64, 100] {
        let (tx, rx) = filled(capacity);
        assert_eq!(tx.capacity(), capacity as usize);
        assert!(tx.try_send(0).expect_err("full").is_full());
        assert_eq!(rx.len(), capacity as usize);
    }
}

#[test]
fn len_and_its_friends_agree_on_both_ends() {
    let _dog = watchdog();
    let (tx, rx) = bounded::<u8>(2).expect("a queue");
    assert!(tx.is_empty() && rx.is_empty() && !tx.is_full() && !rx.is_full());
    tx.send(1).expect("sent");
    assert_eq!((tx.len(), rx.len()), (1, 1));
    tx.send(2).expect("sent");
    assert!(tx.is_full() && rx.is_full() && !tx.is_empty() && !rx.is_empty());
}

#[test]
fn try_send_hands_the_value_back_when_full() {
    let _dog = watchdog();
    let (tx, _rx) = bounded::<String>(1).expect("a queue");
    tx.try_send("first".into()).expect("sent");
    assert_eq!(tx.try_send("second".into()).expect_err("full").into_inner(), "second");
}

#[test]
fn a_timeout_hands_the_value_back() {
    let _dog = watchdog();
    let (tx, _rx) = filled(1);
    let start = Instant::now();
    let error = tx.send_timeout(9, SHORT).expect_err("full");
    assert!(error.is_timeout() && start.elapsed() >= SHORT);
    assert_eq!(error.into_inner(), 9);
    assert!(tx.send_until(9, start).expect_err("full").is_timeout());
}

#[test]
fn a_receive_times_out() {
    let _dog = watchdog();
    let (_tx, rx) = bounded::<u8>(1).expect("a queue");
    let start = Instant::now();
    assert!(rx.recv_timeout(SHORT).expect_err("empty").is_timeout());
    assert!(start.elapsed() >= SHORT);
    assert!(rx.recv_until(start).expect_err("empty").is_timeout());
}

#[test]
fn no_patience_still_takes_what_is_there() {
    let _dog = watchdog();
    let (tx, rx) = filled(1);
    assert_eq!(rx.recv_timeout(Duration::ZERO).expect("there"), 0);
    tx.send_timeout(1, Duration::ZERO).expect("room");
    assert_eq!(rx.recv_until(Instant::now()).expect("there"), 1);
}

#[test]
fn endless_patience_is_no_overflow() {
    let _dog = watchdog();
    let (tx, rx) = bounded::<u8>(1).expect("a queue");
    let receiver = std::thread::spawn(move || rx.recv_timeout(Duration::MAX));
    tx.send_timeout(1, Duration::MAX).expect("sent");
    assert_eq!(receiver.join().expect("no panic").expect("received"), 1);
}

#[test]
fn a_sleeping_receiver_is_woken_by_a_message() {
    let _dog = watchdog();
    let (tx, rx) = bounded::<u8>(1).expect("a queue");
    let receiver = std::thread::spawn(move || rx.recv());
    // Nobody can say that a thread has fallen asleep. If it has not yet, the outcome is the same.
    std::thread::sleep(Duration::from_millis(20));
    tx.send(5).expect("sent");
    assert_eq!(receiver.join().expect("no panic").expect("received"), 5);
}

#[test]
fn a_sleeping_sender_is_woken_by_room() {
    let _dog = watchdog();
    let (tx, rx) = filled(1);
    let sender = std::thread::spawn(move || tx.send(1));
    // Nobody can say that a thread has fallen asleep. If it has not yet, the outcome is the same.
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(rx.recv().expect("received"), 0);
    sender.join().expect("no panic").expect("sent");
    assert_eq!(rx.recv().expect("received"), 1);
}

#[test]
fn a_message_up_to_the_limit_fits() {
    let _dog = watchdog();
    for slot_bytes in [1, 100, 240, 256, 257, 5000] {
        let (tx, rx) = builder::<serde_bytes::Bytes>()
            .capacity(2)
            .slot_bytes(slot_bytes)
            .byte_budget(0)
            .build()
            .expect("a queue");
        assert_eq!(tx.max_message_len(), slot_bytes);
        tx.send(serde_bytes::Bytes(slot_bytes)).expect("fits");
        assert_eq!(rx.recv().expect("received").0, slot_bytes);
        let error = tx.send(serde_bytes::Bytes(slot_bytes + 1)).expect_err("too long");
        assert!(
            matches!(error, SendError::TooLarge { len, limit, .. } if len == slot_bytes + 1 && limit == slot_bytes)
        );
    }
}

/// A message of exactly so many bytes.
mod serde_bytes {
    use serde::de::{Error, SeqAccess, Visitor};
    use serde::ser::SerializeTuple;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Debug)]
    pub(super) struct Bytes(pub(super) usize);

    impl Serialize for Bytes {
        fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
            let mut tuple = s.serialize_tuple(self.0)?;
            for i in 0..self.0 {
                let last = u8::from(i + 1 == self.0);
                tuple.serialize_element(&last)?;
            }
            tuple.end()
        }
    }

    impl<'de> Deserialize<'de> for Bytes {
        fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
            struct Counter;
            impl<'de> Visitor<'de> for Counter {
                type Value = Bytes;
                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("zeroes and a one")
                }
                fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Bytes, A::Error> {
                    let mut count = 0;
                    while let Some(byte) = seq.next_element::<u8>()? {
                        count += 1;
                        if byte == 1 {
                            return Ok(Bytes(count));
                        }
                    }
                    Err(A::Error::custom("no one"))
                }
            }
            d.deserialize_tuple(usize::MAX, Counter)
        }
    }
}

#[test]
fn a_message_that_is_too_large_comes_back_and_uses_no_slot() {
    let _dog = watchdog();
    let (tx, rx) = builder::<Vec<u8>>().capacity(1).byte_budget(0).build().expect("a queue");
    let error = tx.send(vec![7; 1000]).expect_err("too long");
    assert_eq!(error.to_string(), "a message of 1002 bytes is longer than the queue's limit of 240");
    assert_eq!(error.into_inner(), vec![7; 1000]);
    assert!(rx.is_empty());
    tx.try_send(vec![1]).expect("the slot is free");
}

#[test]
fn a_dropped_receiver_is_noticed_at_the_next_send() {
    let _dog = watchdog();
    let (tx, rx) = bounded::<u8>(8).expect("a queue");
    drop(rx);
    assert!(matches!(tx.send(1), Err(SendError::Disconnected(1))));
    assert!(matches!(tx.try_send(1), Err(TrySendError::Disconnected(1))));
    assert!(matches!(tx.send_timeout(1, SHORT), Err(SendTimeoutError::Disconnected(1))));
}

#[test]
fn a_dropped_sender_is_noticed_when_nothing_is_left() {
    let _dog = watchdog();
    let (tx, rx) = filled(2);
    drop(tx);
    assert_eq!((rx.recv().expect("left"), rx.try_recv().expect("left")), (0, 1));
    assert!(matches!(rx.recv(), Err(RecvError::Disconnected)));
    assert!(matches!(rx.try_recv(), Err(TryRecvError::Disconnected)));
    assert!(matches!(rx.recv_timeout(SHORT), Err(RecvTimeoutError::Disconnected)));
    assert!(matches!(rx.recv_batch(4), Err(RecvBatchError::Disconnected)));
    assert!(matches!(rx.try_recv_batch(4), Err(RecvBatchError::Disconnected)));
}

#[test]
fn a_clone_keeps_its_side_alive() {
    let _dog = watchdog();
    let (tx, rx) = bounded::<u8>(8).expect("a queue");
    let (tx2, rx2) = (tx.clone(), rx.clone());
    drop((tx, rx));
    tx2.send(1).expect("a receiver is left");
    assert_eq!(rx2.recv().expect("there"), 1);
    assert!(rx2.try_recv().expect_err("a sender is left").is_empty());
}

#[test]
fn a_sleeping_receiver_is_woken_by_the_last_drop() {
    let _dog = watchdog();
    let (tx, rx) = bounded::<u8>(1).expect("a queue");
    let receiver = std::thread::spawn(move || rx.recv());
    // Nobody can say that a thread has fallen asleep. If it has not yet, the outcome is the same.
    std::thread::sleep(Duration::from_millis(20));
    drop(tx);
    assert!(receiver.join().expect("no panic").expect_err("gone").is_disconnected());
}

#[test]
fn a_sleeping_sender_is_woken_by_the_last_drop() {
    let _dog = watchdog();
    let (tx, rx) = filled(1);
    let sender = std::thread::spawn(move || tx.send(1));
    // Nobody can say that a thread has fallen asleep. If it has not yet, the outcome is the same.
    std::thread::sleep(Duration::from_millis(20));
    drop(rx);
    assert!(sender.join().expect("no panic").expect_err("gone").is_disconnected());
}

#[test]
fn iterating_ends_with_the_senders() {
    let _dog = watchdog();
    let (tx, rx) = filled(3);
    drop(tx);
    let mut iter = rx.iter();
    assert_eq!(iter.by_ref().map(|n| n.expect("received")).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(iter.next().is_none());
    assert!(rx.into_iter().next().is_none());
}

#[test]
fn try_iter_takes_what_is_there() {
    let _dog = watchdog();
    let (tx, rx) = filled(3);
    assert_eq!(rx.try_iter().map(|n| n.expect("received")).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(rx.try_iter().count(), 0);
    drop(tx);
}

/// Decodes only what is even.
#[derive(Debug, PartialEq)]
struct Even(u32);

impl Serialize for Even {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(s)
    }
}

impl<'de> Deserialize<'de> for Even {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let n = u32::deserialize(d)?;
        if n % 2 == 0 { Ok(Self(n)) } else { Err(serde::de::Error::custom("odd")) }
    }
}

#[test]
fn a_message_that_does_not_decode_is_one_error_and_the_queue_goes_on() {
    let _dog = watchdog();
    let (tx, rx) = bounded::<Even>(8).expect("a queue");
    tx.send_batch([Even(0), Even(1), Even(2)]).expect("sent");
    assert_eq!(rx.recv().expect("even"), Even(0));
    let Err(RecvError::Decode(error)) = rx.recv() else { panic!("odd") };
    assert_eq!(error.bytes(), [1]);
    assert_eq!(error.into_bytes(), vec![1]);
    assert_eq!(rx.recv().expect("even"), Even(2));
}

#[test]
fn iterating_goes_on_behind_a_message_that_does_not_decode() {
    let _dog = watchdog();
    let (tx, rx) = bounded::<Even>(8).expect("a queue");
    tx.send_batch([Even(0), Even(1), Even(2)]).expect("sent");
    drop(tx);
    let items: Vec<_> = rx.iter().map(|item| item.is_ok()).collect();
    assert_eq!(items, [true, false, true]);
}

#[test]
fn a_batch_with_bad_messages_holds_the_good_ones() {
    let _dog = watchdog();
    let (tx, rx) = bounded::<Even>(8).expect("a queue");
    tx.send_batch([Even(0), Even(1), Even(2), Even(3)]).expect("sent");
    let error = rx.recv_batch(8).expect_err("two are odd");
    assert_eq!(error.to_string(), "2 of 4 received messages do not decode");
    let RecvBatchError::Decode { received, failed } = error else { panic!("another error") };
    assert_eq!(received, [Even(0), Even(2)]);
    let bytes: Vec<_> = failed.into_iter().map(DecodeError::into_bytes).collect();
    assert_eq!(bytes, [[1], [3]]);
}

/// Refuses to be encoded.
#[derive(Debug, Deserialize)]
struct Stubborn(bool);

impl Serialize for Stubborn {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if self.0 { Err(serde::ser::Error::custom("no")) } else { false.serialize(s) }
    }
}

#[test]
fn a_message_that_does_not_encode_comes_back_and_uses_no_slot() {
    let _dog = watchdog();
    let (tx, rx) = bounded::<Stubborn>(1).expect("a queue");
    let error = tx.send(Stubborn(true)).expect_err("refused");
    assert_eq!(error.to_string(), "the message cannot be serialised");
    assert!(error.source().is_some());
    assert!(matches!(&error, SendError::Encode { reason, .. } if !reason.is_handle()));
    assert!(error.into_inner().0 && rx.is_empty());
    assert!(tx.send_batch([Stubborn(true)]).expect_err("refused").is_encode());
    tx.try_send(Stubborn(false)).expect("the slot is free");
}

#[test]
fn a_panic_while_encoding_leaves_the_queue_as_it_was() {
    let _dog = watchdog();
    #[derive(Deserialize)]
    struct Bomb;
    impl Serialize for Bomb {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            std::panic::resume_unwind(Box::new("boom"))
        }
    }
    let (tx, rx) = bounded::<Option<Bomb>>(1).expect("a queue");
    std::panic::catch_unwind(|| tx.send(Some(Bomb))).expect_err("boom");
    tx.try_send(None).expect("the slot is free");
    assert!(rx.recv().expect("received").is_none());
}

#[test]
fn a_panic_while_decoding_takes_the_message_and_no_more() {
    let _dog = watchdog();
    #[derive(Serialize)]
    struct Bomb(u8);
    impl<'de> Deserialize<'de> for Bomb {
        fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
            match u8::deserialize(d)? {
                0 => std::panic::resume_unwind(Box::new("boom")),
                n => Ok(Self(n)),
            }
        }
    }
    let (tx, rx) = bounded::<Bomb>(1).expect("a queue");
    tx.send(Bomb(0)).expect("sent");
    std::panic::catch_unwind(|| rx.recv().map(|_| ())).expect_err("boom");
    tx.try_send(Bomb(3)).expect("the slot is free");
    assert_eq!(rx.recv().expect("received").0, 3);
}

#[test]
fn a_message_that_is_encoded_by_sending_another_is_no_trouble() {
    let _dog = watchdog();
    struct Nested(Sender<u8>);
    impl Serialize for Nested {
        fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
            self.0.send(7).map_err(serde::ser::Error::custom)?;
            s.serialize_unit()
        }
    }
    impl<'de> Deserialize<'de> for Nested {
        fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
            Err(serde::de::Error::custom("never"))
        }
    }
    let (inner_tx, inner_rx) = bounded::<u8>(1).expect("a queue");
    let (tx, _rx) = bounded::<Nested>(1).expect("a queue");
    tx.send(Nested(inner_tx)).expect("sent");
    assert_eq!(inner_rx.recv().expect("received"), 7);
}

#[test]
fn bad_numbers_are_errors_that_name_value_and_limit() {
    let error = bounded::<u8>(0).expect_err("zero");
    assert!(error.is_capacity());
    assert_eq!(error.to_string(), "capacity of 0 messages is not between 1 and 1048576");
    let error = bounded_plain::<u8>(usize::MAX).expect_err("huge");
    assert!(error.is_capacity() && error.to_string().contains("18446744073709551615"));
    for slot_bytes in [0, 1 << 20, usize::MAX] {
        let error = builder::<u8>().slot_bytes(slot_bytes).build().expect_err("out of range");
        assert!(error.is_slot_bytes());
        assert_eq!(error.to_string(), format!("slots of {slot_bytes} bytes are not between 1 and 1048572"));
    }
    let error = bounded_plain::<[[u64; 1024]; 1024]>(1).expect_err("8 MiB");
    assert!(error.is_slot_bytes() && error.to_string().contains("8388608"));
}

#[test]
fn a_queue_beyond_the_memory_of_the_machine_is_refused() {
    let error = builder::<u8>().capacity(1 << 20).slot_bytes(1 << 19).build().expect_err("512 GiB");
    assert!(error.is_out_of_memory(), "{error:?}");
    assert!(
        error.to_string().contains("not enough memory: 549"),
        "the reason and the number of bytes: {error}"
    );
    // A chain of errors says nothing twice.
    assert!(error.source().is_none(), "{:?}", error.source());
}

#[test]
fn errors_tell_what_they_are() {
    let _dog = watchdog();
    let (tx, rx) = bounded(4).expect("a queue");
    tx.send(Even(1)).expect("sent");
    assert!(rx.recv().expect_err("odd").is_decode());
    tx.send(Even(1)).expect("sent");
    let error = rx.try_recv().expect_err("odd");
    assert!(error.is_decode() && !error.is_forked() && !error.is_exhausted() && !error.is_taken());
    tx.send(Even(1)).expect("sent");
    assert!(rx.recv_batch(1).expect_err("odd").is_decode());
    let (tx, _rx) = bounded::<Stubborn>(1).expect("a queue");
    let error = tx.send(Stubborn(true)).expect_err("not serialisable");
    assert!(error.is_encode() && !error.is_forked() && !error.is_exhausted() && !error.is_taken());
    assert!(tx.try_send(Stubborn(true)).expect_err("not serialisable").is_encode());
    assert!(tx.send_timeout(Stubborn(true), SHORT).expect_err("not serialisable").is_encode());
}
