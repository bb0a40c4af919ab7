//! The errors of sending.

use super::{CLOSED, EXHAUSTED, EncodeError, TAKEN};
use std::fmt;

const NO_MEMORY: &str = "there is no memory left for a message of this length";
const NO_RECEIVER: &str = "no living process holds a receiver of the queue";

fn fmt_too_large(f: &mut fmt::Formatter<'_>, len: usize, limit: usize) -> fmt::Result {
    write!(f, "a message of {len} bytes is longer than the queue's limit of {limit}")
}

/// Defines the errors of sending, which differ in one variant each and hand the value back.
macro_rules! send_error {
    ($(#[$doc:meta])* $name:ident { $($(#[$own:meta])* $variant:ident, $predicate:ident, $text:literal;)? }) => {
        $(#[$doc])*
        #[non_exhaustive]
        pub enum $name<T> {
            $($(#[$own])* $variant(T),)?
            /// No living process holds a receiver, so nobody will ever take the message.
            Disconnected(T),
            /// The queue was closed. A closed queue says this whether or not it has receivers. Those made by
            /// [`spsc`](crate::spsc()) do not say so.
            Closed(T),
            /// The message is longer than any message of this queue: than a slot, and than the byte budget.
            TooLarge {
                /// The message.
                value: T,
                /// Its length in bytes.
                len: usize,
                /// The longest message of this queue, in bytes.
                limit: usize,
            },
            /// The message cannot be turned into bytes. No slot was used.
            Encode {
                /// The message.
                value: T,
                /// Why.
                reason: EncodeError,
            },
            /// The machine, or the control group of this process, has no memory for the message.
            OutOfMemory(T),
            /// This process was forked after it had got the handle, and cannot attach to the queue by itself.
            Forked(T),
            /// The queue has carried as many messages as it can number. A new one is needed.
            Exhausted(T),
            /// The end of a queue made by [`spsc`](crate::spsc()) is in use elsewhere: this one was sent there, or is a forked
            /// child's copy. Other queues do not say so.
            Taken(T),
        }

        impl<T> $name<T> {
            /// The message that was not sent.
            pub fn into_inner(self) -> T {
                match self {
                    $(Self::$variant(value) |)? Self::Disconnected(value)
                    | Self::Closed(value)
                    | Self::OutOfMemory(value)
                    | Self::Forked(value)
                    | Self::Exhausted(value)
                    | Self::Taken(value)
                    | Self::TooLarge { value, .. }
                    | Self::Encode { value, .. } => value,
                }
            }

            $(
                #[doc = concat!("Whether this is [`", stringify!($name), "::", stringify!($variant), "`].")]
                pub fn $predicate(&self) -> bool {
                    matches!(self, Self::$variant(_))
                }
            )?

            /// Whether no living process holds a receiver.
            pub fn is_disconnected(&self) -> bool {
                matches!(self, Self::Disconnected(_))
            }

            /// Whether the queue was closed.
            pub fn is_closed(&self) -> bool {
                matches!(self, Self::Closed(_))
            }

            /// Whether the message is longer than any message of this queue.
            pub fn is_too_large(&self) -> bool {
                matches!(self, Self::TooLarge { .. })
            }

            /// Whether the message cannot be turned into bytes.
            pub fn is_encode(&self) -> bool {
                matches!(self, Self::Encode { .. })
            }

            /// Whether there was no memory for the message.
            pub fn is_out_of_memory(&self) -> bool {
                matches!(self, Self::OutOfMemory(_))
            }

            /// Whether this process was forked after it had got the handle, and cannot attach to the queue by itself.
            pub fn is_forked(&self) -> bool {
                matches!(self, Self::Forked(_))
            }

            /// Whether the queue has carried as many messages as it can number.
            pub fn is_exhausted(&self) -> bool {
                matches!(self, Self::Exhausted(_))
            }

            /// Whether this end is in use elsewhere; only ends of a queue made by [`spsc`](crate::spsc()) say so.
            pub fn is_taken(&self) -> bool {
                matches!(self, Self::Taken(_))
            }

            pub(crate) fn from_failure(failure: Failure, value: T) -> Self {
                match failure {
                    Failure::Disconnected => Self::Disconnected(value),
                    Failure::Closed => Self::Closed(value),
                    Failure::TooLarge { len, limit } => Self::TooLarge { value, len, limit },
                    Failure::Encode(reason) => Self::Encode { value, reason },
                    Failure::OutOfMemory => Self::OutOfMemory(value),
                    Failure::Forked => Self::Forked(value),
                    Failure::Exhausted => Self::Exhausted(value),
                    Failure::Taken => Self::Taken(value),
                }
            }
        }

        impl<T> fmt::Debug for $name<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$variant(_) => f.write_str(concat!(stringify!($variant), "(..)")),)?
                    Self::Disconnected(_) => f.write_str("Disconnected(..)"),
                    Self::Closed(_) => f.write_str("Closed(..)"),
                    Self::TooLarge { len, limit, .. } => {
                        write!(f, "TooLarge {{ len: {len}, limit: {limit}, .. }}")
                    }
                    Self::Encode { reason, .. } => write!(f, "Encode {{ reason: {reason:?}, .. }}"),
                    Self::OutOfMemory(_) => f.write_str("OutOfMemory(..)"),
                    Self::Forked(_) => f.write_str("Forked(..)"),
                    Self::Exhausted(_) => f.write_str("Exhausted(..)"),
                    Self::Taken(_) => f.write_str("Taken(..)"),
                }
            }
        }

        impl<T> fmt::Display for $name<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$variant(_) => f.write_str($text),)?
                    Self::Disconnected(_) => f.write_str(NO_RECEIVER),
                    Self::Closed(_) => f.write_str(CLOSED),
                    Self::TooLarge { len, limit, .. } => fmt_too_large(f, *len, *limit),
                    Self::Encode { reason, .. } => reason.fmt(f),
                    Self::OutOfMemory(_) => f.write_str(NO_MEMORY),
                    Self::Forked(_) => shm_core::fork::Forked.fmt(f),
                    Self::Exhausted(_) => f.write_str(EXHAUSTED),
                    Self::Taken(_) => f.write_str(TAKEN),
                }
            }
        }

        impl<T> std::error::Error for $name<T> {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                match self {
                    Self::Encode { reason, .. } => reason.source(),
                    _ => None,
                }
            }
        }
    };
}

/// Why a message cannot be sent, now or later, apart from the value.
#[derive(Debug)]
pub(crate) enum Failure {
    Disconnected,
    Closed,
    TooLarge { len: usize, limit: usize },
    Encode(EncodeError),
    OutOfMemory,
    Forked,
    Exhausted,
    Taken,
}

send_error! {
    /// Why [`Sender::send`](crate::Sender::send) did not send. The message is handed back.
    SendError {}
}

send_error! {
    /// Why [`Sender::try_send`](crate::Sender::try_send) did not send. The message is handed back.
    TrySendError {
        /// There is no room now: the queue has as many messages as its capacity, or its byte budget has too little left for
        /// this one.
        Full, is_full, "the queue is full";
    }
}

send_error! {
    /// Why [`Sender::send_timeout`](crate::Sender::send_timeout) did not send. The message is handed back.
    SendTimeoutError {
        /// There was no room before the deadline, neither in the queue nor, for this message, in its byte budget.
        Timeout, is_timeout, "the queue stayed full until the deadline";
    }
}

/// Why a batch stopped.
#[derive(Debug)]
pub(crate) enum Halt {
    Full,
    Timeout,
    Failed(Failure),
}

/// Why [`Sender::send_batch`](crate::Sender::send_batch) or one of its like stopped, how much it had sent, and what is
/// left.
pub struct SendBatchError<T> {
    sent: usize,
    unsent: Vec<T>,
    halt: Halt,
}

impl<T> SendBatchError<T> {
    pub(crate) fn new(sent: usize, unsent: Vec<T>, halt: Halt) -> Self {
        Self { sent, unsent, halt }
    }

    /// How many messages were sent, from the first on.
    pub fn sent(&self) -> usize {
        self.sent
    }

    /// The messages that were not sent, in order; the first is the one that could not be.
    pub fn into_unsent(self) -> Vec<T> {
        self.unsent
    }

    /// Whether there was no room: [`Sender::try_send_batch`](crate::Sender::try_send_batch).
    pub fn is_full(&self) -> bool {
        matches!(self.halt, Halt::Full)
    }

    /// Whether there was no room in time: [`Sender::send_batch_timeout`](crate::Sender::send_batch_timeout).
    pub fn is_timeout(&self) -> bool {
        matches!(self.halt, Halt::Timeout)
    }

    /// Whether no living process holds a receiver.
    pub fn is_disconnected(&self) -> bool {
        matches!(self.halt, Halt::Failed(Failure::Disconnected))
    }

    /// Whether the queue was closed.
    pub fn is_closed(&self) -> bool {
        matches!(self.halt, Halt::Failed(Failure::Closed))
    }

    /// Whether there was no memory for the first unsent message.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self.halt, Halt::Failed(Failure::OutOfMemory))
    }

    /// Whether the first unsent message is longer than any message of this queue.
    pub fn is_too_large(&self) -> bool {
        matches!(self.halt, Halt::Failed(Failure::TooLarge { .. }))
    }

    /// Whether the first unsent message cannot be turned into bytes.
    pub fn is_encode(&self) -> bool {
        matches!(self.halt, Halt::Failed(Failure::Encode(_)))
    }

    /// Whether this process was forked after it had got the handle, and cannot attach to the queue by itself.
    pub fn is_forked(&self) -> bool {
        matches!(self.halt, Halt::Failed(Failure::Forked))
    }

    /// Whether the queue has carried as many messages as it can number.
    pub fn is_exhausted(&self) -> bool {
        matches!(self.halt, Halt::Failed(Failure::Exhausted))
    }

    /// Whether this end is in use elsewhere; only ends of a queue made by [`spsc`](crate::spsc()) say so.
    pub fn is_taken(&self) -> bool {
        matches!(self.halt, Halt::Failed(Failure::Taken))
    }
}

impl<T> fmt::Debug for SendBatchError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendBatchError")
            .field("sent", &self.sent)
            .field("unsent", &self.unsent.len())
            .field("halt", &self.halt)
            .finish()
    }
}

impl<T> fmt::Display for SendBatchError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.sent.saturating_add(self.unsent.len());
        write!(f, "{} of {total} messages were sent: ", self.sent)?;
        match &self.halt {
            Halt::Full => f.write_str("the queue is full"),
            Halt::Timeout => f.write_str("the queue stayed full until the deadline"),
            Halt::Failed(failure) => match failure {
                Failure::Disconnected => f.write_str(NO_RECEIVER),
                Failure::Closed => f.write_str(CLOSED),
                Failure::TooLarge { len, limit } => fmt_too_large(f, *len, *limit),
                Failure::Encode(reason) => reason.fmt(f),
                Failure::OutOfMemory => f.write_str(NO_MEMORY),
                Failure::Forked => shm_core::fork::Forked.fmt(f),
                Failure::Exhausted => f.write_str(EXHAUSTED),
                Failure::Taken => f.write_str(TAKEN),
            },
        }
    }
}

impl<T> std::error::Error for SendBatchError<T> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.halt {
            Halt::Failed(Failure::Encode(reason)) => reason.source(),
            _ => None,
        }
    }
}
