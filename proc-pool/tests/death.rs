//! How processes end, what is told about it, and that nothing is left behind.

mod common;

use common::*;
use proc_pool::{Process, TaskError};

fn square(x: u64) -> u64 {
    x * x
}

fn sleeper((): ()) {
    sleep_forever()
}

#[test]
fn a_panic_is_told_with_message_and_place() {
    let _dog = watchdog();
    let child = Process::spawn(|x: u32| assert_eq!(x, 8, "that was not eight"), 7).expect("spawned");
    match child.join() {
        Err(TaskError::Panicked { message, location, .. }) => {
            assert!(message.contains("that was not eight"), "{message}");
            assert!(location.expect("a place").contains("death.rs:"));
        }
        other => panic!("no panic: {other:?}"),
    }
    assert_eq!(child.exit_status().and_then(|status| status.code()), Some(101));
}

#[test]
fn exit_is_told_with_its_code() {
    let _dog = watchdog();
    for code in [0, 3] {
        let child = Process::spawn(|code: i32| -> u8 { std::process::exit(code) }, code).expect("spawned");
        assert_eq!(death(child.join()), (None, Some(code)));
    }
}

#[test]
fn an_abort_is_told_as_its_signal() {
    let _dog = watchdog();
    let child = Process::spawn(|()| -> u8 { std::process::abort() }, ()).expect("spawned");
    assert_eq!(death(child.join()), (Some(SIGABRT), None));
}

#[test]
fn a_segmentation_fault_is_told_as_its_signal() {
    let _dog = watchdog();
    // SAFETY: a write to unmapped memory, in a process whose only purpose is to die of it.
    let crash =
        |address: usize| unsafe { std::ptr::with_exposed_provenance_mut::<u8>(address).write_volatile(1) };
    let child = Process::spawn(crash, 16).expect("spawned");
    assert_eq!(death(child.join()), (Some(SIGSEGV), None));
}

#[test]
fn a_stack_overflow_is_told_as_a_signal() {
    #[allow(unconditional_recursion, reason = "that is the test")]
    fn deeper(x: u64) -> u64 {
        std::hint::black_box(deeper(std::hint::black_box(x + 1)) + 1)
    }
    let _dog = watchdog();
    let (signal, _) = death(Process::spawn(deeper, 0).expect("spawned").join());
    // The runtime turns it into an abort where it is in charge of the main thread, and not before `main`.
    assert!(signal == Some(SIGSEGV) || signal == Some(SIGABRT), "{signal:?}");
}

#[test]
fn what_a_dead_child_said_last_is_in_the_error() {
    let _dog = watchdog();
    let child = Process::spawn(
        |word: String| -> u8 {
            eprintln!("the last word is {word}");
            std::process::abort()
        },
        "ouch".into(),
    )
    .expect("spawned");
    match child.join() {
        Err(TaskError::WorkerDied { stderr_tail, label, pid, item, .. }) => {
            assert!(stderr_tail.contains("the last word is ouch"), "{stderr_tail}");
            assert!(label.contains("what_a_dead_child_said_last"), "{label}");
            assert_eq!((pid, item), (child.id(), None));
        }
        other => panic!("no death: {other:?}"),
    }
}

#[test]
fn a_grandchild_that_keeps_stderr_open_delays_nothing() {
    let _dog = watchdog();
    let child = Process::spawn(
        |()| -> u32 {
            let sleep = std::process::Command::new("sleep").arg("1000").spawn();
            sleep.expect("sleep exists").id()
        },
        (),
    )
    .expect("spawned");
    let grandchild = child.join().expect("a result");
    let pid = rustix::process::Pid::from_raw(grandchild.try_into().expect("an id")).expect("not zero");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it outlives an orderly exit");
}

#[test]
fn a_child_that_kills_itself_takes_its_process_group_along() {
    let _dog = watchdog();
    let (mut reader, writer) = pipe();
    let child = Process::spawn(
        |writer: Handle| -> u8 {
            let sleep = std::process::Command::new("sleep").arg("1000").spawn();
            writer.say(sleep.expect("sleep exists").id());
            std::process::abort()
        },
        writer,
    )
    .expect("spawned");
    let grandchild = line(&mut reader).parse().expect("a process id");
    assert_eq!(death(child.join()), (Some(SIGABRT), None));
    until_gone(grandchild);
}

#[test]
fn a_dropped_process_leaves_no_process_and_no_zombie() {
    let _dog = watchdog();
    for ended in [false, true] {
        let child = Process::spawn(
            |ended: bool| {
                if !ended {
                    sleep_forever()
                }
            },
            ended,
        )
        .expect("spawned");
        if ended {
            until_ready(&child);
        }
        let pid = child.id();
        drop(child);
        until_gone(pid);
    }
}

#[test]
fn a_child_that_closes_its_descriptors_still_ends_with_its_parent() {
    let _dog = watchdog();
    let (mut reader, writer) = pipe();
    let parent = Process::spawn(
        |writer: Handle| -> u8 {
            let _child = Process::spawn(
                |writer: Handle| -> u8 {
                    use std::os::fd::AsRawFd;
                    let keep = writer.0.as_raw_fd();
                    for descriptor in (3..64).filter(|&descriptor| descriptor != keep) {
                        // SAFETY: on purpose, what buggy programs do; nothing of this process uses them afterwards.
                        unsafe { libc::close(descriptor) };
                    }
                    writer.say(std::process::id());
                    sleep_forever()
                },
                writer,
            )
            .expect("spawned");
            sleep_forever()
        },
        writer,
    )
    .expect("spawned");
    let child = pidfd(line(&mut reader).parse().expect("a process id"));
    parent.kill().expect("killed");
    until_ready(child);
}

/// Two children, each with a program of its own; says all process ids.
fn family(writer: Handle) {
    let member = |writer: Handle| -> u8 {
        let sleep = std::process::Command::new("sleep").arg("1000").spawn();
        writer.say(format_args!("{} {}", std::process::id(), sleep.expect("sleep exists").id()));
        sleep_forever()
    };
    let copy = || Handle(writer.0.try_clone().expect("a descriptor"));
    let _children = [copy(), copy()].map(|writer| Process::spawn(member, writer).expect("spawned"));
    sleep_forever()
}

#[test]
fn nothing_survives_the_kill_of_the_parent() {
    let _dog = watchdog();
    for stopped in [false, true] {
        let (mut reader, writer) = pipe();
        let parent = Process::spawn(family, writer).expect("spawned");
        let mut descendants = Vec::new();
        for _ in 0..2 {
            let ids: Vec<u32> =
                line(&mut reader).split(' ').map(|id| id.parse().expect("a process id")).collect();
            descendants.extend(ids.iter().map(|&id| pidfd(id)));
            if stopped {
                let child = pidfd(ids[0]);
                rustix::process::pidfd_send_signal(&child, rustix::process::Signal::STOP).expect("stopped");
            }
        }
        // The parent alone: not its process group, and without a chance to clean up.
        rustix::process::pidfd_send_signal(&parent, rustix::process::Signal::KILL).expect("killed");
        descendants.iter().for_each(until_ready);
    }
}

#[test]
fn a_forked_process_leaves_the_children_of_its_parent_alone() {
    let _dog = watchdog();
    let outer = Process::spawn(
        |()| {
            let child = Process::spawn(sleeper, ()).expect("spawned");
            let child = std::cell::RefCell::new(Some(child));
            let code = in_a_fork(|| {
                let child = child.take().expect("the copy");
                let refused = matches!(child.join(), Err(TaskError::Unavailable { .. }))
                    && child.kill().is_err()
                    && !child.is_alive();
                drop(child);
                if refused { 17 } else { 18 }
            });
            (code, child.take().expect("the original").is_alive())
        },
        (),
    )
    .expect("spawned");
    assert_eq!(outer.join(), Ok((17, true)));
}

#[test]
fn a_forked_process_starts_its_own_children() {
    let _dog = watchdog();
    let outer = Process::spawn(
        |()| {
            let before = Process::spawn(square, 3).expect("spawned").join();
            let code = in_a_fork(|| match Process::spawn(square, 5).map(|child| child.join()) {
                Ok(Ok(25)) => 17,
                _ => 18,
            });
            (before.ok(), code)
        },
        (),
    )
    .expect("spawned");
    assert_eq!(outer.join(), Ok((Some(9), 17)));
}

#[test]
fn a_function_that_forks_answers_once() {
    let _dog = watchdog();
    let child = Process::spawn(
        |()| {
            // SAFETY: the copy returns from this function and exits.
            let pid = unsafe { libc::fork() };
            if pid > 0 {
                // SAFETY: a child of this process; its status is of no interest.
                unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
            }
            pid > 0
        },
        (),
    )
    .expect("spawned");
    assert_eq!(child.join(), Ok(true), "the original's answer");
}

#[test]
fn a_parent_that_ignores_its_children_still_gets_their_results() {
    let _dog = watchdog();
    let parent = Process::spawn(
        |()| {
            // SAFETY: no handler is installed.
            unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
            let child = Process::spawn(square, 4).expect("spawned");
            let result = child.join().ok();
            (result, child.exit_status().map(|status| (status.code(), status.signal())))
        },
        (),
    )
    .expect("spawned");
    assert_eq!(parent.join(), Ok((Some(16), Some((None, None)))));
}
