//! One body per behaviour, run with each way to start somebody else: a thread, a spawned process, a forked one.
#![allow(dead_code, unused_macros, reason = "not every test binary uses everything")]

use crate::common::watchdog;
use proc_pool::Process;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, set_parent_process_death_signal, waitpid};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// For what has to time out.
pub(crate) const SHORT: Duration = Duration::from_millis(50);
/// For what must not, if all is well.
pub(crate) const LONG: Duration = Duration::from_secs(50);

/// How somebody else is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    Threads,
    Spawn,
    Fork,
}

/// Who was started: joined when the test is well, killed when it fails.
pub(crate) enum Child {
    Thread(JoinHandle<()>),
    Spawned(Box<Process<()>>),
    Forked(Forked),
}

impl Start {
    /// Calls `body(argument)` there. What it asserts must hold, or [`Child::join`] fails.
    pub(crate) fn start<F, A>(self, body: F, argument: A) -> Child
    where
        F: Fn(A) + Copy + Send + Sync + 'static,
        A: Serialize + DeserializeOwned + Send + 'static,
    {
        match self {
            Self::Threads => Child::Thread(std::thread::spawn(move || body(argument))),
            Self::Spawn => Child::Spawned(Box::new(Process::spawn(body, argument).expect("spawned"))),
            Self::Fork => Child::Forked(Forked::new(|| body(argument))),
        }
    }

    /// The same, to its end.
    pub(crate) fn run<F, A>(self, body: F, argument: A)
    where
        F: Fn(A) + Copy + Send + Sync + 'static,
        A: Serialize + DeserializeOwned + Send + 'static,
    {
        self.start(body, argument).join();
    }

    /// Calls `body(argument)` `count` times at once: here, and in others.
    pub(crate) fn parties<F, A>(self, count: usize, body: F, argument: A)
    where
        F: Fn(A) + Copy + Send + Sync + 'static,
        A: Serialize + DeserializeOwned + Clone + Send + 'static,
    {
        let others: Vec<Child> = (1..count).map(|_| self.start(body, argument.clone())).collect();
        body(argument);
        others.into_iter().for_each(Child::join);
    }
}

impl Child {
    /// Waits for the end, which must be a good one.
    #[track_caller]
    pub(crate) fn join(self) {
        match self {
            Self::Thread(thread) => {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            }
            Self::Spawned(process) => process.join().expect("a good end"),
            Self::Forked(forked) => forked.join(),
        }
    }

    /// Ends a process by a signal, and collects it.
    #[track_caller]
    pub(crate) fn end_by(self, signal: Signal) {
        match self {
            Self::Thread(_) => panic!("a thread cannot be killed"),
            Self::Spawned(process) => {
                let pid = Pid::from_raw(i32::try_from(process.id()).expect("a process id"));
                kill_process(pid.expect("not zero"), signal).expect("signalled");
                let end = crate::common::death(process.join());
                assert_eq!(end, (Some(signal.as_raw()), None));
            }
            Self::Forked(forked) => {
                kill_process(forked.0, signal).expect("signalled");
                assert_eq!(forked.collect().terminating_signal(), Some(signal.as_raw()));
            }
        }
    }
}

/// A forked process; killed when dropped.
pub(crate) struct Forked(Pid);

impl Forked {
    fn new(body: impl FnOnce()) -> Self {
        // SAFETY: the child runs on the thread that forked, and only `body`.
        let id = unsafe { libc::fork() };
        if id == 0 {
            let body = std::panic::AssertUnwindSafe(|| {
                set_parent_process_death_signal(Some(Signal::KILL)).expect("dies with its parent");
                body();
            });
            let fine = std::panic::catch_unwind(body).is_ok();
            // SAFETY: ends the child without running what belongs to its parent.
            unsafe { libc::_exit(if fine { 0 } else { 1 }) };
        }
        Self(Pid::from_raw(id).expect("forked"))
    }

    fn collect(self) -> rustix::process::WaitStatus {
        let status = waitpid(Some(self.0), WaitOptions::empty()).expect("collected").expect("a status").1;
        std::mem::forget(self);
        status
    }

    #[track_caller]
    fn join(self) {
        let status = self.collect();
        assert_eq!(status.exit_status(), Some(0), "the child did not find what it should: {status:?}");
    }
}

impl Drop for Forked {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::KILL);
        let _ = waitpid(Some(self.0), WaitOptions::empty());
    }
}

/// Runs one test at a time, because a fork copies what other tests have, and with a watchdog.
pub(crate) fn run(body: fn(Start), start: Start) {
    static ALONE: parking_lot::Mutex<()> = parking_lot::Mutex::new(());
    let _alone = ALONE.lock();
    let _dog = watchdog();
    if start == Start::Fork {
        // What a child says in a panic is captured by the harness of its parent, which does not see it.
        let standard = std::panic::take_hook();
        let parent = std::process::id();
        std::panic::set_hook(Box::new(move |info| {
            if std::process::id() == parent {
                return standard(info);
            }
            let _ = rustix::io::write(rustix::stdio::stderr(), format!("in a fork: {info}\n").as_bytes());
        }));
        body(start);
        drop(std::panic::take_hook());
    } else {
        body(start);
    }
}

/// Makes tests of functions that take a [`Start`]: a module per function, a test in it per way.
macro_rules! conformance {
    (processes: $($name:ident)+) => { $(
        mod $name {
            #[test]
            fn spawn() {
                crate::start::run(super::$name, crate::start::Start::Spawn);
            }

            #[test]
            fn fork() {
                crate::start::run(super::$name, crate::start::Start::Fork);
            }
        }
    )+ };
    ($($name:ident)+) => { $(
        mod $name {
            #[test]
            fn threads() {
                crate::start::run(super::$name, crate::start::Start::Threads);
            }

            #[test]
            fn spawn() {
                crate::start::run(super::$name, crate::start::Start::Spawn);
            }

            #[test]
            fn fork() {
                crate::start::run(super::$name, crate::start::Start::Fork);
            }
        }
    )+ };
}

/// Waits until it is so.
pub(crate) fn until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        std::thread::yield_now();
    }
}

/// What `wait` returns, which must have taken as long as that.
#[track_caller]
pub(crate) fn after<R>(at_least: Duration, wait: impl FnOnce() -> R) -> R {
    let begun = Instant::now();
    let result = wait();
    assert!(begun.elapsed() >= at_least, "it did not wait");
    result
}
