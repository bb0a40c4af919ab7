//! `ipc_queue::bounded_plain` between two processes, blocking calls.

use super::{CAPACITY, Message, Plan, check, consume, produce as drive};
use crate::child::{Child, Control, Result};
use crate::pin::{Pinning, Side};
use crate::run::{Failure, Sample};
use ipc_queue::{PlainSender, bounded_plain};

pub fn run<M: Message>(pinning: Pinning, count: u64) -> std::result::Result<Sample, Failure> {
    let plan = Plan::new(count);
    let (sender, receiver) = bounded_plain::<M>(CAPACITY)?;
    let child = Child::spawn(&format!("queue.ours.{}", M::SIZE), pinning, &(plan, sender))?;
    let _pinned = pinning.enter(Side::A);
    let sample = consume(&child.control, plan, |seq| check(&receiver.recv()?, seq))?;
    child.join()?;
    Ok(sample)
}

pub fn produce<M: Message>(control: &Control) -> Result {
    let (plan, sender): (Plan, PlainSender<M>) = control.recv()?;
    drive(control, plan, |message: &M| {
        // Without the value that the error hands back: this bench knows it.
        sender.send(*message).map_err(|error| error.to_string().into())
    })
}
