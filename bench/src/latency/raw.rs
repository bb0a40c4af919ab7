//! The floor: two words in shared memory, either polled or slept on with a futex.
//!
//! # Safety
//!
//! The mapping is one shared page of zeroes that lives as long as its `Lines`; all access is through atomics.
#![allow(unsafe_code)]

use super::{STOP, measure};
use crate::child::{Child, Control, Fd, Result};
use crate::pin::{Pinning, Side};
use crate::run::{Failure, Sample};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::thread::futex;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const PAGE: usize = 4096;

/// Each direction has two cache lines to itself, so that no prefetcher joins them.
#[repr(C, align(128))]
struct Line {
    value: AtomicU64,
    bell: AtomicU32,
}

#[repr(C)]
struct Page {
    ask: Line,
    answer: Line,
}

struct Lines(NonNull<Page>);

impl Lines {
    fn map(fd: &OwnedFd) -> Result<Self> {
        // SAFETY: the kernel chooses the place; the file is one page long.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                PAGE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                fd,
                0,
            )?
        };
        Ok(Self(NonNull::new(base.cast()).ok_or("mapped at zero")?))
    }

    fn page(&self) -> &Page {
        // SAFETY: mapped until drop, page-aligned, and made of atomics for which every bit pattern is valid.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length; `page` borrows from self.
        let _ = unsafe { munmap(self.0.as_ptr().cast(), PAGE) };
    }
}

/// Polls before a yield: never reached when the other side has a processor to itself.
const POLLS: u32 = 4000;

/// Waits until the word is no longer `seen`.
fn poll(word: &AtomicU64, seen: u64) -> u64 {
    let mut polls = 0;
    loop {
        let value = word.load(Ordering::Acquire);
        if value != seen {
            return value;
        }
        polls += 1;
        if polls % POLLS == 0 {
            std::thread::yield_now();
        }
    }
}

/// Publishes a value and rings.
fn ring(line: &Line, value: u64) -> Result {
    line.value.store(value, Ordering::Relaxed);
    line.bell.fetch_add(1, Ordering::Release);
    futex::wake(&line.bell, futex::Flags::empty(), 1)?;
    Ok(())
}

/// Sleeps until the bell is no longer `seen`, then reads the value.
fn sleep(line: &Line, seen: &mut u32) -> Result<u64> {
    loop {
        let bell = line.bell.load(Ordering::Acquire);
        if bell != *seen {
            *seen = bell;
            return Ok(line.value.load(Ordering::Relaxed));
        }
        match futex::wait(&line.bell, futex::Flags::empty(), bell, None) {
            Ok(()) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn start(role: &str, pinning: Pinning) -> Result<(Lines, Child)> {
    let fd = memfd_create("ping-pong", MemfdFlags::CLOEXEC)?;
    ftruncate(&fd, PAGE as u64)?;
    let lines = Lines::map(&fd)?;
    let child = Child::spawn(role, pinning, &Fd(fd))?;
    Ok((lines, child))
}

/// Both sides poll.
pub fn atomic(pinning: Pinning, count: u64) -> std::result::Result<Sample, Failure> {
    let (lines, child) = start("latency.raw_atomic", pinning)?;
    let _pinned = pinning.enter(Side::A);
    let page = lines.page();
    let mut seen = 0;
    // Values are shifted by one: zero is what the fresh page holds.
    let sample = measure(count, |number| {
        page.ask.value.store(number + 1, Ordering::Release);
        seen = poll(&page.answer.value, seen);
        Ok(seen - 1)
    })?;
    page.ask.value.store(STOP, Ordering::Release);
    child.join()?;
    Ok(sample)
}

pub fn answer_atomic(control: &Control) -> Result {
    let Fd(fd) = control.recv()?;
    let lines = Lines::map(&fd)?;
    let page = lines.page();
    let mut seen = 0;
    loop {
        seen = poll(&page.ask.value, seen);
        if seen == STOP {
            return Ok(());
        }
        page.answer.value.store(seen, Ordering::Release);
    }
}

/// Both sides sleep at once.
pub fn futex(pinning: Pinning, count: u64) -> std::result::Result<Sample, Failure> {
    let (lines, child) = start("latency.raw_futex", pinning)?;
    let _pinned = pinning.enter(Side::A);
    let page = lines.page();
    let mut seen = 0;
    let sample = measure(count, |number| {
        ring(&page.ask, number)?;
        sleep(&page.answer, &mut seen)
    })?;
    ring(&page.ask, STOP)?;
    child.join()?;
    Ok(sample)
}

pub fn answer_futex(control: &Control) -> Result {
    let Fd(fd) = control.recv()?;
    let lines = Lines::map(&fd)?;
    let page = lines.page();
    let mut seen = 0;
    loop {
        let value = sleep(&page.ask, &mut seen)?;
        if value == STOP {
            return Ok(());
        }
        ring(&page.answer, value)?;
    }
}
