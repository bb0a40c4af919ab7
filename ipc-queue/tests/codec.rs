//! Codecs of the user's.
#![cfg(not(loom))]

#[path = "common/mod.rs"]
mod common;

use common::{Peer, watchdog};
use ipc_queue::{Builder, Codec, Custom, Receiver, RecvError, Sender, Sink, builder};
use serde::{Deserialize, Serialize};
use std::fmt::{self, Write as _};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Nothing of serde.
#[derive(Clone, Debug, PartialEq)]
struct Job {
    number: u32,
    text: String,
}

fn job(number: u32, text: &str) -> Job {
    Job { number, text: text.into() }
}

#[derive(Debug, PartialEq)]
struct Refused(&'static str);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Refused {}

/// Four bytes, then text. Some numbers misbehave.
enum Compact {}

const UNWRITABLE: u32 = 1_000_001;
const PANICS_WRITING: u32 = 1_000_002;
const UNREADABLE: u32 = 1_000_003;
const PANICS_READING: u32 = 1_000_004;
/// Writes a GiB.
const ENDLESS: u32 = 1_000_005;

impl Codec<Job> for Compact {
    const ID: u64 = 1;
    type Error = Refused;

    fn encode(job: &Job, out: &mut Sink<'_>) -> Result<(), Refused> {
        out.put(&job.number.to_le_bytes());
        match job.number {
            UNWRITABLE => return Err(Refused("unwritable")),
            PANICS_WRITING => panic!("writing"),
            ENDLESS => (0..1 << 20).for_each(|_| out.put(&[0; 1 << 10])),
            _ => {}
        }
        out.put(job.text.as_bytes());
        Ok(())
    }

    fn decode(bytes: &[u8]) -> Result<Job, Refused> {
        let (number, text) = bytes.split_first_chunk().ok_or(Refused("short"))?;
        let number = u32::from_le_bytes(*number);
        match number {
            UNREADABLE => return Err(Refused("unreadable")),
            PANICS_READING => panic!("reading"),
            _ => {}
        }
        Ok(Job { number, text: String::from_utf8(text.to_vec()).map_err(|_| Refused("no text"))? })
    }
}

/// `{"number":7,"text":"..."}`, without escapes.
enum Json {}

impl Codec<Job> for Json {
    const ID: u64 = 2;
    type Error = Refused;

    fn encode(job: &Job, out: &mut Sink<'_>) -> Result<(), Refused> {
        if job.text.contains('"') {
            return Err(Refused("a quote"));
        }
        write!(out, "{{\"number\":{},\"text\":\"{}\"}}", job.number, job.text).map_err(|_| Refused("sink"))
    }

    fn decode(bytes: &[u8]) -> Result<Job, Refused> {
        let line = std::str::from_utf8(bytes).map_err(|_| Refused("no text"))?;
        let rest = line.strip_prefix("{\"number\":").ok_or(Refused("no number"))?;
        let (number, rest) = rest.split_once(",\"text\":\"").ok_or(Refused("no text"))?;
        let text = rest.strip_suffix("\"}").ok_or(Refused("no end"))?;
        Ok(job(number.parse().map_err(|_| Refused("no number"))?, text))
    }
}

fn queue<C: Codec<Job>>(
    describe: impl FnOnce(Builder<Job, Custom<C>>) -> Builder<Job, Custom<C>>,
) -> (Sender<Job, Custom<C>>, Receiver<Job, Custom<C>>) {
    describe(builder::<Job>().codec::<C>().capacity(4)).build().expect("a queue")
}

/// What a decode error says, and with which bytes.
fn undecoded<T: fmt::Debug>(received: Result<T, RecvError>) -> (String, Vec<u8>) {
    match received {
        Err(RecvError::Decode(error)) => {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            (source.unwrap_or_default(), error.into_bytes())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn messages_of_any_type_travel_through_a_codec() {
    let (tx, rx) = queue::<Compact>(|builder| builder);
    tx.send(job(7, "seven")).expect("sent");
    tx.send(job(8, "")).expect("sent");
    assert_eq!(rx.recv().expect("received"), job(7, "seven"));
    assert_eq!(rx.recv().expect("received"), job(8, ""));
}

#[test]
fn text_travels_through_a_codec() {
    let (tx, rx) = queue::<Json>(|builder| builder);
    tx.send(job(7, "seven")).expect("sent");
    assert_eq!(rx.recv().expect("received"), job(7, "seven"));
}

#[test]
fn a_message_may_have_no_bytes() {
    enum Empty {}
    impl Codec<()> for Empty {
        const ID: u64 = 3;
        type Error = Refused;

        fn encode(_: &(), _out: &mut Sink<'_>) -> Result<(), Refused> {
            Ok(())
        }

        fn decode(bytes: &[u8]) -> Result<(), Refused> {
            if bytes.is_empty() { Ok(()) } else { Err(Refused("bytes")) }
        }
    }
    let (tx, rx) = builder::<()>().codec::<Empty>().capacity(2).build().expect("a queue");
    tx.send(()).expect("sent");
    rx.recv().expect("received");
}

#[test]
fn messages_of_every_size_travel_through_a_codec() {
    let (tx, rx) = queue::<Compact>(|builder| builder.slot_bytes(300).byte_budget(1 << 20));
    for len in [0, 1, 251, 252, 253, 295, 296, 297, 1000, 65_532, 65_533, 500_000, (1 << 20) - 4] {
        tx.send(job(7, &"x".repeat(len))).expect("sent");
        assert_eq!(rx.recv().expect("received").text.len(), len);
    }
}

#[test]
fn a_message_that_a_codec_refuses_takes_no_slot_and_comes_back() {
    let (tx, rx) = queue::<Compact>(|builder| builder);
    let error = tx.try_send(job(UNWRITABLE, "mine")).expect_err("refused");
    assert!(
        std::error::Error::source(&error).is_some_and(|source| source.to_string() == "unwritable"),
        "{error}"
    );
    assert_eq!(error.into_inner(), job(UNWRITABLE, "mine"));
    assert!(rx.is_empty());
    for number in 0..4 {
        tx.try_send(job(number, "")).expect("all slots are there");
    }
}

#[test]
fn a_refused_message_of_a_batch_comes_back_with_those_behind_it() {
    let (tx, rx) = queue::<Compact>(|builder| builder);
    let error = tx.send_batch([job(1, ""), job(UNWRITABLE, ""), job(3, "")]).expect_err("refused");
    assert_eq!(error.sent(), 1);
    assert_eq!(error.into_unsent(), [job(UNWRITABLE, ""), job(3, "")]);
    assert_eq!(rx.recv_batch(9).expect("received"), [job(1, "")]);
}

#[test]
fn bytes_that_a_codec_refuses_come_with_the_error_and_the_queue_goes_on() {
    let (tx, rx) = queue::<Compact>(|builder| builder);
    tx.send(job(UNREADABLE, "abc")).expect("sent");
    tx.send(job(2, "")).expect("sent");
    let mut bytes = UNREADABLE.to_le_bytes().to_vec();
    bytes.extend_from_slice(b"abc");
    assert_eq!(undecoded(rx.recv()), ("unreadable".into(), bytes));
    assert_eq!(rx.recv().expect("received"), job(2, ""));
}

#[test]
fn a_long_message_that_a_codec_refuses_comes_with_the_error_too() {
    let (tx, rx) = queue::<Compact>(|builder| builder);
    tx.send(job(UNREADABLE, &"x".repeat(100_000))).expect("sent");
    assert_eq!(undecoded(rx.recv()).1.len(), 100_004);
    tx.send(job(2, &"x".repeat(100_000))).expect("sent");
    assert_eq!(rx.recv().expect("received").number, 2);
}

#[test]
fn a_codec_that_panics_while_it_writes_wedges_nothing() {
    let (tx, rx) = queue::<Compact>(|builder| builder);
    let panicked = catch_unwind(AssertUnwindSafe(|| drop(tx.send(job(PANICS_WRITING, "")))));
    assert!(panicked.is_err());
    assert!(rx.is_empty());
    tx.send(job(2, "")).expect("sent");
    assert_eq!(rx.recv().expect("received"), job(2, ""));
}

#[test]
fn a_codec_that_panics_while_it_reads_loses_its_message_only() {
    let (tx, rx) = queue::<Compact>(|builder| builder.capacity(2));
    for text in ["", &"x".repeat(100_000)] {
        tx.send(job(PANICS_READING, text)).expect("sent");
        tx.send(job(2, "")).expect("sent");
        assert!(catch_unwind(AssertUnwindSafe(|| rx.recv().map(drop))).is_err());
        assert_eq!(rx.recv().expect("received"), job(2, ""));
    }
    for number in 0..2 {
        tx.try_send(job(number, &"x".repeat(1 << 20))).expect("slots and chunks are there");
    }
}

#[test]
fn what_is_longer_than_any_message_is_counted_and_not_kept() {
    let (tx, rx) = queue::<Compact>(|builder| builder.byte_budget(1 << 20));
    let error = tx.send(job(ENDLESS, "")).expect_err("too large");
    assert!(error.is_too_large());
    assert!(error.to_string().contains(&((1_u64 << 30) + 4).to_string()), "{error}");
    let (tx, _rx2) = queue::<Compact>(|builder| builder.byte_budget(0).slot_bytes(10));
    tx.send(job(1, "123456")).expect("ten bytes");
    assert!(tx.send(job(1, "1234567")).expect_err("eleven").is_too_large());
    drop(rx);
}

#[test]
fn a_codec_may_use_another_queue() {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    enum Nested {}
    impl Codec<u8> for Nested {
        const ID: u64 = 4;
        type Error = Refused;

        fn encode(value: &u8, out: &mut Sink<'_>) -> Result<(), Refused> {
            RUNS.fetch_add(1, Ordering::Relaxed);
            let (tx, rx) = queue::<Compact>(|builder| builder);
            tx.send(job(u32::from(*value), "inner")).map_err(|_| Refused("inner"))?;
            out.put(rx.recv().map_err(|_| Refused("inner"))?.text.as_bytes());
            out.put(&[*value]);
            Ok(())
        }

        fn decode(bytes: &[u8]) -> Result<u8, Refused> {
            bytes.strip_prefix(b"inner").and_then(|rest| rest.first().copied()).ok_or(Refused("inner"))
        }
    }
    let (tx, rx) = builder::<u8>().codec::<Nested>().capacity(2).build().expect("a queue");
    tx.send(7).expect("sent");
    assert_eq!(rx.recv().expect("received"), 7);
    assert_eq!(RUNS.load(Ordering::Relaxed), 1);
}

#[test]
fn a_queue_of_one_producer_and_one_consumer_takes_a_codec() {
    let (mut tx, mut rx) = builder::<Job>().codec::<Json>().capacity(2).build_spsc().expect("a queue");
    tx.send(job(7, "seven")).expect("sent");
    assert!(tx.send(job(7, "\"")).is_err());
    assert_eq!(rx.recv().expect("received"), job(7, "seven"));
}

#[test]
fn an_at_least_once_queue_takes_a_codec() {
    let queue = builder::<Job>().codec::<Compact>().capacity(2).at_least_once();
    let (tx, rx) = queue.build().expect("a queue");
    for text in ["seven", &"x".repeat(100_000)] {
        tx.send(job(7, text)).expect("sent");
        let lease = rx.recv_lease().expect("received");
        assert_eq!(*lease, job(7, text));
        lease.ack();
    }
}

#[test]
fn handles_travel_through_a_codec_that_uses_serde() {
    enum Handles {}
    impl Codec<Sender<u32>> for Handles {
        const ID: u64 = 5;
        type Error = postcard::Error;

        fn encode(sender: &Sender<u32>, out: &mut Sink<'_>) -> postcard::Result<()> {
            out.put(&postcard::to_stdvec(sender)?);
            Ok(())
        }

        fn decode(bytes: &[u8]) -> postcard::Result<Sender<u32>> {
            postcard::from_bytes(bytes)
        }
    }
    let _watchdog = watchdog();
    let (tx, rx) = builder::<Sender<u32>>().codec::<Handles>().capacity(2).build().expect("a queue");
    let (inner_tx, inner_rx) = ipc_queue::bounded(2).expect("a queue");
    tx.send(inner_tx).expect("sent");
    rx.recv().expect("received").send(7).expect("sent");
    assert_eq!(inner_rx.recv().expect("received"), 7);
}

/// Changes the prefix of a message in a slot or cell: of the one with these bytes, in whatever memory this process shares.
fn scribble(message: &[u8], prefix: u32) {
    let memory = OpenOptions::new().read(true).write(true).open("/proc/self/mem").expect("opened");
    let before = u32::try_from(message.len()).expect("short").to_ne_bytes();
    let pattern = [&before[..], message].concat();
    let maps = std::fs::read_to_string("/proc/self/maps").expect("read");
    let mut found = 0;
    for line in maps.lines().filter(|line| line.contains(" rw-s ")) {
        let (start, rest) = line.split_once('-').expect("a range");
        let start = u64::from_str_radix(start, 16).expect("an address");
        let end = u64::from_str_radix(rest.split_once(' ').expect("an end").0, 16).expect("an address");
        // Slots lie in front. Other tests' memory may be gone meanwhile.
        let mut bytes = vec![0; usize::try_from((end - start).min(1 << 18)).expect("short")];
        if memory.read_exact_at(&mut bytes, start).is_err() {
            continue;
        }
        if let Some(place) = bytes.windows(pattern.len()).position(|window| window == pattern) {
            memory.write_all_at(&prefix.to_ne_bytes(), start + place as u64).expect("written");
            found += 1;
        }
    }
    // Each end has a mapping of its own, or they share one.
    assert!(found > 0, "no message {message:?}");
}

/// In a prefix: the message lies in chunks.
const LARGE: u32 = 1 << 30;

#[test]
fn a_scribbled_prefix_makes_an_error_where_there_are_no_chunks() {
    let _watchdog = watchdog();
    for (slot_bytes, mark) in [(240, 0xA1), (300, 0xA2)] {
        let queue = builder::<[u8; 6]>().capacity(2).slot_bytes(slot_bytes);
        let (mut tx, mut rx) = queue.build_spsc().expect("a queue");
        for prefix in [LARGE, LARGE | 6, LARGE | 16, u32::MAX >> 1] {
            let message = [mark, 0x5C, 0xE3, 0x91, 0x1B, 0x7D];
            tx.send(message).expect("sent");
            scribble(&message, prefix);
            tx.send([7; 6]).expect("sent");
            assert_eq!(undecoded(rx.recv()), (String::new(), Vec::new()), "{prefix:x}");
            assert_eq!(rx.recv().expect("the queue goes on"), [7; 6]);
        }
    }
}

#[test]
fn a_scribbled_length_is_refused_with_the_bytes_of_the_slot() {
    let _watchdog = watchdog();
    let (mut tx, mut rx) = builder::<[u8; 6]>().capacity(2).slot_bytes(300).build_spsc().expect("a queue");
    let message = [0xA3, 0x5C, 0xE3, 0x91, 0x1B, 0x7D];
    tx.send(message).expect("sent");
    scribble(&message, 301);
    let (_, bytes) = undecoded(rx.recv());
    assert_eq!((&bytes[..6], bytes.len()), (&message[..], 300));
}

#[test]
fn a_scribbled_prefix_makes_an_error_where_cells_are_short() {
    let _watchdog = watchdog();
    let queue = builder::<[u8; 4]>().capacity(2).byte_budget(0).slot_bytes(4).at_least_once();
    let (tx, rx) = queue.build().expect("a queue");
    for prefix in [LARGE | 16, LARGE, LARGE | 4] {
        let message = [0xA4, 0x5C, 0xE3, 0x91];
        tx.send(message).expect("sent");
        scribble(&message, prefix);
        assert_eq!(undecoded(rx.recv_lease()), (String::new(), Vec::new()), "{prefix:x}");
    }
    tx.send([7; 4]).expect("sent");
    assert_eq!(*rx.recv_lease().expect("the queue goes on"), [7; 4]);
}

#[derive(Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "there is one at a time")]
enum Orders {
    /// Doubles every number.
    Echo(Receiver<Job, Custom<Compact>>, Sender<Job, Custom<Json>>),
    /// Attaches with another codec than the sender's.
    Mismatch(Foreign),
}

/// A receiver of [`Compact`] that arrives as one of [`Json`].
struct Foreign(Result<Receiver<Job, Custom<Compact>>, String>);

impl Serialize for Foreign {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.as_ref().map_err(serde::ser::Error::custom)?.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Foreign {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let arrived = <Receiver<Job, Custom<Json>>>::deserialize(deserializer);
        Ok(Self(Err(arrived.err().map_or_else(String::new, |error| error.to_string()))))
    }
}

#[test]
fn child() {
    common::child(|orders: Orders, reporter| match orders {
        Orders::Echo(rx, tx) => {
            for job in &rx {
                let job = job.expect("received");
                tx.send(Job { number: job.number * 2, ..job }).expect("sent");
            }
        }
        Orders::Mismatch(foreign) => reporter.report(&foreign.0.is_err_and(|error| !error.is_empty())),
    });
}

#[test]
fn codecs_work_across_processes() {
    let _watchdog = watchdog();
    let (tx, rx) = queue::<Compact>(|builder| builder);
    let (echo_tx, echo_rx) = queue::<Json>(|builder| builder);
    let peer = Peer::start(&Orders::Echo(rx, echo_tx), None);
    for (number, len) in [(1, 0), (2, 200), (3, 1000), (4, 1_000_000)] {
        tx.send(job(number, &"x".repeat(len))).expect("sent");
        let echo = echo_rx.recv().expect("received");
        assert_eq!((echo.number, echo.text.len()), (number * 2, len));
    }
    drop(tx);
    assert!(echo_rx.recv().expect_err("the child has ended").is_disconnected());
    assert!(peer.wait().success());
}

#[test]
fn a_queue_of_another_codec_does_not_attach() {
    let _watchdog = watchdog();
    let (_tx, rx) = queue::<Compact>(|builder| builder);
    let peer = Peer::start(&Orders::Mismatch(Foreign(Ok(rx))), None);
    assert_eq!(peer.report(), Some(true));
}
