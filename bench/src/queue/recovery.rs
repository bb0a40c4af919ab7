//! A producer is killed while it holds a claim, and the message of a living one lies behind it.
//!
//! The victim sends messages of 64 KiB, so that it spends much of its time in the copy, between claim and publish. It
//! is stopped (SIGSTOP) at a random moment, and the queue drained: what cannot be received and still counts is a claim in
//! the victim's hands; otherwise it goes on and is stopped again. Now a waiter calls `recv`, this process sends a message,
//! which lies behind the claim, and after a while it kills the victim. The measured time runs from the kill until the
//! waiter has the message. Nobody sweeps: the waiter has to find out by itself.

use super::{Message, check};
use crate::child::{Child, Control, Result};
use crate::clock::{now, spin};
use crate::pin::Pinning;
use crate::run::{Better, Case, Count, Failure, Metric, OURS, Sample, Variant};
use ipc_queue::{PlainReceiver, PlainSender, bounded_plain};
use std::ops::Range;
use std::time::Duration;

/// What the victims send; large, so that a claim takes long.
type Large = [u64; 8192];

/// Much room, so that a victim that is not stopped at once does not wait for some instead.
const CAPACITY: usize = 64;
/// Queues, waiters and victims at a time.
const LANES: u64 = 4;
/// How long the waiter sleeps before the kill: evenly spread over more than the longest sleep between two looks.
const SLEEP: Range<Duration> = Duration::from_millis(5)..Duration::from_millis(125);
/// How long the victim runs on after a message before it is stopped: up to so many times so long.
const STEP: Duration = Duration::from_micros(3);
const STEPS: u32 = 8;
/// How often it is stopped at most until it holds a claim.
const ATTEMPTS: u32 = 10_000;
/// The number of a message of the living producer.
const LIVING: u64 = u64::MAX;

fn run(pinning: Pinning, count: u64) -> std::result::Result<Sample, Failure> {
    let begin = now();
    let lane = |index: u64| {
        let phases = (index..count)
            .step_by(LANES as usize)
            .map(|kill| phase(kill, count));
        lane(pinning, phases).map_err(|error| error.to_string())
    };
    let delays: std::result::Result<Vec<_>, String> = std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES).map(|index| scope.spawn(move || lane(index))).collect();
        lanes
            .into_iter()
            .map(|lane| lane.join().map_err(|_| "a lane panicked")?)
            .collect()
    });
    let mut delays = delays?.concat();
    delays.sort_unstable();
    let millis = |rank: usize| Duration::as_secs_f64(&delays[rank]) * 1e3;
    Ok(Sample {
        elapsed: now() - begin,
        values: vec![
            millis(delays.len() / 2),
            millis((delays.len() - 1) * 99 / 100),
            millis(delays.len() - 1),
        ],
    })
}

/// How long the waiter of one kill sleeps, in another order than that of the kills.
fn phase(kill: u64, count: u64) -> Duration {
    let part = (kill * 7 % count) as f64 / count as f64;
    SLEEP.start + (SLEEP.end - SLEEP.start).mul_f64(part)
}

fn lane(pinning: Pinning, phases: impl Iterator<Item = Duration>) -> Result<Vec<Duration>> {
    let (sender, receiver) = bounded_plain::<Large>(CAPACITY)?;
    let waiter = Child::spawn("queue.recovery.waiter", pinning, &receiver)?;
    let mut message = Large::blank();
    message.stamp(LIVING);
    let mut delays = Vec::new();
    for phase in phases {
        let mut victim = Child::spawn_caller("queue.recovery.victim", pinning, &sender)?;
        stop_in_claim(&victim, &receiver)?;
        waiter.control.send(&true)?;
        waiter.control.recv::<()>()?;
        sender.send(message)?;
        std::thread::sleep(phase);
        let killed = now();
        victim.kill()?;
        let taken: Duration = waiter.control.recv()?;
        let delay = taken.checked_sub(killed);
        delays.push(delay.ok_or("the message behind the claim was received before the kill")?);
    }
    waiter.control.send(&false)?;
    waiter.join()?;
    if receiver.is_empty() {
        Ok(delays)
    } else {
        Err("a message is left, or a claim".into())
    }
}

/// Stops the victim at a moment at which it holds a claim and nothing else is in the queue.
fn stop_in_claim(victim: &Child, receiver: &PlainReceiver<Large>) -> Result {
    let mut next = 0;
    for attempt in 0..ATTEMPTS {
        // After what lies there already, a message tells that the victim runs just now; it is stopped a little later, each
        // time at another point of its loop.
        for _ in 0..2 * CAPACITY {
            if !take(receiver, &mut next)? {
                break;
            }
        }
        spin(|| match take(receiver, &mut next) {
            Ok(false) => None,
            taken => Some(taken),
        })?;
        let end = now() + STEP * (attempt % STEPS);
        while now() < end {
            take(receiver, &mut next)?;
        }
        victim.stop()?;
        while take(receiver, &mut next)? {}
        if !receiver.is_empty() {
            return Ok(());
        }
        victim.resume()?;
    }
    Err("the victim is never stopped with a claim".into())
}

/// Takes a message if there is one, and checks it.
fn take(receiver: &PlainReceiver<Large>, next: &mut u64) -> Result<bool> {
    match receiver.try_recv() {
        Ok(message) => check(&message, *next)?,
        Err(error) if error.is_empty() => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    *next += 1;
    Ok(true)
}

/// The process that dies.
pub fn die(control: &Control) -> Result {
    let sender: PlainSender<Large> = control.recv()?;
    let mut message = Large::blank();
    for number in 0.. {
        message.stamp(number);
        sender.send(message).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// The process that waits.
pub fn wait(control: &Control) -> Result {
    let receiver: PlainReceiver<Large> = control.recv()?;
    while control.recv::<bool>()? {
        control.send(&())?;
        let message = receiver.recv()?;
        let taken = now();
        check(&message, LIVING)?;
        control.send(&taken)?;
    }
    Ok(())
}

pub fn case() -> Case {
    let metric = |name| Metric {
        name,
        unit: "ms",
        better: Better::Lower,
    };
    Case {
        bench: "queue",
        name: "recovery",
        about: "A producer is killed (SIGKILL) while it holds a claim; the message of a living one lies behind it. From \
                the kill until a process that waits in `recv` has that message. Nobody helps: no supervisor, no sweep.",
        pinnings: &[Pinning::Diff],
        metrics: ["p50", "p99", "most"].map(metric).into(),
        variants: vec![Variant::new(OURS, Count::Fixed(100, 4), run)],
    }
}
