//! The messages between a process and its child, over the child's control socket.
//!
//! ```text
//! parent                                child
//! Hello (handshake.rs)        ->
//!                             <-        Ready or Refused (handshake.rs)
//! ToChild::Run                ->        runs the function, once
//!                             <-        ToParent::Done or ToParent::Failed, then it exits
//! ```
//!
//! One message is one packet of at most [`MAX_MESSAGE`] bytes; what is longer travels as a sealed memory file beside
//! it. The end of the stream is the end of the other process. A message that does not decode is an error, never a
//! panic: the other process may have been told to write anything.

use crate::error::TaskError;
use crate::function::Code;
use crate::oneshot::OneShot;
use crate::payload::Packed;
use crate::pool::{Geometry, Record, RunItems};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use shm_core::socket::{self, MAX_MESSAGE};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

/// From the parent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToChild {
    /// Call this function with this argument, answer, and exit.
    Run { code: Code<OneShot>, argument: Packed },
    /// Become a worker of the pool whose segment and arena come beside.
    Work { geometry: Geometry, slot: u32, incarnation: u16 },
    /// Pool: records name this function by this number from now on.
    Define { number: u32, code: Code<RunItems> },
    /// Pool: the arguments that [`ToParent::Fetch`] asked for.
    Attach { record: Record, packed: Packed },
    /// Pool: finish what is begun, and exit.
    Stop,
}

/// From the child.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToParent {
    /// The function returned.
    Done { result: Packed },
    /// It did not, or its argument or result could not travel.
    Failed(TaskError),
    /// Pool: joined, as this participant of the segment in this generation.
    Attached { participant: u16, generation: u64 },
    /// Pool: the arguments of this record do not lie in shared memory.
    Fetch { record: Record },
    /// Pool: what did not fit of the result of this record.
    Spill { record: Record, packed: Packed },
}

/// Sends one message. Blocks while the other side's buffer is full, until `deadline`.
///
/// # Errors
///
/// Those of [`socket::send`]; `InvalidInput` for a message beyond [`MAX_MESSAGE`].
pub(crate) fn send<M: Serialize>(
    socket: BorrowedFd<'_>,
    message: &M,
    descriptors: &[OwnedFd],
    deadline: Option<Instant>,
) -> io::Result<()> {
    let bytes = postcard::to_stdvec(message).map_err(io::Error::other)?;
    debug_assert!(bytes.len() <= MAX_MESSAGE, "every field of a message is bounded: {} bytes", bytes.len());
    let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    socket::send(socket, &bytes, &descriptors, deadline)
}

/// Receives one message, `None` at the end of the stream. Blocks until one arrives, the other process ends, or the
/// deadline passes (one that has passed already: never blocks).
///
/// # Errors
///
/// `TimedOut`; `InvalidData` for what is no `M`.
pub(crate) fn receive<M: DeserializeOwned>(
    socket: BorrowedFd<'_>,
    deadline: Option<Instant>,
) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
    let Some((bytes, descriptors)) = socket::recv(socket, deadline)? else {
        return Ok(None);
    };
    match postcard::take_from_bytes(&bytes) {
        Ok((message, [])) => Ok(Some((message, descriptors))),
        Ok((_, rest)) => Err(invalid(&format_args!("{} bytes too many", rest.len()))),
        Err(error) => Err(invalid(&error)),
    }
}

fn invalid(error: &dyn std::fmt::Display) -> io::Error {
    let what = format!("what arrived is no message of the control protocol: {error}");
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_an_error_and_not_a_panic() {
        let (a, b) = socket::pair().expect("a pair");
        for noise in [&[0xff; 9][..], &[0], &[1, 200, 1, 1]] {
            socket::send(a.as_fd(), noise, &[], None).expect("sent");
            let error = receive::<ToChild>(b.as_fd(), None).expect_err("noise");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }
}
