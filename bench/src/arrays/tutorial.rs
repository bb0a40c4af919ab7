//! Create an array, have a child double it, check it.

use super::{check, double};
use crate::child::{self, Control, Result};
use crate::pin::{Pinning, Side};
use crate::python as interpreter;
use crate::run::{Failure, Sample};
use proc_pool::Process;
use serde::{Deserialize, Serialize};
use shm_array::{LockError, SharedArray};
use std::time::{Duration, Instant};

/// Whether the start of the child is measured too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Child {
    Starts,
    Runs,
}

/// The whole of it, in a process of its own: the caller of `Process::spawn`, on side A; the child is on side B.
pub fn run(kind: Child) -> impl FnMut(Pinning, u64) -> std::result::Result<Sample, Failure> {
    move |pinning, count| {
        let elapsed = match kind {
            Child::Starts => {
                let caller = child::Child::spawn_caller("arrays.tutorial.caller", pinning, &count)?;
                let elapsed = caller.control.recv()?;
                caller.join()?;
                elapsed
            }
            Child::Runs => {
                let worker = child::Child::spawn("arrays.tutorial.worker", pinning, &())?;
                worker.control.recv::<()>()?;
                let _pinned = pinning.enter(Side::A);
                let elapsed = tutorial(count, |array| {
                    worker.control.send(array)?;
                    worker.control.recv()
                })?;
                worker.join()?;
                elapsed
            }
        };
        Ok(sample(elapsed))
    }
}

fn sample(elapsed: Duration) -> Sample {
    Sample {
        elapsed,
        values: vec![elapsed.as_secs_f64() * 1e3],
    }
}

fn tutorial(count: u64, hand_over: impl FnOnce(&SharedArray<i64>) -> Result) -> Result<Duration> {
    let begin = Instant::now();
    let array = SharedArray::from_iter(0..i64::try_from(count)?)?;
    hand_over(&array)?;
    let guard = array.lock().map_err(LockError::into_error)?;
    let right = check(&guard, 0, 2);
    let elapsed = begin.elapsed();
    right?;
    Ok(elapsed)
}

/// What the child does.
fn double_all(array: SharedArray<i64>) -> bool {
    match array.lock() {
        Ok(mut guard) => {
            double(&mut guard);
            true
        }
        Err(_) => false,
    }
}

/// The caller, for the child that starts.
pub fn act(control: &Control) -> Result {
    let elapsed = tutorial(control.recv()?, |array| {
        match Process::spawn(double_all, array.clone())?.join()? {
            true => Ok(()),
            false => Err("the child could not lock the array".into()),
        }
    })?;
    control.send(&elapsed)
}

/// The child that runs already.
pub fn work(control: &Control) -> Result {
    control.recv::<()>()?;
    control.send(&())?;
    match double_all(control.recv()?) {
        true => control.send(&()),
        false => Err("the array could not be locked".into()),
    }
}

/// The same with numpy and `multiprocessing.shared_memory`.
pub fn python(kind: Child) -> impl FnMut(Pinning, u64) -> std::result::Result<Sample, Failure> {
    move |pinning, count| {
        let job = match kind {
            Child::Starts => "starts",
            Child::Runs => "runs",
        };
        let args = [
            job.to_owned(),
            count.to_string(),
            format!("{:?}", pinning.cpus(Side::A)),
            format!("{:?}", pinning.cpus(Side::B)),
        ];
        let nanos = interpreter::run(include_str!("tutorial.py"), &args)?;
        let &[nanos] = nanos.as_slice() else {
            return Err("one number was expected".into());
        };
        Ok(sample(Duration::from_nanos(nanos)))
    }
}
