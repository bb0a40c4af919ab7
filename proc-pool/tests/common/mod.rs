//! What the tests of this crate share: a watchdog, a handle that travels, a look at the system.
#![allow(dead_code, reason = "not every test binary uses everything")]

use proc_pool::TaskError;
use proc_pool::shm::handle::{send_descriptor, take_descriptor};
use rustix::event::{PollFd, PollFlags, poll};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
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
    let (guard, bell) = channel();
    let name = std::thread::current().name().unwrap_or("main").to_owned();
    std::thread::spawn(move || {
        if bell.recv_timeout(Duration::from_secs(60)) == Err(RecvTimeoutError::Timeout) {
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
        file.write_all(format!("{line}\n").as_bytes())
            .expect("somebody listens");
    }
}

/// A pipe: what children say, line by line.
pub(crate) fn pipe() -> (BufReader<File>, Handle) {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe");
    (BufReader::new(File::from(reader)), Handle(writer))
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
        Err(TaskError::WorkerDied {
            signal, code, oom, ..
        }) => {
            assert!(!oom, "memory did not run out");
            (signal, code)
        }
        other => panic!("no death: {other:?}"),
    }
}
