//! Bounded queues between processes.
