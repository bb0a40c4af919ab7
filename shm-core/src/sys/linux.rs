//! The Linux arm.

use crate::futex::Wakeup;
use crate::sync::AtomicU32;
use rustix::thread::futex::{self, Flags};
use rustix::thread::{MembarrierCommand, membarrier};
use rustix::time::{ClockId, Timespec, clock_gettime};
use std::time::Duration;

/// Sleeps while `word` holds `expected`; shared between processes, so no `PRIVATE` flag.
pub(crate) fn futex_wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) -> Wakeup {
    use rustix::io::Errno;
    // A timeout beyond the range of the clock is none.
    let limit = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    match futex::wait(word, Flags::empty(), expected, limit.as_ref()) {
        Err(Errno::AGAIN) => Wakeup::Changed,
        Err(Errno::TIMEDOUT) => Wakeup::TimedOut,
        // A signal is a spurious wake-up; every other error would be one too: the caller's loop looks again.
        Ok(()) | Err(_) => Wakeup::Woken,
    }
}

/// Sleeps while both words hold what is expected of them; on the first alone where the kernel cannot do both, or not now.
pub(crate) fn futex_wait_either(words: [(&AtomicU32, u32); 2], timeout: Option<Duration>) -> Wakeup {
    use crate::sync::{AtomicBool, Ordering};
    use futex::{Wait, WaitFlags, WaitPtr, WaitvFlags};
    use rustix::io::Errno;

    /// Linux before 5.16, or a filter that does not know the call.
    static MISSING: AtomicBool = AtomicBool::new(false);

    let [(first, expected), _] = words;
    // Relaxed: whoever does not know yet asks in vain once more.
    if MISSING.load(Ordering::Relaxed) {
        return futex_wait(first, expected, timeout);
    }
    let waits = words.map(|(word, expected)| {
        let mut wait = Wait::new();
        wait.val = expected.into();
        wait.uaddr = WaitPtr::new(word.as_ptr().cast());
        wait.flags = WaitFlags::SIZE_U32;
        wait
    });
    // This call wants a point in time.
    let until = timeout.and_then(|timeout| {
        let now = Duration::try_from(clock_gettime(ClockId::Monotonic)).ok()?;
        Timespec::try_from(now.checked_add(timeout)?).ok()
    });
    match futex::waitv(&waits, WaitvFlags::empty(), until.as_ref(), ClockId::Monotonic) {
        Err(Errno::AGAIN) => Wakeup::Changed,
        Err(Errno::TIMEDOUT) => Wakeup::TimedOut,
        Ok(_) | Err(Errno::INTR) => Wakeup::Woken,
        Err(error) => {
            if matches!(error, Errno::NOSYS | Errno::PERM) {
                MISSING.store(true, Ordering::Relaxed);
            }
            // Also for what may pass, such as a lack of memory: whoever looks again and again shall sleep in between.
            futex_wait(first, expected, timeout)
        }
    }
}

/// Wakes up to `count` sleepers of `word`.
pub(crate) fn futex_wake(word: &AtomicU32, count: u32) {
    // The only error is a bad address, which a reference is not.
    let _ = futex::wake(word, Flags::empty(), count);
}

/// Registers this process as one whose threads `membarrier_global` reaches.
pub(crate) fn membarrier_register() -> bool {
    membarrier(MembarrierCommand::RegisterGlobalExpedited).is_ok()
}

/// A barrier on every running thread of every registered process.
pub(crate) fn membarrier_global() -> bool {
    membarrier(MembarrierCommand::GlobalExpedited).is_ok()
}

/// The processor that the caller runs on; stale at once.
pub(crate) fn current_cpu() -> u32 {
    u32::try_from(rustix::thread::sched_getcpu()).unwrap_or(0)
}

/// The nanoseconds within the current second.
pub(crate) fn monotonic_subsec_nanos() -> u32 {
    u32::try_from(clock_gettime(ClockId::Monotonic).tv_nsec).unwrap_or(0)
}
