//! Whoever sleeps on a word of a segment is woken when a sweep finds somebody dead.
#![cfg(not(loom))]
#![allow(unsafe_code, reason = "forks, and touches a shared word")]

use rustix::process::{Pid, WaitOptions, waitpid};
use shm_core::deaths::Deaths;
use shm_core::futex::{Futex, Wakeup};
use shm_core::segment::{Segment, Spec, sweep_all};
use std::sync::mpsc::channel;
use std::time::Duration;

const SPEC: Spec = Spec { kind: 3, layout_hash: 1, body_len: 64, sweep: |_, _| true, arrived: |_| () };
const LONG: Duration = Duration::from_secs(600);

fn word(segment: &Segment) -> &Futex {
    // SAFETY: the first bytes of the body, zeroed, used as a futex only.
    unsafe { segment.body().cast::<Futex>().as_ref() }
}

/// A participant that dies.
fn somebody_dies(segment: &Segment) {
    // SAFETY: the child runs on the thread that forked, and ends at once.
    let id = unsafe { libc::fork() };
    if id == 0 {
        let attached = segment.ensure().is_ok();
        // SAFETY: ends the child without running what belongs to its parent.
        unsafe { libc::_exit(i32::from(!attached)) };
    }
    let status = waitpid(Pid::from_raw(id), WaitOptions::empty()).expect("collected").expect("a status").1;
    assert_eq!(status.exit_status(), Some(0), "the child attached");
}

#[test]
fn a_sweep_wakes_sleepers_whatever_they_wait_for() {
    let segment = Segment::create(&SPEC, |_| {}).expect("created");
    let (awake, woken) = channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let deaths = Deaths::near(word(&segment));
            awake.send(deaths.sleep(word(&segment), 0, Some(LONG))).expect("somebody listens");
        });
        let wakeup = loop {
            somebody_dies(&segment);
            assert!(sweep_all() > 0);
            // The thread may not have been asleep yet: then there will be another death.
            if let Ok(wakeup) = woken.recv_timeout(Duration::from_millis(20)) {
                break wakeup;
            }
        };
        assert_ne!(wakeup, Wakeup::TimedOut);
    });
}

#[test]
fn a_death_between_the_look_and_the_sleep_is_not_missed() {
    let segment = Segment::create(&SPEC, |_| {}).expect("created");
    let deaths = Deaths::near(word(&segment));
    somebody_dies(&segment);
    assert_eq!(segment.sweep(), 1);
    assert_eq!(deaths.sleep(word(&segment), 0, Some(LONG)), Wakeup::Changed);
}

#[test]
fn the_word_and_the_timeout_end_the_sleep_too() {
    let segment = Segment::create(&SPEC, |_| {}).expect("created");
    let deaths = Deaths::near(word(&segment));
    assert_eq!(deaths.sleep(word(&segment), 1, Some(LONG)), Wakeup::Changed);
    assert_eq!(deaths.sleep(word(&segment), 0, Some(Duration::from_millis(1))), Wakeup::TimedOut);
    std::thread::scope(|scope| {
        let sleeper = scope.spawn(|| deaths.sleep(word(&segment), 0, Some(LONG)));
        while !sleeper.is_finished() {
            word(&segment).wake(1);
            std::thread::yield_now();
        }
        assert_eq!(sleeper.join().expect("ended"), Wakeup::Woken);
    });
    let alone = Futex::new(0);
    let timeout = Some(Duration::from_millis(1));
    assert_eq!(Deaths::near(&alone).sleep(&alone, 0, timeout), Wakeup::TimedOut, "outside of segments");
}
