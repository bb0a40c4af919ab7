//! The error of everything here but the locking calls.

use crate::lock::{BarrierError, LockError};
use shm_core::SegmentError;
use std::fmt;

/// What most calls return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why shared data could not be created, attached, reached or locked. Opaque: ask the `is_*` predicates.
pub struct Error(Box<Kind>);

/// What went wrong. Internal: add a variant where none says it.
#[derive(Debug)]
pub(crate) enum Kind {
    Segment(SegmentError),
    Lock(LockError<()>),
    Barrier(BarrierError),
    /// An argument outside its range.
    Argument {
        what: &'static str,
        value: u64,
        limit: u64,
    },
    /// An index or range outside of what there is.
    OutOfRange {
        what: &'static str,
        index: u64,
        len: u64,
    },
    /// Shared memory says what cannot be.
    Corrupt {
        what: &'static str,
    },
    /// A handle of other data: type, layout or geometry.
    Mismatch {
        what: &'static str,
    },
    /// The process itself has no room for a copy.
    Allocation {
        len: u64,
    },
    /// A view whose shape does not fit.
    #[cfg(feature = "ndarray")]
    Shape {
        reason: String,
    },
}

impl From<Kind> for Error {
    fn from(kind: Kind) -> Self {
        Self(Box::new(kind))
    }
}

impl From<SegmentError> for Error {
    fn from(error: SegmentError) -> Self {
        Kind::Segment(error).into()
    }
}

impl<G> From<LockError<G>> for Error {
    /// Drops the guard: a lock whose owner died is unrecoverable then.
    fn from(error: LockError<G>) -> Self {
        Kind::Lock(error.into_error()).into()
    }
}

impl From<BarrierError> for Error {
    fn from(error: BarrierError) -> Self {
        Kind::Barrier(error).into()
    }
}

impl Error {
    /// The error of the memory below, if it is one.
    pub fn as_segment_error(&self) -> Option<&SegmentError> {
        match &*self.0 {
            Kind::Segment(error) => Some(error),
            _ => None,
        }
    }

    /// The error of a lock, if it is one.
    pub fn as_lock_error(&self) -> Option<&LockError<()>> {
        match &*self.0 {
            Kind::Lock(error) => Some(error),
            _ => None,
        }
    }

    /// The error of a barrier, if it is one.
    pub fn as_barrier_error(&self) -> Option<&BarrierError> {
        match &*self.0 {
            Kind::Barrier(error) => Some(error),
            _ => None,
        }
    }

    /// The machine, or the control group of this process, has too little memory left.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(&*self.0, Kind::Allocation { .. })
            || self.as_segment_error().is_some_and(SegmentError::is_out_of_memory)
    }

    /// An argument or index is outside its range.
    pub fn is_out_of_range(&self) -> bool {
        matches!(&*self.0, Kind::Argument { .. } | Kind::OutOfRange { .. })
            || self
                .as_segment_error()
                .is_some_and(|error| error.is_too_large() || error.is_empty_size() || error.is_out_of_range())
    }

    /// What was given is not a name of shared memory: empty, too long, or with a slash or NUL in it.
    pub fn is_bad_name(&self) -> bool {
        self.as_segment_error().is_some_and(SegmentError::is_bad_name)
    }

    /// Other shared memory has the name.
    pub fn is_name_taken(&self) -> bool {
        self.as_segment_error().is_some_and(SegmentError::is_name_taken)
    }

    /// No shared memory has the name, or not this memory any more.
    pub fn is_not_found(&self) -> bool {
        self.as_segment_error().is_some_and(SegmentError::is_not_found)
    }

    /// Shared memory was overwritten by somebody who should not have.
    pub fn is_corrupt(&self) -> bool {
        matches!(&*self.0, Kind::Corrupt { .. })
    }

    /// The memory or the handle is not what was expected: another type, layout, size or version.
    pub fn is_mismatch(&self) -> bool {
        #[cfg(feature = "ndarray")]
        if matches!(&*self.0, Kind::Shape { .. }) {
            return true;
        }
        matches!(&*self.0, Kind::Mismatch { .. })
            || self.as_segment_error().is_some_and(SegmentError::is_foreign)
    }

    /// The process that held a lock died in the middle.
    pub fn is_owner_died(&self) -> bool {
        self.as_lock_error().is_some_and(LockError::is_owner_died)
    }

    /// The process was forked after it had attached, and could not attach again.
    pub fn is_forked(&self) -> bool {
        matches!(self.as_lock_error(), Some(LockError::Forked))
            || self.as_barrier_error() == Some(&BarrierError::Forked)
            || self.as_segment_error().is_some_and(SegmentError::is_forked)
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
            Kind::Segment(error) => error.fmt(f),
            Kind::Lock(error) => error.fmt(f),
            Kind::Barrier(error) => error.fmt(f),
            Kind::Argument { what, value, limit } => write!(f, "{what} is {value}; the limit is {limit}"),
            Kind::OutOfRange { what, index, len } => {
                write!(f, "{what} {index} is out of range: there are {len}")
            }
            Kind::Corrupt { what } => write!(f, "shared memory was overwritten: {what} makes no sense"),
            Kind::Allocation { len } => write!(f, "not enough memory for a copy of {len} elements"),
            #[cfg(feature = "ndarray")]
            Kind::Shape { reason } => write!(f, "the shape does not fit the elements: {reason}"),
            Kind::Mismatch { what } => write!(f, "not the expected shared data: {what} differs"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &*self.0 {
            Kind::Segment(error) => Some(error),
            Kind::Lock(error) => Some(error),
            Kind::Barrier(error) => Some(error),
            _ => None,
        }
    }
}
