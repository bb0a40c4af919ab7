//! When is a side of a queue gone? When no living process holds a handle of it and none is on its way.
//!
//! # Memory
//!
//! Each participant counts the senders and receivers of its process in its own entry of the control block; only
//! that process writes it while it lives. A handle on its way is a *token*: a descriptor whose open file
//! description holds a lock on the lane of its side, which the kernel keeps for as long as the descriptor exists
//! in any process or socket buffer. Sides that are gone are a sticky bit.
//!
//! # Travelling
//!
//! ```text
//! leave    make the token; epoch += 1; (later the handle is dropped: count -= 1)
//! arrive   count += 1; epoch += 1; close the token
//! ```
//!
//! So at each moment the handle is in a count, in the lane, or in both.
//!
//! A fork copies handles: they leave with a token that the child inherits, and arrive when the child attaches again, which
//! counts all that are still there (see [`Segment::ensure`]).
//!
//! # The scary race
//!
//! A scan reads counts and lane one after the other, and a handle may move from what it has not read yet to what it
//! has read already, and back. Each move steps the epoch while it is seen on both sides, so a scan that found
//! nothing is believed only if the epoch stood still.
//!
//! # If a process dies
//!
//! Its count is not believed any more: the death oracle is asked for each entry that is not zero. A token dies with
//! the last process or buffer that held it. A sweep clears the entry before the index is given to somebody else.
//! If nobody sweeps and the survivors sleep, they look again when their time slice ends.

use crate::layout::{Control, Side};
use shm_core::segment::Segment;
use shm_core::sync::Ordering;

/// Scans that moving handles may spoil before the answer is "not gone"; whoever sleeps will ask again.
const ATTEMPTS: usize = 8;

/// Whether `side` is gone. If it is, whoever waits for that side is woken. Some system calls, never blocks.
pub(crate) fn is_gone(segment: &Segment, control: &Control, side: Side) -> bool {
    if control.is_gone(side) {
        return true;
    }
    for _ in 0..ATTEMPTS {
        let epoch = control.epoch();
        if is_held(segment, control, side) || segment.in_flight(side.lane().into()) {
            return false;
        }
        if control.epoch() == epoch {
            control.set_gone(side);
            control.wake_all(side.other());
            return true;
        }
    }
    false
}

/// Whether a living process holds a handle of `side`.
fn is_held(segment: &Segment, control: &Control, side: Side) -> bool {
    // SeqCst: together with the epoch; it also lets us see what a holder did before it let go.
    let holds = |participant| control.count(participant, side).load(Ordering::SeqCst) != 0;
    holds(segment.participant())
        || (1..=segment.participants()).any(|other| holds(other) && !segment.is_dead(other))
}
