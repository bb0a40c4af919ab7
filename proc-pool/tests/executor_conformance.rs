//! What CPython asserts of its executors, row by row.

mod common;

use common::*;
use proc_pool::{Pool, TaskError};
use rustix::process::Signal;
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

#[test]
fn conformance_executor_submit() {
    let _dog = watchdog();
    let pool = pool(2);
    let power = |(base, exponent): (u64, u32)| base.pow(exponent);
    assert_eq!(pool.submit(power, (2, 8)).expect("submitted").join(), Ok(256));
}

#[test]
fn conformance_executor_map_exception() {
    let _dog = watchdog();
    let pool = pool(2);
    let divide = |(a, b): (i32, i32)| (a / b, a % b);
    let outcomes: Vec<_> = pool.imap(divide, [(1, 2), (3, 4), (5, 0), (7, 8)]).collect();
    assert_eq!((&outcomes[0], &outcomes[1]), (&Ok((0, 1)), &Ok((0, 3))));
    assert!(matches!(outcomes[2], Err(TaskError::Panicked { .. })));
    assert_eq!(outcomes[3], Ok((0, 7)));
}

#[test]
fn conformance_executor_map_chunksize() {
    let _dog = watchdog();
    let pool = pool(2);
    for chunk in [6, 50, 40] {
        let job = pool.job(square).chunk_size(chunk);
        assert_eq!(job.map(0..40).expect("mapped"), squares(0..40));
    }
    assert!(pool.job(square).chunk_size(0).map(0..40).is_err());
}

#[test]
fn conformance_executor_shutdown_race_issue12456() {
    let _dog = watchdog();
    let pool = pool(5);
    let tasks: Vec<_> = (0..5).map(|x| pool.submit(square, x).expect("submitted")).collect();
    drop(pool);
    drop(tasks);
}

#[test]
fn conformance_executor_killed_child() {
    let _dog = watchdog();
    let pool = pool(1);
    let (mut reader, writer) = pipe();
    let task = pool.submit(say_and_sleep, writer).expect("submitted");
    signal(line(&mut reader).parse().expect("a process id"), Signal::KILL);
    assert_eq!(death(task.join()), (Some(SIGKILL), None));
    // Only the task is broken.
    goes_on(&pool);
}

fn say_and_sleep(writer: Handle) {
    writer.say(std::process::id());
    sleep_forever()
}

#[test]
fn conformance_executor_ressources_gced_in_workers() {
    let _dog = watchdog();
    let pool = pool(1);
    let (mut reader, writer) = pipe();
    pool.call(|_: Handle| (), writer).expect("called");
    // The argument of the last call is closed there although the worker lives.
    assert_eq!(line(&mut reader), "");
}

#[test]
fn conformance_executor_saturation() {
    let _dog = watchdog();
    let pool = pool(2);
    let (reader, hold) = pipe();
    let gate = || ReadEnd(reader.get_ref().try_clone().expect("a descriptor").into());
    let tasks: Vec<_> =
        (0..30).map(|_| pool.submit(|gate: ReadEnd| gate.until_end(), gate()).expect("submitted")).collect();
    assert_eq!(pool.workers().len(), 2);
    drop(hold);
    assert!(tasks.iter().all(|task| task.join().is_ok()));
}

/// What becomes of a call, a task and a map that meet the same fault.
macro_rules! outcomes {
    ($pool:expr, $function:expr, $argument:expr) => {{
        let pool: &Pool = $pool;
        [
            task_error(pool.call($function, $argument)).map(drop),
            task_error(pool.submit($function, $argument)).and_then(|task| task.join()).map(drop),
            task_error(pool.job($function).chunk_size(2).map([$argument; 3])).map(drop),
        ]
    }};
}

fn take(faulty: Faulty) -> u32 {
    faulty.number
}

fn run(fault: Fault) -> u32 {
    match fault {
        Fault::Nothing => 1,
        Fault::Error | Fault::Panic => panic!("failed on purpose"),
        Fault::Exit => std::process::exit(3),
        Fault::Abort => std::process::abort(),
    }
}

fn give_encoding(fault: Fault) -> Faulty {
    Faulty::encoding(1, fault)
}

fn give_decoding(fault: Fault) -> Faulty {
    Faulty::decoding(1, fault)
}

#[track_caller]
fn all_codec(outcomes: [Result<(), TaskError>; 3]) {
    for outcome in outcomes {
        assert!(matches!(outcome, Err(TaskError::Codec { .. })), "{outcome:?}");
    }
}

#[track_caller]
fn all_panicked(outcomes: [Result<(), TaskError>; 3]) {
    for outcome in outcomes {
        assert!(matches!(outcome, Err(TaskError::Panicked { .. })), "{outcome:?}");
    }
}

#[track_caller]
fn all_died(outcomes: [Result<(), TaskError>; 3], end: (Option<i32>, Option<i32>)) {
    for outcome in outcomes {
        assert_eq!(death(outcome), end);
    }
}

const EXITED: (Option<i32>, Option<i32>) = (None, Some(3));
const ABORTED: (Option<i32>, Option<i32>) = (Some(SIGABRT), None);

#[test]
fn conformance_executor_error_at_task_pickle() {
    let _dog = watchdog();
    let pool = pool(2);
    all_codec(outcomes!(&pool, take, Faulty::encoding(1, Fault::Error)));
    goes_on(&pool);
}

#[test]
fn conformance_executor_exit_error_and_crash_at_task_unpickle() {
    let _dog = watchdog();
    let pool = pool(2);
    all_codec(outcomes!(&pool, take, Faulty::decoding(1, Fault::Error)));
    all_panicked(outcomes!(&pool, take, Faulty::decoding(1, Fault::Panic)));
    all_died(outcomes!(&pool, take, Faulty::decoding(1, Fault::Exit)), EXITED);
    all_died(outcomes!(&pool, take, Faulty::decoding(1, Fault::Abort)), ABORTED);
    goes_on(&pool);
}

#[test]
fn conformance_executor_exit_error_and_crash_during_func_exec() {
    let _dog = watchdog();
    let pool = pool(2);
    all_panicked(outcomes!(&pool, run, Fault::Panic));
    all_died(outcomes!(&pool, run, Fault::Exit), EXITED);
    all_died(outcomes!(&pool, run, Fault::Abort), ABORTED);
    goes_on(&pool);
}

#[test]
fn conformance_executor_exit_error_and_crash_during_result_pickle() {
    let _dog = watchdog();
    let pool = pool(2);
    all_codec(outcomes!(&pool, give_encoding, Fault::Error));
    all_panicked(outcomes!(&pool, give_encoding, Fault::Panic));
    all_died(outcomes!(&pool, give_encoding, Fault::Exit), EXITED);
    all_died(outcomes!(&pool, give_encoding, Fault::Abort), ABORTED);
    goes_on(&pool);
}

#[test]
fn conformance_executor_error_during_result_unpickle_in_result_handler() {
    let _dog = watchdog();
    let pool = pool(2);
    all_codec(outcomes!(&pool, give_decoding, Fault::Error));
    // Results are decoded where they are waited for: nobody else meets the panic.
    let task = pool.submit(give_decoding, Fault::Panic).expect("submitted");
    assert!(catch_unwind(AssertUnwindSafe(|| task.join())).is_err());
    goes_on(&pool);
}

#[test]
fn conformance_executor_shutdown_deadlock() {
    let _dog = watchdog();
    let pool = pool(2);
    let task = pool.submit(run, Fault::Abort).expect("submitted");
    pool.close();
    pool.join().expect("joined");
    assert_eq!(death(task.join()), ABORTED);
}

#[test]
fn conformance_executor_shutdown_deadlock_pickle() {
    let _dog = watchdog();
    let pool = pool(2);
    pool.call(square, 1).expect("called");
    assert!(pool.submit(take, Faulty::encoding(1, Fault::Error)).is_err());
    pool.close();
    pool.join().expect("joined");
}

#[test]
fn conformance_executor_crash_big_data() {
    let _dog = watchdog();
    let pool = pool(1);
    let crash = |_: Bytes| -> u8 { std::process::abort() };
    let tasks: Vec<_> =
        (0..10).map(|seed| pool.submit(crash, Bytes::pattern(10 << 20, seed)).expect("submitted")).collect();
    for task in tasks {
        assert_eq!(death(task.join()), ABORTED);
    }
    goes_on(&pool);
}

#[test]
fn conformance_executor_gh105829_should_not_deadlock_if_wakeup_pipe_full() {
    let _dog = watchdog();
    let pool = pool(1);
    let (reader, hold) = pipe();
    let gate = ReadEnd(reader.into_inner().into());
    let blocker = pool.submit(|gate: ReadEnd| gate.until_end(), gate).expect("submitted");
    // More than there are cells, rings and sockets for; none of them can be taken yet.
    let tasks: Vec<_> = (0..20_000).map(|x| pool.submit(square, x).expect("submitted")).collect();
    drop(hold);
    assert_eq!(blocker.join(), Ok(()));
    for (x, task) in (0..).zip(tasks) {
        assert_eq!(task.join(), Ok(square(x)));
    }
}

#[test]
fn conformance_executor_run_after_shutdown() {
    let _dog = watchdog();
    let pool = pool(1);
    pool.close();
    assert!(pool.submit(square, 2).expect_err("closed").is_closed());
}

#[test]
fn conformance_executor_hang_issue12364() {
    let _dog = watchdog();
    let pool = pool(2);
    let tasks: Vec<_> = (0..50).map(|x| pool.submit(square, x).expect("submitted")).collect();
    pool.close();
    for (x, task) in (0..).zip(tasks) {
        assert_eq!(task.join(), Ok(square(x)));
    }
}

#[test]
fn conformance_executor_processes_terminate() {
    let _dog = watchdog();
    let pool = pool(5);
    let workers = pool.workers();
    assert_eq!(pool.map(square, 0..5).expect("mapped"), squares(0..5));
    pool.close();
    pool.join().expect("joined");
    workers.into_iter().for_each(until_gone);
}

#[test]
fn conformance_executor_shutdown_no_wait() {
    let _dog = watchdog();
    let pool = pool(5);
    let workers = pool.workers();
    let results = pool.imap(square, 0..12).map(|result| result.expect("a result"));
    let results: Vec<u64> = results.collect();
    pool.close();
    // Without a join: the results that were taken stay, the workers end.
    workers.into_iter().for_each(until_gone);
    assert_eq!(results, squares(0..12));
}

#[test]
fn conformance_executor_force_shutdown_workers_stops_pool() {
    let _dog = watchdog();
    let pool = pool(1);
    let (mut reader, writer) = pipe();
    let say = |writer: Handle| {
        writer.say("started");
        std::thread::sleep(Duration::from_secs(1000));
        writer.say("ended");
    };
    let task = pool.submit(say, writer).expect("submitted");
    assert_eq!(line(&mut reader), "started");
    pool.terminate();
    assert_eq!(task.join(), Err(TaskError::PoolClosed));
    assert_eq!(line(&mut reader), "", "no second message");
    assert!(pool.submit(square, 2).expect_err("over").is_closed());
    pool.terminate();
}

#[test]
fn conformance_executor_force_shutdown_workers_dead_workers() {
    let _dog = watchdog();
    let pool = pool(2);
    assert_eq!(death(task_error(pool.call(run, Fault::Abort))), ABORTED);
    pool.workers().iter().for_each(|&worker| signal(worker, Signal::KILL));
    pool.terminate();
    assert_eq!(pool.workers(), []);
}
