//! The ring of one producer and one consumer.
//!
//! Source: Lamport, *Proving the Correctness of Multiprocess Programs* (1977), with each side's copy of the other's index
//! (as in FastFlow, MCRingBuffer, rtrb).
//!
//! # Memory
//!
//! ```text
//! 0     head     messages taken so far         written by the consumer only
//! 128   tail     messages pushed so far        written by the producer only
//! 256   payload | payload | payload | ...      8-aligned, as close as they come
//! ```
//!
//! Message `t` lies in slot `t mod C`. The ring holds the messages `head .. tail`. A side has its own index in the memory
//! only, and in its handle (see `reach`) up to where the other side's index, as it was last seen, lets it go: a lower
//! bound of the truth. So a push stores its payload and `tail`, a pop stores `head`, and neither anything else.
//!
//! # The normal path
//!
//! ```text
//! push   tail within reach         write the payload; store tail + 1       linearization of push
//!        otherwise                 look at head; still C behind: full
//! pop    head within reach         copy out; store head + 1                linearization of pop
//!        otherwise                 look at tail; still the same: empty
//! ```
//!
//! No compare-and-swap, no fence, and no shared line is read as long as the last look promises more. Both sides store
//! their index with every message, so *full* and *empty* are exact and no message is held back. Such a store is cheap
//! while the other side does not look, which it does once per look that brought something. The lines that a side will
//! need are fetched while it works on others, but only those within reach: a line beyond may be the one that the other
//! side works on.
//!
//! # The scary race
//!
//! The producer overwrites slot `t mod C` while the consumer still copies message `t - C` out of it. It cannot: it has
//! seen `head > t - C`, and the consumer stores that after the copy (`Release`, seen with `Acquire`).
//!
//! # If a process dies
//!
//! | dies after                             | leaves                                                          |
//! |----------------------------------------|-----------------------------------------------------------------|
//! | writing some payloads, before `tail`   | nothing: bytes in free slots                                    |
//! | storing `tail`                         | complete messages (a batch is one store: all or nothing)        |
//! | copying out, before `head`             | the messages: a successor takes them, if there ever is one      |
//! | storing `head`                         | free slots; what was taken is lost with the taker               |
//!
//! There is nothing to repair, and nobody has to find out who died. A successor (whoever is given the dead one's place)
//! starts with the index in the memory. That there is one of each side at a time is the callers' promise; see
//! [`spsc`](mod@crate::spsc) for who keeps it between processes.
//!
//! # Safety
//!
//! * The number of a slot is below the capacity, whatever the indices in the memory are: it is compared with private
//!   memory, or reduced, before each use. Whoever scribbles on the indices gets messages mixed up, and nothing else.
//! * A payload is written by the producer before it is published and read by the consumer before it is released, so never
//!   by two at once.
//! * Natively no reference to payload bytes is ever made: another process may scribble on them.
#![allow(unsafe_code)]

mod memory;
mod reach;

use crate::ring::{Layout as Limits, LayoutError};
use shm_core::crash_point;
use shm_core::sync::Ordering::{Acquire, Relaxed, Release};
use shm_core::sync::{AtomicU64, ordering};

pub use memory::Memory;
use memory::Slots;
pub(crate) use reach::Reach;

/// Names of the accesses whose ordering matters, for models that weaken one at a time.
pub const ORDERINGS: &[&str] = &["spsc.push.look", "spsc.push.publish", "spsc.pop.look", "spsc.pop.release"];

/// Names of the steps at which a test can kill a process that uses a ring.
#[cfg(feature = "crash-points")]
pub const CRASH_POINTS: &[&str] =
    &["spsc.push.written", "spsc.push.published", "spsc.pop.read", "spsc.pop.released"];

/// Capacity and payload size of a ring, checked.
///
/// # Across processes
///
/// The same capacity and payload size give the same layout in every process that runs this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    capacity: usize,
    payload_len: usize,
}

impl Layout {
    /// A ring of `capacity` slots with `payload_len` bytes each; the limits are those of
    /// [`ring::Layout`](crate::ring::Layout).
    ///
    /// # Errors
    ///
    /// The value that is out of range.
    pub fn new(capacity: usize, payload_len: usize) -> Result<Layout, LayoutError> {
        Limits::new(capacity, payload_len)?;
        Ok(Layout { capacity, payload_len })
    }

    /// Slots of the ring.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Payload bytes of each slot.
    pub fn payload_len(&self) -> usize {
        self.payload_len
    }

    /// Bytes of memory that the ring needs.
    pub fn len_bytes(&self) -> usize {
        // At most about 2^20, and at most 2^20 times.
        size_of::<Indices>() + self.stride() * self.capacity
    }

    fn stride(&self) -> usize {
        self.payload_len.next_multiple_of(8)
    }
}

/// Where the two sides are. Zeroes are an empty ring.
#[derive(Debug)]
#[repr(C, align(128))]
struct Indices {
    head: Line,
    tail: Line,
}

/// An index with a pair of cache lines of its own: processors fetch them in pairs.
#[derive(Debug)]
#[repr(C, align(128))]
struct Line(AtomicU64);

/// No room: the ring holds as many messages as it can. Exact at the moment of the look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ring is full")]
pub struct Full;

/// Nothing there: every message that was pushed is taken. Exact at the moment of the look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ring is empty")]
pub struct Empty;

/// A ring in borrowed memory. Copies are the same ring.
#[derive(Clone, Copy, Debug)]
pub struct Ring<'m> {
    indices: &'m Indices,
    slots: Slots<'m>,
    capacity: usize,
}

impl<'m> Ring<'m> {
    /// The ring that lies at `base`. Zeroed memory is an empty ring.
    ///
    /// # Safety
    ///
    /// `base` is aligned to 128 bytes; `layout.len_bytes()` bytes from it are readable and writable for `'m`, and are
    /// accessed through rings of the same layout only, in any process.
    #[cfg(not(loom))]
    pub unsafe fn attach(base: std::ptr::NonNull<u8>, layout: Layout) -> Ring<'m> {
        // SAFETY: the caller's promise; indices are atomics, and the slots follow them.
        let (indices, slots) =
            unsafe { (base.cast().as_ref(), Slots::new(base.add(size_of::<Indices>()), &layout)) };
        Ring { indices, slots, capacity: layout.capacity }
    }

    /// Slots of the ring.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many messages are in the ring. May be stale at once.
    pub fn len(&self) -> usize {
        // Relaxed: a number. The head first, so that the difference is not negative; it may be beyond the capacity.
        let head = self.indices.head.0.load(Relaxed);
        let tail = self.indices.tail.0.load(Relaxed);
        self.bounded(tail.wrapping_sub(head))
    }

    /// Whether no message is in the ring. May be stale at once.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the message that was pushed as number `ticket` is taken; then whoever took it has copied it.
    pub fn is_released(&self, ticket: u64) -> bool {
        // SYNC spsc-free: pairs with the store in `Popper::release`.
        self.indices.head.0.load(ordering("spsc.push.look", Acquire)) > ticket
    }

    /// The producing side, at the place where the last one stopped.
    ///
    /// # Safety
    ///
    /// At most one pusher of the memory is in use at a time, in all processes; the next one is made after whatever
    /// the last one did, as seen by this thread.
    pub unsafe fn pusher(&self) -> Pusher<'m> {
        let mut pusher = Pusher { ring: *self, reach: Reach::new(self.capacity) };
        pusher.look();
        pusher
    }

    /// The consuming side, at the place where the last one stopped.
    ///
    /// # Safety
    ///
    /// As [`Ring::pusher`], for poppers.
    pub unsafe fn popper(&self) -> Popper<'m> {
        let mut popper = Popper { ring: *self, reach: Reach::new(self.capacity) };
        popper.look();
        popper
    }

    /// The slot of a message.
    fn slot(&self, ticket: u64) -> usize {
        usize::try_from(ticket % self.capacity as u64).unwrap_or(0)
    }

    /// The slot behind a slot.
    #[inline(always)]
    fn behind(&self, slot: usize) -> usize {
        if slot + 1 == self.capacity { 0 } else { slot + 1 }
    }

    /// A difference of two indices: more than the capacity only if somebody scribbles on them.
    #[inline(always)]
    fn bounded(&self, count: u64) -> usize {
        usize::try_from(count).map_or(self.capacity, |count| count.min(self.capacity))
    }

    #[inline(always)]
    fn look_at_head(&self) -> u64 {
        // SYNC spsc-free: pairs with the store in `Popper::release`, so that the slots are ours.
        self.indices.head.0.load(ordering("spsc.push.look", Acquire))
    }

    #[inline(always)]
    fn look_at_tail(&self) -> u64 {
        // SYNC spsc-ready: pairs with the store in `Pusher::publish`, so that the payloads are complete.
        self.indices.tail.0.load(ordering("spsc.pop.look", Acquire))
    }
}

/// A slot that belongs to the side that asked for it, until that side's next operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spot {
    ticket: u64,
    slot: usize,
}

impl Spot {
    /// The number of the message that lies or will lie there.
    #[inline(always)]
    pub(crate) fn ticket(self) -> u64 {
        self.ticket
    }
}

/// The producing side of a ring. Made by [`Ring::pusher`].
#[derive(Debug)]
pub struct Pusher<'m> {
    ring: Ring<'m>,
    /// The free slots.
    reach: Reach,
}

impl Pusher<'_> {
    /// How many messages were pushed so far: the number of the next one.
    #[inline(always)]
    pub fn ticket(&self) -> u64 {
        // Relaxed: only this side stores it, and the caller of `Ring::pusher` has seen what the last one stored.
        self.ring.indices.tail.0.load(Relaxed)
    }

    /// Pushes a message, which `write` puts into its slot. Never blocks; wait-free.
    ///
    /// A `write` that panics has pushed nothing.
    ///
    /// # Errors
    ///
    /// [`Full`]; nothing was written.
    ///
    /// # If the peer dies
    ///
    /// A message whose push has returned outlives its producer.
    #[inline(always)]
    pub fn try_push(&mut self, write: impl FnOnce(*mut u8)) -> Result<(), Full> {
        let spot = self.spot().ok_or(Full)?;
        self.push_at(spot, write);
        Ok(())
    }

    /// The slot for the next message, if there is room. Exact.
    #[inline(always)]
    pub(crate) fn spot(&mut self) -> Option<Spot> {
        self.known_spot().or_else(|| self.next_spot())
    }

    /// The slot for the next message, if it is known without a look that there is room.
    #[inline(always)]
    pub(crate) fn known_spot(&self) -> Option<Spot> {
        self.reach.spot(self.ticket())
    }

    #[inline(never)]
    fn next_spot(&mut self) -> Option<Spot> {
        if !self.reach.turn(self.ticket()) {
            self.look();
        }
        let spot = self.known_spot()?;
        self.ring.slots.begin_to_write(spot.slot, |slot| self.reach.holds(slot));
        Some(spot)
    }

    /// Pushes a message into a slot that this side has just found.
    #[inline(always)]
    pub(crate) fn push_at(&mut self, spot: Spot, write: impl FnOnce(*mut u8)) {
        self.ring.slots.write(spot.slot, write);
        self.ring.slots.fetch_to_write(spot.slot, |slot| self.reach.holds(slot));
        crash_point!("spsc.push.written");
        self.publish(spot.ticket.wrapping_add(1));
    }

    /// Pushes up to `count` messages at once, as many as there is room for, and returns how many. `write` gets the
    /// number of the message in the batch. Never blocks.
    ///
    /// # Errors
    ///
    /// As [`Pusher::try_push`], unless `count` is 0.
    ///
    /// # If the peer dies
    ///
    /// A producer that dies in here leaves all of the batch or nothing of it.
    #[inline]
    pub fn try_push_batch(
        &mut self,
        count: usize,
        mut write: impl FnMut(usize, *mut u8),
    ) -> Result<usize, Full> {
        let tail = self.ticket();
        let mut room = self.reach.left(tail);
        if room < count {
            room = self.look();
        }
        let count = count.min(room);
        if count == 0 {
            return if room == 0 { Err(Full) } else { Ok(0) };
        }
        let mut slot = self.ring.slot(tail);
        for i in 0..count {
            self.ring.slots.write(slot, |payload| write(i, payload));
            slot = self.ring.behind(slot);
        }
        crash_point!("spsc.push.written");
        self.publish(tail.wrapping_add(count as u64));
        Ok(count)
    }

    /// Starts a push and stops before it is published, as if the caller had died there: for models.
    #[doc(hidden)]
    pub fn abandon_push(&mut self, write: impl FnOnce(*mut u8)) -> Result<(), Full> {
        let spot = self.spot().ok_or(Full)?;
        self.ring.slots.write(spot.slot, write);
        Ok(())
    }

    /// Whether there is room; nobody but this side can use it up.
    #[inline(always)]
    pub fn has_room(&mut self) -> bool {
        self.spot().is_some()
    }

    /// What this side knows without a look.
    pub(crate) fn reach(&self) -> &Reach {
        &self.reach
    }

    /// Looks for how many messages there is room.
    fn look(&mut self) -> usize {
        let tail = self.ticket();
        let used = self.ring.bounded(tail.wrapping_sub(self.ring.look_at_head()));
        let room = self.ring.capacity - used;
        self.reach.extend(tail, room);
        room
    }

    #[inline(always)]
    fn publish(&mut self, tail: u64) {
        // SYNC spsc-ready: pairs with the look in `look_at_tail`.
        self.ring.indices.tail.0.store(tail, ordering("spsc.push.publish", Release));
        crash_point!("spsc.push.published");
    }
}

/// The consuming side of a ring. Made by [`Ring::popper`].
#[derive(Debug)]
pub struct Popper<'m> {
    ring: Ring<'m>,
    /// The slots with messages.
    reach: Reach,
}

impl Popper<'_> {
    /// How many messages were taken so far: the number of the next one.
    #[inline(always)]
    pub fn ticket(&self) -> u64 {
        // Relaxed: as in `Pusher::ticket`.
        self.ring.indices.head.0.load(Relaxed)
    }

    /// Starts a pop and stops before the slot is released, as if the caller had died there: for models.
    #[doc(hidden)]
    pub fn abandon_pop<R>(&mut self, read: impl FnOnce(*const u8) -> R) -> Result<R, Empty> {
        let spot = self.spot().ok_or(Empty)?;
        Ok(self.ring.slots.read(spot.slot, read))
    }

    /// Looks how many messages are there.
    pub fn look(&mut self) -> usize {
        let head = self.ticket();
        let ready = self.ring.bounded(self.ring.look_at_tail().wrapping_sub(head));
        self.reach.extend(head, ready);
        ready
    }

    /// Whether a message is there; nobody but this side can take it.
    #[inline(always)]
    pub fn is_ready(&mut self) -> bool {
        self.spot().is_some()
    }

    /// What this side knows without a look.
    pub(crate) fn reach(&self) -> &Reach {
        &self.reach
    }

    /// The slot of the next message, if there is one. Exact.
    #[inline(always)]
    pub(crate) fn spot(&mut self) -> Option<Spot> {
        self.known_spot().or_else(|| self.next_spot())
    }

    /// The slot of the next message, if it is known without a look that there is one.
    #[inline(always)]
    pub(crate) fn known_spot(&self) -> Option<Spot> {
        self.reach.spot(self.ticket())
    }

    #[inline(never)]
    fn next_spot(&mut self) -> Option<Spot> {
        if !self.reach.turn(self.ticket()) {
            self.look();
        }
        let spot = self.known_spot()?;
        self.ring.slots.begin_to_read(spot.slot, |slot| self.reach.holds(slot));
        Some(spot)
    }

    /// Takes a message: `read` copies it out of its slot. Never blocks; wait-free.
    ///
    /// A `read` that panics has taken nothing.
    ///
    /// # Errors
    ///
    /// [`Empty`].
    ///
    /// # If the peer dies
    ///
    /// A consumer that dies in here has taken nothing, or the message with it.
    #[inline(always)]
    pub fn try_pop<R>(&mut self, read: impl FnOnce(*const u8) -> R) -> Result<R, Empty> {
        let spot = self.spot().ok_or(Empty)?;
        Ok(self.pop_at(spot, read))
    }

    /// Takes the message out of a slot that this side has just found.
    #[inline(always)]
    pub(crate) fn pop_at<R>(&mut self, spot: Spot, read: impl FnOnce(*const u8) -> R) -> R {
        self.ring.slots.fetch_to_read(spot.slot, |slot| self.reach.holds(slot));
        let message = self.ring.slots.read(spot.slot, read);
        crash_point!("spsc.pop.read");
        self.release(spot.ticket.wrapping_add(1));
        message
    }

    /// Takes up to `max` messages at once, as many as there are, and returns how many. `read` gets the number of the
    /// message in the batch. Never blocks.
    ///
    /// # Errors
    ///
    /// As [`Popper::try_pop`], unless `max` is 0.
    ///
    /// # If the peer dies
    ///
    /// A consumer that dies in here has taken nothing, or the whole batch with it.
    #[inline]
    pub fn try_pop_batch(
        &mut self,
        max: usize,
        mut read: impl FnMut(usize, *const u8),
    ) -> Result<usize, Empty> {
        let head = self.ticket();
        let mut ready = self.reach.left(head);
        if ready < max {
            ready = self.look();
        }
        let count = max.min(ready);
        if count == 0 {
            return if ready == 0 { Err(Empty) } else { Ok(0) };
        }
        let mut slot = self.ring.slot(head);
        for i in 0..count {
            self.ring.slots.read(slot, |payload| read(i, payload));
            slot = self.ring.behind(slot);
        }
        crash_point!("spsc.pop.read");
        self.release(head.wrapping_add(count as u64));
        Ok(count)
    }

    #[inline(always)]
    fn release(&mut self, head: u64) {
        // SYNC spsc-free: pairs with the look in `look_at_head`.
        self.ring.indices.head.0.store(head, ordering("spsc.pop.release", Release));
        crash_point!("spsc.pop.released");
    }
}
