//! `fork` while other threads attach and detach: a child must never keep a participant of its parent alive.
#![cfg(not(loom))]
#![allow(unsafe_code, reason = "forks")]

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use shm_core::segment::{Segment, Spec};
use shm_core::sync::{AtomicBool, Ordering};
use std::os::fd::AsFd;

const SPEC: Spec = Spec { kind: 1, layout_hash: 1, body_len: 64, sweep: |_, _| true, arrived: |_| () };
const CHILDREN: usize = 60;

/// Children that live on while the parent looks.
struct Children(Vec<Pid>);

impl Drop for Children {
    fn drop(&mut self) {
        for &child in &self.0 {
            kill_process(child, Signal::KILL).expect("a child can be killed");
            waitpid(Some(child), WaitOptions::empty()).expect("and collected");
        }
    }
}

#[test]
fn a_fork_in_the_middle_of_an_attach_copies_no_lock() {
    let segment = Segment::create(&SPEC, |_| {}).expect("created");
    let descriptor = segment.descriptor().try_clone_to_owned().expect("a descriptor");
    drop(segment);
    let stop = AtomicBool::new(false);
    let mut children = Children(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    drop(Segment::attach(descriptor.as_fd(), &SPEC).expect("attached"));
                }
            });
        }
        for _ in 0..CHILDREN {
            // SAFETY: the child does nothing but wait for its end.
            match unsafe { libc::fork() } {
                0 => loop {
                    // SAFETY: waits for a signal.
                    unsafe { libc::pause() };
                },
                child => children.0.push(Pid::from_raw(child).expect("forked")),
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let segment = Segment::attach(descriptor.as_fd(), &SPEC).expect("attached");
    for participant in (1..=segment.participants()).filter(|&index| index != segment.participant()) {
        assert!(segment.is_dead(participant), "a child holds the lock of participant {participant}");
    }
    assert_eq!(segment.sweep(), 0, "every detach was clean");
}
