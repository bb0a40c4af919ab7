//! Messages that are bytes with a length.
//!
//! ```text
//! slot    prefix u32: length | flags; bytes ...     so the slot's limit is its payload minus 4
//! ```
//!
//! Handles in a message need descriptors, which wait with the sender (see [`shm_core::broker`]): then a flag is set, and the
//! last bytes are the claim to the deposit. A value is first encoded as if it had no handles; one that has finds that out
//! itself, and is encoded again.
//!
//! # Safety
//!
//! [`Packet`] has the pointers. What `encode` lets through to a slot is at most `limit` bytes long, and a length that was
//! read from a slot is clamped to `limit` by `load`; `decode` refuses a message that had claimed more.
#![allow(unsafe_code)]

use super::packet::Packet;
use super::{Custom, Limits, Postcard, Refusal, Transfer};
use crate::bulk::{Bulky, PREFIX, Reference};
use crate::error::{DecodeError, DecodeReason, EncodeError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shm_core::broker::{self, Claim, Deposit};
use shm_core::codec::Codec;
use shm_core::handle::{ReceiveSession, SendSession, is_receiving, is_sending};
use std::error::Error;
use std::os::fd::OwnedFd;

/// Turns values into bytes and back; runs the user's code. What the formats of bytes differ in.
pub(super) trait Coder<T> {
    /// As [`Transfer::LAYOUT`].
    const LAYOUT: u64;
    /// Why a value has no bytes.
    type Error: Error + Send + Sync + 'static;

    /// Fills the packet.
    fn fill(value: &T, packet: &mut Packet, limits: Limits) -> Result<(), Self::Error>;

    /// As [`Coder::fill`], for what is seldom done: where the type's code is inlined there, this has its own.
    fn fill_apart(value: &T, packet: &mut Packet, limits: Limits) -> Result<(), Self::Error> {
        Self::fill(value, packet, limits)
    }

    /// Reads a value from all of the bytes.
    /// `fail` makes the error that is asked for, so that a value is moved once.
    fn read<E>(bytes: &[u8], fail: impl FnOnce(DecodeReason) -> E) -> Result<T, E>;

    /// As [`Coder::read`], for what is seldom done.
    fn read_apart(bytes: &[u8]) -> Result<T, DecodeReason> {
        Self::read(bytes, |reason| reason)
    }
}

/// Makes a [`Coder`] a [`Transfer`]: a macro, because a blanket implementation would overlap with that of plain data.
macro_rules! travels_in_packets {
    ([$($generics:tt)*] $format:ty) => {
        impl<$($generics)*> Transfer<T> for $format {
            type Room = Packet;
            type Staged<'v>
                = &'v Packet
            where
                T: 'v;
            type Message = Packet;
            const LAYOUT: u64 = <Self as Coder<T>>::LAYOUT;

            fn payload_len(slot_bytes: usize, budget: usize) -> usize {
                // Where there are chunks, a slot must be able to refer to them.
                PREFIX.saturating_add(if budget > 0 { slot_bytes.max(Reference::LEN) } else { slot_bytes })
            }

            fn limit(payload_len: usize) -> Option<usize> {
                payload_len.checked_sub(PREFIX)
            }

            #[inline(always)]
            fn room() -> Packet {
                Packet::new()
            }

            #[inline(always)]
            fn encode<'v>(value: &'v T, packet: &'v mut Packet, limits: Limits) -> Result<&'v Packet, Refusal> {
                encode::<T, Self>(value, packet, limits)
            }

            #[inline(always)]
            unsafe fn store(message: &&Packet, slot: *mut u8) {
                // SAFETY: `encode` lets through to a slot what fits it, so it has room for prefix and bytes.
                unsafe { message.store(slot) }
            }

            #[inline(always)]
            fn blank() -> Packet {
                Packet::new()
            }

            #[inline(always)]
            fn has_room(packet: &Packet, limit: usize) -> bool {
                packet.has_room(limit)
            }

            fn make_room(packet: &mut Packet, limit: usize) {
                packet.make_room(limit);
            }

            #[inline(always)]
            unsafe fn load(message: &mut Packet, slot: *const u8, limit: usize) {
                // SAFETY: as the caller promises.
                unsafe { message.load(slot, limit) }
            }

            #[inline(always)]
            fn decode<E: From<DecodeError>>(message: &Packet, limit: usize) -> Result<T, E> {
                decode::<T, Self, E>(message, limit)
            }

            fn decode_parcel(message: &Packet, limit: usize) -> Result<T, DecodeError> {
                decode_apart::<T, Self>(message, limit)
            }

            fn decode_fetched(message: &Packet, bytes: Vec<u8>) -> Result<T, DecodeError> {
                decode_fetched::<T, Self>(message, bytes)
            }

            fn redeem(bytes: Vec<u8>, claim: Claim) -> Result<T, DecodeError> {
                redeem::<T, Self>(&bytes, claim).map_err(|reason| DecodeError::new(bytes, reason))
            }

            #[inline(always)]
            fn deposit<'m, 'v>(message: &'m &'v Packet) -> Option<&'m Deposit>
            where
                T: 'v,
            {
                message.deposit()
            }

            #[inline(always)]
            fn bulk<'m, 'v>(message: &'m &'v Packet, limit: usize) -> Option<(&'m [u8], u32)>
            where
                T: 'v,
            {
                message.bulk(limit)
            }

            #[inline(always)]
            fn is_special(message: &Packet) -> bool {
                message.is_special()
            }

            fn is_bulky(message: &Packet) -> bool {
                message.is_bulky()
            }

            fn reference(message: &Packet) -> Option<Reference> {
                message.reference()
            }

            fn set_bulky(message: &mut Packet, bulky: Option<Bulky>) {
                message.set_bulky(bulky);
            }

            fn take_bulky(message: &mut Packet) -> Option<Bulky> {
                message.take_bulky()
            }

            #[inline(always)]
            fn has_handles(message: &Packet) -> bool {
                message.has_handles()
            }
        }
    };
}
travels_in_packets!([T: Serialize + DeserializeOwned] Postcard);
travels_in_packets!([T, C: Codec<T>] Custom<C>);

#[inline(always)]
fn encode<'v, T, C: Coder<T>>(
    value: &T,
    packet: &'v mut Packet,
    limits: Limits,
) -> Result<&'v Packet, Refusal> {
    if is_sending() || C::fill(value, packet, limits).is_err() {
        return encode_apart::<T, C>(value, packet, limits);
    }
    if packet.len() > limits.message {
        return Err(Refusal::TooLarge(packet.len()));
    }
    Ok(packet)
}

#[inline(always)]
fn decode<T, C: Coder<T>, E: From<DecodeError>>(message: &Packet, limit: usize) -> Result<T, E> {
    if message.is_special() || message.claimed_len() > limit || is_receiving() {
        return decode_apart::<T, C>(message, limit).map_err(E::from);
    }
    C::read(message.bytes(), |reason| undecoded(message.bytes(), reason).into())
}

#[cold]
fn undecoded(bytes: &[u8], reason: DecodeReason) -> DecodeError {
    DecodeError::new(bytes.to_vec(), reason)
}

/// Decodes a message with handles, or one whose prefix is wrong, or any while the thread receives something else: then
/// the descriptors of that are none of the message's business.
#[cold]
fn decode_apart<T, C: Coder<T>>(message: &Packet, limit: usize) -> Result<T, DecodeError> {
    let bytes = message.bytes();
    if message.is_bulky() {
        // Whoever has chunks has fetched the message from there.
        return Err(DecodeError::reference());
    }
    if message.claimed_len() > limit {
        let reason = DecodeReason::Length { len: message.claimed_len(), limit };
        return Err(undecoded(bytes, reason));
    }
    open_apart::<T, C>(bytes, message.has_handles()).map_err(|(len, reason)| undecoded(&bytes[..len], reason))
}

/// Decodes the bytes of a message that lay in chunks. Into the error they go as they are: there may be many.
fn decode_fetched<T, C: Coder<T>>(message: &Packet, mut bytes: Vec<u8>) -> Result<T, DecodeError> {
    if !message.has_handles() && !is_receiving() {
        return C::read(&bytes, |reason| reason).map_err(|reason| DecodeError::new(bytes, reason));
    }
    open_apart::<T, C>(&bytes, message.has_handles()).map_err(|(len, reason)| {
        bytes.truncate(len);
        DecodeError::new(bytes, reason)
    })
}

/// Decodes a message apart from whatever else this thread receives, with its handles. An error comes with the length of the
/// message without its claim.
fn open_apart<T, C: Coder<T>>(bytes: &[u8], has_handles: bool) -> Result<T, (usize, DecodeReason)> {
    if !has_handles {
        return decode_with::<T, C>(bytes, Vec::new()).map_err(|reason| (bytes.len(), reason));
    }
    match bytes.split_last_chunk::<{ Claim::LEN }>() {
        Some((bytes, claim)) => {
            redeem::<T, C>(bytes, Claim::from_bytes(claim)).map_err(|reason| (bytes.len(), reason))
        }
        None => Err((bytes.len(), DecodeReason::NoClaim)),
    }
}

/// Fetches the handles of a message and decodes it.
fn redeem<T, C: Coder<T>>(bytes: &[u8], claim: Claim) -> Result<T, DecodeReason> {
    match broker::fetch(&claim) {
        Ok(descriptors) => decode_with::<T, C>(bytes, descriptors),
        Err(error) => Err(DecodeReason::handles(claim, error)),
    }
}

fn decode_with<T, C: Coder<T>>(bytes: &[u8], descriptors: Vec<OwnedFd>) -> Result<T, DecodeReason> {
    let _session = ReceiveSession::begin(descriptors);
    C::read_apart(bytes)
}

/// Encodes a value that may have handles: where there are some, deposits their descriptors and adds the claim. Apart from
/// whatever else this thread is sending.
#[cold]
fn encode_apart<'v, T, C: Coder<T>>(
    value: &T,
    packet: &'v mut Packet,
    limits: Limits,
) -> Result<&'v Packet, Refusal> {
    let session = SendSession::begin();
    let filled = C::fill_apart(value, packet, limits);
    filled.map_err(|error| Refusal::Encode(EncodeError::codec(error)))?;
    let descriptors = session.finish();
    let claim_len = if descriptors.is_empty() { 0 } else { Claim::LEN };
    let len = packet.len().saturating_add(claim_len);
    if len > limits.message {
        return Err(Refusal::TooLarge(len));
    }
    if !descriptors.is_empty() {
        let deposit = broker::deposit(descriptors);
        let deposit = deposit.map_err(|error| Refusal::Encode(EncodeError::handle(error)))?;
        packet.attach(deposit, limits);
    }
    Ok(packet)
}
