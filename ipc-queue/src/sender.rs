//! The sending end.

use crate::bulk::Denied;
use crate::codec::{Format, Postcard, Refusal, Verbatim};
use crate::end::{End, Shape};
use crate::error::{Failure, Halt, SendBatchError, SendError, SendTimeoutError, TrySendError};
use crate::layout::Side;
use crate::pollable::pollable;
use crate::ring::MAX_SPAN;
use crate::wait::{Patience, Stop, forever};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

/// The sending end of a queue of messages of type `T`.
///
/// Clones are further senders of the same queue. All operations take `&self`, so threads may share one; a clone
/// per thread is faster, because each handle remembers its place in the queue.
///
/// # If the peer dies
///
/// A message whose `send` has returned `Ok` outlives its sender. A receiver that dies takes with it at most what
/// it was taking at that moment: one message or one batch. When no living process holds a receiver, sending fails:
/// at once if the last receiver was dropped; if its process was killed, as soon as a sender has asked the system, which
/// it does when it finds no room, and while there is room after every 64th message of the queue, at most once in a
/// millisecond. Messages that were sent before are lost with the queue. A process that is stopped while it takes a
/// message is alive, and the queue fills up until it goes on.
///
/// # Across processes
///
/// A sender can be serialised into arguments of processes and tasks, and works there like a clone. A forked
/// child has a copy of every sender, which attaches at its first use; only after a fork that skipped the handlers of
/// `pthread_atfork`, or where attaching fails, does every operation say so.
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (tx, rx) = ipc_queue::bounded::<String>(16)?;
/// let second = tx.clone();
/// std::thread::spawn(move || second.send("hello".into())).join().unwrap()?;
/// assert_eq!(rx.recv()?, "hello");
/// # Ok(()) }
/// ```
pub struct Sender<T, C = Postcard> {
    end: End,
    _messages: PhantomData<fn(T) -> C>,
}

/// A [`Sender`] of plain old data.
pub type PlainSender<T> = Sender<T, Verbatim>;

/// Why one attempt to send, with all its waiting, did not.
pub(crate) enum Unsent {
    /// Patience ran out.
    Late,
    Failed(Failure),
}

impl Unsent {
    /// `None` if patience ran out.
    #[inline(always)]
    pub(crate) fn failure(self) -> Option<Failure> {
        match self {
            Self::Late => None,
            Self::Failed(failure) => Some(failure),
        }
    }
}

impl From<Denied> for Unsent {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Stop(stop) => stop.into(),
            Denied::OutOfMemory => Self::Failed(Failure::OutOfMemory),
        }
    }
}

impl From<Stop> for Unsent {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Late => Self::Late,
            Stop::Disconnected => Self::Failed(Failure::Disconnected),
            Stop::Closed => Self::Failed(Failure::Closed),
            Stop::Exhausted => Self::Failed(Failure::Exhausted),
            Stop::Forked => Self::Failed(Failure::Forked),
        }
    }
}

impl<T, C: Format<T>> Sender<T, C> {
    pub(crate) fn new(end: End) -> Self {
        Self { end, _messages: PhantomData }
    }

    /// Sends a message. Blocks while the queue is full, or while its byte budget has no room for a message that does not
    /// fit a slot; woken when a receiver takes one, or when the last receiver is gone (dropped: at once; killed: within
    /// about 100 ms). While there is room, a killed last receiver is noticed
    /// after every 64th message of the queue, at most once in a millisecond.
    ///
    /// # Errors
    ///
    /// [`SendError`] with the message: no receiver is left, the queue was closed, it is larger than the whole byte budget, the machine has no
    /// memory for it, or it cannot be encoded.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (tx, rx) = ipc_queue::bounded::<u32>(1)?;
    /// tx.send(7)?;
    /// drop(rx);
    /// assert_eq!(tx.send(8).unwrap_err().into_inner(), 8);
    /// # Ok(()) }
    /// ```
    #[inline]
    pub fn send(&self, value: T) -> Result<(), SendError<T>> {
        // Not `map_err`: its closure would be given the value first, a copy of it for every message.
        match forever(|patience| self.offer(&value, patience).map_err(Unsent::failure)) {
            Ok(()) => Ok(()),
            Err(failure) => Err(SendError::from_failure(failure, value)),
        }
    }

    /// Sends a message if there is room now. Never blocks; lock-free.
    ///
    /// A message that does not fit a slot takes as long as its copy, and as the system takes to clear the memory behind it where
    /// that is new. If there is no slot free at first it takes neither; if others take the last one meanwhile, it was for
    /// nothing.
    ///
    /// # Errors
    ///
    /// [`TrySendError`] with the message: the queue or its byte budget is full, or what [`Sender::send`] fails for.
    ///
    /// # If the peer dies
    ///
    /// The slot of a receiver that died while it took a message is freed here when it is needed. After a death one
    /// call may take long: it looks at every slot of the queue, under a lock of this process that another thread may
    /// hold for the same work.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (tx, _rx) = ipc_queue::bounded::<u32>(1)?;
    /// tx.try_send(7)?;
    /// assert!(tx.try_send(8).unwrap_err().is_full());
    /// # Ok(()) }
    /// ```
    #[inline]
    pub fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
        match self.offer(&value, Patience::None) {
            Ok(()) => Ok(()),
            Err(Unsent::Late) => Err(TrySendError::Full(value)),
            Err(Unsent::Failed(failure)) => Err(TrySendError::from_failure(failure, value)),
        }
    }

    /// Sends a message. Blocks while the queue is full, or its byte budget has no room for a message that does not fit a slot,
    /// up to `timeout` for both together; woken as [`Sender::send`].
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError`] with the message: the time is over, or what [`Sender::send`] fails for.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (tx, _rx) = ipc_queue::bounded::<u32>(1)?;
    /// tx.send_timeout(7, Duration::from_millis(1))?;
    /// assert!(tx.send_timeout(8, Duration::from_millis(1)).unwrap_err().is_timeout());
    /// # Ok(()) }
    /// ```
    pub fn send_timeout(&self, value: T, timeout: Duration) -> Result<(), SendTimeoutError<T>> {
        self.send_patiently(value, Patience::For(timeout))
    }

    /// Sends a message. Blocks as [`Sender::send_timeout`], until `deadline`.
    ///
    /// # Errors
    ///
    /// As [`Sender::send_timeout`].
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

    /// Sends all messages, in order, up to 64 with one step. Blocks while the queue is full; woken as
    /// [`Sender::send`]. Other senders' messages may come between the steps. A message that does not fit a slot is a step of
    /// its own.
    ///
    /// # Errors
    ///
    /// [`SendBatchError`] says how many were sent, and hands the others back: no receiver is left, the queue was closed, or
    /// one of them is too large or cannot be encoded.
    ///
    /// # If the peer dies
    ///
    /// Of a sender that dies in here, each step arrives whole or not at all.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (tx, rx) = ipc_queue::bounded::<u32>(100)?;
    /// tx.send_batch([1, 2, 3])?;
    /// assert_eq!(rx.recv_batch(10)?, [1, 2, 3]);
    /// # Ok(()) }
    /// ```
    pub fn send_batch(&self, values: impl Into<Vec<T>>) -> Result<(), SendBatchError<T>> {
        self.send_all(values.into(), Patience::Forever, Halt::Timeout)
    }

    /// Sends the messages that there is room for now, in order, up to 64 with one step. Never blocks.
    ///
    /// # Errors
    ///
    /// [`SendBatchError`] says how many were sent, and hands the others back: the queue is full, or what
    /// [`Sender::send_batch`] fails for.
    ///
    /// # If the peer dies
    ///
    /// As [`Sender::send_batch`] and [`Sender::try_send`].
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (tx, _rx) = ipc_queue::bounded::<u32>(2)?;
    /// let error = tx.try_send_batch([1, 2, 3]).unwrap_err();
    /// assert!(error.is_full());
    /// assert_eq!(error.into_unsent(), [3]);
    /// # Ok(()) }
    /// ```
    pub fn try_send_batch(&self, values: impl Into<Vec<T>>) -> Result<(), SendBatchError<T>> {
        self.send_all(values.into(), Patience::None, Halt::Full)
    }

    /// Sends all messages, in order, up to 64 with one step. Blocks while the queue is full, up to `timeout` for all
    /// together; woken as [`Sender::send`].
    ///
    /// # Errors
    ///
    /// [`SendBatchError`] says how many were sent, and hands the others back: the time is over, or what
    /// [`Sender::send_batch`] fails for.
    ///
    /// # If the peer dies
    ///
    /// As [`Sender::send_batch`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (tx, _rx) = ipc_queue::bounded::<u32>(2)?;
    /// let error = tx.send_batch_timeout([1, 2, 3], Duration::from_millis(1)).unwrap_err();
    /// assert!(error.is_timeout());
    /// assert_eq!(error.sent(), 2);
    /// # Ok(()) }
    /// ```
    pub fn send_batch_timeout(
        &self,
        values: impl Into<Vec<T>>,
        timeout: Duration,
    ) -> Result<(), SendBatchError<T>> {
        // A deadline beyond the end of time is none.
        let deadline = Instant::now().checked_add(timeout);
        let patience = deadline.map_or(Patience::Forever, Patience::Until);
        self.send_all(values.into(), patience, Halt::Timeout)
    }

    /// `late` is what it is called when patience runs out.
    fn send_all(&self, mut values: Vec<T>, patience: Patience, late: Halt) -> Result<(), SendBatchError<T>> {
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
    fn offer_all(&self, values: &[T], sent: &mut usize, patience: Patience) -> Result<(), Unsent> {
        let span = values.len().min(MAX_SPAN);
        let mut rooms: Vec<C::Room> = std::iter::repeat_with(C::room).take(span).collect();
        while *sent < values.len() {
            self.ready().map_err(Unsent::Failed)?;
            let mut trouble = Ok(());
            let mut bulky = None;
            let mut staged = Vec::with_capacity(span);
            for (value, room) in values[*sent..].iter().zip(&mut rooms) {
                match C::encode(value, room, self.end.limits()) {
                    Ok(message) if C::bulk(&message, self.end.limit()).is_some() => {
                        bulky = Some(message);
                        break;
                    }
                    Ok(message) => staged.push(message),
                    Err(refusal) => {
                        trouble = Err(Unsent::Failed(self.refused(refusal)));
                        break;
                    }
                }
            }
            let mut rest = &staged[..];
            while !rest.is_empty() {
                let attempt = || self.end.push_batch::<T, C>(rest);
                let pushed = attempt().or_else(|miss| self.end.retry(miss, patience, attempt));
                match (pushed, patience) {
                    (Ok((first, count)), _) => {
                        self.end.done(count);
                        *sent += count;
                        let (pushed, unsent) = rest.split_at(count);
                        for (ticket, message) in (first..).zip(pushed) {
                            if let Some(deposit) = C::deposit(message) {
                                self.end.leave_deposit(deposit, ticket);
                            }
                        }
                        rest = unsent;
                    }
                    (Err(Stop::Late), Patience::Forever) => {}
                    (Err(stop), _) => return Err(stop.into()),
                }
            }
            if let Some((bytes, flags)) = bulky.as_ref().and_then(|m| C::bulk(m, self.end.limit())) {
                let ticket = self.offer_bulk(bytes, flags, patience)?;
                *sent += 1;
                if let Some(deposit) = bulky.as_ref().and_then(|message| C::deposit(message)) {
                    self.end.leave_deposit(deposit, ticket);
                }
            }
            trouble?;
        }
        Ok(())
    }

    /// One message, with all its waiting.
    #[inline(always)]
    fn offer(&self, value: &T, patience: Patience) -> Result<(), Unsent> {
        self.ready().map_err(Unsent::Failed)?;
        let mut room = C::room();
        let message = C::encode(value, &mut room, self.end.limits())
            .map_err(|refusal| Unsent::Failed(self.refused(refusal)))?;
        let ticket = if let Some((bytes, flags)) = C::bulk(&message, self.end.limit()) {
            self.offer_bulk(bytes, flags, patience)?
        } else {
            let attempt = || self.end.push::<T, C>(&message);
            let ticket = match attempt() {
                Ok(ticket) => ticket,
                Err(miss) => self.end.retry(miss, patience, attempt)?,
            };
            self.end.done(1);
            ticket
        };
        if let Some(deposit) = C::deposit(&message) {
            self.end.leave_deposit(deposit, ticket);
        }
        Ok(())
    }

    /// One message that does not fit a slot, with all its waiting; returns its ticket.
    #[cold]
    fn offer_bulk(&self, bytes: &[u8], flags: u32, patience: Patience) -> Result<u64, Unsent> {
        let patience = patience.over_all();
        self.end.look_for_slot(patience)?;
        let mut held = self.end.claim_run(bytes.len(), patience)?;
        held.fill(bytes);
        let ticket = self.end.push_held(&mut held, flags, patience)?;
        self.end.done(1);
        Ok(ticket)
    }

    #[inline(always)]
    fn ready(&self) -> Result<(), Failure> {
        self.end.ready_to_send()
    }

    #[cold]
    fn refused(&self, refusal: Refusal) -> Failure {
        match refusal {
            Refusal::TooLarge(len) => Failure::TooLarge { len, limit: self.end.longest() },
            Refusal::Encode(reason) => Failure::Encode(reason),
        }
    }
}

impl<T, C> Sender<T, C> {
    /// How many messages are in the queue, those included that are being sent. May be stale at once. 0 in a forked
    /// child that cannot attach.
    pub fn len(&self) -> usize {
        self.end.check().map_or(0, |()| self.end.len())
    }

    /// Whether no message is in the queue. May be stale at once.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the queue has as many messages as its capacity. The byte budget is another bound: while this says `false`, there
    /// may be no room for a message that does not fit a slot. May be stale at once.
    pub fn is_full(&self) -> bool {
        self.len() >= self.capacity()
    }

    /// How many messages the queue holds at most.
    pub fn capacity(&self) -> usize {
        self.end.capacity()
    }

    /// The longest message in bytes: what a slot takes, or all of the byte budget.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (tx, _rx) = ipc_queue::bounded::<Vec<u8>>(4)?;
    /// assert_eq!(tx.max_message_len(), 256 << 20);
    /// # Ok(()) }
    /// ```
    pub fn max_message_len(&self) -> usize {
        self.end.longest()
    }

    /// Closes the queue for everybody, in all processes: from here on every send fails at once with `Closed`, those that
    /// sleep included, and receivers that have received everything get `Closed` too. Returns whether this call did it:
    /// `false` if the queue was closed already, or in a forked child that cannot attach. Never blocks.
    ///
    /// A send that returns `Ok` is received although the queue was closed meanwhile, if anybody goes on receiving. If the
    /// other side is gone too, calls say `Closed`, not `Disconnected`.
    ///
    /// # If the peer dies
    ///
    /// A process that is killed in here has closed the queue or has not; if it has, sleepers may find out only when they
    /// look after their peers, within about 100 ms.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (tx, rx) = ipc_queue::bounded::<u32>(4)?;
    /// tx.send(7)?;
    /// assert!(tx.close());
    /// let error = tx.send(8).unwrap_err();
    /// assert!(error.is_closed());
    /// assert_eq!(error.into_inner(), 8);
    /// assert_eq!(rx.recv()?, 7);
    /// assert!(rx.recv().unwrap_err().is_closed());
    /// # Ok(()) }
    /// ```
    pub fn close(&self) -> bool {
        self.end.close()
    }

    /// Whether the queue was closed. `true` stays true. `false` in a forked child that cannot attach.
    pub fn is_closed(&self) -> bool {
        self.end.is_closed()
    }
}

impl<T, C> Clone for Sender<T, C> {
    fn clone(&self) -> Self {
        Self { end: self.end.clone(), _messages: PhantomData }
    }
}

impl<T, C> fmt::Debug for Sender<T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.end.fmt_as("Sender", f)
    }
}

impl<T, C: Format<T>> Serialize for Sender<T, C> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.end.serialize(&Shape::of::<T, C>(), serializer)
    }
}

impl<'de, T, C: Format<T>> Deserialize<'de> for Sender<T, C> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        End::deserialize(deserializer, &Shape::of::<T, C>(), Side::Sender).map(Self::new)
    }
}

pollable! {
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use rustix::event::{PollFd, PollFlags, poll};
    ///
    /// let (tx, rx) = ipc_queue::bounded::<u32>(1)?;
    /// tx.send(1)?;
    /// assert!(tx.try_send(2).unwrap_err().is_full());
    /// std::thread::spawn(move || [rx.recv(), rx.recv()]);
    /// loop {
    ///     // For reading: the descriptor is readable when there is room.
    ///     poll(&mut [PollFd::new(&tx, PollFlags::IN)], None)?;
    ///     match tx.try_send(2) {
    ///         Err(error) if error.is_full() => {}
    ///         sent => break sent?,
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    Sender<T, C>: "sending a message would not block, or would fail because nobody would receive it. After a message found too \
        little memory, also whenever some was freed"
}
