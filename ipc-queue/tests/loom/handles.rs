//! Senders and receivers as users' models have them: sleeping, disconnect, and processes that die.

use super::explore;
use ipc_queue::model::{Process, step};
use ipc_queue::{
    PlainReceiver, PlainSender, RecvError, RecvTimeoutError, SendError, TryRecvError, bounded, bounded_plain,
};
use loom::thread;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::time::Duration;

type Ends = (PlainSender<u64>, PlainReceiver<u64>);

fn queue(capacity: usize) -> Ends {
    bounded_plain(capacity).unwrap()
}

/// Starts a process that runs `body`. What it returns says whether it died.
fn start(process: &Process, body: impl FnOnce() + 'static) -> thread::JoinHandle<bool> {
    let process = process.clone();
    thread::spawn(move || process.run(body).is_none())
}

fn full_and_empty_ends_sleep_and_are_woken() {
    let (tx, rx) = queue(1);
    let sender = thread::spawn(move || (1..=3).for_each(|message| tx.send(message).unwrap()));
    assert_eq!(rx.iter().map(Result::unwrap).collect::<Vec<_>>(), [1, 2, 3]);
    sender.join().unwrap();
}

fn the_last_drop_of_a_side_wakes_the_other() {
    let (tx, rx) = queue(1);
    let second = tx.clone();
    let receiver = thread::spawn(move || rx.recv());
    let dropper = thread::spawn(move || drop(second));
    drop(tx);
    assert!(matches!(receiver.join().unwrap(), Err(RecvError::Disconnected)));
    dropper.join().unwrap();
}

fn a_sleeping_sender_learns_that_nobody_receives() {
    let (tx, rx) = queue(1);
    tx.send(1).unwrap();
    let sender = thread::spawn(move || tx.send(2));
    drop(rx);
    assert_eq!(sender.join().unwrap().unwrap_err().into_inner(), 2);
}

/// Nothing waits for time in a model, and any serde type goes through it.
fn a_timeout_is_over_at_once() {
    let (tx, rx) = bounded::<String>(1).unwrap();
    let hour = Duration::from_secs(3600);
    assert!(matches!(rx.recv_timeout(hour), Err(RecvTimeoutError::Timeout)));
    tx.send_timeout("one".into(), hour).unwrap();
    assert!(tx.send_timeout("two".into(), hour).unwrap_err().is_timeout());
    assert!(tx.try_send("two".into()).unwrap_err().is_full());
    assert!(tx.send("x".repeat(240)).is_err_and(|error| error.is_too_large()));
    assert_eq!(rx.try_recv().unwrap(), "one");
    assert!(matches!(rx.try_recv(), Err(TryRecvError::Empty)));
    assert_eq!((rx.len(), rx.capacity(), rx.max_message_len()), (0, 1, 240));
}

/// What was sent with success is received by whoever receives until it is told that the queue is closed.
fn a_send_against_a_close() {
    let (tx, rx) = queue(1);
    let sender = thread::spawn({
        let tx = tx.clone();
        move || tx.send(1)
    });
    let closer = thread::spawn(move || tx.close());
    let got: Vec<_> = rx.iter().map(Result::unwrap).collect();
    assert!(closer.join().unwrap() && rx.is_closed());
    match sender.join().unwrap() {
        Ok(()) => assert_eq!(got, [1]),
        Err(error) => {
            assert!(error.is_closed() && got.is_empty(), "{error:?}, {got:?}");
            assert_eq!(error.into_inner(), 1);
        }
    }
}

/// Each of two receivers is told, whoever gets the message; they may have slept over the claim of it.
fn every_receiver_learns_of_a_close() {
    let (tx, rx) = queue(1);
    let other = thread::spawn({
        let rx = rx.clone();
        move || rx.into_iter().map(Result::unwrap).count()
    });
    let sender = thread::spawn(move || {
        let sent = tx.send(1).is_ok();
        tx.close();
        sent
    });
    let got = rx.iter().map(Result::unwrap).count();
    assert_eq!(got + other.join().unwrap(), usize::from(sender.join().unwrap()));
    assert!(rx.recv().unwrap_err().is_closed());
}

/// It has sent what there is room for.
fn a_sleeping_sender_learns_of_a_close() {
    let (tx, rx) = queue(1);
    tx.send(1).unwrap();
    let sender = thread::spawn(move || tx.send(2));
    assert!(rx.close());
    assert!(!rx.close());
    assert!(matches!(sender.join().unwrap(), Err(SendError::Closed(2))));
    assert_eq!(rx.recv().unwrap(), 1);
    assert!(matches!(rx.recv(), Err(RecvError::Closed)));
    assert!(matches!(rx.try_recv(), Err(TryRecvError::Closed)));
    assert!(matches!(rx.recv_timeout(Duration::ZERO), Err(RecvTimeoutError::Closed)));
}

/// Wherever a sender dies, it holds up nobody who waits for the end.
fn a_sender_is_killed_while_the_queue_is_closed() {
    let (tx, rx) = queue(1);
    let victim = Process::new(1);
    let doomed = start(&victim, {
        let tx = tx.clone();
        move || drop(tx.send(1))
    });
    victim.kill();
    assert!(tx.close());
    assert!(rx.iter().count() <= 1);
    doomed.join().unwrap();
    assert!(rx.try_recv().unwrap_err().is_closed());
}

/// By reference and by value, as a scheduler's loops have it.
fn a_receiver_is_iterated() {
    let (tx, rx) = queue(2);
    let sender = thread::spawn(move || (1..=3).for_each(|message| tx.send(message).unwrap()));
    let mut got = Vec::new();
    for message in &rx {
        got.push(message.unwrap());
        if got.len() == 2 {
            break;
        }
    }
    for message in rx {
        got.push(message.unwrap());
    }
    assert_eq!(got, [1, 2, 3]);
    sender.join().unwrap();
}

/// What came of the runs of the next model.
static OUTCOMES: Mutex<BTreeSet<(bool, Vec<u64>)>> = Mutex::new(BTreeSet::new());

/// Wherever the only sender dies: the sleeping receiver gets what it had sent, whole, and learns that it is gone.
fn a_sender_is_killed_anywhere() {
    let (tx, rx) = queue(2);
    let victim = Process::new(1);
    let doomed = start(&victim, move || (1..=2).for_each(|message| tx.send(message).unwrap()));
    victim.kill();
    let got: Vec<_> = rx.iter().map(Result::unwrap).collect();
    let died = doomed.join().unwrap();
    assert!(got == [1, 2] || (died && (got.is_empty() || got == [1])), "{got:?}");
    assert_eq!(victim.is_dead(), died);
    OUTCOMES.lock().insert((died, got));
}

#[test]
fn a_kill_is_explored_before_between_and_behind_all_steps() {
    explore(a_sender_is_killed_anywhere);
    let all = [(false, vec![1, 2]), (true, vec![]), (true, vec![1]), (true, vec![1, 2])];
    assert_eq!(*OUTCOMES.lock(), BTreeSet::from(all));
}

/// Wherever a receiver dies, asleep or with a message: the other one gets all but that.
fn a_receiver_is_killed_anywhere() {
    let (tx, rx) = queue(2);
    let victim = Process::new(1);
    let other = rx.clone();
    let doomed = start(&victim, move || drop(other.recv()));
    victim.kill();
    [1, 2].into_iter().for_each(|message| tx.send(message).unwrap());
    drop(tx);
    let got: Vec<_> = rx.iter().map(Result::unwrap).collect();
    assert!([&[1, 2][..], &[1], &[2]].contains(&&got[..]), "{got:?}");
    doomed.join().unwrap();
}

/// Its claim stands in front of another sender's message until the death is seen.
fn a_sender_dies_in_its_slot() {
    let (tx, rx) = queue(2);
    let other = tx.clone();
    let doomed = start(&Process::dying_at(1, "ring.push.claimed", 1), move || other.send(1).unwrap());
    tx.send(2).unwrap();
    assert_eq!(rx.recv().unwrap(), 2);
    assert!(doomed.join().unwrap());
    // It may as well have claimed the slot behind.
    drop(tx);
    assert!(matches!(rx.recv(), Err(RecvError::Disconnected)));
}

/// A process that is told to die at a later passage, or at a step that it never comes to.
fn a_death_has_its_place() {
    let (tx, rx) = queue(3);
    let other = tx.clone();
    let second = Process::dying_at(1, "ring.push.before_claim", 2);
    assert!(second.run(move || [1, 2].map(|message| other.send(message).is_ok())).is_none());
    let never = Process::dying_at(2, "elsewhere", 1);
    assert!(never.run(move || tx.send(3).unwrap()).is_some());
    assert!(Process::dying_at(3, "mine", 1).run(|| step("mine")).is_none());
    assert_eq!(rx.iter().map(Result::unwrap).collect::<Vec<_>>(), [1, 3]);
    assert!(second.is_dead() && !never.is_dead());
}

macro_rules! models {
    ($($name:ident)*) => {
        $(
            mod $name {
                #[test]
                fn holds() {
                    super::explore(super::$name);
                }
            }
        )*
    };
}

models! {
    full_and_empty_ends_sleep_and_are_woken
    the_last_drop_of_a_side_wakes_the_other
    a_sleeping_sender_learns_that_nobody_receives
    a_timeout_is_over_at_once
    a_send_against_a_close
    every_receiver_learns_of_a_close
    a_sleeping_sender_learns_of_a_close
    a_sender_is_killed_while_the_queue_is_closed
    a_receiver_is_iterated
    a_sender_is_killed_anywhere
    a_receiver_is_killed_anywhere
    a_sender_dies_in_its_slot
    a_death_has_its_place
}
