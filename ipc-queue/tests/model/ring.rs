//! The owner-in-slot ring with private tickets, single messages and batches, as a model for the explorer.
//!
//! ```text
//! slot word   lap | state | span | owner          ticket t: slot t mod C, lap t div C
//! states      FREE -> WRITING -> FULL -> READING -> FREE of the next lap
//!                       dead owner: TOMB -> FREE of the next lap
//! ```
//!
//! Each step below is one atomic access to a slot word, or the copying of a payload (torn half-way, so that a
//! reader of unfinished bytes is noticed). A process may die before any of its steps. Deaths are known exactly,
//! as by the kernel's oracle.
//!
//! Checked in every state: nothing torn, nothing twice, each producer's messages in order, no message of a batch
//! whose send has not returned, no publication or release over a slot that is somebody else's, the payload does
//! not change under its reader, and (where producers free tombs) no "full" while the ring holds only tombs.
//! Checked at the end: survivors alone can finish, and then every acknowledged message was delivered or was in
//! the hands of a dead consumer.
//!
//! A [`Control`] breaks the design in one place; each must be noticed.

use crate::explore::{Model, Moves};
use crate::turn::Turn;

/// One mistake in the design.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    /// A producer that meets a tomb of the lap before leaves it to the consumers.
    TombsCountAsFull,
    /// Nobody recovers what a dead process has claimed.
    NoRecovery,
    /// A time-out instead of the death oracle: any other process is taken for dead.
    Timeout,
    /// A consumer that lags jumps laps by the producer's rule.
    ConsumerSkipsLikeProducer,
    /// A producer that lags takes a slot FREE at lap L' for one that is taken at L'.
    FreeCountsAsTaken,
    /// A jump over laps that lands on the header of a batch does not add its span.
    JumpIgnoresSpan,
    /// Recovery does not look again after the proof of death (with [`Ring::late_oracle`]).
    NoSecondLook,
    /// Recovery of a dead producer's batch tombs its header only.
    TombHeaderOnly,
    /// As before, but the tomb keeps the span and a consumer steps over the whole batch.
    TombKeepsSpan,
    /// Recovery of a dead consumer's batch frees its header only.
    ReleaseHeaderOnly,
    /// A batch is published from its first interior slot to its last.
    PublishForward,
    /// A batch is freed from its first interior slot to its last.
    FreeForward,
    /// A batch is published header first.
    PublishHeaderFirst,
    /// The slots of a batch behind its header are not looked at before the claim.
    NoInteriorCheck,
    /// An outsider takes back the queued message of this ticket, FULL -> TOMB.
    Revoke { ticket: u8 },
}

/// Bounds and variants of an exploration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ring {
    pub(crate) capacity: u8,
    pub(crate) producers: usize,
    /// Messages of each producer.
    pub(crate) messages: u8,
    pub(crate) consumers: usize,
    /// How many processes may die; never the last consumer.
    pub(crate) crashes: u8,
    /// The longest batch of a producer.
    pub(crate) push_span: u8,
    /// The longest batch of a consumer.
    pub(crate) pop_span: u8,
    /// Batches are pushed whole or not at all; otherwise as much as fits.
    pub(crate) whole_batches: bool,
    /// A producer frees a tomb of the lap before where it needs the slot; otherwise only consumers do.
    pub(crate) producers_free_tombs: bool,
    /// As in the code, the oracle is asked some time after the look, recovery then looks again, and consumers walk
    /// past what a dead one was reading. Otherwise look and oracle are one step, and they recover that too.
    pub(crate) late_oracle: bool,
    pub(crate) control: Option<Control>,
}

const MAX_CAPACITY: usize = 4;
const MAX_PROCESSES: usize = 5;
const MAX_PRODUCERS: usize = 3;
pub(crate) const MAX_SPAN: usize = 3;

pub(crate) type Ticket = u8;
pub(crate) type Process = u8;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum SlotState {
    Free,
    Writing,
    Full,
    Reading,
    Tomb,
}
use SlotState::{Free, Reading, Writing};

/// A slot word. Only WRITING and READING have an owner and a span above 1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Word {
    pub(crate) lap: u8,
    pub(crate) state: SlotState,
    pub(crate) span: u8,
    pub(crate) owner: Option<Process>,
}

impl Word {
    pub(crate) fn unowned(lap: u8, state: SlotState) -> Self {
        Self { lap, state, span: 1, owner: None }
    }

    pub(crate) fn is(self, lap: u8, state: SlotState) -> bool {
        self.lap == lap && self.state == state
    }

    pub(crate) fn is_claimed(self) -> bool {
        matches!(self.state, Writing | Reading)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Payload {
    Empty,
    Torn,
    Message(Message),
}

/// A message is named by its producer and its number there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Message {
    pub(crate) producer: u8,
    pub(crate) number: u8,
}

/// A set of messages, eight for each producer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Messages(u32);

impl Messages {
    fn bit(message: Message) -> u32 {
        1 << (message.producer * 8 + message.number)
    }

    pub(crate) fn has(self, message: Message) -> bool {
        self.0 & Self::bit(message) != 0
    }

    /// Adds a message; false if it was there.
    pub(crate) fn add(&mut self, message: Message) -> bool {
        let is_new = !self.has(message);
        self.0 |= Self::bit(message);
        is_new
    }
}

/// The next step of a process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Next {
    /// Look at the slot of the own ticket.
    Look,
    /// A producer with a batch looks at slot `at` of it, whether it is FREE too.
    CheckFree {
        header: Word,
        count: u8,
        at: u8,
    },
    ClaimToWrite {
        header: Word,
        count: u8,
    },
    WriteFirstHalf {
        count: u8,
    },
    WriteSecondHalf {
        count: u8,
    },
    /// A slot behind the header becomes FULL.
    Publish {
        count: u8,
        at: u8,
    },
    PublishHeader {
        count: u8,
    },
    /// A consumer with a batch looks at slot `at` of it, whether it is FULL too.
    CheckFull {
        header: Word,
        count: u8,
        at: u8,
    },
    ClaimToRead {
        header: Word,
        count: u8,
    },
    Read {
        count: u8,
    },
    /// A slot behind the header becomes FREE.
    Release {
        count: u8,
        at: u8,
    },
    ReleaseHeader {
        count: u8,
    },
    FreeTomb {
        seen: Word,
    },
    /// Is the owner of the batch claimed at ticket `first` dead?
    Ask {
        first: Ticket,
        header: Word,
    },
    /// It is. Does it still hold the claim?
    LookAgain {
        first: Ticket,
        header: Word,
    },
    /// Recovery of the batch that a dead process claimed at ticket `first`: look at slot `at`.
    RecoverLook {
        first: Ticket,
        header: Word,
        at: u8,
    },
    RecoverSwap {
        first: Ticket,
        header: Word,
        at: u8,
        seen: Word,
    },
    RecoverHeader {
        first: Ticket,
        header: Word,
    },
    /// The outsider of [`Control::Revoke`].
    TakeBack,
    Dead,
    Absent,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Participant {
    pub(crate) ticket: Ticket,
    /// A producer's messages sent so far.
    pub(crate) sent: u8,
    /// What a consumer has claimed, as it was then.
    pub(crate) claimed: [Option<Message>; MAX_SPAN],
    pub(crate) next: Next,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct State {
    pub(crate) words: [Word; MAX_CAPACITY],
    pub(crate) payloads: [Payload; MAX_CAPACITY],
    pub(crate) participants: [Participant; MAX_PROCESSES],
    /// Books: what was acknowledged to its producer, delivered, died with its consumer, was taken back.
    pub(crate) acknowledged: Messages,
    pub(crate) delivered: Messages,
    pub(crate) lost: Messages,
    pub(crate) taken_back: Messages,
    /// The lowest number of each producer that may still be claimed.
    pub(crate) expected: [u8; MAX_PRODUCERS],
    pub(crate) crashes_left: u8,
}

impl Ring {
    /// What is left when `process` dies now, if it may.
    fn crash(&self, state: &State, process: usize) -> Option<State> {
        let Participant { sent, claimed, next, .. } = state.participants[process];
        let is_producer = process < self.producers;
        let consumers = self.producers..self.producers + self.consumers;
        let living =
            |state: &State| consumers.clone().filter(|&c| state.participants[c].next != Next::Dead).count();
        let may_die = state.crashes_left > 0
            && next != Next::Dead
            && if is_producer {
                sent < self.messages || next != Next::Look
            } else {
                consumers.contains(&process) && living(state) > 1
            };
        if !may_die {
            return None;
        }
        let mut after = *state;
        after.crashes_left -= 1;
        for message in claimed.into_iter().flatten() {
            after.lost.add(message);
        }
        after.participants[process] =
            Participant { ticket: 0, sent, claimed: [None; MAX_SPAN], next: Next::Dead };
        Some(after)
    }
}

impl Model for Ring {
    type State = State;

    fn start(&self) -> State {
        let participant = |next| Participant { ticket: 0, sent: 0, claimed: [None; MAX_SPAN], next };
        let working = self.producers + self.consumers;
        let mut participants = [participant(Next::Absent); MAX_PROCESSES];
        participants[..working].fill(participant(Next::Look));
        if let Some(Control::Revoke { ticket }) = self.control {
            participants[working] = Participant { ticket, ..participant(Next::TakeBack) };
        }
        State {
            words: [Word::unowned(0, Free); MAX_CAPACITY],
            payloads: [Payload::Empty; MAX_CAPACITY],
            participants,
            acknowledged: Messages(0),
            delivered: Messages(0),
            lost: Messages(0),
            taken_back: Messages(0),
            expected: [0; MAX_PRODUCERS],
            crashes_left: self.crashes,
        }
    }

    fn moves(&self, state: &State, moves: &mut Moves<State>) {
        for me in 0..MAX_PROCESSES {
            let turn = Turn { ring: self, before: state, after: *state, me };
            match turn.step() {
                Ok(Some(after)) => moves.step(me, after),
                Ok(None) => {}
                Err(what) => moves.violation(me, what),
            }
            if let Some(after) = self.crash(state, me) {
                moves.crash(me, after);
            }
        }
    }

    fn is_finished(&self, state: &State) -> bool {
        let has_finished = |(me, participant): (usize, &Participant)| match participant.next {
            Next::Dead | Next::Absent | Next::TakeBack => true,
            Next::Look => me >= self.producers || participant.sent == self.messages,
            _ => false,
        };
        let accounted = state.delivered.0 | state.lost.0 | state.taken_back.0;
        state.participants.iter().enumerate().all(has_finished) && state.acknowledged.0 & !accounted == 0
    }
}
