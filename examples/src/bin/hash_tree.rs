//! Hashes every regular file below a directory in worker processes; see `--help`.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use examples::hash_tree::digest::{Hashed, hash_file};
use examples::hash_tree::in_flight::InFlight;
use examples::hash_tree::options::{self, Command, Options, USAGE};
use examples::hash_tree::output::Output;
use examples::hash_tree::progress::{Progress, say};
use examples::hash_tree::tally::Tally;
use examples::hash_tree::walk::Walk;

/// What the shell reports for a program that SIGPIPE ended.
const BROKEN_PIPE: u8 = 128 + 13;

fn main() -> ExitCode {
    match options::parse(std::env::args_os().skip(1)) {
        Ok(Command::Help) => {
            let _ = write!(io::stdout(), "{USAGE}"); // nobody reads it: nothing to do about that
            ExitCode::SUCCESS
        }
        Ok(Command::Hash(options)) => run(&options),
        Err(error) => failed(&format!("{error}\nTry 'hash_tree --help'.")),
    }
}

fn failed(why: &dyn Display) -> ExitCode {
    say(&why.to_string());
    ExitCode::from(2)
}

fn run(options: &Options) -> ExitCode {
    let started = Instant::now();
    let progress = Arc::new(Progress::on_stderr());
    let walk = match Walk::start(&options.dir, Arc::clone(&progress)) {
        Ok(walk) => walk,
        Err(error) => return failed(&format!("{:?}: {error}", options.dir)),
    };
    let in_flight = Arc::new(InFlight::default());
    let mut tally = Tally::default();
    let results = in_flight
        .track(walk)
        .map(|path| Ok::<_, std::convert::Infallible>(hash_file(path)));
    let written = collect(results, &in_flight, &progress, &mut tally);
    progress.finish();
    match written {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return ExitCode::from(BROKEN_PIPE),
        Err(error) => return failed(&format!("stdout: {error}")),
    }
    say(&tally.summary(started.elapsed()).to_string());
    ExitCode::from(u8::from(progress.problems() > 0))
}

fn collect<E: Display>(
    results: impl Iterator<Item = Result<Hashed, E>>,
    in_flight: &InFlight,
    progress: &Progress,
    tally: &mut Tally,
) -> io::Result<()> {
    let mut output = Output::new(io::stdout().lock(), progress);
    for result in results {
        match result {
            Ok(Hashed {
                index,
                worker,
                outcome,
            }) => {
                let Some(path) = in_flight.take(index) else {
                    continue;
                };
                match outcome {
                    Ok((digest, len)) => {
                        output.line(&digest, &path)?;
                        tally.add(worker, len);
                        progress.done(len);
                    }
                    Err(why) => {
                        progress.problem(&path, &why);
                        progress.done(0);
                    }
                }
            }
            Err(error) => progress.note(&error.to_string()),
        }
    }
    for path in in_flight.take_all() {
        progress.problem(&path, &"no worker has answered for it");
    }
    output.flush()
}
