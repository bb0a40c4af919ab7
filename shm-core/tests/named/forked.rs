//! Handles in forked children.

use super::*;
use rustix::process::{Pid, WaitOptions, waitpid};

/// Runs `body` in a forked child, which must return true.
pub(crate) fn in_forked_child(body: impl FnOnce() -> bool) -> Pid {
    // SAFETY: the child calls code that is made for it, and exits without running the harness.
    match unsafe { libc::fork() } {
        0 => {
            let ok = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(false);
            // SAFETY: ends the child.
            unsafe { libc::_exit(i32::from(!ok)) };
        }
        child => Pid::from_raw(child).expect("forked"),
    }
}

pub(crate) fn returned_true(child: Pid) {
    let (_, status) = waitpid(Some(child), WaitOptions::empty()).expect("reaped").expect("ended");
    assert_eq!(status.exit_status(), Some(0));
}

#[test]
fn a_forked_child_uses_the_handles_that_it_inherited() {
    let _watchdog = watchdog();
    let memory = memory(100);
    memory.write_at(0, b"parent").expect("written");
    let child = in_forked_child(|| {
        let same = bytes_of(&memory, 6) == b"parent";
        let base = memory.base().expect("attached again");
        // SAFETY: inside the child's own mapping.
        unsafe { base.add(50).write_volatile(77) };
        let grandchild = in_forked_child(|| memory.write_at(51, b"N").is_ok() && memory.base().is_ok());
        returned_true(grandchild);
        same && memory.write_at(0, b"child!").is_ok()
    });
    returned_true(child);
    assert_eq!(bytes_of(&memory, 6), b"child!");
    assert_eq!(bytes_of(&memory, 52)[50..], [77, b'N']);
}

#[test]
fn a_forked_child_that_attached_again_keeps_the_name() {
    let _alone = STARTING.write();
    let _watchdog = watchdog();
    let (attached, attached_end) = rustix::pipe::pipe().expect("a pipe");
    let (gone, gone_end) = rustix::pipe::pipe().expect("a pipe");
    let memory = memory(1);
    let name = memory.name().to_owned();
    let mut memory = Some(memory);
    let child = in_forked_child(|| {
        memory.as_ref().expect("inherited").write_at(0, b"c").expect("written");
        rustix::io::write(&attached_end, &[1]).expect("told");
        rustix::io::read(&gone, &mut [0]).expect("heard");
        let kept = exists(&name);
        // As the last holder.
        drop(memory.take());
        kept && !exists(&name)
    });
    rustix::io::read(&attached, &mut [0]).expect("heard");
    drop(memory);
    rustix::io::write(&gone_end, &[1]).expect("told");
    returned_true(child);
}

#[test]
fn a_forked_child_that_uses_nothing_does_not_keep_the_name() {
    let _alone = STARTING.write();
    let _watchdog = watchdog();
    let (go, go_end) = rustix::pipe::pipe().expect("a pipe");
    let memory = memory(1);
    let name = memory.name().to_owned();
    let child = in_forked_child(|| rustix::io::read(&go, &mut [0]).is_ok());
    drop(memory);
    assert!(!exists(&name));
    rustix::io::write(&go_end, &[1]).expect("told");
    returned_true(child);
}
