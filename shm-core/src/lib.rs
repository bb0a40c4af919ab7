//! What memory shared by processes demands.
#![deny(unsafe_code)]
#![warn(missing_docs)]

#[cfg_attr(not(feature = "crash-points"), allow(unused_imports))]
pub mod crash;
pub mod futex;
pub mod sync;
mod sys;
pub mod wait;
