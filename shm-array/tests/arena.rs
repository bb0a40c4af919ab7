//! Arenas: what small shared values cost, and when their blocks are free again. The books are those of the whole process,
//! so one test runs at a time. One fact per test.
#![cfg(not(loom))]
#![allow(unsafe_code, reason = "maps an arena to scribble over it")]

mod common;

use common::{Peer, Reporter, child as child_of_test, was_killed, watchdog};
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use shm_array::{Shared, arena_usage};
use shm_core::handle::{ReceiveSession, SendSession, send_descriptor, take_descriptor};
use shm_core::socket;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

type Value = Shared<AtomicU64>;

/// A report that says nothing more.
const HERE: u8 = 1;

#[derive(Serialize, Deserialize)]
enum Orders {
    /// Report that it is here, and wait.
    Hold { one: Value },
    /// Report that it is here; when told, let go of the one and report.
    LetGo { one: Value, go: Value },
    /// Make a value and report it; make another one and report.
    Make,
    /// Look at the books for ever.
    Look { one: Value },
    /// Clone, send, receive, make and drop for ever.
    Juggle { values: Vec<Value> },
    /// Pass the value on and get it back so often, or the other way round; at the end let go of it.
    Pass { wire: Wire, first: Option<Value>, times: u32 },
}

/// A socket that travels.
struct Wire(OwnedFd);

impl Serialize for Wire {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let copy = self.0.try_clone().map_err(ser::Error::custom)?;
        send_descriptor(copy).map_err(ser::Error::custom)?.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Wire {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let index = u32::deserialize(deserializer)?;
        take_descriptor(index).map(Self).map_err(de::Error::custom)
    }
}

impl Wire {
    fn send(&self, value: Value) {
        let session = SendSession::begin();
        let bytes = postcard::to_stdvec(&value).expect("in a session");
        let descriptors = session.finish();
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        socket::send(self.0.as_fd(), &bytes, &borrowed, None).expect("sent");
    }

    fn receive(&self) -> Value {
        let message = socket::recv(self.0.as_fd(), None).expect("received");
        let (bytes, descriptors) = message.expect("the other end is alive");
        let _session = ReceiveSession::begin(descriptors);
        postcard::from_bytes(&bytes).expect("arrived")
    }
}

/// What goes from hand to hand.
const PASSED: u64 = 7;

fn pass(wire: &Wire, first: Option<Value>, times: u32) {
    let mut hand = first;
    for _ in 0..2 * times {
        hand = match hand {
            Some(value) => {
                wire.send(value);
                None
            }
            None => Some(wire.receive()),
        };
        if let Some(value) = &hand {
            assert_eq!(value.load(Ordering::Relaxed), PASSED);
        }
    }
}

#[test]
fn child() {
    child_of_test(|orders, reporter: &Reporter| match orders {
        Orders::Hold { one: _one } => {
            reporter.report(&HERE);
            std::thread::park();
        }
        Orders::LetGo { one, go } => {
            reporter.report(&HERE);
            wait_for(&go, 1);
            drop(one);
            reporter.report(&HERE);
            std::thread::park();
        }
        Orders::Make => {
            let one = value(1);
            reporter.report(&one);
            let _another = value(2);
            reporter.report(&one);
            std::thread::park();
        }
        Orders::Look { one: _one } => loop {
            arena_usage();
        },
        Orders::Juggle { values } => juggle(&values, reporter),
        Orders::Pass { wire, first, times } => pass(&wire, first, times),
    });
}

/// What may happen to handles, again and again. Each value must stay what it is.
fn juggle(values: &[Value], reporter: &Reporter) {
    reporter.report(&HERE);
    for round in 0.. {
        let mut hands: Vec<Value> = values.iter().map(travel).collect();
        hands.extend((0..4).map(|n| value(round + n)));
        let away: Vec<Value> = hands.iter().map(travel).collect();
        hands.truncate(3);
        assert!(
            away.iter().rev().zip((0..4).rev()).all(|(hand, n)| hand.load(Ordering::Relaxed) == round + n)
        );
    }
}

fn value(number: u64) -> Value {
    Shared::new(AtomicU64::new(number)).expect("made")
}

/// Serialises and deserialises within this process.
fn try_travel(handle: &Value) -> postcard::Result<Value> {
    let session = SendSession::begin();
    let bytes = postcard::to_stdvec(handle)?;
    let _session = ReceiveSession::begin(session.finish());
    postcard::from_bytes(&bytes)
}

fn travel(handle: &Value) -> Value {
    try_travel(handle).expect("arrived")
}

/// Serialises, as if it was sent; the token is gone when the session is.
fn leave(handle: &Value) -> SendSession {
    let session = SendSession::begin();
    postcard::to_stdvec(handle).expect("in a session");
    session
}

fn wait_for(word: &AtomicU64, number: u64) {
    while word.load(Ordering::SeqCst) != number {
        std::thread::yield_now();
    }
}

/// Waits for the child to say so.
fn is_here(peer: &Peer) {
    assert_eq!(peer.report::<u8>(), Some(HERE));
}

/// The books are the process's.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock()
}

fn live() -> usize {
    let usage = arena_usage();
    assert_eq!(usage.live + usage.free, usage.blocks, "{usage:?}");
    usage.live
}

/// Waits until so many blocks are live: the lock of a dead process falls a moment after its end.
fn settles_at(expected: usize) {
    while live() != expected {
        std::thread::yield_now();
    }
}

/// A value whose size is not known to the test, with its bytes known.
trait Known {
    fn is_whole(&self) -> bool;
}

impl<const N: usize> Known for (Shared<[u8; N]>, u8) {
    fn is_whole(&self) -> bool {
        self.0.iter().all(|&byte| byte == self.1)
    }
}

fn known<const N: usize>(byte: u8) -> Box<dyn Known> {
    Box::new((Shared::new([byte; N]).expect("made"), byte))
}

/// Numbers that are random enough.
fn random(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    usize::try_from(*state >> 33).expect("small")
}

#[test]
fn conformance_heap_five_thousand_random_blocks() {
    let (_alone, _dog) = (alone(), watchdog());
    let sizes = [
        known::<0>,
        known::<1>,
        known::<64>,
        known::<65>,
        known::<128>,
        known::<300>,
        known::<1000>,
        known::<1025>,
        known::<4000>,
        known::<4300>,
        known::<8192>,
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15;
    let mut blocks: Vec<Box<dyn Known>> = Vec::new();
    for round in 0..5000 {
        let byte = u8::try_from(random(&mut state) % 251).expect("a byte");
        blocks.push(sizes[random(&mut state) % sizes.len()](byte));
        // Half of the rounds free one, so that some 2,500 stay; now and then many.
        while blocks.len() > 50 && random(&mut state) % if round % 1000 > 900 { 10 } else { 2 } != 0 {
            let gone = blocks.swap_remove(random(&mut state) % blocks.len());
            assert!(gone.is_whole());
        }
        if round % 100 == 0 {
            assert_eq!(live(), blocks.len());
        }
    }
    assert!(blocks.iter().all(|block| block.is_whole()));
    assert_eq!(live(), blocks.len());
    drop(blocks);
    let usage = arena_usage();
    assert_eq!((usage.arenas, usage.blocks), (0, 0));
}

#[test]
fn thousands_of_small_values_cost_a_few_descriptors() {
    let (_alone, _dog) = (alone(), watchdog());
    let values: Vec<_> = (0..10_000).map(value).collect();
    let usage = arena_usage();
    assert_eq!(usage.live, 10_000);
    assert!(usage.arenas < 10, "{usage:?}");
    assert!(values.iter().zip(0..).all(|(value, n)| value.load(Ordering::Relaxed) == n));
}

#[test]
fn a_value_with_a_segment_of_its_own_is_in_no_arena() {
    let _alone = alone();
    let _one = Shared::builder().own_segment().build(1_u64).expect("made");
    let _large = Shared::new([0_u64; 1025]).expect("made");
    assert_eq!(arena_usage().arenas, 0);
}

#[test]
fn blocks_are_given_out_again() {
    let _alone = alone();
    let _kept = value(0);
    for number in 0..10_000 {
        drop(value(number));
    }
    assert_eq!((arena_usage().arenas, live()), (1, 1));
}

#[test]
fn the_last_of_several_handles_frees_the_block() {
    let _alone = alone();
    let (_kept, one) = (value(0), value(1));
    let clones = [one.clone(), one.clone(), travel(&one)];
    drop(one);
    assert_eq!(live(), 2);
    drop(clones);
    assert_eq!(live(), 1);
}

thread_local! {
    static LAST: std::cell::RefCell<Option<Value>> = const { std::cell::RefCell::new(None) };
}

#[test]
fn conformance_free_from_gc_at_the_end_of_a_thread() {
    let (_alone, _dog) = (alone(), watchdog());
    let _kept = value(0);
    std::thread::spawn(|| {
        // The thread's place for it is older than anything that making a value needs, and goes later.
        LAST.with_borrow_mut(|last| *last = None);
        let one = value(1);
        LAST.set(Some(one));
        assert_eq!(live(), 2);
    })
    .join()
    .expect("no panic");
    assert_eq!(live(), 1);
}

#[test]
fn conformance_free_from_gc_under_a_lock() {
    let (_alone, _dog) = (alone(), watchdog());
    let lock = Shared::new(shm_array::Mutex::new(0_u64)).expect("made");
    let one = value(1);
    let guard = lock.lock().expect("locked");
    drop(one);
    assert_eq!(live(), 1);
    drop(guard);
}

#[test]
fn a_handle_on_its_way_keeps_the_block() {
    let _alone = alone();
    let (_kept, one) = (value(0), value(1));
    let session = leave(&one);
    drop(one);
    assert_eq!(live(), 2);
    drop(session);
    assert_eq!(live(), 1);
}

#[test]
fn handles_that_never_arrive_do_not_fill_the_arenas() {
    let (_alone, _dog) = (alone(), watchdog());
    let _kept = value(0);
    for number in 0..3000 {
        let one = value(number);
        let session = leave(&one);
        drop(one);
        drop(session);
    }
    assert_eq!(arena_usage().arenas, 1);
}

#[test]
fn a_handle_that_keeps_moving_is_never_let_go_of() {
    let (_alone, _dog) = (alone(), watchdog());
    let kept = value(0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let last = (0..3000).fold(value(7), |value, _| {
                let session = leave(&value);
                let bytes = postcard::to_stdvec(&value).expect("in a session");
                drop(value);
                let _receive = ReceiveSession::begin(session.finish());
                postcard::from_bytes(&bytes).expect("arrived")
            });
            assert_eq!(last.load(Ordering::Relaxed), 7);
            done.store(true, Ordering::Relaxed);
        });
        // Whatever was freed by mistake would be given out here.
        while !done.load(Ordering::Relaxed) {
            let others: Vec<_> = (0..20).map(|_| value(1)).collect();
            assert!(live() >= others.len());
        }
    });
    assert_eq!(live(), 1);
    drop(kept);
}

#[test]
fn a_handle_that_keeps_moving_between_processes_is_never_let_go_of() {
    let (_alone, _dog) = (alone(), watchdog());
    let _kept = value(0);
    let (left, right) = socket::pair().expect("a socket pair");
    let orders = |wire, first| Orders::Pass { wire: Wire(wire), first, times: 3000 };
    let mut peers = [(left, Some(value(PASSED))), (right, None)]
        .map(|(wire, first)| Peer::start(&orders(wire, first), None));
    while !peers.iter_mut().all(Peer::has_ended) {
        // Whatever was freed by mistake would be given out here.
        let _others: Vec<_> = (0..20).map(|_| value(1)).collect();
        arena_usage();
    }
    assert!(peers.into_iter().all(|peer| peer.wait().success()), "the value was not what it had been made");
    settles_at(1);
}

/// A handle in two children and here, and what the maker's books say when they go one by one.
#[test]
fn a_block_is_free_when_the_last_of_three_processes_is_killed() {
    let (_alone, _dog) = (alone(), watchdog());
    let (_kept, one) = (value(0), value(1));
    let peers = [0; 2].map(|_| Peer::start(&Orders::Hold { one: one.clone() }, None));
    peers.iter().for_each(is_here);
    drop(one);
    assert_eq!(live(), 2);
    let [first, last] = peers;
    first.kill();
    settles_at(2);
    last.kill();
    settles_at(1);
}

#[test]
fn a_block_is_free_when_another_process_lets_go_of_it() {
    let (_alone, _dog) = (alone(), watchdog());
    let (go, one) = (value(0), value(1));
    let peer = Peer::start(&Orders::LetGo { one: one.clone(), go: go.clone() }, None);
    is_here(&peer);
    drop(one);
    assert_eq!(live(), 2);
    go.store(1, Ordering::SeqCst);
    is_here(&peer);
    assert_eq!(live(), 1);
}

/// The books of a process that got the handle: the maker is dead, its other value is nobody's.
#[test]
fn what_a_dead_maker_had_is_free() {
    let (_alone, _dog) = (alone(), watchdog());
    let peer = Peer::start(&Orders::Make, None);
    let one: Value = peer.report().expect("a value");
    peer.report::<Value>().expect("both are made");
    assert_eq!(live(), 2);
    peer.kill();
    settles_at(1);
    assert_eq!(one.load(Ordering::Relaxed), 1);
    drop(one);
    assert_eq!(arena_usage().arenas, 0);
}

#[test]
fn an_arena_of_somebody_else_is_not_allocated_from() {
    let (_alone, _dog) = (alone(), watchdog());
    let peer = Peer::start(&Orders::Make, None);
    let _one: Value = peer.report().expect("a value");
    let _mine = value(1);
    assert_eq!(arena_usage().arenas, 2);
}

#[test]
fn a_maker_that_has_dropped_everything_can_have_its_value_back() {
    let (_alone, _dog) = (alone(), watchdog());
    let one = value(5);
    let session = SendSession::begin();
    let bytes = postcard::to_stdvec(&one).expect("in a session");
    drop(one);
    assert_eq!(arena_usage().arenas, 0, "the process is detached");
    let _receive = ReceiveSession::begin(session.finish());
    let one: Value = postcard::from_bytes(&bytes).expect("arrived");
    assert_eq!(one.load(Ordering::Relaxed), 5);
    assert_eq!(live(), 1);
}

#[test]
fn the_books_balance_after_random_kills() {
    let (_alone, _dog) = (alone(), watchdog());
    let values: Vec<_> = (0..5).map(value).collect();
    let mut state = 88_172_645_463_325_252;
    for _ in 0..15 {
        let peers = [0; 2].map(|_| Peer::start(&Orders::Juggle { values: values.clone() }, None));
        peers.iter().for_each(is_here);
        std::thread::park_timeout(Duration::from_micros(
            u64::try_from(random(&mut state) % 20_000).expect("short"),
        ));
        // Those that are on their way to nobody, and those that the dead had, are all free.
        for peer in peers {
            assert!(was_killed(peer.kill()), "a value was not what it had been made");
        }
        settles_at(values.len());
    }
    assert!(values.iter().zip(0..).all(|(value, n)| value.load(Ordering::Relaxed) == n));
    assert_eq!(arena_usage().arenas, 1);
}

/// Somebody overwrites random bytes of an arena, header and registry included. Values may be lost, mixed up or refused.
#[test]
fn a_peer_that_scribbles_breaks_no_more_than_values() {
    let (_alone, _dog) = (alone(), watchdog());
    let kept = value(0);
    let memory = leave(&kept).finish().pop().expect("a descriptor");
    let map = memmap2::MmapRaw::map_raw(&memory).expect("mapped");
    // SAFETY: mapped for the whole test; every process accesses it as atomics or takes what it finds.
    let bytes = unsafe { std::slice::from_raw_parts(map.as_mut_ptr().cast::<AtomicU8>(), map.len()) };
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut state = 0x2545_f491_4f6c_dd1d;
            while !done.load(Ordering::Relaxed) {
                let byte = u8::try_from(random(&mut state) % 256).expect("a byte");
                bytes[random(&mut state) % bytes.len()].store(byte, Ordering::Relaxed);
            }
        });
        for _ in 0..60 {
            let made = || Shared::new(AtomicU64::new(1)).ok();
            let values: Vec<Value> = (0..50).filter_map(|_| made()).collect();
            let again: Vec<Value> = values.iter().filter_map(|value| try_travel(value).ok()).collect();
            drop(values);
            again.iter().for_each(|value| value.store(2, Ordering::Relaxed));
            arena_usage();
        }
        done.store(true, Ordering::Relaxed);
    });
    drop((kept, memory));
    assert_eq!(arena_usage().arenas, 0);
}

/// A process dies at each named step.
#[cfg(feature = "crash-points")]
mod crash {
    use super::*;

    #[track_caller]
    fn dies(peer: Peer) {
        assert!(was_killed(peer.wait()), "the child does not die at its crash point");
    }

    fn a_handle_that_arrives(point: &str) {
        let (_kept, one) = (value(0), value(1));
        let peer = Peer::start(&Orders::Hold { one: one.clone() }, Some(point));
        dies(peer);
        drop(one);
        settles_at(1);
    }

    fn a_handle_that_is_let_go_of(point: &str) {
        let (go, one) = (value(0), value(1));
        let peer = Peer::start(&Orders::LetGo { one: one.clone(), go: go.clone() }, Some(point));
        is_here(&peer);
        drop(one);
        go.store(1, Ordering::SeqCst);
        dies(peer);
        settles_at(1);
    }

    fn a_second_value_that_is_made(point: &str) {
        let peer = Peer::start(&Orders::Make, Some(&format!("{point}:2")));
        let one: Value = peer.report().expect("a value");
        dies(peer);
        settles_at(1);
        assert_eq!(one.load(Ordering::Relaxed), 1);
    }

    fn a_sweep_after_a_dead_holder(point: &str) {
        let (kept, one) = (value(0), value(1));
        let holder = Peer::start(&Orders::Hold { one: one.clone() }, None);
        is_here(&holder);
        let sweeper = Peer::start(&Orders::Look { one: kept.clone() }, Some(point));
        drop(one);
        holder.kill();
        dies(sweeper);
        settles_at(1);
    }

    #[track_caller]
    fn play(point: &str) {
        println!("{point}");
        match point {
            "arena.arrive.marked" | "arena.arrive.stepped" => a_handle_that_arrives(point),
            "arena.leave.unmarked" => a_handle_that_is_let_go_of(point),
            "arena.free.proven" => {
                a_handle_that_is_let_go_of(point);
                a_sweep_after_a_dead_holder(point);
            }
            "arena.place.written" | "arena.place.marked" => a_second_value_that_is_made(point),
            "arena.sweep.unmarked" => a_sweep_after_a_dead_holder(point),
            _ => panic!("no way to get to {point}"),
        }
    }

    #[test]
    fn the_books_balance_after_a_death_at_every_point() {
        let (_alone, _dog) = (alone(), watchdog());
        let sources = [include_str!("../src/arena.rs"), include_str!("../src/arena/objects.rs")];
        let calls = sources.iter().flat_map(|source| source.split("crash_point!(\"").skip(1));
        let points: Vec<_> = calls.filter_map(|call| call.split('"').next()).collect();
        assert_eq!(points.len(), 7, "{points:?}");
        points.into_iter().for_each(play);
        assert_eq!(arena_usage().arenas, 0);
    }
}
