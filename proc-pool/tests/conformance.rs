//! What CPython asserts of its processes, row by row.

mod common;

use common::*;
use proc_pool::{Process, TaskError};
use std::time::Duration;

fn square(x: u64) -> u64 {
    x * x
}

fn sleeper((): ()) {
    sleep_forever()
}

#[test]
fn conformance_process_test_process() {
    let _dog = watchdog();
    let child = Process::builder()
        .name("child")
        .spawn(|argument: (u8, String)| (argument, std::process::id()), (1, "a".into()))
        .expect("spawned");
    let pid = child.id();
    assert_eq!(child.join(), Ok(((1, "a".into()), pid)));
    assert!(!child.is_alive());
    assert!(child.exit_status().expect("ended").success());
}

#[test]
fn conformance_process_args_argument() {
    let _dog = watchdog();
    type Arguments = (u8, String, Vec<u8>, (u8,));
    let arguments: Arguments = (1, "str".into(), vec![1], (1,));
    let child = Process::spawn(|arguments: Arguments| arguments, arguments.clone()).expect("spawned");
    assert_eq!(child.join(), Ok(arguments));
}

#[test]
fn conformance_process_terminate() {
    let _dog = watchdog();
    let child = Process::spawn(sleeper, ()).expect("spawned");
    assert_eq!(child.join_timeout(Duration::ZERO), Ok(None));
    assert!(child.is_alive());
    child.terminate().expect("signalled");
    assert_eq!(death(child.join()), (Some(SIGTERM), None));
    assert_eq!(child.exit_status().and_then(|status| status.signal()), Some(SIGTERM));
    assert!(!child.is_alive());
}

#[test]
fn conformance_process_kill() {
    let _dog = watchdog();
    let child = Process::spawn(sleeper, ()).expect("spawned");
    child.kill().expect("killed");
    assert_eq!(death(child.join()), (Some(SIGKILL), None));
    child.kill().expect("a dead child is none to kill");
    child.terminate().expect("nor to signal");
}

#[test]
fn conformance_process_interrupt_no_handler() {
    let _dog = watchdog();
    let child = Process::spawn(sleeper, ()).expect("spawned");
    child.interrupt().expect("signalled");
    assert_eq!(death(child.join()), (Some(SIGINT), None));
}

#[test]
fn conformance_process_sentinel() {
    let _dog = watchdog();
    let (reader, gate) = pipe();
    let child = Process::spawn(|gate: Handle| until_ready(&gate.0), Handle(reader.into_inner().into()))
        .expect("spawned");
    assert!(!is_ready(&child));
    drop(gate);
    until_ready(&child);
    assert_eq!(child.join(), Ok(()));
    assert!(is_ready(&child));
}

/// What the descriptors of this process are, but for the one that looks.
fn descriptors(gate: Handle) -> Vec<String> {
    use std::os::fd::AsRawFd;
    let gate_link = format!("/proc/self/fd/{}", gate.0.as_raw_fd());
    let gate_target = std::fs::read_link(gate_link).expect("it is open");
    let entries = std::fs::read_dir("/proc/self/fd").expect("procfs");
    let targets = entries.filter_map(|entry| std::fs::read_link(entry.expect("procfs").path()).ok());
    let targets = targets.filter(|target| *target != gate_target && !target.starts_with("/proc"));
    let mut kinds: Vec<String> = targets.map(|target| target.to_string_lossy().into_owned()).collect();
    kinds.sort();
    until_ready(&gate.0);
    kinds
}

#[test]
fn conformance_process_child_fd_inflation() {
    let _dog = watchdog();
    let (reader, gate) = pipe();
    let reader: std::os::fd::OwnedFd = reader.into_inner().into();
    let children: Vec<_> = (0..5)
        .map(|_| {
            Process::spawn(descriptors, Handle(reader.try_clone().expect("a descriptor"))).expect("spawned")
        })
        .collect();
    drop((reader, gate));
    // What anybody's program hands down: our stdout, and what we inherited ourselves.
    let handed_down = std::fs::read_dir("/proc/self/fd").expect("procfs").filter(|entry| {
        use std::os::fd::BorrowedFd;
        let name = entry.as_ref().expect("procfs").file_name();
        let number: i32 = name.to_string_lossy().parse().expect("a number");
        // SAFETY: only asked for its flags; if it was closed meanwhile, the question fails.
        let flags = rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) });
        number > 2 && flags.is_ok_and(|flags| !flags.contains(rustix::io::FdFlags::CLOEXEC))
    });
    // stdin, stdout, stderr, the control socket and the watching thread's copy of it.
    let expected = 5 + handed_down.count();
    for child in children {
        let open = child.join().expect("a result");
        assert_eq!(open.len(), expected, "{open:?}");
        assert_eq!(open.iter().filter(|name| name.starts_with("socket:")).count(), 2, "{open:?}");
    }
}

#[test]
fn conformance_process_closefd() {
    let _dog = watchdog();
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let high = rustix::io::fcntl_dupfd_cloexec(&socket, 700).expect("a high descriptor");
    let number = std::os::fd::AsRawFd::as_raw_fd(&high);
    let child = Process::spawn(
        |number: i32| {
            // SAFETY: only asks whether there is such a descriptor.
            rustix::io::fcntl_getfd(unsafe { std::os::fd::BorrowedFd::borrow_raw(number) }).is_ok()
        },
        number,
    )
    .expect("spawned");
    assert_eq!(child.join(), Ok(false));
}

#[test]
fn conformance_process_recursion() {
    fn recurse((writer, path): (Handle, Vec<u32>)) {
        writer.say(format_args!("{path:?}"));
        if path.len() < 2 {
            for i in 0..2 {
                let below = path.iter().copied().chain([i]).collect();
                let copy = Handle(writer.0.try_clone().expect("a descriptor"));
                Process::spawn(recurse, (copy, below)).expect("spawned").join().expect("no failure");
            }
        }
    }
    let _dog = watchdog();
    let (mut reader, writer) = pipe();
    Process::spawn(recurse, (writer, Vec::new())).expect("spawned").join().expect("no failure");
    for expected in ["[]", "[0]", "[0, 0]", "[0, 1]", "[1]", "[1, 0]", "[1, 1]", ""] {
        assert_eq!(line(&mut reader), expected);
    }
}

#[test]
fn conformance_process_many_processes() {
    let _dog = watchdog();
    let children: Vec<_> = (0..10).map(|i| Process::spawn(square, i).expect("spawned")).collect();
    for (i, child) in (0..).zip(&children) {
        assert_eq!(child.join(), Ok(i * i));
    }
    let children: Vec<_> = (0..10).map(|_| Process::spawn(sleeper, ()).expect("spawned")).collect();
    children.iter().for_each(|child| child.terminate().expect("signalled"));
    for child in children {
        assert_eq!(death(child.join()), (Some(SIGTERM), None));
    }
}

#[test]
fn conformance_process_atexit() {
    use std::sync::OnceLock;
    static WRITER: OnceLock<Handle> = OnceLock::new();
    extern "C" fn at_exit() {
        WRITER.get().expect("set").say("exiting");
    }
    let _dog = watchdog();
    let (mut reader, writer) = pipe();
    let child = Process::spawn(
        |writer: Handle| {
            let _ = WRITER.set(writer);
            // SAFETY: a function that lives for ever.
            assert_eq!(unsafe { libc::atexit(at_exit) }, 0);
        },
        writer,
    )
    .expect("spawned");
    child.join().expect("no failure");
    assert_eq!(line(&mut reader), "exiting");
}

#[test]
fn conformance_process_error_on_stdio_flush() {
    let _dog = watchdog();
    for descriptor in [1, 2] {
        let close = |descriptor: i32| {
            // SAFETY: on purpose; standard streams are not owned by anything.
            assert_eq!(unsafe { libc::close(descriptor) }, 0);
            println!("to nobody");
            eprintln!("to nobody");
            7u8
        };
        let child = Process::spawn(close, descriptor).expect("spawned");
        assert_eq!(child.join(), Ok(7));
    }
}

#[test]
fn conformance_process_stderr_flush() {
    let _dog = watchdog();
    let child = Process::spawn(
        |lines: u32| -> u8 {
            (0..lines).for_each(|line| eprintln!("line {line}"));
            std::process::exit(3)
        },
        200,
    )
    .expect("spawned");
    match child.join() {
        Err(TaskError::WorkerDied { stderr_tail, .. }) => assert!(stderr_tail.ends_with("line 199\n")),
        other => panic!("no death: {other:?}"),
    }
}
