//! What a pool does, one fact per test.

mod common;

use common::*;
use proc_pool::{Pool, Process, TaskError};
use std::collections::HashSet;
use std::time::Duration;

fn square(x: u64) -> u64 {
    x * x
}

fn pid((): ()) -> u32 {
    std::process::id()
}

fn pool(workers: usize) -> Pool {
    Pool::new(workers).expect("a pool")
}

#[test]
fn a_call_returns_its_result() {
    let _watch = watchdog();
    let pool = pool(2);
    for x in 0..1000 {
        assert_eq!(pool.call(square, x).expect("called"), x * x);
    }
}

#[test]
fn a_map_keeps_the_order() {
    let _watch = watchdog();
    let pool = pool(2);
    let expected: Vec<u64> = (0..100_000).map(square).collect();
    assert_eq!(pool.map(square, 0..100_000).expect("mapped"), expected);
    assert_eq!(pool.job(square).chunk_size(1).map(0..100_000).expect("mapped"), expected);
    assert_eq!(pool.job(square).chunk_size(7).in_flight(20).map(0..100_000).expect("mapped"), expected);
}

#[test]
fn imap_yields_in_order_and_imap_unordered_everything() {
    let _watch = watchdog();
    let pool = pool(3);
    let ordered: Vec<u64> = pool.imap(square, 0..10_000).map(|r| r.expect("a result")).collect();
    assert_eq!(ordered, (0..10_000).map(square).collect::<Vec<_>>());
    let mut any: Vec<u64> = pool.imap_unordered(square, 0..10_000).map(|r| r.expect("a result")).collect();
    any.sort_unstable();
    assert_eq!(any, ordered);
}

#[test]
fn a_number_of_workers_out_of_range_is_refused_by_name() {
    let _watch = watchdog();
    for workers in [0, 513, usize::MAX] {
        let error = Pool::new(workers).expect_err("no such pool");
        assert!(error.is_invalid_input());
        assert_eq!(error.to_string(), format!("a pool has 1 to 512 workers, not {workers}"));
    }
}

#[test]
fn a_chunk_size_of_0_is_refused_by_name() {
    let _watch = watchdog();
    let pool = pool(1);
    let job = pool.job(square).chunk_size(0);
    let error = job.map(0..3).expect_err("no such chunks");
    assert!(error.is_invalid_input() && error.to_string().contains("not 0"), "{error}");
    for mut outcomes in
        [Box::new(job.imap(0..3)) as Box<dyn Iterator<Item = _>>, Box::new(job.imap_unordered(0..3))]
    {
        let first = outcomes.next();
        assert!(
            matches!(&first, Some(Err(TaskError::Unavailable { reason, .. })) if reason.contains("not 0")),
            "{first:?}"
        );
        assert_eq!(outcomes.next(), None);
    }
    assert_eq!(pool.call(square, 3).expect("the pool goes on"), 9);
}

#[test]
fn nothing_in_flight_is_refused_by_name() {
    let _watch = watchdog();
    let pool = pool(1);
    let job = pool.job(square).in_flight(0);
    let error = job.map(0..3).expect_err("nothing may be sent");
    assert!(error.is_invalid_input() && error.to_string().contains("not 0"), "{error}");
    assert!(matches!(job.imap(0..3).next(), Some(Err(TaskError::Unavailable { .. }))));
}

#[test]
fn nothing_maps_to_nothing() {
    let _watch = watchdog();
    let pool = pool(1);
    assert_eq!(pool.map(square, []).expect("mapped"), []);
    assert_eq!(pool.job(square).chunk_size(1).map([]).expect("mapped"), []);
    assert_eq!(pool.imap(square, []).next(), None);
    assert_eq!(pool.imap_unordered(square, []).next(), None);
}

#[test]
fn an_iterator_of_unknown_length_is_mapped() {
    let _watch = watchdog();
    let pool = pool(2);
    let odd = || (0..5000).filter(|x| x % 2 == 1);
    let expected: Vec<u64> = odd().map(square).collect();
    assert_eq!(pool.map(square, odd()).expect("mapped"), expected);
}

#[test]
fn one_pool_calls_many_functions() {
    let _watch = watchdog();
    let pool = pool(2);
    for _ in 0..50 {
        assert_eq!(pool.call(square, 7).expect("called"), 49);
        assert_eq!(pool.call(|x: u64| x + 1, 7).expect("called"), 8);
        assert_eq!(pool.call(|x: u64| x + 2, 7).expect("called"), 9);
        assert_eq!(pool.call(|text: String| text.len(), "text".into()).expect("called"), 4);
        pool.call(|()| (), ()).expect("called");
        assert_eq!(pool.map(|x: u8| Some(x), 0..3).expect("mapped"), [0, 1, 2].map(Some));
    }
}

#[test]
fn a_function_that_is_new_reaches_workers_that_are_busy() {
    let _watch = watchdog();
    let pool = pool(2);
    let (mut reader, writer) = pipe();
    let (busy, hold) = pipe();
    let task = pool
        .submit(
            |(writer, busy): (Handle, ReadEnd)| {
                writer.say("busy");
                busy.until_end();
            },
            (writer, ReadEnd(busy.into_inner().into())),
        )
        .expect("submitted");
    assert_eq!(line(&mut reader), "busy");
    let tasks: Vec<_> = (0..100).map(|x| pool.submit(|x: u64| x ^ 1, x).expect("submitted")).collect();
    drop(hold);
    for (x, task) in (0..).zip(tasks) {
        assert_eq!(task.join(), Ok(x ^ 1));
    }
    assert_eq!(task.join(), Ok(()));
}

#[test]
fn threads_share_a_pool() {
    let _watch = watchdog();
    let pool = &pool(3);
    std::thread::scope(|scope| {
        for thread in 0..2_u64 {
            scope.spawn(move || {
                for x in 0..2000 {
                    assert_eq!(pool.call(square, x + thread).expect("called"), square(x + thread));
                }
            });
            scope.spawn(move || {
                for round in 0..10 {
                    let items = || thread..thread + 500 + round;
                    assert_eq!(
                        pool.job(square).chunk_size(3).map(items()).expect("mapped"),
                        items().map(square).collect::<Vec<_>>()
                    );
                }
            });
            scope.spawn(move || {
                let all = pool.imap(square, 0..3000).zip(0..);
                let right = all.filter(|(result, x)| *result == Ok(square(*x)));
                assert_eq!(right.count(), 3000);
            });
            scope.spawn(move || {
                let tasks: Vec<_> = (0..500).map(|x| pool.submit(square, x).expect("submitted")).collect();
                for (x, task) in (0..).zip(tasks) {
                    assert_eq!(task.join(), Ok(square(x)));
                }
            });
        }
    });
}

#[test]
fn a_worker_may_have_a_pool_of_its_own() {
    let _watch = watchdog();
    let outer = pool(2);
    let sum = |n: u64| -> u64 {
        let inner = Pool::new(2).expect("a pool in a worker");
        inner.map(square, 0..n).expect("mapped").into_iter().sum()
    };
    assert_eq!(outer.map(sum, [3, 4]).expect("mapped"), [5, 14]);
}

#[test]
fn a_worker_may_start_a_process() {
    let _watch = watchdog();
    let pool = pool(1);
    let nested = |x: u64| Process::spawn(square, x).map(|child| child.join().ok()).ok();
    assert_eq!(pool.call(nested, 5).expect("called"), Some(Some(25)));
}

#[test]
fn the_workers_are_processes_of_their_own() {
    let _watch = watchdog();
    let pool = pool(3);
    let workers: HashSet<u32> = pool.workers().into_iter().collect();
    assert_eq!(workers.len(), 3);
    assert!(!workers.contains(&std::process::id()));
    for _ in 0..20 {
        assert!(workers.contains(&pool.call(pid, ()).expect("called")));
    }
}

#[test]
fn a_pool_has_a_worker_for_each_processor_by_default() {
    let _watch = watchdog();
    let processors = std::thread::available_parallelism().expect("known").get();
    let pool = Pool::with_default_workers().expect("a pool");
    assert_eq!(pool.workers().len(), processors);
}

#[test]
fn workers_have_the_environment_they_were_given() {
    let _watch = watchdog();
    let pool = Pool::builder().workers(1).env("POOL_TEST_WORD", "word").build();
    let word = |()| std::env::var("POOL_TEST_WORD").ok();
    assert_eq!(pool.expect("a pool").call(word, ()).expect("called").as_deref(), Some("word"));
    assert!(std::env::var_os("POOL_TEST_WORD").is_none());
}

#[test]
fn debug_output_says_what_it_is() {
    let _watch = watchdog();
    let pool = pool(2);
    let text = format!("{pool:?}");
    assert!(text.contains("workers: 2") && text.contains("Open"), "{text}");
    let text = format!("{:?}", pool.job(square).retries(3));
    assert!(text.contains("square") && text.contains("retries: 3"), "{text}");
    let task = pool.submit(square, 1).expect("submitted");
    assert_eq!(task.join(), Ok(1));
    assert!(format!("{task:?}").contains("taken"));
    assert!(format!("{:?}", pool.imap(square, 0..1)).starts_with("Imap"));
}

/// Counts what was taken of it.
fn counted(count: &std::cell::Cell<u64>) -> impl Iterator<Item = u64> {
    std::iter::from_fn(|| {
        count.set(count.get() + 1);
        Some(count.get() - 1)
    })
}

#[test]
fn no_more_items_are_taken_than_may_be_in_flight() {
    let _watch = watchdog();
    let pool = pool(2);
    for (in_flight, chunk) in [(1, 1), (10, 1), (10, 100), (64, 7)] {
        let taken = std::cell::Cell::new(0);
        let job = pool.job(square).in_flight(in_flight).chunk_size(chunk);
        for (yielded, outcome) in (1..).zip(job.imap(counted(&taken)).take(300)) {
            assert_eq!(outcome, Ok(square(yielded - 1)));
            assert!(taken.get() <= yielded + in_flight as u64, "{} of {yielded}", taken.get());
        }
    }
}

#[test]
fn an_endless_iterator_is_taken_as_far_as_needed() {
    let _watch = watchdog();
    let pool = pool(2);
    let taken = std::cell::Cell::new(0);
    assert_eq!(pool.imap(square, counted(&taken)).take(5000).count(), 5000);
    assert!((5000..7000).contains(&taken.get()), "{}", taken.get());
    assert_eq!(pool.imap_unordered(square, 0..).take(5000).count(), 5000);
    assert_eq!(pool.call(square, 3).expect("the pool goes on"), 9);
}

#[test]
fn a_lazy_map_takes_nothing_before_it_is_asked() {
    let _watch = watchdog();
    let pool = pool(1);
    let taken = std::cell::Cell::new(0);
    let lazy = pool.imap(square, counted(&taken));
    assert_eq!(taken.get(), 0);
    drop(lazy);
}

#[test]
fn lazy_maps_dropped_half_way_leave_room_for_more() {
    let _watch = watchdog();
    let pool = pool(2);
    for round in 0..100 {
        let mut lazy = pool.job(|x: Bytes| x).imap((0..).map(|_| Bytes::pattern(9000, 1)));
        for _ in 0..round % 5 {
            assert_eq!(lazy.next(), Some(Ok(Bytes::pattern(9000, 1))));
        }
        let mut lazy = pool.imap_unordered(square, 0..);
        assert!((0..round).all(|_| matches!(lazy.next(), Some(Ok(_)))));
    }
    let expected: Vec<u64> = (0..10_000).map(square).collect();
    assert_eq!(pool.job(square).chunk_size(1).map(0..10_000).expect("mapped"), expected);
}

#[test]
fn two_lazy_maps_are_taken_in_turns() {
    let _watch = watchdog();
    let pool = pool(2);
    let both = pool.imap(square, 0..3000).zip(pool.imap(|x: u64| x + 1, 0..3000));
    for (x, both) in (0..).zip(both) {
        assert_eq!(both, (Ok(x * x), Ok(x + 1)));
    }
}

#[test]
fn five_thousand_tasks_are_joined() {
    let _watch = watchdog();
    let pool = pool(2);
    let tasks: Vec<_> = (0..5000).map(|x| pool.submit(square, x).expect("submitted")).collect();
    for (x, task) in (0..).zip(tasks) {
        assert_eq!(task.join(), Ok(square(x)));
    }
}

#[test]
fn a_task_nobody_waits_for_becomes_done() {
    let _watch = watchdog();
    let pool = pool(1);
    let (mut reader, writer) = pipe();
    let tasks: Vec<_> = (0..10).map(|x| pool.submit(square, x).expect("submitted")).collect();
    drop(pool.submit(|writer: Handle| writer.say("ran"), writer));
    while !tasks.iter().all(|task| task.is_done()) {
        std::thread::yield_now();
    }
    // Dropped at once, so it may have been taken back.
    assert!(["ran", ""].contains(&&*line(&mut reader)));
}

#[test]
fn a_task_is_waited_for_as_long_as_wanted() {
    let _watch = watchdog();
    let pool = pool(1);
    let (reader, hold) = pipe();
    let wait = |gate: ReadEnd| gate.until_end();
    let task = pool.submit(wait, ReadEnd(reader.into_inner().into())).expect("submitted");
    assert!(!task.is_done());
    assert_eq!(task.join_timeout(Duration::ZERO), Ok(None));
    assert_eq!(task.join_timeout(Duration::from_millis(20)), Ok(None));
    drop(hold);
    assert_eq!(task.join_timeout(Duration::MAX), Ok(Some(())));
    assert!(task.is_done());
}

#[test]
fn a_result_is_taken_once_and_a_failure_as_often_as_wanted() {
    let _watch = watchdog();
    let pool = pool(1);
    let task = pool.submit(square, 3).expect("submitted");
    assert_eq!(task.join(), Ok(9));
    assert!(matches!(task.join(), Err(TaskError::Unavailable { .. })));
    let task = pool.submit(|x: u32| 1 / x, 0).expect("submitted");
    for _ in 0..2 {
        assert!(matches!(task.join(), Err(TaskError::Panicked { .. })));
    }
}

#[test]
fn looking_at_a_task_does_not_wait_for_its_join() {
    let _watch = watchdog();
    let pool = pool(1);
    let (reader, hold) = pipe();
    let gate = ReadEnd(reader.into_inner().into());
    let task = &pool.submit(|gate: ReadEnd| gate.until_end(), gate).expect("submitted");
    std::thread::scope(|scope| {
        let joiner = scope.spawn(|| task.join());
        // Whoever of the two is first, with or without the pause: the gate opens only afterwards.
        while !format!("{task:?}").contains("waiting") {}
        std::thread::sleep(Duration::from_millis(20));
        assert!(!task.is_done());
        assert_eq!(task.join_timeout(Duration::from_millis(20)), Ok(None));
        drop(hold);
        assert_eq!(joiner.join().expect("no panic"), Ok(()));
    });
}

#[test]
fn a_dropped_task_is_taken_back_or_its_result_thrown_away() {
    let _watch = watchdog();
    let pool = pool(1);
    for x in 0..3000 {
        drop(pool.submit(square, x).expect("submitted"));
    }
    assert_eq!(pool.call(square, 3).expect("called"), 9);
}
