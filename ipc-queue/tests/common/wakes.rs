//! Is a sleeper woken, or does it only find out when its time slice ends? One round cannot tell on a busy machine: many can.

use std::thread;
use std::time::{Duration, Instant};

/// How often the same is tried.
pub(crate) const ROUNDS: usize = 20;

/// Time to fall asleep. Nobody can say that a thread has: if it has not, it need not be woken, and the round counts as quick.
const FALL_ASLEEP: Duration = Duration::from_millis(10);

/// Slices take 60 to 100 ms, and have begun by up to [`FALL_ASLEEP`] when the waker comes. Who is woken needs far less.
const SLOW: Duration = Duration::from_millis(35);

/// Somebody else is about to sleep. Calls `wake` when he does; `woken` returns when he is up again. Returns whether that
/// took as long as the end of a time slice.
pub(crate) fn is_slow(wake: impl FnOnce(), woken: impl FnOnce() -> Instant) -> bool {
    thread::sleep(FALL_ASLEEP);
    let begin = Instant::now();
    wake();
    woken().saturating_duration_since(begin) >= SLOW
}

/// Fails if most of the rounds were slow.
#[track_caller]
pub(crate) fn assert_woken(rounds: impl Iterator<Item = bool>) {
    let slow = rounds.filter(|slow| *slow).count();
    assert!(slow <= ROUNDS / 2, "{slow} of {ROUNDS} sleepers were woken by nobody");
}

/// Tries each `scene`, a thread that sleeps and what wakes it, and hands what the thread has got to `check`. The scene must
/// not drop the last handle of a side when it wakes, for that wakes too: let the thread keep one and return it.
#[track_caller]
pub(crate) fn assert_wakes<S, W, R>(scene: impl Fn() -> (S, W), check: impl Fn(R))
where
    S: FnOnce() -> R + Send + 'static,
    W: FnOnce(),
    R: Send + 'static,
{
    assert_woken((0..ROUNDS).map(|_| {
        let (sleep, wake) = scene();
        let thread = thread::spawn(move || (sleep(), Instant::now()));
        let woken = || {
            let (got, when) = thread.join().expect("no panic");
            check(got);
            when
        };
        is_slow(wake, woken)
    }));
}
