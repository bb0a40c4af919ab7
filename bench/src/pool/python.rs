//! Python's `multiprocessing.Pool` and `ProcessPoolExecutor`, in a Python process.

use super::{Job, WORKERS};
use crate::pin::{Pinning, Side};
use crate::python;
use crate::run::{Failure, Sample};
use std::time::Duration;

/// Which of the two.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Pool,
    Executor,
}

pub fn run(job: Job, kind: Kind) -> impl FnMut(Pinning, u64) -> Result<Sample, Failure> {
    move |pinning, count| {
        let (name, workers) = match job {
            Job::Start(workers) => ("Start", workers),
            Job::Call => ("Call", WORKERS),
            Job::MapDefault => ("MapDefault", WORKERS),
            Job::MapChunk1 => ("MapChunk1", WORKERS),
        };
        let cpus = |side| format!("{:?}", pinning.cpus(side));
        let args = [
            format!("{kind:?}"),
            name.to_owned(),
            workers.to_string(),
            count.to_string(),
            cpus(Side::A),
            cpus(Side::B),
        ];
        let mut nanos = python::run(include_str!("pool.py"), &args)?;
        nanos.sort_unstable();
        let elapsed = Duration::from_nanos(nanos.iter().sum());
        let at = |rank: usize| Duration::from_nanos(nanos[rank]).as_secs_f64();
        let values = match job {
            Job::Start(_) => vec![at(0) * 1e3],
            Job::Call => vec![at(nanos.len() / 2) * 1e6, at(nanos.len() * 99 / 100) * 1e6],
            Job::MapDefault | Job::MapChunk1 => vec![count as f64 / at(0) / 1e6],
        };
        Ok(Sample { elapsed, values })
    }
}
