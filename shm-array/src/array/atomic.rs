//! Which elements need no lock.

use bytemuck::Zeroable;
use shm_core::ShmSafe;
use std::sync::atomic;

/// The integer atomics of std: an array of them needs no lock, and derefs to a slice of them.
///
/// Sealed.
///
/// # Examples
///
/// ```
/// use shm_array::SharedArray;
/// use std::sync::atomic::{AtomicU64, Ordering};
/// # fn main() -> shm_array::Result<()> {
/// let counts = SharedArray::<AtomicU64>::zeroed(16)?;
/// counts[3].fetch_add(1, Ordering::Relaxed);
/// assert_eq!(counts.iter().map(|n| n.load(Ordering::Relaxed)).sum::<u64>(), 1);
/// # Ok(()) }
/// ```
pub trait Atomic: sealed::Sealed + ShmSafe + Zeroable {}

mod sealed {
    pub trait Sealed {}
}

macro_rules! atomics {
    ($($t:ident),*) => { $(
        impl sealed::Sealed for atomic::$t {}
        impl Atomic for atomic::$t {}
    )* };
}
atomics!(
    AtomicU8,
    AtomicU16,
    AtomicU32,
    AtomicU64,
    AtomicUsize,
    AtomicI8,
    AtomicI16,
    AtomicI32,
    AtomicI64,
    AtomicIsize
);
