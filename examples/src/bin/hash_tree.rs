//! Hashes every regular file below a directory in worker processes; see `--help`.

use std::error::Error;
use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use examples::hash_tree::chaos::{Chaos, KILLS};
use examples::hash_tree::digest::{Hashed, hash_file};
use examples::hash_tree::in_flight::InFlight;
use examples::hash_tree::options::{self, Command, Options, USAGE};
use examples::hash_tree::output::Output;
use examples::hash_tree::progress::{Progress, say};
use examples::hash_tree::tally::Tally;
use examples::hash_tree::walk::Walk;
use proc_pool::{Pool, TaskError};
use rustix::process::{Pid, Signal, kill_process};

/// What the shell reports for a program that SIGPIPE ended.
const BROKEN_PIPE: u8 = 128 + 13;

fn main() -> ExitCode {
    proc_pool::init();
    let done = match options::parse(std::env::args_os().skip(1)) {
        Ok(Command::Help) => {
            io::stdout().write_all(USAGE.as_bytes()).map_err(Into::into).map(|()| ExitCode::SUCCESS)
        }
        Ok(Command::Hash(options)) => hash(&options),
        Err(error) => Err(format!("{error}\nTry 'hash_tree --help'.").into()),
    };
    done.unwrap_or_else(|error| match error.downcast_ref::<io::Error>() {
        Some(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::from(BROKEN_PIPE),
        _ => {
            say(&error.to_string());
            ExitCode::from(2)
        }
    })
}

fn hash(options: &Options) -> Result<ExitCode, Box<dyn Error>> {
    let started = Instant::now();
    let progress = Arc::new(Progress::on_stderr());
    let walk = Walk::start(&options.dir, Arc::clone(&progress))
        .map_err(|error| format!("{:?}: {error}", options.dir))?;
    let pool = match options.workers {
        Some(workers) => Pool::new(workers.get())?,
        None => Pool::with_default_workers()?,
    };

    let in_flight = Arc::new(InFlight::default());
    let paths = in_flight.track(walk);
    let mut tally = Tally::default();
    if options.chaos {
        let mut chaos = Chaos::new();
        let results = pool.job(hash_file).retries(KILLS).imap_unordered(paths);
        let results = results.zip(1..).map(|(result, count)| {
            if let Some(pid) = chaos.victim(count, || pool.workers()) {
                kill(pid, &progress);
            }
            result
        });
        collect(results, &in_flight, &progress, &mut tally)?;
    } else {
        collect(pool.imap_unordered(hash_file, paths), &in_flight, &progress, &mut tally)?;
    }
    progress.finish();

    if !in_flight.is_complete() {
        return Err("the pool has ended before all files were hashed".into());
    }
    say(&tally.summary(started.elapsed()).to_string());
    Ok(ExitCode::from(u8::from(progress.problems() > 0)))
}

/// Prints what the workers have found out, as it comes.
fn collect(
    results: impl Iterator<Item = Result<Hashed, TaskError>>,
    in_flight: &InFlight,
    progress: &Progress,
    tally: &mut Tally,
) -> io::Result<()> {
    let mut output = Output::new(io::stdout().lock(), progress);
    for result in results {
        match result {
            Ok(Hashed { index, worker, outcome: Ok((digest, len)) }) => {
                if let Some(path) = in_flight.take(index) {
                    output.line(&digest, &path)?;
                    tally.add(worker, len);
                    progress.done(len);
                }
            }
            Ok(Hashed { index, outcome: Err(why), .. }) => skipped(progress, in_flight.take(index), &why),
            Err(error) => {
                let path = match &error {
                    TaskError::WorkerDied { item: Some(index), .. } => in_flight.take(*index),
                    _ => None,
                };
                skipped(progress, path, &error);
            }
        }
    }
    for path in in_flight.take_all() {
        progress.problem(&path, &"no worker has answered for it");
    }
    output.flush()
}

fn skipped(progress: &Progress, path: Option<OsString>, why: &dyn Display) {
    match path {
        Some(path) => progress.problem(&path, why),
        None => progress.failure(&why.to_string()),
    }
    progress.done(0);
}

/// `--chaos`: SIGKILL. The pool collects its dead workers, so the number may be free by now, but hardly in use again.
fn kill(worker: u32, progress: &Progress) {
    let killed =
        i32::try_from(worker).ok().and_then(Pid::from_raw).map(|pid| kill_process(pid, Signal::KILL));
    if let Some(Ok(())) = killed {
        progress.note(&format!("chaos: killed worker {worker}"));
    }
}
