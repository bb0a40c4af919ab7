//! Queues between real processes: handles that travel, sides that go, processes that die, stop or scribble.
#![cfg(not(loom))]
#![allow(unsafe_code, reason = "maps the queue's memory to scribble on it")]
#![allow(clippy::cast_possible_truncation, reason = "process ids, small indices, random bytes")]

mod common;

use common::{Peer, Reporter, child as child_of_test, was_killed, watchdog};
use ipc_queue::{
    PlainReceiver, PlainSender, Receiver, RecvTimeoutError, Sender, TryRecvError, TrySendError, bounded,
    bounded_plain, builder,
};
use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use shm_core::handle::{ReceiveSession, SendSession};
use std::time::{Duration, Instant};

/// What a child does.
#[derive(Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "one of them is made per child")]
enum Orders {
    /// Sends `from..from + count`, then reports 0 and waits for its end if it shall `stay`.
    Send {
        tx: Sender<u64>,
        from: u64,
        count: u64,
        stay: bool,
    },
    SendPlain {
        tx: PlainSender<[u64; 3]>,
        from: u64,
        count: u64,
    },
    /// Reports the sum of everything that comes.
    Sum(Receiver<u64>),
    /// Receives plain messages, reports how many of each of two senders, if each came in order.
    Sort(PlainReceiver<[u64; 3]>),
    /// Reports its process id, then receives until the end and reports the count.
    Count(Receiver<u64>),
    /// Holds a handle and does nothing; reports 0 first.
    Hold(Receiver<u64>),
    /// Drops the handle, reports 0 and stays.
    Let(Sender<u64>),
    /// Passes the handle on to a grandchild that sends 1, 2, 3; ends when it has ended.
    PassOn(Sender<u64>),
    /// Answers each message with its successor.
    Echo(PlainReceiver<u64>, PlainSender<u64>),
    /// Makes, moves and drops many queues; reports how many descriptors were open before and after.
    Churn,
    /// Blocks in `recv` for some time; reports microseconds waited and microseconds of processor time.
    Idle(Receiver<u64>, Duration),
}

#[test]
fn child() {
    child_of_test(obey);
}

fn obey(orders: Orders, reporter: &Reporter) {
    match orders {
        Orders::Send { tx, from, count, stay } => {
            (from..from + count).for_each(|i| tx.send(i).expect("sent"));
            if stay {
                reporter.report(&0_u64);
                loop {
                    std::thread::park();
                }
            }
        }
        Orders::SendPlain { tx, from, count } => {
            (0..count).for_each(|i| tx.send([from, i, from ^ i]).expect("sent"));
        }
        Orders::Sum(rx) => {
            let sum: u64 = rx.iter().map(|n| n.expect("received")).sum();
            reporter.report(&sum);
        }
        Orders::Sort(rx) => {
            let (mut next, mut count) = ([0, 0], [0_u64, 0]);
            for message in &rx {
                let [from, i, check] = message.expect("received");
                assert_eq!(check, from ^ i, "torn");
                assert!(i >= next[from as usize], "out of order");
                next[from as usize] = i + 1;
                count[from as usize] += 1;
            }
            reporter.report(&count);
        }
        Orders::Count(rx) => {
            reporter.report(&u64::from(std::process::id()));
            reporter.report(&(rx.iter().count() as u64));
        }
        Orders::Hold(_rx) => {
            reporter.report(&0_u64);
            loop {
                std::thread::park();
            }
        }
        Orders::Let(tx) => {
            drop(tx);
            reporter.report(&0_u64);
            loop {
                std::thread::park();
            }
        }
        Orders::PassOn(tx) => {
            let grandchild = send_from(tx, 1, 3, false);
            assert!(grandchild.wait().success());
        }
        Orders::Echo(rx, tx) => {
            for n in rx {
                tx.send(n.expect("received") + 1).expect("sent");
            }
        }
        Orders::Churn => {
            churn();
            let before = open_descriptors();
            (0..50).for_each(|_| churn());
            reporter.report(&(before, open_descriptors()));
        }
        Orders::Idle(rx, duration) => {
            let (start, before) = (Instant::now(), processor_time());
            assert!(matches!(rx.recv_timeout(duration), Err(RecvTimeoutError::Timeout)));
            let used = processor_time() - before;
            reporter.report(&(start.elapsed().as_micros() as u64, used.as_micros() as u64));
        }
    }
}

/// A queue whose sender travels, arrives and is dropped, and whose receiver travels and never arrives.
fn churn() {
    let (tx, rx) = bounded::<u64>(4).expect("a queue");
    let session = SendSession::begin();
    let bytes = postcard::to_stdvec(&(&tx, &rx)).expect("in a session");
    let receive = ReceiveSession::begin(session.finish());
    let (arrived, _): (Sender<u64>, _) = postcard::take_from_bytes(&bytes).expect("arrived");
    drop(receive);
    arrived.send(1).expect("sent");
    assert_eq!(rx.recv().expect("received"), 1);
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("readable").count()
}

fn processor_time() -> Duration {
    clock_gettime(ClockId::ProcessCPUTime).try_into().expect("a positive time")
}

fn send_from(tx: Sender<u64>, from: u64, count: u64, stay: bool) -> Peer {
    let orders = Orders::Send { tx, from, count, stay };
    Peer::start(&orders, None)
}

fn sum(rx: &Receiver<u64>) -> u64 {
    rx.iter().map(|n| n.expect("received")).sum()
}

#[test]
fn a_child_sends_and_its_end_is_the_end() {
    let _dog = watchdog();
    let (tx, rx) = bounded(4).expect("a queue");
    let peer = send_from(tx, 0, 1000, false);
    assert!(rx.iter().map(|n| n.expect("received")).eq(0..1000));
    assert!(peer.wait().success());
}

#[test]
fn a_child_receives_until_the_sender_is_dropped() {
    let _dog = watchdog();
    let (tx, rx) = bounded(4).expect("a queue");
    let peer = Peer::start(&Orders::Sum(rx), None);
    (0..1000).for_each(|i| tx.send(i).expect("sent"));
    drop(tx);
    assert_eq!(peer.report(), Some(499_500_u64));
}

#[test]
fn a_handle_in_the_orders_of_a_child_never_looks_like_a_disconnect() {
    let _dog = watchdog();
    for _ in 0..20 {
        let (tx, rx) = bounded(2).expect("a queue");
        let peer = Peer::start(&Orders::Sum(rx.clone()), None);
        drop(rx);
        // The child may not have started yet.
        (0..10).for_each(|i| tx.send(i).expect("the receiver is on its way"));
        drop(tx);
        assert_eq!(peer.report(), Some(45_u64));
    }
}

#[test]
fn a_receiver_learns_that_the_last_sender_was_killed() {
    let _dog = watchdog();
    let (tx, rx) = bounded(16).expect("a queue");
    let peer = send_from(tx, 0, 10, true);
    assert_eq!(peer.report(), Some(0_u64));
    let receiver = std::thread::spawn(move || rx.iter().map(|n| n.expect("received")).collect::<Vec<_>>());
    assert!(was_killed(peer.kill()));
    let got = receiver.join().expect("no panic");
    assert!(got.into_iter().eq(0..10), "what was sent outlives the sender");
}

#[test]
fn a_polling_receiver_learns_that_the_last_sender_was_killed() {
    let _dog = watchdog();
    let (tx, rx) = bounded::<u64>(16).expect("a queue");
    let peer = send_from(tx, 0, 0, true);
    assert_eq!(peer.report(), Some(0_u64));
    assert!(rx.try_recv().expect_err("nothing sent").is_empty());
    assert!(was_killed(peer.kill()));
    loop {
        match rx.try_recv() {
            Err(TryRecvError::Disconnected) => break,
            other => assert!(other.expect_err("nothing sent").is_empty()),
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_sender_learns_that_the_last_receiver_was_killed() {
    let _dog = watchdog();
    let (tx, rx) = bounded(16).expect("a queue");
    let peer = Peer::start(&Orders::Hold(rx), None);
    assert_eq!(peer.report(), Some(0_u64));
    (0..16).for_each(|i| tx.send(i).expect("there is room"));
    let sender = std::thread::spawn(move || tx.send(16));
    assert!(was_killed(peer.kill()));
    let error = sender.join().expect("no panic").expect_err("nobody there");
    assert!(error.is_disconnected());
    assert_eq!(error.into_inner(), 16);
}

#[test]
fn a_polling_sender_learns_that_the_last_receiver_was_killed() {
    let _dog = watchdog();
    let (tx, rx) = bounded(1).expect("a queue");
    let peer = Peer::start(&Orders::Hold(rx), None);
    assert_eq!(peer.report(), Some(0_u64));
    tx.send(0).expect("there is room");
    assert!(was_killed(peer.kill()));
    while !matches!(tx.try_send(1), Err(TrySendError::Disconnected(1))) {
        std::thread::yield_now();
    }
}

#[test]
fn a_sender_with_room_learns_that_the_last_receiver_was_killed() {
    let _dog = watchdog();
    let (tx, rx) = bounded(2048).expect("a queue");
    let peer = Peer::start(&Orders::Hold(rx), None);
    assert_eq!(peer.report(), Some(0_u64));
    assert!(was_killed(peer.kill()));
    // Slowly, because a sender with room asks the system once in a millisecond at most.
    let error = (0..2048)
        .find_map(|i| {
            std::thread::park_timeout(Duration::from_micros(200));
            tx.send(i).err()
        })
        .expect("noticed before the queue is full");
    assert!(error.is_disconnected());
}

/// Otherwise the next holder of the index would seem to hold what the dead one held.
#[test]
fn an_index_is_not_given_to_others_while_the_geometry_makes_no_sense() {
    let _dog = watchdog();
    let (tx, rx) = bounded::<u64>(8).expect("a queue");
    let session = SendSession::begin();
    postcard::to_stdvec(&rx).expect("in a session");
    let memory = session.finish().pop().expect("the queue's memory");
    let map = memmap2::MmapRaw::map_raw(&memory).expect("mapped");
    // The segment's header: magic, version, kind, layout. Behind its own pages: the capacity.
    // SAFETY: inside the mapping, aligned, and written before anybody could see the segment.
    let (kind, layout_hash) = unsafe {
        let header = map.as_ptr();
        (header.add(12).cast::<u32>().read(), header.add(16).cast::<u64>().read())
    };
    let spec =
        shm_core::segment::Spec { kind, layout_hash, body_len: 1, sweep: |_, _| false, arrived: |_| () };
    let segment = shm_core::segment::Segment::attach(std::os::fd::AsFd::as_fd(&memory), &spec)
        .expect("this process is attached already");
    let peer = send_from(tx.clone(), 0, 1, true);
    assert_eq!(peer.report(), Some(0_u64));
    assert!(was_killed(peer.kill()));
    let dead = 2;
    while !segment.is_dead(dead) {
        std::thread::yield_now();
    }
    // SAFETY: inside the mapping, aligned; the word is an atomic for everybody else.
    let capacity = unsafe { &*map.as_ptr().add(20480).cast::<std::sync::atomic::AtomicU64>() };
    capacity.store(0, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(segment.sweep(), 0);
    assert!(segment.is_attached(dead));
    capacity.store(8, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(segment.sweep(), 1);
    assert!(!segment.is_attached(dead));
    assert_eq!(rx.recv().expect("received"), 0);
}

#[test]
fn a_living_child_that_let_go_does_not_hold_its_side() {
    let _dog = watchdog();
    let (tx, rx) = bounded(1).expect("a queue");
    let peer = Peer::start(&Orders::Let(tx), None);
    assert!(rx.recv().expect_err("dropped in the child").is_disconnected());
    assert_eq!(peer.report(), Some(0_u64));
}

#[test]
fn a_child_that_dies_before_it_takes_its_handle_does_not_hold_its_side() {
    let _dog = watchdog();
    let (tx, rx) = bounded::<u64>(1).expect("a queue");
    let mut command = std::process::Command::new("true");
    let (ours, theirs) = shm_core::socket::pair().expect("a pair");
    let session = SendSession::begin();
    let bytes = postcard::to_stdvec(&tx).expect("in a session");
    let descriptors = session.finish();
    drop(tx);
    let borrowed: Vec<_> = descriptors.iter().map(std::os::fd::AsFd::as_fd).collect();
    shm_core::socket::send(std::os::fd::AsFd::as_fd(&ours), &bytes, &borrowed, None).expect("sent");
    drop(borrowed);
    drop(descriptors);
    assert!(rx.try_recv().expect_err("in the socket").is_empty());
    let mut child = command.stdin(theirs).spawn().expect("a child");
    drop(command);
    child.wait().expect("waited");
    assert!(rx.recv().expect_err("closed with the socket").is_disconnected());
}

#[test]
fn a_grandchild_uses_a_handle_that_was_passed_on() {
    let _dog = watchdog();
    let (tx, rx) = bounded(1).expect("a queue");
    let peer = Peer::start(&Orders::PassOn(tx), None);
    assert_eq!(sum(&rx), 6);
    assert!(peer.wait().success());
}

#[test]
fn many_processes_send_to_one() {
    let _dog = watchdog();
    let (tx, rx) = bounded(8).expect("a queue");
    let peers: Vec<_> = (0..12).map(|i| send_from(tx.clone(), i * 100, 100, false)).collect();
    drop(tx);
    assert_eq!(sum(&rx), (0..1200).sum());
    assert!(peers.into_iter().all(|peer| peer.wait().success()));
}

#[test]
fn participants_come_and_go() {
    let _dog = watchdog();
    let (tx, rx) = bounded(8).expect("a queue");
    for i in 0..20 {
        let stay = i % 2 == 0;
        let peer = send_from(tx.clone(), i, 1, stay);
        assert_eq!(rx.recv().expect("received"), i);
        if stay {
            peer.kill();
        } else {
            assert!(peer.wait().success());
        }
    }
    drop(tx);
    assert!(rx.recv().expect_err("all are gone").is_disconnected());
}

#[test]
fn two_senders_and_two_receivers_keep_each_senders_order() {
    let _dog = watchdog();
    let (tx, rx) = bounded_plain(64).expect("a queue");
    let receivers = [0, 1].map(|_| Peer::start(&Orders::Sort(rx.clone()), None));
    let senders = [0, 1].map(|from| {
        let (tx, count) = (tx.clone(), 20_000);
        Peer::start(&Orders::SendPlain { tx, from, count }, None)
    });
    drop((tx, rx));
    assert!(senders.into_iter().all(|peer| peer.wait().success()));
    let counts: Vec<[u64; 2]> = receivers.iter().filter_map(Peer::report).collect();
    assert_eq!(counts.len(), 2, "no receiver found anything torn or out of order");
    assert_eq!([counts[0][0] + counts[1][0], counts[0][1] + counts[1][1]], [20_000; 2]);
}

#[test]
fn two_queues_make_a_conversation() {
    let _dog = watchdog();
    let (tx, child_rx) = bounded_plain(1).expect("a queue");
    let (child_tx, rx) = bounded_plain(1).expect("a queue");
    let peer = Peer::start(&Orders::Echo(child_rx, child_tx), None);
    for i in 0..2000 {
        tx.send(i).expect("sent");
        assert_eq!(rx.recv().expect("an answer"), i + 1);
    }
    drop(tx);
    assert!(rx.recv().expect_err("the child ends").is_disconnected());
    assert!(peer.wait().success());
}

#[test]
fn a_stopped_receiver_is_alive() {
    let _dog = watchdog();
    let (tx, rx) = bounded(2).expect("a queue");
    let peer = Peer::start(&Orders::Count(rx), None);
    let id: u64 = peer.report().expect("its process id");
    let pid = Pid::from_raw(id as i32).expect("a process id");
    kill_process(pid, Signal::STOP).expect("stopped");
    let mut sent = 0;
    // Longer than a waiter sleeps between two looks at its peers.
    while tx.send_timeout(0, Duration::from_millis(300)).map_err(|error| assert!(error.is_timeout())).is_ok()
    {
        sent += 1;
    }
    kill_process(pid, Signal::CONT).expect("continued");
    tx.send(0).expect("alive");
    drop(tx);
    assert_eq!(peer.report(), Some(sent + 1_u64));
}

#[test]
fn queues_leave_no_descriptor_behind() {
    let _dog = watchdog();
    let peer = Peer::start(&Orders::Churn, None);
    let (before, after): (usize, usize) = peer.report().expect("a report");
    assert_eq!(before, after);
}

#[test]
fn a_receiver_that_waits_uses_no_processor() {
    let _dog = watchdog();
    let (_tx, rx) = bounded::<u64>(1).expect("a queue");
    let peer = Peer::start(&Orders::Idle(rx, Duration::from_millis(600)), None);
    let (waited, used): (u64, u64) = peer.report().expect("a report");
    assert!(used * 4 < waited, "{used} of {waited} microseconds");
}

/// Random numbers.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// A queue's memory, as a process that means ill has it.
struct Scribbler {
    map: memmap2::MmapRaw,
    /// Behind the segment's own pages: control block, slots, words of chunks. Not the chunks: there is nothing to follow.
    body: std::ops::Range<usize>,
}

impl Scribbler {
    fn of(handle: &impl Serialize, budget: usize) -> Self {
        let session = SendSession::begin();
        postcard::to_stdvec(handle).expect("in a session");
        let memory = session.finish().pop().expect("the queue's memory");
        let map = memmap2::MmapRaw::map_raw(&memory).expect("mapped");
        let body = 20480..map.len() - budget;
        Self { map, body }
    }

    fn scribble(&self, dice: &mut Dice, bits: bool) {
        for _ in 0..=dice.roll() % 40 {
            let offset = self.body.start + dice.roll() as usize % self.body.len();
            let byte = if bits { 1 << (dice.roll() % 8) } else { dice.roll() as u8 };
            // SAFETY: inside the mapping; nobody holds a reference into it.
            unsafe { self.map.as_mut_ptr().add(offset).write_volatile(byte) };
        }
    }
}

const MOMENT: Duration = Duration::from_micros(100);

#[test]
fn a_scribbling_process_makes_wrong_messages_and_nothing_worse() {
    let _dog = watchdog();
    let mut dice = Dice(0x9E37_79B9_7F4A_7C15);
    for round in 0..300 {
        let budget = 4 << 16;
        let (tx, rx) = builder::<String>().capacity(3).byte_budget(budget).build().expect("a queue");
        let scribbler = Scribbler::of(&tx, budget);
        for _ in 0..=dice.roll() % 8 {
            let _ = tx.try_send("hello".into());
            let _ = tx.try_send("x".repeat(70_000));
            scribbler.scribble(&mut dice, round % 2 == 1);
            let _ = rx.try_recv();
            let _ = rx.try_recv_batch(9);
            let _ = rx.recv_timeout(MOMENT);
            let _ = tx.send_timeout("world".into(), MOMENT);
            let _ = tx.send_timeout("x".repeat(1000), MOMENT);
            let _ = (rx.len(), tx.is_full());
        }
    }
}

#[test]
fn a_scribbling_process_makes_wrong_leases_and_nothing_worse() {
    let _dog = watchdog();
    let mut dice = Dice(0x2545_F491_4F6C_DD1D);
    for round in 0..300 {
        let budget = 4 << 16;
        let queue = builder::<String>().capacity(3).byte_budget(budget).at_least_once().unfinished(5);
        let (tx, rx) = queue.build().expect("a queue");
        let scribbler = Scribbler::of(&tx, budget);
        let mut senders = Some(tx.clone());
        let mut kept = Vec::new();
        for step in 0..=dice.roll() % 8 {
            let _ = tx.try_send("hello".into());
            let _ = tx.try_send("x".repeat(70_000));
            kept.extend(rx.try_recv_lease());
            scribbler.scribble(&mut dice, round % 2 == 1);
            kept.extend(rx.recv_lease_timeout(MOMENT));
            kept.extend(rx.try_recv_leases(9).unwrap_or_default());
            kept.truncate(12);
            match dice.roll() % 3 {
                0 => kept.pop().into_iter().for_each(|lease| drop(lease.ack())),
                1 => drop(kept.pop()),
                _ => {}
            }
            let _ = tx.send_timeout("world".into(), MOMENT);
            let _ = tx.send_timeout("x".repeat(1000), MOMENT);
            let _ = tx.wait_drained(MOMENT);
            let _ = (rx.len(), tx.is_full(), tx.unfinished());
            if step == 5 {
                drop(senders.take());
            }
        }
        drop((tx, senders));
        scribbler.scribble(&mut dice, round % 2 == 1);
        let _ = rx.recv_lease_timeout(MOMENT);
    }
}
