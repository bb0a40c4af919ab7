//! The reader-writer lock as it is in `src/lock/rwlock`: a writer's word, and a cell of (generation, readers) per index.
//!
//! ```text
//! reader   raise the own cell (first `used`, if the cell has another generation); word free? in
//!          else lower it, wake a PENDING writer; wait for the turn; free the word of a dead PENDING writer
//! leaving  lower the cell; word PENDING? wake that writer
//! writer   word free -> PENDING(me); every cell below `used` seen at zero, dead ones zeroed -> HELD(me); in
//!          PENDING(dead) -> PENDING(me); HELD(dead) -> HELD(me) with a warning; may withdraw, or become a reader
//! leaving  word -> free, wake all who wait for their turn
//! ```
//!
//! What must hold: a writer inside is alone; torn data is seen by a writer who was warned, and by nobody else, and who was
//! warned has reason; all survivors get in or hear that a writer died. Indices of the dead are issued again, to a
//! process that may play the other part.

use crate::explore::{Model, Moves};
use crate::line::Line;
use crate::seats::{MAX, Seats, Token};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    /// Nobody takes the word from a dead writer.
    NoTakeOver,
    /// Nobody zeroes a dead reader's cell.
    NoZeroing,
    /// Instead of asking the oracle, whoever waits loses patience.
    Timeout,
    /// The oracle looks at the index only.
    GenerationIgnored,
    /// A process counts on from what the index's last holder left in the cell.
    StaleCountKept,
    /// A dead reader's cell is zeroed by a store.
    ZeroingStores,
    /// A reader looks at the word before it raises its cell.
    LooksFirst,
    /// A writer looks at the cells before it claims the word.
    DrainsFirst,
    /// A reader does not say that its index is used.
    UsedNotRaised,
    /// A reader frees the word of a writer that died inside.
    ReaderTakesOver,
    /// A writer that died waiting is taken for one that died inside.
    PendingWarns,
    /// A writer that waits asks the oracle about one cell between two sleeps.
    ForgetsOne,
    /// A leaving reader does not wake the writer that waits for it.
    LeavesSilently,
    /// A reader that steps back does not.
    StepsBackSilently,
    /// A leaving writer wakes one.
    WakesOne,
}

pub(crate) struct RwLock {
    pub(crate) readers: usize,
    pub(crate) writers: usize,
    pub(crate) rounds: u8,
    pub(crate) crashes: u8,
    pub(crate) reissues: u8,
    /// Writers may give up while they wait for readers.
    pub(crate) impatient: bool,
    /// Writers may become readers.
    pub(crate) downgrades: bool,
    /// Writers that were warned may leave the data as it is.
    pub(crate) gives_up: bool,
    pub(crate) control: Option<Control>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct State {
    word: Word,
    used: u8,
    cells: [Cell; MAX],
    /// Where those wait who want the word, and where the PENDING writer waits for readers.
    turn: Line,
    drain: Line,
    seats: Seats,
    processes: [Process; MAX],
    /// A writer died inside, and nobody was told yet.
    died_inside: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Word {
    Free,
    Pending(Token),
    Held(Token),
    OutOfUse,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Cell {
    generation: u8,
    readers: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Process {
    rounds: u8,
    is_writer: bool,
    /// Inside, reading or writing.
    reads: bool,
    writes: bool,
    at: At,
}

/// The three attempts of a waiting call: before it arms, armed, and after it looked around.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Attempt {
    First,
    Armed,
    Last,
}

/// What follows when others have been woken.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Then {
    Leave,
    Read,
    /// That attempt has failed.
    Failed(Attempt),
    /// One more attempt to get the turn.
    Again,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum At {
    Outside,
    /// Waits for its turn.
    ArmTurn,
    Attempt(Attempt),
    LookAround,
    TakeWord {
        seen: Word,
    },
    SleepTurn,
    /// A reader comes in, and goes.
    RaiseUsed(Attempt),
    Raise(Attempt),
    LookAtWord(Attempt),
    Reading,
    LookForPending(Then),
    NotifyDrain(Then),
    WakeDrain(Then),
    /// A writer drains from this cell on, comes in, and goes.
    Drain {
        from: u8,
        attempt: Attempt,
    },
    ArmDrain {
        from: u8,
    },
    ForgetDead {
        from: u8,
    },
    Zero {
        from: u8,
        seen: Cell,
    },
    SleepDrain {
        from: u8,
    },
    Enter,
    Writing {
        warned: bool,
    },
    Downgrade,
    Release {
        to: Word,
        then: Then,
    },
    NotifyTurn(Then),
    WakeTurn(Then),
}

const NOBODY: Process = Process { rounds: 0, is_writer: false, reads: false, writes: false, at: At::Outside };

impl RwLock {
    fn is(&self, control: Control) -> bool {
        self.control == Some(control)
    }

    fn seems_dead(&self, state: &State, owner: Token, me: usize) -> bool {
        match self.control {
            Some(Control::Timeout) => usize::from(owner.index) != me,
            Some(Control::GenerationIgnored) => state.seats.is_unoccupied(owner),
            _ => state.seats.is_dead(owner),
        }
    }

    fn inside(&self, state: &State, me: usize, which: fn(&Process) -> bool) -> bool {
        (0..MAX).any(|p| p != me && state.seats.lives(p) && which(&state.processes[p]))
    }

    fn read(&self, mut next: State, me: usize, moves: &mut Moves<State>) {
        if self.inside(&next, me, |process| process.writes) {
            return moves.violation(me, "a reader is beside a writer");
        }
        if next.died_inside {
            return moves.violation(me, "a reader sees torn data");
        }
        next.turn.leave(me);
        next.processes[me].reads = true;
        next.processes[me].at = At::Reading;
        moves.step(me, next);
    }

    fn write(&self, mut next: State, me: usize, warned: bool, moves: &mut Moves<State>) {
        if self.inside(&next, me, |process| process.writes || process.reads) {
            return moves.violation(me, "a writer is not alone");
        }
        if next.died_inside != warned {
            return moves.violation(me, "a death inside and the next writer's error do not match");
        }
        next.turn.leave(me);
        next.drain.leave(me);
        next.died_inside = false;
        next.processes[me].writes = true;
        next.processes[me].at = At::Writing { warned };
        moves.step(me, next);
    }

    /// Wakes everybody on a line; in a control any one.
    fn wake(&self, next: State, me: usize, line: fn(&mut State) -> &mut Line, moves: &mut Moves<State>) {
        let mut all = next;
        let sleepers = *line(&mut all);
        *line(&mut all) = sleepers.wake_all();
        if !self.is(Control::WakesOne) {
            return moves.step(me, all);
        }
        for one in sleepers.wake_one() {
            let mut next = next;
            *line(&mut next) = one;
            moves.step(me, next);
        }
    }

    fn step(&self, state: &State, me: usize, moves: &mut Moves<State>) {
        let mut next = *state;
        let mine = state.seats.token(me);
        let cell = &mut next.cells[me];
        let process = &mut next.processes[me];
        let word = state.word;
        let failed = |attempt| match attempt {
            Attempt::First => At::ArmTurn,
            Attempt::Armed => At::LookAround,
            Attempt::Last => At::SleepTurn,
        };
        let go_on = |then| match then {
            Then::Leave => At::Outside,
            Then::Read => At::Reading,
            Then::Failed(attempt) => failed(attempt),
            Then::Again => At::Attempt(Attempt::Last),
        };
        process.at = match process.at {
            At::Outside if process.rounds == 0 => return,
            At::Outside if process.is_writer && self.is(Control::DrainsFirst) => {
                At::Drain { from: 0, attempt: Attempt::First }
            }
            At::Outside => At::Attempt(Attempt::First),
            At::Attempt(attempt) => match (word, process.is_writer) {
                (Word::Free, true) => {
                    next.word = Word::Pending(mine);
                    match self.is(Control::DrainsFirst) {
                        true => At::Enter,
                        false => At::Drain { from: 0, attempt: Attempt::First },
                    }
                }
                (Word::Free, false) if self.is(Control::LooksFirst) => At::Raise(attempt),
                // The first time a reader raises its cell without a look.
                (_, false) if word == Word::Free || attempt == Attempt::First => {
                    match cell.generation == mine.generation || self.is(Control::UsedNotRaised) {
                        true => At::Raise(attempt),
                        false => At::RaiseUsed(attempt),
                    }
                }
                (Word::OutOfUse, _) => return self.refused(next, me, moves),
                _ => failed(attempt),
            },
            At::ArmTurn => {
                next.turn.arm(me);
                At::Attempt(Attempt::Armed)
            }
            At::LookAround => match word {
                Word::Pending(owner) | Word::Held(owner)
                    if !self.is(Control::NoTakeOver) && self.seems_dead(state, owner, me) =>
                {
                    let is_held = matches!(word, Word::Held(_));
                    if is_held && !process.is_writer && !self.is(Control::ReaderTakesOver) {
                        return self.refused(next, me, moves);
                    }
                    At::TakeWord { seen: word }
                }
                _ => At::Attempt(Attempt::Last),
            },
            At::TakeWord { seen } if word != seen => At::Attempt(Attempt::Last),
            At::TakeWord { .. } if !process.is_writer => {
                next.word = Word::Free;
                At::NotifyTurn(Then::Again)
            }
            At::TakeWord { seen: Word::Pending(_) } if !self.is(Control::PendingWarns) => {
                next.word = Word::Pending(mine);
                At::Drain { from: 0, attempt: Attempt::First }
            }
            At::TakeWord { .. } => {
                next.word = Word::Held(mine);
                return self.write(next, me, true, moves);
            }
            At::SleepTurn if state.turn.is_asleep(me) => match next.turn.look_around(me) {
                true => At::ArmTurn,
                false => return,
            },
            At::SleepTurn => {
                next.turn.sleep(me);
                if next.turn.is_asleep(me) { At::SleepTurn } else { At::ArmTurn }
            }
            At::RaiseUsed(attempt) => {
                next.used = next.used.max(mine.index + 1);
                At::Raise(attempt)
            }
            At::Raise(attempt) => {
                let stale = cell.generation != mine.generation && !self.is(Control::StaleCountKept);
                let readers = if stale { 0 } else { cell.readers };
                *cell = Cell { generation: mine.generation, readers: readers + 1 };
                if self.is(Control::LooksFirst) {
                    return self.read(next, me, moves);
                }
                At::LookAtWord(attempt)
            }
            At::LookAtWord(_) if word == Word::Free => {
                return self.read(next, me, moves);
            }
            At::LookAtWord(_) | At::Reading if cell.readers == 0 => {
                return moves.violation(me, "a count falls below zero");
            }
            At::LookAtWord(attempt) => {
                cell.readers -= 1;
                match self.is(Control::StepsBackSilently) {
                    true => failed(attempt),
                    false => At::LookForPending(Then::Failed(attempt)),
                }
            }
            At::Reading => {
                cell.readers -= 1;
                (process.reads, process.rounds) = (false, process.rounds - 1);
                match self.is(Control::LeavesSilently) {
                    true => At::Outside,
                    false => At::LookForPending(Then::Leave),
                }
            }
            At::LookForPending(then) if matches!(word, Word::Pending(_)) => At::NotifyDrain(then),
            At::LookForPending(then) => go_on(then),
            At::NotifyDrain(then) if next.drain.clear() => At::WakeDrain(then),
            At::NotifyDrain(then) => go_on(then),
            At::WakeDrain(then) => {
                process.at = go_on(then);
                return self.wake(next, me, |state| &mut state.drain, moves);
            }
            At::Drain { from, .. } if from >= state.used => match self.is(Control::DrainsFirst) {
                true => At::Attempt(Attempt::First),
                false => At::Enter,
            },
            At::Drain { from, attempt } if state.cells[usize::from(from)].readers == 0 => {
                At::Drain { from: from + 1, attempt }
            }
            At::Drain { from, attempt: Attempt::First } => At::ArmDrain { from },
            At::Drain { from, attempt: Attempt::Armed } => At::ForgetDead { from },
            At::Drain { from, attempt: Attempt::Last } => At::SleepDrain { from },
            At::ArmDrain { from } => {
                next.drain.arm(me);
                At::Drain { from, attempt: Attempt::Armed }
            }
            At::ForgetDead { from } => {
                let seen = state.cells[usize::from(from)];
                let owner = Token { index: from, generation: seen.generation };
                match seen.readers > 0 && self.seems_dead(state, owner, me) && !self.is(Control::NoZeroing) {
                    true => At::Zero { from, seen },
                    false => At::Drain { from, attempt: Attempt::Last },
                }
            }
            At::Zero { from, seen } => {
                let dead = &mut next.cells[usize::from(from)];
                if *dead == seen || self.is(Control::ZeroingStores) {
                    *dead = Cell { readers: 0, ..*dead };
                }
                let forgets_one = self.is(Control::ForgetsOne);
                At::Drain { from, attempt: if forgets_one { Attempt::Last } else { Attempt::Armed } }
            }
            At::SleepDrain { from } if state.drain.is_asleep(me) => match next.drain.look_around(me) {
                true => At::ArmDrain { from },
                false => return,
            },
            At::SleepDrain { from } => {
                if self.impatient {
                    let mut next = *state;
                    next.processes[me].at = At::Release { to: Word::Free, then: Then::Leave };
                    moves.step(me, next);
                }
                next.drain.sleep(me);
                if next.drain.is_asleep(me) { At::SleepDrain { from } } else { At::ArmDrain { from } }
            }
            At::Enter => {
                next.word = Word::Held(mine);
                return self.write(next, me, false, moves);
            }
            At::Writing { warned } => {
                if self.downgrades {
                    let mut next = *state;
                    next.processes[me].at = At::Downgrade;
                    moves.step(me, next);
                }
                if self.gives_up && warned {
                    let mut next = *state;
                    next.processes[me].at = At::Release { to: Word::OutOfUse, then: Then::Leave };
                    moves.step(me, next);
                }
                At::Release { to: Word::Free, then: Then::Leave }
            }
            // `used` is raised and then the cell; nobody can be let in between.
            At::Downgrade => {
                next.used = next.used.max(mine.index + 1);
                let readers = if cell.generation == mine.generation { cell.readers } else { 0 };
                *cell = Cell { generation: mine.generation, readers: readers + 1 };
                At::Release { to: Word::Free, then: Then::Read }
            }
            At::Release { to, then } => {
                next.word = to;
                next.drain.leave(me);
                process.writes = false;
                match then {
                    Then::Read => process.reads = true,
                    _ => process.rounds -= 1,
                }
                At::NotifyTurn(then)
            }
            At::NotifyTurn(then) if next.turn.clear() => At::WakeTurn(then),
            At::NotifyTurn(then) => go_on(then),
            At::WakeTurn(then) => {
                process.at = go_on(then);
                return self.wake(next, me, |state| &mut state.turn, moves);
            }
        };
        moves.step(me, next);
    }

    /// `me` hears that a writer died and goes away.
    fn refused(&self, mut next: State, me: usize, moves: &mut Moves<State>) {
        next.turn.leave(me);
        let process = &mut next.processes[me];
        process.rounds -= 1;
        process.at = At::Outside;
        moves.step(me, next);
    }

    fn die(&self, state: &State, me: usize, moves: &mut Moves<State>) {
        let dying = state.processes[me];
        let is_gone = dying.rounds == 0 && dying.at == At::Outside;
        let Some(seats) = state.seats.death(me).filter(|_| !is_gone) else {
            return;
        };
        let mut next = State { seats, ..*state };
        next.died_inside |= dying.writes;
        next.processes[me] = Process { is_writer: dying.is_writer, ..NOBODY };
        next.turn.die(me);
        next.drain.die(me);
        moves.crash(me, next);
    }

    /// The next process with the index plays either part.
    fn reissue(&self, state: &State, me: usize, moves: &mut Moves<State>) {
        for is_writer in [false, true] {
            if let Some(seats) = state.seats.reissue(me) {
                let mut next = State { seats, ..*state };
                next.processes[me] = Process { rounds: self.rounds, is_writer, ..NOBODY };
                moves.step(me, next);
            }
        }
    }
}

impl Model for RwLock {
    type State = State;

    fn start(&self) -> State {
        let mut processes = [NOBODY; MAX];
        for (me, process) in processes[..self.readers + self.writers].iter_mut().enumerate() {
            *process = Process { rounds: self.rounds, is_writer: me >= self.readers, ..NOBODY };
        }
        State {
            word: Word::Free,
            used: 0,
            // A generation that nobody has.
            cells: [Cell { generation: u8::MAX, readers: 0 }; MAX],
            turn: Line::new(),
            drain: Line::new(),
            seats: Seats::new(self.crashes, self.reissues),
            processes,
            died_inside: false,
        }
    }

    fn moves(&self, state: &State, moves: &mut Moves<State>) {
        for me in 0..self.readers + self.writers {
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
        state.processes.iter().all(|process| process.rounds == 0 && process.at == At::Outside)
    }
}
