//! The lease protocol (`src/cells.rs`) over a ring whose slots are abstracted: a ticket is claimed, published, claimed for reading
//! and released in one step each.
//!
//! ```text
//! producer   claim a cell; write; claim a slot; tag; QUEUED; publish
//! consumer   sees the notice: looks at all cells for RETURNED; finds none: takes the notice down, looks again, repeats it if one is
//!            there; or: claim the slot; LEASED; release the slot. Then read; FREE, or RETURNED and the notice
//! janitor    after a death: recover the slots; sweep; collect; the notice
//! observer   looks at all cells twice: drained?
//! ```
//!
//! One janitor at a time; when it dies the next takes over, and sweeps the dead one too. The last consumer lives. What is written
//! is the number of the message, so a reader sees whether somebody else had its memory.

use crate::explore::{Model, Moves};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    /// What the dead have stays.
    NoSweep,
    /// Nobody looks for messages that were never published, or lost with their consumer.
    NoCollect,
    /// A collector returns every queued message, whatever its tag says.
    NoTagCheck,
    /// A collector does not compare the generation.
    NoGeneration,
    /// A sweep frees what the dead had on lease.
    SweepLoses,
    /// A sweep does not say that something came back.
    SweepIsSilent,
    /// The notice is given before the message is back.
    NoticeFirst,
    /// Whoever takes the notice and finds something does not repeat it.
    NoticeOnce,
    /// Whoever takes the notice does not look again.
    NoSecondLook,
    /// The slot is published before the cell is queued.
    PublishesFirst,
    /// The tag is written after the word.
    TagsLast,
    /// The slot is released before the cell is taken.
    ReleasesFirst,
    /// Deliveries are not counted where a message comes back.
    CountsOnce,
    /// The observer looks once.
    LooksOnce,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Lease {
    pub(crate) cells: usize,
    /// Messages of each producer.
    pub(crate) messages: [u8; 2],
    pub(crate) consumers: u8,
    pub(crate) crashes: u8,
    /// How many messages consumers refuse in all.
    pub(crate) nacks: u8,
    /// How many messages consumers send, while they have another on lease.
    pub(crate) follow_ups: u8,
    /// Whether somebody asks if all is done.
    pub(crate) observer: bool,
    pub(crate) control: Option<Control>,
}

const MAX_CELLS: usize = 3;
const MAX_TICKETS: usize = 4;
const FIRST_CONSUMER: u8 = 2;
const OBSERVER: u8 = 4;
const FIRST_JANITOR: u8 = 5;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Is {
    Free,
    Owned(u8),
    Queued,
    Leased(u8),
    Returned,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Word {
    generation: u8,
    deliveries: u8,
    is: Is,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Slot {
    Untouched,
    Writing(u8),
    Full { cell: u8, generation: u8, message: u8 },
    Reading(u8),
    Released,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Producing {
    Claim,
    Write { cell: u8 },
    ClaimSlot { cell: u8 },
    Tag { cell: u8, ticket: u8 },
    Queue { cell: u8, ticket: u8 },
    Publish { cell: u8, ticket: u8 },
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Consuming {
    Idle,
    /// Has seen the notice, or taken it down; looks at this cell next.
    Look {
        cell: u8,
        down: bool,
    },
    TakeReturned {
        cell: u8,
        seen: Word,
        down: bool,
    },
    Take {
        ticket: u8,
        cell: u8,
        generation: u8,
    },
    Release {
        ticket: u8,
        cell: u8,
        generation: u8,
    },
    /// Took what came back, with the notice down; there may be more.
    Repeat {
        cell: u8,
    },
    Hold {
        cell: u8,
    },
    /// Gave a message back; or is about to, see [`Control::NoticeFirst`].
    Notice {
        cell: u8,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Cleaning {
    Idle,
    Sweep { dead: u8, cell: u8 },
    Collect { dead: u8, cell: u8 },
    ReadTag { dead: u8, cell: u8, seen: Word },
    LookAtSlot { dead: u8, cell: u8, seen: Word, tag: u8 },
    Return { dead: u8, cell: u8, seen: Word },
    Notice { dead: u8 },
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Observing {
    Before,
    /// Has seen these cells. `quiet`: there was a moment since the start at which all that was sent was acknowledged.
    First {
        cell: u8,
        seen: [Word; MAX_CELLS],
        quiet: bool,
    },
    Second {
        cell: u8,
        seen: [Word; MAX_CELLS],
        quiet: bool,
    },
    Done,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct State {
    words: [Word; MAX_CELLS],
    tags: [u8; MAX_CELLS],
    memory: [u8; MAX_CELLS],
    slots: [Slot; MAX_TICKETS],
    tail: u8,
    head: u8,
    notice: bool,
    producers: [(Producing, u8); 2],
    consumers: [Consuming; 2],
    janitor: (u8, Cleaning),
    observer: Observing,
    /// Bits of processes.
    dead: u8,
    swept: u8,
    crashes: u8,
    nacks: u8,
    follow_ups: u8,
    /// Bits of messages.
    sent: u8,
    delivered: u8,
    acknowledged: u8,
}

impl State {
    fn is_dead(&self, process: u8) -> bool {
        self.dead & 1 << process != 0
    }

    fn word(&self, cell: u8) -> Word {
        self.words[usize::from(cell)]
    }

    fn set(&mut self, cell: u8, is: Is) {
        self.words[usize::from(cell)].is = is;
    }

    fn slot(&mut self, ticket: u8) -> &mut Slot {
        &mut self.slots[usize::from(ticket)]
    }

    fn bit(&self, cell: u8) -> u8 {
        1 << self.memory[usize::from(cell)]
    }

    fn is_quiet(&self) -> bool {
        self.sent & !self.acknowledged == 0
    }
}

impl Lease {
    fn has(&self, control: Control) -> bool {
        self.control == Some(control)
    }

    fn count(&self) -> u8 {
        u8::try_from(self.cells).expect("few")
    }

    fn produce(&self, state: &State, me: u8, moves: &mut Moves<State>) {
        let (at, left) = state.producers[usize::from(me)];
        if left == 0 {
            return;
        }
        let message = me * self.messages[0] + left - 1;
        let mut next = *state;
        let mut go = |mut next: State, at| {
            next.producers[usize::from(me)].0 = at;
            moves.step(me.into(), next);
        };
        match at {
            Producing::Claim => {
                for cell in (0..self.count()).filter(|&cell| state.word(cell).is == Is::Free) {
                    let mut next = *state;
                    let generation = state.word(cell).generation + 1;
                    next.words[usize::from(cell)] = Word { generation, deliveries: 0, is: Is::Owned(me) };
                    go(next, Producing::Write { cell });
                }
            }
            Producing::Write { cell } => {
                next.memory[usize::from(cell)] = message;
                go(next, Producing::ClaimSlot { cell });
            }
            Producing::ClaimSlot { cell } => {
                let ticket = next.tail;
                *next.slot(ticket) = Slot::Writing(me);
                next.tail += 1;
                let at = match self.control {
                    Some(Control::PublishesFirst) => Producing::Publish { cell, ticket },
                    Some(Control::TagsLast) => Producing::Queue { cell, ticket },
                    _ => Producing::Tag { cell, ticket },
                };
                go(next, at);
            }
            Producing::Tag { cell, ticket } => {
                next.tags[usize::from(cell)] = ticket;
                let last = self.has(Control::TagsLast);
                let at = if last {
                    Producing::Publish { cell, ticket }
                } else {
                    Producing::Queue { cell, ticket }
                };
                go(next, at);
            }
            Producing::Queue { cell, ticket } => {
                next.set(cell, Is::Queued);
                if self.has(Control::TagsLast) {
                    go(next, Producing::Tag { cell, ticket });
                } else if self.has(Control::PublishesFirst) {
                    next.sent |= 1 << message;
                    next.producers[usize::from(me)].1 -= 1;
                    go(next, Producing::Claim);
                } else {
                    go(next, Producing::Publish { cell, ticket });
                }
            }
            Producing::Publish { cell, ticket } => {
                let generation = state.word(cell).generation;
                *next.slot(ticket) = Slot::Full { cell, generation, message };
                if self.has(Control::PublishesFirst) {
                    go(next, Producing::Tag { cell, ticket });
                } else {
                    next.sent |= 1 << message;
                    next.producers[usize::from(me)].1 -= 1;
                    go(next, Producing::Claim);
                }
            }
        }
    }

    /// The cell is the consumer's: it was delivered.
    fn deliver(&self, next: &mut State, me: u8, cell: u8, moves: &mut Moves<State>) {
        next.set(cell, Is::Leased(me));
        let word = &mut next.words[usize::from(cell)];
        if !(self.has(Control::CountsOnce) && word.deliveries == 1) {
            word.deliveries += 1;
        }
        let (bit, first) = (next.bit(cell), next.word(cell).deliveries == 1);
        if next.acknowledged & bit != 0 {
            moves.violation(me.into(), "a message is delivered that was acknowledged");
        }
        if first && next.delivered & bit != 0 {
            moves.violation(me.into(), "somebody may have worked on it, but it does not say so");
        }
    }

    fn consume(&self, state: &State, me: u8, moves: &mut Moves<State>) {
        let index = usize::from(me - FIRST_CONSUMER);
        let mut next = *state;
        match state.consumers[index] {
            Consuming::Idle => {
                if state.notice {
                    next.consumers[index] = Consuming::Look { cell: 0, down: false };
                    moves.step(me.into(), next);
                }
                let ticket = state.head;
                let mut next = *state;
                match state.slots.get(usize::from(ticket)) {
                    Some(&Slot::Full { cell, generation, .. }) => {
                        *next.slot(ticket) = Slot::Reading(me);
                        next.head += 1;
                        next.consumers[index] = if self.has(Control::ReleasesFirst) {
                            Consuming::Release { ticket, cell, generation }
                        } else {
                            Consuming::Take { ticket, cell, generation }
                        };
                        moves.step(me.into(), next);
                    }
                    Some(Slot::Released) => {
                        next.head += 1;
                        moves.step(me.into(), next);
                    }
                    _ => {}
                }
            }
            Consuming::Look { cell, down } => {
                let seen = state.words.get(usize::from(cell)).filter(|_| cell < self.count());
                next.consumers[index] = match seen {
                    None if !down && state.notice => {
                        next.notice = false;
                        let again = !self.has(Control::NoSecondLook);
                        if again { Consuming::Look { cell: 0, down: true } } else { Consuming::Idle }
                    }
                    None => Consuming::Idle,
                    Some(&seen) if seen.is == Is::Returned => Consuming::TakeReturned { cell, seen, down },
                    Some(_) => Consuming::Look { cell: cell + 1, down },
                };
                moves.step(me.into(), next);
            }
            Consuming::TakeReturned { cell, seen, down } => {
                next.consumers[index] = Consuming::Look { cell: cell + 1, down };
                if state.word(cell) == seen {
                    self.deliver(&mut next, me, cell, moves);
                    next.consumers[index] =
                        if down { Consuming::Repeat { cell } } else { Consuming::Hold { cell } };
                }
                moves.step(me.into(), next);
            }
            Consuming::Repeat { cell } => {
                next.notice |= !self.has(Control::NoticeOnce);
                next.consumers[index] = Consuming::Hold { cell };
                moves.step(me.into(), next);
            }
            Consuming::Take { ticket, cell, generation } => {
                let word = state.word(cell);
                if word.is != Is::Queued || word.generation != generation {
                    moves.violation(me.into(), "a published message has lost its cell");
                    return;
                }
                self.deliver(&mut next, me, cell, moves);
                next.consumers[index] = if self.has(Control::ReleasesFirst) {
                    Consuming::Hold { cell }
                } else {
                    Consuming::Release { ticket, cell, generation }
                };
                moves.step(me.into(), next);
            }
            Consuming::Release { ticket, cell, generation } => {
                if *next.slot(ticket) != Slot::Reading(me) {
                    moves.violation(me.into(), "a slot is released that is somebody else's");
                    return;
                }
                *next.slot(ticket) = Slot::Released;
                next.consumers[index] = if self.has(Control::ReleasesFirst) {
                    Consuming::Take { ticket, cell, generation }
                } else {
                    Consuming::Hold { cell }
                };
                moves.step(me.into(), next);
            }
            Consuming::Hold { cell } => self.hold(state, me, cell, moves),
            Consuming::Notice { cell } => {
                if self.has(Control::NoticeFirst) {
                    next.set(cell, Is::Returned);
                } else {
                    next.notice = true;
                }
                next.consumers[index] = Consuming::Idle;
                moves.step(me.into(), next);
            }
        }
    }

    /// A consumer with a message in hand.
    fn hold(&self, state: &State, me: u8, cell: u8, moves: &mut Moves<State>) {
        let index = usize::from(me - FIRST_CONSUMER);
        if state.word(cell).is != Is::Leased(me) {
            moves.violation(me.into(), "a lease is lost while its holder lives");
            return;
        }
        let bit = state.bit(cell);
        let mut next = *state;
        // Now it has read the message.
        next.delivered |= bit;
        if state.follow_ups > 0 {
            for other in (0..self.count()).filter(|&other| state.word(other).is == Is::Free) {
                let mut next = next;
                let (ticket, generation) = (state.tail, state.word(other).generation + 1);
                let message = self.messages[0] + self.messages[1] + state.follow_ups - 1;
                next.words[usize::from(other)] = Word { generation, deliveries: 0, is: Is::Queued };
                next.memory[usize::from(other)] = message;
                next.tags[usize::from(other)] = ticket;
                *next.slot(ticket) = Slot::Full { cell: other, generation, message };
                next.tail += 1;
                next.sent |= 1 << message;
                next.follow_ups -= 1;
                moves.step(me.into(), next);
            }
        }
        if state.nacks > 0 {
            let mut next = next;
            next.nacks -= 1;
            if self.has(Control::NoticeFirst) {
                next.notice = true;
            } else {
                next.set(cell, Is::Returned);
            }
            next.consumers[index] = Consuming::Notice { cell };
            moves.step(me.into(), next);
        }
        next.set(cell, Is::Free);
        next.acknowledged |= bit;
        next.consumers[index] = Consuming::Idle;
        moves.step(me.into(), next);
    }

    fn clean(&self, state: &State, moves: &mut Moves<State>) {
        let mut next = *state;
        let mut go = |mut next: State, at| {
            next.janitor.1 = at;
            moves.step(FIRST_JANITOR.into(), next);
        };
        match state.janitor.1 {
            Cleaning::Idle => {
                let unswept = state.dead & !state.swept;
                for dead in (0..8).filter(|dead| unswept & 1 << dead != 0) {
                    let mut next = *state;
                    for slot in &mut next.slots {
                        if matches!(*slot, Slot::Writing(p) | Slot::Reading(p) if p == dead) {
                            *slot = Slot::Released;
                        }
                    }
                    go(next, Cleaning::Sweep { dead, cell: 0 });
                }
            }
            Cleaning::Sweep { dead, cell } if cell == self.count() => {
                go(next, Cleaning::Collect { dead, cell: 0 });
            }
            Cleaning::Sweep { dead, cell } => {
                match state.word(cell).is {
                    _ if self.has(Control::NoSweep) => {}
                    Is::Owned(p) if p == dead => next.set(cell, Is::Free),
                    Is::Leased(p) if p == dead => {
                        next.set(cell, if self.has(Control::SweepLoses) { Is::Free } else { Is::Returned });
                    }
                    _ => {}
                }
                go(next, Cleaning::Sweep { dead, cell: cell + 1 });
            }
            Cleaning::Collect { dead, cell } if cell == self.count() || self.has(Control::NoCollect) => {
                go(next, Cleaning::Notice { dead });
            }
            Cleaning::Collect { dead, cell } => {
                let seen = state.word(cell);
                go(
                    next,
                    if seen.is == Is::Queued {
                        Cleaning::ReadTag { dead, cell, seen }
                    } else {
                        Cleaning::Collect { dead, cell: cell + 1 }
                    },
                );
            }
            Cleaning::ReadTag { dead, cell, seen } => {
                let tag = state.tags[usize::from(cell)];
                go(next, Cleaning::LookAtSlot { dead, cell, seen, tag });
            }
            Cleaning::LookAtSlot { dead, cell, seen, tag } => {
                let released = state.slots[usize::from(tag)] == Slot::Released;
                go(
                    next,
                    if released || self.has(Control::NoTagCheck) {
                        Cleaning::Return { dead, cell, seen }
                    } else {
                        Cleaning::Collect { dead, cell: cell + 1 }
                    },
                );
            }
            Cleaning::Return { dead, cell, seen } => {
                let word = state.word(cell);
                let same = if self.has(Control::NoGeneration) { word.is == seen.is } else { word == seen };
                if same {
                    next.set(cell, Is::Returned);
                }
                go(next, Cleaning::Collect { dead, cell: cell + 1 });
            }
            Cleaning::Notice { dead } => {
                next.notice |= !self.has(Control::SweepIsSilent);
                next.swept |= 1 << dead;
                go(next, Cleaning::Idle);
            }
        }
    }

    fn observe(&self, state: &State, moves: &mut Moves<State>) {
        let mut next = *state;
        let unfinished = |word: Word| matches!(word.is, Is::Queued | Is::Leased(_) | Is::Returned);
        next.observer = match state.observer {
            Observing::Before => Observing::First { cell: 0, seen: state.words, quiet: state.is_quiet() },
            Observing::First { cell, seen, quiet } if cell == self.count() => {
                if self.has(Control::LooksOnce) {
                    Self::conclude(quiet, moves)
                } else {
                    Observing::Second { cell: 0, seen, quiet }
                }
            }
            Observing::First { cell, .. } if unfinished(state.word(cell)) => Observing::Before,
            Observing::First { cell, mut seen, quiet } => {
                seen[usize::from(cell)] = state.word(cell);
                Observing::First { cell: cell + 1, seen, quiet }
            }
            Observing::Second { cell, quiet, .. } if cell == self.count() => Self::conclude(quiet, moves),
            Observing::Second { cell, seen, .. } if seen[usize::from(cell)] != state.word(cell) => {
                Observing::Before
            }
            Observing::Second { cell, seen, quiet } => Observing::Second { cell: cell + 1, seen, quiet },
            Observing::Done => return,
        };
        moves.step(OBSERVER.into(), next);
    }

    fn conclude(quiet: bool, moves: &mut Moves<State>) -> Observing {
        if !quiet {
            moves.violation(OBSERVER.into(), "drained, though there was always something left");
        }
        Observing::Done
    }
}

/// Notes for the observer that there is nothing left now.
fn note_quiet(mut state: State) -> State {
    let now = state.is_quiet();
    if let Observing::First { quiet, .. } | Observing::Second { quiet, .. } = &mut state.observer {
        *quiet |= now;
    }
    state
}

impl Model for Lease {
    type State = State;

    fn start(&self) -> State {
        State {
            words: [Word { generation: 0, deliveries: 0, is: Is::Free }; MAX_CELLS],
            tags: [0; MAX_CELLS],
            memory: [0; MAX_CELLS],
            slots: [Slot::Untouched; MAX_TICKETS],
            tail: 0,
            head: 0,
            notice: false,
            producers: self.messages.map(|messages| (Producing::Claim, messages)),
            consumers: [Consuming::Idle; 2],
            janitor: (FIRST_JANITOR, Cleaning::Idle),
            observer: if self.observer { Observing::Before } else { Observing::Done },
            dead: 0,
            swept: 0,
            crashes: self.crashes,
            nacks: self.nacks,
            follow_ups: self.follow_ups,
            sent: 0,
            delivered: 0,
            acknowledged: 0,
        }
    }

    fn moves(&self, state: &State, moves: &mut Moves<State>) {
        let state = &note_quiet(*state);
        for me in [0, 1].into_iter().filter(|&me| !state.is_dead(me)) {
            self.produce(state, me, moves);
        }
        let consumers = FIRST_CONSUMER..FIRST_CONSUMER + self.consumers;
        for me in consumers.clone().filter(|&me| !state.is_dead(me)) {
            self.consume(state, me, moves);
        }
        self.clean(state, moves);
        self.observe(state, moves);
        if state.crashes == 0 {
            return;
        }
        let dead =
            |process: u8| State { crashes: state.crashes - 1, dead: state.dead | 1 << process, ..*state };
        for me in [0, 1].into_iter().filter(|&me| !state.is_dead(me)) {
            if state.producers[usize::from(me)].1 > 0 {
                moves.crash(me.into(), dead(me));
            }
        }
        let living = consumers.filter(|&me| !state.is_dead(me)).collect::<Vec<_>>();
        for &me in living.iter().filter(|_| living.len() > 1) {
            moves.crash(me.into(), dead(me));
        }
        let (me, at) = state.janitor;
        if at != Cleaning::Idle && me < 7 {
            moves.crash(FIRST_JANITOR.into(), State { janitor: (me + 1, Cleaning::Idle), ..dead(me) });
        }
    }

    fn is_finished(&self, state: &State) -> bool {
        let sent = [0, 1].into_iter().all(|me| state.is_dead(me) || state.producers[usize::from(me)].1 == 0);
        let idle = (0..self.consumers).all(|index| {
            state.is_dead(FIRST_CONSUMER + index) || state.consumers[usize::from(index)] == Consuming::Idle
        });
        sent && idle
            && state.is_quiet()
            && state.head == state.tail
            && (0..self.count()).all(|cell| state.word(cell).is == Is::Free)
            && state.janitor.1 == Cleaning::Idle
            && state.observer == Observing::Done
            && state.dead & !state.swept == 0
    }
}
