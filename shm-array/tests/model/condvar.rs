//! The condition variable of `src/lock/condvar.rs`: counts of (waiters, signals, late, round, epoch), and a sequence.
//!
//! ```text
//! wait     under the lock: waiters + 1, late + 1 if there are signals; remember round and epoch; unlock
//!          read the sequence, then the counts: a signal from a later round, or another epoch? lock, and take it
//!          else sleep while the sequence is as it was. A slice in which signals stayed untaken: epoch + 1, counts zero
//! notify   signals + n, at most as many as wait, at least the late ones; round + 1, late 0; step the sequence; wake n
//!          and those who are late by now
//! ```
//!
//! Each waiter waits once. What must hold when nothing moves any more: each notification has woken somebody who was
//! registered when it came, one for each, as long as somebody is left asleep who was. Whoever died before it took a signal
//! does not count; sleeps end by themselves only where somebody has died.
//!
//! Whoever comes between the step of the counts and that of the sequence may be woken in place of an earlier one: so the late
//! ones are woken too. Sleepers are woken in the order in which they went to sleep, as the kernel does.

use crate::explore::{Model, Moves};
use crate::seats::{MAX, Seats};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    /// A waiter takes signals that were given before it came.
    LateOnesTake,
    /// A notification does not make up for late ones, who may take from now on.
    LateOnesForgotten,
    /// A notification wakes as many as it has given signals to, whoever they are.
    LateOnesSleepOn,
    /// A waiter reads the counts before the sequence.
    CountsBeforeSequence,
    /// A notifier steps the sequence before the counts.
    StepsFirst,
    /// A waiter takes its signal before it has the lock.
    TakesOutsideTheLock,
}

pub(crate) struct Condvar {
    pub(crate) waiters: usize,
    pub(crate) notifications: u8,
    pub(crate) crashes: u8,
    /// Waiters may give up.
    pub(crate) impatient: bool,
    pub(crate) control: Option<Control>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct State {
    counts: Counts,
    sequence: u8,
    /// Who has the lock.
    lock: Option<u8>,
    seats: Seats,
    waiters: [Waiter; MAX],
    /// Who sleeps, in this order.
    asleep: [Option<u8>; MAX],
    notifier: Notifying,
    notifications_left: u8,
    somebody_died: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Counts {
    waiters: u8,
    signals: u8,
    late: u8,
    round: u8,
    epoch: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Waiter {
    at: Waiting,
    /// Round and epoch of its registration.
    ticket: (u8, u8),
    /// Which notifications came while it was registered; one bit for each.
    eligible: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Waiting {
    Outside,
    Register,
    Unlock,
    ReadSequence { counts: Option<Counts> },
    ReadCounts { sequence: u8 },
    Sleep { sequence: u8, counts: Counts },
    Asleep { counts: Counts },
    Reset { counts: Counts },
    Step,
    WakeAll,
    LockAgain { gives_up: bool },
    Leave { gives_up: bool },
    Done { woken: bool },
    Dead,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Notifying {
    Count { stepped: bool },
    Step { wakes: u8 },
    Wake { left: u8 },
    Rests,
}

#[derive(PartialEq, Eq)]
enum Call {
    None,
    Signal,
    Void,
}

impl State {
    fn fall_asleep(&mut self, me: usize) {
        let place = self.asleep.iter().position(Option::is_none).expect("a place for each");
        self.asleep[place] = Some(u8::try_from(me).expect("few"));
    }

    /// Takes `me` from the queue.
    fn wake(&mut self, me: usize) {
        if let Some(place) = self.asleep.iter().position(|&asleep| asleep.map(usize::from) == Some(me)) {
            self.asleep[place..].rotate_left(1);
            self.asleep[MAX - 1] = None;
        }
    }
}

impl Condvar {
    fn is(&self, control: Control) -> bool {
        self.control == Some(control)
    }

    fn call(&self, ticket: (u8, u8), counts: Counts) -> Call {
        let (round, epoch) = ticket;
        if counts.epoch != epoch {
            Call::Void
        } else if counts.signals > 0 && (counts.round != round || self.is(Control::LateOnesTake)) {
            Call::Signal
        } else {
            Call::None
        }
    }

    fn wait(&self, state: &State, me: usize, moves: &mut Moves<State>) {
        let mut next = *state;
        let counts = &mut next.counts;
        let waiter = &mut next.waiters[me];
        let ticket = waiter.ticket;
        let mine = Some(u8::try_from(me).expect("few"));
        let read_first = Waiting::ReadSequence { counts: None };
        waiter.at = match waiter.at {
            Waiting::Outside | Waiting::LockAgain { .. } if state.lock.is_some() => return,
            Waiting::Outside => {
                next.lock = mine;
                Waiting::Register
            }
            Waiting::Register => {
                counts.late += u8::from(counts.signals > 0);
                counts.waiters += 1;
                waiter.ticket = (counts.round, counts.epoch);
                Waiting::Unlock
            }
            Waiting::Unlock => {
                next.lock = None;
                read_first
            }
            Waiting::ReadSequence { counts: None } if self.is(Control::CountsBeforeSequence) => {
                match self.call(ticket, state.counts) {
                    Call::None => Waiting::ReadSequence { counts: Some(state.counts) },
                    _ => Waiting::LockAgain { gives_up: false },
                }
            }
            Waiting::ReadSequence { counts: Some(counts) } => {
                Waiting::Sleep { sequence: state.sequence, counts }
            }
            Waiting::ReadSequence { counts: None } => Waiting::ReadCounts { sequence: state.sequence },
            Waiting::ReadCounts { sequence } => match self.call(ticket, state.counts) {
                Call::None => Waiting::Sleep { sequence, counts: state.counts },
                Call::Signal if self.is(Control::TakesOutsideTheLock) => Waiting::Leave { gives_up: false },
                _ => Waiting::LockAgain { gives_up: false },
            },
            Waiting::Sleep { sequence, counts } => {
                if self.impatient {
                    let mut next = *state;
                    next.waiters[me].at = Waiting::LockAgain { gives_up: true };
                    moves.step(me, next);
                }
                if sequence == state.sequence {
                    waiter.at = Waiting::Asleep { counts };
                    next.fall_asleep(me);
                    return moves.step(me, next);
                }
                read_first
            }
            Waiting::Asleep { counts } if state.somebody_died => {
                waiter.at = if counts.signals > 0 { Waiting::Reset { counts } } else { read_first };
                next.wake(me);
                return moves.step(me, next);
            }
            Waiting::Asleep { .. } => return,
            Waiting::Reset { counts: seen } if *counts == seen => {
                *counts = Counts { waiters: 0, signals: 0, late: 0, round: 0, epoch: seen.epoch + 1 };
                Waiting::Step
            }
            Waiting::Reset { .. } => read_first,
            Waiting::Step => {
                next.sequence += 1;
                Waiting::WakeAll
            }
            Waiting::WakeAll => {
                for waiter in &mut next.waiters {
                    if matches!(waiter.at, Waiting::Asleep { .. }) {
                        waiter.at = read_first;
                    }
                }
                next.asleep = [None; MAX];
                next.waiters[me].at = read_first;
                return moves.step(me, next);
            }
            Waiting::LockAgain { gives_up } => {
                next.lock = mine;
                Waiting::Leave { gives_up }
            }
            Waiting::Leave { gives_up } => {
                let call = self.call(ticket, *counts);
                if call == Call::None && !gives_up {
                    if next.lock == mine {
                        next.lock = None;
                    }
                    waiter.at = read_first;
                    return moves.step(me, next);
                }
                if call != Call::Void {
                    let taken = u8::from(call == Call::Signal);
                    counts.waiters = counts.waiters.saturating_sub(1);
                    counts.signals = counts.waiters.min(counts.signals - taken);
                    counts.late = if counts.signals == 0 { 0 } else { counts.waiters.min(counts.late) };
                }
                if self.is(Control::TakesOutsideTheLock) && next.lock != mine {
                    // It has the signal, and goes for the lock.
                    waiter.ticket = (0, u8::MAX);
                    waiter.at = Waiting::LockAgain { gives_up: true };
                    return moves.step(me, next);
                }
                next.lock = None;
                Waiting::Done { woken: call != Call::None }
            }
            Waiting::Done { .. } | Waiting::Dead => return,
        };
        moves.step(me, next);
    }

    fn notify(&self, state: &State, me: usize, moves: &mut Moves<State>) {
        let mut next = *state;
        let counts = &mut next.counts;
        next.notifier = match state.notifier {
            Notifying::Rests => return,
            Notifying::Count { .. } if state.notifications_left == 0 => Notifying::Rests,
            Notifying::Count { stepped: false } if self.is(Control::StepsFirst) => {
                next.sequence += 1;
                Notifying::Count { stepped: true }
            }
            Notifying::Count { stepped } => {
                next.notifications_left -= 1;
                let bit = 1 << next.notifications_left;
                for waiter in &mut next.waiters {
                    let is_registered = !matches!(
                        waiter.at,
                        Waiting::Outside | Waiting::Register | Waiting::Done { .. } | Waiting::Dead
                    );
                    waiter.eligible |= if is_registered { bit } else { 0 };
                }
                let missing = counts.waiters.saturating_sub(counts.signals);
                let wanted = if self.is(Control::LateOnesForgotten) { 1 } else { counts.late.max(1) };
                let given = missing.min(wanted);
                if given > 0 {
                    (counts.signals, counts.late, counts.round) =
                        (counts.signals + given, 0, counts.round + 1);
                }
                match (given, stepped) {
                    (0, _) => Notifying::Count { stepped: false },
                    (_, false) => Notifying::Step { wakes: given },
                    (_, true) => Notifying::Wake { left: given },
                }
            }
            Notifying::Step { wakes } => {
                next.sequence += 1;
                let late = if self.is(Control::LateOnesSleepOn) { 0 } else { counts.late };
                Notifying::Wake { left: wakes + late }
            }
            Notifying::Wake { left } => match state.asleep[0].filter(|_| left > 0) {
                Some(sleeper) => {
                    next.wake(sleeper.into());
                    next.waiters[usize::from(sleeper)].at = Waiting::ReadSequence { counts: None };
                    Notifying::Wake { left: left - 1 }
                }
                None => Notifying::Count { stepped: false },
            },
        };
        moves.step(me, next);
    }

    fn die(&self, state: &State, me: usize, moves: &mut Moves<State>) {
        let Some(seats) = state.seats.death(me) else {
            return;
        };
        let mut next = State { seats, somebody_died: true, ..*state };
        let has_ended = match me == self.waiters {
            true => state.notifier == Notifying::Rests,
            false => matches!(state.waiters[me].at, Waiting::Done { .. }),
        };
        if has_ended {
            return;
        }
        // Whoever holds the lock dies as its holder: the next one is told.
        if state.lock.is_some_and(|holder| usize::from(holder) == me) {
            next.lock = None;
        }
        match me == self.waiters {
            true => next.notifier = Notifying::Rests,
            false => {
                next.wake(me);
                next.waiters[me].at = Waiting::Dead;
            }
        }
        moves.crash(me, next);
    }

    /// Whether the notifications in `wanted` can be given to different waiters among those from `from` on who woke.
    fn are_matched(&self, state: &State, wanted: u8, from: usize) -> bool {
        if wanted == 0 {
            return true;
        }
        let Some(waiter) = state.waiters.get(from) else {
            return false;
        };
        let woken = matches!(waiter.at, Waiting::Done { woken: true });
        let mine = if woken { waiter.eligible & wanted } else { 0 };
        let bits = (0..8).map(|bit| 1 << bit).filter(|bit| mine & bit != 0);
        bits.chain([0]).any(|bit| self.are_matched(state, wanted & !bit, from + 1))
    }
}

impl Model for Condvar {
    type State = State;

    fn start(&self) -> State {
        let mut waiters = [Waiter { at: Waiting::Done { woken: false }, ticket: (0, 0), eligible: 0 }; MAX];
        waiters[..self.waiters].iter_mut().for_each(|waiter| waiter.at = Waiting::Outside);
        State {
            counts: Counts { waiters: 0, signals: 0, late: 0, round: 0, epoch: 0 },
            sequence: 0,
            lock: None,
            seats: Seats::new(self.crashes, 0),
            waiters,
            asleep: [None; MAX],
            notifier: Notifying::Count { stepped: false },
            notifications_left: self.notifications,
            somebody_died: false,
        }
    }

    fn moves(&self, state: &State, moves: &mut Moves<State>) {
        for me in (0..=self.waiters).filter(|&me| state.seats.lives(me)) {
            match me == self.waiters {
                true => self.notify(state, me, moves),
                false => self.wait(state, me, moves),
            }
            self.die(state, me, moves);
        }
    }

    fn is_finished(&self, state: &State) -> bool {
        let rests = |waiter: &Waiter| match waiter.at {
            Waiting::Done { .. } | Waiting::Dead => true,
            Waiting::Asleep { .. } => self.are_matched(state, waiter.eligible, 0),
            _ => false,
        };
        state.notifier == Notifying::Rests && state.waiters.iter().all(rests)
    }
}
