//! A bit of everything, again and again, leaves this process as it was: its descriptors, its mappings of shared memory, its
//! children, its names in `/dev/shm`. One test, alone in its process, because nobody else may open anything meanwhile.

mod common;

#[macro_use]
#[path = "conformance/start.rs"]
mod start;

use proc_pool::shared::{
    Barrier, Condvar, Event, FrozenArray, LockError, Mutex, ReentrantMutex, RwLock, Semaphore, Shared,
    SharedArray, SharedList, SharedMemory, SharedValue, Signal as Units, arena_usage,
};
use rustix::process::{Signal, WaitId, WaitIdOptions, waitid};
use start::{LONG, Start, until};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

/// One of every kind.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
struct Everything {
    mutex: Shared<Mutex<u64>>,
    reentrant: Shared<ReentrantMutex<AtomicU32>>,
    read_write: Shared<RwLock<[f64; 4]>>,
    permits: Shared<Semaphore>,
    units: Shared<Units>,
    changed: Shared<Condvar>,
    ready: Shared<Event>,
    meeting: Shared<Barrier>,
    alone: Shared<AtomicU64>,
    value: SharedValue<f64>,
    array: SharedArray<i64>,
    atomics: SharedArray<AtomicU64>,
    frozen: FrozenArray<u8>,
    list: SharedList,
    memory: SharedMemory,
}

impl Everything {
    fn new() -> Self {
        Self {
            mutex: Shared::new(Mutex::new(0)).expect("made"),
            reentrant: Shared::new(ReentrantMutex::new(AtomicU32::new(0))).expect("made"),
            read_write: Shared::new(RwLock::new([0.0; 4])).expect("made"),
            permits: Shared::new(Semaphore::new(2)).expect("made"),
            units: Shared::new(Units::new(0)).expect("made"),
            changed: Shared::new(Condvar::new()).expect("made"),
            ready: Shared::new(Event::new()).expect("made"),
            meeting: Shared::new(Barrier::new(2)).expect("made"),
            alone: Shared::builder().own_segment().build(AtomicU64::new(0)).expect("made"),
            value: SharedValue::new(0.0).expect("made"),
            array: SharedArray::<i64>::builder(1000).chunk_len(100).read_write().build().expect("made"),
            atomics: SharedArray::zeroed(10).expect("made"),
            frozen: FrozenArray::from_slice(b"frozen").expect("made"),
            list: SharedList::new(["one", "two"]).expect("made"),
            memory: SharedMemory::create_random(4096).expect("made"),
        }
    }

    fn use_all(self) {
        *self.mutex.lock().expect("free") += 1;
        self.changed.notify_all();
        self.reentrant.lock().expect("free").fetch_add(1, Ordering::Relaxed);
        self.read_write.write().expect("free")[0] += 1.0;
        assert!(self.read_write.read().expect("free")[0] >= 1.0);
        drop(self.permits.acquire().expect("free"));
        self.units.post(1).expect("counted");
        self.alone.fetch_add(1, Ordering::SeqCst);
        self.value.update(|value| value + 1.0);
        self.array.chunk(9).expect("there").write().expect("free").fill(1);
        self.atomics[0].fetch_add(1, Ordering::SeqCst);
        assert_eq!(&*self.frozen, b"frozen");
        self.list.set(0, "three").expect("it has room");
        self.memory.write_at(0, b"named").expect("there");
        self.meeting.wait_timeout(LONG).expect("both came");
    }

    fn hold_all(self) {
        let _guard = self.mutex.lock().expect("free");
        let _permit = self.permits.acquire().expect("free");
        let _writer = self.read_write.write().expect("free");
        let _chunk = self.array.chunk(0).expect("there").write().expect("free");
        let _value = self.value.lock().expect("free");
        self.ready.set();
        common::sleep_forever()
    }
}

/// Somebody uses everything with this process, and somebody is killed who holds everything. Returns a name that was used.
fn round(start: Start) -> String {
    let all = Everything::new();
    let name = all.memory.name().to_owned();
    let child = start.start(Everything::use_all, all.clone());
    let mut guard = all.mutex.lock().expect("free");
    while *guard == 0 {
        guard = all.changed.wait(guard).expect("notified");
    }
    drop(guard);
    all.meeting.wait_timeout(LONG).expect("both came");
    child.join();
    assert_eq!((all.units.value(), all.value.get()), (1, 1.0));
    if start == Start::Threads {
        return name;
    }
    let child = start.start(Everything::hold_all, all.clone());
    all.ready.wait();
    child.end_by(Signal::KILL);
    match all.mutex.lock_timeout(LONG) {
        Err(LockError::OwnerDied(guard)) => guard.mark_consistent(),
        other => panic!("nobody told: {other:?}"),
    }
    drop(all.value.lock_timeout(LONG).expect("whole"));
    let chunk = all.array.chunk(0).expect("there");
    assert!(chunk.write_timeout(LONG).is_err_and(|error| error.is_owner_died()));
    name
}

/// What this process has of the system, by kind. Numbers of descriptors and addresses differ from run to run.
#[derive(Debug)]
struct Belongings {
    descriptors: BTreeMap<String, usize>,
    mappings: usize,
    arenas: usize,
    blocks: usize,
}

impl Belongings {
    fn now() -> Self {
        let mut descriptors = BTreeMap::new();
        for entry in std::fs::read_dir("/proc/self/fd").expect("procfs") {
            // The one that looks is gone by now.
            if let Ok(target) = std::fs::read_link(entry.expect("procfs").path()) {
                let target = target.to_string_lossy();
                let kind = target.split(':').next().unwrap_or_default().to_owned();
                *descriptors.entry(kind).or_insert(0) += 1;
            }
        }
        let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
        let mappings =
            maps.lines().filter(|line| line.contains("memfd") || line.contains("/dev/shm")).count();
        let usage = arena_usage();
        Self { descriptors, mappings, arenas: usage.arenas, blocks: usage.live }
    }

    /// Whether nothing was added. A few more of something right after the first round do not hide a leak in each of ten.
    fn is_within(&self, before: &Self) -> bool {
        let few =
            |(kind, count): (&String, &usize)| *count <= before.descriptors.get(kind).copied().unwrap_or(0);
        self.descriptors.iter().all(few)
            && self.mappings <= before.mappings
            && (self.arenas, self.blocks) <= (before.arenas, before.blocks)
    }
}

#[test]
fn everything_that_was_opened_is_closed_again() {
    let _dog = common::watchdog();
    // What stays for good is there after the first time.
    let starts = [Start::Threads, Start::Spawn, Start::Fork];
    let mut names: Vec<String> = starts.map(round).into();
    let before = Belongings::now();
    for _ in 0..10 {
        names.extend(starts.map(round));
    }
    // What the dead had goes a moment after their end, and so do pipes to them. What leaked never goes.
    let give_up = Instant::now() + LONG / 2;
    while !Belongings::now().is_within(&before) {
        assert!(Instant::now() < give_up, "{:?} is more than {before:?}", Belongings::now());
        std::thread::yield_now();
    }
    // A holder that was killed a moment ago may have kept a name, for whoever looks.
    until(|| {
        SharedMemory::scavenge().expect("listed");
        names.iter().all(|name| !std::path::Path::new("/dev/shm").join(name).exists())
    });
    // No status is collected: it is only asked whether there is a child.
    let children = waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT);
    assert_eq!(children.expect_err("no child is left"), rustix::io::Errno::CHILD);
}
