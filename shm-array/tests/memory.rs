//! Named shared memory through its handle: creating, attaching, travelling, forking, and who destroys it when.
#![cfg(not(loom))]
#![allow(unsafe_code, reason = "forks, sends signals and reads mapped memory")]

mod common;

use common::{PATIENCE, Peer, child as child_of_test, was_killed, watchdog};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde::{Deserialize, Serialize};
use shm_array::SharedMemory;
use std::time::{Duration, Instant};

/// What a child does.
#[derive(Serialize, Deserialize)]
enum Orders {
    /// Reports what the memory holds, and writes its bytes.
    ByHandle { memory: SharedMemory, bytes: Vec<u8> },
    /// The same, with what it attaches to.
    ByName { name: String, bytes: Vec<u8> },
    /// Creates, reports its process id, and waits for a signal.
    Create { name: String },
    /// Opens or creates each of so many names, reports that it has them all, and waits to be killed.
    OpenOrCreate { name: String, names: usize },
    /// Attaches to a name, and sends the handle back.
    SendBack { name: String },
}

#[test]
fn child() {
    child_of_test(|orders, reporter| match orders {
        Orders::ByHandle { memory, bytes } => {
            reporter.report(&read(&memory, bytes.len()));
            memory.write_at(0, &bytes).expect("written");
        }
        Orders::ByName { name, bytes } => {
            let memory = SharedMemory::open(&name).expect("attached");
            reporter.report(&read(&memory, bytes.len()));
            memory.write_at(0, &bytes).expect("written");
        }
        Orders::Create { name } => {
            let _memory = SharedMemory::create(&name, 512).expect("created");
            reporter.report(&std::process::id());
            wait_to_be_killed();
        }
        Orders::OpenOrCreate { name, names } => {
            let all = open_or_create_all(&name, names);
            reporter.report(&all.len());
            wait_to_be_killed();
        }
        Orders::SendBack { name } => {
            let memory = SharedMemory::open(&name).expect("attached");
            reporter.report(&memory);
        }
    });
}

fn wait_to_be_killed() -> ! {
    loop {
        std::thread::park();
    }
}

fn open_or_create_all(name: &str, names: usize) -> Vec<SharedMemory> {
    let one = |n| SharedMemory::open_or_create(&format!("{name}-{n}"), n + 1).expect("opened or created");
    (0..names).map(one).collect()
}

fn memory(len: usize) -> SharedMemory {
    SharedMemory::create_random(len).expect("created")
}

fn read(memory: &SharedMemory, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read_at(0, &mut bytes).expect("read");
    bytes
}

fn free_name(what: &str) -> String {
    format!("shm-array-test-{}-{what}", std::process::id())
}

fn exists(name: &str) -> bool {
    std::path::Path::new("/dev/shm").join(name).symlink_metadata().is_ok()
}

fn scavenged(name: &str) {
    let give_up = Instant::now() + PATIENCE;
    while exists(name) {
        SharedMemory::scavenge().expect("listed");
        assert!(Instant::now() < give_up, "{name} stays");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_handle_knows_its_name_and_length() {
    let name = free_name("basics");
    let memory = SharedMemory::create(&name, 512).expect("created");
    assert_eq!((memory.name(), memory.len()), (name.as_str(), 512));
    assert_eq!(format!("{memory:?}"), format!("SharedMemory {{ name: {name:?}, len: 512 }}"));
}

#[test]
fn a_second_handle_sees_what_the_first_wrote() {
    let first = memory(512);
    first.write_at(0, &[42]).expect("written");
    let second = SharedMemory::open(first.name()).expect("attached");
    assert_eq!((second.len(), read(&second, 1)), (512, vec![42]));
    second.write_at(511, &[43]).expect("written");
    let mut last = [0];
    first.read_at(511, &mut last).expect("read");
    assert_eq!(last, [43]);
}

#[test]
fn a_drawn_name_is_one_that_python_could_have_drawn() {
    let (one, other) = (memory(1), memory(1));
    assert!(one.name().starts_with("psm_"));
    assert_ne!(one.name(), other.name());
}

#[test]
fn what_exists_cannot_be_created_and_what_does_not_cannot_be_opened() {
    let memory = memory(100);
    assert!(SharedMemory::create(memory.name(), 100).expect_err("taken").is_name_taken());
    let name = free_name("missing");
    assert!(SharedMemory::open(&name).expect_err("missing").is_not_found());
    assert!(SharedMemory::remove(&name).expect_err("missing").is_not_found());
}

#[test]
fn bad_names_are_refused() {
    for name in ["", "a\0b", "/slash", "."] {
        assert!(SharedMemory::create(name, 1).expect_err("no name").is_bad_name());
        assert!(SharedMemory::open(name).expect_err("no name").is_bad_name());
        assert!(SharedMemory::open_or_create(name, 1).expect_err("no name").is_bad_name());
        assert!(SharedMemory::remove(name).expect_err("no name").is_bad_name());
    }
}

#[test]
fn impossible_lengths_are_refused() {
    for len in [0, usize::MAX, isize::MAX as usize] {
        let error = SharedMemory::create_random(len).expect_err("impossible");
        assert!(error.is_out_of_range(), "{error}");
    }
    assert!(SharedMemory::create_random(1 << 45).expect_err("too much").is_out_of_memory());
}

#[test]
fn ranges_outside_are_refused_and_nothing_is_copied() {
    let memory = memory(16);
    let mut bytes = [7; 17];
    for offset in [0, 1, 16, usize::MAX] {
        assert!(memory.read_at(offset, &mut bytes).expect_err("outside").is_out_of_range());
        assert!(memory.write_at(offset, &bytes).expect_err("outside").is_out_of_range());
    }
    assert_eq!((bytes, read(&memory, 16)), ([7; 17], vec![0; 16]));
}

#[test]
fn the_mapping_shows_the_same_bytes() {
    let memory = memory(100);
    memory.write_at(99, b"x").expect("written");
    let base = memory.as_ptr().expect("mapped");
    // SAFETY: inside the mapping, and nobody writes meanwhile.
    assert_eq!(unsafe { base.add(99).read() }, b'x');
}

#[test]
fn unlinking_twice_is_an_error() {
    let memory = memory(4);
    memory.unlink().expect("unlinked");
    assert!(memory.unlink().expect_err("gone").is_not_found());
    assert!(SharedMemory::open(memory.name()).expect_err("gone").is_not_found());
    memory.write_at(0, b"here").expect("the memory is still there");
}

#[test]
fn an_unlinked_name_can_be_created_again() {
    let old = memory(4);
    old.unlink().expect("unlinked");
    let new = SharedMemory::create(old.name(), 8).expect("free");
    assert_eq!(SharedMemory::open(old.name()).expect("attached").len(), 8);
    drop(new);
}

#[test]
fn open_or_create_keeps_what_exists_as_it_is() {
    let first = memory(100);
    first.write_at(0, b"kept").expect("written");
    let same = SharedMemory::open_or_create(first.name(), 5000).expect("opened");
    assert_eq!((same.len(), read(&same, 4)), (100, b"kept".to_vec()));
}

#[test]
fn open_or_create_creates_what_is_missing() {
    let name = free_name("open-or-create");
    let memory = SharedMemory::open_or_create(&name, 10).expect("created");
    assert_eq!((memory.name(), read(&memory, 10)), (name.as_str(), vec![0; 10]));
}

#[test]
fn whoever_opens_or_creates_first_the_others_find_it() {
    let _watchdog = watchdog();
    let (name, names) = (free_name("race"), 100);
    let peers = [(); 2].map(|()| Peer::start(&Orders::OpenOrCreate { name: name.clone(), names }, None));
    let mine = open_or_create_all(&name, names);
    for peer in &peers {
        assert_eq!(peer.report::<usize>(), Some(names));
    }
    for (n, memory) in mine.iter().enumerate() {
        assert_eq!(memory.len(), n + 1);
        memory.unlink().expect("there is one");
        assert!(!exists(memory.name()));
    }
}

#[test]
fn a_clone_is_the_same_memory_and_keeps_it() {
    let memory = memory(1);
    let clone = memory.clone();
    drop(memory);
    assert!(exists(clone.name()));
    clone.write_at(0, &[1]).expect("written");
}

#[test]
fn a_child_process_attaches_by_name() {
    let _watchdog = watchdog();
    let memory = memory(5);
    memory.write_at(0, b"first").expect("written");
    let orders = Orders::ByName { name: memory.name().to_owned(), bytes: b"later".to_vec() };
    let peer = Peer::start(&orders, None);
    assert_eq!(peer.report::<Vec<u8>>().as_deref(), Some(&b"first"[..]));
    assert!(peer.wait().success());
    assert_eq!(read(&memory, 5), b"later");
}

#[test]
fn a_handle_travels() {
    let _watchdog = watchdog();
    let memory = memory(5);
    memory.write_at(0, b"first").expect("written");
    let peer = Peer::start(&Orders::ByHandle { memory: memory.clone(), bytes: b"later".to_vec() }, None);
    assert_eq!(peer.report::<Vec<u8>>().as_deref(), Some(&b"first"[..]));
    assert!(peer.wait().success());
    assert_eq!(read(&memory, 5), b"later");
}

#[test]
fn a_handle_travels_after_its_name_is_gone() {
    let _watchdog = watchdog();
    let memory = memory(5);
    memory.write_at(0, b"first").expect("written");
    memory.unlink().expect("unlinked");
    let peer = Peer::start(&Orders::ByHandle { memory: memory.clone(), bytes: b"later".to_vec() }, None);
    assert_eq!(peer.report::<Vec<u8>>().as_deref(), Some(&b"first"[..]));
    assert!(peer.wait().success());
    assert_eq!(read(&memory, 5), b"later");
}

#[test]
fn a_handle_on_its_way_keeps_the_name() {
    let _watchdog = watchdog();
    let memory = memory(1);
    let name = memory.name().to_owned();
    let peer = Peer::start(&Orders::SendBack { name: name.clone() }, None);
    let back = peer.report::<SharedMemory>().expect("sent back");
    drop(memory);
    assert!(peer.wait().success());
    SharedMemory::scavenge().expect("listed");
    assert!(exists(&name), "the received handle holds it");
    assert_eq!(back.name(), name);
}

#[test]
fn a_handle_that_is_not_being_sent_is_not_serialised() {
    let memory = memory(1);
    let error = postcard::to_stdvec(&memory).expect_err("no process gets it");
    assert!(matches!(error, postcard::Error::SerdeSerCustom), "{error}");
}

#[test]
fn bytes_that_are_no_handle_are_refused() {
    let _session = shm_core::handle::ReceiveSession::begin(vec![
        std::fs::File::open("/dev/null").expect("opened").into(),
        std::fs::File::open(std::env::current_exe().expect("a path")).expect("opened").into(),
    ]);
    for ticket in [("name", 0_u32), ("name", 1), ("na/me", 0), ("name", 2)] {
        let bytes = postcard::to_stdvec(&ticket).expect("plain data");
        assert!(postcard::from_bytes::<SharedMemory>(&bytes).is_err(), "{ticket:?}");
    }
}

#[test]
fn a_killed_owner_leaves_nothing_for_long() {
    let _watchdog = watchdog();
    for signal in [Signal::TERM, Signal::KILL, Signal::INT] {
        let name = free_name(&format!("killed-{}", signal.as_raw()));
        let peer = Peer::start(&Orders::Create { name: name.clone() }, None);
        let pid = peer.report::<u32>().expect("created");
        assert!(exists(&name));
        let pid = Pid::from_raw(i32::try_from(pid).expect("small")).expect("not zero");
        kill_process(pid, signal).expect("sent");
        assert!(!peer.wait().success());
        scavenged(&name);
    }
}

#[test]
fn what_persists_survives_its_last_handle() {
    let memory = memory(4);
    let name = memory.name().to_owned();
    memory.write_at(0, b"kept").expect("written");
    memory.persist().expect("persists");
    drop(memory);
    SharedMemory::scavenge().expect("listed");
    assert_eq!(read(&SharedMemory::open(&name).expect("there"), 4), b"kept");
    SharedMemory::remove(&name).expect("removed");
}

#[test]
fn a_killed_process_does_not_take_its_peers_memory_along() {
    let _watchdog = watchdog();
    let name = free_name("survivor");
    let peer = Peer::start(&Orders::Create { name: name.clone() }, None);
    peer.report::<u32>().expect("created");
    let memory = SharedMemory::open(&name).expect("attached");
    assert!(was_killed(peer.kill()));
    SharedMemory::scavenge().expect("listed");
    assert_eq!(SharedMemory::open(&name).expect("held here").len(), 512);
    memory.write_at(0, b"mine").expect("written");
}

#[test]
fn a_forked_child_uses_what_it_inherited() {
    let _watchdog = watchdog();
    let memory = memory(10);
    memory.write_at(0, b"parent").expect("written");
    // SAFETY: the child makes calls that are made for it, and exits without running the harness.
    let child = match unsafe { libc::fork() } {
        0 => {
            let ok = read(&memory, 6) == b"parent" && memory.write_at(0, b"child!").is_ok();
            // SAFETY: ends the child.
            unsafe { libc::_exit(i32::from(!ok)) };
        }
        child => Pid::from_raw(child).expect("forked"),
    };
    let (_, status) = waitpid(Some(child), WaitOptions::empty()).expect("reaped").expect("ended");
    assert_eq!(status.exit_status(), Some(0));
    assert_eq!(read(&memory, 6), b"child!");
}
