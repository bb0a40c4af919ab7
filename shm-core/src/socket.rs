//! Messages with descriptors between two processes: a sequenced-packet Unix socket pair.
//!
//! One `send` is one message, whole or not at all; the end of the other process, however it ended, is the end of
//! the stream. Sending never raises `SIGPIPE`.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

/// The longest message, in bytes; larger things travel as a sealed memory file beside it.
pub const MAX_MESSAGE: usize = 64 << 10;
/// The most descriptors beside one message (the kernel's limit is 253).
pub const MAX_DESCRIPTORS: usize = 250;

/// A connected pair; both ends are closed on exec.
///
/// # Errors
///
/// The system's, when descriptors run out.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends one message with its descriptors. Blocks while the peer's buffer is full; woken when the peer reads or
/// ends, or by the deadline.
///
/// # Errors
///
/// `InvalidInput` for an empty message (it could not be told from the end of the stream) or one beyond
/// [`MAX_MESSAGE`] or [`MAX_DESCRIPTORS`]; `TimedOut`; `BrokenPipe` or `ConnectionReset` when the peer is gone.
pub fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
    deadline: Option<Instant>,
) -> io::Result<()> {
    if bytes.is_empty() || bytes.len() > MAX_MESSAGE || descriptors.len() > MAX_DESCRIPTORS {
        let (len, count) = (bytes.len(), descriptors.len());
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "a message has 1 to {MAX_MESSAGE} bytes and up to {MAX_DESCRIPTORS} descriptors, not {len} and {count}"
            ),
        ));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    loop {
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        match sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
        {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait(socket, PollFlags::OUT, deadline)?,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives one message with its descriptors, `None` at the end of the stream. Blocks until one arrives, the peer
/// is gone, or the deadline passes. The descriptors are closed on exec.
///
/// # Errors
///
/// `TimedOut`; `InvalidData` for a message or descriptors that were cut off.
pub fn recv(
    socket: BorrowedFd<'_>,
    deadline: Option<Instant>,
) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    loop {
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut buffers = [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let received = match recvmsg(socket, &mut buffers, &mut control, flags) {
            Ok(received) => received,
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => {
                wait(socket, PollFlags::IN, deadline)?;
                continue;
            }
            Err(Errno::CONNRESET) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        if received.bytes == 0 {
            return Ok(None);
        }
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a message or its descriptors were cut off",
            ));
        }
        bytes.truncate(received.bytes);
        return Ok(Some((bytes, descriptors)));
    }
}

/// Waits until the socket is ready; an error or the end of the stream counts as ready.
fn wait(socket: BorrowedFd<'_>, events: PollFlags, deadline: Option<Instant>) -> io::Result<()> {
    let timeout = match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
        Some(left) if left.is_zero() => return Err(io::ErrorKind::TimedOut.into()),
        Some(left) => Timespec::try_from(left).ok(),
        None => None,
    };
    match poll(&mut [PollFd::from_borrowed_fd(socket, events)], timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::time::Duration;

    #[test]
    fn a_message_arrives_whole_with_its_descriptors() {
        let (a, b) = pair().expect("a pair");
        send(a.as_fd(), b"hello", &[a.as_fd(), b.as_fd()], None).expect("sent");
        send(a.as_fd(), b"!", &[], None).expect("sent");
        let (bytes, descriptors) = recv(b.as_fd(), None).expect("received").expect("a message");
        assert_eq!((bytes.as_slice(), descriptors.len()), (&b"hello"[..], 2));
        assert_eq!(recv(b.as_fd(), None).expect("received").expect("a message").0, b"!");
    }

    #[test]
    fn the_end_of_the_peer_is_the_end_of_the_stream() {
        let (a, b) = pair().expect("a pair");
        drop(a);
        assert!(recv(b.as_fd(), None).expect("no error").is_none());
        assert_eq!(
            send(b.as_fd(), b"x", &[], None).expect_err("nobody there").kind(),
            io::ErrorKind::BrokenPipe
        );
    }

    #[test]
    fn a_silent_peer_ends_in_a_timeout() {
        let (a, _b) = pair().expect("a pair");
        let deadline = Some(Instant::now() + Duration::from_millis(5));
        assert_eq!(recv(a.as_fd(), deadline).expect_err("nothing came").kind(), io::ErrorKind::TimedOut);
        loop {
            match send(a.as_fd(), &[0; 4096], &[], deadline) {
                Ok(()) => {}
                Err(error) => return assert_eq!(error.kind(), io::ErrorKind::TimedOut),
            }
        }
    }

    #[test]
    fn a_message_out_of_bounds_is_refused() {
        let (a, _b) = pair().expect("a pair");
        for len in [0, MAX_MESSAGE + 1] {
            let error = send(a.as_fd(), &vec![0; len], &[], None).expect_err("out of bounds");
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
        let many = vec![a.as_fd(); MAX_DESCRIPTORS + 1];
        assert_eq!(
            send(a.as_fd(), b"x", &many, None).expect_err("too many").kind(),
            io::ErrorKind::InvalidInput
        );
        send(a.as_fd(), &vec![0; MAX_MESSAGE], &[a.as_fd(); MAX_DESCRIPTORS], None).expect("the limits fit");
    }
}
