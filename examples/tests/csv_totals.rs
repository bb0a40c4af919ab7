//! Runs the binary, and adds up what it prints.

mod common;

use std::process::{Command, Stdio};

/// The number in front of ` what`.
fn number(line: &str, what: &str) -> u64 {
    let end = line.find(&format!(" {what}")).unwrap_or_else(|| panic!("no {what} in {line}"));
    let start = line[..end].rfind(' ').map_or(0, |space| space + 1);
    line[start..end].parse().unwrap_or_else(|error| panic!("{error}: {line}"))
}

#[test]
fn every_row_is_counted_once_and_a_killed_consumer_loses_one_chunk_at_most() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut command = Command::new(env!("CARGO_BIN_EXE_csv_totals"));
    let output = common::finished(command.env("TMPDIR", directory.path()), Stdio::piped());

    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{:?}: {stdout}{stderr}", output.status);
    let lines: Vec<&str> = stdout.lines().collect();
    let [file, sentinels, disconnect, killed] = lines[..] else { panic!("four lines: {stdout}") };
    assert!(file.starts_with("file: 200000 rows, "), "{file}");
    let cores = std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2)) as u64;
    for (line, title) in [(sentinels, "sentinels: "), (disconnect, "disconnect: "), (killed, "killed: ")] {
        assert!(line.starts_with(title), "{line}");
        assert_eq!(number(line, "consumers"), cores);
        assert_eq!(number(line, "rows") + number(line, "missing"), 200_000);
    }
    assert_eq!((number(sentinels, "missing"), number(disconnect, "missing")), (0, 0));
    assert_eq!(number(sentinels, "cents"), number(disconnect, "cents"));
    assert!(number(killed, "missing") <= 100, "{killed}");
    assert_eq!(directory.path().read_dir().expect("a directory").count(), 0, "the file is left");
}
