//! The ring: a bounded multi-producer multi-consumer queue of fixed-size slots that no death can wedge.
//!
//! After Dmitry Vyukov's bounded queue (a sequence number in each slot), with the owner in the slot and without
//! shared head and tail.
//!
//! # Memory
//!
//! `C` slots, each one word (`word`) and a payload (`layout`). Ticket `t` uses slot `t mod C` in lap
//! `L = t div C`. There is no shared head or tail: each end keeps a private ticket (its [`Cursor`]), a lower bound
//! of the true one, and the lap in the slot word tells a laggard how far to jump. A ticket is claimed only by
//! somebody who saw the one before it taken, so tickets are taken strictly in order, *full* and *empty* are exact,
//! and nothing but slots has to be repaired after a death.
//!
//! # The normal path
//!
//! ```text
//! push   (L, FREE)      CAS -> (L, WRITING, me)       the claim carries the owner
//!                       write the payload; store (L, FULL)       linearization of push
//!        lap >= L       taken: skip; retry
//!        (L-1, TOMB)    CAS -> (L, FREE); retry
//!        lap < L        full, unless its holder is dead
//! pop    (L, FULL)      CAS -> (L, READING, me)                  linearization of pop
//!                       copy out; store (L+1, FREE)
//!        (L, TOMB)      CAS -> (L+1, FREE); retry
//!        (L, READING), lap > L   consumed: skip; retry
//!        (L, WRITING)   pending, unless its holder is dead
//!        (L, FREE), lap < L      empty
//! ```
//!
//! Per message: one compare-and-swap and one store on each side, no fence, nothing shared but the slot.
//!
//! # Batches
//!
//! A batch of `n` tickets is claimed by one CAS on its first slot, the *header*, which alone carries owner and
//! span; the interior slots were seen FREE (for a consumer: FULL) before and cannot change while the header is
//! untaken. Interior slots are published (or freed) from last to first and the header last, so nobody walks into
//! a batch in flight: whoever passes the header adds its span. A published batch is single slots to consumers.
//!
//! # The scary races
//!
//! * *A laggard jumps laps.* A slot of lap `L' > L` proves to a producer that its ticket of lap `L'` was taken
//!   (unless FREE: then that of `L' - 1`). To a consumer it proves only that lap `L' - 1` was *consumed* (unless
//!   READING). Using the other side's rule loses or doubles messages; landing on a batch header without adding
//!   its span lands inside a batch in flight.
//! * *A claim is read, its holder finishes, and then dies.* So [`Ring::recover`] looks again after the proof of
//!   death: the interior of a batch that was published in between is not its to bury.
//!
//! # If a process dies
//!
//! | dies after                        | leaves                     | recovery                                   |
//! |-----------------------------------|----------------------------|--------------------------------------------|
//! | looking, before the claim         | nothing                    | none                                       |
//! | claim, writing, part of a publish | header WRITING             | interior, then header -> TOMB: all or nothing |
//! | the header's publish              | a complete message         | none: it will be delivered                 |
//! | claim, reading, part of a release | header READING             | interior, then header -> FREE(L+1): lost   |
//! | part of a recovery                | the same header            | again: every step is a CAS on the word read |
//!
//! Consumers walk past a dead consumer's READING slots; they are repaired when a producer needs them or by a
//! sweep ([`Ring::recover_owner`]). Whether a holder is dead is the caller's to prove; a stopped but living holder
//! stalls the queue until it goes on.
//!
//! # Orderings
//!
//! Each access that needs an ordering has a name in [`ORDERINGS`], and `tests/loom.rs` shows that a model fails
//! when it is weakened. A claiming CAS need not acquire: words never come back, so the word it replaces is the one
//! that the `Acquire` look has read. A consumer's releases, so that whoever passes its claim sees the messages
//! that it covers; a producer's does not, except in [`Ring::try_push_if`]. Interior words are published and freed with
//! `Release` like headers: a laggard looks at them without having read their header, and a word of a later lap tells it that
//! earlier tickets are consumed only as surely as that word passes on what its writer had seen.

mod cursor;
mod error;
mod layout;
mod memory;
mod recover;
mod tickets;
mod torn;
mod word;

pub use cursor::Cursor;
pub use error::{Claim, PopError, PushError};
pub use layout::{Layout, LayoutError};
pub use memory::Memory;
pub use torn::Step;

use memory::Slots;
use shm_core::crash_point;
use shm_core::sync::Ordering::{Acquire, Relaxed, Release, SeqCst};
use shm_core::sync::ordering;
use tickets::{Tickets, small};
use word::{State, Word};

/// The most messages of one batch.
pub const MAX_SPAN: usize = 64;
/// The most slots of a ring.
pub const MAX_CAPACITY: usize = 1 << 20;
/// The most payload bytes of a slot.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// Names of the accesses whose ordering matters, for models that weaken one at a time.
pub const ORDERINGS: &[&str] = &[
    "ring.push.look",
    "ring.push.interior",
    "ring.push.publish",
    "ring.push.publish_interior",
    "ring.pop.look",
    "ring.pop.interior",
    "ring.pop.claim",
    "ring.pop.release",
    "ring.pop.release_interior",
    "ring.recover.header",
    "ring.recover.interior",
    "ring.released",
    "ring.cursor.set",
];

/// Names of the steps at which a test can kill a process that uses a ring.
#[cfg(feature = "crash-points")]
pub const CRASH_POINTS: &[&str] = &[
    "ring.push.before_claim",
    "ring.push.claimed",
    "ring.push.written",
    "ring.push.published_interior",
    "ring.push.published",
    "ring.pop.before_claim",
    "ring.pop.claimed",
    "ring.pop.read",
    "ring.pop.freed_interior",
    "ring.pop.released",
    "ring.pop.freed_tomb",
    "ring.push.freed_tomb",
    "ring.recover.started",
    "ring.recover.interior",
    "ring.recover.header",
];

/// A ring in borrowed memory. Copies are the same ring; all operations take `&self` and never block.
///
/// Progress is lock-free: a retry means that somebody else has moved on. `me` is the caller's participant index
/// in the segment, 1 to 1023 (any number that tells threads of a model apart, on the heap): the owner that a
/// recovery looks for.
///
/// The closures `write` and `read` run while the slot is claimed, so they must be plain copies: encode before,
/// decode after. One that panics withdraws its claim, as if its process had died.
///
/// # Across processes
///
/// The memory may be shared with any process that attaches the same [`Layout`] to it. A process that scribbles
/// on it can make messages wrong, lost or stuck, but cannot make an access leave the memory.
///
/// # Examples
///
/// ```
/// use ipc_queue::ring::{Cursor, Layout, Memory, PopError};
///
/// let memory = Memory::new(Layout::new(4, 8)?);
/// let ring = memory.ring();
/// let (pushed, popped) = (Cursor::new(), Cursor::new());
///
/// // SAFETY: a slot of this ring has 8 bytes.
/// ring.try_push(&pushed, 1, |slot| unsafe { slot.cast::<[u8; 8]>().write([7; 8]) }).unwrap();
/// // SAFETY: as above.
/// let message = ring.try_pop(&popped, 2, |slot| unsafe { slot.cast::<[u8; 8]>().read() });
/// assert_eq!(message, Ok([7; 8]));
/// assert_eq!(ring.try_pop(&popped, 2, |_| ()), Err(PopError::Empty));
/// # Ok::<(), ipc_queue::ring::LayoutError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Ring<'m> {
    slots: Slots<'m>,
    tickets: Tickets,
}

/// A claim of the caller's: `span` tickets from `ticket` on.
#[derive(Clone, Copy, Debug)]
struct Held {
    ticket: u64,
    lap: u64,
    index: usize,
    /// The header as it was claimed.
    word: Word,
}

impl Held {
    fn claim(&self) -> Claim {
        Claim { ticket: self.ticket, word: self.word }
    }
}

/// Gives a claim back when it is refused or a closure panics: its owner is alive, but will not finish it.
struct Withdraw<'a, 'm>(&'a Ring<'m>, Held);

impl Drop for Withdraw<'_, '_> {
    #[cold]
    fn drop(&mut self) {
        self.0.recover(self.1.claim());
    }
}

impl<'m> Ring<'m> {
    /// The ring that lies at `base`. Zeroed memory is an empty ring.
    ///
    /// # Safety
    ///
    /// `base` is aligned to 64 bytes; `layout.len_bytes()` bytes from it are readable and writable for `'m`, and
    /// are accessed through rings of the same layout only, in any process.
    #[cfg(not(loom))]
    #[allow(unsafe_code, reason = "hands the caller's promise on")]
    pub unsafe fn attach(base: std::ptr::NonNull<u8>, layout: Layout) -> Ring<'m> {
        // SAFETY: the caller's promise is the same.
        Ring::with_slots(unsafe { Slots::new(base, &layout) }, layout)
    }

    fn with_slots(slots: Slots<'m>, layout: Layout) -> Ring<'m> {
        Ring { slots, tickets: Tickets::new(layout.capacity()) }
    }

    /// Slots of the ring.
    pub fn capacity(&self) -> usize {
        self.tickets.capacity()
    }

    /// Pushes one message, which `write` puts into the slot, and returns its ticket. Never blocks.
    ///
    /// # Errors
    ///
    /// [`PushError::Full`] or [`PushError::Claimed`] if no slot is free, [`PushError::Exhausted`] if the ring has
    /// used up its tickets. Nothing was written.
    ///
    /// # If the peer dies
    ///
    /// A message whose push has returned outlives its producer. See [`PushError::Claimed`] for dead consumers.
    #[inline(always)]
    pub fn try_push(&self, cursor: &Cursor, me: u16, write: impl FnOnce(*mut u8)) -> Result<u64, PushError> {
        self.try_push_at(cursor, me, |_, slot| write(slot))
    }

    /// As [`Ring::try_push`]; `write` gets the ticket too, before the message is published.
    ///
    /// # Errors
    ///
    /// As [`Ring::try_push`].
    #[inline(always)]
    pub fn try_push_at(
        &self,
        cursor: &Cursor,
        me: u16,
        write: impl FnOnce(u64, *mut u8),
    ) -> Result<u64, PushError> {
        self.push_claimed(self.claim_free(cursor, me, 1, Relaxed)?, || true, write)
    }

    /// As [`Ring::try_push_at`], if `permit` agrees once the slot is claimed. Otherwise the claim is withdrawn: its
    /// ticket is passed by consumers as that of a dead producer.
    ///
    /// The claim is `SeqCst`, and each claim that is made so happens before the claim of the next ticket (of a batch: the
    /// ticket behind it): by means of a `SeqCst` look in `permit`, a push can be told from all that come later. (A model needs
    /// [`seq_cst_in_model`](shm_core::sync::seq_cst_in_model) before that look.)
    ///
    /// # Errors
    ///
    /// As [`Ring::try_push`], and [`PushError::Refused`].
    #[inline(always)]
    pub fn try_push_if(
        &self,
        cursor: &Cursor,
        me: u16,
        permit: impl FnOnce() -> bool,
        write: impl FnOnce(u64, *mut u8),
    ) -> Result<u64, PushError> {
        self.push_claimed(self.claim_free(cursor, me, 1, SeqCst)?, permit, write)
    }

    #[inline(always)]
    fn push_claimed(
        &self,
        held: Held,
        permit: impl FnOnce() -> bool,
        write: impl FnOnce(u64, *mut u8),
    ) -> Result<u64, PushError> {
        crash_point!("ring.push.claimed");
        let withdraw = Withdraw(self, held);
        if !permit() {
            return Err(PushError::Refused);
        }
        self.slots.write(held.index, |slot| write(held.ticket, slot));
        std::mem::forget(withdraw);
        crash_point!("ring.push.written");
        self.publish_header(&held);
        Ok(held.ticket)
    }

    /// Pushes up to `count` messages at once: as many as there is room for, at most [`MAX_SPAN`]. `write` gets the
    /// number of the message in the batch. Returns the first ticket and how many were pushed. Never blocks.
    ///
    /// # Errors
    ///
    /// As [`Ring::try_push`]; on success at least one message was pushed (none only if `count` is 0).
    ///
    /// # If the peer dies
    ///
    /// A producer that dies in here leaves all of the batch or nothing of it.
    #[inline]
    pub fn try_push_batch(
        &self,
        cursor: &Cursor,
        me: u16,
        count: usize,
        write: impl FnMut(usize, *mut u8),
    ) -> Result<(u64, usize), PushError> {
        if count == 0 {
            return Ok((cursor.ticket(), 0));
        }
        let held = self.claim_free(cursor, me, self.longest(count), Relaxed)?;
        self.push_batch_claimed(held, || true, write)
    }

    /// As [`Ring::try_push_batch`], if `permit` agrees, as in [`Ring::try_push_if`]: all of the batch or nothing of it.
    ///
    /// # Errors
    ///
    /// As [`Ring::try_push_batch`], and [`PushError::Refused`].
    #[inline]
    pub fn try_push_batch_if(
        &self,
        cursor: &Cursor,
        me: u16,
        count: usize,
        permit: impl FnOnce() -> bool,
        write: impl FnMut(usize, *mut u8),
    ) -> Result<(u64, usize), PushError> {
        if count == 0 {
            return Ok((cursor.ticket(), 0));
        }
        let held = self.claim_free(cursor, me, self.longest(count), SeqCst)?;
        self.push_batch_claimed(held, permit, write)
    }

    #[inline(always)]
    fn push_batch_claimed(
        &self,
        held: Held,
        permit: impl FnOnce() -> bool,
        mut write: impl FnMut(usize, *mut u8),
    ) -> Result<(u64, usize), PushError> {
        crash_point!("ring.push.claimed");
        let withdraw = Withdraw(self, held);
        if !permit() {
            return Err(PushError::Refused);
        }
        self.each(&held, |i, index| self.slots.write(index, |slot| write(i, slot)));
        std::mem::forget(withdraw);
        crash_point!("ring.push.written");
        self.publish(&held);
        Ok((held.ticket, small(held.word.span())))
    }

    /// Takes one message: `read` copies it out of its slot. Never blocks.
    ///
    /// # Errors
    ///
    /// [`PopError::Empty`] or [`PopError::Claimed`] if no message is ready, [`PopError::Exhausted`] after the last
    /// message of the last lap.
    ///
    /// # If the peer dies
    ///
    /// A consumer that dies in here takes the message with it. See [`PopError::Claimed`] for dead producers.
    #[inline(always)]
    pub fn try_pop<R>(
        &self,
        cursor: &Cursor,
        me: u16,
        read: impl FnOnce(*const u8) -> R,
    ) -> Result<R, PopError> {
        let held = self.claim_full(cursor, me, 1)?;
        crash_point!("ring.pop.claimed");
        let withdraw = Withdraw(self, held);
        let message = self.slots.read(held.index, read);
        std::mem::forget(withdraw);
        crash_point!("ring.pop.read");
        self.release_header(&held);
        Ok(message)
    }

    /// Takes up to `max` messages at once: as many as are ready in a row, at most [`MAX_SPAN`]. `read` gets the
    /// number of the message in the batch. Returns how many were taken. Never blocks.
    ///
    /// # Errors
    ///
    /// As [`Ring::try_pop`]; on success at least one message was taken (none only if `max` is 0).
    ///
    /// # If the peer dies
    ///
    /// A consumer that dies in here takes its whole batch with it.
    #[inline]
    pub fn try_pop_batch(
        &self,
        cursor: &Cursor,
        me: u16,
        max: usize,
        mut read: impl FnMut(usize, *const u8),
    ) -> Result<usize, PopError> {
        if max == 0 {
            return Ok(0);
        }
        let held = self.claim_full(cursor, me, self.longest(max))?;
        crash_point!("ring.pop.claimed");
        let withdraw = Withdraw(self, held);
        self.each(&held, |i, index| self.slots.read(index, |slot| read(i, slot)));
        std::mem::forget(withdraw);
        crash_point!("ring.pop.read");
        self.release(&held);
        Ok(small(held.word.span()))
    }

    /// Claims up to `count` free tickets from the true tail on. `order` is that of the claim: `Relaxed` or more.
    #[inline(always)]
    fn claim_free(
        &self,
        cursor: &Cursor,
        me: u16,
        count: u64,
        order: shm_core::sync::Ordering,
    ) -> Result<Held, PushError> {
        let start = cursor.ticket();
        let mut ticket = start;
        loop {
            let Some((lap, index)) = self.tickets.locate(ticket) else {
                return Err(PushError::Exhausted);
            };
            // SYNC slot-free: pairs with the store in `release` (and with recoveries), so that the payload is ours.
            // SYNC slot-ready: pairs with the store in `publish`, so that past a header its interior is taken too.
            let seen = self.look(index, ordering("ring.push.look", Acquire));
            if seen == Word::free(lap) {
                let span = match count {
                    1 => 1,
                    _ => self.run(ticket, count, Word::free, ordering("ring.push.interior", Acquire)),
                };
                crash_point!("ring.push.before_claim");
                // FREE => WRITING
                // SYNC ticket-order: if it releases, it happens before the claim of the next ticket: pairs with the look above
                // (at this word, or at one that was stored behind it, which releases too), and with cursors.
                let word = Word::writing(lap, span, me);
                if self.swap(index, seen, word, order) {
                    cursor.set(ticket + span);
                    return Ok(Held { ticket, lap, index, word });
                }
            } else if seen.lap() >= lap {
                ticket = self.tickets.after_taken(ticket, lap, seen);
            } else if seen == Word::tomb(lap - 1) {
                // TOMB => FREE: the ring may hold nothing but tombs, and no consumer need ever come by.
                self.swap(index, seen, Word::free(lap), Relaxed);
                crash_point!("ring.push.freed_tomb");
            } else {
                if ticket != start {
                    cursor.set(ticket);
                }
                return Err(match self.tickets.claim(index, seen) {
                    Some(claim) => PushError::Claimed(claim),
                    None => PushError::Full,
                });
            }
        }
    }

    /// Claims up to `count` published tickets from the true head on.
    #[inline(always)]
    fn claim_full(&self, cursor: &Cursor, me: u16, count: u64) -> Result<Held, PopError> {
        let start = cursor.ticket();
        let mut ticket = start;
        loop {
            let Some((lap, index)) = self.tickets.locate(ticket) else {
                return Err(PopError::Exhausted);
            };
            // SYNC slot-ready: pairs with the store in `publish`, so that the payload is complete.
            // SYNC slot-free: pairs with the store in `release`, so that past a header its interior is consumed too.
            let seen = self.look(index, ordering("ring.pop.look", Acquire));
            if seen == Word::full(lap) {
                let span = match count {
                    1 => 1,
                    _ => self.run(ticket, count, Word::full, ordering("ring.pop.interior", Acquire)),
                };
                crash_point!("ring.pop.before_claim");
                // FULL => READING
                // SYNC slot-ready: pairs with the looks of consumers that pass this claim: what was seen of the messages that it
                // covers, they see too, such as the interior of a batch whose header is among them.
                let word = Word::reading(lap, span, me);
                if self.swap(index, seen, word, ordering("ring.pop.claim", Release)) {
                    cursor.set(ticket + span);
                    return Ok(Held { ticket, lap, index, word });
                }
            } else if seen.lap() > lap || (seen.lap() == lap && seen.state() == State::READING) {
                ticket = self.tickets.after_consumed(ticket, lap, seen);
            } else if seen == Word::tomb(lap) {
                // TOMB => FREE of the next lap; whoever does it, the next look sees it consumed.
                self.swap(index, seen, Word::free(lap + 1), Relaxed);
                crash_point!("ring.pop.freed_tomb");
            } else {
                if ticket != start {
                    cursor.set(ticket);
                }
                return Err(match self.tickets.claim(index, seen) {
                    Some(claim) => PopError::Claimed(claim),
                    None => PopError::Empty,
                });
            }
        }
    }

    /// How many tickets from `ticket` on (whose own slot has just been looked at) have the word `wanted` of their
    /// lap: 1 to `count`.
    #[inline]
    fn run(&self, ticket: u64, count: u64, wanted: fn(u64) -> Word, order: shm_core::sync::Ordering) -> u64 {
        // SYNC slot-ready, slot-free: each slot may have been published or released by somebody else.
        let ready = |i: &u64| {
            let Some((lap, index)) = self.tickets.locate(ticket + i) else {
                return false;
            };
            self.look(index, order) == wanted(lap)
        };
        (1..count).take_while(ready).count() as u64 + 1
    }

    /// Makes a written claim visible: WRITING => FULL, from last to first.
    #[inline]
    fn publish(&self, held: &Held) {
        for i in held.word.interior() {
            self.publish_interior(held, i);
        }
        self.publish_header(held);
    }

    #[inline]
    fn publish_interior(&self, held: &Held, i: u64) {
        if let Some((lap, index)) = self.tickets.locate(held.ticket + i) {
            // FREE => FULL
            // SYNC slot-ready: as in `publish_header`, for whoever lands here without having read the header. The word itself
            // must pass on what we have seen, our claim and the FREE word before it included: to a laggard it may be all
            // there is to say that the lap before was consumed, and it jumps from here into the middle of another batch. (A
            // plain store that is relaxed passes on nothing, neither its own past nor that of the word that it replaces.)
            let order = ordering("ring.push.publish_interior", Release);
            self.slots.word(index).store(Word::full(lap).0, order);
            crash_point!("ring.push.published_interior");
        }
    }

    #[inline]
    fn publish_header(&self, held: &Held) {
        // WRITING => FULL
        // SYNC slot-ready: pairs with the look in `claim_full` (and in `claim_free`, which may skip the batch).
        self.slots.word(held.index).store(Word::full(held.lap).0, ordering("ring.push.publish", Release));
        crash_point!("ring.push.published");
    }

    /// Gives consumed slots to the next lap: READING => FREE, from last to first.
    #[inline]
    fn release(&self, held: &Held) {
        for i in held.word.interior() {
            self.release_interior(held, i);
        }
        self.release_header(held);
    }

    #[inline]
    fn release_interior(&self, held: &Held, i: u64) {
        if let Some((lap, index)) = self.tickets.locate(held.ticket + i) {
            // FULL => FREE of the next lap
            // SYNC slot-free: as in `release_header`, for whoever asks about this ticket alone or lands here.
            let order = ordering("ring.pop.release_interior", Release);
            self.slots.word(index).store(Word::free(lap + 1).0, order);
            crash_point!("ring.pop.freed_interior");
        }
    }

    #[inline]
    fn release_header(&self, held: &Held) {
        // READING => FREE of the next lap
        // SYNC slot-free: pairs with the look in `claim_free` (and in `claim_full`, which may skip the batch).
        self.slots.word(held.index).store(Word::free(held.lap + 1).0, ordering("ring.pop.release", Release));
        crash_point!("ring.pop.released");
    }

    /// The longest batch that `count` messages may make.
    #[inline]
    fn longest(&self, count: usize) -> u64 {
        count.min(MAX_SPAN).min(self.capacity()) as u64
    }

    /// Calls `f` with number and slot index of each message of a claim, in order.
    #[inline]
    fn each(&self, held: &Held, mut f: impl FnMut(usize, usize)) {
        let mut index = held.index;
        for i in 0..small(held.word.span()) {
            f(i, index);
            index += 1;
            if index == self.capacity() {
                index = 0;
            }
        }
    }

    #[inline(always)]
    fn look(&self, index: usize, order: shm_core::sync::Ordering) -> Word {
        Word(self.slots.word(index).load(order))
    }

    /// Replaces the word of a slot if it is still `seen`; `Relaxed` if not, because the caller looks again.
    #[inline(always)]
    fn swap(&self, index: usize, seen: Word, next: Word, order: shm_core::sync::Ordering) -> bool {
        self.slots.word(index).compare_exchange(seen.0, next.0, order, Relaxed).is_ok()
    }
}
