//! What a reader must know about the machine to place a number.

use crate::clock::now;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// The facts of this run.
#[derive(Debug, Serialize)]
pub struct Facts {
    pub date: String,
    pub cpu: String,
    pub cpus: usize,
    pub kernel: String,
    pub rustc: &'static str,
    pub python: String,
    /// How many threads wanted to run in the minute before: more than a few tenths and the numbers suffer.
    pub load: f64,
    /// Runs that were repeated because other programs were in their way.
    pub repeated: usize,
    #[serde(skip)]
    begin: std::time::Duration,
}

impl Facts {
    /// Collects them.
    pub fn collect() -> Self {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = info
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let kernel = rustix::system::uname();
        let kernel = kernel.release().to_string_lossy();
        let python = std::process::Command::new("python3").arg("--version").output();
        let python = python.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
        Self {
            date: today(),
            cpu: model.map_or("unknown".into(), |(_, name)| name.trim().to_owned()),
            cpus: crate::pin::allowed_count(),
            // The number alone: what follows names the machine's owner, not its kernel.
            kernel: kernel.split('-').next().unwrap_or_default().to_owned(),
            rustc: env!("BENCH_RUSTC"),
            python: python.unwrap_or("no Python".into()),
            load: load(),
            repeated: 0,
            begin: now(),
        }
    }

    /// One line.
    pub fn line(&self) -> String {
        let Facts {
            date,
            cpu,
            cpus,
            kernel,
            rustc,
            python,
            load,
            repeated,
            begin,
        } = self;
        let seconds = (now() - *begin).as_secs();
        format!(
            "{date}, {cpu}, {cpus} CPUs, Linux {kernel}, {rustc}, {python}; load {load} before, {repeated} runs repeated, took {seconds} s."
        )
    }
}

fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ')
        .next()
        .and_then(|first| first.parse().ok())
        .unwrap_or(f64::NAN)
}

/// The date (UTC) as year-month-day.
fn today() -> String {
    let days = clock_gettime(ClockId::Realtime).tv_sec.div_euclid(86_400);
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02}")
}

/// The date of a day counted from 1970-01-01 (Howard Hinnant's `civil_from_days`).
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (
        yoe + era * 400 + i64::from(month <= 2),
        month,
        doy - (153 * mp + 2) / 5 + 1,
    )
}

#[cfg(test)]
mod tests {
    use super::civil;

    #[test]
    fn days_become_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(19_782), (2024, 2, 29));
        assert_eq!(civil(20_777), (2026, 11, 20));
    }
}
