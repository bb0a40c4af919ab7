//! Registers the handlers before `main`, so that no other thread can be inside `fork` meanwhile.
//!
//! A child that is forked while another thread registers them finds the registration under way for ever, or the window
//! locked, and hangs at its first use of either. Before `main` there are no other threads.
#![allow(unsafe_code)]
//! # Safety
//!
//! What the loader calls may rely on the C library and on nothing that `main` sets up. `prepare` maps a page, allocates and
//! registers handlers; it uses no streams, arguments or threads, cannot panic, and every step of it is done once, whoever
//! comes first.

use super::process;

/// The loader calls it before `main`, and with this priority (the first that is not the C library's) before other such
/// functions: a program may begin its work in one of those. In a library that is loaded later: while it is loaded.
// An array of such function pointers is what the section consists of; arguments that a C library passes are not looked at.
#[used]
#[unsafe(link_section = ".init_array.00101")]
static PREPARE: extern "C" fn() = prepare;

extern "C" fn prepare() {
    // An allocator that registers handlers of its own does so at the first allocation. Handlers run in reverse before a
    // fork: ours allocate, so they have to run before an allocator's take its locks.
    drop(std::hint::black_box(Box::new(0_u64)));
    // Where it fails, the first use tells.
    let _ = process::prepare();
}
