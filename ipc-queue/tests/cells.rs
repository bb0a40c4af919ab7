//! Properties of the cells of at-least-once queues: random histories against a list of what is where, and words that say
//! anything.
#![cfg(not(loom))]
#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

#[path = "common/dice.rs"]
mod dice;

use dice::Dice;
use ipc_queue::cells::{Cell, Cells, Count, Place};
use shm_core::sync::{AtomicU64, AtomicUsize, Ordering};

struct Tables {
    words: Vec<AtomicU64>,
    tags: Vec<AtomicU64>,
    next: AtomicUsize,
    back: AtomicUsize,
    rest: AtomicUsize,
}

impl Tables {
    fn new(count: usize) -> Self {
        let zeros = || (0..count).map(|_| AtomicU64::new(0)).collect();
        Self {
            words: zeros(),
            tags: zeros(),
            next: AtomicUsize::new(0),
            back: AtomicUsize::new(0),
            rest: AtomicUsize::new(0),
        }
    }

    fn cells(&self) -> Cells<'_> {
        Cells::new(&self.words, &self.tags)
    }

    fn claim(&self, me: u16) -> Option<Cell> {
        self.cells().claim(me, &self.next)
    }

    /// Sends a message, and returns where it is.
    fn send(&self, me: u16, ticket: u64) -> Place {
        let cell = self.claim(me).expect("a free cell");
        let place = cell.place();
        self.cells().queue(cell, ticket);
        place
    }
}

#[test]
fn a_random_history_of_messages_is_what_it_should_be() {
    for seed in 1..300 {
        let mut dice = Dice(seed * 0x51_7cc1);
        let count = 1 + dice.below(8);
        let tables = Tables::new(count);
        let cells = tables.cells();
        let (mut owned, mut leased): (Vec<Cell>, Vec<(u16, Cell)>) = (Vec::new(), Vec::new());
        let mut queued: Vec<(u64, Place)> = Vec::new();
        let mut returned = 0;
        for ticket in 0..400 {
            let me = 1 + dice.below(3) as u16;
            match dice.below(7) {
                0 => match tables.claim(9) {
                    Some(cell) => owned.push(cell),
                    None => assert_eq!(owned.len() + leased.len() + queued.len() + returned, count),
                },
                1 if !owned.is_empty() => {
                    let cell = owned.swap_remove(dice.below(owned.len()));
                    queued.push((ticket, cell.place()));
                    cells.queue(cell, ticket);
                }
                2 if !queued.is_empty() => {
                    let (_, place) = queued.swap_remove(dice.below(queued.len()));
                    let cell = cells.take(me, place).expect("it is queued");
                    assert_eq!((cell.place(), cell.deliveries()), (place, 1));
                    assert_eq!(cells.take(me, place), None, "twice");
                    leased.push((me, cell));
                }
                3 if !leased.is_empty() => {
                    let (_, cell) = leased.swap_remove(dice.below(leased.len()));
                    let place = cell.place();
                    assert!(!cells.is_over(place));
                    if dice.below(2) == 0 {
                        cells.release(cell);
                        assert!(cells.is_over(place));
                    } else {
                        cells.give_back(cell);
                        returned += 1;
                    }
                }
                4 => match cells.take_returned(me, &tables.back) {
                    Some(cell) => {
                        assert!(cell.deliveries() >= 1);
                        returned -= 1;
                        leased.push((me, cell));
                    }
                    None => assert_eq!(returned, 0),
                },
                5 if !queued.is_empty() => {
                    let (lost, place) = queued.swap_remove(dice.below(queued.len()));
                    assert_eq!(cells.collect(|ticket| ticket == lost), 1);
                    assert_eq!(cells.take(me, place), None, "it came back");
                    returned += 1;
                }
                6 if dice.below(8) == 0 => {
                    let before = leased.len();
                    leased.retain(|(lessee, _)| *lessee != me);
                    assert_eq!(cells.sweep(me), before - leased.len());
                    assert_eq!(cells.sweep(me), 0, "twice");
                    returned += before - leased.len();
                }
                _ => {}
            }
            let waiting = queued.len() + returned;
            assert_eq!(cells.tally(), Count { waiting, leased: leased.len() });
            let unfinished = waiting + leased.len() > 0;
            assert_eq!(cells.is_drained(&mut Vec::new()), !unfinished);
            assert_eq!((cells.has_unfinished(), cells.has_rest(&tables.rest)), (unfinished, unfinished));
            assert_eq!(cells.has_returned(), returned > 0);
            let (ours, theirs) = (leased.iter().any(|l| l.0 == me), leased.iter().any(|l| l.0 != me));
            assert_eq!(cells.may_bring(me), waiting > 0 || theirs && !ours);
        }
    }
}

#[test]
fn a_message_that_its_receiver_is_about_to_take_may_come_yet() {
    let tables = Tables::new(2);
    let place = tables.send(1, 0);
    // Its slot may be claimed by a receiver that lives, or dies. This one has nothing to do with it.
    assert!(tables.cells().may_bring(3));
    let lease = tables.cells().take(2, place).expect("it is queued");
    assert!(tables.cells().may_bring(3), "another one's lease");
    assert!(!tables.cells().may_bring(2), "its own");
    tables.cells().give_back(lease);
    assert!(tables.cells().may_bring(2));
}

#[test]
fn what_came_back_is_looked_for_where_something_was_found_before() {
    let tables = Tables::new(4);
    let leases: Vec<_> =
        (0..4).map(|ticket| tables.cells().take(2, tables.send(1, ticket)).expect("it is queued")).collect();
    leases.into_iter().for_each(|lease| tables.cells().give_back(lease));
    let take = || tables.cells().take_returned(2, &tables.back);
    let first = take().expect("it came back");
    assert_eq!(first.index(), 0);
    tables.cells().give_back(first);
    let order: Vec<_> = std::iter::from_fn(take).map(|cell| cell.index()).collect();
    assert_eq!(order, [1, 2, 3, 0]);
}

#[test]
fn deliveries_are_counted_up_to_1023() {
    let tables = Tables::new(1);
    let place = tables.send(1, 0);
    let mut lease = tables.cells().take(2, place).expect("it is queued");
    for delivery in 1..2000 {
        assert_eq!(lease.deliveries(), delivery.min(1023));
        assert_eq!(lease.place(), place);
        tables.cells().give_back(lease);
        lease = tables.cells().take_returned(2, &tables.back).expect("it came back");
    }
}

#[test]
fn words_and_places_that_nobody_writes_lead_nowhere_outside() {
    for seed in 1..2000 {
        let mut dice = Dice(seed * 0x9e_3779);
        let count = 1 + dice.below(8);
        let tables = Tables::new(count);
        let cells = tables.cells();
        for _ in 0..60 {
            let index = dice.below(count);
            let mut word = || (dice.below(1 << 30) as u64) << 34 ^ dice.below(1 << 25) as u64;
            let (word, tag, place) = (word(), word(), Place::from_bits(word()));
            if tag % 2 == 0 {
                tables.words[index].store(word, Ordering::Relaxed);
                tables.tags[index].store(tag, Ordering::Relaxed);
            }
            let _ = (cells.is_over(place), cells.may_bring(3), cells.tally());
            let _ = (cells.is_drained(&mut Vec::new()), cells.owners().count());
            let cell = match dice.below(5) {
                0 => tables.claim(1),
                1 => cells.take(1, place),
                2 => cells.take_returned(1, &tables.back),
                3 => {
                    cells.sweep(dice.below(1024) as u16);
                    None
                }
                _ => {
                    cells.collect(|ticket| ticket % 2 == 0);
                    None
                }
            };
            if let Some(cell) = cell {
                assert!(cell.index() < count && cell.deliveries() <= 1023, "{cell:?} of {count}");
                match dice.below(3) {
                    0 => cells.queue(cell, 7),
                    1 => cells.release(cell),
                    _ => cells.give_back(cell),
                }
            }
        }
    }
}
