//! Child processes of tests: the test binary runs itself again, and the child gets its orders, handles included,
//! through a socket that is its standard input.
//!
//! A test binary that uses this has a test named `child` which hands over to [`child`]; in the parent it does
//! nothing. A child dies with its parent, and no later than the peer that stands for it in the parent.
#![allow(dead_code, reason = "each test binary uses its part")]

use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shm_core::handle::{ReceiveSession, SendSession};
use shm_core::socket;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// Set in children, to the parent's process id.
const PARENT: &str = "IPC_QUEUE_TEST_PARENT";

/// Longer than anything takes, even on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A child process and the socket to it. Dropping it kills the child.
pub(crate) struct Peer {
    process: Child,
    socket: OwnedFd,
}

impl Peer {
    /// Starts a child and gives it its orders. With a crash point, the child dies when it gets there.
    pub(crate) fn start(orders: &impl Serialize, crash_point: Option<&str>) -> Self {
        let (ours, theirs) = socket::pair().expect("a socket pair");
        let mut command = Command::new(std::env::current_exe().expect("the test binary has a path"));
        command
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env(PARENT, std::process::id().to_string())
            .env_remove("SHM_CRASH_POINT")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null());
        if let Some(name) = crash_point {
            command.env("SHM_CRASH_POINT", name);
        }
        let peer = Self { process: command.spawn().expect("the test binary starts"), socket: ours };
        // `command` still holds the child's end: only without it does the socket end with the child.
        drop(command);
        send(peer.socket.as_fd(), orders);
        peer
    }

    /// What the child reports next; nothing when it has ended.
    pub(crate) fn report<R: DeserializeOwned>(&self) -> Option<R> {
        receive(self.socket.as_fd())
    }

    /// Everything that the child reports until it ends.
    pub(crate) fn reports<R: DeserializeOwned>(&self) -> Vec<R> {
        std::iter::from_fn(|| self.report()).collect()
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.process.try_wait().expect("a child can be waited for").is_some()
    }

    /// Waits for the end of the child.
    pub(crate) fn wait(mut self) -> ExitStatus {
        self.process.wait().expect("a child can be waited for")
    }

    /// Kills the child. Returns how it ended: it may have been faster.
    pub(crate) fn kill(mut self) -> ExitStatus {
        self.process.kill().expect("a child can be killed");
        self.wait()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(crate) fn was_killed(status: ExitStatus) -> bool {
    status.signal() == Some(Signal::KILL.as_raw())
}

/// In a child: runs `body` with the orders and the way to report, and exits. In the parent: nothing.
pub(crate) fn child<O: DeserializeOwned>(body: impl FnOnce(O, &Reporter)) {
    let Ok(parent) = std::env::var(PARENT) else {
        return;
    };
    set_parent_process_death_signal(Some(Signal::KILL)).expect("a child may die with its parent");
    let is_orphan = getppid().is_none_or(|pid| pid.as_raw_nonzero().to_string() != parent);
    if is_orphan {
        std::process::exit(2);
    }
    let reporter = Reporter(std::io::stdin().as_fd().try_clone_to_owned().expect("a descriptor"));
    if let Some(orders) = receive(reporter.0.as_fd()) {
        body(orders, &reporter);
    }
    std::process::exit(0);
}

/// A child's way to tell its parent something.
pub(crate) struct Reporter(OwnedFd);

impl Reporter {
    /// Reports; returns when the parent will get it even if this process dies now.
    pub(crate) fn report(&self, what: &impl Serialize) {
        send(self.0.as_fd(), what);
    }
}

fn send(socket: BorrowedFd<'_>, what: &impl Serialize) {
    let session = SendSession::begin();
    let bytes = postcard::to_stdvec(what).expect("orders and reports can be serialised");
    let descriptors = session.finish();
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    match socket::send(socket, &bytes, &borrowed, None) {
        // Whoever waits for the other end finds out there.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
        sent => sent.expect("orders and reports can be sent"),
    }
}

fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> Option<T> {
    let (bytes, descriptors) = socket::recv(socket, None).expect("the socket works")?;
    let _session = ReceiveSession::begin(descriptors);
    Some(postcard::from_bytes(&bytes).expect("both ends run the same program"))
}

/// Aborts the process, children with it, unless dropped in time.
pub(crate) struct Watchdog(#[expect(dead_code, reason = "its end is what the thread waits for")] Sender<()>);

pub(crate) fn watchdog() -> Watchdog {
    watchdog_after(PATIENCE)
}

pub(crate) fn watchdog_after(patience: Duration) -> Watchdog {
    let (watched, end) = channel();
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    std::thread::spawn(move || {
        if end.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
            eprintln!("{test} hangs");
            std::process::abort();
        }
    });
    Watchdog(watched)
}
