//! Fetching a deposit from the broker of another process.
//!
//! If this process dies: before it has asked, nothing happened; afterwards the broker finds the line closed without an
//! acknowledgement, and keeps the deposit; once acknowledged, the descriptors are this process's alone.

use super::serve::{ACKNOWLEDGED, ROOT, Request, Status};
use super::{Claim, FetchError, me, name, namespace};
use crate::crash_point;
use crate::socket;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long [`fetch`](super::fetch) waits for the other process.
pub const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before another try while the broker has a queue in front of it.
const QUEUE: Duration = Duration::from_millis(1);

/// What became of one visit.
enum Visit {
    Fetched(Vec<OwnedFd>),
    /// The broker hung up without an answer: its process is ending, or we were too slow.
    HungUp,
}

pub(super) fn fetch(claim: &Claim) -> Result<Vec<OwnedFd>, FetchError> {
    // One for both visits. A deadline beyond the end of time never comes.
    let deadline = Instant::now().checked_add(FETCH_TIMEOUT);
    // After an end of the process, the second visit finds nobody.
    for _ in 0..2 {
        if let Visit::Fetched(descriptors) = visit(claim, deadline)? {
            return Ok(descriptors);
        }
    }
    Err(FetchError::Silent(FETCH_TIMEOUT))
}

fn visit(claim: &Claim, deadline: Option<Instant>) -> Result<Visit, FetchError> {
    let line = call(claim, deadline)?;
    let peer = sockopt::socket_peercred(&line)
        .map_err(|e| system("asking for the user of the process that sent handles")(e.into()))?;
    // The other side refuses whoever is neither of its user nor root. And anybody can listen under the name of a broker
    // that has ended: root takes from the depositor's user only, and tells nobody else the key.
    let user = peer.uid.as_raw();
    if user != me() && (me() != ROOT || user != claim.user) {
        return Err(FetchError::Stranger);
    }
    if let Err(error) = socket::send(line.as_fd(), &Request::new(claim.key).to_bytes(), &[], deadline) {
        return trouble(error, "asking for handles");
    }
    crash_point!("broker.asked");
    let (answer, descriptors) = match socket::recv(line.as_fd(), deadline) {
        Ok(Some(answer)) => answer,
        Ok(None) => return Ok(Visit::HungUp),
        Err(error) => return trouble(error, "receiving handles"),
    };
    crash_point!("broker.received");
    match Status::of(&answer) {
        Some(Status::Here) if u32::try_from(descriptors.len()) == Ok(claim.count) => {}
        Some(Status::Unknown) => return Err(FetchError::Unknown),
        Some(Status::Stranger) => return Err(FetchError::Stranger),
        _ => return Err(FetchError::Unable),
    }
    if let Err(error) = socket::send(line.as_fd(), ACKNOWLEDGED, &[], deadline) {
        return trouble(error, "acknowledging handles");
    }
    crash_point!("broker.acknowledged");
    // The broker hangs up when it has closed its copies. If it does not, they are ours all the same.
    let _ = socket::recv(line.as_fd(), deadline);
    Ok(Visit::Fetched(descriptors))
}

/// Connects to the broker.
fn call(claim: &Claim, deadline: Option<Instant>) -> Result<OwnedFd, FetchError> {
    let calling = "calling the process that sent handles";
    let address = name(&claim.address).map_err(system(calling))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let line = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(|e| system(calling)(e.into()))?;
    loop {
        match connect(&line, &address) {
            Ok(()) => return Ok(line),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if deadline.is_some_and(|deadline| Instant::now() >= deadline) => {
                return Err(FetchError::Silent(FETCH_TIMEOUT));
            }
            Err(Errno::AGAIN) => std::thread::sleep(QUEUE),
            Err(Errno::CONNREFUSED) => return Err(absent(claim)),
            Err(error) => return Err(system(calling)(error.into())),
        }
    }
}

/// Why nobody listens.
fn absent(claim: &Claim) -> FetchError {
    let here = namespace();
    if here != claim.namespace && here != 0 && claim.namespace != 0 {
        FetchError::Elsewhere
    } else {
        FetchError::Gone
    }
}

fn trouble(error: io::Error, operation: &'static str) -> Result<Visit, FetchError> {
    match error.kind() {
        io::ErrorKind::TimedOut => Err(FetchError::Silent(FETCH_TIMEOUT)),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Ok(Visit::HungUp),
        _ => Err(system(operation)(error)),
    }
}

fn system(operation: &'static str) -> impl FnOnce(io::Error) -> FetchError {
    move |source| FetchError::System { operation, source }
}
