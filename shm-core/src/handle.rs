//! Handles are values: descriptors that ride beside serialised bytes.
//!
//! A handle (a queue's sender, a shared array) serialises itself as a number, and puts the descriptor that makes
//! it work in another process into the *send session* of the calling thread. Whoever transports the bytes opens
//! the session, serialises, and sends the session's descriptors beside the bytes; the receiving side opens a
//! *receive session* with them and deserialises. Sessions nest (a stack per thread), and what a session leaves
//! behind is closed.
//!
//! # Across processes
//!
//! A descriptor in a session, a socket buffer or a process belongs to the kernel: if everybody who could still
//! take it dies, it is closed.
//!
//! # Examples
//!
//! ```
//! use shm_core::handle::{ReceiveSession, SendSession, send_descriptor, take_descriptor};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let session = SendSession::begin();
//! let index = send_descriptor(std::fs::File::open("/dev/null")?.into())?;     // a handle's `Serialize`
//! let descriptors = session.finish();                                         // travels beside the bytes
//!
//! let session = ReceiveSession::begin(descriptors);
//! let descriptor = take_descriptor(index)?;                                   // a handle's `Deserialize`
//! drop(session);                                                              // closes what nobody took
//! # drop(descriptor); Ok(()) }
//! ```

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;

/// A handle was serialised where no descriptors can travel, for example into a file or a plain byte vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a handle can only be serialised while it is being sent to a process")]
pub struct NoSession;

/// The descriptor of a handle did not arrive, or was taken already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("descriptor {index} of the message is missing: {present} arrived, each can be taken once")]
pub struct MissingDescriptor {
    /// The index that the bytes name.
    pub index: u32,
    /// How many descriptors arrived.
    pub present: usize,
}

thread_local! {
    /// Open sessions of this thread: sending, receiving. Apart, because these need no destructor: a plain load tells.
    static OPEN: [Cell<u32>; 2] = const { [Cell::new(0), Cell::new(0)] };
    static SENDING: RefCell<Vec<Vec<OwnedFd>>> = const { RefCell::new(Vec::new()) };
    static RECEIVING: RefCell<Vec<Vec<Option<OwnedFd>>>> = const { RefCell::new(Vec::new()) };
}

fn count(session: usize, step: fn(u32, u32) -> u32) {
    OPEN.with(|open| open[session].set(step(open[session].get(), 1)));
}

/// Whether a send session of this thread is open, so that a handle that is serialised now would join it. Whoever
/// serialises something for another destination opens a session of its own then.
#[inline(always)]
pub fn is_sending() -> bool {
    OPEN.with(|open| open[0].get() != 0)
}

/// Whether a receive session of this thread is open, as [`is_sending`].
#[inline(always)]
pub fn is_receiving() -> bool {
    OPEN.with(|open| open[1].get() != 0)
}

/// Collects the descriptors of the handles that this thread serialises until [`SendSession::finish`].
///
/// Dropping it closes them. Sessions end in the reverse order of their beginning.
#[derive(Debug)]
#[must_use = "dropping the session closes its descriptors"]
pub struct SendSession {
    /// Sessions belong to their thread.
    _thread: std::marker::PhantomData<*mut ()>,
}

impl SendSession {
    /// Opens a session for this thread.
    pub fn begin() -> Self {
        SENDING.with_borrow_mut(|stack| stack.push(Vec::new()));
        count(0, u32::wrapping_add);
        Self { _thread: std::marker::PhantomData }
    }

    /// How many descriptors were collected so far.
    pub fn len(&self) -> usize {
        SENDING.with_borrow(|stack| stack.last().map_or(0, Vec::len))
    }

    /// Whether nothing that was serialised so far was a handle.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Closes the descriptors beyond the first `len`: what was serialised last is not sent after all.
    pub fn truncate(&self, len: usize) {
        let surplus = SENDING.with_borrow_mut(|stack| {
            let session = stack.last_mut().filter(|session| session.len() > len);
            session.map(|session| session.split_off(len))
        });
        // Closed after the borrow ends.
        drop(surplus);
    }

    /// Ends the session and returns its descriptors, in the order of their indices.
    pub fn finish(self) -> Vec<OwnedFd> {
        let descriptors = SENDING.with_borrow_mut(|stack| stack.last_mut().map(std::mem::take));
        descriptors.unwrap_or_default()
    }
}

impl Drop for SendSession {
    fn drop(&mut self) {
        count(0, u32::wrapping_sub);
        // Closed after the borrow ends, and not at all if the thread's storage is already gone.
        drop(SENDING.try_with(|stack| stack.borrow_mut().pop()));
    }
}

/// Adds a descriptor to the send session of this thread; called by `Serialize` implementations of handles.
/// Returns the index to write into the bytes.
///
/// # Errors
///
/// [`NoSession`] if nothing on this thread is sending; the descriptor is closed.
pub fn send_descriptor(descriptor: OwnedFd) -> Result<u32, NoSession> {
    SENDING.with_borrow_mut(|stack| {
        let session = stack.last_mut().ok_or(NoSession)?;
        let index = u32::try_from(session.len()).map_err(|_| NoSession)?;
        session.push(descriptor);
        Ok(index)
    })
}

/// Offers received descriptors to the handles that this thread deserialises until it is dropped, which closes
/// what nobody took.
#[derive(Debug)]
#[must_use = "dropping the session closes its descriptors"]
pub struct ReceiveSession {
    _thread: std::marker::PhantomData<*mut ()>,
}

impl ReceiveSession {
    /// Opens a session for this thread with the descriptors that arrived beside the bytes.
    pub fn begin(descriptors: Vec<OwnedFd>) -> Self {
        RECEIVING.with_borrow_mut(|stack| stack.push(descriptors.into_iter().map(Some).collect()));
        count(1, u32::wrapping_add);
        Self { _thread: std::marker::PhantomData }
    }
}

impl Drop for ReceiveSession {
    fn drop(&mut self) {
        count(1, u32::wrapping_sub);
        drop(RECEIVING.try_with(|stack| stack.borrow_mut().pop()));
    }
}

/// Takes a descriptor out of the receive session of this thread; called by `Deserialize` implementations of
/// handles with the index that the bytes name.
///
/// # Errors
///
/// [`MissingDescriptor`] if there is no session, no such descriptor, or it was taken already.
pub fn take_descriptor(index: u32) -> Result<OwnedFd, MissingDescriptor> {
    RECEIVING.with_borrow_mut(|stack| {
        let session = stack.last_mut().ok_or(MissingDescriptor { index, present: 0 })?;
        let present = session.len();
        let slot = usize::try_from(index).ok().and_then(|index| session.get_mut(index));
        slot.and_then(Option::take).ok_or(MissingDescriptor { index, present })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").expect("/dev/null exists").into()
    }

    #[test]
    fn a_handle_outside_a_session_is_an_error() {
        assert_eq!(send_descriptor(null()), Err(NoSession));
        assert_eq!(take_descriptor(0).map(drop), Err(MissingDescriptor { index: 0, present: 0 }));
    }

    #[test]
    fn a_descriptor_is_taken_once() {
        let _session = ReceiveSession::begin(vec![null()]);
        assert!(take_descriptor(0).is_ok());
        assert_eq!(take_descriptor(0).map(drop), Err(MissingDescriptor { index: 0, present: 1 }));
        assert_eq!(take_descriptor(7).map(drop), Err(MissingDescriptor { index: 7, present: 1 }));
    }

    #[test]
    fn sessions_nest() {
        assert!(!is_sending() && !is_receiving());
        let outer = SendSession::begin();
        assert!(is_sending() && !is_receiving());
        send_descriptor(null()).expect("a session is open");
        let inner = SendSession::begin();
        assert_eq!(inner.finish().len(), 0);
        assert_eq!(send_descriptor(null()), Ok(1));
        assert_eq!(outer.finish().len(), 2);
        assert!(!is_sending());
    }
}
