//! The registry of a segment: who took which participant index.
//!
//! ```text
//! word 0          hint: probing starts behind this index
//! word 1          the highest index ever taken
//! word 2          how many deaths were found, modulo 2^32: a futex (see `deaths`)
//! word 8 + index  entry of the index, 1..=1023: generation << 1 | attached
//! then            one u32 per index: the process id of its last holder, for people
//! ```
//!
//! The lock on byte `index` of the file says whether a *living* process holds the index (see
//! [`crate::segment`]); the entry says whether somebody still has to clean up behind it. An entry is only
//! written by the holder of the lock, so nothing here races: `attached` is set by a claimer, cleared by a clean
//! detach or by a sweeper after its work. The generation counts the holders.
#![allow(unsafe_code)]
//! # Safety
//!
//! `Registry::at` is given `REGISTRY_LEN` mapped, 8-aligned bytes; they are only accessed as atomics.

use crate::error::{Kind, SegmentError};
use crate::futex::Futex;
use crate::owner::Owner;
use crate::segment::MAX_PARTICIPANTS;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::sys::files::{self, Lock};
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

/// The word of entry 0, which is not used: the first cache line holds the hint and the highest index.
const FIRST_ENTRY: usize = 8;
/// The registry's length in bytes: whole pages.
pub(crate) const REGISTRY_LEN: usize = 16384;
/// Where the process ids begin.
const PIDS_OFFSET: usize = (FIRST_ENTRY + MAX_PARTICIPANTS as usize + 1) * 8;

const ATTACHED: u64 = 1;
const GENERATION: u64 = 2;

/// A view of the registry in a mapping.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Registry<'m> {
    words: &'m [AtomicU64],
    pids: &'m [AtomicU32],
    deaths: &'m Futex,
}

impl<'m> Registry<'m> {
    /// # Safety
    ///
    /// `base` points to `REGISTRY_LEN` bytes, 8-aligned, mapped for `'m` and accessed as atomics only.
    pub(crate) unsafe fn at(base: NonNull<u8>) -> Self {
        let len = FIRST_ENTRY + usize::from(MAX_PARTICIPANTS) + 1;
        let indices = usize::from(MAX_PARTICIPANTS) + 1;
        const { assert!(PIDS_OFFSET + (MAX_PARTICIPANTS as usize + 1) * 4 <= REGISTRY_LEN) };
        // SAFETY: inside the bytes that the caller vouches for; atomics may be shared with other processes.
        let words = unsafe { std::slice::from_raw_parts(base.cast::<AtomicU64>().as_ptr(), len) };
        // SAFETY: as above; 4-aligned because the words before it are.
        let pids = unsafe {
            std::slice::from_raw_parts(base.add(PIDS_OFFSET).cast::<AtomicU32>().as_ptr(), indices)
        };
        // SAFETY: word 2, which nothing else uses; a futex is a 32-bit atomic.
        let deaths = unsafe { base.add(16).cast::<Futex>().as_ref() };
        Self { words, pids, deaths }
    }

    fn entry(&self, index: u16) -> &'m AtomicU64 {
        &self.words[FIRST_ENTRY + usize::from(index.min(MAX_PARTICIPANTS))]
    }

    /// Takes a free index and the token that goes with it, by locking its byte through `own`. An index whose last holder died is swept first, and
    /// not taken over in this state: the claimer holds its lock, so it has the exclusive right.
    pub(crate) fn claim(
        &self,
        own: BorrowedFd<'_>,
        sweep: impl Fn(u16) -> bool,
    ) -> Result<Owner, SegmentError> {
        // Relaxed: a hint from shared memory, brought into range.
        let hint =
            u16::try_from(self.words[0].load(Ordering::Relaxed) % u64::from(MAX_PARTICIPANTS)).unwrap_or(0);
        for step in 0..MAX_PARTICIPANTS {
            let index = (hint + step) % MAX_PARTICIPANTS + 1;
            let locked = files::try_lock(own, Lock::Write, index.into())
                .map_err(SegmentError::system("locking a participant's byte"))?;
            if !locked {
                continue;
            }
            crate::crash_point!("segment.attach.locked");
            let succeeds_dead = self.is_attached(index);
            if succeeds_dead && !sweep(index) {
                files::unlock(own, index.into())
                    .map_err(SegmentError::system("unlocking a participant's byte"))?;
                continue;
            }
            // Before the entry, so that a sweeper visits it.
            self.words[1].fetch_max(index.into(), Ordering::Relaxed);
            let entry = self.entry(index);
            let next = (entry.load(Ordering::Acquire) & !ATTACHED).wrapping_add(GENERATION) | ATTACHED;
            // Relaxed: information only.
            self.pids[usize::from(index)].store(std::process::id(), Ordering::Relaxed);
            entry.store(next, Ordering::Release);
            crate::crash_point!("segment.attach.entered");
            self.words[0].store(index.into(), Ordering::Relaxed);
            if succeeds_dead {
                self.announce_death();
            }
            return Ok(Owner::new(index, next / GENERATION));
        }
        Err(Kind::TooManyParticipants { limit: MAX_PARTICIPANTS }.into())
    }

    /// Frees the index; the caller holds its lock.
    pub(crate) fn free(&self, index: u16) {
        // SYNC registry-entry: Release, so that the next holder sees the clean-up; pairs with `claim`.
        self.entry(index).fetch_and(!ATTACHED, Ordering::Release);
        // Freed indices are found first: sweeps, and whoever looks at every participant, go up to the highest index ever
        // taken. So one index is taken again and again; what that means for tokens stands at `owner`.
        self.words[0].store(u64::from(index) - 1, Ordering::Relaxed);
    }

    pub(crate) fn generation(&self, index: u16) -> u64 {
        self.entry(index).load(Ordering::Acquire) / GENERATION
    }

    /// Deaths found so far.
    pub(crate) fn deaths(&self) -> &'m Futex {
        self.deaths
    }

    /// Wakes whoever sleeps on a lock that a dead process may hold. Call it when the dead one's byte is not locked any more.
    pub(crate) fn announce_death(&self) {
        // Release: whoever sees the count sees the lock free. Pairs with the load in `Deaths::near`.
        self.deaths.word().fetch_add(1, Ordering::Release);
        self.deaths.wake(i32::MAX as u32);
    }

    /// The process id that the last holder of the index has in its own namespace.
    pub(crate) fn process_id(&self, index: u16) -> u32 {
        self.pids[usize::from(index.min(MAX_PARTICIPANTS))].load(Ordering::Relaxed)
    }

    pub(crate) fn is_attached(&self, index: u16) -> bool {
        self.entry(index).load(Ordering::Acquire) & ATTACHED != 0
    }

    /// The highest index ever taken, as shared memory has it: bounded before use.
    pub(crate) fn highest(&self) -> u16 {
        let highest = self.words[1].load(Ordering::Acquire);
        u16::try_from(highest).unwrap_or(MAX_PARTICIPANTS).min(MAX_PARTICIPANTS)
    }
}
