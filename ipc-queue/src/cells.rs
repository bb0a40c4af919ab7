//! Cells: where the messages of an at-least-once queue stay until they are acknowledged.
//!
//! The ring delivers each message at most once; a cell outlives its place in the ring. Owner words as in the ring's slots, and
//! the link from a cell to its place is the ring's ticket, as with chunks. After the leases of Amazon's SQS, with the death of
//! the holder in the place of a visibility timeout.
//!
//! # Memory
//!
//! For each cell a word, a tag, and room for a message:
//!
//! ```text
//! word  u64   generation 41 | deliveries 10 | owner 10 | state 3        all zeros: FREE
//! tag   u64   the ring's ticket that refers to the cell; valid while QUEUED
//! ```
//!
//! The generation steps whenever a cell is claimed, so a word never comes back while somebody remembers it (2^41 claims of one
//! cell). Deliveries are counted in the word, by the swap that takes the message, so a death cannot miscount them.
//!
//! # States
//!
//! ```text
//! FREE      --claim-->     OWNED(p)             one CAS
//! OWNED(p)  --queue-->     QUEUED               between the claim of a ring slot and its publication; the tag is its ticket
//! QUEUED    --take-->      LEASED(c, n + 1)     between the claim of the slot for reading and its release
//! LEASED(c) --release-->   FREE                 acknowledged: LINEARIZATION of ack
//! LEASED(c) --give_back--> RETURNED             undone: consumers take it from here, directly
//! RETURNED  --take-->      LEASED(c, n + 1)
//! ```
//!
//! A message that comes back does not pass through the ring again: whoever sweeps up after a dead process must not have to wait
//! for room in it.
//!
//! # The scary races
//!
//! * *Who comes for a message whose slot died with its consumer, or before it was published?* The cell is QUEUED and says
//!   nothing of either. But its tag does: once the ring has released that ticket while the cell is still QUEUED, no consumer will
//!   ever come for it, because a consumer takes the cell before it releases the slot. [`Cells::collect`] makes exactly these
//!   RETURNED. It reads word, tag and ring in this order and then swaps the exact word. (So a message may be delivered whose
//!   sender died before its `send` returned; it was written before the cell was queued.)
//! * *A tag is read that belongs to the next message.* Then the word has moved on, and the swap fails. An older tag cannot be read:
//!   the word is stored behind it and read before it.
//! * *Two give messages back, and one notice is taken.* Whoever takes the [`Notice`] must see both messages. So it is put up by
//!   a swap: the second one continues the release sequence of the first, which a store would end.
//! * *The notice is down, and its taker stands still.* So it stays up for the look at the cells. Only who finds nothing takes it
//!   down, and looks again: what came back behind the first look may have put it up before. Were that one stopped in the second
//!   look, it would hide what came back during the first; so waiters look at the cells without the notice now and then.
//! * *Is everything done?* A consumer may queue a follow-up in a cell that was looked at before, and then acknowledge its own. So
//!   [`Cells::is_drained`] looks twice: words that are all the same in both passes were so together between the passes.
//! * *Who acknowledges the last message, and wakes those who wait for that?* Of two at once, each may find that the other is not
//!   done yet. So in [`Cells::has_rest`] a fence stands between the word that was freed and the look at the others: the one whose
//!   fence is the later one sees what the other freed. What it finds unfinished will be acknowledged by somebody who looks then.
//!
//! # If a process dies
//!
//! | dies                                         | leaves                  | repaired by                          |
//! |----------------------------------------------|-------------------------|--------------------------------------|
//! | writing, or before `queue`                   | OWNED                   | [`Cells::sweep`]: FREE               |
//! | after `queue`, before the slot is published  | QUEUED, a tomb          | [`Cells::collect`]: RETURNED         |
//! | after the slot is published                  | QUEUED, a full slot     | nobody has to: it will be taken      |
//! | reading the slot, before `take`              | QUEUED, a released slot | [`Cells::collect`]: RETURNED         |
//! | after `take`, until `release` or `give_back` | LEASED                  | [`Cells::sweep`]: RETURNED           |
//! | sweeping, collecting                         | the same, or less       | the next one                         |
//!
//! Recover the dead one's slots in the ring first, then sweep, then collect. Whoever makes something RETURNED then says so
//! where consumers look; if it dies before, its own sweep says so.
//!
//! # Across processes
//!
//! Words may say anything, if a process scribbles on them: messages can be lost, doubled or shared then, but no index leaves the
//! tables and every loop ends.

use shm_core::crash_point;
use shm_core::sync::Ordering::{Acquire, Relaxed, Release, SeqCst};
use shm_core::sync::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence, ordering};

/// The most cells of a queue.
pub const MAX_CELLS: usize = 1 << INDEX_BITS;

const STATE_BITS: u32 = 3;
const OWNER_BITS: u32 = 10;
const DELIVERIES_BITS: u32 = 10;
const OWNER_SHIFT: u32 = STATE_BITS;
const DELIVERIES_SHIFT: u32 = OWNER_SHIFT + OWNER_BITS;
const GENERATION_SHIFT: u32 = DELIVERIES_SHIFT + DELIVERIES_BITS;
const GENERATION_BITS: u32 = u64::BITS - GENERATION_SHIFT;
const INDEX_BITS: u32 = 21;
const MAX_DELIVERIES: u64 = (1 << DELIVERIES_BITS) - 1;
/// How often words are looked at that move between two looks.
const PASSES: usize = 8;

/// Names of the accesses whose ordering matters; see `tests/loom.rs`.
pub const ORDERINGS: &[&str] = &[
    "cells.look",
    "cells.queue",
    "cells.take",
    "cells.free",
    "cells.return",
    "cells.drained",
    "cells.notice_up",
    "cells.notice_down",
];

/// Names of the steps at which a test can kill a process that uses cells.
#[cfg(feature = "crash-points")]
pub const CRASH_POINTS: &[&str] = &[
    "cells.claimed",
    "cells.queued",
    "cells.taken",
    "cells.freed",
    "cells.returned",
    "cells.collected",
    "cells.notice_down",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free = 0,
    Owned = 1,
    Queued = 2,
    Leased = 3,
    Returned = 4,
}

/// One word, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Word(u64);

impl Word {
    /// The next claim of a cell whose word is this.
    fn claimed(self, me: u16) -> Self {
        let generation = self.generation().wrapping_add(1);
        Self(generation << GENERATION_SHIFT | u64::from(me) << OWNER_SHIFT | State::Owned as u64)
    }

    /// The same claim and deliveries in another state and other hands.
    fn to(self, state: State, owner: u16) -> Self {
        let kept = self.0 >> DELIVERIES_SHIFT << DELIVERIES_SHIFT;
        Self(kept | u64::from(owner) << OWNER_SHIFT | state as u64)
    }

    /// Delivered once more, to `me`.
    fn delivered(self, me: u16) -> Self {
        let more = u64::from(u64::from(self.deliveries()) < MAX_DELIVERIES);
        let word = self.to(State::Leased, me);
        Self(word.0 + (more << DELIVERIES_SHIFT))
    }

    fn is(self, state: State) -> bool {
        self.0 & ((1 << STATE_BITS) - 1) == state as u64
    }

    /// Whether a message is in there that was sent and is not acknowledged.
    fn is_unfinished(self) -> bool {
        self.is(State::Queued) || self.is(State::Leased) || self.is(State::Returned)
    }

    fn owner(self) -> u16 {
        u16::try_from(self.0 >> OWNER_SHIFT & 0x3ff).expect("10 bits")
    }

    fn deliveries(self) -> u32 {
        u32::try_from(self.0 >> DELIVERIES_SHIFT & MAX_DELIVERIES).expect("10 bits")
    }

    fn generation(self) -> u64 {
        self.0 >> GENERATION_SHIFT
    }
}

/// Which claim of which cell: what a ring slot says of its message. Unchecked, when it comes from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(u64);

impl Place {
    /// As a slot has it.
    #[inline]
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// For a slot.
    #[inline]
    pub fn bits(self) -> u64 {
        self.0
    }

    fn new(index: usize, word: Word) -> Self {
        Self((index as u64) << GENERATION_BITS | word.generation())
    }

    fn index(self) -> usize {
        usize::try_from(self.0 >> GENERATION_BITS & (MAX_CELLS as u64 - 1)).expect("21 bits")
    }

    fn generation(self) -> u64 {
        self.0 & ((1 << GENERATION_BITS) - 1)
    }
}

/// A cell that the caller owns or has on lease, and the word that says so. Whoever loses it leaves it to the sweep.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a cell that is neither queued nor released stays taken until its process ends"]
pub struct Cell {
    index: usize,
    word: Word,
}

impl Cell {
    /// Which cell.
    pub fn index(&self) -> usize {
        self.index
    }

    /// This claim of it.
    #[inline]
    pub fn place(&self) -> Place {
        Place::new(self.index, self.word)
    }

    /// How often the message was delivered, this time included; stays at 1,023. 0 before the first time.
    pub fn deliveries(&self) -> u32 {
        self.word.deliveries()
    }
}

/// Where consumers read that messages came back, so that they need not look at every cell. Zero bytes: nothing came back.
#[derive(Debug)]
#[repr(transparent)]
pub struct Notice(AtomicU32);

impl Notice {
    /// A notice that is down.
    #[cfg(loom)]
    #[allow(clippy::new_without_default, reason = "of models")]
    pub fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Whether the notice is up. May be stale at once.
    #[inline(always)]
    pub fn is_up(&self) -> bool {
        // Relaxed: `heed` looks again.
        self.0.load(Relaxed) != 0
    }

    /// Puts the notice up, behind making messages RETURNED. The caller wakes consumers then.
    pub fn put_up(&self) {
        // SYNC cell-notice: behind the words; pairs with `heed`. A swap, so that whoever takes the notice down sees what all
        // made RETURNED who have put it up.
        self.0.swap(1, ordering("cells.notice_up", Release));
    }

    /// Looks for a message while the notice is up. If there is none: takes it down, looks again, and puts it up if there was one
    /// now, because there may be more.
    #[cold]
    pub fn heed<R>(&self, mut look: impl FnMut() -> Option<R>) -> Option<R> {
        if let Some(found) = look() {
            return Some(found);
        }
        // SYNC cell-notice: before the words; pairs with `put_up`.
        if self.0.swap(0, ordering("cells.notice_down", Acquire)) == 0 {
            return None;
        }
        crash_point!("cells.notice_down");
        let found = look();
        if found.is_some() {
            self.put_up();
        }
        found
    }
}

/// How many messages are where. May be stale at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// To be delivered: in the ring, or given back.
    pub waiting: usize,
    /// On lease.
    pub leased: usize,
}

/// The cells' words, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct Cells<'m> {
    words: &'m [AtomicU64],
    tags: &'m [AtomicU64],
}

impl<'m> Cells<'m> {
    /// All zero words are free cells.
    ///
    /// # Panics
    ///
    /// If there are more than [`MAX_CELLS`], or not as many tags as words.
    pub fn new(words: &'m [AtomicU64], tags: &'m [AtomicU64]) -> Self {
        assert!(words.len() <= MAX_CELLS && words.len() == tags.len());
        Self { words, tags }
    }

    /// How many cells there are.
    pub fn count(&self) -> usize {
        self.words.len()
    }

    /// Claims a free cell; `None` if none is, or others were faster each time. Looks at each word once at most. `next` is the
    /// caller's own: where to look first.
    #[inline]
    pub fn claim(&self, me: u16, next: &AtomicUsize) -> Option<Cell> {
        // Relaxed: a private hint.
        for index in self.from(next.load(Relaxed)) {
            // SYNC cell-free: pairs with `release`, so that what the one before did with the memory is over.
            let seen = Word(self.words[index].load(ordering("cells.look", Acquire)));
            if !seen.is(State::Free) {
                continue;
            }
            let word = seen.claimed(me);
            // FREE => OWNED(me). Relaxed: a word does not come back, so it is the one that was looked at.
            if self.swap(index, seen, word, Relaxed) {
                crash_point!("cells.claimed");
                next.store(index + 1, Relaxed);
                return Some(Cell { index, word });
            }
        }
        None
    }

    /// Passes the cell to the message with this ticket. Call it between the claim of the ticket's slot and its publication.
    #[inline]
    pub fn queue(&self, cell: Cell, ticket: u64) {
        // Relaxed: the word is published behind it.
        self.tags[cell.index].store(ticket, Relaxed);
        // OWNED => QUEUED
        // SYNC cell-queue: the message and the tag before the word; pairs with `take` and `collect`.
        self.words[cell.index].store(cell.word.to(State::Queued, 0).0, ordering("cells.queue", Release));
        crash_point!("cells.queued");
    }

    /// Takes the message that a slot refers to. Call it between the claim of the slot for reading and its release. `None` if
    /// there is no such message: somebody wrote what no sender writes.
    #[inline]
    pub fn take(&self, me: u16, place: Place) -> Option<Cell> {
        let index = place.index();
        // SYNC cell-queue: the message is seen; pairs with `queue`.
        let seen = Word(self.words.get(index)?.load(ordering("cells.take", Acquire)));
        let is_it = seen.is(State::Queued) && seen.generation() == place.generation();
        if is_it { self.take_seen(me, index, seen) } else { None }
    }

    /// Takes a message that came back, if there is one. Looks at each word once at most. `next` is the caller's own: where to look
    /// first.
    pub fn take_returned(&self, me: u16, next: &AtomicUsize) -> Option<Cell> {
        // Relaxed: a private hint.
        self.from(next.load(Relaxed)).find_map(|index| {
            // SYNC cell-return, cell-queue: pairs with `give_back`, and with whoever swept (its swap is part of the release
            // sequence of `queue`).
            let seen = Word(self.words[index].load(ordering("cells.take", Acquire)));
            let taken = if seen.is(State::Returned) { self.take_seen(me, index, seen) } else { None };
            taken.inspect(|_| next.store(index + 1, Relaxed))
        })
    }

    /// Whether a message came back that nobody has taken yet. May be stale at once. Looks at every word.
    pub fn has_returned(&self) -> bool {
        self.unfinished().any(|word| word.is(State::Returned))
    }

    /// All cells, from this one on; the number may be anything.
    #[inline]
    fn from(&self, first: usize) -> impl Iterator<Item = usize> + use<> {
        let (count, first) = (self.count(), if first < self.count() { first } else { 0 });
        (first..count).chain(0..first)
    }

    /// QUEUED, RETURNED => LEASED(me)
    #[inline]
    fn take_seen(&self, me: u16, index: usize, seen: Word) -> Option<Cell> {
        let word = seen.delivered(me);
        // Relaxed: a word does not come back, so it is the one that was looked at.
        if !self.swap(index, seen, word, Relaxed) {
            return None;
        }
        crash_point!("cells.taken");
        Some(Cell { index, word })
    }

    /// Frees a cell that the caller owns or has on lease: it is acknowledged, or was never sent.
    #[inline]
    pub fn release(&self, cell: Cell) {
        // OWNED, LEASED => FREE
        // SYNC cell-free: everything done with the message before; pairs with `claim` and `is_drained`.
        self.words[cell.index].store(cell.word.to(State::Free, 0).0, ordering("cells.free", Release));
        crash_point!("cells.freed");
    }

    /// Gives a message back undone: the next consumer takes it.
    pub fn give_back(&self, cell: Cell) {
        // LEASED => RETURNED
        // SYNC cell-return: pairs with `take_returned`.
        self.words[cell.index].store(cell.word.to(State::Returned, 0).0, ordering("cells.return", Release));
        crash_point!("cells.returned");
    }

    /// Cleans up after a dead participant: what it wrote is free, what it had on lease comes back. Returns how many messages
    /// came back. May be repeated, and run by several.
    pub fn sweep(&self, dead: u16) -> usize {
        let mut returned = 0;
        for index in 0..self.count() {
            // SYNC cell-queue, cell-free: what the dead one has done with the message is over.
            let seen = Word(self.words[index].load(Acquire));
            if seen.owner() != dead {
                continue;
            }
            if seen.is(State::Owned) {
                // OWNED(dead) => FREE
                self.swap(index, seen, seen.to(State::Free, 0), Release);
            } else if seen.is(State::Leased) {
                // LEASED(dead) => RETURNED
                let back = seen.to(State::Returned, 0);
                returned += usize::from(self.swap(index, seen, back, ordering("cells.return", Release)));
            }
        }
        returned
    }

    /// Brings back messages that nobody will come for: those still QUEUED whose ticket the ring has released. Returns how many
    /// there were. After deaths. Looks at every word.
    pub fn collect(&self, is_released: impl Fn(u64) -> bool) -> usize {
        let mut found = 0;
        for index in 0..self.count() {
            // SYNC cell-queue: the tag of this very word is seen; pairs with `queue`.
            let seen = Word(self.words[index].load(ordering("cells.take", Acquire)));
            // The tag may be the next one's by now. Then the swap fails.
            if !seen.is(State::Queued) || !is_released(self.tags[index].load(Relaxed)) {
                continue;
            }
            // QUEUED => RETURNED
            if self.swap(index, seen, seen.to(State::Returned, 0), ordering("cells.return", Release)) {
                crash_point!("cells.collected");
                found += 1;
            }
        }
        found
    }

    /// Whether this claim of a cell is over. Once true, true for ever.
    pub fn is_over(&self, place: Place) -> bool {
        let Some(word) = self.words.get(place.index()) else {
            return true;
        };
        // SYNC cell-free: what was done with the message is over; pairs with `release`.
        let seen = Word(word.load(Acquire));
        seen.is(State::Free) || seen.generation() != place.generation()
    }

    /// Whether at one moment during this call every message that was sent was acknowledged. False also if others were too busy
    /// to tell: see [`Cells::has_unfinished`]. `seen` is scratch memory. Looks at every word twice, or a few times.
    pub fn is_drained(&self, seen: &mut Vec<u64>) -> bool {
        seen.clear();
        for _ in 0..PASSES {
            let mut is_same = !seen.is_empty();
            for (index, word) in self.words.iter().enumerate() {
                // SYNC cell-free: pairs with `release`: whoever sees a message acknowledged sees, in the next pass, what was
                // sent before that.
                let word = word.load(ordering("cells.drained", Acquire));
                if Word(word).is_unfinished() {
                    return false;
                }
                match seen.get_mut(index) {
                    Some(before) => is_same &= std::mem::replace(before, word) == word,
                    None => seen.push(word),
                }
            }
            if is_same {
                return true;
            }
        }
        false
    }

    /// Whether a message that was sent is not acknowledged. May be stale at once; false does not say that there was a moment
    /// without any. Looks at every word.
    pub fn has_unfinished(&self) -> bool {
        self.unfinished().next().is_some()
    }

    /// Behind [`Cells::release`]: whether a message is not acknowledged still, so that whoever acknowledges that one asks too. Of
    /// those who acknowledge the last messages at once, one is told no. `next` is the caller's own: where to look first, for the
    /// look ends at the first one.
    pub fn has_rest(&self, next: &AtomicUsize) -> bool {
        // SYNC cell-rest: between the freed word and the others, in each caller; the later one sees what the other freed.
        fence(SeqCst);
        // Relaxed: behind the fence; and a private hint.
        let is_unfinished = |index: &usize| Word(self.words[*index].load(Relaxed)).is_unfinished();
        let rest = self.from(next.load(Relaxed)).find(is_unfinished);
        rest.inspect(|&index| next.store(index, Relaxed)).is_some()
    }

    /// Counts the messages. May be stale at once; looks at every word.
    pub fn tally(&self) -> Count {
        let mut count = Count::default();
        for word in self.unfinished() {
            if word.is(State::Leased) {
                count.leased += 1;
            } else {
                count.waiting += 1;
            }
        }
        count
    }

    /// Who writes messages or has some on lease, one item for each. May be stale at once.
    pub fn owners(&self) -> impl Iterator<Item = u16> + '_ {
        // Relaxed: stale at once anyway.
        let words = self.words.iter().map(|word| Word(word.load(Relaxed)));
        words.filter(|word| word.is(State::Owned) || word.is(State::Leased)).map(Word::owner)
    }

    /// Whether a consumer that found nothing may get something yet, though nobody sends any more. A message that nobody has on
    /// lease will be taken or come back: its consumer is about to take it, or died before. One that others have on lease may
    /// come back too; for these, a consumer that has some itself need not wait. May be stale at once.
    pub fn may_bring(&self, me: u16) -> bool {
        let (mut ours, mut theirs) = (false, false);
        for word in self.unfinished() {
            match (word.is(State::Leased), word.owner() == me) {
                (false, _) => return true,
                (true, true) => ours = true,
                (true, false) => theirs = true,
            }
        }
        theirs && !ours
    }

    fn unfinished(&self) -> impl Iterator<Item = Word> + '_ {
        // Relaxed: stale at once anyway.
        self.words.iter().map(|word| Word(word.load(Relaxed))).filter(|word| word.is_unfinished())
    }

    #[inline]
    fn swap(&self, index: usize, from: Word, to: Word, order: Ordering) -> bool {
        self.words[index].compare_exchange(from.0, to.0, order, Relaxed).is_ok()
    }
}
