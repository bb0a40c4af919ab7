//! Arenas: segments that many small values share.
//!
//! A segment costs a descriptor, a mapping and some system calls. So values of up to 8 KiB live in blocks of an *arena*,
//! one segment for blocks of one length, made by the process that created the values. Mirrors how a queue finds out that
//! a side is gone (`ipc-queue/src/disconnect.rs`), per object.
//!
//! # Memory
//!
//! ```text
//! shared (see `layout`)   per object: state {epoch, LIVE}; layout of its value; a bit for each participant whose process
//!                         has a handle; the block
//! kernel                  a lock per token of an object; a lock per fork whose child has not attached again
//! private, per process    handles of each object; in the process that made the arena also the list of free objects
//! ```
//!
//! # States of an object
//!
//! ```text
//!             written, marked, stored                (only by the process that made the arena)
//!      FREE ----------------------------> LIVE
//!       ^                                   | arrive: epoch += 1
//!       +-----------------------------------+
//!        nobody has it: swap on the state that was read, by anybody who finds out
//! ```
//!
//! # The life of a handle
//!
//! ```text
//! serialise    a token: a descriptor whose lock on the object's lane is kept by the kernel as long as the descriptor is
//!              in any process or socket buffer; it is also what the other side attaches by
//! arrive       handles 0 -> 1: set own bit; epoch += 1; only then close the token. Otherwise handles += 1
//! let go       handles 1 -> 0: clear own bit; try to free. Otherwise handles -= 1
//! try to free  read the state; no bit, no token of the object, no fork in flight; swap the state that was read
//! sweep        clear the bits of a dead participant
//! fork         the child's copies are in flight (lane 0) until it has attached again and has set its own bits, each with
//!              a step of the epoch; meanwhile nothing in this arena is freed
//! ```
//!
//! Going from no handle to one and back, and giving out blocks, is done inside the process's fork window: one at a time,
//! and never half done in a child.
//!
//! # The scary race
//!
//! A scan reads bits and lanes one after the other, and a handle may move from what it has not read yet to what it has
//! read already. Suppose that a scan read the state at `t0`, found no bits, found no token at `t1`, no fork at `t2`, and
//! its swap at `t3` met the epoch of `t0`. Then nobody has the object at `t3`:
//!
//! * at `t1` there is no token, so whoever has it then has a bit whose arrival is complete, or is a fork in flight. An
//!   arrival that was complete at `t1` stepped the epoch before `t0`, or the swap would fail; so the bit was set before
//!   `t0`, and the scan that found it clear found it cleared. It can only be set again by another arrival, whose step the
//!   swap would meet. So at `t1` only forks in flight have it;
//! * at `t2` there is none: it was counted (then it stepped the epoch after `t1`) or it died;
//! * who has nothing at `t2` gets nothing later: every way to a handle begins with a handle.
//!
//! Two processes that let go at once: each clears its bit before it reads the other's, so one of them finds none.
//! `tests/arena_model.rs` explores all of it, with a crash before every step.
//!
//! A block is given out again by the process that made the arena only, after it has read FREE; its new value is written,
//! its bit set, before the state says LIVE. A handle that is named by a false ticket is refused unless the object is alive
//! and of the same layout, and is then counted like any other.
//!
//! # If a process dies
//!
//! With handles, or anywhere in *arrive*: its bits stay until a sweep, its tokens and forks in flight are gone. Then, or
//! between *clear* and the swap, or with a token that nobody took, the object is live and nobody has it: it is found when the
//! maker looks for free blocks, which it does, after a sweep, before it makes another arena. Without a maker nobody needs the
//! block, and it goes with the arena. In the middle of *written, marked*: the maker is dead, and the object FREE. In a
//! sweep: bits that were cleared are cleared, the next sweep does the others. An arena goes with the last process that
//! has a handle of any object in it.
//!
//! # If a process scribbles
//!
//! All lengths and places come from a geometry that was checked once. States and bits say at worst that something is free
//! which is not: then two handles share a block, and one sees the other's bytes, as it might have been made to anyway.

mod layout;
mod objects;
mod table;

use crate::error::{Error, Kind};
use layout::{FORKS, Geometry, lane};
use objects::Objects;
use parking_lot::Mutex;
use shm_core::fork::{ForkStamp, window};
use shm_core::segment::{Segment, Spec};
use shm_core::sync::{AtomicU32, Ordering};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

/// What this process has of the arenas that small shared values live in; see [`arena_usage`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ArenaUsage {
    /// Arenas that this process has a handle in: each costs it a descriptor.
    pub arenas: usize,
    /// Blocks in them.
    pub blocks: usize,
    /// Blocks whose value may be in use by any process.
    pub live: usize,
    /// Blocks without a value.
    pub free: usize,
}

/// Counts the blocks of the arenas in which this process has a [`Shared`](crate::Shared), after having freed those that
/// only dead processes had. Stale at once if others create and drop values.
///
/// Makes system calls for each participant and each value in doubt; does not wait for other processes.
///
/// # Examples
///
/// ```
/// use shm_array::{Shared, arena_usage};
///
/// # fn main() -> shm_array::Result<()> {
/// let one = Shared::new(1_u64)?;
/// let other = Shared::new(2_u64)?;
/// assert_eq!((arena_usage().arenas, arena_usage().live), (1, 2));
/// drop((one, other));
/// assert_eq!(arena_usage().arenas, 0);
/// # Ok(()) }
/// ```
pub fn arena_usage() -> ArenaUsage {
    let mut usage = ArenaUsage::default();
    for arena in table::all() {
        if let Some(free) = arena.collect() {
            usage.arenas += 1;
            usage.blocks += arena.geometry.capacity();
            usage.free += free;
            usage.live += arena.geometry.capacity() - free;
        }
    }
    usage
}

/// This process's side of an arena. As long as there is one, the process is attached.
pub(crate) struct Arena {
    geometry: Geometry,
    /// Handles of this process, by object. From and to zero inside the fork window only.
    handles: Box<[AtomicU32]>,
    /// In the process that made the arena: what it can give out. Locked inside the fork window only.
    stock: Option<(ForkStamp, Mutex<Stock>)>,
    segment: Arc<Segment>,
}

/// Free objects. An object is in it, or was given out, or was freed since the last look.
#[derive(Default)]
struct Stock {
    /// The objects from here on were never given out.
    fresh: usize,
    again: Vec<usize>,
}

fn spec(block_len: usize, body_len: usize) -> Spec {
    Spec { kind: layout::KIND, layout_hash: layout::layout_hash(block_len), body_len, sweep, arrived }
}

/// Cleans up after a dead participant; see [`Spec::sweep`].
fn sweep(segment: &Segment, dead: u16) -> bool {
    let Some(geometry) = objects::geometry(segment) else {
        return false;
    };
    Objects::of(segment, geometry).sweep(dead);
    true
}

/// Counts what a forked child has inherited; see [`Spec::arrived`].
fn arrived(segment: &Segment) {
    let Some(arena) = table::find(segment) else {
        return;
    };
    let objects = Objects::of(segment, arena.geometry);
    for (object, handles) in arena.handles.iter().enumerate() {
        if handles.load(Ordering::Relaxed) > 0 {
            // What is not alive was scribbled over: nothing to keep alive.
            let _ = objects.arrive(object);
        }
    }
}

impl Arena {
    fn new(segment: Arc<Segment>, geometry: Geometry, is_maker: bool) -> Arc<Self> {
        segment.hold(FORKS);
        let handles = (0..geometry.capacity()).map(|_| AtomicU32::new(0)).collect();
        let stock = is_maker.then(|| (ForkStamp::now(), Mutex::default()));
        Arc::new(Self { geometry, handles, stock, segment })
    }

    /// Makes an arena.
    fn create(geometry: Geometry) -> Result<Arc<Self>, Error> {
        let spec = spec(geometry.len_of_block(), geometry.body_len());
        let segment = Segment::create(&spec, |body| objects::write_geometry(body, geometry))?;
        Ok(Self::new(segment, geometry, true))
    }

    /// The arena behind a descriptor, which has blocks of this length.
    fn attach(descriptor: BorrowedFd<'_>, block_len: usize) -> Result<Arc<Self>, Error> {
        let segment = Segment::attach(descriptor, &spec(block_len, 1))?;
        let _window = window();
        if let Some(arena) = table::find(&segment) {
            return Ok(arena);
        }
        let geometry = objects::geometry(&segment).filter(|geometry| geometry.len_of_block() == block_len);
        let geometry = geometry.ok_or(Kind::Corrupt { what: "the geometry of an arena" })?;
        let arena = Self::new(segment, geometry, false);
        table::insert(&arena);
        Ok(arena)
    }

    /// The shared part. In a forked child only after `Segment::ensure`.
    fn objects(&self) -> Objects<'_> {
        Objects::of(&self.segment, self.geometry)
    }

    /// The list of free objects, if this is the process that made the arena. The caller holds the fork window.
    fn stock(&self) -> Option<&Mutex<Stock>> {
        self.stock.as_ref().filter(|(maker, _)| maker.check().is_ok()).map(|(_, stock)| stock)
    }

    /// Takes a free object. The caller holds the fork window until the object is alive.
    fn take(&self) -> Option<usize> {
        let mut stock = self.stock()?.lock();
        // One that is alive was scribbled over: out of use until the next look.
        while let Some(object) = stock.again.pop() {
            if !self.objects().is_live(object) {
                return Some(object);
            }
        }
        let fresh = (stock.fresh < self.geometry.capacity()).then_some(stock.fresh)?;
        stock.fresh += 1;
        Some(fresh)
    }

    /// Frees what nobody has any more, and counts what is free; nothing in a forked child that cannot attach again.
    fn collect(&self) -> Option<usize> {
        self.segment.ensure().ok()?;
        let _window = window();
        self.segment.sweep();
        let objects = self.objects();
        let mut free = Vec::new();
        for object in (0..self.geometry.capacity()).rev() {
            if !objects.is_live(object) || objects.try_free(object) {
                free.push(object);
            }
        }
        let count = free.len();
        if let Some(stock) = self.stock() {
            let mut stock = stock.lock();
            free.retain(|&object| object < stock.fresh);
            stock.again = free;
        }
        Some(count)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        table::remove(self);
        self.segment.unhold(FORKS);
    }
}

/// A handle of an object: a block with a value in it.
pub(crate) struct Block {
    object: u32,
    arena: Arc<Arena>,
}

impl Block {
    /// The length of the blocks for values like this, if they are small enough for an arena.
    pub(crate) fn len_for(len: usize, align: usize) -> Option<usize> {
        Geometry::block_len(len, align)
    }

    /// Finds a free block of this length, lets `write` fill it, and makes it alive. `layout` is what a handle that arrives
    /// must know.
    pub(crate) fn place(
        block_len: usize,
        layout: u64,
        write: impl FnOnce(NonNull<u8>),
    ) -> Result<Self, Error> {
        let _window = window();
        let (arena, object) = table::free_object(block_len)?;
        // Relaxed: nobody else has the object.
        arena.handles[object].store(1, Ordering::Relaxed);
        let block = Self { object: u32::try_from(object).expect("objects are counted in 20 bits"), arena };
        write(block.bytes());
        shm_core::crash_point!("arena.place.written");
        block.arena.objects().bring_to_life(object, layout);
        Ok(block)
    }

    /// The handle of an object that a token keeps alive.
    pub(crate) fn arrive(
        token: BorrowedFd<'_>,
        object: u32,
        block_len: usize,
        layout: u64,
    ) -> Result<Self, Error> {
        let arena = Arena::attach(token, block_len)?;
        let len = arena.geometry.capacity();
        let index = object as usize;
        if index >= len {
            return Err(
                Kind::OutOfRange { what: "shared value", index: object.into(), len: len as u64 }.into()
            );
        }
        {
            let _window = window();
            // Relaxed: zero is left and reached inside the window only.
            if arena.handles[index].load(Ordering::Relaxed) == 0 {
                arena.objects().arrive(index)?;
            }
            count(&arena.handles[index]);
        }
        // From here on it is let go of if it is refused.
        let block = Self { object, arena };
        if block.arena.objects().layout(index) != layout {
            return Err(Kind::Mismatch { what: "the type of a shared value" }.into());
        }
        Ok(block)
    }

    /// A token for the object: what keeps it alive on its way, and what the other side attaches by.
    pub(crate) fn token(&self) -> Result<OwnedFd, Error> {
        self.arena.segment.ensure()?;
        Ok(self.arena.segment.token(lane(self.object))?)
    }

    /// The number of the object in its arena.
    pub(crate) fn object(&self) -> u32 {
        self.object
    }

    pub(crate) fn segment(&self) -> &Arc<Segment> {
        &self.arena.segment
    }

    /// The first byte of the block.
    pub(crate) fn bytes(&self) -> NonNull<u8> {
        let body = self.arena.segment.body();
        let offset = self.arena.geometry.block(self.object as usize);
        body.map_addr(|address| address.checked_add(offset).expect("a block lies inside its body"))
    }

    fn handles(&self) -> &AtomicU32 {
        &self.arena.handles[self.object as usize]
    }
}

/// Handles of one object in one process. As `Arc`: more than this many were forgotten, not dropped.
const MOST_HANDLES: u32 = 1 << 31;

/// Counts one handle more.
fn count(handles: &AtomicU32) {
    // Relaxed: a process-private count; a new handle is made from one that stays.
    if handles.fetch_add(1, Ordering::Relaxed) >= MOST_HANDLES {
        std::process::abort();
    }
}

impl Clone for Block {
    fn clone(&self) -> Self {
        count(self.handles());
        Self { object: self.object, arena: Arc::clone(&self.arena) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let others = |handles: u32| handles.checked_sub(1).filter(|&others| others > 0);
        // SYNC let-go: Release, so that what was done through this handle comes before the last one is let go of; pairs
        // with the Acquire below.
        if self.handles().fetch_update(Ordering::Release, Ordering::Relaxed, others).is_ok() {
            return;
        }
        // In a forked child: to let go of what it has inherited, it must have counted it.
        let is_attached = self.arena.segment.ensure().is_ok();
        let object = self.object as usize;
        {
            let _window = window();
            // SYNC let-go: Acquire, pairs with the above.
            let is_last = self.handles().fetch_sub(1, Ordering::AcqRel) == 1;
            if !is_last || !is_attached {
                return;
            }
            self.arena.objects().unmark(object);
        }
        shm_core::crash_point!("arena.leave.unmarked");
        self.arena.objects().try_free(object);
    }
}
