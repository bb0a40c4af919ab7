//! Condition variables.

use crate::start::{Child, LONG, SHORT, Start, after, until};
use proc_pool::shared::{Condvar, Event, Mutex, Shared};
use std::sync::OnceLock;
use std::time::Duration;

conformance! {
    conformance_condition_notify
    conformance_condition_notify_all
    conformance_condition_notify_n
    conformance_condition_timeout
    conformance_condition_waitfor
    conformance_condition_waitfor_timeout
    conformance_condition_wait_result
    conformance_condition_wait_interrupted
}

/// How many began to wait, and how many were woken.
type Counts = Shared<Mutex<[u32; 2]>>;
type Condition = Shared<Condvar>;

fn condition() -> (Counts, Condition) {
    (Shared::new(Mutex::new([0; 2])).expect("made"), Shared::new(Condvar::new()).expect("made"))
}

fn sleeper((counts, condition): (Counts, Condition)) {
    let mut guard = counts.lock().expect("free");
    guard[0] += 1;
    let mut guard = condition.wait(guard).expect("notified");
    guard[1] += 1;
}

fn sleeper_until_timeout((counts, condition): (Counts, Condition)) {
    let mut guard = counts.lock().expect("free");
    guard[0] += 1;
    let (mut guard, result) = condition.wait_timeout(guard, SHORT).expect("the lock again");
    assert!(result.timed_out());
    guard[1] += 1;
}

/// Waits until so many wait: they count themselves under the lock that they wait with.
fn until_asleep(counts: &Counts, count: u32) {
    until(|| counts.lock().expect("free")[0] == count);
}

/// Waits until so many were woken, and no more will be: the others still wait.
fn until_woken((counts, condition): &(Counts, Condition), woken: u32) {
    until(|| counts.lock().expect("free")[1] == woken);
    let [asleep, woken] = *counts.lock().expect("free");
    assert_eq!(format!("{condition:?}"), format!("Condvar {{ waiters: {} }}", asleep - woken));
}

/// Half of them are threads of this process.
fn sleepers(
    start: Start,
    count: usize,
    body: impl Fn((Counts, Condition)) + Copy + Send + Sync + 'static,
    shared: &(Counts, Condition),
) -> Vec<Child> {
    let start = |number| if number % 2 == 0 { start } else { Start::Threads };
    (0..count).map(|number| start(number).start(body, shared.clone())).collect()
}

fn conformance_condition_notify(start: Start) {
    let shared = condition();
    let children = sleepers(start, 2, sleeper, &shared);
    until_asleep(&shared.0, 2);
    until_woken(&shared, 0);
    for woken in 1..=2 {
        let guard = shared.0.lock().expect("free");
        shared.1.notify_one();
        drop(guard);
        until_woken(&shared, woken);
    }
    children.into_iter().for_each(Child::join);
}

fn conformance_condition_notify_all(start: Start) {
    let shared = condition();
    // All of them give up first, which leaves nothing behind.
    sleepers(start, 6, sleeper_until_timeout, &shared).into_iter().for_each(Child::join);
    assert_eq!(*shared.0.lock().expect("free"), [6, 6]);
    until_woken(&shared, 6);
    let children = sleepers(start, 6, sleeper, &shared);
    until_asleep(&shared.0, 12);
    until_woken(&shared, 6);
    let guard = shared.0.lock().expect("free");
    shared.1.notify_all();
    drop(guard);
    until_woken(&shared, 12);
    children.into_iter().for_each(Child::join);
}

fn conformance_condition_notify_n(start: Start) {
    let shared = condition();
    let children = sleepers(start, 6, sleeper, &shared);
    until_asleep(&shared.0, 6);
    until_woken(&shared, 0);
    for (count, woken) in [(2, 2), (4, 6), (3, 6)] {
        let guard = shared.0.lock().expect("free");
        shared.1.notify(count);
        drop(guard);
        until_woken(&shared, woken);
    }
    children.into_iter().for_each(Child::join);
    // The last three went to nobody: they are not kept for whoever comes later.
    start.run(sleeper_until_timeout, shared);
}

fn conformance_condition_timeout(start: Start) {
    let (counts, condition) = condition();
    let waiter = |(counts, condition): (Counts, Condition)| {
        let guard = counts.lock().expect("free");
        let (_guard, result) = after(SHORT, || condition.wait_timeout(guard, SHORT)).expect("the lock again");
        assert!(result.timed_out());
    };
    waiter((counts.clone(), condition.clone()));
    start.run(waiter, (counts, condition));
}

fn conformance_condition_waitfor(start: Start) {
    let (counts, condition) = condition();
    let waiter = |(counts, condition): (Counts, Condition)| {
        let guard = counts.lock().expect("free");
        let guard = condition.wait_while(guard, |counts| counts[0] < 4).expect("notified");
        assert_eq!(guard[0], 4);
    };
    let child = start.start(waiter, (counts.clone(), condition.clone()));
    for _ in 0..4 {
        counts.lock().expect("free")[0] += 1;
        condition.notify_one();
    }
    child.join();
}

fn conformance_condition_waitfor_timeout(start: Start) {
    let (counts, condition) = condition();
    let waiter = |(counts, condition, begun): (Counts, Condition, Shared<Event>)| {
        let guard = counts.lock().expect("free");
        begun.set();
        let waited = after(SHORT, || condition.wait_timeout_while(guard, SHORT, |counts| counts[0] < 4));
        let (guard, result) = waited.expect("the lock again");
        assert!(result.timed_out());
        assert!(guard[0] < 4);
    };
    let begun = Shared::new(Event::new()).expect("made");
    let child = start.start(waiter, (counts.clone(), condition.clone(), begun.clone()));
    begun.wait();
    for _ in 0..3 {
        counts.lock().expect("free")[0] += 1;
        condition.notify_one();
    }
    child.join();
}

fn notify((counts, condition): (Counts, Condition)) {
    let mut guard = counts.lock().expect("free, or waited with");
    guard[0] += 1;
    condition.notify_one();
}

fn conformance_condition_wait_result(start: Start) {
    let (counts, condition) = condition();
    let guard = counts.lock().expect("free");
    let (guard, result) = condition.wait_timeout(guard, Duration::ZERO).expect("the lock again");
    assert!(result.timed_out());
    let (guard, result) = condition.wait_timeout(guard, SHORT).expect("the lock again");
    assert!(result.timed_out());
    // It needs the lock, so it cannot come too early.
    let child = start.start(notify, (counts.clone(), condition.clone()));
    let (guard, result) = condition.wait_timeout(guard, LONG).expect("the lock again");
    assert!(!result.timed_out());
    assert_eq!(guard[0], 1);
    drop(guard);
    child.join();
}

/// Set by the handler of the signal.
static HANDLED: OnceLock<Shared<Event>> = OnceLock::new();

extern "C" fn handler(_: libc::c_int) {
    if let Some(handled) = HANDLED.get() {
        handled.set();
    }
}

/// In Python the handler may raise an exception, which ends the wait. Here a handled signal ends nothing.
fn conformance_condition_wait_interrupted(start: Start) {
    let (counts, condition) = condition();
    let handled = HANDLED.get_or_init(|| Shared::new(Event::new()).expect("made"));
    handled.clear();
    let (take, ignore): (extern "C" fn(libc::c_int), _) = (handler, libc::SIG_IGN);
    // SAFETY: the handler does nothing but what a handler may.
    unsafe { libc::signal(libc::SIGUSR1, take as *const () as libc::sighandler_t) };
    let disturber =
        |(counts, condition, handled, process, thread): (Counts, Condition, Shared<Event>, i32, i32)| {
            drop(counts.lock().expect("waited with"));
            // SAFETY: a signal for a thread of the test, which handles it.
            assert_eq!(unsafe { libc::syscall(libc::SYS_tgkill, process, thread, libc::SIGUSR1) }, 0);
            handled.wait();
            let mut guard = counts.lock().expect("free");
            assert_eq!(format!("{condition:?}"), "Condvar { waiters: 1 }");
            guard[0] += 1;
            condition.notify_one();
        };
    let mut guard = counts.lock().expect("free");
    let process = rustix::process::getpid().as_raw_nonzero().get();
    let thread = rustix::thread::gettid().as_raw_nonzero().get();
    let argument = (counts.clone(), condition.clone(), handled.clone(), process, thread);
    let child = start.start(disturber, argument);
    guard = condition.wait(guard).expect("notified");
    assert_eq!(guard[0], 1);
    drop(guard);
    child.join();
    // SAFETY: as above.
    unsafe { libc::signal(libc::SIGUSR1, ignore) };
}
