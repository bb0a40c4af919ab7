//! Batches of 32 messages of 8 bytes: `send_batch` and `recv_batch`. `ArrayQueue` has no batches: it takes the same
//! messages one by one.

use super::{CAPACITY, Plan, consume, produce as drive, rate, threads, wrong};
use crate::child::{Child, Control, Result};
use crate::pin::{Pinning, Side};
use crate::run::{Case, Count, Failure, OURS, Sample, Variant};
use ipc_queue::{PlainSender, bounded_plain};

/// Messages of a batch.
const BATCH: u64 = 32;

fn run(pinning: Pinning, count: u64) -> std::result::Result<Sample, Failure> {
    // Here and in the producer a plan counts batches.
    let plan = Plan::new(count.div_ceil(BATCH));
    let (sender, receiver) = bounded_plain::<u64>(CAPACITY)?;
    let child = Child::spawn("queue.ours.8B_batch32", pinning, &(plan, sender))?;
    let _pinned = pinning.enter(Side::A);
    let mut next = 0;
    let mut sample = consume(&child.control, plan, |batch| {
        // What is there may be less than a batch, or more than what is left of this one.
        while next < (batch + 1) * BATCH {
            for message in receiver.recv_batch(BATCH as usize)? {
                if message != next {
                    return wrong(next);
                }
                next += 1;
            }
        }
        Ok(())
    })?;
    child.join()?;
    sample.values.iter_mut().for_each(|rate| *rate *= BATCH as f64);
    Ok(sample)
}

pub fn produce(control: &Control) -> Result {
    let (plan, sender): (Plan, PlainSender<u64>) = control.recv()?;
    drive(control, plan, |batch: &u64| {
        let messages: [u64; BATCH as usize] = std::array::from_fn(|index| batch * BATCH + index as u64);
        Ok(sender.send_batch(messages)?)
    })
}

pub fn case() -> Case {
    Case {
        bench: "queue",
        name: "8B_batch32",
        about: "Messages of 8 bytes from one producer to one consumer, capacity 1,024. Ours go in batches of 32 \
                (`send_batch`, `recv_batch`) between two processes; crossbeam has no batches, so its go one by one, \
                between two threads that spin.",
        pinnings: &Pinning::ALL,
        metrics: rate(),
        variants: vec![
            Variant::new(OURS, Count::From(20_000), run),
            Variant::new(
                "crossbeam_arrayqueue",
                Count::From(20_000),
                threads::array_queue::<u64>,
            ),
            Variant::new("crossbeam_channel", Count::From(20_000), threads::channel::<u64>),
        ],
    }
}
