//! The parent's side of one child: creating it, talking to it, signalling it, learning how it ended.
//!
//! # If the child dies
//!
//! Its pidfd becomes readable, whoever holds its socket or its stderr by then. What it had sent before it died is
//! still in the socket: read that first, then ask [`Child::death`].
//!
//! # If this process dies
//!
//! See [`crate::startup`]: the child notices and ends with its whole process group.
//!
//! # Across processes
//!
//! A process forked from this one inherits the descriptors but not the child: its `Child` signals nobody, waits for
//! nobody, and its drop does nothing.

use crate::attendant::{self, Tail};
use crate::control::{self, ToChild, ToParent};
use crate::error::{Error, HandshakeFailure, Kind, Result, TaskError};
use crate::handshake::{self, Failure, Identity};
use crate::oom;
use crate::process::ExitStatus;
use crate::spawner::{self, Request};
use crate::startup;
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus, kill_process_group, pidfd_send_signal, waitid,
};
use shm_core::fork::ForkStamp;
use shm_core::socket;
use shm_core::sync::{AtomicBool, Ordering};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a child may take from its creation to the end of the handshake.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a drop waits for a killed child before it leaves the rest to the attendant.
const DROP_PATIENCE: Duration = Duration::from_millis(100);

/// What to create.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    /// The child's name, for its parent and in its handshake.
    pub(crate) name: String,
    /// Variables to set or remove.
    pub(crate) environment: Vec<(OsString, Option<OsString>)>,
    pub(crate) handshake_timeout: Duration,
}

/// A child process. Dropping it kills the child and its process group, and collects its exit status.
#[derive(Debug)]
pub(crate) struct Child {
    pid: Pid,
    pidfd: Arc<OwnedFd>,
    socket: OwnedFd,
    tail: Arc<Tail>,
    owner: ForkStamp,
    ready_by: (Instant, Duration),
    /// The exit status, once collected. Held while signalling: an uncollected child keeps its ids.
    status: Mutex<Option<ExitStatus>>,
    killed: AtomicBool,
    oom_kills_before: Option<u64>,
}

/// What [`Child::try_receive`] found.
#[derive(Debug)]
pub(crate) enum Received {
    Message(ToParent, Vec<OwnedFd>),
    Nothing,
    /// The child closed its end: it ended, or is about to.
    End,
}

/// When a child's end was noticed.
#[derive(Clone, Copy)]
enum Found {
    Before,
    Now,
}

impl Child {
    /// Creates a child and greets it. Does not wait for its answer, so several can start at once: call
    /// [`Child::handshake`] for each afterwards.
    ///
    /// # Errors
    ///
    /// `is_not_initialised`, `is_too_deep`, or the system's.
    pub(crate) fn launch(launch: &Launch) -> Result<Self> {
        startup::may_start()?;
        let identity = identity()?;
        let started = Instant::now();
        let (ours, theirs) = socket::pair().map_err(Error::system("creating a control socket"))?;
        let (tail, stderr) = Tail::new().map_err(Error::system("creating a pipe for stderr"))?;
        handshake::greet(ours.as_fd(), &identity, &launch.name)
            .map_err(Error::system("greeting a child process"))?;
        let mut environment = launch.environment.clone();
        environment.extend(
            startup::environment_of_child(theirs.as_fd())
                .map_err(Error::system("identifying a control socket"))?,
        );
        let oom_kills_before = oom::kills();
        attendant::forward_stderr(Arc::clone(&tail)).map_err(Error::system("starting a thread"))?;
        let request = Request { environment, stdin: theirs, stderr };
        let spawned = spawner::spawn(request).map_err(Error::system("starting a child process"))?;
        Ok(Self {
            pid: spawned.pid,
            pidfd: Arc::new(spawned.pidfd),
            socket: ours,
            tail,
            owner: ForkStamp::now(),
            ready_by: (
                started + launch.handshake_timeout.min(Duration::from_secs(1 << 32)),
                launch.handshake_timeout,
            ),
            status: Mutex::new(None),
            killed: AtomicBool::new(false),
            oom_kills_before,
        })
    }

    /// Waits until the child has proved to be this program, at most until its handshake deadline. A child that fails
    /// is killed.
    ///
    /// # Errors
    ///
    /// `is_handshake`, with the child's end and its last words.
    pub(crate) fn handshake(&self) -> Result<()> {
        let (deadline, timeout) = self.ready_by;
        let failure = match handshake::await_answer(self.socket.as_fd(), &identity()?, deadline) {
            Ok(()) => return Ok(()),
            Err(Failure::End) => {
                // Its end of the socket is closed: it ended, or runs something else and is ended now.
                let status = self
                    .wait_status(Some(deadline.min(Instant::now() + Duration::from_secs(1))))
                    .unwrap_or_else(|| self.kill_and_wait());
                HandshakeFailure::Ended {
                    signal: status.signal(),
                    code: status.code(),
                    oom: self.was_oom_kill(status),
                }
            }
            Err(Failure::TimedOut) => HandshakeFailure::TimedOut(timeout),
            Err(Failure::Mismatch(mismatch)) => HandshakeFailure::Mismatch(mismatch),
            Err(Failure::Garbled(error)) => HandshakeFailure::Garbled(error),
        };
        self.kill_and_wait();
        Err(Kind::Handshake { pid: self.id(), failure, stderr_tail: self.tail.text() }.into())
    }

    /// Sends a message. Blocks while the child's buffer is full, until `deadline`.
    pub(crate) fn send(
        &self,
        message: &ToChild,
        descriptors: &[OwnedFd],
        deadline: Option<Instant>,
    ) -> io::Result<()> {
        control::send(self.socket.as_fd(), message, descriptors, deadline)
    }

    /// Receives a message if one is there. Never blocks.
    ///
    /// # Errors
    ///
    /// `InvalidData` for what is no message, or the system's.
    pub(crate) fn try_receive(&self) -> io::Result<Received> {
        match control::receive(self.socket.as_fd(), Some(Instant::now())) {
            Ok(Some((message, descriptors))) => Ok(Received::Message(message, descriptors)),
            Ok(None) => Ok(Received::End),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(Received::Nothing),
            Err(error) => Err(error),
        }
    }

    /// Waits until the child ended, or (with `listen`) sent something or closed its socket, or the deadline passed.
    /// May return early.
    pub(crate) fn wait(&self, listen: bool, deadline: Option<Instant>) {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        let mut both = [
            PollFd::from_borrowed_fd(self.pidfd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::IN),
        ];
        let polled = &mut both[..if listen { 2 } else { 1 }];
        // A signal or a lack of memory is an early return.
        let _ = poll(polled, timeout.as_ref());
    }

    /// Its process id, which no other process gets before its exit status was collected.
    pub(crate) fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Readable when the child has ended.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The control socket; readable when the child sent something or closed its end.
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// An error in a process forked from the one that created the child.
    pub(crate) fn check_owner(&self) -> std::result::Result<(), shm_core::fork::Forked> {
        self.owner.check()
    }

    /// Sends a signal to the child alone; does nothing if it ended.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(self.pidfd(), signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends SIGKILL to the child and its process group; does nothing if its exit status was collected, or in a forked
    /// process.
    pub(crate) fn kill(&self) -> io::Result<()> {
        if self.owner.check().is_err() {
            return Ok(());
        }
        let status = self.status.lock();
        if status.is_none() {
            // Relaxed: read by whoever explains the death, who learns of it through the kernel.
            self.killed.store(true, Ordering::Relaxed);
            self.kill_group();
            self.signal(Signal::KILL)?;
        }
        Ok(())
    }

    /// Call it while the exit status is uncollected only: until then the number of the group is the child's.
    fn kill_group(&self) {
        // No such group: the child left it, or everybody in it is gone.
        let _ = kill_process_group(self.pid, Signal::KILL);
    }

    /// The exit status if the child has ended; collects it (no zombie stays) and keeps it. What a child that ended by
    /// a signal left in its process group is killed. What one that did not end well held in shared memory is looked after
    /// at once. Waits for no other process. Nothing in a forked process.
    pub(crate) fn try_status(&self) -> Option<ExitStatus> {
        let status = self.collect_status();
        if let Some((status, Found::Now)) = status {
            // Also after an exit: it ends a process in the middle of anything.
            if !status.success() {
                shm_core::segment::sweep_all();
            }
        }
        status.map(|(status, _)| status)
    }

    fn collect_status(&self) -> Option<(ExitStatus, Found)> {
        // First: a forked process may have inherited the lock taken.
        self.owner.check().ok()?;
        let mut status = self.status.lock();
        if status.is_some() {
            return status.map(|status| (status, Found::Before));
        }
        *status = match self.wait_id(WaitIdOptions::NOWAIT) {
            Ok(None) => None,
            Ok(Some(found)) => {
                let found = ExitStatus::new(found.exit_status(), found.terminating_signal());
                if found.signal().is_some() {
                    self.kill_group();
                }
                // Cannot fail: it was there just now, and the lock keeps everybody else in this crate away.
                let _ = self.wait_id(WaitIdOptions::empty());
                Some(found)
            }
            // Somebody else waited for it (`waitpid(-1)`, or SIGCHLD is ignored), so how it ended is unknown.
            Err(_) => Some(ExitStatus::new(None, None)),
        };
        status.map(|status| (status, Found::Now))
    }

    fn wait_id(&self, option: WaitIdOptions) -> rustix::io::Result<Option<WaitIdStatus>> {
        loop {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | option;
            match waitid(WaitId::PidFd(self.pidfd()), options) {
                Err(Errno::INTR) => {}
                result => return result,
            }
        }
    }

    /// Waits for the child's end until the deadline, and collects its exit status.
    pub(crate) fn wait_status(&self, deadline: Option<Instant>) -> Option<ExitStatus> {
        loop {
            if let Some(status) = self.try_status() {
                return Some(status);
            }
            if self.owner.check().is_err() || deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return None;
            }
            self.wait(false, deadline);
        }
    }

    /// Kills the child and waits for its end. A process in an uninterruptible system call ends after that only.
    fn kill_and_wait(&self) -> ExitStatus {
        let _ = self.kill();
        self.wait_status(None).unwrap_or(ExitStatus::new(None, None))
    }

    /// The error that tells how the child ended, with its last words. Call it after its end.
    pub(crate) fn death(&self, item: Option<u64>, label: &str) -> TaskError {
        let status = self.try_status().unwrap_or(ExitStatus::new(None, None));
        TaskError::WorkerDied {
            pid: self.id(),
            signal: status.signal(),
            code: status.code(),
            oom: self.was_oom_kill(status),
            stderr_tail: self.tail.text(),
            item,
            label: label.to_owned(),
        }
    }

    /// Forwards what the child wrote to stderr and nobody has forwarded yet. Call it after its end, so that its last
    /// words come before whatever this process does next. If stderr blocks, it gives up after a second.
    pub(crate) fn flush_stderr(&self) {
        self.tail.flush();
    }

    /// SIGKILL that we did not send, while the kernel's count of out-of-memory kills went up.
    fn was_oom_kill(&self, status: ExitStatus) -> bool {
        status.signal() == Some(Signal::KILL.as_raw())
            && !self.killed.load(Ordering::Relaxed)
            && self.oom_kills_before.is_some_and(|before| oom::kills().is_some_and(|now| now > before))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.owner.check().is_err() || self.try_status().is_some() {
            return;
        }
        let _ = self.kill();
        if self.wait_status(Some(Instant::now() + DROP_PATIENCE)).is_none() {
            attendant::reap(Arc::clone(&self.pidfd));
        }
    }
}

fn identity() -> Result<Identity> {
    Identity::of_this_process().map_err(Error::system("identifying this program"))
}
