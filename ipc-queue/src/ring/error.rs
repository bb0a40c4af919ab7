//! What an operation on a ring reports instead of a message.

use super::word::{State, Word};

/// A slot that somebody holds: evidence for a later recovery.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The first ticket of the claim.
    pub(super) ticket: u64,
    /// The header as it was read.
    pub(super) word: Word,
}

impl Claim {
    /// The participant index of the holder.
    pub fn owner(&self) -> u16 {
        self.word.owner()
    }

    /// Whether the holder writes messages into the slots. Otherwise it takes messages out of them, and nothing comes.
    pub fn is_writing(&self) -> bool {
        self.word.state() == State::WRITING
    }
}

impl std::fmt::Debug for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Claim(ticket {}, {:?})", self.ticket, self.word)
    }
}

/// Why nothing was pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PushError {
    /// Every slot holds a message. Exact at the moment of the look.
    #[error("the ring is full")]
    Full,
    /// The slot that is needed next is still held from the lap before. The ring is full, unless the holder is
    /// dead: prove that and call [`Ring::recover`](super::Ring::recover).
    #[error("the ring is full: participant {} holds its next slot", .0.owner())]
    Claimed(Claim),
    /// The ring has used up its tickets (a ring of one slot at 5 million messages a second: after 81 days).
    #[error("the ring has used up its tickets")]
    Exhausted,
    /// The caller of [`Ring::try_push_if`](super::Ring::try_push_if) has refused its own claim.
    #[error("the push was refused")]
    Refused,
}

/// Why nothing was popped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PopError {
    /// Every message that was pushed is taken. Exact at the moment of the look.
    #[error("the ring is empty")]
    Empty,
    /// The next message is not published yet. Nothing to take, unless the holder is dead: prove that and call
    /// [`Ring::recover`](super::Ring::recover).
    #[error("the next message of the ring is being written by participant {}", .0.owner())]
    Claimed(Claim),
    /// The ring has used up its tickets, and every message is taken.
    #[error("the ring has used up its tickets")]
    Exhausted,
}
