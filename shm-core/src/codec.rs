//! How values become bytes: what users of queues and pipes may write themselves.
//!
//! A [`Codec`] turns values into bytes and back. The crates above bring one for serde types; another format, or types that
//! are not serde's, need only the two functions. The bytes travel between processes of possibly different programs, so a
//! codec has a number, [`Codec::ID`], that both must share.
//!
//! # Across processes
//!
//! Nobody vouches for the bytes that [`Codec::decode`] gets: the other process may be an older program, or broken.
//!
//! # Examples
//!
//! ```
//! use shm_core::codec::{Codec, Sink};
//!
//! /// Text as it is.
//! enum Utf8 {}
//!
//! impl Codec<String> for Utf8 {
//!     const ID: u64 = u64::from_le_bytes(*b"utf8 v01");
//!     type Error = std::string::FromUtf8Error;
//!
//!     fn encode(text: &String, out: &mut Sink<'_>) -> Result<(), Self::Error> {
//!         out.put(text.as_bytes());
//!         Ok(())
//!     }
//!
//!     fn decode(bytes: &[u8]) -> Result<String, Self::Error> {
//!         String::from_utf8(bytes.to_vec())
//!     }
//! }
//!
//! let mut bytes = Vec::new();
//! Utf8::encode(&"grüße".into(), &mut Sink::new(&mut bytes, 100)).unwrap();
//! assert_eq!(Utf8::decode(&bytes).unwrap(), "grüße");
//! ```

use std::{error, fmt, io};

/// Turns values of type `T` into bytes and back. A codec is a type without values: an `enum` without variants, say.
///
/// A codec may serve many types. Its functions run in the thread that sends or receives, while nothing of the transport is
/// held: if one of them panics, its message is lost and nothing else.
///
/// # Examples
///
/// See [the module](self).
pub trait Codec<T> {
    /// What both ends must agree on. Ends of different numbers do not attach to one another: take random ones, and another
    /// one whenever programs of before and after would misunderstand each other.
    const ID: u64;

    /// Why a value does not become bytes, or bytes not a value.
    type Error: error::Error + Send + Sync + 'static;

    /// Writes the value into `out`. May be called again for the same value before that is sent.
    ///
    /// # Errors
    ///
    /// The value has no bytes. It goes back to the sender, and nothing is sent. Being too long is not the codec's
    /// business: [`Sink`] takes everything.
    fn encode(value: &T, out: &mut Sink<'_>) -> Result<(), Self::Error>;

    /// Reads a value from all of `bytes`.
    ///
    /// # Errors
    ///
    /// The bytes are not exactly one value: they are of another type, some are missing, or some are left.
    fn decode(bytes: &[u8]) -> Result<T, Self::Error>;
}

/// Where a [`Codec`] writes to. Keeps up to so many bytes and counts the rest, so that a value that is too long is not an
/// error of the codec, and takes no more memory than the longest that is not.
///
/// It is an [`io::Write`] and a [`fmt::Write`] whose functions never fail.
///
/// # Examples
///
/// ```
/// use shm_core::codec::Sink;
/// let mut bytes = Vec::new();
/// let mut sink = Sink::new(&mut bytes, 4);
/// sink.put(b"abc");
/// assert!(!sink.is_over());
/// sink.put(b"def");
/// assert!(sink.is_over());
/// assert_eq!((sink.len(), sink.limit()), (6, 4));
/// assert_eq!(bytes, b"abc");
/// ```
pub struct Sink<'b> {
    bytes: &'b mut Vec<u8>,
    /// All that was put.
    len: usize,
    limit: usize,
}

impl<'b> Sink<'b> {
    /// A sink that appends up to `limit` bytes to a vector.
    pub fn new(bytes: &'b mut Vec<u8>, limit: usize) -> Self {
        Self { bytes, len: 0, limit }
    }

    /// Adds bytes. Never fails: see [`Sink::is_over`].
    #[inline]
    pub fn put(&mut self, bytes: &[u8]) {
        self.len = self.len.saturating_add(bytes.len());
        if self.len <= self.limit {
            self.bytes.extend_from_slice(bytes);
        }
    }

    /// How many bytes were put, those beyond the limit included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was put.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many bytes are kept at most: the longest message of the transport.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Whether more was put than the limit, so that some is missing and the value cannot be sent. A codec with much more to
    /// write may stop then.
    pub fn is_over(&self) -> bool {
        self.len > self.limit
    }
}

impl io::Write for Sink<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes);
        Ok(bytes.len())
    }

    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.put(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Write for Sink<'_> {
    #[inline]
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.put(text.as_bytes());
        Ok(())
    }
}

impl fmt::Debug for Sink<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sink").field("len", &self.len).field("limit", &self.limit).finish_non_exhaustive()
    }
}
