//! What parking costs where nobody has to: the blocking calls against `try_send` and `try_recv` in a spinning loop.

use super::{CAPACITY, Plan, check, consume, ours, produce as drive, rate};
use crate::child::{Child, Control, Result};
use crate::clock::spin;
use crate::pin::{Pinning, Side};
use crate::run::{Case, Count, Failure, OURS, Sample, Variant};
use ipc_queue::{PlainSender, bounded_plain};

fn run(pinning: Pinning, count: u64) -> std::result::Result<Sample, Failure> {
    let plan = Plan::new(count);
    let (sender, receiver) = bounded_plain::<u64>(CAPACITY)?;
    let child = Child::spawn("queue.ours.8B_polling", pinning, &(plan, sender))?;
    let _pinned = pinning.enter(Side::A);
    let sample = consume(&child.control, plan, |seq| {
        let received = spin(|| match receiver.try_recv() {
            Err(error) if error.is_empty() => None,
            received => Some(received),
        });
        check(&received?, seq)
    })?;
    child.join()?;
    Ok(sample)
}

pub fn produce(control: &Control) -> Result {
    let (plan, sender): (Plan, PlainSender<u64>) = control.recv()?;
    drive(control, plan, |message: &u64| {
        let sent = spin(|| match sender.try_send(*message) {
            Err(error) if error.is_full() => None,
            sent => Some(sent),
        });
        Ok(sent?)
    })
}

pub fn case() -> Case {
    Case {
        bench: "queue",
        name: "8B_parking",
        about: "Ours alone, 8 bytes from one producer to one consumer process, both busy, capacity 1,024: the blocking \
                calls, which may park, against `try_send` and `try_recv` in loops that never do (128 pauses, then \
                `sched_yield`).",
        pinnings: &Pinning::ALL,
        metrics: rate(),
        variants: vec![
            Variant::new(OURS, Count::From(20_000), ours::run::<u64>),
            Variant::new("own_polling", Count::From(20_000), run),
        ],
    }
}
