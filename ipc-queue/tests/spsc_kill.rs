//! One end of a queue of one producer and one consumer dies at random moments, again and again, and the next one goes on.
//!
//! The victims are children, one after the other; the survivor is this process, which also keeps a handle of the end that
//! dies. A victim keeps a *book* in memory that outlives it. What can escape its book is the one call during which it
//! died. So:
//!
//! * a killed producer has sent what its book says, or one message more;
//! * a killed consumer has taken what its book says, or one message more, which is lost;
//! * nothing is torn (messages carry a checksum), nothing arrives twice or out of order.
//!
//! `KILL_RUNS` sets the number of kills of each test (default 40), `KILL_SEED` the moments.
#![allow(unsafe_code, reason = "books lie in memory shared with processes that are killed")]
#![cfg(not(loom))]

mod common;

use common::{Peer, child as child_of_test, was_killed, watchdog_after};
use ipc_queue::{
    PlainConsumer, PlainProducer, RecvError, RecvTimeoutError, SendError, TryRecvError, spsc_plain,
};
use memmap2::{MmapOptions, MmapRaw};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use shm_core::handle::{ReceiveSession, SendSession, send_descriptor, take_descriptor};
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// One of these in each test: much sleeping, some, little.
const CAPACITIES: [usize; 3] = [1, 7, 256];
/// The most microseconds that a victim lives after its first message.
const LIFE: u64 = 3000;

/// Number, filler, checksum. Big enough that many deaths fall into the copying.
type Message = [u64; 32];

fn message(number: u64) -> Message {
    let mut message = [number; 32];
    for (i, word) in (0..).zip(&mut message[1..]) {
        *word = word.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(i);
    }
    message
}

/// The number of a message that is whole.
fn number(received: &Message) -> u64 {
    assert_eq!(*received, message(received[0]), "torn");
    received[0]
}

/// Two numbers that a process writes and another reads, even after the writer's death.
struct Book {
    file: File,
    map: MmapRaw,
}

/// The next number: that of the first message that the writer has not sent or taken, as far as the book knows.
const NEXT: usize = 0;
/// The number of the first message that a consumer got, and 1.
const FIRST: usize = 1;

impl Book {
    fn new(next: u64) -> Self {
        let file = rustix::fs::memfd_create("book", rustix::fs::MemfdFlags::CLOEXEC).expect("memory");
        let file = File::from(file);
        file.set_len(4096).expect("memory");
        let book = Self::map(file);
        book.word(NEXT).store(next, Ordering::Release);
        book
    }

    fn map(file: File) -> Self {
        let map = MmapOptions::new().map_raw(&file).expect("mapped");
        Self { file, map }
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < 512);
        // SAFETY: inside the page-aligned mapping, which `self` keeps; every access is atomic.
        unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().cast::<u64>().add(index)) }
    }

    fn next(&self) -> u64 {
        self.word(NEXT).load(Ordering::Acquire)
    }
}

impl Serialize for Book {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let file = self.file.as_fd().try_clone_to_owned().map_err(ser::Error::custom)?;
        send_descriptor(file).map_err(ser::Error::custom)?.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Book {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let file = take_descriptor(u32::deserialize(deserializer)?).map_err(de::Error::custom)?;
        Ok(Self::map(file.into()))
    }
}

#[derive(Serialize, Deserialize)]
enum Orders {
    /// Sends from the book's next number on, until it is killed.
    Produce { producer: PlainProducer<Message>, book: Book },
    /// Receives, and notes what, until it is killed.
    Consume { consumer: PlainConsumer<Message>, book: Book },
}

#[test]
fn child() {
    child_of_test(|orders, _| match orders {
        Orders::Produce { mut producer, book } => loop {
            let next = book.next();
            producer.send(message(next)).expect("sent");
            book.word(NEXT).store(next + 1, Ordering::Release);
        },
        Orders::Consume { mut consumer, book } => loop {
            let got = number(&consumer.recv().expect("received"));
            if book.word(FIRST).load(Ordering::Relaxed) == 0 {
                book.word(FIRST).store(got + 1, Ordering::Relaxed);
            } else {
                assert_eq!(got, book.next(), "twice, or out of order");
            }
            book.word(NEXT).store(got + 1, Ordering::Release);
        },
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

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

/// Moments: a small generator (xorshift).
struct Moments(u64);

impl Moments {
    fn new(test: u64) -> Self {
        let seed = setting("KILL_SEED", 0x2545_F491_4F6C_DD1D) ^ test;
        println!("KILL_SEED={seed}");
        Self(seed | 1)
    }

    fn next(&mut self) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        Duration::from_micros(self.0 % LIFE)
    }
}

/// Kills the victim; whatever else ended it was a failed check.
fn kill(victim: Peer) {
    assert!(was_killed(victim.kill()), "the victim failed before it was killed");
}

/// Receives message `next`, if one is there.
fn receive(rx: &mut PlainConsumer<Message>, next: &mut u64) -> bool {
    match rx.try_recv() {
        Ok(received) => {
            assert_eq!(number(&received), *next, "lost, twice, or out of order");
            *next += 1;
            true
        }
        Err(TryRecvError::Empty) => false,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_killed_producer_has_sent_each_message_or_not_and_its_successor_goes_on() {
    let _dog = watchdog_after(Duration::from_secs(120));
    let mut moments = Moments::new(1);
    let kills = setting("KILL_RUNS", 40);
    for capacity in CAPACITIES {
        let (mut tx, mut rx) = spsc_plain::<Message>(capacity).expect("a queue");
        let mut next = 0;
        for _ in 0..kills.div_ceil(3) {
            let orders = Orders::Produce { producer: handed_on(&tx), book: Book::new(next) };
            let victim = Peer::start(&orders, None);
            let Orders::Produce { producer, book } = orders else { unreachable!() };
            drop(producer);
            while !receive(&mut rx, &mut next) {
                std::thread::yield_now();
            }
            // Part of the time nobody receives, so that some die while they wait for room.
            let (busy, idle) = (moments.next(), moments.next());
            let begin = std::time::Instant::now();
            while begin.elapsed() < busy {
                receive(&mut rx, &mut next);
            }
            std::thread::sleep(idle / 4);
            kill(victim);
            while receive(&mut rx, &mut next) {}
            let sent = book.next();
            assert!(next == sent || next == sent + 1, "{sent} sent, {next} arrived");
            // The successor's first.
            while let Err(error) = tx.send(message(next)) {
                // The system is not done with the dead one yet.
                assert!(matches!(error, SendError::Taken(_)), "{error:?}");
                std::thread::yield_now();
            }
            assert!(receive(&mut rx, &mut next));
        }
        drop(tx);
        assert!(matches!(rx.recv(), Err(RecvError::Disconnected)));
    }
}

#[test]
fn a_killed_consumer_takes_at_most_one_message_with_it() {
    let _dog = watchdog_after(Duration::from_secs(120));
    let mut moments = Moments::new(2);
    let kills = setting("KILL_RUNS", 40);
    for capacity in CAPACITIES {
        let (mut tx, mut rx) = spsc_plain::<Message>(capacity).expect("a queue");
        // Sent so far; the first that was not taken yet, as far as the books know.
        let (mut sent, mut next) = (0, 0);
        let mut send = |tx: &mut PlainProducer<Message>| {
            if tx.try_send(message(sent)).is_ok() {
                sent += 1;
            }
            sent
        };
        for _ in 0..kills.div_ceil(3) {
            let orders = Orders::Consume { consumer: handed_on(&rx), book: Book::new(0) };
            let victim = Peer::start(&orders, None);
            let Orders::Consume { consumer, book } = orders else { unreachable!() };
            drop(consumer);
            while book.next() == 0 {
                send(&mut tx);
                std::thread::yield_now();
            }
            // Part of the time nobody sends, so that some die while they wait for messages.
            let (busy, idle) = (moments.next(), moments.next());
            let begin = std::time::Instant::now();
            while begin.elapsed() < busy {
                send(&mut tx);
            }
            std::thread::sleep(idle / 4);
            kill(victim);
            assert_eq!(book.word(FIRST).load(Ordering::Relaxed), next + 1, "the first of the new one");
            let taken = book.next();
            // The successor's first tells how much the dead one took.
            let first = loop {
                send(&mut tx);
                match rx.recv_timeout(Duration::from_millis(1)) {
                    Ok(received) => break number(&received),
                    // The system is not done with the dead one yet.
                    Err(error) => {
                        assert!(error.is_timeout() || matches!(error, RecvTimeoutError::Taken), "{error:?}")
                    }
                }
            };
            assert!(first == taken || first == taken + 1, "{taken} taken, then came {first}");
            next = first + 1;
        }
        let sent = send(&mut tx);
        drop(tx);
        let rest: Vec<u64> = rx.iter().map(|received| number(&received.expect("received"))).collect();
        assert!(rest.into_iter().eq(next..sent));
    }
}
