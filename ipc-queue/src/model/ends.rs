//! The handles of a model's queue: the native ones' names and signatures, as far as a model has them.

use super::codec::{Format, Postcard, Verbatim};
use super::queue::{End, Patience, Stop};
use crate::error::{
    Dry, Error, Failure, RecvError, RecvTimeoutError, SendError, SendTimeoutError, TryRecvError, TrySendError,
};
use serde::de::{DeserializeOwned, Error as _};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use shm_core::Plain;
use std::fmt;
use std::iter::FusedIterator;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

/// Creates a queue of up to `capacity` messages of any serde type, of up to 240 bytes each.
///
/// # Errors
///
/// [`Error`]: the capacity is out of range.
pub fn bounded<T: Serialize + DeserializeOwned>(capacity: usize) -> Result<(Sender<T>, Receiver<T>), Error> {
    create(capacity)
}

/// Creates a queue of up to `capacity` messages of plain old data.
///
/// # Errors
///
/// As [`bounded`].
pub fn bounded_plain<T: Plain>(capacity: usize) -> Result<(PlainSender<T>, PlainReceiver<T>), Error> {
    create(capacity)
}

type Ends<T, C> = (Sender<T, C>, Receiver<T, C>);

fn create<T, C: Format<T>>(capacity: usize) -> Result<Ends<T, C>, Error> {
    let (sender, receiver) = End::pair(capacity, C::LIMIT)?;
    let sender = Sender { end: sender, _messages: PhantomData };
    Ok((sender, Receiver { end: receiver, _messages: PhantomData }))
}

/// The sending end of a model's queue of messages of type `T`.
pub struct Sender<T, C = Postcard> {
    end: End,
    _messages: PhantomData<fn(T) -> C>,
}

/// A [`Sender`] of plain old data.
pub type PlainSender<T> = Sender<T, Verbatim>;

/// Why one attempt to send did not.
enum Unsent {
    Late,
    Failed(Failure),
}

impl<T, C: Format<T>> Sender<T, C> {
    /// Sends a message. Blocks while the queue is full.
    ///
    /// # Errors
    ///
    /// [`SendError`] with the message.
    pub fn send(&self, value: T) -> Result<(), SendError<T>> {
        self.offer(&value, Patience::Forever).map_err(|unsent| match unsent {
            Unsent::Failed(failure) => SendError::from_failure(failure, value),
            Unsent::Late => unreachable!("without a deadline nothing is late"),
        })
    }

    /// Sends a message if there is room now.
    ///
    /// # Errors
    ///
    /// [`TrySendError`] with the message.
    pub fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
        self.offer(&value, Patience::None).map_err(|unsent| match unsent {
            Unsent::Failed(failure) => TrySendError::from_failure(failure, value),
            Unsent::Late => TrySendError::Full(value),
        })
    }

    /// Sends a message if there is room before it would have to sleep: in a model any timeout is over then.
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError`] with the message.
    pub fn send_timeout(&self, value: T, _timeout: Duration) -> Result<(), SendTimeoutError<T>> {
        self.offer(&value, Patience::Some).map_err(|unsent| match unsent {
            Unsent::Failed(failure) => SendTimeoutError::from_failure(failure, value),
            Unsent::Late => SendTimeoutError::Timeout(value),
        })
    }

    /// As [`Sender::send_timeout`].
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError`] with the message.
    pub fn send_until(&self, value: T, _deadline: Instant) -> Result<(), SendTimeoutError<T>> {
        self.send_timeout(value, Duration::ZERO)
    }

    fn offer(&self, value: &T, patience: Patience) -> Result<(), Unsent> {
        let bytes = C::encode(value).map_err(|reason| Unsent::Failed(Failure::Encode(reason)))?;
        let (len, limit) = (bytes.len(), self.end.limit());
        if len > limit {
            return Err(Unsent::Failed(Failure::TooLarge { len, limit }));
        }
        self.end.push(&bytes, patience).map_err(|stop| match stop {
            Stop::Late => Unsent::Late,
            Stop::Disconnected => Unsent::Failed(Failure::Disconnected),
            Stop::Closed => Unsent::Failed(Failure::Closed),
            Stop::Exhausted => Unsent::Failed(Failure::Exhausted),
        })
    }
}

/// The receiving end of a model's queue of messages of type `T`.
pub struct Receiver<T, C = Postcard> {
    end: End,
    _messages: PhantomData<fn(C) -> T>,
}

/// A [`Receiver`] of plain old data.
pub type PlainReceiver<T> = Receiver<T, Verbatim>;

/// Why one attempt to receive did not.
enum Unreceived {
    Late,
    Dry(Dry),
}

impl<T, C: Format<T>> Receiver<T, C> {
    /// Takes the next message. Blocks while there is none.
    ///
    /// # Errors
    ///
    /// [`RecvError`]: nothing is left, and nobody is there who could send or the queue is closed; or the message does not
    /// decode.
    pub fn recv(&self) -> Result<T, RecvError> {
        let bytes = self.take(Patience::Forever).map_err(|unreceived| match unreceived {
            Unreceived::Dry(dry) => RecvError::from(dry),
            Unreceived::Late => unreachable!("without a deadline nothing is late"),
        })?;
        Ok(C::decode(&bytes)?)
    }

    /// Takes the next message if there is one now.
    ///
    /// # Errors
    ///
    /// [`TryRecvError`].
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        let bytes = self.take(Patience::None).map_err(|unreceived| match unreceived {
            Unreceived::Dry(dry) => TryRecvError::from(dry),
            Unreceived::Late => TryRecvError::Empty,
        })?;
        Ok(C::decode(&bytes)?)
    }

    /// Takes the next message if there is one before it would have to sleep: in a model any timeout is over then.
    ///
    /// # Errors
    ///
    /// [`RecvTimeoutError`].
    pub fn recv_timeout(&self, _timeout: Duration) -> Result<T, RecvTimeoutError> {
        let bytes = self.take(Patience::Some).map_err(|unreceived| match unreceived {
            Unreceived::Dry(dry) => RecvTimeoutError::from(dry),
            Unreceived::Late => RecvTimeoutError::Timeout,
        })?;
        Ok(C::decode(&bytes)?)
    }

    /// As [`Receiver::recv_timeout`].
    ///
    /// # Errors
    ///
    /// [`RecvTimeoutError`].
    pub fn recv_until(&self, _deadline: Instant) -> Result<T, RecvTimeoutError> {
        self.recv_timeout(Duration::ZERO)
    }

    /// The messages until disconnect, or until the queue is closed and empty; blocks for each.
    pub fn iter(&self) -> Iter<'_, T, C> {
        Iter { receiver: self, ended: false }
    }

    /// The messages that are there.
    pub fn try_iter(&self) -> TryIter<'_, T, C> {
        TryIter { receiver: self }
    }

    fn take(&self, patience: Patience) -> Result<Vec<u8>, Unreceived> {
        self.end.pop(patience).map_err(|stop| match stop {
            Stop::Late => Unreceived::Late,
            Stop::Disconnected => Unreceived::Dry(Dry::Disconnected),
            Stop::Closed => Unreceived::Dry(Dry::Closed),
            Stop::Exhausted => Unreceived::Dry(Dry::Exhausted),
        })
    }
}

/// The messages of a receiver until disconnect; see [`Receiver::iter`].
#[derive(Debug)]
pub struct Iter<'a, T, C: Format<T> = Postcard> {
    receiver: &'a Receiver<T, C>,
    ended: bool,
}

/// The messages of a receiver until disconnect, owning it.
#[derive(Debug)]
pub struct IntoIter<T, C: Format<T> = Postcard> {
    receiver: Receiver<T, C>,
    ended: bool,
}

fn next<T, C: Format<T>>(receiver: &Receiver<T, C>, ended: &mut bool) -> Option<Result<T, RecvError>> {
    if *ended {
        return None;
    }
    let item = receiver.recv();
    *ended = !matches!(item, Ok(_) | Err(RecvError::Decode(_)));
    match item {
        Err(RecvError::Disconnected | RecvError::Closed) => None,
        item => Some(item),
    }
}

impl<T, C: Format<T>> Iterator for Iter<'_, T, C> {
    type Item = Result<T, RecvError>;

    fn next(&mut self) -> Option<Self::Item> {
        next(self.receiver, &mut self.ended)
    }
}

impl<T, C: Format<T>> FusedIterator for Iter<'_, T, C> {}

impl<T, C: Format<T>> Iterator for IntoIter<T, C> {
    type Item = Result<T, RecvError>;

    fn next(&mut self) -> Option<Self::Item> {
        next(&self.receiver, &mut self.ended)
    }
}

impl<T, C: Format<T>> FusedIterator for IntoIter<T, C> {}

impl<'a, T, C: Format<T>> IntoIterator for &'a Receiver<T, C> {
    type Item = Result<T, RecvError>;
    type IntoIter = Iter<'a, T, C>;

    fn into_iter(self) -> Iter<'a, T, C> {
        self.iter()
    }
}

impl<T, C: Format<T>> IntoIterator for Receiver<T, C> {
    type Item = Result<T, RecvError>;
    type IntoIter = IntoIter<T, C>;

    fn into_iter(self) -> IntoIter<T, C> {
        IntoIter { receiver: self, ended: false }
    }
}

/// The messages that are there; see [`Receiver::try_iter`].
#[derive(Debug)]
pub struct TryIter<'a, T, C: Format<T> = Postcard> {
    receiver: &'a Receiver<T, C>,
}

impl<T, C: Format<T>> Iterator for TryIter<'_, T, C> {
    type Item = Result<T, RecvError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.receiver.try_recv() {
            Ok(value) => Some(Ok(value)),
            Err(TryRecvError::Decode(error)) => Some(Err(error.into())),
            Err(_) => None,
        }
    }
}

/// What both ends have.
macro_rules! handle {
    ($($name:ident)*) => {
        $(
            impl<T, C> $name<T, C> {
                /// How many messages are in the queue, those included that are being sent. May be stale at once.
                pub fn len(&self) -> usize {
                    self.end.len()
                }

                /// Whether no message is in the queue. May be stale at once.
                pub fn is_empty(&self) -> bool {
                    self.len() == 0
                }

                /// Whether there is no room. May be stale at once.
                pub fn is_full(&self) -> bool {
                    self.len() >= self.capacity()
                }

                /// How many messages the queue holds at most.
                pub fn capacity(&self) -> usize {
                    self.end.capacity()
                }

                /// The longest message in bytes.
                pub fn max_message_len(&self) -> usize {
                    self.end.limit()
                }

                /// Closes the queue for everybody: every send fails from here on, those that sleep included, and so does
                /// receiving once everything has been received. Returns whether this call did it. Never blocks.
                pub fn close(&self) -> bool {
                    self.end.close()
                }

                /// Whether the queue was closed. `true` stays true.
                pub fn is_closed(&self) -> bool {
                    self.end.is_closed()
                }
            }

            impl<T, C> Clone for $name<T, C> {
                fn clone(&self) -> Self {
                    Self { end: self.end.clone(), _messages: PhantomData }
                }
            }

            impl<T, C> fmt::Debug for $name<T, C> {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    // Nothing that changes: looking at it would be a step of the model.
                    f.debug_struct(stringify!($name)).field("capacity", &self.capacity()).finish_non_exhaustive()
                }
            }

            /// Fails: threads of a model share a handle's clones as they are.
            impl<T, C> Serialize for $name<T, C> {
                fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                    Err(S::Error::custom("handles of a model do not travel"))
                }
            }

            /// Fails: threads of a model share a handle's clones as they are.
            impl<'de, T, C> Deserialize<'de> for $name<T, C> {
                fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
                    Err(D::Error::custom("handles of a model do not travel"))
                }
            }
        )*
    };
}

handle! { Sender Receiver }
