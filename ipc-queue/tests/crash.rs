//! A process dies at each named crash point, and the survivors finish.
//!
//! For every crash point in the sources a *victim* is sent there and dies by SIGKILL. Some points are reached only
//! where somebody has died before: then a *forerunner* leaves a claim behind. Afterwards a living child and this
//! process use the queue as if nothing had happened, and the books must balance:
//!
//! * every send of the victim that returned arrives, unless a dead consumer had it in hand;
//! * the send (or batch) that did not return arrives whole or not at all;
//! * nothing arrives twice, torn, or out of order;
//! * every slot is usable again, and the dead hold no side of the queue open.
#![cfg(all(feature = "crash-points", not(loom)))]
#![allow(unsafe_code, reason = "holds a lock as a sweeper does")]

mod common;

use common::{Peer, Reporter, child as child_of_test, was_killed, watchdog};
use ipc_queue::{Receiver, RecvError, Sender, TryRecvError, TrySendError, bounded, builder};
use serde::{Deserialize, Serialize};
use shm_core::handle::SendSession;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

/// One message: whose, and which one of his. The rest is there to be torn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Message {
    from: u8,
    number: u32,
    copies: [u32; 8],
    padding: Padding,
}

/// So many bytes, for messages that do not fit a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Padding(usize);

impl Serialize for Padding {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&vec![7; self.0])
    }
}

impl<'de> Deserialize<'de> for Padding {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = <&[u8]>::deserialize(deserializer)?;
        assert!(bytes.iter().all(|byte| *byte == 7), "a torn message");
        Ok(Self(bytes.len()))
    }
}

/// Three chunks.
const LARGE: usize = 150_000;
/// More than may lie idle.
const HUGE: usize = 17 << 20;

const PARENT: u8 = 0;
const FORERUNNER: u8 = 1;
const VICTIM: u8 = 2;
const SURVIVOR: u8 = 3;

impl Message {
    fn new(from: u8, number: u32) -> Self {
        Self::padded(from, number, 0)
    }

    fn padded(from: u8, number: u32, padding: usize) -> Self {
        Self { from, number, copies: [number; 8], padding: Padding(padding) }
    }

    /// Who sent it, and which one it is; after checking that it is whole.
    #[track_caller]
    fn checked(self) -> (u8, u32) {
        assert_eq!(self.copies, [self.number; 8], "a torn message of sender {}", self.from);
        (self.from, self.number)
    }
}

/// What a child does. It reports the number of each send that returned, and each message that it received.
#[derive(Serialize, Deserialize)]
enum Orders {
    Send { from: u8, padding: usize, count: u32, batch: u32, sender: Sender<Message> },
    Receive { count: usize, batch: usize, receiver: Receiver<Message> },
}

#[test]
fn child() {
    child_of_test(|orders, reporter| match orders {
        Orders::Send { from, padding, count, batch, sender } => {
            send_all(&sender, (from, padding), count, batch, reporter);
        }
        Orders::Receive { count, batch, receiver } => receive_all(&receiver, count, batch, reporter),
    });
}

fn send_all(
    sender: &Sender<Message>,
    (from, padding): (u8, usize),
    count: u32,
    batch: u32,
    reporter: &Reporter,
) {
    let mut next = 0;
    while next < count {
        let numbers = next..count.min(next + batch);
        next = numbers.end;
        match batch {
            1 => sender.send(Message::padded(from, numbers.start, padding)).expect("sent"),
            _ => {
                let messages: Vec<_> = numbers.clone().map(|n| Message::padded(from, n, padding)).collect();
                sender.send_batch(messages).expect("sent");
            }
        }
        numbers.for_each(|number| reporter.report(&number));
    }
}

fn receive_all(receiver: &Receiver<Message>, count: usize, batch: usize, reporter: &Reporter) {
    let mut received = 0;
    while received < count {
        let messages = match batch {
            1 => vec![receiver.recv().expect("a message")],
            _ => receiver.recv_batch(batch.min(count - received)).expect("messages"),
        };
        received += messages.len();
        // A report has little room; what was padding has been checked.
        let short = |message: &Message| Message { padding: Padding(0), ..*message };
        messages.iter().for_each(|message| reporter.report(&short(message)));
    }
}

/// How a child uses the queue before it dies.
#[derive(Clone, Copy, Debug)]
enum Part {
    /// Sends so many messages, so many at once.
    Sends { count: u32, batch: u32 },
    /// Receives so many messages, so many at once.
    Receives { count: usize, batch: usize },
}

/// How somebody dies.
#[derive(Clone, Copy, Debug)]
struct Death<'a> {
    part: Part,
    crash_point: &'a str,
    /// At which passage.
    passage: u32,
}

/// What happens before the survivors take over.
#[derive(Clone, Copy, Debug)]
struct Scenario<'a> {
    capacity: usize,
    /// Of every message.
    padding: usize,
    /// Messages that this process has queued before.
    queued: u32,
    forerunner: Option<Death<'a>>,
    victim: Death<'a>,
}

const ONE_BY_ONE: Part = Part::Sends { count: 6, batch: 1 };
const IN_BATCHES: Part = Part::Sends { count: 9, batch: 4 };
const TAKES_ONE_BY_ONE: Part = Part::Receives { count: 6, batch: 1 };
const TAKES_BATCHES: Part = Part::Receives { count: 6, batch: 3 };

fn at(part: Part, crash_point: &str, passage: u32) -> Death<'_> {
    Death { part, crash_point, passage }
}

/// The ways in which a victim gets to a crash point; none for a point that nobody thought of.
fn scenarios(point: &str) -> Vec<Scenario<'_>> {
    // A producer with room for all it sends; a consumer with enough to take.
    let producer = |part, passage| Scenario {
        capacity: 16,
        padding: 0,
        queued: 0,
        forerunner: None,
        victim: at(part, point, passage),
    };
    let consumer = |part, passage| Scenario {
        capacity: 8,
        padding: 0,
        queued: 8,
        forerunner: None,
        victim: at(part, point, passage),
    };
    // A dead producer's unfinished batch in front of a consumer, or around the whole ring in front of a producer.
    let unfinished = at(IN_BATCHES, "ring.push.written", 1);
    let after_death = |capacity, part| Scenario {
        capacity,
        padding: 0,
        queued: 0,
        forerunner: Some(unfinished),
        victim: at(part, point, 1),
    };
    let consumer_after_death = |part| after_death(8, part);
    let producer_after_death = |part| after_death(4, part);
    // A dead consumer's batch in front of a producer.
    let producer_after_dead_consumer = |part| Scenario {
        capacity: 3,
        padding: 0,
        queued: 3,
        forerunner: Some(at(TAKES_BATCHES, "ring.pop.read", 1)),
        victim: at(part, point, 1),
    };
    // Messages in chunks; each is a step of its own.
    let large = |scenario| Scenario { padding: LARGE, ..scenario };
    let lost_before = Some(at(ONE_BY_ONE, "chunks.tail_claimed", 2));
    let lost_queued = Some(at(ONE_BY_ONE, "ring.push.written", 1));
    let lost_taken = Some(at(TAKES_ONE_BY_ONE, "ring.pop.read", 1));
    let lost_untaken = Some(at(TAKES_ONE_BY_ONE, "ring.pop.claimed", 1));
    let mut scenarios = match point {
        "ring.push.before_claim" | "ring.push.claimed" | "ring.push.written" | "ring.push.published" => {
            vec![producer(ONE_BY_ONE, 1), producer(ONE_BY_ONE, 4), producer(IN_BATCHES, 2)]
        }
        "ring.push.published_interior" => {
            vec![producer(IN_BATCHES, 1), producer(IN_BATCHES, 3), producer(IN_BATCHES, 5)]
        }
        "ring.pop.before_claim" | "ring.pop.claimed" | "ring.pop.read" | "ring.pop.released" => {
            vec![consumer(TAKES_ONE_BY_ONE, 1), consumer(TAKES_ONE_BY_ONE, 4), consumer(TAKES_BATCHES, 2)]
        }
        "ring.pop.freed_interior" => {
            vec![consumer(TAKES_BATCHES, 1), consumer(TAKES_BATCHES, 2), consumer(TAKES_BATCHES, 3)]
        }
        "ring.pop.freed_tomb" => {
            vec![consumer_after_death(TAKES_ONE_BY_ONE), consumer_after_death(TAKES_BATCHES)]
        }
        "ring.push.freed_tomb" => vec![producer_after_death(ONE_BY_ONE), producer_after_death(IN_BATCHES)],
        "ring.recover.started"
        | "ring.recover.interior"
        | "ring.recover.header"
        | "queue.sweep.recovered"
        | "queue.sweep.uncounted"
        | "segment.sweep.locked"
        | "segment.sweep.cleaned" => vec![
            consumer_after_death(TAKES_ONE_BY_ONE),
            consumer_after_death(TAKES_BATCHES),
            producer_after_death(IN_BATCHES),
            producer_after_dead_consumer(ONE_BY_ONE),
            producer_after_dead_consumer(IN_BATCHES),
        ],
        "segment.attach.locked" | "segment.attach.entered" | "segment.detach.freed" => {
            vec![producer(ONE_BY_ONE, 1), consumer(TAKES_ONE_BY_ONE, 1)]
        }
        "chunks.claimed" | "chunks.queued" | "queue.bulk.committed" => {
            vec![large(producer(ONE_BY_ONE, 1)), large(producer(ONE_BY_ONE, 4))]
        }
        "chunks.tail_claimed" => vec![large(producer(ONE_BY_ONE, 1)), large(producer(ONE_BY_ONE, 6))],
        "chunks.taken" => {
            vec![large(consumer(TAKES_ONE_BY_ONE, 1)), large(consumer(TAKES_BATCHES, 2))]
        }
        "chunks.tail_freed" | "chunks.freed" => vec![
            large(consumer(TAKES_ONE_BY_ONE, 1)),
            large(consumer(TAKES_ONE_BY_ONE, 4)),
            large(consumer(TAKES_BATCHES, 2)),
        ],
        "queue.bulk.trimming" => {
            vec![Scenario { padding: HUGE, capacity: 1, queued: 1, ..consumer(TAKES_ONE_BY_ONE, 1) }]
        }
        "queue.sweep.chunks" => vec![
            consumer_after_death(TAKES_ONE_BY_ONE),
            producer_after_dead_consumer(ONE_BY_ONE),
            Scenario { forerunner: lost_queued, ..large(consumer_after_death(TAKES_ONE_BY_ONE)) },
            Scenario { forerunner: lost_untaken, ..large(producer_after_dead_consumer(ONE_BY_ONE)) },
            Scenario { forerunner: lost_taken, ..large(producer_after_dead_consumer(ONE_BY_ONE)) },
            Scenario { forerunner: lost_before, capacity: 1, ..large(producer_after_death(ONE_BY_ONE)) },
        ],
        _ => Vec::new(),
    };
    if ["ring.push.claimed", "ring.push.written", "ring.push.published"].contains(&point) {
        scenarios.extend([large(producer(ONE_BY_ONE, 1)), large(producer(ONE_BY_ONE, 4))]);
    }
    if ["ring.pop.claimed", "ring.pop.read", "ring.pop.released"].contains(&point) {
        scenarios.extend([large(consumer(TAKES_ONE_BY_ONE, 1)), large(consumer(TAKES_BATCHES, 2))]);
    }
    scenarios
}

/// What is known about the messages of a scenario.
#[derive(Debug, Default)]
struct Books {
    /// Sends that returned.
    sent: BTreeSet<(u8, u32)>,
    received: BTreeSet<(u8, u32)>,
    /// Messages that dead consumers may have had in hand.
    may_be_lost: usize,
}

impl Books {
    /// Enters what one receiver got, in the order in which it did.
    #[track_caller]
    fn enter(&mut self, messages: &[Message]) {
        let mut last = [None; 4];
        for message in messages {
            let (from, number) = message.checked();
            let last = &mut last[usize::from(from)];
            assert!(*last < Some(number), "{message:?} comes after number {last:?}");
            *last = Some(number);
            assert!(self.received.insert((from, number)), "{message:?} comes twice");
        }
    }

    #[track_caller]
    fn enter_dead(&mut self, from: u8, death: Death<'_>, peer: Peer) {
        match death.part {
            Part::Sends { .. } => {
                let numbers: Vec<u32> = peer.reports();
                self.sent.extend(numbers.into_iter().map(|number| (from, number)));
            }
            Part::Receives { batch, .. } => {
                self.enter(&peer.reports::<Message>());
                self.may_be_lost += batch;
            }
        }
        assert!(was_killed(peer.wait()), "the child does not die at {}", death.crash_point);
    }

    /// All that was sent has arrived, except what dead consumers took with them; an unfinished send of `from` has
    /// arrived whole or not at all.
    #[track_caller]
    fn balance(&self, from: u8, death: Option<Death<'_>>) {
        let Some(Death { part: Part::Sends { batch, count }, .. }) = death else {
            return;
        };
        let of = |set: &BTreeSet<(u8, u32)>| set.iter().filter(|(sender, _)| *sender == from).count();
        // Whatever is there beyond the acknowledged is the one unfinished batch.
        let acknowledged = u32::try_from(of(&self.sent)).expect("few");
        let batch = batch.min(count - acknowledged);
        let unfinished: BTreeSet<_> = (acknowledged..acknowledged + batch).map(|n| (from, n)).collect();
        let arrived = self.received.intersection(&unfinished).count();
        assert!(
            arrived == 0 || arrived == unfinished.len(),
            "part of an unfinished batch arrives: {:?}",
            self.received
        );
        let known =
            of(&self.received) - self.received.intersection(&self.sent).filter(|m| m.0 == from).count();
        assert_eq!(known, arrived, "a message arrives that nobody sent");
    }
}

const SURVIVORS_MESSAGES: u32 = 20;

impl Scenario<'_> {
    fn play(&self) {
        println!("{self:?}");
        let chunk = 65_536;
        // Exactly what so many messages need: the end shows whether some is lost.
        let budget = self.capacity * (self.padding + 100).div_ceil(chunk) * chunk;
        let queue = builder::<Message>().capacity(self.capacity).byte_budget(budget).build();
        let (sender, receiver) = queue.expect("a queue");
        let new = |number| Message::padded(PARENT, number, self.padding);
        let mut books = Books::default();
        // Some laps first, so that laps and slot numbers differ from the start.
        for number in 0..self.capacity * 2 + 1 {
            let number = u32::try_from(number).expect("few");
            sender.send(new(number)).expect("sent");
            assert_eq!(receiver.recv().expect("a message").number, number);
        }
        for number in 0..self.queued {
            sender.send(new(number)).expect("sent");
            books.sent.insert((PARENT, number));
        }
        for (from, death) in [(FORERUNNER, self.forerunner), (VICTIM, Some(self.victim))] {
            if let Some(death) = death {
                let point = format!("{}:{}", death.crash_point, death.passage);
                let peer =
                    Peer::start(&death.part.orders((from, self.padding), &sender, &receiver), Some(&point));
                books.enter_dead(from, death, peer);
            }
        }

        let survivor = Part::Sends { count: SURVIVORS_MESSAGES, batch: 3 };
        let peer = Peer::start(&survivor.orders((SURVIVOR, self.padding), &sender, &receiver), None);
        let last = (SURVIVOR, SURVIVORS_MESSAGES - 1);
        let mut messages = Vec::new();
        while messages.last().copied().map(Message::checked) != Some(last) {
            messages.push(receiver.recv().expect("a message"));
        }
        books.enter(&messages);
        books.sent.extend((0..SURVIVORS_MESSAGES).map(|number| (SURVIVOR, number)));
        assert_eq!(peer.reports::<u32>().len(), SURVIVORS_MESSAGES as usize);
        assert!(peer.wait().success());

        let missing = books.sent.difference(&books.received).count();
        assert!(missing <= books.may_be_lost, "{missing} messages are missing: {books:?}");
        books.balance(FORERUNNER, self.forerunner);
        books.balance(VICTIM, Some(self.victim));
        self.assert_all_slots_are_usable(&sender, &receiver);
        drop(sender);
        assert!(matches!(receiver.recv(), Err(RecvError::Disconnected)), "the dead hold no end open");
    }

    fn assert_all_slots_are_usable(&self, sender: &Sender<Message>, receiver: &Receiver<Message>) {
        if self.padding > 0 {
            // One that needs every chunk.
            let all = Message::padded(PARENT, 0, sender.max_message_len() - 100);
            sender.try_send(all).expect("no chunk is lost");
            assert_eq!(receiver.try_recv().ok(), Some(all));
        }
        let message =
            |number: usize| Message::padded(PARENT, u32::try_from(number).expect("few"), self.padding);
        for number in 0..self.capacity {
            let sent = sender.try_send(message(number));
            assert!(sent.is_ok(), "no room for number {number}: {sent:?}");
        }
        assert!(matches!(sender.try_send(message(0)), Err(TrySendError::Full(_))));
        for number in 0..self.capacity {
            assert_eq!(receiver.try_recv().ok(), Some(message(number)));
        }
        assert!(matches!(receiver.try_recv(), Err(TryRecvError::Empty)));
    }
}

impl Part {
    fn orders(
        self,
        (from, padding): (u8, usize),
        sender: &Sender<Message>,
        receiver: &Receiver<Message>,
    ) -> Orders {
        match self {
            Self::Sends { count, batch } => {
                Orders::Send { from, padding, count, batch, sender: sender.clone() }
            }
            Self::Receives { count, batch } => Orders::Receive { count, batch, receiver: receiver.clone() },
        }
    }
}

/// Names of all crash points in the sources of this crate and of `shm-core`.
fn points_in_sources() -> BTreeSet<String> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut names = BTreeSet::new();
    let mut folders = vec![here.join("src"), here.join("../shm-core/src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("sources") {
            let path = entry.expect("sources").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("sources");
            let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            for call in lines.flat_map(|line| line.split("crash_point!(\"").skip(1)) {
                names.extend(call.split('"').next().map(str::to_owned));
            }
        }
    }
    names
}

#[test]
fn survivors_finish_after_a_death_at_every_point_of_the_ring() {
    let _dog = watchdog();
    for point in ipc_queue::ring::CRASH_POINTS {
        let scenarios = scenarios(point);
        assert!(!scenarios.is_empty(), "no way to get to {point}");
        scenarios.iter().for_each(Scenario::play);
    }
}

#[test]
fn survivors_finish_after_a_death_at_every_point_of_the_handles() {
    let _dog = watchdog();
    let ring: BTreeSet<&str> = ipc_queue::ring::CRASH_POINTS.iter().copied().collect();
    let all = points_in_sources();
    assert!(ring.iter().all(|point| all.contains(*point)), "the ring lists points that it has not");
    // Those of messages with handles are passed in `handles.rs`, those of `spsc` in `spsc_crash.rs`, those of leases in
    // `lease_crash.rs`, those of closing in `closing.rs`, the others in the tests of `shm-core`.
    let others = [
        "segment.inherit.",
        "broker.",
        "queue.parcel.",
        "queue.close.",
        "named.",
        "spsc.",
        "cells.",
        "queue.sweep.cells",
        // Of users' models only.
        "queue.wait",
    ];
    let elsewhere = |point: &&String| {
        ring.contains(point.as_str()) || others.iter().any(|prefix| point.starts_with(prefix))
    };
    for point in all.iter().filter(|point| !elsewhere(point)) {
        let scenarios = scenarios(point);
        assert!(!scenarios.is_empty(), "no way to get to {point}");
        scenarios.iter().for_each(Scenario::play);
    }
}

/// Starts a sender that dies with its first claim, and waits for its end.
fn die_with_a_claim(sender: &Sender<Message>) {
    let orders = Orders::Send { from: VICTIM, padding: 0, count: 1, batch: 1, sender: sender.clone() };
    let victim = Peer::start(&orders, Some("ring.push.claimed"));
    assert!(was_killed(victim.wait()));
}

/// Each message wakes the receiver, which cannot take it because of what the dead sender left in front. Unless it
/// looks around before it sleeps again, it never does: none of its sleeps lasts as long as a time slice.
#[test]
fn a_sleeping_receiver_gets_past_a_dead_claim_though_it_is_woken_all_the_time() {
    let _dog = watchdog();
    let capacity = 1024;
    let (tx, rx) = bounded(capacity).expect("a queue");
    let receiver = std::thread::spawn(move || rx.recv());
    die_with_a_claim(&tx);
    let mut sent = 0;
    while !receiver.is_finished() {
        assert!((sent as usize) < capacity - 1, "nothing received until the queue was full");
        tx.send(Message::new(PARENT, sent)).expect("sent");
        sent += 1;
        std::thread::park_timeout(Duration::from_millis(5));
    }
    let message = receiver.join().expect("no panic").expect("received");
    assert_eq!(message.checked(), (PARENT, 0));
}

/// A lock on the byte of a participant, as a sweep holds it while it cleans up.
struct SweepLock(#[expect(dead_code, reason = "its end is the lock's end")] File);

fn lock_operation(file: &File, participant: i64, operation: i32) -> libc::flock {
    // SAFETY: all zeroes are a valid `flock`.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = i16::try_from(libc::F_WRLCK).expect("small");
    lock.l_whence = i16::try_from(libc::SEEK_SET).expect("small");
    (lock.l_start, lock.l_len) = (participant, 1);
    // SAFETY: an open file and a live `flock` with `l_pid` 0.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), operation, &raw mut lock) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    lock
}

impl SweepLock {
    /// Takes the lock once the participant is dead; `before` runs when it is, and is not yet locked again.
    fn of(receiver: &Receiver<Message>, participant: i64, before: impl FnOnce()) -> Self {
        let session = SendSession::begin();
        postcard::to_stdvec(receiver).expect("in a session");
        let token = session.finish().pop().expect("the queue's memory");
        let path = format!("/proc/self/fd/{}", token.as_raw_fd());
        let file = File::options().read(true).write(true).open(path).expect("reopened");
        while i32::from(lock_operation(&file, participant, libc::F_OFD_GETLK).l_type) != libc::F_UNLCK {
            std::thread::yield_now();
        }
        before();
        lock_operation(&file, participant, libc::F_OFD_SETLK);
        Self(file)
    }
}

/// While somebody sweeps up after a dead sender it does not look dead, and its claim may have messages behind it.
#[test]
fn messages_behind_a_claim_that_is_being_swept_are_not_the_end() {
    let _dog = watchdog();
    let (tx, rx) = bounded(8).expect("a queue");
    die_with_a_claim(&tx);
    tx.send(Message::new(PARENT, 7)).expect("there is room");
    let lock = SweepLock::of(&rx, 2, || drop(tx));
    assert!(rx.try_recv().expect_err("in the sweeper's hands").is_empty());
    assert_eq!(rx.try_recv_batch(8).expect("in the sweeper's hands"), []);
    let short = Duration::from_millis(20);
    assert!(rx.recv_timeout(short).expect_err("in the sweeper's hands").is_timeout());
    drop(lock);
    assert_eq!(rx.recv().expect("received").checked(), (PARENT, 7));
    assert!(rx.recv().expect_err("nothing left").is_disconnected());
}
