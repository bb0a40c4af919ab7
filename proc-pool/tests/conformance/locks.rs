//! Locks, semaphores, events.

use crate::start::{LONG, SHORT, Start, after, until};
use proc_pool::shared::{Event, LockError, Mutex, ReentrantMutex, Semaphore, Shared, Signal};
use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};

conformance! {
    conformance_lock
    conformance_lock_locked_2processes
    conformance_lock_context
    conformance_repr_lock
    conformance_rlock
    conformance_rlock_locked_2processes
    conformance_rlock_context
    conformance_repr_rlock
    conformance_semaphore
    conformance_bounded_semaphore
    conformance_semaphore_timeout
    conformance_event
    conformance_event_repr
}

type Lock = Shared<Mutex<u64>>;
type RLock = Shared<ReentrantMutex<AtomicU32>>;

/// Says that it has begun, and waits until it may go on.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
struct Gate {
    begun: Shared<Event>,
    go_on: Shared<Event>,
    process: Shared<AtomicU32>,
}

impl Gate {
    fn new() -> Self {
        let event = || Shared::new(Event::new()).expect("made");
        Self { begun: event(), go_on: event(), process: Shared::new(AtomicU32::new(0)).expect("made") }
    }

    fn pass(&self) {
        self.process.store(std::process::id(), Ordering::SeqCst);
        self.begun.set();
        self.go_on.wait();
    }
}

fn lock() -> Lock {
    Shared::new(Mutex::new(0)).expect("made")
}

fn rlock() -> RLock {
    Shared::new(ReentrantMutex::new(AtomicU32::new(0))).expect("made")
}

fn conformance_lock(start: Start) {
    let lock = lock();
    let guard = lock.lock().expect("free");
    assert!(lock.is_locked());
    assert!(matches!(lock.try_lock(), Err(LockError::WouldBlock)));
    let refused = |lock: Lock| assert!(matches!(lock.try_lock(), Err(LockError::WouldBlock)));
    start.run(refused, lock.clone());
    drop(guard);
    assert!(!lock.is_locked());
    start.run(|lock: Lock| *lock.lock().expect("free") += 1, lock.clone());
    assert_eq!(*lock.try_lock().expect("free"), 1);
}

fn hold_lock((lock, gate): (Lock, Gate)) {
    let _guard = lock.lock().expect("free");
    gate.pass();
}

fn conformance_lock_locked_2processes(start: Start) {
    let (lock, gate) = (lock(), Gate::new());
    let child = start.start(hold_lock, (lock.clone(), gate.clone()));
    gate.begun.wait();
    assert!(lock.is_locked());
    assert!(matches!(lock.try_lock(), Err(LockError::WouldBlock)));
    assert!(matches!(lock.lock_timeout(SHORT), Err(LockError::TimedOut)));
    gate.go_on.set();
    drop(lock.lock_timeout(LONG).expect("let go"));
    child.join();
    assert!(!lock.is_locked());
}

fn conformance_lock_context(start: Start) {
    let lock = lock();
    {
        let mut guard = lock.lock().expect("free");
        *guard += 1;
        assert!(lock.is_locked());
    }
    assert!(!lock.is_locked());
    let leave_by_panic = |lock: Lock| {
        let left = std::panic::catch_unwind(|| {
            let _guard = lock.lock().expect("free");
            std::panic::resume_unwind(Box::new(()));
        });
        assert!(left.is_err());
    };
    start.run(leave_by_panic, lock.clone());
    // Free, and whoever comes next is told.
    assert!(!lock.is_locked());
    assert!(lock.lock().is_err_and(|error| error.is_poisoned()));
}

fn conformance_repr_lock(start: Start) {
    let (lock, gate) = (lock(), Gate::new());
    assert_eq!(format!("{lock:?}"), "Mutex { data: 0, state: free }");
    let guard = lock.lock().expect("free");
    let held_by = |process: u32| format!("Mutex {{ data: <locked>, state: held by process {process} }}");
    assert_eq!(format!("{lock:?}"), held_by(std::process::id()));
    drop(guard);
    let child = start.start(hold_lock, (lock.clone(), gate.clone()));
    gate.begun.wait();
    let holder = gate.process.load(Ordering::SeqCst);
    assert_eq!(holder == std::process::id(), start == Start::Threads);
    assert_eq!(format!("{lock:?}"), held_by(holder));
    gate.go_on.set();
    child.join();
    assert_eq!(format!("{lock:?}"), "Mutex { data: 0, state: free }");
}

fn conformance_rlock(start: Start) {
    let lock = rlock();
    let guards: Vec<_> = (0..3).map(|_| lock.lock().expect("free, or ours")).collect();
    guards[2].fetch_add(1, Ordering::Relaxed);
    assert!(lock.is_held_by_this_thread());
    let refused = |lock: RLock| {
        assert!(!lock.is_held_by_this_thread());
        assert!(matches!(lock.try_lock(), Err(LockError::WouldBlock)));
    };
    for guard in guards {
        // Until the last one is gone.
        assert!(lock.is_locked());
        start.run(refused, lock.clone());
        drop(guard);
    }
    assert!(!lock.is_locked());
    start.run(|lock: RLock| drop(lock.try_lock().expect("free")), lock);
}

fn hold_rlock((lock, gate): (RLock, Gate)) {
    let _guards = [lock.lock().expect("free"), lock.lock().expect("ours")];
    gate.pass();
}

fn conformance_rlock_locked_2processes(start: Start) {
    let (lock, gate) = (rlock(), Gate::new());
    let child = start.start(hold_rlock, (lock.clone(), gate.clone()));
    gate.begun.wait();
    assert!(lock.is_locked());
    assert!(!lock.is_held_by_this_thread());
    assert!(matches!(lock.try_lock(), Err(LockError::WouldBlock)));
    gate.go_on.set();
    child.join();
    assert!(!lock.is_locked());
    drop(lock.try_lock().expect("free"));
}

fn conformance_rlock_context(start: Start) {
    // No atomic is needed for what is reached through the lock only.
    let lock = ReentrantMutex::new(Cell::new(0));
    {
        let outer = lock.lock().expect("free");
        let inner = lock.lock().expect("ours");
        inner.set(outer.get() + 1);
    }
    assert!(!lock.is_locked());
    assert_eq!(lock.into_inner().get(), 1);
    let lock = rlock();
    start.run(|lock: RLock| drop([lock.lock().expect("free"), lock.lock().expect("ours")]), lock.clone());
    assert!(!lock.is_locked());
}

fn conformance_repr_rlock(start: Start) {
    let (lock, gate) = (rlock(), Gate::new());
    let free = "ReentrantMutex { data: 0, state: free, count: 0 }";
    assert_eq!(format!("{lock:?}"), free);
    let guards = [(); 3].map(|()| lock.lock().expect("free, or ours"));
    let here = format!("state: held by process {} (this thread), count: 3 }}", std::process::id());
    assert!(format!("{lock:?}").ends_with(&here), "{lock:?}");
    drop(guards);
    assert_eq!(format!("{lock:?}"), free);
    let child = start.start(hold_rlock, (lock.clone(), gate.clone()));
    gate.begun.wait();
    let holder = gate.process.load(Ordering::SeqCst);
    let whose = if start == Start::Threads { " (another thread)" } else { "" };
    let there = format!("data: <locked>, state: held by process {holder}{whose}, count: 2 }}");
    assert!(format!("{lock:?}").ends_with(&there), "{lock:?}");
    gate.go_on.set();
    child.join();
    assert_eq!(format!("{lock:?}"), free);
}

fn conformance_semaphore(start: Start) {
    let semaphore = Shared::new(Signal::new(2)).expect("made");
    semaphore.wait();
    assert_eq!(semaphore.value(), 1);
    let take_the_last = |semaphore: Shared<Signal>| {
        semaphore.wait();
        assert_eq!(semaphore.value(), 0);
        assert!(!semaphore.try_wait());
    };
    start.run(take_the_last, semaphore.clone());
    assert!(!semaphore.try_wait());
    // By anybody, and beyond what there was at the beginning.
    for count in 1..=4 {
        start.run(|semaphore: Shared<Signal>| semaphore.post(1).expect("counted"), semaphore.clone());
        assert_eq!(semaphore.value(), count);
    }
}

fn conformance_bounded_semaphore(start: Start) {
    let semaphore = Shared::new(Semaphore::<64>::new(2)).expect("made");
    semaphore.acquire().expect("free").forget();
    assert_eq!(semaphore.available(), 1);
    let last = |(semaphore, gate): (Shared<Semaphore>, Gate)| {
        let _permit = semaphore.acquire().expect("free");
        gate.pass();
    };
    let gate = Gate::new();
    let child = start.start(last, (semaphore.clone(), gate.clone()));
    gate.begun.wait();
    assert_eq!(semaphore.available(), 0);
    assert!(matches!(semaphore.try_acquire(), Err(LockError::WouldBlock)));
    gate.go_on.set();
    child.join();
    assert_eq!(semaphore.available(), 1);
    semaphore.release().expect("ours");
    assert!(matches!(semaphore.release(), Err(LockError::NotHeld)));
    let not_held = |semaphore: Shared<Semaphore>| {
        assert!(matches!(semaphore.release(), Err(LockError::NotHeld)));
    };
    start.run(not_held, semaphore.clone());
    assert_eq!((semaphore.available(), semaphore.permits()), (2, 2));
}

fn conformance_semaphore_timeout(start: Start) {
    let semaphore = Shared::new(Semaphore::<64>::new(1)).expect("made");
    let signal = Shared::new(Signal::new(0)).expect("made");
    let permit = semaphore.acquire().expect("free");
    let waiter = |(semaphore, signal): (Shared<Semaphore>, Shared<Signal>)| {
        assert!(matches!(semaphore.try_acquire(), Err(LockError::WouldBlock)));
        let waited = after(SHORT, || semaphore.acquire_timeout(SHORT).map(drop));
        assert!(matches!(waited, Err(LockError::TimedOut)));
        assert!(!signal.try_wait());
        assert!(!after(SHORT, || signal.wait_timeout(SHORT)));
    };
    waiter((semaphore.clone(), signal.clone()));
    start.run(waiter, (semaphore.clone(), signal.clone()));
    drop(permit);
    drop(semaphore.acquire_timeout(LONG).expect("free"));
}

fn conformance_event(start: Start) {
    let event = Shared::new(Event::new()).expect("made");
    assert!(!event.is_set());
    assert!(!event.wait_timeout(std::time::Duration::ZERO));
    assert!(!after(SHORT, || event.wait_timeout(SHORT)));
    event.set();
    assert!(event.is_set());
    assert!(event.wait_timeout(std::time::Duration::ZERO));
    assert!(event.wait_timeout(LONG));
    event.wait();
    event.clear();
    assert!(!event.is_set());
    assert!(!event.wait_timeout(std::time::Duration::ZERO));
    let child = start.start(|event: Shared<Event>| event.set(), event.clone());
    event.wait();
    assert!(event.is_set());
    child.join();
    // The other way round.
    event.clear();
    let woken = Shared::new(AtomicU32::new(0)).expect("made");
    let waiter = |(event, woken): (Shared<Event>, Shared<AtomicU32>)| {
        event.wait();
        woken.fetch_add(1, Ordering::SeqCst);
    };
    let waiters = [(); 3].map(|()| start.start(waiter, (event.clone(), woken.clone())));
    event.set();
    until(|| woken.load(Ordering::SeqCst) == 3);
    waiters.into_iter().for_each(crate::start::Child::join);
}

fn conformance_event_repr(start: Start) {
    let event = Shared::new(Event::new()).expect("made");
    assert_eq!(format!("{event:?}"), "Event(unset)");
    start.run(|event: Shared<Event>| event.set(), event.clone());
    assert_eq!(format!("{event:?}"), "Event(set)");
    event.clear();
    assert_eq!(format!("{event:?}"), "Event(unset)");
}
