//! The receiving end.
//!
//! # Safety
//!
//! Payloads are loaded from slots that the ring hands out, of the length that the codec chose.
#![allow(unsafe_code)]

use super::end::{End, Stop, Unseated};
use super::handles::both_ends;
use super::iter::{Iter, TryIter};
use super::ring::{Popper, Spot};
use crate::codec::{Format, Postcard, Verbatim};
use crate::error::{DecodeError, Dry, RecvBatchError, RecvError, RecvTimeoutError, TryRecvError};
use crate::member::Member;
use crate::pollable::pollable;
use crate::ring::MAX_SPAN;
use crate::wait::Patience;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

/// The receiving end of a queue of one producer and one consumer.
///
/// # If the peer dies
///
/// Nothing that was sent is lost with its producer. A consumer that dies takes with it what it was taking, one message or
/// one batch, or leaves it to whoever uses the end next. When no living process holds the producer and nothing is left,
/// receiving fails.
///
/// # Across processes
///
/// A consumer can be sent to another process, which uses it from there on: see [`spsc`](mod@crate::spsc). What another
/// process puts into the queue is decoded by the `Deserialize` of `T`: see [`Receiver`](crate::Receiver).
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (mut tx, mut rx) = ipc_queue::spsc::<u64>(16)?;
/// std::thread::spawn(move || (0..100).try_for_each(|i| tx.send(i)));
/// let mut sum = 0;
/// for number in rx.iter() {                 // ends when the producer is gone
///     sum += number?;
/// }
/// assert_eq!(sum, 4950);
/// # Ok(()) }
/// ```
///
/// It cannot be cloned:
///
/// ```compile_fail
/// let (_tx, rx) = ipc_queue::spsc::<u64>(16).unwrap();
/// let _second = rx.clone();
/// ```
pub struct Consumer<T, C = Postcard> {
    end: End<Popper<'static>>,
    _messages: PhantomData<fn(C) -> T>,
}

/// A [`Consumer`] of plain old data.
pub type PlainConsumer<T> = Consumer<T, Verbatim>;

impl From<Unseated> for Dry {
    fn from(unseated: Unseated) -> Self {
        match unseated {
            Unseated::Forked => Self::Forked,
            Unseated::Taken => Self::Taken,
        }
    }
}

impl<T, C: Format<T>> Consumer<T, C> {
    pub(super) fn new(end: End<Popper<'static>>) -> Self {
        Self { end, _messages: PhantomData }
    }

    /// Receives a message. Blocks while the queue is empty; woken when one is sent, or when the producer is gone
    /// (dropped: at once; killed: within about 100 ms).
    ///
    /// # Errors
    ///
    /// [`RecvError`]: nothing is left and no living process holds the producer; a message does not decode (the queue goes
    /// on); this end is in use elsewhere.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (mut tx, mut rx) = ipc_queue::spsc::<u32>(4)?;
    /// tx.send(7)?;
    /// drop(tx);
    /// assert_eq!(rx.recv()?, 7);
    /// assert!(rx.recv().unwrap_err().is_disconnected());
    /// # Ok(()) }
    /// ```
    #[inline]
    pub fn recv(&mut self) -> Result<T, RecvError> {
        if let Some(received) = self.received_at_once() {
            return received.map_err(RecvError::from);
        }
        self.recv_slowly()
    }

    #[cold]
    #[inline(never)]
    fn recv_slowly(&mut self) -> Result<T, RecvError> {
        loop {
            if let Some(received) = self.receive(Patience::Forever) {
                return received;
            }
        }
    }

    /// Receives a message if one is there now. Never blocks, unless the message has handles, which are fetched from the
    /// process that sent it; wait-free. A consumer that only polls asks the system about the producer once a millisecond.
    ///
    /// # Errors
    ///
    /// [`TryRecvError::Empty`], or what [`Consumer::recv`] fails for.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (mut tx, mut rx) = ipc_queue::spsc::<u32>(4)?;
    /// assert!(rx.try_recv().unwrap_err().is_empty());
    /// tx.send(7)?;
    /// assert_eq!(rx.try_recv()?, 7);
    /// # Ok(()) }
    /// ```
    #[inline]
    pub fn try_recv(&mut self) -> Result<T, TryRecvError> {
        if let Some(received) = self.received_at_once() {
            return received.map_err(TryRecvError::from);
        }
        self.try_recv_slowly()
    }

    #[cold]
    #[inline(never)]
    fn try_recv_slowly(&mut self) -> Result<T, TryRecvError> {
        self.receive(Patience::None).unwrap_or(Err(TryRecvError::Empty))
    }

    /// Receives a message. Blocks while the queue is empty, up to `timeout`; woken as [`Consumer::recv`].
    ///
    /// # Errors
    ///
    /// [`RecvTimeoutError::Timeout`], or what [`Consumer::recv`] fails for.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (_tx, mut rx) = ipc_queue::spsc::<u32>(4)?;
    /// assert!(rx.recv_timeout(Duration::from_millis(1)).unwrap_err().is_timeout());
    /// # Ok(()) }
    /// ```
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<T, RecvTimeoutError> {
        self.receive(Patience::For(timeout)).unwrap_or(Err(RecvTimeoutError::Timeout))
    }

    /// Receives a message. Blocks while the queue is empty, until `deadline`; woken as [`Consumer::recv`].
    ///
    /// # Errors
    ///
    /// As [`Consumer::recv_timeout`].
    pub fn recv_until(&mut self, deadline: Instant) -> Result<T, RecvTimeoutError> {
        self.receive(Patience::Until(deadline)).unwrap_or(Err(RecvTimeoutError::Timeout))
    }

    /// Receives up to `max` messages: blocks for the first as [`Consumer::recv`], then takes what is there, up to 64 with
    /// one step. Empty only if `max` is 0.
    ///
    /// # Errors
    ///
    /// As [`Consumer::recv`]; if some messages do not decode, [`RecvBatchError::Decode`] holds the others.
    ///
    /// # Panics
    ///
    /// If the `Deserialize` of `T` panics; the messages of that step are lost.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (mut tx, mut rx) = ipc_queue::spsc::<u32>(4)?;
    /// tx.send_batch([1, 2, 3])?;
    /// assert_eq!(rx.recv_batch(2)?, [1, 2]);
    /// assert_eq!(rx.recv_batch(2)?, [3]);
    /// # Ok(()) }
    /// ```
    pub fn recv_batch(&mut self, max: usize) -> Result<Vec<T>, RecvBatchError<T>> {
        loop {
            if let Some(received) = self.take_batch(max, Patience::Forever)? {
                return Ok(received);
            }
        }
    }

    /// Receives up to `max` messages that are there now, none if there are none. Never blocks.
    ///
    /// # Errors
    ///
    /// As [`Consumer::recv_batch`].
    pub fn try_recv_batch(&mut self, max: usize) -> Result<Vec<T>, RecvBatchError<T>> {
        Ok(self.take_batch(max, Patience::None)?.unwrap_or_default())
    }

    /// Receives up to `max` messages: blocks for the first up to `timeout`, then takes what is there. Empty if none came
    /// in time, or if `max` is 0. Woken as [`Consumer::recv`].
    ///
    /// # Errors
    ///
    /// As [`Consumer::recv_batch`].
    pub fn recv_batch_timeout(&mut self, max: usize, timeout: Duration) -> Result<Vec<T>, RecvBatchError<T>> {
        Ok(self.take_batch(max, Patience::For(timeout))?.unwrap_or_default())
    }

    /// The usual case: takes a message that is there. Otherwise nothing happened.
    #[inline(always)]
    fn received_at_once(&mut self) -> Option<Result<T, DecodeError>> {
        if !self.end.is_seated() {
            return None;
        }
        let spot = self.end.parts().0.known_spot()?;
        let limit = self.end.limit();
        let mut message = C::blank();
        let (site, member) = self.end.parts();
        take::<T, C>(site, spot, member, limit, &mut message);
        self.end.done(spot.ticket(), 1);
        Some(open::<T, C>(self.end.member(), limit, &message))
    }

    /// One message, with all its waiting; nothing if patience ran out.
    fn receive<E: From<Dry> + From<DecodeError>>(&mut self, patience: Patience) -> Option<Result<T, E>> {
        if let Err(unseated) = self.end.ready() {
            return Some(Err(Dry::from(unseated).into()));
        }
        let limit = self.end.limit();
        let mut message = C::blank();
        let before = self.end.ticket();
        self.end.linger(patience);
        let (site, member) = self.end.parts();
        if pop::<T, C>(site, member, limit, &mut message).is_none() {
            let attempt =
                |site: &mut Popper<'static>, member: &Member| pop::<T, C>(site, member, limit, &mut message);
            match self.end.retry(patience, attempt) {
                Ok(()) => {}
                Err(Stop::Late) => return None,
                Err(Stop::Disconnected) => return Some(Err(Dry::Disconnected.into())),
            }
        }
        self.end.done(before, 1);
        Some(open::<T, C>(self.end.member(), limit, &message).map_err(E::from))
    }

    /// Up to `max` messages; `None` if patience ran out before the first.
    fn take_batch(&mut self, max: usize, patience: Patience) -> Result<Option<Vec<T>>, RecvBatchError<T>> {
        self.end.ready().map_err(Dry::from)?;
        let limit = self.end.limit();
        let span = max.min(MAX_SPAN).min(self.end.capacity());
        let mut messages: Vec<C::Message> = Vec::with_capacity(span);
        let (mut received, mut failed) = (Vec::with_capacity(span), Vec::new());
        loop {
            let wanted = (max - received.len() - failed.len()).min(span);
            messages.resize_with(wanted, C::blank);
            let before = self.end.ticket();
            let mut attempt = |site: &mut Popper<'static>, member: &Member| {
                pop_batch::<T, C>(site, member, limit, &mut messages)
            };
            if received.is_empty() && failed.is_empty() {
                self.end.linger(patience);
            }
            let (site, member) = self.end.parts();
            let taken = match attempt(site, member) {
                Some(0) => break,
                Some(taken) => taken,
                None if received.is_empty() && failed.is_empty() => match self.end.retry(patience, attempt) {
                    Ok(taken) => taken,
                    Err(Stop::Late) => return Ok(None),
                    Err(Stop::Disconnected) => return Err(Dry::Disconnected.into()),
                },
                None => break,
            };
            self.end.done(before, taken);
            let member = self.end.member();
            for message in (Unopened::<T, C> { member, messages: &messages[..taken] }) {
                match open::<T, C>(member, limit, message) {
                    Ok(value) => received.push(value),
                    Err(error) => failed.push(error),
                }
            }
            if taken < wanted {
                break;
            }
        }
        if failed.is_empty() { Ok(Some(received)) } else { Err(RecvBatchError::Decode { received, failed }) }
    }

    /// The messages to come, until the producer is gone and nothing is left. Blocks for each as [`Consumer::recv`]. A
    /// message that does not decode is an `Err` item, and the iteration goes on.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (mut tx, mut rx) = ipc_queue::spsc::<char>(4)?;
    /// tx.send_batch(['a', 'b'])?;
    /// drop(tx);
    /// assert_eq!(rx.iter().collect::<Result<String, _>>()?, "ab");
    /// # Ok(()) }
    /// ```
    pub fn iter(&mut self) -> Iter<'_, T, C> {
        Iter { consumer: self, ended: false }
    }

    /// The messages that are there now. Never blocks; ends when the queue is empty. A message that does not decode is an
    /// `Err` item, and the iteration goes on.
    pub fn try_iter(&mut self) -> TryIter<'_, T, C> {
        TryIter { consumer: self }
    }
}

impl<T, C: Format<T>> Consumer<T, C> {
    /// Tries again to fetch the handles of a message whose [`DecodeError`] is [temporary](DecodeError::is_temporary), as
    /// [`Receiver::redeem`](crate::Receiver::redeem). Blocks for the process that sent it, at most for 5 seconds.
    ///
    /// # Errors
    ///
    /// As [`Consumer::recv`] for the message; an error of another kind comes back as it is.
    pub fn redeem(&mut self, error: DecodeError) -> Result<T, DecodeError> {
        let (bytes, claim, hand) = error.retry()?;
        C::redeem(bytes, claim).map_err(|error| error.with_hand(hand))
    }
}

/// Copies a message out of its slot; nothing if there is none.
#[inline(always)]
fn pop<T, C: Format<T>>(
    site: &mut Popper<'_>,
    member: &Member,
    limit: usize,
    message: &mut C::Message,
) -> Option<()> {
    // A look first: whoever polls an empty queue shall not allocate each time.
    let spot = site.spot()?;
    take::<T, C>(site, spot, member, limit, message);
    Some(())
}

/// Copies a message out of the slot that was found for it.
#[inline(always)]
fn take<T, C: Format<T>>(
    site: &mut Popper<'_>,
    spot: Spot,
    member: &Member,
    limit: usize,
    message: &mut C::Message,
) {
    if !C::has_room(message, limit) {
        C::make_room(message, limit);
    }
    site.pop_at(spot, |slot| load::<T, C>(member, limit, message, slot));
}

/// Copies messages out of their slots; nothing if there are none.
fn pop_batch<T, C: Format<T>>(
    site: &mut Popper<'_>,
    member: &Member,
    limit: usize,
    messages: &mut [C::Message],
) -> Option<usize> {
    let ready = site.look();
    let max = messages.len().min(ready.max(1));
    for message in messages.iter_mut().take(ready).filter(|message| !C::has_room(message, limit)) {
        C::make_room(message, limit);
    }
    if ready == 0 && !messages.is_empty() {
        return None;
    }
    site.try_pop_batch(max, |i, slot| load::<T, C>(member, limit, &mut messages[i], slot)).ok()
}

/// `slot` is lent by the ring of this codec's queue, and `message` has room.
#[inline(always)]
fn load<T, C: Format<T>>(member: &Member, limit: usize, message: &mut C::Message, slot: *const u8) {
    // SAFETY: the slot is the consumer's, and its payload is the one that `limit` came from; there is room.
    unsafe { C::load(message, slot, limit) };
    if C::has_handles(message) {
        member.take_in_hand();
    }
}

/// Decodes a message that was taken.
#[inline(always)]
fn open<T, C: Format<T>>(member: &Member, limit: usize, message: &C::Message) -> Result<T, DecodeError> {
    if C::has_handles(message) {
        return open_parcel::<T, C>(member, limit, message);
    }
    C::decode(message, limit)
}

/// Decodes a message with handles, for which [`load`] has counted.
#[cold]
fn open_parcel<T, C: Format<T>>(
    member: &Member,
    limit: usize,
    message: &C::Message,
) -> Result<T, DecodeError> {
    let hand = member.hand();
    C::decode_parcel(message, limit).map_err(|error| error.with_hand(Some(hand)))
}

/// Messages that were taken and not decoded yet.
struct Unopened<'a, T, C: Format<T>> {
    member: &'a Member,
    messages: &'a [C::Message],
}

impl<'a, T, C: Format<T>> Iterator for Unopened<'a, T, C> {
    type Item = &'a C::Message;

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        let (first, rest) = self.messages.split_first()?;
        self.messages = rest;
        Some(first)
    }
}

impl<T, C: Format<T>> Drop for Unopened<'_, T, C> {
    fn drop(&mut self) {
        // There are some only if decoding another one has panicked.
        for _ in self.messages.iter().filter(|message| C::has_handles(message)) {
            drop(self.member.hand());
        }
    }
}

both_ends!(Consumer);

pollable! {
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use rustix::event::{PollFd, PollFlags, poll};
    ///
    /// let (mut tx, mut rx) = ipc_queue::spsc::<u32>(4)?;
    /// tx.send(7)?;
    /// assert_eq!(poll(&mut [PollFd::new(&rx, PollFlags::IN)], None)?, 1);
    /// assert_eq!(rx.try_recv()?, 7);
    /// # Ok(()) }
    /// ```
    Consumer<T, C>: "receiving a message would not block, or would fail because none will come"
}
