//! [`Shared`]: like `Arc`, across processes.
#![allow(unsafe_code)]
//! # Safety
//!
//! * `value` points to a `T` in memory that `home` keeps mapped at this address in the process that made the handle, and
//!   maps again at the same address in a forked child; nothing dereferences it but after [`Segment::ensure`].
//! * The `T` was written before anybody could attach to it, is never moved, and has no destructor.
//! * Whoever attaches proves with the layout hash that it means the same `T`; that it only does with it what `&T` allows
//!   is what [`ShmSafe`] asks of all who share it.

use crate::error::{Error, Kind};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use shm_core::ShmSafe;
use shm_core::handle::{send_descriptor, take_descriptor};
use shm_core::portable::{layout_of, mix};
use shm_core::segment::{Segment, Spec};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;

/// The kind of a segment that holds one value.
const KIND: u32 = u32::from_le_bytes(*b"shrd");
/// What a body's place guarantees.
const MAX_ALIGN: usize = 4096;

/// A value that processes share; like [`Arc`], but its clones may live in different processes.
pub struct Shared<T: ShmSafe> {
    value: NonNull<T>,
    segment: Arc<Segment>,
}

// SAFETY: a handle gives `&T` only, and `ShmSafe` includes `Send` and `Sync`.
unsafe impl<T: ShmSafe> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: ShmSafe> Sync for Shared<T> {}

impl<T: ShmSafe> Shared<T> {
    const LAYOUT: u64 = mix(layout_of::<T>("Shared"), T::LAYOUT);

    const CHECK: () = {
        assert!(!std::mem::needs_drop::<T>(), "shared memory goes away without running destructors");
        assert!(align_of::<T>() <= MAX_ALIGN, "shared values are aligned to a page at most");
    };

    /// Moves `value` to memory that processes can share.
    ///
    /// # Errors
    ///
    /// `is_out_of_memory`, or the system's error (no descriptors left).
    pub fn new(value: T) -> Result<Self, Error> {
        Self::builder().build(value)
    }

    /// Options for a new value.
    pub fn builder() -> SharedBuilder<T> {
        SharedBuilder { own_segment: false, value: PhantomData }
    }

    /// Whether both are handles of the same value.
    pub fn ptr_eq(this: &Self, other: &Self) -> bool {
        this.value == other.value
    }

    fn spec() -> Spec {
        let () = Self::CHECK;
        let body_len = size_of::<T>().max(1);
        Spec { kind: KIND, layout_hash: Self::LAYOUT, body_len, sweep: |_, _| true, arrived: |_| () }
    }

    fn own(value: T) -> Result<Self, Error> {
        let segment = Segment::create(&Self::spec(), |body| {
            // SAFETY: the body is page-aligned, as long as a `T`, and nobody else has it yet.
            unsafe { body.cast::<T>().write(value) };
        })?;
        Ok(Self { value: segment.body().cast(), segment })
    }
}

impl<T: ShmSafe> Deref for Shared<T> {
    type Target = T;

    /// The value.
    ///
    /// # Panics
    ///
    /// In a forked child that cannot attach again.
    #[inline(always)]
    fn deref(&self) -> &T {
        if let Err(error) = self.segment.ensure() {
            forked(error);
        }
        // SAFETY: mapped, initialised, and only shared references of it exist; see the head of the file.
        unsafe { self.value.as_ref() }
    }
}

#[cold]
fn forked(error: impl fmt::Display) -> ! {
    panic!("a shared value cannot be reached after a fork: {error}");
}

impl<T: ShmSafe> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self { value: self.value, segment: Arc::clone(&self.segment) }
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
    /// The place in the session of the descriptor to attach by.
    descriptor: u32,
}

impl<T: ShmSafe> Serialize for Shared<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let copy = self.segment.descriptor().try_clone_to_owned().map_err(ser::Error::custom)?;
        let descriptor = send_descriptor(copy).map_err(ser::Error::custom)?;
        Ticket { layout: Self::LAYOUT, descriptor }.serialize(serializer)
    }
}

impl<'de, T: ShmSafe> Deserialize<'de> for Shared<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ticket = Ticket::deserialize(deserializer)?;
        let token = take_descriptor(ticket.descriptor).map_err(de::Error::custom)?;
        if ticket.layout != Self::LAYOUT {
            return Err(de::Error::custom(Error::from(Kind::Mismatch {
                what: "the type of a shared value",
            })));
        }
        let segment = Segment::attach(token.as_fd(), &Self::spec()).map_err(de::Error::custom)?;
        Ok(Self { value: segment.body().cast(), segment })
    }
}

/// Options for a new shared value; see [`Shared::builder`].
#[derive(Debug)]
pub struct SharedBuilder<T> {
    own_segment: bool,
    value: PhantomData<fn(T)>,
}

impl<T: ShmSafe> SharedBuilder<T> {
    /// Gives the value a segment of its own.
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
        Shared::own(value)
    }
}
