//! What CPython asserts of its pools, row by row.

mod common;

use common::*;
use proc_pool::{Pool, TaskError};
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

fn square(x: u64) -> u64 {
    x * x
}

fn squares(range: std::ops::Range<u64>) -> Vec<u64> {
    range.map(square).collect()
}

fn pool(workers: usize) -> Pool {
    Pool::new(workers).expect("a pool")
}

#[track_caller]
fn task_error<R>(result: proc_pool::Result<R>) -> Result<R, TaskError> {
    result.map_err(|error| error.into_task().expect("the failure of a task"))
}

/// The pool still does what it should.
#[track_caller]
fn goes_on(pool: &Pool) {
    assert_eq!(pool.call(square, 7).expect("called"), 49);
    assert_eq!(pool.map(square, 0..100).expect("mapped"), squares(0..100));
}

/// Numbers up to `count`, and then a panic.
fn up_to(count: u64) -> impl Iterator<Item = u64> {
    (0..).inspect(move |&number| assert!(number < count, "the iterator panics on purpose"))
}

#[test]
fn conformance_pool_apply() {
    let _dog = watchdog();
    let pool = pool(2);
    let apply = |(a, b): (u64, Option<u64>)| a + b.unwrap_or(1);
    assert_eq!(pool.call(apply, (5, None)).expect("called"), 6);
    assert_eq!(pool.call(apply, (5, Some(2))).expect("called"), 7);
}

#[test]
fn conformance_pool_map() {
    let _dog = watchdog();
    let pool = pool(4);
    assert_eq!(pool.map(square, 0..10).expect("mapped"), squares(0..10));
    let job = pool.job(square).chunk_size(20);
    assert_eq!(job.map(0..100).expect("mapped"), squares(0..100));
}

#[test]
fn conformance_pool_map_unplicklable() {
    let _dog = watchdog();
    let pool = pool(2);
    let items = || (0..10).map(|number| Faulty::encoding(number, Fault::Error));
    let outcome = task_error(pool.map(|faulty: Faulty| faulty.number, items()));
    assert!(matches!(outcome, Err(TaskError::Codec { .. })));
    goes_on(&pool);
}

#[test]
fn conformance_pool_map_chunksize() {
    let _dog = watchdog();
    let pool = pool(2);
    assert_eq!(pool.job(square).chunk_size(1).map([]).expect("mapped"), []);
}

#[test]
fn conformance_pool_map_handle_iterable_exception() {
    let _dog = watchdog();
    let pool = pool(2);
    for good in [0, 1, 10, 1000] {
        for chunk in [1, 4] {
            let job = pool.job(square).chunk_size(chunk);
            assert!(catch_unwind(AssertUnwindSafe(|| job.map(up_to(good)))).is_err());
        }
        goes_on(&pool);
    }
}

#[test]
fn conformance_pool_async() {
    let _dog = watchdog();
    let pool = pool(2);
    let task = pool.submit(square, 7).expect("submitted");
    assert_eq!(task.join_timeout(Duration::from_secs(50)), Ok(Some(49)));
}

#[test]
fn conformance_pool_async_timeout() {
    let _dog = watchdog();
    let pool = pool(1);
    let (reader, hold) = pipe();
    let gate = ReadEnd(reader.into_inner().into());
    let task = pool.submit(|gate: ReadEnd| gate.until_end(), gate).expect("submitted");
    assert_eq!(task.join_timeout(Duration::from_millis(50)), Ok(None));
    drop(hold);
    assert_eq!(task.join(), Ok(()));
}

#[test]
fn conformance_pool_imap() {
    let _dog = watchdog();
    let pool = pool(2);
    assert!(pool.imap(square, 0..10).eq(squares(0..10).into_iter().map(Ok)));
    let mut lazy = pool.imap(square, 0..10);
    for x in 0..10 {
        assert_eq!(lazy.next(), Some(Ok(x * x)));
    }
    assert_eq!((lazy.next(), lazy.next()), (None, None));
    let mut lazy = pool.job(square).chunk_size(100).imap(0..1000);
    for x in 0..1000 {
        assert_eq!(lazy.next(), Some(Ok(x * x)));
    }
    assert_eq!(lazy.next(), None);
}

#[test]
fn conformance_pool_imap_handle_iterable_exception() {
    let _dog = watchdog();
    let pool = pool(2);
    for good in [0, 1, 10] {
        // One at a time: all that came before the panic is yielded.
        let mut lazy = pool.job(square).in_flight(1).imap(up_to(good));
        let (mut yielded, mut panics) = (Vec::new(), 0);
        loop {
            match catch_unwind(AssertUnwindSafe(|| lazy.next())) {
                Ok(Some(outcome)) => yielded.push(outcome.expect("a result")),
                Ok(None) => break,
                Err(_) => panics += 1,
            }
        }
        assert_eq!((yielded, panics), (squares(0..good), 1));
        goes_on(&pool);
    }
}

#[test]
fn conformance_pool_imap_unordered() {
    let _dog = watchdog();
    let pool = pool(2);
    for chunk in [1, 100] {
        let results = pool.job(square).chunk_size(chunk).imap_unordered(0..1000);
        let mut results: Vec<u64> = results.map(|result| result.expect("a result")).collect();
        results.sort_unstable();
        assert_eq!(results, squares(0..1000));
    }
}

#[test]
fn conformance_pool_imap_unordered_handle_iterable_exception() {
    let _dog = watchdog();
    let pool = pool(2);
    for good in [0, 1, 10] {
        let mut lazy = pool.job(square).in_flight(2).imap_unordered(up_to(good));
        let mut yielded = HashSet::new();
        let mut panics = 0;
        loop {
            match catch_unwind(AssertUnwindSafe(|| lazy.next())) {
                Ok(Some(outcome)) => {
                    let result = outcome.expect("a result");
                    assert!(squares(0..good).contains(&result) && yielded.insert(result));
                }
                Ok(None) => break,
                Err(_) => panics += 1,
            }
        }
        assert_eq!(panics, 1);
        goes_on(&pool);
    }
}

#[test]
fn conformance_pool_make_pool() {
    let _dog = watchdog();
    assert!(Pool::new(0).expect_err("no worker").is_invalid_input());
    assert_eq!(pool(3).workers().len(), 3);
}

#[test]
fn conformance_pool_terminate() {
    let _dog = watchdog();
    let pool = pool(3);
    let workers = pool.workers();
    let lazy = pool.imap(|_: u64| sleep_forever(), 0..10_000);
    let lazy: proc_pool::Imap<'_, _, ()> = lazy;
    let tasks: Vec<_> =
        (0..10_000).map(|x| pool.submit(|_: u64| -> u8 { sleep_forever() }, x).expect("submitted")).collect();
    pool.terminate();
    pool.join().expect("joined");
    workers.into_iter().for_each(until_gone);
    drop((lazy, tasks));
}

#[test]
fn conformance_pool_empty_iterable() {
    let _dog = watchdog();
    let pool = pool(1);
    assert_eq!(pool.map(square, []).expect("mapped"), []);
    assert_eq!(pool.imap(square, []).count(), 0);
    assert_eq!(pool.imap_unordered(square, []).count(), 0);
    pool.close();
    pool.join().expect("joined");
}

#[test]
fn conformance_pool_traceback() {
    let _dog = watchdog();
    let pool = Pool::builder().workers(1).env("RUST_BACKTRACE", "1").build().expect("a pool");
    let outcome = task_error(pool.call(|x: u64| -> u64 { panic!("number {x}") }, 5));
    match outcome {
        Err(TaskError::Panicked { message, location, backtrace, .. }) => {
            assert_eq!(message, "number 5");
            assert!(location.expect("a place").contains("pool_conformance.rs"));
            assert!(backtrace.expect("asked for").contains("conformance_pool_traceback"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn conformance_pool_map_no_failfast() {
    let _dog = watchdog();
    let pool = pool(2);
    let (mut reader, writer) = pipe();
    let items = (0..20).map(|index| (Handle(writer.0.try_clone().expect("a descriptor")), index));
    let fail = |(writer, index): (Handle, u32)| {
        writer.say(index);
        if index % 2 == 0 {
            // A panic that is not printed.
            std::panic::resume_unwind(Box::new("x".repeat(1 << 20)));
        }
    };
    let outcome = task_error(pool.job(fail).chunk_size(1).map(items));
    assert!(matches!(outcome, Err(TaskError::Panicked { .. })));
    // All were run before the map failed.
    drop(writer);
    let ran: HashSet<String> = (0..20).map(|_| line(&mut reader)).collect();
    assert_eq!(ran.len(), 20);
    pool.close();
    pool.join().expect("joined");
}

#[test]
fn conformance_pool_map_no_failfast_with_large_errors_as_values() {
    let _dog = watchdog();
    let pool = pool(2);
    let fail = |index: usize| -> Result<u8, Bytes> {
        Err(Bytes::pattern(1 << 20, u8::try_from(index).unwrap_or(0)))
    };
    let results = pool.job(fail).chunk_size(1).map(0..20).expect("mapped");
    let right = |(index, result): (u8, Result<u8, Bytes>)| result == Err(Bytes::pattern(1 << 20, index));
    assert!((0..).zip(results).all(right));
    pool.close();
    pool.join().expect("joined");
}

#[test]
fn conformance_pool_unpickleable_result() {
    let _dog = watchdog();
    let pool = pool(2);
    let workers = pool.workers();
    for number in 0..20 {
        let task = pool.submit(|number: u32| Faulty::encoding(number, Fault::Error), number);
        assert!(matches!(task.expect("submitted").join(), Err(TaskError::Codec { .. })));
    }
    assert_eq!(pool.workers(), workers, "no worker was lost");
    goes_on(&pool);
}

#[test]
fn conformance_pool_release_unused_processes() {
    let _dog = watchdog();
    // In a process of its own, so that its children can be counted; the fourth worker finds no descriptor left.
    let start = |()| {
        let children = || {
            let children = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
            children.split_whitespace().count()
        };
        let pool = Pool::new(2).expect("enough for two");
        let open = std::fs::read_dir("/proc/self/fd").expect("readable").count();
        drop(pool);
        let limit = rustix::process::Rlimit { current: Some(open as u64), maximum: Some(open as u64) };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).expect("lowered");
        let failed = Pool::new(4).is_err();
        (failed, children(), Pool::new(1).is_ok())
    };
    let child = proc_pool::Process::spawn(start, ()).expect("spawned");
    assert_eq!(child.join(), Ok((true, 0, true)));
}
