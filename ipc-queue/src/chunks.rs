//! Chunks: where messages lie that are larger than a slot.
//!
//! An allocator of neighbouring chunks in which every claim says whose it is, so that a death leaves nothing taken. Owner
//! words as in the ring's slots; the link from a run to its message is the ring's ticket.
//!
//! # Memory
//!
//! `n` chunks of equal size in a row, and for each a word and a tag:
//!
//! ```text
//! word  u64   generation 31 | run 20 | owner 10 | state 3        all zeros: FREE
//! tag   u64   the ring's ticket that refers to the run; valid while QUEUED
//! ```
//!
//! A message takes a *run* of neighbouring chunks. The word of the first, the *head*, says everything: who owns the run, how
//! long it is, what is done with it. The others say TAIL and where their head is. The generation steps whenever a head is
//! claimed, so a word never comes back while somebody remembers it (2^31 claims of one chunk).
//!
//! # States of a head
//!
//! ```text
//! FREE      --claim-->   OWNED(p)    one CAS; then the tails, one CAS each, or back
//! OWNED(p)  --queue-->   QUEUED(p)   between the claim of a ring slot and its publication; the tag is its ticket
//! QUEUED    --take-->    TAKEN(c)    between the claim of the slot for reading and its release
//! TAKEN(c)  --release--> FREE        the tails first, the head last
//! ```
//!
//! In an at-least-once queue a cell refers to the run in the place of a slot. Its tag is then that claim of the cell, and it stays
//! QUEUED until the claim is over.
//!
//! # The scary races
//!
//! * *Who frees the run of a message that was never published, or was lost with its consumer?* Its head is QUEUED and says
//!   nothing of either. But its tag does: once the ring has released that ticket while the head is still QUEUED, no consumer
//!   will ever come for it, because a consumer takes the run before it releases the slot. So [`Chunks::collect`] frees exactly
//!   these. It reads word, tag and ring in this order and then swaps the exact word, generation included.
//! * *A tag is read that belongs to the next message.* Then the word has moved on, and a word never comes back, so the swap
//!   fails. An older tag cannot be read: the word is stored behind it and read before it.
//! * *A run that is half claimed or half freed.* A tail is somebody's only as long as its head is not FREE: heads are
//!   claimed first and freed last.
//! * *Two claims collide, both give up, both sleep.* A claim looks before it takes, so it gives something back only after a
//!   real collision; then it says so ([`Scarce::disturbed`]), and its caller wakes those who may have seen the chunks taken.
//!
//! # If a process dies
//!
//! | dies                                        | leaves                  | repaired by                         |
//! |---------------------------------------------|-------------------------|-------------------------------------|
//! | claiming, writing, giving up                | OWNED, some tails       | [`Chunks::sweep`]: tails, then head |
//! | after `take`, releasing                     | TAKEN, all or some tails | the same                           |
//! | after `queue`, before the slot is published | QUEUED, a tomb          | [`Chunks::collect`]                 |
//! | after the slot is published                 | QUEUED, a full slot     | nobody has to: it will be taken     |
//! | reading the slot, before `take`             | QUEUED, a released slot | [`Chunks::collect`]                 |
//! | sweeping                                    | the same, or less       | the next sweep                      |
//! | collecting                                  | TAKEN by the collector  | [`Chunks::sweep`]                   |
//!
//! Recover the dead one's slots in the ring first, then sweep, then collect.
//!
//! # Across processes
//!
//! Words may say anything, if a process scribbles on them: chunks can be lost or shared then, but no index leaves the
//! tables, every loop ends, and a run that a caller holds lies inside of the chunks.

use shm_core::crash_point;
use shm_core::sync::Ordering::{Acquire, Relaxed, Release};
use shm_core::sync::{AtomicU64, ordering};

/// The most chunks of a queue.
pub const MAX_CHUNKS: usize = 1 << RUN_BITS;

const STATE_BITS: u32 = 3;
const OWNER_BITS: u32 = 10;
const RUN_BITS: u32 = 20;
const OWNER_SHIFT: u32 = STATE_BITS;
const RUN_SHIFT: u32 = OWNER_SHIFT + OWNER_BITS;
const GENERATION_SHIFT: u32 = RUN_SHIFT + RUN_BITS;

/// Names of the accesses whose ordering matters; see `tests/loom.rs`.
pub const ORDERINGS: &[&str] = &["chunks.look", "chunks.free", "chunks.queue", "chunks.take"];

/// Names of the steps at which a test can kill a process that uses chunks.
#[cfg(feature = "crash-points")]
pub const CRASH_POINTS: &[&str] = &[
    "chunks.claimed",
    "chunks.tail_claimed",
    "chunks.queued",
    "chunks.taken",
    "chunks.tail_freed",
    "chunks.freed",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free = 0,
    Owned = 1,
    Queued = 2,
    Taken = 3,
    /// The run field is the index of the head.
    Tail = 4,
}

/// One word, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Word(u64);

impl Word {
    const fn new(generation: u64, run: u32, owner: u16, state: State) -> Self {
        Self(
            generation << GENERATION_SHIFT
                | (run as u64) << RUN_SHIFT
                | (owner as u64) << OWNER_SHIFT
                | state as u64,
        )
    }

    fn is(self, state: State) -> bool {
        self.0 & 7 == state as u64
    }

    fn owner(self) -> u16 {
        u16::try_from(self.0 >> OWNER_SHIFT & 0x3ff).expect("10 bits")
    }

    fn run(self) -> usize {
        usize::try_from(self.0 >> RUN_SHIFT & 0xf_ffff).expect("20 bits")
    }

    fn generation(self) -> u64 {
        self.0 >> GENERATION_SHIFT
    }

    /// The same run in another state and other hands.
    fn to(self, state: State, owner: u16) -> Self {
        let kept = self.0 >> RUN_SHIFT << RUN_SHIFT;
        Self(kept | u64::from(owner) << OWNER_SHIFT | state as u64)
    }
}

/// A run that the caller owns, and the word that says so. Whoever loses it leaves it to the sweep.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a run that is neither queued nor released stays taken until its process ends"]
pub struct Run {
    head: usize,
    word: Word,
}

impl Run {
    /// The first chunk.
    pub fn head(&self) -> usize {
        self.head
    }

    /// How many chunks.
    pub fn len(&self) -> usize {
        self.word.run()
    }

    /// Never: a run has a head.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tells this claim of the head from every other.
    pub fn generation(&self) -> u64 {
        self.word.generation()
    }
}

/// There are not enough free neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scarce {
    /// Whether chunks were claimed and given back, so that somebody else may have found them taken: wake whoever waits.
    pub disturbed: bool,
}

/// The chunks' words, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct Chunks<'m> {
    words: &'m [AtomicU64],
    tags: &'m [AtomicU64],
}

impl<'m> Chunks<'m> {
    /// All zero words are free chunks.
    ///
    /// # Panics
    ///
    /// If there are more than [`MAX_CHUNKS`], or not as many tags as words.
    pub fn new(words: &'m [AtomicU64], tags: &'m [AtomicU64]) -> Self {
        assert!(words.len() < MAX_CHUNKS && words.len() == tags.len());
        Self { words, tags }
    }

    /// How many chunks there are.
    pub fn count(&self) -> usize {
        self.words.len()
    }

    /// Claims `len` neighbouring chunks, the first fit. Never blocks; looks at each word at most three times.
    ///
    /// # Errors
    ///
    /// [`Scarce`]: so many neighbours are not free, or others that claim at the same time are in the way.
    pub fn claim(&self, me: u16, len: usize) -> Result<Run, Scarce> {
        let mut scarce = Scarce { disturbed: false };
        let Some(last) = self.count().checked_sub(len).filter(|_| len > 0) else {
            return Err(scarce);
        };
        let mut head = 0;
        while head <= last {
            head = match self.last_taken(head, len) {
                Some(taken) => self.behind(taken),
                None => match self.claim_at(me, len, head) {
                    Ok(run) => return Ok(run),
                    Err(collision) => {
                        scarce.disturbed |= collision > head;
                        collision.max(head + 1)
                    }
                },
            }
        }
        Err(scarce)
    }

    /// Claims this one chunk if it is free.
    pub fn claim_one(&self, me: u16, index: usize) -> Option<Run> {
        (self.is_free(index)).then(|| self.claim_at(me, 1, index).ok()).flatten()
    }

    /// The last chunk of these that is not free: no run starts before it.
    fn last_taken(&self, head: usize, len: usize) -> Option<usize> {
        // Relaxed: a look before the claim, which looks again.
        (head..head + len).rev().find(|&index| !Word(self.words[index].load(Relaxed)).is(State::Free))
    }

    /// Where to look on behind a chunk that is taken: if it is a head, behind its run.
    fn behind(&self, taken: usize) -> usize {
        let seen = Word(self.words[taken].load(Relaxed));
        let is_run = !seen.is(State::Free) && self.fits(taken, seen);
        taken + if is_run { seen.run() } else { 1 }
    }

    /// Claims the run at `head`, or says which chunk of it was taken meanwhile.
    fn claim_at(&self, me: u16, len: usize, head: usize) -> Result<Run, usize> {
        // SYNC chunk-free: pairs with `set_free`, so that what the one before did with the memory is over.
        let seen = Word(self.words[head].load(ordering("chunks.look", Acquire)));
        if !seen.is(State::Free) {
            return Err(head);
        }
        let run = u32::try_from(len).map_err(|_| head)?;
        let word = Word::new(seen.generation().wrapping_add(1), run, me, State::Owned);
        // FREE => OWNED(me). Relaxed: a word does not come back, so it is the one that was looked at.
        self.swap(head, seen, word, Relaxed).map_err(|_| head)?;
        crash_point!("chunks.claimed");
        let tail = Self::tail(head);
        for index in head + 1..head + len {
            // SYNC chunk-free: as above.
            let seen = Word(self.words[index].load(ordering("chunks.look", Acquire)));
            // FREE => TAIL
            if !seen.is(State::Free) || self.swap(index, seen, tail.after(seen), Relaxed).is_err() {
                self.free(head, index - head);
                return Err(index);
            }
            crash_point!("chunks.tail_claimed");
        }
        Ok(Run { head, word })
    }

    /// What the tails of a run say; their generation steps as that of heads does.
    fn tail(head: usize) -> Word {
        Word::new(0, u32::try_from(head).expect("20 bits"), 0, State::Tail)
    }

    /// Passes the run to the message with this ticket. Call it between the claim of the ticket's slot and its publication.
    pub fn queue(&self, run: Run, ticket: u64) {
        // Relaxed: the word is published behind it.
        self.tags[run.head].store(ticket, Relaxed);
        let word = run.word.to(State::Queued, run.word.owner());
        // OWNED => QUEUED
        // SYNC chunk-queue: the message and the tag before the word; pairs with `take` and `collect`.
        self.words[run.head].store(word.0, ordering("chunks.queue", Release));
        crash_point!("chunks.queued");
    }

    /// Takes the run that a slot refers to. Call it between the claim of the slot for reading and its release. `None` if
    /// there is no such run: somebody wrote what no sender writes.
    pub fn take(&self, me: u16, head: usize, generation: u64) -> Option<Run> {
        // SYNC chunk-queue: the message is seen; pairs with `queue`.
        let seen = Word(self.words.get(head)?.load(ordering("chunks.take", Acquire)));
        if !seen.is(State::Queued) || seen.generation() != generation || !self.fits(head, seen) {
            return None;
        }
        self.take_seen(me, head, seen)
    }

    /// How many chunks the run has that a message on lease refers to; it stays QUEUED meanwhile. `None` as for [`Chunks::take`].
    pub fn view(&self, head: usize, generation: u64) -> Option<usize> {
        // SYNC chunk-queue: the message is seen; pairs with `queue`.
        let seen = Word(self.words.get(head)?.load(ordering("chunks.take", Acquire)));
        let is_it = seen.is(State::Queued) && seen.generation() == generation && self.fits(head, seen);
        is_it.then(|| seen.run())
    }

    /// QUEUED => TAKEN(me)
    fn take_seen(&self, me: u16, head: usize, seen: Word) -> Option<Run> {
        let word = seen.to(State::Taken, me);
        // Relaxed: a word does not come back, so it is the one that was looked at.
        self.swap(head, seen, word, Relaxed).ok()?;
        crash_point!("chunks.taken");
        Some(Run { head, word })
    }

    /// Frees a run that the caller owns.
    pub fn release(&self, run: Run) {
        self.free(run.head, run.len());
    }

    /// Frees what a dead participant had in hand. The caller has the exclusive right to; may be repeated.
    pub fn sweep(&self, dead: u16) {
        for head in 0..self.count() {
            // SYNC chunk-queue, chunk-free: what the dead one has done with the run is over.
            let seen = Word(self.words[head].load(Acquire));
            let in_hand = seen.is(State::Owned) || seen.is(State::Taken);
            if in_hand && seen.owner() == dead && self.fits(head, seen) {
                self.free(head, seen.run());
            }
        }
    }

    /// Frees messages that nobody will come for: those still QUEUED whose ticket the ring has released. Returns how many there
    /// were. For whoever finds no room, and after deaths: a sweep passes the dead one's index as `me`, so that its
    /// repetition finds what it had in hand. Looks at every word.
    pub fn collect(&self, me: u16, is_released: impl Fn(u64) -> bool) -> usize {
        let mut found = 0;
        for head in 0..self.count() {
            // SYNC chunk-queue: the tag of this very word is seen; pairs with `queue`.
            let seen = Word(self.words[head].load(ordering("chunks.take", Acquire)));
            if !seen.is(State::Queued) || !self.fits(head, seen) {
                continue;
            }
            // The tag may be the next one's by now. Then the swap fails.
            if !is_released(self.tags[head].load(Relaxed)) {
                continue;
            }
            let Some(run) = self.take_seen(me, head, seen) else {
                continue;
            };
            found += 1;
            self.release(run);
        }
        found
    }

    /// Who has runs in hand, one item for each run. May be stale at once.
    pub fn owners(&self) -> impl Iterator<Item = u16> + '_ {
        // Relaxed: stale at once anyway.
        let words = self.words.iter().map(|word| Word(word.load(Relaxed)));
        words.filter(|word| word.is(State::Owned) || word.is(State::Taken)).map(Word::owner)
    }

    /// Whether the chunk is nobody's. May be stale at once.
    pub fn is_free(&self, index: usize) -> bool {
        // Relaxed: stale at once anyway.
        Word(self.words[index].load(Relaxed)).is(State::Free)
    }

    /// How many chunks are in use. May be stale at once; looks at every word.
    pub fn in_use(&self) -> usize {
        (0..self.count()).filter(|&index| !self.is_free(index)).count()
    }

    /// Whether the run that a head announces lies inside of the chunks.
    fn fits(&self, head: usize, seen: Word) -> bool {
        !seen.is(State::Tail) && seen.run() > 0 && seen.run() <= self.count() - head
    }

    /// Frees a run of which at least the head is the caller's: the tails first, the head last.
    fn free(&self, head: usize, len: usize) {
        for index in (head + 1..head + len).rev() {
            // Relaxed: only the owner of the head writes it.
            let seen = Word(self.words[index].load(Relaxed));
            if seen.is(State::Tail) && seen.run() == head {
                // TAIL => FREE
                self.set_free(index, seen);
                crash_point!("chunks.tail_freed");
            }
        }
        self.set_free(head, Word(self.words[head].load(Relaxed)));
        crash_point!("chunks.freed");
    }

    fn set_free(&self, index: usize, seen: Word) {
        let free = Word::new(seen.generation(), 0, 0, State::Free);
        // SYNC chunk-free: everything done with the memory before; pairs with `claim_at`.
        self.words[index].store(free.0, ordering("chunks.free", Release));
    }

    fn swap(&self, index: usize, from: Word, to: Word, order: shm_core::sync::Ordering) -> Result<(), Word> {
        match self.words[index].compare_exchange(from.0, to.0, order, Relaxed) {
            Ok(_) => Ok(()),
            Err(seen) => Err(Word(seen)),
        }
    }
}

impl Word {
    /// This tail in the place of a free word: one generation on.
    fn after(self, free: Word) -> Self {
        Self(self.0 | free.generation().wrapping_add(1) << GENERATION_SHIFT)
    }
}
