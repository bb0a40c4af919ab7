//! Locks that processes share, robust against the death of whoever holds them.
//!
//! They work at any address that the processes share (in a [`Shared`](crate::Shared), in a field of a user's struct
//! there, in an array), and as plain locks between the threads of one process, also under loom.

/// A function that is `const` where memory can be, and not in a model, whose words register themselves.
macro_rules! const_in_memory {
    ($(#[$meta:meta])* $visible:vis fn $($rest:tt)*) => {
        #[cfg(not(loom))]
        $(#[$meta])*
        $visible const fn $($rest)*

        #[cfg(loom)]
        $(#[$meta])*
        $visible fn $($rest)*
    };
}

mod barrier;
mod condvar;
mod error;
mod event;
pub(crate) mod line;
#[cfg(all(feature = "lock_api", not(loom)))]
pub mod lock_api;
mod mutex;
mod once;
pub(crate) mod raw;
mod reentrant;
mod rwlock;
mod semaphore;
mod signal;

pub use barrier::{Barrier, BarrierError, BarrierWaitResult};
pub use condvar::{Condvar, WaitGuard, WaitTimeoutResult};
pub use error::LockError;
pub use event::Event;
pub use mutex::{Mutex, MutexGuard};
pub use once::{Once, OnceLock, OnceState};
pub use reentrant::{ReentrantMutex, ReentrantMutexGuard};
pub use rwlock::{RwLock, RwLockReadGuard, RwLockWriteGuard};
pub use semaphore::{Permit, Semaphore};
pub use signal::Signal;

/// The orderings that a model can weaken by name, so that it can show that none is forgotten.
#[cfg(loom)]
#[doc(hidden)]
pub mod orderings {
    pub use super::barrier::ORDERINGS as BARRIER;
    pub use super::condvar::ORDERINGS as CONDVAR;
    pub use super::event::ORDERINGS as EVENT;
    pub use super::once::ORDERINGS as ONCE;
    pub use super::raw::ORDERINGS as RAW;
    pub use super::rwlock::ORDERINGS as RWLOCK;
    pub use super::semaphore::ORDERINGS as SEMAPHORE;
    pub use super::signal::ORDERINGS as SIGNAL;
}
