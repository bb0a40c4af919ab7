//! Workers are killed at random moments, and every result comes exactly once and right.
//!
//! `CHAOS_RUNS` is how often each test runs; 3 without it.

mod common;

use common::*;
use proc_pool::{Pool, TaskError};
use rustix::process::Signal;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

const WORKERS: usize = 3;

fn runs() -> u64 {
    std::env::var("CHAOS_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(3)
}

/// A small generator of random numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Runs `work` while a random worker is killed every few milliseconds; returns the number of kills.
fn under_fire(pool: &Pool, seed: u64, work: impl FnOnce()) -> u32 {
    under_slower_fire(pool, seed, 8, work)
}

/// As [`under_fire`], up to so many milliseconds apart: large items must have a chance between two kills.
fn under_slower_fire(pool: &Pool, seed: u64, apart: u64, work: impl FnOnce()) -> u32 {
    let (over, kills) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
            while !over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_micros(500 + random.below(apart * 1000)));
                let workers = pool.workers();
                if workers.is_empty() {
                    continue;
                }
                let victim = random.below(workers.len() as u64);
                signal(workers[usize::try_from(victim).expect("small")], Signal::KILL);
                kills.fetch_add(1, Ordering::Relaxed);
            }
        });
        let stop = Stop(&over);
        work();
        drop(stop);
    });
    kills.into_inner()
}

/// Ends the fire also when the work panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A number that depends on the item and costs a moment.
fn mix(item: u64) -> u64 {
    (0..200).fold(item, |x, step| {
        std::hint::black_box((x ^ step).wrapping_mul(0x2545_f491_4f6c_dd1d).rotate_left(17))
    })
}

fn tagged(item: u64) -> (u64, u64) {
    (item, mix(item))
}

fn rounds(round: impl Fn(&Pool, u64) -> u32) {
    let mut kills = 0;
    for seed in 1..=runs() {
        let _dog = watchdog_of(Duration::from_secs(120));
        let pool = Pool::new(WORKERS).expect("a pool");
        kills += round(&pool, seed);
        // And it still works.
        assert_eq!(pool.map(mix, 0..100).expect("mapped"), (0..100).map(mix).collect::<Vec<_>>());
    }
    assert!(kills > 0);
    eprintln!("{} rounds, {kills} kills", runs());
}

fn every_result_once(pool: &Pool, items: u64, chunk: usize) {
    let mut seen = vec![false; usize::try_from(items).expect("small")];
    for outcome in pool.job(tagged).retries(50).chunk_size(chunk).imap_unordered(0..items) {
        let (item, result) = outcome.expect("a result");
        assert_eq!(result, mix(item));
        let seen = &mut seen[usize::try_from(item).expect("small")];
        assert!(!std::mem::replace(seen, true), "{item} twice");
    }
    assert!(seen.iter().all(|&seen| seen));
}

#[test]
fn single_items_come_exactly_once_while_workers_are_killed() {
    rounds(|pool, seed| under_fire(pool, seed, || every_result_once(pool, 20_000, 1)));
}

#[test]
fn chunks_come_exactly_once_while_workers_are_killed() {
    rounds(|pool, seed| under_fire(pool, seed, || every_result_once(pool, 100_000, 64)));
}

#[test]
fn an_ordered_map_comes_right_while_workers_are_killed() {
    rounds(|pool, seed| {
        under_fire(pool, seed, || {
            let job = pool.job(mix).retries(50);
            assert_eq!(job.map(0..50_000).expect("mapped"), (0..50_000).map(mix).collect::<Vec<_>>());
            let ordered = job.imap(0..5000).zip(0..);
            assert_eq!(ordered.filter(|(result, item)| *result == Ok(mix(*item))).count(), 5000);
        })
    });
}

#[test]
fn values_of_every_size_come_right_while_workers_are_killed() {
    rounds(|pool, seed| {
        under_slower_fire(pool, seed, 60, || {
            // In the cell, in the arena, and beyond it.
            let len = |item: usize| [100, 5000, 70_000, 1_500_000][item % 4];
            let items = (0..200).map(|item| Bytes::pattern(len(item), 7));
            let results = pool.job(|bytes: Bytes| bytes).retries(1000).chunk_size(3).imap(items);
            let mut count = 0;
            for (item, outcome) in results.enumerate() {
                assert!(outcome.expect("a result") == Bytes::pattern(len(item), 7), "{item}");
                count += 1;
            }
            assert_eq!(count, 200);
        })
    });
}

#[test]
fn calls_have_their_result_or_a_dead_worker() {
    rounds(|pool, seed| {
        under_fire(pool, seed, || {
            std::thread::scope(|scope| {
                for thread in 0..2 {
                    scope.spawn(move || {
                        for item in 0..3000 {
                            let item = item * 2 + thread;
                            match pool.call(mix, item).map_err(|error| error.into_task()) {
                                Ok(result) => assert_eq!(result, mix(item)),
                                Err(Ok(TaskError::WorkerDied {
                                    signal: Some(SIGKILL),
                                    item: Some(0),
                                    ..
                                })) => {}
                                Err(other) => panic!("{other:?}"),
                            }
                        }
                    });
                }
            });
        })
    });
}

#[test]
fn calls_tasks_and_maps_share_a_pool_whose_workers_are_killed() {
    rounds(|pool, seed| {
        under_fire(pool, seed, || {
            std::thread::scope(|scope| {
                scope.spawn(|| every_result_once(pool, 5000, 1));
                scope.spawn(|| every_result_once(pool, 20_000, 50));
                scope.spawn(|| {
                    for item in 0..1000 {
                        let result = pool.job(mix).retries(50).call(item);
                        assert_eq!(result.expect("a result"), mix(item));
                    }
                });
                scope.spawn(|| {
                    let tasks: Vec<_> = (0..2000)
                        .map(|item| pool.job(mix).retries(50).submit(item).expect("submitted"))
                        .collect();
                    for (item, task) in (0..).zip(tasks) {
                        assert_eq!(task.join(), Ok(mix(item)));
                    }
                });
                scope.spawn(|| {
                    for _ in 0..50 {
                        // Given up half-way.
                        assert_eq!(pool.job(mix).retries(50).imap(0..).nth(20), Some(Ok(mix(20))));
                    }
                });
            });
        })
    });
}
