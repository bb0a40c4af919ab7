//! The parts of `hash_tree`: SHA-256 of every regular file below a directory, in worker processes.
//!
//! ```text
//! thread walk            caller                                    worker processes
//! Walk ---- paths ---->  InFlight ---- imap_unordered, a path ---> digest::hash_file
//!                        Output, Progress, Tally <---- its Hashed --
//! ```
//!
//! Paths travel as `OsString`, so names that are not UTF-8 arrive intact. Nothing is held for the whole tree: the walk
//! runs at most [`walk::AHEAD`] paths ahead of the pool, and the pool takes them as its workers need them.

pub mod chaos;
pub mod digest;
pub mod format;
pub mod in_flight;
pub mod options;
pub mod output;
pub mod progress;
pub mod tally;
pub mod walk;
