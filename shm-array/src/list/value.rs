//! What a cell of a list can have in it, and how it lies there.

use crate::error::Error;
use std::fmt;

/// A value in a cell of a [`SharedList`](crate::SharedList).
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ListValue {
    /// Nothing.
    #[default]
    None,
    /// A truth value.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A number.
    Float(f64),
    /// A string.
    Str(String),
    /// Bytes.
    Bytes(Vec<u8>),
}

impl ListValue {
    fn kind(&self) -> u8 {
        match self {
            Self::None => 0,
            Self::Bool(_) => 1,
            Self::Int(_) => 2,
            Self::Float(_) => 3,
            Self::Str(_) => 4,
            Self::Bytes(_) => 5,
        }
    }

    /// Calls `f` with the bytes as they lie in a cell.
    pub(super) fn with_bytes<R>(&self, f: impl FnOnce(&[u8]) -> R) -> R {
        match self {
            Self::None => f(&[]),
            Self::Bool(b) => f(&[u8::from(*b)]),
            Self::Int(i) => f(&i.to_le_bytes()),
            Self::Float(x) => f(&x.to_le_bytes()),
            Self::Str(s) => f(s.as_bytes()),
            Self::Bytes(b) => f(b),
        }
    }

    /// How many bytes lie in a cell.
    pub(super) fn len(&self) -> usize {
        self.with_bytes(<[u8]>::len)
    }

    /// Length and kind in a word.
    pub(super) fn head(&self) -> u64 {
        (self.len() as u64) << 8 | u64::from(self.kind())
    }

    /// The length in bytes that a head has; unchecked.
    pub(super) fn len_of(head: u64) -> usize {
        usize::try_from(head >> 8).unwrap_or(usize::MAX)
    }

    /// The value of a head, the word behind it and those behind that, if it is one.
    pub(super) fn decode(head: u64, first: u64, rest: &[u64]) -> Option<Self> {
        let len = Self::len_of(head);
        let bytes = || {
            let words = std::iter::once(first).chain(rest.iter().copied());
            let mut bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
            bytes.truncate(len);
            (bytes.len() == len).then_some(bytes)
        };
        Some(match (head & 0xff, len) {
            (0, 0) => Self::None,
            (1, 1) if first.to_le_bytes()[0] < 2 => Self::Bool(first.to_le_bytes()[0] == 1),
            (2, 8) => Self::Int(i64::from_le_bytes(first.to_le_bytes())),
            (3, 8) => Self::Float(f64::from_bits(first)),
            (4, _) => Self::Str(String::from_utf8(bytes()?).ok()?),
            (5, _) => Self::Bytes(bytes()?),
            _ => return None,
        })
    }

    /// The room that a cell is given for it: as in Python, the next multiple of 8 above a string's or byte string's length.
    pub(super) fn usual_capacity(&self) -> usize {
        match self {
            Self::Str(s) => s.len() / 8 * 8 + 8,
            Self::Bytes(b) => b.len() / 8 * 8 + 8,
            _ => 8,
        }
    }

    /// Whether it is nothing.
    pub fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// The truth value, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(b) => Some(*b),
            _ => None,
        }
    }

    /// The integer, if it is one.
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Self::Int(i) => Some(*i),
            _ => None,
        }
    }

    /// The number, if it is one and not an integer.
    pub fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(x) => Some(*x),
            _ => None,
        }
    }

    /// The string, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(s) => Some(s),
            _ => None,
        }
    }

    /// The bytes, if it is a byte string.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Bytes(b) => Some(b),
            _ => None,
        }
    }
}

macro_rules! from {
    ($($t:ty => |$x:ident| $value:expr;)*) => { $(
        impl From<$t> for ListValue {
            fn from($x: $t) -> Self {
                $value
            }
        }
    )* };
}
from! {
    () => |_nothing| Self::None;
    bool => |b| Self::Bool(b);
    i32 => |i| Self::Int(i.into());
    u32 => |i| Self::Int(i.into());
    i64 => |i| Self::Int(i);
    f32 => |x| Self::Float(x.into());
    f64 => |x| Self::Float(x);
    &str => |s| Self::Str(s.into());
    String => |s| Self::Str(s);
    &[u8] => |b| Self::Bytes(b.into());
    Vec<u8> => |b| Self::Bytes(b);
}

impl<const N: usize> From<&[u8; N]> for ListValue {
    fn from(bytes: &[u8; N]) -> Self {
        Self::Bytes(bytes.to_vec())
    }
}

/// A value was not put into a cell; the old one is still there.
pub struct SetError(Box<(ListValue, Error)>);

impl SetError {
    pub(super) fn new(value: ListValue, reason: Error) -> Self {
        Self(Box::new((value, reason)))
    }

    /// The value that was to be put there.
    pub fn into_value(self) -> ListValue {
        self.0.0
    }

    /// Why it was not.
    pub fn reason(&self) -> &Error {
        &self.0.1
    }
}

impl From<SetError> for Error {
    /// Drops the value.
    fn from(error: SetError) -> Self {
        error.0.1
    }
}

impl fmt::Debug for SetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SetError").field("reason", self.reason()).finish_non_exhaustive()
    }
}

impl fmt::Display for SetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason().fmt(f)
    }
}

impl std::error::Error for SetError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(self.reason())
    }
}
