//! Shared arrays: work on disjoint parts, attaching, creating, and the whole of what numpy's tutorial does.

mod attach;
mod create;
mod double;
mod tutorial;

use crate::child::Role;
use crate::pin::Pinning;
use crate::run::{Better, Case, Count, Metric, OURS, Variant};

/// The children of these benchmarks.
pub const ROLES: &[(&str, Role)] = &[
    ("arrays.double", double::act),
    ("arrays.attach.ours", attach::act_ours),
    ("arrays.attach.raw_mmap", attach::act_raw),
    ("arrays.tutorial.caller", tutorial::act),
    ("arrays.tutorial.worker", tutorial::work),
];

/// Elements of the arrays, `i64` each; in a smoke run the second number.
const ELEMENTS: Count = Count::Fixed(10_000_000, 100_000);
/// Bytes of the large array; in a smoke run the second number.
const LARGE: Count = Count::Fixed(1 << 30, 1 << 22);

/// What is done to every element, by everybody.
fn double(elements: &mut [i64]) {
    elements.iter_mut().for_each(|element| *element *= 2);
}

/// Element `index` must be `index * factor`.
fn check(elements: &[i64], start: usize, factor: i64) -> Result<(), String> {
    let right = |(index, &element): (usize, &i64)| element == (start + index) as i64 * factor;
    match elements.iter().enumerate().all(right) {
        true => Ok(()),
        false => Err(format!(
            "an element from {start} on was not multiplied by {factor}"
        )),
    }
}

/// The cases.
pub fn cases() -> Vec<Case> {
    let about = "double_10M: both sides double their half of 10^7 `i64` ten times, after once for warmth; ours are two \
                 processes, ten chunks with a lock each; plain_vec are two threads with the halves of a `Vec`. attach: \
                 from the bytes and the descriptor that arrived with a message to the first element of an array of 80 MB; \
                 raw_mmap maps the descriptor. create_1GiB: creates, pre-faults and touches every page; raw is memfd, \
                 ftruncate, mmap and MADV_POPULATE_WRITE. vs_numpy_shared_memory: create 10^7 `i64`, a child \
                 doubles, the parent checks, with the start of the child (ours starts a program, Python forks); \
                 child_running: without.";
    let case = |name, metrics, variants| Case {
        bench: "arrays",
        name,
        about,
        pinnings: &Pinning::ALL,
        metrics,
        variants,
    };
    let metric = |name, unit| Metric {
        name,
        unit,
        better: Better::Lower,
    };
    let millis = || vec![metric("", "ms")];
    let trips = Count::Fixed(500, 10);
    vec![
        case(
            "double_10M",
            millis(),
            vec![
                Variant::new(OURS, ELEMENTS, double::ours),
                Variant::new("plain_vec", ELEMENTS, double::plain_vec),
            ],
        ),
        case(
            "attach",
            vec![metric("p50", "us"), metric("p99", "us")],
            vec![
                Variant::new(OURS, trips, attach::ours),
                Variant::new("raw_mmap", trips, attach::raw),
                Variant::new("numpy_shared_memory", trips, attach::python),
            ],
        ),
        case(
            "create_1GiB",
            millis(),
            vec![
                Variant::new(OURS, LARGE, create::ours),
                Variant::new("raw_populate", LARGE, create::raw),
            ],
        ),
        case(
            "",
            millis(),
            vec![
                Variant::new(OURS, ELEMENTS, tutorial::run(tutorial::Child::Starts)),
                Variant::new(
                    "numpy_shared_memory",
                    ELEMENTS,
                    tutorial::python(tutorial::Child::Starts),
                ),
            ],
        ),
        case(
            "child_running",
            millis(),
            vec![
                Variant::new(OURS, ELEMENTS, tutorial::run(tutorial::Child::Runs)),
                Variant::new(
                    "numpy_shared_memory",
                    ELEMENTS,
                    tutorial::python(tutorial::Child::Runs),
                ),
            ],
        ),
    ]
}
