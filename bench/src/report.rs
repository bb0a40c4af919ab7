//! Tables, ratios, JSON and the file of results.

use crate::facts::Facts;
use crate::pin::Pinning;
use crate::run::{Better, Cell, Metric, OURS, Outcome, Row, join};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::Path;

/// The middle of the values.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// Three significant digits.
fn digits(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// `median [min..max]`, the metrics separated by slashes.
fn cell(cell: &Cell) -> String {
    let one = |values: &Vec<f64>| {
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        match values.len() {
            1 => digits(least),
            _ => format!("{} [{}..{}]", digits(median(values)), digits(least), digits(most)),
        }
    };
    let parts: Vec<String> = cell.values.iter().map(one).collect();
    if parts.is_empty() {
        "-".into()
    } else {
        parts.join(" / ")
    }
}

/// The tables of some cases, in Markdown.
pub fn tables(outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    let mut about = "";
    for outcome in outcomes {
        if outcome.about != about {
            about = outcome.about;
            let _ = writeln!(text, "{about}\n");
        }
        let _ = writeln!(text, "**{}**, {}\n", outcome.title, describe(&outcome.metrics));
        let _ = writeln!(text, "| | diff | same | none |\n|---|---|---|---|");
        for row in &outcome.rows {
            let _ = match &row.skipped {
                Some(why) => writeln!(text, "| {} | skipped: {why} | | |", row.variant),
                None => {
                    let [diff, same, none] = &row.cells;
                    writeln!(
                        text,
                        "| {} | {} | {} | {} |",
                        row.variant,
                        cell(diff),
                        cell(same),
                        cell(none)
                    )
                }
            };
        }
        text.push('\n');
    }
    text
}

fn describe(metrics: &[Metric]) -> String {
    let better = |metric: &Metric| match metric.better {
        Better::Higher => "more is better",
        Better::Lower => "less is better",
    };
    if metrics.iter().any(|m| m.unit != metrics[0].unit) {
        let one = |m: &Metric| format!("{} {}", m.name, m.unit).trim_end().to_owned() + ", " + better(m);
        return metrics.iter().map(one).collect::<Vec<_>>().join(" / ");
    }
    let names: Vec<&str> = metrics
        .iter()
        .map(|m| m.name)
        .filter(|name| !name.is_empty())
        .collect();
    let names = if names.is_empty() {
        String::new()
    } else {
        format!("{}, ", names.join(" / "))
    };
    format!("{names}{}, {}", metrics[0].unit, better(&metrics[0]))
}

/// A comparison: above 1 means that this project is ahead.
pub struct Ratio {
    pub name: String,
    pub value: f64,
}

/// The comparisons of some cases: `diff` first, it needs no mark in the name unless the case is about placement.
pub fn ratios(outcomes: &[Outcome]) -> Vec<Ratio> {
    let mut ratios = Vec::new();
    for (index, pinning) in Pinning::ALL.into_iter().enumerate() {
        for outcome in outcomes {
            let Some(ours) = outcome.rows.iter().find(|row| row.variant == OURS) else {
                continue;
            };
            for row in outcome
                .rows
                .iter()
                .filter(|row| row.variant != OURS && row.skipped.is_none())
            {
                let (Some(ours), Some(theirs)) = (first(ours, index), first(row, index)) else {
                    continue;
                };
                let value = match outcome.metrics[0].better {
                    Better::Higher => ours / theirs,
                    Better::Lower => theirs / ours,
                };
                // A case without a name of its own, and alone in its bench, says the placement always.
                let is_alone = outcome.case.is_empty() && alone(outcome, outcomes);
                let mark = if pinning == Pinning::Diff && !is_alone {
                    ""
                } else {
                    pinning.name()
                };
                let against = format!("vs_{}", row.variant);
                ratios.push(Ratio {
                    name: join(&[outcome.bench, mark, outcome.case, &against]),
                    value,
                });
            }
        }
    }
    ratios
}

/// Whether the case is the only one of its bench.
fn alone(outcome: &Outcome, outcomes: &[Outcome]) -> bool {
    outcomes
        .iter()
        .filter(|other| other.bench == outcome.bench)
        .count()
        == 1
}

fn first(row: &Row, pinning: usize) -> Option<f64> {
    row.cells[pinning].values.first().map(|values| median(values))
}

/// The lines for people and scripts.
pub fn ratio_lines(ratios: &[Ratio]) -> String {
    ratios.iter().fold(String::new(), |mut text, ratio| {
        let _ = writeln!(text, "ratio {} = {:.2}", ratio.name, ratio.value);
        text
    })
}

/// Everything as JSON.
pub fn as_json(facts: &Facts, outcomes: &[Outcome], ratios: &[Ratio]) -> Value {
    let cases: Vec<Value> = outcomes
        .iter()
        .map(|outcome| {
            let rows: Vec<Value> = outcome
                .rows
                .iter()
                .map(|row| json_row(row, &outcome.metrics))
                .collect();
            json!({ "name": outcome.title, "rounds": outcome.rounds, "rows": rows })
        })
        .collect();
    let ratios: serde_json::Map<String, Value> = ratios
        .iter()
        .map(|ratio| (ratio.name.clone(), json!(ratio.value)))
        .collect();
    json!({ "facts": facts, "cases": cases, "ratios": ratios })
}

fn json_row(row: &Row, metrics: &[Metric]) -> Value {
    let mut cells = serde_json::Map::new();
    for (pinning, cell) in Pinning::ALL.into_iter().zip(&row.cells) {
        for (metric, values) in metrics.iter().zip(&cell.values) {
            let name = join(&[pinning.name(), metric.name]);
            cells.insert(
                name,
                json!({ "median": median(values), "unit": metric.unit, "values": values }),
            );
        }
    }
    json!({ "variant": row.variant, "skipped": row.skipped, "results": cells })
}

/// Replaces the section of one bench in the file of results.
pub fn write_section(path: &Path, bench: &str, body: &str) -> std::io::Result<()> {
    const HEAD: &str = "# Results\n\n\
        Medians [least..most] of the rounds of one run each. Every variant runs once per round, one after the \
        other, and checks its data. *diff*: the two sides are pinned to two CPUs; *same*: to one; *none*: not \
        pinned. A ratio above 1 means that this project is ahead; a ratio is that of *diff* unless its name says \
        otherwise.\n\n";
    let old = std::fs::read_to_string(path).unwrap_or_default();
    let mut sections: Vec<(String, String)> = Vec::new();
    for part in old.split("\n## ").skip(1) {
        let (name, text) = part.split_once('\n').unwrap_or((part, ""));
        sections.push((name.trim().to_owned(), text.trim().to_owned()));
    }
    match sections.iter_mut().find(|(name, _)| name == bench) {
        Some((_, text)) => *text = body.trim().to_owned(),
        None => sections.push((bench.to_owned(), body.trim().to_owned())),
    }
    let mut text = HEAD.trim_end().to_owned();
    for (name, body) in sections {
        let _ = write!(text, "\n\n## {name}\n\n{body}");
    }
    text.push('\n');
    std::fs::write(path, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
    }

    #[test]
    fn a_section_is_replaced_and_the_others_stay() {
        let path = std::env::temp_dir().join(format!("bench-results-{}.md", std::process::id()));
        for (bench, body) in [("queue", "one"), ("pool", "two"), ("queue", "three")] {
            write_section(&path, bench, body).expect("written");
        }
        let text = std::fs::read_to_string(&path).expect("readable");
        std::fs::remove_file(&path).expect("removable");
        assert!(text.ends_with("## queue\n\nthree\n\n## pool\n\ntwo\n"), "{text}");
    }
}
