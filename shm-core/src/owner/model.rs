//! Owners in a loom model: participants are threads, and a thread says when its process dies.

use super::Owner;
use crate::fork::Forked;
use loom::sync::atomic::{AtomicU32, Ordering};

loom::thread_local! {
    static ME: std::cell::Cell<u16> = std::cell::Cell::new(0);
}

loom::lazy_static! {
    /// One bit per index whose process is dead.
    static ref DEAD: AtomicU32 = AtomicU32::new(0);
}

/// Makes the calling model thread (a thread of) the process with participant index `index`, 1 to 31. A thread that did
/// not say so belongs to the one process that holds index 0, whose token never dies.
pub fn enter(index: u16) {
    assert!((1..32).contains(&index), "a model has few processes");
    ME.with(|me| me.set(index));
}

/// The calling thread's process dies here: from now on its token is dead for everybody. What it holds it must not
/// give back any more (`mem::forget` the guards), and the thread must end.
pub fn die() {
    let me = ME.with(|me| me.get());
    assert!(me > 0, "the process at index 0 does not die");
    // Release: whoever is told of the death sees everything that the dead one did, as with the kernel's lock.
    DEAD.fetch_or(1 << me, Ordering::Release);
}

impl Owner {
    /// The token of the calling model thread; see [`enter`].
    ///
    /// # Errors
    ///
    /// Never, in a model.
    pub fn here<T>(_place: *const T) -> Result<Self, Forked> {
        Ok(Self::new(ME.with(|me| me.get()), 1))
    }

    /// Whether the process of this token has died; see [`die`].
    pub fn is_dead<T>(self, _place: *const T) -> bool {
        let dead = DEAD.load(Ordering::Acquire) & (1 << (self.index() % 32)) != 0;
        if !dead {
            // Whoever waits for it must let others run.
            loom::thread::yield_now();
        }
        dead
    }

    /// A model has no process ids.
    pub fn process_id<T>(self, _place: *const T) -> Option<u32> {
        None
    }
}
