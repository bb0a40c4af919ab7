//! Short random histories of a queue, each explained by steps that happen at one moment: it is linearizable.
//!
//! `linearizable/play.rs` makes the histories, with real threads on the real ring, some of which die in the middle
//! of an operation; `linearizable/queue.rs` says what a queue promises; `linearizable/check.rs` decides. That these
//! three notice mistakes is tested too: by histories written by hand (`linearizable/by_hand.rs`), by true ones that were
//! tampered with, and by a ring whose living participants are robbed.
//!
//! `HISTORIES` sets how many histories of a ring there are (default 10,000), `HISTORY_SEED` the number of the first. A
//! failure names its number. The same number makes the threads try the same, though not at the same moments.
#![cfg(not(loom))]

#[path = "linearizable/by_hand.rs"]
mod by_hand;
#[path = "linearizable/check.rs"]
mod check;
mod common;
#[path = "linearizable/play.rs"]
mod play;
#[path = "linearizable/queue.rs"]
mod queue;

use check::Event;
use common::watchdog_after;
use play::Rules;
use queue::{Answer, Call, History};
use std::time::Duration;

const HONEST: Rules = Rules { deaths: true, robs_only_the_dead: true };

fn number_from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// The numbers of all histories.
fn seeds() -> std::ops::Range<u64> {
    let first = number_from_env("HISTORY_SEED", 1);
    first..first + number_from_env("HISTORIES", 10_000)
}

#[track_caller]
fn assert_linearizable(seed: u64, history: &History) {
    if let Err(why) = history.check() {
        panic!("HISTORY_SEED={seed} HISTORIES=1: not linearizable: {why}");
    }
}

/// How often histories show what they are made for: a generator that no longer gets there must not pass unseen.
#[derive(Debug, Default)]
struct Seen {
    overlaps: usize,
    deaths: usize,
    exact: usize,
    pending: usize,
    short_batches: usize,
    lost: usize,
}

impl Seen {
    fn look(&mut self, history: &History) {
        for pair in history.events.windows(2) {
            self.overlaps += usize::from(matches!(pair, [Event::Begin(_), Event::Begin(_)]));
        }
        for op in &history.ops {
            match (&op.answer, op.call) {
                (None, _) => self.deaths += 1,
                (Some(Answer::Nothing), _) => self.exact += 1,
                (Some(Answer::Held { .. }), _) => self.pending += 1,
                (Some(Answer::Lost(lost)), _) => self.lost += lost,
                (Some(Answer::Pushed(pushed)), Call::Push { count, .. }) => {
                    self.short_batches += usize::from(*pushed < count);
                }
                _ => {}
            }
        }
    }
}

#[test]
fn histories_of_a_ring_whose_users_die_are_linearizable() {
    let _dog = watchdog_after(Duration::from_secs(1200));
    let (mut seen, seeds) = (Seen::default(), seeds());
    let count = usize::try_from(seeds.end - seeds.start).expect("small");
    for seed in seeds {
        let history = play::ring(seed, HONEST);
        seen.look(&history);
        assert_linearizable(seed, &history);
    }
    println!("{count} histories: {seen:?}");
    if count >= 1000 {
        let Seen { overlaps, deaths, exact, pending, short_batches, lost } = seen;
        let least = [overlaps, deaths, exact, pending, short_batches, lost].into_iter().min();
        assert!(least >= Some(count / 50), "too little happens: {seen:?}");
    }
}

#[test]
fn histories_of_senders_and_receivers_are_linearizable() {
    let _dog = watchdog_after(Duration::from_secs(600));
    // Making a queue takes longer than using it.
    for seed in seeds().step_by(5) {
        assert_linearizable(seed, &play::handles(seed));
    }
}

#[test]
fn a_ring_whose_living_users_are_robbed_is_not_linearizable() {
    let rules = Rules { deaths: false, robs_only_the_dead: false };
    let wrong = (1..=2000).any(|seed| play::ring(seed, rules).check().is_err());
    assert!(wrong, "nothing was noticed");
}

/// True histories in which nobody dies.
fn quiet_histories() -> impl Iterator<Item = History> {
    let rules = Rules { deaths: false, robs_only_the_dead: true };
    (1..=200).map(move |seed| play::ring(seed, rules))
}

/// The operations that took messages, with what they took.
fn pops(history: &mut History) -> impl Iterator<Item = &mut Vec<u64>> {
    history.ops.iter_mut().filter_map(|op| match &mut op.answer {
        Some(Answer::Popped(popped)) => Some(popped),
        _ => None,
    })
}

#[test]
fn a_message_that_arrives_twice_is_noticed() {
    for mut history in quiet_histories() {
        let mut pops = pops(&mut history);
        let (Some(first), Some(second)) = (pops.next(), pops.next()) else { continue };
        second[0] = first[0];
        drop(pops);
        assert!(history.check().is_err(), "{history:?}");
    }
}

#[test]
fn a_message_that_never_arrives_is_noticed() {
    for mut history in quiet_histories() {
        let pop = history.ops.iter_mut().find(|op| matches!(op.answer, Some(Answer::Popped(_))));
        let Some(pop) = pop else { continue };
        pop.answer = Some(Answer::Nothing);
        assert!(history.check().is_err(), "{history:?}");
    }
}

#[test]
fn a_refused_message_that_arrives_is_noticed() {
    for mut history in quiet_histories() {
        let Some(first) = pops(&mut history).next().map(|popped| popped[0]) else { continue };
        let sent = |call| match call {
            Call::Push { first: sent, count } => (sent..sent + count as u64).contains(&first),
            _ => false,
        };
        let push = history.ops.iter_mut().find(|op| sent(op.call)).expect("somebody sent it");
        push.answer = Some(Answer::Nothing);
        assert!(history.check().is_err(), "{history:?}");
    }
}

#[test]
fn two_messages_of_a_producer_in_the_wrong_order_are_noticed() {
    let mut tampered = 0;
    for mut history in quiet_histories() {
        let batch = pops(&mut history).find(|popped| popped.windows(2).any(|two| two[1] == two[0] + 1));
        let Some(batch) = batch else { continue };
        batch.reverse();
        tampered += 1;
        assert!(history.check().is_err(), "{history:?}");
    }
    assert!(tampered > 0, "no batch was popped");
}

/// In the end every history fills its ring to the brim.
#[test]
fn a_place_more_or_less_than_there_is_is_noticed() {
    for history in quiet_histories() {
        let larger = History { capacity: history.capacity + 1, ..history.clone() };
        assert!(larger.check().is_err(), "{history:?}");
        let smaller = History { capacity: history.capacity - 1, ..history.clone() };
        assert!(smaller.check().is_err(), "{history:?}");
    }
}
