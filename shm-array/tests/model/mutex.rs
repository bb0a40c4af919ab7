//! The lock in one word: WAITERS | POISON | owner, as in `src/lock/raw.rs`.
//!
//! ```text
//! lock      CAS free -> me
//!           else look: free -> take (with WAITERS, once this call has seen or set it)
//!                      held: set WAITERS; owner dead -> take over by CAS on the word that was looked at
//!                                         else sleep while the word is unchanged, at most a slice; look again
//! unlock    swap with free, wake one if WAITERS was set; with out of use, wake all, if torn data was not repaired
//! ```
//!
//! Processes die before every step, and their indices are issued again. What must hold: one is inside at a time;
//! who follows a death inside is told so, and nobody else is; torn data is seen with a warning only; all survivors
//! get in or hear that the lock is out of use.

use crate::explore::{Model, Moves};
use crate::seats::{MAX, Seats, Token};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    /// Nobody takes the lock from a dead owner.
    NoTakeOver,
    /// Instead of asking the oracle, whoever has set WAITERS loses patience.
    Timeout,
    /// The oracle looks at the index only.
    GenerationIgnored,
    /// A take-over is a store, not a compare-and-swap on the word that was looked at.
    TakeOverStores,
    /// A take-over is silent.
    TakeOverForgetsDeath,
    /// A take-over drops WAITERS.
    TakeOverDropsWaiters,
    /// Whoever was woken takes the free word without WAITERS.
    WokenDropsWaiters,
    /// Whoever gives up does so at once, without setting WAITERS again.
    GivesUpSilently,
    /// A sleeper does not compare the word when it goes to sleep.
    SleepDoesNotCompare,
    /// The lock goes out of use, and one sleeper hears of it.
    RetireWakesOne,
    /// The owner writes itself in a step of its own, after the word was taken.
    OwnerWrittenLater,
}

/// When sleeps end by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slices {
    /// At any time.
    Anytime,
    /// Only where somebody died: the owner in the word, or whoever should have woken the sleeper. Then a wake-up
    /// that is lost without a death is a wedge.
    AfterDeath,
    /// Never.
    Never,
}

pub(crate) struct Mutex {
    pub(crate) processes: usize,
    pub(crate) rounds: u8,
    pub(crate) crashes: u8,
    pub(crate) reissues: u8,
    pub(crate) slices: Slices,
    /// Waiters may give up before they sleep.
    pub(crate) impatient: bool,
    /// Holders may panic, leave the data torn when they were warned, and renew what is out of use.
    pub(crate) careless: bool,
    pub(crate) control: Option<Control>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct State {
    word: Word,
    processes: [Process; MAX],
    seats: Seats,
    /// A holder died inside, and nobody was told yet.
    died_inside: bool,
    /// The data is half written.
    torn: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Word {
    owner: Owner,
    poison: bool,
    waiters: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Owner {
    Free,
    OutOfUse,
    /// Taken by nobody knows whom, in a control.
    Unknown,
    By(Token),
}

/// What a holder was told.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Data {
    Good,
    Poisoned,
    OwnerDied,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Process {
    rounds: u8,
    /// This call saw or set WAITERS.
    slept: bool,
    at: At,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum At {
    Outside,
    WriteOwner,
    Look,
    Take {
        seen: Word,
    },
    Announce {
        seen: Word,
    },
    AskOracle {
        seen: Word,
    },
    TakeOver {
        seen: Word,
    },
    Sleep {
        seen: Word,
    },
    /// `owed`: whoever should have woken it died.
    Asleep {
        owed: bool,
    },
    Renew {
        seen: Word,
    },
    Inside {
        data: Data,
    },
    Writing {
        data: Data,
    },
    Leave {
        to: Word,
    },
    Wake {
        all: bool,
    },
}

impl At {
    fn is_inside(self) -> bool {
        matches!(self, At::Inside { .. } | At::Writing { .. } | At::Leave { .. })
    }
}

const OUTSIDE: Process = Process { rounds: 0, slept: false, at: At::Outside };
const FREE: Word = Word { owner: Owner::Free, poison: false, waiters: false };
const POISONED: Word = Word { poison: true, ..FREE };
const OUT_OF_USE: Word = Word { owner: Owner::OutOfUse, ..FREE };

impl Mutex {
    fn is(&self, control: Control) -> bool {
        self.control == Some(control)
    }

    fn seems_dead(&self, state: &State, word: Word) -> bool {
        let Owner::By(owner) = word.owner else {
            return false;
        };
        match self.control {
            Some(Control::NoTakeOver) => false,
            Some(Control::Timeout) => true,
            Some(Control::GenerationIgnored) => state.seats.is_unoccupied(owner),
            _ => state.seats.is_dead(owner),
        }
    }

    /// `me` goes in: `next` has its word already.
    fn enter(&self, mut next: State, me: usize, at: At, owner_died: bool, moves: &mut Moves<State>) {
        let mut others = (0..MAX).filter(|&p| p != me && next.seats.lives(p));
        if others.any(|p| next.processes[p].at.is_inside()) {
            return moves.violation(me, "two are inside");
        }
        if owner_died != next.died_inside {
            return moves.violation(me, "a death inside and the next one's error do not match");
        }
        next.died_inside = false;
        next.processes[me].at = at;
        moves.step(me, next);
    }

    /// What `me` does next, having read the word as it is now.
    fn look(&self, mut next: State, me: usize, moves: &mut Moves<State>) {
        let seen = next.word;
        if self.careless && seen.owner == Owner::OutOfUse {
            let mut next = next;
            next.processes[me].at = At::Renew { seen };
            moves.step(me, next);
        }
        let process = &mut next.processes[me];
        process.at = match seen.owner {
            Owner::Free => At::Take { seen },
            Owner::OutOfUse => {
                *process = OUTSIDE;
                At::Outside
            }
            _ if !seen.waiters => At::Announce { seen },
            _ => {
                process.slept = true;
                At::AskOracle { seen }
            }
        };
        if self.impatient && self.is(Control::GivesUpSilently) && process.slept {
            let mut next = next;
            next.processes[me] = Process { rounds: next.processes[me].rounds - 1, ..OUTSIDE };
            moves.step(me, next);
        }
        moves.step(me, next);
    }

    fn step(&self, state: &State, me: usize, moves: &mut Moves<State>) {
        let mut next = *state;
        let mine = Owner::By(state.seats.token(me));
        let process = &mut next.processes[me];
        let word = state.word;
        process.at = match process.at {
            At::Outside if process.rounds == 0 => return,
            At::Outside if word == FREE && self.is(Control::OwnerWrittenLater) => {
                next.word.owner = Owner::Unknown;
                At::WriteOwner
            }
            at if at == At::WriteOwner || (at == At::Outside && word == FREE) => {
                next.word.owner = mine;
                return self.enter(next, me, At::Inside { data: Data::Good }, false, moves);
            }
            At::Outside | At::WriteOwner | At::Look => return self.look(next, me, moves),
            At::Take { seen } if word == seen => {
                let waiters = process.slept && !self.is(Control::WokenDropsWaiters);
                next.word = Word { owner: mine, waiters: seen.waiters || waiters, ..seen };
                let data = if seen.poison { Data::Poisoned } else { Data::Good };
                return self.enter(next, me, At::Inside { data }, false, moves);
            }
            At::Announce { seen } if word == seen => {
                next.word.waiters = true;
                process.slept = true;
                At::AskOracle { seen: next.word }
            }
            At::AskOracle { seen } if self.seems_dead(state, seen) => At::TakeOver { seen },
            At::AskOracle { seen } => At::Sleep { seen },
            At::TakeOver { seen } if word == seen || self.is(Control::TakeOverStores) => {
                let waiters = seen.waiters && !self.is(Control::TakeOverDropsWaiters);
                next.word = Word { owner: mine, waiters, ..seen };
                let silent = self.is(Control::TakeOverForgetsDeath);
                let data = if silent { Data::Good } else { Data::OwnerDied };
                return self.enter(next, me, At::Inside { data }, !silent, moves);
            }
            At::Renew { seen } if word == seen => {
                next.word.owner = mine;
                next.torn = true;
                return self.enter(next, me, At::Writing { data: Data::Good }, false, moves);
            }
            At::Take { .. } | At::Announce { .. } | At::TakeOver { .. } | At::Renew { .. } => {
                return self.look(next, me, moves);
            }
            At::Sleep { seen } => {
                if self.impatient && !self.is(Control::GivesUpSilently) {
                    let mut next = *state;
                    next.processes[me] = Process { rounds: state.processes[me].rounds - 1, ..OUTSIDE };
                    moves.step(me, next);
                }
                match word == seen || self.is(Control::SleepDoesNotCompare) {
                    true => At::Asleep { owed: false },
                    false => At::Look,
                }
            }
            At::Asleep { owed } => match (self.slices, word.owner) {
                (Slices::Anytime, _) => At::Look,
                (Slices::AfterDeath, _) if owed => At::Look,
                (Slices::AfterDeath, Owner::By(owner)) if state.seats.is_dead(owner) => At::Look,
                _ => return,
            },
            At::Inside { data: Data::Good } if state.torn => {
                return moves.violation(me, "half-written data without a warning");
            }
            At::Inside { data } => {
                next.torn = true;
                At::Writing { data }
            }
            At::Writing { data } => {
                if self.careless {
                    let to = if data == Data::OwnerDied { OUT_OF_USE } else { POISONED };
                    let mut next = *state;
                    next.processes[me].at = At::Leave { to };
                    moves.step(me, next);
                }
                // Whoever was warned has repaired the data.
                next.torn = false;
                At::Leave { to: FREE }
            }
            At::Leave { to } => {
                next.word = to;
                (process.rounds, process.slept) = (process.rounds - 1, false);
                match word.waiters || to == OUT_OF_USE {
                    true => At::Wake { all: to == OUT_OF_USE && !self.is(Control::RetireWakesOne) },
                    false => At::Outside,
                }
            }
            At::Wake { all } => {
                process.at = At::Outside;
                return self.wake(next, me, all, moves);
            }
        };
        moves.step(me, next);
    }

    /// Any one sleeper wakes, or all, or there is none.
    fn wake(&self, next: State, me: usize, all: bool, moves: &mut Moves<State>) {
        let sleeps = |&p: &usize| next.seats.lives(p) && matches!(next.processes[p].at, At::Asleep { .. });
        let sleepers = (0..MAX).filter(sleeps);
        let awake = |mut next: State, sleeper: usize| {
            next.processes[sleeper].at = At::Look;
            next
        };
        if all || sleepers.clone().count() == 0 {
            moves.step(me, sleepers.fold(next, awake));
        } else {
            sleepers.for_each(|sleeper| moves.step(me, awake(next, sleeper)));
        }
    }

    fn die(&self, state: &State, me: usize, moves: &mut Moves<State>) {
        let dying = state.processes[me];
        let Some(seats) = state.seats.death(me).filter(|_| dying != OUTSIDE) else {
            return;
        };
        let mut next = State { seats, ..*state };
        next.died_inside |= state.word.owner == Owner::By(state.seats.token(me));
        // The dead are all alike.
        next.processes[me] = OUTSIDE;
        let may_owe = matches!(dying.at, At::Wake { .. }) || (dying.slept && !dying.at.is_inside());
        for process in &mut next.processes {
            if let At::Asleep { owed } = &mut process.at {
                *owed |= may_owe && self.slices == Slices::AfterDeath;
            }
        }
        moves.crash(me, next);
    }

    fn reissue(&self, state: &State, me: usize, moves: &mut Moves<State>) {
        if let Some(seats) = state.seats.reissue(me) {
            let mut next = State { seats, ..*state };
            next.processes[me].rounds = self.rounds;
            moves.step(me, next);
        }
    }
}

impl Model for Mutex {
    type State = State;

    fn start(&self) -> State {
        let mut processes = [OUTSIDE; MAX];
        processes[..self.processes].iter_mut().for_each(|process| process.rounds = self.rounds);
        State {
            word: FREE,
            processes,
            seats: Seats::new(self.crashes, self.reissues),
            died_inside: false,
            torn: false,
        }
    }

    fn moves(&self, state: &State, moves: &mut Moves<State>) {
        for me in 0..self.processes {
            match state.seats.lives(me) {
                true => {
                    self.step(state, me, moves);
                    self.die(state, me, moves);
                }
                false => self.reissue(state, me, moves),
            }
        }
    }

    fn is_finished(&self, state: &State) -> bool {
        state.processes.iter().all(|process| *process == OUTSIDE)
    }
}
