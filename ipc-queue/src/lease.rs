//! At-least-once queues: messages that stay until they are acknowledged.
//!
//! ```text
//! send   claim a cell (waits); write; claim a ring slot (waits); QUEUED; refer to the cell in the slot
//! recv   what came back, or: claim the slot; LEASED; release the slot; decode
//! ack    FREE             nack, drop, death   RETURNED, and the notice that tells receivers to look
//! ```
//!
//! The protocol of the cells is in [`cells`](crate::cells), with what a death leaves at each step. A message that does not fit a cell lies in a
//! run of chunks, which the cell refers to: the run's tag names the claim of the cell, and once that claim is over, whoever needs
//! memory frees the run. So an acknowledgement has one step that counts, and no death leaves a run without its cell's word.
//!
//! # Who looks after the dead
//!
//! Redelivery needs somebody who finds out that a process died. Receivers ask the system before they sleep and at the end
//! of each slice, those who never sleep now and then; so does whoever waits for room or for the queue to be drained; each handle
//! twenty times a second at most.
//!
//! # The end
//!
//! A receiver that finds the queue empty, and closed or without senders, may be needed still: others have messages on lease, and
//! may die. So it waits, unless its own process has some on lease (two such processes would wait for each other). For a message
//! that nobody has on lease it waits in any case: somebody is about to take it, or died before, and a sweep will bring it back.

/// What both handles have in common.
macro_rules! leased_end {
    ($name:ident, $side:expr, $copy:expr) => {
        impl<T, C> $name<T, C> {
            /// How many messages are to be delivered, those included that came back; not those on lease. May be stale at once.
            /// Looks at every cell. 0 in a forked child that cannot attach.
            pub fn len(&self) -> usize {
                self.end.tally().waiting
            }

            /// Whether no message is to be delivered. May be stale at once.
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            /// Whether the next `try_send` would find no room. May be stale at once. `false` in a forked child that cannot attach.
            pub fn is_full(&self) -> bool {
                self.end.is_full()
            }

            /// How many messages were sent and are not acknowledged. May be stale at once. Looks at every cell.
            pub fn unfinished(&self) -> usize {
                let tally = self.end.tally();
                tally.waiting + tally.leased
            }

            /// How many messages that were not delivered yet the queue holds at most.
            pub fn capacity(&self) -> usize {
                self.end.capacity()
            }

            /// The longest message in bytes: what a cell takes, or all of the byte budget.
            pub fn max_message_len(&self) -> usize {
                self.end.longest()
            }

            /// Closes the queue for everybody, as [`Sender::close`](crate::Sender::close). Receivers get everything that was
            /// sent, and what others give back, before they are told.
            pub fn close(&self) -> bool {
                self.end.close()
            }

            /// Whether the queue was closed. `true` stays true. `false` in a forked child that cannot attach.
            pub fn is_closed(&self) -> bool {
                self.end.is_closed()
            }

            /// How many messages may be sent and not acknowledged at a time.
            pub fn max_unfinished(&self) -> usize {
                self.end.max_unfinished()
            }
        }

        impl<T, C> Clone for $name<T, C> {
            fn clone(&self) -> Self {
                let copy = $copy;
                Self { end: copy(&self.end), _messages: PhantomData }
            }
        }

        impl<T, C> fmt::Debug for $name<T, C> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.end.fmt_as(stringify!($name), f)
            }
        }

        impl<T, C: Format<T>> Serialize for $name<T, C> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.end.serialize(&Shape::leased::<T, C>(), serializer)
            }
        }

        impl<'de, T, C: Format<T>> Deserialize<'de> for $name<T, C> {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                End::deserialize(deserializer, &Shape::leased::<T, C>(), $side).map(Self::new)
            }
        }
    };
}

mod receiver;
mod sender;
mod store;

pub use receiver::{Lease, LeaseReceiver, Leases, TryLeases};
pub use sender::{DrainError, LeaseSender};
pub(crate) use store::{Store, StorePlace, sweep};

use crate::bulk::{Denied, Reference};
use crate::cells::{Cell, Count, Place};
use crate::codec::Format;
use crate::end::{End, Miss};
use crate::error::DecodeError;
use crate::layout::Side;
use crate::wait::{Patience, Stop};
use shm_core::fork::ForkStamp;
use shm_core::sync::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Bytes of a slot whose message lies in a cell.
pub(crate) const SLOT_BYTES: usize = size_of::<u64>();
/// How often a handle asks the system at most who is alive.
const LOOK_MICROS: u64 = 50_000;

/// What an end of an at-least-once queue has beside the rest.
#[derive(Debug)]
pub(crate) struct Leasing {
    store: Store,
    /// Where to look first for a free cell.
    next: AtomicUsize,
    /// Where to look first for a message that came back.
    back: AtomicUsize,
    /// Where to look first for a message that is not acknowledged.
    rest: AtomicUsize,
    /// How many messages this handle has taken.
    taken: AtomicU64,
    /// When this handle last asked who is alive, in microseconds; see `Member::is_due`.
    looked: AtomicU64,
    /// One more than the count of freed cells at which this handle was needed still, or 0: see `End::is_needed_still`.
    needed: AtomicU64,
}

impl Leasing {
    pub(crate) fn new(store: Store) -> Self {
        Self {
            store,
            next: AtomicUsize::new(0),
            back: AtomicUsize::new(0),
            rest: AtomicUsize::new(0),
            taken: AtomicU64::new(0),
            looked: AtomicU64::new(0),
            needed: AtomicU64::new(0),
        }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }
}

impl Clone for Leasing {
    fn clone(&self) -> Self {
        Self::new(self.store)
    }
}

impl Store {
    /// Whether the claim of a cell that the tag of a run names is over.
    pub(crate) fn is_over(&self, tag: u64) -> bool {
        self.cells().is_over(Place::from_bits(tag))
    }
}

/// A cell that is being filled. Dropped, it is free again.
struct Draft<'e> {
    end: &'e End,
    cell: Option<Cell>,
    run: Option<Reference>,
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if let Some(cell) = self.cell.take() {
            self.end.release_cell(cell, self.run);
        }
    }
}

/// A cell that this process has on lease. Dropped, its message goes back, unless this is a forked child: the lease is its parent's.
struct Hold {
    end: std::sync::Arc<End>,
    cell: Option<Cell>,
    run: Option<Reference>,
    stamp: ForkStamp,
}

impl Hold {
    #[inline]
    fn is_here(&self) -> bool {
        self.stamp.check().is_ok()
    }

    fn deliveries(&self) -> u32 {
        self.cell.as_ref().map_or(0, Cell::deliveries)
    }

    /// Decodes the message; runs the user's code.
    #[inline]
    fn read<T, C: Format<T>>(&mut self) -> Result<T, DecodeError> {
        let Some(cell) = &self.cell else {
            return Err(DecodeError::reference());
        };
        let end = &self.end;
        let limit = end.limit();
        let mut message = C::blank();
        if !C::has_room(&message, limit) {
            C::make_room(&mut message, limit);
        }
        end.leasing().store.load::<T, C>(cell, &mut message, limit);
        if C::has_handles(&message) {
            return Err(DecodeError::reference());
        }
        if C::is_bulky(&message) {
            let reference = C::reference(&message).ok_or_else(DecodeError::reference)?;
            self.run = Some(reference);
            let bytes = end.copy_kept(reference)?;
            return C::decode_fetched(&message, bytes);
        }
        C::decode(&message, limit)
    }

    /// Acknowledges the message.
    #[inline]
    fn finish(mut self) {
        assert!(self.is_here(), "a forked child has not the leases of its parent");
        if let Some(cell) = self.cell.take() {
            self.end.acknowledge(cell, self.run);
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let (Some(cell), true) = (self.cell.take(), self.is_here()) {
            self.end.give_back(cell);
        }
    }
}

impl End {
    #[inline]
    fn leasing(&self) -> &Leasing {
        self.leasing.as_ref().expect("only queues with cells have such handles")
    }

    /// Claims a cell. Waits for one as `patience` allows.
    #[inline]
    fn draft(&self, patience: Patience) -> Result<Draft<'_>, Stop> {
        let leasing = self.leasing();
        let freed = &self.control().freed.0;
        let before = std::cell::Cell::new(None);
        let attempt = || {
            // Looking at all cells takes too long for a poll.
            if !self.is_news(&before) {
                return Err(Miss::Scarce);
            }
            leasing.store.cells().claim(self.me(), &leasing.next).ok_or(Miss::Scarce)
        };
        let claimed = attempt().or_else(|miss| self.retry_on(&freed.line, miss, patience, attempt));
        claimed.map(|cell| Draft { end: self, cell: Some(cell), run: None })
    }

    /// Sends a message, with all its waiting.
    #[inline]
    fn send_leased<T, C: Format<T>>(
        &self,
        message: &C::Staged<'_>,
        patience: Patience,
    ) -> Result<(), Denied> {
        let patience = patience.over_all();
        let large = C::bulk(message, self.limit());
        large.map_or(Ok(()), |_| self.look_for_slot(patience)).map_err(Denied::Stop)?;
        let mut held = large.map(|(bytes, _)| self.claim_run(bytes.len(), patience)).transpose()?;
        if let (Some(held), Some((bytes, _))) = (&mut held, large) {
            held.fill(bytes);
        }
        let mut draft = self.draft(patience).map_err(Denied::Stop)?;
        let store = &self.leasing().store;
        if let Some(cell) = &draft.cell {
            match held {
                None => store.write::<T, C>(cell, message),
                Some(held) => {
                    draft.run = self.keep(held, cell.place().bits());
                    draft.run.inspect(|&run| store.refer(cell, run));
                }
            }
        }
        let mut attempt = || store.push(self, &mut draft.cell);
        attempt().or_else(|miss| self.retry(miss, patience, attempt)).map_err(Denied::Stop)?;
        self.done(1);
        Ok(())
    }

    /// A cell with a message that is this process's from now on; `None` in it for a slot that refers to no message.
    #[inline]
    fn pop_cell(&self) -> Result<Option<Cell>, Miss> {
        if let Some(cell) = self.take_returned() {
            return Ok(Some(cell));
        }
        Ok(self.leasing().store.pop(self.ring(), self.cursor(), self.me())?)
    }

    /// A message that came back. If there are more, [`End::done`] passes the wake-up on.
    #[inline(always)]
    fn take_returned(&self) -> Option<Cell> {
        let notice = self.control().returned();
        if !notice.is_up() {
            return None;
        }
        let leasing = self.leasing();
        notice.heed(|| leasing.store.cells().take_returned(self.me(), &leasing.back))
    }

    /// For a receiver that found nothing though the senders are gone or the queue is closed: whether something may come back, or
    /// is still in the hands of another receiver that is taking it.
    pub(crate) fn is_needed_still(&self) -> bool {
        let Some(leasing) = &self.leasing else {
            return false;
        };
        // SYNC chunk-count: read before the words; pairs with `note_freed`.
        let mark = u64::from(self.control().freed.0.count.load(Ordering::Acquire)) + 1;
        // Looking at all cells takes too long for a poll, and as long as none is freed it would be the same. Or almost: that
        // another thread has something on lease by now is found out by the look at the end of the slice.
        // Relaxed: a hint of this handle.
        if leasing.needed.load(Ordering::Relaxed) == mark {
            return true;
        }
        let needed = leasing.store.cells().may_bring(self.me());
        if needed {
            leasing.needed.store(mark, Ordering::Relaxed);
        }
        needed
    }

    /// Takes a message on lease, with all its waiting. `None` in it for a slot that refers to no message.
    #[inline]
    fn lease_cell(&self, patience: Patience) -> Result<Option<Cell>, Stop> {
        self.check()?;
        let attempt = || self.pop_cell();
        let cell = attempt().or_else(|miss| self.retry(miss, patience, attempt))?;
        self.done(1);
        let taken = &self.leasing().taken;
        // Not the ticket: what comes back has none. Relaxed, and not counted by a swap: a hint of this handle.
        let count = taken.load(Ordering::Relaxed).wrapping_add(1);
        taken.store(count, Ordering::Relaxed);
        if count & 63 == 0 {
            self.look_after_the_dead();
        }
        Ok(cell)
    }

    /// Takes another message on lease that is there now, and repairs nothing.
    fn lease_another(&self) -> Option<Cell> {
        let cell = self.pop_cell().ok()??;
        self.done(1);
        Some(cell)
    }

    /// Brings back what dead processes had in hand, if it is time to ask. Not only lessees: one that died between the claim of a
    /// slot and its lease is in no cell.
    #[cold]
    pub(crate) fn look_after_the_dead(&self) {
        let Some(leasing) = &self.leasing else {
            return;
        };
        // Relaxed: a hint of this handle.
        leasing.needed.store(0, Ordering::Relaxed);
        if self.is_due(&leasing.looked, LOOK_MICROS) {
            self.segment().sweep();
            self.look_for_strays();
        }
    }

    /// Messages that came back and of which no notice says so, because whoever took it down is stopped; and those that nobody
    /// will come for, because somebody scribbled on their slots.
    fn look_for_strays(&self) {
        let cells = self.leasing().store.cells();
        let lost = cells.collect(|ticket| self.ring().is_released(ticket));
        if lost > 0 || cells.has_returned() {
            self.control().note_returned();
        }
    }

    #[inline]
    fn acknowledge(&self, cell: Cell, run: Option<Reference>) {
        self.release_cell(cell, run);
        let control = self.control();
        let drained = &control.drained.0;
        // Whoever waits for this should know where we run.
        drained.note_cpu();
        // Receivers may be waiting for what others have on lease to come back.
        let ended = control.has_ended_for(Side::Receiver);
        // SYNC wait-line: behind the light fence in `note_freed`, as in `WaitLine::notify`. A sleeper whose heavy fence failed
        // may be missed, and looks at the end of its slice.
        if !ended && !drained.has_sleepers() {
            return;
        }
        let leasing = self.leasing();
        // Those who wait want to hear of the last one only.
        if !leasing.store.cells().has_rest(&leasing.rest) {
            drained.notify_all();
            if ended {
                control.wake_all(Side::Receiver);
            }
        }
    }

    #[inline]
    fn release_cell(&self, cell: Cell, run: Option<Reference>) {
        self.leasing().store.cells().release(cell);
        if let Some(run) = run {
            self.free_kept(run);
        }
        self.control().note_freed();
    }

    fn give_back(&self, cell: Cell) {
        self.leasing().store.cells().give_back(cell);
        self.control().note_returned();
    }

    /// How many messages are where; none in a forked child that cannot attach.
    fn tally(&self) -> Count {
        self.check().map_or(Count::default(), |()| self.leasing().store.cells().tally())
    }

    /// Whether the ring or the cells have no room; not in a forked child that cannot attach.
    fn is_full(&self) -> bool {
        let is_full = |()| {
            let tally = self.leasing().store.cells().tally();
            tally.waiting + tally.leased >= self.max_unfinished() || self.len() >= self.capacity()
        };
        self.check().is_ok_and(is_full)
    }

    fn max_unfinished(&self) -> usize {
        self.leasing().store.count()
    }

    /// Waits until every message is acknowledged.
    fn wait_drained(&self, deadline: Option<Instant>) -> Result<(), DrainError> {
        self.check().map_err(|_| DrainError::Forked)?;
        let control = self.control();
        let cells = self.leasing().store.cells();
        let seen = std::cell::RefCell::new(Vec::new());
        let look = || cells.is_drained(&mut seen.borrow_mut()).then_some(Ok(()));
        // Words that only move do not count as messages.
        let is_lost = |alone: bool| alone && cells.has_unfinished();
        if let Some(done) = look() {
            return done;
        }
        let before = std::cell::Cell::new(None);
        let poll = || {
            // SYNC chunk-count: read before the words; pairs with `note_freed`.
            let count = control.freed.0.count.load(Ordering::Acquire);
            // Looking at all cells takes too long for a poll.
            if before.replace(Some(count)) == Some(count) { None } else { look() }
        };
        let check = || {
            self.look_after_the_dead();
            let alone = self.is_alone();
            look().or_else(|| is_lost(alone).then_some(Err(DrainError::Disconnected)))
        };
        let progress = self.ticket();
        control
            .drained
            .0
            .wait(&self.pace, progress, deadline, poll, check)
            .unwrap_or(Err(DrainError::Timeout))
    }
}

/// As long as `timeout` from now; a deadline beyond the end of time is none.
fn deadline_in(timeout: Duration) -> Option<Instant> {
    Instant::now().checked_add(timeout)
}
