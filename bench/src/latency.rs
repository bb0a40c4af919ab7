//! Ping-pong: the round trip of an 8-byte number between two processes.
//!
//! The asker is this process on side A, the answerer a child on side B that sends back what it gets. Each
//! answer is checked. One reading of the clock per round trip is in the numbers of everybody.

mod ours;
mod raw;
mod socket;

use crate::child::{Result, Role};
use crate::pin::Pinning;
use crate::run::{Better, Case, Count, Failure, Metric, OURS, Sample, Variant};
use std::time::{Duration, Instant};

/// The children of these benchmarks.
pub const ROLES: &[(&str, Role)] = &[
    ("latency.ours", ours::answer),
    ("latency.raw_atomic", raw::answer_atomic),
    ("latency.raw_futex", raw::answer_futex),
    ("latency.unix_socket", socket::answer),
];

/// What the asker sends last.
const STOP: u64 = u64::MAX;

/// Asks `count` times after a warm-up; `ask` makes one round trip.
fn measure(count: u64, mut ask: impl FnMut(u64) -> Result<u64>) -> std::result::Result<Sample, Failure> {
    let warm = (count / 10).max(16);
    let mut trips = Vec::with_capacity(usize::try_from(count)?);
    let mut begin = Instant::now();
    let mut last = begin;
    for number in 0..warm + count {
        if number == warm {
            begin = Instant::now();
            last = begin;
        }
        let got = ask(number)?;
        if got != number {
            return Err(format!("asked {number}, got {got}").into());
        }
        if number >= warm {
            let now = Instant::now();
            trips.push(now - last);
            last = now;
        }
    }
    let elapsed = last - begin;
    trips.sort_unstable();
    let micros = |rank: usize| Duration::as_secs_f64(&trips[rank]) * 1e6;
    Ok(Sample {
        elapsed,
        values: vec![micros(trips.len() / 2), micros(trips.len() * 99 / 100)],
    })
}

/// The case.
pub fn cases() -> Vec<Case> {
    let micros = |name| Metric {
        name,
        unit: "us",
        better: Better::Lower,
    };
    vec![Case {
        bench: "latency",
        name: "",
        about: "Round trip of 8 bytes between two processes. Ours: two queues and their blocking `recv`. Raw \
                atomic: two cache lines in shared memory, each side polls its own without a pause (and yields \
                after 4,000 polls, which only matters on one processor). Raw futex: the same lines, each side \
                sleeps at once. Unix socket: a stream pair, blocking.",
        pinnings: &Pinning::ALL,
        metrics: vec![micros("p50"), micros("p99")],
        variants: vec![
            Variant::new(OURS, Count::From(1_000), ours::run),
            Variant::new("raw_atomic", Count::From(1_000), raw::atomic),
            Variant::new("raw_futex", Count::From(500), raw::futex),
            Variant::new("unix_socket", Count::From(500), socket::run),
        ],
    }]
}
