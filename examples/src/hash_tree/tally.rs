//! The summary: what was done, and by whom.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::time::Duration;

use super::format::megabytes;

/// Files and bytes, in all and per worker.
#[derive(Debug, Default)]
pub struct Tally {
    workers: BTreeMap<u32, (u64, u64)>, // files, bytes by process id
}

impl Tally {
    /// Counts a file of `bytes` for `worker`.
    pub fn add(&mut self, worker: u32, bytes: u64) {
        let (files, sum) = self.workers.entry(worker).or_default();
        *files += 1;
        *sum += bytes;
    }

    /// The text of the summary after a run of `elapsed`.
    pub fn summary(&self, elapsed: Duration) -> impl Display + '_ {
        Summary { tally: self, elapsed }
    }
}

struct Summary<'t> {
    tally: &'t Tally,
    elapsed: Duration,
}

impl Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (files, bytes) = self
            .tally
            .workers
            .values()
            .fold((0, 0), |(files, bytes), worker| (files + worker.0, bytes + worker.1));
        let seconds = self.elapsed.as_secs_f64();
        let rate = bytes as f64 / 1e6 / seconds.max(1e-9);
        write!(f, "{files} files, {}, {seconds:.2} s, {rate:.0} MB/s", megabytes(bytes))?;
        for (pid, (files, bytes)) in &self.tally.workers {
            write!(f, "\n  worker {pid}: {files} files, {}", megabytes(*bytes))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_has_the_totals_and_a_line_per_worker() {
        let mut tally = Tally::default();
        tally.add(12, 3_000_000);
        tally.add(11, 0);
        tally.add(12, 1_000_000);
        assert_eq!(
            tally.summary(Duration::from_millis(500)).to_string(),
            "3 files, 4.0 MB, 0.50 s, 8 MB/s\n  worker 11: 1 files, 0.0 MB\n  worker 12: 2 files, 4.0 MB"
        );
    }

    #[test]
    fn an_empty_tree_has_a_summary_too() {
        assert_eq!(Tally::default().summary(Duration::ZERO).to_string(), "0 files, 0.0 MB, 0.00 s, 0 MB/s");
    }
}
