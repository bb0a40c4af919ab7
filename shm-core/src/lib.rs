//! What memory shared by processes demands: segments with a participant registry and an exact death oracle, a
//! futex and one waiting policy, the atomics facade that loom reaches, and descriptors that ride beside messages.
//!
//! The other end of shared memory is a *process*: it may crash, be stopped or be killed between any two machine
//! instructions. This crate answers the one question that everything above it needs: *is the process that owns
//! this thing dead?* The kernel answers it ([`segment`]), never a timeout.
//!
//! | module | what for |
//! |---|---|
//! | [`segment`] | shared memory with a header, participants, the death oracle, the sweep |
//! | [`mapping`] | plain shared memory |
//! | [`named`] | shared memory with a name, for unrelated processes and other languages |
//! | [`frozen`] | bytes that nobody can change any more |
//! | [`owner`], [`deaths`] | who holds a resource, whether it is dead, and being told of it |
//! | [`wait`], [`futex`] | blocking with one policy; the word that processes sleep on |
//! | [`sync`] | the only source of atomics and cells; loom's under `--cfg loom` |
//! | [`handle`], [`socket`] | descriptors that travel beside serialised bytes |
//! | [`broker`] | descriptors that wait with their sender, for messages without a socket |
//! | [`codec`] | how values become bytes, if not through serde |
//! | [`fork`] | telling a forked child from its parent |
//! | [`background`] | threads of these crates in a user's process |
//! | [`portable`] | which values may live in shared memory |
//! | [`crash`] | named steps at which a test kills its process |
//!
//! # Platforms
//!
//! Linux with `/proc` mounted. Under `--cfg loom` only [`sync`], [`futex`], [`wait`], [`owner`], [`deaths`],
//! [`fork`], [`handle`], [`codec`] and [`crash`] exist.
#![deny(unsafe_code)]
#![warn(missing_docs)]

#[cfg(not(target_pointer_width = "64"))]
compile_error!("shm-core needs 64-bit addresses");

#[cfg(not(loom))]
pub mod background;
#[cfg(not(loom))]
pub mod broker;
pub mod codec;
pub mod crash;
pub mod deaths;
pub mod futex;
pub mod handle;
pub mod sync;
mod sys;
pub mod wait;

#[cfg(not(loom))]
mod error;
pub mod fork;
#[cfg(not(loom))]
pub mod frozen;
#[cfg(not(loom))]
pub mod mapping;
#[cfg(not(loom))]
pub mod named;
pub mod owner;
#[cfg(not(loom))]
pub mod portable;
#[cfg(not(loom))]
mod registry;
#[cfg(not(loom))]
pub mod segment;
#[cfg(not(loom))]
pub mod socket;

#[cfg(not(loom))]
pub use error::SegmentError;
#[cfg(not(loom))]
pub use portable::{Bits, ShmSafe};
#[cfg(feature = "derive")]
pub use shm_core_derive::ShmSafe;

/// Plain old data: any bit pattern is a value, no padding, no pointers; safe to copy out of memory that another
/// process may scribble over.
pub use bytemuck::Pod as Plain;
