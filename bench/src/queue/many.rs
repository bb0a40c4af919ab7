//! Several producers and several consumers on one queue, 8-byte messages.
//!
//! Ours are processes, one for each, the rivals' threads. Everybody runs the same two loops twice: once with a tenth of
//! the messages as a warm-up, once measured. A message is its producer's index and its number there. The producer that
//! is the last to finish sends every consumer a stop. The measured time runs from the first producer's begin to the
//! last consumer's stop.
//!
//! Each consumer checks that the numbers of each producer only rise; together they must have got, of each producer,
//! as many messages and the same sum as it sent.

use super::{CAPACITY, rate};
use crate::child::{Child, Control, Result};
use crate::clock::{now, spin_after};
use crate::page::{Gate, Page};
use crate::pin::{Pinning, Side};
use crate::run::{Case, Count, Failure, OURS, Sample, Variant};
use crossbeam_channel::bounded;
use crossbeam_queue::ArrayQueue;
use ipc_queue::{PlainReceiver, PlainSender, bounded_plain};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The end of a pass, for one consumer.
const STOP: u64 = u64::MAX;
/// Bits of a message's number; its producer's index is above them.
const NUMBER_BITS: u32 = 40;

/// Who takes part, and what each producer sends.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Crew {
    producers: u32,
    consumers: u32,
    /// Messages of each producer in the warm-up and in the measured pass.
    passes: [u64; 2],
}

/// Where the participants meet.
#[derive(Serialize, Deserialize)]
struct Meeting {
    gate: Page<Gate>,
    /// Producers that have finished each pass.
    finished: Page<[AtomicU64; 2]>,
}

/// What one consumer got of one producer.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Tally {
    count: u64,
    sum: u64,
    /// The least number that may come now.
    next: u64,
}

/// What a consumer reports.
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    end: Duration,
    tallies: Vec<Tally>,
}

impl Crew {
    /// `count` messages in all.
    fn new(producers: u32, consumers: u32, count: u64) -> Self {
        let each = (count / u64::from(producers)).max(1);
        Self {
            producers,
            consumers,
            passes: [(each / 10).max(16), each],
        }
    }

    /// Passes the gate for the pass of this number. Returns when it opened.
    fn begin(self, meeting: &Meeting, pass: usize) -> Duration {
        let parties = self.producers + self.consumers;
        meeting.gate.pass(if pass == 0 { parties } else { 2 * parties })
    }

    /// A producer. Returns when its measured pass began.
    fn produce(self, meeting: &Meeting, index: u32, mut send: impl FnMut(u64) -> Result) -> Result<Duration> {
        let mut begin = Duration::ZERO;
        for (pass, count) in self.passes.into_iter().enumerate() {
            begin = self.begin(meeting, pass);
            let base = u64::from(index) << NUMBER_BITS;
            for number in 0..count {
                send(base | number)?;
            }
            // All messages of those who finished before are in the queue already.
            if meeting.finished[pass].fetch_add(1, Ordering::AcqRel) + 1 == u64::from(self.producers) {
                (0..self.consumers).try_for_each(|_| send(STOP))?;
            }
        }
        Ok(begin)
    }

    /// A consumer.
    fn consume(self, meeting: &Meeting, mut recv: impl FnMut() -> Result<u64>) -> Result<Report> {
        let mut report = None;
        for pass in 0..self.passes.len() {
            let mut tallies = vec![Tally::default(); self.producers as usize];
            self.begin(meeting, pass);
            loop {
                let message = recv()?;
                if message == STOP {
                    break;
                }
                let number = message & ((1 << NUMBER_BITS) - 1);
                let tally = tallies.get_mut((message >> NUMBER_BITS) as usize);
                match tally {
                    Some(tally) if number >= tally.next => {
                        tally.next = number + 1;
                        tally.count += 1;
                        tally.sum += number;
                    }
                    _ => return Err(format!("message {message:#x} is nobody's or out of order").into()),
                }
            }
            report = Some(Report { end: now(), tallies });
        }
        report.ok_or_else(|| "there was no pass".into())
    }

    /// Checks that all messages of the measured pass arrived, and how fast.
    fn sample(self, begins: &[Duration], reports: &[Report]) -> std::result::Result<Sample, Failure> {
        let count = self.passes[1];
        for producer in 0..self.producers as usize {
            let of =
                |part: fn(&Tally) -> u64| reports.iter().map(|r| part(&r.tallies[producer])).sum::<u64>();
            let (got, sum) = (of(|tally| tally.count), of(|tally| tally.sum));
            if (got, sum) != (count, count * (count - 1) / 2) {
                let right = format!(
                    "{count} messages of producer {producer} were sent, {got} with sum {sum} arrived"
                );
                return Err(right.into());
            }
        }
        let begin = begins.iter().min().ok_or("no producer")?;
        let end = reports
            .iter()
            .map(|report| report.end)
            .max()
            .ok_or("no consumer")?;
        let elapsed = end.saturating_sub(*begin);
        let messages = count * u64::from(self.producers);
        Ok(Sample {
            elapsed,
            values: vec![messages as f64 / elapsed.as_secs_f64() / 1e6],
        })
    }
}

impl Meeting {
    fn new() -> Result<Self> {
        Ok(Self {
            gate: Page::new()?,
            finished: Page::new()?,
        })
    }
}

/// The side of a producer; a consumer of the same index is on the other one. So a pair has both sides, and of two pairs
/// one producer and one consumer are on each.
fn side_of_producer(index: u32) -> Side {
    if index.is_multiple_of(2) { Side::B } else { Side::A }
}

fn side_of_consumer(index: u32) -> Side {
    if index.is_multiple_of(2) { Side::A } else { Side::B }
}

/// Ours: every participant a process, blocking calls.
fn ours(producers: u32, consumers: u32) -> impl FnMut(Pinning, u64) -> std::result::Result<Sample, Failure> {
    move |pinning, count| {
        let crew = Crew::new(producers, consumers, count);
        let meeting = Meeting::new()?;
        let (sender, receiver) = bounded_plain::<u64>(CAPACITY)?;
        let mut senders = Vec::new();
        for index in 0..producers {
            let args = (crew, index, &meeting, &sender);
            senders.push(Child::spawn_on(
                side_of_producer(index),
                "queue.many.produce",
                pinning,
                &args,
            )?);
        }
        let mut receivers = Vec::new();
        for index in 0..consumers {
            let args = (crew, &meeting, &receiver);
            receivers.push(Child::spawn_on(
                side_of_consumer(index),
                "queue.many.consume",
                pinning,
                &args,
            )?);
        }
        drop((sender, receiver));
        let begins: Vec<Duration> = senders
            .iter()
            .map(|child| child.control.recv())
            .collect::<Result<_>>()?;
        let reports: Vec<Report> = receivers
            .iter()
            .map(|child| child.control.recv())
            .collect::<Result<_>>()?;
        for child in senders.into_iter().chain(receivers) {
            child.join()?;
        }
        crew.sample(&begins, &reports)
    }
}

/// A producing child.
pub fn produce(control: &Control) -> Result {
    let (crew, index, meeting, sender): (Crew, u32, Meeting, PlainSender<u64>) = control.recv()?;
    let begin = crew.produce(&meeting, index, |message| Ok(sender.send(message)?))?;
    control.send(&begin)
}

/// A consuming child.
pub fn consume(control: &Control) -> Result {
    let (crew, meeting, receiver): (Crew, Meeting, PlainReceiver<u64>) = control.recv()?;
    let report = crew.consume(&meeting, || Ok(receiver.recv()?))?;
    control.send(&report)
}

/// The rivals: every participant a thread with a copy of `send` or `recv`.
fn threads(
    crew: Crew,
    pinning: Pinning,
    send: impl FnMut(u64) -> Result + Clone + Send,
    recv: impl FnMut() -> Result<u64> + Clone + Send,
) -> std::result::Result<Sample, Failure> {
    let meeting = &Meeting::new()?;
    let text = |error: Box<dyn std::error::Error>| error.to_string();
    std::thread::scope(|scope| {
        let producers: Vec<_> = (0..crew.producers)
            .map(|index| {
                let send = send.clone();
                scope.spawn(move || {
                    let _pinned = pinning.enter(side_of_producer(index));
                    crew.produce(meeting, index, send).map_err(text)
                })
            })
            .collect();
        let consumers: Vec<_> = (0..crew.consumers)
            .map(|index| {
                let recv = recv.clone();
                scope.spawn(move || {
                    let _pinned = pinning.enter(side_of_consumer(index));
                    crew.consume(meeting, recv).map_err(text)
                })
            })
            .collect();
        let begins: std::result::Result<Vec<_>, String> = producers
            .into_iter()
            .map(|thread| thread.join().map_err(|_| "a producing thread panicked")?)
            .collect();
        let reports: std::result::Result<Vec<_>, String> = consumers
            .into_iter()
            .map(|thread| thread.join().map_err(|_| "a consuming thread panicked")?)
            .collect();
        crew.sample(&begins?, &reports?)
    })
}

/// `ArrayQueue`, on full and empty with so many pauses before the thread yields.
fn array_queue<const PAUSES: u32>(
    producers: u32,
    consumers: u32,
) -> impl FnMut(Pinning, u64) -> std::result::Result<Sample, Failure> {
    move |pinning, count| {
        let queue = &ArrayQueue::new(CAPACITY);
        threads(
            Crew::new(producers, consumers, count),
            pinning,
            |message| {
                spin_after::<PAUSES, _>(|| queue.push(message).ok());
                Ok(())
            },
            || Ok(spin_after::<PAUSES, _>(|| queue.pop())),
        )
    }
}

/// `crossbeam_channel`, with a yield at every miss.
fn channel_yielding(
    producers: u32,
    consumers: u32,
) -> impl FnMut(Pinning, u64) -> std::result::Result<Sample, Failure> {
    move |pinning, count| {
        let (sender, receiver) = bounded(CAPACITY);
        threads(
            Crew::new(producers, consumers, count),
            pinning,
            move |message| {
                spin_after::<0, _>(|| sender.try_send(message).ok());
                Ok(())
            },
            move || Ok(spin_after::<0, _>(|| receiver.try_recv().ok())),
        )
    }
}

/// `crossbeam_channel` with its blocking calls.
fn channel_blocking(
    producers: u32,
    consumers: u32,
) -> impl FnMut(Pinning, u64) -> std::result::Result<Sample, Failure> {
    move |pinning, count| {
        let (sender, receiver) = bounded(CAPACITY);
        threads(
            Crew::new(producers, consumers, count),
            pinning,
            move |message| Ok(sender.send(message)?),
            move || Ok(receiver.recv()?),
        )
    }
}

/// The cases: two of each, and sixteen of each.
pub fn cases() -> Vec<Case> {
    let some = Count::From(20_000);
    vec![
        Case {
            bench: "queue",
            name: "8B_2x2",
            about: "Two producers and two consumers, capacity 1,024, 8 bytes; *diff*: one producer and one consumer on each \
                    CPU. Ours are four processes with blocking calls, crossbeam's four threads that spin (128 pauses, \
                    then `sched_yield`), yield at every miss, or block.",
            pinnings: &Pinning::ALL,
            metrics: rate(),
            variants: vec![
                Variant::new(OURS, some, ours(2, 2)),
                Variant::new("crossbeam_arrayqueue", some, array_queue::<128>(2, 2)),
                Variant::new("crossbeam_arrayqueue_yielding", some, array_queue::<0>(2, 2)),
                Variant::new("crossbeam_channel", some, channel_blocking(2, 2)),
                Variant::new("crossbeam_channel_yielding", some, channel_yielding(2, 2)),
            ],
        },
        Case {
            bench: "queue",
            name: "16x16",
            about: "16 producers and 16 consumers, capacity 1,024, 8 bytes, not pinned. Ours are 32 processes with \
                    blocking calls, crossbeam's as many threads that block, or yield at every miss. own_1x1: ours with \
                    one producer and one consumer.",
            pinnings: &[Pinning::None],
            metrics: rate(),
            variants: vec![
                Variant::new(OURS, some, ours(16, 16)),
                Variant::new("crossbeam_channel", some, channel_blocking(16, 16)),
                Variant::new("crossbeam_channel_yielding", some, channel_yielding(16, 16)),
                Variant::new("own_1x1", some, ours(1, 1)),
            ],
        },
    ]
}
