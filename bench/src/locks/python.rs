//! Python's `multiprocessing` locks, in a Python process.

use super::uncontended::sample;
use crate::pin::{Pinning, Side};
use crate::python;
use crate::run::{Failure, Sample};
use std::time::Duration;

/// Nanoseconds of one operation of the named loop in `locks.py`.
pub fn run(job: &'static str) -> impl FnMut(Pinning, u64) -> Result<Sample, Failure> {
    move |pinning, count| {
        let args = [
            job.to_owned(),
            count.to_string(),
            format!("{:?}", pinning.cpus(Side::A)),
            format!("{:?}", pinning.cpus(Side::B)),
        ];
        let nanos = python::run(include_str!("locks.py"), &args)?;
        let &[nanos] = nanos.as_slice() else {
            return Err("one number was expected".into());
        };
        Ok(sample(Duration::from_nanos(nanos), count))
    }
}
