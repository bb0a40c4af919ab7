//! What can go wrong: with one task ([`TaskError`]) and with everything around it ([`Error`]).

use crate::handshake::Mismatch;
use serde::{Deserialize, Serialize};
use shm_core::SegmentError;
use std::fmt;
use std::io;
use std::time::Duration;

/// The result of everything that is not one task's outcome; `?` turns a [`TaskError`] into its error too.
pub type Result<T> = std::result::Result<T, Error>;

/// Why one call in another process has no result. Plain data: it can be cloned, compared and sent on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// The function panicked. The process printed the message as usual and went on, or exited with code 101.
    #[error("the task panicked{}: {message}", At(location))]
    #[non_exhaustive]
    Panicked {
        /// The panic message; a placeholder if the payload was not a string.
        message: String,
        /// `file:line:column`, if the panic came through the panic hook.
        location: Option<String>,
        /// The backtrace, if `RUST_BACKTRACE` asked for one.
        backtrace: Option<String>,
    },
    /// The process that ran the task ended: by a signal, by `exit`, or killed.
    #[error("worker process {pid} {} while it ran {label}{}", Ending(*signal, *code, *oom), Stderr(stderr_tail))]
    #[non_exhaustive]
    WorkerDied {
        /// Its process id.
        pid: u32,
        /// The signal that ended it (9 SIGKILL, 11 SIGSEGV, 6 SIGABRT).
        signal: Option<i32>,
        /// The code that it exited with.
        code: Option<i32>,
        /// The kernel killed it because memory ran out, as far as the counters of the machine tell.
        oom: bool,
        /// The end of what it wrote to stderr, up to 4 KiB.
        stderr_tail: String,
        /// The index of the item that it was working on, for maps.
        item: Option<u64>,
        /// The name of the function.
        label: String,
    },
    /// The task did not finish in its time.
    #[error("the task did not finish in time")]
    TimedOut,
    /// The task was cancelled.
    #[error("the task was cancelled")]
    Cancelled,
    /// An argument or a result could not be encoded or decoded.
    #[error("{message}")]
    #[non_exhaustive]
    Codec {
        /// What could not be done, and why.
        message: String,
    },
    /// The pool was closed or terminated before the task ran.
    #[error("the pool is closed")]
    PoolClosed,
    /// The outcome exists or existed, but cannot be had here.
    #[error("{reason}")]
    #[non_exhaustive]
    Unavailable {
        /// Why.
        reason: String,
    },
}

impl TaskError {
    pub(crate) fn codec(what: &str, error: &dyn fmt::Display) -> Self {
        Self::Codec { message: cut(format!("{what}: {error}"), MAX_TEXT) }
    }

    pub(crate) fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable { reason: cut(reason.into(), MAX_TEXT) }
    }
}

impl From<shm_core::fork::Forked> for TaskError {
    fn from(_: shm_core::fork::Forked) -> Self {
        Self::unavailable(
            "this process was forked after the child had been started; it belongs to the parent",
        )
    }
}

/// Longest text of an error that travels, in bytes; longer ones are cut.
const MAX_TEXT: usize = 8 << 10;

/// Cuts a text to at most `limit` bytes, at a character's end.
pub(crate) fn cut(mut text: String, limit: usize) -> String {
    if text.len() > limit {
        let end = (0..=limit).rev().find(|&at| text.is_char_boundary(at));
        text.truncate(end.unwrap_or(0));
    }
    text
}

struct At<'a>(&'a Option<String>);

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(location) => write!(f, " at {location}"),
            None => Ok(()),
        }
    }
}

/// How a process ended: signal, code, out of memory.
pub(crate) struct Ending(pub(crate) Option<i32>, pub(crate) Option<i32>, pub(crate) bool);

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self(Some(_), _, true) => f.write_str("was killed by the kernel because memory ran out"),
            Self(Some(signal), _, _) => match signal_name(signal) {
                Some(name) => write!(f, "was ended by signal {signal} ({name})"),
                None => write!(f, "was ended by signal {signal}"),
            },
            Self(None, Some(code), _) => write!(f, "exited with code {code}"),
            Self(None, None, _) => f.write_str("ended (somebody else collected its exit status)"),
        }
    }
}

fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => return None,
    })
}

struct Stderr<'a>(&'a str);

impl fmt::Display for Stderr<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.trim_end() {
            "" => Ok(()),
            tail => write!(f, "; its stderr ended with:\n{tail}"),
        }
    }
}

/// Why a process, a pool or a job could not be set up, or a task failed. Opaque: ask the `is_*` predicates.
pub struct Error(Box<Kind>);

#[derive(Debug)]
pub(crate) enum Kind {
    /// `init` was never called here.
    NotInitialised {
        worker: bool,
    },
    TooDeep {
        depth: u32,
        limit: u32,
    },
    /// The function lies in another shared object.
    ForeignFunction {
        label: String,
        address: usize,
    },
    Handshake {
        pid: u32,
        failure: HandshakeFailure,
        stderr_tail: String,
    },
    System {
        operation: &'static str,
        source: io::Error,
    },
    Memory {
        operation: &'static str,
        source: SegmentError,
    },
    Invalid {
        what: String,
    },
    Task(TaskError),
}

/// How a child failed to become ready.
#[derive(Debug)]
pub(crate) enum HandshakeFailure {
    Ended { signal: Option<i32>, code: Option<i32>, oom: bool },
    TimedOut(Duration),
    Mismatch(Mismatch),
    Garbled(io::Error),
}

impl Error {
    pub(crate) fn system(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Kind::System { operation, source }.into()
    }

    pub(crate) fn memory(operation: &'static str) -> impl FnOnce(SegmentError) -> Self {
        move |source| Kind::Memory { operation, source }.into()
    }

    /// An argument out of its range; `what` names the value and the limit.
    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        Kind::Invalid { what: what.into() }.into()
    }

    /// [`init`](crate::init) was not called in this process, or not reached yet.
    pub fn is_not_initialised(&self) -> bool {
        matches!(*self.0, Kind::NotInitialised { .. })
    }

    /// Processes that start processes that start processes, beyond the limit.
    pub fn is_too_deep(&self) -> bool {
        matches!(*self.0, Kind::TooDeep { .. })
    }

    /// The function does not lie in the main program, so its name means nothing to a child.
    pub fn is_foreign_function(&self) -> bool {
        matches!(*self.0, Kind::ForeignFunction { .. })
    }

    /// The child ended, hung or was another program before it became ready.
    pub fn is_handshake(&self) -> bool {
        matches!(*self.0, Kind::Handshake { .. })
    }

    /// The child is another build of the program, or speaks another version of the protocol.
    pub fn is_mismatch(&self) -> bool {
        matches!(*self.0, Kind::Handshake { failure: HandshakeFailure::Mismatch(_), .. })
    }

    /// An argument was out of its range.
    pub fn is_invalid_input(&self) -> bool {
        matches!(*self.0, Kind::Invalid { .. })
    }

    /// The pool was closed or terminated.
    pub fn is_closed(&self) -> bool {
        matches!(*self.0, Kind::Task(TaskError::PoolClosed))
    }

    /// Memory ran out.
    pub fn is_out_of_memory(&self) -> bool {
        match &*self.0 {
            Kind::Memory { source, .. } => source.is_out_of_memory(),
            Kind::System { source, .. } => source.kind() == io::ErrorKind::OutOfMemory,
            _ => false,
        }
    }

    /// The failure of a task, if that is what it is.
    pub fn task(&self) -> Option<&TaskError> {
        match &*self.0 {
            Kind::Task(error) => Some(error),
            _ => None,
        }
    }

    /// The failure of a task, if that is what it is; the error itself otherwise.
    ///
    /// # Errors
    ///
    /// The error itself if it is not one of a task.
    pub fn into_task(self) -> std::result::Result<TaskError, Self> {
        match *self.0 {
            Kind::Task(error) => Ok(error),
            kind => Err(kind.into()),
        }
    }
}

impl From<Kind> for Error {
    fn from(kind: Kind) -> Self {
        Self(Box::new(kind))
    }
}

impl From<TaskError> for Error {
    fn from(error: TaskError) -> Self {
        Kind::Task(error).into()
    }
}

impl From<shm_core::fork::Forked> for Error {
    fn from(forked: shm_core::fork::Forked) -> Self {
        TaskError::from(forked).into()
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What `main` prints when it returns an error: the sentence, not the fields.
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Kind::NotInitialised { worker: false } => f.write_str(
                "init() was not called in this process: call proc_pool::init() as the first statement of main",
            ),
            Kind::NotInitialised { worker: true } => f.write_str(
                "this process was started as a worker and has not reached proc_pool::init(), \
                 which must be the first statement of main; it may not start processes",
            ),
            Kind::TooDeep { depth, limit } => write!(
                f,
                "processes are nested {depth} deep, and the limit is {limit}: does a worker start its own kind?"
            ),
            Kind::ForeignFunction { label, address } => write!(
                f,
                "the function {label} at {address:#x} does not lie in the main program, so no child can find it"
            ),
            Kind::Handshake {
                pid,
                failure,
                stderr_tail,
            } => {
                write!(f, "child process {pid} {failure}{}", Stderr(stderr_tail))
            }
            Kind::System { operation, source } => write!(f, "{operation}: {source}"),
            Kind::Memory { operation, source } => write!(f, "{operation}: {source}"),
            Kind::Invalid { what } => f.write_str(what),
            Kind::Task(error) => error.fmt(f),
        }
    }
}

impl fmt::Display for HandshakeFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const HINT: &str = "is proc_pool::init() the first statement of main?";
        match self {
            Self::Ended { signal, code, oom } => {
                write!(f, "{} before it was ready; {HINT}", Ending(*signal, *code, *oom))
            }
            Self::TimedOut(after) => write!(f, "was not ready after {after:?} and was killed; {HINT}"),
            Self::Mismatch(mismatch) => mismatch.fmt(f),
            Self::Garbled(error) => write!(f, "answered what is no handshake: {error}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &*self.0 {
            Kind::System { source, .. } => Some(source),
            Kind::Memory { source, .. } => Some(source),
            Kind::Task(error) => Some(error),
            _ => None,
        }
    }
}
