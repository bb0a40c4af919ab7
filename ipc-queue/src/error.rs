//! What can go wrong: one small enum per operation that hands the value back, and one opaque error for setting up.

mod recv;
mod send;

pub(crate) use recv::Dry;
pub use recv::{RecvBatchError, RecvError, RecvTimeoutError, TryRecvError};
pub(crate) use send::{Failure, Halt};
pub use send::{SendBatchError, SendError, SendTimeoutError, TrySendError};

use crate::ring::LayoutError;
use shm_core::SegmentError;
use std::fmt;

const EXHAUSTED: &str = "the queue has carried as many messages as it can number";

/// Why a queue could not be created. Opaque: ask the `is_*` predicates.
///
/// # Examples
///
/// ```
/// let error = ipc_queue::bounded::<u64>(0).unwrap_err();
/// assert!(error.is_capacity());
/// assert_eq!(error.to_string(), "capacity of 0 messages is not between 1 and 1048576");
/// ```
pub struct Error(Box<Kind>);

#[derive(Debug)]
enum Kind {
    Layout(LayoutError),
    SlotBytes { asked: usize, limit: usize },
    Segment(SegmentError),
}

impl Error {
    pub(crate) fn slot_bytes(asked: usize, limit: usize) -> Self {
        Self(Box::new(Kind::SlotBytes { asked, limit }))
    }

    /// The capacity is zero or beyond the limit.
    pub fn is_capacity(&self) -> bool {
        matches!(*self.0, Kind::Layout(LayoutError::Capacity(_)))
    }

    /// A slot cannot have so many bytes.
    pub fn is_slot_bytes(&self) -> bool {
        matches!(*self.0, Kind::SlotBytes { .. } | Kind::Layout(LayoutError::Payload(_)))
    }

    /// The machine, or the control group of this process, has too little memory left.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(&*self.0, Kind::Segment(error) if error.is_out_of_memory())
    }

    /// Every participant index of the queue is held by a living process.
    pub fn is_too_many_participants(&self) -> bool {
        matches!(&*self.0, Kind::Segment(error) if error.is_too_many_participants())
    }

    /// The memory is not a queue of this version with this kind of message.
    pub fn is_foreign(&self) -> bool {
        matches!(&*self.0, Kind::Segment(error) if error.is_foreign())
    }
}

impl From<LayoutError> for Error {
    fn from(error: LayoutError) -> Self {
        Self(Box::new(Kind::Layout(error)))
    }
}

impl From<SegmentError> for Error {
    fn from(error: SegmentError) -> Self {
        Self(Box::new(Kind::Segment(error)))
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Kind::Layout(error) => error.fmt(f),
            Kind::SlotBytes { asked, limit } => {
                write!(f, "slots of {asked} bytes are not between 1 and {limit}")
            }
            Kind::Segment(error) => write!(f, "the queue's shared memory cannot be set up: {error}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &*self.0 {
            // The message has said the rest already.
            Kind::Segment(error) if error.is_out_of_memory() => error.source(),
            _ => None,
        }
    }
}

/// Why a message could not be turned into bytes.
#[derive(Debug)]
pub struct EncodeError {
    kind: EncodeKind,
}

#[derive(Debug)]
enum EncodeKind {
    Codec(postcard::Error),
    Handle,
}

impl EncodeError {
    pub(crate) fn codec(error: postcard::Error) -> Self {
        Self { kind: EncodeKind::Codec(error) }
    }

    pub(crate) fn handle() -> Self {
        Self { kind: EncodeKind::Handle }
    }

    /// The message contains a handle (a sender, shared memory): those travel in arguments of processes and
    /// tasks and in pipe messages, not in queues.
    pub fn is_handle(&self) -> bool {
        matches!(self.kind, EncodeKind::Handle)
    }
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            EncodeKind::Codec(_) => "the message cannot be serialised",
            EncodeKind::Handle => {
                "the message contains a handle; handles cannot be sent through a queue, only outside of it"
            }
        })
    }
}

impl std::error::Error for EncodeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.kind {
            EncodeKind::Codec(error) => Some(error),
            EncodeKind::Handle => None,
        }
    }
}

/// A message arrived whose bytes are not a value of the receiver's type. It is out of the queue; its bytes are
/// kept here.
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use ipc_queue::RecvError;
/// #[derive(serde::Deserialize)]
/// struct Even(u8);
/// # impl serde::Serialize for Even { fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> { s.serialize_u16(300) } }
/// let (tx, rx) = ipc_queue::bounded::<Even>(4)?;
/// tx.send(Even(2))?;                                 // this type writes two bytes and reads one
/// let Err(RecvError::Decode(error)) = rx.recv() else { panic!() };
/// assert_eq!(error.bytes(), [172, 2]);
/// # Ok(()) }
/// ```
pub struct DecodeError {
    bytes: Vec<u8>,
    reason: DecodeReason,
}

#[derive(Debug)]
enum DecodeReason {
    Codec(postcard::Error),
    Trailing(usize),
    Length { len: usize, limit: usize },
}

impl DecodeError {
    pub(crate) fn codec(bytes: &[u8], error: postcard::Error) -> Self {
        Self { bytes: bytes.to_vec(), reason: DecodeReason::Codec(error) }
    }

    pub(crate) fn trailing(bytes: &[u8], left: usize) -> Self {
        Self { bytes: bytes.to_vec(), reason: DecodeReason::Trailing(left) }
    }

    pub(crate) fn length(bytes: &[u8], len: usize, limit: usize) -> Self {
        Self { bytes: bytes.to_vec(), reason: DecodeReason::Length { len, limit } }
    }

    /// The bytes of the message.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes of the message.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

impl fmt::Debug for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DecodeError")
            .field("reason", &self.reason)
            .field("len", &self.bytes.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let len = self.bytes.len();
        match &self.reason {
            DecodeReason::Codec(_) => write!(f, "a message of {len} bytes does not decode"),
            DecodeReason::Trailing(left) => {
                write!(f, "a message of {len} bytes has {left} more than its type")
            }
            DecodeReason::Length { len, limit } => {
                write!(f, "a message claims {len} bytes where a slot has {limit}")
            }
        }
    }
}

impl std::error::Error for DecodeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.reason {
            DecodeReason::Codec(error) => Some(error),
            _ => None,
        }
    }
}
