//! Shared values: as values of one process, and as values that travel. One fact per test.
#![cfg(not(loom))]

mod common;

use common::{Peer, child as child_of_test, watchdog};
use serde::{Deserialize, Serialize};
use shm_array::{Shared, ShmSafe};
use shm_core::handle::{ReceiveSession, SendSession};
use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

/// Too long for an arena.
type Large = [AtomicU64; 2000];

#[repr(C, align(4096))]
struct Page(AtomicU64);

// SAFETY: `repr(C)`, of one atomic.
#[allow(unsafe_code, reason = "the trait is unsafe to implement by hand")]
unsafe impl ShmSafe for Page {
    const LAYOUT: u64 = shm_core::portable::layout_of::<Self>("Page");
}

#[derive(Serialize, Deserialize)]
enum Orders {
    /// Add to each and report what was there.
    Add { small: Shared<AtomicU64>, large: Shared<Large>, alone: Shared<AtomicU64> },
    /// Have a child of your own add.
    AddThroughAnother { small: Shared<AtomicU64>, large: Shared<Large>, alone: Shared<AtomicU64> },
    /// Make values, report them, and wait.
    Make,
    /// Report the value.
    Read { small: Shared<AtomicU64> },
}

#[test]
fn child() {
    child_of_test(|orders, reporter| match orders {
        Orders::Add { small, large, alone } => {
            let before = [&*small, &large[1999], &alone].map(|n| n.fetch_add(1, Ordering::Relaxed));
            reporter.report(&before);
        }
        Orders::AddThroughAnother { small, large, alone } => {
            let peer = Peer::start(&Orders::Add { small, large, alone }, None);
            reporter.report(&peer.report::<[u64; 3]>().expect("a report"));
            assert!(peer.wait().success());
        }
        Orders::Make => {
            let small = Shared::new(AtomicU64::new(1)).expect("made");
            let large: Shared<Large> = Shared::new(large(2)).expect("made");
            reporter.report(&(&small, &large));
            // Is killed here.
            std::thread::park();
        }
        Orders::Read { small } => reporter.report(&small.load(Ordering::Relaxed)),
    });
}

fn large(last: u64) -> Large {
    std::array::from_fn(|i| AtomicU64::new(if i == 1999 { last } else { 0 }))
}

/// Serialises and deserialises within this process.
fn travel<A: Serialize, B: for<'de> Deserialize<'de>>(handle: &A) -> postcard::Result<B> {
    let session = SendSession::begin();
    let bytes = postcard::to_stdvec(handle).expect("in a session");
    let _session = ReceiveSession::begin(session.finish());
    postcard::from_bytes(&bytes)
}

/// The bytes of a handle, as another program might have made them.
#[derive(Serialize, Deserialize)]
struct Ticket {
    layout: u64,
    object: Option<u32>,
    descriptor: u32,
}

/// What arrives when the ticket is changed on its way.
fn forged<T: ShmSafe>(handle: &Shared<T>, change: impl FnOnce(&mut Ticket)) -> postcard::Result<Shared<T>> {
    let session = SendSession::begin();
    let bytes = postcard::to_stdvec(handle).expect("in a session");
    let mut ticket: Ticket = postcard::from_bytes(&bytes).expect("a ticket");
    change(&mut ticket);
    let _session = ReceiveSession::begin(session.finish());
    postcard::from_bytes(&postcard::to_stdvec(&ticket).expect("bytes"))
}

#[test]
fn a_shared_value_is_what_it_was_made_of() {
    assert_eq!(*Shared::new(7_u8).expect("made"), 7);
    assert_eq!(*Shared::new([3_u64; 1024]).expect("made"), [3; 1024]);
    assert_eq!(*Shared::new([4_u64; 1025]).expect("made"), [4; 1025]);
    assert_eq!(*Shared::builder().own_segment().build(5_i32).expect("made"), 5);
    assert_eq!(*Shared::new(()).expect("made"), ());
    assert_eq!(*Shared::builder().own_segment().build(()).expect("made"), ());
}

#[test]
fn a_shared_value_is_aligned() {
    let pages = [0; 3].map(|_| Shared::new(Page(AtomicU64::new(9))).expect("made"));
    for page in &pages {
        assert_eq!(std::ptr::from_ref(&**page).addr() % 4096, 0);
        assert_eq!(page.0.load(Ordering::Relaxed), 9);
    }
}

#[test]
fn a_clone_is_the_same_value() {
    let one = Shared::new(AtomicU64::new(0)).expect("made");
    let same = one.clone();
    same.store(3, Ordering::Relaxed);
    assert_eq!(one.load(Ordering::Relaxed), 3);
    assert!(Shared::ptr_eq(&one, &same));
    drop(one);
    assert_eq!(same.load(Ordering::Relaxed), 3);
}

#[test]
fn values_beside_each_other_are_not_the_same() {
    let values: Vec<_> = (0..1000_u64).map(|n| Shared::new(n).expect("made")).collect();
    assert!(values.iter().zip(0..).all(|(value, n)| **value == n));
    assert!(!Shared::ptr_eq(&values[0], &values[1]));
}

#[test]
fn a_handle_prints_and_compares_as_its_value() {
    let (one, other) = (Shared::new(7_u32).expect("made"), Shared::new(7_u32).expect("made"));
    assert_eq!(format!("{one} {one:?}"), "7 7");
    assert_eq!(one, other);
    assert!(one < Shared::new(8).expect("made"));
    assert_eq!(HashSet::from([one, other]).len(), 1);
}

#[test]
fn a_handle_that_travelled_is_a_clone() {
    for one in [Shared::new(1_u64), Shared::builder().own_segment().build(1)] {
        let one = one.expect("made");
        let again: Shared<u64> = travel(&one).expect("arrived");
        assert!(Shared::ptr_eq(&one, &again));
        drop(one);
        assert_eq!(*again, 1);
    }
}

#[test]
fn a_value_lives_while_its_only_handle_is_on_its_way() {
    for one in [Shared::new(1_u64), Shared::builder().own_segment().build(1)] {
        let session = SendSession::begin();
        let bytes = postcard::to_stdvec(&one.expect("made")).expect("in a session");
        let other = Shared::new(2_u64).expect("made");
        let receive = ReceiveSession::begin(session.finish());
        let arrived: Shared<u64> = postcard::from_bytes(&bytes).expect("arrived");
        drop(receive);
        assert_eq!((*arrived, *other), (1, 2));
    }
}

#[test]
fn a_handle_arrives_once() {
    let one = Shared::new(1_u64).expect("made");
    let session = SendSession::begin();
    let bytes = postcard::to_stdvec(&one).expect("in a session");
    let _receive = ReceiveSession::begin(session.finish());
    postcard::from_bytes::<Shared<u64>>(&bytes).expect("arrived");
    postcard::from_bytes::<Shared<u64>>(&bytes).expect_err("taken");
}

#[test]
fn a_handle_outside_of_a_session_is_an_error() {
    postcard::to_stdvec(&Shared::new(1_u64).expect("made")).expect_err("no session");
    let alone = Shared::builder().own_segment().build(1_u64).expect("made");
    postcard::to_stdvec(&alone).expect_err("no session");
}

#[test]
fn a_handle_of_another_type_is_refused() {
    for one in [Shared::new(1_u64), Shared::builder().own_segment().build(1)] {
        let one = one.expect("made");
        assert!(travel::<_, Shared<i64>>(&one).is_err(), "of the same size");
        assert!(travel::<_, Shared<[u64; 20]>>(&one).is_err(), "longer");
        assert!(travel::<_, Shared<[u64; 2000]>>(&one).is_err(), "too long for an arena");
        travel::<_, Shared<u64>>(&one).expect("the same");
    }
}

/// The ticket says what the receiver expects; the memory knows better.
#[test]
fn a_handle_that_lies_about_its_type_is_refused() {
    let mut layout = 0;
    forged(&Shared::new(1_i64).expect("made"), |ticket| layout = ticket.layout).expect("unchanged");
    for one in [Shared::new(1_u64), Shared::builder().own_segment().build(1)] {
        let session = SendSession::begin();
        let bytes = postcard::to_stdvec(&one.expect("made")).expect("in a session");
        let ticket: Ticket = postcard::from_bytes(&bytes).expect("a ticket");
        let bytes = postcard::to_stdvec(&Ticket { layout, ..ticket }).expect("bytes");
        let _receive = ReceiveSession::begin(session.finish());
        postcard::from_bytes::<Shared<i64>>(&bytes).expect_err("it is a u64");
    }
}

#[test]
fn a_handle_with_a_false_number_is_refused() {
    let one = Shared::new([1_u16; 3000]).expect("made");
    for object in [Some(u32::MAX), Some(8), Some(7), None] {
        assert!(forged(&one, |ticket| ticket.object = object).is_err(), "object {object:?}");
    }
    let alone = Shared::builder().own_segment().build(1_u64).expect("made");
    assert!(forged(&alone, |ticket| ticket.object = Some(0)).is_err(), "there is no arena");
}

#[test]
fn a_foreign_descriptor_is_refused() {
    let one = Shared::new(1_u64).expect("made");
    let session = SendSession::begin();
    let bytes = postcard::to_stdvec(&one).expect("in a session");
    drop(session);
    let null = std::fs::File::open("/dev/null").expect("/dev/null exists");
    let _receive = ReceiveSession::begin(vec![null.into()]);
    postcard::from_bytes::<Shared<u64>>(&bytes).expect_err("not a segment");
}

#[test]
fn handles_cross_threads_and_panics() {
    fn check<T: Send + Sync + std::panic::UnwindSafe + std::panic::RefUnwindSafe + 'static>() {}
    check::<Shared<u64>>();
    check::<Shared<AtomicU64>>();
}

#[test]
fn threads_share_a_value_and_drop_it_at_any_time() {
    let _dog = watchdog();
    let sum = Shared::new(AtomicU64::new(0)).expect("made");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    let mine = Shared::new(1_u64).expect("made");
                    let again: Shared<u64> = travel(&mine).expect("arrived");
                    drop(mine);
                    sum.clone().fetch_add(*again, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(sum.load(Ordering::Relaxed), 2000);
}

fn adds(orders: fn(Shared<AtomicU64>, Shared<Large>, Shared<AtomicU64>) -> Orders) {
    let _dog = watchdog();
    let small = Shared::new(AtomicU64::new(1)).expect("made");
    let large = Shared::new(large(2)).expect("made");
    let alone = Shared::builder().own_segment().build(AtomicU64::new(3)).expect("made");
    let peer = Peer::start(&orders(small.clone(), large.clone(), alone.clone()), None);
    assert_eq!(peer.report::<[u64; 3]>(), Some([1, 2, 3]));
    assert!(peer.wait().success());
    let after = [&*small, &large[1999], &alone].map(|n| n.load(Ordering::Relaxed));
    assert_eq!(after, [2, 3, 4]);
}

#[test]
fn conformance_value_changes_of_a_child_are_seen() {
    adds(|small, large, alone| Orders::Add { small, large, alone });
}

#[test]
fn a_handle_that_a_child_received_can_be_passed_on_to_a_grandchild() {
    adds(|small, large, alone| Orders::AddThroughAnother { small, large, alone });
}

#[test]
fn a_value_survives_the_death_of_the_process_that_made_it() {
    let _dog = watchdog();
    let peer = Peer::start(&Orders::Make, None);
    let (small, large): (Shared<AtomicU64>, Shared<Large>) = peer.report().expect("values");
    peer.kill();
    assert_eq!((small.load(Ordering::Relaxed), large[1999].load(Ordering::Relaxed)), (1, 2));
    // And can still be passed on.
    let reader = Peer::start(&Orders::Read { small }, None);
    assert_eq!(reader.report::<u64>(), Some(1));
    assert!(reader.wait().success());
}

/// With a dependency on this crate alone.
#[cfg(feature = "derive")]
mod derived {
    use shm_array::{Shared, ShmSafe};
    use std::sync::atomic::{AtomicU64, Ordering};

    #[derive(ShmSafe)]
    #[shm_safe(crate = shm_array::shm_core)]
    #[repr(C)]
    struct Totals {
        jobs: AtomicU64,
        bytes: AtomicU64,
    }

    #[test]
    fn a_struct_of_the_user_is_shared() {
        let totals = Totals { jobs: AtomicU64::new(0), bytes: AtomicU64::new(0) };
        let totals = Shared::new(totals).expect("made");
        totals.jobs.fetch_add(1, Ordering::Relaxed);
        totals.bytes.fetch_add(10, Ordering::Relaxed);
        assert_eq!((totals.jobs.load(Ordering::Relaxed), totals.bytes.load(Ordering::Relaxed)), (1, 10));
    }
}
