//! Processes that want the same lock all the time.

use super::Counter;
use crate::child::{Child, Control, Result};
use crate::page::{Gate, Page};
use crate::pin::Pinning;
use crate::run::{Failure, Sample};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// When a process began and ended, and how often it added one.
type Part = (Duration, Duration, u64);

/// Starts `parties` processes, every other one on side B, that add one until `count` is reached.
pub fn run<C: Counter + Serialize>(
    role: &'static str,
    parties: u32,
) -> impl FnMut(Pinning, u64) -> std::result::Result<Sample, Failure> {
    move |pinning, count| {
        let lock = C::create()?;
        let gate = Page::<Gate>::new()?;
        let mut children = Vec::new();
        for party in 0..parties {
            let spawn = if party % 2 == 0 {
                Child::spawn_caller
            } else {
                Child::spawn
            };
            children.push(spawn(role, pinning, &(&lock, &gate, parties, count))?);
        }
        let mut parts = Vec::new();
        for child in children {
            parts.push(child.control.recv::<Part>()?);
            child.join()?;
        }
        evaluate(&parts, count, lock.with(|number| *number)?)
    }
}

fn evaluate(parts: &[Part], count: u64, counted: u64) -> std::result::Result<Sample, Failure> {
    let sum: u64 = parts.iter().map(|part| part.2).sum();
    if (counted, sum) != (count, count) {
        return Err(format!("{counted} is counted, {sum} were added, instead of {count}").into());
    }
    let begin = parts.iter().map(|part| part.0).min().unwrap_or_default();
    let end = parts.iter().map(|part| part.1).max().unwrap_or_default();
    let least = parts.iter().map(|part| part.2).min().unwrap_or_default();
    let elapsed = end.saturating_sub(begin);
    Ok(Sample {
        elapsed,
        values: vec![
            count as f64 / elapsed.as_secs_f64() / 1e6,
            least as f64 * parts.len() as f64 / count as f64,
        ],
    })
}

/// One of the processes.
pub fn act<C: Counter + DeserializeOwned>(control: &Control) -> Result {
    let (lock, gate, parties, target): (C, Page<Gate>, u32, u64) = control.recv()?;
    let add = |number: &mut u64| {
        let more = *number < target;
        *number += u64::from(more);
        more
    };
    let begin = gate.pass(parties);
    let mut mine = 0u64;
    while lock.with(add)? {
        mine += 1;
    }
    control.send(&(begin, crate::clock::now(), mine))
}
