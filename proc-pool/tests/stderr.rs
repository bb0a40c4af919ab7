//! What becomes of the words of children while this process's own stderr takes none.

mod common;

use common::*;
use proc_pool::{Pool, Process, TaskError};
use rustix::pipe::{PipeFlags, pipe_with};
use std::io::{Read, Write};
use std::time::Duration;

/// More than a pipe and a backlog hold.
const MUCH: usize = 1_000_000;

fn shout(len: usize) {
    let mut line = vec![b'x'; 99];
    line.push(b'\n');
    for _ in 0..len / 100 {
        std::io::stderr().write_all(&line).expect("stderr is open");
    }
}

fn shout_and_die(len: usize) {
    shout(len);
    eprintln!("the last word");
    std::process::abort()
}

/// Makes this process's stderr a full pipe. Its reading end comes back: without it the pipe would be broken.
fn stuff_stderr() -> std::fs::File {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).expect("a pipe");
    while rustix::io::write(&writer, &[b'-'; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).expect("it blocks now");
    rustix::io::ioctl_fionbio(&reader, false).expect("it blocks now");
    rustix::stdio::dup2_stderr(&writer).expect("it is stderr now");
    reader.into()
}

fn last_words(outcome: Result<(), TaskError>) -> bool {
    matches!(outcome, Err(TaskError::WorkerDied { stderr_tail, .. }) if stderr_tail.ends_with("the last word\n"))
}

/// In a process whose stderr is full: a worker that says little dies, one that says much is stuck, the pool goes.
fn pool_without_a_reader(len: usize) -> bool {
    let _reader = stuff_stderr();
    let pool = Pool::new(2).expect("a pool");
    let told = last_words(pool.submit(shout_and_die, len).expect("submitted").join());
    let _stuck = pool.submit(shout, 10 * MUCH).expect("submitted");
    assert_eq!(pool.call(|x: u64| x, 1).expect("the other worker"), 1);
    drop(pool);
    told
}

#[test]
fn a_full_stderr_that_nobody_reads_does_not_keep_a_pool() {
    let _watch = watchdog();
    let child = Process::spawn(pool_without_a_reader, 60_000).expect("started");
    assert_eq!(child.join(), Ok(true));
}

fn processes_without_a_reader(_: ()) -> bool {
    let _reader = stuff_stderr();
    let child = Process::spawn(shout_and_die, 40_000).expect("started");
    let told = last_words(child.join());
    let stuck = Process::spawn(shout, MUCH).expect("started");
    assert_eq!(stuck.join_timeout(Duration::from_millis(50)), Ok(None));
    drop(stuck);
    // Another child's exit status is collected all the same.
    let next = Process::spawn(|x: u64| x, 7).expect("started");
    told && next.join() == Ok(7)
}

#[test]
fn a_full_stderr_that_nobody_reads_does_not_keep_a_process() {
    let _watch = watchdog();
    let child = Process::spawn(processes_without_a_reader, ()).expect("started");
    assert_eq!(child.join(), Ok(true));
}

fn reader_that_comes_late(_: ()) -> usize {
    let mut reader = stuff_stderr();
    let child = Process::spawn(shout, MUCH).expect("started");
    assert_eq!(child.join_timeout(Duration::from_millis(50)), Ok(None));
    let reading = std::thread::spawn(move || {
        let (mut seen, mut buffer) = (0, [0; 1000]);
        while seen < MUCH {
            let count = reader.read(&mut buffer).expect("readable");
            seen += buffer[..count].iter().filter(|byte| **byte != b'-').count();
        }
        seen
    });
    child.join().expect("no failure");
    reading.join().expect("no panic")
}

#[test]
fn a_reader_that_comes_late_gets_every_word() {
    let _watch = watchdog();
    let child = Process::spawn(reader_that_comes_late, ()).expect("started");
    assert_eq!(child.join(), Ok(MUCH));
}
