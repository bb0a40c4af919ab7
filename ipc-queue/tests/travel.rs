//! Handles as values: serialised, printed, in threads and panics, within one process. One fact per test.
#![cfg(not(loom))]

mod common;

use common::watchdog;
use ipc_queue::{PlainReceiver, Receiver, SendError, Sender, bounded, bounded_plain, builder};
use serde::{Deserialize, Serialize};
use shm_core::handle::{ReceiveSession, SendSession};
use std::time::Duration;

#[test]
fn too_many_handles_in_a_message_are_refused_with_the_reason() {
    let _dog = watchdog();
    let (tx, rx) = builder::<Vec<Sender<u8>>>().capacity(1).slot_bytes(8192).build().expect("a queue");
    let (inner, _inner_rx) = bounded::<u8>(1).expect("a queue");
    let error = tx.send(vec![inner; 251]).expect_err("more than fit beside one message");
    assert!(matches!(&error, SendError::Encode { reason, .. } if reason.is_handle()));
    assert!(error.to_string().contains("251 descriptors are more than the 250"), "{error}");
    assert_eq!(error.into_inner().len(), 251);
    assert!(rx.is_empty());
}

#[test]
fn a_handle_outside_of_a_session_is_an_error() {
    let (tx, _rx) = bounded::<u8>(1).expect("a queue");
    postcard::to_stdvec(&tx).expect_err("no session");
}

/// Serialises and deserialises within this process.
fn travel<A: Serialize, B: for<'de> Deserialize<'de>>(handle: &A) -> postcard::Result<B> {
    let session = SendSession::begin();
    let bytes = postcard::to_stdvec(handle).expect("in a session");
    let _session = ReceiveSession::begin(session.finish());
    postcard::from_bytes(&bytes)
}

#[test]
fn a_handle_that_travelled_is_a_clone() {
    let _dog = watchdog();
    let (tx, rx) = bounded::<u8>(1).expect("a queue");
    let again: Sender<u8> = travel(&tx).expect("arrived");
    drop(tx);
    again.send(3).expect("sent");
    let again: Receiver<u8> = travel(&rx).expect("arrived");
    drop(rx);
    assert_eq!(again.recv().expect("received"), 3);
}

#[test]
fn a_handle_on_its_way_keeps_its_side_alive() {
    let _dog = watchdog();
    let (tx, rx) = bounded::<u8>(1).expect("a queue");
    let session = SendSession::begin();
    let bytes = postcard::to_stdvec(&tx).expect("in a session");
    let descriptors = session.finish();
    drop(tx);
    assert!(rx.recv_timeout(Duration::from_millis(2)).expect_err("nothing sent").is_timeout());
    let receive = ReceiveSession::begin(descriptors);
    let tx: Sender<u8> = postcard::from_bytes(&bytes).expect("arrived");
    drop(receive);
    tx.send(1).expect("sent");
    drop(tx);
    assert_eq!(rx.recv().expect("received"), 1);
    assert!(rx.recv().expect_err("gone").is_disconnected());
}

#[test]
fn a_handle_that_keeps_moving_never_looks_gone() {
    let _dog = watchdog();
    let (tx, rx) = bounded::<u8>(1).expect("a queue");
    let mover = std::thread::spawn(move || {
        (0..500).fold(tx, |tx, _| {
            let session = SendSession::begin();
            let bytes = postcard::to_stdvec(&tx).expect("in a session");
            drop(tx);
            let _receive = ReceiveSession::begin(session.finish());
            postcard::from_bytes(&bytes).expect("arrived")
        })
    });
    while !mover.is_finished() {
        // A new handle asks the system at its first miss.
        assert!(rx.clone().try_recv().expect_err("nothing sent").is_empty());
    }
    drop(mover.join().expect("no panic"));
    assert!(rx.recv().expect_err("gone").is_disconnected());
}

#[test]
fn a_handle_that_never_arrives_is_gone() {
    let _dog = watchdog();
    let (tx, rx) = bounded::<u8>(1).expect("a queue");
    let session = SendSession::begin();
    postcard::to_stdvec(&tx).expect("in a session");
    drop(tx);
    assert!(rx.try_recv().expect_err("nothing sent").is_empty());
    drop(session);
    assert!(rx.recv().expect_err("gone").is_disconnected());
}

#[test]
fn a_handle_arrives_once() {
    let (tx, _rx) = bounded::<u8>(1).expect("a queue");
    let session = SendSession::begin();
    let bytes = postcard::to_stdvec(&tx).expect("in a session");
    let _receive = ReceiveSession::begin(session.finish());
    postcard::from_bytes::<Sender<u8>>(&bytes).expect("arrived");
    postcard::from_bytes::<Sender<u8>>(&bytes).expect_err("taken");
}

#[test]
fn a_handle_of_another_kind_is_refused() {
    let (tx, _rx) = bounded::<u64>(1).expect("a queue");
    assert!(travel::<_, Receiver<u64>>(&tx).is_err(), "a sender is no receiver");
    assert!(travel::<_, ipc_queue::PlainSender<u64>>(&tx).is_err(), "another codec");
    let (_tx, rx) = bounded_plain::<u64>(1).expect("a queue");
    assert!(travel::<_, PlainReceiver<u32>>(&rx).is_err(), "another size");
    travel::<_, PlainReceiver<u64>>(&rx).expect("the same");
}

#[test]
fn a_foreign_descriptor_is_refused() {
    let (tx, _rx) = bounded::<u64>(1).expect("a queue");
    let session = SendSession::begin();
    let bytes = postcard::to_stdvec(&tx).expect("in a session");
    drop(session);
    let null = std::fs::File::open("/dev/null").expect("/dev/null exists");
    let _receive = ReceiveSession::begin(vec![null.into()]);
    postcard::from_bytes::<Sender<u64>>(&bytes).expect_err("not a segment");
}

#[test]
fn handles_print_without_their_messages_doing_so() {
    struct Silent;
    impl Serialize for Silent {
        fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
            s.serialize_unit()
        }
    }
    impl<'de> Deserialize<'de> for Silent {
        fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
            Ok(Self)
        }
    }
    let (tx, rx) = bounded::<Silent>(3).expect("a queue");
    assert_eq!(format!("{tx:?}"), "Sender { capacity: 3, len: 0, .. }");
    assert_eq!(format!("{rx:?}"), "Receiver { capacity: 3, len: 0, .. }");
    drop(rx);
    assert_eq!(format!("{:?}", tx.send(Silent).expect_err("gone")), "Disconnected(..)");
}

#[test]
fn handles_cross_threads_and_panics() {
    fn check<T: Send + Sync + std::panic::UnwindSafe + std::panic::RefUnwindSafe + 'static>() {}
    check::<Sender<std::rc::Rc<u8>>>();
    check::<Receiver<std::rc::Rc<u8>>>();
    check::<PlainReceiver<u8>>();
}
