//! What is left of shared memory when processes end: the outcomes that Python's resource tracker is there for.

use crate::start::{LONG, SHORT, Start, until};
use proc_pool::Pool;
use proc_pool::shared::{Event, LockError, Mutex, Semaphore, Shared, SharedArray, SharedMemory, arena_usage};
use rustix::process::Signal;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

conformance! {
    conformance_resource_tracker_reused
    conformance_resource_tracker_blocked_signals
}

conformance! {
    processes:
    conformance_resource_tracker
    conformance_resource_tracker_sigkill
    conformance_resource_tracker_raw_fork_prompt_reap
    conformance_resource_tracker_lock_reinit_after_fork
    conformance_global_named_resource
}

fn name(row: &str) -> String {
    format!("proc-pool-lifecycle-{}-{row}", std::process::id())
}

/// What is in `/dev/shm` by this name.
fn is_there(name: &str) -> bool {
    std::path::Path::new("/dev/shm").join(name).exists()
}

fn event() -> Shared<Event> {
    Shared::new(Event::new()).expect("made")
}

/// One of each.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
struct Belongings {
    lock: Shared<Mutex<u64>>,
    permits: Shared<Semaphore>,
    array: SharedArray<i64>,
    memory: SharedMemory,
    holds: Shared<Event>,
}

/// Holds everything, and more of its own, until it is killed.
fn hold_everything(shared: Belongings) {
    let _own: Vec<_> = (0..300_u64).map(|number| Shared::new(Mutex::new(number)).expect("made")).collect();
    let _named = SharedMemory::create(&format!("{}-own", shared.memory.name()), 4096).expect("created");
    let _array = SharedArray::<u64>::zeroed(10_000).expect("made");
    let mut guard = shared.lock.lock().expect("free");
    *guard += 1;
    let _permits = [(); 2].map(|()| shared.permits.acquire().expect("free"));
    let mut elements = shared.array.lock().expect("free");
    elements[0] = 1;
    shared.holds.set();
    crate::common::sleep_forever()
}

/// SIGKILL of any process leaves nothing in `/dev/shm`, and nothing held.
fn conformance_resource_tracker(start: Start) {
    let before = arena_usage();
    let shared = Belongings {
        lock: Shared::new(Mutex::new(0)).expect("made"),
        permits: Shared::new(Semaphore::new(2)).expect("made"),
        array: SharedArray::zeroed(10).expect("made"),
        memory: SharedMemory::create(&name("tracked"), 10).expect("created"),
        holds: event(),
    };
    let own = format!("{}-own", shared.memory.name());
    let child = start.start(hold_everything, shared.clone());
    shared.holds.wait();
    assert!(is_there(&own));
    assert!(matches!(shared.lock.try_lock(), Err(LockError::WouldBlock)));
    child.end_by(Signal::KILL);

    match shared.lock.lock_timeout(LONG) {
        Err(LockError::OwnerDied(guard)) => {
            assert_eq!(*guard, 1);
            guard.mark_consistent();
        }
        other => panic!("nobody told: {other:?}"),
    }
    drop([(); 2].map(|()| shared.permits.acquire_timeout(LONG).expect("both came back")));
    match shared.array.lock_timeout(LONG) {
        Err(LockError::OwnerDied(guard)) => guard.mark_consistent(),
        other => panic!("nobody told: {other:?}"),
    }
    until(|| {
        SharedMemory::scavenge().expect("listed");
        !is_there(&own)
    });
    // What this process has, too, is not touched.
    assert!(is_there(shared.memory.name()));
    let memory = shared.memory.name().to_owned();
    drop(shared);
    assert!(!is_there(&memory));
    until(|| arena_usage() == before);
}

/// Creates memory, has a child of its own attach to it, and is killed with that.
fn family((name, attached): (String, Shared<Event>)) {
    let memory = SharedMemory::create(&name, 10).expect("created");
    let below = |(memory, attached): (SharedMemory, Shared<Event>)| {
        memory.write_at(0, &[1]).expect("there");
        attached.set();
        crate::common::sleep_forever()
    };
    Start::Fork.run(below, (memory.clone(), attached));
}

/// All who have it are killed, those who made it and those who were given it.
fn conformance_resource_tracker_sigkill(start: Start) {
    let (name, attached) = (name("family"), event());
    let child = start.start(family, (name.clone(), attached.clone()));
    attached.wait();
    assert!(is_there(&name));
    child.end_by(Signal::KILL);
    until(|| {
        SharedMemory::scavenge().expect("listed");
        !is_there(&name)
    });
}

/// What a child makes is like what its parent makes: it goes with its last holder, whoever that is.
fn conformance_resource_tracker_reused(start: Start) {
    let name = name("reused");
    let (created, go_on) = (event(), event());
    let maker = |(name, created, go_on): (String, Shared<Event>, Shared<Event>)| {
        let _memory = SharedMemory::create(&name, 10).expect("created");
        created.set();
        go_on.wait();
    };
    let child = start.start(maker, (name.clone(), created.clone(), go_on.clone()));
    created.wait();
    let memory = SharedMemory::open(&name).expect("it exists");
    go_on.set();
    child.join();
    SharedMemory::scavenge().expect("listed");
    assert!(is_there(&name));
    drop(memory);
    assert!(!is_there(&name));
}

/// The signals that this thread has blocked.
fn blocked() -> Vec<bool> {
    // SAFETY: an empty set is all zeros, and may be filled in.
    let mut set = unsafe { std::mem::zeroed::<libc::sigset_t>() };
    // SAFETY: asks only; the pointers are valid.
    assert_eq!(unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &mut set) }, 0);
    // SAFETY: a set, and the numbers of signals.
    (1..64).map(|signal| unsafe { libc::sigismember(&set, signal) } == 1).collect()
}

fn change_mask(how: i32, signal: i32) {
    // SAFETY: an empty set is all zeros.
    let mut set = unsafe { std::mem::zeroed::<libc::sigset_t>() };
    // SAFETY: a set, and the number of a signal.
    assert_eq!(unsafe { libc::sigaddset(&mut set, signal) }, 0);
    // SAFETY: only this thread's mask is changed; nothing here relies on the signal.
    assert_eq!(unsafe { libc::pthread_sigmask(how, &set, std::ptr::null_mut()) }, 0);
}

fn use_everything(name: &str) {
    let value = Shared::new(Mutex::new(1_u64)).expect("made");
    *value.lock().expect("free") += 1;
    assert!(!event().wait_timeout(SHORT));
    drop(SharedMemory::create(name, 10).expect("created"));
    SharedArray::<u64>::zeroed(10).expect("made").set(0, 1).expect("there");
    SharedMemory::scavenge().expect("listed");
    proc_pool::shm::segment::sweep_all();
}

/// The caller's signal mask is as it was, whatever was blocked.
fn conformance_resource_tracker_blocked_signals(start: Start) {
    change_mask(libc::SIG_BLOCK, libc::SIGUSR2);
    let before = blocked();
    assert!(before[libc::SIGUSR2 as usize - 1]);
    use_everything(&name("mask"));
    assert_eq!(blocked(), before);
    let same_there = |name: String| {
        let before = blocked();
        use_everything(&name);
        assert_eq!(blocked(), before);
    };
    start.run(same_there, name("mask"));
    assert_eq!(blocked(), before);
    change_mask(libc::SIG_UNBLOCK, libc::SIGUSR2);
}

/// A name goes when its last user does, even if a child was started meanwhile that never uses it.
fn conformance_resource_tracker_raw_fork_prompt_reap(start: Start) {
    let (begun, go_on) = (event(), event());
    let memory = SharedMemory::create(&name("reap"), 10).expect("created");
    let bystander = |(begun, go_on): (Shared<Event>, Shared<Event>)| {
        begun.set();
        go_on.wait();
    };
    let child = start.start(bystander, (begun.clone(), go_on.clone()));
    begun.wait();
    let name = memory.name().to_owned();
    drop(memory);
    assert!(!is_there(&name));
    go_on.set();
    child.join();
}

/// Children that are started while other threads are in the middle of everything can do everything themselves.
fn conformance_resource_tracker_lock_reinit_after_fork(start: Start) {
    static STOP: AtomicBool = AtomicBool::new(false);
    STOP.store(false, Ordering::SeqCst);
    let busy: Vec<_> = (0..2)
        .map(|thread| {
            std::thread::spawn(move || {
                let name = name(&format!("busy-{thread}"));
                while !STOP.load(Ordering::SeqCst) {
                    use_everything(&name);
                }
            })
        })
        .collect();
    for round in 0..20 {
        start.run(|name: String| use_everything(&name), name(&format!("round-{round}")));
    }
    STOP.store(true, Ordering::SeqCst);
    busy.into_iter().for_each(|thread| thread.join().expect("no panic"));
}

/// What a global keeps is never dropped: the name is left to whoever looks next, and the child's end is a good one.
fn conformance_global_named_resource(start: Start) {
    static GLOBAL: OnceLock<SharedMemory> = OnceLock::new();
    let name = name("global");
    let keep = |name: String| {
        let memory = SharedMemory::create(&name, 10).expect("created");
        assert!(GLOBAL.set(memory).is_ok());
    };
    start.run(keep, name.clone());
    until(|| {
        SharedMemory::scavenge().expect("listed");
        !is_there(&name)
    });
}

/// A pool looks for what its dead workers had, without being asked.
#[test]
fn conformance_resource_tracker_of_a_pool() {
    fn leave(name: String) {
        std::mem::forget(SharedMemory::create(&name, 10).expect("created"));
        std::process::abort()
    }
    fn crash((): ()) {
        std::process::abort()
    }
    fn body(_: Start) {
        let pool = Pool::new(1).expect("started");
        let name = name("pool");
        pool.call(leave, name.clone()).expect_err("it died");
        // A worker that died a moment ago may still be about to let go; the next death is the next look.
        while is_there(&name) {
            pool.call(crash, ()).expect_err("it died");
        }
    }
    crate::start::run(body, Start::Spawn);
}

/// What a forked child has to set up does not double with every generation.
#[test]
fn conformance_fork_aware_thread_lock() {
    fn generation((left, counts, value): (u32, SharedArray<AtomicU64>, Shared<Mutex<u64>>)) {
        *value.lock().expect("free") += 1;
        let open = std::fs::read_dir("/proc/self/fd").expect("procfs").count() as u64;
        let mapped = std::fs::read_to_string("/proc/self/maps").expect("procfs").lines().count() as u64;
        let index = 2 * left as usize;
        counts[index].store(open, Ordering::SeqCst);
        counts[index + 1].store(mapped, Ordering::SeqCst);
        if left > 0 {
            Start::Fork.run(generation, (left - 1, counts, value));
        }
    }
    fn body(_: Start) {
        let counts = SharedArray::<AtomicU64>::zeroed(20).expect("made");
        let value = Shared::new(Mutex::new(0)).expect("made");
        Start::Fork.run(generation, (9, counts.clone(), value.clone()));
        assert_eq!(*value.lock().expect("free"), 10);
        let [youngest, eldest] =
            [0, 9].map(|left: usize| [0, 1].map(|kind| counts[2 * left + kind].load(Ordering::SeqCst)));
        assert!(youngest[0] <= eldest[0], "descriptors: {youngest:?} after {eldest:?}");
        // The system may split a mapping, but nine generations are not to cost more than two each.
        assert!(youngest[1] <= eldest[1] + 18, "mappings: {youngest:?} after {eldest:?}");
    }
    crate::start::run(body, Start::Fork);
}
