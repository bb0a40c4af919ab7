//! Queue ends travel in arguments and results, and disconnection follows the processes that hold them.

mod common;

use common::watchdog;
use proc_pool::queue::{Receiver, Sender, bounded};
use proc_pool::{Process, TaskError};

/// Longer than the queue.
const COUNT: u64 = 1000;

fn produce((tx, count): (Sender<u64>, u64)) {
    (0..count).for_each(|i| tx.send(i).expect("somebody receives"));
}

fn add_up(rx: Receiver<u64>) -> u64 {
    rx.iter().map(|item| item.expect("it decodes")).sum()
}

#[test]
fn a_child_sends_through_the_sender_in_its_argument() {
    let _dog = watchdog();
    let (tx, rx) = bounded(16).expect("a queue");
    let child = Process::spawn(produce, (tx, COUNT)).expect("spawned");
    assert_eq!(add_up(rx), COUNT * (COUNT - 1) / 2, "all of them, and then the end");
    assert_eq!(child.join(), Ok(()));
}

#[test]
fn a_receiver_on_its_way_to_a_child_is_no_disconnection() {
    let _dog = watchdog();
    let (tx, rx) = bounded(16).expect("a queue");
    let child = Process::spawn(add_up, rx).expect("spawned");
    produce((tx, COUNT));
    assert_eq!(child.join(), Ok(COUNT * (COUNT - 1) / 2));
}

#[test]
fn both_ends_in_children_need_no_parent_between() {
    let _dog = watchdog();
    let (tx, rx) = bounded(16).expect("a queue");
    let consumer = Process::spawn(add_up, rx).expect("spawned");
    let producers = [(); 2].map(|()| Process::spawn(produce, (tx.clone(), COUNT)).expect("spawned"));
    drop(tx);
    for producer in producers {
        assert_eq!(producer.join(), Ok(()));
    }
    assert_eq!(consumer.join(), Ok(COUNT * (COUNT - 1)));
}

#[test]
fn a_queue_end_comes_back_as_a_result() {
    let _dog = watchdog();
    let child = Process::spawn(
        |()| {
            let (tx, rx) = bounded::<u64>(16).expect("a queue");
            tx.send(7).expect("room");
            (tx, rx)
        },
        (),
    )
    .expect("spawned");
    let (tx, rx) = child.join().expect("a result");
    drop(tx);
    assert_eq!(add_up(rx), 7);
    assert!(matches!(child.join(), Err(TaskError::Unavailable { .. })));
}

#[test]
fn a_killed_consumer_is_a_disconnection() {
    let _dog = watchdog();
    let (tx, rx) = bounded(16).expect("a queue");
    let child = Process::spawn(
        |rx: Receiver<u64>| -> u8 {
            rx.recv().expect("one item");
            common::sleep_forever()
        },
        rx,
    )
    .expect("spawned");
    tx.send(0).expect("the child receives");
    child.kill().expect("killed");
    while tx.send(1).is_ok() {}
}

#[test]
fn conformance_process_nested_start_method() {
    let _dog = watchdog();
    let (tx, rx) = bounded(16).expect("a queue");
    let pass_on = |tx: Sender<u64>| {
        let child = Process::spawn(produce, (tx, COUNT)).expect("spawned");
        child.join().expect("no failure");
    };
    let child = Process::spawn(pass_on, tx).expect("spawned");
    assert_eq!(add_up(rx), COUNT * (COUNT - 1) / 2);
    assert_eq!(child.join(), Ok(()));
}
