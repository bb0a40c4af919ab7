//! How a pool ends, and that it leaves nothing behind.

mod common;

use common::*;
use proc_pool::{Pool, Process, TaskError};

fn square(x: u64) -> u64 {
    x * x
}

fn sleeper(_: u64) {
    sleep_forever()
}

fn pool(workers: usize) -> Pool {
    Pool::new(workers).expect("a pool")
}

#[test]
fn a_closed_pool_accepts_nothing() {
    let _watch = watchdog();
    let pool = pool(1);
    pool.close();
    assert!(pool.call(square, 1).expect_err("closed").is_closed());
    assert!(pool.submit(square, 1).expect_err("closed").is_closed());
    assert!(pool.map(square, 0..3).expect_err("closed").is_closed());
    assert_eq!(pool.imap(square, 0..3).collect::<Vec<_>>(), [Err(TaskError::PoolClosed)]);
    assert_eq!(pool.imap_unordered(square, 0..3).collect::<Vec<_>>(), [Err(TaskError::PoolClosed)]);
    pool.close();
    pool.join().expect("joined");
    assert!(pool.call(square, 1).expect_err("closed").is_closed());
}

#[test]
fn what_was_submitted_before_the_close_is_run() {
    let _watch = watchdog();
    let pool = pool(2);
    let tasks: Vec<_> = (0..3000).map(|x| pool.submit(square, x).expect("submitted")).collect();
    let workers = pool.workers();
    pool.close();
    pool.join().expect("joined");
    workers.into_iter().for_each(until_gone);
    for (x, task) in (0..).zip(tasks) {
        assert_eq!(task.join(), Ok(square(x)));
    }
}

#[test]
fn a_worker_killed_after_the_close_does_not_stop_the_rest() {
    let _watch = watchdog();
    let pool = pool(2);
    let tasks: Vec<_> = (0..300).map(|x| pool.job(square).retries(9).submit(x).expect("submitted")).collect();
    pool.close();
    for worker in pool.workers() {
        signal(worker, rustix::process::Signal::KILL);
    }
    pool.join().expect("joined");
    for (x, task) in (0..).zip(tasks) {
        assert_eq!(task.join(), Ok(square(x)));
    }
}

#[test]
fn a_lazy_map_that_is_cut_off_by_a_close_says_so() {
    let _watch = watchdog();
    let pool = pool(1);
    let mut lazy = pool.job(square).in_flight(10).imap(0..);
    assert_eq!(lazy.next(), Some(Ok(0)));
    pool.close();
    let last = lazy.last();
    assert_eq!(last, Some(Err(TaskError::PoolClosed)));
    pool.join().expect("joined");
}

#[test]
fn a_map_under_way_is_cut_off_by_a_close_from_another_thread() {
    let _watch = watchdog();
    let pool = &pool(2);
    let endless = std::thread::scope(|scope| {
        let map = scope.spawn(|| pool.job(square).chunk_size(10).map(0..));
        // The first answer to a call shows that the map's thread is not alone.
        pool.call(square, 1).expect("called");
        pool.close();
        pool.join().expect("joined");
        map.join().expect("no panic")
    });
    assert!(endless.expect_err("cut off").is_closed());
}

#[test]
fn an_open_pool_is_not_joined() {
    let _watch = watchdog();
    let pool = pool(1);
    let error = pool.join().expect_err("it would never end");
    assert!(error.is_invalid_input(), "{error}");
    assert_eq!(pool.call(square, 3).expect("it goes on"), 9);
}

#[test]
fn joining_again_is_nothing_new() {
    let _watch = watchdog();
    for terminate in [false, true] {
        let pool = pool(1);
        if terminate {
            pool.terminate();
        } else {
            pool.close();
        }
        pool.join().expect("joined");
        pool.join().expect("joined again");
        pool.close();
        pool.terminate();
        pool.join().expect("joined once more");
        assert_eq!(pool.workers(), []);
        assert!(pool.call(square, 1).expect_err("over").is_closed());
    }
}

#[test]
fn terminate_ends_ten_thousand_tasks_that_never_end() {
    let _watch = watchdog();
    let pool = pool(3);
    let workers = pool.workers();
    let tasks: Vec<_> = (0..10_000).map(|x| pool.submit(sleeper, x).expect("submitted")).collect();
    pool.terminate();
    pool.join().expect("joined");
    workers.into_iter().for_each(until_gone);
    for task in tasks {
        assert_eq!(task.join(), Err(TaskError::PoolClosed));
        assert!(task.is_done());
    }
}

#[test]
fn terminate_frees_those_who_wait() {
    let _watch = watchdog();
    let pool = &pool(2);
    std::thread::scope(|scope| {
        let call = scope.spawn(|| pool.call(sleeper, 0));
        let map = scope.spawn(|| pool.map(sleeper, 0..100));
        let lazy = scope.spawn(|| pool.imap(sleeper, 0..100).collect::<Vec<_>>());
        let task = scope.spawn(|| pool.submit(sleeper, 0).and_then(|task| Ok(task.join()?)));
        std::thread::sleep(std::time::Duration::from_millis(30));
        pool.terminate();
        assert!(call.join().expect("no panic").expect_err("ended").is_closed());
        assert!(map.join().expect("no panic").expect_err("ended").is_closed());
        assert!(task.join().expect("no panic").expect_err("ended").is_closed());
        assert_eq!(lazy.join().expect("no panic"), [Err(TaskError::PoolClosed)]);
    });
}

#[test]
fn a_dropped_pool_leaves_no_process() {
    let _watch = watchdog();
    for busy in [false, true] {
        let pool = pool(3);
        let workers = pool.workers();
        let task = busy.then(|| pool.submit(sleeper, 0).expect("submitted"));
        drop(pool);
        for worker in workers {
            assert!(!std::path::Path::new(&format!("/proc/{worker}")).exists());
        }
        if let Some(task) = task {
            assert_eq!(task.join(), Err(TaskError::PoolClosed));
        }
    }
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("readable").count()
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").expect("readable").count()
}

fn use_a_pool(way: u32) {
    let pool = pool(2);
    let map = pool.job(square).chunk_size(5).map(0..1000);
    assert_eq!(map.expect("mapped")[999], 998_001);
    let task = pool.submit(|bytes: Bytes| bytes, Bytes::pattern(3 << 20, 1));
    assert!(task.expect("submitted").join().is_ok());
    let _lost = pool.submit(|_: u64| -> u8 { std::process::abort() }, 0);
    match way % 3 {
        0 => drop(pool),
        1 => pool.terminate(),
        _ => {
            pool.close();
            pool.join().expect("joined");
        }
    }
}

#[test]
fn twenty_pools_leave_no_descriptor_no_thread_and_no_mapping() {
    let _watch = watchdog();
    // In a process of its own: tests beside this one open and close descriptors.
    let counts = |()| {
        use_a_pool(0);
        let mappings = || {
            let maps = std::fs::read_to_string("/proc/self/maps").expect("readable");
            assert!(!maps.contains("/dev/shm"), "{maps}");
            maps.lines().filter(|line| line.contains("memfd")).count()
        };
        let before = (descriptors(), threads(), mappings());
        (0..20).for_each(use_a_pool);
        // The descriptors of workers that have ended are closed a moment later.
        while descriptors() > before.0 || threads() > before.1 {
            std::thread::yield_now();
        }
        (before.2, mappings())
    };
    let child = Process::spawn(counts, ()).expect("spawned");
    let (before, after) = child.join().expect("counted");
    assert_eq!(before, after);
}

#[test]
fn a_forked_child_cannot_use_the_pool_and_does_not_harm_it() {
    let _watch = watchdog();
    let fork = |()| {
        let pool = pool(2);
        let task = pool.submit(square, 5).expect("submitted");
        // More than can have come before the fork.
        let mut lazy = pool.imap(square, 0..);
        let first = lazy.next();
        let workers = pool.workers();
        let code = in_a_fork(|| {
            let refused = [
                pool.call(square, 1).is_err(),
                pool.submit(square, 1).is_err(),
                pool.map(square, 0..3).is_err(),
                matches!(pool.imap(square, 0..3).next(), Some(Err(_))),
                pool.join().is_err(),
                task.is_done() && task.join().is_err(),
                lazy.by_ref().take(10_000).any(|outcome| outcome.is_err()),
            ];
            pool.close();
            pool.terminate();
            // SAFETY: only this copy of the pool is dropped, and nothing of this process uses it afterwards.
            drop(unsafe { std::ptr::read(&pool) });
            (0..).zip(refused).map(|(bit, refused)| i32::from(refused) << bit).sum()
        });
        let rest = lazy.take(99).filter(|outcome| outcome.is_ok()).count();
        let intact = pool.workers() == workers;
        let mapped = pool.map(square, 0..1000).map(|squares| squares[999]);
        (code, first, task.join(), rest, intact, mapped.ok())
    };
    let child = Process::spawn(fork, ()).expect("spawned");
    assert_eq!(child.join(), Ok((0b111_1111, Some(Ok(0)), Ok(25), 99, true, Some(998_001))));
}
