//! A value in plain shared memory, for the rivals and for what only the measurement itself needs.
//!
//! # Safety
//!
//! A mapping is as long as its `T`, page-aligned, starts as zeroes, and lives as long as its `Page`. Every process
//! that maps it means the same `T`, for which zeroes are valid and which is shared like any `Sync` value.
#![allow(unsafe_code)]

use crate::child::{Fd, Result};
use crate::clock::{now, spin};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// What may lie in a page.
///
/// # Safety
///
/// Zeroes are a valid value, no pointers into a process, all that changes it does so through `&self` as among threads.
pub unsafe trait InPage: Sync {}

// SAFETY: atomic numbers.
unsafe impl<const LEN: usize> InPage for [AtomicU64; LEN] {}

/// A `T` of zeroes in shared memory. Travels in control messages.
pub struct Page<T: InPage> {
    fd: OwnedFd,
    place: NonNull<T>,
}

// SAFETY: like a reference to a `Sync` value.
unsafe impl<T: InPage> Send for Page<T> {}
// SAFETY: as above.
unsafe impl<T: InPage> Sync for Page<T> {}

impl<T: InPage> Page<T> {
    pub fn new() -> Result<Self> {
        let fd = memfd_create("bench-page", MemfdFlags::CLOEXEC)?;
        ftruncate(&fd, size_of::<T>() as u64)?;
        Self::map(fd)
    }

    fn map(fd: OwnedFd) -> Result<Self> {
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the place; the file is long enough.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                size_of::<T>(),
                rights,
                MapFlags::SHARED,
                &fd,
                0,
            )?
        };
        let place = NonNull::new(base.cast()).ok_or("mapped at zero")?;
        Ok(Self { fd, place })
    }
}

impl<T: InPage> Deref for Page<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: mapped until drop, and valid; see the head of the file.
        unsafe { self.place.as_ref() }
    }
}

impl<T: InPage> Drop for Page<T> {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length; nothing borrows from self any more.
        let _ = unsafe { munmap(self.place.as_ptr().cast(), size_of::<T>()) };
    }
}

impl<T: InPage> Serialize for Page<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let copy = self.fd.try_clone().map_err(serde::ser::Error::custom)?;
        Fd(copy).serialize(serializer)
    }
}

impl<'de, T: InPage> Deserialize<'de> for Page<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let Fd(fd) = Fd::deserialize(deserializer)?;
        Self::map(fd).map_err(serde::de::Error::custom)
    }
}

/// Lets several processes or threads begin together.
#[repr(C)]
pub struct Gate(AtomicU32);

// SAFETY: an atomic number.
unsafe impl InPage for Gate {}

impl Gate {
    pub fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Waits until `parties` have come. Returns when it opened for the caller.
    pub fn pass(&self, parties: u32) -> Duration {
        self.0.fetch_add(1, Ordering::AcqRel);
        spin(|| (self.0.load(Ordering::Acquire) >= parties).then_some(()));
        now()
    }
}
