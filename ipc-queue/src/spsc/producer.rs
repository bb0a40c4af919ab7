//! The sending end.
//!
//! # Safety
//!
//! Payloads are stored in slots that the ring hands out, of the length that the codec chose.
#![allow(unsafe_code)]

use super::end::{End, Stop, Unseated};
use super::handles::both_ends;
use super::ring::Pusher;
use crate::codec::{Format, Limits, Postcard, Refusal, Verbatim};
use crate::error::{Failure, Halt, SendBatchError, SendError, SendTimeoutError, TrySendError};
use crate::pollable::pollable;
use crate::ring::MAX_SPAN;
use crate::wait::Patience;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

/// The sending end of a queue of one producer and one consumer.
///
/// # If the peer dies
///
/// As [`Sender`](crate::Sender): a message whose `send` has returned `Ok` outlives its producer, and sending fails when no
/// living process holds the consumer. A producer that dies while it sends has sent the message, or the batch of up to 64,
/// or nothing.
///
/// # Across processes
///
/// A producer can be sent to another process, which uses it from there on: see [`spsc`](mod@crate::spsc).
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (mut tx, mut rx) = ipc_queue::spsc::<u64>(16)?;
/// let producer = std::thread::spawn(move || (0..100).try_for_each(|i| tx.send(i)));
/// for i in 0..100 {
///     assert_eq!(rx.recv()?, i);
/// }
/// producer.join().unwrap()?;
/// # Ok(()) }
/// ```
///
/// It cannot be cloned:
///
/// ```compile_fail
/// let (tx, _rx) = ipc_queue::spsc::<u64>(16).unwrap();
/// let _second = tx.clone();
/// ```
///
/// nor used by two threads at once:
///
/// ```compile_fail
/// fn shared<T: Sync>(_: T) {}
/// let (tx, _rx) = ipc_queue::spsc::<u64>(16).unwrap();
/// shared(tx);
/// ```
pub struct Producer<T, C = Postcard> {
    end: End<Pusher<'static>>,
    _messages: PhantomData<fn(T) -> C>,
}

/// A [`Producer`] of plain old data.
pub type PlainProducer<T> = Producer<T, Verbatim>;

/// Why one attempt to send, with all its waiting, did not.
enum Unsent {
    /// Patience ran out.
    Late,
    Failed(Failure),
}

impl From<Stop> for Unsent {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Late => Self::Late,
            Stop::Disconnected => Self::Failed(Failure::Disconnected),
        }
    }
}

impl From<Unseated> for Failure {
    fn from(unseated: Unseated) -> Self {
        match unseated {
            Unseated::Forked => Self::Forked,
            Unseated::Taken => Self::Taken,
        }
    }
}

/// A deadline for several waits together; one beyond the end of time is none.
fn patience_for(timeout: Duration) -> Patience {
    Instant::now().checked_add(timeout).map_or(Patience::Forever, Patience::Until)
}

impl<T, C: Format<T>> Producer<T, C> {
    pub(super) fn new(end: End<Pusher<'static>>) -> Self {
        Self { end, _messages: PhantomData }
    }

    /// Sends a message. Blocks while the queue is full; woken when the consumer takes one, or when the consumer is gone
    /// (dropped: at once; killed: within about 100 ms). While there is room, a killed consumer is noticed after every
    /// 256th message, at most once in a millisecond.
    ///
    /// # Errors
    ///
    /// [`SendError`] with the message: no consumer is left, the message is too large or cannot be encoded, or this end is
    /// in use elsewhere.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (mut tx, rx) = ipc_queue::spsc::<u32>(1)?;
    /// tx.send(7)?;
    /// drop(rx);
    /// assert_eq!(tx.send(8).unwrap_err().into_inner(), 8);
    /// # Ok(()) }
    /// ```
    #[inline]
    pub fn send(&mut self, value: T) -> Result<(), SendError<T>> {
        if self.sent_at_once(&value) {
            return Ok(());
        }
        self.send_slowly(value)
    }

    #[cold]
    #[inline(never)]
    fn send_slowly(&mut self, value: T) -> Result<(), SendError<T>> {
        loop {
            match self.offer(&value, Patience::Forever) {
                Ok(()) => return Ok(()),
                Err(Unsent::Failed(failure)) => return Err(SendError::from_failure(failure, value)),
                Err(Unsent::Late) => {}
            }
        }
    }

    /// Sends a message if there is room now. Never blocks; wait-free.
    ///
    /// # Errors
    ///
    /// [`TrySendError`] with the message: the queue is full, or what [`Producer::send`] fails for.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (mut tx, _rx) = ipc_queue::spsc::<u32>(1)?;
    /// tx.try_send(7)?;
    /// assert!(tx.try_send(8).unwrap_err().is_full());
    /// # Ok(()) }
    /// ```
    #[inline]
    pub fn try_send(&mut self, value: T) -> Result<(), TrySendError<T>> {
        if self.sent_at_once(&value) {
            return Ok(());
        }
        self.try_send_slowly(value)
    }

    #[cold]
    #[inline(never)]
    fn try_send_slowly(&mut self, value: T) -> Result<(), TrySendError<T>> {
        match self.offer(&value, Patience::None) {
            Ok(()) => Ok(()),
            Err(Unsent::Late) => Err(TrySendError::Full(value)),
            Err(Unsent::Failed(failure)) => Err(TrySendError::from_failure(failure, value)),
        }
    }

    /// Sends a message. Blocks while the queue is full, up to `timeout`; woken as [`Producer::send`].
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError`] with the message.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (mut tx, _rx) = ipc_queue::spsc::<u32>(1)?;
    /// tx.send_timeout(7, Duration::from_millis(1))?;
    /// assert!(tx.send_timeout(8, Duration::from_millis(1)).unwrap_err().is_timeout());
    /// # Ok(()) }
    /// ```
    pub fn send_timeout(&mut self, value: T, timeout: Duration) -> Result<(), SendTimeoutError<T>> {
        self.send_patiently(value, Patience::For(timeout))
    }

    /// Sends a message. Blocks while the queue is full, until `deadline`; woken as [`Producer::send`].
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError`] with the message.
    pub fn send_until(&mut self, value: T, deadline: Instant) -> Result<(), SendTimeoutError<T>> {
        self.send_patiently(value, Patience::Until(deadline))
    }

    fn send_patiently(&mut self, value: T, patience: Patience) -> Result<(), SendTimeoutError<T>> {
        match self.offer(&value, patience) {
            Ok(()) => Ok(()),
            Err(Unsent::Late) => Err(SendTimeoutError::Timeout(value)),
            Err(Unsent::Failed(failure)) => Err(SendTimeoutError::from_failure(failure, value)),
        }
    }

    /// Sends all messages, in order, up to 64 with one step. Blocks while the queue is full; woken as
    /// [`Producer::send`].
    ///
    /// # Errors
    ///
    /// [`SendBatchError`] says how many were sent, and hands the others back.
    ///
    /// # If the peer dies
    ///
    /// Of a producer that dies in here, each step arrives whole or not at all.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (mut tx, mut rx) = ipc_queue::spsc::<u32>(100)?;
    /// tx.send_batch([1, 2, 3])?;
    /// assert_eq!(rx.recv_batch(10)?, [1, 2, 3]);
    /// # Ok(()) }
    /// ```
    pub fn send_batch(&mut self, values: impl Into<Vec<T>>) -> Result<(), SendBatchError<T>> {
        self.send_all(values.into(), Patience::Forever, Halt::Timeout)
    }

    /// Sends the messages that there is room for now, in order, up to 64 with one step. Never blocks.
    ///
    /// # Errors
    ///
    /// As [`Producer::send_batch`]; also if the queue is full.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (mut tx, _rx) = ipc_queue::spsc::<u32>(2)?;
    /// let error = tx.try_send_batch([1, 2, 3]).unwrap_err();
    /// assert!(error.is_full());
    /// assert_eq!(error.into_unsent(), [3]);
    /// # Ok(()) }
    /// ```
    pub fn try_send_batch(&mut self, values: impl Into<Vec<T>>) -> Result<(), SendBatchError<T>> {
        self.send_all(values.into(), Patience::None, Halt::Full)
    }

    /// Sends all messages, in order, up to 64 with one step. Blocks while the queue is full, up to `timeout` for all
    /// together; woken as [`Producer::send`].
    ///
    /// # Errors
    ///
    /// As [`Producer::send_batch`]; also if the time is over.
    pub fn send_batch_timeout(
        &mut self,
        values: impl Into<Vec<T>>,
        timeout: Duration,
    ) -> Result<(), SendBatchError<T>> {
        self.send_all(values.into(), patience_for(timeout), Halt::Timeout)
    }

    /// `late` is what it is called when patience runs out.
    fn send_all(
        &mut self,
        mut values: Vec<T>,
        patience: Patience,
        late: Halt,
    ) -> Result<(), SendBatchError<T>> {
        let mut sent = 0;
        self.offer_all(&values, &mut sent, patience).map_err(|unsent| {
            let halt = match unsent {
                Unsent::Late => late,
                Unsent::Failed(failure) => Halt::Failed(failure),
            };
            SendBatchError::new(sent, values.split_off(sent), halt)
        })
    }

    /// Sends what it can; `sent` counts.
    fn offer_all(&mut self, values: &[T], sent: &mut usize, patience: Patience) -> Result<(), Unsent> {
        let span = values.len().min(MAX_SPAN);
        let mut rooms: Vec<C::Room> = std::iter::repeat_with(C::room).take(span).collect();
        while *sent < values.len() {
            self.ready().map_err(Unsent::Failed)?;
            let limit = self.end.limit();
            let mut trouble = Ok(());
            let mut staged = Vec::with_capacity(span);
            for (value, room) in values[*sent..].iter().zip(&mut rooms) {
                match C::encode(value, room, Limits::of_slot(limit)) {
                    Ok(message) => staged.push(message),
                    Err(refusal) => {
                        trouble = Err(Unsent::Failed(refused(refusal, limit)));
                        break;
                    }
                }
            }
            let mut rest = &staged[..];
            while !rest.is_empty() {
                let before = self.end.ticket();
                // SAFETY: as in `push`; the ring counts from 0 to below the length that it was given.
                let write = |i: usize, slot| unsafe { C::store(rest.get_unchecked(i), slot) };
                let attempt = |site: &mut Pusher<'_>| site.try_push_batch(rest.len(), write).ok();
                self.end.linger(patience);
                let pushed = match attempt(self.end.parts().0) {
                    Some(count) => Ok(count),
                    None => self.end.retry(patience, |site, _| attempt(site)),
                };
                match (pushed, patience) {
                    (Ok(count), _) => {
                        self.end.done(before, count);
                        *sent += count;
                        let (pushed, unsent) = rest.split_at(count);
                        for (ticket, message) in (before..).zip(pushed) {
                            self.leave_deposit(message, ticket);
                        }
                        rest = unsent;
                    }
                    (Err(Stop::Late), Patience::Forever) => {}
                    (Err(stop), _) => return Err(stop.into()),
                }
            }
            trouble?;
        }
        Ok(())
    }

    /// The usual case: sends the message if that needs no waiting and meets no trouble. Otherwise nothing happened.
    #[inline(always)]
    fn sent_at_once(&mut self, value: &T) -> bool {
        if !self.end.is_seated() || self.end.is_alone() {
            return false;
        }
        let Some(spot) = self.end.parts().0.known_spot() else { return false };
        let mut room = C::room();
        let Ok(message) = C::encode(value, &mut room, Limits::of_slot(self.end.limit())) else {
            return false;
        };
        // `encode` runs the user's code, but that cannot get at this handle's spot.
        // SAFETY: the slot is the producer's, and its payload is the one that `limit` came from.
        self.end.parts().0.push_at(spot, |slot| unsafe { C::store(&message, slot) });
        self.end.done(spot.ticket(), 1);
        self.leave_deposit(&message, spot.ticket());
        true
    }

    /// One message, with all its waiting.
    fn offer(&mut self, value: &T, patience: Patience) -> Result<(), Unsent> {
        self.ready().map_err(Unsent::Failed)?;
        let limit = self.end.limit();
        let mut room = C::room();
        let message = match C::encode(value, &mut room, Limits::of_slot(limit)) {
            Ok(message) => message,
            Err(refusal) => return Err(Unsent::Failed(refused(refusal, limit))),
        };
        let before = self.end.ticket();
        self.end.linger(patience);
        if push::<T, C>(self.end.parts().0, &message).is_none() {
            self.end.retry(patience, |site, _| push::<T, C>(site, &message))?;
        }
        self.end.done(before, 1);
        self.leave_deposit(&message, before);
        Ok(())
    }

    #[inline(always)]
    fn ready(&mut self) -> Result<(), Failure> {
        self.end.ready()?;
        if self.end.is_alone() { Err(Failure::Disconnected) } else { Ok(()) }
    }

    /// The message of `ticket` is in the queue: leaves the descriptors of its handles, if it has some.
    #[inline(always)]
    fn leave_deposit(&self, message: &C::Staged<'_>, ticket: u64) {
        if let Some(deposit) = C::deposit(message) {
            let ring = self.end.ring();
            self.end.member().leave_deposit(deposit, move || !ring.is_released(ticket));
        }
    }
}

#[inline(always)]
fn push<T, C: Format<T>>(site: &mut Pusher<'_>, message: &C::Staged<'_>) -> Option<()> {
    // SAFETY: the slot is the producer's, and its payload is the one that `limit` came from.
    site.try_push(|slot| unsafe { C::store(message, slot) }).ok()
}

#[cold]
fn refused(refusal: Refusal, limit: usize) -> Failure {
    match refusal {
        Refusal::TooLarge(len) => Failure::TooLarge { len, limit },
        Refusal::Encode(reason) => Failure::Encode(reason),
    }
}

both_ends!(Producer);

pollable! {
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use rustix::event::{PollFd, PollFlags, poll};
    ///
    /// let (mut tx, mut rx) = ipc_queue::spsc::<u32>(1)?;
    /// tx.send(1)?;
    /// assert!(tx.try_send(2).unwrap_err().is_full());
    /// assert_eq!(rx.recv()?, 1);
    /// assert_eq!(poll(&mut [PollFd::new(&tx, PollFlags::IN)], None)?, 1);
    /// tx.try_send(2)?;
    /// # Ok(()) }
    /// ```
    Producer<T, C>: "sending a message would not block, or would fail because nobody would receive it"
}
