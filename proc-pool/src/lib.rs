//! Functions called in worker processes.
//!
//! `thread::spawn(f)` becomes [`Process::spawn(f, arg)`](Process::spawn). A process may crash, be killed or overflow
//! its stack: the error says what happened, and nothing else is hurt.
//!
//! ```
//! use proc_pool::{Process, TaskError};
//!
//! fn square(x: u64) -> u64 { x * x }
//! fn crash(_: ()) { std::process::abort() }
//!
//! fn main() -> proc_pool::Result<()> {
//!     proc_pool::init();                                   // first statement of main
//!     assert_eq!(Process::spawn(square, 12)?.join()?, 144);
//!
//!     let died = Process::spawn(crash, ())?.join();
//!     assert!(matches!(died, Err(TaskError::WorkerDied { signal: Some(6), .. })));
//!     Ok(())
//! }
//! ```
//!
//! # How it works
//!
//! A child is the same program, started anew; [`init`] turns it into a worker before the rest of `main` runs. The
//! function is named by its place in the program, arguments and results are encoded with `postcard`, and handles
//! (the ends of queues, shared values and arrays) travel with them. Functions and closures without captures can be
//! sent; captures do not compile, because the other process could not have them.
//!
//! # Features
//!
//! * `ctor` runs [`init`] before `main`: for test binaries, doctests and benches, which have no `main` of their own.
//!   The environment variable `PROC_POOL_CTOR=0` switches that off. Functions then run in a worker before its `main`
//!   and before whatever other constructors come later.
//! * `crash-points`: named steps at which a test can kill its process.
//!
//! # Platforms
//!
//! 64-bit Linux with `/proc` mounted.
#![deny(unsafe_code)]
#![warn(missing_docs)]

mod attendant;
mod child;
mod control;
mod error;
mod function;
mod handshake;
mod oneshot;
mod oom;
mod panic;
mod payload;
pub mod pool;
mod process;
mod spawner;
mod startup;

pub use error::{Error, Result, TaskError};
pub use ipc_queue as queue;
pub use pool::{Imap, ImapUnordered, Job, Pool, PoolBuilder, Task};
pub use process::{ExitStatus, Process, ProcessBuilder};
/// Values, arrays and locks that go into arguments, results and messages. What a worker held when it died is free at once,
/// and whoever takes it next is told.
pub use shm_array as shared;
pub use shm_core as shm;
pub use startup::init;
