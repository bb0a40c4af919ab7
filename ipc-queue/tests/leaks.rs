//! A thousand times attached and detached, and nothing is left: no descriptor, no mapping, no entry in the registry, no
//! memory, no name.
#![cfg(not(loom))]
#![allow(unsafe_code, reason = "forks")]

mod common;

#[path = "every_instruction/memory.rs"]
mod memory;

use common::{Peer, child as child_of_test, watchdog};
use ipc_queue::{Receiver, Sender, bounded};
use memory::Memory;
use parking_lot::{Mutex, MutexGuard};
use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, waitpid};
use serde::{Deserialize, Serialize};
use shm_core::handle::{ReceiveSession, SendSession};
use shm_core::segment::sweep_all;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

const TIMES: u32 = 1000;

/// What is counted is the whole process's: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock()
}

type Handles = (Sender<u32>, Receiver<u32>);

/// Handles that wait to be taken.
fn packed(handles: &Handles) -> (Vec<u8>, Vec<OwnedFd>) {
    let session = SendSession::begin();
    let bytes = postcard::to_stdvec(handles).expect("handles can be sent");
    (bytes, session.finish())
}

/// What this process has of the system, by kind.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Belongings {
    descriptors: BTreeMap<String, usize>,
    mappings: usize,
    /// Descriptors and mappings of things with a name in `/dev/shm`.
    named: usize,
}

impl Belongings {
    fn now() -> Self {
        let links = std::fs::read_dir("/proc/self/fd").expect("procfs");
        // The one that looks is gone by now.
        let links = links.filter_map(|entry| std::fs::read_link(entry.expect("procfs").path()).ok());
        let links: Vec<String> = links.map(|link| link.to_string_lossy().into_owned()).collect();
        let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
        let mut descriptors = BTreeMap::new();
        for link in &links {
            *descriptors.entry(link.split(':').next().unwrap_or_default().to_owned()).or_insert(0) += 1;
        }
        let is_named = |line: &&str| line.contains("/dev/shm");
        Self {
            descriptors,
            mappings: maps.lines().filter(|line| line.contains("memfd")).count(),
            named: maps.lines().chain(links.iter().map(String::as_str)).filter(is_named).count(),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Orders(Sender<u32>, Receiver<u32>);

/// Attaches and detaches again and again; reports what it had before, while it was attached for the last time, and after.
#[test]
fn child() {
    child_of_test(|Orders(tx, rx), reporter| {
        let (bytes, descriptors) = packed(&(tx, rx));
        let mut belongings = Vec::new();
        for time in 0..TIMES {
            if time == 1 {
                belongings.push(Belongings::now());
            }
            let copies = descriptors.iter().map(|descriptor| descriptor.try_clone().expect("a descriptor"));
            let session = ReceiveSession::begin(copies.collect());
            let (tx, rx): Handles = postcard::from_bytes(&bytes).expect("handles arrive");
            drop(session);
            tx.send(time).expect("sent");
            assert_eq!(rx.recv().expect("received"), time);
            if time == TIMES - 1 {
                belongings.push(Belongings::now());
            }
        }
        belongings.push(Belongings::now());
        reporter.report(&belongings);
    });
}

#[test]
fn a_process_that_attaches_a_thousand_times_keeps_nothing() {
    let (_alone, _dog) = (alone(), watchdog());
    let (tx, rx) = bounded::<u32>(4).expect("a queue");
    let memory = Memory::of(packed(&(tx.clone(), rx.clone())).1[0].as_fd());
    tx.send(0).expect("sent");
    rx.recv().expect("received");
    let blocks = memory.blocks();
    let peer = Peer::start(&Orders(tx.clone(), rx.clone()), None);
    let belongings: Vec<Belongings> = peer.report().expect("a report");
    assert!(peer.wait().success());
    let [before, attached, after] = &belongings[..] else { panic!("three reports: {belongings:?}") };
    assert!(attached.mappings > before.mappings, "{attached:?} is not more than {before:?}");
    assert_eq!(attached.named, 0, "a queue has no name");
    assert_eq!(after, before);
    assert_eq!(memory.attached(), 1, "its entries are free without a sweep");
    assert_eq!(memory.highest_participant(), 2, "each time it had the same one");
    assert!(memory.generation(2) >= u64::from(TIMES), "it has detached each time");
    assert_eq!(memory.blocks(), blocks);
}

/// How a process ends that has handles of the queue.
const ENDS: [fn(&mut Option<Handles>); 3] = [
    |handles| *handles = None,
    |_| {}, // It exits with them.
    |_| kill_process(getpid(), Signal::KILL).expect("a process may kill itself"),
];

#[test]
fn a_thousand_processes_leave_nothing() {
    let (_alone, _dog) = (alone(), watchdog());
    let mut handles = Some(bounded::<u32>(4).expect("a queue"));
    let send =
        |handles: &Option<Handles>, number| handles.as_ref().is_some_and(|(tx, _)| tx.send(number).is_ok());
    let recv = |handles: &Option<Handles>| handles.as_ref().map(|(_, rx)| rx.recv().expect("received"));
    let memory = Memory::of(packed(handles.as_ref().expect("there")).1[0].as_fd());
    assert!(send(&handles, 0));
    assert_eq!(recv(&handles), Some(0));
    let (before, blocks) = (Belongings::now(), memory.blocks());
    for number in 0..TIMES {
        // SAFETY: the child runs on the thread that forked, and only what follows.
        let id = unsafe { libc::fork() };
        if id == 0 {
            let was_sent = send(&handles, number);
            ENDS[number as usize % ENDS.len()](&mut handles);
            // SAFETY: ends the child without running what belongs to its parent.
            unsafe { libc::_exit(i32::from(!was_sent)) };
        }
        assert_eq!(recv(&handles), Some(number));
        waitpid(Pid::from_raw(id), WaitOptions::empty()).expect("collected");
    }
    assert!(sweep_all() > 0, "some were killed");
    assert_eq!(memory.attached(), 1, "only this process is attached");
    assert_eq!((Belongings::now(), memory.blocks()), (before, blocks));
    let (tx, rx) = handles.expect("there");
    drop(tx);
    // The dead hold no side of the queue.
    assert!(rx.recv().expect_err("no sender is left").is_disconnected());
}
