//! What is measured, and the rounds in which it is.
//!
//! A case is one workload with this project and its rivals as variants. Every round runs each variant once in
//! each pinning, one after the other, so that a slow moment of the machine hits all of them alike.

use crate::clock::now;
use crate::pin::{self, Pinning};
use crate::quiet::Quiet;
use crate::watchdog;
use std::time::Duration;

/// The name of this project's variant.
pub const OURS: &str = "ours";

/// Whether more or less is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    Higher,
    Lower,
}

/// One number that a run yields.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Empty if the case has only one.
    pub name: &'static str,
    pub unit: &'static str,
    pub better: Better,
}

/// Why a variant has no number.
#[derive(Debug)]
pub enum Failure {
    /// It is not installed here: no number, no error.
    Unavailable(String),
    /// It ran wrongly.
    Broken(String),
}

impl<E: Into<Box<dyn std::error::Error>>> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::Broken(error.into().to_string())
    }
}

/// One run.
#[derive(Debug)]
pub struct Sample {
    /// What the measured part took.
    pub elapsed: Duration,
    /// One value for each metric of the case.
    pub values: Vec<f64>,
}

/// How many operations a run makes.
#[derive(Clone, Copy, Debug)]
pub enum Count {
    /// As many as take about the target time, found by trial, starting here.
    From(u64),
    /// Always this many; in a smoke run the second number.
    Fixed(u64, u64),
}

type Body = Box<dyn FnMut(Pinning, u64) -> Result<Sample, Failure>>;

/// One way of doing the workload.
pub struct Variant {
    /// The part of the ratio's name after `vs_`.
    pub name: &'static str,
    pub count: Count,
    pub run: Body,
}

impl Variant {
    pub fn new(
        name: &'static str,
        count: Count,
        run: impl FnMut(Pinning, u64) -> Result<Sample, Failure> + 'static,
    ) -> Self {
        Self {
            name,
            count,
            run: Box::new(run),
        }
    }
}

/// One workload.
pub struct Case {
    /// The first part of the name: `queue`.
    pub bench: &'static str,
    /// The second: `8B`; may be empty.
    pub name: &'static str,
    /// What a reader should know about the rows.
    pub about: &'static str,
    /// Where its two sides may run.
    pub pinnings: &'static [Pinning],
    /// The ratio is that of the first metric.
    pub metrics: Vec<Metric>,
    /// This project's first.
    pub variants: Vec<Variant>,
}

impl Case {
    /// The name of the workload.
    pub fn title(&self) -> String {
        join(&[self.bench, self.name])
    }
}

/// Joins the parts that are not empty with dots.
pub fn join(parts: &[&str]) -> String {
    parts
        .iter()
        .filter(|part| !part.is_empty())
        .copied()
        .collect::<Vec<_>>()
        .join(".")
}

/// How much to run.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    pub rounds: usize,
    /// What a run with a free count should take.
    pub target: Duration,
    pub smoke: bool,
}

/// The samples of one variant in one pinning: per metric, per round.
#[derive(Debug, Default)]
pub struct Cell {
    pub values: Vec<Vec<f64>>,
}

/// One variant's part of a table.
#[derive(Debug)]
pub struct Row {
    pub variant: &'static str,
    /// In the order of [`Pinning::ALL`].
    pub cells: [Cell; 3],
    /// Why it was left out.
    pub skipped: Option<String>,
}

/// What became of a case.
pub struct Outcome {
    pub title: String,
    pub bench: &'static str,
    pub case: &'static str,
    pub about: &'static str,
    pub metrics: Vec<Metric>,
    pub rows: Vec<Row>,
    pub rounds: usize,
}

/// Runs a case.
///
/// # Errors
///
/// The first variant whose data was wrong or that failed.
pub fn run(
    mut case: Case,
    effort: Effort,
    quiet: &mut Quiet,
    progress: impl Fn(&str),
) -> Result<Outcome, String> {
    let mut rows: Vec<Row> = case
        .variants
        .iter()
        .map(|v| Row {
            variant: v.name,
            cells: Default::default(),
            skipped: None,
        })
        .collect();
    let mut counts = vec![[0u64; 3]; rows.len()];
    let title = case.title();
    // Round 0 warms up and finds the counts.
    for round in 0..=effort.rounds {
        for (index, pinning) in Pinning::ALL.into_iter().enumerate() {
            let lacks_cpus = pinning == Pinning::Diff && pin::allowed_count() < 2;
            if lacks_cpus || !case.pinnings.contains(&pinning) {
                continue;
            }
            for ((variant, row), counts) in case.variants.iter_mut().zip(&mut rows).zip(&mut counts) {
                if row.skipped.is_some() {
                    continue;
                }
                let label = format!("{title} {} {} round {round}", variant.name, pinning.name());
                progress(&label);
                let sample = if round == 0 {
                    quiet.wait();
                    watchdog::watch(&label);
                    calibrate(variant, pinning, effort).map(|count| {
                        watchdog::rest();
                        counts[index] = count;
                        None
                    })
                } else {
                    quiet
                        .run(|| {
                            watchdog::watch(&label);
                            let sample = (variant.run)(pinning, counts[index]);
                            watchdog::rest();
                            sample
                        })
                        .map(Some)
                };
                match sample {
                    Ok(None) => {}
                    Ok(Some(sample)) => {
                        let values = &mut row.cells[index].values;
                        values.resize(sample.values.len(), Vec::new());
                        values
                            .iter_mut()
                            .zip(sample.values)
                            .for_each(|(all, value)| all.push(value));
                    }
                    Err(Failure::Unavailable(why)) => row.skipped = Some(why),
                    Err(Failure::Broken(why)) => return Err(format!("{label}: {why}")),
                }
            }
        }
    }
    Ok(Outcome {
        title,
        bench: case.bench,
        case: case.name,
        about: case.about,
        metrics: case.metrics,
        rows,
        rounds: effort.rounds,
    })
}

/// Finds how many operations take about the target time.
fn calibrate(variant: &mut Variant, pinning: Pinning, effort: Effort) -> Result<u64, Failure> {
    let mut count = match variant.count {
        Count::Fixed(full, small) => {
            let count = if effort.smoke { small } else { full };
            if !effort.smoke {
                (variant.run)(pinning, count)?;
            }
            return Ok(count);
        }
        Count::From(count) => count,
    };
    if effort.smoke {
        return Ok(count);
    }
    let begin = now();
    loop {
        let elapsed = (variant.run)(pinning, count)?.elapsed.as_secs_f64().max(1e-6);
        let factor = effort.target.as_secs_f64() / elapsed;
        if (0.6..1.7).contains(&factor) || now() - begin > effort.target * 8 {
            return Ok(count);
        }
        let next = (count as f64 * factor.clamp(0.05, 30.0)) as u64;
        let next = next.max(1);
        if next == count {
            return Ok(count);
        }
        count = next;
    }
}
