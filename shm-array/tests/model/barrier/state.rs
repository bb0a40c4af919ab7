//! The words of the barrier's model, and where its processes are.

use crate::line::Line;
use crate::seats::{MAX, Seats, Token};

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct State {
    pub(crate) word: Word,
    pub(crate) cells: [Cell; MAX],
    pub(crate) line: Line,
    pub(crate) seats: Seats,
    pub(crate) processes: [Process; MAX],
    pub(crate) round: Round,
    /// Somebody died, gave up or reset.
    pub(crate) may_break: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Word {
    pub(crate) round: u8,
    pub(crate) phase: Phase,
    pub(crate) field: Field,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Phase {
    Filling,
    Passed,
    Reset,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Field {
    Nothing,
    Broken,
    Leader(Token),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Cell {
    pub(crate) round: u8,
    pub(crate) owner: Option<Token>,
}

/// What came of the present round, for the checks: parties that passed, and that died before they knew.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Round {
    pub(crate) passed: u8,
    pub(crate) died: u8,
    pub(crate) has_failed: bool,
    pub(crate) has_leader: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Process {
    pub(crate) rounds: u8,
    /// The round and the cell in which it waits.
    pub(crate) ticket: Option<(u8, u8)>,
    /// It knows how its round ended.
    pub(crate) knows: bool,
    /// Somebody saw it among those who have all come.
    pub(crate) is_counted: bool,
    /// A party of the round was dead before it began to count.
    pub(crate) saw_dead: bool,
    pub(crate) at: At,
}

/// The three attempts of a waiting call: before it arms, armed, and after it looked around.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Attempt {
    First,
    Armed,
    Last,
}

/// What a call comes to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum End {
    Passed,
    Broken,
    TimedOut,
    TooLate,
}

/// Why the cells of the dead are freed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Forget {
    ToArrive,
    ToReset,
}

/// What follows a change of the state and the wake-ups.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Then {
    Arrive(Attempt),
    ArriveFailed(Attempt),
    WaitFailed(Attempt),
    LookAtParties,
    HasLooked,
    Forget(Forget),
    Act,
    Leave(End),
    Left(End),
    Return(End),
    Away,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum At {
    Outside,
    Arrive(Attempt),
    /// Looks for a cell from this one on.
    Take {
        from: u8,
        round: u8,
        attempt: Attempt,
    },
    /// Begins the next round if every cell from this one on is free.
    BeginNext {
        from: u8,
        seen: Option<Word>,
        then: Then,
        failed: Then,
    },
    ArmToArrive,
    /// A newcomer frees the cells of the dead.
    Forget(Forget),
    ForgetDead {
        from: u8,
        before: Option<Word>,
        why: Forget,
    },
    LookAtRound {
        from: u8,
        dead: Cell,
        before: Option<Word>,
        why: Forget,
    },
    Free {
        from: u8,
        dead: Cell,
        before: Option<Word>,
        why: Forget,
    },
    SleepToArrive,
    Wait(Attempt),
    /// Counts those who have arrived, from this cell on; then asks about each, from this one on.
    Count {
        from: u8,
        seen: Word,
        attempt: Attempt,
    },
    Ask {
        from: u8,
        seen: Word,
        attempt: Attempt,
    },
    Swap {
        from: Word,
        to: Word,
        then: Then,
        failed: Then,
    },
    ArmToPass,
    /// Breaks a round whose leader, or any of whose parties, is dead.
    LookAround,
    LookAtParties,
    AskAround {
        from: u8,
        seen: Word,
    },
    HasLooked,
    SleepToPass,
    GiveUp,
    Act,
    Leave(End),
    Left(End),
    Abort(End),
    Reset,
    Notify(Then),
    Wake(Then),
}

pub(crate) const OUTSIDE: Process =
    Process { rounds: 0, ticket: None, knows: false, is_counted: false, saw_dead: false, at: At::Outside };
pub(crate) const NO_RESULT: Round = Round { passed: 0, died: 0, has_failed: false, has_leader: false };

impl Word {
    pub(crate) fn is_draining(self) -> bool {
        self.phase != Phase::Filling
    }

    pub(crate) fn broken(self) -> Self {
        Self { field: Field::Broken, ..self }
    }

    pub(crate) fn passed(self) -> Self {
        Self { phase: Phase::Passed, field: Field::Nothing, ..self }
    }

    pub(crate) fn reset(self) -> Self {
        match self.phase {
            Phase::Filling => Self { phase: Phase::Reset, field: Field::Nothing, ..self },
            _ if self.field == Field::Broken => Self { field: Field::Nothing, ..self },
            _ => self,
        }
    }

    pub(crate) fn next(self) -> Self {
        let field = if self.field == Field::Broken { Field::Broken } else { Field::Nothing };
        Self { round: self.round + 1, phase: Phase::Filling, field }
    }
}
