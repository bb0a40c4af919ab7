//! The condition variable: no wake-up is lost, none is stored, none is stolen.

use crate::{Control, STUCK, models};
use loom::thread::{JoinHandle, spawn};
use shm_array::{Condvar, Mutex};
use shm_core::sync::Arc;
use std::time::Instant;

pub(crate) const CONTROLS: &[Control] =
    &[("condvar.step", a_waiter_is_woken, STUCK), ("condvar.look", a_waiter_is_woken, STUCK)];

#[derive(Default)]
struct Shared {
    stage: Mutex<u32>,
    changed: Condvar,
}

impl Shared {
    fn advance(&self, stage: u32) {
        *self.stage.lock().unwrap() = stage;
    }

    /// Waits without a deadline: a wake-up that is lost is a deadlock.
    fn wait_for(&self, stage: u32) {
        let guard = self.stage.lock().unwrap();
        drop(self.changed.wait_while(guard, |now| *now < stage).unwrap());
    }
}

fn waiter(shared: &Arc<Shared>, stage: u32) -> JoinHandle<()> {
    let shared = shared.clone();
    spawn(move || shared.wait_for(stage))
}

fn a_waiter_is_woken() {
    let shared = Arc::new(Shared::default());
    let waiter = waiter(&shared, 1);
    shared.advance(1);
    shared.changed.notify_one();
    waiter.join().unwrap();
}

fn all_waiters_are_woken() {
    let shared = Arc::new(Shared::default());
    let waiters = [1, 1].map(|stage| waiter(&shared, stage));
    shared.advance(1);
    shared.changed.notify_all();
    for waiter in waiters {
        waiter.join().unwrap();
    }
}

fn two_notifications_wake_two() {
    let shared = Arc::new(Shared::default());
    let waiters = [1, 1].map(|stage| waiter(&shared, stage));
    shared.advance(1);
    shared.changed.notify_one();
    shared.changed.notify_one();
    for waiter in waiters {
        waiter.join().unwrap();
    }
}

/// The second waiter comes after the first notification. Whatever it does, the first gets what was meant for it.
fn a_late_waiter_steals_nothing() {
    let shared = Arc::new(Shared::default());
    let early = waiter(&shared, 1);
    shared.advance(1);
    shared.changed.notify_one();
    let late = waiter(&shared, 2);
    shared.advance(2);
    shared.changed.notify_one();
    early.join().unwrap();
    late.join().unwrap();
}

/// Two that come between the notifications, and take whatever there is when they give up, might take both.
fn two_late_waiters_steal_nothing() {
    let shared = Arc::new(Shared::default());
    let guard = shared.stage.lock().unwrap();
    let notifier = {
        let shared = shared.clone();
        spawn(move || {
            shared.advance(1);
            shared.changed.notify_one();
            let late = [(); 2].map(|()| {
                let shared = shared.clone();
                spawn(move || {
                    let guard = shared.stage.lock().unwrap();
                    drop(shared.changed.wait_until(guard, Instant::now()).unwrap());
                })
            });
            loom::thread::yield_now();
            shared.changed.notify_one();
            for late in late {
                late.join().unwrap();
            }
        })
    };
    drop(shared.changed.wait_while(guard, |now| *now < 1).unwrap());
    notifier.join().unwrap();
}

#[test]
fn two_late_waiters_steal_nothing_with_fewer_preemptions() {
    crate::explore_less(1, two_late_waiters_steal_nothing);
}

fn a_notification_is_not_stored() {
    let shared = Arc::new(Shared::default());
    shared.changed.notify_one();
    shared.changed.notify_all();
    let guard = shared.stage.lock().unwrap();
    let (_guard, result) = shared.changed.wait_until(guard, Instant::now()).unwrap();
    assert!(result.timed_out());
}

/// Either it says that it was notified, and passes that on, or the notification goes to the other one.
fn a_waiter_that_gives_up_takes_no_notification_along() {
    let shared = Arc::new(Shared::default());
    let patient = waiter(&shared, 1);
    let hasty = {
        let shared = shared.clone();
        spawn(move || {
            let guard = shared.stage.lock().unwrap();
            let (guard, result) = shared.changed.wait_until(guard, Instant::now()).unwrap();
            drop(guard);
            if !result.timed_out() {
                shared.changed.notify_one();
            }
        })
    };
    shared.advance(1);
    shared.changed.notify_one();
    patient.join().unwrap();
    hasty.join().unwrap();
}

models! {
    a_waiter_is_woken
    all_waiters_are_woken
    two_notifications_wake_two
    a_late_waiter_steals_nothing
    a_notification_is_not_stored
    a_waiter_that_gives_up_takes_no_notification_along
}
