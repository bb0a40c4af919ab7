//! Keeps other programs' work out of the numbers, on machines that are never alone.
//!
//! Before a run it waits until the processors are idle; a run during which others (or the hypervisor) took more than
//! a tenth of the processors is repeated. Both only as long as the time given to it lasts.

use crate::clock::now;
use crate::pin;
use std::time::Duration;

/// One look at the machine.
const LOOK: Duration = Duration::from_millis(60);
/// A tick of `/proc/stat`.
const TICK: Duration = Duration::from_millis(10);

/// How long a run may still be put off.
pub struct Quiet {
    left: Duration,
    pub repeated: usize,
}

/// Ticks since the start, of everybody and of this process with the children that it has waited for.
#[derive(Clone, Copy)]
struct Ticks {
    all: u64,
    own: u64,
}

fn ticks() -> Option<Ticks> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let fields: Vec<u64> = stat
        .lines()
        .next()?
        .split_whitespace()
        .skip(1)
        .flat_map(str::parse)
        .collect();
    // user nice system (idle iowait) irq softirq steal
    let all = [0, 1, 2, 5, 6, 7]
        .iter()
        .filter_map(|&index| fields.get(index))
        .sum();
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // utime stime cutime cstime are the 12th to 15th after the name.
    let own = stat
        .rsplit_once(')')?
        .1
        .split_whitespace()
        .skip(11)
        .take(4)
        .flat_map(str::parse::<u64>)
        .sum();
    Some(Ticks { all, own })
}

impl Quiet {
    pub fn new(patience: Duration) -> Self {
        Self {
            left: patience,
            repeated: 0,
        }
    }

    /// Waits until nobody else runs.
    pub fn wait(&mut self) {
        while !self.left.is_zero() {
            let (begin, before) = (now(), ticks());
            std::thread::sleep(LOOK);
            if !foreign(before, now() - begin) {
                return;
            }
            self.left = self.left.saturating_sub(now() - begin);
        }
    }

    /// Runs `f`, again if others ran meanwhile.
    pub fn run<R, E>(&mut self, mut f: impl FnMut() -> Result<R, E>) -> Result<R, E> {
        loop {
            self.wait();
            let (begin, before) = (now(), ticks());
            let result = f()?;
            let took = now() - begin;
            if self.left.is_zero() || !foreign(before, took) {
                return Ok(result);
            }
            self.repeated += 1;
            self.left = self.left.saturating_sub(took);
        }
    }
}

/// Whether others took more than a tenth of the processors' time, give or take a tick each.
fn foreign(before: Option<Ticks>, took: Duration) -> bool {
    let (Some(before), Some(after)) = (before, ticks()) else {
        return false;
    };
    let foreign = (after.all - before.all).saturating_sub(after.own.saturating_sub(before.own));
    let cpus = pin::allowed_count() as f64;
    foreign as f64 > cpus * (1.0 + 0.1 * took.as_secs_f64() / TICK.as_secs_f64())
}
