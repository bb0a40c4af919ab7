//! What the tests of this crate share: a watchdog, a handle that travels, a look at the system.
#![allow(dead_code, reason = "not every test binary uses everything")]

use proc_pool::shm::handle::{send_descriptor, take_descriptor};
use proc_pool::{Pool, TaskError};
use rustix::event::{PollFd, PollFlags, poll};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

pub(crate) const SIGINT: i32 = 2;
pub(crate) const SIGABRT: i32 = 6;
pub(crate) const SIGKILL: i32 = 9;
pub(crate) const SIGSEGV: i32 = 11;
pub(crate) const SIGTERM: i32 = 15;

/// Aborts the process if it is not dropped in time.
pub(crate) struct Watchdog(#[allow(dead_code, reason = "held, never used")] Sender<()>);

pub(crate) fn watchdog() -> Watchdog {
    watchdog_of(Duration::from_secs(60))
}

/// A watchdog with more patience, for tests that do the same thing many times.
pub(crate) fn watchdog_of(patience: Duration) -> Watchdog {
    let (guard, bell) = channel();
    let name = std::thread::current().name().unwrap_or("main").to_owned();
    std::thread::spawn(move || {
        if bell.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
            eprintln!("watchdog: {name} hangs");
            std::process::abort();
        }
    });
    Watchdog(guard)
}

/// One end of a pipe as a handle: it travels in arguments.
pub(crate) struct Handle(pub(crate) OwnedFd);

impl Serialize for Handle {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::Error;
        let descriptor = self.0.try_clone().map_err(S::Error::custom)?;
        serializer.serialize_u32(send_descriptor(descriptor).map_err(S::Error::custom)?)
    }
}

impl<'de> Deserialize<'de> for Handle {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let index = u32::deserialize(deserializer)?;
        take_descriptor(index).map(Self).map_err(D::Error::custom)
    }
}

impl Handle {
    /// Writes one line at once.
    pub(crate) fn say(&self, line: impl std::fmt::Display) {
        let mut file = File::from(self.0.try_clone().expect("a descriptor"));
        file.write_all(format!("{line}\n").as_bytes()).expect("somebody listens");
    }
}

/// A pipe: what children say, line by line.
pub(crate) fn pipe() -> (BufReader<File>, Handle) {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe");
    (BufReader::new(File::from(reader)), Handle(writer))
}

/// The reading end of a pipe as a handle: a gate that opens when the writing end is closed.
pub(crate) struct ReadEnd(pub(crate) OwnedFd);

impl Serialize for ReadEnd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::Error;
        let descriptor = self.0.try_clone().map_err(S::Error::custom)?;
        serializer.serialize_u32(send_descriptor(descriptor).map_err(S::Error::custom)?)
    }
}

impl<'de> Deserialize<'de> for ReadEnd {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Handle::deserialize(deserializer).map(|handle| Self(handle.0))
    }
}

impl ReadEnd {
    /// Waits until nobody has the writing end.
    pub(crate) fn until_end(self) {
        std::io::copy(&mut File::from(self.0), &mut std::io::sink()).expect("readable");
    }
}

/// The next line; empty at the end.
pub(crate) fn line(reader: &mut BufReader<File>) -> String {
    let mut text = String::new();
    reader.read_line(&mut text).expect("readable");
    text.trim_end().to_owned()
}

/// Whether the descriptor is readable now.
pub(crate) fn is_ready(descriptor: impl AsFd) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(descriptor.as_fd(), PollFlags::IN)];
    poll(&mut polled, Some(&rustix::event::Timespec::default())).expect("pollable") == 1
}

/// Waits until the descriptor is readable.
pub(crate) fn until_ready(descriptor: impl AsFd) {
    let mut polled = [PollFd::from_borrowed_fd(descriptor.as_fd(), PollFlags::IN)];
    while !matches!(poll(&mut polled, None), Ok(1..)) {}
}

/// A pidfd of any process.
pub(crate) fn pidfd(pid: u32) -> OwnedFd {
    let pid = rustix::process::Pid::from_raw(pid.try_into().expect("a process id")).expect("not zero");
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).expect("it lives")
}

/// Waits until no process and no zombie has this id.
pub(crate) fn until_gone(pid: u32) {
    while Path::new(&format!("/proc/{pid}")).exists() {
        std::thread::yield_now();
    }
}

/// Sleeps for as long as it takes to be killed.
pub(crate) fn sleep_forever() -> ! {
    loop {
        std::thread::park();
    }
}

/// Signal and code of a child that died; anything else is a failed test.
#[track_caller]
pub(crate) fn death<R: std::fmt::Debug>(result: Result<R, TaskError>) -> (Option<i32>, Option<i32>) {
    match result {
        Err(TaskError::WorkerDied { signal, code, oom, .. }) => {
            assert!(!oom, "memory did not run out");
            (signal, code)
        }
        other => panic!("no death: {other:?}"),
    }
}

/// Forks, runs `child` in the forked process, and returns its exit code.
pub(crate) fn in_a_fork(child: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the forked process runs on the thread that forked, and only `child`.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        let code = child();
        // SAFETY: ends the forked process without running what belongs to its parent.
        unsafe { libc::_exit(code) }
    }
    let mut status = 0;
    // SAFETY: a child of this process, and a valid pointer.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -1 }
}

/// Sends a signal to a process; it may be gone already.
pub(crate) fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().expect("a process id")).expect("not zero");
    let _ = rustix::process::kill_process(pid, signal);
}

/// Bytes that are encoded as a whole, so that large ones are no matter of patience.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl Bytes {
    /// `len` bytes with a pattern that depends on `seed`.
    pub(crate) fn pattern(len: usize, seed: u8) -> Self {
        let period: Vec<u8> = (0..251).map(|byte| seed.wrapping_add(byte)).collect();
        let mut bytes = period.repeat(len / period.len() + 1);
        bytes.truncate(len);
        Self(bytes)
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&[u8]>::deserialize(deserializer).map(|bytes| Self(bytes.to_vec()))
    }
}

/// What goes wrong while a value is encoded or decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fault {
    Nothing,
    Error,
    Panic,
    Exit,
    Abort,
}

impl Fault {
    fn happen<E>(self, error: impl FnOnce(&'static str) -> E) -> Result<(), E> {
        match self {
            Self::Nothing => Ok(()),
            Self::Error => Err(error("refused on purpose")),
            Self::Panic => panic!("panicked on purpose"),
            Self::Exit => std::process::exit(3),
            Self::Abort => std::process::abort(),
        }
    }
}

/// A number with faults: at its encoding, and at its decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Faulty {
    pub(crate) number: u32,
    pub(crate) encoding: Fault,
    pub(crate) decoding: Fault,
}

impl Faulty {
    pub(crate) fn none(number: u32) -> Self {
        Self { number, encoding: Fault::Nothing, decoding: Fault::Nothing }
    }

    pub(crate) fn encoding(number: u32, encoding: Fault) -> Self {
        Self { encoding, ..Self::none(number) }
    }

    pub(crate) fn decoding(number: u32, decoding: Fault) -> Self {
        Self { decoding, ..Self::none(number) }
    }
}

impl Serialize for Faulty {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.encoding.happen(serde::ser::Error::custom)?;
        (self.number, self.decoding).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Faulty {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (number, decoding) = <(u32, Fault)>::deserialize(deserializer)?;
        decoding.happen(serde::de::Error::custom)?;
        Ok(Self::none(number))
    }
}

/// Waits until the pool has so many workers again.
pub(crate) fn until_workers(pool: &Pool, count: usize) -> Vec<u32> {
    loop {
        let workers = pool.workers();
        if workers.len() == count {
            return workers;
        }
        std::thread::yield_now();
    }
}

/// A directory of one test; gone with it.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("proc-pool-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).expect("a directory");
        Self(path)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
