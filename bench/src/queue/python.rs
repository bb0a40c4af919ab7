//! Python's `multiprocessing.Queue(1024)` between two Python processes, integers or bytes.

use super::{Message, Plan};
use crate::pin::{Pinning, Side};
use crate::python;
use crate::run::{Failure, Sample};
use std::time::Duration;

pub fn run<M: Message>(pinning: Pinning, count: u64) -> Result<Sample, Failure> {
    let plan = Plan::new(count);
    let cpus = |side| format!("{:?}", pinning.cpus(side));
    let args = [
        size_of::<M>().to_string(),
        plan.warm.to_string(),
        plan.count.to_string(),
        cpus(Side::A),
        cpus(Side::B),
    ];
    let nanos = python::run(include_str!("queue.py"), &args)?;
    let &[nanos] = nanos.as_slice() else {
        return Err("one number was expected".into());
    };
    Ok(plan.sample(Duration::from_nanos(nanos)))
}
