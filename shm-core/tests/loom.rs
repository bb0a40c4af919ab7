//! The waiting protocol under loom.
//!
//! Run with `ci/loom.sh`. Natively the same bodies run as plain loops. The protocol together with a queue, and the
//! controls that take each fence away, are in `ipc-queue/tests/loom.rs`.

use shm_core::sync::{Arc, AtomicU32, Ordering};
use shm_core::wait::{Pace, WaitLine};

/// Tokens that waiters take one by one.
#[derive(Default)]
struct Tokens {
    count: AtomicU32,
    line: WaitLine,
}

impl Tokens {
    fn put(&self) {
        self.count.fetch_add(1, Ordering::Release);
        self.line.notify(1);
    }

    fn try_take(&self) -> Option<()> {
        let mut count = self.count.load(Ordering::Acquire);
        while count > 0 {
            match self.count.compare_exchange(count, count - 1, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => {
                    // Whoever took one while more are there passes the wake-up on.
                    if self.line.has_sleepers() && self.count.load(Ordering::Acquire) > 0 {
                        self.line.notify(1);
                    }
                    return Some(());
                }
                Err(seen) => count = seen,
            }
        }
        None
    }

    fn take(&self) {
        let took = self.line.wait(&Pace::new(), 0, None, || self.try_take(), || None);
        assert!(took.is_some(), "a wait without a deadline ends with a token");
    }
}

#[cfg(loom)]
fn spawn(f: impl FnOnce() + 'static) -> loom::thread::JoinHandle<()> {
    loom::thread::spawn(f)
}

#[cfg(not(loom))]
fn spawn(f: impl FnOnce() + Send + 'static) -> std::thread::JoinHandle<()> {
    std::thread::spawn(f)
}

#[cfg(loom)]
fn explore(body: fn()) {
    loom::model(body);
}

#[cfg(not(loom))]
fn explore(body: fn()) {
    (0..200).for_each(|_| body());
}

fn one_sleeper() {
    let tokens = Arc::new(Tokens::default());
    let waiter = spawn({
        let tokens = Arc::clone(&tokens);
        move || tokens.take()
    });
    tokens.put();
    waiter.join().expect("the waiter ends");
}

fn two_sleepers() {
    let tokens = Arc::new(Tokens::default());
    let waiters = [(); 2].map(|()| {
        let tokens = Arc::clone(&tokens);
        spawn(move || tokens.take())
    });
    tokens.put();
    tokens.put();
    for waiter in waiters {
        waiter.join().expect("each waiter ends");
    }
}

#[test]
fn a_sleeper_is_never_left_beside_a_token() {
    explore(one_sleeper);
}

#[test]
fn two_sleepers_get_two_tokens() {
    explore(two_sleepers);
}

#[test]
fn a_deadline_ends_a_wait_for_nothing() {
    explore(|| {
        let tokens = Tokens::default();
        let deadline = Some(std::time::Instant::now());
        assert_eq!(tokens.line.wait(&Pace::new(), 0, deadline, || tokens.try_take(), || None), None);
    });
}
