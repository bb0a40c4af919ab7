//! Values, arrays and locks that processes share.
//!
//! `Arc<Mutex<T>>` becomes [`Shared<Mutex<T>>`](Shared). The other holder is a *process*: it may be killed while it holds
//! the lock. Then the next one gets [`LockError::OwnerDied`] with the guard, repairs the data and goes on; nobody hangs.
#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod lock;

#[cfg(not(loom))]
mod arena;
#[cfg(not(loom))]
mod array;
#[cfg(not(loom))]
mod error;
#[cfg(not(loom))]
mod frozen;
#[cfg(not(loom))]
mod list;
#[cfg(not(loom))]
mod memory;
#[cfg(not(loom))]
mod shared;
#[cfg(not(loom))]
mod value;

pub use lock::*;

#[cfg(not(loom))]
pub use native::*;

#[cfg(not(loom))]
mod native {
    pub use crate::arena::{ArenaUsage, arena_usage};
    pub use crate::error::{Error, Result};
    pub use crate::shared::{Shared, SharedBuilder};
    pub use crate::memory::SharedMemory;
    pub use shm_core::ShmSafe;
}

#[doc(no_inline)]
pub use shm_core::Plain;

/// The crate below; the code of `#[derive(ShmSafe)]` names it.
#[doc(no_inline)]
pub use shm_core;
