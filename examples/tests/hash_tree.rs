//! Runs the binary on small trees.

mod common;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::finished;
use tempfile::TempDir;

fn hash_tree(dir: &Path, args: &[&str]) -> Output {
    finished(Command::new(env!("CARGO_BIN_EXE_hash_tree")).current_dir(dir).args(args), Stdio::piped())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn sorted_lines(bytes: &[u8]) -> Vec<&[u8]> {
    let mut lines: Vec<_> = bytes.split_inclusive(|&byte| byte == b'\n').collect();
    lines.sort();
    lines
}

/// 300 files in 20 directories, some of them with awkward names, and things that are no regular files.
fn tree() -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for number in 0..300_usize {
        let below = dir.path().join(format!("d{}", number % 20));
        fs::create_dir_all(&below).expect("mkdir");
        let content = format!("{number}-").repeat(number * number % 20_000);
        fs::write(below.join(format!("f{number}")), content).expect("write");
    }
    for name in [&b"a b"[..], b"-dash", b"back\\slash", b"new\nline", b"\xff\xfe", b"*", b"'\""] {
        fs::write(dir.path().join(OsStr::from_bytes(name)), name).expect("write");
    }
    symlink("d0", dir.path().join("link")).expect("symlink");
    symlink("nowhere", dir.path().join("dangling")).expect("symlink");
    dir
}

/// What `find . -type f -exec sha256sum {} +` prints there; `None` where these programs are missing.
fn truth(dir: &Path) -> Option<Vec<u8>> {
    for program in ["find", "sha256sum"] {
        if Command::new(program).arg("--version").output().is_err() {
            eprintln!("skipped: there is no {program} here");
            return None;
        }
    }
    let mut command = Command::new("find");
    let output = finished(
        command.current_dir(dir).args([".", "-type", "f", "-exec", "sha256sum", "{}", "+"]),
        Stdio::piped(),
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
    Some(output.stdout)
}

fn prints_what_sha256sum_prints(args: &[&str]) {
    let dir = tree();
    let output = hash_tree(dir.path(), args);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(sorted_lines(&output.stdout).len(), 307);
    if let Some(truth) = truth(dir.path()) {
        assert_eq!(text(&sorted_lines(&output.stdout).concat()), text(&sorted_lines(&truth).concat()));
        assert_eq!(sorted_lines(&output.stdout), sorted_lines(&truth));
    }
}

#[test]
fn it_prints_what_sha256sum_prints() {
    prints_what_sha256sum_prints(&[]);
}

#[test]
fn it_prints_the_same_with_one_worker() {
    prints_what_sha256sum_prints(&["--workers", "1"]);
}

#[test]
fn it_prints_the_same_while_workers_are_killed() {
    prints_what_sha256sum_prints(&["--workers", "3", "--chaos"]);
}

#[test]
fn the_summary_counts_files_bytes_and_workers() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    fs::write(dir.path().join("a"), [0; 1_500_000]).expect("write");
    fs::write(dir.path().join("b"), [0; 500_000]).expect("write");
    let output = hash_tree(dir.path(), &["--workers", "2"]);
    let stderr = text(&output.stderr);
    assert!(stderr.contains("2 files, 2.0 MB"), "{stderr}");
    assert!(stderr.contains("  worker "), "{stderr}");
}

#[test]
fn an_unreadable_file_is_reported_and_the_others_are_hashed() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    fs::write(dir.path().join("good"), "good").expect("write");
    let secret = dir.path().join("secret");
    fs::write(&secret, "secret").expect("write");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).expect("chmod");
    if fs::File::open(&secret).is_ok() {
        eprintln!("skipped: this user may read everything");
        return;
    }
    let output = hash_tree(dir.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).ends_with("  ./good\n"), "{}", text(&output.stdout));
    assert!(text(&output.stderr).contains("\"./secret\": Permission denied"), "{}", text(&output.stderr));
}

#[test]
fn a_path_that_is_too_long_is_reported_and_the_others_are_hashed() {
    // Not even root can open a path beyond PATH_MAX, so this runs for everybody.
    let dir = tempfile::tempdir().expect("a temporary directory");
    fs::write(dir.path().join("good"), "good").expect("write");
    let mut script = String::from("set -e;");
    for _ in 0..25 {
        script += "mkdir dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd\
                   dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd;\
                   cd -P d*;";
    }
    script += "echo deep >file";
    let built = finished(Command::new("sh").current_dir(dir.path()).args(["-c", &script]), Stdio::piped());
    assert!(built.status.success(), "{}", text(&built.stderr));
    let output = hash_tree(dir.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).ends_with("  ./good\n"), "{}", text(&output.stdout));
    assert!(text(&output.stderr).contains("File name too long"), "{}", text(&output.stderr));
}

#[test]
fn a_missing_directory_is_a_clear_error() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let output = hash_tree(dir.path(), &["nowhere"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(text(&output.stdout), "");
    let stderr = text(&output.stderr);
    assert!(stderr.contains("\"nowhere\": No such file or directory"), "{stderr}");
}

#[test]
fn bad_arguments_are_a_usage_error() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for args in [&["--workers", "0"][..], &["--workers"], &["--wat"], &["a", "b"]] {
        let output = hash_tree(dir.path(), args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(text(&output.stderr).contains("--help"), "{args:?}: {}", text(&output.stderr));
    }
}

#[test]
fn help_goes_to_stdout() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let output = hash_tree(dir.path(), &["--help"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).starts_with("Usage: hash_tree"));
}

#[test]
fn an_empty_directory_prints_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let output = hash_tree(dir.path(), &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "");
}

#[test]
fn a_closed_stdout_ends_the_run_quietly() {
    let dir = tree();
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe");
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_hash_tree"));
    let output = finished(command.current_dir(dir.path()), Stdio::from(writer));
    assert_eq!(output.status.code(), Some(141), "as after SIGPIPE");
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn a_full_disk_is_a_clear_error() {
    let dir = tree();
    let full = fs::File::options().write(true).open("/dev/full").expect("Linux has it");
    let mut command = Command::new(env!("CARGO_BIN_EXE_hash_tree"));
    let output = finished(command.current_dir(dir.path()), Stdio::from(full));
    assert_eq!(output.status.code(), Some(2));
    let stderr = text(&output.stderr);
    assert!(stderr.contains("writing the digests: No space left on device"), "{stderr}");
}
