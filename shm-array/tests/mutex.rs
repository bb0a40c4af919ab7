//! What a mutex does, between threads and between processes.

mod common;

#[test]
fn child() {
    common::child(|orders: u32, reporter| reporter.report(&(orders + 1)));
}

#[test]
fn a_child_answers() {
    let _watched = common::watchdog();
    let peer = common::Peer::start(&41u32, None);
    assert_eq!(peer.report::<u32>(), Some(42));
    assert!(peer.wait().success());
}
