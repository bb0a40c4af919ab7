//! [`Barrier`]: a number of parties wait for each other.
//!
//! # Memory
//!
//! ```text
//! state    bits 32..64  round
//!          bits 30..32  FILLING | PASSED | RESET
//!          bits 0..30   0 | BROKEN | the token of the leader, while it runs the action
//! cells    one per party:  bits 32..64  round    in which it was last taken
//!                          bits 0..30   owner    0 free | the party's token
//! line     where those sleep who wait for the others
//! ```
//!
//! # States
//!
//! ```text
//! FILLING       --all cells are taken in this round, by the living-->  PASSED, or leader, and then PASSED
//! FILLING       --somebody died, gave up or called abort-->            FILLING BROKEN; whoever gives up before it is
//!                                                                      counted leaves a leader alone
//! FILLING       --reset-->                                             RESET
//! PASSED, RESET --every cell is free-->                                FILLING of the next round
//! PASSED, RESET --abort-->     the same with BROKEN, which the next round inherits;  reset takes it off again
//! ```
//!
//! # Normal path
//!
//! A party takes a cell that was not taken in this round yet, and looks whether all are. Whoever sees that first is the
//! leader and makes the round PASSED (a function of the state alone, so any waiter can, and does before it sleeps). Each
//! frees its cell when it has seen how the round ended, and the last one begins the next round. Until then newcomers wait:
//! otherwise a slow party would find a later round and could not tell how its own has ended.
//!
//! # The race that looks scary
//!
//! A party reads FILLING and the round, sleeps long, and takes a cell. If its round has passed by then, every cell was taken
//! in that round, and a cell keeps its round when it is freed: the compare-and-swap fails. If the round was reset, it may
//! take a cell that nobody had taken. Nobody counts that one: whoever looks at the state *after* taking a cell, and finds
//! another round there, knows that it came too late, frees the cell and begins again. A party that was counted cannot find
//! another round: that begins when its cell is free.
//!
//! Two last parties each take a cell and then look at all: in the order of `SeqCst` at least one of them sees all taken.
//!
//! # If a process dies
//!
//! * waiting: whoever else waits in that round asks the oracle about the owners before every sleep, and so does whoever
//!   would complete it, and a newcomer that finds no cell: the round is broken for all;
//! * as the leader, in the action: likewise. Between PASSED and the wake-up: the others find out at the end of their slice;
//! * leaving: a newcomer that waits for the cell asks the oracle and frees it;
//! * before it has taken a cell: nobody can know that it would have come.

mod state;

use super::line::{ALL, Line, deadline_after, must_be_attached};
#[cfg(not(loom))]
use crate::error::{Error, Kind};
use shm_core::crash_point;
use shm_core::fork::ForkStamp;
use shm_core::owner::Owner;
use shm_core::sync::{AtomicU32, AtomicU64, Ordering, seq_cst_in_model};
use state::{Seat, Standing, State};
use std::fmt;
use std::time::{Duration, Instant};

/// What a model can weaken by name: the fence between the own cell and the look at the others. It does in a model what the
/// `SeqCst` of each access does natively, so a model cannot tell those apart.
#[cfg(loom)]
pub const ORDERINGS: &[&str] = &["seq_cst"];

/// A number of parties, threads or processes, that wait for each other, again and again: Python's `Barrier`.
///
/// A round passes when as many parties wait as the barrier was made for; then all go on, and what each did before is seen by
/// all. Who the parties are does not matter, only how many. `MAX` is the most parties that there is room for, 8 bytes each.
///
/// A barrier breaks when a party dies while it waits, gives up at its deadline, or calls [`abort`](Barrier::abort):
/// everybody gets [`BarrierError::Broken`], until somebody calls [`reset`](Barrier::reset).
///
/// # If the peer dies
///
/// While it waits: the barrier breaks for all. Before it has come: nobody knows whether it would have; wait with a
/// timeout, or let whoever learns of the death call `abort`.
///
/// # Across processes
///
/// Put it into a [`Shared`](crate::Shared). Calls that return no error panic in a forked child that could not attach again.
///
/// # Examples
///
/// ```
/// use shm_array::{Barrier, Shared};
///
/// let start = Shared::new(Barrier::new(2))?;
/// let other = start.clone();                              // or in another process
/// let thread = std::thread::spawn(move || other.wait().map(|round| round.is_leader()));
/// let (one, two) = (start.wait()?.is_leader(), thread.join().unwrap()?);
/// assert!(one != two);                                    // exactly one leads
/// # Ok::<_, shm_array::Error>(())
/// ```
#[cfg_attr(not(loom), repr(C))]
pub struct Barrier<const MAX: usize = 64> {
    state: AtomicU64,
    parties: AtomicU32,
    line: Line,
    cells: [AtomicU64; MAX],
}

/// How a party passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarrierWaitResult {
    index: usize,
    is_leader: bool,
}

impl BarrierWaitResult {
    /// A number that no other party has in this round: 0 up to the number of parties, without it.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Whether this is the one party of the round that completed it, and ran the action if it had one.
    pub fn is_leader(&self) -> bool {
        self.is_leader
    }
}

/// Why a party did not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BarrierError {
    /// The barrier is broken, or was reset meanwhile: a party died while it waited, gave up, or called `abort` or `reset`.
    #[error("the barrier is broken: a party died, gave up or called it off")]
    Broken,
    /// The others did not come in time. That broke the barrier for all.
    #[error("not all parties came to the barrier in time")]
    TimedOut,
    /// The process was forked after it had attached, and could not attach again; or it was forked in the action.
    #[error("the process was forked and could not attach to the barrier's memory again")]
    Forked,
}

/// How an attempt to pass ends.
enum Turn {
    Passed,
    /// All are here, and this party runs the action.
    Lead(State),
    /// All were here, and this party has made the round PASSED.
    Completed,
    Broken,
    TooLate,
}

/// Breaks the round and wakes all unless it is told that the action came to its end.
struct Acting<'a, const MAX: usize> {
    barrier: &'a Barrier<MAX>,
    state: State,
    stamp: ForkStamp,
    place: usize,
}

impl<const MAX: usize> Drop for Acting<'_, MAX> {
    fn drop(&mut self) {
        if self.stamp.check().is_ok() {
            self.barrier.swap(self.state, self.state.broken());
            self.barrier.leave(self.place);
        }
    }
}

impl Barrier {
    const_in_memory! {
        /// A barrier for so many parties, room for 64.
        ///
        /// # Panics
        ///
        /// If there are none, or more than 64; at compile time in a constant. See [`Barrier::try_new`].
        pub fn new(parties: usize) -> Self {
            Self::with_limit(parties)
        }
    }

    /// A barrier for so many parties, room for 64.
    ///
    /// # Errors
    ///
    /// `is_out_of_range` if there are none, or more than 64.
    #[cfg(not(loom))]
    pub fn try_new(parties: usize) -> Result<Self, Error> {
        Self::try_with_limit(parties)
    }
}

impl<const MAX: usize> Barrier<MAX> {
    const_in_memory! {
        /// A barrier for so many parties, and room for `MAX`.
        ///
        /// # Panics
        ///
        /// If there are none, or more than `MAX`; at compile time in a constant.
        pub fn with_limit(parties: usize) -> Self {
            assert!(0 < parties && parties <= MAX, "a barrier has 1 to MAX parties");
            Self::of(parties)
        }
    }

    /// A barrier for so many parties, and room for `MAX`.
    ///
    /// # Errors
    ///
    /// `is_out_of_range` if there are none, or more than `MAX`.
    #[cfg(not(loom))]
    pub fn try_with_limit(parties: usize) -> Result<Self, Error> {
        if parties == 0 || parties > MAX {
            let (value, limit) = (parties as u64, MAX as u64);
            return Err(Kind::Argument { what: "the number of parties, at least 1,", value, limit }.into());
        }
        Ok(Self::of(parties))
    }

    #[cfg(not(loom))]
    #[allow(clippy::cast_possible_truncation, reason = "nobody has room for that many cells")]
    const fn of(parties: usize) -> Self {
        let cells = [const { AtomicU64::new(0) }; MAX];
        let state = AtomicU64::new(State::FIRST.0);
        Self { state, parties: AtomicU32::new(parties as u32), line: Line::new(), cells }
    }

    #[cfg(loom)]
    fn of(parties: usize) -> Self {
        let cells = std::array::from_fn(|_| AtomicU64::new(0));
        let state = AtomicU64::new(State::FIRST.0);
        Self { state, parties: AtomicU32::new(parties as u32), line: Line::new(), cells }
    }

    /// Waits for the other parties. Blocks until all are there; woken by the last one.
    ///
    /// # Errors
    ///
    /// [`BarrierError::Broken`] and [`BarrierError::Forked`].
    pub fn wait(&self) -> Result<BarrierWaitResult, BarrierError> {
        self.wait_before(None, None::<fn()>)
    }

    /// The same; when all are there, one of them runs its `action`, and then all go on. Each party should pass the same.
    ///
    /// If the action panics, or its process dies in it, the barrier breaks.
    ///
    /// # Errors
    ///
    /// [`BarrierError::Broken`], also if somebody aborted or reset it during the action, and [`BarrierError::Forked`].
    pub fn wait_with(&self, action: impl FnOnce()) -> Result<BarrierWaitResult, BarrierError> {
        self.wait_before(None, Some(action))
    }

    /// Waits for at most `timeout`. If not all are there by then, the barrier breaks.
    ///
    /// # Errors
    ///
    /// [`BarrierError::TimedOut`], [`BarrierError::Broken`] and [`BarrierError::Forked`].
    pub fn wait_timeout(&self, timeout: Duration) -> Result<BarrierWaitResult, BarrierError> {
        self.wait_before(deadline_after(timeout), None::<fn()>)
    }

    /// Waits until `deadline` at the latest. If not all are there by then, the barrier breaks.
    ///
    /// # Errors
    ///
    /// [`BarrierError::TimedOut`], [`BarrierError::Broken`] and [`BarrierError::Forked`].
    pub fn wait_until(&self, deadline: Instant) -> Result<BarrierWaitResult, BarrierError> {
        self.wait_before(Some(deadline), None::<fn()>)
    }

    /// As [`wait_with`](Self::wait_with) and [`wait_timeout`](Self::wait_timeout). The deadline also holds while another
    /// party runs the action.
    ///
    /// # Errors
    ///
    /// Those of both.
    pub fn wait_with_timeout(
        &self,
        timeout: Duration,
        action: impl FnOnce(),
    ) -> Result<BarrierWaitResult, BarrierError> {
        self.wait_before(deadline_after(timeout), Some(action))
    }

    /// Breaks the barrier: whoever waits, or comes later, gets an error. A round that has passed is not touched; one whose
    /// action still runs is broken. Never blocks.
    pub fn abort(&self) {
        must_be_attached(self);
        self.change(State::broken);
    }

    /// Makes the barrier as new: whoever waits gets an error, whoever comes later waits for a new round. Never blocks.
    pub fn reset(&self) {
        must_be_attached(self);
        self.change(State::reset);
        self.forget_dead();
        self.begin_next();
    }

    /// Whether the barrier is broken. May be stale at once.
    pub fn is_broken(&self) -> bool {
        must_be_attached(self);
        self.now().is_broken()
    }

    /// How many parties make a round.
    pub fn parties(&self) -> usize {
        must_be_attached(self);
        self.cells().len()
    }

    /// How many wait for the others. May be stale at once.
    pub fn n_waiting(&self) -> usize {
        must_be_attached(self);
        let state = self.now();
        match state.standing(state.round()) {
            Standing::Open | Standing::Acting(_) => self.taken(state.round()).count(),
            _ => 0,
        }
    }

    /// For models: arrives, and does nothing more, as a process that dies there.
    #[cfg(loom)]
    #[doc(hidden)]
    pub fn abandon(&self) {
        let me = Owner::here(self).expect("never in a model");
        let arrived = self.line.wait(None, || self.arrive(me), || self.look_before(me));
        assert!(arrived.is_some());
    }

    fn wait_before(
        &self,
        deadline: Option<Instant>,
        mut action: Option<impl FnOnce()>,
    ) -> Result<BarrierWaitResult, BarrierError> {
        let me = Owner::here(self).map_err(|_| BarrierError::Forked)?;
        loop {
            let arrived = self.line.wait(deadline, || self.arrive(me), || self.look_before(me));
            let Some(arrived) = arrived else {
                self.stay_away();
                return Err(BarrierError::TimedOut);
            };
            let (round, place) = arrived?;
            let has_action = action.is_some();
            // Whoever comes last completes the round at once; the others see to it before they sleep, should it have died.
            // So usually one asks the oracle, and not all who poll.
            let turn = self.attempt(round, me, has_action).or_else(|| {
                self.line.wait(
                    deadline,
                    || Self::outcome(self.now().standing(round)),
                    || {
                        self.break_if_dead(round, me);
                        self.attempt(round, me, has_action)
                    },
                )
            });
            let turn = turn.or_else(|| self.give_up(round));
            let passed = |is_leader| Ok(BarrierWaitResult { index: place, is_leader });
            let left = |result| {
                self.leave(place);
                result
            };
            match turn {
                Some(Turn::Passed) => return left(passed(false)),
                Some(Turn::Completed) => return left(passed(true)),
                Some(Turn::Lead(state)) => {
                    let acting = Acting { barrier: self, state, stamp: ForkStamp::now(), place };
                    return acting.run(action.take());
                }
                Some(Turn::Broken) => return left(Err(BarrierError::Broken)),
                Some(Turn::TooLate) => self.leave(place),
                None => return left(Err(BarrierError::TimedOut)),
            }
        }
    }

    // ---- arriving

    /// Takes a cell for the present round.
    fn arrive(&self, me: Owner) -> Option<Result<(u32, usize), BarrierError>> {
        loop {
            let state = self.now();
            if state.is_draining() {
                if !self.begin_next() {
                    return None;
                }
                continue;
            }
            return match state.standing(state.round()) {
                Standing::Broken => Some(Err(BarrierError::Broken)),
                Standing::Open => {
                    let place = self.take_cell(state.round(), me)?;
                    crash_point!("barrier.arrived");
                    Some(Ok((state.round(), place)))
                }
                _ => None,
            };
        }
    }

    fn take_cell(&self, round: u32, me: Owner) -> Option<usize> {
        self.cells().iter().position(|cell| {
            // Relaxed: compared by the swap.
            let seen = Seat(cell.load(Ordering::Relaxed));
            let taken = Seat::taken(round, me).0;
            // SYNC barrier: Release, whatever was done before is seen by all who pass; pairs with `taken`. SeqCst: before
            // the look at the others' cells, and at the state.
            seen.is_free()
                && seen.round() != round
                && cell.compare_exchange(seen.0, taken, Ordering::SeqCst, Ordering::Relaxed).is_ok()
        })
    }

    /// What a newcomer can do about those who are in its way: breaks a round whose parties have died, perhaps all of them,
    /// and frees the cells of those who died leaving.
    fn look_before<R>(&self, me: Owner) -> Option<R> {
        self.break_if_dead(self.now().round(), me);
        self.forget_dead();
        None
    }

    // ---- waiting

    /// How the round of a party has ended, if it has.
    fn outcome(standing: Standing) -> Option<Turn> {
        match standing {
            Standing::Over => Some(Turn::TooLate),
            Standing::Passed => Some(Turn::Passed),
            Standing::Broken => Some(Turn::Broken),
            Standing::Acting(_) | Standing::Open => None,
        }
    }

    /// The same, and completes the round if all are there.
    fn attempt(&self, round: u32, me: Owner, has_action: bool) -> Option<Turn> {
        // SYNC barrier: the own cell before the state and the others' cells, in the order of SeqCst.
        seq_cst_in_model();
        let state = self.now();
        match state.standing(round) {
            Standing::Open if self.taken(round).count() < self.cells().len() => None,
            Standing::Open if self.is_any_dead(round, me) => {
                self.swap(state, state.broken());
                None
            }
            Standing::Open if has_action => {
                let acting = state.acting(me);
                self.swap(state, acting).then_some(Turn::Lead(acting))
            }
            Standing::Open => self.swap(state, state.passed()).then_some(Turn::Completed),
            ended => Self::outcome(ended),
        }
    }

    /// Breaks the round if a party of it is dead, or its leader.
    fn break_if_dead(&self, round: u32, me: Owner) {
        self.break_if_leader_died();
        let state = self.now();
        if state.standing(round) == Standing::Open && self.is_any_dead(round, me) {
            self.swap(state, state.broken());
        }
    }

    fn break_if_leader_died(&self) {
        let state = self.now();
        if let Standing::Acting(leader) = state.standing(state.round()) {
            if leader.is_dead(self) {
                self.swap(state, state.broken());
            }
        }
    }

    /// Whether a party that waits in the round is dead. A system call for each one.
    fn is_any_dead(&self, round: u32, me: Owner) -> bool {
        // What no process writes is nobody's.
        self.taken(round).any(|seat| match seat.owner() {
            Some(owner) => owner != me && owner.is_dead(self),
            None => true,
        })
    }

    /// The deadline has passed: breaks the round, unless it has ended. Nothing if this party broke it.
    fn give_up(&self, round: u32) -> Option<Turn> {
        loop {
            let state = self.now();
            match state.standing(round) {
                Standing::Passed => return Some(Turn::Passed),
                Standing::Broken => return Some(Turn::Broken),
                Standing::Open | Standing::Acting(_) if !self.swap(state, state.broken()) => {}
                // Too late for its round: it has waited for nothing, and broken nothing yet.
                Standing::Over => {
                    self.stay_away();
                    return None;
                }
                Standing::Open | Standing::Acting(_) => return None,
            }
        }
    }

    /// The deadline has passed before this party was counted in a round: breaks the one that would have counted it. A round
    /// whose leader acts is complete without it.
    fn stay_away(&self) {
        self.change(|state| match state.standing(state.round()) {
            Standing::Acting(_) => state,
            _ => state.broken(),
        });
    }

    // ---- leaving

    /// Frees the cell; the last one begins the next round.
    fn leave(&self, place: usize) {
        let cell = &self.cells[place];
        crash_point!("barrier.leaving");
        // SeqCst: before the look at the others' cells.
        let seat = Seat(cell.load(Ordering::Relaxed));
        cell.swap(seat.freed().0, Ordering::SeqCst);
        crash_point!("barrier.left");
        // SYNC barrier: of the last two, one sees both cells free.
        seq_cst_in_model();
        if !self.begin_next() && !self.now().is_draining() {
            // A cell that came too late for its round was in the way of the present one.
            self.line.notify(ALL);
        }
    }

    /// Begins the next round if everybody has left this one.
    fn begin_next(&self) -> bool {
        let state = self.now();
        let is_free = |cell: &AtomicU64| Seat(cell.load(Ordering::SeqCst)).is_free();
        state.is_draining() && self.cells().iter().all(is_free) && self.swap(state, state.next())
    }

    /// Frees the cells of the dead when their round is over.
    fn forget_dead(&self) {
        for cell in self.cells() {
            // SeqCst: the cell before the state. A cell that was taken in a later round than that of the state is not over.
            let seat = Seat(cell.load(Ordering::SeqCst));
            let state = self.now();
            let is_over = state.is_draining() || seat.round() != state.round();
            if !seat.is_free() && is_over && seat.owner().is_none_or(|owner| owner.is_dead(self)) {
                crash_point!("barrier.forgetting");
                let _ = cell.compare_exchange(seat.0, seat.freed().0, Ordering::SeqCst, Ordering::Relaxed);
            }
        }
    }

    // ---- words

    fn now(&self) -> State {
        // SYNC barrier: whoever finds the round passed sees what all did before; pairs with `swap`.
        State(self.state.load(Ordering::SeqCst))
    }

    /// One compare-and-swap of the exact state, and a wake-up of all.
    fn swap(&self, from: State, to: State) -> bool {
        // SYNC barrier: Release, pairs with `now`: whoever completes the round has seen all cells, and passes that on.
        let swapped = self.state.compare_exchange(from.0, to.0, Ordering::SeqCst, Ordering::Relaxed).is_ok();
        if swapped {
            crash_point!("barrier.swapped");
            self.line.notify(ALL);
        }
        swapped
    }

    /// From whatever state there is.
    fn change(&self, to: impl Fn(State) -> State) {
        loop {
            let state = self.now();
            if to(state) == state || self.swap(state, to(state)) {
                return;
            }
        }
    }

    /// The cells that are taken in the round.
    fn taken(&self, round: u32) -> impl Iterator<Item = Seat> {
        // SYNC barrier: Acquire, pairs with `take_cell`.
        let seats = self.cells().iter().map(|cell| Seat(cell.load(Ordering::SeqCst)));
        seats.filter(move |seat| seat.round() == round && !seat.is_free())
    }

    /// One cell per party; whatever another process writes as their number, not more than there are.
    fn cells(&self) -> &[AtomicU64] {
        // Relaxed: it does not change.
        let parties = self.parties.load(Ordering::Relaxed) as usize;
        &self.cells[..parties.min(MAX)]
    }
}

impl<const MAX: usize> Acting<'_, MAX> {
    fn run(self, action: Option<impl FnOnce()>) -> Result<BarrierWaitResult, BarrierError> {
        crash_point!("barrier.acting");
        if let Some(action) = action {
            action();
        }
        if self.stamp.check().is_err() {
            return Err(BarrierError::Forked);
        }
        // What is dropped then finds another state, and only leaves.
        if self.barrier.swap(self.state, self.state.passed()) {
            Ok(BarrierWaitResult { index: self.place, is_leader: true })
        } else {
            Err(BarrierError::Broken)
        }
    }
}

impl<const MAX: usize> fmt::Debug for Barrier<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Barrier")
            .field("parties", &self.parties())
            .field("waiting", &self.n_waiting())
            .field("broken", &self.is_broken())
            .finish()
    }
}

#[cfg(not(loom))]
#[allow(unsafe_code, reason = "the one line")]
// SAFETY: atomics in a fixed order.
unsafe impl<const MAX: usize> shm_core::ShmSafe for Barrier<MAX> {
    const LAYOUT: u64 = shm_core::portable::mix(shm_core::portable::layout_of::<Self>("Barrier"), MAX as u64);
}
