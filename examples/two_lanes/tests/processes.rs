//! Runs the binary, and looks at what it prints.
#![cfg(not(loom))]

use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;
use two_lanes::{Lane, two_lanes};

/// Long enough for the slowest machine; only a hang takes it.
const WATCHDOG: Duration = Duration::from_secs(120);

#[test]
fn no_task_is_lost_but_what_a_killed_worker_had_in_hand() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_two_lanes"));
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("the program starts");
    let process = rustix::process::Pid::from_child(&child);
    let (done, waiting) = channel::<()>();
    let dog = std::thread::spawn(move || {
        if waiting.recv_timeout(WATCHDOG) == Err(RecvTimeoutError::Timeout) {
            // Not waited for yet, so nobody else has its number.
            let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
        }
    });
    let output = child.wait_with_output().expect("collected");
    drop(done);
    dog.join().expect("no panic");

    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{:?}: {stdout}{stderr}", output.status);
    assert_eq!(stderr, "");
    assert!(stdout.starts_with("20000 tasks in 3 processes, one killed: none ran twice"), "{stdout}");
}

#[test]
fn urgent_tasks_go_first_and_the_last_client_ends_it() {
    let (client, worker) = two_lanes(4).expect("two small lanes");
    for (lane, task) in [(Lane::Normal, 1), (Lane::Urgent, 2), (Lane::Normal, 3), (Lane::Urgent, 4)] {
        client.submit(lane, task).expect("a worker is there");
    }
    drop(client);
    let tasks: Vec<_> = std::iter::from_fn(|| worker.next()).collect();
    assert_eq!(tasks, [2, 4, 1, 3]);
}
