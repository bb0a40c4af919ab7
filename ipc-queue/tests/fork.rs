//! Handles in a forked child: they keep working, and hold their side of the queue from the fork on.
#![cfg(not(loom))]
#![allow(unsafe_code, reason = "forks")]

mod common;

use common::watchdog;
use ipc_queue::{Receiver, RecvError, Sender, TrySendError, bounded, bounded_plain, builder};
use parking_lot::{Mutex, MutexGuard};
use rustix::process::{Pid, Resource, Rlimit, Signal, WaitOptions, kill_process, setrlimit, waitpid};
use shm_core::handle::{ReceiveSession, SendSession};
use std::time::Duration;

/// A fork copies what other tests have open, handles on the way included: one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock()
}

/// A forked process that runs `body`; killed when dropped. What the child shall drop before the parent does is an
/// `Option` that it takes from.
struct Child(Pid);

impl Child {
    fn fork(body: impl FnOnce() -> bool) -> Self {
        // SAFETY: the child runs on the thread that forked, and only `body`.
        Self::of(unsafe { libc::fork() }, body)
    }

    /// A fork behind the back of the C library.
    fn clone(body: impl FnOnce() -> bool) -> Self {
        // SAFETY: as a fork: nothing is shared, no stack is given.
        let id = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
        Self::of(i32::try_from(id).expect("a process id"), body)
    }

    fn of(id: i32, body: impl FnOnce() -> bool) -> Self {
        if id == 0 {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).expect("a child may die");
            let fine = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(false);
            // SAFETY: ends the child without running what belongs to its parent.
            unsafe { libc::_exit(if fine { 0 } else { 1 }) };
        }
        Self(Pid::from_raw(id).expect("forked"))
    }

    #[track_caller]
    fn succeeds(self) {
        let status = waitpid(Some(self.0), WaitOptions::empty()).expect("collected").expect("a status").1;
        std::mem::forget(self);
        assert_eq!(status.exit_status(), Some(0), "what the child found is not as it should be: {status:?}");
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::KILL);
        let _ = waitpid(Some(self.0), WaitOptions::empty());
    }
}

/// Waits for ever, until it is killed.
fn stay() -> bool {
    loop {
        std::thread::park();
    }
}

fn line() -> (Sender<u64>, Receiver<u64>) {
    bounded(16).expect("a queue")
}

#[test]
fn a_child_receives_what_its_parent_sends() {
    let (_dog, _alone) = (watchdog(), alone());
    let (tx, rx) = line();
    let child = Child::fork(|| (0..100).all(|i| rx.recv().expect("received") == i));
    (0..100).for_each(|i| tx.send(i).expect("sent"));
    child.succeeds();
    assert!(rx.is_empty());
}

#[test]
fn a_parent_receives_what_its_child_sends() {
    let (_dog, _alone) = (watchdog(), alone());
    let (tx, rx) = bounded_plain::<[u64; 3]>(4).expect("a queue");
    let child = Child::fork(|| {
        tx.send_batch((0..100).map(|i| [i; 3]).collect::<Vec<_>>()).expect("sent");
        true
    });
    (0..100).for_each(|i| assert_eq!(rx.recv().expect("received"), [i; 3]));
    child.succeeds();
}

#[test]
fn what_was_in_the_queue_at_the_fork_goes_to_one_of_them() {
    let (_dog, _alone) = (watchdog(), alone());
    let (tx, rx) = line();
    tx.send_batch([1, 2, 3]).expect("sent");
    assert_eq!(rx.recv().expect("received"), 1);
    Child::fork(|| rx.recv().expect("received") == 2).succeeds();
    assert_eq!(rx.recv().expect("received"), 3);
}

#[test]
fn a_parent_that_lets_go_at_once_leaves_the_child_its_copy() {
    let (_dog, _alone) = (watchdog(), alone());
    for _ in 0..50 {
        let (tx, rx) = bounded(1).expect("a queue");
        tx.send(7).expect("sent");
        let child = Child::fork(|| rx.recv().expect("received") == 7 && rx.recv().expect("received") == 8);
        drop(rx);
        // A new handle that finds no room asks the system at once: no moment may look like the end.
        while let Err(error) = tx.clone().try_send(8) {
            assert!(error.is_full(), "{error}");
        }
        child.succeeds();
        assert!(tx.send(9).is_err() || tx.send(9).is_err(), "nobody is left");
    }
}

#[test]
fn a_child_holds_its_side_until_it_drops_its_copy() {
    let (_dog, _alone) = (watchdog(), alone());
    let ((tx, rx), (go, wait)) = (line(), line());
    let mut tx = Some(tx);
    let child = Child::fork(|| {
        wait.recv().expect("told to go on");
        // Without having used any handle of that queue.
        drop(tx.take());
        stay()
    });
    drop(tx);
    assert!(rx.recv_timeout(Duration::from_millis(150)).expect_err("nothing sent").is_timeout());
    go.send(0).expect("sent");
    assert!(matches!(rx.recv(), Err(RecvError::Disconnected)));
    drop(child);
}

#[test]
fn a_child_does_not_have_its_parents_leases() {
    let (_dog, _alone) = (watchdog(), alone());
    let (tx, rx) = builder::<u64>().capacity(4).at_least_once().build().expect("a queue");
    tx.send_batch([1, 2, 3]).expect("sent");
    let mut first = Some(rx.recv_lease().expect("received"));
    let mut second = Some(rx.recv_lease().expect("received"));
    Child::fork(|| {
        let lease = first.take().expect("a copy");
        let ack = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| lease.ack()));
        let message = *ack.expect_err("it is its parent's").downcast::<&str>().expect("a message");
        drop(second.take());
        // What it receives itself is its own.
        message == "a forked child has not the leases of its parent"
            && rx.recv_lease().expect("received").ack() == 3
    })
    .succeeds();
    assert!(rx.try_recv_lease().expect_err("nothing came back").is_empty());
    assert_eq!(rx.unfinished(), 2);
    second.expect("a lease").nack();
    let again = rx.recv_lease().expect("it came back");
    assert_eq!((again.delivery_count(), again.ack()), (2, 2));
    first.expect("a lease").ack();
    tx.wait_drained(Duration::ZERO).expect("all is done");
}

#[test]
fn a_copy_that_was_used_and_dropped_is_gone() {
    let (_dog, _alone) = (watchdog(), alone());
    let (tx, rx) = line();
    let mut tx = Some(tx);
    let child = Child::fork(|| {
        tx.take().expect("a sender").send(1).expect("sent");
        stay()
    });
    drop(tx);
    assert_eq!(rx.recv().expect("received"), 1);
    assert!(matches!(rx.recv(), Err(RecvError::Disconnected)));
    drop(child);
}

#[test]
fn copies_that_are_dropped_before_the_first_use_do_not_count() {
    let (_dog, _alone) = (watchdog(), alone());
    let (tx, rx) = line();
    let (mut more, mut tx) = (Some(tx.clone()), Some(tx));
    let child = Child::fork(|| {
        drop(tx.take());
        more.take().expect("a sender").send(1).expect("sent");
        stay()
    });
    drop((tx, more));
    assert_eq!(rx.recv().expect("received"), 1);
    assert!(matches!(rx.recv(), Err(RecvError::Disconnected)));
    drop(child);
}

#[test]
fn a_child_that_is_killed_lets_go() {
    let (_dog, _alone) = (watchdog(), alone());
    for used in [false, true] {
        let (tx, rx) = line();
        let child = Child::fork(|| {
            if used {
                tx.send(1).expect("sent");
            }
            stay()
        });
        drop(tx);
        if used {
            assert_eq!(rx.recv().expect("received"), 1);
        }
        drop(child);
        assert!(matches!(rx.recv(), Err(RecvError::Disconnected)));
    }
}

#[test]
fn a_child_that_executes_another_program_lets_go() {
    let (_dog, _alone) = (watchdog(), alone());
    let (tx, rx) = line();
    let child = Child::fork(|| {
        let arguments = [c"sleep".as_ptr(), c"1000".as_ptr(), std::ptr::null()];
        // SAFETY: strings with their ends, and a null behind them.
        unsafe { libc::execvp(arguments[0], arguments.as_ptr()) };
        false
    });
    drop(tx);
    assert!(matches!(rx.recv(), Err(RecvError::Disconnected)));
    drop(child);
}

#[test]
fn the_parent_may_end_first() {
    let (_dog, _alone) = (watchdog(), alone());
    let ((tx, rx), (report, reports)) = (line(), line());
    let mut tx = Some(tx);
    // The grandchild attaches when its parent is gone, and ends when we let go.
    let child = Child::fork(|| {
        // SAFETY: as in `Child::fork`.
        if unsafe { libc::fork() } == 0 {
            drop(tx.take());
            let sum: u64 = rx.iter().map(|n| n.expect("received")).sum();
            report.send(sum).expect("sent");
            // SAFETY: as in `Child::of`.
            unsafe { libc::_exit(0) };
        }
        true
    });
    child.succeeds();
    drop((rx, report));
    let tx = tx.expect("the parent's");
    tx.send_batch([1, 2, 3]).expect("the grandchild has a receiver");
    drop(tx);
    assert_eq!(reports.recv().expect("received"), 6);
    assert!(matches!(reports.recv(), Err(RecvError::Disconnected)));
}

#[test]
fn handles_in_a_child_can_be_cloned_and_sent() {
    let (_dog, _alone) = (watchdog(), alone());
    let (tx, rx) = line();
    let child = Child::fork(|| {
        let session = SendSession::begin();
        let bytes = postcard::to_stdvec(&tx).expect("in a session");
        let receive = ReceiveSession::begin(session.finish());
        let again: Sender<u64> = postcard::from_bytes(&bytes).expect("arrived");
        drop(receive);
        again.send(1).expect("sent");
        tx.clone().send(2).expect("sent");
        true
    });
    child.succeeds();
    assert_eq!((rx.recv().expect("received"), rx.recv().expect("received")), (1, 2));
    drop(tx);
    assert!(matches!(rx.recv(), Err(RecvError::Disconnected)));
}

#[test]
fn handles_of_a_child_are_fetched_from_the_child() {
    let (_dog, _alone) = (watchdog(), alone());
    let (parcels, there) = bounded::<Sender<u64>>(4).expect("a queue");
    let ((tx, rx), (mine, _rx)) = (line(), line());
    parcels.send(mine).expect("this process has a broker");
    let child = Child::fork(|| {
        parcels.send(tx.clone()).expect("sent");
        stay()
    });
    drop(there.recv().expect("the parent's"));
    there.recv().expect("the child's").send(5).expect("sent");
    assert_eq!(rx.recv().expect("received"), 5);
    drop(child);
}

#[test]
fn children_of_many_forks_share_the_work() {
    let (_dog, _alone) = (watchdog(), alone());
    let ((tx, rx), (report, reports)) = (line(), line());
    let mut tx = Some(tx);
    let mut work = || {
        drop(tx.take());
        let sum = rx.iter().map(|n| n.expect("received")).sum::<u64>();
        report.send(sum).expect("sent");
        true
    };
    let children: Vec<_> = (0..8).map(|_| Child::fork(&mut work)).collect();
    let tx = tx.expect("the parent's");
    drop((rx, report));
    (0..1000).for_each(|i| tx.send(i).expect("sent"));
    drop(tx);
    let total: u64 = reports.iter().map(|sum| sum.expect("received")).sum();
    assert_eq!(total, 499_500);
    children.into_iter().for_each(Child::succeeds);
}

#[test]
fn a_fork_that_skips_the_handlers_is_told_so_and_changes_nothing() {
    let (_dog, _alone) = (watchdog(), alone());
    let (tx, rx) = line();
    let (mut tx, mut rx) = (Some(tx), Some(rx));
    let child = Child::clone(|| {
        let (tx, rx) = (tx.take().expect("a sender"), rx.take().expect("a receiver"));
        matches!(tx.try_send(1), Err(TrySendError::Forked(1)))
            && matches!(rx.recv(), Err(RecvError::Forked))
            && tx.is_empty()
            && matches!(tx.clone().try_send(1), Err(TrySendError::Forked(1)))
    });
    child.succeeds();
    let (tx, rx) = (tx.expect("the parent's"), rx.expect("the parent's"));
    tx.send(2).expect("the queue is as it was");
    assert_eq!(rx.recv().expect("received"), 2);
    drop(tx);
    assert!(matches!(rx.recv(), Err(RecvError::Disconnected)));
}

#[test]
fn printing_a_copy_does_not_attach() {
    let (_dog, _alone) = (watchdog(), alone());
    let (tx, rx) = line();
    Child::fork(|| {
        format!("{tx:?}") == "Sender { capacity: 16, forked: true, .. }"
            && tx.is_empty()
            && format!("{rx:?}") == "Receiver { capacity: 16, len: 0, .. }"
    })
    .succeeds();
}

#[test]
fn a_child_closes_the_queue_for_its_parent() {
    let (_dog, _alone) = (watchdog(), alone());
    let (tx, rx) = line();
    tx.send(1).expect("sent");
    Child::fork(|| tx.close() && !rx.close() && tx.is_closed()).succeeds();
    assert!(tx.is_closed() && tx.send(2).expect_err("closed").is_closed());
    assert_eq!(rx.recv().expect("sent before"), 1);
    assert!(rx.recv().expect_err("closed").is_closed());
}

#[test]
fn a_child_is_woken_by_the_close_of_its_parent() {
    let (_dog, _alone) = (watchdog(), alone());
    let (tx, rx) = line();
    let child = Child::fork(|| rx.recv().is_ok() && rx.recv().is_err_and(|error| error.is_closed()));
    tx.send(1).expect("sent");
    while !tx.is_empty() {
        std::thread::yield_now();
    }
    assert!(tx.close());
    child.succeeds();
}

#[test]
fn a_child_that_cannot_attach_finds_no_message_in_an_at_least_once_queue() {
    let (_dog, _alone) = (watchdog(), alone());
    let (tx, rx) = builder::<u64>().capacity(16).at_least_once().build().expect("a queue");
    tx.send(1).expect("sent");
    Child::fork(|| {
        let few = Rlimit { current: Some(3), maximum: Some(3) };
        setrlimit(Resource::Nofile, few).expect("no descriptor for an attachment");
        rx.is_empty()
            && !tx.is_full()
            && !rx.is_full()
            && (tx.max_unfinished(), tx.unfinished()) == (rx.max_unfinished(), 0)
            && !rx.is_closed()
            && format!("{rx:?}").starts_with("LeaseReceiver")
    })
    .succeeds();
    assert_eq!(rx.recv_lease().expect("received").ack(), 1);
}

#[test]
fn a_child_that_cannot_attach_closes_nothing() {
    let (_dog, _alone) = (watchdog(), alone());
    let (tx, rx) = line();
    Child::clone(|| !tx.close() && !tx.is_closed() && !rx.close()).succeeds();
    assert!(!rx.is_closed());
    assert!(tx.close() && rx.is_closed());
}
