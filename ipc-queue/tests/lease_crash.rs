//! A process dies at each named crash point of an at-least-once queue: everything that was sent is done by somebody, and nothing
//! of the queue's memory is lost.
#![cfg(all(feature = "crash-points", not(loom)))]

mod common;

use common::{PATIENCE, Peer, Reporter, child as child_of_test, was_killed, watchdog};
use ipc_queue::{LeaseReceiver, LeaseSender, builder};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::time::Duration;

const MESSAGES: u32 = 12;
const LARGE: usize = 70_000;
/// The number of a message that ends a worker.
const STOP: u32 = 99;

#[derive(Debug, Serialize, Deserialize)]
struct Message {
    number: u32,
    padding: String,
}

#[derive(Serialize, Deserialize)]
enum Orders {
    /// Sends messages, and reports the number of each behind it.
    Send { tx: Box<LeaseSender<Message>>, padding: usize },
    /// Receives as many, refuses every third once, acknowledges, and reports the number of each behind it.
    Work { rx: LeaseReceiver<Message> },
}

#[test]
fn child() {
    child_of_test(|orders, reporter: &Reporter| match orders {
        Orders::Send { tx, padding } => {
            for number in 0..MESSAGES {
                tx.send(Message { number, padding: "x".repeat(padding) }).expect("sent");
                reporter.report(&number);
            }
        }
        Orders::Work { rx } => {
            for lease in rx.leases() {
                let lease = lease.expect("received");
                if lease.number == STOP {
                    lease.ack();
                    break;
                }
                if lease.number % 3 == 0 && !lease.is_redelivery() {
                    lease.nack();
                } else {
                    reporter.report(&lease.ack().number);
                }
            }
        }
    });
}

/// Room for exactly what the messages of a test need, so that a loss shows.
fn queue(padding: usize) -> (LeaseSender<Message>, LeaseReceiver<Message>) {
    let budget = if padding > 0 { (MESSAGES as usize + 1) * 131_072 } else { 0 };
    let queue = builder().capacity(16).byte_budget(budget).at_least_once().unfinished(20);
    queue.build().expect("a queue")
}

fn assert_nothing_is_lost(tx: &LeaseSender<Message>, rx: &LeaseReceiver<Message>, padding: usize) {
    assert_eq!(tx.unfinished(), 0);
    let new = |number| Message { number, padding: "x".repeat(padding) };
    // Everything that there is for large messages is needed again, or all cells.
    let count = if padding > 0 { MESSAGES + 1 } else { 20 };
    let mut held = Vec::new();
    for number in 0..count {
        tx.try_send(new(number)).expect("room");
        held.push(rx.try_recv_lease().expect("received"));
    }
    assert!(tx.try_send(new(count)).expect_err("all is in use").is_full());
    held.into_iter().for_each(|lease| drop(lease.ack()));
}

/// Starts a child that dies at the passage of the point, and returns what it reported.
fn dies(orders: Orders, point: &str, passage: u32) -> BTreeSet<u32> {
    let victim = Peer::start(&orders, Some(&format!("{point}:{passage}")));
    drop(orders);
    let reports = victim.reports::<u32>();
    assert!(was_killed(victim.wait()), "{point}:{passage} was not reached");
    let distinct: BTreeSet<_> = reports.iter().copied().collect();
    assert_eq!(distinct.len(), reports.len(), "{point}: twice: {reports:?}");
    distinct
}

fn sender_dies_at(point: &str, passage: u32, padding: usize) {
    let (tx, rx) = queue(padding);
    let sent = dies(Orders::Send { tx: Box::new(tx.clone()), padding }, point, passage);
    let mut arrived = BTreeSet::new();
    // Its own message, so that somebody needs what the dead one held.
    tx.send(Message { number: MESSAGES, padding: "x".repeat(padding) }).expect("sent");
    // What the dead one left half done may come behind the others.
    while !arrived.contains(&MESSAGES) || tx.wait_drained(Duration::from_millis(1)).is_err() {
        if let Ok(lease) = rx.recv_lease_timeout(Duration::from_millis(200)) {
            assert_eq!(lease.delivery_count(), 1);
            assert!(arrived.insert(lease.ack().number), "{point}: twice");
        }
    }
    arrived.remove(&MESSAGES);
    assert!(arrived.is_superset(&sent), "{point}: {sent:?} sent, {arrived:?} arrived");
    assert!(arrived.len() <= sent.len() + 1 && arrived.iter().copied().eq((0..).take(arrived.len())));
    assert_nothing_is_lost(&tx, &rx, padding);
}

/// Workers die one after the other, each at its point; then one lives.
fn workers_die_at(points: &[(&str, u32)], padding: usize) {
    let (tx, rx) = queue(padding);
    for number in 0..MESSAGES {
        tx.send(Message { number, padding: "x".repeat(padding) }).expect("sent");
    }
    let mut done = BTreeSet::new();
    let mut unreported = 0;
    for (point, passage) in points {
        let theirs = dies(Orders::Work { rx: rx.clone() }, point, *passage);
        assert!(done.is_disjoint(&theirs), "{points:?}: {theirs:?} after {done:?}");
        done.extend(theirs);
        // Acknowledged, but not reported.
        unreported += usize::from(*point == "cells.freed" || point.starts_with("chunks."));
    }
    let peer = Peer::start(&Orders::Work { rx: rx.clone() }, None);
    tx.wait_drained(PATIENCE).expect("the last one does the rest");
    tx.send(Message { number: STOP, padding: String::new() }).expect("sent");
    let rest: BTreeSet<u32> = peer.reports().into_iter().collect();
    assert!(peer.wait().success());
    assert_nothing_is_lost(&tx, &rx, padding);
    assert!(done.is_disjoint(&rest), "{points:?}: {rest:?} after {done:?}");
    done.extend(rest);
    let missing = (0..MESSAGES).filter(|number| !done.contains(number)).count();
    assert!(missing <= unreported, "{points:?}: {missing} missing of {done:?}");
}

#[test]
fn what_a_dead_sender_sent_arrives_once() {
    let _dog = watchdog();
    for point in
        ["cells.claimed", "cells.queued", "ring.push.claimed", "ring.push.written", "ring.push.published"]
    {
        for padding in [0, LARGE] {
            [1, 5].into_iter().for_each(|passage| sender_dies_at(point, passage, padding));
        }
    }
    for point in ["chunks.claimed", "chunks.tail_claimed", "chunks.queued", "queue.bulk.committed"] {
        sender_dies_at(point, 2, LARGE);
    }
}

#[test]
fn what_a_dead_worker_had_in_hand_is_done_by_another() {
    let _dog = watchdog();
    let points = [
        "ring.pop.claimed",
        "cells.taken",
        "ring.pop.read",
        "ring.pop.released",
        "cells.freed",
        "cells.returned",
        "cells.notice_down",
    ];
    for point in points {
        for padding in [0, LARGE] {
            [1, 3].into_iter().for_each(|passage| workers_die_at(&[(point, passage)], padding));
        }
    }
    for point in ["chunks.taken", "chunks.tail_freed", "chunks.freed"] {
        workers_die_at(&[(point, 2)], LARGE);
    }
}

#[test]
fn a_death_while_looking_after_another_is_looked_after() {
    let _dog = watchdog();
    for (first, second) in [
        ("cells.taken", "queue.sweep.cells"),
        ("ring.pop.claimed", "cells.collected"),
        ("cells.returned", "cells.notice_down"),
        ("cells.taken", "cells.taken"),
    ] {
        for padding in [0, LARGE] {
            workers_die_at(&[(first, 1), (second, 1)], padding);
        }
    }
}

#[test]
fn every_crash_point_of_cells_was_thought_of() {
    let known = [
        "cells.claimed",
        "cells.queued",
        "cells.taken",
        "cells.freed",
        "cells.returned",
        "cells.collected",
        "cells.notice_down",
    ];
    assert_eq!(ipc_queue::cells::CRASH_POINTS, known);
}
