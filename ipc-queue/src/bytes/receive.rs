//! The receiving end of a queue of bytes.
//!
//! # Safety
//!
//! As in [`bytes`](super).
#![allow(unsafe_code)]

use super::{BytesReceiver, BytesRef};
use crate::end::End;
use crate::error::{DecodeError, Dry, RecvError, RecvTimeoutError, TryRecvError};
use crate::receiver::nothing;
use crate::wait::{Patience, Stop, forever};
use std::fmt;
use std::iter::FusedIterator;
use std::ops::Deref;
use std::time::{Duration, Instant};

impl BytesReceiver {
    pub(crate) fn new(end: End) -> Self {
        Self { end }
    }

    /// Receives a message in place. Blocks while the queue is empty; woken as [`Receiver::recv`](crate::Receiver::recv).
    ///
    /// # Errors
    ///
    /// As [`Receiver::recv`](crate::Receiver::recv).
    ///
    /// # If the peer dies
    ///
    /// What a dead sender left half done is cleared away here.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (tx, rx) = ipc_queue::bounded_bytes(4)?;
    /// tx.send(b"a line")?;
    /// assert_eq!(&*rx.recv_ref()?, b"a line");
    /// # Ok(()) }
    /// ```
    pub fn recv_ref(&self) -> Result<BytesRef<'_>, RecvError> {
        Ok(forever(|patience| self.take(patience))??)
    }

    /// Receives a message in place if one is there now. Never blocks.
    ///
    /// # Errors
    ///
    /// [`TryRecvError::Empty`], or what [`BytesReceiver::recv_ref`] fails for.
    ///
    /// # If the peer dies
    ///
    /// As [`Receiver::try_recv`](crate::Receiver::try_recv).
    pub fn try_recv_ref(&self) -> Result<BytesRef<'_>, TryRecvError> {
        match self.take(Patience::None) {
            Ok(message) => Ok(message?),
            Err(dry) => Err(dry.map_or(TryRecvError::Empty, TryRecvError::from)),
        }
    }

    /// Receives a message in place. Blocks as [`BytesReceiver::recv_ref`], up to `timeout`.
    ///
    /// # Errors
    ///
    /// [`RecvTimeoutError::Timeout`], or what [`BytesReceiver::recv_ref`] fails for.
    ///
    /// # If the peer dies
    ///
    /// As [`BytesReceiver::recv_ref`].
    pub fn recv_ref_timeout(&self, timeout: Duration) -> Result<BytesRef<'_>, RecvTimeoutError> {
        self.take_patiently(Patience::For(timeout))
    }

    /// Receives a message in place. Blocks as [`BytesReceiver::recv_ref`], until `deadline`.
    ///
    /// # Errors
    ///
    /// As [`BytesReceiver::recv_ref_timeout`].
    ///
    /// # If the peer dies
    ///
    /// As [`BytesReceiver::recv_ref`].
    pub fn recv_ref_until(&self, deadline: Instant) -> Result<BytesRef<'_>, RecvTimeoutError> {
        self.take_patiently(Patience::Until(deadline))
    }

    /// Receives a private copy of a message. Blocks as [`BytesReceiver::recv_ref`].
    ///
    /// # Errors
    ///
    /// As [`BytesReceiver::recv_ref`], or [`RecvError::Decode`] if this process has no memory for the copy
    /// ([`DecodeError::is_out_of_memory`]); the message is gone then.
    ///
    /// # If the peer dies
    ///
    /// As [`BytesReceiver::recv_ref`].
    ///
    /// # Examples
    ///
    /// See [`BytesSender::send`](crate::BytesSender::send).
    pub fn recv(&self) -> Result<Vec<u8>, RecvError> {
        self.recv_ref().and_then(|message| Ok(message.held.copy()?))
    }

    /// Receives a private copy of a message if one is there now. Never blocks.
    ///
    /// # Errors
    ///
    /// As [`BytesReceiver::try_recv_ref`].
    ///
    /// # If the peer dies
    ///
    /// As [`BytesReceiver::try_recv_ref`].
    pub fn try_recv(&self) -> Result<Vec<u8>, TryRecvError> {
        self.try_recv_ref().and_then(|message| Ok(message.held.copy()?))
    }

    /// Receives a private copy of a message. Blocks as [`BytesReceiver::recv_ref`], up to `timeout`.
    ///
    /// # Errors
    ///
    /// As [`BytesReceiver::recv_ref_timeout`].
    ///
    /// # If the peer dies
    ///
    /// As [`BytesReceiver::recv_ref`].
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Vec<u8>, RecvTimeoutError> {
        self.recv_ref_timeout(timeout).and_then(|message| Ok(message.held.copy()?))
    }

    /// Receives a private copy of a message. Blocks as [`BytesReceiver::recv_ref`], until `deadline`.
    ///
    /// # Errors
    ///
    /// As [`BytesReceiver::recv_ref_timeout`].
    ///
    /// # If the peer dies
    ///
    /// As [`BytesReceiver::recv_ref`].
    pub fn recv_until(&self, deadline: Instant) -> Result<Vec<u8>, RecvTimeoutError> {
        self.recv_ref_until(deadline).and_then(|message| Ok(message.held.copy()?))
    }

    /// The messages to come, in place, until every sender is gone or the queue is closed, and nothing is left. Blocks for each
    /// as [`BytesReceiver::recv_ref`]. A message whose slot is damaged is an `Err` item, and the iteration goes on. As long as
    /// a message is kept, the queue lacks its memory.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (tx, rx) = ipc_queue::bounded_bytes(4)?;
    /// tx.send(b"one")?;
    /// tx.send(b"three")?;
    /// drop(tx);
    /// let mut total = 0;
    /// for message in &rx {
    ///     total += message?.len();
    /// }
    /// assert_eq!(total, 8);
    /// # Ok(()) }
    /// ```
    pub fn iter(&self) -> BytesIter<'_> {
        BytesIter { receiver: self, ended: false }
    }

    /// The messages that are there now, in place. Never blocks; ends when the queue is empty.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (tx, rx) = ipc_queue::bounded_bytes(4)?;
    /// tx.send(b"one")?;
    /// assert_eq!(rx.try_iter().count(), 1);
    /// assert_eq!(rx.try_iter().count(), 0);
    /// # Ok(()) }
    /// ```
    pub fn try_iter(&self) -> BytesTryIter<'_> {
        BytesTryIter { receiver: self }
    }

    fn take_patiently(&self, patience: Patience) -> Result<BytesRef<'_>, RecvTimeoutError> {
        match self.take(patience) {
            Ok(message) => Ok(message?),
            Err(dry) => Err(dry.map_or(RecvTimeoutError::Timeout, RecvTimeoutError::from)),
        }
    }

    fn take(&self, patience: Patience) -> Result<Result<BytesRef<'_>, DecodeError>, Option<Dry>> {
        let taken = self.end.check().map_err(Stop::from).and_then(|()| {
            let attempt = || self.end.pop_bulky();
            attempt().or_else(|miss| self.end.retry(miss, patience, attempt))
        });
        let bulky = taken.map_err(nothing)?;
        self.end.done(1);
        let held = bulky.map(|bulky| self.end.hold(bulky));
        Ok(held.map(|held| BytesRef { held }).ok_or_else(DecodeError::reference))
    }
}

impl Deref for BytesRef<'_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: the run is this process's until the drop, and the slice borrows the message.
        unsafe { std::slice::from_raw_parts(self.held.memory().as_ptr(), self.held.len()) }
    }
}

impl AsRef<[u8]> for BytesRef<'_> {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for BytesRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BytesRef").field("len", &self.held.len()).finish_non_exhaustive()
    }
}

/// The messages of a queue of bytes until disconnect; see [`BytesReceiver::iter`].
#[derive(Debug)]
pub struct BytesIter<'a> {
    receiver: &'a BytesReceiver,
    ended: bool,
}

/// The messages of a queue of bytes that are there; see [`BytesReceiver::try_iter`].
#[derive(Debug)]
pub struct BytesTryIter<'a> {
    receiver: &'a BytesReceiver,
}

impl<'a> Iterator for BytesIter<'a> {
    type Item = Result<BytesRef<'a>, RecvError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let item = self.receiver.recv_ref();
        self.ended = !matches!(item, Ok(_) | Err(RecvError::Decode(_)));
        match item {
            Err(RecvError::Disconnected | RecvError::Closed) => None,
            item => Some(item),
        }
    }
}

impl FusedIterator for BytesIter<'_> {}

impl<'a> Iterator for BytesTryIter<'a> {
    type Item = Result<BytesRef<'a>, RecvError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.receiver.try_recv_ref() {
            Ok(message) => Some(Ok(message)),
            Err(TryRecvError::Decode(error)) => Some(Err(error.into())),
            Err(_) => None,
        }
    }
}

impl<'a> IntoIterator for &'a BytesReceiver {
    type Item = Result<BytesRef<'a>, RecvError>;
    type IntoIter = BytesIter<'a>;

    fn into_iter(self) -> BytesIter<'a> {
        self.iter()
    }
}
