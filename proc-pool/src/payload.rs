//! Arguments and results on the control socket: bytes of any size, and the descriptors of the handles inside.

use crate::error::{Error, Result, TaskError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use shm_core::frozen::{read_sealed, sealed_memfd};
use shm_core::handle::{ReceiveSession, SendSession};
use shm_core::socket::MAX_DESCRIPTORS;
use std::os::fd::OwnedFd;

/// What is longer than this travels as a sealed memory file beside the message.
pub(crate) const INLINE_BYTES: usize = 32 << 10;
/// Room beside a payload for a memory file and whatever else its message carries.
const RESERVED_DESCRIPTORS: usize = 10;

/// The most handles of a payload.
pub(crate) const MAX_HANDLES: usize = MAX_DESCRIPTORS - RESERVED_DESCRIPTORS;

/// The error of a value with more than [`MAX_HANDLES`]; `what` names it ("the argument").
pub(crate) fn too_many_handles(count: usize, what: &str) -> TaskError {
    TaskError::codec(
        &format!("{what} cannot be sent"),
        &format_args!("it carries {count} handles, and the limit is {MAX_HANDLES}"),
    )
}

/// An encoded value with the descriptors of its handles.
#[derive(Debug)]
pub(crate) struct Payload {
    pub(crate) bytes: Vec<u8>,
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// A payload inside a message. The descriptors of a packed payload are the *last* ones of its message: a memory
/// file first, if there is one, then the handles'.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Packed {
    Inline(Vec<u8>),
    File { len: u64 },
}

impl Payload {
    /// Encodes `value`; `what` names it in the error ("the argument").
    ///
    /// # Errors
    ///
    /// `Codec` if it does not serialise or carries too many handles.
    pub(crate) fn encode<T: Serialize>(value: &T, what: &str) -> std::result::Result<Self, TaskError> {
        let session = SendSession::begin();
        let bytes = postcard::to_stdvec(value)
            .map_err(|error| TaskError::codec(&format!("{what} cannot be encoded"), &error))?;
        let descriptors = session.finish();
        if descriptors.len() > MAX_HANDLES {
            return Err(too_many_handles(descriptors.len(), what));
        }
        Ok(Self { bytes, descriptors })
    }

    /// Decodes the value; `what` names it in the error.
    ///
    /// # Errors
    ///
    /// `Codec` if the bytes are not exactly one `T`.
    pub(crate) fn decode<T: DeserializeOwned>(self, what: &str) -> std::result::Result<T, TaskError> {
        let _session = ReceiveSession::begin(self.descriptors);
        decode(&self.bytes, what)
    }

    /// Makes it fit into a message; the descriptors go last beside it.
    ///
    /// # Errors
    ///
    /// When no memory file can be made.
    pub(crate) fn pack(self) -> Result<(Packed, Vec<OwnedFd>)> {
        if self.bytes.len() <= INLINE_BYTES {
            return Ok((Packed::Inline(self.bytes), self.descriptors));
        }
        let file = sealed_memfd(&self.bytes).map_err(Error::memory("sending a large value"))?;
        let len = self.bytes.len() as u64;
        let descriptors = std::iter::once(file).chain(self.descriptors).collect();
        Ok((Packed::File { len }, descriptors))
    }

    /// Takes a payload out of a message, with the descriptors that are its own.
    ///
    /// # Errors
    ///
    /// `Unavailable` if its memory file is missing, not frozen or shorter than announced, or memory runs out.
    pub(crate) fn unpack(
        packed: Packed,
        mut descriptors: Vec<OwnedFd>,
    ) -> std::result::Result<Self, TaskError> {
        let bytes = match packed {
            Packed::Inline(bytes) => bytes,
            Packed::File { .. } if descriptors.is_empty() => {
                return Err(TaskError::unavailable("the memory file of a large value did not arrive"));
            }
            Packed::File { len } => {
                let file = descriptors.remove(0);
                usize::try_from(len)
                    .map_err(std::io::Error::other)
                    .and_then(|len| read_sealed(file, len))
                    .map_err(|error| {
                        TaskError::unavailable(format!("reading a value of {len} bytes: {error}"))
                    })?
            }
        };
        Ok(Self { bytes, descriptors })
    }
}

/// Decodes bytes that are exactly one `T`, in the receive session of the caller.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8], what: &str) -> std::result::Result<T, TaskError> {
    let failed =
        |error: &dyn std::fmt::Display| TaskError::codec(&format!("{what} cannot be decoded"), error);
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(failed(&format_args!("{} bytes are left over", rest.len()))),
        Err(error) => Err(failed(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(len: usize) {
        let value: Vec<u8> = (0..=250).cycle().take(len).collect();
        let payload = Payload::encode(&value, "the argument").expect("encodes");
        let (packed, descriptors) = payload.pack().expect("packs");
        let payload = Payload::unpack(packed, descriptors).expect("unpacks");
        assert_eq!(payload.decode::<Vec<u8>>("the argument"), Ok(value));
    }

    #[test]
    fn values_around_the_inline_limit_come_back() {
        for len in [0, 1, INLINE_BYTES - 8, INLINE_BYTES, INLINE_BYTES + 1, 1 << 20] {
            round_trip(len);
        }
    }

    #[test]
    fn a_missing_memory_file_is_an_error() {
        let error = Payload::unpack(Packed::File { len: 10 }, Vec::new()).expect_err("nothing there");
        assert!(matches!(error, TaskError::Unavailable { .. }));
    }

    #[test]
    fn a_memory_file_shorter_than_announced_is_an_error() {
        let file = sealed_memfd(b"abc").expect("frozen");
        let error = Payload::unpack(Packed::File { len: 1 << 60 }, vec![file]).expect_err("too short");
        assert!(matches!(error, TaskError::Unavailable { .. }));
    }

    #[test]
    fn bytes_left_over_are_an_error() {
        let payload = Payload::encode(&(1u8, 2u8), "the result").expect("encodes");
        let error = payload.decode::<u8>("the result").expect_err("one byte too many");
        assert_eq!(error.to_string(), "the result cannot be decoded: 1 bytes are left over");
    }
}
