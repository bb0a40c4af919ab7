//! Time that two processes can compare, and the fallback of everybody who only spins.

use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// The monotonic clock, the same in all processes.
#[inline]
pub fn now() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// Pauses before the processor is given away.
const PAUSES: u32 = 128;

/// Repeats `attempt` until it succeeds: 128 pauses, then a yield between attempts.
#[inline]
pub fn spin<R>(attempt: impl FnMut() -> Option<R>) -> R {
    spin_after::<PAUSES, R>(attempt)
}

/// Likewise, with so many pauses.
#[inline]
pub fn spin_after<const PAUSES: u32, R>(mut attempt: impl FnMut() -> Option<R>) -> R {
    let mut misses = 0;
    loop {
        if let Some(done) = attempt() {
            return done;
        }
        misses += 1;
        if misses <= PAUSES {
            std::hint::spin_loop()
        } else {
            std::thread::yield_now()
        }
    }
}
