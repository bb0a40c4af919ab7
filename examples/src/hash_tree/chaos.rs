//! `--chaos`: which worker to kill, and when.
//!
//! Kills are tied to results, not to a clock: small and large trees, fast and slow machines see the same number of them, and
//! the victims are in the middle of other files.

use std::hash::{BuildHasher, RandomState};

/// How many workers a run kills at most. An item can be hit by each, so it needs as many retries.
pub const KILLS: u32 = 5;

/// The next kill happens when this many times as many results are in.
const GROWTH: u64 = 4;

/// When the kills come, and whom they hit.
#[derive(Debug)]
pub struct Chaos {
    next_at: u64,
    left: u32,
    dice: RandomState,
}

impl Chaos {
    /// [`KILLS`] kills, the first after the first result.
    pub fn new() -> Chaos {
        Chaos { next_at: 1, left: KILLS, dice: RandomState::new() }
    }

    /// The worker to kill now that `results` are in, if it is time; `workers` tells which there are.
    pub fn victim(&mut self, results: u64, workers: impl FnOnce() -> Vec<u32>) -> Option<u32> {
        if self.left == 0 || results < self.next_at {
            return None;
        }
        let workers = workers();
        let count = workers.len() as u64;
        if count == 0 {
            return None;
        }
        self.next_at = results * GROWTH;
        self.left -= 1;
        let index =
            usize::try_from(self.dice.hash_one(results) % count).expect("less than the length of a vector");
        Some(workers[index])
    }
}

impl Default for Chaos {
    fn default() -> Chaos {
        Chaos::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_come_at_growing_counts_and_end() {
        let mut chaos = Chaos::new();
        let at: Vec<u64> =
            (0..10_000).filter(|&results| chaos.victim(results, || vec![7]).is_some()).collect();
        assert_eq!(at, [1, 4, 16, 64, 256]);
    }

    #[test]
    fn the_victim_is_one_of_the_workers() {
        for _ in 0..100 {
            let victim = Chaos::new().victim(1, || vec![3, 5, 9]).expect("it is time");
            assert!([3, 5, 9].contains(&victim));
        }
    }

    #[test]
    fn without_workers_a_kill_waits() {
        let mut chaos = Chaos::new();
        assert_eq!(chaos.victim(1, Vec::new), None);
        assert_eq!(chaos.victim(2, || vec![8]), Some(8));
    }
}
