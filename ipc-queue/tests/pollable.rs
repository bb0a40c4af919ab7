//! Ends that are polled: what their descriptors say, and what their bridges do to others.
#![cfg(not(loom))]
#![allow(unsafe_code, reason = "forks")]

mod common;
#[path = "pollable/fork.rs"]
mod fork;
#[path = "pollable/senders.rs"]
mod senders;

use common::{Peer, Reporter, child as child_of_test, was_killed, watchdog};
use ipc_queue::{
    BytesReceiver, LeaseReceiver, PlainReceiver, PlainSender, Receiver, Sender, TryRecvError, TrySendError,
    bounded, bounded_bytes, bounded_plain, builder, bytes_builder, spsc,
};
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitOptions, getrlimit, kill_process, setrlimit, waitpid,
};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// What a child does.
#[derive(Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "one of them is made per child")]
enum Orders {
    /// Sends `from..from + count`.
    Send { tx: Sender<u64>, from: u64, count: u64 },
    /// Sends plain numbers `0..count`, a pause of so many microseconds after every 10th.
    Stream { tx: PlainSender<u64>, count: u64, pause: u64 },
    /// Holds a sender, reports 0 and stays.
    Hold(Sender<u64>),
    /// Reports 0, receives one message and reports it, until the end.
    Receive(Receiver<u64>),
    /// Receives that many messages.
    Take(Receiver<u64>, u64),
    /// Receives a message.
    TakeBytes(BytesReceiver),
    /// Reports 0, takes a message on lease, reports it and stays.
    Lease(LeaseReceiver<u64>),
    /// Has its end watched while nothing happens; reports microseconds of processor time.
    Idle(Receiver<u64>, Duration),
    /// Makes, uses and drops polled ends; reports what was there before and after.
    Churn,
    /// Asks for a descriptor where there are no more; reports what it found.
    Short(Receiver<u64>),
}

#[test]
fn child() {
    child_of_test(obey);
}

fn obey(orders: Orders, reporter: &Reporter) {
    match orders {
        Orders::Send { tx, from, count } => {
            (from..from + count).for_each(|i| tx.send(i).expect("sent"));
        }
        Orders::Stream { tx, count, pause } => {
            for i in 0..count {
                tx.send(i).expect("sent");
                if pause > 0 && i % 10 == 9 {
                    std::thread::sleep(Duration::from_micros(pause));
                }
            }
        }
        Orders::Hold(_tx) => {
            reporter.report(&0_u64);
            loop {
                std::thread::park();
            }
        }
        Orders::Receive(rx) => {
            reporter.report(&0_u64);
            rx.iter().for_each(|message| reporter.report(&message.expect("received")));
        }
        Orders::Take(rx, count) => (0..count).for_each(|_| _ = rx.recv().expect("received")),
        Orders::TakeBytes(rx) => _ = rx.recv().expect("received"),
        Orders::Lease(rx) => {
            reporter.report(&0_u64);
            let lease = rx.recv_lease().expect("received");
            reporter.report(&*lease);
            loop {
                std::thread::park();
            }
        }
        Orders::Idle(rx, duration) => {
            assert!(!is_readable(&rx));
            // The making of it is not what is measured.
            std::thread::sleep(Duration::from_millis(50));
            let before = processor_time();
            let _ = poll(&mut [PollFd::new(&rx, PollFlags::IN)], Some(&timespec(duration)));
            reporter.report(&(processor_time() - before).as_micros());
        }
        Orders::Churn => reporter.report(&churn()),
        Orders::Short(rx) => {
            let before = getrlimit(Resource::Nofile);
            let lowest = std::fs::File::open("/dev/null").expect("the lowest that is free").as_raw_fd();
            let current = u64::try_from(lowest).expect("not negative");
            let limit = Rlimit { current: Some(current), maximum: before.maximum };
            setrlimit(Resource::Nofile, limit).expect("limited");
            let refused = rx.try_as_fd().is_err();
            let readable = is_readable(&rx);
            setrlimit(Resource::Nofile, before).expect("limited as before");
            reporter.report(&(refused, readable, rx.try_as_fd().is_ok(), is_readable(&rx)));
        }
    }
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.try_into().expect("not negative")
}

fn timespec(duration: Duration) -> Timespec {
    duration.try_into().expect("a time")
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("readable").count()
}

/// Descriptors, threads, and mappings of queues.
fn resources() -> [usize; 3] {
    let threads = std::fs::read_dir("/proc/self/task").expect("readable").count();
    let maps = std::fs::read_to_string("/proc/self/maps").expect("readable");
    [open_descriptors(), threads, maps.matches("memfd:segment").count()]
}

fn churn() -> [[usize; 3]; 2] {
    let round = |_| {
        let (tx, rx) = bounded::<u64>(1).expect("a queue");
        assert!(!is_readable(&rx) && is_readable(&tx));
        tx.send(1).expect("sent");
        assert!(tx.try_send(2).is_err());
        becomes_readable(&rx);
        let other = rx.clone();
        assert!(is_readable(&other));
        assert_eq!(rx.try_recv().expect("received"), 1);
        becomes_readable(&tx);
    };
    let [_, threads, _] = resources();
    round(0);
    // A thread lets go of its queue before it ends.
    settle(|| resources()[1] == threads && resources()[2] == 0);
    let before = resources();
    (0..100).for_each(round);
    settle(|| resources() == before);
    [before, resources()]
}

/// Waits until it is so, or for long.
fn settle(so: impl Fn() -> bool) {
    let start = Instant::now();
    while !so() && start.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A fork copies what other tests have open, handles included: it is done alone.
static FORKS: RwLock<()> = RwLock::new(());

fn beside_others() -> RwLockReadGuard<'static, ()> {
    FORKS.read()
}

fn alone() -> RwLockWriteGuard<'static, ()> {
    FORKS.write()
}

/// Whether the descriptor is readable now.
fn is_readable(end: &impl AsFd) -> bool {
    is_readable_within(end, Duration::ZERO)
}

fn is_readable_within(end: &impl AsFd, timeout: Duration) -> bool {
    let mut polled = [PollFd::new(end, PollFlags::IN)];
    loop {
        match poll(&mut polled, Some(&timespec(timeout))) {
            Err(rustix::io::Errno::INTR) => {}
            ready => break ready.expect("polled") > 0,
        }
    }
}

/// Waits for it; the watchdog is its limit.
fn becomes_readable(end: &impl AsFd) {
    while !is_readable_within(end, Duration::from_secs(100)) {}
}

/// Long enough for a bridge that would ring to ring.
const A_WHILE: Duration = Duration::from_millis(250);

/// Receives everything until the end, polling whenever there is nothing.
fn receive_all<T: Copy>(
    mut try_recv: impl FnMut() -> Result<T, TryRecvError>,
    mut wait: impl FnMut(),
) -> Vec<T> {
    let mut all = Vec::new();
    loop {
        match try_recv() {
            Ok(message) => all.push(message),
            Err(TryRecvError::Empty) => wait(),
            Err(TryRecvError::Disconnected) => return all,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_receiver_is_readable_after_another_process_has_sent() {
    let (_dog, _beside) = (watchdog(), beside_others());
    let (tx, rx) = bounded::<u64>(4).expect("a queue");
    let _keep = tx.clone();
    assert!(!is_readable(&rx));
    let peer = Peer::start(&Orders::Send { tx, from: 7, count: 1 }, None);
    becomes_readable(&rx);
    assert_eq!(rx.try_recv().expect("received"), 7);
    assert!(peer.wait().success());
}

#[test]
fn a_receiver_that_found_nothing_is_not_readable() {
    let (_dog, _beside) = (watchdog(), beside_others());
    let (tx, rx) = bounded::<u64>(4).expect("a queue");
    assert!(!is_readable_within(&rx, A_WHILE), "nothing was sent yet");
    tx.send(1).expect("sent");
    becomes_readable(&rx);
    assert_eq!(rx.try_recv().expect("received"), 1);
    assert!(rx.try_recv().is_err());
    assert!(!is_readable_within(&rx, A_WHILE), "it was taken");
    assert!(rx.recv_timeout(Duration::from_millis(1)).is_err());
    assert!(rx.try_recv_batch(4).expect("nothing is no error").is_empty());
    assert!(!is_readable_within(&rx, A_WHILE), "still");
}

#[test]
fn a_receiver_stays_readable_until_it_finds_nothing() {
    let (_dog, _beside) = (watchdog(), beside_others());
    let (tx, rx) = bounded::<u64>(4).expect("a queue");
    let descriptor = rx.as_fd();
    tx.send_batch([1, 2]).expect("sent");
    becomes_readable(&descriptor);
    assert!(is_readable(&descriptor));
    assert_eq!(rx.try_recv().expect("received"), 1);
    assert!(is_readable(&descriptor));
}

#[test]
fn what_was_there_before_is_seen_at_once() {
    let (_dog, _beside) = (watchdog(), beside_others());
    let (tx, rx) = bounded::<u64>(1).expect("a queue");
    tx.send(1).expect("sent");
    assert!(is_readable(&rx));
    assert!(!is_readable(&tx));
    assert_eq!(rx.try_recv().expect("received"), 1);
    assert!(is_readable(&tx));
}

#[test]
fn a_poll_directly_behind_as_fd_is_up_to_date() {
    let (_dog, _beside) = (watchdog(), beside_others());
    let (tx, rx) = bounded::<u64>(1).expect("a queue");
    for i in 0..1000 {
        assert!(rx.try_recv().is_err());
        tx.try_send(i).expect("there is room");
        assert!(is_readable(&rx));
        assert!(tx.try_send(i).is_err());
        assert_eq!(rx.try_recv().expect("received"), i);
        assert!(is_readable(&tx));
    }
}

fn epoll() -> OwnedFd {
    epoll::create(CreateFlags::CLOEXEC).expect("an epoll instance")
}

fn add(epoll: &OwnedFd, end: &impl AsFd, number: u64, flags: EventFlags) {
    epoll::add(epoll, end, EventData::new_u64(number), flags).expect("added");
}

/// The numbers of those that are readable, once some are.
fn wait(epoll: &OwnedFd) -> Vec<u64> {
    let mut events: Vec<Event> = Vec::with_capacity(8);
    loop {
        match epoll::wait(epoll, rustix::buffer::spare_capacity(&mut events), None) {
            Err(rustix::io::Errno::INTR) => {}
            waited => {
                waited.expect("waited");
                return events.iter().map(|event| event.data.u64()).collect();
            }
        }
    }
}

fn stream_through_epoll(flags: EventFlags, pause: u64) {
    let (_dog, _beside) = (watchdog(), beside_others());
    let (tx, rx) = bounded_plain::<u64>(64).expect("a queue");
    let epoll = epoll();
    add(&epoll, &rx, 0, flags);
    let peer = Peer::start(&Orders::Stream { tx, count: 10_000, pause }, None);
    let all = receive_all(|| rx.try_recv(), || drop(wait(&epoll)));
    assert!(all.iter().copied().eq(0..10_000), "each once, in order");
    assert!(peer.wait().success());
}

#[test]
fn ten_thousand_messages_arrive_once_each_through_epoll() {
    stream_through_epoll(EventFlags::IN, 0);
}

#[test]
fn ten_thousand_messages_with_pauses_arrive_once_each_through_epoll() {
    stream_through_epoll(EventFlags::IN, 50);
}

#[test]
fn ten_thousand_messages_arrive_once_each_through_edge_triggered_epoll() {
    stream_through_epoll(EventFlags::IN | EventFlags::ET, 50);
}

#[test]
fn one_message_per_readiness_is_enough() {
    let (_dog, _beside) = (watchdog(), beside_others());
    let (tx, rx) = bounded_plain::<u64>(8).expect("a queue");
    let descriptor = rx.as_fd();
    let peer = Peer::start(&Orders::Stream { tx, count: 2_000, pause: 20 }, None);
    let mut next = 0;
    loop {
        becomes_readable(&descriptor);
        match rx.try_recv() {
            Ok(message) => assert_eq!(std::mem::replace(&mut next, message + 1), message),
            Err(TryRecvError::Empty) => {}
            Err(error) => break assert!(error.is_disconnected(), "{error}"),
        }
    }
    assert_eq!(next, 2_000);
    assert!(peer.wait().success());
}

#[test]
fn two_queues_in_one_epoll_are_told_apart() {
    let (_dog, _beside) = (watchdog(), beside_others());
    let epoll = epoll();
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..2).map(|_| bounded::<u64>(16).expect("a queue")).unzip();
    receivers.iter().zip(0..).for_each(|(rx, i)| add(&epoll, rx, i, EventFlags::IN));
    senders[1].send(1).expect("sent");
    assert_eq!(wait(&epoll), [1]);
    assert_eq!(receivers[1].try_recv().expect("received"), 1);
    assert!(receivers[1].try_recv().is_err());
    let orders = |(tx, i): (Sender<u64>, u64)| Orders::Send { tx, from: i * 1000, count: 1000 };
    let peers: Vec<_> = senders.into_iter().zip(1..).map(|queue| Peer::start(&orders(queue), None)).collect();
    let mut got = [Vec::new(), Vec::new()];
    let mut open = 2;
    while open > 0 {
        for i in wait(&epoll) {
            let i = usize::try_from(i).expect("0 or 1");
            match receivers[i].try_recv() {
                Ok(message) => got[i].push(message),
                Err(TryRecvError::Empty) => {}
                Err(_) => {
                    epoll::delete(&epoll, &receivers[i]).expect("deleted");
                    open -= 1;
                }
            }
        }
    }
    assert!(got[0].iter().copied().eq(1000..2000) && got[1].iter().copied().eq(2000..3000));
    peers.into_iter().for_each(|peer| assert!(peer.wait().success()));
}

#[test]
fn clones_have_descriptors_of_their_own() {
    let (_dog, _beside) = (watchdog(), beside_others());
    let (tx, rx) = bounded::<u64>(16).expect("a queue");
    let other = rx.clone();
    assert!(!is_readable(&rx) && !is_readable(&other));
    assert_ne!(rx.as_raw_fd(), other.as_raw_fd());
    assert_eq!(rx.as_raw_fd(), rx.as_raw_fd());
    tx.send(1).expect("sent");
    becomes_readable(&rx);
    becomes_readable(&other);
    assert_eq!(rx.try_recv().expect("received"), 1);
    assert!(other.try_recv().is_err());
    assert!(!is_readable_within(&other, A_WHILE));
}

#[test]
fn clones_in_threads_receive_everything_once() {
    let (_dog, _beside) = (watchdog(), beside_others());
    let (tx, rx) = bounded_plain::<u64>(16).expect("a queue");
    let receive = |rx: PlainReceiver<u64>| {
        std::thread::spawn(move || receive_all(|| rx.try_recv(), || becomes_readable(&rx)))
    };
    let threads = [rx.clone(), rx.clone(), rx].map(receive);
    let peer = Peer::start(&Orders::Stream { tx, count: 5_000, pause: 20 }, None);
    let mut all: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().expect("fine")).collect();
    all.sort_unstable();
    assert!(all.into_iter().eq(0..5_000));
    assert!(peer.wait().success());
}

#[test]
fn threads_that_share_a_handle_receive_everything_once() {
    let (_dog, _beside) = (watchdog(), beside_others());
    let (tx, rx) = bounded_plain::<u64>(16).expect("a queue");
    let peer = Peer::start(&Orders::Stream { tx, count: 5_000, pause: 20 }, None);
    let mut all: Vec<_> = std::thread::scope(|scope| {
        let receive = || receive_all(|| rx.try_recv(), || becomes_readable(&rx.as_fd()));
        let threads = [scope.spawn(receive), scope.spawn(receive)];
        threads.into_iter().flat_map(|thread| thread.join().expect("fine")).collect()
    });
    all.sort_unstable();
    assert!(all.into_iter().eq(0..5_000));
    assert!(peer.wait().success());
}

#[test]
fn a_receiver_is_readable_when_the_last_sender_is_dropped() {
    let (_dog, _beside) = (watchdog(), beside_others());
    let (tx, rx) = bounded::<u64>(4).expect("a queue");
    let descriptor = rx.as_fd();
    assert!(!is_readable_within(&descriptor, A_WHILE));
    drop(tx);
    becomes_readable(&descriptor);
    assert!(rx.try_recv().expect_err("none will come").is_disconnected());
    assert!(is_readable(&descriptor), "for good");
}

#[test]
fn a_receiver_is_readable_when_the_last_sender_is_killed() {
    let (_dog, _beside) = (watchdog(), beside_others());
    let (tx, rx) = bounded::<u64>(4).expect("a queue");
    let peer = Peer::start(&Orders::Hold(tx), None);
    assert_eq!(peer.report(), Some(0_u64));
    let descriptor = rx.as_fd();
    assert!(!is_readable_within(&descriptor, A_WHILE));
    assert!(was_killed(peer.kill()));
    loop {
        becomes_readable(&descriptor);
        match rx.try_recv() {
            // Readable for nothing.
            Err(TryRecvError::Empty) => {}
            other => break assert!(other.expect_err("none will come").is_disconnected()),
        }
    }
}

#[test]
fn a_blocked_receiver_of_another_process_gets_its_message_although_bridges_sleep() {
    let (_dog, _beside) = (watchdog(), beside_others());
    let (tx, rx) = bounded::<u64>(4).expect("a queue");
    let polled = [rx.clone(), rx.clone(), rx.clone()];
    polled.iter().for_each(|rx| assert!(!is_readable(rx)));
    let peer = Peer::start(&Orders::Receive(rx), None);
    assert_eq!(peer.report(), Some(0_u64));
    for i in 0..500 {
        // Everybody sleeps, and the wake-up goes to one of them.
        if i % 50 == 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
        tx.send(i).expect("sent");
        assert_eq!(peer.report(), Some(i));
        polled.iter().for_each(|rx| assert!(rx.try_recv().is_err()));
    }
    drop(tx);
    assert!(peer.wait().success());
}

#[test]
fn a_wake_up_that_goes_to_a_bridge_is_passed_on_at_once() {
    let (_dog, _beside) = (watchdog(), beside_others());
    let (tx, rx) = bounded::<u64>(4).expect("a queue");
    let polled = rx.clone();
    assert!(!is_readable(&polled));
    let (tell, told) = std::sync::mpsc::channel();
    let receiver = std::thread::spawn(move || {
        rx.iter().for_each(|message| tell.send((message.expect("received"), Instant::now())).expect("told"));
    });
    let mut slow = 0;
    for i in 0..50 {
        // Without looking at the queue: so that the bridge sleeps, and the receiver too.
        std::thread::sleep(Duration::from_millis(3));
        let sent = Instant::now();
        tx.send(i).expect("sent");
        let (message, at) = told.recv().expect("told");
        assert_eq!(message, i);
        slow += usize::from(at.duration_since(sent) > Duration::from_millis(40));
        assert!(polled.try_recv().is_err());
    }
    // A wake-up that was swallowed costs a time slice each time, and the bridge gets one in two.
    assert!(slow < 12, "{slow} of 50 messages came late");
    drop(tx);
    receiver.join().expect("fine");
}

#[test]
fn both_ends_of_a_queue_of_one_producer_and_one_consumer_can_be_polled() {
    let (_dog, _beside) = (watchdog(), beside_others());
    let (mut tx, mut rx) = spsc::<u64>(4).expect("a queue");
    assert!(is_readable(&tx) && !is_readable(&rx));
    let producer = std::thread::spawn(move || {
        for i in 0..5_000 {
            while let Err(error) = tx.try_send(i) {
                assert!(error.is_full(), "{error}");
                becomes_readable(&tx.as_fd());
            }
        }
    });
    let mut all = Vec::new();
    loop {
        match rx.try_recv() {
            Ok(message) => all.push(message),
            Err(TryRecvError::Empty) => becomes_readable(&rx.as_fd()),
            Err(error) => break assert!(error.is_disconnected(), "{error}"),
        }
    }
    assert!(all.into_iter().eq(0..5_000));
    producer.join().expect("fine");
}

#[test]
fn both_ends_of_a_queue_of_bytes_can_be_polled() {
    let (_dog, _beside) = (watchdog(), beside_others());
    let (tx, rx) = bounded_bytes(2).expect("a queue");
    let producer = std::thread::spawn(move || {
        for i in 0..2_000_u32 {
            while tx.try_send(&i.to_ne_bytes()).is_err() {
                becomes_readable(&tx.as_fd());
            }
        }
    });
    let number = |bytes: Vec<u8>| u32::from_ne_bytes(bytes.try_into().expect("four bytes"));
    let all = receive_all(|| rx.try_recv().map(number), || becomes_readable(&rx.as_fd()));
    assert!(all.into_iter().eq(0..2_000));
    producer.join().expect("fine");
}

#[test]
fn a_polled_receiver_gets_what_another_process_gives_back() {
    let (_dog, _beside) = (watchdog(), beside_others());
    let (tx, rx) = builder::<u64>().capacity(4).at_least_once().build().expect("a queue");
    let peer = Peer::start(&Orders::Lease(rx.clone()), None);
    assert_eq!(peer.report(), Some(0_u64));
    let descriptor = rx.as_fd();
    assert!(!is_readable_within(&descriptor, A_WHILE));
    tx.send(7).expect("sent");
    assert_eq!(peer.report(), Some(7_u64), "others have it on lease");
    drop(tx);
    // Readable for nothing at first: the sender is gone, or the bridge was awake when the other one took the message.
    while is_readable_within(&descriptor, A_WHILE) {
        assert!(rx.try_recv_lease().expect_err("on lease, and it may come back").is_empty());
    }
    assert!(was_killed(peer.kill()));
    let lease = loop {
        becomes_readable(&descriptor);
        match rx.try_recv_lease() {
            Ok(lease) => break lease,
            Err(error) => assert!(error.is_empty(), "{error}"),
        }
    };
    assert_eq!((*lease, lease.delivery_count()), (7, 2));
    lease.ack();
    assert!(rx.try_recv_lease().expect_err("all is done").is_disconnected());
    becomes_readable(&descriptor);
}

#[test]
fn a_polled_sender_may_send_when_a_message_is_acknowledged() {
    let (_dog, _beside) = (watchdog(), beside_others());
    let (tx, rx) = builder::<u64>().capacity(1).at_least_once().unfinished(1).build().expect("a queue");
    tx.send(1).expect("sent");
    let descriptor = tx.as_fd();
    let lease = rx.recv_lease().expect("received");
    loop {
        assert!(tx.try_send(2).expect_err("one is unfinished").is_full());
        if !is_readable_within(&descriptor, A_WHILE) {
            break;
        }
    }
    lease.ack();
    becomes_readable(&descriptor);
    tx.try_send(2).expect("sent");
}

#[test]
fn a_bridge_that_watches_an_idle_queue_uses_no_processor() {
    let _dog = watchdog();
    let (_tx, rx) = bounded::<u64>(1).expect("a queue");
    let peer = Peer::start(&Orders::Idle(rx, Duration::from_secs(5)), None);
    let used: u64 = peer.report().expect("a report");
    eprintln!("{used} microseconds in five seconds");
    assert!(used < 20_000, "{used} microseconds in five seconds");
}

#[test]
fn a_hundred_polled_ends_leave_no_descriptor_no_thread_and_no_mapping() {
    let _dog = watchdog();
    let peer = Peer::start(&Orders::Churn, None);
    let [before, after]: [[usize; 3]; 2] = peer.report().expect("a report");
    assert_eq!(before, after);
    assert_eq!(before[2], 0, "no queue is left");
}

#[test]
fn without_descriptors_an_end_is_always_readable() {
    let _dog = watchdog();
    let (_tx, rx) = bounded::<u64>(1).expect("a queue");
    let peer = Peer::start(&Orders::Short(rx), None);
    let (refused, readable, later, then): (bool, bool, bool, bool) = peer.report().expect("a report");
    assert!(refused && readable, "whoever polls spins rather than hangs");
    assert!(later && !then, "and it works when there are descriptors again");
}
