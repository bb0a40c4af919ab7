//! `ipc_queue::spsc_plain` between two processes, blocking calls, and its rival.

use super::{CAPACITY, Plan, check, consume, produce as drive, rate, threads};
use crate::child::{Child, Control, Result};
use crate::pin::{Pinning, Side};
use crate::run::{Case, Count, Failure, OURS, Sample, Variant};
use ipc_queue::{PlainProducer, spsc_plain};

fn run(pinning: Pinning, count: u64) -> std::result::Result<Sample, Failure> {
    let plan = Plan::new(count);
    let (producer, mut consumer) = spsc_plain::<u64>(CAPACITY)?;
    let child = Child::spawn("queue.ours.8B_spsc", pinning, &(plan, producer))?;
    let _pinned = pinning.enter(Side::A);
    let sample = consume(&child.control, plan, |seq| check(&consumer.recv()?, seq))?;
    child.join()?;
    Ok(sample)
}

pub fn produce(control: &Control) -> Result {
    let (plan, mut producer): (Plan, PlainProducer<u64>) = control.recv()?;
    drive(control, plan, |message: &u64| {
        // Without the value that the error hands back: this bench knows it.
        producer.send(*message).map_err(|error| error.to_string().into())
    })
}

pub fn case() -> Case {
    Case {
        bench: "queue",
        name: "8B_spsc",
        about: "Messages of 8 bytes between one producer and one consumer that are so by type, capacity 1,024. Ours are two \
                processes with blocking calls, rtrb two threads that spin: 128 pauses, then `sched_yield`.",
        pinnings: &Pinning::ALL,
        metrics: rate(),
        variants: vec![
            Variant::new(OURS, Count::From(20_000), run),
            Variant::new("rtrb", Count::From(20_000), threads::rtrb::<u64>),
        ],
    }
}
