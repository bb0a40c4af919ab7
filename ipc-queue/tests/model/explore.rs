//! A small explicit-state model checker: visits every state that a protocol can reach, in breadth-first order.
//!
//! A protocol is a [`Model`]: a start state and a function that lists every move possible in a state. Moves are
//! atomic and sequentially consistent; a crash is a move like any other. The checker reports
//!
//! * the first *violation* that a move announces, with the shortest path that leads to it, and
//! * *wedged* states: those from which no path of steps alone (no further crash) leads to a finished state.
//!   A state that only loops is wedged, and so is one in which everybody is blocked.
//!
//! States are kept in one vector, which is the queue too, and found again through a table of indices; the
//! backward search for wedged states walks the recorded edges. Three million states of 130 bytes take half a
//! gigabyte.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{Hash, Hasher};

/// A protocol to explore.
pub(crate) trait Model {
    /// Everything that the future depends on. Small: millions of them are kept.
    type State: Copy + Eq + Hash + fmt::Debug;

    fn start(&self) -> Self::State;

    /// Lists the moves possible in `state`. A move that changes nothing may be listed; it is ignored.
    fn moves(&self, state: &Self::State, moves: &mut Moves<Self::State>);

    /// Whether `state` is a good end: everybody who lives has done all there is to do, and the books balance.
    fn is_finished(&self, state: &Self::State) -> bool;
}

/// The moves of one state, as a [`Model`] lists them.
pub(crate) struct Moves<S> {
    next: Vec<(Actor, S)>,
    violation: Option<(Actor, String)>,
}

/// Who moved, for traces: a process takes a step, or dies.
#[derive(Clone, Copy)]
pub(crate) enum Actor {
    Step(u8),
    Crash(u8),
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Step(process) => write!(f, "{process}"),
            Self::Crash(process) => write!(f, "+{process}"),
        }
    }
}

impl<S> Moves<S> {
    /// The process `process` may take a step to `state`.
    pub(crate) fn step(&mut self, process: usize, state: S) {
        self.next.push((Actor::Step(index(process)), state));
    }

    /// The process `process` may die, which leaves `state`.
    pub(crate) fn crash(&mut self, process: usize, state: S) {
        self.next.push((Actor::Crash(index(process)), state));
    }

    /// The process `process` may take a step that breaks a promise.
    pub(crate) fn violation(&mut self, process: usize, what: impl Into<String>) {
        self.violation.get_or_insert((Actor::Step(index(process)), what.into()));
    }
}

fn index(process: usize) -> u8 {
    u8::try_from(process).expect("a model has few processes")
}

/// What an exploration found.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) states: usize,
    pub(crate) finished: usize,
    pub(crate) outcome: Outcome,
}

#[derive(Debug)]
pub(crate) enum Outcome {
    /// Every reachable state was visited, no promise is broken, survivors can always finish.
    Sound,
    /// A promise was broken at the end of `path`. In a path, `2` is a step of process 2 and `+2` its death.
    Violation { what: String, path: String },
    /// From `count` states the survivors cannot finish; `path` leads to the nearest, shown in `state`.
    Wedged { count: usize, path: String, state: String },
    /// There are more than [`MAX_STATES`] states.
    TooManyStates,
}

/// Beyond this an exploration gives up, so that a mistake in a model cannot eat the machine.
const MAX_STATES: usize = 8_000_000;

/// Visits every state of `model`.
pub(crate) fn explore<M: Model>(model: &M) -> Report {
    let mut found = Found::new();
    found.insert(model.start());
    // How each state was first reached: the state before, and the move.
    let mut origin: Vec<(u32, Actor)> = vec![(0, Actor::Step(0))];
    // Steps of survivors, as (to, from).
    let mut edges: Vec<(u32, u32)> = Vec::new();
    let mut ends: Vec<u32> = Vec::new();
    let mut moves = Moves { next: Vec::new(), violation: None };
    let mut current = 0_u32;
    let outcome = loop {
        let Some(&state) = found.states.get(current as usize) else {
            break wedged(&found, &origin, edges, &ends);
        };
        if found.states.len() > MAX_STATES {
            break Outcome::TooManyStates;
        }
        if model.is_finished(&state) {
            ends.push(current);
        }
        model.moves(&state, &mut moves);
        if let Some((actor, what)) = moves.violation.take() {
            let path = format!("{} {actor}", path(&origin, current));
            break Outcome::Violation { what, path };
        }
        for (actor, next) in moves.next.drain(..) {
            if next == state {
                continue;
            }
            let (to, is_new) = found.insert(next);
            if is_new {
                origin.push((current, actor));
            }
            if matches!(actor, Actor::Step(_)) {
                edges.push((to, current));
            }
        }
        current += 1;
    };
    Report { states: found.states.len(), finished: ends.len(), outcome }
}

/// Every state is visited, no promise is broken, and survivors can always finish.
#[track_caller]
pub(crate) fn assert_sound(model: &impl Model, states: usize) {
    let report = explore(model);
    assert!(matches!(report.outcome, Outcome::Sound), "not sound: {:?}", report.outcome);
    assert!(report.finished > 0, "no run ever finishes");
    assert_eq!(report.states, states, "the model explores another space than it did");
}

/// The explorer finds a broken promise that says `promise`.
#[track_caller]
pub(crate) fn assert_breaks(model: &impl Model, promise: &str) {
    match explore(model).outcome {
        Outcome::Violation { what, path } if what.contains(promise) => println!("{what}, after {path}"),
        other => panic!("expected a broken promise ({promise}), found {other:?}"),
    }
}

/// The explorer finds states from which the survivors cannot finish.
#[track_caller]
pub(crate) fn assert_wedges(model: &impl Model) {
    match explore(model).outcome {
        Outcome::Wedged { count, path, state } => println!("{count} wedged, first after {path}: {state}"),
        other => panic!("expected a wedge, found {other:?}"),
    }
}

/// Walks backwards from the finished states; whatever is not met is wedged.
fn wedged<S: Copy + Eq + Hash + fmt::Debug>(
    found: &Found<S>,
    origin: &[(u32, Actor)],
    mut edges: Vec<(u32, u32)>,
    ends: &[u32],
) -> Outcome {
    edges.sort_unstable();
    let mut can_finish = vec![false; found.states.len()];
    let mut queue: VecDeque<u32> = ends.iter().copied().collect();
    for &end in ends {
        can_finish[end as usize] = true;
    }
    while let Some(state) = queue.pop_front() {
        let first = edges.partition_point(|&(to, _)| to < state);
        for &(_, from) in edges[first..].iter().take_while(|&&(to, _)| to == state) {
            if !std::mem::replace(&mut can_finish[from as usize], true) {
                queue.push_back(from);
            }
        }
    }
    let Some(nearest) = can_finish.iter().position(|can| !can) else {
        return Outcome::Sound;
    };
    Outcome::Wedged {
        count: can_finish.iter().filter(|can| !**can).count(),
        path: path(origin, u32::try_from(nearest).expect("states are counted in u32")),
        state: format!("{:?}", found.states[nearest]),
    }
}

/// The moves that lead from the start to `state`.
fn path(origin: &[(u32, Actor)], mut state: u32) -> String {
    let mut moves = Vec::new();
    while state != 0 {
        let (before, actor) = origin[state as usize];
        moves.push(actor.to_string());
        state = before;
    }
    moves.reverse();
    moves.join(" ")
}

/// The states met so far, in the order in which they were met, and a hash table of their indices.
struct Found<S> {
    states: Vec<S>,
    /// Open addressing, linear probing; the length is a power of two and more than twice the number of states.
    table: Vec<u32>,
}

/// An unused place of the table.
const VACANT: u32 = u32::MAX;

impl<S: Copy + Eq + Hash> Found<S> {
    fn new() -> Self {
        Self { states: Vec::new(), table: vec![VACANT; 1 << 10] }
    }

    /// The index of `state`, and whether it was met for the first time.
    fn insert(&mut self, state: S) -> (u32, bool) {
        if self.states.len() * 2 >= self.table.len() {
            self.grow();
        }
        let place = self.place(&state);
        if self.table[place] != VACANT {
            return (self.table[place], false);
        }
        let index = u32::try_from(self.states.len()).expect("states are counted in u32");
        self.table[place] = index;
        self.states.push(state);
        (index, true)
    }

    /// Where `state` is in the table, or where it belongs.
    fn place(&self, state: &S) -> usize {
        let mask = self.table.len() - 1;
        let mut hasher = WordHasher(0);
        state.hash(&mut hasher);
        let first = hasher.finish() & mask as u64;
        let mut place = usize::try_from(first).expect("a place in the table");
        while self.table[place] != VACANT && self.states[self.table[place] as usize] != *state {
            place = (place + 1) & mask;
        }
        place
    }

    fn grow(&mut self) {
        self.table = vec![VACANT; self.table.len() * 2];
        for index in 0..self.states.len() {
            let place = self.place(&self.states[index]);
            self.table[place] = u32::try_from(index).expect("states are counted in u32");
        }
    }
}

/// One multiplication per word: states are trusted, so there is no need for a keyed hash.
struct WordHasher(u64);

impl Hasher for WordHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn write_u8(&mut self, byte: u8) {
        self.write_u64(u64::from(byte));
    }

    fn write_isize(&mut self, discriminant: isize) {
        self.write_u64(discriminant as u64);
    }

    fn finish(&self) -> u64 {
        // The low bits of a product depend on few bits of its factors; the high half is well mixed.
        self.0 ^ (self.0 >> 32)
    }
}
