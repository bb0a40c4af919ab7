//! The thread that creates children.
//!
//! A child asks the kernel to be told when its parent ends (`PR_SET_PDEATHSIG`), and for the kernel the parent is the
//! *thread* that created it. So children are created by one thread that never ends.
//!
//! The child runs `/proc/self/exe`: this very program, even if its file was replaced meanwhile. It gets its control
//! socket as stdin and a pipe as stderr, and leads a process group of its own, so that a Ctrl-C at the terminal
//! reaches the parent only. Everything else that this workspace opens is closed on exec. Nothing here needs
//! `pre_exec`, so the standard library uses `posix_spawn`, whose cost does not grow with this process's memory.

use crate::attendant::LOCK_PATIENCE;
use parking_lot::Mutex;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use shm_core::fork::ForkStamp;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc::{SyncSender, sync_channel};

/// What the child gets.
#[derive(Debug)]
pub(crate) struct Request {
    /// Variables to set, or to remove (`None`), in this order.
    pub(crate) environment: Vec<(OsString, Option<OsString>)>,
    pub(crate) stdin: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// A child that was created. It must be waited for by its pidfd, else it stays a zombie.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
}

type Job = (Request, SyncSender<io::Result<Spawned>>);

/// The thread of this process; a forked child has none and starts its own.
static SPAWNER: Mutex<Option<(ForkStamp, SyncSender<Job>)>> = Mutex::new(None);

/// Creates a child. Blocks until it exists and has begun to execute the program, about a millisecond.
///
/// # Errors
///
/// The system's: too many processes or descriptors, no `/proc`.
pub(crate) fn spawn(request: Request) -> io::Result<Spawned> {
    let (reply, result) = sync_channel(1);
    let gone = || io::Error::other("the thread that creates children is gone");
    sender()?.send((request, reply)).map_err(|_| gone())?;
    result.recv().map_err(|_| gone())?
}

fn sender() -> io::Result<SyncSender<Job>> {
    // A fork may have copied a lock whose holder did not come along: an error then, not a hang.
    let mut spawner = SPAWNER
        .try_lock_for(LOCK_PATIENCE)
        .ok_or_else(|| io::Error::other("forked while a child was being started"))?;
    if let Some((stamp, sender)) = &*spawner {
        if stamp.check().is_ok() {
            return Ok(sender.clone());
        }
    }
    let (sender, jobs) = sync_channel::<Job>(64);
    std::thread::Builder::new().name("proc-pool-spawn".into()).spawn(move || {
        for (request, reply) in jobs {
            // The caller waits for the reply; if it is gone, the child ends with its closed socket.
            let _ = reply.send(create(request));
        }
    })?;
    *spawner = Some((ForkStamp::now(), sender.clone()));
    Ok(sender)
}

fn create(request: Request) -> io::Result<Spawned> {
    let mut command = Command::new("/proc/self/exe");
    command.stdin(Stdio::from(request.stdin)).stderr(Stdio::from(request.stderr)).process_group(0);
    if let Some(name) = std::env::args_os().next() {
        command.arg0(name);
    }
    for (key, value) in &request.environment {
        match value {
            Some(value) => command.env(key, value),
            None => command.env_remove(key),
        };
    }
    let mut child = command.spawn()?;
    let found = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::other("a process id out of range"))
        // The child is not waited for yet, so its id cannot have been given to another process.
        .and_then(|pid| {
            let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
            Ok(Spawned { pid, pidfd })
        });
    if found.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    found
}
