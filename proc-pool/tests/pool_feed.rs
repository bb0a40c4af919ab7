//! How items are taken from their iterator and handed to the workers.

mod common;

use common::*;
use proc_pool::{Pool, TaskError};
use std::cell::Cell;

fn square(x: u64) -> u64 {
    x * x
}

fn pool(workers: usize) -> Pool {
    Pool::new(workers).expect("a pool")
}

/// Whose iterator waits, for each wave of items, until all of the wave have run.
fn waves(wave: u64, workers: usize) {
    let _watch = watchdog();
    let pool = pool(workers);
    let (mut told, tell) = pipe();
    let mut next = 0;
    let items = std::iter::from_fn(|| {
        if next > 0 && next % wave == 0 {
            (0..wave).for_each(|_| assert_eq!(line(&mut told), "ran"));
        }
        next += 1;
        (next <= 60).then(|| (next - 1, Handle(tell.0.try_clone().expect("a descriptor"))))
    });
    let job = pool.job(|(x, tell): (u64, Handle)| {
        tell.say("ran");
        x
    });
    assert!(job.imap(items).eq((0..60).map(Ok)));
}

#[test]
fn a_source_that_waits_for_each_earlier_item_goes_on() {
    waves(1, 1);
    waves(1, 3);
}

#[test]
fn a_source_that_waits_for_waves_of_items_goes_on() {
    waves(6, 1);
    waves(20, 2);
}

#[test]
fn a_source_that_waits_does_not_keep_results_that_are_there() {
    let _watch = watchdog();
    let pool = pool(2);
    for ordered in [true, false] {
        let taken = Cell::new(0_u64);
        let slow = (0..).inspect(|_| {
            taken.set(taken.get() + 1);
            std::thread::sleep(std::time::Duration::from_millis(20));
        });
        let mut lazy: Box<dyn Iterator<Item = _>> = if ordered {
            Box::new(pool.imap(square, slow))
        } else {
            Box::new(pool.imap_unordered(square, slow))
        };
        assert!(matches!(lazy.next(), Some(Ok(_))));
        // The window has 512.
        assert!(taken.get() < 256, "{}", taken.get());
    }
}

#[test]
fn large_items_are_not_all_in_flight() {
    let _watch = watchdog();
    let pool = pool(2);
    let (taken, most) = (Cell::new(0_u64), Cell::new(0));
    // Small ones first: what came long ago says nothing about what comes.
    let items = (0..260_u64).map(|number| {
        taken.set(number + 1);
        let len = if number < 100 { 10 } else { 2 << 20 };
        Bytes::pattern(len, 1)
    });
    let mut yielded = 0;
    for len in pool.imap(|bytes: Bytes| bytes.0.len(), items) {
        yielded += 1;
        len.expect("a length");
        if yielded > 150 {
            most.set(most.get().max(taken.get() - yielded));
        }
    }
    assert_eq!(yielded, 260);
    assert!(most.get() <= 40, "{}", most.get());
}

#[test]
fn items_larger_than_the_window_of_bytes_still_go() {
    let _watch = watchdog();
    let pool = pool(1);
    let items = (0..2_u8).map(|seed| Bytes::pattern(70 << 20, seed));
    let lengths: Vec<_> = pool.imap(|bytes: Bytes| bytes.0.len(), items).collect();
    assert_eq!(lengths, vec![Ok(70 << 20); 2]);
}

#[test]
fn items_of_every_size_come_back_from_chunks() {
    let _watch = watchdog();
    let pool = pool(2);
    let lens = [10_usize, 100_000, 3, 250_000, 260_000, 16_000, 1 << 20, 5, 130_000, 120_000];
    let items = || (0..60_u8).zip(lens.into_iter().cycle()).map(|(seed, len)| Bytes::pattern(len, seed));
    let back = pool.job(|bytes: Bytes| bytes).chunk_size(7).map(items()).expect("mapped");
    assert!(back.into_iter().eq(items()));
}

fn after_a_close(
    lazy: impl Iterator<Item = Result<u64, TaskError>>,
    pool: &Pool,
) -> Vec<Result<u64, TaskError>> {
    let mut lazy = lazy;
    let mut yielded: Vec<_> = lazy.by_ref().take(1).collect();
    pool.close();
    yielded.extend(lazy.by_ref());
    assert_eq!((lazy.next(), lazy.next()), (None, None));
    yielded
}

#[test]
fn a_lazy_map_yields_what_is_under_way_at_a_close_and_then_one_error() {
    let _watch = watchdog();
    for (in_flight, chunk) in [(1, 1), (50, 1), (50, 7)] {
        let first = pool(2);
        let job = first.job(square).in_flight(in_flight).chunk_size(chunk);
        let taken = Cell::new(0);
        let lazy = job.imap((0..).inspect(|_| taken.set(taken.get() + 1)));
        let mut yielded = after_a_close(lazy, &first);
        assert_eq!(yielded.pop(), Some(Err(TaskError::PoolClosed)));
        assert!(yielded.iter().cloned().eq((0..yielded.len() as u64).map(|x| Ok(square(x)))));
        // At most one chunk was taken in vain.
        assert!(yielded.len() + chunk >= taken.get(), "{} of {}", yielded.len(), taken.get());

        let second = pool(2);
        let job = second.job(square).in_flight(in_flight).chunk_size(chunk);
        let mut yielded = after_a_close(job.imap_unordered(0..), &second);
        assert_eq!(yielded.pop(), Some(Err(TaskError::PoolClosed)));
        assert!(yielded.iter().all(Result::is_ok));
    }
}

#[test]
fn a_variable_that_no_process_can_have_is_refused() {
    let _watch = watchdog();
    for (key, value) in [("", "x"), ("A=B", "x"), ("A\0B", "x"), ("A", "x\0y")] {
        let error = Pool::builder().workers(1).env(key, value).build().expect_err("refused");
        assert!(error.is_invalid_input(), "{error}");
        assert!(error.to_string().contains(&format!("{key:?}")), "{error}");
    }
}
