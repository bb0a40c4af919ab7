//! Threads use a queue at random, some die in the middle of an operation, and all of it is written down.
//!
//! What each thread does is fixed by the seed; when it gets to it is not. Threads give up the processor while they
//! hold a claim, in the closures that the ring calls then: otherwise operations would hardly ever overlap.
#![allow(unsafe_code, reason = "payloads are raw memory")]

use super::queue::{Answer, Call, History};
use ipc_queue::ring::{Claim, Cursor, Layout, Memory, PopError, PushError, Ring, Step};
use ipc_queue::{PlainReceiver, PlainSender};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering::SeqCst};

/// A generator good enough for tests (xorshift64*).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(crate) fn below(&mut self, bound: u64) -> usize {
        usize::try_from((self.next() >> 32) % bound).expect("small")
    }

    fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }

    /// Lets others run, or not.
    fn dawdle(&mut self) {
        (0..self.below(4)).for_each(|_| std::thread::yield_now());
    }
}

/// One operation of one thread, with the stamps of its begin and its end.
struct Entry {
    stamps: [u64; 2],
    owner: u16,
    call: Call,
    answer: Option<Answer>,
}

/// What one thread writes down.
struct Log<'a> {
    clock: &'a AtomicU64,
    entries: Vec<Entry>,
}

impl Log<'_> {
    /// Runs and writes down an operation; its thread dies in it if it has no answer.
    fn enter(
        &mut self,
        owner: u16,
        call: Call,
        operation: impl FnOnce() -> Option<Answer>,
    ) -> Option<Answer> {
        let begin = self.clock.fetch_add(1, SeqCst);
        let answer = operation();
        let end = self.clock.fetch_add(1, SeqCst);
        self.entries.push(Entry { stamps: [begin, end], owner, call, answer: answer.clone() });
        answer
    }
}

fn history(capacity: usize, entries: &[Entry]) -> History {
    let stamps = |i: usize| [0, 1].map(|end| (entries[i].stamps[end], i, end));
    let mut events: Vec<_> = (0..entries.len()).flat_map(stamps).collect();
    events.sort_unstable();
    let mut history = History::new(capacity);
    let mut numbers = vec![0; entries.len()];
    for (_, i, end) in events {
        match end {
            0 => numbers[i] = history.begin(entries[i].owner, entries[i].call),
            _ => history.end(numbers[i], entries[i].answer.clone()),
        }
    }
    history
}

/// How a ring is played with.
#[derive(Clone, Copy)]
pub(crate) struct Rules {
    /// Participants die now and then.
    pub(crate) deaths: bool,
    /// Claims of the dead only are recovered.
    pub(crate) robs_only_the_dead: bool,
}

/// A ring and its participants, dead or alive.
struct World {
    memory: Memory,
    clock: AtomicU64,
    births: AtomicU16,
    dead: [AtomicBool; 64],
}

/// A thread that uses a ring: as one participant until that dies, then as the next.
struct Player<'a> {
    world: &'a World,
    rules: Rules,
    random: Random,
    log: Log<'a>,
    me: u16,
    cursor: Cursor,
    /// The first message of the next push.
    next: u64,
}

fn put(slot: *mut u8, message: u64) {
    // SAFETY: a slot of these rings has 8 bytes, aligned. Atomic, because a ring whose claims are robbed has two writers.
    unsafe { AtomicU64::from_ptr(slot.cast()) }.store(message, SeqCst);
}

fn get(slot: *const u8) -> u64 {
    // SAFETY: as in `put`.
    unsafe { AtomicU64::from_ptr(slot.cast_mut().cast()) }.load(SeqCst)
}

impl<'a> Player<'a> {
    fn new(world: &'a World, rules: Rules, number: u64, seed: u64) -> Self {
        let mut player = Self {
            world,
            rules,
            random: Random::new(seed << 8 | number),
            log: Log { clock: &world.clock, entries: Vec::new() },
            me: 0,
            cursor: Cursor::new(),
            next: number * 1000,
        };
        player.is_born();
        player
    }

    fn is_born(&mut self) {
        self.me = self.world.births.fetch_add(1, SeqCst);
        self.cursor = Cursor::new();
    }

    fn ring(&self) -> Ring<'a> {
        self.world.memory.ring()
    }

    fn turn(&mut self, is_producer: bool) {
        let count = 1 + self.random.below(3);
        let call =
            if is_producer { Call::Push { first: self.next, count } } else { Call::Pop { max: count } };
        self.next += 10;
        let dies = self.rules.deaths && self.random.one_in(8);
        let (world, ring, me) = (self.world, self.ring(), self.me);
        let mut seen = None;
        let (random, cursor) = (&mut self.random, &self.cursor);
        let answer = self.log.enter(me, call, || {
            if dies && random.one_in(2) {
                abandon(&ring, me, cursor, call, random);
                return None;
            }
            let answer = act(&ring, me, cursor, call, random, &mut seen);
            Some(answer).filter(|_| !dies)
        });
        if answer.is_none() {
            world.dead[usize::from(me)].store(true, SeqCst);
            self.is_born();
        }
        if let Some(claim) = seen {
            self.repair(claim);
        }
        if self.random.one_in(6) {
            let dead = self.random.below(u64::from(world.births.load(SeqCst)));
            self.sweep(u16::try_from(dead).expect("small"));
        }
        self.random.dawdle();
    }

    fn repair(&mut self, claim: Claim) {
        let (ring, dead) = (self.ring(), claim.owner());
        if self.world.dead[usize::from(dead)].load(SeqCst) {
            self.log.enter(self.me, Call::Repair { dead }, || Some(Answer::Lost(ring.recover(claim))));
        } else if !self.rules.robs_only_the_dead {
            ring.recover(claim);
        }
    }

    fn sweep(&mut self, dead: u16) {
        let ring = self.ring();
        if self.world.dead[usize::from(dead)].load(SeqCst) {
            self.log.enter(self.me, Call::Sweep { dead }, || Some(Answer::Lost(ring.recover_owner(dead))));
        }
    }

    /// Nobody else is left: sweeps, takes what is there, and fills the ring to the brim.
    fn finish(&mut self) {
        for dead in 1..self.world.births.load(SeqCst) {
            self.sweep(dead);
        }
        self.rules.deaths = false;
        let capacity = self.ring().capacity();
        for is_producer in [false, true] {
            for _ in 0..=capacity {
                let (ring, me, cursor, random) = (self.ring(), self.me, &self.cursor, &mut self.random);
                let call = if is_producer {
                    Call::Push { first: self.next, count: 1 }
                } else {
                    Call::Pop { max: 1 }
                };
                self.next += 10;
                self.log.enter(me, call, || Some(act(&ring, me, cursor, call, random, &mut None)));
            }
            self.cursor = Cursor::new();
        }
    }
}

/// One operation on the ring, and the claim that it found in its way.
fn act(
    ring: &Ring<'_>,
    me: u16,
    cursor: &Cursor,
    call: Call,
    random: &mut Random,
    seen: &mut Option<Claim>,
) -> Answer {
    let mut held = |claim: Claim| {
        *seen = Some(claim);
        Answer::Held { owner: claim.owner(), writing: claim.is_writing() }
    };
    match call {
        Call::Push { first, count } => {
            let mut write = |i: usize, slot| {
                random.dawdle();
                put(slot, first + i as u64);
                random.dawdle();
            };
            let pushed = match count {
                1 => ring.try_push(cursor, me, |slot| write(0, slot)).map(|_| 1),
                _ => ring.try_push_batch(cursor, me, count, write).map(|(_, pushed)| pushed),
            };
            match pushed {
                Ok(pushed) => Answer::Pushed(pushed),
                Err(PushError::Claimed(claim)) => held(claim),
                Err(_) => Answer::Nothing,
            }
        }
        Call::Pop { max } => {
            let mut popped = Vec::new();
            let mut read = |slot| {
                random.dawdle();
                popped.push(get(slot));
                random.dawdle();
            };
            let taken = match max {
                1 => ring.try_pop(cursor, me, read).map(|()| 1),
                _ => ring.try_pop_batch(cursor, me, max, |_, slot| read(slot)),
            };
            match taken {
                Ok(taken) if taken == popped.len() => Answer::Popped(popped),
                Ok(taken) => panic!("{taken} were taken, and {} read", popped.len()),
                Err(PopError::Claimed(claim)) => held(claim),
                Err(_) => Answer::Nothing,
            }
        }
        Call::Sweep { .. } | Call::Repair { .. } => unreachable!("not an operation of a turn"),
    }
}

/// The same, stopped at a random step.
fn abandon(ring: &Ring<'_>, me: u16, cursor: &Cursor, call: Call, random: &mut Random) {
    let step = match random.below(4) {
        0 => Step::Claimed,
        interior => Step::Interior(interior - 1),
    };
    match call {
        Call::Push { first, count } => {
            let write = |i, slot| put(slot, first + i as u64);
            _ = ring.abandon_push(cursor, me, count, write, step);
        }
        Call::Pop { max } => _ = ring.abandon_pop(cursor, me, max, |_, slot| _ = get(slot), step),
        Call::Sweep { .. } | Call::Repair { .. } => unreachable!("not an operation of a turn"),
    }
}

/// Two or three producers and as many consumers do 3 to 6 operations each on a ring of 1 to 3 slots.
pub(crate) fn ring(seed: u64, rules: Rules) -> History {
    let mut random = Random::new(seed);
    let capacity = 1 + random.below(3);
    let world = World {
        memory: Memory::new(Layout::new(capacity, 8).expect("a small ring")),
        clock: AtomicU64::new(0),
        births: AtomicU16::new(1),
        dead: [const { AtomicBool::new(false) }; 64],
    };
    let players = [2 + random.below(2), 2 + random.below(2)];
    let entries = together(players, |number, is_producer| {
        let mut player = Player::new(&world, rules, number, seed);
        for _ in 0..3 + player.random.below(4) {
            player.turn(is_producer);
        }
        player.log.entries
    });
    let mut last = Player::new(&world, rules, 100, seed);
    last.finish();
    history(capacity, &entries.into_iter().chain(last.log.entries).collect::<Vec<_>>())
}

/// The same, without deaths, through senders and receivers. A batch that is no longer than the queue is received with one
/// step; one that is sent takes as many steps as it needs, and is not tried here.
pub(crate) fn handles(seed: u64) -> History {
    let mut random = Random::new(seed);
    let capacity = 1 + random.below(3);
    let (sender, receiver) = ipc_queue::bounded_plain::<u64>(capacity).expect("a queue");
    let clock = AtomicU64::new(0);
    let players = [2 + random.below(2), 2 + random.below(2)];
    let entries = together(players, |number, is_producer| {
        let (sender, receiver) = (sender.clone(), receiver.clone());
        let mut random = Random::new(seed << 8 | number);
        let mut log = Log { clock: &clock, entries: Vec::new() };
        for i in 0..3 + random.below(4) as u64 {
            random.dawdle();
            match is_producer {
                true => send(&mut log, &sender, number * 1000 + i),
                false => receive(&mut log, &receiver, 1 + random.below(capacity as u64)),
            }
        }
        log.entries
    });
    let mut last = Log { clock: &clock, entries: Vec::new() };
    (0..=capacity).for_each(|_| receive(&mut last, &receiver, 1));
    (0..=capacity as u64).for_each(|i| send(&mut last, &sender, 100_000 + i));
    history(capacity, &entries.into_iter().chain(last.entries).collect::<Vec<_>>())
}

fn send(log: &mut Log<'_>, sender: &PlainSender<u64>, first: u64) {
    log.enter(1, Call::Push { first, count: 1 }, || match sender.try_send(first) {
        Ok(()) => Some(Answer::Pushed(1)),
        Err(error) if error.is_full() => Some(Answer::NothingOrHeld),
        Err(error) => panic!("{error}"),
    });
}

fn receive(log: &mut Log<'_>, receiver: &PlainReceiver<u64>, max: usize) {
    log.enter(1, Call::Pop { max }, || {
        let received = match max {
            1 => receiver.try_recv().map(|message| vec![message]),
            _ => Ok(receiver.try_recv_batch(max).expect("there are senders")),
        };
        match received {
            Ok(received) if received.is_empty() => Some(Answer::NothingOrHeld),
            Ok(received) => Some(Answer::Popped(received)),
            Err(error) if error.is_empty() => Some(Answer::NothingOrHeld),
            Err(error) => panic!("{error}"),
        }
    });
}

/// Runs so many producers and so many consumers at once; each gets its number, and whether it is a producer.
fn together(players: [usize; 2], play: impl Fn(u64, bool) -> Vec<Entry> + Sync) -> Vec<Entry> {
    let start = Barrier::new(players.iter().sum());
    std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=players.iter().sum::<usize>() as u64)
            .map(|number| {
                let (start, play) = (&start, &play);
                scope.spawn(move || {
                    start.wait();
                    play(number, number <= players[0] as u64)
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    })
}
