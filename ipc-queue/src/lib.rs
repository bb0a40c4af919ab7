#![doc = include_str!("../README.md")]
//!
//! # How it works
//!
//! | layer | what it knows |
//! |---|---|
//! | `Sender`, `Receiver` | values, codecs, errors |
//! | waiting | the ring gave nothing: poll, sleep, look after the peers |
//! | pollable | a descriptor for `poll` and async runtimes, on demand |
//! | disconnect | who holds which side, and what is on its way |
//! | closing | that nothing more is sent, and when everything has been received |
//! | bulk | chunks of memory for what does not fit a slot |
//! | lease | cells in which messages stay until they are acknowledged |
//! | [`spsc`](mod@spsc) | the same for one producer and one consumer, with a ring of its own |
//! | [`ring`] | slots that carry their owner; no shared head or tail |
//! | `shm_core::segment` | shared memory, participants, who is dead |
//!
//! [`loom_guide`] tells how to model-check a program that is built on these queues.
#![deny(unsafe_code)]
#![warn(missing_docs)]

#[cfg(not(loom))]
mod builder;
#[cfg(not(loom))]
mod bulk;
#[cfg(not(loom))]
mod bytes;
#[doc(hidden)]
pub mod cells;
#[doc(hidden)]
pub mod chunks;
#[doc(hidden)]
pub mod closing;
#[cfg(not(loom))]
mod codec;
#[cfg(not(loom))]
mod disconnect;
#[cfg(not(loom))]
mod end;
#[cfg_attr(loom, allow(dead_code, unreachable_pub, unused_imports, reason = "a model has fewer errors"))]
mod error;
#[cfg(not(loom))]
mod layout;
#[cfg(not(loom))]
mod lease;
pub mod loom_guide;
#[cfg(not(loom))]
mod member;
#[cfg(loom)]
pub mod model;
#[cfg(not(loom))]
mod parcel;
#[doc(hidden)]
pub mod pollable;
#[cfg(not(loom))]
mod receiver;
pub mod ring;
#[cfg(not(loom))]
mod sender;
pub mod spsc;
#[cfg(not(loom))]
mod travel;
#[cfg(not(loom))]
mod wait;

#[cfg(not(loom))]
pub use handles::*;

#[cfg(not(loom))]
mod handles {
    pub use crate::builder::{
        Builder, BytesBuilder, LeaseBuilder, bounded, bounded_bytes, bounded_plain, builder, bytes_builder,
    };
    pub use crate::bytes::{BytesIter, BytesReceiver, BytesRef, BytesSender, BytesTryIter, Grant};
    pub use crate::codec::{Custom, Format, Postcard, Verbatim};
    pub use crate::error::{
        DecodeError, EncodeError, Error, RecvBatchError, RecvError, RecvTimeoutError, SendBatchError,
        SendError, SendTimeoutError, TryRecvError, TrySendError,
    };
    pub use crate::lease::{DrainError, Lease, LeaseReceiver, LeaseSender, Leases, TryLeases};
    pub use crate::receiver::{Drain, IntoIter, Iter, PlainReceiver, Receiver, TryIter};
    pub use crate::sender::{PlainSender, Sender};
    pub use crate::spsc::{Consumer, PlainConsumer, PlainProducer, Producer, spsc, spsc_plain};
}

#[cfg(loom)]
pub use model::handles::*;

#[cfg(not(loom))]
#[doc(no_inline)]
pub use shm_core::codec::{Codec, Sink};
#[doc(no_inline)]
pub use shm_core::{Plain, crash_point};
