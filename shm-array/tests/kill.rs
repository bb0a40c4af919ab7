//! Processes that use locks die at random moments, and what the locks promise stays true.
//!
//! For each kind of lock a *zygote* process forks a few victims, which take the lock, do something under it that takes
//! a while, and give it back, for ever. The zygote kills one of them, mostly the one inside, after a random number of
//! operations, and forks another in its place. This process plays along and is never killed. Everybody checks, at each
//! acquisition, what `kill/games.rs` says must hold. A lock that is wedged stops the operations; the zygote says so, and the
//! watchdog ends the test.
//!
//! `KILLS` sets the number of kills in all games together (default 10,000), `KILL_SEED` the choice of victims and moments.
//! How soon a sleeper learns of a death is printed, not asserted.
#![cfg(not(loom))]
#![allow(unsafe_code, reason = "forks, and shares a table of its own")]

mod common;
#[path = "kill/games.rs"]
mod games;

use common::{Peer, Reporter, child as child_of_test, watchdog_after};
use games::{Game, PARTIES, PERMITS, Player, SEATS, Store, Table, play_reentrant};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, set_parent_process_death_signal, waitpid};
use serde::{Deserialize, Serialize};
use shm_array::{Barrier, Condvar, Mutex, ReentrantMutex, RwLock, Semaphore, Shared};
use shm_core::segment::sweep_all;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Victims of a game at a time; the last seat is this process's.
const VICTIMS: usize = SEATS - 1;
/// Victims that were killed and are not yet collected.
const MOST_DYING: usize = 8;
/// Between two operations of whoever is never killed: the processors are for the victims.
const PAUSE: Duration = Duration::from_micros(200);
/// Nothing at all happens for so long: the lock is wedged, and its state is printed before the watchdog barks.
const STANDSTILL: Duration = Duration::from_secs(20);
const DEFAULT_KILLS: u64 = 10_000;

pub(crate) struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % limit
    }
}

#[derive(Serialize, Deserialize)]
enum Orders {
    /// Plays the game with victims that are killed, and reports when so many have been.
    Zygote { game: Game, table: Shared<Table>, kills: u64, seed: u64 },
    /// Takes the lock, says so, and waits for its end.
    Hold { lock: Shared<Mutex<u64>>, held: Shared<AtomicU64> },
}

#[test]
fn child() {
    child_of_test(|orders, reporter: &Reporter| match orders {
        Orders::Zygote { game, table, kills, seed } => {
            reporter.report(&Zygote::start(&game, &table, seed).kill_all(kills));
        }
        Orders::Hold { lock, held } => {
            let _guard = lock.lock().expect("the first");
            held.store(1, Ordering::SeqCst);
            loop {
                std::thread::park();
            }
        }
    });
}

/// A forked process that plays until it is killed.
struct Victim(Pid);

impl Victim {
    fn fork(game: &Game, table: &Shared<Table>, player: Player, seed: u64) -> Self {
        // SAFETY: the child stays on the thread that forked, in the code below.
        let id = unsafe { libc::fork() };
        if id == 0 {
            let play = std::panic::AssertUnwindSafe(|| {
                set_parent_process_death_signal(Some(Signal::KILL)).expect("dies with its parent");
                // The killer should not have to queue for a processor behind its victims.
                rustix::process::nice(10).expect("a process may step back");
                let mut dice = Dice::new(seed);
                loop {
                    game.play(table, player, &mut dice);
                }
            });
            let _ = std::panic::catch_unwind(play);
            // SAFETY: ends the child without running what belongs to its parent. It has said what is wrong.
            unsafe { libc::_exit(101) };
        }
        Self(Pid::from_raw(id).expect("forked"))
    }

    fn kill(&self) {
        kill_process(self.0, Signal::KILL).expect("alive, or not yet collected");
    }

    fn has_ended(&self) -> bool {
        let Some((_, status)) = waitpid(Some(self.0), WaitOptions::NOHANG).expect("a child") else {
            return false;
        };
        let signal = status.terminating_signal();
        assert_eq!(signal, Some(Signal::KILL.as_raw()), "a victim found something wrong: {status:?}");
        true
    }
}

/// Forks victims and kills them.
struct Zygote<'a> {
    game: &'a Game,
    /// The handle: only through it can a forked child get at the table.
    table: &'a Shared<Table>,
    dice: Dice,
    /// By seat.
    victims: Vec<(Player, Victim)>,
    /// Killed, and not yet collected: a process needs its time to die.
    dying: Vec<Victim>,
    incarnations: u64,
}

impl<'a> Zygote<'a> {
    fn start(game: &'a Game, table: &'a Shared<Table>, seed: u64) -> Self {
        let (victims, dying, dice) = (Vec::new(), Vec::new(), Dice::new(seed));
        let mut zygote = Self { game, table, dice, victims, dying, incarnations: 0 };
        for seat in 0..VICTIMS {
            let victim = zygote.victim(seat);
            zygote.victims.push(victim);
        }
        zygote
    }

    fn victim(&mut self, seat: usize) -> (Player, Victim) {
        self.incarnations += 1;
        let player = Player { seat, incarnation: self.incarnations };
        (player, Victim::fork(self.game, self.table, player, self.dice.below(1 << 30)))
    }

    /// Kills so many. Returns how many of them seemed to be inside.
    fn kill_all(mut self, kills: u64) -> u64 {
        let mut inside = 0;
        while self.incarnations < kills {
            self.wait_for_operations();
            let aim = self.table.seat_inside().filter(|&seat| seat < VICTIMS && self.dice.below(4) > 0);
            inside += u64::from(aim.is_some());
            let seat = aim.unwrap_or_else(|| usize::try_from(self.dice.below(VICTIMS as u64)).expect("few"));
            let (player, victim) = self.victims.remove(seat);
            self.kill(player, victim);
            let successor = self.victim(seat);
            self.victims.insert(seat, successor);
            while self.dying.len() > MOST_DYING {
                self.collect();
            }
        }
        for (player, victim) in std::mem::take(&mut self.victims) {
            self.kill(player, victim);
        }
        while !self.dying.is_empty() {
            self.collect();
        }
        inside
    }

    fn kill(&mut self, player: Player, victim: Victim) {
        self.table.doom(player);
        victim.kill();
        self.dying.push(victim);
    }

    /// A random number of operations, or none. They must go on.
    fn wait_for_operations(&mut self) {
        let start = self.table.operations();
        let wanted = start + self.dice.below(8);
        let mut since = Instant::now();
        while self.table.operations() < wanted {
            if since.elapsed() > STANDSTILL {
                eprintln!("wedged after {} victims? {:x?}", self.incarnations, (self.game, self.table));
                since = Instant::now();
            }
            self.collect();
            std::thread::sleep(Duration::from_micros(20));
        }
    }

    /// Collects whoever has ended. Mostly the deaths are told to whoever sleeps; now and then the sleepers must find out.
    fn collect(&mut self) {
        let before = self.dying.len();
        self.dying.retain(|victim| !victim.has_ended());
        if self.dying.len() < before && self.dice.below(32) > 0 {
            sweep_all();
        }
    }
}

fn number_from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// Kills as many victims of the game as its share of all kills is, while this process plays along.
fn kill_players(game: &Game, share: u64, survive: impl FnOnce(&Table, &mut Peer)) {
    let _dog = watchdog_after(Duration::from_secs(600));
    let kills = (number_from_env("KILLS", DEFAULT_KILLS) * share / 100).max(VICTIMS as u64);
    let table = Shared::new(Table::default()).expect("memory");
    let seed = number_from_env("KILL_SEED", 1) + share;
    let orders = Orders::Zygote { game: game.clone(), table: table.clone(), kills, seed };
    let start = Instant::now();
    let mut zygote = Peer::start(&orders, None);
    survive(&table, &mut zygote);
    let inside: u64 = zygote.report().expect("the zygote lives on");
    assert!(zygote.wait().success());
    let (operations, warnings) = (table.operations(), table.warnings());
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{kills} killed, {inside} of them inside, {warnings} warnings, {operations} operations, {seconds:.1} s"
    );
}

const SURVIVOR: Player = Player { seat: VICTIMS, incarnation: 1 };

/// Plays until the zygote has ended.
fn play_along(game: &Game, table: &Table, zygote: &mut Peer) {
    let mut dice = Dice::new(7);
    while !zygote.has_ended() {
        game.play(table, SURVIVOR, &mut dice);
        std::thread::sleep(PAUSE);
    }
    game.play(table, SURVIVOR, &mut dice);
}

#[test]
fn a_mutex_survives_its_holders() {
    let lock = Shared::new(Mutex::new([0; 2])).expect("memory");
    let game = Game::Mutex(lock.clone());
    kill_players(&game, 30, |table, zygote| play_along(&game, table, zygote));
    assert!(lock.lock().is_ok());
}

/// Two threads of this process play along: what one inherits from the dead is not the other's.
#[test]
fn a_reentrant_mutex_survives_its_holders() {
    let lock = Shared::new(ReentrantMutex::new(<[AtomicU64; 2]>::default())).expect("memory");
    kill_players(&Game::Reentrant(lock.clone()), 10, |table, zygote| {
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for incarnation in [2, 3] {
                let (lock, is_over) = (&lock, &is_over);
                scope.spawn(move || {
                    let me = Player { incarnation, ..SURVIVOR };
                    let mut dice = Dice::new(incarnation);
                    while !is_over.load(Ordering::SeqCst) {
                        play_reentrant(lock, table, me, &mut dice);
                        std::thread::sleep(PAUSE);
                    }
                });
            }
            while !zygote.has_ended() {
                std::thread::sleep(Duration::from_millis(1));
            }
            is_over.store(true, Ordering::SeqCst);
        });
    });
    assert!(lock.lock().is_ok());
}

#[test]
fn a_rwlock_survives_readers_and_writers() {
    let lock = Shared::new(RwLock::new([0; 2])).expect("memory");
    let game = Game::RwLock(lock.clone());
    kill_players(&game, 30, |table, zygote| play_along(&game, table, zygote));
    assert!(lock.write().is_ok());
}

#[test]
fn a_semaphore_gets_all_permits_back() {
    let semaphore = Shared::new(Semaphore::with_limit(PERMITS)).expect("memory");
    let game = Game::Semaphore(semaphore.clone());
    kill_players(&game, 15, |table, zygote| play_along(&game, table, zygote));
    assert_eq!(semaphore.available(), PERMITS);
}

#[test]
fn a_barrier_survives_its_parties() {
    let barrier = Shared::new(Barrier::with_limit(PARTIES)).expect("memory");
    let game = Game::Barrier(barrier.clone());
    kill_players(&game, 5, |table, zygote| play_along(&game, table, zygote));
    barrier.reset();
    assert_eq!((barrier.n_waiting(), barrier.is_broken()), (0, false));
}

/// One thread of this process puts items in, one takes them out, and neither waits in vain.
#[test]
fn condition_variables_survive_waiters_and_notifiers() {
    let store = Store {
        items: Shared::new(Mutex::new([0; 2])).expect("memory"),
        not_empty: Shared::new(Condvar::new()).expect("memory"),
        not_full: Shared::new(Condvar::new()).expect("memory"),
        is_closed: Shared::new(AtomicU64::new(0)).expect("memory"),
    };
    let is_open = || store.is_closed.load(Ordering::SeqCst) == 0;
    kill_players(&Game::Condvar(store.clone()), 10, |table, zygote| {
        std::thread::scope(|scope| {
            for puts in [true, false] {
                let (store, is_open) = (&store, &is_open);
                scope.spawn(move || {
                    let me = Player { incarnation: 2 + u64::from(puts), ..SURVIVOR };
                    let mut dice = Dice::new(me.incarnation);
                    while is_open() {
                        store.change(puts, true, table, me, &mut dice);
                        std::thread::sleep(PAUSE);
                    }
                });
            }
            while !zygote.has_ended() {
                std::thread::sleep(Duration::from_millis(1));
            }
            store.close(table, SURVIVOR);
        });
    });
}

/// How soon somebody who sleeps on a lock learns that its holder has died, without anybody who sweeps.
#[test]
fn sleepers_learn_of_a_death() {
    let _dog = watchdog_after(Duration::from_secs(600));
    let mut latencies: Vec<Duration> = Vec::new();
    for _ in 0..5 {
        let samples = [(); 10].map(|()| std::thread::spawn(one_latency));
        latencies.extend(samples.map(|sample| sample.join().expect("no panic")));
    }
    latencies.sort_unstable();
    let at = |percent: usize| latencies[(latencies.len() - 1) * percent / 100];
    println!(
        "a death is seen after {:?}, 90 % {:?}, 99 % {:?}, at most {:?}",
        at(50),
        at(90),
        at(99),
        at(100)
    );
}

fn one_latency() -> Duration {
    let lock = Shared::new(Mutex::new(0)).expect("memory");
    let held = Shared::new(AtomicU64::new(0)).expect("memory");
    let holder = Peer::start(&Orders::Hold { lock: lock.clone(), held: held.clone() }, None);
    while held.load(Ordering::SeqCst) == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let sleeper = std::thread::spawn(move || {
        let died = lock.lock().is_err_and(|error| error.is_owner_died());
        (died, Instant::now())
    });
    // Most likely it sleeps by then; if it does not, it learns sooner.
    std::thread::sleep(Duration::from_millis(5));
    let start = Instant::now();
    holder.kill();
    let (died, end) = sleeper.join().expect("no panic");
    assert!(died, "taken over");
    end - start
}
