//! The parking protocol: one word per direction, sequence | SLEEPERS (`shm_core::wait`).
//!
//! ```text
//! producer   publish; read the word; SLEEPERS set? CAS to (sequence + 1, clear), wake one
//! consumer   take; else arm (set SLEEPERS); read the word; look again; sleep while the word is unchanged
//!            woken: arm again *before* taking, because others may still sleep
//!            took one, more are queued, SLEEPERS set: wake one more (the chain)
//! ```
//!
//! Every consumer takes one message and never comes back, as a worker that is busy for long. So a message that
//! is queued beside a sleeper when nothing moves any more is a lost wake-up.

use crate::explore::{Model, Moves};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    /// A woken consumer takes without arming again.
    WokenDoesNotArm,
    /// A consumer that took a message does not wake the next.
    TakerDoesNotPassOn,
    /// A consumer does not look again between arming and sleeping.
    SleeperDoesNotLookAgain,
}

pub(crate) struct Parking {
    pub(crate) producers: usize,
    /// Messages of each producer.
    pub(crate) messages: u8,
    pub(crate) consumers: usize,
    pub(crate) control: Option<Control>,
}

const MAX_THREADS: usize = 5;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct State {
    queued: u8,
    word: Word,
    threads: [Thread; MAX_THREADS],
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Word {
    sequence: u8,
    sleepers: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Thread {
    Absent,
    Producer { left: u8, at: Producing },
    Consumer(Consuming),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Producing {
    Publish,
    ReadWord,
    ClearSleepers { seen: Word },
    Wake,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Consuming {
    Take,
    Arm,
    ReadWord,
    LookAgain { sequence: u8 },
    Sleep { sequence: u8 },
    Asleep,
    Rearm,
    Took,
    PassOn { seen: Word },
    Gone,
}

impl Word {
    /// What a sleeper expects.
    fn with_sleepers(sequence: u8) -> Self {
        Self { sequence, sleepers: true }
    }
}

impl State {
    fn with(mut self, thread: usize, is: Thread) -> Self {
        self.threads[thread] = is;
        self
    }

    /// What a wake of one thread may lead to: any one sleeper wakes, or there is none.
    fn wake_one(self) -> impl Iterator<Item = Self> {
        let sleepers =
            (0..MAX_THREADS).filter(move |&t| self.threads[t] == Thread::Consumer(Consuming::Asleep));
        let nobody = sleepers.clone().next().is_none().then_some(self);
        sleepers.map(move |t| self.with(t, Thread::Consumer(Consuming::Rearm))).chain(nobody)
    }

    /// Clears SLEEPERS if the word is still as `seen`.
    fn clear_sleepers(self, seen: Word) -> Option<Self> {
        (self.word == seen)
            .then_some(Self { word: Word { sequence: seen.sequence + 1, sleepers: false }, ..self })
    }
}

impl Parking {
    fn produce(&self, state: &State, me: usize, left: u8, at: Producing, moves: &mut Moves<State>) {
        let mut next = *state;
        let then = |next: State, left, at| next.with(me, Thread::Producer { left, at });
        match at {
            Producing::Publish if left == 0 => {}
            Producing::Publish => {
                next.queued += 1;
                moves.step(me, then(next, left - 1, Producing::ReadWord));
            }
            Producing::ReadWord if state.word.sleepers => {
                let seen = state.word;
                moves.step(me, then(next, left, Producing::ClearSleepers { seen }));
            }
            Producing::ReadWord => moves.step(me, then(next, left, Producing::Publish)),
            Producing::ClearSleepers { seen } => match state.clear_sleepers(seen) {
                Some(next) => moves.step(me, then(next, left, Producing::Wake)),
                None => moves.step(me, then(next, left, Producing::ReadWord)),
            },
            Producing::Wake => {
                for next in then(next, left, Producing::Publish).wake_one() {
                    moves.step(me, next);
                }
            }
        }
    }

    fn consume(&self, state: &State, me: usize, at: Consuming, moves: &mut Moves<State>) {
        let mut next = *state;
        let then = |next: State, at| next.with(me, Thread::Consumer(at));
        let at = match at {
            Consuming::Asleep | Consuming::Gone => return,
            Consuming::Take if state.queued > 0 => {
                next.queued -= 1;
                Consuming::Took
            }
            Consuming::Take => Consuming::Arm,
            Consuming::Arm => {
                next.word.sleepers = true;
                Consuming::ReadWord
            }
            Consuming::ReadWord => Consuming::LookAgain { sequence: state.word.sequence },
            Consuming::LookAgain { .. }
                if state.queued > 0 && self.control != Some(Control::SleeperDoesNotLookAgain) =>
            {
                Consuming::Take
            }
            Consuming::LookAgain { sequence } => Consuming::Sleep { sequence },
            Consuming::Sleep { sequence } if state.word == Word::with_sleepers(sequence) => Consuming::Asleep,
            Consuming::Sleep { .. } => Consuming::Take,
            Consuming::Rearm => {
                next.word.sleepers |= self.control != Some(Control::WokenDoesNotArm);
                Consuming::Take
            }
            Consuming::Took if state.queued > 0 && state.word.sleepers => match self.control {
                Some(Control::TakerDoesNotPassOn) => Consuming::Gone,
                _ => Consuming::PassOn { seen: state.word },
            },
            Consuming::Took => Consuming::Gone,
            Consuming::PassOn { seen } => match state.clear_sleepers(seen) {
                Some(next) => {
                    for next in then(next, Consuming::Gone).wake_one() {
                        moves.step(me, next);
                    }
                    return;
                }
                None => Consuming::Took,
            },
        };
        moves.step(me, then(next, at));
    }
}

impl Model for Parking {
    type State = State;

    fn start(&self) -> State {
        let producer = Thread::Producer { left: self.messages, at: Producing::Publish };
        let mut threads = [Thread::Absent; MAX_THREADS];
        threads[..self.producers].fill(producer);
        threads[self.producers..self.producers + self.consumers].fill(Thread::Consumer(Consuming::Take));
        State { queued: 0, word: Word { sequence: 0, sleepers: false }, threads }
    }

    fn moves(&self, state: &State, moves: &mut Moves<State>) {
        for (me, thread) in state.threads.iter().enumerate() {
            match *thread {
                Thread::Absent => {}
                Thread::Producer { left, at } => self.produce(state, me, left, at, moves),
                Thread::Consumer(at) => self.consume(state, me, at, moves),
            }
        }
    }

    fn is_finished(&self, state: &State) -> bool {
        let rests = |thread: &Thread| match thread {
            Thread::Absent | Thread::Consumer(Consuming::Asleep | Consuming::Gone) => true,
            Thread::Producer { left, at } => *left == 0 && *at == Producing::Publish,
            Thread::Consumer(_) => false,
        };
        let sleeps = |thread: &Thread| *thread == Thread::Consumer(Consuming::Asleep);
        state.threads.iter().all(rests) && (state.queued == 0 || !state.threads.iter().any(sleeps))
    }
}
