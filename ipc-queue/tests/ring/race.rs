//! Threads that race, lag and die. Every run checks count, sum and the order of each producer's messages.

use super::{End, Random, memory, steps, watchdog};
use ipc_queue::ring::{Claim, Cursor, PopError, PushError, Ring};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};

/// Messages say who sent them and as which: `producer << 32 | number`.
fn message(producer: usize, number: u64) -> u64 {
    (producer as u64) << 32 | number
}

/// Checks what one consumer sees: the numbers of each producer only grow.
struct Witness {
    last: Vec<Option<u64>>,
    count: u64,
    sum: u64,
}

impl Witness {
    fn new(producers: usize) -> Self {
        Witness { last: vec![None; producers], count: 0, sum: 0 }
    }

    fn see(&mut self, message: u64) {
        let (producer, number) = ((message >> 32) as usize, message & 0xffff_ffff);
        assert!(self.last[producer] < Some(number), "order of producer {producer} broken");
        self.last[producer] = Some(number);
        self.count += 1;
        self.sum += number;
    }
}

/// `producers` and `consumers` race over a ring; with `span` above 1 in batches of random length, and with `lag`
/// everybody forgets its place now and then.
fn race(capacity: usize, producers: usize, consumers: usize, each: u64, span: usize, lag: bool) {
    let _watchdog = watchdog();
    let memory = memory(capacity);
    let total = each * producers as u64;
    let (count, sum) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for producer in 0..producers {
            let memory = &memory;
            scope.spawn(move || {
                let mut end = End::new(memory, 1 + producer as u16);
                let mut random = Random(7 + producer as u64);
                let mut number = 0;
                while number < each {
                    if lag && random.below(1000) == 0 {
                        end.pushed = Cursor::new();
                    }
                    let want = (1 + random.below(span)).min((each - number) as usize);
                    let pushed = match want {
                        1 => end.push(message(producer, number)).map(|_| 1),
                        _ => end.push_batch(message(producer, number), want).map(|(_, count)| count as u64),
                    };
                    match pushed {
                        Ok(count) => number += count,
                        Err(_) => std::thread::yield_now(),
                    }
                }
            });
        }
        for consumer in 0..consumers {
            let (memory, count, sum) = (&memory, &count, &sum);
            scope.spawn(move || {
                let mut end = End::new(memory, 500 + consumer as u16);
                let mut random = Random(99 + consumer as u64);
                let mut witness = Witness::new(producers);
                while count.load(SeqCst) < total {
                    if lag && random.below(1000) == 0 {
                        end.popped = Cursor::new();
                    }
                    let before = witness.count;
                    match 1 + random.below(span) {
                        1 => end.pop().into_iter().for_each(|m| witness.see(m)),
                        max => end.pop_batch(max).into_iter().flatten().for_each(|m| witness.see(m)),
                    }
                    match witness.count - before {
                        0 => std::thread::yield_now(),
                        new => _ = count.fetch_add(new, SeqCst),
                    }
                }
                sum.fetch_add(witness.sum, SeqCst);
            });
        }
    });
    assert_eq!(count.into_inner(), total);
    assert_eq!(sum.into_inner(), producers as u64 * (each * (each - 1) / 2));
    assert_eq!(End::new(&memory, 1).pop(), Err(PopError::Empty));
}

#[test]
fn one_producer_and_one_consumer_race() {
    race(64, 1, 1, 300_000, 1, false);
}

#[test]
fn two_producers_and_two_consumers_race() {
    race(8, 2, 2, 200_000, 1, false);
}

#[test]
fn a_ring_of_one_slot_survives_a_race() {
    race(1, 2, 2, 50_000, 2, true);
}

#[test]
fn a_ring_of_three_slots_survives_a_race() {
    race(3, 2, 2, 100_000, 4, true);
}

#[test]
fn batches_and_single_messages_race() {
    race(16, 2, 2, 200_000, 16, false);
}

#[test]
fn laggards_race_over_batches() {
    race(13, 3, 3, 100_000, 8, true);
}

#[test]
fn threads_that_share_a_cursor_race() {
    let _watchdog = watchdog();
    let memory = memory(8);
    let end = End::new(&memory, 1);
    let each = 100_000;
    let (count, sum) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for number in 0..each {
                    while end.push(number).is_err() {
                        std::thread::yield_now();
                    }
                }
            });
            scope.spawn(|| {
                while count.load(SeqCst) < 2 * each {
                    match end.pop_batch(3) {
                        Ok(got) => {
                            sum.fetch_add(got.iter().sum(), SeqCst);
                            count.fetch_add(got.len() as u64, SeqCst);
                        }
                        Err(_) => std::thread::yield_now(),
                    }
                }
            });
        }
    });
    assert_eq!(count.into_inner(), 2 * each);
    assert_eq!(sum.into_inner(), each * (each - 1));
}

/// Producers and consumers that abandon an operation now and then and go on as somebody else: whoever meets what
/// they left repairs it. Nothing is lost but what dead consumers had claimed, nothing arrives twice or out of order.
#[test]
fn survivors_of_random_deaths_finish() {
    let _watchdog = watchdog();
    const EACH: u64 = 100_000;
    let memory = memory(7);
    let dead: Vec<AtomicBool> = (0..1024).map(|_| AtomicBool::new(false)).collect();
    let next_owner = AtomicUsize::new(1);
    let (received, lost, finished) = (AtomicU64::new(0), AtomicU64::new(0), AtomicUsize::new(0));

    let repair = |ring: &Ring<'_>, claim: Claim| {
        if dead[usize::from(claim.owner())].load(SeqCst) {
            lost.fetch_add(ring.recover(claim) as u64, SeqCst);
        } else {
            std::thread::yield_now();
        }
    };
    let reborn = || End::new(&memory, next_owner.fetch_add(1, SeqCst) as u16);
    let may_die = || next_owner.load(SeqCst) < 1000;

    std::thread::scope(|scope| {
        for producer in 0..2usize {
            let (repair, reborn, may_die, dead, finished) = (&repair, &reborn, &may_die, &dead, &finished);
            scope.spawn(move || {
                let mut end = reborn();
                let mut random = Random(3 + producer as u64);
                let mut number = 0;
                while number < EACH {
                    let want = (1 + random.below(4)).min((EACH - number) as usize);
                    if random.below(200) == 0 && may_die() {
                        // What it had not published it sends again under its new name.
                        let step = steps(want).nth(random.below(want + 1)).unwrap();
                        if end.abandon_push(message(producer, number), want, step).is_ok() {
                            dead[usize::from(end.me)].store(true, SeqCst);
                            end = reborn();
                        }
                        continue;
                    }
                    match end.push_batch(message(producer, number), want) {
                        Ok((_, count)) => number += count as u64,
                        Err(PushError::Claimed(claim)) => repair(&end.ring, claim),
                        Err(_) => std::thread::yield_now(),
                    }
                }
                finished.fetch_add(1, SeqCst);
            });
        }
        for consumer in 0..2usize {
            let (repair, reborn, may_die, dead) = (&repair, &reborn, &may_die, &dead);
            let (received, finished) = (&received, &finished);
            scope.spawn(move || {
                let mut end = reborn();
                let mut random = Random(11 + consumer as u64);
                let mut witness = Witness::new(2);
                loop {
                    let all_sent = finished.load(SeqCst) == 2;
                    let max = 1 + random.below(4);
                    if random.below(200) == 0 && may_die() {
                        let step = steps(max).nth(random.below(max + 1)).unwrap();
                        if end.abandon_pop(max, step).is_ok() {
                            dead[usize::from(end.me)].store(true, SeqCst);
                            end = reborn();
                        }
                        continue;
                    }
                    match end.pop_batch(max) {
                        Ok(got) => got.into_iter().for_each(|m| witness.see(m)),
                        Err(PopError::Claimed(claim)) => repair(&end.ring, claim),
                        Err(PopError::Empty) if all_sent => break,
                        Err(_) => std::thread::yield_now(),
                    }
                }
                received.fetch_add(witness.count, SeqCst);
            });
        }
    });
    let swept: usize = (1..1024).map(|owner| memory.ring().recover_owner(owner as u16)).sum();
    let lost = lost.into_inner() + swept as u64;
    assert!(lost > 0, "consumers died");
    assert_eq!(received.into_inner() + lost, 2 * EACH);
    assert_eq!(End::new(&memory, 1).push_batch(0, 7).map(|(_, count)| count), Ok(7));
}
