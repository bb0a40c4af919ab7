//! What a condition variable does, between threads and between processes.
#![cfg(not(loom))]

mod common;

use common::{Peer, was_killed, watchdog};
use serde::{Deserialize, Serialize};
use shm_array::{Condvar, LockError, Mutex, ReentrantMutex, Shared};
use shm_core::ShmSafe;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A lock, a condition, and who sleeps and wakes.
#[derive(Default)]
#[repr(C)]
struct Room {
    stage: Mutex<u32>,
    changed: Condvar,
    sleeping: AtomicU32,
    woken: AtomicU32,
}

#[allow(unsafe_code, reason = "a user's struct without the derive macro")]
// SAFETY: `repr(C)`, of such fields.
unsafe impl ShmSafe for Room {
    const LAYOUT: u64 = shm_core::portable::layout_of::<Self>("Room");
}

impl Room {
    /// Waits once, whatever for.
    fn sleep(&self) {
        let guard = self.stage.lock().expect("locked");
        self.sleeping.fetch_add(1, Ordering::Relaxed);
        let guard = self.changed.wait(guard).expect("locked again");
        self.woken.fetch_add(1, Ordering::Relaxed);
        drop(guard);
    }

    fn wait_for(&self, stage: u32) -> Result<(), LockError<()>> {
        let guard = self.stage.lock().map_err(LockError::into_error)?;
        self.sleeping.fetch_add(1, Ordering::Relaxed);
        self.changed.wait_while(guard, |now| *now < stage).map(drop).map_err(LockError::into_error)
    }

    /// Returns when so many have gone to sleep: they count themselves under the lock, which they hold until they sleep.
    fn until_sleeping(&self, count: u32) {
        loop {
            drop(self.stage.lock().expect("locked"));
            if self.sleeping.load(Ordering::Relaxed) >= count {
                drop(self.stage.lock().expect("locked"));
                return;
            }
            std::thread::yield_now();
        }
    }

    fn until_woken(&self, count: u32) {
        while self.woken.load(Ordering::Relaxed) < count {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn advance(&self, stage: u32) {
        *self.stage.lock().expect("locked") = stage;
    }
}

/// What a child does in the room.
#[derive(Serialize, Deserialize)]
enum Orders {
    Sleep(Shared<Room>),
    WaitFor(Shared<Room>, u32),
    /// Go to the stage, notify all, and end.
    Advance(Shared<Room>, u32),
    /// Keep the lock until killed.
    Hold(Shared<Room>),
}

#[test]
fn child() {
    common::child(|orders, reporter| match orders {
        Orders::Sleep(room) => {
            room.sleep();
            reporter.report(&true);
        }
        Orders::WaitFor(room, stage) => reporter.report(&room.wait_for(stage).is_ok()),
        Orders::Advance(room, stage) => {
            room.advance(stage);
            room.changed.notify_all();
        }
        Orders::Hold(room) => {
            let _guard = room.stage.lock().expect("locked");
            reporter.report(&true);
            loop {
                std::thread::park();
            }
        }
    });
}

fn room() -> Shared<Room> {
    Shared::new(Room::default()).expect("memory")
}

/// Children and threads asleep in the room, three each.
fn sleepers(room: &Shared<Room>) -> (Vec<Peer>, Vec<std::thread::JoinHandle<()>>) {
    let peers = (0..3).map(|_| Peer::start(&Orders::Sleep(room.clone()), None)).collect();
    let threads = (0..3)
        .map(|_| {
            let room = room.clone();
            std::thread::spawn(move || room.sleep())
        })
        .collect();
    room.until_sleeping(6);
    (peers, threads)
}

fn all_end((peers, threads): (Vec<Peer>, Vec<std::thread::JoinHandle<()>>)) {
    for peer in peers {
        assert_eq!(peer.report(), Some(true));
    }
    for thread in threads {
        thread.join().expect("the thread ends");
    }
}

/// Long enough for a sleeper to look by itself, at least twice. It must find nothing.
const SEVERAL_SLICES: Duration = Duration::from_millis(250);

#[test]
fn conformance_notify() {
    let _watched = watchdog();
    let room = room();
    let sleepers = sleepers(&room);
    for count in 1..=6 {
        room.changed.notify_one();
        room.until_woken(count);
    }
    all_end(sleepers);
}

#[test]
fn conformance_notify_n() {
    let _watched = watchdog();
    let room = room();
    let sleepers = sleepers(&room);
    room.changed.notify(2);
    room.until_woken(2);
    std::thread::sleep(SEVERAL_SLICES);
    assert_eq!(room.woken.load(Ordering::Relaxed), 2, "as many as were notified");
    room.changed.notify(4);
    room.until_woken(6);
    all_end(sleepers);
    // One more does nothing, and is not stored.
    room.changed.notify(3);
    assert!(format!("{:?}", room.changed).contains("waiters: 0"));
    let guard = room.stage.lock().unwrap();
    assert!(room.changed.wait_timeout(guard, Duration::from_millis(1)).unwrap().1.timed_out());
}

#[test]
fn conformance_notify_all() {
    let _watched = watchdog();
    let room = room();
    // All time out first, and leave nothing behind.
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let guard = room.stage.lock().unwrap();
                assert!(room.changed.wait_timeout(guard, Duration::from_millis(20)).unwrap().1.timed_out());
            });
        }
    });
    assert!(format!("{:?}", room.changed).contains("waiters: 0"));
    let sleepers = sleepers(&room);
    room.changed.notify_all();
    all_end(sleepers);
}

#[test]
fn conformance_timeout() {
    let room = room();
    let guard = room.stage.lock().unwrap();
    let start = Instant::now();
    let timeout = Duration::from_millis(150);
    let (guard, result) = room.changed.wait_timeout(guard, timeout).unwrap();
    assert!(result.timed_out() && start.elapsed() >= timeout);
    let (_guard, result) = room.changed.wait_until(guard, Instant::now()).unwrap();
    assert!(result.timed_out());
}

#[test]
fn conformance_waitfor() {
    let _watched = watchdog();
    let room = room();
    let peer = Peer::start(&Orders::WaitFor(room.clone(), 4), None);
    room.until_sleeping(1);
    for stage in 1..=4 {
        room.advance(stage);
        room.changed.notify_one();
    }
    assert_eq!(peer.report(), Some(true));
}

#[test]
fn conformance_waitfor_timeout() {
    let room = room();
    let guard = room.stage.lock().unwrap();
    let (wait, timeout) = (&room.changed, Duration::from_millis(20));
    let (guard, result) = wait.wait_timeout_while(guard, timeout, |stage| *stage < 1).unwrap();
    assert!(result.timed_out());
    let (_guard, result) = wait.wait_timeout_while(guard, timeout, |stage| *stage > 0).unwrap();
    assert!(!result.timed_out(), "there was nothing to wait for");
}

#[test]
fn conformance_wait_result() {
    let _watched = watchdog();
    let room = room();
    let guard = room.stage.lock().unwrap();
    let peer = Peer::start(&Orders::Advance(room.clone(), 1), None);
    let (guard, result) = room.changed.wait_timeout(guard, Duration::MAX).unwrap();
    assert!(!result.timed_out());
    assert_eq!(*guard, 1);
    assert!(peer.wait().success());
}

#[test]
fn a_notification_without_waiters_is_not_stored() {
    let room = room();
    room.changed.notify_one();
    room.changed.notify_all();
    let guard = room.stage.lock().unwrap();
    assert!(room.changed.wait_timeout(guard, Duration::from_millis(1)).unwrap().1.timed_out());
}

#[test]
fn a_waiter_that_dies_takes_no_notification_along() {
    let _watched = watchdog();
    let room = room();
    let dying = Peer::start(&Orders::Sleep(room.clone()), None);
    room.until_sleeping(1);
    let patient = Peer::start(&Orders::WaitFor(room.clone(), 1), None);
    room.until_sleeping(2);
    assert!(was_killed(dying.kill()));
    room.advance(1);
    room.changed.notify_one();
    assert_eq!(patient.report(), Some(true));
}

#[test]
fn the_dead_are_forgotten() {
    let _watched = watchdog();
    let room = room();
    for count in 1..=3 {
        let dying = Peer::start(&Orders::Sleep(room.clone()), None);
        room.until_sleeping(count);
        assert!(was_killed(dying.kill()));
    }
    room.changed.notify_all();
    // Somebody who waits finds out that nobody took the signals, and wakes once for it.
    room.sleep();
    assert!(format!("{:?}", room.changed).contains("waiters: 0"), "{:?}", room.changed);
    let guard = room.stage.lock().unwrap();
    assert!(room.changed.wait_timeout(guard, SEVERAL_SLICES).unwrap().1.timed_out());
}

#[test]
fn whoever_locks_again_is_told_that_the_holder_died() {
    let _watched = watchdog();
    let room = room();
    let waiter = std::thread::spawn({
        let room = room.clone();
        move || room.wait_for(1)
    });
    room.until_sleeping(1);
    let peer = Peer::start(&Orders::Hold(room.clone()), None);
    assert_eq!(peer.report(), Some(true));
    room.changed.notify_one();
    assert!(was_killed(peer.kill()));
    assert!(waiter.join().unwrap().is_err_and(|error| error.is_owner_died()));
    assert!(format!("{:?}", room.changed).contains("waiters: 0"));
}

#[test]
fn a_guard_that_is_not_marked_consistent_is_not_given_back() {
    let _watched = watchdog();
    let room = room();
    let peer = Peer::start(&Orders::Hold(room.clone()), None);
    assert_eq!(peer.report(), Some(true));
    assert!(was_killed(peer.kill()));
    let guard = room.stage.lock().expect_err("the owner died").into_guard().expect("with the data");
    let Err(LockError::OwnerDied(guard)) = room.changed.wait(guard) else { panic!("not repaired") };
    guard.mark_consistent();
    assert!(room.changed.wait_timeout(guard, Duration::from_millis(1)).unwrap().1.timed_out());
}

#[test]
fn the_only_guard_of_a_reentrant_mutex_can_wait() {
    let _watched = watchdog();
    let mutex = ReentrantMutex::new(AtomicU32::new(0));
    let changed = Condvar::new();
    std::thread::scope(|scope| {
        let mut guard = mutex.lock().unwrap();
        scope.spawn(|| {
            mutex.lock().unwrap().store(1, Ordering::Relaxed);
            changed.notify_one();
        });
        while guard.load(Ordering::Relaxed) == 0 {
            guard = changed.wait(guard).unwrap();
        }
    });
    let _outer = mutex.lock().unwrap();
    let inner = mutex.lock().unwrap();
    assert!(matches!(changed.wait(inner), Err(LockError::TooMany { limit: 1 })));
}

#[test]
fn many_threads_hand_turns_around() {
    let _watched = watchdog();
    let room = room();
    std::thread::scope(|scope| {
        for me in 0..4 {
            let room = &room;
            scope.spawn(move || {
                for round in 0..500 {
                    let turn = round * 4 + me;
                    let guard = room.stage.lock().unwrap();
                    let mut guard = room.changed.wait_while(guard, |stage| *stage != turn).unwrap();
                    *guard += 1;
                    drop(guard);
                    room.changed.notify_all();
                }
            });
        }
    });
    assert_eq!(*room.stage.lock().unwrap(), 2000);
}
