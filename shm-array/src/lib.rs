#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]
#![warn(missing_docs)]

#[macro_use]
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
mod latch;
/// For models.
#[cfg(loom)]
#[doc(hidden)]
pub mod latch;
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
    pub use crate::array::{ArrayBuilder, ArrayGuard, ArrayReadGuard, Atomic, Chunk, Chunks, SharedArray};
    pub use crate::error::{Error, Result};
    pub use crate::frozen::FrozenArray;
    pub use crate::list::{ListBuilder, ListIter, ListValue, SetError, SharedList};
    pub use crate::memory::SharedMemory;
    pub use crate::shared::{Shared, SharedBuilder};
    pub use crate::value::{SharedValue, ValueCell, ValueGuard};
    pub use shm_core::ShmSafe;
}

#[doc(no_inline)]
pub use shm_core::Plain;

/// The crate below; the code of `#[derive(ShmSafe)]` names it.
#[doc(no_inline)]
pub use shm_core;
