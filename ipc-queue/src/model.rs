//! Queues in a loom model: `bounded` and `bounded_plain` for threads that stand for processes.
//!
//! The ring is the real one, on loom's atomics and cells, and so is the line on which its sides sleep. What an operating
//! system does natively is stood in for: memory is on the heap, handles are counted for all processes together, and a
//! process dies when [`Process`] says so. [`crate::loom_guide`] tells how to use it.

mod codec;
mod ends;
mod queue;

pub use shm_core::owner::model::{Process, step};

/// What the crate's root exports in a model, by the same names as natively.
pub(crate) mod handles {
    pub use super::codec::{Format, Postcard, Verbatim};
    pub use super::ends::{
        IntoIter, Iter, PlainReceiver, PlainSender, Receiver, Sender, TryIter, bounded, bounded_plain,
    };
    pub use crate::error::{
        DecodeError, EncodeError, Error, RecvError, RecvTimeoutError, SendError, SendTimeoutError,
        TryRecvError, TrySendError,
    };
}

/// The failures of an operating system, of which a model has none. Nobody makes values of these.
#[allow(dead_code, reason = "they are matched only")]
pub(crate) mod absent {
    macro_rules! absent {
        ($($name:ident { $($variant:ident)? $(; $predicate:ident)* })*) => {
            $(
                #[derive(Debug, thiserror::Error)]
                pub(crate) enum $name {
                    $(#[error("never")] $variant)?
                }

                impl $name {
                    $(
                        pub(crate) fn $predicate(&self) -> bool {
                            false
                        }
                    )*
                }
            )*
        };
    }

    absent! {
        Claim {}
        Hand {}
        DepositError {}
        FetchError { Gone; is_temporary }
        SegmentError { ; is_out_of_memory; is_too_many_participants; is_foreign; is_too_large }
    }
}
