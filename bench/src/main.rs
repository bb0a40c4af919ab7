//! Measures this workspace against its rivals, alternately in one run, with checked data.
//!
//! ```text
//! cargo run --release --manifest-path bench/Cargo.toml -- NAME [--json] [--reps N] [--quiet SECONDS] [--only VARIANT,..]
//! ```
//!
//! `NAME` is `queue`, `latency`, `pool`, `locks`, `arrays`, one case of them (`pool.call`), `all`, or `smoke` (everything tiny: does it
//! all run and check out?). A run of a whole bench writes its tables into `bench/RESULTS.md`.
#![deny(unsafe_code)]

mod arrays;
mod child;
mod clock;
mod facts;
mod latency;
mod locks;
mod page;
mod pin;
mod pool;
mod python;
mod queue;
mod quiet;
mod report;
mod run;
mod watchdog;

use facts::Facts;
use quiet::Quiet;
use run::{Case, Effort, OURS, Outcome};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

const USAGE: &str =
    "usage: bench queue|latency|pool|locks|arrays|CASE|all|smoke [--json] [--reps N] [--quiet SECONDS] [--only VARIANT,..]

--json   prints the results as JSON instead of tables
--reps   rounds per case (default 5)
--quiet  puts runs off, and repeats them, while other programs use the processors, for up to so long
--only   just these variants beside ours, and no file of results";

type Bench = (&'static str, fn() -> Vec<Case>);

const BENCHES: &[Bench] = &[
    ("queue", queue::cases),
    ("latency", latency::cases),
    ("pool", pool::cases),
    ("locks", locks::cases),
    ("arrays", arrays::cases),
];

struct Options {
    name: String,
    json: bool,
    reps: usize,
    quiet: u64,
    only: Option<Vec<String>>,
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        name: String::new(),
        json: false,
        reps: 5,
        quiet: 0,
        only: None,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--json" => options.json = true,
            "--reps" => {
                let value = args.next().ok_or("--reps needs a number")?;
                options.reps = value
                    .parse()
                    .map_err(|_| format!("--reps needs a number, not {value}"))?;
                if options.reps == 0 {
                    return Err("--reps 0 measures nothing".into());
                }
            }
            "--quiet" => {
                let value = args.next().ok_or("--quiet needs seconds")?;
                options.quiet = value
                    .parse()
                    .map_err(|_| format!("--quiet needs seconds, not {value}"))?;
            }
            "--only" => {
                let value = args.next().ok_or("--only needs names of variants")?;
                options.only = Some(value.split(',').map(str::to_owned).collect());
            }
            name if !name.starts_with('-') && options.name.is_empty() => options.name = name.to_owned(),
            other => return Err(format!("unknown argument {other}")),
        }
    }
    let named = |(bench, cases): &Bench| {
        *bench == options.name || cases().iter().any(|case| case.title() == options.name)
    };
    if ["all", "smoke"].contains(&options.name.as_str()) || BENCHES.iter().any(named) {
        Ok(options)
    } else {
        Err(format!("unknown bench {:?}", options.name))
    }
}

fn main() -> ExitCode {
    pin::init();
    pin::as_worker();
    proc_pool::init();
    procspawn::init();
    child::run_if_child(
        &[
            queue::ROLES,
            latency::ROLES,
            pool::ROLES,
            locks::ROLES,
            arrays::ROLES,
        ]
        .concat(),
    );
    let options = match options() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    watchdog::start();
    match bench(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\n{error}");
            ExitCode::FAILURE
        }
    }
}

fn bench(options: &Options) -> Result<(), String> {
    let smoke = options.name == "smoke";
    let effort = if smoke {
        Effort {
            rounds: 1,
            target: Duration::ZERO,
            smoke,
        }
    } else {
        Effort {
            rounds: options.reps,
            target: Duration::from_millis(150),
            smoke,
        }
    };
    let mut all = Vec::new();
    let mut quiet = Quiet::new(Duration::from_secs(options.quiet));
    let facts = Facts::collect();
    for (name, cases) in BENCHES {
        let whole = options.name == *name || options.name == "all" || smoke;
        let cases: Vec<Case> = cases()
            .into_iter()
            .filter(|case| whole || case.title() == options.name)
            .collect();
        if cases.is_empty() {
            continue;
        }
        let mut facts = Facts::collect();
        let mut outcomes = Vec::new();
        for mut case in cases {
            if let Some(only) = &options.only {
                case.variants
                    .retain(|v| v.name == OURS || only.iter().any(|name| name == v.name));
            }
            outcomes.push(run::run(case, effort, &mut quiet, progress)?);
        }
        progress("");
        facts.repeated = quiet.repeated;
        let tables = report::tables(&outcomes);
        let ratios = report::ratio_lines(&report::ratios(&outcomes));
        if !options.json {
            print!("## {name}\n\n{}\n\n{tables}{ratios}\n", facts.line());
        }
        if whole && !smoke && options.only.is_none() {
            write_results(name, &facts, options.reps, &tables, &ratios)?;
        }
        all.extend(outcomes);
    }
    if options.json {
        println!("{:#}", report::as_json(&facts, &all, &report::ratios(&all)));
    }
    check(&all, smoke)
}

/// Every row has a number or a reason.
fn check(outcomes: &[Outcome], smoke: bool) -> Result<(), String> {
    for outcome in outcomes {
        for row in &outcome.rows {
            if row.skipped.is_none() && row.cells.iter().all(|cell| cell.values.is_empty()) {
                return Err(format!("{} {} has no number", outcome.title, row.variant));
            }
        }
    }
    if smoke {
        println!("smoke: {} cases ran, all data was right", outcomes.len());
    }
    Ok(())
}

fn write_results(name: &str, facts: &Facts, reps: usize, tables: &str, ratios: &str) -> Result<(), String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("RESULTS.md");
    let command = format!("cargo run --release --manifest-path bench/Cargo.toml -- {name} --reps {reps}");
    let body = format!(
        "`{command}`\n\n{}\n\n{tables}```text\n{ratios}```\n",
        facts.line()
    );
    report::write_section(&path, name, &body).map_err(|error| format!("{}: {error}", path.display()))
}

/// Shows on a terminal what runs just now.
fn progress(label: &str) {
    let mut stderr = std::io::stderr();
    if stderr.is_terminal() {
        let _ = write!(stderr, "\r\x1b[K{label}");
        let _ = stderr.flush();
    }
}
