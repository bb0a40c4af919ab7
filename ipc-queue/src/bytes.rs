//! Queues of bytes that are written and read in place.
//!
//! Every message lies in chunks, none in a slot: whoever forgets a grant keeps memory, and wedges nothing.
//!
//! # Safety
//!
//! As in [`bulk`](crate::bulk): the memory of a message in hand is this process's, and stays mapped while its handle lives.
#![allow(unsafe_code)]

use crate::bulk::{Held, PREFIX, Reference};
use crate::end::{End, Shape};
use crate::error::{
    DecodeError, RecvError, RecvTimeoutError, SendError, SendTimeoutError, TryRecvError, TrySendError,
};
use crate::error::{Dry, Failure};
use crate::layout::{self, Side};
use crate::pollable::pollable;
use crate::receiver::nothing;
use crate::sender::Unsent;
use crate::wait::{Patience, Stop};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

/// The payload of a slot.
pub(crate) const PAYLOAD: usize = PREFIX + Reference::LEN;

pub(crate) const SHAPE: Shape = Shape {
    leased: false,
    layout: layout::hash(&[layout::VERSION, 3]),
    // Nothing lies in a slot.
    limit: |payload_len| if payload_len == PAYLOAD { Some(0) } else { None },
};

/// The sending end of a queue of bytes; made by [`bounded_bytes`](crate::bounded_bytes).
///
/// # If the peer dies
///
/// As [`Sender`](crate::Sender).
///
/// # Across processes
///
/// As [`Sender`](crate::Sender).
#[derive(Clone)]
pub struct BytesSender {
    end: End,
}

/// The receiving end of a queue of bytes; made by [`bounded_bytes`](crate::bounded_bytes).
///
/// # If the peer dies
///
/// As [`Receiver`](crate::Receiver). Of a receiver that dies, the messages are lost that it was taking, or had in hand as
/// [`BytesRef`]s.
///
/// # Across processes
///
/// As [`Receiver`](crate::Receiver).
#[derive(Clone)]
pub struct BytesReceiver {
    end: End,
}

/// Memory of a queue for a message to be written: from [`BytesSender::reserve`]. Dropped without [`Grant::commit`], it goes
/// back. What is in it at first are zeros or bytes of earlier messages of the same queue.
///
/// # If the peer dies
///
/// The memory of a process that dies with a grant is freed.
///
/// # Across processes
///
/// The memory is shared: the type's promise that nobody else changes it holds as long as every process of the queue uses
/// this crate. In a child forked meanwhile a grant is of no use: its dereference panics, its drop does nothing.
#[must_use = "what is not committed is given back"]
pub struct Grant<'q> {
    held: Held<'q>,
    sender: &'q BytesSender,
}

/// A message in the memory of its queue: from [`BytesReceiver::recv_ref`]. Its drop frees the memory for other messages.
///
/// # If the peer dies
///
/// The message does not depend on its sender any more.
///
/// # Across processes
///
/// The memory is shared: the type's promise that nobody changes it holds as long as every process of the queue uses this
/// crate. Where one is not trusted, [`BytesReceiver::recv`] makes a private copy. In a child forked meanwhile a message in
/// hand is of no use: its dereference panics, its drop does nothing.
pub struct BytesRef<'q> {
    held: Held<'q>,
}

impl BytesSender {
    pub(crate) fn new(end: End) -> Self {
        Self { end }
    }

    /// Takes memory for a message of `len` bytes. Blocks while the byte budget has no room for it; woken as
    /// [`Sender::send`](crate::Sender::send).
    ///
    /// # Errors
    ///
    /// [`SendError`]: no receiver is left, the queue was closed, `len` is more than the whole byte budget, the machine has no memory for it.
    pub fn reserve(&self, len: usize) -> Result<Grant<'_>, SendError<()>> {
        loop {
            match self.grant(len, Patience::Forever) {
                Ok(grant) => return Ok(grant),
                Err(Unsent::Failed(failure)) => return Err(SendError::from_failure(failure, ())),
                Err(Unsent::Late) => {}
            }
        }
    }

    /// Takes memory for a message if there is some now. Never blocks.
    ///
    /// # Errors
    ///
    /// [`TrySendError::Full`] if the byte budget has no room, or what [`BytesSender::reserve`] fails for.
    pub fn try_reserve(&self, len: usize) -> Result<Grant<'_>, TrySendError<()>> {
        self.grant(len, Patience::None).map_err(|unsent| match unsent {
            Unsent::Late => TrySendError::Full(()),
            Unsent::Failed(failure) => TrySendError::from_failure(failure, ()),
        })
    }

    /// Takes memory for a message. Blocks as [`BytesSender::reserve`], up to `timeout`.
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError::Timeout`], or what [`BytesSender::reserve`] fails for.
    pub fn reserve_timeout(&self, len: usize, timeout: Duration) -> Result<Grant<'_>, SendTimeoutError<()>> {
        self.grant(len, Patience::For(timeout)).map_err(|unsent| match unsent {
            Unsent::Late => SendTimeoutError::Timeout(()),
            Unsent::Failed(failure) => SendTimeoutError::from_failure(failure, ()),
        })
    }

    /// Sends a copy of the bytes. Blocks while the queue or its byte budget is full; woken as
    /// [`Sender::send`](crate::Sender::send).
    ///
    /// # Errors
    ///
    /// As [`BytesSender::reserve`].
    pub fn send(&self, bytes: &[u8]) -> Result<(), SendError<()>> {
        loop {
            match self.offer(bytes, Patience::Forever) {
                Ok(()) => return Ok(()),
                Err(Unsent::Failed(failure)) => return Err(SendError::from_failure(failure, ())),
                Err(Unsent::Late) => {}
            }
        }
    }

    /// Sends a copy of the bytes if there is room now. Never blocks.
    ///
    /// # Errors
    ///
    /// [`TrySendError::Full`], or what [`BytesSender::reserve`] fails for.
    pub fn try_send(&self, bytes: &[u8]) -> Result<(), TrySendError<()>> {
        self.offer(bytes, Patience::None).map_err(|unsent| match unsent {
            Unsent::Late => TrySendError::Full(()),
            Unsent::Failed(failure) => TrySendError::from_failure(failure, ()),
        })
    }

    /// Sends a copy of the bytes. Blocks as [`BytesSender::send`], up to `timeout`.
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError::Timeout`], or what [`BytesSender::reserve`] fails for.
    pub fn send_timeout(&self, bytes: &[u8], timeout: Duration) -> Result<(), SendTimeoutError<()>> {
        self.offer(bytes, Patience::For(timeout)).map_err(|unsent| match unsent {
            Unsent::Late => SendTimeoutError::Timeout(()),
            Unsent::Failed(failure) => SendTimeoutError::from_failure(failure, ()),
        })
    }

    fn offer(&self, bytes: &[u8], patience: Patience) -> Result<(), Unsent> {
        let patience = patience.over_all();
        let mut grant = self.grant(bytes.len(), patience)?;
        grant.held.fill(bytes);
        grant.push(patience)
    }

    fn grant(&self, len: usize, patience: Patience) -> Result<Grant<'_>, Unsent> {
        self.end.ready_to_send().map_err(Unsent::Failed)?;
        let limit = self.end.longest();
        if len > limit {
            return Err(Unsent::Failed(Failure::TooLarge { len, limit }));
        }
        let held = self.end.claim_run(len, patience)?;
        Ok(Grant { held, sender: self })
    }
}

impl<'q> Grant<'q> {
    /// Sends the message. Blocks while the queue has as many as its capacity; woken as
    /// [`Sender::send`](crate::Sender::send).
    ///
    /// # Errors
    ///
    /// [`SendError`]: no receiver is left, or the queue was closed. The grant is dropped then; [`Grant::commit_timeout`] would hand it back.
    pub fn commit(mut self) -> Result<(), SendError<()>> {
        loop {
            match self.push(Patience::Forever) {
                Ok(()) => return Ok(()),
                Err(Unsent::Failed(failure)) => return Err(SendError::from_failure(failure, ())),
                Err(Unsent::Late) => {}
            }
        }
    }

    /// Sends the message if the queue has room now. Never blocks.
    ///
    /// # Errors
    ///
    /// [`TrySendError`] with the grant: the queue is full or closed, or no receiver is left.
    pub fn try_commit(mut self) -> Result<(), TrySendError<Self>> {
        match self.push(Patience::None) {
            Ok(()) => Ok(()),
            Err(Unsent::Late) => Err(TrySendError::Full(self)),
            Err(Unsent::Failed(failure)) => Err(TrySendError::from_failure(failure, self)),
        }
    }

    /// Sends the message. Blocks as [`Grant::commit`], up to `timeout`.
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError`] with the grant: the queue stayed full or is closed, or no receiver is left.
    pub fn commit_timeout(mut self, timeout: Duration) -> Result<(), SendTimeoutError<Self>> {
        match self.push(Patience::For(timeout)) {
            Ok(()) => Ok(()),
            Err(Unsent::Late) => Err(SendTimeoutError::Timeout(self)),
            Err(Unsent::Failed(failure)) => Err(SendTimeoutError::from_failure(failure, self)),
        }
    }

    fn push(&mut self, patience: Patience) -> Result<(), Unsent> {
        if !self.held.is_here() {
            return Err(Unsent::Failed(Failure::Forked));
        }
        self.sender.end.ready_to_send().map_err(Unsent::Failed)?;
        self.sender.end.push_held(&mut self.held, 0, patience)?;
        self.sender.end.done(1);
        Ok(())
    }
}

impl Deref for Grant<'_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: as in `deref_mut`.
        unsafe { std::slice::from_raw_parts(self.held.memory().as_ptr(), self.held.len()) }
    }
}

impl DerefMut for Grant<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: the run is this process's until the grant is committed or dropped, and the slice borrows the grant.
        unsafe { std::slice::from_raw_parts_mut(self.held.memory().as_ptr(), self.held.len()) }
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

impl BytesReceiver {
    pub(crate) fn new(end: End) -> Self {
        Self { end }
    }

    /// Receives a message in place. Blocks while the queue is empty; woken as [`Receiver::recv`](crate::Receiver::recv).
    ///
    /// # Errors
    ///
    /// As [`Receiver::recv`](crate::Receiver::recv).
    pub fn recv_ref(&self) -> Result<BytesRef<'_>, RecvError> {
        loop {
            match self.take(Patience::Forever) {
                Ok(message) => return Ok(message?),
                Err(Some(dry)) => return Err(dry.into()),
                Err(None) => {}
            }
        }
    }

    /// Receives a message in place if one is there now. Never blocks.
    ///
    /// # Errors
    ///
    /// [`TryRecvError::Empty`], or what [`BytesReceiver::recv_ref`] fails for.
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
    pub fn recv_ref_timeout(&self, timeout: Duration) -> Result<BytesRef<'_>, RecvTimeoutError> {
        match self.take(Patience::For(timeout)) {
            Ok(message) => Ok(message?),
            Err(dry) => Err(dry.map_or(RecvTimeoutError::Timeout, RecvTimeoutError::from)),
        }
    }

    /// Receives a private copy of a message. Blocks as [`BytesReceiver::recv_ref`].
    ///
    /// # Errors
    ///
    /// As [`BytesReceiver::recv_ref`].
    pub fn recv(&self) -> Result<Vec<u8>, RecvError> {
        self.recv_ref().map(|message| message.held.copy())
    }

    /// Receives a private copy of a message if one is there now. Never blocks.
    ///
    /// # Errors
    ///
    /// As [`BytesReceiver::try_recv_ref`].
    pub fn try_recv(&self) -> Result<Vec<u8>, TryRecvError> {
        self.try_recv_ref().map(|message| message.held.copy())
    }

    /// Receives a private copy of a message. Blocks as [`BytesReceiver::recv_ref`], up to `timeout`.
    ///
    /// # Errors
    ///
    /// As [`BytesReceiver::recv_ref_timeout`].
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Vec<u8>, RecvTimeoutError> {
        self.recv_ref_timeout(timeout).map(|message| message.held.copy())
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

/// What both ends have in common.
macro_rules! common {
    ($name:ident, $side:expr) => {
        impl $name {
            /// How many messages are in the queue, those included that are being sent. May be stale at once. 0 in a forked
            /// child that cannot attach.
            pub fn len(&self) -> usize {
                self.end.check().map_or(0, |()| self.end.len())
            }

            /// Whether no message is in the queue. May be stale at once.
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            /// Whether the queue has as many messages as its capacity. May be stale at once.
            pub fn is_full(&self) -> bool {
                self.len() >= self.capacity()
            }

            /// How many messages the queue holds at most.
            pub fn capacity(&self) -> usize {
                self.end.capacity()
            }

            /// The longest message in bytes: all of the byte budget.
            pub fn max_message_len(&self) -> usize {
                self.end.longest()
            }

            /// Closes the queue for everybody, as [`Sender::close`](crate::Sender::close): memory can neither be reserved
            /// nor committed any more, and what was committed before can be received.
            pub fn close(&self) -> bool {
                self.end.close()
            }

            /// Whether the queue was closed. `true` stays true. `false` in a forked child that cannot attach.
            pub fn is_closed(&self) -> bool {
                self.end.is_closed()
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.end.fmt_as(stringify!($name), f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.end.serialize(&SHAPE, serializer)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                End::deserialize(deserializer, &SHAPE, $side).map(Self::new)
            }
        }
    };
}

common!(BytesSender, Side::Sender);
common!(BytesReceiver, Side::Receiver);

impl fmt::Debug for Grant<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grant").field("len", &self.held.len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for BytesRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BytesRef").field("len", &self.held.len()).finish_non_exhaustive()
    }
}

pollable! {
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use rustix::event::{PollFd, PollFlags, poll};
    ///
    /// let (tx, rx) = ipc_queue::bounded_bytes(1)?;
    /// tx.send(b"first")?;
    /// assert!(tx.try_send(b"second").is_err());
    /// assert_eq!(rx.recv()?, b"first");
    /// assert_eq!(poll(&mut [PollFd::new(&tx, PollFlags::IN)], None)?, 1);
    /// tx.try_send(b"second")?;
    /// # Ok(()) }
    /// ```
    BytesSender: "sending a message would not block, or would fail because nobody would receive it. After a message found too \
        little memory, also whenever some was freed"
}

pollable! {
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use rustix::event::{PollFd, PollFlags, poll};
    ///
    /// let (tx, rx) = ipc_queue::bounded_bytes(1)?;
    /// tx.send(b"first")?;
    /// assert_eq!(poll(&mut [PollFd::new(&rx, PollFlags::IN)], None)?, 1);
    /// assert_eq!(&rx.try_recv_ref()?[..], b"first");
    /// # Ok(()) }
    /// ```
    BytesReceiver: "receiving a message would not block, or would fail because none will come"
}
