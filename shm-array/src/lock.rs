//! Locks that processes share, robust against the death of whoever holds them.
//!
//! They work at any address that the processes share (in a [`Shared`](crate::Shared), in a field of a user's struct
//! there, in an array), and as plain locks between the threads of one process, also under loom.

mod barrier;
mod condvar;
mod error;
mod event;
#[cfg(feature = "lock_api")]
pub mod lock_api;
mod mutex;
mod once;
mod raw;
mod reentrant;
mod rwlock;
mod semaphore;
mod signal;

pub use error::LockError;
