//! The first use of the fork window, while another thread forks. One test: nothing of the crate may have run before.
#![cfg(not(loom))]
#![allow(unsafe_code, reason = "forks")]

use shm_core::fork::window;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

static FORKING: AtomicBool = AtomicBool::new(false);
static HELD: AtomicBool = AtomicBool::new(false);

fn wait_for(flag: &AtomicBool) {
    while !flag.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
}

/// In the thread that forks, before the fork.
extern "C" fn before_fork() {
    FORKING.store(true, Ordering::SeqCst);
    wait_for(&HELD);
}

#[test]
fn a_fork_waits_for_the_first_window_of_a_process() {
    // SAFETY: a function of this image.
    assert_eq!(unsafe { libc::pthread_atfork(Some(before_fork), None, None) }, 0);
    let holder = std::thread::spawn(|| {
        wait_for(&FORKING);
        let held = window();
        HELD.store(true, Ordering::SeqCst);
        // A fork that does not wait comes in this time.
        std::thread::sleep(Duration::from_millis(200));
        drop(held);
    });
    // SAFETY: the child ends at once.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: ends the child if it hangs.
            unsafe { libc::alarm(20) };
            drop(window());
            // SAFETY: without running what belongs to the parent.
            unsafe { libc::_exit(0) }
        }
        child => {
            let mut status = -1;
            // SAFETY: a child of this test that nobody else waits for.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert_eq!(status, 0, "the child hung");
        }
    }
    holder.join().expect("no panic");
}
