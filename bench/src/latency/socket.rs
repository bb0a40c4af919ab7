//! A Unix socket pair (stream), blocking reads and writes of 8 bytes.

use super::{STOP, measure};
use crate::child::{Child, Control, Fd, Result};
use crate::pin::{Pinning, Side};
use crate::run::{Failure, Sample};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

fn read(mut stream: &UnixStream) -> Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

fn write(mut stream: &UnixStream, value: u64) -> Result {
    Ok(stream.write_all(&value.to_ne_bytes())?)
}

pub fn run(pinning: Pinning, count: u64) -> std::result::Result<Sample, Failure> {
    let (ours, theirs) = UnixStream::pair()?;
    let child = Child::spawn("latency.unix_socket", pinning, &Fd(theirs.into()))?;
    let _pinned = pinning.enter(Side::A);
    let sample = measure(count, |number| {
        write(&ours, number)?;
        read(&ours)
    })?;
    write(&ours, STOP)?;
    child.join()?;
    Ok(sample)
}

pub fn answer(control: &Control) -> Result {
    let Fd(stream) = control.recv()?;
    let stream = UnixStream::from(stream);
    loop {
        let value = read(&stream)?;
        if value == STOP {
            return Ok(());
        }
        write(&stream, value)?;
    }
}
