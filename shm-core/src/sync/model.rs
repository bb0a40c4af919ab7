//! The facade's loom arm.

pub use loom::cell::UnsafeCell;
pub use loom::hint;
pub use loom::sync::Arc;
pub use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
pub use loom::thread;

/// No registration in a model: both halves are full fences.
pub fn register_asymmetric_fence() {}

/// The publisher's half of the asymmetric fence: a full fence in a model.
pub fn light_fence() {
    fence(Ordering::SeqCst);
}

/// The sleeper's half of the asymmetric fence: a full fence in a model.
#[must_use]
pub fn heavy_fence() -> bool {
    fence(Ordering::SeqCst);
    true
}
