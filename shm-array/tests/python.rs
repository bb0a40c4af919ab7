//! Named shared memory together with Python's `multiprocessing.shared_memory` and numpy, in both roles.
//!
//! Needs a Python that can import numpy: `python3`, or the system's. Without one the tests print "skipped"; where everything
//! must have been installed (`CI_RUN` is set) they fail.
#![cfg(not(loom))]

mod common;

use common::{PATIENCE, watchdog};
use shm_array::SharedMemory;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// What every script begins with. It ends by itself, whatever happens here; `attach` leaves Python's tracker out.
const PRELUDE: &str = "
import signal, sys
signal.alarm(60)
import numpy
from multiprocessing import resource_tracker, shared_memory
def attach(name):
    if sys.version_info >= (3, 13):
        return shared_memory.SharedMemory(name=name, track=False)
    memory = shared_memory.SharedMemory(name=name)
    resource_tracker.unregister(memory._name, 'shared_memory')
    return memory
def numbers(memory, count):
    return numpy.ndarray((count,), dtype=numpy.int64, buffer=memory.buf)
def tell(*words):
    print(*words, flush=True)
";

/// A Python that has numpy.
fn interpreter() -> Option<&'static str> {
    static FOUND: OnceLock<Option<&str>> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let found = ["python3", "/usr/bin/python3"].into_iter().find(|python| {
            let mut command = Command::new(python);
            command.args(["-c", "import numpy, multiprocessing.shared_memory"]);
            command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
        });
        if found.is_none() {
            assert!(std::env::var_os("CI_RUN").is_none(), "no Python with numpy was installed");
            eprintln!("skipped: there is no Python with numpy");
        }
        found
    })
}

/// A running script.
struct Python {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Python {
    fn start(script: &str, arguments: &[&str]) -> Option<Self> {
        let mut command = Command::new(interpreter()?);
        command.arg("-c").arg(format!("{PRELUDE}{script}")).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().expect("Python starts");
        let input = process.stdin.take();
        let output = BufReader::new(process.stdout.take().expect("piped"));
        Some(Self { process, input, output })
    }

    /// The next line that it tells.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("Python talks");
        if line.is_empty() {
            panic!("Python ended: {}", self.errors());
        }
        line.trim_end().to_owned()
    }

    /// Lets it go on after an `input()`.
    fn go_on(&mut self) {
        self.input.as_mut().expect("open").write_all(b"\n").expect("Python listens");
    }

    /// What it and its tracker wrote to their standard error, until both have ended.
    fn errors(&mut self) -> String {
        let mut errors = String::new();
        self.process.stderr.take().expect("read once").read_to_string(&mut errors).expect("text");
        errors
    }

    /// Waits until it has ended well, and its tracker too. Returns its and the tracker's complaints.
    fn end(mut self) -> String {
        drop(self.input.take());
        let errors = self.errors();
        let status = self.process.wait().expect("waited for");
        assert!(status.success(), "{status}: {errors}");
        errors
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn exists(name: &str) -> bool {
    std::path::Path::new("/dev/shm").join(name).symlink_metadata().is_ok()
}

fn eventually_gone(name: &str) {
    let give_up = Instant::now() + PATIENCE;
    while exists(name) {
        assert!(Instant::now() < give_up, "{name} stays");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn write_numbers(memory: &SharedMemory, numbers: impl IntoIterator<Item = i64>) {
    let bytes: Vec<u8> = numbers.into_iter().flat_map(i64::to_ne_bytes).collect();
    memory.write_at(0, &bytes).expect("written");
}

fn read_numbers(memory: &SharedMemory, count: usize) -> Vec<i64> {
    let mut bytes = vec![0; count * 8];
    memory.read_at(0, &mut bytes).expect("read");
    bytes.chunks_exact(8).map(|bytes| i64::from_ne_bytes(bytes.try_into().expect("eight"))).collect()
}

#[test]
fn an_array_created_here_is_doubled_by_numpy() {
    let _watchdog = watchdog();
    let memory = SharedMemory::create_random(8000).expect("created");
    write_numbers(&memory, 0..1000);
    let script = "
memory = attach(sys.argv[1])
array = numbers(memory, 1000)
tell(memory.name, memory.size, array.sum())
array *= 2
del array
memory.close()
";
    let Some(mut python) = Python::start(script, &[memory.name()]) else { return };
    assert_eq!(python.line(), format!("{} 8000 499500", memory.name()));
    assert_eq!(python.end(), "");
    assert_eq!(read_numbers(&memory, 1000), (0..1000).map(|n| 2 * n).collect::<Vec<i64>>());
}

#[test]
fn an_array_created_by_numpy_is_doubled_here() {
    let _watchdog = watchdog();
    let script = "
memory = shared_memory.SharedMemory(create=True, size=8000)
array = numbers(memory, 1000)
array[:] = numpy.arange(1000)
tell(memory.name)
input()
tell(array.sum())
del array
memory.close()
memory.unlink()
";
    let Some(mut python) = Python::start(script, &[]) else { return };
    let name = python.line();
    let memory = SharedMemory::open(&name).expect("attached");
    assert!(name.starts_with("psm_") && memory.len() == 8000, "{memory:?}");
    let numbers = read_numbers(&memory, 1000);
    assert_eq!(numbers, (0..1000).collect::<Vec<i64>>());
    write_numbers(&memory, numbers.iter().map(|n| 2 * n));
    python.go_on();
    assert_eq!(python.line(), "999000");
    assert_eq!(python.end(), "");
    assert!(memory.unlink().expect_err("Python has unlinked it").is_not_found());
    assert_eq!(read_numbers(&memory, 2), [0, 2], "the memory is still there");
}

#[test]
fn both_see_each_others_writes_at_once() {
    let _watchdog = watchdog();
    let memory = SharedMemory::create_random(16).expect("created");
    let script = "
memory = attach(sys.argv[1])
array = numbers(memory, 2)
for _ in range(100):
    input()
    array[1] = array[0] + 1
    tell('written')
del array
memory.close()
";
    let Some(mut python) = Python::start(script, &[memory.name()]) else { return };
    for number in 0..100 {
        write_numbers(&memory, [number]);
        python.go_on();
        python.line();
        assert_eq!(read_numbers(&memory, 2), [number, number + 1]);
    }
    assert_eq!(python.end(), "");
}

#[test]
fn an_odd_length_is_the_same_on_both_sides() {
    let _watchdog = watchdog();
    let memory = SharedMemory::create_random(4097).expect("created");
    let script = "
memory = attach(sys.argv[1])
memory.buf[4096] = 7
tell(memory.size, len(memory.buf))
memory.close()
";
    let Some(mut python) = Python::start(script, &[memory.name()]) else { return };
    assert_eq!(python.line(), "4097 4097");
    python.end();
    let mut last = [0];
    memory.read_at(4096, &mut last).expect("read");
    assert_eq!(last, [7]);
}

#[test]
fn a_name_taken_here_is_taken_there_and_the_reverse() {
    let _watchdog = watchdog();
    let ours = SharedMemory::create_random(1).expect("created");
    let script = "
try:
    shared_memory.SharedMemory(name=sys.argv[1], create=True, size=1)
except FileExistsError:
    tell('taken')
memory = shared_memory.SharedMemory(create=True, size=1)
tell(memory.name)
input()
memory.close()
memory.unlink()
";
    let Some(mut python) = Python::start(script, &[ours.name()]) else { return };
    assert_eq!(python.line(), "taken");
    let theirs = python.line();
    assert!(SharedMemory::create(&theirs, 1).expect_err("taken").is_name_taken());
    assert_eq!(SharedMemory::open_or_create(&theirs, 9).expect("opened").len(), 1);
    python.go_on();
    python.end();
}

#[test]
fn what_python_unlinks_is_not_found_here() {
    let _watchdog = watchdog();
    let memory = SharedMemory::create_random(1).expect("created");
    let script = "
memory = shared_memory.SharedMemory(name=sys.argv[1])
memory.close()
memory.unlink()
";
    let Some(python) = Python::start(script, &[memory.name()]) else { return };
    assert_eq!(python.end(), "");
    assert!(memory.unlink().expect_err("gone").is_not_found());
}

#[test]
fn what_python_created_is_not_destroyed_by_the_last_handle_here() {
    let _watchdog = watchdog();
    let script = "
memory = shared_memory.SharedMemory(create=True, size=8)
tell(memory.name)
input()
again = attach(memory.name)
tell(bytes(again.buf[:4]).decode())
again.close()
memory.close()
resource_tracker.register(memory._name, 'shared_memory')
memory.unlink()
";
    let Some(mut python) = Python::start(script, &[]) else { return };
    let name = python.line();
    SharedMemory::open(&name).expect("attached").write_at(0, b"kept").expect("written");
    SharedMemory::scavenge().expect("listed");
    assert!(exists(&name));
    python.go_on();
    assert_eq!(python.line(), "kept");
    python.end();
    assert!(!exists(&name));
}

#[test]
fn pythons_tracker_takes_the_name_away_when_an_attached_python_ends() {
    let _watchdog = watchdog();
    let memory = SharedMemory::create_random(8).expect("created");
    let script = "
memory = shared_memory.SharedMemory(name=sys.argv[1])
memory.buf[0] = 1
";
    let Some(python) = Python::start(script, &[memory.name()]) else { return };
    let complaint = python.end();
    assert!(complaint.contains("leaked shared_memory"), "{complaint}");
    eventually_gone(memory.name());
    assert!(memory.unlink().expect_err("the tracker was faster").is_not_found());
    assert_eq!(read_numbers(&memory, 1), [1], "the bytes are still there");
}

#[test]
fn a_python_that_leaves_its_tracker_out_leaves_the_name_alone() {
    let _watchdog = watchdog();
    let memory = SharedMemory::create_random(8).expect("created");
    let script = "
memory = attach(sys.argv[1])
memory.buf[0] = 1
";
    let Some(python) = Python::start(script, &[memory.name()]) else { return };
    // Its tracker has ended, too.
    assert_eq!(python.end(), "");
    assert!(exists(memory.name()));
    assert_eq!(read_numbers(&memory, 1), [1]);
    memory.unlink().expect("still ours to unlink");
}

#[test]
fn python_keeps_its_memory_when_the_last_handle_here_goes() {
    let _watchdog = watchdog();
    let memory = SharedMemory::create_random(8).expect("created");
    let name = memory.name().to_owned();
    memory.write_at(0, b"ours").expect("written");
    let script = "
memory = attach(sys.argv[1])
tell('attached')
input()
tell(bytes(memory.buf[:4]).decode())
memory.close()
";
    let Some(mut python) = Python::start(script, &[&name]) else { return };
    python.line();
    drop(memory);
    eventually_scavenged(&name);
    python.go_on();
    assert_eq!(python.line(), "ours");
    assert_eq!(python.end(), "");
}

/// Somebody who is just starting a process may have kept the last handle from being the last.
fn eventually_scavenged(name: &str) {
    while exists(name) {
        SharedMemory::scavenge().expect("listed");
    }
}

#[test]
fn what_persists_waits_for_python() {
    let _watchdog = watchdog();
    let memory = SharedMemory::create_random(8).expect("created");
    let name = memory.name().to_owned();
    memory.write_at(0, b"ours").expect("written");
    memory.persist().expect("persists");
    drop(memory);
    let script = "
memory = shared_memory.SharedMemory(name=sys.argv[1])
tell(bytes(memory.buf[:4]).decode())
memory.close()
memory.unlink()
";
    let Some(mut python) = Python::start(script, &[&name]) else {
        return SharedMemory::remove(&name).expect("removed");
    };
    assert_eq!(python.line(), "ours");
    assert_eq!(python.end(), "");
    assert!(!exists(&name));
}
