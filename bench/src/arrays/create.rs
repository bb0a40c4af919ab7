//! A large array, with all its pages there.
//!
//! # Safety
//!
//! The raw mapping is as long as its slice, made by and for this process alone, and kept by the call that uses it.
#![allow(unsafe_code)]

use crate::child::Result;
use crate::pin::{Pinning, Side};
use crate::run::{Failure, Sample};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};
use shm_array::{LockError, SharedArray};
use std::time::{Duration, Instant};

/// Words of a page.
const PAGE: usize = 512;

/// Writes into every page.
fn touch(words: &mut [u64]) {
    for (page, words) in words.chunks_mut(PAGE).enumerate() {
        words[0] = page as u64;
    }
}

/// What was written, and zeroes beside it.
fn check(words: &[u64]) -> std::result::Result<(), String> {
    let right = |(page, words): (usize, &[u64])| words[0] == page as u64 && words[1] == 0;
    match words.chunks(PAGE).enumerate().all(right) {
        true => Ok(()),
        false => Err("a page does not hold what was written".into()),
    }
}

fn sample(elapsed: Duration) -> Sample {
    Sample {
        elapsed,
        values: vec![elapsed.as_secs_f64() * 1e3],
    }
}

/// Twice the room must be there.
fn enough(bytes: u64) -> std::result::Result<(), Failure> {
    let info = std::fs::read_to_string("/proc/meminfo")?;
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .unwrap_or_default();
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    if kib / 2 < bytes / 1024 {
        return Err(Failure::Unavailable(format!(
            "only {} MiB of memory are available",
            kib / 1024
        )));
    }
    Ok(())
}

pub fn ours(pinning: Pinning, bytes: u64) -> std::result::Result<Sample, Failure> {
    enough(bytes)?;
    let _pinned = pinning.enter(Side::A);
    let begin = Instant::now();
    let array = SharedArray::<u64>::builder(usize::try_from(bytes)? / 8)
        .prefault()
        .build()?;
    let mut guard = array.lock().map_err(LockError::into_error)?;
    touch(&mut guard);
    let elapsed = begin.elapsed();
    check(&guard)?;
    Ok(sample(elapsed))
}

pub fn raw(pinning: Pinning, bytes: u64) -> std::result::Result<Sample, Failure> {
    enough(bytes)?;
    let _pinned = pinning.enter(Side::A);
    let len = usize::try_from(bytes)?;
    let begin = Instant::now();
    let fd = memfd_create("bench-raw", MemfdFlags::CLOEXEC)?;
    ftruncate(&fd, bytes)?;
    let rights = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: the kernel chooses the place.
    let base = unsafe { mmap(std::ptr::null_mut(), len, rights, MapFlags::SHARED, &fd, 0)? };
    let result = populate_and_touch(base.cast(), len).and_then(|words| {
        let elapsed = begin.elapsed();
        check(words)?;
        Ok(sample(elapsed))
    });
    // SAFETY: mapped above; the words are not used any more.
    unsafe { munmap(base, len)? };
    Ok(result?)
}

fn populate_and_touch<'a>(base: *mut u64, len: usize) -> Result<&'a [u64]> {
    // SAFETY: the mapping of `raw`, which outlives the words.
    let words = unsafe {
        madvise(base.cast(), len, Advice::LinuxPopulateWrite)?;
        std::slice::from_raw_parts_mut(base, len / 8)
    };
    touch(words);
    Ok(words)
}
