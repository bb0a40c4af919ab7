//! Workers that are killed from outside are replaced; when none can be started, nobody hangs.

mod common;

use common::*;
use proc_pool::{Pool, Process, TaskError};
use rustix::process::Signal;
use std::path::Path;

fn pool(workers: usize) -> Pool {
    Pool::new(workers).expect("a pool")
}

fn doubled(index: u64) -> u64 {
    index * 2
}

#[track_caller]
fn goes_on(pool: &Pool) {
    let results = pool.job(doubled).chunk_size(3).map(0..500);
    assert_eq!(results.expect("mapped"), (0..500).map(doubled).collect::<Vec<_>>());
}

#[track_caller]
fn task_error<R>(result: proc_pool::Result<R>) -> Result<R, TaskError> {
    result.map_err(|error| error.into_task().expect("the failure of a task"))
}

#[test]
fn workers_that_are_all_killed_while_idle_are_replaced() {
    let _dog = watchdog();
    let pool = pool(3);
    for _ in 0..5 {
        let workers = until_workers(&pool, 3);
        workers.iter().for_each(|&worker| signal(worker, Signal::KILL));
        workers.iter().for_each(|&worker| until_gone(worker));
        goes_on(&pool);
    }
}

#[test]
fn a_pool_whose_idle_workers_are_killed_for_hours_goes_on() {
    let _dog = watchdog();
    let pool = pool(2);
    for _ in 0..20 {
        let workers = until_workers(&pool, 2);
        workers.iter().for_each(|&worker| signal(worker, Signal::KILL));
        workers.iter().for_each(|&worker| until_gone(worker));
    }
    goes_on(&pool);
}

/// Says that it runs, and never ends.
fn endless(writer: Handle) {
    writer.say(std::process::id());
    sleep_forever()
}

#[test]
fn workers_that_are_all_killed_while_busy_fail_what_they_ran() {
    let _dog = watchdog();
    let pool = pool(3);
    let (mut reader, writer) = pipe();
    let submit = |_| {
        let writer = Handle(writer.0.try_clone().expect("a descriptor"));
        pool.submit(endless, writer).expect("submitted")
    };
    let tasks: Vec<_> = (0..3).map(submit).collect();
    let waiting: Vec<_> = (0..50).map(|index| pool.submit(doubled, index).expect("submitted")).collect();
    let mut busy: Vec<u32> = (0..3).map(|_| line(&mut reader).parse().expect("a process id")).collect();
    busy.iter().for_each(|&worker| signal(worker, Signal::KILL));
    let mut killed: Vec<u32> = tasks
        .iter()
        .map(|task| match task.join() {
            Err(TaskError::WorkerDied { pid, signal: Some(SIGKILL), .. }) => pid,
            other => panic!("{other:?}"),
        })
        .collect();
    busy.sort_unstable();
    killed.sort_unstable();
    assert_eq!(killed, busy);
    for (index, task) in (0..).zip(waiting) {
        assert_eq!(task.join(), Ok(index * 2));
    }
    goes_on(&pool);
}

#[test]
fn a_call_whose_worker_is_killed_from_outside_fails() {
    let _dog = watchdog();
    let pool = &pool(2);
    let (mut reader, writer) = pipe();
    std::thread::scope(|scope| {
        let call = scope.spawn(move || pool.call(endless, writer));
        signal(line(&mut reader).parse().expect("a process id"), Signal::KILL);
        assert_eq!(death(task_error(call.join().expect("no panic"))), (Some(SIGKILL), None));
    });
    goes_on(pool);
}

#[test]
fn a_worker_that_is_stopped_and_then_killed_fails_only_its_item() {
    let _dog = watchdog();
    let pool = pool(2);
    let (mut reader, writer) = pipe();
    let task = pool.submit(endless, writer).expect("submitted");
    let worker = line(&mut reader).parse().expect("a process id");
    signal(worker, Signal::STOP);
    goes_on(&pool);
    assert!(!task.is_done());
    signal(worker, Signal::KILL);
    assert_eq!(death(task.join()), (Some(SIGKILL), None));
    goes_on(&pool);
}

#[test]
fn idle_workers_that_are_stopped_and_then_killed_are_replaced() {
    let _dog = watchdog();
    let pool = pool(2);
    for _ in 0..3 {
        let workers = until_workers(&pool, 2);
        workers.iter().for_each(|&worker| signal(worker, Signal::STOP));
        let task = pool.job(doubled).retries(2).submit(3).expect("submitted");
        workers.iter().for_each(|&worker| signal(worker, Signal::KILL));
        assert_eq!(task.join(), Ok(6));
    }
    goes_on(&pool);
}

#[test]
fn a_worker_killed_at_any_moment_of_a_large_result_loses_nothing_with_retries() {
    let _dog = watchdog();
    let pool = &pool(2);
    let large = |seed: u8| Bytes::pattern(2 << 20, seed);
    std::thread::scope(|scope| {
        let map = scope.spawn(move || {
            let results = pool.job(large).retries(100).imap(0..60);
            let right = |(seed, bytes)| bytes == Ok(Bytes::pattern(2 << 20, seed));
            (0..).zip(results).filter(|pair| right(pair.clone())).count()
        });
        while !map.is_finished() {
            if let Some(&worker) = pool.workers().first() {
                signal(worker, Signal::KILL);
            }
            std::thread::sleep(std::time::Duration::from_millis(40));
        }
        assert_eq!(map.join().expect("no panic"), 60);
    });
}

#[test]
fn a_worker_that_forks_answers_once() {
    let _dog = watchdog();
    let pool = pool(1);
    let fork = |()| {
        // SAFETY: the copy returns from this function and ends there.
        let pid = unsafe { libc::fork() };
        if pid > 0 {
            // SAFETY: a child of this process; its status is of no interest.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        }
        pid > 0
    };
    for _ in 0..3 {
        assert_eq!(task_error(pool.call(fork, ())), Ok(true));
    }
    goes_on(&pool);
}

#[test]
fn a_task_that_closes_the_descriptors_of_its_worker_is_survived() {
    let _dog = watchdog();
    let pool = pool(1);
    let close = |()| {
        for descriptor in 3..64 {
            // SAFETY: on purpose, what buggy programs do; the process is not expected to get far.
            unsafe { libc::close(descriptor) };
        }
    };
    // It may get its answer through, or not.
    let _ = pool.call(close, ());
    let job = pool.job(doubled).retries(3);
    assert_eq!(task_error(job.call(4)), Ok(8));
    goes_on(&pool);
}

/// Two pools' worth of workers; says their process ids, and that it waits.
fn owner(writer: Handle) {
    let pool = pool(3);
    let _busy = pool.submit(|()| sleep_forever(), ()).map(|task: proc_pool::Task<()>| task);
    goes_on(&pool);
    for worker in pool.workers() {
        writer.say(worker);
    }
    sleep_forever()
}

#[test]
fn no_worker_survives_the_kill_of_the_parent() {
    let _dog = watchdog();
    for stopped in [false, true] {
        let (mut reader, writer) = pipe();
        let parent = Process::spawn(owner, writer).expect("spawned");
        let pids: Vec<u32> = (0..3).map(|_| line(&mut reader).parse().expect("a process id")).collect();
        let workers: Vec<_> = pids.iter().map(|&worker| pidfd(worker)).collect();
        if stopped {
            pids.iter().for_each(|&worker| signal(worker, Signal::STOP));
        }
        // The parent alone: not its process group, and without a chance to clean up.
        rustix::process::pidfd_send_signal(&parent, Signal::KILL).expect("killed");
        workers.iter().for_each(until_ready);
    }
}

#[test]
fn a_pool_whose_workers_die_at_their_start_is_not_made() {
    let _dog = watchdog();
    // The constructor is switched off in the workers, so they never become ready.
    let built = Pool::builder().workers(2).env("PROC_POOL_CTOR", "0").env("RUST_TEST_THREADS", "0").build();
    let error = built.expect_err("no worker");
    assert!(error.is_handshake(), "{error}");
}

/// Names a file without which a new worker ends before it is ready.
const GATE: &str = "POOL_TEST_GATE";

extern "C" fn gate() {
    if std::env::var_os(GATE).is_some_and(|path| !Path::new(&path).exists()) {
        // SAFETY: ends the process; nothing has begun yet.
        unsafe { libc::_exit(9) }
    }
}

// The section is a list of functions like this one, which the loader calls. The number puts it before the
// constructor that turns this process into a worker.
#[used]
#[unsafe(link_section = ".init_array.00101")]
static BEFORE_INIT: extern "C" fn() = gate;

#[test]
fn a_pool_whose_workers_can_no_longer_be_started_gives_up_and_nobody_hangs() {
    let _dog = watchdog();
    let dir = Scratch::new();
    std::fs::write(dir.file("gate"), "").expect("writable");
    let pool = &Pool::builder().workers(2).env(GATE, dir.file("gate")).build().expect("a pool");
    let (mut reader, writer) = pipe();
    let task = pool.submit(endless, writer).expect("submitted");
    let busy = line(&mut reader).parse().expect("a process id");
    let waiting: Vec<_> = (0..2000)
        .map(|_| pool.submit(|()| sleep_forever(), ()).map(|task: proc_pool::Task<()>| task))
        .collect();
    std::fs::remove_file(dir.file("gate")).expect("it is there");
    let errors = std::thread::scope(|scope| {
        let call = scope.spawn(|| pool.job(doubled).retries(9).call(1).map(drop));
        let map = scope.spawn(|| pool.map(doubled, 0..99).map(drop));
        pool.workers().iter().for_each(|&worker| signal(worker, Signal::KILL));
        [call, map].map(|thread| thread.join().expect("no panic").expect_err("no worker"))
    });
    let gave_up = |error: &dyn std::fmt::Display| {
        let error = error.to_string();
        assert!(error.contains("cannot be started") && error.contains("code 9"), "{error}");
    };
    errors.iter().for_each(|error| gave_up(error));
    match task.join() {
        Err(TaskError::WorkerDied { pid, .. }) => assert_eq!(pid, busy),
        other => panic!("{other:?}"),
    }
    let mut died = 0;
    for task in waiting {
        match task.expect("submitted").join() {
            // The other worker was running it.
            Err(TaskError::WorkerDied { .. }) => died += 1,
            Err(error) => gave_up(&error),
            Ok(()) => panic!("it never ends"),
        }
    }
    assert!(died <= 1);
    gave_up(&pool.call(doubled, 1).expect_err("over"));
    gave_up(&pool.submit(doubled, 1).expect_err("over"));
    pool.close();
    gave_up(&pool.join().expect_err("over"));
    assert_eq!(pool.workers(), []);
}

#[test]
fn an_idle_pool_outlives_a_time_without_new_workers() {
    let _dog = watchdog();
    let dir = Scratch::new();
    std::fs::write(dir.file("gate"), "").expect("writable");
    let pool = Pool::builder().workers(2).env(GATE, dir.file("gate")).build().expect("a pool");
    std::fs::remove_file(dir.file("gate")).expect("it is there");
    let workers = pool.workers();
    workers.iter().for_each(|&worker| signal(worker, Signal::KILL));
    workers.iter().for_each(|&worker| until_gone(worker));
    // Time for some starts in vain.
    std::thread::sleep(std::time::Duration::from_millis(600));
    std::fs::write(dir.file("gate"), "").expect("writable");
    until_workers(&pool, 2);
    goes_on(&pool);
}
