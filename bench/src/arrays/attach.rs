//! From the message in which an array arrived to its first element.

use crate::child::{Child, Control, Result};
use crate::page::Page;
use crate::pin::{Pinning, Side};
use crate::python;
use crate::run::{Failure, Sample};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shm_array::SharedArray;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Elements of the array.
const LEN: usize = 10_000_000;
/// The first of them.
const FIRST: u64 = 0x5AFE;

/// Sends `handle` so often to the child, which tells how long each took to attach.
fn attach(
    role: &str,
    pinning: Pinning,
    count: u64,
    handle: &impl Serialize,
) -> std::result::Result<Sample, Failure> {
    let child = Child::spawn(role, pinning, &count)?;
    let _pinned = pinning.enter(Side::A);
    let mut all = Vec::new();
    for _ in 0..count {
        child.control.send(handle)?;
        all.push(child.control.recv()?);
    }
    child.join()?;
    Ok(sample(all))
}

fn sample(mut all: Vec<Duration>) -> Sample {
    all.sort_unstable();
    let micros = |rank: usize| all[rank].as_secs_f64() * 1e6;
    Sample {
        elapsed: all.iter().sum(),
        values: vec![micros(all.len() / 2), micros((all.len() - 1) * 99 / 100)],
    }
}

/// The child: takes each handle, and lets go of it again before the next.
fn act<H: DeserializeOwned, A>(control: &Control, open: impl Fn(H) -> Result<(A, u64)>) -> Result {
    let count: u64 = control.recv()?;
    for _ in 0..count {
        let message = control.take()?;
        let begin = Instant::now();
        let (array, first) = open(message.open()?)?;
        let elapsed = begin.elapsed();
        if first != FIRST {
            return Err(format!("the first element is {first}").into());
        }
        drop(array);
        control.send(&elapsed)?;
    }
    Ok(())
}

pub fn ours(pinning: Pinning, count: u64) -> std::result::Result<Sample, Failure> {
    let array = SharedArray::<u64>::zeroed(LEN)?;
    array.set(0, FIRST)?;
    attach("arrays.attach.ours", pinning, count, &array)
}

pub fn act_ours(control: &Control) -> Result {
    act(control, |array: SharedArray<u64>| {
        let first = array.get(0)?;
        Ok((array, first))
    })
}

/// A mapping of the descriptor, the least that there is to do.
pub fn raw(pinning: Pinning, count: u64) -> std::result::Result<Sample, Failure> {
    let page = Page::<[AtomicU64; LEN]>::new()?;
    page[0].store(FIRST, Ordering::Relaxed);
    attach("arrays.attach.raw_mmap", pinning, count, &page)
}

pub fn act_raw(control: &Control) -> Result {
    act(control, |page: Page<[AtomicU64; LEN]>| {
        let first = page[0].load(Ordering::Relaxed);
        Ok((page, first))
    })
}

/// `SharedMemory(name=..)` and an `ndarray` on it, in a child.
pub fn python(pinning: Pinning, count: u64) -> std::result::Result<Sample, Failure> {
    let args = [
        "attach".to_owned(),
        count.to_string(),
        format!("{:?}", pinning.cpus(Side::A)),
        format!("{:?}", pinning.cpus(Side::B)),
    ];
    let nanos = python::run(include_str!("tutorial.py"), &args)?;
    Ok(sample(nanos.into_iter().map(Duration::from_nanos).collect()))
}
