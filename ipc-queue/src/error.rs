//! What can go wrong: one small enum per operation that hands the value back, and one opaque error for setting up.

mod recv;
mod send;

pub(crate) use recv::Dry;
pub use recv::{RecvBatchError, RecvError, RecvTimeoutError, TryRecvError};
pub(crate) use send::{Failure, Halt};
pub use send::{SendBatchError, SendError, SendTimeoutError, TrySendError};

use crate::cells::MAX_CELLS;
#[cfg(loom)]
use crate::model::absent::{Claim, DepositError, FetchError, Hand, SegmentError};
#[cfg(not(loom))]
use crate::parcel::Hand;
use crate::ring::LayoutError;
#[cfg(not(loom))]
use shm_core::SegmentError;
#[cfg(not(loom))]
use shm_core::broker::{Claim, DepositError, FetchError};
use std::fmt;

/// Of a codec: postcard's, or of the user's.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Of ends that work in one process at a time.
pub(crate) const TAKEN: &str = "this end of the queue is in use elsewhere";
const CLOSED: &str = "the queue is closed";
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
    ByteBudget(usize),
    Unfinished(usize),
    Segment(SegmentError),
}

impl Error {
    pub(crate) fn slot_bytes(asked: usize, limit: usize) -> Self {
        Self(Box::new(Kind::SlotBytes { asked, limit }))
    }

    pub(crate) fn unfinished(asked: usize) -> Self {
        Self(Box::new(Kind::Unfinished(asked)))
    }

    pub(crate) fn byte_budget(asked: usize) -> Self {
        Self(Box::new(Kind::ByteBudget(asked)))
    }

    /// The byte budget is more than an address space, or none where there must be one.
    pub fn is_byte_budget(&self) -> bool {
        match &*self.0 {
            Kind::ByteBudget(_) => true,
            Kind::Segment(error) => error.is_too_large(),
            _ => false,
        }
    }

    /// The number of unacknowledged messages is below the capacity or beyond the limit.
    pub fn is_unfinished(&self) -> bool {
        matches!(*self.0, Kind::Unfinished(_))
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
            Kind::ByteBudget(asked) => write!(f, "a byte budget of {asked} bytes cannot be had"),
            Kind::Unfinished(asked) => {
                write!(
                    f,
                    "{asked} unacknowledged messages are fewer than the capacity, or more than {MAX_CELLS}"
                )
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
    Codec(BoxError),
    Handle(DepositError),
    Once,
}

impl EncodeError {
    #[cold]
    pub(crate) fn codec(error: impl Into<BoxError>) -> Self {
        Self { kind: EncodeKind::Codec(error.into()) }
    }

    pub(crate) fn handle(error: DepositError) -> Self {
        Self { kind: EncodeKind::Handle(error) }
    }

    pub(crate) fn once() -> Self {
        Self { kind: EncodeKind::Once }
    }

    /// The message contains handles (senders, shared memory) that cannot wait for the receiver: there are too many in
    /// it, or too many of this process's wait already (a quarter of the descriptors that it may open).
    pub fn is_handle(&self) -> bool {
        matches!(self.kind, EncodeKind::Handle(_) | EncodeKind::Once)
    }
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            EncodeKind::Codec(_) => f.write_str("the message cannot be serialised"),
            EncodeKind::Handle(error) => write!(f, "the handles in the message cannot be sent: {error}"),
            EncodeKind::Once => {
                f.write_str("handles arrive once, so a message that may be delivered again cannot have some")
            }
        }
    }
}

impl std::error::Error for EncodeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.kind {
            EncodeKind::Codec(error) => Some(&**error),
            // The message has said the rest already.
            EncodeKind::Handle(error) => error.source(),
            EncodeKind::Once => None,
        }
    }
}

/// A message arrived whose bytes are not a value of the receiver's type, or whose handles could not be fetched from the
/// process that sent it. It is out of the queue; its bytes are kept here.
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
pub struct DecodeError(Box<Undecoded>);

/// Behind a pointer, so that results are hardly larger than their values.
struct Undecoded {
    bytes: Vec<u8>,
    reason: DecodeReason,
}

/// What is wrong with a message.
#[derive(Debug)]
pub(crate) enum DecodeReason {
    Codec(BoxError),
    Trailing(usize),
    Length {
        len: usize,
        limit: usize,
    },
    /// Too short for the claim that it should end with.
    NoClaim,
    /// Its slot does not say where it lies.
    Reference,
    /// So many bytes were wanted for the message.
    OutOfMemory(usize),
    Handles(Box<Missing>),
}

impl DecodeReason {
    #[cold]
    pub(crate) fn codec(error: impl Into<BoxError>) -> Self {
        Self::Codec(error.into())
    }

    pub(crate) fn handles(claim: Claim, error: FetchError) -> Self {
        Self::Handles(Box::new(Missing { claim, error, hand: None }))
    }
}

/// Handles that could not be fetched.
#[derive(Debug)]
pub(crate) struct Missing {
    claim: Claim,
    error: FetchError,
    /// Keeps them waiting.
    hand: Option<Hand>,
}

impl DecodeError {
    #[cold]
    pub(crate) fn new(bytes: Vec<u8>, reason: DecodeReason) -> Self {
        Self(Box::new(Undecoded { bytes, reason }))
    }

    pub(crate) fn reference() -> Self {
        Self::new(Vec::new(), DecodeReason::Reference)
    }

    pub(crate) fn out_of_memory(len: usize) -> Self {
        Self::new(Vec::new(), DecodeReason::OutOfMemory(len))
    }

    /// Keeps the handles waiting if another try may fetch them.
    pub(crate) fn with_hand(mut self, hand: Option<Hand>) -> Self {
        if let DecodeReason::Handles(missing) = &mut self.0.reason {
            missing.hand = hand.filter(|_| missing.error.is_temporary());
        }
        self
    }

    /// What another try needs, or the error as it is.
    pub(crate) fn retry(self) -> Result<(Vec<u8>, Claim, Option<Hand>), Self> {
        let Undecoded { bytes, reason } = *self.0;
        match reason {
            DecodeReason::Handles(missing) => Ok((bytes, missing.claim, missing.hand)),
            reason => Err(Self(Box::new(Undecoded { bytes, reason }))),
        }
    }

    /// The message has handles, and they could not be fetched from the process that sent it. The source is a
    /// [`FetchError`](shm_core::broker::FetchError).
    pub fn is_handle(&self) -> bool {
        self.missing().is_some()
    }

    /// The message has handles, and the process that sent it has ended before they were fetched.
    pub fn is_sender_gone(&self) -> bool {
        matches!(self.missing(), Some(FetchError::Gone))
    }

    /// The message has handles that could not be fetched *now*: the process that sent it is stopped, or descriptors ran
    /// out. They wait as long as this error exists: see [`Receiver::redeem`](crate::Receiver::redeem).
    pub fn is_temporary(&self) -> bool {
        self.missing().is_some_and(FetchError::is_temporary)
    }

    /// This process has no memory for the message, which was larger than a slot. It is gone, unless the queue is an at-least-once
    /// queue, and there are no bytes.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self.0.reason, DecodeReason::OutOfMemory(_))
    }

    fn missing(&self) -> Option<&FetchError> {
        match &self.0.reason {
            DecodeReason::Handles(missing) => Some(&missing.error),
            _ => None,
        }
    }

    /// The bytes of the message.
    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// The bytes of the message.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0.bytes
    }
}

impl fmt::Debug for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DecodeError")
            .field("reason", &self.0.reason)
            .field("len", &self.0.bytes.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let len = self.0.bytes.len();
        match &self.0.reason {
            DecodeReason::Codec(_) => write!(f, "a message of {len} bytes does not decode"),
            DecodeReason::Trailing(left) => {
                write!(f, "a message of {len} bytes has {left} more than its type")
            }
            DecodeReason::Length { len, limit } => {
                write!(f, "a message claims {len} bytes where a slot has {limit}")
            }
            DecodeReason::NoClaim => write!(f, "a message of {len} bytes is too short to have handles"),
            DecodeReason::Reference => f.write_str("a message refers to memory that is not a message's"),
            DecodeReason::OutOfMemory(wanted) => {
                write!(f, "there is no memory left to receive a message of {wanted} bytes")
            }
            DecodeReason::Handles(missing) => {
                write!(f, "the handles in a message of {len} bytes cannot be fetched: {}", missing.error)
            }
        }
    }
}

impl std::error::Error for DecodeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.0.reason {
            DecodeReason::Codec(error) => Some(&**error),
            DecodeReason::Handles(missing) => Some(&missing.error),
            _ => None,
        }
    }
}
