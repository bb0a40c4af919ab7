//! Pools of worker processes: start-up, the round trip of a call, maps of no-op tasks.
//!
//! Each run is a process of its own, so that nothing of one pool is left when the next one starts. That process
//! is the caller, on side A; the workers put themselves on side B first thing in `main`. The task adds one to
//! a number the compiler cannot see; every result is checked.

mod ours;
mod procspawn;
mod python;
mod rayon;

use crate::child::{Child, Control, Result, Role};
use crate::pin::Pinning;
use crate::report::median;
use crate::run::{Better, Case, Count, Failure, Metric, OURS, Sample, Variant};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// The callers of these benchmarks.
pub const ROLES: &[(&str, Role)] = &[
    ("pool.ours", act::<ours::Ours>),
    ("pool.procspawn", act::<procspawn::Procspawn>),
    ("pool.rayon", act::<rayon::Rayon>),
];

/// Workers of everything but the start-up.
const WORKERS: usize = 2;
/// Tasks of a map.
const TASKS: u64 = 1_000_000;
/// The most repetitions of a map within a run, and the time after which no further one begins.
const MAPS: usize = 5;
const MAP_TIME: Duration = Duration::from_millis(300);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Job {
    /// From nothing to the first result, with so many workers.
    Start(usize),
    /// Round trip of one call at a time.
    Call,
    /// A map with whatever chunks the pool chooses.
    MapDefault,
    /// A map in which every task travels alone.
    MapChunk1,
}

/// What a caller reports.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    elapsed: Duration,
    values: Vec<f64>,
}

/// A pool under test.
trait Contestant: Sized {
    fn start(workers: usize) -> Result<Self>;

    /// `next(x)`, in a worker.
    fn call(&self, x: u64) -> Result<u64>;

    /// `next` of 0 to `tasks`, in order.
    fn map(&self, _tasks: u64) -> Result<Vec<u64>> {
        Err("this pool has no map".into())
    }

    /// Likewise, one task at a time.
    fn map_chunk1(&self, _tasks: u64) -> Result<Vec<u64>> {
        Err("this pool has no map".into())
    }
}

/// The task.
#[inline(never)]
fn next(x: u64) -> u64 {
    std::hint::black_box(x) + 1
}

/// The caller's process.
fn act<C: Contestant>(control: &Control) -> Result {
    let (job, count): (Job, u64) = control.recv()?;
    control.send(&measure::<C>(job, count)?)
}

fn measure<C: Contestant>(job: Job, count: u64) -> Result<Answer> {
    if let Job::Start(workers) = job {
        let begin = Instant::now();
        let pool = C::start(workers)?;
        expect(pool.call(41)?, 42)?;
        let elapsed = begin.elapsed();
        return Ok(Answer {
            elapsed,
            values: vec![elapsed.as_secs_f64() * 1e3],
        });
    }
    let pool = C::start(WORKERS)?;
    for x in 0..20 {
        expect(pool.call(x)?, x + 1)?;
    }
    match job {
        Job::Call => calls(&pool, count),
        Job::MapDefault => maps(count, |tasks| pool.map(tasks)),
        _ => maps(count, |tasks| pool.map_chunk1(tasks)),
    }
}

fn expect(got: u64, right: u64) -> Result {
    if got == right {
        Ok(())
    } else {
        Err(format!("a task returned {got} instead of {right}").into())
    }
}

fn calls(pool: &impl Contestant, count: u64) -> Result<Answer> {
    for x in 0..count / 10 {
        expect(pool.call(x)?, x + 1)?;
    }
    let mut trips = Vec::with_capacity(usize::try_from(count)?);
    let begin = Instant::now();
    let mut last = begin;
    for x in 0..count {
        expect(pool.call(x)?, x + 1)?;
        let now = Instant::now();
        trips.push(now - last);
        last = now;
    }
    let elapsed = last - begin;
    trips.sort_unstable();
    let micros = |rank: usize| Duration::as_secs_f64(&trips[rank]) * 1e6;
    Ok(Answer {
        elapsed,
        values: vec![micros(trips.len() / 2), micros(trips.len() * 99 / 100)],
    })
}

fn maps(tasks: u64, map: impl Fn(u64) -> Result<Vec<u64>>) -> Result<Answer> {
    map((tasks / 10).max(1))?;
    let begin = Instant::now();
    let mut rates = Vec::new();
    while rates.len() < MAPS && (rates.is_empty() || begin.elapsed() < MAP_TIME) {
        let start = Instant::now();
        let results = map(tasks)?;
        let seconds = start.elapsed().as_secs_f64();
        if results.len() as u64 != tasks {
            return Err(format!("{} results of {tasks} tasks", results.len()).into());
        }
        results
            .iter()
            .zip(1..)
            .try_for_each(|(&got, right)| expect(got, right))?;
        rates.push(tasks as f64 / seconds / 1e6);
    }
    Ok(Answer {
        elapsed: begin.elapsed(),
        values: vec![median(&rates)],
    })
}

/// Runs a job in a caller process of its own.
fn run(role: &'static str, job: Job) -> impl FnMut(Pinning, u64) -> std::result::Result<Sample, Failure> {
    move |pinning, count| {
        let child = Child::spawn_caller(role, pinning, &(job, count))?;
        let Answer { elapsed, values } = child.control.recv()?;
        child.join()?;
        Ok(Sample { elapsed, values })
    }
}

/// The cases.
pub fn cases() -> Vec<Case> {
    let about = "Two workers unless the name says otherwise. rayon's are threads, all others processes. Python \
                 forks its workers; ours and procspawn start a program. Start-up is from nothing to the first \
                 result, in a fresh process. A call is one task at a time: `Pool::call`, procspawn's \
                 `Pool::spawn(..).join()`, rayon's `install`, Python's `apply`. A map of 10^6 tasks returns a list in \
                 order; chunk 1 is rayon's `with_max_len(1)` and Python's `chunksize=1` (there with fewer tasks, \
                 the rate is per task).";
    let case = |name, metrics, variants| Case {
        bench: "pool",
        name,
        about,
        pinnings: &Pinning::ALL,
        metrics,
        variants,
    };
    let start = |name, workers| {
        let job = Job::Start(workers);
        let once = Count::Fixed(1, 1);
        let variants = vec![
            Variant::new(OURS, once, run("pool.ours", job)),
            Variant::new("procspawn", once, run("pool.procspawn", job)),
            Variant::new("python", once, python::run(job, python::Kind::Pool)),
        ];
        case(
            name,
            vec![Metric {
                name: "",
                unit: "ms",
                better: Better::Lower,
            }],
            variants,
        )
    };
    let micros = |name| Metric {
        name,
        unit: "us",
        better: Better::Lower,
    };
    let rate = || {
        vec![Metric {
            name: "",
            unit: "M tasks/s",
            better: Better::Higher,
        }]
    };
    let all = Count::Fixed(TASKS, 20_000);
    let some = Count::Fixed(10_000, 500);
    vec![
        start("start2", 2),
        start("start8", 8),
        case(
            "call",
            vec![micros("p50"), micros("p99")],
            vec![
                Variant::new(OURS, Count::From(1_000), run("pool.ours", Job::Call)),
                Variant::new("rayon", Count::From(500), run("pool.rayon", Job::Call)),
                Variant::new("procspawn", Count::From(200), run("pool.procspawn", Job::Call)),
                Variant::new(
                    "python",
                    Count::From(100),
                    python::run(Job::Call, python::Kind::Pool),
                ),
            ],
        ),
        case(
            "map_default",
            rate(),
            vec![
                Variant::new(OURS, all, run("pool.ours", Job::MapDefault)),
                Variant::new("rayon", all, run("pool.rayon", Job::MapDefault)),
                Variant::new("python", all, python::run(Job::MapDefault, python::Kind::Pool)),
            ],
        ),
        case(
            "map_chunk1",
            rate(),
            vec![
                Variant::new(OURS, all, run("pool.ours", Job::MapChunk1)),
                Variant::new("rayon", all, run("pool.rayon", Job::MapChunk1)),
                Variant::new("python", some, python::run(Job::MapChunk1, python::Kind::Pool)),
                Variant::new(
                    "python_executor",
                    some,
                    python::run(Job::MapChunk1, python::Kind::Executor),
                ),
            ],
        ),
    ]
}
