//! How a message gets from its value into a slot and back.
//!
//! Both ways have two steps, because no code of the user may run while a slot is claimed: a value is encoded into
//! a [`Transfer::Message`] of this process, which is then copied into the slot; on the way back the slot is copied
//! out and decoded after it was given back.
//!
//! ```text
//! Postcard   len u32 | bytes ...      the slot's limit is its payload minus 4
//! Verbatim   the value's bytes
//! ```
//!
//! A message that is too long for a slot is copied into chunks (see [`bulk`](crate::bulk)), and the slot refers to them.
//!
//! Handles in a message need descriptors, which wait with the sender (see [`shm_core::broker`]): then the highest bit
//! of the length is set, and the last bytes are the claim to the deposit. A value is first encoded as if it had no
//! handles; one that has finds that out itself, and is encoded again.
//!
//! # Safety
//!
//! `store` and `load` stay within the payload that [`Transfer::payload_len`] asked for: what `encode` produced is
//! at most `limit` bytes long, and a length read from a slot is clamped to `limit`. Slots are aligned to 8 bytes.
#![allow(unsafe_code)]

use crate::bulk::{Bulky, Held, LARGE, PREFIX, Reference};
use crate::error::{DecodeError, EncodeError};
use crate::layout;
use postcard::de_flavors;
use postcard::ser_flavors::Flavor;
use serde::Serialize;
use serde::de::DeserializeOwned;
use shm_core::Plain;
use shm_core::broker::{self, Claim, Deposit};
use shm_core::handle::{ReceiveSession, SendSession, is_receiving, is_sending};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

/// How a queue's messages of type `T` become bytes and back: [`Postcard`] or [`Verbatim`]. Sealed.
#[diagnostic::on_unimplemented(
    message = "messages of type `{T}` cannot travel as `{Self}`",
    note = "a `Postcard` queue needs `serde::Serialize` and `serde::de::DeserializeOwned`, a `Verbatim` one `Plain`"
)]
pub trait Format<T>: Transfer<T> {}

impl<T, C: Transfer<T>> Format<T> for C {}

/// Messages of any serde type, through the postcard format.
#[derive(Clone, Copy, Debug)]
pub enum Postcard {}

/// Messages of plain old data, byte for byte.
#[derive(Clone, Copy, Debug)]
pub enum Verbatim {}

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

    /// Copies the message out of chunks: it is then one with the limit of the queue's longest.
    fn fetch(_message: &mut Self::Message, _held: &Held<'_>) {}

    /// As [`Transfer::fetch`], from a copy.
    fn set_fetched(_message: &mut Self::Message, _bytes: Vec<u8>) {}

    /// Forgets what [`Transfer::fetch`] has copied.
    fn shed(_message: &mut Self::Message) {}

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

    /// Turns a loaded message into a value; runs the user's code.
    fn decode(message: &Self::Message, limit: usize) -> Result<T, DecodeError>;

    /// As [`Transfer::decode`], for a message with handles, which it waits for.
    fn decode_parcel(message: &Self::Message, limit: usize) -> Result<T, DecodeError> {
        Self::decode(message, limit)
    }
}

impl<T: Plain> Transfer<T> for Verbatim {
    type Room = ();
    type Staged<'v>
        = &'v T
    where
        T: 'v;
    type Message = MaybeUninit<T>;
    const LAYOUT: u64 = layout::hash(&[layout::VERSION, 2, size_of::<T>() as u64]);

    fn payload_len(_slot_bytes: usize, _budget: usize) -> usize {
        size_of::<T>()
    }

    fn limit(payload_len: usize) -> Option<usize> {
        (payload_len == size_of::<T>()).then_some(payload_len)
    }

    #[inline(always)]
    fn room() {}

    #[inline(always)]
    fn encode<'v>(value: &'v T, _room: &'v mut (), _limits: Limits) -> Result<&'v T, Refusal> {
        Ok(value)
    }

    #[inline(always)]
    unsafe fn store(message: &&T, slot: *mut u8) {
        // SAFETY: the caller's slot has `size_of::<T>()` bytes, and nobody else touches it now.
        unsafe { slot.cast::<T>().write_unaligned(**message) }
    }

    #[inline(always)]
    fn blank() -> Self::Message {
        MaybeUninit::uninit()
    }

    #[inline(always)]
    fn has_room(_message: &Self::Message, _limit: usize) -> bool {
        true
    }

    #[inline(always)]
    fn make_room(_message: &mut Self::Message, _limit: usize) {}

    #[inline(always)]
    unsafe fn load(message: &mut Self::Message, slot: *const u8, _limit: usize) {
        // SAFETY: the caller's slot has `size_of::<T>()` bytes; any bytes are a `T`.
        message.write(unsafe { slot.cast::<T>().read_unaligned() });
    }

    #[inline(always)]
    fn decode(message: &Self::Message, _limit: usize) -> Result<T, DecodeError> {
        // SAFETY: `decode` gets what `load` has filled; a plain value may be copied.
        Ok(unsafe { message.assume_init_read() })
    }
}

/// In the prefix, beside the length: the message ends with a [`Claim`]. A length alone is never so large.
const HANDLES: u32 = 1 << 31;
/// What is not length in the prefix.
const FLAGS: u32 = HANDLES | LARGE;
/// Up to this limit messages are staged on the stack.
const INLINE: usize = 256;

/// A postcard message outside of its slot.
#[derive(Debug)]
pub struct Packet {
    /// As encoded; or as read from the slot, unchecked and with flags.
    len: usize,
    /// The first `len` bytes are initialised where the queue's limit is at most [`INLINE`].
    inline: [MaybeUninit<u8>; INLINE],
    /// The bytes otherwise.
    heap: Vec<u8>,
    /// Of a message to be sent: what belongs to the claim at its end.
    deposit: Option<Box<Deposit>>,
    /// Of a message that was taken: the chunks in which it lies.
    bulky: Option<Bulky>,
}

impl Packet {
    fn new(heap: Vec<u8>) -> Self {
        Self { len: 0, inline: [MaybeUninit::uninit(); INLINE], heap, deposit: None, bulky: None }
    }

    /// Empties the packet for a message of up to `limit` bytes.
    #[inline(always)]
    fn filler(&mut self, limits: Limits) -> Filler<'_> {
        self.len = 0;
        self.heap.clear();
        Filler { packet: self, limits }
    }

    /// The message's bytes. The caller bounds `len`.
    fn bytes(&self, len: usize, limit: usize) -> &[u8] {
        debug_assert!(len <= limit, "{len} > {limit}");
        if limit <= INLINE {
            let bytes = &self.inline[..len];
            // SAFETY: `encode` or `load` has initialised `min(self.len, limit)` bytes, and `len` is at most that.
            unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len()) }
        } else {
            &self.heap[..len]
        }
    }
}

/// Writes what fits the queue and counts the rest, so that one pass knows both bytes and length.
struct Filler<'p> {
    packet: &'p mut Packet,
    limits: Limits,
}

impl Filler<'_> {
    /// More than a slot takes: goes on on the heap.
    #[cold]
    fn spill(&mut self, start: usize, bytes: &[u8]) {
        let Limits { slot, message } = self.limits;
        if start.saturating_add(bytes.len()) > message {
            return;
        }
        if slot <= INLINE && start <= slot {
            let inline = self.packet.inline[..start].as_ptr().cast();
            // SAFETY: `try_extend` has initialised all bytes before `start`, while they fitted.
            self.packet.heap.extend_from_slice(unsafe { std::slice::from_raw_parts(inline, start) });
        }
        self.packet.heap.extend_from_slice(bytes);
    }
}

impl Flavor for Filler<'_> {
    type Output = ();

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.try_extend(&[byte])
    }

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        let start = self.packet.len;
        let end = start.saturating_add(bytes.len());
        self.packet.len = end;
        if end <= self.limits.slot {
            if self.limits.slot <= INLINE {
                for (place, byte) in self.packet.inline[start..end].iter_mut().zip(bytes) {
                    place.write(*byte);
                }
            } else {
                self.packet.heap.extend_from_slice(bytes);
            }
        } else {
            self.spill(start, bytes);
        }
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// The same flavor under another name, for what is seldom done: so the type's code there is compiled apart, and inlined
/// where it matters.
struct Apart<F>(F);

impl<F: Flavor> Flavor for Apart<F> {
    type Output = F::Output;

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.try_push(byte)
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.try_extend(bytes)
    }

    fn finalize(self) -> postcard::Result<F::Output> {
        self.0.finalize()
    }
}

impl<'de, F: de_flavors::Flavor<'de>> de_flavors::Flavor<'de> for Apart<F> {
    type Remainder = F::Remainder;
    type Source = F::Source;

    fn pop(&mut self) -> postcard::Result<u8> {
        self.0.pop()
    }

    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }

    fn try_take_n(&mut self, count: usize) -> postcard::Result<&'de [u8]> {
        self.0.try_take_n(count)
    }

    fn finalize(self) -> postcard::Result<F::Remainder> {
        self.0.finalize()
    }
}

impl<T: Serialize + DeserializeOwned> Transfer<T> for Postcard {
    type Room = Packet;
    type Staged<'v>
        = &'v Packet
    where
        T: 'v;
    type Message = Packet;
    const LAYOUT: u64 = layout::hash(&[layout::VERSION, 1]);

    fn payload_len(slot_bytes: usize, budget: usize) -> usize {
        // Where there are chunks, a slot must be able to refer to them.
        PREFIX.saturating_add(if budget > 0 { slot_bytes.max(Reference::LEN) } else { slot_bytes })
    }

    fn limit(payload_len: usize) -> Option<usize> {
        payload_len.checked_sub(PREFIX)
    }

    #[inline(always)]
    fn room() -> Packet {
        Packet::new(Vec::new())
    }

    #[inline]
    fn encode<'v>(value: &'v T, packet: &'v mut Packet, limits: Limits) -> Result<&'v Packet, Refusal> {
        if is_sending() || packet.deposit.is_some() {
            return encode_apart(value, packet, limits);
        }
        if postcard::serialize_with_flavor(value, packet.filler(limits)).is_err() {
            return encode_apart(value, packet, limits);
        }
        if packet.len > limits.message {
            return Err(Refusal::TooLarge(packet.len));
        }
        Ok(packet)
    }

    #[inline(always)]
    unsafe fn store(message: &&Packet, slot: *mut u8) {
        // SAFETY: `encode` let through `limit` bytes at most, so the slot has room for prefix and bytes; its
        // alignment is that of the ring's payloads. The bytes are initialised: `encode` counts what it writes.
        unsafe {
            let from = if message.heap.is_empty() {
                message.inline.as_ptr().cast::<u8>()
            } else {
                message.heap.as_ptr()
            };
            #[allow(clippy::cast_possible_truncation, reason = "a slot has at most 2^20 bytes")]
            let prefix = message.len as u32 | if message.deposit.is_some() { HANDLES } else { 0 };
            slot.cast::<u32>().write(prefix);
            slot.add(PREFIX).copy_from_nonoverlapping(from, message.len);
        }
    }

    #[inline(always)]
    fn blank() -> Packet {
        Packet::new(Vec::new())
    }

    #[inline(always)]
    fn has_room(packet: &Packet, limit: usize) -> bool {
        limit <= INLINE || packet.heap.capacity() >= limit
    }

    #[cold]
    fn make_room(packet: &mut Packet, limit: usize) {
        if limit > INLINE {
            packet.heap.clear();
            packet.heap.reserve_exact(limit);
        }
    }

    #[inline(always)]
    unsafe fn load(message: &mut Packet, slot: *const u8, limit: usize) {
        // SAFETY: the slot has a prefix and `limit` bytes; the length is read once and clamped to them. The
        // packet has room for `limit` bytes here or there.
        unsafe {
            let prefix = slot.cast::<u32>().read_volatile();
            message.len = prefix as usize;
            let len = ((prefix & !FLAGS) as usize).min(limit);
            let from = slot.add(PREFIX);
            if limit <= INLINE {
                message.inline.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(from, len);
            } else {
                message.heap.as_mut_ptr().copy_from_nonoverlapping(from, len);
                message.heap.set_len(len);
            }
        }
    }

    #[inline]
    fn decode(message: &Packet, limit: usize) -> Result<T, DecodeError> {
        if message.len > limit || is_receiving() {
            return decode_apart(message, limit);
        }
        let bytes = message.bytes(message.len, limit);
        read(bytes, postcard::take_from_bytes(bytes))
    }

    fn decode_parcel(message: &Packet, limit: usize) -> Result<T, DecodeError> {
        decode_apart(message, limit)
    }

    #[inline(always)]
    fn deposit<'m, 'v>(message: &'m &'v Packet) -> Option<&'m Deposit>
    where
        T: 'v,
    {
        message.deposit.as_deref()
    }

    #[inline(always)]
    fn bulk<'m, 'v>(message: &'m &'v Packet, limit: usize) -> Option<(&'m [u8], u32)>
    where
        T: 'v,
    {
        (message.len > limit)
            .then(|| (&message.heap[..], if message.deposit.is_some() { HANDLES } else { 0 }))
    }

    #[inline(always)]
    fn is_special(message: &Packet) -> bool {
        message.len & FLAGS as usize != 0
    }

    fn is_bulky(message: &Packet) -> bool {
        message.len & LARGE as usize != 0
    }

    fn reference(message: &Packet) -> Option<Reference> {
        let len = message.len & !(FLAGS as usize);
        if message.len & LARGE as usize == 0 || len != Reference::LEN {
            return None;
        }
        let bytes = if message.heap.is_empty() {
            // SAFETY: a slot that takes references has so many bytes, and `load` has copied them here or there.
            unsafe { std::slice::from_raw_parts(message.inline.as_ptr().cast(), len) }
        } else {
            &message.heap[..]
        };
        Reference::read(bytes)
    }

    fn set_bulky(message: &mut Packet, bulky: Option<Bulky>) {
        message.bulky = bulky;
    }

    fn take_bulky(message: &mut Packet) -> Option<Bulky> {
        message.bulky.take()
    }

    fn fetch(message: &mut Packet, held: &Held<'_>) {
        <Self as Transfer<T>>::set_fetched(message, held.copy());
    }

    fn set_fetched(message: &mut Packet, bytes: Vec<u8>) {
        message.len = bytes.len() | message.len & HANDLES as usize;
        message.heap = bytes;
    }

    fn shed(message: &mut Packet) {
        message.heap = Vec::new();
    }

    #[inline(always)]
    fn has_handles(message: &Packet) -> bool {
        message.len & HANDLES as usize != 0
    }
}

/// The value that was read from the message, if it took all of it.
#[inline(always)]
fn read<T>(bytes: &[u8], read: postcard::Result<(T, &[u8])>) -> Result<T, DecodeError> {
    match read {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(DecodeError::trailing(bytes, rest.len())),
        Err(error) => Err(DecodeError::codec(bytes, error)),
    }
}

/// Decodes a message with handles, or one whose length is wrong, or any while the thread receives something else: then
/// the descriptors of that are none of the message's business.
#[cold]
fn decode_apart<T: DeserializeOwned>(message: &Packet, limit: usize) -> Result<T, DecodeError> {
    let len = message.len & !(HANDLES as usize);
    if len > limit {
        return Err(DecodeError::length(message.bytes(limit, limit), len, limit));
    }
    let bytes = message.bytes(len, limit);
    if len == message.len {
        return decode_with(bytes, Vec::new());
    }
    match bytes.split_last_chunk::<{ Claim::LEN }>() {
        Some((bytes, claim)) => redeem(bytes, Claim::from_bytes(claim)),
        None => Err(DecodeError::no_claim(bytes)),
    }
}

/// Fetches the handles of a message and decodes it.
pub(crate) fn redeem<T: DeserializeOwned>(bytes: &[u8], claim: Claim) -> Result<T, DecodeError> {
    let descriptors = broker::fetch(&claim).map_err(|error| DecodeError::handles(bytes, claim, error))?;
    decode_with(bytes, descriptors)
}

fn decode_with<T: DeserializeOwned>(bytes: &[u8], descriptors: Vec<OwnedFd>) -> Result<T, DecodeError> {
    let _session = ReceiveSession::begin(descriptors);
    let mut source = postcard::Deserializer::from_flavor(Apart(de_flavors::Slice::new(bytes)));
    let value = T::deserialize(&mut source);
    read(bytes, value.and_then(|value| Ok((value, source.finalize()?))))
}

/// Encodes a value that may have handles: where there are some, deposits their descriptors and adds the claim. Apart from
/// whatever else this thread is sending.
#[cold]
fn encode_apart<'v, T: Serialize>(
    value: &T,
    packet: &'v mut Packet,
    limits: Limits,
) -> Result<&'v Packet, Refusal> {
    packet.deposit = None;
    let session = SendSession::begin();
    let filled = postcard::serialize_with_flavor(value, Apart(packet.filler(limits)));
    filled.map_err(|error| Refusal::Encode(EncodeError::codec(error)))?;
    let descriptors = session.finish();
    let claim_len = if descriptors.is_empty() { 0 } else { Claim::LEN };
    let len = packet.len.saturating_add(claim_len);
    if len > limits.message {
        return Err(Refusal::TooLarge(len));
    }
    if !descriptors.is_empty() {
        let deposit = broker::deposit(descriptors);
        let deposit = deposit.map_err(|error| Refusal::Encode(EncodeError::handle(error)))?;
        let claim = deposit.claim().to_bytes();
        let added = Filler { packet, limits }.try_extend(&claim);
        added.map_err(|error| Refusal::Encode(EncodeError::codec(error)))?;
        packet.deposit = Some(Box::new(deposit));
    }
    Ok(packet)
}
