//! What waiting costs: the processor time of a process whose receiver waits in `recv` on an empty queue, and of one whose
//! sender waits in `send` on a full one, from the call until it has returned.

use crate::child::{Child, Control, Result};
use crate::pin::Pinning;
use crate::run::{Better, Case, Count, Failure, Metric, OURS, Sample, Variant};
use ipc_queue::{PlainReceiver, PlainSender, bounded_plain};
use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// How long they wait, in milliseconds; in a smoke run the second number.
const WAIT: Count = Count::Fixed(5_000, 50);

fn run(pinning: Pinning, millis: u64) -> std::result::Result<Sample, Failure> {
    let wait = Duration::from_millis(millis);
    let (feed, empty) = bounded_plain::<u64>(1)?;
    let (full, drain) = bounded_plain::<u64>(1)?;
    let receiver = Child::spawn("queue.idle.receiver", pinning, &empty)?;
    let sender = Child::spawn_caller("queue.idle.sender", pinning, &full)?;
    // Once for warmth; both answer when they have nothing left but the wait.
    feed.send(0)?;
    receiver.control.recv::<()>()?;
    sender.control.recv::<()>()?;
    std::thread::sleep(wait);
    feed.send(1)?;
    let received = (drain.recv()?, drain.recv()?);
    if received != (0, 1) {
        return Err(format!("the messages of the waiting sender were {received:?}").into());
    }
    let mut values = Vec::new();
    for child in [receiver, sender] {
        let used: Duration = child.control.recv()?;
        child.join()?;
        values.push(used.as_secs_f64() * 1e3);
    }
    Ok(Sample {
        elapsed: wait,
        values,
    })
}

/// The processor time of this process so far, of all its threads.
fn used() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// The child whose receiver waits.
pub fn receive(control: &Control) -> Result {
    let receiver: PlainReceiver<u64> = control.recv()?;
    let first = receiver.recv()?;
    control.send(&())?;
    let before = used();
    let second = receiver.recv()?;
    let after = used();
    if (first, second) != (0, 1) {
        return Err(format!("the waiting receiver got {first} and {second}").into());
    }
    control.send(&(after - before))
}

/// The child whose sender waits.
pub fn send(control: &Control) -> Result {
    let sender: PlainSender<u64> = control.recv()?;
    sender.send(0)?;
    control.send(&())?;
    let before = used();
    sender.send(1)?;
    let after = used();
    control.send(&(after - before))
}

pub fn case() -> Case {
    let metric = |name| Metric {
        name,
        unit: "ms of CPU",
        better: Better::Lower,
    };
    Case {
        bench: "queue",
        name: "idle",
        about: "Processor time of a process that waits 5 s in `recv` on an empty queue, and of one that waits as long in \
                `send` on a full one, with the polls before the sleep and the wake-up at the end.",
        pinnings: &[Pinning::Diff],
        metrics: vec![metric("receiver"), metric("sender")],
        variants: vec![Variant::new(OURS, WAIT, run)],
    }
}
