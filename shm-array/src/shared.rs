//! [`Shared`]: like `Arc`, across processes.
#![allow(unsafe_code)]
//! # Safety
//!
//! * `value` points to a `T` in memory that `segment` keeps mapped at this address in the process that made the handle,
//!   and maps again at the same address in a forked child; nothing dereferences it but after [`Segment::ensure`].
//! * The `T` was written before anybody else could attach to it, is never moved, and has no destructor. In an arena,
//!   `block` keeps its bytes from being given to another value.
//! * Whoever attaches proves with the layout hash that it means the same `T`; that it only does with it what `&T` allows
//!   is what [`ShmSafe`] asks of all who share it.

use crate::arena::Block;
use crate::error::{Error, Kind};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use shm_core::ShmSafe;
use shm_core::handle::{send_descriptor, take_descriptor};
use shm_core::portable::{layout_of, mix};
use shm_core::segment::{Segment, Spec};
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::ptr::NonNull;
use std::sync::Arc;

/// The kind of a segment that holds one value.
const KIND: u32 = u32::from_le_bytes(*b"shrd");
/// What the place of a body, and of a block in an arena, guarantees.
const MAX_ALIGN: usize = 4096;

/// A value that processes share; like [`Arc`], but its clones may live in different processes.
///
/// A clone gets to another process as a value: in the arguments and results of processes and pools, in items of queues, in
/// whatever else is serialised while it is sent to a process. The value goes away with the last clone in the last process;
/// a process that is killed holds nothing any more. It is never moved and is given out as `&T` only, so what shall change
/// is atomic or in a lock: `Shared<Mutex<T>>`.
///
/// Values of up to 8 KiB share segments, *arenas*; larger ones get one of their own. What a process put into one arena can
/// be read and written by every process that has a handle of any value in it; a process that shall see nothing else gets a
/// value with a [segment of its own](SharedBuilder::own_segment).
///
/// It is checked at compile time that `T` has no destructor, which nobody would run, and that it needs no stricter
/// alignment than a page.
///
/// # If the peer dies
///
/// Its handles are gone. The memory of a value in an arena is given out again once a process has found out, which is at the
/// latest when it would have to make another arena; the memory of an arena goes with the last handle of any value in it.
///
/// # Across processes
///
/// A program that was compiled with another definition of `T` gets an error when the handle arrives. After `fork`, the
/// child's copies work: the first use attaches again. What is *held* at the fork (a guard) stays the parent's. As long as a
/// child uses none of the values that it inherited in an arena, no block of that arena is given out again.
///
/// # Examples
///
/// ```
/// use shm_array::Shared;
/// use std::sync::atomic::{AtomicU64, Ordering};
///
/// # fn main() -> shm_array::Result<()> {
/// let hits = Shared::new(AtomicU64::new(0))?;
/// let same = hits.clone();                      // or in another process
/// same.fetch_add(1, Ordering::Relaxed);
/// assert_eq!(hits.load(Ordering::Relaxed), 1);
/// # Ok(()) }
/// ```
///
/// Only what means the same in every process can be shared:
///
/// ```compile_fail,E0277
/// shm_array::Shared::new(String::from("on this process's heap"));
/// ```
pub struct Shared<T: ShmSafe> {
    value: NonNull<T>,
    /// In an arena: what keeps the value. Without one, the segment is the value's own.
    block: Option<Block>,
    segment: Arc<Segment>,
}

// SAFETY: a handle gives `&T` only, and `ShmSafe` includes `Send` and `Sync`.
unsafe impl<T: ShmSafe> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: ShmSafe> Sync for Shared<T> {}
// As `Arc`: what a panic may leave half done is in `T`.
impl<T: ShmSafe + RefUnwindSafe> UnwindSafe for Shared<T> {}
impl<T: ShmSafe + RefUnwindSafe> RefUnwindSafe for Shared<T> {}

impl<T: ShmSafe> Shared<T> {
    /// What both ends must agree on.
    const LAYOUT: u64 = {
        assert!(!std::mem::needs_drop::<T>(), "shared memory goes away without running destructors");
        assert!(align_of::<T>() <= MAX_ALIGN, "shared values are aligned to a page at most");
        mix(layout_of::<T>("Shared"), T::LAYOUT)
    };

    /// Moves `value` to memory that processes can share. Does not wait for other processes.
    ///
    /// # Errors
    ///
    /// `is_out_of_memory`, or the system's error (no descriptors left); the value is lost then.
    pub fn new(value: T) -> Result<Self, Error> {
        Self::builder().build(value)
    }

    /// Options for a new value.
    ///
    /// # Examples
    ///
    /// ```
    /// # use shm_array::Shared;
    /// # fn main() -> shm_array::Result<()> {
    /// let alone = Shared::builder().own_segment().build([0_u8; 100])?;
    /// # assert_eq!(alone.len(), 100); Ok(()) }
    /// ```
    pub fn builder() -> SharedBuilder<T> {
        SharedBuilder { own_segment: false, value: PhantomData }
    }

    /// Whether both are handles of the same value.
    pub fn ptr_eq(this: &Self, other: &Self) -> bool {
        this.value == other.value
    }

    /// A segment for this value alone.
    fn spec() -> Spec {
        let body_len = size_of::<T>().max(1);
        Spec { kind: KIND, layout_hash: Self::LAYOUT, body_len, sweep: |_, _| true, arrived: |_| () }
    }

    fn in_segment(segment: Arc<Segment>) -> Self {
        Self { value: segment.body().cast(), block: None, segment }
    }

    fn in_block(block: Block) -> Self {
        Self { value: block.bytes().cast(), segment: Arc::clone(block.segment()), block: Some(block) }
    }

    /// The handle that a token and a place in an arena stand for.
    fn arrive(token: BorrowedFd<'_>, object: Option<u32>) -> Result<Self, Error> {
        let block_len = Block::len_for(size_of::<T>(), align_of::<T>());
        match (object, block_len) {
            (Some(object), Some(len)) => Ok(Self::in_block(Block::arrive(token, object, len, Self::LAYOUT)?)),
            (Some(_), None) => Err(Kind::Mismatch { what: "the size of a shared value" }.into()),
            (None, _) => Ok(Self::in_segment(Segment::attach(token, &Self::spec())?)),
        }
    }
}

impl<T: ShmSafe> Deref for Shared<T> {
    type Target = T;

    /// The value. One load more than a pointer; in a forked child the first one attaches again.
    ///
    /// # Panics
    ///
    /// In a forked child that cannot attach again: the fork skipped the handlers of `pthread_atfork` (raw `clone`), or
    /// there are no descriptors left. The message says "forked".
    #[inline(always)]
    fn deref(&self) -> &T {
        if let Err(error) = self.segment.ensure() {
            forked(&error);
        }
        // SAFETY: mapped, initialised, and only shared references of it exist; see the head of the file.
        unsafe { self.value.as_ref() }
    }
}

#[cold]
fn forked(error: &dyn fmt::Display) -> ! {
    panic!("a forked process cannot reach a shared value that it inherited: {error}");
}

impl<T: ShmSafe> Clone for Shared<T> {
    /// Another handle of the same value, in this process. No system call.
    fn clone(&self) -> Self {
        Self { value: self.value, block: self.block.clone(), segment: Arc::clone(&self.segment) }
    }
}

impl<T: ShmSafe> AsRef<T> for Shared<T> {
    fn as_ref(&self) -> &T {
        self
    }
}

impl<T: ShmSafe + fmt::Debug> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl<T: ShmSafe + fmt::Display> fmt::Display for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&**self, f)
    }
}

/// Compares the values; see [`Shared::ptr_eq`].
impl<T: ShmSafe + PartialEq> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: ShmSafe + Eq> Eq for Shared<T> {}

impl<T: ShmSafe + PartialOrd> PartialOrd for Shared<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (**self).partial_cmp(&**other)
    }
}

impl<T: ShmSafe + Ord> Ord for Shared<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        (**self).cmp(&**other)
    }
}

impl<T: ShmSafe + Hash> Hash for Shared<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

/// A handle in bytes.
#[derive(Serialize, Deserialize)]
#[serde(rename = "SharedHandle")]
struct Ticket {
    /// What both ends must agree on about the value.
    layout: u64,
    /// The value's number in its arena, if it is in one.
    object: Option<u32>,
    /// The token's place in the session.
    descriptor: u32,
}

impl<T: ShmSafe> Serialize for Shared<T> {
    /// Fails outside of a send session ([`shm_core::handle`]): a handle can only be sent to a process.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let token = match &self.block {
            Some(block) => block.token().map_err(ser::Error::custom)?,
            // The system keeps a segment as long as there is a descriptor of it.
            None => self.segment.descriptor().try_clone_to_owned().map_err(ser::Error::custom)?,
        };
        let descriptor = send_descriptor(token).map_err(ser::Error::custom)?;
        let object = self.block.as_ref().map(Block::object);
        Ticket { layout: Self::LAYOUT, object, descriptor }.serialize(serializer)
    }
}

impl<'de, T: ShmSafe> Deserialize<'de> for Shared<T> {
    /// Fails if the descriptor did not arrive with the bytes, or if it is not the handle of a `T` of this layout.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ticket = Ticket::deserialize(deserializer)?;
        let token = take_descriptor(ticket.descriptor).map_err(de::Error::custom)?;
        if ticket.layout != Self::LAYOUT {
            return Err(de::Error::custom(Error::from(Kind::Mismatch {
                what: "the type of a shared value",
            })));
        }
        // The token is closed behind it: the handle is counted by then.
        Self::arrive(token.as_fd(), ticket.object).map_err(de::Error::custom)
    }
}

/// Options for a new shared value; see [`Shared::builder`].
pub struct SharedBuilder<T> {
    own_segment: bool,
    value: PhantomData<fn(T)>,
}

impl<T: ShmSafe> SharedBuilder<T> {
    /// Gives the value a segment of its own, however small it is: whoever has a handle of it reaches nothing else. Costs a
    /// descriptor in each process and some tens of microseconds.
    #[must_use]
    pub fn own_segment(mut self) -> Self {
        self.own_segment = true;
        self
    }

    /// Moves `value` to memory that processes can share.
    ///
    /// # Errors
    ///
    /// As [`Shared::new`].
    pub fn build(self, value: T) -> Result<Shared<T>, Error> {
        let block_len = Block::len_for(size_of::<T>(), align_of::<T>()).filter(|_| !self.own_segment);
        let write = |place: NonNull<u8>| {
            // SAFETY: a body or a block is as long and as aligned as a `T`, and nobody else has it yet.
            unsafe { place.cast::<T>().write(value) };
        };
        match block_len {
            Some(len) => Ok(Shared::in_block(Block::place(len, Shared::<T>::LAYOUT, write)?)),
            None => Ok(Shared::in_segment(Segment::create(&Shared::<T>::spec(), write)?)),
        }
    }
}

impl<T> fmt::Debug for SharedBuilder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedBuilder").field("own_segment", &self.own_segment).finish()
    }
}
