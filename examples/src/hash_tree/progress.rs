//! What the user sees on stderr while the run goes on.

use std::ffi::OsStr;
use std::fmt::Display;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;

use super::format::megabytes;

/// How often a plain line is printed where no bar can be drawn.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// A bar on a terminal, a plain line every two seconds elsewhere. Shared by the walk and the caller.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    lines: Option<Mutex<Instant>>, // when the last one was printed
    done: AtomicU64,
    bytes: AtomicU64,
    problems: AtomicU64,
}

impl Progress {
    /// Shows progress on stderr.
    pub fn on_stderr() -> Progress {
        let bar = ProgressBar::new(0).with_style(
            ProgressStyle::with_template("{spinner} [{bar:30}] {pos}/{len} files  {msg}  {elapsed}")
                .expect("the template is well formed")
                .progress_chars("=> "),
        );
        let lines = bar.is_hidden().then(|| Mutex::new(Instant::now()));
        if lines.is_none() {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Progress { lines, ..Progress::with_bar(bar) }
    }

    /// Shows nothing but problems.
    pub fn silent() -> Progress {
        Progress::with_bar(ProgressBar::hidden())
    }

    fn with_bar(bar: ProgressBar) -> Progress {
        Progress {
            bar,
            lines: None,
            done: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            problems: AtomicU64::new(0),
        }
    }

    /// The walk met one more file.
    pub fn found(&self) {
        self.bar.inc_length(1);
    }

    /// One more file is done; `bytes` of it were hashed.
    pub fn done(&self, bytes: u64) {
        let done = self.done.fetch_add(1, Relaxed) + 1;
        let bytes = self.bytes.fetch_add(bytes, Relaxed) + bytes;
        self.bar.inc(1);
        if let Some(last) = &self.lines {
            let mut last = last.lock();
            if last.elapsed() >= LINE_EVERY {
                *last = Instant::now();
                say(&format!("{done} files, {} so far", megabytes(bytes)));
            }
        } else if !self.bar.is_hidden() {
            self.bar.set_message(megabytes(bytes));
        }
    }

    /// Something under `path` was skipped, and why.
    pub fn problem(&self, path: &OsStr, why: &dyn Display) {
        self.failure(&format!("{path:?}: {why}"));
    }

    /// Something went wrong that has no path.
    pub fn failure(&self, line: &str) {
        self.problems.fetch_add(1, Relaxed);
        self.note(line);
    }

    /// Prints a line above the bar.
    pub fn note(&self, line: &str) {
        self.bar.suspend(|| say(line));
    }

    /// Runs `write`, which writes to a terminal that the bar may stand on.
    pub fn aside<R>(&self, write: impl FnOnce() -> R) -> R {
        self.bar.suspend(write)
    }

    /// How many problems were reported.
    pub fn problems(&self) -> u64 {
        self.problems.load(Relaxed)
    }

    /// Takes the bar off the screen.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Prints a line to stderr, as far as that takes any.
pub fn say(line: &str) {
    let _ = writeln!(io::stderr().lock(), "hash_tree: {line}");
}
