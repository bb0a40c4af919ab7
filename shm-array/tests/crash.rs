//! A process dies at each named crash point, and the survivors go on.
//!
//! For every crash point in the sources a *victim* is sent there and dies by SIGKILL. Some points are reached only where
//! somebody has died before: then *forerunners* die first. Where it matters, a thread of this process already waits when
//! the victim dies. Then the survivors are told what they must be told (that the owner died, or nothing), and after that
//! everything works here and in a new process: nobody hangs, no permit is lost, nothing is torn.
//!
//! The points of the arena are played in `arena.rs`.
#![cfg(all(feature = "crash-points", not(loom)))]

mod common;
#[path = "crash/deeds.rs"]
mod deeds;

use common::{Peer, child as child_of_test, was_killed, watchdog_after};
use deeds::{Deed, End, Locks};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

#[derive(Serialize, Deserialize)]
enum Orders {
    Do {
        locks: Locks,
        deed: Deed,
        stays_inside: bool,
    },
    /// Checks that everything works.
    Work {
        locks: Locks,
    },
}

#[test]
fn child() {
    child_of_test(|orders, reporter| match orders {
        Orders::Do { locks, deed, stays_inside } => {
            let end = locks.do_it(deed, stays_inside.then_some(reporter));
            println!("{deed:?} ends: {end:?}");
        }
        Orders::Work { locks } => locks.work(),
    });
}

/// What this process holds while somebody dies, so that he gets where he should.
#[derive(Clone, Copy, Debug)]
enum Held {
    Nothing,
    TheMutex,
    AShareOfTheRwLock,
    AllPermits,
    AllPermitsButOne,
}

/// How somebody dies.
#[derive(Clone, Copy, Debug)]
struct Death<'a> {
    deed: Deed,
    point: &'a str,
    held: Held,
}

/// What happens, and what the survivors are told.
#[derive(Clone, Debug)]
struct Scenario<'a> {
    forerunners: Vec<Death<'a>>,
    victim: Death<'a>,
    /// What happens while the victim is inside, before it goes on to its death.
    meanwhile: Option<Meanwhile<'a>>,
    /// What the survivors do afterwards, and what they are told.
    after: Vec<(Deed, End)>,
}

#[derive(Clone, Copy, Debug)]
enum Meanwhile<'a> {
    /// A thread of this process begins to wait, and is told this in the end.
    Waits(Deed, End),
    /// Somebody else dies.
    Dies(Death<'a>),
}

impl<'a> Death<'a> {
    fn of(deed: Deed, point: &'a str) -> Self {
        Self { deed, point, held: Held::Nothing }
    }

    fn while_held(self, held: Held) -> Self {
        Self { held, ..self }
    }

    /// Sends a child to its death. `meanwhile` runs when it is inside, if it says so.
    #[track_caller]
    fn happens(self, locks: &Locks, meanwhile: Option<&dyn Fn()>) {
        let mutex = matches!(self.held, Held::TheMutex).then(|| locks.mutex.lock().expect("free"));
        let reader = matches!(self.held, Held::AShareOfTheRwLock).then(|| locks.rwlock.read().expect("free"));
        let permits = match self.held {
            Held::AllPermits => deeds::PERMITS,
            Held::AllPermitsButOne => deeds::PERMITS - 1,
            _ => 0,
        };
        let permits: Vec<_> = (0..permits).map(|_| locks.semaphore.acquire().expect("free")).collect();
        let orders = Orders::Do { locks: locks.clone(), deed: self.deed, stays_inside: meanwhile.is_some() };
        let peer = Peer::start(&orders, Some(self.point));
        if let Some(meanwhile) = meanwhile {
            peer.report::<bool>().expect("the victim gets inside");
            meanwhile();
        }
        assert!(was_killed(peer.wait()), "the child does not die at {}", self.point);
        drop((mutex, reader, permits));
    }
}

impl<'a> Scenario<'a> {
    fn of(deed: Deed, point: &'a str) -> Self {
        let victim = Death::of(deed, point);
        Self { forerunners: Vec::new(), victim, meanwhile: None, after: Vec::new() }
    }

    fn behind(mut self, deed: Deed, point: &'a str) -> Self {
        self.forerunners.push(Death::of(deed, point));
        self
    }

    fn while_held(self, held: Held) -> Self {
        Self { victim: self.victim.while_held(held), ..self }
    }

    fn waiting(self, deed: Deed, end: End) -> Self {
        Self { meanwhile: Some(Meanwhile::Waits(deed, end)), ..self }
    }

    fn while_another_dies(self, deed: Deed, point: &'a str) -> Self {
        Self { meanwhile: Some(Meanwhile::Dies(Death::of(deed, point))), ..self }
    }

    fn then(mut self, deed: Deed, end: End) -> Self {
        self.after.push((deed, end));
        self
    }

    fn play(&self) {
        println!("{self:?}");
        let locks = Locks::new();
        for forerunner in &self.forerunners {
            forerunner.happens(&locks, None);
        }
        match self.meanwhile {
            None => self.victim.happens(&locks, None),
            Some(Meanwhile::Dies(death)) => {
                let dies = || {
                    death.happens(&locks, None);
                    locks.go.set();
                };
                self.victim.happens(&locks, Some(&dies));
            }
            Some(Meanwhile::Waits(deed, end)) => std::thread::scope(|scope| {
                let locks = &locks;
                let waits = || {
                    scope.spawn(move || {
                        assert_eq!(locks.do_it(deed, None), end, "told to a waiting {deed:?}")
                    });
                    // Most likely it sleeps by then. If it does not, it comes later, and is told the same.
                    std::thread::sleep(Duration::from_millis(5));
                    locks.go.set();
                };
                self.victim.happens(locks, Some(&waits));
            }),
        }
        for (deed, end) in &self.after {
            assert_eq!(locks.do_it(*deed, None), *end, "told to {deed:?} afterwards");
        }
        locks.work();
        let peer = Peer::start(&Orders::Work { locks: locks.clone() }, None);
        assert!(peer.wait().success(), "what works here does not work in another process");
    }
}

/// The ways in which a victim gets to a crash point; none for a point that nobody thought of.
fn scenarios(point: &str) -> Vec<Scenario<'_>> {
    let family = point.split('.').next().expect("a name");
    match family {
        "lock" | "reentrant" => of_mutexes(point),
        "rwlock" => of_rwlock(point),
        "semaphore" | "line" | "signal" | "event" => of_permits(point),
        "condvar" => of_condvar(point),
        "once" | "barrier" => of_once_and_barrier(point),
        "latch" => vec![Scenario::of(Deed::SetValue, point).then(Deed::SetValue, End::Fine)],
        _ => Vec::new(),
    }
}

fn of_mutexes(point: &str) -> Vec<Scenario<'_>> {
    let (here, died) = (Scenario::of, End::OwnerDied);
    match point {
        "lock.taken" => vec![
            here(Deed::Lock, point).then(Deed::Lock, died),
            here(Deed::LockTwice, point).then(Deed::LockTwice, died),
        ],
        "lock.announced" => {
            vec![here(Deed::Lock, point).while_held(Held::TheMutex).then(Deed::Lock, End::Fine)]
        }
        "lock.taken_over" => {
            vec![here(Deed::Lock, point).behind(Deed::Lock, "lock.taken").then(Deed::Lock, died)]
        }
        "lock.releasing" => vec![
            here(Deed::Lock, point).waiting(Deed::Lock, died),
            here(Deed::LockTwice, point).then(Deed::LockTwice, died),
        ],
        "lock.released" => vec![
            here(Deed::Lock, point).waiting(Deed::Lock, End::Fine),
            here(Deed::LockTwice, point).then(Deed::LockTwice, End::Fine),
        ],
        "lock.retired" => vec![
            here(Deed::LockAndGiveUp, point)
                .behind(Deed::Lock, "lock.taken")
                .then(Deed::Lock, End::Unrecoverable)
                .then(Deed::RenewMutex, End::Fine),
        ],
        "lock.renewing" => vec![
            here(Deed::RenewMutex, point)
                .behind(Deed::Lock, "lock.taken")
                .behind(Deed::LockAndGiveUp, "lock.retired")
                .then(Deed::Lock, died),
        ],
        "reentrant.entered" | "reentrant.left" => {
            vec![here(Deed::LockTwice, point).then(Deed::LockTwice, died)]
        }
        _ => Vec::new(),
    }
}

fn of_rwlock(point: &str) -> Vec<Scenario<'_>> {
    let (here, died) = (Scenario::of, End::OwnerDied);
    match point {
        "rwlock.read.announced" | "rwlock.read.raised" | "rwlock.read.inside" => {
            vec![here(Deed::Read, point).then(Deed::Write, End::Fine)]
        }
        "rwlock.read.leaving" | "rwlock.read.lowered" => {
            vec![here(Deed::Read, point).waiting(Deed::Write, End::Fine)]
        }
        "rwlock.read.freeing" => vec![
            here(Deed::Read, point).behind(Deed::Write, "rwlock.write.pending").then(Deed::Write, End::Fine),
            here(Deed::Read, point).behind(Deed::Write, "rwlock.write.pending").then(Deed::Read, End::Fine),
        ],
        "rwlock.write.pending" => vec![
            here(Deed::Write, point).then(Deed::Write, End::Fine),
            here(Deed::TryWrite, point).then(Deed::Read, End::Fine),
        ],
        "rwlock.write.inside" => vec![
            here(Deed::Write, point).then(Deed::Read, End::WriterDied).then(Deed::Write, died),
            here(Deed::TryWrite, point).then(Deed::TryWrite, died),
        ],
        "rwlock.write.leaving" => vec![
            here(Deed::Write, point).waiting(Deed::Write, died),
            here(Deed::Write, point).waiting(Deed::Read, End::WriterDied).then(Deed::Write, died),
        ],
        "rwlock.write.left" => vec![
            here(Deed::Write, point).waiting(Deed::Write, End::Fine),
            here(Deed::Write, point).waiting(Deed::Read, End::Fine),
            here(Deed::WriteAndGiveUp, point)
                .behind(Deed::Write, "rwlock.write.inside")
                .then(Deed::Read, End::Unrecoverable)
                .then(Deed::Write, End::Unrecoverable)
                .then(Deed::RenewRwLock, End::Fine),
        ],
        "rwlock.write.forgetting" => {
            vec![
                here(Deed::Write, point)
                    .behind(Deed::Read, "rwlock.read.inside")
                    .then(Deed::Write, End::Fine),
            ]
        }
        "rwlock.write.downgrading" => vec![here(Deed::Downgrade, point).then(Deed::Write, died)],
        "rwlock.write.taken_over" => {
            vec![here(Deed::Write, point).behind(Deed::Write, "rwlock.write.inside").then(Deed::Write, died)]
        }
        "rwlock.write.withdrawing" => vec![
            here(Deed::WriteShortly, point).while_held(Held::AShareOfTheRwLock).then(Deed::Read, End::Fine),
        ],
        "rwlock.renewing" => vec![
            here(Deed::RenewRwLock, point)
                .behind(Deed::Write, "rwlock.write.inside")
                .behind(Deed::WriteAndGiveUp, "rwlock.write.left")
                .then(Deed::Write, died),
        ],
        _ => Vec::new(),
    }
}

fn of_permits(point: &str) -> Vec<Scenario<'_>> {
    let here = Scenario::of;
    match point {
        "semaphore.taken" => vec![here(Deed::Acquire, point), here(Deed::ForgetAndRelease, point)],
        "semaphore.releasing" => vec![here(Deed::Acquire, point).waiting(Deed::Acquire, End::Fine)],
        "semaphore.released" => vec![here(Deed::Acquire, point), here(Deed::ForgetAndRelease, point)],
        "line.armed" => vec![
            here(Deed::Acquire, point).while_held(Held::AllPermits),
            here(Deed::Write, point).while_held(Held::AShareOfTheRwLock),
            here(Deed::PassBoth, point).then(Deed::PassBoth, End::Broken),
        ],
        // Whoever is woken is dead.
        "line.waking" => vec![
            here(Deed::Acquire, point)
                .while_held(Held::AllPermitsButOne)
                .while_another_dies(Deed::Acquire, "line.armed"),
            here(Deed::Read, point).while_another_dies(Deed::Write, "line.armed"),
            here(Deed::Write, point).while_another_dies(Deed::Read, "line.armed"),
        ],
        "signal.posted" => vec![here(Deed::Post, point).then(Deed::TakeUnit, End::Fine)],
        "signal.taken" => {
            vec![here(Deed::TakeUnit, point).behind(Deed::Post, "signal.posted").then(Deed::Post, End::Fine)]
        }
        "event.armed" => vec![here(Deed::WaitForEvent, point).then(Deed::SetEvent, End::Fine)],
        "event.set" => vec![here(Deed::SetEvent, point).then(Deed::WaitForEvent, End::Fine)],
        _ => Vec::new(),
    }
}

fn of_condvar(point: &str) -> Vec<Scenario<'_>> {
    let here = Scenario::of;
    let registered = "condvar.registered";
    match point {
        "condvar.registered" => vec![here(Deed::WaitForChange, point).then(Deed::Notify, End::Fine)],
        // A dead waiter is among those who wait.
        "condvar.counted" | "condvar.stepped" => {
            vec![here(Deed::Notify, point).behind(Deed::WaitForChange, registered)]
        }
        // A signal is given that nobody takes.
        "condvar.reset" => vec![
            here(Deed::WaitForChange, point)
                .behind(Deed::WaitForChange, registered)
                .behind(Deed::Notify, "condvar.counted"),
        ],
        "condvar.woken" => vec![
            here(Deed::WaitForChange, point)
                .behind(Deed::WaitForChange, registered)
                .behind(Deed::Notify, "condvar.counted"),
        ],
        _ => Vec::new(),
    }
}

fn of_once_and_barrier(point: &str) -> Vec<Scenario<'_>> {
    let here = Scenario::of;
    match point {
        "once.running" => vec![here(Deed::RunOnce, point).then(Deed::RunOnce, End::Fine)],
        // It was done, and nobody knows: so it is done again.
        "once.ending" => vec![here(Deed::RunOnce, point).waiting(Deed::RunOnce, End::Fine)],
        "once.ended" => vec![here(Deed::RunOnce, point).waiting(Deed::RunOnce, End::Fine)],
        // A party that died while it waited breaks it for those who wait with it, and one that died in the action too.
        "barrier.arrived" => vec![
            here(Deed::PassBoth, point).then(Deed::PassBoth, End::Broken),
            here(Deed::PassAlone, point).then(Deed::PassAlone, End::Broken),
        ],
        "barrier.acting" => vec![here(Deed::PassAloneActing, point).then(Deed::PassAlone, End::Broken)],
        // The round had passed.
        "barrier.swapped" => vec![here(Deed::PassAlone, point).then(Deed::PassAlone, End::Fine)],
        "barrier.leaving" | "barrier.left" => {
            vec![here(Deed::PassAlone, point).then(Deed::PassAlone, End::Fine)]
        }
        "barrier.forgetting" => vec![
            here(Deed::PassAlone, point)
                .behind(Deed::PassAlone, "barrier.leaving")
                .then(Deed::PassAlone, End::Fine),
        ],
        _ => Vec::new(),
    }
}

/// Names of all crash points in the sources of this crate.
fn points_in_sources() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("sources") {
            let path = entry.expect("sources").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("sources");
            let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            for call in lines.flat_map(|line| line.split("crash_point!(\"").skip(1)) {
                names.extend(call.split('"').next().map(str::to_owned));
            }
        }
    }
    names
}

/// Plays the scenarios of all points whose name begins so.
#[track_caller]
fn survive(families: &[&str]) {
    let _dog = watchdog_after(Duration::from_secs(120));
    let points = points_in_sources();
    let mine: Vec<_> =
        points.iter().filter(|point| families.iter().any(|family| is_of(point, family))).collect();
    assert!(!mine.is_empty(), "no points of {families:?}");
    for point in mine {
        let scenarios = scenarios(point);
        assert!(!scenarios.is_empty(), "no way to get to {point}");
        scenarios.iter().for_each(Scenario::play);
    }
}

fn is_of(point: &str, family: &str) -> bool {
    point.strip_prefix(family).is_some_and(|rest| rest.starts_with('.'))
}

#[test]
fn every_point_belongs_to_a_test() {
    let played_here = [MUTEXES, RWLOCK, PERMITS, CONDVAR, ONCE_AND_BARRIER, VALUE].concat();
    for point in points_in_sources() {
        let is_known = is_of(&point, "arena") || played_here.iter().any(|family| is_of(&point, family));
        assert!(is_known, "no test plays {point}");
    }
}

const MUTEXES: &[&str] = &["lock", "reentrant"];
const RWLOCK: &[&str] = &["rwlock"];
const PERMITS: &[&str] = &["semaphore", "line", "signal", "event"];
const CONDVAR: &[&str] = &["condvar"];
const ONCE_AND_BARRIER: &[&str] = &["once", "barrier"];
const VALUE: &[&str] = &["latch"];

#[test]
fn survivors_go_on_after_a_death_at_every_point_of_the_mutexes() {
    survive(MUTEXES);
}

#[test]
fn survivors_go_on_after_a_death_at_every_point_of_the_rwlock() {
    survive(RWLOCK);
}

#[test]
fn survivors_go_on_after_a_death_at_every_point_of_semaphores_signals_and_events() {
    survive(PERMITS);
}

#[test]
fn survivors_go_on_after_a_death_at_every_point_of_the_condvar() {
    survive(CONDVAR);
}

#[test]
fn survivors_go_on_after_a_death_at_every_point_of_once_and_barrier() {
    survive(ONCE_AND_BARRIER);
}

#[test]
fn survivors_go_on_after_a_death_at_every_point_of_a_value() {
    survive(VALUE);
}
