//! Where the two sides of a measurement run.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::{Deserialize, Serialize};
use std::sync::OnceLock;

/// The processors this program may use, as they were at its start.
static ALLOWED: OnceLock<CpuSet> = OnceLock::new();

/// Where the two sides run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pinning {
    /// Each side on a processor of its own.
    Diff,
    /// Both sides on one processor.
    Same,
    /// Wherever the scheduler puts them.
    None,
}

/// One of the two sides: the caller, consumer or asker is `A`; the worker, producer or answerer is `B`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    A,
    B,
}

impl Pinning {
    pub const ALL: [Pinning; 3] = [Pinning::Diff, Pinning::Same, Pinning::None];

    pub fn name(self) -> &'static str {
        match self {
            Pinning::Diff => "diff",
            Pinning::Same => "same",
            Pinning::None => "none",
        }
    }

    /// The processors a side may use.
    pub fn cpus(self, side: Side) -> Vec<usize> {
        let allowed = allowed_list();
        match (self, side) {
            (Pinning::None, _) => allowed,
            (Pinning::Diff, Side::B) => vec![allowed[1 % allowed.len()]],
            _ => vec![allowed[0]],
        }
    }

    /// Pins the calling thread to its side until the guard is dropped.
    pub fn enter(self, side: Side) -> Pinned {
        set(&self.cpus(side));
        Pinned(())
    }
}

/// Unpins the thread on drop.
pub struct Pinned(());

impl Drop for Pinned {
    fn drop(&mut self) {
        set(&allowed_list());
    }
}

/// Remembers the processors that this program may use. Call it before anything is pinned.
pub fn init() {
    ALLOWED.get_or_init(|| sched_getaffinity(None).expect("the affinity of the own thread is readable"));
}

/// The environment variable that tells the worker processes and threads of a pool where to run.
pub const WORKER_CPUS: &str = "BENCH_WORKER_CPUS";

/// Pins the calling thread to where workers of this process belong, if it was told.
pub fn as_worker() {
    if let Some(cpus) = std::env::var(WORKER_CPUS).ok().and_then(|list| parse(&list)) {
        set(&cpus);
    }
}

/// `[0, 1]` as text.
pub fn list(cpus: &[usize]) -> String {
    cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

/// The reverse of [`list`].
pub fn parse(list: &str) -> Option<Vec<usize>> {
    list.split(',').map(|cpu| cpu.parse().ok()).collect()
}

/// Pins the calling thread to the listed processors.
pub fn set(cpus: &[usize]) {
    sched_setaffinity(None, &set_of(cpus)).expect("a subset of the allowed processors is allowed");
}

fn set_of(cpus: &[usize]) -> CpuSet {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|&cpu| set.set(cpu));
    set
}

fn allowed_list() -> Vec<usize> {
    init();
    let set = ALLOWED.get().expect("just initialised");
    (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect()
}

/// How many processors this program may use.
pub fn allowed_count() -> usize {
    allowed_list().len()
}
