//! The errors of receiving.

use super::{CLOSED, DecodeError, EXHAUSTED, TAKEN};
use std::fmt;

const NO_SENDER: &str = "no living process holds a sender of the queue, and it is empty";

/// Why nothing was received, apart from there being nothing yet.
#[derive(Debug)]
pub(crate) enum Dry {
    Disconnected,
    Closed,
    Forked,
    Exhausted,
    Taken,
}

/// Defines the errors of receiving, which differ in one variant each.
macro_rules! recv_error {
    ($(#[$doc:meta])* $name:ident { $($(#[$own:meta])* $variant:ident, $predicate:ident, $text:literal;)? }) => {
        $(#[$doc])*
        #[derive(Debug)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$own])* $variant,)?
            /// Nothing is left, and no living process holds a sender.
            Disconnected,
            /// Nothing is left, and the queue was closed. A closed queue says this whether or not it has senders. Those made
            /// by [`spsc`](crate::spsc()) do not say so.
            Closed,
            /// A message was taken, but its bytes are not a value of this type. The queue goes on.
            Decode(DecodeError),
            /// This process was forked after it had got the handle, and cannot attach to the queue by itself.
            Forked,
            /// The queue has carried as many messages as it can number. A new one is needed.
            Exhausted,
            /// The end of a queue made by [`spsc`](crate::spsc()) is in use elsewhere: this one was sent there, or is a forked
            /// child's copy. Other queues do not say so.
            Taken,
        }

        impl $name {
            $(
                #[doc = concat!("Whether this is [`", stringify!($name), "::", stringify!($variant), "`].")]
                pub fn $predicate(&self) -> bool {
                    matches!(self, Self::$variant)
                }
            )?

            /// Whether nothing is left and no living process holds a sender.
            pub fn is_disconnected(&self) -> bool {
                matches!(self, Self::Disconnected)
            }

            /// Whether nothing is left and the queue was closed.
            pub fn is_closed(&self) -> bool {
                matches!(self, Self::Closed)
            }

            /// Whether a message was taken that is not a value of this type.
            pub fn is_decode(&self) -> bool {
                matches!(self, Self::Decode(_))
            }

            /// Whether this process was forked after it had got the handle, and cannot attach to the queue by itself.
            pub fn is_forked(&self) -> bool {
                matches!(self, Self::Forked)
            }

            /// Whether the queue has carried as many messages as it can number.
            pub fn is_exhausted(&self) -> bool {
                matches!(self, Self::Exhausted)
            }

            /// Whether this end is in use elsewhere; only ends of a queue made by [`spsc`](crate::spsc()) say so.
            pub fn is_taken(&self) -> bool {
                matches!(self, Self::Taken)
            }
        }

        impl From<Dry> for $name {
            fn from(dry: Dry) -> Self {
                match dry {
                    Dry::Disconnected => Self::Disconnected,
                    Dry::Closed => Self::Closed,
                    Dry::Forked => Self::Forked,
                    Dry::Exhausted => Self::Exhausted,
                    Dry::Taken => Self::Taken,
                }
            }
        }

        impl From<DecodeError> for $name {
            fn from(error: DecodeError) -> Self {
                Self::Decode(error)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$variant => f.write_str($text),)?
                    Self::Disconnected => f.write_str(NO_SENDER),
                    Self::Closed => f.write_str(CLOSED),
                    Self::Decode(error) => error.fmt(f),
                    Self::Forked => shm_core::fork::Forked.fmt(f),
                    Self::Exhausted => f.write_str(EXHAUSTED),
                    Self::Taken => f.write_str(TAKEN),
                }
            }
        }

        impl std::error::Error for $name {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                match self {
                    Self::Decode(error) => error.source(),
                    _ => None,
                }
            }
        }
    };
}

recv_error! {
    /// Why [`Receiver::recv`](crate::Receiver::recv) returned nothing.
    RecvError {}
}

recv_error! {
    /// Why [`Receiver::try_recv`](crate::Receiver::try_recv) returned nothing.
    TryRecvError {
        /// Nothing is there now.
        Empty, is_empty, "the queue is empty";
    }
}

recv_error! {
    /// Why [`Receiver::recv_timeout`](crate::Receiver::recv_timeout) returned nothing.
    RecvTimeoutError {
        /// Nothing came before the deadline.
        Timeout, is_timeout, "the queue stayed empty until the deadline";
    }
}

/// Why a batch could not be received whole. What did decode is handed over.
#[non_exhaustive]
pub enum RecvBatchError<T> {
    /// Nothing is left, and no living process holds a sender.
    Disconnected,
    /// Nothing is left, and the queue was closed. A closed queue says this whether or not it has senders. Those made by
    /// [`spsc`](crate::spsc()) do not say so.
    Closed,
    /// Some messages of the batch are not values of this type. All were taken; the queue goes on.
    Decode {
        /// The messages that are, in order.
        received: Vec<T>,
        /// The others, in order.
        failed: Vec<DecodeError>,
    },
    /// This process was forked after it had got the handle, and cannot attach to the queue by itself.
    Forked,
    /// The queue has carried as many messages as it can number. A new one is needed.
    Exhausted,
    /// The end of a queue made by [`spsc`](crate::spsc()) is in use elsewhere: this one was sent there, or is a forked
    /// child's copy. Other queues do not say so.
    Taken,
}

impl<T> RecvBatchError<T> {
    /// The messages that were received all the same.
    pub fn into_received(self) -> Vec<T> {
        match self {
            Self::Decode { received, .. } => received,
            _ => Vec::new(),
        }
    }

    /// Whether nothing is left and no living process holds a sender.
    pub fn is_disconnected(&self) -> bool {
        matches!(self, Self::Disconnected)
    }

    /// Whether nothing is left and the queue was closed.
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Closed)
    }

    /// Whether a message was taken that is not a value of this type.
    pub fn is_decode(&self) -> bool {
        matches!(self, Self::Decode { .. })
    }

    /// Whether this process was forked after it had got the handle, and cannot attach to the queue by itself.
    pub fn is_forked(&self) -> bool {
        matches!(self, Self::Forked)
    }

    /// Whether the queue has carried as many messages as it can number.
    pub fn is_exhausted(&self) -> bool {
        matches!(self, Self::Exhausted)
    }

    /// Whether this end is in use elsewhere; only ends of a queue made by [`spsc`](crate::spsc()) say so.
    pub fn is_taken(&self) -> bool {
        matches!(self, Self::Taken)
    }
}

impl<T> From<Dry> for RecvBatchError<T> {
    fn from(dry: Dry) -> Self {
        match dry {
            Dry::Disconnected => Self::Disconnected,
            Dry::Closed => Self::Closed,
            Dry::Forked => Self::Forked,
            Dry::Exhausted => Self::Exhausted,
            Dry::Taken => Self::Taken,
        }
    }
}

impl<T> fmt::Debug for RecvBatchError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disconnected => f.write_str("Disconnected"),
            Self::Closed => f.write_str("Closed"),
            Self::Decode { received, failed } => {
                f.debug_struct("Decode").field("received", &received.len()).field("failed", failed).finish()
            }
            Self::Forked => f.write_str("Forked"),
            Self::Exhausted => f.write_str("Exhausted"),
            Self::Taken => f.write_str("Taken"),
        }
    }
}

impl<T> fmt::Display for RecvBatchError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disconnected => f.write_str(NO_SENDER),
            Self::Closed => f.write_str(CLOSED),
            Self::Decode { received, failed } => {
                let total = received.len().saturating_add(failed.len());
                write!(f, "{} of {total} received messages do not decode", failed.len())
            }
            Self::Forked => shm_core::fork::Forked.fmt(f),
            Self::Exhausted => f.write_str(EXHAUSTED),
            Self::Taken => f.write_str(TAKEN),
        }
    }
}

impl<T> std::error::Error for RecvBatchError<T> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Decode { failed, .. } => failed.first().map(|error| error as _),
            _ => None,
        }
    }
}

impl From<RecvError> for TryRecvError {
    fn from(error: RecvError) -> Self {
        match error {
            RecvError::Disconnected => Self::Disconnected,
            RecvError::Closed => Self::Closed,
            RecvError::Decode(error) => Self::Decode(error),
            RecvError::Forked => Self::Forked,
            RecvError::Exhausted => Self::Exhausted,
            RecvError::Taken => Self::Taken,
        }
    }
}
