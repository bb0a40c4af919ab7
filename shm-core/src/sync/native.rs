//! The facade's native arm: `core` types, the processor's pause, `membarrier`.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "the one place that names them")]

pub use core::sync::atomic::{
    AtomicBool, AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicIsize, AtomicPtr, AtomicU8, AtomicU16,
    AtomicU32, AtomicU64, AtomicUsize, Ordering, compiler_fence, fence,
};
pub use std::sync::Arc;

/// The ordering `order` of the access that goes by `name`. Free: the name is for models, which weaken one access
/// at a time to show that each ordering is needed.
#[inline(always)]
pub const fn ordering(_name: &str, order: Ordering) -> Ordering {
    order
}

/// Spin-loop hints.
pub mod hint {
    pub use core::hint::spin_loop;
}

/// Giving up the processor.
pub mod thread {
    pub use std::thread::yield_now;
}

/// `core`'s cell behind loom's interface: a raw pointer, lent for the length of a closure.
#[derive(Debug)]
#[repr(transparent)]
pub struct UnsafeCell<T: ?Sized>(core::cell::UnsafeCell<T>);

impl<T> UnsafeCell<T> {
    /// Wraps `value`.
    pub const fn new(value: T) -> Self {
        Self(core::cell::UnsafeCell::new(value))
    }
}

impl<T: ?Sized> UnsafeCell<T> {
    /// Lends a pointer for reading; the caller guarantees that nobody writes meanwhile.
    #[inline(always)]
    pub fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
        f(self.0.get())
    }

    /// Lends a pointer for writing; the caller guarantees that nobody else reads or writes meanwhile.
    #[inline(always)]
    pub fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        f(self.0.get())
    }
}

/// Nothing. `SeqCst` accesses already agree on one order; in a model, which takes them for `AcqRel`, it is a fence.
///
/// For "write mine, then read yours" on both sides with `SeqCst` accesses: put it between the write and the read.
#[inline(always)]
pub fn seq_cst_in_model() {}

/// Whether this process is registered with `membarrier`, so that [`light_fence`] may be free.
static ASYMMETRIC: AtomicBool = AtomicBool::new(false);

/// Registers this process for the heavy fences of others. Called by the first attach and by whoever wants to
/// pay for it early (0.03 ms before threads run, 12 ms later); does nothing when asked again.
///
/// Until it has succeeded, [`light_fence`] is a full fence: correct, only slower. The registration is lost on
/// `exec` and kept over `fork`.
pub fn register_asymmetric_fence() {
    if !ASYMMETRIC.load(Ordering::Relaxed) && crate::sys::membarrier_register() {
        // Relaxed: the flag only chooses between two correct fences of the storing or a later thread.
        ASYMMETRIC.store(true, Ordering::Relaxed);
    }
}

/// The publisher's half of the asymmetric fence; pairs with [`heavy_fence`] on the sleeping side.
#[inline(always)]
pub fn light_fence() {
    if ASYMMETRIC.load(Ordering::Relaxed) {
        compiler_fence(Ordering::SeqCst);
    } else {
        fence(Ordering::SeqCst);
    }
}

/// The sleeper's half of the asymmetric fence; pairs with [`light_fence`] on the publishing side.
///
/// Returns whether the publishers' side may stay free. `false` (the call is missing or filtered) means that
/// the sleeper must make the publishers of its queue execute full fences; see [`crate::wait::WaitLine`].
#[must_use]
pub fn heavy_fence() -> bool {
    fence(Ordering::SeqCst);
    crate::sys::membarrier_global()
}
