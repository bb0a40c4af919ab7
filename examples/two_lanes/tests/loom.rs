//! Models of the scheduler: the code of `src/lib.rs` as it is, with threads for processes.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --profile loom -p two_lanes --test loom`
#![cfg(loom)]

use ipc_queue::model::Process;
use loom::thread;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use two_lanes::{Lane, Mistake, Worker, two_lanes, two_lanes_with};

/// Explores `body` with at most so many preemptions.
fn explore(preemptions: usize, body: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.log = false;
    builder.check(body);
}

/// How often each task ran. Not loom's atomics: what a test notes is no part of what it tests.
#[derive(Clone, Default)]
struct Runs(Arc<[AtomicU32; 2]>);

impl Runs {
    fn run_all(&self, worker: &Worker) {
        while let Some(task) = worker.next() {
            let before = self.0[task as usize].fetch_add(1, Relaxed);
            assert_eq!(before, 0, "task {task} ran twice");
        }
    }

    fn count(&self) -> u32 {
        self.0.iter().map(|runs| runs.load(Relaxed)).sum()
    }
}

/// A worker in a process of its own, which runs every task until shutdown. Returns whether the process died.
fn start(process: &Process, runs: &Runs, worker: Worker) -> thread::JoinHandle<bool> {
    let (process, runs) = (process.clone(), runs.clone());
    thread::spawn(move || process.run(|| runs.run_all(&worker)).is_none())
}

// ---- normal life

/// Nobody else would wake the worker: a ring that is lost is a deadlock.
fn a_sleeping_worker_is_woken(mistake: Mistake) {
    let (client, worker) = two_lanes_with(1, mistake).unwrap();
    let worker = thread::spawn(move || worker.next());
    client.submit(Lane::Normal, 1).unwrap();
    assert_eq!(worker.join().unwrap(), Some(1));
}

fn every_task_runs_once_and_shutdown_ends_all_workers() {
    let (client, worker) = two_lanes(1).unwrap();
    let runs = Runs::default();
    let other = start(&Process::new(1), &runs, worker.clone());
    client.submit(Lane::Normal, 0).unwrap();
    client.submit(Lane::Urgent, 1).unwrap();
    drop(client);
    runs.run_all(&worker);
    other.join().unwrap();
    assert_eq!(runs.count(), 2);
}

/// Both clients' tasks run before anybody shuts down, though one may lie behind the other while that is being written.
fn two_clients_on_one_lane() {
    let (client, worker) = two_lanes(2).unwrap();
    let other = client.clone();
    let clients = [(client, 0), (other, 1)].map(|(client, task)| {
        thread::spawn(move || {
            client.submit(Lane::Normal, task).unwrap();
            client
        })
    });
    let mut tasks = [worker.next(), worker.next()];
    tasks.sort();
    assert_eq!(tasks, [Some(0), Some(1)]);
    // Until here they had not hung up.
    clients.into_iter().for_each(|client| drop(client.join().unwrap()));
    assert_eq!(worker.next(), None);
}

fn an_urgent_task_goes_first() {
    let (client, worker) = two_lanes(1).unwrap();
    client.submit(Lane::Normal, 0).unwrap();
    client.submit(Lane::Urgent, 1).unwrap();
    drop(client);
    assert_eq!([worker.next(), worker.next(), worker.next()], [Some(1), Some(0), None]);
}

// ---- deaths

/// A worker dies that has heard the only ring and holds no task: the other one runs the task.
fn a_worker_dies_with_a_ring(mistake: Mistake) {
    let (client, worker) = two_lanes_with(1, mistake).unwrap();
    let runs = Runs::default();
    let victim = start(&Process::dying_at(1, "lanes.heard", 1), &runs, worker.clone());
    let survivor = start(&Process::new(2), &runs, worker);
    client.submit(Lane::Normal, 0).unwrap();
    drop(client);
    victim.join().unwrap();
    survivor.join().unwrap();
    assert_eq!(runs.count(), 1, "a task is lost");
}

/// A worker dies at any step, in the queues' code and between: nothing is lost but what it had in hand.
fn a_worker_is_killed_anywhere() {
    let (client, worker) = two_lanes(1).unwrap();
    let runs = Runs::default();
    let victim = Process::new(1);
    let doomed = start(&victim, &runs, worker.clone());
    victim.kill();
    client.submit(Lane::Normal, 0).unwrap();
    client.submit(Lane::Urgent, 1).unwrap();
    drop(client);
    runs.run_all(&worker);
    let died = doomed.join().unwrap();
    let lost = 2 - runs.count();
    assert!(lost <= u32::from(died), "{lost} lost");
}

/// A client dies while it hands a task in, perhaps in front of another client's task: that one runs.
fn a_client_dies(victim: Process, rings: bool) {
    let (client, worker) = two_lanes(2).unwrap();
    let doomed = thread::spawn({
        let (victim, client) = (victim.clone(), client.clone());
        move || victim.run(|| client.submit(Lane::Normal, 0).unwrap()).is_none()
    });
    let other = thread::spawn(move || {
        victim.kill();
        client.submit(Lane::Normal, 1).unwrap();
        if doomed.join().unwrap() && rings {
            client.ring();
        }
        client
    });
    while worker.next() != Some(1) {}
    // Until here there was a client, so no shutdown.
    drop(other.join().unwrap());
}

/// A process that dies once it has claimed a slot of a queue, and leaves it so.
fn in_its_slot() -> Process {
    Process::dying_at(1, "ring.push.claimed", 1)
}

macro_rules! models {
    ($($name:ident within $preemptions:literal: $body:expr;)*) => {
        mod model {
            use super::*;
            $(
                #[test]
                fn $name() {
                    explore($preemptions, || $body);
                }
            )*
        }
    };
}

models! {
    a_sleeping_worker_is_woken within 2: super::a_sleeping_worker_is_woken(Mistake::None);
    every_task_runs_once_and_shutdown_ends_all_workers within 1: super::every_task_runs_once_and_shutdown_ends_all_workers();
    two_clients_on_one_lane within 2: super::two_clients_on_one_lane();
    an_urgent_task_goes_first within 2: super::an_urgent_task_goes_first();
    a_worker_dies_with_a_ring within 1: super::a_worker_dies_with_a_ring(Mistake::None);
    a_worker_is_killed_anywhere within 2: super::a_worker_is_killed_anywhere();
    a_client_dies_in_its_slot within 2: a_client_dies(in_its_slot(), true);
    a_client_is_killed_anywhere within 1: a_client_dies(Process::new(1), true);
}

/// What goes wrong if something is missing, and what loom says to it.
const CONTROLS: &[(&str, fn(), &str)] = &[
    ("the ring comes first", || a_sleeping_worker_is_woken(Mistake::RingsFirst), STUCK),
    ("no last look", || a_worker_dies_with_a_ring(Mistake::NoLastLook), "a task is lost"),
    ("no ring for a dead client", || a_client_dies(in_its_slot(), false), STUCK),
];
/// Loom's word for threads that nobody wakes.
const STUCK: &str = "deadlock";
/// The control that [`control`] runs, if it is run by the test below.
const CONTROL: &str = "TWO_LANES_CONTROL";

/// A deadlock in a model aborts the process, so each control has one of its own.
#[test]
fn each_mistake_is_caught() {
    for (name, _, symptom) in CONTROLS {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "control", "--nocapture"])
            .env(CONTROL, name)
            .env("RUST_BACKTRACE", "0")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&child.stderr);
        assert!(!child.status.success(), "no model notices: {name}");
        assert!(text.contains(symptom), "{name}: {symptom} expected, got {text}");
    }
}

/// One control; nothing unless the test above says which.
#[test]
fn control() {
    let Ok(wanted) = std::env::var(CONTROL) else { return };
    std::thread::spawn(|| {
        std::thread::sleep(std::time::Duration::from_secs(120));
        eprintln!("the watchdog barks");
        std::process::exit(86);
    });
    let (_, body, _) = CONTROLS.iter().find(|(name, ..)| *name == wanted).expect("a control of that name");
    explore(2, body);
}
