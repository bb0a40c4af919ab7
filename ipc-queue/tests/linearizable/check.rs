//! Decides whether what threads saw of an object can be explained by steps that happen at one moment each.
//!
//! After Wing and Gong, *Testing and Verifying Concurrent Objects* (1993), and Lowe, *Testing for Linearizability*
//! (2017): the history is read event by event, and all explanations are kept at once, each as the state of the
//! object together with how far every open operation has got. Explanations that agree in both are one, which is
//! what keeps their number small. When an operation returns, those in which it has taken its last step go on.
//!
//! Two things are more than in the textbook. An operation may take several steps (a claim, then its publication),
//! each at its own moment between begin and return. And the thread of an operation may *die*: then the operation
//! has taken any number of its steps, and will take no other.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;

/// What happens in a history. Operations have numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Begin(usize),
    /// The operation has taken all its steps.
    Return(usize),
    /// The operation has taken some of its steps, or all, or none.
    Die(usize),
}

/// How far an operation has got.
pub(crate) type Phase = u8;

/// The phase of an operation that has taken no step yet.
pub(crate) const BEGUN: Phase = 0;
/// The phase of an operation that has taken its last step.
pub(crate) const DONE: Phase = Phase::MAX;

/// What an object promises.
pub(crate) trait Spec {
    type State: Clone + Eq + Hash + Debug;

    fn start(&self) -> Self::State;

    /// Adds every step that operation `op` may take in `state`: the phase and the state behind it.
    fn steps(&self, state: &Self::State, op: usize, phase: Phase, steps: &mut Vec<(Phase, Self::State)>);
}

/// One explanation of the events so far.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Explanation<S> {
    state: S,
    /// Open operations in the order in which they began.
    open: Vec<(usize, Phase)>,
}

impl<S> Explanation<S> {
    fn open(mut self, op: usize) -> Self {
        self.open.push((op, BEGUN));
        self
    }

    fn has_done(&self, op: usize) -> bool {
        self.open.contains(&(op, DONE))
    }

    fn close(mut self, op: usize) -> Self {
        self.open.retain(|(open, _)| *open != op);
        self
    }
}

/// Whether the events can be explained.
///
/// # Errors
///
/// The index of the first event that cannot, and the explanations that there were until then.
pub(crate) fn check<S: Spec>(spec: &S, events: &[Event]) -> Result<(), (usize, String)> {
    let mut all = HashSet::from([Explanation { state: spec.start(), open: Vec::new() }]);
    for (index, &event) in events.iter().enumerate() {
        let before = if matches!(event, Event::Begin(_)) { all } else { with_steps(spec, all) };
        let after = before.iter().cloned();
        all = match event {
            Event::Begin(op) => after.map(|one| one.open(op)).collect(),
            Event::Return(op) => after.filter(|one| one.has_done(op)).map(|one| one.close(op)).collect(),
            Event::Die(op) => after.map(|one| one.close(op)).collect(),
        };
        if all.is_empty() {
            return Err((index, format!("{before:#?}")));
        }
    }
    Ok(())
}

/// The explanations, and all that become of them by steps of open operations.
fn with_steps<S: Spec>(spec: &S, all: HashSet<Explanation<S::State>>) -> HashSet<Explanation<S::State>> {
    let mut work: Vec<_> = all.iter().cloned().collect();
    let mut met = all;
    let mut steps = Vec::new();
    while let Some(one) = work.pop() {
        for (place, &(op, phase)) in one.open.iter().enumerate().filter(|(_, (_, phase))| *phase != DONE) {
            spec.steps(&one.state, op, phase, &mut steps);
            for (phase, state) in steps.drain(..) {
                let mut next = Explanation { state, open: one.open.clone() };
                next.open[place].1 = phase;
                if met.insert(next.clone()) {
                    work.push(next);
                }
            }
        }
    }
    met
}
