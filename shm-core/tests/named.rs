//! Named shared memory between real processes: names, holders, the dead, the small, and what others do to the files.
#![cfg(not(loom))]
#![allow(unsafe_code, reason = "forks, and mounts a file system of its own")]

#[path = "../../ipc-queue/tests/common/mod.rs"]
mod common;
#[cfg(feature = "crash-points")]
#[path = "named/crash.rs"]
mod crash;
#[path = "named/forked.rs"]
mod forked;
#[path = "named/segments.rs"]
mod segments;
#[path = "named/small.rs"]
mod small;

use common::{PATIENCE, Peer, child as child_of_test, was_killed, watchdog};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use shm_core::SegmentError;
use shm_core::named::{self, NamedMemory};
use shm_core::sync::{AtomicU64, Ordering};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const PREFIX: &str = "shm-core-test-";

/// What a child does.
#[derive(Serialize, Deserialize)]
enum Orders {
    /// Creates, reports, and waits to be killed.
    Create { name: String, len: usize },
    /// Attaches, writes its bytes, reports what was there, and waits to be killed.
    Exchange { name: String, bytes: [u8; 4] },
    /// Creates and lets go at once, so often.
    Churn { name: String, len: usize, times: usize },
    /// Tries to create each of so many names and keeps what it gets; reports which, and waits to be killed.
    Compete { name: String, names: usize },
    /// Lets go of a name that another process keeps.
    LetGo { name: String },
    /// Unlinks the name.
    Unlink { name: String },
    /// Attaches to a segment, reports the participant and a word, steps the word, and waits to be killed.
    Attach { name: String },
    /// Uses more than a file system of 1 MiB has.
    FillUp,
}

#[test]
fn child() {
    child_of_test(|orders, reporter| match orders {
        Orders::Create { name, len } => {
            let _memory = NamedMemory::create(&name, len).expect("created");
            reporter.report(&true);
            wait_to_be_killed();
        }
        Orders::Exchange { name, bytes } => {
            let memory = NamedMemory::open(&name).expect("attached");
            let mut found = [0; 4];
            memory.read_at(0, &mut found).expect("read");
            memory.write_at(0, &bytes).expect("written");
            reporter.report(&found);
            wait_to_be_killed();
        }
        Orders::Churn { name, len, times } => {
            for _ in 0..times {
                match NamedMemory::create(&name, len) {
                    Ok(memory) => memory.write_at(len - 1, b"x").expect("written"),
                    Err(error) => assert!(error.is_name_taken(), "{error}"),
                }
            }
        }
        Orders::Compete { name, names } => {
            let won: Vec<_> =
                (0..names).filter_map(|n| won(NamedMemory::create(&format!("{name}-{n}"), 1), n)).collect();
            reporter.report(&won.iter().map(|(n, _)| *n).collect::<Vec<_>>());
            wait_to_be_killed();
        }
        Orders::LetGo { name } => drop(NamedMemory::open(&name).expect("attached")),
        Orders::Unlink { name } => NamedMemory::open(&name).expect("attached").unlink().expect("unlinked"),
        Orders::FillUp => small::fill_up(reporter),
        Orders::Attach { name } => segments::attach(&name, reporter),
    });
}

fn won(result: Result<NamedMemory, SegmentError>, number: usize) -> Option<(usize, NamedMemory)> {
    match result {
        Ok(memory) => Some((number, memory)),
        Err(error) if error.is_name_taken() => None,
        Err(error) => panic!("{error}"),
    }
}

fn wait_to_be_killed() -> ! {
    loop {
        std::thread::park();
    }
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/dev/shm").join(name)
}

fn exists(name: &str) -> bool {
    path(name).symlink_metadata().is_ok()
}

fn memory(len: usize) -> NamedMemory {
    NamedMemory::create_random(PREFIX, len).expect("created")
}

/// A name that nobody has.
fn free_name() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{PREFIX}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Keeps children from being started. Until a new child runs its own program it has copies of all descriptors, those that
/// carry a lock for an instant included: then the last holder is not the last one yet.
static STARTING: RwLock<()> = RwLock::new(());

fn start(orders: &Orders, crash_point: Option<&str>) -> Peer {
    let _starting = STARTING.read();
    Peer::start(orders, crash_point)
}

/// A file in the directory of named memory that this crate has not made; removed when it is dropped.
struct Foreign(String);

impl Foreign {
    fn new(bytes: &[u8]) -> Self {
        let name = free_name();
        std::fs::write(path(&name), bytes).expect("written");
        Self(name)
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let path = path(&self.0);
        let _ = std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir(&path));
    }
}

/// Waits for what the kernel brings about a moment later.
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let give_up = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < give_up, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn scavenged(name: &str) {
    eventually("a scavenger removes it", || {
        named::scavenge().expect("listed");
        !exists(name)
    });
}

fn bytes_of(memory: &NamedMemory, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xff; len];
    memory.read_at(0, &mut bytes).expect("read");
    bytes
}

#[test]
fn new_memory_is_zeroed_and_has_the_length_asked_for() {
    for len in [1, 100, 4096, 5000] {
        let memory = memory(len);
        assert_eq!(memory.len(), len);
        assert_eq!(bytes_of(&memory, len), vec![0; len]);
        let file = path(memory.name()).metadata().expect("it is there");
        assert_eq!(file.len(), len as u64, "what other languages see");
    }
}

#[test]
fn memory_is_behind_every_page_from_the_start() {
    use std::os::unix::fs::MetadataExt;
    let memory = memory(100_000);
    let blocks = path(memory.name()).metadata().expect("it is there").blocks();
    assert!(blocks * 512 >= 100_000, "{blocks} blocks");
}

#[test]
fn only_this_user_may_read_and_write_it() {
    use std::os::unix::fs::MetadataExt;
    let memory = memory(1);
    assert_eq!(path(memory.name()).metadata().expect("it is there").mode() & 0o777, 0o600);
}

#[test]
fn processes_that_know_the_name_see_the_same_bytes() {
    let _watchdog = watchdog();
    let memory = memory(4096);
    memory.write_at(0, b"here").expect("written");
    let peer = start(&Orders::Exchange { name: memory.name().to_owned(), bytes: *b"gone" }, None);
    assert_eq!(peer.report::<[u8; 4]>().as_ref(), Some(b"here"));
    assert_eq!(bytes_of(&memory, 4), b"gone");
    let base = memory.base().expect("mapped");
    // SAFETY: inside the mapping; the only other user has written before it reported.
    assert_eq!(unsafe { base.cast::<[u8; 4]>().read_volatile() }, *b"gone");
}

#[test]
fn what_is_not_a_name_is_refused_with_the_reason() {
    let long = "n".repeat(256);
    let names = ["", "a/b", "/a", "a\0b", "\0", ".", "..", long.as_str(), "shm-core.new.0123456789abcdef"];
    for name in names {
        let refused: [SegmentError; 3] = [
            NamedMemory::create(name, 1).expect_err("not a name"),
            NamedMemory::open(name).expect_err("not a name"),
            named::unlink(name).expect_err("not a name"),
        ];
        for error in refused {
            assert!(error.is_bad_name() && error.to_string().contains("is not a name"), "{error}");
        }
    }
    assert!(NamedMemory::create_random("a/b", 1).expect_err("not a prefix").is_bad_name());
    assert!(NamedMemory::create_random(&long, 1).expect_err("not a prefix").is_bad_name());
}

#[test]
fn names_may_contain_anything_else() {
    let _alone = STARTING.write();
    let unique = free_name();
    for odd in [":", "\n", " ", "\\", "ü", "\u{1}", "-", "psm_"] {
        let name = format!("{odd}{unique}{odd}");
        let memory = NamedMemory::create(&name, 8).expect("created");
        memory.write_at(0, b"odd").expect("written");
        assert_eq!(bytes_of(&NamedMemory::open(&name).expect("attached"), 3), b"odd");
        drop(memory);
        assert!(!exists(&name), "{name:?} is left");
    }
    let longest = format!("{unique}{}", "n".repeat(255 - unique.len()));
    NamedMemory::create(&longest, 1).expect("a name of 255 bytes");
}

#[test]
fn a_name_that_is_taken_is_refused() {
    let first = memory(100);
    let error = NamedMemory::create(first.name(), 200).expect_err("taken");
    assert!(error.is_name_taken() && error.to_string().contains(first.name()), "{error}");
    assert_eq!(NamedMemory::open(first.name()).expect("untouched").len(), 100);
}

#[test]
fn a_name_that_nobody_has_is_not_found() {
    let name = free_name();
    let error = NamedMemory::open(&name).expect_err("missing");
    assert!(error.is_not_found() && error.to_string().contains(&name), "{error}");
    assert!(named::unlink(&name).expect_err("missing").is_not_found());
}

#[test]
fn an_unlinked_name_is_free_and_its_memory_stays() {
    let old = memory(4);
    old.write_at(0, b"old!").expect("written");
    old.unlink().expect("unlinked");
    assert!(!exists(old.name()));
    assert!(old.unlink().expect_err("gone").is_not_found());
    let new = NamedMemory::create(old.name(), 4).expect("the name is free");
    assert_eq!(bytes_of(&old, 4), b"old!");
    assert_eq!(bytes_of(&new, 4), [0; 4]);
}

#[test]
fn nobody_takes_the_name_of_a_successor_away() {
    let old = memory(1);
    old.unlink().expect("unlinked");
    let new = NamedMemory::create(old.name(), 1).expect("the name is free");
    assert!(old.unlink().expect_err("the name leads elsewhere").is_not_found());
    drop(old);
    assert!(exists(new.name()));
}

#[test]
fn any_holder_may_unlink() {
    let _watchdog = watchdog();
    let memory = memory(1);
    assert!(start(&Orders::Unlink { name: memory.name().to_owned() }, None).wait().success());
    assert!(memory.unlink().expect_err("gone").is_not_found());
}

#[test]
fn the_last_holder_that_lets_go_takes_the_name_away() {
    let _alone = STARTING.write();
    let first = memory(1);
    let name = first.name().to_owned();
    let second = NamedMemory::open(&name).expect("attached");
    drop(first);
    assert!(exists(&name), "one of two is left");
    drop(second);
    assert!(!exists(&name));
}

#[test]
fn a_holder_in_another_process_keeps_the_name() {
    let _watchdog = watchdog();
    let memory = memory(4);
    let name = memory.name().to_owned();
    let peer = start(&Orders::Exchange { name: name.clone(), bytes: [1; 4] }, None);
    peer.report::<[u8; 4]>().expect("attached");
    drop(memory);
    named::scavenge().expect("listed");
    assert_eq!(bytes_of(&NamedMemory::open(&name).expect("kept"), 4), [1; 4]);
    assert!(was_killed(peer.kill()));
    scavenged(&name);
}

#[test]
fn a_process_that_is_not_the_last_leaves_the_name() {
    let _watchdog = watchdog();
    let memory = memory(1);
    assert!(start(&Orders::LetGo { name: memory.name().to_owned() }, None).wait().success());
    assert!(exists(memory.name()));
}

#[test]
fn a_process_that_is_the_last_takes_the_name_away() {
    let _watchdog = watchdog();
    let name = free_name();
    assert!(start(&Orders::Churn { name: name.clone(), len: 1, times: 1 }, None).wait().success());
    assert!(!exists(&name));
}

#[test]
fn what_persists_stays_without_a_holder() {
    let memory = memory(7);
    let name = memory.name().to_owned();
    memory.write_at(0, b"persist").expect("written");
    memory.persist().expect("persists");
    memory.persist().expect("twice is once");
    drop(memory);
    named::scavenge().expect("listed");
    let again = NamedMemory::open(&name).expect("still there");
    assert_eq!(bytes_of(&again, 7), b"persist");
    drop(again);
    assert!(NamedMemory::create(&name, 1).expect_err("taken").is_name_taken());
    named::unlink(&name).expect("unlinked");
    assert!(!exists(&name));
}

#[test]
fn what_others_created_is_never_removed() {
    let foreign = Foreign::new(b"theirs");
    let memory = NamedMemory::open(&foreign.0).expect("attached");
    assert_eq!(bytes_of(&memory, 6), b"theirs");
    drop(memory);
    named::scavenge().expect("listed");
    assert!(exists(&foreign.0));
    assert!(NamedMemory::create(&foreign.0, 1).expect_err("taken").is_name_taken());
}

#[test]
fn what_a_killed_process_left_is_scavenged() {
    let _watchdog = watchdog();
    let name = free_name();
    let peer = start(&Orders::Create { name: name.clone(), len: 1 << 20 }, None);
    peer.report::<bool>().expect("created");
    named::scavenge().expect("listed");
    assert!(exists(&name), "its creator lives");
    assert!(was_killed(peer.kill()));
    scavenged(&name);
}

#[test]
fn a_name_left_by_the_dead_is_free() {
    let _watchdog = watchdog();
    let name = free_name();
    let peer = start(&Orders::Create { name: name.clone(), len: 1 }, None);
    peer.report::<bool>().expect("created");
    assert!(was_killed(peer.kill()));
    let mut created = None;
    eventually("the dead one's lock falls", || {
        created = won(NamedMemory::create(&name, 9), 0);
        created.is_some()
    });
    assert_eq!(created.expect("created").1.len(), 9);
}

#[test]
fn of_many_creators_of_a_name_one_wins() {
    let _watchdog = watchdog();
    let (name, names) = (free_name(), 100);
    let orders = || Orders::Compete { name: name.clone(), names };
    let peers: Vec<Peer> = (0..3).map(|_| start(&orders(), None)).collect();
    let compete = || -> Vec<_> {
        (0..names).filter_map(|n| won(NamedMemory::create(&format!("{name}-{n}"), 1), n)).collect()
    };
    let mine = std::thread::scope(|scope| {
        let threads = [(); 3].map(|()| scope.spawn(compete));
        threads.map(|thread| thread.join().expect("competed"))
    });
    let mut winners: Vec<usize> = mine.iter().flatten().map(|(n, _)| *n).collect();
    for peer in &peers {
        winners.extend(peer.report::<Vec<usize>>().expect("competed"));
    }
    winners.sort_unstable();
    assert_eq!(winners, (0..names).collect::<Vec<_>>());
    drop((peers, mine));
    (0..names).for_each(|n| scavenged(&format!("{name}-{n}")));
}

#[test]
fn whoever_attaches_sees_all_of_it() {
    let _watchdog = watchdog();
    let (name, len) = (free_name(), 300_000);
    let mut peer = start(&Orders::Churn { name: name.clone(), len, times: 1000 }, None);
    let mut seen = 0;
    while !peer.has_ended() {
        match NamedMemory::open(&name) {
            Ok(memory) => {
                assert_eq!(memory.len(), len);
                memory.read_at(len - 1, &mut [0]).expect("the last byte is there");
                assert!(exists(&name), "nobody takes the name away from a holder");
                seen += 1;
            }
            Err(error) => assert!(error.is_not_found(), "{error}"),
        }
    }
    assert!(peer.wait().success());
    assert!(seen > 0);
    scavenged(&name);
}

#[test]
fn creators_holders_and_scavengers_do_not_disturb_each_other() {
    let _watchdog = watchdog();
    let name = free_name();
    let peers = [(); 2].map(|()| start(&Orders::Churn { name: name.clone(), len: 10, times: 500 }, None));
    std::thread::scope(|scope| {
        scope.spawn(|| (0..500).for_each(|_| assert!(named::scavenge().is_ok())));
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..500 {
                    match NamedMemory::create(&name, 10) {
                        Ok(memory) => {
                            let same = NamedMemory::open(&name).expect("it is held");
                            memory.write_at(0, b"same").expect("written");
                            assert_eq!(bytes_of(&same, 4), b"same");
                        }
                        Err(error) => assert!(error.is_name_taken(), "{error}"),
                    }
                }
            });
        }
    });
    for peer in peers {
        assert!(peer.wait().success());
    }
    scavenged(&name);
}

#[test]
fn a_token_keeps_the_name_and_finds_the_memory_without_it() {
    let memory = memory(5);
    memory.write_at(0, b"bytes").expect("written");
    let name = memory.name().to_owned();
    let token = memory.token().expect("a token");
    drop(memory);
    named::scavenge().expect("listed");
    assert!(exists(&name), "in flight");
    named::unlink(&name).expect("unlinked");
    let received = NamedMemory::receive(&name, token.as_fd()).expect("received");
    assert_eq!((received.name(), bytes_of(&received, 5)), (name.as_str(), b"bytes".to_vec()));
}

#[test]
fn impossible_sizes_are_typed_errors() {
    let name = free_name();
    let create = |len| NamedMemory::create(&name, len).expect_err("impossible");
    assert!(create(0).is_empty_size(), "{}", create(0));
    assert!(create(usize::MAX).is_too_large(), "{}", create(usize::MAX));
    assert!(create(1 << 45).is_out_of_memory(), "{}", create(1 << 45));
    assert!(!exists(&name));
}

#[test]
fn ranges_outside_of_the_memory_are_refused() {
    let memory = memory(100);
    for (offset, len) in [(100, 1), (0, 101), (99, 2), (usize::MAX, 1), (usize::MAX, 0), (101, 0)] {
        let error = memory.read_at(offset, &mut vec![0; len]).expect_err("outside");
        assert!(error.is_out_of_range() && error.to_string().contains("100"), "{error}");
        assert!(memory.write_at(offset, &vec![0; len]).expect_err("outside").is_out_of_range());
    }
    memory.write_at(100, &[]).expect("nothing fits behind the end");
    memory.read_at(99, &mut [0]).expect("the last byte");
}

#[test]
fn a_file_that_a_peer_truncates_is_an_error_and_no_signal() {
    let memory = memory(10_000);
    std::fs::File::options()
        .write(true)
        .open(path(memory.name()))
        .expect("opened")
        .set_len(5000)
        .expect("truncated");
    memory.read_at(0, &mut [0; 5000]).expect("still there");
    assert!(memory.read_at(0, &mut [0; 10_000]).expect_err("truncated").is_foreign());
}

#[test]
fn what_is_no_memory_is_refused() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let _watchdog = watchdog();
    let pipe = Foreign(free_name());
    mknodat(CWD, path(&pipe.0), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a pipe");
    assert!(NamedMemory::open(&pipe.0).expect_err("a pipe").is_foreign());
    let directory = Foreign(free_name());
    std::fs::create_dir(path(&directory.0)).expect("a directory");
    assert!(NamedMemory::open(&directory.0).is_err());
    let link = Foreign(free_name());
    std::os::unix::fs::symlink("/etc/passwd", path(&link.0)).expect("a link");
    assert!(NamedMemory::open(&link.0).is_err());
    let file = std::fs::File::open(std::env::current_exe().expect("a path")).expect("opened");
    assert!(NamedMemory::receive("name", file.as_fd()).expect_err("on a disk").is_foreign());
    named::scavenge().expect("listed");
}

#[test]
fn a_file_without_a_length_is_refused_in_the_end() {
    let _watchdog = watchdog();
    let empty = Foreign::new(b"");
    assert!(NamedMemory::open(&empty.0).expect_err("empty").is_foreign());
}

#[test]
fn a_creator_that_has_not_set_the_length_yet_is_waited_for() {
    let _watchdog = watchdog();
    let foreign = Foreign::new(b"");
    let opened = std::thread::scope(|scope| {
        let opener = scope.spawn(|| NamedMemory::open(&foreign.0));
        // Most likely the opener has looked by then; the outcome is the same if not.
        std::thread::sleep(Duration::from_millis(20));
        std::fs::write(path(&foreign.0), [7; 10]).expect("written");
        opener.join().expect("returned")
    });
    assert!((1..=10).contains(&opened.expect("attached").len()));
}
