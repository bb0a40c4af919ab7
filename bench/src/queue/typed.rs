//! A message of a user's type, through each library's own codec: a string of 40 bytes and five numbers. Everybody makes
//! each message anew, and checks all of it.

use super::{CAPACITY, Plan, consume, produce as drive, rate, wrong};
use crate::child::{Child, Control, Result};
use crate::pin::{Pinning, Side};
use crate::python;
use crate::run::{Case, Count, Failure, OURS, Sample, Variant};
use ipc_channel::ipc::{IpcOneShotServer, IpcReceiver, IpcSender, channel};
use ipc_queue::{Sender, bounded};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// 40 bytes.
const NAME: &str = "a name of forty bytes, as messages have.";

/// What travels.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    name: String,
    id: u64,
    account: u32,
    balance: i64,
    price: f64,
    weight: f32,
}

impl Record {
    fn new(seq: u64) -> Self {
        Self {
            name: NAME.to_owned(),
            id: seq,
            account: seq as u32 & 0xFFFF,
            balance: -(seq as i64),
            price: seq as f64 * 0.5,
            weight: 70.5,
        }
    }

    fn check(&self, seq: u64) -> Result {
        let right = self.name == NAME
            && self.id == seq
            && self.account == seq as u32 & 0xFFFF
            && self.balance == -(seq as i64)
            && self.price == seq as f64 * 0.5
            && self.weight == 70.5;
        if right { Ok(()) } else { wrong(seq) }
    }
}

/// `ipc_queue::bounded`, blocking calls.
fn run(pinning: Pinning, count: u64) -> std::result::Result<Sample, Failure> {
    let plan = Plan::new(count);
    let (sender, receiver) = bounded::<Record>(CAPACITY)?;
    let child = Child::spawn("queue.ours.typed", pinning, &(plan, sender))?;
    let _pinned = pinning.enter(Side::A);
    let sample = consume(&child.control, plan, |seq| receiver.recv()?.check(seq))?;
    child.join()?;
    Ok(sample)
}

pub fn produce(control: &Control) -> Result {
    let (plan, sender): (Plan, Sender<Record>) = control.recv()?;
    // Without the value that the error hands back: this bench knows it.
    let send = |seq: &u64| {
        sender
            .send(Record::new(*seq))
            .map_err(|error| error.to_string().into())
    };
    drive(control, plan, send)
}

/// `ipc_channel`, blocking calls.
fn run_channel(pinning: Pinning, count: u64) -> std::result::Result<Sample, Failure> {
    let plan = Plan::new(count);
    let (server, name) = IpcOneShotServer::<IpcReceiver<Record>>::new()?;
    let child = Child::spawn("queue.ipc_channel.typed", pinning, &(plan, name))?;
    let (_, receiver) = server.accept()?;
    let _pinned = pinning.enter(Side::A);
    let sample = consume(&child.control, plan, |seq| receiver.recv()?.check(seq))?;
    child.join()?;
    Ok(sample)
}

pub fn produce_channel(control: &Control) -> Result {
    let (plan, name): (Plan, String) = control.recv()?;
    let (sender, receiver) = channel::<Record>()?;
    IpcSender::connect(name)?.send(receiver)?;
    drive(control, plan, |seq: &u64| Ok(sender.send(Record::new(*seq))?))
}

/// Python's `multiprocessing.Queue(1024)`, tuples of the same values: pickled faster than a dataclass.
fn run_python(pinning: Pinning, count: u64) -> std::result::Result<Sample, Failure> {
    let plan = Plan::new(count);
    let cpus = |side| format!("{:?}", pinning.cpus(side));
    let args = [
        plan.warm.to_string(),
        plan.count.to_string(),
        cpus(Side::A),
        cpus(Side::B),
    ];
    let nanos = python::run(include_str!("typed.py"), &args)?;
    let &[nanos] = nanos.as_slice() else {
        return Err("one number was expected".into());
    };
    Ok(plan.sample(Duration::from_nanos(nanos)))
}

pub fn case() -> Case {
    Case {
        bench: "queue",
        name: "typed",
        about: "Messages of a type with a `String` of 40 bytes and five numbers, made anew for each message, from one \
                producer to one consumer process, capacity 1,024, blocking calls. Everybody with the codec that comes \
                with it; Python's are tuples of the same values.",
        pinnings: &Pinning::ALL,
        metrics: rate(),
        variants: vec![
            Variant::new(OURS, Count::From(20_000), run),
            Variant::new("ipc_channel", Count::From(2_000), run_channel),
            Variant::new("python", Count::From(500), run_python),
        ],
    }
}
