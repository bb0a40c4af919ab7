//! Workers die, and only the item that they were running is lost.

mod common;

use common::*;
use proc_pool::{Pool, TaskError};
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
            Err(TaskError::Panicked { message, location, .. }) => {
                assert_eq!((self, &*message), (Self::Panic, "panicked on purpose"));
                assert!(location.expect("a place").contains("pool_death.rs"));
            }
            Err(TaskError::WorkerDied { pid, signal, code, item, label, stderr_tail, oom, .. }) => {
                assert_eq!((item, oom), (Some(index), false));
                assert!(pid != 0 && pid != std::process::id());
                assert!(label.contains("pool_death"), "{label}");
                assert!(stderr_tail.contains(&format!("last words of {index};")), "{index}: {stderr_tail}");
                let expected: &[(Option<i32>, Option<i32>)] = match self {
                    Self::Exit => &[(None, Some(3))],
                    Self::Abort => &[(Some(SIGABRT), None)],
                    Self::Fault => &[(Some(SIGSEGV), None)],
                    // The runtime turns it into an abort where it is in charge of the main thread.
                    Self::Overflow => &[(Some(SIGABRT), None), (Some(SIGSEGV), None)],
                    Self::Kill => &[(Some(SIGKILL), None)],
                    Self::Live | Self::Panic => &[],
                };
                assert!(expected.contains(&(signal, code)), "{self:?}: {signal:?} {code:?}");
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
    assert_eq!(results.expect("mapped"), (0..500).map(|index| index * 2).collect::<Vec<_>>());
}

#[track_caller]
fn task_error<R>(result: proc_pool::Result<R>) -> Result<R, TaskError> {
    result.map_err(|error| error.into_task().expect("the failure of a task"))
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
    let outcomes = pool.job(live_or_die).chunk_size(5).imap((0..20).map(|index| (index, Way::Panic)));
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
    let ways = || DEATHS.into_iter().flat_map(|way| [Way::Live, way, Way::Panic, Way::Live]);
    let tasks: Vec<_> = ways().map(|way| pool.submit(live_or_die, (0, way)).expect("submitted")).collect();
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
    const WAYS: [Way; 6] = [Way::Panic, Way::Exit, Way::Abort, Way::Fault, Way::Overflow, Way::Kill];
    if index % 7 == 3 { WAYS[usize::try_from(index / 7).expect("small") % WAYS.len()] } else { Way::Live }
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
        assert!(good.into_iter().eq(expected(|way| way == Way::Live).map(|(index, _)| index * 2)));
        assert!(bad.into_iter().eq(expected(|way| DEATHS.contains(&way)).map(|(index, _)| index)));
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

/// Leaves a mark that outlives the process: one line in a file.
fn mark(path: &Path, index: u64) {
    use std::io::Write;
    let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
    let line = format!("{index}\n");
    file.expect("writable").write_all(line.as_bytes()).expect("written");
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
        assert!((0..60).all(|index| runs.get(&index) == Some(&1)), "{chunk}: {runs:?}");
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
        assert!(matches!(task_error(job.call(item.clone())), Err(TaskError::WorkerDied { .. })));
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
fn a_worker_that_dies_with_a_large_result_fails_only_its_item() {
    let _dog = watchdog();
    let pool = pool(2);
    let result = |index: usize| {
        let fault = if index % 3 == 1 { Fault::Abort } else { Fault::Nothing };
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
