//! At-least-once queues between real processes: whatever happens to a worker, its jobs are done.
#![cfg(not(loom))]
#![allow(clippy::cast_possible_truncation, reason = "process ids")]

mod common;

use common::{PATIENCE, Peer, Reporter, child as child_of_test, was_killed, watchdog, watchdog_after};
use ipc_queue::{
    LeaseReceiver, LeaseSender, Receiver, RecvError, RecvTimeoutError, Sender, bounded, builder,
};
use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Long enough that a waiting handle looks at its peers meanwhile.
const LOOKS: Duration = Duration::from_millis(300);

type Jobs = (LeaseSender<u32>, LeaseReceiver<u32>);

/// What a child does.
#[derive(Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "one of them is made per child")]
enum Orders {
    /// Sends these.
    Send(LeaseSender<u32>, std::ops::Range<u32>),
    /// Takes so many on lease, reports its process id, and keeps them until it is told whether to acknowledge them.
    Hold { rx: LeaseReceiver<u32>, count: usize, done: Receiver<bool> },
    /// Does everything that comes, and reports when it begins and when it has acknowledged.
    Work(LeaseReceiver<u32>),
    /// Reports its process id, then receives until the end and reports why it is the end.
    Wait(LeaseReceiver<u32>),
}

/// A report of a worker: its process id, or a job and how often it was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum Event {
    Here(u32),
    Begun(u32, u32),
    Done(u32, u32),
}

#[test]
fn child() {
    child_of_test(|orders, reporter: &Reporter| match orders {
        Orders::Send(tx, jobs) => jobs.for_each(|job| tx.send(job).expect("sent")),
        Orders::Hold { rx, count, done } => {
            let leases: Vec<_> = (0..count).map(|_| rx.recv_lease().expect("received")).collect();
            reporter.report(&Event::Here(std::process::id()));
            if done.recv().expect("told what to do") {
                for lease in leases {
                    lease.ack();
                }
            }
        }
        Orders::Work(rx) => {
            reporter.report(&Event::Here(std::process::id()));
            for lease in rx.leases() {
                let lease = lease.expect("decoded");
                let count = lease.delivery_count();
                reporter.report(&Event::Begun(*lease, count));
                reporter.report(&Event::Done(lease.ack(), count));
            }
        }
        Orders::Wait(rx) => {
            reporter.report(&Event::Here(std::process::id()));
            let end = rx.recv_lease().map(|lease| lease.ack());
            reporter.report(&matches!(end, Err(RecvError::Disconnected)));
        }
    });
}

fn jobs(capacity: usize) -> Jobs {
    builder().capacity(capacity).at_least_once().build().expect("a queue")
}

/// A worker that has so many leases, its process id, and how to tell it what to do with them.
fn holder(rx: &LeaseReceiver<u32>, count: usize) -> (Peer, Pid, Sender<bool>) {
    let (tell, done) = bounded(1).expect("a queue");
    let peer = Peer::start(&Orders::Hold { rx: rx.clone(), count, done }, None);
    let pid = here(&peer);
    (peer, pid, tell)
}

fn here(peer: &Peer) -> Pid {
    match peer.report() {
        Some(Event::Here(id)) => Pid::from_raw(id as i32).expect("a process id"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn both_ends_work_in_other_processes() {
    let _dog = watchdog();
    let (tx, rx) = jobs(4);
    let sender = Peer::start(&Orders::Send(tx.clone(), 0..100), None);
    let worker = Peer::start(&Orders::Work(rx), None);
    assert!(sender.wait().success());
    tx.wait_drained(PATIENCE).expect("drained");
    drop(tx);
    here(&worker);
    let expected = (0..100).flat_map(|job| [Event::Begun(job, 1), Event::Done(job, 1)]);
    assert!(worker.reports::<Event>().into_iter().eq(expected));
    assert!(worker.wait().success());
}

#[test]
fn leases_of_a_killed_worker_go_to_another_process() {
    let _dog = watchdog();
    let (tx, rx) = jobs(4);
    tx.send_batch([1, 2]).expect("sent");
    let (victim, _, _tell) = holder(&rx, 2);
    let other = Peer::start(&Orders::Work(rx), None);
    here(&other);
    assert!(was_killed(victim.kill()));
    tx.wait_drained(PATIENCE).expect("drained");
    drop(tx);
    let mut events = other.reports::<Event>();
    events.retain(|event| matches!(event, Event::Done(..)));
    events.sort_by_key(|event| format!("{event:?}"));
    assert_eq!(events, [Event::Done(1, 2), Event::Done(2, 2)]);
}

#[test]
fn a_stopped_worker_keeps_its_leases() {
    let _dog = watchdog();
    let (tx, rx) = jobs(4);
    tx.send(1).expect("sent");
    let (worker, pid, tell) = holder(&rx, 1);
    kill_process(pid, Signal::STOP).expect("stopped");
    assert!(rx.recv_lease_timeout(LOOKS).expect_err("it is not here").is_timeout());
    assert!(tx.wait_drained(LOOKS).expect_err("it is not done").is_timeout());
    kill_process(pid, Signal::CONT).expect("continued");
    tell.send(true).expect("told");
    tx.wait_drained(PATIENCE).expect("done by the one who had it");
    assert!(worker.wait().success());
    assert_eq!(rx.unfinished(), 0);
}

#[test]
fn waiting_for_the_end_outlives_the_only_worker() {
    let _dog = watchdog();
    let (tx, rx) = jobs(4);
    tx.send_batch([1, 2]).expect("sent");
    let (victim, _, _tell) = holder(&rx, 1);
    let waiting = thread::spawn(move || tx.wait_drained(PATIENCE));
    assert!(was_killed(victim.kill()));
    let successor = Peer::start(&Orders::Work(rx), None);
    waiting.join().expect("no panic").expect("drained");
    here(&successor);
    let mut done: Vec<_> = successor.reports().into_iter().filter(|e| matches!(e, Event::Done(..))).collect();
    done.sort_by_key(|event| format!("{event:?}"));
    assert_eq!(done, [Event::Done(1, 2), Event::Done(2, 1)]);
}

#[test]
fn a_receiver_waits_for_what_other_processes_have_on_lease() {
    let _dog = watchdog();
    let (tx, rx) = jobs(4);
    tx.send(1).expect("sent");
    let (worker, _, tell) = holder(&rx, 1);
    drop(tx);
    assert!(matches!(rx.recv_lease_timeout(LOOKS), Err(RecvTimeoutError::Timeout)));
    assert!(rx.try_recv_lease().expect_err("nothing yet").is_empty());
    let waiting = Peer::start(&Orders::Wait(rx.clone()), None);
    here(&waiting);
    tell.send(true).expect("told");
    assert_eq!(waiting.report(), Some(true), "woken by the acknowledgement");
    assert!(matches!(rx.recv_lease(), Err(RecvError::Disconnected)));
    assert!(worker.wait().success());
}

#[test]
fn a_receiver_that_waits_for_leases_of_others_uses_no_processor() {
    let _dog = watchdog();
    let (tx, rx) = builder().capacity(4).at_least_once().unfinished(100_000).build().expect("a queue");
    tx.send(1).expect("sent");
    let (_worker, _, _tell) = holder(&rx, 1);
    drop(tx);
    let used = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).expect("a time");
    let before = used();
    assert!(rx.recv_lease_timeout(2 * LOOKS).expect_err("nothing yet").is_timeout());
    let used = used() - before;
    assert!(used * 4 < 2 * LOOKS, "{used:?}");
}

#[test]
fn a_receiver_without_senders_gets_what_a_killed_worker_had() {
    let _dog = watchdog();
    let (tx, rx) = jobs(4);
    tx.send(1).expect("sent");
    let (worker, _, _tell) = holder(&rx, 1);
    drop(tx);
    let there = rx.clone();
    let waiting =
        thread::spawn(move || there.recv_lease().map(|lease| (lease.delivery_count(), lease.ack())));
    assert!(was_killed(worker.kill()));
    assert_eq!(waiting.join().expect("no panic").expect("it came back"), (2, 1));
    assert!(matches!(rx.recv_lease(), Err(RecvError::Disconnected)));
}

#[test]
fn a_receiver_with_leases_does_not_wait_for_those_of_others() {
    let _dog = watchdog();
    let (tx, rx) = jobs(4);
    tx.send_batch([1, 2]).expect("sent");
    let (worker, _, tell) = holder(&rx, 1);
    let own = rx.recv_lease().expect("received");
    drop(tx);
    assert!(matches!(rx.recv_lease(), Err(RecvError::Disconnected)));
    own.ack();
    assert!(matches!(rx.recv_lease_timeout(LOOKS), Err(RecvTimeoutError::Timeout)));
    // Its end gives back what it had.
    tell.send(false).expect("told");
    let lease = rx.recv_lease().expect("received");
    assert_eq!(lease.delivery_count(), 2);
    lease.ack();
    assert!(worker.wait().success());
}

#[test]
fn a_closed_queue_waits_for_what_other_processes_have_on_lease() {
    let _dog = watchdog();
    let (tx, rx) = jobs(4);
    tx.send(1).expect("sent");
    let (worker, _, tell) = holder(&rx, 1);
    tx.close();
    assert!(matches!(rx.recv_lease_timeout(LOOKS), Err(RecvTimeoutError::Timeout)));
    tell.send(true).expect("told");
    assert!(matches!(rx.recv_lease(), Err(RecvError::Closed)));
    assert!(worker.wait().success());
}

/// Starts a worker whose reports go to `events`; returns its process id.
fn work(rx: &LeaseReceiver<u32>, events: &mpsc::SyncSender<Event>) -> Pid {
    let peer = Peer::start(&Orders::Work(rx.clone()), None);
    let pid = here(&peer);
    let events = events.clone();
    thread::spawn(move || {
        while let Some(event) = peer.report() {
            events.send(event).expect("somebody listens");
        }
    });
    pid
}

#[test]
fn jobs_of_workers_that_are_killed_at_random_are_all_done() {
    const JOBS: u32 = 20_000;
    const KILLS: u32 = 12;
    let _dog = watchdog_after(5 * PATIENCE);
    let (tx, rx) = jobs(64);
    // Workers wait for whoever reads their reports, so that kills hit them in the middle.
    let (sender, events) = mpsc::sync_channel(16);
    let mut workers: Vec<_> = (0..3).map(|_| work(&rx, &sender)).collect();
    let boss = thread::spawn(move || {
        (0..JOBS).for_each(|job| tx.send(job).expect("sent"));
        tx.wait_drained(5 * PATIENCE)
        // From here on workers find no sender.
    });
    let mut kills = Vec::new();
    let mut random = 0x2545_F491_4F6C_DD1D_u64;
    let mut sender = Some(sender);
    let (mut begun, mut done) = (BTreeMap::<u32, BTreeSet<u32>>::new(), BTreeMap::new());
    for (step, event) in (1_u32..).zip(events.iter()) {
        match event {
            Event::Begun(job, count) => {
                assert!(begun.entry(job).or_default().insert(count), "{event:?} twice")
            }
            Event::Done(job, count) => {
                assert_eq!(done.insert(job, count), None, "{event:?} after it was done")
            }
            Event::Here(_) => panic!("{event:?}"),
        }
        // The last one well before the end, when every worker is alive because senders are.
        if step % 2000 == 0 && kills.len() < KILLS as usize {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let index = random as usize % workers.len();
            kill_process(workers[index], Signal::KILL).expect("killed");
            kills.push(workers[index]);
            workers[index] = work(&rx, sender.as_ref().expect("more to come"));
        }
        if kills.len() == KILLS as usize {
            sender = None;
        }
    }
    assert!(boss.join().expect("no panic").is_ok(), "drained");
    assert_eq!(rx.unfinished(), 0);
    assert_eq!(begun.len(), JOBS as usize, "every job was begun");
    // A worker that was killed between an acknowledgement and its report.
    let unreported = JOBS as usize - done.len();
    assert!(unreported <= KILLS as usize, "{unreported} jobs were not reported");
    for (job, counts) in &begun {
        let last = counts.last().expect("at least one");
        assert!(
            done.get(job).is_none_or(|done| done == last),
            "{job}: {counts:?}, but done at {:?}",
            done.get(job)
        );
    }
}
