//! Queues of bytes that are written and read in place.
//!
//! Every message lies in chunks, none in a slot: whoever forgets a grant keeps memory, and wedges nothing.
//!
//! # Safety
//!
//! As in [`bulk`](crate::bulk): the memory of a message in hand is this process's, and stays mapped while its handle lives.
#![allow(unsafe_code)]

mod receive;

pub use receive::{BytesIter, BytesTryIter};

use crate::bulk::{Held, PREFIX, Reference};
use crate::end::{End, Shape};
use crate::error::{Failure, SendError, SendTimeoutError, TrySendError};
use crate::layout::{self, Side};
use crate::pollable::pollable;
use crate::sender::Unsent;
use crate::wait::{Patience, forever};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

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

    /// Takes memory for a message of `len` bytes. Blocks while the byte budget has no room for it; woken when memory is
    /// freed, or when the last receiver is gone, as [`Sender::send`](crate::Sender::send).
    ///
    /// # Errors
    ///
    /// [`SendError`]: no receiver is left, the queue was closed, `len` is more than the whole byte budget, the machine has no
    /// memory for it, or this is a forked child that cannot attach.
    ///
    /// # If the peer dies
    ///
    /// What a dead process had in hand (granted, or received in place) is found and freed here when it is needed.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (tx, rx) = ipc_queue::bounded_bytes(4)?;
    /// let mut grant = tx.reserve(1 << 20)?;
    /// grant.fill(7);                            // written in place
    /// grant.commit()?;
    /// assert_eq!(rx.recv_ref()?[1000], 7);      // and read in place
    /// # Ok(()) }
    /// ```
    pub fn reserve(&self, len: usize) -> Result<Grant<'_>, SendError<()>> {
        forever(|patience| self.grant(len, patience).map_err(Unsent::failure))
            .map_err(|failure| SendError::from_failure(failure, ()))
    }

    /// Takes memory for a message if there is some now. Never blocks; where the memory is new, it takes as long as the system
    /// takes to clear it.
    ///
    /// # Errors
    ///
    /// [`TrySendError::Full`] if the byte budget has no room, or what [`BytesSender::reserve`] fails for.
    ///
    /// # If the peer dies
    ///
    /// As [`BytesSender::reserve`]; after a death one call may take long, as [`Sender::try_send`](crate::Sender::try_send).
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (tx, _rx) = ipc_queue::bytes_builder().byte_budget(1 << 20).build()?;
    /// let all = tx.try_reserve(1 << 20)?;
    /// assert!(tx.try_reserve(1).unwrap_err().is_full());
    /// # Ok(()) }
    /// ```
    pub fn try_reserve(&self, len: usize) -> Result<Grant<'_>, TrySendError<()>> {
        self.grant(len, Patience::None).map_err(|unsent| late(unsent, ()))
    }

    /// Takes memory for a message. Blocks as [`BytesSender::reserve`], up to `timeout`.
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError::Timeout`], or what [`BytesSender::reserve`] fails for.
    ///
    /// # If the peer dies
    ///
    /// As [`BytesSender::reserve`].
    pub fn reserve_timeout(&self, len: usize, timeout: Duration) -> Result<Grant<'_>, SendTimeoutError<()>> {
        self.grant(len, Patience::For(timeout)).map_err(|unsent| too_late(unsent, ()))
    }

    /// Takes memory for a message. Blocks as [`BytesSender::reserve`], until `deadline`.
    ///
    /// # Errors
    ///
    /// As [`BytesSender::reserve_timeout`].
    ///
    /// # If the peer dies
    ///
    /// As [`BytesSender::reserve`].
    pub fn reserve_until(&self, len: usize, deadline: Instant) -> Result<Grant<'_>, SendTimeoutError<()>> {
        self.grant(len, Patience::Until(deadline)).map_err(|unsent| too_late(unsent, ()))
    }

    /// Sends a copy of the bytes. Blocks while the queue or its byte budget is full; woken as
    /// [`Sender::send`](crate::Sender::send).
    ///
    /// # Errors
    ///
    /// As [`BytesSender::reserve`], or the queue has carried as many messages as it can number.
    ///
    /// # If the peer dies
    ///
    /// As [`BytesSender::reserve`]. A sender that dies in here has sent the message whole or not at all.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (tx, rx) = ipc_queue::bounded_bytes(4)?;
    /// tx.send(b"a line")?;
    /// assert_eq!(rx.recv()?, b"a line");
    /// # Ok(()) }
    /// ```
    pub fn send(&self, bytes: &[u8]) -> Result<(), SendError<()>> {
        forever(|patience| self.offer(bytes, patience).map_err(Unsent::failure))
            .map_err(|failure| SendError::from_failure(failure, ()))
    }

    /// Sends a copy of the bytes if there is room now. Never blocks; takes as long as [`Sender::try_send`](crate::Sender::try_send).
    ///
    /// # Errors
    ///
    /// [`TrySendError::Full`] if the queue or its byte budget is full, or what [`BytesSender::send`] fails for.
    ///
    /// # If the peer dies
    ///
    /// As [`BytesSender::try_reserve`] and [`BytesSender::send`].
    pub fn try_send(&self, bytes: &[u8]) -> Result<(), TrySendError<()>> {
        self.offer(bytes, Patience::None).map_err(|unsent| late(unsent, ()))
    }

    /// Sends a copy of the bytes. Blocks as [`BytesSender::send`], up to `timeout`.
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError::Timeout`], or what [`BytesSender::send`] fails for.
    ///
    /// # If the peer dies
    ///
    /// As [`BytesSender::send`].
    pub fn send_timeout(&self, bytes: &[u8], timeout: Duration) -> Result<(), SendTimeoutError<()>> {
        self.offer(bytes, Patience::For(timeout)).map_err(|unsent| too_late(unsent, ()))
    }

    /// Sends a copy of the bytes. Blocks as [`BytesSender::send`], until `deadline`.
    ///
    /// # Errors
    ///
    /// As [`BytesSender::send_timeout`].
    ///
    /// # If the peer dies
    ///
    /// As [`BytesSender::send`].
    pub fn send_until(&self, bytes: &[u8], deadline: Instant) -> Result<(), SendTimeoutError<()>> {
        self.offer(bytes, Patience::Until(deadline)).map_err(|unsent| too_late(unsent, ()))
    }

    fn offer(&self, bytes: &[u8], patience: Patience) -> Result<(), Unsent> {
        let patience = patience.over_all();
        self.ready(bytes.len())?;
        self.end.look_for_slot(patience)?;
        let mut grant = self.grant(bytes.len(), patience)?;
        grant.held.fill(bytes);
        grant.push(patience)
    }

    /// Whether a message of `len` bytes may be sent.
    fn ready(&self, len: usize) -> Result<(), Unsent> {
        self.end.ready_to_send().map_err(Unsent::Failed)?;
        let limit = self.end.longest();
        if len > limit { Err(Unsent::Failed(Failure::TooLarge { len, limit })) } else { Ok(()) }
    }

    fn grant(&self, len: usize, patience: Patience) -> Result<Grant<'_>, Unsent> {
        self.ready(len)?;
        let held = self.end.claim_run(len, patience)?;
        Ok(Grant { held, sender: self })
    }
}

/// The error of an attempt without patience.
fn late<T>(unsent: Unsent, value: T) -> TrySendError<T> {
    match unsent {
        Unsent::Late => TrySendError::Full(value),
        Unsent::Failed(failure) => TrySendError::from_failure(failure, value),
    }
}

/// The error of an attempt with patience.
fn too_late<T>(unsent: Unsent, value: T) -> SendTimeoutError<T> {
    match unsent {
        Unsent::Late => SendTimeoutError::Timeout(value),
        Unsent::Failed(failure) => SendTimeoutError::from_failure(failure, value),
    }
}

impl Grant<'_> {
    /// Shortens the message to its first `len` bytes, for whoever reserved before the length was known. As
    /// [`Vec::truncate`]: no effect if there are no more. The memory behind them comes back with that of the message.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::io::Read;
    ///
    /// let (tx, rx) = ipc_queue::bounded_bytes(4)?;
    /// let mut source = &b"fewer than expected"[..];
    /// let mut grant = tx.reserve(65_536)?;
    /// let len = source.read(&mut grant)?;
    /// grant.truncate(len);
    /// grant.commit()?;
    /// assert_eq!(rx.recv()?, b"fewer than expected");
    /// # Ok(()) }
    /// ```
    pub fn truncate(&mut self, len: usize) {
        self.held.truncate(len);
    }

    /// Sends the message. Blocks while the queue has as many as its capacity; woken as
    /// [`Sender::send`](crate::Sender::send).
    ///
    /// # Errors
    ///
    /// [`SendError`]: no receiver is left, the queue was closed, it has carried as many messages as it can number, or this is a
    /// child that was forked after the memory was reserved ([`SendError::Forked`]: the grant is its parent's). The grant is
    /// dropped then; [`Grant::commit_timeout`] would hand it back.
    ///
    /// # If the peer dies
    ///
    /// A sender that dies in here has sent the message whole or not at all.
    ///
    /// # Examples
    ///
    /// See [`BytesSender::reserve`].
    pub fn commit(mut self) -> Result<(), SendError<()>> {
        forever(|patience| self.push(patience).map_err(Unsent::failure))
            .map_err(|failure| SendError::from_failure(failure, ()))
    }

    /// Sends the message if the queue has room now. Never blocks.
    ///
    /// # Errors
    ///
    /// [`TrySendError`] with the grant: the queue is full, or what [`Grant::commit`] fails for.
    ///
    /// # If the peer dies
    ///
    /// As [`Grant::commit`].
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (tx, rx) = ipc_queue::bounded_bytes(1)?;
    /// tx.send(b"first")?;
    /// let grant = tx.reserve(6)?;
    /// let grant = grant.try_commit().unwrap_err().into_inner();    // full: not lost
    /// rx.recv()?;
    /// grant.commit()?;
    /// # Ok(()) }
    /// ```
    pub fn try_commit(mut self) -> Result<(), TrySendError<Self>> {
        self.push(Patience::None).map_err(|unsent| late(unsent, self))
    }

    /// Sends the message. Blocks as [`Grant::commit`], up to `timeout`.
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError`] with the grant: the queue stayed full, or what [`Grant::commit`] fails for.
    ///
    /// # If the peer dies
    ///
    /// As [`Grant::commit`].
    pub fn commit_timeout(mut self, timeout: Duration) -> Result<(), SendTimeoutError<Self>> {
        self.push(Patience::For(timeout)).map_err(|unsent| too_late(unsent, self))
    }

    /// Sends the message. Blocks as [`Grant::commit`], until `deadline`.
    ///
    /// # Errors
    ///
    /// As [`Grant::commit_timeout`].
    ///
    /// # If the peer dies
    ///
    /// As [`Grant::commit`].
    pub fn commit_until(mut self, deadline: Instant) -> Result<(), SendTimeoutError<Self>> {
        self.push(Patience::Until(deadline)).map_err(|unsent| too_late(unsent, self))
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

            /// Whether the queue has as many messages as its capacity. The byte budget is another bound: while this says
            /// `false`, there may be no memory for a message. May be stale at once.
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
