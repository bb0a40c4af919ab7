//! Child processes of tests, as in the tests of `ipc-queue`: the test binary runs itself again, and the child gets its
//! orders, handles included, through a socket that is its standard input.
//!
//! A test binary that uses this has a test named `child` which hands over to [`child`]; in the parent it does nothing.
#![allow(dead_code, unused_imports, reason = "each test binary uses its part")]

#[path = "../../../ipc-queue/tests/common/mod.rs"]
mod peers;

pub(crate) use peers::*;
