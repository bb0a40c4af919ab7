//! Runs the binary, and looks at what it prints and leaves.

mod common;

use std::process::{Command, Stdio};

#[test]
fn it_prints_what_every_idea_makes_of_its_numbers() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shared_numbers"));
    let output = common::finished(&mut command, Stdio::piped());

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
