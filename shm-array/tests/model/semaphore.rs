//! The semaphore: a permit is a cell with its holder in it, so that the permits of the dead come back.
//!
//! ```text
//! acquire   a free cell -> me, by CAS
//!           else set SLEEPERS; try again; a dead holder's cell -> me, by CAS on what was read; sleep at most a slice
//!           got one, and has set SLEEPERS, and more are free: wake one more
//! release   cell -> free; SLEEPERS set? clear it, wake one
//! ```
//!
//! What must hold: never more living holders than permits; nobody sleeps beside a permit that is free or a dead holder's
//! when nothing moves any more; and no permit is lost.

use crate::explore::{Model, Moves};
use crate::line::Line;
use crate::seats::{MAX, Seats, Token};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    /// Nobody takes a dead holder's permit.
    NoGiveBack,
    /// Instead of asking the oracle, whoever waits loses patience.
    Timeout,
    /// The oracle looks at the index only.
    GenerationIgnored,
    /// A dead holder's cell is taken by a store.
    GiveBackStores,
    /// A dead holder's cell is freed by a store and then taken like any other.
    GiveBackFrees,
    /// Whoever was woken and gets a permit lets the others sleep.
    NobodyPassesOn,
    /// A waiter does not try again between setting SLEEPERS and sleeping.
    NoSecondTry,
}

pub(crate) struct Semaphore {
    pub(crate) permits: usize,
    pub(crate) processes: usize,
    /// So many of the processes keep their last permit.
    pub(crate) keepers: usize,
    pub(crate) rounds: u8,
    pub(crate) crashes: u8,
    pub(crate) reissues: u8,
    pub(crate) control: Option<Control>,
}

const CELLS: usize = 2;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct State {
    cells: [Option<Token>; CELLS],
    line: Line,
    seats: Seats,
    processes: [Process; MAX],
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Process {
    rounds: u8,
    /// This call has set SLEEPERS.
    armed: bool,
    at: At,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum At {
    Outside,
    Arm,
    /// Looks for a free cell, from this one on; `again` after the oracle was asked.
    Try {
        cell: u8,
        again: bool,
    },
    /// Looks for a dead holder's cell, from this one on.
    Look {
        cell: u8,
    },
    Take {
        cell: u8,
        holder: Token,
    },
    Sleep,
    PassOn {
        cell: u8,
    },
    Inside {
        cell: u8,
    },
    Notify {
        inside: Option<u8>,
    },
    Wake {
        inside: Option<u8>,
    },
}

const OUTSIDE: Process = Process { rounds: 0, armed: false, at: At::Outside };

fn index(cell: usize) -> u8 {
    u8::try_from(cell).expect("few")
}

impl Semaphore {
    fn is(&self, control: Control) -> bool {
        self.control == Some(control)
    }

    fn keeps(&self, me: usize, rounds: u8) -> bool {
        me + self.keepers >= self.processes && rounds == 1
    }

    fn seems_dead(&self, state: &State, holder: Token) -> bool {
        match self.control {
            Some(Control::NoGiveBack) => false,
            Some(Control::Timeout) => true,
            Some(Control::GenerationIgnored) => state.seats.is_unoccupied(holder),
            _ => state.seats.is_dead(holder),
        }
    }

    /// `me` has the permit in `cell`.
    fn hold(&self, mut next: State, me: usize, cell: u8, moves: &mut Moves<State>) {
        next.line.leave(me);
        let process = &mut next.processes[me];
        process.at = match process.armed && !self.is(Control::NobodyPassesOn) {
            true => At::PassOn { cell },
            false => At::Inside { cell },
        };
        let holds = |p: &usize| {
            let inside = matches!(
                next.processes[*p].at,
                At::Inside { .. }
                    | At::PassOn { .. }
                    | At::Notify { inside: Some(_) }
                    | At::Wake { inside: Some(_) }
            );
            next.seats.lives(*p) && inside
        };
        if (0..MAX).filter(holds).count() > self.permits {
            return moves.violation(me, "more holders than permits");
        }
        moves.step(me, next);
    }

    fn step(&self, state: &State, me: usize, moves: &mut Moves<State>) {
        let mut next = *state;
        let mine = state.seats.token(me);
        let permits = index(self.permits);
        let process = &mut next.processes[me];
        process.at = match process.at {
            At::Outside if process.rounds == 0 => return,
            At::Outside => At::Try { cell: 0, again: false },
            At::Arm => {
                next.line.arm(me);
                process.armed = true;
                match self.is(Control::NoSecondTry) {
                    true => At::Look { cell: 0 },
                    false => At::Try { cell: 0, again: false },
                }
            }
            At::Try { cell, again } if cell < permits => match &mut next.cells[usize::from(cell)] {
                free @ None => {
                    *free = Some(mine);
                    return self.hold(next, me, cell, moves);
                }
                Some(_) => At::Try { cell: cell + 1, again },
            },
            At::Try { again: true, .. } => At::Sleep,
            At::Try { again: false, .. } if process.armed => At::Look { cell: 0 },
            At::Try { again: false, .. } => At::Arm,
            At::Look { cell } if cell < permits => match state.cells[usize::from(cell)] {
                Some(holder) if self.seems_dead(state, holder) => At::Take { cell, holder },
                _ => At::Look { cell: cell + 1 },
            },
            At::Look { .. } if self.is(Control::NoSecondTry) => At::Sleep,
            At::Look { .. } => At::Try { cell: 0, again: true },
            At::Take { cell, holder } => {
                let place = &mut next.cells[usize::from(cell)];
                if self.is(Control::GiveBackFrees) {
                    *place = None;
                    At::Try { cell: 0, again: false }
                } else if *place == Some(holder) || self.is(Control::GiveBackStores) {
                    *place = Some(mine);
                    return self.hold(next, me, cell, moves);
                } else {
                    At::Look { cell: cell + 1 }
                }
            }
            At::Sleep if state.line.is_asleep(me) => match next.line.look_around(me) {
                true => At::Arm,
                false => return,
            },
            At::Sleep => {
                next.line.sleep(me);
                match next.line.is_asleep(me) {
                    true => At::Sleep,
                    false => At::Arm,
                }
            }
            At::PassOn { cell } => {
                let any_free = state.cells[..self.permits].contains(&None);
                match any_free {
                    true => At::Notify { inside: Some(cell) },
                    false => At::Inside { cell },
                }
            }
            At::Inside { .. } if self.keeps(me, process.rounds) => return,
            At::Inside { cell } => {
                next.cells[usize::from(cell)] = None;
                (process.rounds, process.armed) = (process.rounds - 1, false);
                At::Notify { inside: None }
            }
            At::Notify { inside } if next.line.clear() => At::Wake { inside },
            At::Notify { inside: Some(cell) } => At::Inside { cell },
            At::Notify { inside: None } => At::Outside,
            At::Wake { inside } => {
                process.at = inside.map_or(At::Outside, |cell| At::Inside { cell });
                for line in next.line.wake_one() {
                    moves.step(me, State { line, ..next });
                }
                return;
            }
        };
        moves.step(me, next);
    }

    fn die(&self, state: &State, me: usize, moves: &mut Moves<State>) {
        let dying = state.processes[me];
        let Some(seats) = state.seats.death(me).filter(|_| dying != OUTSIDE) else {
            return;
        };
        let mut next = State { seats, ..*state };
        next.processes[me] = OUTSIDE;
        next.line.die(me);
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

impl Model for Semaphore {
    type State = State;

    fn start(&self) -> State {
        let mut processes = [OUTSIDE; MAX];
        processes[..self.processes].iter_mut().for_each(|process| process.rounds = self.rounds);
        State {
            cells: [None; CELLS],
            line: Line::new(),
            seats: Seats::new(self.crashes, self.reissues),
            processes,
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
        let held = state.cells.iter().flatten().filter(|holder| !state.seats.is_dead(**holder)).count();
        let rests = |(me, process): (usize, &Process)| match process.at {
            At::Outside => *process == OUTSIDE,
            At::Inside { .. } => self.keeps(me, process.rounds),
            At::Sleep => state.line.is_asleep(me) && held == self.permits,
            _ => false,
        };
        let inside = |process: &&Process| matches!(process.at, At::Inside { .. });
        state.processes.iter().enumerate().all(rests) && state.processes.iter().filter(inside).count() == held
    }
}
