//! Named crash points: steps at which a test lets a process kill itself.
//!
//! `crash_point!("ring.push.claimed")` compiles to nothing unless the feature `crash-points` is on. With it, a
//! process whose environment has `SHM_CRASH_POINT=ring.push.claimed` (optionally `:N` for the N-th passage,
//! counted from 1) sends itself SIGKILL there. The variable is read once, at the first crash point reached.

/// Marks a step at which a test may kill the process; nothing without the feature `crash-points`.
#[cfg(not(feature = "crash-points"))]
#[macro_export]
macro_rules! crash_point {
    ($name:literal) => {};
}

/// Marks a step at which a test may kill the process.
#[cfg(feature = "crash-points")]
#[macro_export]
macro_rules! crash_point {
    ($name:literal) => {
        $crate::crash::reached($name)
    };
}

/// Kills the process if it was told to die at the step `name`.
#[cfg(feature = "crash-points")]
pub fn reached(name: &str) {
    use crate::sync::{AtomicU64, Ordering};
    use std::sync::OnceLock;

    static TARGET: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static PASSED: AtomicU64 = AtomicU64::new(0);

    let target = TARGET.get_or_init(|| {
        let text = std::env::var("SHM_CRASH_POINT").ok()?;
        match text.rsplit_once(':') {
            Some((name, count)) => Some((name.to_owned(), count.parse().ok()?)),
            None => Some((text, 1)),
        }
    });
    if let Some((wanted, count)) = target {
        if wanted == name && PASSED.fetch_add(1, Ordering::Relaxed) + 1 == *count {
            let me = rustix::process::getpid();
            rustix::process::kill_process(me, rustix::process::Signal::KILL)
                .expect("a process may kill itself");
            loop {
                crate::sync::hint::spin_loop();
            }
        }
    }
}
