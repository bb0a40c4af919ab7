//! Explores every interleaving of an arena's protocol for one object, with a crash before every step.
//!
//! ```text
//! process 0, 1   have handles, send tokens, receive, let go, fork; process 0 made the arena and fills the block again
//! process 2      the forked child of one of them
//! scanners       anybody who tries to free, at any time
//! sweeper        clears the marks of the dead, at any time
//! ```
//!
//! Bits, epoch, lanes and the order of the steps are those of `src/arena.rs`; counts of handles within one process are
//! changed in one step, because they are left and reached at zero inside the fork window.
#![cfg(not(loom))]

#[path = "../../ipc-queue/tests/model/explore.rs"]
#[allow(dead_code, reason = "shared with other models")]
mod explore;

use explore::{Model, Moves, assert_breaks, assert_sound, assert_wedges};

const PROCESSES: usize = 3;
const CHILD: usize = 2;
const MAKER: usize = 0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Control {
    /// Who arrives does not step the epoch.
    NoStep,
    /// Who arrives closes the token before it marks itself.
    TokenClosedFirst,
    /// The child closes the tokens of the fork before it marks itself.
    ForkClosedFirst,
    /// A scan does not look for tokens.
    NoLookForTokens,
    /// A scan does not look for forks in flight.
    NoLookForForks,
    /// A scan looks for tokens before it looks for marks.
    TokensFirst,
    /// A scan frees with a store.
    NoCompare,
    /// A block that is filled again has the epoch that it had before.
    SameEpoch,
    /// The maker says LIVE before it marks itself.
    MarkedLate,
    /// Nobody clears the marks of the dead.
    NoSweep,
}

struct Arena {
    scanners: usize,
    sends: u8,
    forks: u8,
    /// How often the block is filled again.
    fillings: u8,
    crashes: u8,
    control: Option<Control>,
}

const SCANNERS: usize = 2;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct State {
    live: bool,
    epoch: u8,
    marks: [bool; PROCESSES],
    processes: [Process; PROCESSES],
    /// On their way, by destination.
    tokens: [u8; PROCESSES],
    scans: [Scan; SCANNERS],
    sends: u8,
    forks: u8,
    fillings: u8,
    crashes: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Process {
    handles: u8,
    at: At,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum At {
    Unborn,
    Dead,
    Idle,
    /// The last handle is gone, the mark is not.
    Unmark,
    /// Arriving.
    Mark(From),
    Step(From),
    Close(From),
    /// Filling the block again: mark, then LIVE.
    Fill,
    FillMarked,
    /// The control: LIVE first.
    FillLive,
}

/// What keeps the object alive for somebody who arrives.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum From {
    Token,
    Fork {
        handles: u8,
    },
    /// The controls: nothing any more.
    Nothing {
        handles: u8,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Scan {
    Idle,
    Marks { epoch: u8, next: usize },
    Tokens { epoch: u8 },
    Forks { epoch: u8 },
    Swap { epoch: u8 },
}

impl State {
    fn from(&self) -> impl Iterator<Item = From> + '_ {
        self.processes.iter().filter_map(|process| match process.at {
            At::Mark(from) | At::Step(from) | At::Close(from) => Some(from),
            _ => None,
        })
    }

    fn has_tokens(&self) -> bool {
        self.tokens.iter().any(|&tokens| tokens > 0) || self.from().any(|from| from == From::Token)
    }

    fn has_forks(&self) -> bool {
        self.from().any(|from| matches!(from, From::Fork { .. }))
    }

    /// Whether anybody has a handle, or will have one.
    fn is_in_use(&self) -> bool {
        self.has_tokens()
            || self.from().next().is_some()
            || self.processes.iter().any(|process| process.handles > 0)
    }
}

impl Arena {
    fn is(&self, control: Control) -> bool {
        self.control == Some(control)
    }

    fn step(&self, state: &State, me: usize, moves: &mut Moves<State>) {
        let Process { handles, at } = state.processes[me];
        let mut next = *state;
        let process = &mut next.processes[me];
        match at {
            At::Unborn | At::Dead => return,
            At::Idle => return self.idle(state, me, moves),
            At::Unmark => {
                next.marks[me] = false;
                process.at = At::Idle;
            }
            At::Mark(from) => {
                next.marks[me] = true;
                process.at = At::Step(from);
            }
            At::Step(_) if !state.live => return moves.violation(me, "a handle arrives at a free block"),
            At::Step(from) => {
                next.epoch += u8::from(!self.is(Control::NoStep));
                process.at = At::Close(from);
            }
            At::Close(From::Fork { handles } | From::Nothing { handles }) => {
                *process = Process { handles, at: At::Idle }
            }
            At::Close(From::Token) => *process = Process { handles: handles + 1, at: At::Idle },
            At::Fill if self.is(Control::MarkedLate) => {
                (next.live, next.epoch) = (true, state.epoch + 1);
                *process = Process { handles: 1, at: At::FillLive };
            }
            At::Fill => {
                next.marks[me] = true;
                process.at = At::FillMarked;
            }
            At::FillMarked => {
                next.live = true;
                next.epoch += u8::from(!self.is(Control::SameEpoch));
                *process = Process { handles: 1, at: At::Idle };
            }
            At::FillLive => {
                next.marks[me] = true;
                process.at = At::Idle;
            }
        }
        moves.step(me, next);
    }

    fn idle(&self, state: &State, me: usize, moves: &mut Moves<State>) {
        let handles = state.processes[me].handles;
        if handles > 0 {
            let mut next = *state;
            next.processes[me] =
                Process { handles: handles - 1, at: if handles == 1 { At::Unmark } else { At::Idle } };
            moves.step(me, next);
            for to in
                (0..PROCESSES).filter(|&to| state.sends > 0 && to != me && state.processes[to].at == At::Idle)
            {
                let mut next = *state;
                next.tokens[to] += 1;
                next.sends -= 1;
                moves.step(me, next);
            }
            if state.forks > 0 && state.processes[CHILD].at == At::Unborn {
                let mut next = *state;
                next.forks -= 1;
                let closed = self.is(Control::ForkClosedFirst);
                let from = if closed { From::Nothing { handles } } else { From::Fork { handles } };
                next.processes[CHILD].at = At::Mark(from);
                moves.step(me, next);
            }
        }
        if state.tokens[me] > 0 {
            let mut next = *state;
            next.tokens[me] -= 1;
            let closed = self.is(Control::TokenClosedFirst);
            let process = &mut next.processes[me];
            match (handles, closed) {
                (0, true) => process.at = At::Mark(From::Nothing { handles: 1 }),
                (0, false) => process.at = At::Mark(From::Token),
                _ => process.handles += 1,
            }
            moves.step(me, next);
            // Or nobody takes it.
            let mut next = *state;
            next.tokens[me] -= 1;
            moves.step(me, next);
        }
        if me == MAKER && !state.live && state.fillings > 0 {
            let mut next = *state;
            next.fillings -= 1;
            next.processes[me].at = At::Fill;
            moves.step(me, next);
        }
    }

    fn scan(&self, state: &State, scanner: usize, moves: &mut Moves<State>) {
        let actor = PROCESSES + scanner;
        let mut next = *state;
        let tokens_first = self.is(Control::TokensFirst);
        next.scans[scanner] = match state.scans[scanner] {
            Scan::Idle if !state.live => return,
            Scan::Idle if tokens_first => Scan::Tokens { epoch: state.epoch },
            Scan::Idle => Scan::Marks { epoch: state.epoch, next: 0 },
            Scan::Marks { next, .. } if state.marks[next] => Scan::Idle,
            Scan::Marks { epoch, next } if next + 1 < PROCESSES => Scan::Marks { epoch, next: next + 1 },
            Scan::Marks { epoch, .. } if tokens_first => Scan::Swap { epoch },
            Scan::Marks { epoch, .. } => Scan::Tokens { epoch },
            Scan::Tokens { .. } if state.has_tokens() && !self.is(Control::NoLookForTokens) => Scan::Idle,
            Scan::Tokens { epoch } => Scan::Forks { epoch },
            Scan::Forks { .. } if state.has_forks() && !self.is(Control::NoLookForForks) => Scan::Idle,
            Scan::Forks { epoch } if tokens_first => Scan::Marks { epoch, next: 0 },
            Scan::Forks { epoch } => Scan::Swap { epoch },
            Scan::Swap { epoch } => {
                let meets = (state.live && state.epoch == epoch) || self.is(Control::NoCompare);
                if meets && state.is_in_use() {
                    return moves.violation(actor, "a block in use is freed");
                }
                if meets {
                    next.live = false;
                    next.epoch += u8::from(!self.is(Control::SameEpoch));
                }
                Scan::Idle
            }
        };
        moves.step(actor, next);
    }

    /// Marks stay; the kernel closes what the dead one had, and what was sent to it.
    fn die(&self, state: &State, me: usize, moves: &mut Moves<State>) {
        if state.crashes > 0 && !matches!(state.processes[me].at, At::Unborn | At::Dead) {
            let mut next = *state;
            next.crashes -= 1;
            next.tokens[me] = 0;
            next.processes[me] = Process { handles: 0, at: At::Dead };
            moves.crash(me, next);
        }
    }
}

impl Model for Arena {
    type State = State;

    fn start(&self) -> State {
        let holder = Process { handles: 1, at: At::Idle };
        let unborn = Process { handles: 0, at: At::Unborn };
        State {
            live: true,
            epoch: 0,
            marks: [true, false, false],
            processes: [holder, Process { handles: 0, ..holder }, unborn],
            tokens: [0; PROCESSES],
            scans: [Scan::Idle; SCANNERS],
            sends: self.sends,
            forks: self.forks,
            fillings: self.fillings,
            crashes: self.crashes,
        }
    }

    fn moves(&self, state: &State, moves: &mut Moves<State>) {
        for me in 0..PROCESSES {
            self.step(state, me, moves);
            self.die(state, me, moves);
            if state.processes[me].at == At::Dead && !self.is(Control::NoSweep) {
                let mut next = *state;
                next.marks[me] = false;
                moves.step(me, next);
            }
        }
        for scanner in 0..self.scanners {
            self.scan(state, scanner, moves);
        }
    }

    fn is_finished(&self, state: &State) -> bool {
        !state.live && !state.is_in_use() && state.scans == [Scan::Idle; SCANNERS]
    }
}

fn arena(sends: u8, forks: u8, fillings: u8, crashes: u8) -> Arena {
    Arena { scanners: 1, sends, forks, fillings, crashes, control: None }
}

fn broken(control: Control) -> Arena {
    Arena { control: Some(control), ..arena(3, 1, 1, 1) }
}

#[test]
fn sound_for_a_handle_that_travels_three_times_and_a_fork_with_two_crashes() {
    assert_sound(&arena(3, 1, 1, 2), 211_004);
}

#[test]
fn sound_for_a_handle_that_travels_four_times() {
    assert_sound(&arena(4, 0, 1, 1), 26_449);
}

#[test]
fn sound_for_two_scanners() {
    assert_sound(&Arena { scanners: 2, ..arena(2, 1, 1, 1) }, 816_773);
}

#[test]
fn unsafe_without_a_step_on_arrival() {
    assert_breaks(&broken(Control::NoStep), "a block in use is freed");
}

#[test]
fn unsafe_if_the_token_is_closed_first() {
    assert_breaks(&broken(Control::TokenClosedFirst), "a block");
}

#[test]
fn unsafe_if_the_fork_is_closed_first() {
    assert_breaks(&broken(Control::ForkClosedFirst), "a block");
}

#[test]
fn unsafe_without_a_look_for_tokens() {
    assert_breaks(&broken(Control::NoLookForTokens), "a block in use is freed");
}

#[test]
fn unsafe_without_a_look_for_forks() {
    assert_breaks(&broken(Control::NoLookForForks), "a block in use is freed");
}

#[test]
fn unsafe_if_the_look_for_tokens_comes_first() {
    assert_breaks(&broken(Control::TokensFirst), "a block in use is freed");
}

#[test]
fn unsafe_if_freeing_does_not_compare() {
    assert_breaks(&broken(Control::NoCompare), "a block in use is freed");
}

#[test]
fn unsafe_if_a_new_value_has_the_epoch_of_the_old_one() {
    let arena = Arena { scanners: 2, control: Some(Control::SameEpoch), ..arena(2, 0, 2, 0) };
    assert_breaks(&arena, "a block in use is freed");
}

#[test]
fn unsafe_if_the_maker_marks_itself_late() {
    assert_breaks(&broken(Control::MarkedLate), "a block in use is freed");
}

#[test]
fn stuck_if_nobody_sweeps() {
    assert_wedges(&broken(Control::NoSweep));
}
