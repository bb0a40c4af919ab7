//! The chunk protocol (`src/chunks.rs`) over a ring whose slots are abstracted: a ticket is claimed, published, claimed for
//! reading and released in one step each.
//!
//! ```text
//! producer   claim head, tails; write; claim a slot; tag; QUEUED; publish
//! consumer   claim the slot; TAKEN; release the slot; read; free tails, head
//! janitor    after a death: recover the slots, free what the dead one owns; at any time: collect
//! ```
//!
//! One janitor at a time; when it dies the next takes over, and sweeps the dead one too. Producers claim anywhere, not first
//! fit. What is written is the number of the message, so a reader sees whether somebody else had its memory.

use crate::explore::{Model, Moves};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    /// The dead one's runs stay.
    NoSweep,
    /// Nobody looks for messages that were never published, or lost with their consumer.
    NoCollect,
    /// A collector frees every queued run, whatever its tag says.
    NoTagCheck,
    /// A collector does not compare the generation.
    NoGeneration,
    /// The head is freed before the tails.
    HeadFreedFirst,
    /// A sweep frees queued runs of the dead too.
    SweepsQueued,
    /// A sweep does not look whose tail it frees.
    SweepsAnyTail,
    /// The slot is published before the run is queued.
    PublishesFirst,
    /// The tag is written after the word.
    TagsLast,
    /// The slot is released before the run is taken.
    ReleasesFirst,
}

pub(crate) struct Chunks {
    pub(crate) chunks: usize,
    /// The length of each producer's runs; none if 0.
    pub(crate) lengths: [u8; 2],
    /// Messages of each producer.
    pub(crate) messages: u8,
    pub(crate) crashes: u8,
    pub(crate) control: Option<Control>,
}

const MAX_CHUNKS: usize = 3;
const MAX_TICKETS: usize = 4;
const CONSUMER: u8 = 2;
const FIRST_JANITOR: u8 = 3;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Is {
    Free,
    Owned(u8),
    Queued(u8),
    Taken(u8),
    Tail,
}

/// `run` is the length of a head, or the head of a tail.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Word {
    generation: u8,
    run: u8,
    is: Is,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Slot {
    Untouched,
    Writing(u8),
    Full { head: u8, generation: u8, message: u8 },
    Reading(u8),
    Released,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Producing {
    ClaimHead,
    ClaimTail { head: u8, next: u8 },
    GiveBack { head: u8, next: u8 },
    Write { head: u8, next: u8 },
    ClaimSlot { head: u8 },
    Tag { head: u8, ticket: u8 },
    Queue { head: u8, ticket: u8 },
    Publish { head: u8, ticket: u8 },
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Consuming {
    ClaimSlot,
    Take { ticket: u8, head: u8, generation: u8, message: u8 },
    Release { ticket: u8, head: u8, generation: u8, message: u8 },
    Read { head: u8, next: u8, message: u8 },
    Free { head: u8, next: u8, run: u8 },
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Cleaning {
    Idle,
    /// Slots are recovered; looks at this head.
    Sweep {
        dead: u8,
        head: u8,
    },
    /// Then goes on with the sweep.
    SweepFree {
        dead: u8,
        head: u8,
        next: u8,
        run: u8,
    },
    ReadTag {
        head: u8,
        seen: Word,
    },
    LookAtSlot {
        head: u8,
        seen: Word,
        tag: u8,
    },
    Take {
        head: u8,
        seen: Word,
    },
    Free {
        head: u8,
        next: u8,
        run: u8,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct State {
    words: [Word; MAX_CHUNKS],
    tags: [u8; MAX_CHUNKS],
    memory: [u8; MAX_CHUNKS],
    slots: [Slot; MAX_TICKETS],
    tail: u8,
    head: u8,
    producers: [(Producing, u8); 2],
    consumer: Consuming,
    janitor: (u8, Cleaning),
    /// Bits of processes.
    dead: u8,
    swept: u8,
    crashes: u8,
    received: u8,
}

impl State {
    fn is_dead(&self, process: u8) -> bool {
        self.dead & 1 << process != 0
    }

    fn is_free(&self, chunk: u8) -> bool {
        self.words[usize::from(chunk)].is == Is::Free
    }

    fn set(&mut self, chunk: u8, run: u8, is: Is) {
        let word = &mut self.words[usize::from(chunk)];
        *word = Word { generation: word.generation, run, is };
    }

    /// A claim steps the generation.
    fn claim(&mut self, chunk: u8, run: u8, is: Is) {
        self.words[usize::from(chunk)].generation += 1;
        self.set(chunk, run, is);
    }

    fn slot(&mut self, ticket: u8) -> &mut Slot {
        &mut self.slots[usize::from(ticket)]
    }

    /// One step of freeing the run at `head`: `next` counts down from the last tail to the head. `None` when done.
    fn free_step(
        &mut self,
        head: u8,
        next: u8,
        run: u8,
        control: Option<Control>,
        sweeps: bool,
    ) -> Option<u8> {
        let offset = if control == Some(Control::HeadFreedFirst) { run - 1 - next } else { next };
        let chunk = head + offset;
        let word = self.words[usize::from(chunk)];
        let any = sweeps && control == Some(Control::SweepsAnyTail);
        if offset == 0 || (word.is == Is::Tail && word.run == head) || any {
            self.set(chunk, 0, Is::Free);
        }
        next.checked_sub(1)
    }
}

impl Chunks {
    fn has(&self, control: Control) -> bool {
        self.control == Some(control)
    }

    fn produce(&self, state: &State, me: u8, moves: &mut Moves<State>) {
        let (at, left) = state.producers[usize::from(me)];
        let len = self.lengths[usize::from(me)];
        if left == 0 || len == 0 {
            return;
        }
        let message = 1 + me * self.messages + left - 1;
        let mut next = *state;
        let mut go = |mut next: State, at| {
            next.producers[usize::from(me)].0 = at;
            moves.step(me.into(), next);
        };
        let count = u8::try_from(self.chunks).expect("few");
        match at {
            Producing::ClaimHead => {
                for head in (0..=count - len).filter(|&head| state.is_free(head)) {
                    let mut next = *state;
                    next.claim(head, len, Is::Owned(me));
                    go(next, Producing::ClaimTail { head, next: 1 });
                }
            }
            Producing::ClaimTail { head, next: tail } if tail == len => {
                go(next, Producing::Write { head, next: 0 });
            }
            Producing::ClaimTail { head, next: tail } if state.is_free(head + tail) => {
                next.claim(head + tail, head, Is::Tail);
                go(next, Producing::ClaimTail { head, next: tail + 1 });
            }
            Producing::ClaimTail { head, next: tail } => {
                go(next, Producing::GiveBack { head, next: tail - 1 });
            }
            Producing::GiveBack { head, next: tail } => {
                // Nobody has seen these generations in a queued word: without them the model stays finite.
                next.words[usize::from(head + tail)].generation -= 1;
                match next.free_step(head, tail, tail + 1, None, false) {
                    Some(tail) => go(next, Producing::GiveBack { head, next: tail }),
                    None => go(next, Producing::ClaimHead),
                }
            }
            Producing::Write { head, next: chunk } if chunk == len => {
                go(next, Producing::ClaimSlot { head });
            }
            Producing::Write { head, next: chunk } => {
                next.memory[usize::from(head + chunk)] = message;
                go(next, Producing::Write { head, next: chunk + 1 });
            }
            Producing::ClaimSlot { head } => {
                let ticket = next.tail;
                *next.slot(ticket) = Slot::Writing(me);
                next.tail += 1;
                let at = if self.has(Control::PublishesFirst) {
                    Producing::Publish { head, ticket }
                } else if self.has(Control::TagsLast) {
                    Producing::Queue { head, ticket }
                } else {
                    Producing::Tag { head, ticket }
                };
                go(next, at);
            }
            Producing::Tag { head, ticket } => {
                next.tags[usize::from(head)] = ticket;
                let last = self.has(Control::TagsLast);
                go(
                    next,
                    if last {
                        Producing::Publish { head, ticket }
                    } else {
                        Producing::Queue { head, ticket }
                    },
                );
            }
            Producing::Queue { head, ticket } => {
                next.set(head, len, Is::Queued(me));
                if self.has(Control::TagsLast) {
                    go(next, Producing::Tag { head, ticket });
                } else if self.has(Control::PublishesFirst) {
                    next.producers[usize::from(me)].1 -= 1;
                    go(next, Producing::ClaimHead);
                } else {
                    go(next, Producing::Publish { head, ticket });
                }
            }
            Producing::Publish { head, ticket } => {
                let generation = state.words[usize::from(head)].generation;
                *next.slot(ticket) = Slot::Full { head, generation, message };
                if self.has(Control::PublishesFirst) {
                    go(next, Producing::Tag { head, ticket });
                } else {
                    next.producers[usize::from(me)].1 -= 1;
                    go(next, Producing::ClaimHead);
                }
            }
        }
    }

    fn consume(&self, state: &State, moves: &mut Moves<State>) {
        let mut next = *state;
        let me = usize::from(CONSUMER);
        match state.consumer {
            Consuming::ClaimSlot => {
                let ticket = state.head;
                match state.slots.get(usize::from(ticket)) {
                    Some(&Slot::Full { head, generation, message }) => {
                        *next.slot(ticket) = Slot::Reading(CONSUMER);
                        next.head += 1;
                        next.consumer = if self.has(Control::ReleasesFirst) {
                            Consuming::Release { ticket, head, generation, message }
                        } else {
                            Consuming::Take { ticket, head, generation, message }
                        };
                        moves.step(me, next);
                    }
                    Some(Slot::Released) => {
                        next.head += 1;
                        moves.step(me, next);
                    }
                    _ => {}
                }
            }
            Consuming::Take { ticket, head, generation, message } => {
                let word = state.words[usize::from(head)];
                if !matches!(word.is, Is::Queued(_)) || word.generation != generation {
                    moves.violation(me, "a published message has lost its run");
                    return;
                }
                next.set(head, word.run, Is::Taken(CONSUMER));
                next.consumer = if self.has(Control::ReleasesFirst) {
                    Consuming::Read { head, next: 0, message }
                } else {
                    Consuming::Release { ticket, head, generation, message }
                };
                moves.step(me, next);
            }
            Consuming::Release { ticket, head, generation, message } => {
                *next.slot(ticket) = Slot::Released;
                next.consumer = if self.has(Control::ReleasesFirst) {
                    Consuming::Take { ticket, head, generation, message }
                } else {
                    Consuming::Read { head, next: 0, message }
                };
                moves.step(me, next);
            }
            Consuming::Read { head, next: chunk, message } => {
                let run = state.words[usize::from(head)].run;
                if state.memory[usize::from(head + chunk)] != message {
                    moves.violation(me, "a message is torn");
                    return;
                }
                next.consumer = if chunk + 1 < run {
                    Consuming::Read { head, next: chunk + 1, message }
                } else {
                    if state.received & 1 << message != 0 {
                        moves.violation(me, "a message comes twice");
                    }
                    next.received |= 1 << message;
                    Consuming::Free { head, next: run - 1, run }
                };
                moves.step(me, next);
            }
            Consuming::Free { head, next: chunk, run } => {
                next.consumer = match next.free_step(head, chunk, run, self.control, false) {
                    Some(chunk) => Consuming::Free { head, next: chunk, run },
                    None => Consuming::ClaimSlot,
                };
                moves.step(me, next);
            }
        }
    }

    fn clean(&self, state: &State, moves: &mut Moves<State>) {
        let (me, at) = state.janitor;
        let actor = usize::from(FIRST_JANITOR);
        let count = u8::try_from(self.chunks).expect("few");
        let mut next = *state;
        let mut go = |mut next: State, at| {
            next.janitor.1 = at;
            moves.step(actor, next);
        };
        match at {
            Cleaning::Idle => {
                let unswept = state.dead & !state.swept;
                for dead in (0..8).filter(|dead| unswept & 1 << dead != 0) {
                    let mut next = *state;
                    for slot in &mut next.slots {
                        if matches!(*slot, Slot::Writing(p) | Slot::Reading(p) if p == dead) {
                            *slot = Slot::Released;
                        }
                    }
                    go(next, Cleaning::Sweep { dead, head: 0 });
                }
                if !self.has(Control::NoCollect) {
                    for head in 0..count {
                        let seen = state.words[usize::from(head)];
                        if matches!(seen.is, Is::Queued(_)) {
                            go(*state, Cleaning::ReadTag { head, seen });
                        }
                    }
                }
            }
            Cleaning::Sweep { dead, head } if head == count => {
                next.swept |= 1 << dead;
                go(next, Cleaning::Idle);
            }
            Cleaning::Sweep { dead, head } => {
                let word = state.words[usize::from(head)];
                let theirs = match word.is {
                    Is::Owned(p) | Is::Taken(p) => p == dead && !self.has(Control::NoSweep),
                    Is::Queued(p) => p == dead && self.has(Control::SweepsQueued),
                    Is::Free | Is::Tail => false,
                };
                let run = word.run;
                go(
                    next,
                    if theirs {
                        Cleaning::SweepFree { dead, head, next: run - 1, run }
                    } else {
                        Cleaning::Sweep { dead, head: head + 1 }
                    },
                );
            }
            Cleaning::SweepFree { dead, head, next: chunk, run } => {
                let left = next.free_step(head, chunk, run, self.control, true);
                go(
                    next,
                    match left {
                        Some(chunk) => Cleaning::SweepFree { dead, head, next: chunk, run },
                        None => Cleaning::Sweep { dead, head: head + 1 },
                    },
                );
            }
            Cleaning::ReadTag { head, seen } => {
                let tag = state.tags[usize::from(head)];
                go(next, Cleaning::LookAtSlot { head, seen, tag });
            }
            Cleaning::LookAtSlot { head, seen, tag } => {
                let released = state.slots[usize::from(tag)] == Slot::Released;
                let takes = released || self.has(Control::NoTagCheck);
                go(next, if takes { Cleaning::Take { head, seen } } else { Cleaning::Idle });
            }
            Cleaning::Take { head, seen } => {
                let word = state.words[usize::from(head)];
                let same = if self.has(Control::NoGeneration) {
                    (word.run, word.is) == (seen.run, seen.is)
                } else {
                    word == seen
                };
                if same {
                    next.set(head, seen.run, Is::Taken(me));
                    go(next, Cleaning::Free { head, next: seen.run - 1, run: seen.run });
                } else {
                    go(next, Cleaning::Idle);
                }
            }
            Cleaning::Free { head, next: chunk, run } => {
                let left = next.free_step(head, chunk, run, self.control, false);
                go(next, left.map_or(Cleaning::Idle, |chunk| Cleaning::Free { head, next: chunk, run }));
            }
        }
    }
}

impl Model for Chunks {
    type State = State;

    fn start(&self) -> State {
        State {
            words: [Word { generation: 0, run: 0, is: Is::Free }; MAX_CHUNKS],
            tags: [0; MAX_CHUNKS],
            memory: [0; MAX_CHUNKS],
            slots: [Slot::Untouched; MAX_TICKETS],
            tail: 0,
            head: 0,
            producers: self
                .lengths
                .map(|len| (Producing::ClaimHead, if len == 0 { 0 } else { self.messages })),
            consumer: Consuming::ClaimSlot,
            janitor: (FIRST_JANITOR, Cleaning::Idle),
            dead: 0,
            swept: 0,
            crashes: self.crashes,
            received: 0,
        }
    }

    fn moves(&self, state: &State, moves: &mut Moves<State>) {
        for me in [0, 1].into_iter().filter(|&me| !state.is_dead(me)) {
            self.produce(state, me, moves);
        }
        if !state.is_dead(CONSUMER) {
            self.consume(state, moves);
        }
        self.clean(state, moves);
        if state.crashes == 0 {
            return;
        }
        let dead =
            |process: u8| State { crashes: state.crashes - 1, dead: state.dead | 1 << process, ..*state };
        for me in [0, 1, CONSUMER].into_iter().filter(|&me| !state.is_dead(me)) {
            let idle = me != CONSUMER && state.producers[usize::from(me)].1 == 0;
            if !idle {
                moves.crash(me.into(), dead(me));
            }
        }
        let (me, at) = state.janitor;
        if at != Cleaning::Idle {
            moves.crash(FIRST_JANITOR.into(), State { janitor: (me + 1, Cleaning::Idle), ..dead(me) });
        }
    }

    fn is_finished(&self, state: &State) -> bool {
        // Without a consumer there may be no room for more.
        let sent = [0, 1].into_iter().all(|me| {
            let (at, left) = state.producers[usize::from(me)];
            let waits = at == Producing::ClaimHead && (left == 0 || state.is_dead(CONSUMER));
            state.is_dead(me) || waits
        });
        let taken =
            state.is_dead(CONSUMER) || (state.consumer == Consuming::ClaimSlot && state.head == state.tail);
        // What is not free belongs to messages that wait for another consumer.
        let waits = |chunk: usize| {
            let word = state.words[chunk];
            let head = if word.is == Is::Tail { usize::from(word.run) } else { chunk };
            let (word, generation) = (state.words[head], state.words[head].generation);
            matches!(word.is, Is::Queued(_))
                && state.slots.iter().any(|slot| {
                    matches!(*slot, Slot::Full { head: h, generation: g, .. } if (usize::from(h), g) == (head, generation))
                })
        };
        let clean = (0..self.chunks).all(|chunk| state.words[chunk].is == Is::Free || waits(chunk));
        let published = state.slots.iter().all(|slot| match *slot {
            Slot::Full { head, .. } => waits(head.into()),
            _ => true,
        });
        sent && taken
            && clean
            && published
            && state.janitor.1 == Cleaning::Idle
            && state.dead & !state.swept == 0
    }
}
