//! What the bounded queue promises, exactly, as steps that happen at one moment each.
//!
//! The queue is a row of at most `capacity` *places* in the order of their tickets. A push takes two steps: it
//! claims places at the back, and later publishes all of them. A pop claims published places at the front, and
//! later frees all of them. So between the two steps others see a queue whose next message is *pending*, or whose
//! oldest place is *still held*, and are told so instead of `Empty` and `Full`. Those are exact:
//!
//! * `Full`: every place is taken, and the oldest has a message that no consumer has claimed;
//! * `Empty`: every message that a producer has claimed a place for was claimed by a consumer, or buried;
//! * a batch that is shorter than asked for took what there was at a moment at which it was the next.
//!
//! A push or pop that died between its steps holds its places until somebody recovers them: those of a push
//! become tombs, which keep their places until they are the oldest or a consumer comes by; those of a pop are
//! free, and their messages lost.

use super::check::{BEGUN, DONE, Event, Phase, Spec, check};
use std::collections::BTreeSet;

/// An operation: by whom, what, and what came of it (nothing, if its thread died in it).
#[derive(Clone, Debug)]
pub(crate) struct Op {
    pub(crate) owner: u16,
    pub(crate) call: Call,
    pub(crate) answer: Option<Answer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// Messages `first`, `first + 1` and so on.
    Push {
        first: u64,
        count: usize,
    },
    Pop {
        max: usize,
    },
    /// Frees what a dead participant holds.
    Sweep {
        dead: u16,
    },
    /// As a sweep, if what it holds is still what was seen.
    Repair {
        dead: u16,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// So many were pushed.
    Pushed(usize),
    Popped(Vec<u64>),
    /// So many messages were found to have died with their consumer.
    Lost(usize),
    /// The exact `Full` or `Empty`.
    Nothing,
    /// The place that is needed next is held by a push or a pop in progress.
    Held {
        owner: u16,
        writing: bool,
    },
    /// One of the two above; a sender or a receiver does not say which.
    NothingOrHeld,
}

/// What happened to one queue.
#[derive(Clone, Debug)]
pub(crate) struct History {
    pub(crate) capacity: usize,
    pub(crate) ops: Vec<Op>,
    pub(crate) events: Vec<Event>,
}

impl History {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, ops: Vec::new(), events: Vec::new() }
    }

    pub(crate) fn begin(&mut self, owner: u16, call: Call) -> usize {
        self.ops.push(Op { owner, call, answer: None });
        self.events.push(Event::Begin(self.ops.len() - 1));
        self.ops.len() - 1
    }

    pub(crate) fn end(&mut self, op: usize, answer: Option<Answer>) {
        self.events.push(if answer.is_some() { Event::Return(op) } else { Event::Die(op) });
        self.ops[op].answer = answer;
    }

    /// Whether the queue has kept its promises.
    ///
    /// # Errors
    ///
    /// The whole history, with a mark where it cannot be explained any more.
    pub(crate) fn check(&self) -> Result<(), String> {
        let Err((wrong, explanations)) = check(self, &self.events) else {
            return Ok(());
        };
        let mut text = format!("a queue of {} places:\n", self.capacity);
        for (index, event) in self.events.iter().enumerate() {
            let (op, what) = match *event {
                Event::Begin(op) => (op, format!("{:?}", self.ops[op].call)),
                Event::Return(op) => (op, format!("-> {:?}", self.ops[op].answer)),
                Event::Die(op) => (op, "-> dies".to_owned()),
            };
            let mark = if index == wrong { "  <== cannot be" } else { "" };
            text += &format!("  op {op:<2} of {:<3} {what}{mark}\n", self.ops[op].owner);
        }
        Err(text + "until then: " + &explanations)
    }
}

/// A ticket that was claimed by a producer and whose place is not yet another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    Writing {
        op: usize,
        message: u64,
    },
    Full(u64),
    Reading {
        op: usize,
    },
    Tomb,
    /// Free, but behind one that is not.
    Free,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct State {
    /// The oldest is not `Free`. If it is a tomb, that may have been freed already: nobody could tell.
    places: Vec<Place>,
    /// Pushes that have found exactly the room they will claim, with no other push in between.
    found_room: BTreeSet<usize>,
    /// Likewise pops.
    found_messages: BTreeSet<usize>,
}

impl State {
    /// How many of the oldest places are as good as free.
    fn tombs(&self) -> usize {
        self.places.iter().take_while(|place| matches!(place, Place::Tomb | Place::Free)).count()
    }

    /// The first place that no consumer has claimed or freed.
    fn head(&self) -> usize {
        let consumed = |place: &&Place| matches!(place, Place::Reading { .. } | Place::Tomb | Place::Free);
        self.places.iter().take_while(consumed).count()
    }

    /// How many messages are ready in a row.
    fn ready(&self) -> usize {
        self.places[self.head()..].iter().take_while(|place| matches!(place, Place::Full(_))).count()
    }

    fn change(&mut self, which: impl Fn(&Place) -> bool, to: impl Fn(Place) -> Place) {
        self.places.iter_mut().filter(|place| which(place)).for_each(|place| *place = to(*place));
        self.trim();
    }

    fn trim(&mut self) {
        let free = self.places.iter().take_while(|place| **place == Place::Free).count();
        self.places.drain(..free);
    }

    /// A consumer has come as far as `head`, and freed the tombs on its way.
    fn passed(mut self, head: usize) -> Self {
        let tombs = self.places[..head].iter_mut().filter(|place| **place == Place::Tomb);
        tombs.for_each(|tomb| *tomb = Place::Free);
        self.trim();
        self
    }
}

/// The phase of an operation that has claimed its places.
const CLAIMED: Phase = 1;

impl Spec for History {
    type State = State;

    fn start(&self) -> State {
        State::default()
    }

    fn steps(&self, state: &State, op: usize, phase: Phase, steps: &mut Vec<(Phase, State)>) {
        match (self.ops[op].call, phase) {
            (Call::Push { first, count }, BEGUN) => self.claim_room(state, op, first, count, steps),
            (Call::Push { .. }, _) => {
                let mut next = state.clone();
                next.change(
                    |place| is_writing(place, op),
                    |place| match place {
                        Place::Writing { message, .. } => Place::Full(message),
                        other => other,
                    },
                );
                steps.push((DONE, next));
            }
            (Call::Pop { max }, BEGUN) => self.claim_messages(state, op, max, steps),
            (Call::Pop { .. }, _) => {
                let mut next = state.clone();
                next.change(|place| is_reading(place, op), |_| Place::Free);
                steps.push((DONE, next));
            }
            (Call::Sweep { dead }, _) => self.recover(state, op, dead, steps),
            (Call::Repair { dead }, _) => {
                self.recover(state, op, dead, steps);
                if self.ops[op].answer == Some(Answer::Lost(0)) {
                    steps.push((DONE, state.clone()));
                }
            }
        }
    }
}

fn is_writing(place: &Place, by: usize) -> bool {
    matches!(place, Place::Writing { op, .. } if *op == by)
}

fn is_reading(place: &Place, by: usize) -> bool {
    matches!(place, Place::Reading { op } if *op == by)
}

impl History {
    fn claim_room(
        &self,
        state: &State,
        op: usize,
        first: u64,
        count: usize,
        steps: &mut Vec<(Phase, State)>,
    ) {
        let free = self.capacity - state.places.len();
        let room = free + state.tombs();
        let longest = count.min(self.capacity);
        let found = state.found_room.contains(&op);
        let lengths = match &self.ops[op].answer {
            None => 1..=longest.min(room),
            Some(Answer::Pushed(pushed)) if (1..=longest).contains(pushed) => {
                if *pushed < longest && !found {
                    if (free..=room).contains(pushed) {
                        let mut next = state.clone();
                        next.found_room.insert(op);
                        steps.push((BEGUN, next));
                    }
                    return;
                }
                *pushed..=(*pushed).min(room)
            }
            Some(answer) => {
                if room == 0 && self.is_so(answer, state.places.first()) {
                    steps.push((DONE, state.clone()));
                }
                return;
            }
        };
        for length in lengths {
            let mut next = State { found_room: BTreeSet::new(), ..state.clone() };
            next.places.drain(..length.saturating_sub(free));
            next.trim();
            let messages = (first..).take(length);
            next.places.extend(messages.map(|message| Place::Writing { op, message }));
            steps.push((CLAIMED, next));
        }
    }

    fn claim_messages(&self, state: &State, op: usize, max: usize, steps: &mut Vec<(Phase, State)>) {
        let (head, ready) = (state.head(), state.ready());
        let longest = max.min(self.capacity);
        let found = state.found_messages.contains(&op);
        let lengths = match &self.ops[op].answer {
            None => 1..=longest.min(ready),
            Some(Answer::Popped(popped)) if (1..=longest).contains(&popped.len()) => {
                let length = popped.len();
                if length < longest && !found {
                    if length == ready {
                        let mut next = state.clone();
                        next.found_messages.insert(op);
                        steps.push((BEGUN, next));
                    }
                    return;
                }
                let next = state.places[head..].iter().zip(popped);
                let right = next.filter(|(place, message)| **place == Place::Full(**message)).count();
                length..=length.min(right)
            }
            Some(answer) => {
                let next = state.clone().passed(head);
                let holder = match state.places.get(head) {
                    // Nothing is queued, and the place of the next message is still being read.
                    None if next.places.len() == self.capacity => next.places.first(),
                    place => place,
                };
                if ready == 0 && self.is_so(answer, holder) {
                    steps.push((DONE, next));
                }
                return;
            }
        };
        for length in lengths {
            let mut next = State { found_messages: BTreeSet::new(), ..state.clone() };
            next.places[head..head + length].fill(Place::Reading { op });
            steps.push((CLAIMED, next.passed(head)));
        }
    }

    /// Whether `answer` is what an operation says that can do nothing because of this place.
    fn is_so(&self, answer: &Answer, place: Option<&Place>) -> bool {
        let so = match place {
            Some(Place::Writing { op, .. }) => Answer::Held { owner: self.ops[*op].owner, writing: true },
            Some(Place::Reading { op }) => Answer::Held { owner: self.ops[*op].owner, writing: false },
            _ => Answer::Nothing,
        };
        *answer == so || *answer == Answer::NothingOrHeld
    }

    /// What a participant holds that died holding it.
    fn recover(&self, state: &State, op: usize, dead: u16, steps: &mut Vec<(Phase, State)>) {
        let is_dead = |op: usize| self.ops[op].owner == dead && self.ops[op].answer.is_none();
        let read = |place: &Place| matches!(place, Place::Reading { op } if is_dead(*op));
        let written = |place: &Place| matches!(place, Place::Writing { op, .. } if is_dead(*op));
        let lost = state.places.iter().filter(|place| read(place)).count();
        if self.ops[op].answer == Some(Answer::Lost(lost)) || self.ops[op].answer.is_none() {
            let mut next = state.clone();
            next.change(written, |_| Place::Tomb);
            next.change(read, |_| Place::Free);
            steps.push((DONE, next));
        }
    }
}
