//! Models of the locks: every interleaving and every stale read that the memory model allows, within the preemption
//! bound, on the real code.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --profile loom -p shm-array --test loom`
//!
//! A process is a thread that says which one it is; it dies where it says so, forgets what it holds and ends. In a model
//! a wait without a deadline must be woken, unless its holder may die; one with a deadline gives up at once.
#![cfg(loom)]

#[path = "loom/barrier.rs"]
mod barrier;
#[path = "loom/condvar.rs"]
mod condvar;
#[path = "loom/event.rs"]
mod event;
#[path = "loom/latch.rs"]
mod latch;
#[path = "loom/mutex.rs"]
mod mutex;
#[path = "loom/once.rs"]
mod once;
#[path = "loom/rwlock.rs"]
mod rwlock;
#[path = "loom/semaphore.rs"]
mod semaphore;

use shm_array::lock::orderings;
use shm_core::sync::weakened;

/// Explores `body`, with at most two preemptions unless the environment says otherwise.
fn explore(body: fn()) {
    explore_less(0, body);
}

/// Explores `body` with fewer preemptions, for models with many threads.
fn explore_less(by: usize, body: fn()) {
    let mut builder = loom::model::Builder::new();
    *builder.preemption_bound.get_or_insert(2) -= by;
    builder.check(body);
}

/// Each model under its own name.
macro_rules! models {
    ($($name:ident)*) => {
        mod model {
            $(
                #[test]
                fn $name() {
                    crate::explore(super::$name);
                }
            )*
        }
    };
}
use models;

/// Which model notices which weakened ordering, and as what.
type Control = (&'static str, fn(), &'static str);

/// Loom's words for data that two use at once, and for a sleeper that nobody wakes.
const RACE: &str = "Causality violation";
const STUCK: &str = "deadlock";

/// What each file names, and the controls for it.
const MODELS: &[(&[&str], &[Control])] = &[
    (orderings::RAW, mutex::CONTROLS),
    (orderings::CONDVAR, condvar::CONTROLS),
    (shm_array::latch::ORDERINGS, latch::CONTROLS),
    (orderings::RWLOCK, rwlock::CONTROLS),
    (orderings::SEMAPHORE, semaphore::CONTROLS),
    (orderings::SIGNAL, semaphore::SIGNAL_CONTROLS),
    (orderings::EVENT, event::CONTROLS),
    (orderings::ONCE, once::CONTROLS),
    (orderings::BARRIER, barrier::CONTROLS),
];

/// The control that [`control`] runs for the test below: its place among all.
const WEAKEN: &str = "LOCK_MODEL_WEAKEN";

fn controls() -> impl Iterator<Item = &'static Control> {
    MODELS.iter().flat_map(|(_, controls)| *controls)
}

/// A deadlock in a model aborts the process, so each control has one of its own.
#[test]
fn each_weakened_ordering_is_caught() {
    for (orderings, controls) in MODELS {
        for name in *orderings {
            assert!(controls.iter().any(|(control, ..)| control == name), "no control for {name}");
        }
    }
    for (place, (name, _, symptom)) in controls().enumerate() {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "control", "--nocapture"])
            .env(WEAKEN, place.to_string())
            // Some need it, and all are fast: they end with the first that they find.
            .env("LOOM_MAX_PREEMPTIONS", "3")
            .env("RUST_BACKTRACE", "0")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&child.stderr);
        assert!(!child.status.success(), "no model notices that {name} is weakened (control {place})");
        assert!(text.contains(symptom), "{name} weakened: {symptom} expected, got {text}");
    }
}

/// One control; nothing unless the test above says which.
#[test]
fn control() {
    let Ok(place) = std::env::var(WEAKEN) else { return };
    std::thread::spawn(|| {
        std::thread::sleep(std::time::Duration::from_secs(120));
        eprintln!("the watchdog barks");
        std::process::exit(86);
    });
    let place = place.parse().expect("a number");
    let (name, model, _) = controls().nth(place).expect("a control at that place");
    weakened(name, || explore(*model));
}
