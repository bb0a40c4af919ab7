//! Two queues of ours, one for each direction, and their blocking calls.

use super::{STOP, measure};
use crate::child::{Child, Control, Result};
use crate::pin::{Pinning, Side};
use crate::run::{Failure, Sample};
use ipc_queue::{PlainReceiver, PlainSender, bounded_plain};

/// Room for more than the one message that is ever there.
const CAPACITY: usize = 16;

pub fn run(pinning: Pinning, count: u64) -> std::result::Result<Sample, Failure> {
    let (ask, asked) = bounded_plain::<u64>(CAPACITY)?;
    let (reply, replied) = bounded_plain::<u64>(CAPACITY)?;
    let child = Child::spawn("latency.ours", pinning, &(asked, reply))?;
    let _pinned = pinning.enter(Side::A);
    let sample = measure(count, |number| {
        ask.send(number)?;
        Ok(replied.recv()?)
    })?;
    ask.send(STOP)?;
    child.join()?;
    Ok(sample)
}

pub fn answer(control: &Control) -> Result {
    let (asked, reply): (PlainReceiver<u64>, PlainSender<u64>) = control.recv()?;
    loop {
        let value = asked.recv()?;
        if value == STOP {
            return Ok(());
        }
        reply.send(value)?;
    }
}
