//! The receiving end.

mod iter;

pub use iter::{Drain, IntoIter, Iter, TryIter};

use crate::codec::{Format, Postcard, Verbatim};
use crate::end::{End, Shape};
use crate::error::{DecodeError, Dry, RecvBatchError, RecvError, RecvTimeoutError, TryRecvError};
use crate::layout::Side;
use crate::pollable::pollable;
use crate::ring::MAX_SPAN;
use crate::wait::{Patience, Stop, forever};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

/// The receiving end of a queue of messages of type `T`.
///
/// Clones are further receivers of the same queue: each message goes to one of them. All operations take `&self`;
/// a clone per thread is faster than a shared handle. The messages of one sender arrive in the order in which it
/// sent them.
///
/// # If the peer dies
///
/// Nothing that was sent is lost with its sender, and nothing arrives torn or twice. Of a receiver that dies, at most
/// the message or batch that it was taking is lost. When no living process holds a sender and nothing is left,
/// receiving fails. A process that is stopped while it sends is alive: messages behind its own wait for it.
///
/// # Across processes
///
/// A receiver can be serialised into arguments of processes and tasks, and works there like a clone. A forked
/// child has a copy of every receiver, which attaches at its first use; only after a fork that skipped the handlers of
/// `pthread_atfork`, or where attaching fails, does every operation say so.
///
/// What another process puts into the queue is decoded by the `Deserialize` of `T`. Where the other process is not
/// trusted, choose a `T` whose decoding is bounded by the length of the message: elements without bytes (`Vec<()>`)
/// let a few bytes ask for a very long loop, and a recursive type lets them ask for a deep stack.
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (tx, rx) = ipc_queue::bounded::<u64>(16)?;
/// std::thread::spawn(move || (0..100).try_for_each(|i| tx.send(i)));
/// let mut sum = 0;
/// for number in rx.iter() {                 // ends when every sender is gone
///     sum += number?;
/// }
/// assert_eq!(sum, 4950);
/// # Ok(()) }
/// ```
pub struct Receiver<T, C = Postcard> {
    end: End,
    _messages: PhantomData<fn(C) -> T>,
}

/// A [`Receiver`] of plain old data.
pub type PlainReceiver<T> = Receiver<T, Verbatim>;

/// The two ways of not receiving: patience ran out (`None`), or worse.
pub(crate) type Nothing = Option<Dry>;

pub(crate) fn nothing(stop: Stop) -> Nothing {
    match stop {
        Stop::Late => None,
        Stop::Disconnected => Some(Dry::Disconnected),
        Stop::Closed => Some(Dry::Closed),
        Stop::Exhausted => Some(Dry::Exhausted),
        Stop::Forked => Some(Dry::Forked),
    }
}

impl<T, C: Format<T>> Receiver<T, C> {
    pub(crate) fn new(end: End) -> Self {
        Self { end, _messages: PhantomData }
    }

    /// Receives a message. Blocks while the queue is empty; woken when one is sent, or when the last sender is gone
    /// (dropped: at once; killed: within about 100 ms).
    ///
    /// # Errors
    ///
    /// [`RecvError::Disconnected`] when nothing is left and no living process holds a sender; [`RecvError::Closed`] when
    /// nothing is left and the queue was closed;
    /// [`RecvError::Decode`] for a message that is not a `T`, or whose handles could not be fetched: it is taken, and the
    /// next call goes on behind it.
    ///
    /// # Panics
    ///
    /// If the `Deserialize` of `T` panics; the message is lost.
    ///
    /// # If the peer dies
    ///
    /// What a dead sender left half done is cleared away here.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (tx, rx) = ipc_queue::bounded::<u32>(4)?;
    /// tx.send(7)?;
    /// drop(tx);
    /// assert_eq!(rx.recv()?, 7);
    /// assert!(rx.recv().unwrap_err().is_disconnected());
    /// # Ok(()) }
    /// ```
    #[inline]
    pub fn recv(&self) -> Result<T, RecvError> {
        let mut message = C::blank();
        forever(|patience| self.take(&mut message, patience).map_err(nothing))?;
        self.open(&mut message)
    }

    /// Receives a message if one is there now. Never blocks, unless the message has handles: they are fetched from the
    /// process that sent it, for at most 5 seconds. Lock-free otherwise.
    ///
    /// # Errors
    ///
    /// [`TryRecvError::Empty`], or what [`Receiver::recv`] fails for.
    ///
    /// # If the peer dies
    ///
    /// As [`Receiver::recv`]. A receiver that only polls asks the system about the senders once a millisecond. After a
    /// death one call may take long: it looks at every slot of the queue, under a lock of this process that another
    /// thread may hold for the same work.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (tx, rx) = ipc_queue::bounded::<u32>(4)?;
    /// assert!(rx.try_recv().unwrap_err().is_empty());
    /// tx.send(7)?;
    /// assert_eq!(rx.try_recv()?, 7);
    /// # Ok(()) }
    /// ```
    #[inline]
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        let mut message = C::blank();
        match self.take(&mut message, Patience::None) {
            Ok(()) => self.open(&mut message),
            Err(stop) => Err(nothing(stop).map_or(TryRecvError::Empty, TryRecvError::from)),
        }
    }

    /// Receives a message. Blocks while the queue is empty, up to `timeout`; woken as [`Receiver::recv`].
    /// The handles of a message that came in time are fetched afterwards, which may take 5 seconds more.
    ///
    /// # Errors
    ///
    /// [`RecvTimeoutError::Timeout`], or what [`Receiver::recv`] fails for.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (_tx, rx) = ipc_queue::bounded::<u32>(4)?;
    /// assert!(rx.recv_timeout(Duration::from_millis(1)).unwrap_err().is_timeout());
    /// # Ok(()) }
    /// ```
    pub fn recv_timeout(&self, timeout: Duration) -> Result<T, RecvTimeoutError> {
        self.recv_patiently(Patience::For(timeout))
    }

    /// Receives a message. Blocks while the queue is empty, until `deadline`; woken as [`Receiver::recv`].
    /// Handles are fetched as by [`Receiver::recv_timeout`].
    ///
    /// # Errors
    ///
    /// As [`Receiver::recv_timeout`].
    pub fn recv_until(&self, deadline: Instant) -> Result<T, RecvTimeoutError> {
        self.recv_patiently(Patience::Until(deadline))
    }

    fn recv_patiently(&self, patience: Patience) -> Result<T, RecvTimeoutError> {
        let mut message = C::blank();
        match self.take(&mut message, patience) {
            Ok(()) => self.open(&mut message),
            Err(stop) => Err(nothing(stop).map_or(RecvTimeoutError::Timeout, RecvTimeoutError::from)),
        }
    }

    /// Receives up to `max` messages: blocks for the first as [`Receiver::recv`], then takes what is there, up to 64
    /// with one step. Empty only if `max` is 0.
    ///
    /// # Errors
    ///
    /// As [`Receiver::recv`]; if some messages do not decode, [`RecvBatchError::Decode`] holds the others.
    ///
    /// # Panics
    ///
    /// If the `Deserialize` of `T` panics; the messages of that step are lost.
    ///
    /// # If the peer dies
    ///
    /// A receiver that dies in here takes the messages of one step with it.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (tx, rx) = ipc_queue::bounded::<u32>(4)?;
    /// tx.send_batch([1, 2, 3])?;
    /// assert_eq!(rx.recv_batch(2)?, [1, 2]);
    /// assert_eq!(rx.recv_batch(2)?, [3]);
    /// # Ok(()) }
    /// ```
    pub fn recv_batch(&self, max: usize) -> Result<Vec<T>, RecvBatchError<T>> {
        forever(|patience| self.take_batch(max, patience).map_err(Some)?.ok_or(None))
    }

    /// Receives up to `max` messages that are there now, none if there are none. Never blocks,
    /// unless messages have handles: each of them is fetched as by [`Receiver::try_recv`].
    ///
    /// # Errors
    ///
    /// As [`Receiver::recv_batch`].
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (_tx, rx) = ipc_queue::bounded::<u32>(4)?;
    /// assert!(rx.try_recv_batch(10)?.is_empty());
    /// # Ok(()) }
    /// ```
    pub fn try_recv_batch(&self, max: usize) -> Result<Vec<T>, RecvBatchError<T>> {
        Ok(self.take_batch(max, Patience::None)?.unwrap_or_default())
    }

    /// Receives up to `max` messages: blocks for the first up to `timeout`, then takes what is there, as
    /// [`Receiver::recv_batch`]. Empty if none came in time, or if `max` is 0. Woken as [`Receiver::recv`]. The handles of
    /// each message are fetched as by [`Receiver::recv_timeout`].
    ///
    /// # Errors
    ///
    /// As [`Receiver::recv_batch`].
    ///
    /// # Panics
    ///
    /// As [`Receiver::recv_batch`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (tx, rx) = ipc_queue::bounded::<u32>(4)?;
    /// assert!(rx.recv_batch_timeout(10, Duration::from_millis(1))?.is_empty());
    /// tx.send_batch([1, 2])?;
    /// assert_eq!(rx.recv_batch_timeout(10, Duration::from_millis(1))?, [1, 2]);
    /// # Ok(()) }
    /// ```
    pub fn recv_batch_timeout(&self, max: usize, timeout: Duration) -> Result<Vec<T>, RecvBatchError<T>> {
        Ok(self.take_batch(max, Patience::For(timeout))?.unwrap_or_default())
    }

    /// One message, with all its waiting.
    #[inline(always)]
    fn take(&self, message: &mut C::Message, patience: Patience) -> Result<(), Stop> {
        self.end.check()?;
        if let Err(miss) = self.end.pop::<T, C>(message) {
            self.end.retry(miss, patience, || self.end.pop::<T, C>(message))?;
        }
        self.end.done(1);
        Ok(())
    }

    /// Decodes a message that was taken.
    #[inline(always)]
    fn open<E: From<DecodeError>>(&self, message: &mut C::Message) -> Result<T, E> {
        if C::is_special(message) {
            return self.open_special(message).map_err(E::from);
        }
        C::decode(message, self.end.limit())
    }

    /// Decodes a message that lies in chunks, or has handles, for which [`End::take_in_hand`] has counted.
    #[cold]
    fn open_special(&self, message: &mut C::Message) -> Result<T, DecodeError> {
        let hand = C::has_handles(message).then(|| self.end.hand());
        let value = if C::is_bulky(message) {
            let bulky = C::take_bulky(message).ok_or_else(DecodeError::reference)?;
            // The chunks are free before the user's code runs.
            let bytes = self.end.hold(bulky).copy()?;
            C::decode_fetched(message, bytes)
        } else {
            C::decode_parcel(message, self.end.limit())
        };
        value.map_err(|error| error.with_hand(hand))
    }

    /// Messages of one step, with all its waiting; without patience, only what the ring has at once.
    #[inline(always)]
    fn take_step(&self, messages: &mut [C::Message], patience: Option<Patience>) -> Result<usize, Stop> {
        let mut attempt = || self.end.pop_batch::<T, C>(messages);
        let taken = match (attempt(), patience) {
            (Ok(taken), _) => taken,
            (Err(_), None) => return Err(Stop::Late),
            (Err(miss), Some(patience)) => self.end.retry(miss, patience, attempt)?,
        };
        self.end.done(taken);
        Ok(taken)
    }

    /// Decodes messages that were taken.
    #[inline(always)]
    fn open_all(&self, messages: &mut [C::Message], mut each: impl FnMut(Result<T, DecodeError>)) {
        let mut unopened = Unopened::<T, C> { end: &self.end, messages };
        while let Some(message) = unopened.next() {
            each(self.open(message));
        }
    }

    /// Up to `max` messages; `None` if patience ran out before the first.
    fn take_batch(&self, max: usize, patience: Patience) -> Result<Option<Vec<T>>, RecvBatchError<T>> {
        self.end.check().map_err(|_| Dry::Forked)?;
        let span = max.min(MAX_SPAN).min(self.capacity());
        let mut messages: Vec<C::Message> = Vec::with_capacity(span);
        let (mut received, mut failed) = (Vec::with_capacity(span), Vec::new());
        loop {
            let wanted = max - received.len() - failed.len();
            messages.resize_with(wanted.min(span), C::blank);
            let first = received.is_empty() && failed.is_empty();
            let taken = match self.take_step(&mut messages, first.then_some(patience)) {
                Err(stop) if first => return nothing(stop).map_or(Ok(None), |dry| Err(dry.into())),
                Err(_) | Ok(0) => break,
                Ok(taken) => taken,
            };
            self.open_all(&mut messages[..taken], |message| match message {
                Ok(value) => received.push(value),
                Err(error) => failed.push(error),
            });
            if taken < messages.len() {
                break;
            }
        }
        if failed.is_empty() { Ok(Some(received)) } else { Err(RecvBatchError::Decode { received, failed }) }
    }

    /// The messages to come, until every sender is gone or the queue is closed, and nothing is left. Blocks for each as
    /// [`Receiver::recv`]. A message that does not decode is an `Err` item, and the iteration goes on.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (tx, rx) = ipc_queue::bounded::<char>(4)?;
    /// tx.send_batch(['a', 'b'])?;
    /// drop(tx);
    /// assert_eq!(rx.iter().collect::<Result<String, _>>()?, "ab");
    /// # Ok(()) }
    /// ```
    pub fn iter(&self) -> Iter<'_, T, C> {
        Iter { receiver: self, ended: false }
    }

    /// The messages that are there now. Never blocks, unless a message has handles (see [`Receiver::try_recv`]); ends when
    /// the queue is empty. A message that does not decode is an `Err` item, and the iteration goes on.
    pub fn try_iter(&self) -> TryIter<'_, T, C> {
        TryIter { receiver: self }
    }

    /// Empties the queue of what is in it now: the messages that are there at the call, taken up to 64 with one step. Never
    /// blocks, unless a message has handles (see [`Receiver::try_recv`]). A message that does not decode is an `Err` item, and the
    /// iteration goes on.
    ///
    /// It differs from [`Receiver::try_iter`] in two ways. It ends, however fast others send: after as many messages as the
    /// queue has at the call, or earlier if others take some or one is not published yet. And it takes messages ahead: those
    /// that were taken and not handed out yet are dropped with the iterator, up to 63. Who may stop in between wants `try_iter`.
    ///
    /// # If the peer dies
    ///
    /// As [`Receiver::try_recv`]; a receiver that dies in here takes the messages of one step with it.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (tx, rx) = ipc_queue::bounded::<u32>(4)?;
    /// tx.send_batch([1, 2, 3])?;
    /// for number in rx.drain() {
    ///     tx.send(number? + 10)?;               // for the next time
    /// }
    /// assert_eq!(rx.drain().collect::<Result<Vec<_>, _>>()?, [11, 12, 13]);
    /// # Ok(()) }
    /// ```
    pub fn drain(&self) -> Drain<'_, T, C> {
        Drain::new(self)
    }
}

impl<T, C: Format<T>> Receiver<T, C> {
    /// Tries again to fetch the handles of a message whose [`DecodeError`] is
    /// [temporary](DecodeError::is_temporary). Blocks for the process that sent it, at most for 5 seconds.
    ///
    /// # Errors
    ///
    /// As [`Receiver::recv`] for the message; an error of another kind comes back as it is.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use ipc_queue::{Receiver, RecvError, Sender};
    /// # let (_tx, rx) = ipc_queue::bounded::<Sender<u32>>(4)?;
    /// let message = match rx.recv() {
    ///     Err(RecvError::Decode(error)) if error.is_temporary() => rx.redeem(error)?,
    ///     message => message?,
    /// };
    /// # Ok(()) }
    /// ```
    pub fn redeem(&self, error: DecodeError) -> Result<T, DecodeError> {
        let (bytes, claim, hand) = error.retry()?;
        C::redeem(bytes, claim).map_err(|error| error.with_hand(hand))
    }
}

/// Messages that were taken and not decoded yet.
struct Unopened<'a, T, C: Format<T>> {
    end: &'a End,
    messages: &'a mut [C::Message],
}

impl<'a, T, C: Format<T>> Unopened<'a, T, C> {
    #[inline(always)]
    fn next(&mut self) -> Option<&'a mut C::Message> {
        let (first, rest) = std::mem::take(&mut self.messages).split_first_mut()?;
        self.messages = rest;
        Some(first)
    }
}

impl<T, C: Format<T>> Drop for Unopened<'_, T, C> {
    fn drop(&mut self) {
        // There are some only if decoding another one has panicked.
        while let Some(message) = self.next() {
            if C::has_handles(message) {
                drop(self.end.hand());
            }
            if let Some(bulky) = C::take_bulky(message) {
                drop(self.end.hold(bulky));
            }
        }
    }
}

impl<T, C> Receiver<T, C> {
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
    /// let (_tx, rx) = ipc_queue::bounded_plain::<[u64; 3]>(4)?;
    /// assert_eq!(rx.max_message_len(), 24);
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
    /// assert!(rx.close());
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

impl<T, C> Clone for Receiver<T, C> {
    fn clone(&self) -> Self {
        Self { end: self.end.clone(), _messages: PhantomData }
    }
}

impl<T, C> fmt::Debug for Receiver<T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.end.fmt_as("Receiver", f)
    }
}

impl<T, C: Format<T>> Serialize for Receiver<T, C> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.end.serialize(&Shape::of::<T, C>(), serializer)
    }
}

impl<'de, T, C: Format<T>> Deserialize<'de> for Receiver<T, C> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        End::deserialize(deserializer, &Shape::of::<T, C>(), Side::Receiver).map(Self::new)
    }
}

pollable! {
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use rustix::event::{PollFd, PollFlags, poll};
    ///
    /// let (tx, rx) = ipc_queue::bounded::<u32>(4)?;
    /// std::thread::spawn(move || (0..10).try_for_each(|i| tx.send(i)));
    /// let mut sum = 0;
    /// loop {
    ///     match rx.try_recv() {
    ///         Ok(number) => sum += number,
    ///         Err(error) if error.is_empty() => {
    ///             // Beside other descriptors, as many as you like.
    ///             let mut polled = [PollFd::new(&rx, PollFlags::IN)];
    ///             poll(&mut polled, None)?;
    ///         }
    ///         Err(_) => break,                    // disconnected
    ///     }
    /// }
    /// assert_eq!(sum, 45);
    /// # Ok(()) }
    /// ```
    ///
    /// With tokio (its `AsyncFd` owns the handle, and wants to hear when there was nothing):
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use ipc_queue::{Receiver, TryRecvError};
    /// use tokio::io::Interest;
    /// use tokio::io::unix::AsyncFd;
    ///
    /// async fn recv(rx: &AsyncFd<Receiver<u32>>) -> Result<u32, TryRecvError> {
    ///     loop {
    ///         let mut guard = rx.readable().await.map_err(|_| TryRecvError::Empty)?;
    ///         match rx.get_ref().try_recv() {
    ///             Err(error) if error.is_empty() => guard.clear_ready(),
    ///             received => return received,
    ///         }
    ///     }
    /// }
    ///
    /// # let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    /// # runtime.block_on(async {
    /// let (tx, rx) = ipc_queue::bounded::<u32>(4)?;
    /// std::thread::spawn(move || (0..10).try_for_each(|i| tx.send(i)));
    /// let rx = AsyncFd::with_interest(rx, Interest::READABLE)?;
    /// for i in 0..10 {
    ///     assert_eq!(recv(&rx).await?, i);
    /// }
    /// assert!(recv(&rx).await.unwrap_err().is_disconnected());
    /// # Ok(()) })}
    /// ```
    Receiver<T, C>: "receiving a message would not block, or would fail because none will come"
}
