//! The command line.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// What `--help` prints.
pub const USAGE: &str = "\
Usage: hash_tree [DIR] [--workers N] [--chaos]

Prints the SHA-256 of every regular file below DIR (default: the current directory), as
`find DIR -type f -exec sha256sum {} +` does, in any order. Worker processes do the hashing.

  -w, --workers N   how many worker processes (default: one per available CPU)
      --chaos       kill a random worker a few times during the run; the output must not change
  -h, --help        print this text

Digests go to stdout; progress, problems and a summary to stderr. Symbolic links are not followed.
Exit code: 0 done, 1 some file or directory could not be read, 2 the run could not be done.
";

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Print [`USAGE`].
    Help,
    /// Hash a tree.
    Hash(Options),
}

/// Where and how to hash.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    /// The start of the walk, exactly as typed: it is the prefix of every printed path.
    pub dir: PathBuf,
    /// Worker processes; `None` is one per available CPU.
    pub workers: Option<NonZeroUsize>,
    /// Kill workers during the run.
    pub chaos: bool,
}

/// Reads the arguments that follow the program's name.
///
/// # Errors
/// A sentence that names the argument: an unknown option, a number that is none or zero, a second DIR.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, String> {
    use lexopt::prelude::*;
    let mut dir = None;
    let mut workers = None;
    let mut chaos = false;
    let mut parser = lexopt::Parser::from_args(args);
    while let Some(arg) = parser.next().map_err(|error| error.to_string())? {
        match arg {
            Short('h') | Long("help") => return Ok(Command::Help),
            Long("chaos") => chaos = true,
            Short('w') | Long("workers") => {
                let text = parser.value().map_err(|error| error.to_string())?;
                workers = Some(worker_count(&text)?);
            }
            Value(path) if dir.is_none() => dir = Some(PathBuf::from(path)),
            Value(path) => return Err(format!("one DIR only: unexpected {path:?}")),
            other => return Err(other.unexpected().to_string()),
        }
    }
    Ok(Command::Hash(Options { dir: dir.unwrap_or_else(|| PathBuf::from(".")), workers, chaos }))
}

fn worker_count(text: &OsString) -> Result<NonZeroUsize, String> {
    text.to_str()
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| format!("--workers takes a number from 1 up, not {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Command, String> {
        parse(args.iter().map(OsString::from))
    }

    fn hash(dir: &str, workers: Option<usize>, chaos: bool) -> Result<Command, String> {
        let workers =
            workers.map(|count| NonZeroUsize::new(count).expect("tests ask for one worker or more"));
        Ok(Command::Hash(Options { dir: dir.into(), workers, chaos }))
    }

    #[test]
    fn no_argument_means_the_current_directory() {
        assert_eq!(parsed(&[]), hash(".", None, false));
    }

    #[test]
    fn options_may_stand_before_and_after_the_directory() {
        assert_eq!(parsed(&["--workers", "3", "a//", "--chaos"]), hash("a//", Some(3), true));
        assert_eq!(parsed(&["a", "--workers=3"]), hash("a", Some(3), false));
        assert_eq!(parsed(&["-w3"]), hash(".", Some(3), false));
    }

    #[test]
    fn a_directory_that_starts_with_a_dash_follows_two_dashes() {
        assert_eq!(parsed(&["--", "-a"]), hash("-a", None, false));
    }

    #[test]
    fn help_wins() {
        assert_eq!(parsed(&["--chaos", "-h"]), Ok(Command::Help));
    }

    #[test]
    fn bad_arguments_are_named() {
        for (args, named) in [
            (&["--workers", "0"][..], "\"0\""),
            (&["--workers", "-1"], "\"-1\""),
            (&["--workers", "many"], "\"many\""),
            (&["--workers"], "--workers"),
            (&["--wrokers", "2"], "--wrokers"),
            (&["a", "b"], "\"b\""),
        ] {
            let error = parsed(args).expect_err("refused");
            assert!(error.contains(named), "{args:?}: {error}");
        }
    }
}
