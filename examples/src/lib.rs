//! Runnable examples. Each is a binary under `src/bin`; what a test should reach on its own lives here.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod hash_tree;

/// Compiles and runs the examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
