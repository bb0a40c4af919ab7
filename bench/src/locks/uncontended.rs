//! One thread, on side A, that nobody disturbs.

use super::{Counter, Permits, Readable};
use crate::pin::{Pinning, Side};
use crate::run::{Failure, Sample};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Lock, add one, unlock.
pub fn lock<C: Counter>(pinning: Pinning, count: u64) -> Result<Sample, Failure> {
    let lock = C::create()?;
    let lock = black_box(&lock);
    let _pinned = pinning.enter(Side::A);
    let warm = count / 10;
    for _ in 0..warm {
        lock.with(|number| *number += 1)?;
    }
    let begin = Instant::now();
    for _ in 0..count {
        lock.with(|number| *number += 1)?;
    }
    let elapsed = begin.elapsed();
    match lock.with(|number| *number)? {
        got if got == warm + count => Ok(sample(elapsed, count)),
        got => Err(format!("{got} is counted instead of {}", warm + count).into()),
    }
}

/// Lock for reading, read, unlock.
pub fn read<L: Readable>(pinning: Pinning, count: u64) -> Result<Sample, Failure> {
    const VALUE: u64 = 3;
    let lock = L::create(VALUE)?;
    let lock = black_box(&lock);
    let _pinned = pinning.enter(Side::A);
    for _ in 0..count / 10 {
        lock.read()?;
    }
    let mut sum = 0;
    let begin = Instant::now();
    for _ in 0..count {
        sum += lock.read()?;
    }
    let elapsed = begin.elapsed();
    if sum != count * VALUE {
        return Err(format!("{sum} was read instead of {}", count * VALUE).into());
    }
    Ok(sample(elapsed, count))
}

/// Take a permit, give it back.
pub fn permit<P: Permits>(pinning: Pinning, count: u64) -> Result<Sample, Failure> {
    const PERMITS: u32 = 4;
    let permits = P::create(PERMITS)?;
    let permits = black_box(&permits);
    let _pinned = pinning.enter(Side::A);
    for _ in 0..count / 10 {
        permits.take_and_give()?;
    }
    let begin = Instant::now();
    for _ in 0..count {
        permits.take_and_give()?;
    }
    let elapsed = begin.elapsed();
    match permits.free()? {
        PERMITS => Ok(sample(elapsed, count)),
        free => Err(format!("{free} of {PERMITS} permits are free").into()),
    }
}

/// Nanoseconds of one operation.
pub fn sample(elapsed: Duration, count: u64) -> Sample {
    Sample {
        elapsed,
        values: vec![elapsed.as_secs_f64() * 1e9 / count as f64],
    }
}
