//! The disconnect scan: when is the last `Sender` (or `Receiver`) of a queue gone?
//!
//! Each process counts its own handles in its registry entry, and a handle that travels is covered by an
//! in-flight token which the kernel drops with its last holder. A scan reads these words one after the other,
//! while a handle may move from a process that it has not read yet to one that it has. Whoever moves a handle
//! therefore bumps the transfer epoch between raising the one count and lowering the other; the scan reads the
//! epoch before and after and starts again if it changed.
//!
//! One handle moves to the other process and back and is then dropped; its holder may die before every step, and
//! so may the process that receives it.

use crate::explore::{Model, Moves};

pub(crate) struct Disconnect {
    pub(crate) crashes: u8,
    /// The control: without the epoch a scan can call a living side gone.
    pub(crate) uses_epoch: bool,
}

/// How often the handle travels before it is dropped.
const JOURNEYS: u8 = 2;
/// The mover and the scan, as processes of a trace: 0 and 1 hold the handle, 2 scans.
const SCANNER: usize = 2;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct State {
    alive: [bool; 2],
    /// Handles per process.
    counts: [u8; 2],
    /// Tokens that are under way, by the process that sent them.
    in_flight: [u8; 2],
    epoch: u8,
    handle: Handle,
    scan: Scan,
    crashes_left: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Handle {
    /// Who holds the handle, or sends it.
    holder: usize,
    journeys: u8,
    at: Moving,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Moving {
    Rests,
    Sent,
    SentAndAnnounced,
    SenderDropped,
    Attached,
    AttachedAndAnnounced,
    Gone,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Scan {
    ReadEpoch,
    /// Reads word number `next`; `any` tells whether a word before was not zero.
    ReadWord {
        epoch: u8,
        next: u8,
        any: bool,
    },
    ReadEpochAgain {
        epoch: u8,
        any: bool,
    },
    SaysGone,
}

impl Disconnect {
    fn move_handle(&self, state: &State, moves: &mut Moves<State>) {
        let mut next = *state;
        let Handle { holder, journeys, at } = state.handle;
        let receiver = 1 - holder;
        let (actor, at) = match at {
            Moving::Rests if journeys == JOURNEYS || !state.alive[receiver] => {
                next.counts[holder] = 0;
                (holder, Moving::Gone)
            }
            Moving::Rests => {
                next.in_flight[holder] += 1;
                (holder, Moving::Sent)
            }
            Moving::Sent => {
                next.epoch += u8::from(self.uses_epoch);
                (holder, Moving::SentAndAnnounced)
            }
            Moving::SentAndAnnounced => {
                next.counts[holder] -= 1;
                (holder, Moving::SenderDropped)
            }
            Moving::SenderDropped => {
                next.counts[receiver] += 1;
                (receiver, Moving::Attached)
            }
            Moving::Attached => {
                next.epoch += u8::from(self.uses_epoch);
                (receiver, Moving::AttachedAndAnnounced)
            }
            Moving::AttachedAndAnnounced => {
                next.in_flight[holder] -= 1;
                next.handle.holder = receiver;
                next.handle.journeys += 1;
                (receiver, Moving::Rests)
            }
            Moving::Gone => return,
        };
        next.handle.at = at;
        moves.step(actor, next);
    }

    /// The words of a dead process count for nothing, and the kernel closes the descriptors it held or was sent.
    fn die(&self, state: &State, process: usize, moves: &mut Moves<State>) {
        if state.crashes_left == 0 || !state.alive[process] {
            return;
        }
        let mut next = *state;
        next.crashes_left -= 1;
        next.alive[process] = false;
        next.counts[process] = 0;
        let Handle { holder, at, .. } = state.handle;
        next.handle.at = match at {
            Moving::Gone => Moving::Gone,
            Moving::Rests if process == holder => Moving::Gone,
            Moving::Rests => Moving::Rests,
            // The sender dies: the token is in the socket already, so the receiver goes on.
            Moving::Sent | Moving::SentAndAnnounced if process == holder => Moving::SenderDropped,
            _ if process == holder => at,
            // The receiver dies before the sender has dropped its own handle: the sender still has that.
            Moving::Sent | Moving::SentAndAnnounced => {
                next.in_flight[holder] = 0;
                Moving::Rests
            }
            _ => {
                next.in_flight[holder] = 0;
                Moving::Gone
            }
        };
        moves.crash(process, next);
    }

    fn scan(&self, state: &State, moves: &mut Moves<State>) {
        let mut next = *state;
        next.scan = match state.scan {
            Scan::ReadEpoch => Scan::ReadWord { epoch: state.epoch, next: 0, any: false },
            Scan::ReadWord { epoch, next, any } => {
                let process = usize::from(next / 2);
                let words = [state.counts[process], state.in_flight[process]];
                let any = any || words[usize::from(next % 2)] > 0;
                match next {
                    3 => Scan::ReadEpochAgain { epoch, any },
                    _ => Scan::ReadWord { epoch, next: next + 1, any },
                }
            }
            Scan::ReadEpochAgain { epoch, any } if !any && epoch == state.epoch => Scan::SaysGone,
            Scan::ReadEpochAgain { .. } => Scan::ReadEpoch,
            Scan::SaysGone => return,
        };
        if next.scan == Scan::SaysGone && state.handle.at != Moving::Gone {
            return moves.violation(SCANNER, "a living side is called gone");
        }
        moves.step(SCANNER, next);
    }
}

impl Model for Disconnect {
    type State = State;

    fn start(&self) -> State {
        State {
            alive: [true; 2],
            counts: [1, 0],
            in_flight: [0; 2],
            epoch: 0,
            handle: Handle { holder: 0, journeys: 0, at: Moving::Rests },
            scan: Scan::ReadEpoch,
            crashes_left: self.crashes,
        }
    }

    fn moves(&self, state: &State, moves: &mut Moves<State>) {
        self.move_handle(state, moves);
        self.scan(state, moves);
        self.die(state, 0, moves);
        self.die(state, 1, moves);
    }

    fn is_finished(&self, state: &State) -> bool {
        state.scan == Scan::SaysGone
    }
}
