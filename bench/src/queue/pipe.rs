//! A pipe of the system between two processes: one blocking `write` and one blocking `read` per message.

use super::{Message, Plan, check, consume, produce as drive};
use crate::child::{Child, Control, Fd, Result};
use crate::pin::{Pinning, Side};
use crate::run::{Failure, Sample};
use rustix::pipe::{PipeFlags, pipe_with};

pub fn run<M: Message>(pinning: Pinning, count: u64) -> std::result::Result<Sample, Failure> {
    let plan = Plan::new(count);
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    let child = Child::spawn(&format!("queue.pipe.{}", M::SIZE), pinning, &(plan, Fd(write)))?;
    let _pinned = pinning.enter(Side::A);
    let mut message = M::zeroed();
    let sample = consume(&child.control, plan, |seq| {
        let bytes = bytemuck::bytes_of_mut(&mut message);
        let mut have = 0;
        while have < bytes.len() {
            match rustix::io::read(&read, &mut bytes[have..])? {
                0 => return Err("the pipe ended early".into()),
                more => have += more,
            }
        }
        check(&message, seq)
    })?;
    child.join()?;
    Ok(sample)
}

pub fn produce<M: Message>(control: &Control) -> Result {
    let (plan, Fd(write)) = control.recv()?;
    drive(control, plan, |message: &M| {
        let mut left = bytemuck::bytes_of(message);
        while !left.is_empty() {
            left = &left[rustix::io::write(&write, left)?..];
        }
        Ok(())
    })
}
