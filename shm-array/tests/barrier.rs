//! Barriers between threads and between processes.
#![cfg(not(loom))]

mod common;

use common::{Peer, Reporter, watchdog};
use serde::{Deserialize, Serialize};
use shm_array::{Barrier, BarrierError, BarrierWaitResult, Event, Shared};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const N: usize = 5;
const SHORT: Duration = Duration::from_millis(20);

/// `N` threads that do the same; what they return.
fn party<R: Send>(body: impl Fn(usize) -> R + Sync) -> Vec<R> {
    thread::scope(|scope| {
        let body = &body;
        let threads: Vec<_> = (0..N).map(|n| scope.spawn(move || body(n))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Until so many wait.
fn until_waiting<const MAX: usize>(barrier: &Barrier<MAX>, count: usize) {
    while barrier.n_waiting() < count {
        thread::yield_now();
    }
}

fn in_lockstep(rounds: u32) {
    let (barrier, counts) = (Barrier::new(N), [const { AtomicU32::new(0) }; 2]);
    party(|_| {
        for round in 1..=rounds {
            for count in &counts {
                count.fetch_add(1, Ordering::Relaxed);
                barrier.wait().unwrap();
                assert_eq!(count.load(Ordering::Relaxed) as usize, N * round as usize);
            }
        }
    });
    assert!(!barrier.is_broken());
}

#[test]
fn test_barrier() {
    let _watchdog = watchdog();
    in_lockstep(1);
}

#[test]
fn test_barrier_10() {
    let _watchdog = watchdog();
    in_lockstep(10);
}

#[test]
fn test_wait_return() {
    let _watchdog = watchdog();
    let barrier = Barrier::new(N);
    for _ in 0..20 {
        let results = party(|_| barrier.wait().unwrap());
        let mut indices: Vec<_> = results.iter().map(BarrierWaitResult::index).collect();
        indices.sort();
        assert_eq!(indices, (0..N).collect::<Vec<_>>());
        assert_eq!(results.iter().filter(|result| result.is_leader()).count(), 1);
    }
}

#[test]
fn test_action() {
    let _watchdog = watchdog();
    let (barrier, runs) = (Barrier::new(N), AtomicU32::new(0));
    let results = party(|_| {
        let passed = barrier
            .wait_with(|| {
                runs.fetch_add(1, Ordering::Relaxed);
            })
            .unwrap();
        assert_eq!(runs.load(Ordering::Relaxed), 1, "before anybody goes on");
        passed
    });
    assert_eq!(results.iter().filter(|result| result.is_leader()).count(), 1);
}

#[test]
fn test_abort() {
    let _watchdog = watchdog();
    let barrier = Barrier::new(N);
    let results = party(|n| {
        if n == 0 {
            until_waiting(&barrier, N - 1);
            barrier.abort();
            return Err(BarrierError::Broken);
        }
        barrier.wait()
    });
    assert!(results.iter().all(|result| *result == Err(BarrierError::Broken)));
    assert!(barrier.is_broken());
    assert_eq!(barrier.wait(), Err(BarrierError::Broken));
}

#[test]
fn test_reset() {
    let _watchdog = watchdog();
    let barrier = Barrier::new(N);
    let results = party(|n| {
        let first = if n == 0 {
            until_waiting(&barrier, N - 1);
            barrier.reset();
            Err(BarrierError::Broken)
        } else {
            barrier.wait()
        };
        (first, barrier.wait())
    });
    assert!(results.iter().all(|(first, second)| *first == Err(BarrierError::Broken) && second.is_ok()));
    assert!(!barrier.is_broken());
}

#[test]
fn test_abort_and_reset() {
    let _watchdog = watchdog();
    let (barrier, other) = (Barrier::new(N), Barrier::new(N));
    let results = party(|n| {
        let first = if n == 0 {
            until_waiting(&barrier, N - 1);
            barrier.abort();
            Err(BarrierError::Broken)
        } else {
            barrier.wait()
        };
        if other.wait().unwrap().is_leader() {
            barrier.reset();
        }
        other.wait().unwrap();
        (first, barrier.wait())
    });
    assert!(results.iter().all(|(first, second)| *first == Err(BarrierError::Broken) && second.is_ok()));
}

#[test]
fn test_timeout() {
    let _watchdog = watchdog();
    let barrier = Barrier::new(N);
    let results = party(|n| {
        if n == 0 {
            // Too late.
            while !barrier.is_broken() {
                thread::yield_now();
            }
        }
        barrier.wait_timeout(SHORT)
    });
    assert_eq!(results[0], Err(BarrierError::Broken));
    let timed_out = |result: &&Result<_, _>| **result == Err(BarrierError::TimedOut);
    assert!(results.iter().filter(timed_out).count() >= 1);
    assert!(results.iter().all(Result::is_err));
}

#[test]
fn test_single_thread() {
    let barrier = Barrier::new(1);
    for _ in 0..3 {
        let passed = barrier.wait().unwrap();
        assert!(passed.is_leader() && passed.index() == 0);
    }
    assert!(barrier.wait_until(Instant::now()).is_ok(), "all are there");
}

#[test]
fn test_thousand() {
    let _watchdog = watchdog();
    const ROUNDS: u64 = 1000;
    let barrier = Shared::new(Barrier::new(N)).unwrap();
    let turn = Shared::new(AtomicU64::new(0)).unwrap();
    let peers: Vec<_> = (0..N as u64)
        .map(|n| Peer::start(&Orders::Rounds(barrier.clone(), turn.clone(), n, ROUNDS), None))
        .collect();
    for peer in peers {
        assert_eq!(peer.report(), Some(true));
    }
    assert_eq!(turn.load(Ordering::Relaxed), ROUNDS * N as u64);
}

#[test]
fn more_threads_than_parties_pass_in_groups() {
    let _watchdog = watchdog();
    const ROUNDS: u32 = 1000;
    let (barrier, passed, led) = (Barrier::<2>::with_limit(2), AtomicU32::new(0), AtomicU32::new(0));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Ok(round) = barrier.wait() {
                    passed.fetch_add(1, Ordering::Relaxed);
                    if round.is_leader() && led.fetch_add(1, Ordering::Relaxed) + 1 == ROUNDS {
                        barrier.abort();
                    }
                }
            });
        }
    });
    assert_eq!(passed.into_inner(), 2 * led.into_inner(), "each round has a leader and another");
}

#[test]
fn a_reset_in_the_middle_of_rounds_leaves_nobody_behind() {
    let _watchdog = watchdog();
    let (barrier, left) = (Barrier::new(2), AtomicU32::new(2));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut passed = 0;
                while passed < 300 {
                    match barrier.wait_timeout(Duration::from_secs(30)) {
                        Ok(_) => passed += 1,
                        Err(error) => assert_eq!(error, BarrierError::Broken),
                    }
                }
                left.fetch_sub(1, Ordering::Relaxed);
                // For the other, which may have missed rounds in resets.
                while left.load(Ordering::Relaxed) > 0 {
                    let _ = barrier.wait_timeout(Duration::from_millis(1));
                    barrier.reset();
                }
            });
        }
        while left.load(Ordering::Relaxed) == 2 {
            barrier.abort();
            barrier.reset();
            thread::sleep(Duration::from_micros(200));
        }
    });
}

#[test]
fn an_action_that_panics_breaks_the_barrier() {
    let _watchdog = watchdog();
    let barrier = Barrier::new(N);
    let results = party(|_| {
        let wait = || barrier.wait_with(|| std::panic::resume_unwind(Box::new(())));
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(wait))
    });
    assert_eq!(results.iter().filter(|result| result.is_err()).count(), 1, "the leader's");
    assert!(results.iter().flatten().all(|result| *result == Err(BarrierError::Broken)));
    barrier.reset();
    assert!(party(|_| barrier.wait()).iter().all(Result::is_ok));
}

#[test]
fn an_abort_during_the_action_breaks_the_round() {
    let barrier = Barrier::new(1);
    assert_eq!(barrier.wait_with(|| barrier.abort()), Err(BarrierError::Broken));
    assert_eq!(barrier.wait(), Err(BarrierError::Broken));
    barrier.reset();
    assert_eq!(barrier.wait_with(|| barrier.reset()), Err(BarrierError::Broken));
    assert!(barrier.wait_with_timeout(SHORT, || ()).is_ok());
}

#[test]
fn whoever_gives_up_during_the_action_of_others_leaves_their_round_alone() {
    let _watchdog = watchdog();
    let (barrier, is_acting, may_end) = (Barrier::new(2), Event::new(), Event::new());
    thread::scope(|scope| {
        let parties = [(); 2].map(|()| {
            scope.spawn(|| {
                barrier.wait_with(|| {
                    is_acting.set();
                    may_end.wait();
                })
            })
        });
        is_acting.wait();
        assert_eq!(barrier.wait_timeout(SHORT), Err(BarrierError::TimedOut));
        may_end.set();
        assert!(parties.map(|party| party.join().unwrap()).iter().all(Result::is_ok));
    });
    assert!(!barrier.is_broken());
}

#[test]
fn a_number_of_parties_that_makes_no_sense_is_an_error() {
    for parties in [0, 65, usize::MAX] {
        assert!(Barrier::try_new(parties).unwrap_err().is_out_of_range());
    }
    let error = Barrier::<8>::try_with_limit(0).unwrap_err();
    assert_eq!(error.to_string(), "the number of parties, at least 1, is 0; the limit is 8");
    assert_eq!(Barrier::<100>::try_with_limit(100).unwrap().parties(), 100);
}

#[test]
#[should_panic(expected = "a barrier has 1 to MAX parties")]
fn a_barrier_without_parties_panics() {
    let _ = Barrier::new(0);
}

#[test]
fn debug_shows_how_it_stands() {
    let barrier = Barrier::new(2);
    assert_eq!(format!("{barrier:?}"), "Barrier { parties: 2, waiting: 0, broken: false }");
    barrier.abort();
    assert_eq!(format!("{barrier:?}"), "Barrier { parties: 2, waiting: 0, broken: true }");
}

// ---- processes

#[derive(Serialize, Deserialize)]
enum Orders {
    /// So many rounds, in which each party has its turn.
    Rounds(Shared<Barrier>, Shared<AtomicU64>, u64, u64),
    /// Wait, say how it ended.
    Wait(Shared<Barrier>),
    /// The same, with an action that says so and never ends.
    Act(Shared<Barrier>),
}

#[test]
fn child() {
    common::child(|orders: Orders, reporter: &Reporter| match orders {
        Orders::Rounds(barrier, turn, me, rounds) => {
            for _ in 0..rounds {
                for n in 0..barrier.parties() as u64 {
                    if n == me {
                        turn.fetch_add(1, Ordering::Relaxed);
                    }
                    barrier.wait().unwrap();
                    assert_eq!(turn.load(Ordering::Relaxed) % 5, (n + 1) % 5);
                    barrier.wait().unwrap();
                }
            }
            reporter.report(&true);
        }
        Orders::Wait(barrier) => {
            let result = barrier.wait();
            reporter.report(&(result == Err(BarrierError::Broken)));
        }
        Orders::Act(barrier) => {
            let _ = barrier.wait_with(|| {
                reporter.report(&true);
                loop {
                    thread::park();
                }
            });
        }
    });
}

#[test]
fn a_party_that_dies_while_it_waits_breaks_the_barrier_for_all() {
    let _watchdog = watchdog();
    let barrier = Shared::new(Barrier::new(4)).unwrap();
    let victim = Peer::start(&Orders::Wait(barrier.clone()), None);
    let witness = Peer::start(&Orders::Wait(barrier.clone()), None);
    until_waiting(&barrier, 2);
    thread::scope(|scope| {
        let thread = scope.spawn(|| barrier.wait());
        until_waiting(&barrier, 3);
        victim.kill();
        assert_eq!(thread.join().unwrap(), Err(BarrierError::Broken));
        assert_eq!(witness.report(), Some(true));
    });
    assert!(barrier.is_broken());
}

#[test]
fn the_last_party_does_not_pass_with_the_dead() {
    let _watchdog = watchdog();
    let barrier = Shared::new(Barrier::new(2)).unwrap();
    let victim = Peer::start(&Orders::Wait(barrier.clone()), None);
    until_waiting(&barrier, 1);
    victim.kill();
    assert_eq!(barrier.wait(), Err(BarrierError::Broken));
}

#[test]
fn a_barrier_that_a_death_broke_can_be_reset() {
    let _watchdog = watchdog();
    let barrier = Shared::new(Barrier::new(2)).unwrap();
    let victim = Peer::start(&Orders::Wait(barrier.clone()), None);
    until_waiting(&barrier, 1);
    victim.kill();
    assert_eq!(barrier.wait(), Err(BarrierError::Broken));
    barrier.reset();
    let peer = Peer::start(&Orders::Wait(barrier.clone()), None);
    assert!(barrier.wait().is_ok());
    assert_eq!(peer.report(), Some(false));
}

#[test]
fn a_leader_that_dies_in_the_action_breaks_the_barrier() {
    let _watchdog = watchdog();
    let barrier = Shared::new(Barrier::new(2)).unwrap();
    thread::scope(|scope| {
        let thread = scope.spawn(|| barrier.wait());
        until_waiting(&barrier, 1);
        let leader = Peer::start(&Orders::Act(barrier.clone()), None);
        assert_eq!(leader.report(), Some(true));
        leader.kill();
        assert_eq!(thread.join().unwrap(), Err(BarrierError::Broken));
    });
}

#[test]
fn a_party_that_dies_before_it_comes_is_waited_for_until_the_deadline() {
    let _watchdog = watchdog();
    let barrier = Shared::new(Barrier::new(2)).unwrap();
    assert_eq!(barrier.wait_timeout(SHORT), Err(BarrierError::TimedOut));
    assert_eq!(barrier.wait_timeout(SHORT), Err(BarrierError::Broken));
}
