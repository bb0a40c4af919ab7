//! Barriers of five parties, this process among them.

use crate::start::{LONG, SHORT, Start, until};
use proc_pool::shared::{Barrier, BarrierError, Mutex, Shared, SharedArray};
use std::sync::atomic::{AtomicU64, Ordering};

conformance! {
    conformance_barrier
    conformance_barrier_10
    conformance_barrier_wait_return
    conformance_barrier_action
    conformance_barrier_abort
    conformance_barrier_reset
    conformance_barrier_abort_and_reset
    conformance_barrier_timeout
    conformance_barrier_default_timeout
    conformance_barrier_single_thread
    conformance_barrier_thousand
}

const N: usize = 5;
/// The one that does something else than the others.
const ODD: usize = N / 2;
/// How often each party waits in the long test.
const PASSES: usize = 1000;

type Meeting = Shared<Barrier>;
type Counts = SharedArray<AtomicU64>;

fn barrier() -> Meeting {
    Shared::new(Barrier::new(N)).expect("made")
}

fn counts(len: usize) -> Counts {
    SharedArray::zeroed(len).expect("made")
}

fn add(counts: &Counts, index: usize) {
    counts[index].fetch_add(1, Ordering::SeqCst);
}

#[track_caller]
fn assert_counts(counts: &Counts, expected: &[u64]) {
    let counted: Vec<u64> = counts.iter().map(|count| count.load(Ordering::SeqCst)).collect();
    assert_eq!(counted, expected);
}

/// Waits, and tells in which number it was.
fn number(barrier: &Barrier) -> usize {
    barrier.wait().expect("all came").index()
}

fn multipass((barrier, counts, passes): (Meeting, Counts, u64)) {
    let n = N as u64;
    for pass in 0..passes {
        add(&counts, 0);
        assert_eq!(counts[1].load(Ordering::SeqCst), pass * n);
        barrier.wait().expect("all came");
        add(&counts, 1);
        assert_eq!(counts[0].load(Ordering::SeqCst), (pass + 1) * n);
        barrier.wait().expect("all came");
    }
}

fn conformance_barrier(start: Start) {
    start.parties(N, multipass, (barrier(), counts(2), 1));
}

fn conformance_barrier_10(start: Start) {
    let (barrier, counts) = (barrier(), counts(2));
    start.parties(N, multipass, (barrier.clone(), counts.clone(), 10));
    assert_counts(&counts, &[50, 50]);
    assert!(!barrier.is_broken());
    assert_eq!(barrier.n_waiting(), 0);
}

fn conformance_barrier_wait_return(start: Start) {
    let counts = counts(N + 1);
    let party = |(barrier, counts): (Meeting, Counts)| {
        let passed = barrier.wait().expect("all came");
        add(&counts, passed.index());
        if passed.is_leader() {
            add(&counts, N);
        }
    };
    start.parties(N, party, (barrier(), counts.clone()));
    // Each number once, and one leader.
    assert_counts(&counts, &[1; N + 1]);
}

fn conformance_barrier_action(start: Start) {
    let counts = counts(1);
    let party = |(barrier, counts): (Meeting, Counts)| {
        barrier.wait_with(|| add(&counts, 0)).expect("all came");
        assert_counts(&counts, &[1]);
    };
    start.parties(N, party, (barrier(), counts));
}

fn conformance_barrier_abort(start: Start) {
    let (barrier, counts) = (barrier(), counts(2));
    let party = |(barrier, counts): (Meeting, Counts)| {
        if number(&barrier) == ODD {
            return barrier.abort();
        }
        match barrier.wait() {
            Ok(_) => add(&counts, 0),
            Err(error) => {
                assert_eq!(error, BarrierError::Broken);
                add(&counts, 1);
            }
        }
    };
    start.parties(N, party, (barrier.clone(), counts.clone()));
    assert_counts(&counts, &[0, N as u64 - 1]);
    assert!(barrier.is_broken());
}

fn conformance_barrier_reset(start: Start) {
    let counts = counts(3);
    let party = |(barrier, counts): (Meeting, Counts)| {
        if number(&barrier) == ODD {
            until(|| barrier.n_waiting() == N - 1);
            barrier.reset();
        } else {
            match barrier.wait() {
                Ok(_) => add(&counts, 0),
                Err(error) => {
                    assert_eq!(error, BarrierError::Broken);
                    add(&counts, 1);
                }
            }
        }
        barrier.wait().expect("as new");
        add(&counts, 2);
    };
    start.parties(N, party, (barrier(), counts.clone()));
    assert_counts(&counts, &[0, N as u64 - 1, N as u64]);
}

fn conformance_barrier_abort_and_reset(start: Start) {
    let counts = counts(3);
    let party = |(barrier, other, counts): (Meeting, Meeting, Counts)| {
        if number(&barrier) == ODD {
            barrier.abort();
        } else {
            match barrier.wait() {
                Ok(_) => add(&counts, 0),
                Err(error) => {
                    assert_eq!(error, BarrierError::Broken);
                    add(&counts, 1);
                }
            }
        }
        // Everybody has seen that it was broken.
        if number(&other) == ODD {
            barrier.reset();
        }
        other.wait().expect("all came");
        barrier.wait().expect("as new");
        add(&counts, 2);
    };
    start.parties(N, party, (barrier(), barrier(), counts.clone()));
    assert_counts(&counts, &[0, N as u64 - 1, N as u64]);
}

fn conformance_barrier_timeout(start: Start) {
    let counts = counts(2);
    let party = |(barrier, counts): (Meeting, Counts)| {
        if number(&barrier) == ODD {
            // Too late.
            until(|| barrier.is_broken());
        }
        match barrier.wait_timeout(SHORT) {
            Ok(_) => panic!("somebody is missing"),
            Err(error) => add(&counts, usize::from(error == BarrierError::TimedOut)),
        }
    };
    start.parties(N, party, (barrier(), counts.clone()));
    let [broken, timed_out] = [0, 1].map(|index: usize| counts[index].load(Ordering::SeqCst));
    assert_eq!(broken + timed_out, N as u64);
    assert!(timed_out >= 1);
}

/// Python's barrier can be made with a timeout. Here the call has it, with an action or without.
fn conformance_barrier_default_timeout(start: Start) {
    let (barrier, counts) = (barrier(), counts(2));
    let party = |(barrier, counts): (Meeting, Counts)| {
        barrier.wait_with_timeout(LONG, || add(&counts, 0)).expect("all came");
        if number(&barrier) == ODD {
            until(|| barrier.is_broken());
        }
        barrier.wait_with_timeout(SHORT, || add(&counts, 0)).expect_err("somebody is missing");
        add(&counts, 1);
    };
    start.parties(N, party, (barrier.clone(), counts.clone()));
    assert_counts(&counts, &[1, N as u64]);
    assert!(barrier.is_broken());
}

fn conformance_barrier_single_thread(start: Start) {
    let alone = |barrier: Meeting| {
        for _ in 0..2 {
            let passed = barrier.wait().expect("nobody is missing");
            assert!(passed.is_leader());
            assert_eq!(passed.index(), 0);
        }
    };
    let barrier = Shared::new(Barrier::new(1)).expect("made");
    alone(barrier.clone());
    start.run(alone, barrier);
}

fn conformance_barrier_thousand(start: Start) {
    let said = counts(PASSES * N);
    let party = |(barrier, lines, said): (Meeting, Shared<Mutex<u32>>, Counts)| {
        for pass in 0..PASSES as u64 {
            barrier.wait().expect("all came");
            let mut lines = lines.lock().expect("free");
            said[*lines as usize].store(pass, Ordering::SeqCst);
            *lines += 1;
        }
    };
    let lines = Shared::new(Mutex::new(0)).expect("made");
    start.parties(N, party, (barrier(), lines, said.clone()));
    let expected: Vec<u64> = (0..PASSES as u64).flat_map(|pass| [pass; N]).collect();
    assert_counts(&said, &expected);
}
