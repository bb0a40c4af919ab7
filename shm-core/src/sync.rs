//! The atomics facade: the one place that names atomics, cells and spin hints.
//!
//! Natively these are the `core` types, and a word of them in a segment is a plain machine word. Under
//! `--cfg loom` they are loom's, so that every algorithm written against this module can be model-checked as
//! it stands, in this workspace or in a crate built on it. Loom's types are *not* plain words: a model builds
//! its memory with `new()` on the heap and never casts bytes to them.
//!
//! # The asymmetric fence
//!
//! "Publish, then look whether anybody sleeps" against "announce the sleep, then look whether anything was
//! published" needs a store-load barrier on both sides. Publishing happens per message and sleeping rarely, so
//! the pair is split: [`light_fence`] on the publishing side costs nothing, [`heavy_fence`] on the sleeping
//! side makes every running thread of every registered process execute a barrier (`membarrier(2)`,
//! `MEMBARRIER_CMD_GLOBAL_EXPEDITED`). Where the kernel cannot do that, both are `fence(SeqCst)`.
//! In a model both are `fence(SeqCst)` too.

#[cfg(loom)]
mod model;
#[cfg(not(loom))]
mod native;

#[cfg(loom)]
pub use model::*;
#[cfg(not(loom))]
pub use native::*;
