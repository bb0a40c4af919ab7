//! The receiving end of an at-least-once queue.

use super::Hold;
use crate::cells::Cell;
use crate::codec::{Format, Postcard};
use crate::end::{End, Shape};
use crate::error::{DecodeError, RecvError, RecvTimeoutError, TryRecvError};
use crate::layout::Side;
use crate::pollable::pollable;
use crate::receiver::nothing;
use crate::wait::{Patience, Stop, forever};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use shm_core::fork::ForkStamp;
use std::fmt;
use std::iter::FusedIterator;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The receiving end of a queue whose messages stay until they are acknowledged; see
/// [`Builder::at_least_once`](crate::Builder::at_least_once).
///
/// Clones are further receivers of the same queue: each message is on lease to one of them at a time. All operations take `&self`.
/// Messages that came back (their receiver died, dropped the lease or refused them) are delivered before others; apart from
/// these, those of one sender arrive in the order in which it sent them.
///
/// A message over which every receiver fails comes back for ever, and in front of all others: look at
/// [`Lease::delivery_count`], and acknowledge what was delivered too often (after leaving it somewhere else). One whose
/// `Deserialize` panics never gets that far; let `Deserialize` return an error instead, which counts as an acknowledgement.
///
/// # If the peer dies
///
/// What a dead receiver had on lease, or was taking, is delivered again to whoever receives next: within 150 ms or so if somebody
/// waits for it, or else when somebody looks. Leases of a process that lives, even if it is stopped, are never taken away.
///
/// # Across processes
///
/// As [`Receiver`](crate::Receiver). A lease belongs to the process that received it: a forked child has it not.
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (tx, rx) = ipc_queue::builder::<u64>().capacity(16).at_least_once().build()?;
/// tx.send(7)?;
/// drop(rx.recv_lease()?);                              // not done: it comes back
/// let lease = rx.recv_lease()?;
/// assert_eq!((*lease, lease.delivery_count()), (7, 2));
/// lease.ack();
/// # Ok(()) }
/// ```
pub struct LeaseReceiver<T, C = Postcard> {
    /// Leases keep it too.
    end: Arc<End>,
    _messages: PhantomData<fn(C) -> T>,
}

/// A message that this process has on lease. It derefs to the value.
///
/// Acknowledge it with [`Lease::ack`] when the work is done. Dropped otherwise (also by a panic) it goes back into the queue, and
/// the next receiver gets it. As long as it is there, the queue holds its memory, and this process holds a receiver.
#[must_use = "a lease that is dropped without `ack` is delivered again"]
pub struct Lease<T> {
    value: T,
    hold: Hold,
}

impl<T> Lease<T> {
    /// Acknowledges the message: it is done, and never delivered again. Returns the value. Never blocks.
    ///
    /// # Panics
    ///
    /// In a child that was forked while the lease was there: it is its parent's.
    #[inline]
    pub fn ack(self) -> T {
        let Self { value, hold } = self;
        hold.finish();
        value
    }

    /// Gives the message back undone: the next receiver gets it, this one included. The same as dropping the lease. Never blocks.
    pub fn nack(self) {
        drop(self);
    }

    /// How often the message was delivered, this time included: 1 for the first time. Stays at 1,023.
    pub fn delivery_count(&self) -> u32 {
        self.hold.deliveries()
    }

    /// Whether the message was delivered before, to somebody who died or gave it back. What that one did with it is unknown.
    pub fn is_redelivery(&self) -> bool {
        self.delivery_count() > 1
    }
}

impl<T> Deref for Lease<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: fmt::Debug> fmt::Debug for Lease<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("value", &self.value)
            .field("delivery_count", &self.delivery_count())
            .finish_non_exhaustive()
    }
}

impl<T, C: Format<T>> LeaseReceiver<T, C> {
    pub(crate) fn new(end: End) -> Self {
        Self { end: Arc::new(end), _messages: PhantomData }
    }

    /// Receives a message on lease. Blocks while there is none; woken when one is sent or comes back, or when the last sender is
    /// gone.
    ///
    /// # Errors
    ///
    /// [`RecvError::Disconnected`] when no living process holds a sender, nothing is left, and no *other* process has messages on
    /// lease that may come back: this process is not needed any more. If this process itself has some on lease, it does not wait
    /// for others' leases: two such processes would wait for each other. [`RecvError::Closed`] likewise, if the queue was closed.
    /// [`RecvError::Decode`] for a message that is not a `T`: it counts as acknowledged, its bytes are in the error, and the next
    /// call goes on behind it. If this process has no memory for it ([`DecodeError::is_out_of_memory`]), it goes back.
    ///
    /// # Panics
    ///
    /// If the `Deserialize` of `T` panics; the message goes back.
    #[inline]
    pub fn recv_lease(&self) -> Result<Lease<T>, RecvError> {
        Ok(forever(|patience| self.take(patience).map_err(nothing))??)
    }

    /// Receives a message on lease if one is there now. Never blocks.
    ///
    /// # Errors
    ///
    /// [`TryRecvError::Empty`], or what [`LeaseReceiver::recv_lease`] fails for.
    #[inline]
    pub fn try_recv_lease(&self) -> Result<Lease<T>, TryRecvError> {
        match self.take(Patience::None) {
            Ok(lease) => lease.map_err(TryRecvError::from),
            Err(stop) => Err(nothing(stop).map_or(TryRecvError::Empty, TryRecvError::from)),
        }
    }

    /// Receives a message on lease. Blocks as [`LeaseReceiver::recv_lease`], up to `timeout`.
    ///
    /// # Errors
    ///
    /// [`RecvTimeoutError::Timeout`], or what [`LeaseReceiver::recv_lease`] fails for.
    pub fn recv_lease_timeout(&self, timeout: Duration) -> Result<Lease<T>, RecvTimeoutError> {
        self.take_patiently(Patience::For(timeout))
    }

    /// Receives a message on lease. Blocks as [`LeaseReceiver::recv_lease`], until `deadline`.
    ///
    /// # Errors
    ///
    /// As [`LeaseReceiver::recv_lease_timeout`].
    pub fn recv_lease_until(&self, deadline: Instant) -> Result<Lease<T>, RecvTimeoutError> {
        self.take_patiently(Patience::Until(deadline))
    }

    fn take_patiently(&self, patience: Patience) -> Result<Lease<T>, RecvTimeoutError> {
        match self.take(patience) {
            Ok(lease) => lease.map_err(RecvTimeoutError::from),
            Err(stop) => Err(nothing(stop).map_or(RecvTimeoutError::Timeout, RecvTimeoutError::from)),
        }
    }

    /// Messages on lease as they come, by [`LeaseReceiver::recv_lease`]; ends where that says `Disconnected` or `Closed`. After any other
    /// error but one of decoding it ends too.
    pub fn leases(&self) -> Leases<'_, T, C> {
        Leases { receiver: self, done: false }
    }

    /// The messages that are there now, on lease. Never blocks; ends when there is none. A lease that is
    /// dropped without `ack` meanwhile comes again. A message that does not decode is an `Err` item, and the iteration goes on.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (tx, rx) = ipc_queue::builder::<u32>().at_least_once().build()?;
    /// tx.send_batch([1, 2])?;
    /// let done: Result<Vec<_>, _> = rx.try_leases().map(|lease| Ok::<_, ipc_queue::DecodeError>(lease?.ack())).collect();
    /// assert_eq!(done?, [1, 2]);
    /// # Ok(()) }
    /// ```
    pub fn try_leases(&self) -> TryLeases<'_, T, C> {
        TryLeases { receiver: self }
    }

    /// Receives up to `max` messages on lease: blocks for the first as [`LeaseReceiver::recv_lease`], then takes what is there.
    /// Empty if `max` is 0.
    ///
    /// # Errors
    ///
    /// What [`LeaseReceiver::recv_lease`] fails for. A message that does not decode ends the batch in front of it, goes back, and
    /// is the error of the next call.
    ///
    /// # Panics
    ///
    /// If the `Deserialize` of `T` panics; all messages of the batch go back.
    ///
    /// # If the peer dies
    ///
    /// If this process dies, all messages of the batch that it has not acknowledged come back.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (tx, rx) = ipc_queue::builder::<u32>().at_least_once().build()?;
    /// tx.send_batch([1, 2, 3])?;
    /// for lease in rx.recv_leases(10)? {
    ///     if *lease == 2 { lease.nack() } else { drop(lease.ack()) }
    /// }
    /// assert_eq!(rx.recv_lease()?.ack(), 2);
    /// # Ok(()) }
    /// ```
    pub fn recv_leases(&self, max: usize) -> Result<Vec<Lease<T>>, RecvError> {
        if max == 0 {
            return Ok(Vec::new());
        }
        self.recv_lease().map(|first| self.take_more(first, max))
    }

    /// Receives up to `max` messages on lease that are there now, none if there are none. Never blocks.
    ///
    /// # Errors
    ///
    /// As [`LeaseReceiver::recv_leases`].
    pub fn try_recv_leases(&self, max: usize) -> Result<Vec<Lease<T>>, RecvError> {
        self.take_some(max, Patience::None)
    }

    /// Receives up to `max` messages on lease: blocks for the first up to `timeout`, then takes what is there. Empty if none came
    /// in time, or if `max` is 0.
    ///
    /// # Errors
    ///
    /// As [`LeaseReceiver::recv_leases`].
    pub fn recv_leases_timeout(&self, max: usize, timeout: Duration) -> Result<Vec<Lease<T>>, RecvError> {
        self.take_some(max, Patience::For(timeout))
    }

    fn take_some(&self, max: usize, patience: Patience) -> Result<Vec<Lease<T>>, RecvError> {
        if max == 0 {
            return Ok(Vec::new());
        }
        match self.take(patience) {
            Ok(lease) => Ok(self.take_more(lease?, max)),
            Err(stop) => nothing(stop).map_or(Ok(Vec::new()), |dry| Err(dry.into())),
        }
    }

    /// One message, with all its waiting.
    #[inline]
    fn take(&self, patience: Patience) -> Result<Result<Lease<T>, DecodeError>, Stop> {
        let cell = self.end.lease_cell(patience)?;
        Ok(self.open(cell).map_err(|(error, hold)| {
            // Another receiver may have the memory for it, so it goes back then.
            if !error.is_out_of_memory() {
                hold.finish();
            }
            error
        }))
    }

    /// The first and what else is there.
    fn take_more(&self, first: Lease<T>, max: usize) -> Vec<Lease<T>> {
        let mut leases = vec![first];
        while leases.len() < max {
            // One that does not decode goes back.
            match self.end.lease_another().map(|cell| self.open(Some(cell))) {
                Some(Ok(lease)) => leases.push(lease),
                _ => break,
            }
        }
        leases
    }

    /// Decodes a message that was taken.
    fn open(&self, cell: Option<Cell>) -> Result<Lease<T>, (DecodeError, Hold)> {
        let mut hold = Hold { end: Arc::clone(&self.end), cell, run: None, stamp: ForkStamp::now() };
        match hold.read::<T, C>() {
            Ok(value) => Ok(Lease { value, hold }),
            Err(error) => Err((error, hold)),
        }
    }
}

/// See [`LeaseReceiver::try_leases`].
pub struct TryLeases<'r, T, C = Postcard> {
    receiver: &'r LeaseReceiver<T, C>,
}

impl<T, C> fmt::Debug for TryLeases<'_, T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TryLeases").finish_non_exhaustive()
    }
}

impl<T, C: Format<T>> Iterator for TryLeases<'_, T, C> {
    type Item = Result<Lease<T>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.receiver.take(Patience::None).ok()
    }
}

/// See [`LeaseReceiver::leases`].
pub struct Leases<'r, T, C = Postcard> {
    receiver: &'r LeaseReceiver<T, C>,
    done: bool,
}

impl<T, C> fmt::Debug for Leases<'_, T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leases").field("done", &self.done).finish_non_exhaustive()
    }
}

impl<T, C: Format<T>> Iterator for Leases<'_, T, C> {
    type Item = Result<Lease<T>, RecvError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        match self.receiver.recv_lease() {
            Err(RecvError::Disconnected | RecvError::Closed) => {
                self.done = true;
                None
            }
            Err(error) => {
                self.done = !matches!(error, RecvError::Decode(_));
                Some(Err(error))
            }
            lease => Some(lease),
        }
    }
}

impl<T, C: Format<T>> FusedIterator for Leases<'_, T, C> {}

leased_end!(LeaseReceiver, Side::Receiver, |end: &Arc<End>| Arc::new((**end).clone()));

pollable! {
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use rustix::event::{PollFd, PollFlags, poll};
    ///
    /// let (tx, rx) = ipc_queue::builder::<u64>().capacity(4).at_least_once().build()?;
    /// tx.send(7)?;
    /// assert_eq!(poll(&mut [PollFd::new(&rx, PollFlags::IN)], None)?, 1);
    /// rx.try_recv_lease()?.ack();
    /// # Ok(()) }
    /// ```
    LeaseReceiver<T, C>: "receiving a message would not block, or would fail because none will come"
}
