//! Messages outside of slots: the chunks of a queue as one end uses them.
//!
//! ```text
//! send   claim a run (waits for chunks); put memory behind it; copy; claim a slot (waits); QUEUED; refer to it in the slot
//! recv   claim the slot; TAKEN; release the slot; copy; trim; free the run
//! ```
//!
//! A slot that refers to a run has [`LARGE`] in its prefix, and then a [`Reference`].
//!
//! # Memory
//!
//! Chunks are sparse. How many first pages of each have memory behind them is counted in a table that only the owner of the
//! run writes: after the memory is there, and before it is given back. So no access finds a page without memory, unless a
//! process scribbles on the counts and the machine has no memory left.
//!
//! Who frees a run, and who waits for anything, looks whether too much lies idle: once a second at most, all processes
//! together. It gives the memory of its own run back, and that of free chunks behind all that were used since the last look;
//! for these it claims them. A run that alone is longer than what may lie idle is cut down to that whenever it is freed. So
//! memory of a steady traffic stays, that of an isolated large message goes at once, and other memory that lies idle within
//! some two seconds, if anybody waits at the queue, or polls, or else with the next run that is freed.
//!
//! # Safety
//!
//! * Number, length and place of the chunks are read from shared memory once, checked against the mapping, and kept. A run
//!   lies inside of the chunks, whatever the words say: [`Chunks`] sees to it.
//! * The memory of a run is used by its owner only: between claim and `queue`, and between `take` and release.
//! * Nothing is touched before [`End::check`], nor through a run that was there at a fork, by the child.
#![allow(unsafe_code)]

use crate::chunks::{Chunks, Run};
use crate::end::{Body, End, Miss};
use crate::error::DecodeError;
use crate::layout::{Control, PAGE, Placement};
use crate::lease::Leasing;
use crate::wait::{Patience, Stop};
use shm_core::crash_point;
use shm_core::fork::ForkStamp;
use shm_core::segment::{MAX_PARTICIPANTS, Segment};
use shm_core::sync::{AtomicU32, AtomicU64, Ordering};
use std::cell::Cell;
use std::fmt;
use std::ptr::NonNull;

mod memory;

/// In the prefix of a slot: a [`Reference`] follows.
pub(crate) const LARGE: u32 = 1 << 30;
/// The prefix of a slot.
pub(crate) const PREFIX: usize = size_of::<u32>();

/// What a slot says of a message that lies in chunks. Unchecked, when it comes from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference {
    head: u32,
    generation: u32,
    len: u64,
}

impl Reference {
    /// Bytes in a slot.
    pub(crate) const LEN: usize = 16;

    fn to(run: &Run, len: usize) -> Self {
        Self {
            head: u32::try_from(run.head()).unwrap_or(u32::MAX),
            generation: u32::try_from(run.generation()).unwrap_or(u32::MAX),
            len: len as u64,
        }
    }

    /// Writes the reference where a message would be, with `flags` in its prefix.
    ///
    /// # Safety
    ///
    /// `place` is the caller's to write, aligned to 4 bytes and long enough for prefix and reference.
    pub(crate) unsafe fn store(self, place: *mut u8, flags: u32) {
        let bytes = self.to_bytes();
        #[allow(clippy::cast_possible_truncation, reason = "16")]
        let prefix = Self::LEN as u32 | LARGE | flags;
        // SAFETY: the caller's.
        unsafe {
            place.cast::<u32>().write(prefix);
            place.add(PREFIX).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
    }

    fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&self.head.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.generation.to_ne_bytes());
        bytes[8..].copy_from_slice(&self.len.to_ne_bytes());
        bytes
    }

    /// `None` if there are too few bytes.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = bytes.split_first_chunk()?;
        let (generation, rest) = rest.split_first_chunk()?;
        let len = rest.first_chunk()?;
        Some(Self {
            head: u32::from_ne_bytes(*head),
            generation: u32::from_ne_bytes(*generation),
            len: u64::from_ne_bytes(*len),
        })
    }
}

/// A run of this process with a message of so many bytes in it.
#[derive(Debug)]
pub struct Bulky {
    run: Run,
    /// At most what fits into the run.
    len: usize,
}

/// The chunks of a queue in this process's mapping.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bulk {
    body: NonNull<u8>,
    place: Placement,
}

// SAFETY: all tables are atomics, and the mapping may be used by every thread; a run's memory by its owner only.
unsafe impl Send for Bulk {}
// SAFETY: as above.
unsafe impl Sync for Bulk {}

impl Bulk {
    /// `place` lies inside of the body, whose mapping outlives the result.
    pub(crate) fn new(body: NonNull<u8>, place: Placement) -> Self {
        Self { body, place }
    }

    pub(crate) fn chunks(&self) -> Chunks<'static> {
        let count = self.place.count;
        // SAFETY: the tables lie inside of the mapping, aligned; they are accessed as atomics in every process; `new`'s caller
        // keeps the mapping, and users have passed `End::check`.
        unsafe {
            let words = self.body.add(self.place.tables).cast::<AtomicU64>();
            let tags = words.add(count);
            Chunks::new(
                std::slice::from_raw_parts(words.as_ptr(), count),
                std::slice::from_raw_parts(tags.as_ptr(), count),
            )
        }
    }

    /// How many first pages of each chunk have memory.
    fn committed(&self) -> &[AtomicU32] {
        let count = self.place.count;
        // SAFETY: as in `chunks`: the counts lie behind both tables of 8 bytes.
        unsafe {
            let counts = self.body.add(self.place.tables + count * size_of::<[u64; 2]>());
            std::slice::from_raw_parts(counts.cast().as_ptr(), count)
        }
    }

    fn pages_per_chunk(&self) -> usize {
        self.place.chunk_len / PAGE
    }

    /// What the table says, as far as it can be true.
    fn pages(&self, index: usize) -> usize {
        // Relaxed: the word of the head orders it for its owner; others want an idea only.
        (self.committed()[index].load(Ordering::Relaxed) as usize).min(self.pages_per_chunk())
    }

    fn set_pages(&self, index: usize, pages: usize) {
        let pages = u32::try_from(pages).unwrap_or(u32::MAX);
        // Relaxed: as above.
        self.committed()[index].store(pages, Ordering::Relaxed);
    }

    /// The body's offset of a chunk.
    fn offset(&self, index: usize) -> usize {
        self.place.chunks + index * self.place.chunk_len
    }

    fn memory(&self, run: &Run) -> NonNull<u8> {
        // SAFETY: a run lies inside of the chunks, and they inside of the mapping.
        unsafe { self.body.add(self.offset(run.head())) }
    }
}

/// Cleans up after a dead participant whose slots are recovered already. Every step may be repeated.
pub(crate) fn sweep(body: &Body, control: &Control, dead: u16) {
    let Some(bulk) = body.bulk else {
        return;
    };
    bulk.chunks().sweep(dead);
    crash_point!("queue.sweep.chunks");
    bulk.chunks().collect(dead, |tag| body.is_over(tag));
    control.note_freed();
}

/// Whether one of these participants is dead. One system call for each, however often it is there.
fn is_one_dead(segment: &Segment, mut owners: impl Iterator<Item = u16>) -> bool {
    let mut asked = [false; MAX_PARTICIPANTS as usize + 1];
    owners.any(|owner| {
        let known = std::mem::replace(&mut asked[usize::from(owner)], true);
        !known && owner != segment.participant() && segment.is_dead(owner)
    })
}

/// A message in chunks that this handle has in hand. Dropped, its run is freed.
pub(crate) struct Held<'e> {
    end: &'e End,
    bulky: Option<Bulky>,
    stamp: ForkStamp,
}

impl fmt::Debug for Held<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl Held<'_> {
    pub(crate) fn len(&self) -> usize {
        self.bulky.as_ref().map_or(0, |bulky| bulky.len)
    }

    /// Shortens the message; its memory stays.
    pub(crate) fn truncate(&mut self, len: usize) {
        if let Some(bulky) = &mut self.bulky {
            bulky.len = bulky.len.min(len);
        }
    }

    /// Whether this is the process that has the message in hand.
    pub(crate) fn is_here(&self) -> bool {
        self.stamp.check().is_ok()
    }

    /// The memory, [`Held::len`] bytes that have memory behind them; only this process uses it until the drop.
    ///
    /// # Panics
    ///
    /// In a child that was forked while the message was in hand.
    pub(crate) fn memory(&self) -> NonNull<u8> {
        assert!(self.is_here(), "a forked child has not what its parent had in hand");
        match (&self.bulky, &self.end.bulk) {
            (Some(bulky), Some(bulk)) => bulk.memory(&bulky.run),
            _ => NonNull::dangling(),
        }
    }

    /// Fills the memory.
    pub(crate) fn fill(&mut self, bytes: &[u8]) {
        debug_assert_eq!(bytes.len(), self.len());
        let len = bytes.len().min(self.len());
        // SAFETY: so many bytes of the run are this process's.
        unsafe { self.memory().as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), len) };
    }

    /// A private copy of the message.
    pub(crate) fn copy(&self) -> Result<Vec<u8>, DecodeError> {
        let len = self.len();
        let mut bytes = room_for(len)?;
        // SAFETY: so many bytes of the run are this process's, and there is room for them. A process that breaks the rules
        // may change them meanwhile; any bytes are bytes.
        unsafe {
            bytes.as_mut_ptr().copy_from_nonoverlapping(self.memory().as_ptr(), len);
            bytes.set_len(len);
        }
        Ok(bytes)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let (Some(bulky), Ok(())) = (self.bulky.take(), self.stamp.check()) {
            self.end.free(bulky.run);
        }
    }
}

/// An empty vector with room for a message. The length is another process's word, so no memory is no reason to abort.
fn room_for(len: usize) -> Result<Vec<u8>, DecodeError> {
    let mut bytes = Vec::new();
    match bytes.try_reserve_exact(len) {
        Ok(()) => Ok(bytes),
        Err(_) => Err(DecodeError::out_of_memory(len)),
    }
}

/// Why there is no run.
pub(crate) enum Denied {
    Stop(Stop),
    OutOfMemory,
}

impl End {
    /// The longest message in bytes, in a slot or not.
    #[inline(always)]
    pub(crate) fn longest(&self) -> usize {
        self.longest
    }

    /// Claims chunks for a message, and puts memory behind them. Waits for chunks as `patience` allows.
    pub(crate) fn claim_run(&self, len: usize, patience: Patience) -> Result<Held<'_>, Denied> {
        let Some(bulk) = &self.bulk else {
            return Err(Denied::Stop(Stop::Late));
        };
        let wanted = len.div_ceil(bulk.place.chunk_len).max(1);
        let freed = &self.control().freed.0;
        let before = Cell::new(None);
        let attempt = || {
            // Looking at all chunks takes too long for a poll.
            if !self.is_news(&before) {
                return Err(Miss::Scarce);
            }
            bulk.chunks().claim(self.me(), wanted).map_err(|scarce| {
                if scarce.disturbed {
                    self.control().note_freed();
                }
                Miss::Scarce
            })
        };
        let claimed = attempt().or_else(|miss| {
            if self.collect() {
                before.set(None);
            }
            attempt().or_else(|_| self.retry_on(&freed.line, miss, patience, attempt))
        });
        let run = claimed.map_err(Denied::Stop)?;
        // It may be forgotten.
        self.segment().sweep_at_detach();
        let end = (run.head() + run.len()) as u64;
        // Relaxed: about. A look first, because it seldom rises.
        if freed.high.load(Ordering::Relaxed) < end {
            freed.high.fetch_max(end, Ordering::Relaxed);
        }
        let committed = bulk.commit(self.segment(), self.control(), &run, len);
        let held = self.hold(Bulky { run, len });
        committed.map(|()| held).map_err(|()| Denied::OutOfMemory)
    }

    /// Takes care of a message that this process has in hand.
    pub(crate) fn hold(&self, bulky: Bulky) -> Held<'_> {
        Held { end: self, bulky: Some(bulky), stamp: ForkStamp::now() }
    }

    /// Frees a run of this process.
    fn free(&self, run: Run) {
        if let Some(bulk) = &self.bulk {
            let control = self.control();
            bulk.trim(self.segment(), control, &run);
            bulk.chunks().release(run);
            // Whoever waits for memory should know where we run.
            control.freed.0.line.note_cpu();
            control.note_freed();
        }
    }

    /// Frees what nobody will come for. Returns whether there was something. No system call but for waking.
    fn collect(&self) -> bool {
        let Some(bulk) = &self.bulk else {
            return false;
        };
        let is_over = |tag| match &self.leasing {
            None => self.ring().is_released(tag),
            Some(leasing) => leasing.store().is_over(tag),
        };
        let found = bulk.chunks().collect(self.me(), is_over) > 0;
        if found {
            self.control().note_freed();
        }
        found
    }

    /// Whether a process that is dead has chunks or cells in hand. One system call for each process that has.
    #[cold]
    pub(crate) fn is_hoard_of_the_dead(&self) -> bool {
        let segment = self.segment();
        let store = self.leasing.as_ref().map(Leasing::store);
        self.bulk.as_ref().is_some_and(|bulk| is_one_dead(segment, bulk.chunks().owners()))
            || store.is_some_and(|store| is_one_dead(segment, store.cells().owners()))
    }

    /// Looks after everything that could keep chunks from this process: the dead, and what they left.
    #[cold]
    pub(crate) fn tidy(&self) {
        self.segment().sweep();
        self.collect();
        // Whoever freed some may be stopped before it said so: look at the words again in any case. Whoever polls is not told:
        // there may be nothing. Relaxed: of this process.
        self.tidied.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether chunks or cells may have been freed since the last call with this `before`.
    pub(crate) fn is_news(&self, before: &Cell<Option<(u32, u32)>>) -> bool {
        // SYNC chunk-count: read before the words; pairs with `note_freed`.
        let count = self.control().freed.0.count.load(Ordering::Acquire);
        // Relaxed: as in `tidy`.
        let now = Some((count, self.tidied.load(Ordering::Relaxed)));
        before.replace(now) != now
    }

    /// Leaves a run to the message whose claim of a cell `tag` is. From then on the run is what the cell refers to, until that
    /// claim is over; then [`End::free_kept`] or a collection frees it.
    pub(crate) fn keep(&self, mut held: Held<'_>, tag: u64) -> Option<Reference> {
        let Bulky { run, len } = held.bulky.take()?;
        let reference = Reference::to(&run, len);
        self.bulk.as_ref()?.chunks().queue(run, tag);
        Some(reference)
    }

    /// A private copy of the message in a run that a cell of this process refers to.
    pub(crate) fn copy_kept(&self, reference: Reference) -> Result<Vec<u8>, DecodeError> {
        let (from, len) = self.find_kept(reference).ok_or_else(DecodeError::reference)?;
        let mut bytes = room_for(len)?;
        // SAFETY: the run lies inside of the chunks, there is room, and nobody frees it while the cell is this process's. A process
        // that breaks the rules may change the bytes meanwhile; any bytes are bytes.
        unsafe {
            bytes.as_mut_ptr().copy_from_nonoverlapping(from.as_ptr(), len);
            bytes.set_len(len);
        }
        Ok(bytes)
    }

    /// Where the message of a kept run lies, and how many bytes it has, within the run. `None` if there is none.
    fn find_kept(&self, reference: Reference) -> Option<(NonNull<u8>, usize)> {
        let bulk = self.bulk.as_ref()?;
        let head = usize::try_from(reference.head).ok()?;
        let chunks = bulk.chunks().view(head, reference.generation.into())?;
        let len = usize::try_from(reference.len).ok().filter(|&len| len <= chunks * bulk.place.chunk_len)?;
        // SAFETY: the run lies inside of the chunks, and they inside of the mapping.
        Some((unsafe { bulk.body.add(bulk.offset(head)) }, len))
    }

    /// Frees the run that a cell referred to whose claim is over.
    pub(crate) fn free_kept(&self, reference: Reference) {
        if let Some(Bulky { run, .. }) = self.take_bulky(reference) {
            self.free(run);
        }
    }

    /// Whether the ring has room now, for whoever would do much for nothing if it had not and must not wait.
    pub(crate) fn look_for_slot(&self, patience: Patience) -> Result<(), Stop> {
        match patience {
            Patience::None => {
                let attempt = || Ok(self.ring().peek_room(self.cursor())?);
                attempt().or_else(|miss| self.retry(miss, patience, attempt))
            }
            _ => Ok(()),
        }
    }

    /// Pushes a message that lies in chunks, and returns its ticket; `flags` go into the slot's prefix. Nothing is left in
    /// hand after success.
    pub(crate) fn push_held(&self, held: &mut Held<'_>, flags: u32, patience: Patience) -> Result<u64, Stop> {
        let mut attempt = || self.try_push_held(held, flags);
        attempt().or_else(|miss| self.retry(miss, patience, attempt))
    }

    fn try_push_held(&self, held: &mut Held<'_>, flags: u32) -> Result<u64, Miss> {
        let Some(bulk) = &self.bulk else {
            return Err(Miss::Exhausted);
        };
        let write = |ticket, slot: *mut u8| {
            let Some(Bulky { run, len }) = held.bulky.take() else {
                return;
            };
            let reference = Reference::to(&run, len);
            bulk.chunks().queue(run, ticket);
            // SAFETY: the slot is claimed for writing, aligned to 8 bytes; a queue with chunks has slots of this length.
            unsafe { reference.store(slot, flags) };
        };
        self.try_push_open(write)
    }

    /// Takes the run of a message whose slot is claimed for reading. `None` if the reference is none.
    pub(crate) fn take_bulky(&self, reference: Reference) -> Option<Bulky> {
        let bulk = self.bulk.as_ref()?;
        let head = usize::try_from(reference.head).ok()?;
        let run = bulk.chunks().take(self.me(), head, reference.generation.into())?;
        // It may be forgotten.
        self.segment().sweep_at_detach();
        match usize::try_from(reference.len) {
            Ok(len) if len <= run.len() * bulk.place.chunk_len => Some(Bulky { run, len }),
            _ => {
                self.free(run);
                None
            }
        }
    }

    /// Takes a message of a queue whose messages all lie in chunks; `None` in it if its slot does not refer to one.
    pub(crate) fn pop_bulky(&self) -> Result<Option<Bulky>, Miss> {
        let read = |slot: *const u8| {
            let mut bytes = [0_u8; PREFIX + Reference::LEN];
            // SAFETY: the slot is claimed for reading, and has this length.
            unsafe { bytes.as_mut_ptr().copy_from_nonoverlapping(slot, bytes.len()) };
            let (prefix, rest) = bytes.split_at(PREFIX);
            let is_large = prefix.first_chunk().is_some_and(|p| u32::from_ne_bytes(*p) & LARGE != 0);
            Reference::read(rest).filter(|_| is_large).and_then(|reference| self.take_bulky(reference))
        };
        Ok(self.ring().try_pop(self.cursor(), self.me(), read)?)
    }
}
