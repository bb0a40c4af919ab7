//! How a process begins: [`init`], the guard against processes that start each other without end, and the watch over
//! the parent.
//!
//! # The states of a process
//!
//! ```text
//!                      init, no marker                 start a child
//! NOT REACHED  ------------------------->  REACHED  ------------------->  allowed, up to DEPTH_LIMIT
//!      |           init, marker
//!      |  ------------------------->  worker: handshake, REACHED, serves, exits; init never returns
//!      |  start a child
//!      `------------------------->  refused: this is what stops a fork bomb
//! ```
//!
//! A child's environment has a *marker*: the process id of its parent and the inode of its control socket, which is
//! its stdin, whose other end that parent made under the same user id. A process that inherits the marker by accident
//! (a program that a worker ran) has another parent or another stdin, and is an ordinary process. A count of the nesting stays in the environment.
//!
//! # If the parent dies
//!
//! The child's control socket ends and its parent process id changes; a thread of the child waits for either and
//! then kills the child's process group, so that what the child had started goes too. Until that thread runs, the
//! kernel sends SIGKILL when the parent ends (`PR_SET_PDEATHSIG`); from then on it sends SIGCONT, which lets the
//! thread run in a stopped process.
#![allow(unsafe_code)]
//! # Safety
//!
//! Two calls of libc with valid arguments, and the removal of environment variables while the process has one thread.

use crate::control::{self, ToChild};
use crate::error::{Error, Kind};
use crate::handshake::{self, Failure, Identity};
use crate::{oneshot, panic};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{
    Pid, Signal, getpgrp, getpid, getppid, kill_current_process_group, kill_process,
    set_parent_process_death_signal,
};
use shm_core::sync::{AtomicU32, Ordering};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

/// Names the parent and the control socket of a worker.
const MARKER: &str = "PROC_POOL_WORKER";
/// How many processes of this kind are above a process.
const DEPTH: &str = "PROC_POOL_DEPTH";
/// How deep processes may be nested.
const DEPTH_LIMIT: u32 = 8;
/// With the feature `ctor`: `0` keeps the constructor from calling `init`.
#[cfg(feature = "ctor")]
const CONSTRUCTOR: &str = "PROC_POOL_CTOR";

/// `init` was not called yet.
const NOT_REACHED: u32 = 0;
/// Past `init`, or a worker past its handshake.
const REACHED: u32 = 1;

static STATE: AtomicU32 = AtomicU32::new(NOT_REACHED);

/// Makes this program one that can run functions in other processes. Must be the first statement of `main`.
///
/// A child is this same program, started anew. In an ordinary process `init` takes note and returns. In a process
/// that was started to run a function it does that and exits: it *never returns*, so nothing after it runs in a
/// child, and nothing before it should do more than the child can bear. May be called again, which does nothing.
///
/// Test binaries, doctests and benches have no `main` of their own: the feature `ctor` calls `init` before `main`.
///
/// # If the peer dies
///
/// A worker whose parent ends, however it ended, is killed together with its process group.
///
/// # Across processes
///
/// A worker starts with no signal blocked, `/dev/null` as stdin, its stderr forwarded by the parent, and as the
/// leader of a process group of its own.
///
/// # Examples
///
/// ```
/// fn main() -> proc_pool::Result<()> {
///     proc_pool::init();
///     let child = proc_pool::Process::spawn(|x: u64| x + 1, 41)?;
///     assert_eq!(child.join()?, 42);
///     Ok(())
/// }
/// ```
pub fn init() {
    if STATE.load(Ordering::Relaxed) == REACHED {
        return;
    }
    if let Some(marker) = std::env::var_os(MARKER) {
        match Station::of(&marker) {
            Station::Worker(parent) => run_worker(parent),
            Station::Orphan => std::process::exit(1),
            Station::Ordinary => {}
        }
    }
    shm_core::sync::register_asymmetric_fence();
    // Relaxed: a flag that says which of this process's own calls are allowed.
    STATE.store(REACHED, Ordering::Relaxed);
}

#[cfg(feature = "ctor")]
mod constructor {
    /// Runs before `main`.
    #[ctor::ctor(unsafe)]
    fn before_main() {
        if std::env::var_os(super::CONSTRUCTOR).is_none_or(|value| value != "0") {
            super::init();
        }
    }
}

/// Whether this process may start a child.
///
/// # Errors
///
/// `is_not_initialised`, `is_too_deep`.
pub(crate) fn may_start() -> Result<(), Error> {
    if STATE.load(Ordering::Relaxed) != REACHED {
        let worker = std::env::var_os(MARKER).is_some();
        return Err(Kind::NotInitialised { worker }.into());
    }
    let depth = depth();
    if depth >= DEPTH_LIMIT {
        let limit = DEPTH_LIMIT;
        return Err(Kind::TooDeep { depth, limit }.into());
    }
    Ok(())
}

/// How many processes of this kind are above this one; beyond every limit if the count was tampered with.
fn depth() -> u32 {
    match std::env::var_os(DEPTH) {
        None => 0,
        Some(text) => text.to_str().and_then(|text| text.parse().ok()).unwrap_or(u32::MAX),
    }
}

/// What a child finds in its environment.
pub(crate) fn environment_of_child(socket: BorrowedFd<'_>) -> io::Result<[(OsString, Option<OsString>); 2]> {
    let (parent, inode) = (getpid().as_raw_nonzero(), rustix::fs::fstat(socket)?.st_ino);
    let depth = depth().saturating_add(1);
    Ok([
        (MARKER.into(), Some(format!("{parent}:{inode}").into())),
        (DEPTH.into(), Some(depth.to_string().into())),
    ])
}

/// What a process with a marker is.
enum Station {
    /// The child that the marker was meant for, with its parent.
    Worker(Pid),
    /// That child, after its parent had ended.
    Orphan,
    /// It inherited the marker by accident.
    Ordinary,
}

impl Station {
    fn of(marker: &OsString) -> Self {
        let parsed = marker.to_str().and_then(|text| text.split_once(':')).and_then(|(parent, inode)| {
            Some((Pid::from_raw(parent.parse().ok()?)?, inode.parse::<u64>().ok()?))
        });
        let Some((parent, inode)) = parsed else {
            return Self::Ordinary;
        };
        let stdin = io::stdin();
        if rustix::fs::fstat(&stdin).map(|stat| stat.st_ino) != Ok(inode) {
            return Self::Ordinary;
        }
        // A program with more rights than its caller (set-user-ID) must not run what the caller says.
        let maker = rustix::net::sockopt::socket_peercred(&stdin);
        if !maker.is_ok_and(|maker| maker.pid == parent && maker.uid == rustix::process::geteuid()) {
            return Self::Ordinary;
        }
        if getppid() == Some(parent) {
            return Self::Worker(parent);
        }
        if hung_up(stdin.as_fd(), Some(&Timespec::default())) { Self::Orphan } else { Self::Ordinary }
    }
}

/// Waits until the other end of the socket is closed, at most for `timeout`.
fn hung_up(socket: BorrowedFd<'_>, timeout: Option<&Timespec>) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(socket, PollFlags::RDHUP)];
    let _ = poll(&mut polled, timeout);
    polled[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP)
}

/// The life of a worker.
fn run_worker(parent: Pid) -> ! {
    match prepare_worker(parent) {
        Ok(socket) => serve(socket.as_fd()),
        Err(error) => {
            eprintln!("proc-pool: this worker process cannot start: {error}");
            std::process::exit(1)
        }
    }
}

fn prepare_worker(parent: Pid) -> io::Result<OwnedFd> {
    let deadline = Instant::now() + crate::child::HANDSHAKE_TIMEOUT;
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() != Some(parent) {
        // It ended before it could be told: then nobody waits for us.
        std::process::exit(1);
    }
    let socket = take_socket()?;
    // Before there is a second thread: some hundred times cheaper.
    shm_core::sync::register_asymmetric_fence();
    reset_signals();
    remove_marker();
    let identity = Identity::of_this_process()?;
    let name = match handshake::answer(socket.as_fd(), &identity, deadline) {
        Ok(name) => name,
        Err(Failure::End) => return Err(io::Error::other("the parent is gone")),
        Err(Failure::TimedOut) => return Err(io::Error::other("the parent did not greet in time")),
        Err(Failure::Mismatch(mismatch)) => {
            return Err(io::Error::other(format!("the parent {mismatch}")));
        }
        Err(Failure::Garbled(error)) => return Err(error),
    };
    // For `ps` and the like; the kernel keeps 15 bytes.
    let _ = std::ffi::CString::new(name).map(|name| rustix::thread::set_name(&name));
    watch_parent(parent, socket.try_clone()?)?;
    set_parent_process_death_signal(Some(Signal::CONT))?;
    if getppid() != Some(parent) {
        std::process::exit(1);
    }
    panic::install_hook();
    STATE.store(REACHED, Ordering::Relaxed);
    Ok(socket)
}

/// Moves the control socket away from stdin, where `/dev/null` goes.
fn take_socket() -> io::Result<OwnedFd> {
    let socket = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(socket)
}

/// Unblocks every signal, and ignores SIGPIPE as the runtime does before `main`.
fn reset_signals() {
    // SAFETY: `sigset_t` is plain data that `sigemptyset` fills; no handler is installed.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
}

/// Removes the marker, if nobody can be reading the environment. Where it stays it is harmless.
fn remove_marker() {
    let threads = std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    if threads == 1 {
        // SAFETY: this is the only thread.
        unsafe { std::env::remove_var(MARKER) };
    }
}

/// Starts the thread that ends this process, and what it started, with its parent.
fn watch_parent(parent: Pid, socket: OwnedFd) -> io::Result<()> {
    // The socket should do; asking for the parent as well covers user code that closes descriptors it does not own.
    let look_again = Timespec { tv_sec: 1, tv_nsec: 0 };
    std::thread::Builder::new().name("proc-pool-watch".into()).stack_size(64 << 10).spawn(move || {
        while !hung_up(socket.as_fd(), Some(&look_again)) && getppid() == Some(parent) {}
        if getpgrp() == getpid() {
            let _ = kill_current_process_group(Signal::KILL);
        }
        let _ = kill_process(getpid(), Signal::KILL);
    })?;
    Ok(())
}

/// Does what the parent says, and exits.
fn serve(socket: BorrowedFd<'_>) -> ! {
    match control::receive::<ToChild>(socket, None) {
        Ok(Some((ToChild::Run { code, argument }, descriptors))) => {
            oneshot::run(socket, code, argument, descriptors)
        }
        Ok(Some((ToChild::Work { geometry, slot, incarnation }, descriptors))) => {
            crate::pool::worker::run(socket, geometry, slot, incarnation, descriptors)
        }
        Ok(Some(_)) => {
            eprintln!("proc-pool: the first message makes a child a worker of a pool or runs a function");
            std::process::exit(1)
        }
        Ok(None) => std::process::exit(0),
        Err(error) => {
            eprintln!("proc-pool: {error}");
            std::process::exit(1)
        }
    }
}
