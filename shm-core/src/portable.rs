//! Which values may live in memory that processes share.
#![allow(unsafe_code)]
//! # Safety
//!
//! The implementations here are for primitive types, for arrays and markers of what is safe itself, and for atomics,
//! whose in-memory form `core` documents.

use core::marker::PhantomData;
use core::sync::atomic as core_atomic;

/// Types whose values may live in memory that several processes map, and be used through `&T` by all of them.
///
/// With the feature `derive`, `#[derive(ShmSafe)]` implements it for `repr(C)` structs of such fields.
///
/// # Safety
///
/// * Fixed layout: `repr(C)`, `repr(transparent)` or a primitive; the same in every program that has the same
///   [`LAYOUT`](ShmSafe::LAYOUT).
/// * Nothing in it is an address or otherwise has a meaning in one process only (no pointers, references, boxes, file
///   descriptors, thread identities).
/// * No destructor: the memory goes away without one. No `dyn`, no padding that matters.
/// * Interior mutability only through atomics and through locks that work between processes.
///
/// # Across processes
///
/// `LAYOUT` is compared when another process attaches: a program that was compiled with another definition of the
/// type gets an error instead of nonsense. It cannot protect against a process that writes what is not a value of
/// the type: sharing a `T` means trusting everybody who can attach to respect it.
///
/// # Examples
///
/// ```
/// use shm_core::ShmSafe;
/// use std::sync::atomic::AtomicU64;
///
/// fn shared<T: ShmSafe>() -> u64 { T::LAYOUT }
/// assert_ne!(shared::<AtomicU64>(), shared::<[AtomicU64; 2]>());
/// ```
///
/// What points elsewhere is refused:
///
/// ```compile_fail
/// fn shared<T: shm_core::ShmSafe>() {}
/// shared::<String>();
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` may not live in memory that processes share",
    note = "derive `ShmSafe` for a `repr(C)` struct of such fields, or wrap plain data in `shm_core::Bits`"
)]
pub unsafe trait ShmSafe: Send + Sync + 'static {
    /// A hash of everything that two programs must agree on to share values of this type.
    const LAYOUT: u64;
}

/// The first step of a layout hash: a type's name, size and alignment. For implementations of [`ShmSafe`].
pub const fn layout_of<T>(name: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let bytes = name.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        hash = mix(hash, bytes[i] as u64);
        i += 1;
    }
    mix(mix(hash, size_of::<T>() as u64), align_of::<T>() as u64)
}

/// A further step of a layout hash: a field's place, a field's own layout, a length.
pub const fn mix(hash: u64, value: u64) -> u64 {
    // FNV-1a over words, with a final spread so that small values reach the high bits.
    let hash = (hash ^ value).wrapping_mul(0x0000_0100_0000_01b3);
    hash ^ (hash >> 29)
}

macro_rules! primitives {
    ($($t:ty),*) => { $(
        // SAFETY: a primitive: any bits are a value, and it means the same everywhere.
        unsafe impl ShmSafe for $t {
            const LAYOUT: u64 = layout_of::<$t>(stringify!($t));
        }
    )* };
}
primitives!((), u8, u16, u32, u64, u128, usize, i8, i16, i32, i64, i128, isize, f32, f64);

macro_rules! atomics {
    ($($t:ident),*) => { $(
        // SAFETY: the same in-memory form as its integer, and atomic between processes as between threads. (`core`
        // reads an atomic bool as a byte and compares it with zero.)
        unsafe impl ShmSafe for core_atomic::$t {
            const LAYOUT: u64 = layout_of::<core_atomic::$t>(stringify!($t));
        }
    )* };
}
atomics!(
    AtomicBool,
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

// SAFETY: an array of what is safe, in a row.
unsafe impl<T: ShmSafe, const N: usize> ShmSafe for [T; N] {
    const LAYOUT: u64 = mix(mix(layout_of::<Self>("array"), T::LAYOUT), N as u64);
}

// SAFETY: no bytes at all; what it stands for is safe itself.
unsafe impl<T: ShmSafe> ShmSafe for PhantomData<T> {
    const LAYOUT: u64 = mix(layout_of::<Self>("PhantomData"), T::LAYOUT);
}

/// Plain data of somebody else's type, which cannot implement [`ShmSafe`] itself.
///
/// Its [`LAYOUT`](ShmSafe::LAYOUT) says the size and the alignment of the type, which is all that is known of it here:
/// programs that disagree about its fields are not told apart. Any bytes are a value of it, so they read numbers that
/// the other did not mean, and nothing worse.
///
/// # Examples
///
/// ```
/// # #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)] #[repr(C)] struct Vec3([f32; 3]);
/// use shm_core::{Bits, ShmSafe};
/// fn shared<T: ShmSafe>(_: &T) {}
/// shared(&Bits(Vec3([0.0; 3])));       // a vector type of a mathematics crate
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Bits<T>(pub T);

// SAFETY: `Plain` promises a fixed form without pointers or padding.
unsafe impl<T: crate::Plain + Send + Sync> ShmSafe for Bits<T> {
    const LAYOUT: u64 = layout_of::<T>("plain");
}
