//! Every worker dies again and again at one named step, and maps and calls still come right.
#![cfg(feature = "crash-points")]

mod common;

use common::*;
use proc_pool::Pool;
use proc_pool::queue::ring::CRASH_POINTS;

const WORKER_POINTS: [&str; 5] = [
    "pool.worker.mail_begun",
    "pool.worker.begun",
    "pool.worker.item",
    "pool.worker.ran",
    "pool.worker.finished",
];

fn tripled(item: u64) -> u64 {
    3 * item
}

/// Workers that die at the step when they pass it for the `passage`-th time.
fn mortal(point: &str, passage: u32) -> Pool {
    let pool = Pool::builder().workers(2).env("SHM_CRASH_POINT", format!("{point}:{passage}"));
    pool.build().expect("a pool")
}

/// Maps and calls; returns how many workers were replaced, as far as seen.
fn work(point: &str, passage: u32) -> bool {
    let pool = mortal(point, passage);
    let before = pool.workers();
    let job = pool.job(tripled).retries(1000);
    for (items, chunk) in [(400, 1), (2000, 10)] {
        let results = job.chunk_size(chunk).map(0..items);
        let expected: Vec<u64> = (0..items).map(tripled).collect();
        assert_eq!(results.expect("mapped"), expected, "{point}");
    }
    for item in 0..200 {
        assert_eq!(job.call(item).expect("called"), 3 * item, "{point}");
    }
    let tasks: Vec<_> = (0..100).map(|item| job.submit(item).expect("submitted")).collect();
    for (item, task) in (0..).zip(tasks) {
        assert_eq!(task.join(), Ok(3 * item), "{point}");
    }
    pool.workers() != before
}

#[test]
fn deaths_at_the_steps_of_a_worker_cost_nothing_but_time() {
    for point in WORKER_POINTS {
        let _dog = watchdog();
        assert!(work(point, 40), "nobody died at {point}");
    }
}

#[test]
fn deaths_at_the_steps_of_the_rings_cost_nothing_but_time() {
    let mut died = 0;
    for point in CRASH_POINTS {
        let _dog = watchdog();
        died += u32::from(work(point, 40));
    }
    // Pushes and pops by single workers; the others are steps of batches and of recovery.
    assert!(died >= 5, "{died} of {}", CRASH_POINTS.len());
}

#[test]
fn a_death_after_each_item_is_survived() {
    let _dog = watchdog();
    for point in ["pool.worker.ran", "pool.worker.finished"] {
        let pool = mortal(point, 2);
        let results = pool.job(tripled).retries(1000).chunk_size(1).map(0..60);
        assert_eq!(results.expect("mapped"), (0..60).map(tripled).collect::<Vec<_>>());
    }
}

#[test]
fn what_was_finished_before_the_death_is_not_run_again_without_retries() {
    let _dog = watchdog();
    // Saved, and not yet reported.
    let pool = mortal("pool.worker.ran", 3);
    let outcomes = pool.job(tripled).chunk_size(4).imap(0..40);
    for (item, outcome) in (0..).zip(outcomes) {
        assert_eq!(outcome, Ok(3 * item));
    }
}
