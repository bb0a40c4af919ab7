//! Polled senders: room, memory, and the end.

use super::*;

#[test]
fn a_sender_is_readable_when_there_is_room() {
    let (_dog, _beside) = (watchdog(), beside_others());
    let (tx, rx) = bounded::<u64>(2).expect("a queue");
    let descriptor = tx.as_fd();
    assert!(is_readable(&descriptor));
    tx.send_batch([1, 2]).expect("sent");
    assert!(tx.try_send(3).expect_err("full").is_full());
    assert!(!is_readable_within(&descriptor, A_WHILE));
    let _keep = rx.clone();
    let peer = Peer::start(&Orders::Take(rx, 1), None);
    becomes_readable(&descriptor);
    tx.try_send(3).expect("sent");
    assert!(peer.wait().success());
}

#[test]
fn a_sender_is_readable_when_the_last_receiver_is_gone() {
    let (_dog, _beside) = (watchdog(), beside_others());
    let (tx, rx) = bounded::<u64>(1).expect("a queue");
    tx.send(1).expect("sent");
    let descriptor = tx.as_fd();
    assert!(!is_readable_within(&descriptor, A_WHILE));
    drop(rx);
    becomes_readable(&descriptor);
    assert!(matches!(tx.try_send(2), Err(TrySendError::Disconnected(2))));
}

#[test]
fn a_polled_sender_gets_everything_through() {
    let (_dog, _beside) = (watchdog(), beside_others());
    let (tx, rx) = bounded::<u64>(4).expect("a queue");
    let peer = Peer::start(&Orders::Take(rx, 10_000), None);
    for i in 0..10_000 {
        while let Err(error) = tx.try_send(i) {
            assert!(error.is_full(), "{error}");
            becomes_readable(&tx.as_fd());
        }
    }
    assert!(peer.wait().success());
}

#[test]
fn a_sender_that_lacks_memory_is_readable_when_some_is_freed() {
    let (_dog, _beside) = (watchdog(), beside_others());
    let (tx, rx) = bytes_builder().capacity(8).byte_budget(64 << 10).build().expect("a queue");
    let message = vec![7; 64 << 10];
    tx.send(&message).expect("sent");
    let descriptor = tx.as_fd();
    assert!(tx.try_send(&message).expect_err("no memory left").is_full());
    // Readable for nothing at first: a bridge does not know what was there before it.
    while is_readable_within(&descriptor, A_WHILE) {
        assert!(tx.try_send(&message).expect_err("no memory left").is_full());
    }
    let received = rx.recv_ref().expect("received");
    assert!(!is_readable_within(&descriptor, A_WHILE), "a slot is free, but no memory");
    drop(received);
    becomes_readable(&descriptor);
    tx.try_send(&message).expect("sent");
}

#[cfg(feature = "crash-points")]
#[test]
fn a_sender_is_told_of_memory_that_a_dead_receiver_was_taking_or_had_freed_and_not_said_so() {
    let _beside = beside_others();
    for point in ["ring.pop.claimed", "chunks.taken", "chunks.freed"] {
        let _dog = watchdog();
        let (tx, idle) = bytes_builder().capacity(4).byte_budget(64 << 10).build().expect("a queue");
        let message = [1; 64 << 10];
        tx.send(&message).expect("sent");
        let descriptor = tx.as_fd();
        // Until nothing is left to be told: only the death brings news.
        while is_readable_within(&descriptor, A_WHILE) {
            assert!(tx.try_send(&message).expect_err("no memory").is_full());
        }
        let peer = Peer::start(&Orders::TakeBytes(idle.clone()), Some(point));
        assert!(was_killed(peer.wait()), "the child does not die at {point}");
        loop {
            becomes_readable(&descriptor);
            match tx.try_send(&message) {
                Ok(()) => break,
                Err(error) => assert!(error.is_full(), "{error}"),
            }
        }
        assert_eq!(idle.recv().expect("received"), message);
    }
}

#[test]
fn a_sender_for_which_no_memory_comes_rests() {
    let (_dog, _beside) = (watchdog(), beside_others());
    let (tx, _rx) = bytes_builder().capacity(4).byte_budget(64 << 10).build().expect("a queue");
    tx.send(&[1; 64 << 10]).expect("sent");
    let descriptor = tx.as_fd();
    let (start, mut times) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_secs(1) {
        assert!(tx.try_send(&[2]).expect_err("no memory").is_full());
        times += 1;
        // Long enough for the next attempt to look after the dead.
        std::thread::sleep(Duration::from_millis(2));
        is_readable_within(&descriptor, A_WHILE);
    }
    assert!(times < 20, "told {times} times");
}

#[test]
fn a_sender_that_wants_room_and_memory_is_told_of_either() {
    let (_dog, _beside) = (watchdog(), beside_others());
    let (tx, rx) = builder::<Vec<u8>>().capacity(1).byte_budget(64 << 10).build().expect("a queue");
    let (small, large) = (vec![7; 7], vec![7; 60 << 10]);
    tx.send(large.clone()).expect("sent");
    let descriptor = tx.as_fd();
    for _ in 0..20 {
        assert!(tx.try_send(small.clone()).expect_err("no slot").is_full());
        assert!(tx.try_send(large.clone()).expect_err("no memory").is_full());
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(rx.recv().expect("received").len(), large.len());
    becomes_readable(&descriptor);
    tx.try_send(small).expect("sent");
}
