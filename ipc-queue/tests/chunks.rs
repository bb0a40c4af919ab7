//! Properties of the chunk allocator: random histories against a list of what is held, and words that say anything.
#![cfg(not(loom))]
#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

#[path = "common/dice.rs"]
mod dice;

use dice::Dice;
use ipc_queue::chunks::{Chunks, Run};
use shm_core::sync::{AtomicU64, Ordering};

struct Tables {
    words: Vec<AtomicU64>,
    tags: Vec<AtomicU64>,
}

impl Tables {
    fn new(count: usize) -> Self {
        let zeros = || (0..count).map(|_| AtomicU64::new(0)).collect();
        Self { words: zeros(), tags: zeros() }
    }

    fn chunks(&self) -> Chunks<'_> {
        Chunks::new(&self.words, &self.tags)
    }
}

/// The longest row of `false`.
fn longest_gap(taken: &[bool]) -> usize {
    taken.split(|taken| *taken).map(<[bool]>::len).max().unwrap_or(0)
}

#[test]
fn a_claim_succeeds_exactly_if_so_many_neighbours_are_free_and_runs_never_overlap() {
    for seed in 1..200 {
        let mut dice = Dice(seed * 0x9e37_79b9);
        let count = 1 + dice.below(40);
        let tables = Tables::new(count);
        let chunks = tables.chunks();
        let mut held: Vec<(u16, Run)> = Vec::new();
        let mut queued: Vec<(u64, usize, u64, usize)> = Vec::new();
        let mut taken = vec![false; count];
        for ticket in 0..400 {
            match dice.below(5) {
                0 | 1 => {
                    let (me, len) = (1 + dice.below(3) as u16, 1 + dice.below(count));
                    match chunks.claim(me, len) {
                        Ok(run) => {
                            assert_eq!(run.len(), len);
                            let ours = &mut taken[run.head()..run.head() + len];
                            assert!(ours.iter().all(|taken| !taken), "a chunk twice: {run:?}");
                            ours.fill(true);
                            held.push((me, run));
                        }
                        Err(scarce) => {
                            assert!(!scarce.disturbed);
                            assert!(longest_gap(&taken) < len, "{len} of {taken:?}");
                        }
                    }
                }
                2 if !held.is_empty() => {
                    let (_, run) = held.swap_remove(dice.below(held.len()));
                    taken[run.head()..run.head() + run.len()].fill(false);
                    chunks.release(run);
                }
                3 if !held.is_empty() => {
                    let (_, run) = held.swap_remove(dice.below(held.len()));
                    queued.push((ticket, run.head(), run.generation(), run.len()));
                    chunks.queue(run, ticket);
                }
                _ if !queued.is_empty() => {
                    let (ticket, head, generation, len) = queued.swap_remove(dice.below(queued.len()));
                    assert_eq!(chunks.take(9, head, generation + 1), None, "another claim's message");
                    match dice.below(2) {
                        0 => {
                            assert_eq!(chunks.collect(9, |t| t == ticket), 1);
                            taken[head..head + len].fill(false);
                        }
                        _ => held.push((9, chunks.take(9, head, generation).expect("it is queued"))),
                    }
                }
                _ => {}
            }
            assert_eq!(chunks.in_use(), taken.iter().filter(|taken| **taken).count());
        }
        // Deaths: what they held is free, what is queued stays.
        for dead in [1, 2, 3, 9, 9] {
            chunks.sweep(dead);
        }
        assert_eq!(chunks.in_use(), queued.iter().map(|(.., len)| len).sum::<usize>());
        chunks.collect(4, |_| true);
        assert_eq!(chunks.in_use(), 0);
    }
}

#[test]
fn words_that_nobody_writes_lead_nowhere_outside() {
    for seed in 1..2000 {
        let mut dice = Dice(seed * 0x51_7cc1);
        let count = 1 + dice.below(12);
        let tables = Tables::new(count);
        let chunks = tables.chunks();
        for _ in 0..60 {
            let place = dice.below(count);
            let word = (dice.below(1 << 30) as u64) << 34 ^ dice.below(1 << 20) as u64;
            if dice.below(2) == 0 {
                tables.words[place].store(word, Ordering::Relaxed);
                tables.tags[place].store(word, Ordering::Relaxed);
            }
            let run = match dice.below(3) {
                0 => chunks.claim(1, 1 + dice.below(count)).ok(),
                1 => chunks.take(1, dice.below(2 * count), word >> 33),
                _ => {
                    chunks.sweep(dice.below(1024) as u16);
                    chunks.collect(1, |ticket| ticket % 2 == 0);
                    None
                }
            };
            if let Some(run) = run {
                assert!(!run.is_empty() && run.head() + run.len() <= count, "{run:?} of {count}");
                chunks.release(run);
            }
        }
    }
}
