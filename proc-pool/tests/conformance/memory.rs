//! Named shared memory.

use crate::start::{LONG, Start, until};
use proc_pool::shared::{Event, Shared, SharedMemory};
use rustix::process::Signal;

conformance! {
    conformance_shared_memory_name_with_embedded_null
    conformance_shared_memory_basics
    conformance_shared_memory_recreate
    conformance_invalid_shared_memory_creation
    conformance_shared_memory_pickle_unpickle
    conformance_shared_memory_pickle_unpickle_dead_object
    conformance_shared_memory_across_processes
    conformance_shared_memory_names
}

conformance! {
    processes:
    conformance_shared_memory_cleaned_after_process_termination
    conformance_shared_memory_untracking
    conformance_shared_memory_tracking
}

/// A name of this process's own.
fn name(row: &str) -> String {
    format!("proc-pool-conformance-{}-{row}", std::process::id())
}

fn byte(memory: &SharedMemory, offset: usize) -> u8 {
    let mut byte = [0];
    memory.read_at(offset, &mut byte).expect("there");
    byte[0]
}

fn assert_gone(name: &str) {
    assert!(SharedMemory::open(name).expect_err("gone").is_not_found());
}

fn conformance_shared_memory_name_with_embedded_null(start: Start) {
    let refused = |name: String| {
        assert!(SharedMemory::create(&name, 1).expect_err("refused").is_bad_name());
        assert!(SharedMemory::open(&name).expect_err("refused").is_bad_name());
        assert!(SharedMemory::open_or_create(&name, 1).expect_err("refused").is_bad_name());
        assert!(SharedMemory::remove(&name).expect_err("refused").is_bad_name());
    };
    start.run(refused, name("null\0"));
}

fn conformance_shared_memory_basics(start: Start) {
    let name = name("basics");
    let memory = SharedMemory::create(&name, 512).expect("created");
    assert_eq!((memory.name(), memory.len()), (&*name, 512));
    assert!(format!("{memory:?}").contains(&name));
    memory.write_at(0, &[42]).expect("there");

    // Attached a second time, there and here; a length is not asked for, and that of what exists stays.
    let attach = |name: String| {
        let same = SharedMemory::open(&name).expect("it exists");
        assert_eq!((same.len(), byte(&same, 0)), (512, 42));
        same.write_at(511, &[43]).expect("there");
        assert_eq!(SharedMemory::open_or_create(&name, 1000).expect("it exists").len(), 512);
        assert!(SharedMemory::create(&name, 512).expect_err("it exists").is_name_taken());
    };
    start.run(attach, name.clone());
    attach(name.clone());
    assert_eq!(byte(&memory, 511), 43);
    assert!(memory.write_at(512, &[1]).expect_err("the end").is_out_of_range());

    // Letting go of one handle is nothing to the others.
    let same = SharedMemory::open(&name).expect("it exists");
    drop(memory);
    assert_eq!(byte(&same, 0), 42);
    same.unlink().expect("it has the name");
    assert_eq!(byte(&same, 0), 42);
    assert!(same.unlink().expect_err("twice").is_not_found());
    assert!(SharedMemory::remove(&name).expect_err("twice").is_not_found());
    assert_gone(&name);
    assert!(SharedMemory::open("").expect_err("no name").is_bad_name());

    // Names that are drawn are new ones.
    let [one, other] = [(); 2].map(|()| SharedMemory::create_random(1).expect("created"));
    assert_ne!(one.name(), other.name());
    // Python's `O_CREAT`: created, and then attached to.
    let created = SharedMemory::open_or_create(&name, 16).expect("created");
    assert_eq!((created.len(), byte(&created, 0)), (16, 0));
}

fn conformance_shared_memory_recreate(start: Start) {
    let name = name("recreate");
    let memory = SharedMemory::create(&name, 1).expect("created");
    let taken = |name: String| {
        assert!(SharedMemory::create(&name, 1).expect_err("it exists").is_name_taken());
    };
    start.run(taken, name.clone());
    // The name is free at once, while the memory still is there.
    memory.unlink().expect("it has the name");
    let second = SharedMemory::create(&name, 2).expect("free");
    assert_eq!(SharedMemory::open(&name).expect("it exists").len(), 2);
    assert!(memory.unlink().expect_err("another's name").is_not_found());
    // Free when the last holder has let go, too, in whatever process.
    let last = |memory: SharedMemory| drop(memory);
    start.run(last, second);
    until(|| SharedMemory::create(&name, 3).is_ok());
}

fn conformance_invalid_shared_memory_creation(start: Start) {
    let refused = |name: String| {
        assert!(SharedMemory::create(&name, 0).expect_err("empty").is_out_of_range());
        assert!(SharedMemory::create_random(0).expect_err("empty").is_out_of_range());
        assert!(SharedMemory::open_or_create(&name, 0).expect_err("empty").is_out_of_range());
        // What a negative length would be.
        assert!(SharedMemory::create(&name, usize::MAX).expect_err("too large").is_out_of_range());
        assert_gone(&name);
    };
    start.run(refused, name("invalid"));
}

fn conformance_shared_memory_pickle_unpickle(start: Start) {
    let memory = SharedMemory::create_random(64).expect("created");
    memory.write_at(0, b"abc").expect("there");
    let (seen, read) = event_pair();
    let travelled = |(memory, seen, read): (SharedMemory, Shared<Event>, Shared<Event>)| {
        let mut bytes = [0; 3];
        memory.read_at(0, &mut bytes).expect("there");
        assert_eq!(&bytes, b"abc");
        memory.write_at(0, b"xyz").expect("there");
        seen.set();
        read.wait();
        assert_eq!(byte(&memory, 63), 1);
    };
    let child = start.start(travelled, (memory.clone(), seen.clone(), read.clone()));
    assert!(seen.wait_timeout(LONG));
    let mut bytes = [0; 3];
    memory.read_at(0, &mut bytes).expect("there");
    assert_eq!(&bytes, b"xyz");
    memory.write_at(63, &[1]).expect("there");
    read.set();
    child.join();
}

fn event_pair() -> (Shared<Event>, Shared<Event>) {
    let event = || Shared::new(Event::new()).expect("made");
    (event(), event())
}

/// In Python an object that was unlinked travels no more. A handle here is its memory, not a name: it does.
fn conformance_shared_memory_pickle_unpickle_dead_object(start: Start) {
    let memory = SharedMemory::create(&name("dead"), 8).expect("created");
    memory.write_at(0, &[42]).expect("there");
    memory.unlink().expect("it has the name");
    let travelled = |memory: SharedMemory| {
        assert_gone(memory.name());
        assert_eq!(byte(&memory, 0), 42);
        assert!(memory.unlink().expect_err("gone").is_not_found());
    };
    start.run(travelled, memory);
}

fn conformance_shared_memory_across_processes(start: Start) {
    let memory = SharedMemory::create(&name("across"), 1 << 20).expect("created");
    let by_name = |name: String| {
        let memory = SharedMemory::open(&name).expect("it exists");
        memory.write_at(0, b"by name").expect("there");
    };
    let by_handle = |memory: SharedMemory| memory.write_at((1 << 20) - 9, b"by handle").expect("there");
    start.run(by_name, memory.name().to_owned());
    start.run(by_handle, memory.clone());
    let mut bytes = [0; 7];
    memory.read_at(0, &mut bytes).expect("there");
    assert_eq!(&bytes, b"by name");
    let mut bytes = [0; 9];
    memory.read_at((1 << 20) - 9, &mut bytes).expect("there");
    assert_eq!(&bytes, b"by handle");
}

fn conformance_shared_memory_names(start: Start) {
    let names = ["a:b", "a\nb", "a:b\nc:d", "shared_memory:a", "ä €", "a b", "-a", "a\\'\"*"].map(name);
    for name in names.into_iter().chain(["n".repeat(255)]) {
        let memory = SharedMemory::create(&name, 1).expect("any name will do");
        start.run(
            |name: String| SharedMemory::open(&name).expect("it exists").write_at(0, &[7]).expect("there"),
            name.clone(),
        );
        assert_eq!(byte(&memory, 0), 7);
        drop(memory);
        assert_gone(&name);
    }
    // The row of the resource tracker about names that are too long for it.
    assert!(SharedMemory::create(&"n".repeat(256), 1).expect_err("refused").is_bad_name());
}

/// Creates memory, says so, and never lets go.
fn owner((name, created): (String, Shared<Event>)) {
    let memory = SharedMemory::create(&name, 10).expect("created");
    memory.write_at(0, &[42]).expect("there");
    created.set();
    crate::common::sleep_forever()
}

/// Waits until nothing has the name: what looks at a child that is dead may be a moment too early.
fn until_gone(name: &str) {
    until(|| {
        SharedMemory::scavenge().expect("listed");
        SharedMemory::open(name).is_err_and(|error| error.is_not_found())
    });
}

fn conformance_shared_memory_cleaned_after_process_termination(start: Start) {
    for signal in [Signal::TERM, Signal::KILL] {
        let (created, name) = (Shared::new(Event::new()).expect("made"), name("terminated"));
        let child = start.start(owner, (name.clone(), created.clone()));
        created.wait();
        assert_eq!(byte(&SharedMemory::open(&name).expect("it exists"), 0), 42);
        child.end_by(signal);
        until_gone(&name);
        // Whoever needs the name need not look for what the dead left.
        let child = start.start(
            owner,
            (name.clone(), {
                created.clear();
                created.clone()
            }),
        );
        created.wait();
        child.end_by(signal);
        until(|| SharedMemory::create(&name, 20).is_ok());
        assert_gone(&name);
    }
}

fn attached((name, attached, persist): (String, Shared<Event>, bool)) {
    let memory = SharedMemory::open(&name).expect("it exists");
    if persist {
        memory.persist().expect("ours");
    }
    attached.set();
    crate::common::sleep_forever()
}

/// Python's `track=False`: who attached and was killed, or went, destroys nothing. Here it is so without asking.
fn conformance_shared_memory_untracking(start: Start) {
    let memory = SharedMemory::create(&name("untracked"), 10).expect("created");
    let attaches = |name: String| drop(SharedMemory::open(&name).expect("it exists"));
    start.run(attaches, memory.name().to_owned());
    let ready = Shared::new(Event::new()).expect("made");
    let child = start.start(attached, (memory.name().to_owned(), ready.clone(), false));
    ready.wait();
    child.end_by(Signal::TERM);
    SharedMemory::scavenge().expect("listed");
    assert_eq!(SharedMemory::open(memory.name()).expect("still there").len(), 10);
    memory.unlink().expect("it has the name");
}

/// Python's `track=True`, of what was created: it goes with its last holder, and not before. What persists stays.
fn conformance_shared_memory_tracking(start: Start) {
    for persist in [false, true] {
        let memory = SharedMemory::create(&name("tracked"), 10).expect("created");
        let ready = Shared::new(Event::new()).expect("made");
        let child = start.start(attached, (memory.name().to_owned(), ready.clone(), persist));
        ready.wait();
        let name = memory.name().to_owned();
        drop(memory);
        SharedMemory::scavenge().expect("listed");
        drop(SharedMemory::open(&name).expect("the child has it"));
        child.end_by(Signal::KILL);
        if persist {
            SharedMemory::scavenge().expect("listed");
            SharedMemory::remove(&name).expect("it persists");
        } else {
            until_gone(&name);
        }
    }
}
