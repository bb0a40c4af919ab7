//! Workers die, and only the item that they were running is lost.

mod common;

use common::*;
use proc_pool::{Pool, Process, TaskError};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A way to die.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Way {
    Live,
    Panic,
    Exit,
    Abort,
    Fault,
    Overflow,
    Kill,
}

const DEATHS: [Way; 5] = [Way::Exit, Way::Abort, Way::Fault, Way::Overflow, Way::Kill];

impl Way {
    fn go(self) {
        match self {
            Self::Live => {}
            Self::Panic => panic!("panicked on purpose"),
            Self::Exit => std::process::exit(3),
            Self::Abort => std::process::abort(),
            // SAFETY: a write to unmapped memory, in a process that is to die of it.
            Self::Fault => unsafe { std::ptr::with_exposed_provenance_mut::<u8>(16).write_volatile(1) },
            Self::Overflow => {
                std::hint::black_box(deeper(0));
            }
            Self::Kill => {
                signal(std::process::id(), Signal::KILL);
                sleep_forever()
            }
        }
    }

    /// Whether an outcome is the one of this way, of the item with this index.
    #[track_caller]
    fn check<R: std::fmt::Debug>(self, outcome: Result<R, TaskError>, index: u64) {
        match outcome {
            Err(TaskError::Panicked {
                message, location, ..
            }) => {
                assert_eq!((self, &*message), (Self::Panic, "panicked on purpose"));
                assert!(location.expect("a place").contains("pool_death.rs"));
            }
            Err(TaskError::WorkerDied {
                pid,
                signal,
                code,
                item,
                label,
                stderr_tail,
                oom,
                ..
            }) => {
                assert_eq!((item, oom), (Some(index), false));
                assert!(pid != 0 && pid != std::process::id());
                assert!(label.contains("pool_death"), "{label}");
                assert!(
                    stderr_tail.contains(&format!("last words of {index};")),
                    "{index}: {stderr_tail}"
                );
                let expected: &[(Option<i32>, Option<i32>)] = match self {
                    Self::Exit => &[(None, Some(3))],
                    Self::Abort => &[(Some(SIGABRT), None)],
                    Self::Fault => &[(Some(SIGSEGV), None)],
                    // The runtime turns it into an abort where it is in charge of the main thread.
                    Self::Overflow => &[(Some(SIGABRT), None), (Some(SIGSEGV), None)],
                    Self::Kill => &[(Some(SIGKILL), None)],
                    Self::Live | Self::Panic => &[],
                };
                assert!(
                    expected.contains(&(signal, code)),
                    "{self:?}: {signal:?} {code:?}"
                );
            }
            other => panic!("{self:?} of {index}: {other:?}"),
        }
    }
}

#[allow(unconditional_recursion, reason = "that is the test")]
fn deeper(x: u64) -> u64 {
    std::hint::black_box(deeper(std::hint::black_box(x + 1)) + 1)
}

fn pool(workers: usize) -> Pool {
    Pool::new(workers).expect("a pool")
}

/// Says last words if it is going to die, and dies or lives.
fn live_or_die((index, way): (u64, Way)) -> u64 {
    if DEATHS.contains(&way) {
        eprintln!("last words of {index};");
    }
    way.go();
    index * 2
}

#[track_caller]
fn goes_on(pool: &Pool) {
    let job = pool.job(live_or_die).chunk_size(3);
    let results = job.map((0..500).map(|index| (index, Way::Live)));
    assert_eq!(
        results.expect("mapped"),
        (0..500).map(|index| index * 2).collect::<Vec<_>>()
    );
}

#[track_caller]
fn task_error<R>(result: proc_pool::Result<R>) -> Result<R, TaskError> {
    result.map_err(|error| error.into_task().expect("the failure of a task"))
}

/// Waits until the pool has so many workers again.
fn until_workers(pool: &Pool, count: usize) -> Vec<u32> {
    loop {
        let workers = pool.workers();
        if workers.len() == count {
            return workers;
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_call_that_kills_its_worker_fails_and_the_next_one_succeeds() {
    let _dog = watchdog();
    let pool = pool(1);
    for way in DEATHS {
        let before = until_workers(&pool, 1)[0];
        let outcome = task_error(pool.call(live_or_die, (0, way)));
        if let Err(TaskError::WorkerDied { pid, .. }) = outcome {
            assert_eq!(pid, before);
        }
        way.check(outcome, 0);
        assert_eq!(pool.call(live_or_die, (4, Way::Live)).expect("called"), 8);
        assert_ne!(until_workers(&pool, 1), [before]);
    }
}

#[test]
fn a_panic_costs_no_worker() {
    let _dog = watchdog();
    let pool = pool(2);
    let before = pool.workers();
    Way::Panic.check(task_error(pool.call(live_or_die, (0, Way::Panic))), 0);
    let outcomes = pool
        .job(live_or_die)
        .chunk_size(5)
        .imap((0..20).map(|index| (index, Way::Panic)));
    for (index, outcome) in (0..).zip(outcomes) {
        Way::Panic.check(outcome, index);
    }
    assert_eq!(pool.workers(), before);
    goes_on(&pool);
}

#[test]
fn submitted_tasks_that_kill_their_worker_fail_alone() {
    let _dog = watchdog();
    let pool = pool(2);
    let ways = || {
        DEATHS
            .into_iter()
            .flat_map(|way| [Way::Live, way, Way::Panic, Way::Live])
    };
    let tasks: Vec<_> = ways()
        .map(|way| pool.submit(live_or_die, (0, way)).expect("submitted"))
        .collect();
    for (way, task) in ways().zip(tasks) {
        match way {
            Way::Live => assert_eq!(task.join(), Ok(0)),
            way => way.check(task.join(), 0),
        }
    }
    goes_on(&pool);
}

/// Every seventh item dies, each in another way; all others live.
fn mixed(index: u64) -> Way {
    const WAYS: [Way; 6] = [
        Way::Panic,
        Way::Exit,
        Way::Abort,
        Way::Fault,
        Way::Overflow,
        Way::Kill,
    ];
    if index % 7 == 3 {
        WAYS[usize::try_from(index / 7).expect("small") % WAYS.len()]
    } else {
        Way::Live
    }
}

#[test]
fn items_of_lazy_maps_that_kill_their_worker_fail_alone() {
    let _dog = watchdog();
    let pool = pool(2);
    for chunk in [1, 10, 100] {
        let items = || (0..84).map(|index| (index, mixed(index)));
        let job = pool.job(live_or_die).chunk_size(chunk);
        let mut count = 0;
        for ((index, way), outcome) in items().zip(job.imap(items())) {
            match way {
                Way::Live => assert_eq!(outcome, Ok(index * 2)),
                way => way.check(outcome, index),
            }
            count += 1;
        }
        assert_eq!(count, 84);
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for outcome in job.imap_unordered(items()) {
            match outcome {
                Ok(result) => good.push(result),
                Err(TaskError::WorkerDied { item, .. }) => bad.push(item.expect("an index")),
                Err(TaskError::Panicked { .. }) => {}
                Err(other) => panic!("{other:?}"),
            }
        }
        good.sort_unstable();
        bad.sort_unstable();
        let expected = |wanted: fn(Way) -> bool| items().filter(move |item| wanted(item.1));
        assert!(
            good.into_iter()
                .eq(expected(|way| way == Way::Live).map(|(index, _)| index * 2))
        );
        assert!(
            bad.into_iter()
                .eq(expected(|way| DEATHS.contains(&way)).map(|(index, _)| index))
        );
    }
    goes_on(&pool);
}

#[test]
fn a_map_fails_with_the_first_item_that_failed_after_all_were_run() {
    let _dog = watchdog();
    let pool = pool(2);
    let dir = Scratch::new();
    let run = |(path, index, way): (PathBuf, u64, Way)| {
        mark(&path, index);
        live_or_die((index, way))
    };
    let way = |index| match index {
        70 => Way::Kill,
        30 => Way::Abort,
        90 => Way::Panic,
        _ => Way::Live,
    };
    let items = (0..100).map(|index| (dir.file("runs"), index, way(index)));
    let outcome = task_error(pool.job(run).chunk_size(8).map(items));
    Way::Abort.check(outcome, 30);
    let runs = marks(&dir.file("runs"));
    assert_eq!(runs.len(), 100);
}

/// A directory of one test; gone with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "proc-pool-test-{}-{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).expect("a directory");
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Leaves a mark that outlives the process: one line in a file.
fn mark(path: &Path, index: u64) {
    use std::io::Write;
    let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
    let line = format!("{index}\n");
    file.expect("writable")
        .write_all(line.as_bytes())
        .expect("written");
}

/// How often each item left its mark.
fn marks(path: &Path) -> HashMap<u64, usize> {
    let mut counts = HashMap::new();
    for line in std::fs::read_to_string(path).unwrap_or_default().lines() {
        *counts.entry(line.parse().expect("a number")).or_default() += 1;
    }
    counts
}

#[test]
fn items_that_had_results_do_not_run_again() {
    let _dog = watchdog();
    let pool = pool(1);
    let dir = Scratch::new();
    let run = |(path, index): (PathBuf, u64)| {
        mark(&path, index);
        if index % 10 == 5 {
            Way::Kill.go();
        }
        index
    };
    for chunk in [1, 4, 20, 60] {
        let path = dir.file(&format!("chunks of {chunk}"));
        let items = (0..60).map(|index| (path.clone(), index));
        let outcomes: Vec<_> = pool.job(run).chunk_size(chunk).imap(items).collect();
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_err()).count(), 6);
        let runs = marks(&path);
        assert!(
            (0..60).all(|index| runs.get(&index) == Some(&1)),
            "{chunk}: {runs:?}"
        );
    }
}

/// Dies until it has left so many marks.
fn dies_at_first((path, times, way): (PathBuf, usize, Way)) -> usize {
    mark(&path, 0);
    let runs = marks(&path)[&0];
    if runs <= times {
        way.go();
    }
    runs
}

#[test]
fn an_item_is_retried_as_often_as_asked() {
    let _dog = watchdog();
    let pool = pool(2);
    let dir = Scratch::new();
    let mut number = 0;
    let mut fresh = |times: usize, way: Way| {
        number += 1;
        (dir.file(&number.to_string()), times, way)
    };
    let job = pool.job(dies_at_first).retries(2);
    for way in DEATHS {
        assert_eq!(task_error(job.call(fresh(2, way))), Ok(3));
        let item = fresh(3, way);
        assert!(matches!(
            task_error(job.call(item.clone())),
            Err(TaskError::WorkerDied { .. })
        ));
        assert_eq!(marks(&item.0)[&0], 3);
    }
    assert_eq!(job.submit(fresh(1, Way::Kill)).expect("submitted").join(), Ok(2));
    let items: Vec<_> = (0..30).map(|index| fresh(index % 4, Way::Abort)).collect();
    for chunk in [1, 7] {
        let outcomes = job.chunk_size(chunk).imap(items.clone());
        for ((path, times, _), outcome) in items.iter().zip(outcomes) {
            match times {
                3 => {
                    assert!(matches!(outcome, Err(TaskError::WorkerDied { .. })));
                    assert_eq!(marks(path)[&0], 3);
                }
                times => assert_eq!(outcome, Ok(times + 1)),
            }
            std::fs::remove_file(path).expect("it left a mark");
        }
    }
}

#[test]
fn a_panic_is_an_answer_and_not_retried() {
    let _dog = watchdog();
    let pool = pool(1);
    let dir = Scratch::new();
    let item = (dir.file("panics"), 1, Way::Panic);
    let outcome = task_error(pool.job(dies_at_first).retries(5).call(item));
    assert!(matches!(outcome, Err(TaskError::Panicked { .. })));
    assert_eq!(marks(&dir.file("panics"))[&0], 1);
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
    let waiting: Vec<_> = (0..50)
        .map(|index| pool.submit(live_or_die, (index, Way::Live)).expect("submitted"))
        .collect();
    let mut busy: Vec<u32> = (0..3)
        .map(|_| line(&mut reader).parse().expect("a process id"))
        .collect();
    busy.iter().for_each(|&worker| signal(worker, Signal::KILL));
    let mut killed: Vec<u32> = tasks
        .iter()
        .map(|task| match task.join() {
            Err(TaskError::WorkerDied {
                pid,
                signal: Some(SIGKILL),
                ..
            }) => pid,
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
        assert_eq!(
            death(task_error(call.join().expect("no panic"))),
            (Some(SIGKILL), None)
        );
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
        let task = pool
            .job(live_or_die)
            .retries(2)
            .submit((3, Way::Live))
            .expect("submitted");
        workers.iter().for_each(|&worker| signal(worker, Signal::KILL));
        assert_eq!(task.join(), Ok(6));
    }
    goes_on(&pool);
}

#[test]
fn a_worker_that_dies_with_a_large_result_fails_only_its_item() {
    let _dog = watchdog();
    let pool = pool(2);
    let result = |index: usize| {
        let fault = if index % 3 == 1 {
            Fault::Abort
        } else {
            Fault::Nothing
        };
        // The large part is encoded first.
        (Bytes::pattern(3 << 20, 1), Faulty::encoding(0, fault))
    };
    for chunk in [1, 4] {
        let outcomes = pool.job(result).chunk_size(chunk).imap(0..9);
        for (index, outcome) in outcomes.enumerate() {
            match index % 3 {
                1 => assert_eq!(death(outcome), (Some(SIGABRT), None)),
                _ => assert!(outcome.expect("a result").0 == Bytes::pattern(3 << 20, 1)),
            }
        }
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
    let job = pool.job(live_or_die).retries(3);
    assert_eq!(task_error(job.call((4, Way::Live))), Ok(8));
    goes_on(&pool);
}

/// Two pools' worth of workers; says their process ids, and that it waits.
fn owner(writer: Handle) {
    let pool = pool(3);
    let _busy = pool
        .submit(|()| sleep_forever(), ())
        .map(|task: proc_pool::Task<()>| task);
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
        let pids: Vec<u32> = (0..3)
            .map(|_| line(&mut reader).parse().expect("a process id"))
            .collect();
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
    let built = Pool::builder()
        .workers(2)
        .env("PROC_POOL_CTOR", "0")
        .env("RUST_TEST_THREADS", "0")
        .build();
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

// SAFETY: the section is a list of functions like this one, which the loader calls. The number puts it before the
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
        let call = scope.spawn(|| pool.job(live_or_die).retries(9).call((1, Way::Live)).map(drop));
        let map = scope.spawn(|| pool.map(live_or_die, (0..99).map(|index| (index, Way::Live))).map(drop));
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
    gave_up(&pool.call(live_or_die, (1, Way::Live)).expect_err("over"));
    gave_up(&pool.submit(live_or_die, (1, Way::Live)).expect_err("over"));
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
