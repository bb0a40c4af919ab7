//! The error of creating and attaching shared memory.

use crate::fork::Forked;
use std::fmt;
use std::io;

/// Why shared memory could not be created or attached. Opaque: ask the `is_*` predicates.
pub struct SegmentError(Box<Kind>);

#[derive(Debug)]
pub(crate) enum Kind {
    Forked(Forked),
    OutOfMemory { needed: u64, available: Option<u64>, source: Option<io::Error> },
    TooLarge { len: u64, limit: u64 },
    TooManyParticipants { limit: u16 },
    Empty,
    OutOfRange { offset: u64, len: u64, limit: u64 },
    BadName { name: String, why: &'static str },
    NameTaken { name: String },
    NotFound { name: String },
    Foreign { what: &'static str, found: u64, expected: u64 },
    System { operation: &'static str, source: io::Error },
}

impl SegmentError {
    pub(crate) fn system(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Kind::System { operation, source }.into()
    }

    pub(crate) fn foreign(what: &'static str, found: u64, expected: u64) -> Self {
        Kind::Foreign { what, found, expected }.into()
    }

    /// The machine, or the control group of this process, has too little memory left.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(*self.0, Kind::OutOfMemory { .. })
    }

    /// The size asked for is beyond what a segment can have.
    pub fn is_too_large(&self) -> bool {
        matches!(*self.0, Kind::TooLarge { .. })
    }

    /// Shared memory of no bytes was asked for.
    pub fn is_empty_size(&self) -> bool {
        matches!(*self.0, Kind::Empty)
    }

    /// A range of bytes is not inside the memory.
    pub fn is_out_of_range(&self) -> bool {
        matches!(*self.0, Kind::OutOfRange { .. })
    }

    /// What was given is not a name: empty, too long, or with a slash or NUL in it.
    pub fn is_bad_name(&self) -> bool {
        matches!(*self.0, Kind::BadName { .. })
    }

    /// Another memory has the name.
    pub fn is_name_taken(&self) -> bool {
        matches!(*self.0, Kind::NameTaken { .. })
    }

    /// No memory has the name, or not this memory any more.
    pub fn is_not_found(&self) -> bool {
        matches!(*self.0, Kind::NotFound { .. })
    }

    /// Every participant index is held by a living process.
    pub fn is_too_many_participants(&self) -> bool {
        matches!(*self.0, Kind::TooManyParticipants { .. })
    }

    /// The memory is not what was expected: not a segment, of another version, kind, layout or size.
    pub fn is_foreign(&self) -> bool {
        matches!(*self.0, Kind::Foreign { .. })
    }

    /// This process was forked after it had attached.
    pub fn is_forked(&self) -> bool {
        matches!(*self.0, Kind::Forked(_))
    }
}

impl From<Kind> for SegmentError {
    fn from(kind: Kind) -> Self {
        Self(Box::new(kind))
    }
}

impl From<Forked> for SegmentError {
    fn from(forked: Forked) -> Self {
        Kind::Forked(forked).into()
    }
}

impl fmt::Debug for SegmentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for SegmentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Kind::Forked(forked) => forked.fmt(f),
            Kind::OutOfMemory { needed, available: Some(available), .. } => {
                write!(f, "not enough memory: {needed} bytes needed, {available} available")
            }
            Kind::OutOfMemory { needed, available: None, .. } => {
                write!(f, "not enough memory for {needed} bytes")
            }
            Kind::TooLarge { len, limit } => write!(f, "{len} bytes are more than the limit of {limit}"),
            Kind::Empty => f.write_str("shared memory has at least one byte, 0 were asked for"),
            Kind::OutOfRange { offset, len, limit } => {
                write!(f, "{len} bytes from byte {offset} on are not inside of {limit} bytes")
            }
            Kind::BadName { name, why } => write!(f, "{name:?} is not a name of shared memory: {why}"),
            Kind::NameTaken { name } => write!(f, "shared memory named {name:?} exists already"),
            Kind::NotFound { name } => write!(f, "there is no shared memory named {name:?}"),
            Kind::TooManyParticipants { limit } => {
                write!(f, "all {limit} participants of the segment are living processes")
            }
            Kind::Foreign { what, found, expected } => {
                write!(f, "not the expected segment: {what} is {found:#x}, not {expected:#x}")
            }
            Kind::System { operation, source } => write!(f, "{operation}: {source}"),
        }
    }
}

impl std::error::Error for SegmentError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &*self.0 {
            Kind::OutOfMemory { source, .. } => source.as_ref().map(|source| source as _),
            Kind::System { source, .. } => Some(source),
            _ => None,
        }
    }
}
