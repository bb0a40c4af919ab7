//! Runs the binary, and looks at what it prints and leaves.

use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// Long enough for the slowest machine; only a hang takes it.
const WATCHDOG: Duration = Duration::from_secs(120);

#[test]
fn it_prints_what_every_idea_makes_of_its_numbers() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shared_numbers"));
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
    let expected = [
        "counter: 4 processes, 100000 steps each, 400000 in the end (",
        "squares: [0, 1, 4, 9, 16, 25, 36, 49, 64, 81] (",
        "names: Ada, Grace, Edsger (",
        "doubled: 10000000 numbers, all as they should be, ",
    ];
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(lines.len(), expected.len(), "{stdout}");
    for (line, expected) in lines.into_iter().zip(expected) {
        assert!(line.starts_with(expected) && line.ends_with(" ms)"), "{line}");
    }
}
