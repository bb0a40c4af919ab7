//! A holder is killed while another process sleeps on the lock.

use super::Survivor;
use crate::child::{Child, Control, Result};
use crate::clock::now;
use crate::pin::Pinning;
use crate::run::{Failure, Sample};
use rustix::event::{PollFd, PollFlags, poll};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Who helps the sleeping waiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Supervision {
    None,
    /// This process sees the holder's pidfd and sweeps.
    Sweep,
}

/// Locks, waiters and holders at a time, if nobody sweeps: a sweep for one would help all.
const LANES: u64 = 4;
/// The time that a waiter sleeps before the kill; spread evenly over more than the longest slice, so that the kill comes
/// at any moment of one.
const SLEEP: std::ops::Range<Duration> = Duration::from_millis(5)..Duration::from_millis(125);
/// A sweep that finds nobody is repeated after this time: the lock of a dead process falls a moment after its pidfd
/// shows the death.
const AGAIN: Duration = Duration::from_micros(200);
const PATIENCE: Duration = Duration::from_secs(10);

/// Kills `count` holders.
pub fn run<S: Survivor + Serialize>(
    name: &'static str,
    supervision: Supervision,
) -> impl FnMut(Pinning, u64) -> std::result::Result<Sample, Failure> {
    move |pinning, count| {
        let lanes = if supervision == Supervision::None {
            LANES
        } else {
            1
        };
        let begin = now();
        let lane = |index: u64| {
            let kills = (index..count)
                .step_by(usize::try_from(lanes)?)
                .map(|kill| phase(kill, count));
            kill_holders::<S>(name, pinning, supervision, kills)
        };
        let lane = |index| lane(index).map_err(|error| error.to_string());
        let delays: std::result::Result<Vec<_>, String> = std::thread::scope(|scope| {
            let lanes: Vec<_> = (0..lanes).map(|index| scope.spawn(move || lane(index))).collect();
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
}

/// How long the waiter of one kill sleeps. The kills of a run take their turns in another order than that of their
/// phases (7 has no divisor in common with the count).
fn phase(kill: u64, count: u64) -> Duration {
    let part = (kill * 7 % count) as f64 / count as f64;
    SLEEP.start + (SLEEP.end - SLEEP.start).mul_f64(part)
}

fn kill_holders<S: Survivor + Serialize>(
    name: &str,
    pinning: Pinning,
    supervision: Supervision,
    phases: impl Iterator<Item = Duration>,
) -> Result<Vec<Duration>> {
    let lock = S::create()?;
    let waiter = Child::spawn(&format!("locks.waiter.{name}"), pinning, &lock)?;
    let mut delays = Vec::new();
    for phase in phases {
        let mut holder = Child::spawn_caller(&format!("locks.holder.{name}"), pinning, &lock)?;
        let death = holder.sentinel()?;
        holder.control.recv::<()>()?;
        waiter.control.send(&true)?;
        waiter.control.recv::<()>()?;
        std::thread::sleep(phase);
        let killed = now();
        holder.kill()?;
        if supervision == Supervision::Sweep {
            sweep_after(&death)?;
        }
        let taken: Duration = waiter.control.recv()?;
        let delay = taken
            .checked_sub(killed)
            .ok_or("the lock was taken before its holder died")?;
        delays.push(delay);
    }
    waiter.control.send(&false)?;
    waiter.join()?;
    Ok(delays)
}

/// What a supervisor does: waits for the death, then sweeps until it has found the dead.
fn sweep_after(death: &OwnedFd) -> Result {
    let begin = now();
    poll(&mut [PollFd::new(death, PollFlags::IN)], None)?;
    while shm_core::segment::sweep_all() == 0 {
        if now() - begin > PATIENCE {
            return Err("no sweep finds the dead holder".into());
        }
        std::thread::sleep(AGAIN);
    }
    Ok(())
}

/// The process that dies with the lock.
pub fn hold<S: Survivor + DeserializeOwned>(control: &Control) -> Result {
    let lock: S = control.recv()?;
    lock.hold()?;
    control.send(&())?;
    // For ever: nothing comes but the kill.
    control.recv()
}

/// The process that waits.
pub fn wait<S: Survivor + DeserializeOwned>(control: &Control) -> Result {
    let lock: S = control.recv()?;
    while control.recv::<bool>()? {
        control.send(&())?;
        let died = lock.take_over()?;
        let taken = now();
        if !died {
            return Err("the waiter was not told of the death".into());
        }
        control.send(&taken)?;
    }
    Ok(())
}
