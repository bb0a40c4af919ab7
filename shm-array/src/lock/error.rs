//! Why a lock was not handed out, or not as usual.

use std::fmt;

/// Why a locking call did not simply succeed. Where the lock *was* taken, the guard is inside.
#[non_exhaustive]
pub enum LockError<G> {
    /// The process that held the lock died in the middle. The lock is taken: repair the data, then call the guard's
    /// `mark_consistent`. A guard dropped without it makes the lock [`Unrecoverable`](LockError::Unrecoverable).
    OwnerDied(G),
    /// A thread panicked while it held the lock, as in std. The lock is taken.
    Poisoned(G),
    /// A writer died in the middle, and a reader could not repair the data: take the lock for writing.
    WriterDied,
    /// The deadline passed first.
    TimedOut,
    /// Somebody else holds it; from the `try_` calls.
    WouldBlock,
    /// A holder died and whoever took over gave up without repairing the data.
    Unrecoverable,
    /// The calling thread holds it already: waiting would never end.
    Deadlock,
    /// The caller gives back what it does not hold.
    NotHeld,
    /// A count went over its limit (readers of one process, depth of a reentrant lock).
    TooMany {
        /// The limit.
        limit: u32,
    },
    /// The process was forked after it had attached, and could not attach again.
    Forked,
}

impl<G> LockError<G> {
    /// The guard, if the lock was taken.
    pub fn into_guard(self) -> Option<G> {
        match self {
            Self::OwnerDied(guard) | Self::Poisoned(guard) => Some(guard),
            _ => None,
        }
    }

    /// A holder died; the guard is inside.
    pub fn is_owner_died(&self) -> bool {
        matches!(self, Self::OwnerDied(_))
    }

    /// A holder panicked; the guard is inside.
    pub fn is_poisoned(&self) -> bool {
        matches!(self, Self::Poisoned(_))
    }

    /// The deadline passed first.
    pub fn is_timed_out(&self) -> bool {
        matches!(self, Self::TimedOut)
    }

    /// The guard replaced by what `f` makes of it.
    pub fn map<H>(self, f: impl FnOnce(G) -> H) -> LockError<H> {
        match self {
            Self::OwnerDied(guard) => LockError::OwnerDied(f(guard)),
            Self::Poisoned(guard) => LockError::Poisoned(f(guard)),
            Self::WriterDied => LockError::WriterDied,
            Self::TimedOut => LockError::TimedOut,
            Self::WouldBlock => LockError::WouldBlock,
            Self::Unrecoverable => LockError::Unrecoverable,
            Self::Deadlock => LockError::Deadlock,
            Self::NotHeld => LockError::NotHeld,
            Self::TooMany { limit } => LockError::TooMany { limit },
            Self::Forked => LockError::Forked,
        }
    }

    /// The same error without the guard, for `Box<dyn Error>`. Drops the guard: a lock whose owner died is
    /// unrecoverable then.
    pub fn into_error(self) -> LockError<()> {
        self.map(drop)
    }
}

impl<G> fmt::Debug for LockError<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::OwnerDied(_) => "OwnerDied(..)",
            Self::Poisoned(_) => "Poisoned(..)",
            Self::WriterDied => "WriterDied",
            Self::TimedOut => "TimedOut",
            Self::WouldBlock => "WouldBlock",
            Self::Unrecoverable => "Unrecoverable",
            Self::Deadlock => "Deadlock",
            Self::NotHeld => "NotHeld",
            Self::TooMany { limit } => return f.debug_struct("TooMany").field("limit", limit).finish(),
            Self::Forked => "Forked",
        };
        f.write_str(name)
    }
}

impl<G> fmt::Display for LockError<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OwnerDied(_) => {
                f.write_str("the process that held the lock died; the data may be half changed")
            }
            Self::Poisoned(_) => f.write_str("a thread panicked while it held the lock"),
            Self::WriterDied => f.write_str(
                "a process died while it wrote; the data may be half changed until a writer repairs it",
            ),
            Self::TimedOut => f.write_str("the lock was not free in time"),
            Self::WouldBlock => f.write_str("the lock is held by somebody else"),
            Self::Unrecoverable => {
                f.write_str("a holder of the lock died and nobody repaired the data; the lock is out of use")
            }
            Self::Deadlock => f.write_str("the calling thread holds the lock already"),
            Self::NotHeld => f.write_str("nothing is held that could be given back"),
            Self::TooMany { limit } => write!(f, "the lock is held {limit} times, which is its limit"),
            Self::Forked => {
                f.write_str("the process was forked and could not attach to the lock's memory again")
            }
        }
    }
}

impl<G> std::error::Error for LockError<G> {}
