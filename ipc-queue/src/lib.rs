//! Bounded queues between processes.

pub mod ring;
