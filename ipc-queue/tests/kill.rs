//! Processes die at random moments, and the books still balance.
//!
//! Each run sends 100,000 messages from three producer processes to three consumer processes, while this process
//! kills one of them now and then, at random, and starts another in its place. Every process keeps a *log* in
//! memory that outlives it: a producer the number of its messages whose send has returned, a consumer each message
//! that it received. What can escape a log is the one call during which its process died. So at the end, with each
//! process that ever ran (an *incarnation*) counted for itself:
//!
//! * published = consumed + missing + residual, and at most one message is missing for each consumer killed
//!   (residual is what this process finds in the end; in every other run it kills all consumers for that);
//! * nothing is torn (messages carry a checksum), nothing arrives twice;
//! * no consumer sees the messages of an incarnation out of order.
//!
//! `KILLS` and `KILL_MESSAGES` set how many processes are killed and how many messages are published in all runs
//! together, at least (default 100 and 1,000,000: about 10 runs), `KILL_SEED` the choice of victims and moments.
#![allow(unsafe_code, reason = "logs lie in memory shared with processes that are killed")]

mod common;

use common::{Peer, child as child_of_test, was_killed, watchdog_after};
use ipc_queue::{PlainReceiver, PlainSender, RecvError, bounded_plain};
use memmap2::{MmapOptions, MmapRaw};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use shm_core::handle::{send_descriptor, take_descriptor};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const PRODUCERS: usize = 3;
const CONSUMERS: usize = 3;
/// Messages of each run, all producers together.
const MESSAGES: u64 = 100_000;
/// One of these in each run: much sleeping, some, little.
const CAPACITIES: [usize; 3] = [3, 16, 256];
/// Kills of each run.
const KILLS: usize = 12;
/// A producer sends so many at once every now and then.
const BATCH: u64 = 5;
/// Nothing at all happens for so long: the queue is wedged.
const STANDSTILL: Duration = Duration::from_secs(30);

/// Incarnation, number, filler, checksum. Big enough that many deaths fall into the copying.
type Message = [u64; 32];

fn message(incarnation: u64, number: u64) -> Message {
    let mut message = [incarnation << 32 | number; 32];
    for (i, word) in (0..).zip(&mut message[2..]) {
        *word = word.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(i);
    }
    message[0] = incarnation;
    message[1] = number;
    message
}

fn is_whole(received: &Message) -> bool {
    *received == message(received[0], received[1])
}

/// A list of numbers that one process writes and another reads, even after the writer's death.
///
/// The file is mapped by both. Word 0 is the length; what counts is stored before it.
struct Log {
    file: File,
    map: MmapRaw,
}

impl Log {
    /// An empty log with room for all messages of a run. Memory is taken as it is written.
    fn new() -> Self {
        let file = rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::CLOEXEC).expect("memory");
        let file = File::from(file);
        // Besides the run's messages: one for each killed producer's call that did not return.
        file.set_len((MESSAGES + 1000) * 8).expect("memory");
        Self::map(file)
    }

    fn map(file: File) -> Self {
        let map = MmapOptions::new().map_raw(&file).expect("mapped");
        Self { file, map }
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        assert!((index + 1) * 8 <= self.map.len(), "the log is full");
        // SAFETY: inside the page-aligned mapping, which `self` keeps; every access is atomic.
        unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().cast::<u64>().add(index)) }
    }

    fn len(&self) -> u64 {
        self.word(0).load(Ordering::Acquire)
    }

    fn set_len(&self, len: u64) {
        self.word(0).store(len, Ordering::Release);
    }

    fn push(&self, entry: u64) {
        let len = self.len() + 1;
        self.word(usize::try_from(len).expect("small")).store(entry, Ordering::Relaxed);
        self.set_len(len);
    }

    fn entries(&self) -> impl Iterator<Item = u64> {
        let len = usize::try_from(self.len()).expect("small");
        (1..=len).map(|index| self.word(index).load(Ordering::Relaxed))
    }
}

impl Serialize for Log {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let file = self.file.as_fd().try_clone_to_owned().map_err(ser::Error::custom)?;
        send_descriptor(file).map_err(ser::Error::custom)?.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Log {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let file = take_descriptor(u32::deserialize(deserializer)?).map_err(de::Error::custom)?;
        Ok(Self::map(file.into()))
    }
}

/// In a consumer's log instead of a message that was torn.
const TORN: u64 = u64::MAX;

#[derive(Serialize, Deserialize)]
enum Orders {
    Produce {
        sender: PlainSender<Message>,
        incarnation: u64,
        count: u64,
        /// Its length is the number of messages whose send has returned.
        log: Log,
    },
    Consume {
        receiver: PlainReceiver<Message>,
        /// Each message as incarnation and number.
        log: Log,
    },
}

#[test]
fn child() {
    // The killer should not have to queue for a processor behind its victims.
    child_of_test(|orders, _| {
        rustix::process::nice(19).expect("a process may step back");
        match orders {
            Orders::Produce { sender, incarnation, count, log } => produce(&sender, incarnation, count, &log),
            Orders::Consume { receiver, log } => consume(&receiver, &log),
        }
    });
}

fn produce(sender: &PlainSender<Message>, incarnation: u64, count: u64, log: &Log) {
    let mut sent = 0;
    while sent < count {
        let step = if sent % 8 == 0 { BATCH.min(count - sent) } else { 1 };
        if step == 1 {
            sender.send(message(incarnation, sent)).expect("sent");
        } else {
            let batch: Vec<_> = (sent..sent + step).map(|number| message(incarnation, number)).collect();
            sender.send_batch(batch).expect("sent");
        }
        sent += step;
        log.set_len(sent);
    }
}

fn consume(receiver: &PlainReceiver<Message>, log: &Log) {
    loop {
        match receiver.recv() {
            Ok(received) => log.push(entry(&received)),
            Err(RecvError::Disconnected) => return,
            Err(error) => panic!("{error}"),
        }
    }
}

fn entry(received: &Message) -> u64 {
    match is_whole(received) {
        true => received[0] << 32 | received[1],
        false => TORN,
    }
}

/// What one run, or all of them, came to.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    producers_killed: u64,
    consumers_killed: u64,
    published: u64,
    consumed: u64,
    residual: u64,
    missing: u64,
    torn: u64,
    twice: u64,
    out_of_order: u64,
}

impl Tally {
    fn add(&mut self, run: &Self) {
        self.producers_killed += run.producers_killed;
        self.consumers_killed += run.consumers_killed;
        self.published += run.published;
        self.consumed += run.consumed;
        self.residual += run.residual;
        self.missing += run.missing;
        self.torn += run.torn;
        self.twice += run.twice;
        self.out_of_order += run.out_of_order;
    }

    fn killed(&self) -> u64 {
        self.producers_killed + self.consumers_killed
    }

    #[track_caller]
    fn check(&self) {
        assert_eq!(self.published, self.consumed + self.missing + self.residual, "{self:?}");
        assert!(self.missing <= self.consumers_killed, "{self:?}");
        assert_eq!((self.torn, self.twice, self.out_of_order), (0, 0, 0), "{self:?}");
    }
}

/// A small generator of numbers that look random (xorshift64*).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % limit
    }
}

/// A process that takes part, and its log. The process is gone once it has ended.
struct Member {
    peer: Option<Peer>,
    log: Log,
    job: Job,
}

#[derive(Clone, Copy)]
enum Job {
    Produces { place: usize, count: u64 },
    Consumes,
}

impl Job {
    fn produces(self) -> bool {
        matches!(self, Self::Produces { .. })
    }
}

impl Member {
    /// Kills the member. Returns 1, or 0 if it had ended by itself.
    fn kill(&mut self) -> u64 {
        let Some(peer) = self.peer.take() else { return 0 };
        let status = peer.kill();
        assert!(was_killed(status) || status.success(), "a child fails: {status}");
        u64::from(was_killed(status))
    }
}

/// One run in progress.
struct Run {
    sender: Option<PlainSender<Message>>,
    receiver: PlainReceiver<Message>,
    /// Everybody who ever took part; the index is the incarnation.
    members: Vec<Member>,
    /// What each producer's place has still to send.
    left: [u64; PRODUCERS],
    tally: Tally,
}

impl Run {
    fn start(capacity: usize) -> Self {
        let (sender, receiver) = bounded_plain(capacity).expect("a queue");
        let mut run = Self {
            sender: Some(sender),
            receiver,
            members: Vec::new(),
            left: [MESSAGES / PRODUCERS as u64; PRODUCERS],
            tally: Tally::default(),
        };
        run.left[0] += MESSAGES % PRODUCERS as u64;
        (0..PRODUCERS).for_each(|place| run.add_producer(place));
        (0..CONSUMERS).for_each(|_| run.add_consumer());
        run
    }

    fn add_producer(&mut self, place: usize) {
        let count = self.left[place];
        let Some(sender) = self.sender.clone().filter(|_| count > 0) else {
            return;
        };
        let log = Log::new();
        let orders = Orders::Produce {
            sender,
            incarnation: self.members.len() as u64,
            count,
            log: Log::map(log.file.try_clone().expect("a descriptor")),
        };
        self.add(&orders, log, Job::Produces { place, count });
    }

    fn add_consumer(&mut self) {
        let log = Log::new();
        let orders = Orders::Consume {
            receiver: self.receiver.clone(),
            log: Log::map(log.file.try_clone().expect("a descriptor")),
        };
        self.add(&orders, log, Job::Consumes);
    }

    fn add(&mut self, orders: &Orders, log: Log, job: Job) {
        let peer = Some(Peer::start(orders, None));
        self.members.push(Member { peer, log, job });
    }

    /// Messages whose send has returned.
    fn published(&self) -> u64 {
        let producers = self.members.iter().filter(|m| m.job.produces());
        producers.map(|member| member.log.len()).sum()
    }

    /// Messages that were received.
    fn consumed(&self) -> u64 {
        let consumers = self.members.iter().filter(|m| !m.job.produces());
        consumers.map(|member| member.log.len()).sum()
    }

    /// Waits for a condition, as long as messages flow.
    fn until(&mut self, mut condition: impl FnMut(&mut Self) -> bool) {
        let mut seen = (0, 0);
        let mut moved = Instant::now();
        while !condition(self) {
            let now = (self.published(), self.consumed());
            if now != seen {
                (seen, moved) = (now, Instant::now());
            }
            assert!(
                moved.elapsed() < STANDSTILL,
                "wedged after {} published and {} consumed: {:?}",
                now.0,
                now.1,
                self.tally
            );
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Kills a random member and starts another in its place.
    fn kill_one(&mut self, dice: &mut Dice) {
        let wants_producer = dice.below(2) == 0;
        let draw = usize::try_from(dice.below(1000)).expect("small");
        let alive = |member: &&mut Member| member.peer.is_some();
        let mut victims: Vec<_> = self.members.iter_mut().filter(alive).collect();
        if victims.iter().any(|member| member.job.produces() == wants_producer) {
            victims.retain(|member| member.job.produces() == wants_producer);
        }
        let chosen = draw % victims.len().max(1);
        let Some(victim) = victims.into_iter().nth(chosen) else {
            return;
        };
        let job = victim.job;
        let was_killed = victim.kill();
        match job {
            Job::Produces { place, count } => {
                self.tally.producers_killed += was_killed;
                self.left[place] = count - victim.log.len();
                self.add_producer(place);
            }
            Job::Consumes => {
                self.tally.consumers_killed += was_killed;
                self.add_consumer();
            }
        }
    }

    /// Reaps members that have ended by themselves. Returns whether none of these is left.
    fn reap(&mut self, which: fn(Job) -> bool) -> bool {
        let mut none_left = true;
        for member in self.members.iter_mut().filter(|member| which(member.job)) {
            match member.peer.as_mut().map(Peer::has_ended) {
                Some(true) => {
                    let status = member.peer.take().expect("just seen").wait();
                    assert!(status.success(), "a child fails: {status}");
                }
                Some(false) => none_left = false,
                None => {}
            }
        }
        none_left
    }

    /// Kills all consumers for good: this process becomes the only one.
    fn kill_consumers(&mut self) {
        for consumer in self.members.iter_mut().filter(|m| !m.job.produces()) {
            self.tally.consumers_killed += consumer.kill();
        }
    }

    /// Lets everybody finish, and balances the books.
    fn finish(mut self) -> Tally {
        if self.members.iter().any(|m| !m.job.produces() && m.peer.is_some()) {
            self.until(|run| run.reap(|job| job.produces()));
        }
        self.sender = None;
        self.until(|run| run.reap(|job| !job.produces()));
        let rest: Vec<u64> = std::iter::from_fn(|| match self.receiver.recv() {
            Ok(received) => Some(entry(&received)),
            Err(RecvError::Disconnected) => None,
            Err(error) => panic!("{error}"),
        })
        .collect();
        self.until(|run| run.reap(|job| job.produces()));
        let consumed = self.consumed();
        self.tally.residual = rest.len() as u64;
        let mut tally = self.tally;

        // How often each message of an incarnation arrived.
        let mut arrivals: BTreeMap<u64, BTreeMap<u64, u64>> = BTreeMap::new();
        let consumers = self.members.iter().filter(|m| !m.job.produces());
        let logs = consumers.map(|member| member.log.entries().collect());
        for log in logs.chain([rest]) {
            let log: Vec<u64> = log;
            let mut last = BTreeMap::new();
            for entry in log {
                if entry == TORN {
                    tally.torn += 1;
                    continue;
                }
                let (incarnation, number) = (entry >> 32, entry & 0xffff_ffff);
                let before = last.insert(incarnation, number);
                tally.out_of_order += u64::from(before >= Some(number));
                *arrivals.entry(incarnation).or_default().entry(number).or_default() += 1;
            }
        }
        for (incarnation, member) in (0..).zip(&self.members) {
            if let Job::Produces { count, .. } = member.job {
                let arrived = arrivals.remove(&incarnation).unwrap_or_default();
                tally.enter_producer(count, member.log.len(), &arrived);
            }
        }
        assert!(arrivals.is_empty(), "messages of nobody: {arrivals:?}");
        tally.consumed = consumed;
        tally
    }
}

impl Tally {
    /// One producer: `returned` of its sends have returned, and messages arrived so often.
    fn enter_producer(&mut self, count: u64, returned: u64, arrived: &BTreeMap<u64, u64>) {
        self.twice += arrived.values().map(|times| times - 1).sum::<u64>();
        // It may have died after its last message was published and before the send returned.
        let published = arrived.keys().next_back().map_or(0, |last| last + 1).max(returned);
        assert!(published <= count.min(returned + BATCH), "more arrives than was sent");
        self.published += published;
        self.missing += published - arrived.len() as u64;
    }
}

fn number_from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn published_is_consumed_plus_missing_plus_residual_whoever_is_killed() {
    let (kills, messages) = (number_from_env("KILLS", 100), number_from_env("KILL_MESSAGES", 1_000_000));
    let seed = number_from_env("KILL_SEED", 1);
    let mut all = Tally::default();
    let start = Instant::now();
    let mut run = 0;
    while all.killed() < kills || all.published < messages {
        let _dog = watchdog_after(Duration::from_secs(120));
        let mut dice = Dice((seed << 32 | run).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let mut moments: Vec<u64> = (0..KILLS).map(|_| dice.below(MESSAGES)).collect();
        moments.sort_unstable();
        let capacity = CAPACITIES[usize::try_from(dice.below(3)).expect("small")];
        let mut flow = Run::start(capacity);
        for moment in moments {
            flow.until(|run| run.published() >= moment);
            flow.kill_one(&mut dice);
        }
        if run % 2 == 1 {
            flow.kill_consumers();
        }
        let tally = flow.finish();
        println!("run {run}, {capacity} slots: {tally:?}");
        tally.check();
        all.add(&tally);
        run += 1;
    }
    println!("{run} runs, {} killed in {:.1} s: {all:?}", all.killed(), start.elapsed().as_secs_f64());
}
