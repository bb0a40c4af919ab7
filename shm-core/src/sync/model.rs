//! The facade's loom arm.

pub use loom::cell::UnsafeCell;
pub use loom::hint;
pub use loom::sync::Arc;
pub use loom::sync::atomic::{
    AtomicBool, AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicIsize, AtomicPtr, AtomicU8, AtomicU16,
    AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};
pub use loom::thread;

use std::cell::Cell;

thread_local! {
    /// The ordering or fence that the running model weakens. All threads of a model run on one system thread.
    static WEAKENED: Cell<&'static str> = const { Cell::new("") };
}

/// The ordering `order` of the access that goes by `name`; `Relaxed` within [`weakened`] by that name.
pub fn ordering(name: &str, order: Ordering) -> Ordering {
    if is_weakened(name) { Ordering::Relaxed } else { order }
}

/// Runs `f`, in which the access `name` is `Relaxed` or the fence `name` is missing: the control that a model
/// would notice. Fences go by "light_fence" and "heavy_fence".
pub fn weakened<R>(name: &'static str, f: impl FnOnce() -> R) -> R {
    struct Restore(&'static str);
    impl Drop for Restore {
        fn drop(&mut self) {
            WEAKENED.set(self.0);
        }
    }
    let _restore = Restore(WEAKENED.replace(name));
    f()
}

fn is_weakened(name: &str) -> bool {
    WEAKENED.get() == name
}

/// A full fence, because loom takes `SeqCst` accesses for `AcqRel`; goes by "seq_cst" in [`weakened`].
pub fn seq_cst_in_model() {
    if !is_weakened("seq_cst") {
        fence(Ordering::SeqCst);
    }
}

/// No registration in a model: both halves are full fences.
pub fn register_asymmetric_fence() {}

/// The publisher's half of the asymmetric fence: a full fence in a model.
pub fn light_fence() {
    if !is_weakened("light_fence") {
        fence(Ordering::SeqCst);
    }
}

/// The sleeper's half of the asymmetric fence: a full fence in a model.
#[must_use]
pub fn heavy_fence() -> bool {
    if !is_weakened("heavy_fence") {
        fence(Ordering::SeqCst);
    }
    true
}
