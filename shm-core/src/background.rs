//! Threads that a crate of this workspace runs for itself in a user's process.
#![allow(unsafe_code)]
//! # Safety
//!
//! Only `pthread_sigmask` and `sigfillset` are called, on sets that live for the calls.

use std::io;
use std::mem::MaybeUninit;

/// Starts a thread with all signals blocked, so that none of the process's is delivered to it. It is not joined: `body`
/// ends by itself.
///
/// # Errors
///
/// The system's, when it has no room for a thread. `body` is dropped then.
///
/// # Across processes
///
/// A forked child has no such thread, and whatever `body` owned at the fork is never dropped there.
pub fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: both sets live for the calls, and the first is filled before it is read; the thread inherits the mask.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
    }
    let spawned = std::thread::Builder::new().name(name.into()).spawn(body);
    // SAFETY: the call above has filled it.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
    spawned.map(drop)
}
