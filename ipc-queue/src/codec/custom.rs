//! Messages through a codec of the user's.

use super::Limits;
use super::coder::Coder;
use super::packet::Packet;
use crate::error::DecodeReason;
use crate::layout;
use shm_core::codec::{Codec, Sink};
use std::convert::Infallible;
use std::fmt;
use std::marker::PhantomData;

/// Messages through the [`Codec`] `C`; see [`Builder::codec`](crate::Builder::codec).
pub struct Custom<C> {
    never: Infallible,
    _codec: PhantomData<fn() -> C>,
}

impl<C> fmt::Debug for Custom<C> {
    fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.never {}
    }
}

impl<T, C: Codec<T>> Coder<T> for Custom<C> {
    const LAYOUT: u64 = layout::hash(&[layout::VERSION, 3, C::ID]);
    type Error = C::Error;

    #[inline]
    fn fill(value: &T, packet: &mut Packet, limits: Limits) -> Result<(), C::Error> {
        let mut sink = Sink::new(packet.vector(), limits.message);
        C::encode(value, &mut sink)?;
        let len = sink.len();
        packet.set_len(len);
        Ok(())
    }

    #[inline]
    fn read<E>(bytes: &[u8], fail: impl FnOnce(DecodeReason) -> E) -> Result<T, E> {
        C::decode(bytes).map_err(|error| fail(DecodeReason::codec(error)))
    }
}
