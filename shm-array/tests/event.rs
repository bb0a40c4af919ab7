//! Events between threads, processes and a signal handler.
#![cfg(not(loom))]

mod common;

use common::{Peer, Reporter, watchdog};
use serde::{Deserialize, Serialize};
use shm_array::{Event, Shared};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const SHORT: Duration = Duration::from_millis(20);

#[test]
fn test_event() {
    let event = Event::new();
    assert!(!event.is_set());
    assert!(!event.wait_timeout(Duration::ZERO));
    let start = Instant::now();
    assert!(!event.wait_timeout(SHORT));
    assert!(start.elapsed() >= SHORT);
    event.set();
    assert!(event.is_set() && event.wait_timeout(Duration::ZERO) && event.wait_until(start));
    event.wait();
    event.clear();
    assert!(!event.is_set() && !event.wait_timeout(Duration::ZERO));
}

#[test]
fn test_repr_event() {
    let event = Event::default();
    assert_eq!(format!("{event:?}"), "Event(unset)");
    event.set();
    assert_eq!(format!("{event:?}"), "Event(set)");
}

#[test]
fn setting_it_wakes_everybody() {
    let _watchdog = watchdog();
    static EVENT: Event = Event::new();
    let sleepers = [(); 4].map(|()| thread::spawn(|| EVENT.wait()));
    EVENT.set();
    for sleeper in sleepers {
        sleeper.join().unwrap();
    }
}

#[test]
fn a_sleeper_returns_although_the_event_is_cleared_at_once() {
    let _watchdog = watchdog();
    let (event, waits) = (Event::new(), AtomicU32::new(0));
    thread::scope(|scope| {
        let sleepers = [(); 3].map(|()| {
            scope.spawn(|| {
                waits.fetch_add(1, Ordering::Relaxed);
                // Whoever comes after the last pulse may wait in vain.
                event.wait_timeout(SHORT * 50)
            })
        });
        while !sleepers.iter().all(|sleeper| sleeper.is_finished()) {
            if waits.load(Ordering::Relaxed) == 3 {
                event.set();
                event.clear();
            }
            thread::yield_now();
        }
        assert!(sleepers.into_iter().all(|sleeper| sleeper.join().unwrap()));
    });
}

#[derive(Serialize, Deserialize)]
enum Orders {
    /// Wait for the first, set the second.
    Answer(Shared<[Event; 2]>),
}

#[test]
fn child() {
    common::child(|orders: Orders, reporter: &Reporter| match orders {
        Orders::Answer(events) => {
            reporter.report(&true);
            events[0].wait();
            events[1].set();
        }
    });
}

#[test]
fn set_from_a_child_wakes() {
    let _watchdog = watchdog();
    let events = Shared::new([Event::new(), Event::new()]).unwrap();
    let peer = Peer::start(&Orders::Answer(events.clone()), None);
    assert_eq!(peer.report(), Some(true));
    events[0].set();
    events[1].wait();
    assert!(events[1].is_set());
}

#[test]
#[allow(unsafe_code)]
fn a_signal_handler_may_set_it() {
    static EVENT: Event = Event::new();
    extern "C" fn handler(_: i32) {
        EVENT.set();
    }
    let _watchdog = watchdog();
    let sleeper = thread::spawn(|| EVENT.wait());
    let handler = handler as extern "C" fn(i32);
    // SAFETY: the handler only calls what is async-signal-safe; nothing else in this binary uses the signal.
    unsafe {
        libc::signal(libc::SIGUSR1, handler as libc::sighandler_t);
        libc::raise(libc::SIGUSR1);
    }
    sleeper.join().unwrap();
}
