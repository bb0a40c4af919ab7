//! The barrier of `src/lock/barrier.rs`: a cell per party, and a state of (round, phase, broken or leader).
//!
//! ```text
//! arrive    a cell that was not taken in this round -> (round, me); not while parties still leave the round before
//! wait      all cells taken in the round, by the living -> PASSED (or leader, and then PASSED); sleep otherwise.
//!           Looks for that on arrival and before each sleep
//!           a party of the round is dead, or the leader is -> BROKEN
//! leave     free the cell; the last one begins the next round. Newcomers free the cells of those who died leaving
//! ```
//!
//! Calls may give up, which breaks the barrier, and whoever hears that it is broken may reset it. What must hold: of the
//! parties that were counted in a round all pass, or none; one of them leads; nothing breaks unless somebody died, gave up
//! or reset; and survivors are never stuck, except where fewer than a round needs are left.

#[path = "barrier/state.rs"]
mod state;

use crate::explore::{Model, Moves};
use crate::line::Line;
use crate::seats::{MAX, Seats, Token};
use state::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    /// Nobody asks whether those who wait are alive.
    NoOracle,
    /// Instead of asking the oracle, whoever waits loses patience.
    Timeout,
    /// The oracle looks at the index only.
    GenerationIgnored,
    /// A newcomer asks about the leader only: the parties may all be dead.
    NewcomersDoNotAsk,
    /// Whoever was not counted breaks a round that is complete when its time is up.
    BreaksTheLeader,
    /// Nobody frees the cells of those who died leaving.
    NoForgetting,
    /// Whether a cell's round is over is judged by the state as it was before the cell was looked at.
    ForgetsByOldState,
    /// Whoever completes a round begins the next one at once.
    NewcomersDoNotWait,
    /// A cell forgets its round when it is freed.
    CellsForgetRound,
    /// A round is completed by a store.
    PassesByStore,
    /// Completing a round wakes one.
    WakesOne,
}

#[derive(Default)]
pub(crate) struct Barrier {
    pub(crate) parties: usize,
    pub(crate) processes: usize,
    pub(crate) rounds: u8,
    pub(crate) crashes: u8,
    pub(crate) reissues: u8,
    /// Calls may give up before they sleep.
    pub(crate) impatient: bool,
    /// Whoever hears that the barrier is broken resets it, or goes away.
    pub(crate) resets: bool,
    /// One of the parties runs an action when all are there.
    pub(crate) acts: bool,
    pub(crate) control: Option<Control>,
}

impl Barrier {
    fn is(&self, control: Control) -> bool {
        self.control == Some(control)
    }

    fn seems_dead(&self, state: &State, owner: Token, me: usize) -> bool {
        match self.control {
            _ if owner == state.seats.token(me) => false,
            Some(Control::NoOracle) => false,
            Some(Control::Timeout) => true,
            Some(Control::GenerationIgnored) => state.seats.is_unoccupied(owner),
            _ => state.seats.is_dead(owner),
        }
    }

    fn go_on(then: Then) -> At {
        match then {
            Then::Arrive(attempt) => At::Arrive(attempt),
            Then::ArriveFailed(Attempt::First) => At::ArmToArrive,
            Then::ArriveFailed(Attempt::Armed) => At::LookAround,
            Then::ArriveFailed(Attempt::Last) => At::SleepToArrive,
            Then::Forget(why) => At::Forget(why),
            Then::WaitFailed(Attempt::First) => At::ArmToPass,
            Then::WaitFailed(Attempt::Armed) => At::LookAround,
            Then::WaitFailed(Attempt::Last) => At::SleepToPass,
            Then::LookAtParties => At::LookAtParties,
            Then::HasLooked => At::HasLooked,
            Then::Act => At::Act,
            Then::Leave(end) => At::Leave(end),
            Then::Left(end) => At::Left(end),
            Then::Return(_) | Then::Away => At::Outside,
        }
    }

    /// The call of `me` has come to its end.
    fn end(&self, mut next: State, me: usize, end: End, moves: &mut Moves<State>) {
        next.line.leave(me);
        let process = &mut next.processes[me];
        (process.ticket, process.knows, process.is_counted, process.saw_dead) = (None, false, false, false);
        if end == End::TooLate {
            process.at = At::Arrive(Attempt::First);
            return moves.step(me, next);
        }
        process.rounds -= 1;
        process.at = At::Outside;
        if end == End::Broken {
            let mut away = next;
            away.processes[me] = OUTSIDE;
            moves.step(me, away);
            if !self.resets {
                return;
            }
            next.processes[me].at = At::Reset;
        }
        moves.step(me, next);
    }

    /// `me` learns how its round ended.
    fn learn(&self, mut next: State, me: usize, end: End, moves: &mut Moves<State>) {
        let round = &mut next.round;
        match end {
            End::Passed => round.passed += 1,
            End::Broken => round.has_failed = true,
            End::TimedOut | End::TooLate => {}
        }
        if round.passed > 0 && round.has_failed {
            return moves.violation(me, "some pass and some do not");
        }
        if end == End::Broken && !next.may_break {
            return moves.violation(me, "broken, and nobody died, gave up or reset");
        }
        next.processes[me].knows = true;
        next.processes[me].at = At::Leave(end);
        moves.step(me, next);
    }

    fn step(&self, state: &State, me: usize, moves: &mut Moves<State>) {
        let mut next = *state;
        let mine = state.seats.token(me);
        let word = state.word;
        let parties = u8::try_from(self.parties).expect("few");
        let process = &mut next.processes[me];
        process.at = match process.at {
            At::Outside if process.rounds == 0 => return,
            At::Outside => At::Arrive(Attempt::First),
            At::Arrive(attempt) if word.is_draining() => {
                let (then, failed) = (Then::Arrive(attempt), Then::ArriveFailed(attempt));
                At::BeginNext { from: 0, seen: None, then, failed }
            }
            At::Arrive(_) if word.field == Field::Broken => return self.end(next, me, End::Broken, moves),
            At::Arrive(attempt) if word.field == Field::Nothing => {
                At::Take { from: 0, round: word.round, attempt }
            }
            At::Arrive(attempt) => Self::go_on(Then::ArriveFailed(attempt)),
            At::Take { from, attempt, .. } if from == parties => Self::go_on(Then::ArriveFailed(attempt)),
            At::Take { from, round, attempt } => {
                let cell = &mut next.cells[usize::from(from)];
                if cell.owner.is_none() && cell.round != round {
                    *cell = Cell { round, owner: Some(mine) };
                    process.ticket = Some((round, from));
                    next.line.leave(me);
                    At::Wait(Attempt::First)
                } else {
                    At::Take { from: from + 1, round, attempt }
                }
            }
            At::BeginNext { seen: None, then, failed, .. } => match word.is_draining() {
                true => At::BeginNext { from: 0, seen: Some(word), then, failed },
                false => Self::go_on(failed),
            },
            At::BeginNext { from, seen: Some(seen), then, failed } if from == parties => {
                At::Swap { from: seen, to: seen.next(), then, failed }
            }
            At::BeginNext { from, seen, then, failed } => match state.cells[usize::from(from)].owner {
                None => At::BeginNext { from: from + 1, seen, then, failed },
                Some(_) => Self::go_on(failed),
            },
            At::ArmToArrive => {
                next.line.arm(me);
                At::Arrive(Attempt::Armed)
            }
            At::Forget(why) => {
                let before = self.is(Control::ForgetsByOldState).then_some(word);
                At::ForgetDead { from: 0, before, why }
            }
            At::ForgetDead { from, why, .. } if from == parties => match why {
                Forget::ToArrive => At::Arrive(Attempt::Last),
                Forget::ToReset => {
                    At::BeginNext { from: 0, seen: None, then: Then::Away, failed: Then::Away }
                }
            },
            At::ForgetDead { from, before, why } => {
                let dead = state.cells[usize::from(from)];
                let is_dead = dead.owner.is_some_and(|owner| self.seems_dead(state, owner, me));
                match is_dead && !self.is(Control::NoForgetting) {
                    true => At::LookAtRound { from, dead, before, why },
                    false => At::ForgetDead { from: from + 1, before, why },
                }
            }
            At::LookAtRound { from, dead, before, why } => {
                let word = before.unwrap_or(word);
                match word.is_draining() || dead.round != word.round {
                    true => At::Free { from, dead, before, why },
                    false => At::ForgetDead { from: from + 1, before, why },
                }
            }
            At::Free { from, dead, before, why } => {
                let cell = &mut next.cells[usize::from(from)];
                if *cell == dead {
                    cell.owner = None;
                }
                At::ForgetDead { from: from + 1, before, why }
            }
            At::SleepToArrive if state.line.is_asleep(me) => match next.line.look_around(me) {
                true => At::ArmToArrive,
                false => return,
            },
            At::SleepToArrive => {
                if self.impatient {
                    let mut next = *state;
                    next.processes[me].at = At::Abort(End::TimedOut);
                    moves.step(me, next);
                }
                next.line.sleep(me);
                match next.line.is_asleep(me) {
                    true => At::SleepToArrive,
                    false => At::ArmToArrive,
                }
            }
            At::Wait(attempt) => match (process.ticket, word.phase) {
                (Some((round, _)), _) if round != word.round => At::Leave(End::TooLate),
                (_, Phase::Passed) => return self.learn(next, me, End::Passed, moves),
                (_, Phase::Reset) => return self.learn(next, me, End::Broken, moves),
                (_, Phase::Filling) => match word.field {
                    Field::Broken => return self.learn(next, me, End::Broken, moves),
                    Field::Leader(_) => Self::go_on(Then::WaitFailed(attempt)),
                    // Whoever polls leaves it to the last one that came.
                    Field::Nothing if attempt == Attempt::Armed => Self::go_on(Then::WaitFailed(attempt)),
                    Field::Nothing => {
                        let dead = |cell: &Cell| cell.owner.is_some_and(|owner| state.seats.is_dead(owner));
                        let in_round = |cell: &&Cell| cell.round == word.round;
                        process.saw_dead = state.cells.iter().filter(in_round).any(dead);
                        At::Count { from: 0, seen: word, attempt }
                    }
                },
            },
            At::Count { from, seen, attempt } if from == parties => At::Ask { from: 0, seen, attempt },
            At::Count { from, seen, attempt } => {
                let cell = state.cells[usize::from(from)];
                match cell.owner.is_some() && cell.round == seen.round {
                    true => At::Count { from: from + 1, seen, attempt },
                    false => Self::go_on(Then::WaitFailed(attempt)),
                }
            }
            At::Ask { from, seen, attempt } => {
                let failed = Then::WaitFailed(attempt);
                let cell = state.cells.get(usize::from(from)).filter(|_| from < parties);
                match cell {
                    Some(Cell { round, owner: Some(owner) })
                        if *round == seen.round && self.seems_dead(state, *owner, me) =>
                    {
                        At::Swap { from: seen, to: seen.broken(), then: failed, failed }
                    }
                    Some(_) => At::Ask { from: from + 1, seen, attempt },
                    None if self.acts => {
                        let to = Word { field: Field::Leader(mine), ..seen };
                        At::Swap { from: seen, to, then: Then::Act, failed }
                    }
                    None => {
                        At::Swap { from: seen, to: seen.passed(), then: Then::Leave(End::Passed), failed }
                    }
                }
            }
            At::Swap { from, to, then, failed } => {
                let passes = to == from.passed() && to != from;
                if word != from && !(passes && self.is(Control::PassesByStore)) {
                    process.at = Self::go_on(failed);
                } else {
                    return self.swap(next, me, to, then, moves);
                }
                process.at
            }
            At::ArmToPass => {
                next.line.arm(me);
                At::Wait(Attempt::Armed)
            }
            At::LookAround => match word.field {
                Field::Leader(leader) if self.seems_dead(state, leader, me) => {
                    let then = Then::LookAtParties;
                    At::Swap { from: word, to: word.broken(), then, failed: then }
                }
                _ => At::LookAtParties,
            },
            At::LookAtParties => {
                let is_open = word.phase == Phase::Filling && word.field == Field::Nothing;
                let asks = match process.ticket {
                    Some((round, _)) => round == word.round,
                    None => !self.is(Control::NewcomersDoNotAsk),
                };
                match is_open && asks {
                    true => At::AskAround { from: 0, seen: word },
                    false => Self::go_on(Then::HasLooked),
                }
            }
            At::AskAround { from, seen } => match state.cells.get(usize::from(from)) {
                Some(Cell { round, owner: Some(owner) })
                    if *round == seen.round && self.seems_dead(state, *owner, me) =>
                {
                    let then = Then::HasLooked;
                    At::Swap { from: seen, to: seen.broken(), then, failed: then }
                }
                Some(_) if from < parties => At::AskAround { from: from + 1, seen },
                _ => At::HasLooked,
            },
            At::HasLooked => match process.ticket {
                Some(_) => At::Wait(Attempt::Last),
                None => At::Forget(Forget::ToArrive),
            },
            At::SleepToPass if state.line.is_asleep(me) => match next.line.look_around(me) {
                true => At::ArmToPass,
                false => return,
            },
            At::SleepToPass => {
                if self.impatient {
                    let mut next = *state;
                    next.processes[me].at = At::GiveUp;
                    moves.step(me, next);
                }
                next.line.sleep(me);
                match next.line.is_asleep(me) {
                    true => At::SleepToPass,
                    false => At::ArmToPass,
                }
            }
            At::GiveUp => match (process.ticket, word.phase) {
                (Some((round, _)), _) if round != word.round => At::Abort(End::TimedOut),
                (_, Phase::Passed) => return self.learn(next, me, End::Passed, moves),
                (_, Phase::Reset) => return self.learn(next, me, End::Broken, moves),
                (_, Phase::Filling) if word.field == Field::Broken => {
                    return self.learn(next, me, End::Broken, moves);
                }
                // Read and swapped until it succeeds, thus in one step.
                (_, Phase::Filling) => {
                    next.may_break = true;
                    return self.swap(next, me, word.broken(), Then::Leave(End::TimedOut), moves);
                }
            },
            At::Act => {
                let seen = Word { phase: Phase::Filling, field: Field::Leader(mine), ..word };
                match word == seen {
                    true => return self.swap(next, me, word.passed(), Then::Leave(End::Passed), moves),
                    false => return self.learn(next, me, End::Broken, moves),
                }
            }
            At::Leave(End::TooLate) if process.is_counted => {
                return moves.violation(me, "a party that was counted does not pass");
            }
            At::Leave(end) => {
                let (_, place) = process.ticket.expect("whoever leaves has a cell");
                let cell = &mut next.cells[usize::from(place)];
                cell.owner = None;
                if self.is(Control::CellsForgetRound) {
                    cell.round = 0;
                }
                if process.knows || end == End::TimedOut {
                    process.knows = true;
                }
                process.ticket = None;
                let (then, failed) = (Then::Return(end), Then::Left(end));
                At::BeginNext { from: 0, seen: None, then, failed }
            }
            // A cell that came too late may have been in the way of the present round.
            At::Left(end) if !word.is_draining() => At::Notify(Then::Return(end)),
            At::Left(end) => return self.end(next, me, end, moves),
            At::Abort(end) => {
                let then = if process.ticket.is_some() { Then::Leave(end) } else { Then::Return(end) };
                // The round of a leader is complete without this party.
                let to = match word.field {
                    Field::Leader(_) if !self.is(Control::BreaksTheLeader) => word,
                    _ => word.broken(),
                };
                next.may_break |= !matches!(word.field, Field::Leader(_));
                return self.swap(next, me, to, then, moves);
            }
            At::Reset => {
                next.may_break = true;
                return self.swap(next, me, word.reset(), Then::Forget(Forget::ToReset), moves);
            }
            At::Notify(then) if next.line.clear() => At::Wake(then),
            At::Notify(then) => return self.follow(next, me, then, moves),
            At::Wake(then) => {
                let woken = next.line.wake_all();
                if self.is(Control::WakesOne) {
                    for line in next.line.wake_one() {
                        self.follow(State { line, ..next }, me, then, moves);
                    }
                    return;
                }
                return self.follow(State { line: woken, ..next }, me, then, moves);
            }
        };
        moves.step(me, next);
    }

    /// What comes after the wake-ups.
    fn follow(&self, mut next: State, me: usize, then: Then, moves: &mut Moves<State>) {
        next.processes[me].at = match then {
            Then::Return(end) => return self.end(next, me, end, moves),
            then => Self::go_on(then),
        };
        moves.step(me, next);
    }

    /// The state becomes `to`.
    fn swap(&self, mut next: State, me: usize, to: Word, then: Then, moves: &mut Moves<State>) {
        let from = std::mem::replace(&mut next.word, to);
        if from == to {
            return self.follow(next, me, then, moves);
        }
        if from.phase == Phase::Filling && to.phase == Phase::Passed {
            let round = &mut next.round;
            if std::mem::replace(&mut round.has_leader, true) {
                return moves.violation(me, "two lead a round");
            }
            round.passed += 1;
            if round.has_failed {
                return moves.violation(me, "some pass and some do not");
            }
            if next.processes[me].saw_dead {
                return moves.violation(me, "a party that was dead is counted");
            }
            next.processes[me].knows = true;
            let is_counted = |(place, cell): (usize, &Cell)| {
                cell.owner.is_some_and(|owner| {
                    let party = &next.processes[usize::from(owner.index)];
                    let waits = party
                        .ticket
                        .is_some_and(|(round, own)| round == from.round && usize::from(own) == place);
                    cell.round == from.round && (waits || next.seats.is_dead(owner))
                })
            };
            if !next.cells[..self.parties].iter().enumerate().all(is_counted) {
                return moves.violation(me, "a round passes, and not all have come");
            }
            for process in &mut next.processes {
                process.is_counted |= process.ticket.is_some_and(|(round, _)| round == from.round);
            }
            if self.is(Control::NewcomersDoNotWait) {
                next.word = to.next();
                next.round = NO_RESULT;
            }
        }
        if to.round != from.round {
            let Round { passed, died, .. } = next.round;
            if passed > 0 && usize::from(passed + died) != self.parties {
                return moves.violation(me, "a round ends, and not all have passed");
            }
            next.round = NO_RESULT;
        }
        next.processes[me].at = At::Notify(then);
        moves.step(me, next);
    }

    fn die(&self, state: &State, me: usize, moves: &mut Moves<State>) {
        let dying = state.processes[me];
        let Some(seats) = state.seats.death(me).filter(|_| dying != OUTSIDE) else {
            return;
        };
        let mut next = State { seats, may_break: true, ..*state };
        let is_counted = dying.ticket.is_some_and(|(round, _)| round == state.word.round) && !dying.knows;
        next.round.died += u8::from(is_counted);
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

impl Model for Barrier {
    type State = State;

    fn start(&self) -> State {
        let mut processes = [OUTSIDE; MAX];
        processes[..self.processes].iter_mut().for_each(|process| process.rounds = self.rounds);
        State {
            word: Word { round: 1, phase: Phase::Filling, field: Field::Nothing },
            cells: [Cell { round: 0, owner: None }; MAX],
            line: Line::new(),
            seats: Seats::new(self.crashes, self.reissues),
            processes,
            round: NO_RESULT,
            may_break: false,
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

    /// All have done what they wanted, or those who are left are too few and sleep in an open round.
    fn is_finished(&self, state: &State) -> bool {
        let is_open = state.word.phase == Phase::Filling && state.word.field == Field::Nothing;
        let mut waiting = 0;
        let rests = |(me, process): (usize, &Process)| {
            let sleeps = process.at == At::SleepToPass && state.line.is_asleep(me);
            let waits =
                sleeps && is_open && process.ticket.is_some_and(|(round, _)| round == state.word.round);
            waiting += usize::from(waits);
            waits || *process == OUTSIDE
        };
        let all_rest = state.processes.iter().enumerate().all(rests);
        let in_round = |cell: &&Cell| cell.owner.is_some() && cell.round == state.word.round;
        let taken = state.cells.iter().filter(in_round).count();
        all_rest && (waiting == 0 || waiting < self.parties && taken == waiting)
    }
}
