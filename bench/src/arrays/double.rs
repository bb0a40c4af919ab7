//! Two sides, each with its half of an array.

use super::{check, double};
use crate::child::{Child, Control, Result};
use crate::clock::now;
use crate::page::{Gate, Page};
use crate::pin::{Pinning, Side};
use crate::run::{Failure, Sample};
use shm_array::{LockError, SharedArray};
use std::ops::Range;
use std::time::Duration;

/// Doublings, after the first that only warms up. Ten million times two to the eleventh is no large number.
const PASSES: u32 = 10;
/// Chunks of ours, half of them for each side.
const CHUNKS: usize = 10;

/// When the measured passes began and ended.
type Span = (Duration, Duration);

/// Warms up, waits for the other side, and doubles.
fn passes(gate: &Gate, mut pass: impl FnMut() -> Result) -> Result<Span> {
    pass()?;
    let begin = gate.pass(2);
    for _ in 0..PASSES {
        pass()?;
    }
    Ok((begin, now()))
}

fn sample([a, b]: [Span; 2]) -> Sample {
    let elapsed = a.1.max(b.1).saturating_sub(a.0.min(b.0));
    Sample {
        elapsed,
        values: vec![elapsed.as_secs_f64() * 1e3 / f64::from(PASSES)],
    }
}

/// Two processes, disjoint chunks of a shared array.
pub fn ours(pinning: Pinning, count: u64) -> std::result::Result<Sample, Failure> {
    let len = usize::try_from(count)?;
    let array = SharedArray::<i64>::chunked(len, len.div_ceil(CHUNKS))?;
    for chunk in array.chunks() {
        let mut guard = chunk.lock().map_err(LockError::into_error)?;
        guard
            .iter_mut()
            .zip(chunk.range())
            .for_each(|(element, index)| *element = index as i64);
    }
    let gate = Page::<Gate>::new()?;
    let chunks = array.chunk_count();
    let child = Child::spawn("arrays.double", pinning, &(&array, &gate, chunks / 2..chunks))?;
    let mine = {
        let _pinned = pinning.enter(Side::A);
        double_chunks(&array, &gate, 0..chunks / 2)?
    };
    let theirs = child.control.recv()?;
    child.join()?;
    for chunk in array.chunks() {
        let guard = chunk.lock().map_err(LockError::into_error)?;
        check(&guard, chunk.range().start, 1 << (PASSES + 1))?;
    }
    Ok(sample([mine, theirs]))
}

fn double_chunks(array: &SharedArray<i64>, gate: &Gate, chunks: Range<usize>) -> Result<Span> {
    passes(gate, || {
        for index in chunks.clone() {
            double(&mut array.chunk(index)?.lock().map_err(LockError::into_error)?);
        }
        Ok(())
    })
}

/// The other process.
pub fn act(control: &Control) -> Result {
    let (array, gate, chunks): (SharedArray<i64>, Page<Gate>, Range<usize>) = control.recv()?;
    control.send(&double_chunks(&array, &gate, chunks)?)
}

/// Two threads, the halves of a vector.
pub fn plain_vec(pinning: Pinning, count: u64) -> std::result::Result<Sample, Failure> {
    let mut elements: Vec<i64> = (0..i64::try_from(count)?).collect();
    let (a, b) = elements.split_at_mut(usize::try_from(count / 2)?);
    let gate = Gate::new();
    let work = |part: &mut [i64], side| {
        let _pinned = pinning.enter(side);
        let pass = || {
            double(part);
            Ok(())
        };
        passes(&gate, pass).map_err(|error| error.to_string())
    };
    let spans = std::thread::scope(|scope| {
        let other = scope.spawn(|| work(b, Side::B));
        let mine = work(a, Side::A)?;
        Ok::<_, String>([mine, other.join().map_err(|_| "the other thread panicked")??])
    })?;
    check(&elements, 0, 1 << (PASSES + 1))?;
    Ok(sample(spans))
}
