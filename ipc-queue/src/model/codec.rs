//! Values to bytes and back, in a model: copies of plain data, or postcard. The bytes go through the ring.

use crate::error::{DecodeError, DecodeReason, EncodeError};
use crate::ring::MAX_PAYLOAD;
use serde::Serialize;
use serde::de::DeserializeOwned;
use shm_core::Plain;

/// How values become messages. Implemented by [`Postcard`] and [`Verbatim`].
pub trait Format<T>: Sealed<T> {}

impl<T, C: Sealed<T>> Format<T> for C {}

/// Any serde type, in postcard.
#[derive(Debug)]
pub enum Postcard {}

/// Plain old data, copied as it is.
#[derive(Debug)]
pub enum Verbatim {}

/// Keeps others from implementing [`Format`].
pub trait Sealed<T> {
    /// The longest message in bytes.
    const LIMIT: usize;

    /// The bytes of a value.
    #[doc(hidden)]
    fn encode(value: &T) -> Result<Vec<u8>, EncodeError>;

    /// The value of some bytes.
    #[doc(hidden)]
    fn decode(bytes: &[u8]) -> Result<T, DecodeError>;
}

impl<T: Serialize + DeserializeOwned> Sealed<T> for Postcard {
    // What a slot takes: a model's messages lie in slots.
    const LIMIT: usize = 240;

    fn encode(value: &T) -> Result<Vec<u8>, EncodeError> {
        postcard::to_stdvec(value).map_err(EncodeError::codec)
    }

    fn decode(bytes: &[u8]) -> Result<T, DecodeError> {
        match postcard::take_from_bytes(bytes) {
            Ok((value, [])) => Ok(value),
            Ok((_, left)) => Err(DecodeError::new(bytes.to_vec(), DecodeReason::Trailing(left.len()))),
            Err(error) => Err(DecodeError::new(bytes.to_vec(), DecodeReason::codec(error))),
        }
    }
}

impl<T: Plain> Sealed<T> for Verbatim {
    const LIMIT: usize = if size_of::<T>() < MAX_PAYLOAD { size_of::<T>() } else { MAX_PAYLOAD };

    fn encode(value: &T) -> Result<Vec<u8>, EncodeError> {
        Ok(bytemuck::bytes_of(value).to_vec())
    }

    fn decode(bytes: &[u8]) -> Result<T, DecodeError> {
        bytemuck::try_pod_read_unaligned(bytes).map_err(|_| {
            let reason = DecodeReason::Length { len: bytes.len(), limit: size_of::<T>() };
            DecodeError::new(bytes.to_vec(), reason)
        })
    }
}
