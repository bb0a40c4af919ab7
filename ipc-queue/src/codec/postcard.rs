//! Messages of any serde type.

use super::Limits;
use super::coder::Coder;
use super::packet::{Filler, Packet};
use crate::error::DecodeReason;
use crate::layout;
use postcard::de_flavors::{self, Flavor as Source};
use postcard::ser_flavors::Flavor;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Messages of any serde type, through the postcard format.
#[derive(Clone, Copy, Debug)]
pub enum Postcard {}

impl Flavor for Filler<'_> {
    type Output = usize;

    #[inline(always)]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.put(&[byte]);
        Ok(())
    }

    #[inline(always)]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.put(bytes);
        Ok(())
    }

    #[inline(always)]
    fn finalize(self) -> postcard::Result<usize> {
        Ok(self.finish())
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

impl<'de, F: Source<'de>> Source<'de> for Apart<F> {
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

impl<T: Serialize + DeserializeOwned> Coder<T> for Postcard {
    const LAYOUT: u64 = layout::hash(&[layout::VERSION, 1]);
    type Error = postcard::Error;

    #[inline(always)]
    fn fill(value: &T, packet: &mut Packet, limits: Limits) -> postcard::Result<()> {
        let len = postcard::serialize_with_flavor(value, packet.filler(limits))?;
        packet.set_len(len);
        Ok(())
    }

    fn fill_apart(value: &T, packet: &mut Packet, limits: Limits) -> postcard::Result<()> {
        let len = postcard::serialize_with_flavor(value, Apart(packet.filler(limits)))?;
        packet.set_len(len);
        Ok(())
    }

    #[inline(always)]
    fn read<E>(bytes: &[u8], fail: impl FnOnce(DecodeReason) -> E) -> Result<T, E> {
        whole(de_flavors::Slice::new(bytes), fail)
    }

    fn read_apart(bytes: &[u8]) -> Result<T, DecodeReason> {
        whole(Apart(de_flavors::Slice::new(bytes)), |reason| reason)
    }
}

/// The value that the source has, if it is all of it.
#[inline(always)]
fn whole<'b, T, F, E>(source: F, fail: impl FnOnce(DecodeReason) -> E) -> Result<T, E>
where
    T: DeserializeOwned,
    F: Source<'b, Remainder = &'b [u8]> + 'b,
{
    let mut source = postcard::Deserializer::from_flavor(source);
    let value = T::deserialize(&mut source);
    // Before the value is moved, which is then done once.
    if value.is_ok() {
        match source.finalize() {
            Ok([]) => {}
            Ok(rest) => return Err(fail(DecodeReason::Trailing(rest.len()))),
            Err(error) => return Err(fail(DecodeReason::codec(error))),
        }
    }
    value.map_err(|error| fail(DecodeReason::codec(error)))
}
