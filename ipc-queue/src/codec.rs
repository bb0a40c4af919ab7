//! How a message gets from its value into a slot and back.
//!
//! Both ways have two steps, because no code of the user may run while a slot is claimed: a value is encoded into
//! a [`Transfer::Staged`] message of this process, which is then copied into the slot; on the way back the slot is copied
//! out and decoded after it was given back.
//!
//! | format | a message is |
//! |---|---|
//! | [`Verbatim`] | the value's bytes |
//! | [`Postcard`], [`Custom`] | bytes with their length: a [`Packet`], see [`coder`] |
//!
//! A message that is too long for a slot is copied into chunks (see [`bulk`](crate::bulk)), and the slot refers to them.
//!
//! # Safety
//!
//! `store` and `load` stay within the payload that [`Transfer::payload_len`] asked for. Slots are aligned to 8 bytes.
#![allow(unsafe_code)]

mod coder;
mod custom;
mod packet;
mod postcard;
mod verbatim;

pub use custom::Custom;
pub use postcard::Postcard;
pub use verbatim::Verbatim;

use crate::bulk::{Bulky, Reference};
use crate::error::{DecodeError, DecodeReason, EncodeError};
use shm_core::broker::{Claim, Deposit};

/// How a queue's messages of type `T` become bytes and back: [`Postcard`], [`Verbatim`], or a codec of the user's as
/// [`Custom`]. Sealed.
#[diagnostic::on_unimplemented(
    message = "messages of type `{T}` cannot travel as `{Self}`",
    note = "a `Postcard` queue needs `serde::Serialize` and `serde::de::DeserializeOwned`, a `Verbatim` one `Plain`, a `Custom<C>` one \
            `C: Codec<T>`; `ipc_queue::builder::<T>().codec::<C>()` makes the last"
)]
pub trait Format<T>: Transfer<T> {}

impl<T, C: Transfer<T>> Format<T> for C {}

/// Why a value does not become a message.
#[derive(Debug)]
pub enum Refusal {
    /// It has so many bytes.
    TooLarge(usize),
    /// Its `Serialize` failed, or its handles cannot be deposited.
    Encode(EncodeError),
}

/// The longest messages of a queue, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// In a slot: as [`Transfer::limit`] gave it.
    pub slot: usize,
    /// In chunks, if there are some.
    pub message: usize,
}

impl Limits {
    /// Those of a queue without chunks.
    pub(crate) fn of_slot(slot: usize) -> Self {
        Self { slot, message: slot }
    }
}

/// The machinery of a [`Format`]: how a message gets into a slot and out of it. `limit` is the longest message in a slot of the queue at hand, as [`Transfer::limit`] gave it.
pub trait Transfer<T> {
    /// Where a value is encoded.
    type Room;
    /// A value that is ready to be stored, in its room or where it was.
    type Staged<'v>
    where
        T: 'v;
    /// A message that was copied out of its slot.
    type Message;
    /// What both ends must agree on.
    const LAYOUT: u64;

    /// The payload of a slot that takes messages of up to `slot_bytes`, in a queue with such a byte budget.
    fn payload_len(slot_bytes: usize, budget: usize) -> usize;

    /// The longest message that a slot with this payload takes; `None` if the payload is not one of this codec's.
    fn limit(payload_len: usize) -> Option<usize>;

    /// Room for a message of any length, reusable.
    fn room() -> Self::Room;

    /// Turns a value into a message; runs the user's code.
    fn encode<'v>(
        value: &'v T,
        room: &'v mut Self::Room,
        limits: Limits,
    ) -> Result<Self::Staged<'v>, Refusal>;

    /// Copies a message into a slot.
    ///
    /// # Safety
    ///
    /// `slot` is claimed for writing and has the payload that belongs to the `limit` of [`Transfer::encode`].
    unsafe fn store(message: &Self::Staged<'_>, slot: *mut u8);

    /// The descriptors that belong to the message, if it has handles. They are withdrawn with its room unless they are
    /// left for the receiver.
    #[inline(always)]
    fn deposit<'m, 'v>(_message: &'m Self::Staged<'v>) -> Option<&'m Deposit>
    where
        T: 'v,
    {
        None
    }

    /// The bytes of a message that does not fit a slot, and the flags for its slot's prefix.
    #[inline(always)]
    fn bulk<'m, 'v>(_message: &'m Self::Staged<'v>, _limit: usize) -> Option<(&'m [u8], u32)>
    where
        T: 'v,
    {
        None
    }

    /// Whether the loaded message has handles or lies in chunks.
    #[inline(always)]
    fn is_special(_message: &Self::Message) -> bool {
        false
    }

    /// Whether the loaded message lies in chunks.
    fn is_bulky(_message: &Self::Message) -> bool {
        false
    }

    /// Where the loaded message lies, if it says that it lies in chunks.
    fn reference(_message: &Self::Message) -> Option<Reference> {
        None
    }

    /// Keeps the chunks in which the message lies.
    fn set_bulky(_message: &mut Self::Message, _bulky: Option<Bulky>) {}

    /// The chunks that were kept.
    fn take_bulky(_message: &mut Self::Message) -> Option<Bulky> {
        None
    }

    /// Whether the loaded message has handles; then it is for [`Transfer::decode_parcel`].
    #[inline(always)]
    fn has_handles(_message: &Self::Message) -> bool {
        false
    }

    /// A message to come.
    fn blank() -> Self::Message;

    /// Whether the message can be loaded.
    fn has_room(message: &Self::Message, limit: usize) -> bool;

    /// Makes room for the message, so that nothing is allocated while a slot is claimed.
    fn make_room(message: &mut Self::Message, limit: usize);

    /// Copies a message out of a slot.
    ///
    /// # Safety
    ///
    /// `slot` is claimed for reading, and has the payload that belongs to `limit`, for which the message has room.
    unsafe fn load(message: &mut Self::Message, slot: *const u8, limit: usize);

    /// Turns a loaded message into a value; runs the user's code. The error is the caller's, because a value that passes
    /// through several types of result is copied from one to the next.
    fn decode<E: From<DecodeError>>(message: &Self::Message, limit: usize) -> Result<T, E>;

    /// As [`Transfer::decode`], for a message with handles, which it waits for.
    fn decode_parcel(message: &Self::Message, limit: usize) -> Result<T, DecodeError> {
        Self::decode(message, limit)
    }

    /// Turns the bytes of a message that lay in chunks into a value, with its handles, for which it waits; `message` is what
    /// was loaded from the slot. Runs the user's code.
    fn decode_fetched(_message: &Self::Message, bytes: Vec<u8>) -> Result<T, DecodeError> {
        Err(DecodeError::new(bytes, DecodeReason::Reference))
    }

    /// Fetches the handles of a message, whose bytes without the claim these are, and decodes it.
    fn redeem(bytes: Vec<u8>, _claim: Claim) -> Result<T, DecodeError> {
        Err(DecodeError::new(bytes, DecodeReason::NoClaim))
    }
}
