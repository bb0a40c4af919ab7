//! Draining.

use super::*;

#[test]
fn draining_takes_everything_in_order() {
    let _dog = watchdog();
    for count in [0, 1, 63, 64, 65, 200] {
        let (_tx, rx) = filled(count.max(1));
        if count == 0 {
            rx.recv().expect("received");
        }
        assert!(rx.drain().map(|message| message.expect("received")).eq(0..count));
        assert!(rx.is_empty());
    }
}

#[test]
fn draining_ends_although_others_go_on_sending() {
    let _dog = watchdog();
    let (tx, rx) = filled(5);
    let mut drained = Vec::new();
    for message in rx.drain() {
        drained.push(message.expect("received"));
        tx.send(100).expect("sent");
    }
    assert_eq!(drained, [0, 1, 2, 3, 4]);
    assert_eq!(rx.len(), 5);
}

#[test]
fn draining_plain_data_is_the_same() {
    let _dog = watchdog();
    let (tx, rx) = bounded_plain::<u64>(100).expect("a queue");
    tx.send_batch((0..100).collect::<Vec<_>>()).expect("sent");
    let mut drain = rx.drain();
    assert_eq!(drain.size_hint(), (0, Some(100)));
    assert_eq!(drain.next().expect("one").expect("received"), 0);
    assert_eq!(drain.size_hint(), (63, Some(99)));
    assert_eq!(drain.count(), 99);
}

#[test]
fn draining_goes_on_behind_what_does_not_decode() {
    let _dog = watchdog();
    let (tx, rx) = bounded(8).expect("a queue");
    (1..=4).for_each(|n| tx.send(Even(n)).expect("sent"));
    let even: Vec<_> = rx.drain().map(|message| message.is_ok()).collect();
    assert_eq!(even, [false, true, false, true]);
}

#[test]
fn draining_what_others_empty_meanwhile_ends() {
    let _dog = watchdog();
    let (_tx, rx) = filled(100);
    let mut drain = rx.drain();
    assert_eq!(drain.by_ref().take(64).count(), 64);
    assert_eq!(rx.try_iter().count(), 36);
    assert!(drain.next().is_none());
    assert!(drain.next().is_none());
}
