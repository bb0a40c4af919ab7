//! `ipc_channel`'s channel of bytes between two processes: no codec, blocking calls. It has no capacity; the
//! buffer of its socket bounds it.

use super::{Message, Plan, check_bytes, consume, produce as drive};
use crate::child::{Child, Control, Result};
use crate::pin::{Pinning, Side};
use crate::run::{Failure, Sample};
use ipc_channel::ipc::{IpcBytesReceiver, IpcOneShotServer, IpcSender, bytes_channel};

pub fn run<M: Message>(pinning: Pinning, count: u64) -> std::result::Result<Sample, Failure> {
    let plan = Plan::new(count);
    let (server, name) = IpcOneShotServer::<IpcBytesReceiver>::new()?;
    let child = Child::spawn(&format!("queue.ipc_channel.{}", M::SIZE), pinning, &(plan, name))?;
    let (_, receiver) = server.accept()?;
    let _pinned = pinning.enter(Side::A);
    let sample = consume(&child.control, plan, |seq| {
        check_bytes::<M>(&receiver.recv()?, seq)
    })?;
    child.join()?;
    Ok(sample)
}

pub fn produce<M: Message>(control: &Control) -> Result {
    let (plan, name): (Plan, String) = control.recv()?;
    let (sender, receiver) = bytes_channel()?;
    IpcSender::connect(name)?.send(receiver)?;
    drive(control, plan, |message: &M| {
        Ok(sender.send(bytemuck::bytes_of(message))?)
    })
}
