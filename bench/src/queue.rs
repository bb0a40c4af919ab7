//! Throughput of one producer and one consumer, 1,024 messages of room, three message sizes.
//!
//! The consumer is this process on side A. The producer is a child on side B, or a thread for the rivals that
//! cannot leave the process. First a tenth of the messages goes through as a warm-up; the measured time runs
//! from the producer's first message after that to the consumer's last. Every message carries its number in its
//! first and last word, which the consumer checks; the words between hold a pattern, checked in one message
//! of 64, and travel in all of them.
//!
//! The other cases (more producers and consumers, batches, types, large messages, waiting, deaths) are in modules of
//! their own, which say how they differ.

mod batch;
mod channel;
mod iceoryx;
mod idle;
mod large;
mod many;
mod ours;
mod pipe;
mod polling;
mod python;
mod recovery;
mod spsc;
mod threads;
mod typed;

use crate::child::{Control, Result, Role};
use crate::clock::now;
use crate::pin::Pinning;
use crate::run::{Better, Case, Count, Failure, Metric, OURS, Sample, Variant};
use bytemuck::Pod;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Messages of room in every queue that can be told.
const CAPACITY: usize = 1024;

/// The children of these benchmarks.
pub const ROLES: &[(&str, Role)] = &[
    ("queue.ours.8B", ours::produce::<u64>),
    ("queue.ours.64B", ours::produce::<[u64; 8]>),
    ("queue.ours.1KiB", ours::produce::<[u64; 128]>),
    ("queue.ours.8B_spsc", spsc::produce),
    ("queue.ours.8B_batch32", batch::produce),
    ("queue.ours.8B_polling", polling::produce),
    ("queue.ours.typed", typed::produce),
    ("queue.ours.64KiB", large::produce::<large::ByCopy>),
    ("queue.ours.1MiB", large::produce::<large::InPlace>),
    ("queue.iceoryx2.64KiB", large::produce_iceoryx::<large::ByCopy>),
    ("queue.iceoryx2.1MiB", large::produce_iceoryx::<large::InPlace>),
    ("queue.idle.receiver", idle::receive),
    ("queue.idle.sender", idle::send),
    ("queue.recovery.victim", recovery::die),
    ("queue.recovery.waiter", recovery::wait),
    ("queue.many.produce", many::produce),
    ("queue.many.consume", many::consume),
    ("queue.iceoryx2.8B", iceoryx::produce::<u64>),
    ("queue.iceoryx2.64B", iceoryx::produce::<[u64; 8]>),
    ("queue.iceoryx2.1KiB", iceoryx::produce::<[u64; 128]>),
    ("queue.ipc_channel.8B", channel::produce::<u64>),
    ("queue.ipc_channel.64B", channel::produce::<[u64; 8]>),
    ("queue.ipc_channel.1KiB", channel::produce::<[u64; 128]>),
    ("queue.ipc_channel.typed", typed::produce_channel),
    ("queue.pipe.8B", pipe::produce::<u64>),
    ("queue.pipe.64B", pipe::produce::<[u64; 8]>),
    ("queue.pipe.1KiB", pipe::produce::<[u64; 128]>),
];

/// What travels.
pub trait Message: Pod + std::fmt::Debug + iceoryx2::prelude::ZeroCopySend + Send {
    /// As in the names of the ratios.
    const SIZE: &'static str;

    /// A message with the pattern in its inner words.
    fn blank() -> Self;

    /// Puts the number in.
    fn stamp(&mut self, seq: u64);
}

impl Message for u64 {
    const SIZE: &'static str = "8B";

    fn blank() -> Self {
        0
    }

    fn stamp(&mut self, seq: u64) {
        *self = seq;
    }
}

macro_rules! message {
    ($words:literal, $size:literal) => {
        impl Message for [u64; $words] {
            const SIZE: &'static str = $size;

            fn blank() -> Self {
                std::array::from_fn(pattern)
            }

            #[inline]
            fn stamp(&mut self, seq: u64) {
                self[0] = seq;
                self[$words - 1] = seq;
            }
        }
    };
}

message!(8, "64B");
message!(128, "1KiB");
message!(8192, "64KiB");

/// What an inner word holds.
fn pattern(index: usize) -> u64 {
    (index as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// Whether the bytes are message `seq`.
#[inline]
fn check<M: Message>(message: &M, seq: u64) -> Result {
    check_words(bytemuck::bytes_of(message), size_of::<M>(), seq)
}

/// Whether the bytes are message `seq`.
#[inline]
fn check_bytes<M: Message>(bytes: &[u8], seq: u64) -> Result {
    check_words(bytes, size_of::<M>(), seq)
}

/// Whether the bytes are message `seq`, of `len` bytes.
#[inline]
fn check_words(bytes: &[u8], len: usize, seq: u64) -> Result {
    let word = |index: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[index * 8..index * 8 + 8]);
        u64::from_ne_bytes(word)
    };
    let words = len / 8;
    let right = bytes.len() == len
        && word(0) == seq
        && word(words - 1) == seq
        && (!seq.is_multiple_of(64) || (1..words - 1).all(|index| word(index) == pattern(index)));
    if right { Ok(()) } else { wrong(seq) }
}

#[cold]
fn wrong(seq: u64) -> Result {
    Err(format!("message {seq} did not arrive in its turn or is torn").into())
}

/// How many messages a run sends.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Plan {
    warm: u64,
    count: u64,
}

impl Plan {
    fn new(count: u64) -> Self {
        Self {
            warm: (count / 10).clamp(16, 100_000),
            count,
        }
    }

    fn sample(self, elapsed: Duration) -> Sample {
        let rate = self.count as f64 / elapsed.as_secs_f64() / 1e6;
        Sample {
            elapsed,
            values: vec![rate],
        }
    }
}

/// The producing child: sends the warm-up, waits for the word, sends the rest, tells when it began, and stays
/// until it is told to end.
fn produce<M: Message>(control: &Control, plan: Plan, send: impl FnMut(&M) -> Result) -> Result {
    let begin = produce_with(plan, || control.recv(), send)?;
    control.send(&begin)?;
    control.recv()
}

/// The producing loops. Returns when the measured part began.
fn produce_with<M: Message>(
    plan: Plan,
    gate: impl FnOnce() -> Result,
    mut send: impl FnMut(&M) -> Result,
) -> Result<Duration> {
    let mut message = M::blank();
    for seq in 0..plan.warm {
        message.stamp(seq);
        send(&message)?;
    }
    gate()?;
    let begin = now();
    for seq in plan.warm..plan.warm + plan.count {
        message.stamp(seq);
        send(&message)?;
    }
    Ok(begin)
}

/// The consumer of a producing child.
fn consume(
    control: &Control,
    plan: Plan,
    recv: impl FnMut(u64) -> Result,
) -> std::result::Result<Sample, Failure> {
    let end = consume_with(plan, || control.send(&()), recv)?;
    let begin: Duration = control.recv()?;
    control.send(&())?;
    Ok(plan.sample(end.saturating_sub(begin)))
}

/// The consuming loops; `recv` takes message `seq` and checks it. Returns when the last one was there.
fn consume_with(
    plan: Plan,
    gate: impl FnOnce() -> Result,
    mut recv: impl FnMut(u64) -> Result,
) -> Result<Duration> {
    for seq in 0..plan.warm {
        recv(seq)?;
    }
    gate()?;
    for seq in plan.warm..plan.warm + plan.count {
        recv(seq)?;
    }
    Ok(now())
}

/// The one number of most cases: how many messages.
fn rate() -> Vec<Metric> {
    vec![Metric {
        name: "",
        unit: "M msg/s",
        better: Better::Higher,
    }]
}

/// The cases.
pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        case::<u64>(),
        case::<[u64; 8]>(),
        case::<[u64; 128]>(),
        spsc::case(),
        batch::case(),
        polling::case(),
        typed::case(),
    ];
    cases.extend(many::cases());
    cases.extend(large::cases());
    cases.extend([idle::case(), recovery::case()]);
    cases
}

fn case<M: Message>() -> Case {
    Case {
        bench: "queue",
        name: M::SIZE,
        about: "Messages from one producer to one consumer, capacity 1,024. The crossbeam rows are threads of one \
                process, all others two processes. Crossbeam and iceoryx2 spin: 128 pauses, then `sched_yield`; \
                the rest block in their own way.",
        pinnings: &Pinning::ALL,
        metrics: rate(),
        variants: vec![
            Variant::new(OURS, Count::From(20_000), ours::run::<M>),
            Variant::new(
                "crossbeam_arrayqueue",
                Count::From(20_000),
                threads::array_queue::<M>,
            ),
            Variant::new("crossbeam_channel", Count::From(20_000), threads::channel::<M>),
            Variant::new("iceoryx2", Count::From(2_000), iceoryx::run::<M>),
            Variant::new("ipc_channel", Count::From(2_000), channel::run::<M>),
            Variant::new("pipe", Count::From(2_000), pipe::run::<M>),
            Variant::new("python", Count::From(500), python::run::<M>),
        ],
    }
}
