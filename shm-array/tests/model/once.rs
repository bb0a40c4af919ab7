//! What is done once, as in `src/lock/once.rs`: INCOMPLETE, COMPLETE, POISONED, or the token of the process that runs it.
//!
//! ```text
//! call     COMPLETE: done. INCOMPLETE (or POISONED, by force) -> me, run it, -> COMPLETE (or POISONED), wake all
//!          a dead runner -> me, by CAS on what was read; run it from the start
//! ```
//!
//! What must hold: one runs it at a time; whoever comes back from the call without having run it finds it done; nobody
//! waits for the dead.

use crate::explore::{Model, Moves};
use crate::line::Line;
use crate::seats::{MAX, Seats, Token};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    /// Nobody takes over from a dead runner.
    NoTakeOver,
    /// Instead of asking the oracle, whoever waits loses patience.
    Timeout,
    /// The oracle looks at the index only.
    GenerationIgnored,
    /// A take-over is a store.
    TakeOverStores,
    /// The word says COMPLETE before everything is done.
    CompleteFirst,
    /// The end wakes one.
    WakesOne,
}

pub(crate) struct Once {
    pub(crate) processes: usize,
    pub(crate) crashes: u8,
    pub(crate) reissues: u8,
    /// A runner may panic; everybody calls by force.
    pub(crate) panics: bool,
    pub(crate) control: Option<Control>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct State {
    word: Word,
    line: Line,
    seats: Seats,
    processes: [At; MAX],
    is_done: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Word {
    Incomplete,
    Complete,
    Poisoned,
    Runs(Token),
}

/// The three attempts of a waiting call: before it arms, armed, and after it looked around.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Attempt {
    First,
    Armed,
    Last,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum At {
    Look(Attempt),
    Take {
        seen: Word,
        attempt: Attempt,
    },
    Arm,
    AskOracle,
    TakeOver {
        seen: Word,
    },
    Sleep,
    Run,
    End {
        to: Word,
    },
    Notify,
    Wake,
    Back,
    /// Does nothing, or nothing any more.
    Rests,
}

impl At {
    fn runs(self) -> bool {
        matches!(self, At::Run | At::End { .. })
    }
}

impl Once {
    fn is(&self, control: Control) -> bool {
        self.control == Some(control)
    }

    fn seems_dead(&self, state: &State, runner: Token) -> bool {
        match self.control {
            Some(Control::NoTakeOver) => false,
            Some(Control::Timeout) => true,
            Some(Control::GenerationIgnored) => state.seats.is_unoccupied(runner),
            _ => state.seats.is_dead(runner),
        }
    }

    fn run(&self, mut next: State, me: usize, moves: &mut Moves<State>) {
        let mut others = (0..MAX).filter(|&p| p != me && next.seats.lives(p));
        if others.any(|p| next.processes[p].runs()) {
            return moves.violation(me, "two run it");
        }
        if self.is(Control::CompleteFirst) {
            next.word = Word::Complete;
        } else {
            next.word = Word::Runs(next.seats.token(me));
        }
        next.line.leave(me);
        next.processes[me] = At::Run;
        moves.step(me, next);
    }

    fn step(&self, state: &State, me: usize, moves: &mut Moves<State>) {
        let mut next = *state;
        let word = state.word;
        let failed = |attempt| match attempt {
            Attempt::First => At::Arm,
            Attempt::Armed => At::AskOracle,
            Attempt::Last => At::Sleep,
        };
        next.processes[me] = match state.processes[me] {
            At::Rests => return,
            At::Look(attempt) => match word {
                Word::Complete => At::Back,
                Word::Incomplete | Word::Poisoned => At::Take { seen: word, attempt },
                Word::Runs(_) => failed(attempt),
            },
            At::Take { seen, .. } if word == seen => return self.run(next, me, moves),
            At::Take { attempt, .. } => failed(attempt),
            At::Arm => {
                next.line.arm(me);
                At::Look(Attempt::Armed)
            }
            At::AskOracle => match word {
                Word::Runs(runner) if self.seems_dead(state, runner) => At::TakeOver { seen: word },
                _ => At::Look(Attempt::Last),
            },
            At::TakeOver { seen } if word == seen || self.is(Control::TakeOverStores) => {
                return self.run(next, me, moves);
            }
            At::TakeOver { .. } => At::Look(Attempt::Last),
            At::Sleep if state.line.is_asleep(me) => match next.line.look_around(me) {
                true => At::Arm,
                false => return,
            },
            At::Sleep => {
                next.line.sleep(me);
                if next.line.is_asleep(me) { At::Sleep } else { At::Arm }
            }
            At::Run => {
                if self.panics {
                    let mut next = *state;
                    next.processes[me] = At::End { to: Word::Poisoned };
                    moves.step(me, next);
                }
                next.is_done = true;
                At::End { to: Word::Complete }
            }
            At::End { to } => {
                next.word = to;
                At::Notify
            }
            At::Notify if next.line.clear() => At::Wake,
            At::Notify => At::Rests,
            At::Wake => {
                next.processes[me] = At::Rests;
                if self.is(Control::WakesOne) {
                    for line in next.line.wake_one() {
                        moves.step(me, State { line, ..next });
                    }
                    return;
                }
                return moves.step(me, State { line: next.line.wake_all(), ..next });
            }
            At::Back if !state.is_done => return moves.violation(me, "complete, and not done"),
            At::Back => {
                next.line.leave(me);
                At::Rests
            }
        };
        moves.step(me, next);
    }

    fn die(&self, state: &State, me: usize, moves: &mut Moves<State>) {
        if let Some(seats) = state.seats.death(me).filter(|_| state.processes[me] != At::Rests) {
            let mut next = State { seats, ..*state };
            next.processes[me] = At::Rests;
            next.line.die(me);
            moves.crash(me, next);
        }
    }

    fn reissue(&self, state: &State, me: usize, moves: &mut Moves<State>) {
        if let Some(seats) = state.seats.reissue(me) {
            let mut next = State { seats, ..*state };
            next.processes[me] = At::Look(Attempt::First);
            moves.step(me, next);
        }
    }
}

impl Model for Once {
    type State = State;

    fn start(&self) -> State {
        let mut processes = [At::Rests; MAX];
        processes[..self.processes].fill(At::Look(Attempt::First));
        State {
            word: Word::Incomplete,
            line: Line::new(),
            seats: Seats::new(self.crashes, self.reissues),
            processes,
            is_done: false,
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
        state.processes.iter().all(|at| *at == At::Rests)
    }
}
