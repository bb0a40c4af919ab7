//! Polled ends and forks.

use super::*;

/// A forked process that runs `body`; killed when dropped.
struct Child(Pid);

impl Child {
    fn fork(body: impl FnOnce() -> bool) -> Self {
        // SAFETY: the child runs on the thread that forked, and only `body`.
        let id = unsafe { libc::fork() };
        if id == 0 {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).expect("a child may die");
            let fine = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(false);
            // SAFETY: ends the child without running what belongs to its parent.
            unsafe { libc::_exit(if fine { 0 } else { 1 }) };
        }
        Self(Pid::from_raw(id).expect("forked"))
    }

    #[track_caller]
    fn succeeds(self) {
        let status = waitpid(Some(self.0), WaitOptions::empty()).expect("collected").expect("a status").1;
        std::mem::forget(self);
        assert_eq!(status.exit_status(), Some(0), "what the child found is not as it should be: {status:?}");
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::KILL);
        let _ = waitpid(Some(self.0), WaitOptions::empty());
    }
}

#[test]
fn a_forked_child_has_a_descriptor_of_its_own_and_its_parent_keeps_its_own() {
    let (_dog, _alone) = (watchdog(), alone());
    let (tx, rx) = bounded::<u64>(4).expect("a queue");
    let parents = rx.as_raw_fd();
    let child = Child::fork(|| {
        // What the parent's descriptor says is not this process's business.
        assert!(rx.try_recv().is_err());
        assert_ne!(rx.as_raw_fd(), parents);
        assert!(!is_readable(&rx));
        becomes_readable(&rx);
        rx.try_recv().expect("received") == 1
    });
    assert!(!is_readable_within(&rx, A_WHILE));
    tx.send(1).expect("sent");
    child.succeeds();
    tx.send(2).expect("sent");
    assert_eq!(rx.as_raw_fd(), parents);
    becomes_readable(&rx);
    assert_eq!(rx.try_recv().expect("received"), 2);
    assert!(rx.try_recv().is_err());
    assert!(!is_readable_within(&rx, A_WHILE));
}

#[test]
fn a_forked_child_does_not_drain_its_parents_descriptor() {
    let (_dog, _alone) = (watchdog(), alone());
    let (tx, rx) = bounded::<u64>(4).expect("a queue");
    let descriptor = rx.as_fd();
    tx.send_batch([1, 2]).expect("sent");
    becomes_readable(&descriptor);
    Child::fork(|| {
        assert_eq!(rx.try_recv_batch(4).expect("received"), [1, 2]);
        rx.try_recv().is_err()
    })
    .succeeds();
    assert!(is_readable(&descriptor), "the parent has not found out");
    assert!(rx.try_recv().is_err());
    assert!(!is_readable_within(&descriptor, A_WHILE));
}

#[test]
fn what_a_bridge_held_goes_with_the_last_handle_of_a_forked_child() {
    let (_dog, _alone) = (watchdog(), alone());
    let mut ends = Some(bounded::<u64>(4).expect("a queue"));
    if let Some((tx, rx)) = &ends {
        assert!(is_readable(tx) && !is_readable(rx));
    }
    Child::fork(|| {
        let mapped = || resources()[2];
        if let Some((tx, rx)) = &ends {
            tx.send(1).expect("sent");
            assert!(is_readable(rx));
            assert!(mapped() > 0);
        }
        drop(ends.take());
        settle(|| mapped() == 0);
        mapped() == 0
    })
    .succeeds();
    if let Some((tx, rx)) = &ends {
        tx.send(2).expect("sent");
        becomes_readable(rx);
    }
}

#[test]
fn a_child_that_forks_again_has_a_third_descriptor() {
    let (_dog, _alone) = (watchdog(), alone());
    let (tx, rx) = bounded::<u64>(4).expect("a queue");
    assert!(!is_readable(&rx));
    Child::fork(|| {
        assert!(!is_readable(&rx));
        let grandchild = Child::fork(|| {
            assert!(!is_readable(&rx));
            tx.send(1).expect("sent");
            becomes_readable(&rx);
            rx.try_recv().expect("received") == 1
        });
        grandchild.succeeds();
        tx.send(2).expect("sent");
        becomes_readable(&rx);
        true
    })
    .succeeds();
    becomes_readable(&rx);
    assert_eq!(rx.try_recv().expect("received"), 2);
}
