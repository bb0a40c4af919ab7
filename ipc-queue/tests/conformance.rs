//! What CPython asserts of its queues, row by row, with threads and other processes.
//!
//! | CPython | here |
//! |---|---|
//! | `_TestQueue.test_put` | `conformance_put` |
//! | `test_get` | `conformance_get` |
//! | `test_fork` | `conformance_fork`, with a real fork too |
//! | `test_qsize` | `conformance_qsize` |
//! | `test_task_done` | `conformance_task_done`: an at-least-once queue, where a job that is not done comes back |
//! | `test_timeout` | `conformance_timeout` |
//! | `test_queue_feeder_donot_stop_onexc` | `conformance_queue_feeder_donot_stop_onexc`: the call says so, no thread prints it |
//! | `test_queue_feeder_on_queue_feeder_error` | `conformance_queue_feeder_on_queue_feeder_error`: the error of the call has reason and value |
//! | `test_closed_queue_empty_exceptions`, `TestSimpleQueue.test_empty_exceptions` | `conformance_closed_queue_empty_exceptions`: one rule for all, `is_empty` never fails |
//! | `test_closed_queue_put_get_exceptions` | `conformance_closed_queue_put_get_exceptions`; what was put before can be got |
//! | `TestSimpleQueue.test_empty` | `conformance_simple_queue_empty` |
//! | `test_close` | `conformance_simple_queue_close` |
//! | `test_closed` | `conformance_simple_queue_closed` |
//! | `test_no_import_lock_contention` | not here: Python's imports |
//!
//! A wait that has to time out is asserted to have lasted; nothing is asserted to be fast. The versions of these rows for a
//! manager's queues come with the manager.
#![cfg(not(loom))]
#![allow(unsafe_code, reason = "forks")]

mod common;

use common::{Peer, child as child_of_test, watchdog};
use ipc_queue::{
    LeaseReceiver, Receiver, Sender, TryRecvError, TrySendError, bounded, bounded_bytes, bounded_plain,
    builder,
};
use rustix::process::{Pid, Signal, WaitOptions, set_parent_process_death_signal, waitpid};
use serde::{Deserialize, Serialize};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// For what has to time out.
const SHORT: Duration = Duration::from_millis(50);
/// For what must not.
const LONG: Duration = Duration::from_secs(50);

/// What somebody else does: when a word comes, and until it says so.
#[derive(Serialize, Deserialize)]
enum Orders {
    /// Gets six.
    Put(Receiver<u32>, Words),
    /// Puts 2 to 5.
    Get(Sender<u32>, Words),
    /// Puts 10 to 19.
    Fork(Sender<u32>),
    /// Puts twice whether the queue is empty.
    Empty(Sender<bool>, Words),
    /// Does jobs until the sentinel comes.
    Work(LeaseReceiver<Option<u32>>),
}

/// Python's two events.
#[derive(Serialize, Deserialize)]
struct Words {
    start: Receiver<()>,
    done: Sender<()>,
}

fn words() -> (Sender<()>, Receiver<()>, Words) {
    let (go, start) = bounded(1).expect("a queue");
    let (done, wait) = bounded(1).expect("a queue");
    (go, wait, Words { start, done })
}

impl Words {
    fn between(self, body: impl FnOnce()) {
        self.start.recv().expect("a word");
        body();
        self.done.send(()).expect("said");
    }
}

fn obey(orders: Orders) {
    match orders {
        Orders::Put(rx, words) => words.between(|| {
            for i in 1..=6 {
                assert_eq!(rx.recv().expect("got"), i);
            }
        }),
        Orders::Get(tx, words) => words.between(|| (2..=5).for_each(|i| tx.send(i).expect("put"))),
        Orders::Fork(tx) => (10..20).for_each(|i| tx.send(i).expect("put")),
        Orders::Empty(tx, words) => words.between(|| {
            tx.send(tx.is_empty()).expect("put");
            tx.send(tx.is_empty()).expect("put");
        }),
        Orders::Work(rx) => {
            for lease in rx.leases().map(|lease| lease.expect("got")) {
                // As long as a job takes.
                std::thread::sleep(if lease.is_some() { SHORT } else { Duration::ZERO });
                if lease.ack().is_none() {
                    break;
                }
            }
        }
    }
}

#[test]
fn child() {
    child_of_test(|orders, _| obey(orders));
}

/// Who obeys: a thread, or another process.
enum Other {
    Thread(JoinHandle<()>),
    Process(Peer),
}

const WAYS: [fn(Orders) -> Other; 2] = [
    |orders| Other::Thread(std::thread::spawn(|| obey(orders))),
    |orders| Other::Process(Peer::start(&orders, None)),
];

impl Other {
    fn join(self) {
        match self {
            Self::Thread(thread) => thread.join().expect("a good end"),
            Self::Process(peer) => assert!(peer.wait().success(), "a good end"),
        }
    }
}

/// What `f` returns after at least `least`.
fn lasts<R>(least: Duration, f: impl FnOnce() -> R) -> R {
    let before = Instant::now();
    let result = f();
    assert!(before.elapsed() >= least, "{:?} instead of {least:?}", before.elapsed());
    result
}

#[test]
fn conformance_put() {
    let _dog = watchdog();
    for start in WAYS {
        let (tx, rx) = bounded(6).expect("a queue");
        let (go, done, words) = words();
        let other = start(Orders::Put(rx, words));
        assert!(tx.is_empty() && !tx.is_full());

        tx.send(1).expect("put");
        tx.try_send(2).expect("put");
        tx.send_timeout(3, LONG).expect("put");
        tx.send_until(4, Instant::now() + LONG).expect("put");
        tx.send_batch([5]).expect("put");
        tx.try_send_batch([6]).expect("put");
        assert!(!tx.is_empty() && tx.is_full());

        assert!(matches!(tx.try_send(7), Err(TrySendError::Full(7))));
        assert!(tx.try_send_batch([7]).expect_err("no room").is_full());
        assert!(tx.send_timeout(7, Duration::ZERO).expect_err("no room").is_timeout());
        assert!(lasts(SHORT, || tx.send_timeout(7, SHORT)).expect_err("no room").is_timeout());
        assert!(lasts(SHORT, || tx.send_until(7, Instant::now() + SHORT)).expect_err("no room").is_timeout());
        assert!(lasts(SHORT, || tx.send_batch_timeout([7], SHORT)).expect_err("no room").is_timeout());

        go.send(()).expect("said");
        done.recv().expect("a word");
        assert!(tx.is_empty() && !tx.is_full());
        other.join();
    }
}

#[test]
fn conformance_get() {
    let _dog = watchdog();
    for start in WAYS {
        let (tx, rx) = bounded(10).expect("a queue");
        let (go, done, words) = words();
        // So that a sender is left when the other is done.
        let other = start(Orders::Get(tx.clone(), words));
        assert!(rx.is_empty());

        tx.send(1).expect("put");
        go.send(()).expect("said");
        done.recv().expect("a word");
        assert!(!rx.is_empty());
        assert_eq!(rx.try_recv().expect("got"), 1);
        assert_eq!(rx.recv().expect("got"), 2);
        assert_eq!(rx.recv_until(Instant::now() + LONG).expect("got"), 3);
        assert_eq!(rx.recv_timeout(LONG).expect("got"), 4);
        assert_eq!(rx.try_recv_batch(2).expect("got"), [5]);
        assert!(rx.is_empty());

        assert!(matches!(rx.try_recv(), Err(TryRecvError::Empty)));
        assert_eq!(rx.try_recv_batch(1).expect("nothing"), []);
        assert!(rx.recv_timeout(Duration::ZERO).expect_err("nothing").is_timeout());
        assert!(lasts(SHORT, || rx.recv_timeout(SHORT)).expect_err("nothing").is_timeout());
        assert!(lasts(SHORT, || rx.recv_until(Instant::now() + SHORT)).expect_err("nothing").is_timeout());
        assert_eq!(lasts(SHORT, || rx.recv_batch_timeout(1, SHORT)).expect("nothing"), []);
        other.join();
    }
}

/// A forked child that obeys and ends.
fn fork(orders: Orders) -> Pid {
    // SAFETY: the child runs on the thread that forked, and only `obey`.
    let id = unsafe { libc::fork() };
    if id == 0 {
        let body = || {
            set_parent_process_death_signal(Some(Signal::KILL)).expect("a child may die with its parent");
            obey(orders);
        };
        let fine = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).is_ok();
        // SAFETY: ends the child without running what belongs to its parent.
        unsafe { libc::_exit(if fine { 0 } else { 1 }) };
    }
    Pid::from_raw(id).expect("forked")
}

#[test]
fn conformance_fork() {
    let _dog = watchdog();
    let begin = || {
        let (tx, rx) = bounded(20).expect("a queue");
        (0..10).for_each(|i| tx.send(i).expect("put"));
        (tx, rx)
    };
    let end = |tx: Sender<u32>, rx: Receiver<u32>| {
        for i in 0..20 {
            assert_eq!(rx.recv().expect("got"), i);
        }
        assert!(matches!(rx.try_recv(), Err(TryRecvError::Empty)));
        drop(tx);
    };
    for start in WAYS {
        let (tx, rx) = begin();
        let other = start(Orders::Fork(tx.clone()));
        end(tx, rx);
        other.join();
    }
    let (tx, rx) = begin();
    let child = fork(Orders::Fork(tx.clone()));
    end(tx, rx);
    let status = waitpid(Some(child), WaitOptions::empty()).expect("collected").expect("a status").1;
    assert_eq!(status.exit_status(), Some(0), "a good end: {status:?}");
}

#[test]
fn conformance_qsize() {
    let _dog = watchdog();
    let (tx, rx) = bounded(4).expect("a queue");
    let sizes = || [tx.len(), rx.len()];
    assert_eq!(sizes(), [0, 0]);
    tx.send(1).expect("put");
    assert_eq!(sizes(), [1, 1]);
    tx.send(5).expect("put");
    assert_eq!(sizes(), [2, 2]);
    rx.recv().expect("got");
    assert_eq!(sizes(), [1, 1]);
    rx.recv().expect("got");
    assert_eq!(sizes(), [0, 0]);
}

#[test]
fn conformance_task_done() {
    let _dog = watchdog();
    for start in WAYS {
        let (tx, rx) = builder().at_least_once().build().expect("a queue");
        let workers = [0; 4].map(|_| start(Orders::Work(rx.clone())));
        for job in 0..10 {
            tx.send(Some(job)).expect("put");
        }
        tx.wait_drained(LONG).expect("every job is done");
        assert_eq!((tx.unfinished(), tx.len()), (0, 0));
        for _ in &workers {
            tx.send(None).expect("put");
        }
        workers.into_iter().for_each(Other::join);
        tx.wait_drained(Duration::ZERO).expect("sentinels are done too");
    }
}

#[test]
fn conformance_timeout() {
    let _dog = watchdog();
    let (_tx, rx) = bounded::<u32>(4).expect("a queue");
    let timeout = Duration::from_millis(200);
    assert!(lasts(timeout, || rx.recv_timeout(timeout)).expect_err("nothing").is_timeout());
}

/// A value that some of the time cannot be serialised.
#[derive(Debug, PartialEq, Deserialize)]
struct Stubborn(bool);

impl Serialize for Stubborn {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0 {
            return Err(serde::ser::Error::custom("it will not"));
        }
        serializer.serialize_bool(self.0)
    }
}

#[test]
fn conformance_queue_feeder_donot_stop_onexc() {
    let _dog = watchdog();
    for capacity in [100, 1] {
        let (tx, rx) = bounded(capacity).expect("a queue");
        tx.send(Stubborn(true)).expect_err("it cannot be serialised");
        assert_eq!(tx.len(), 0, "no slot is used");
        tx.send(Stubborn(false)).expect("the next one works");
        assert_eq!(tx.len(), 1);
        assert_eq!(rx.recv_timeout(LONG).expect("got"), Stubborn(false));
        assert!(rx.is_empty());
    }
}

#[test]
fn conformance_queue_feeder_on_queue_feeder_error() {
    let _dog = watchdog();
    let (tx, rx) = bounded(4).expect("a queue");
    let TrySendError::Encode { value, reason } = tx.try_send(Stubborn(true)).expect_err("the hook") else {
        panic!("not why it failed");
    };
    assert_eq!(value, Stubborn(true));
    assert_eq!(reason.to_string(), "the message cannot be serialised");
    tx.send(Stubborn(false)).expect("the queue works");
    assert_eq!(rx.recv_timeout(LONG).expect("got"), Stubborn(false));
}

#[test]
fn conformance_closed_queue_empty_exceptions() {
    let _dog = watchdog();
    let (tx, rx) = bounded::<String>(4).expect("a queue");
    tx.close();
    assert!(tx.is_empty() && rx.is_empty());

    let (tx, rx) = bounded(4).expect("a queue");
    tx.send("foo".to_owned()).expect("put");
    rx.close();
    assert!(!tx.is_empty() && !rx.is_empty());
    assert_eq!(rx.recv().expect("put before"), "foo");
    assert!(tx.is_empty() && rx.is_empty());
}

#[test]
fn conformance_closed_queue_put_get_exceptions() {
    let _dog = watchdog();
    let (tx, rx) = bounded(4).expect("a queue");
    tx.send("before".to_owned()).expect("put");
    tx.close();
    let error = tx.send("foo".to_owned()).expect_err("closed");
    assert!(error.is_closed());
    assert_eq!(error.to_string(), "the queue is closed");
    assert_eq!(rx.recv().expect("put before"), "before");
    let error = rx.recv().expect_err("closed");
    assert!(error.is_closed());
    assert_eq!(error.to_string(), "the queue is closed");
}

#[test]
fn conformance_simple_queue_empty() {
    let _dog = watchdog();
    for start in WAYS {
        let (tx, rx) = bounded(2).expect("a queue");
        let (go, done, words) = words();
        let other = start(Orders::Empty(tx.clone(), words));
        assert!(rx.is_empty());

        go.send(()).expect("said");
        done.recv().expect("a word");
        assert!(!rx.is_empty());
        assert!(rx.recv().expect("got"));
        assert!(!rx.recv().expect("got"));
        assert!(rx.is_empty());
        other.join();
    }
}

#[test]
fn conformance_simple_queue_close() {
    let _dog = watchdog();
    let (tx, rx) = bounded_plain::<u32>(4).expect("a queue");
    assert!(tx.close());
    assert!(!tx.close() && !rx.close(), "twice is fine");
}

#[test]
fn conformance_simple_queue_closed() {
    let _dog = watchdog();
    let (tx, rx) = bounded_bytes(4).expect("a queue");
    assert!(!tx.is_closed() && !rx.is_closed());
    rx.close();
    assert!(tx.is_closed() && rx.is_closed());
}
