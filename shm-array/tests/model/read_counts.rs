//! The idea of the reader-writer lock: one writer word, and a count of readers per participant.
//!
//! ```text
//! reader   raise the own count; word free? in : lower the count, try again
//! writer   word free -> PENDING; wait until each count is zero; -> HELD; in
//! a dead owner of the word      PENDING -> free, HELD -> free with POISON
//! a dead participant's count    is zeroed by whoever meets it
//! ```
//!
//! Whoever waits looks again and again. Sleeping, generations and the layout of the cells are the business of
//! `rwlock.rs`; here is what carries the rest: that counts are raised before the look, kept per participant,
//! and repaired by an exact oracle.

use crate::explore::{Model, Moves};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    /// Nobody takes the word from a dead writer.
    NoTakeOver,
    /// Nobody zeroes a dead reader's count.
    NoZeroing,
    /// A reader looks at the word before it raises its count.
    LooksFirst,
    /// Instead of asking the oracle, whoever waits loses patience.
    Timeout,
}

pub(crate) struct ReadCounts {
    pub(crate) readers: usize,
    pub(crate) writers: usize,
    pub(crate) rounds: u8,
    pub(crate) crashes: u8,
    pub(crate) control: Option<Control>,
}

const MAX: usize = 4;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct State {
    word: Option<Writer>,
    poison: bool,
    counts: [u8; MAX],
    processes: [Process; MAX],
    /// The data is half written.
    torn: bool,
    crashes_left: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Writer {
    owner: u8,
    held: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Process {
    rounds: u8,
    at: At,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum At {
    Outside,
    /// A reader whose count is raised looks at the word; one that must not go in lowers its count.
    Look,
    Lower,
    /// A reader of the control that has looked first.
    HasLooked,
    /// A writer whose word is PENDING waits for this count.
    Drain(u8),
    Enter,
    Inside,
    Leave,
    Dead,
}

impl ReadCounts {
    fn processes(&self) -> usize {
        self.readers + self.writers
    }

    fn is(&self, control: Control) -> bool {
        self.control == Some(control)
    }

    fn seems_dead(&self, state: &State, process: usize, me: usize) -> bool {
        state.processes[process].at == At::Dead || (self.is(Control::Timeout) && process != me)
    }

    fn zeroable(&self, state: &State, process: usize, me: usize) -> bool {
        !self.is(Control::NoZeroing) && state.counts[process] > 0 && self.seems_dead(state, process, me)
    }

    /// What anybody may repair when an attempt begins.
    fn repair(&self, state: &State, me: usize, moves: &mut Moves<State>) {
        let dead = state.word.filter(|word| self.seems_dead(state, word.owner.into(), me));
        if let Some(word) = dead.filter(|_| !self.is(Control::NoTakeOver)) {
            let poison = state.poison || word.held;
            moves.step(me, State { word: None, poison, ..*state });
        }
        for process in (0..self.processes()).filter(|&p| p != me && self.zeroable(state, p, me)) {
            let mut next = *state;
            next.counts[process] = 0;
            moves.step(me, next);
        }
    }

    fn read(&self, state: &State, me: usize, moves: &mut Moves<State>) {
        let mut next = *state;
        let process = &mut next.processes[me];
        let count = &mut next.counts[me];
        let free = state.word.is_none();
        process.at = match process.at {
            At::Outside if self.is(Control::LooksFirst) => match free {
                true => At::HasLooked,
                false => return,
            },
            At::Outside => {
                *count += 1;
                At::Look
            }
            At::HasLooked => {
                *count += 1;
                At::Inside
            }
            At::Look if free => At::Inside,
            At::Look => At::Lower,
            At::Inside if state.torn && !state.poison => {
                return moves.violation(me, "half-written data without poison");
            }
            at => {
                process.rounds -= u8::from(at == At::Inside);
                // A count that somebody took for a dead one's is zero already.
                *count = count.saturating_sub(1);
                At::Outside
            }
        };
        moves.step(me, next);
    }

    fn write(&self, state: &State, me: usize, moves: &mut Moves<State>) {
        let mut next = *state;
        let process = &mut next.processes[me];
        let mine = |held| Some(Writer { owner: u8::try_from(me).expect("few"), held });
        process.at = match process.at {
            At::Outside if state.word.is_none() => {
                next.word = mine(false);
                At::Drain(0)
            }
            At::Drain(reader) if usize::from(reader) == self.processes() => {
                next.word = mine(true);
                At::Enter
            }
            At::Drain(reader) if state.counts[usize::from(reader)] == 0 => At::Drain(reader + 1),
            At::Drain(reader) if self.zeroable(state, reader.into(), me) => {
                next.counts[usize::from(reader)] = 0;
                At::Drain(reader)
            }
            At::Enter if state.torn && !state.poison => {
                return moves.violation(me, "half-written data without poison");
            }
            At::Enter => {
                next.torn = true;
                At::Inside
            }
            At::Inside => {
                (next.torn, next.poison) = (false, false);
                At::Leave
            }
            At::Leave => {
                process.rounds -= 1;
                next.word = None;
                At::Outside
            }
            _ => return,
        };
        moves.step(me, next);
    }
}

impl Model for ReadCounts {
    type State = State;

    fn start(&self) -> State {
        let mut processes = [Process { rounds: 0, at: At::Outside }; MAX];
        processes[..self.processes()].fill(Process { rounds: self.rounds, at: At::Outside });
        State {
            word: None,
            poison: false,
            counts: [0; MAX],
            processes,
            torn: false,
            crashes_left: self.crashes,
        }
    }

    fn moves(&self, state: &State, moves: &mut Moves<State>) {
        let inside = |process: &usize| state.processes[*process].at == At::Inside;
        let all = (0..self.processes()).filter(inside).count();
        if let Some(writer) = (self.readers..self.processes()).find(inside).filter(|_| all > 1) {
            return moves.violation(writer, "a writer is not alone");
        }
        for (me, process) in state.processes[..self.processes()].iter().enumerate() {
            if process.at == At::Dead || process.rounds == 0 {
                continue;
            }
            if process.at == At::Outside {
                self.repair(state, me, moves);
            }
            match me < self.readers {
                true => self.read(state, me, moves),
                false => self.write(state, me, moves),
            }
            if state.crashes_left > 0 {
                let mut next = *state;
                next.processes[me].at = At::Dead;
                next.crashes_left -= 1;
                moves.crash(me, next);
            }
        }
    }

    fn is_finished(&self, state: &State) -> bool {
        state.processes.iter().all(|process| process.at == At::Dead || process.rounds == 0)
    }
}
