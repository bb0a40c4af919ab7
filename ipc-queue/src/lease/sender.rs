//! The sending end of an at-least-once queue.

use super::deadline_in;
use crate::codec::{Format, Postcard, Refusal};
use crate::end::{End, Shape};
use crate::error::{EncodeError, Failure, Halt, SendBatchError, SendError, SendTimeoutError, TrySendError};
use crate::layout::Side;
use crate::pollable::pollable;
use crate::sender::Unsent;
use crate::wait::{Patience, forever};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

/// The sending end of a queue whose messages stay until they are acknowledged; see
/// [`Builder::at_least_once`](crate::Builder::at_least_once).
///
/// Clones are further senders of the same queue. All operations take `&self`; a clone per thread is faster than a shared handle.
///
/// # If the peer dies
///
/// A message whose `send` has returned `Ok` is delivered until a receiver acknowledges it, as long as one lives: what a dead
/// receiver had on lease goes to another one. A sender that dies in `send` leaves its message or not, but all of it.
///
/// # Across processes
///
/// As [`Sender`](crate::Sender).
///
/// # Examples
///
/// ```
/// # use std::time::Duration;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (tx, rx) = ipc_queue::builder::<String>().capacity(16).at_least_once().build()?;
/// tx.send("a job".into())?;
/// std::thread::spawn(move || {
///     for lease in rx.leases() {
///         let lease = lease.expect("it decodes");
///         println!("{} for the {}. time", *lease, lease.delivery_count());
///         lease.ack();
///     }
/// });
/// tx.wait_drained(Duration::from_secs(10))?;           // every job is done
/// # Ok(()) }
/// ```
pub struct LeaseSender<T, C = Postcard> {
    end: End,
    _messages: PhantomData<fn(T) -> C>,
}

impl<T, C: Format<T>> LeaseSender<T, C> {
    pub(crate) fn new(end: End) -> Self {
        Self { end, _messages: PhantomData }
    }

    /// Sends a message. Blocks while the queue has as many as its capacity, while as many as it may hold are unacknowledged, and
    /// while its byte budget is used up; woken when one is received or acknowledged.
    ///
    /// A receiver that sends follow-ups before it acknowledges needs a cell for each. If all cells are taken, and all receivers
    /// are sending, they wait for each other for ever. So such receivers should send with a timeout, and give their message back
    /// when that is over.
    ///
    /// # Errors
    ///
    /// [`SendError`] with the value: no living process holds a receiver, or the queue was closed; the message is too long,
    /// cannot be encoded, or contains handles of queues or shared memory ([`EncodeError::is_handle`]: what is fetched once cannot
    /// be delivered again).
    ///
    /// # Panics
    ///
    /// If the `Serialize` of `T` panics; nothing is sent.
    ///
    /// # If the peer dies
    ///
    /// What dead processes hold of the queue's memory is taken back here.
    #[inline]
    pub fn send(&self, value: T) -> Result<(), SendError<T>> {
        // Not `map_err`: its closure would be given the value first, a copy of it for every message.
        match forever(|patience| self.offer(&value, patience).map_err(Unsent::failure)) {
            Ok(()) => Ok(()),
            Err(failure) => Err(SendError::from_failure(failure, value)),
        }
    }

    /// Sends a message if there is room now. Never blocks.
    ///
    /// # Errors
    ///
    /// [`TrySendError::Full`], or what [`LeaseSender::send`] fails for; with the value.
    #[inline]
    pub fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
        match self.offer(&value, Patience::None) {
            Ok(()) => Ok(()),
            Err(Unsent::Late) => Err(TrySendError::Full(value)),
            Err(Unsent::Failed(failure)) => Err(TrySendError::from_failure(failure, value)),
        }
    }

    /// Sends a message. Blocks as [`LeaseSender::send`], up to `timeout`.
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError::Timeout`], or what [`LeaseSender::send`] fails for; with the value.
    pub fn send_timeout(&self, value: T, timeout: Duration) -> Result<(), SendTimeoutError<T>> {
        self.send_patiently(value, Patience::For(timeout))
    }

    /// Sends a message. Blocks as [`LeaseSender::send`], until `deadline`.
    ///
    /// # Errors
    ///
    /// As [`LeaseSender::send_timeout`].
    pub fn send_until(&self, value: T, deadline: Instant) -> Result<(), SendTimeoutError<T>> {
        self.send_patiently(value, Patience::Until(deadline))
    }

    fn send_patiently(&self, value: T, patience: Patience) -> Result<(), SendTimeoutError<T>> {
        match self.offer(&value, patience) {
            Ok(()) => Ok(()),
            Err(Unsent::Late) => Err(SendTimeoutError::Timeout(value)),
            Err(Unsent::Failed(failure)) => Err(SendTimeoutError::from_failure(failure, value)),
        }
    }

    /// Sends all messages, in order, one by one. Blocks as [`LeaseSender::send`].
    ///
    /// # Errors
    ///
    /// [`SendBatchError`] says how many were sent, and hands the others back.
    pub fn send_batch(&self, values: impl Into<Vec<T>>) -> Result<(), SendBatchError<T>> {
        self.send_all(values.into(), Patience::Forever, Halt::Timeout)
    }

    /// Sends as many messages as there is room for now, in order, one by one. Never blocks.
    ///
    /// # Errors
    ///
    /// [`SendBatchError`] says how many were sent, and hands the others back: there is no more room, or what
    /// [`LeaseSender::send`] fails for.
    pub fn try_send_batch(&self, values: impl Into<Vec<T>>) -> Result<(), SendBatchError<T>> {
        self.send_all(values.into(), Patience::None, Halt::Full)
    }

    /// Sends all messages, in order, one by one. Blocks as [`LeaseSender::send`], up to `timeout` for all together.
    ///
    /// # Errors
    ///
    /// [`SendBatchError`] says how many were sent, and hands the others back: the time is over, or what [`LeaseSender::send`]
    /// fails for.
    pub fn send_batch_timeout(
        &self,
        values: impl Into<Vec<T>>,
        timeout: Duration,
    ) -> Result<(), SendBatchError<T>> {
        self.send_all(values.into(), Patience::For(timeout), Halt::Timeout)
    }

    fn send_all(&self, mut values: Vec<T>, patience: Patience, late: Halt) -> Result<(), SendBatchError<T>> {
        let patience = patience.over_all();
        for sent in 0..values.len() {
            if let Err(unsent) = self.offer(&values[sent], patience) {
                let halt = match unsent {
                    Unsent::Late => late,
                    Unsent::Failed(failure) => Halt::Failed(failure),
                };
                return Err(SendBatchError::new(sent, values.split_off(sent), halt));
            }
        }
        Ok(())
    }

    #[inline]
    fn offer(&self, value: &T, patience: Patience) -> Result<(), Unsent> {
        self.end.ready_to_send().map_err(Unsent::Failed)?;
        let mut room = C::room();
        let message = C::encode(value, &mut room, self.end.limits()).map_err(|refusal| {
            Unsent::Failed(match refusal {
                Refusal::TooLarge(len) => Failure::TooLarge { len, limit: self.end.longest() },
                Refusal::Encode(reason) => Failure::Encode(reason),
            })
        })?;
        if C::deposit(&message).is_some() {
            return Err(Unsent::Failed(Failure::Encode(EncodeError::once())));
        }
        self.end.send_leased::<T, C>(&message, patience).map_err(Unsent::from)
    }

    /// Waits until every message that was sent, by whomever, is acknowledged: `task_done` and `join` of Python's
    /// `JoinableQueue`. Woken by acknowledgements. A `timeout` of [`Duration::MAX`] is none.
    ///
    /// Messages that are sent meanwhile count too, and those that a consumer sends before it acknowledges its own are never
    /// missed.
    ///
    /// # Errors
    ///
    /// [`DrainError::Timeout`], or [`DrainError::Disconnected`] if messages are left and no living process holds a receiver;
    /// [`DrainError::Forked`] in a child that was forked behind the back of the C library.
    ///
    /// # If the peer dies
    ///
    /// What it had on lease goes to another receiver, and is waited for.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (tx, rx) = ipc_queue::builder::<u32>().at_least_once().build()?;
    /// tx.send(7)?;
    /// assert!(tx.wait_drained(Duration::ZERO).unwrap_err().is_timeout());
    /// rx.recv_lease()?.ack();
    /// tx.wait_drained(Duration::ZERO)?;
    /// # Ok(()) }
    /// ```
    pub fn wait_drained(&self, timeout: Duration) -> Result<(), DrainError> {
        self.end.wait_drained(deadline_in(timeout))
    }

    /// As [`LeaseSender::wait_drained`], until `deadline`.
    ///
    /// # Errors
    ///
    /// As [`LeaseSender::wait_drained`].
    pub fn wait_drained_until(&self, deadline: Instant) -> Result<(), DrainError> {
        self.end.wait_drained(Some(deadline))
    }
}

/// Why [`LeaseSender::wait_drained`] gave up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DrainError {
    /// Messages were unacknowledged until the deadline.
    Timeout,
    /// Messages are unacknowledged, and no living process holds a receiver.
    Disconnected,
    /// The process was forked without the handlers of `pthread_atfork`.
    Forked,
}

impl DrainError {
    /// Whether this is [`DrainError::Timeout`].
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout)
    }

    /// Whether this is [`DrainError::Disconnected`].
    pub fn is_disconnected(&self) -> bool {
        matches!(self, Self::Disconnected)
    }
}

impl fmt::Display for DrainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout => f.write_str("messages were unacknowledged until the deadline"),
            Self::Disconnected => f.write_str(
                "messages are unacknowledged, and no living process holds a receiver of the queue",
            ),
            Self::Forked => shm_core::fork::Forked.fmt(f),
        }
    }
}

impl std::error::Error for DrainError {}

leased_end!(LeaseSender, Side::Sender, End::clone);

pollable! {
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use rustix::event::{PollFd, PollFlags, poll};
    ///
    /// let (tx, rx) = ipc_queue::builder::<u64>().capacity(1).at_least_once().unfinished(1).build()?;
    /// tx.send(1)?;
    /// assert!(tx.try_send(2).unwrap_err().is_full());
    /// rx.recv_lease()?.ack();
    /// assert_eq!(poll(&mut [PollFd::new(&tx, PollFlags::IN)], None)?, 1);
    /// tx.try_send(2)?;
    /// # Ok(()) }
    /// ```
    LeaseSender<T, C>: "sending a message would not block, or would fail because nobody would receive it. After a message found too \
        many unfinished or too little memory, whenever there is more room"
}
