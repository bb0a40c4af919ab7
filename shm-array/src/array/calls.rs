//! The locking calls, which an array and a chunk have alike.

use super::holds::{Mode, Wait, without};
use super::{ArrayGuard, ArrayReadGuard, Chunk, SharedArray};
use crate::lock::LockError;
use crate::lock::raw::Held;
use shm_core::Plain;
use std::ops::Range;
use std::time::{Duration, Instant};

/// What the calls that lock for writing return.
type Locked<'a, T> = Result<ArrayGuard<'a, T>, LockError<ArrayGuard<'a, T>>>;
/// What the calls that lock for reading return.
type Shared<'a, T> = Result<ArrayReadGuard<'a, T>, LockError<ArrayReadGuard<'a, T>>>;

macro_rules! calls {
    ($it:literal, $life:lifetime, $receiver:ty) => {
        #[doc = concat!("Locks ", $it, ". Blocks until it is free or its holder died.")]
        ///
        /// A thread that holds a guard of these elements waits for itself.
        ///
        /// # Errors
        ///
        /// With the guard, `OwnerDied` if a holder died in the middle and `Poisoned` if one panicked; `Unrecoverable` if
        /// nobody repaired the elements after a death, `Forked`.
        #[inline]
        pub fn lock(self: $receiver) -> Locked<$life, T> {
            self.lock_waiting(Wait::Forever)
        }

        #[doc = concat!("Locks ", $it, " if no living process holds it. Never blocks.")]
        ///
        /// # Errors
        ///
        /// As `lock`, and `WouldBlock`.
        pub fn try_lock(self: $receiver) -> Locked<$life, T> {
            self.lock_waiting(Wait::Not)
        }

        #[doc = concat!("Locks ", $it, ", waiting no longer than `timeout`.")]
        ///
        /// # Errors
        ///
        /// As `lock`, and `TimedOut`.
        pub fn lock_timeout(self: $receiver, timeout: Duration) -> Locked<$life, T> {
            self.lock_waiting(Wait::until(timeout))
        }

        #[doc = concat!("Locks ", $it, ", waiting no longer than until `deadline`.")]
        ///
        /// # Errors
        ///
        /// As `lock`, and `TimedOut`.
        pub fn lock_until(self: $receiver, deadline: Instant) -> Locked<$life, T> {
            self.lock_waiting(Wait::Until(deadline))
        }

        #[doc = concat!("Locks ", $it, " for writing: another name of `lock`.")]
        ///
        /// # Errors
        ///
        /// As `lock`.
        #[inline]
        pub fn write(self: $receiver) -> Locked<$life, T> {
            self.lock_waiting(Wait::Forever)
        }

        /// Another name of `try_lock`.
        ///
        /// # Errors
        ///
        /// As `lock`, and `WouldBlock`.
        pub fn try_write(self: $receiver) -> Locked<$life, T> {
            self.lock_waiting(Wait::Not)
        }

        /// Another name of `lock_timeout`.
        ///
        /// # Errors
        ///
        /// As `lock`, and `TimedOut`.
        pub fn write_timeout(self: $receiver, timeout: Duration) -> Locked<$life, T> {
            self.lock_waiting(Wait::until(timeout))
        }

        /// Another name of `lock_until`.
        ///
        /// # Errors
        ///
        /// As `lock`, and `TimedOut`.
        pub fn write_until(self: $receiver, deadline: Instant) -> Locked<$life, T> {
            self.lock_waiting(Wait::Until(deadline))
        }

        #[doc = concat!("Locks ", $it, " for reading.")]
        ///
        /// Together with other readers if the array was [built](super::ArrayBuilder::read_write) so, alone otherwise. Blocks
        /// until nobody writes, or the writer died.
        ///
        /// # Errors
        ///
        /// With the guard, `Poisoned`. `WriterDied` if a holder died in the middle: `lock` gives it to repair. As `lock`
        /// otherwise; and `TooMany` if too many threads of this process read.
        #[inline]
        pub fn read(self: $receiver) -> Shared<$life, T> {
            self.read_waiting(Wait::Forever)
        }

        #[doc = concat!("Locks ", $it, " for reading if no living process writes. Never blocks.")]
        ///
        /// # Errors
        ///
        /// As `read`, and `WouldBlock`.
        pub fn try_read(self: $receiver) -> Shared<$life, T> {
            self.read_waiting(Wait::Not)
        }

        #[doc = concat!("Locks ", $it, " for reading, waiting no longer than `timeout`.")]
        ///
        /// # Errors
        ///
        /// As `read`, and `TimedOut`.
        pub fn read_timeout(self: $receiver, timeout: Duration) -> Shared<$life, T> {
            self.read_waiting(Wait::until(timeout))
        }

        #[doc = concat!("Locks ", $it, " for reading, waiting no longer than until `deadline`.")]
        ///
        /// # Errors
        ///
        /// As `read`, and `TimedOut`.
        pub fn read_until(self: $receiver, deadline: Instant) -> Shared<$life, T> {
            self.read_waiting(Wait::Until(deadline))
        }
    };
}

/// Locking the whole array: with several chunks all their locks, in order, one after the other. Whoever locks several
/// chunks one by one takes them in order too, or two may wait for each other for ever.
impl<T: Plain> SharedArray<T> {
    calls!("the whole array", '_, &Self);

    #[inline(always)]
    fn lock_waiting(&self, wait: Wait) -> Locked<'_, T> {
        self.lock_chunks(0..self.chunk_count(), wait)
    }

    fn read_waiting(&self, wait: Wait) -> Shared<'_, T> {
        self.read_chunks(0..self.chunk_count(), wait)
    }

    /// Locks chunks, of which there is at least one.
    #[inline(always)]
    fn lock_chunks(&self, chunks: Range<usize>, wait: Wait) -> Locked<'_, T> {
        let elements = self.body.geometry().elements_of(&chunks);
        let (holds, data) = self.body.lock(chunks, Mode::Write, wait).map_err(without)?;
        Held::outcome(data, ArrayGuard::new(self, elements, holds))
    }

    #[inline(always)]
    fn read_chunks(&self, chunks: Range<usize>, wait: Wait) -> Shared<'_, T> {
        let elements = self.body.geometry().elements_of(&chunks);
        let (holds, data) = self.body.lock(chunks, Mode::Read, wait).map_err(without)?;
        Held::outcome(data, ArrayReadGuard::new(self, elements, holds))
    }
}

impl<'a, T: Plain> Chunk<'a, T> {
    calls!("the chunk", 'a, Self);

    /// Locks a chunk that is [out of use](LockError::Unrecoverable); the caller writes all of it anew. Never blocks.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if it is not out of use, `Forked`.
    pub fn renew(self) -> Locked<'a, T> {
        let holds = self.array.body.renew(self.index).map_err(without)?;
        Ok(ArrayGuard::new(self.array, self.range(), holds))
    }

    #[inline(always)]
    fn lock_waiting(self, wait: Wait) -> Locked<'a, T> {
        self.array.lock_chunks(self.index..self.index + 1, wait)
    }

    #[inline(always)]
    fn read_waiting(self, wait: Wait) -> Shared<'a, T> {
        self.array.read_chunks(self.index..self.index + 1, wait)
    }
}
