//! Owners natively: this process's token by address, and the death of others.
//!
//! A lock knows its own address and nothing else. The token for it is looked up in the process's table of attachments,
//! and kept in a small cache of the thread: ranges of addresses with their tokens, valid as long as the process neither
//! attaches nor detaches nor forks (one number says so; see `fork::attachments`).

use super::Owner;
use crate::fork::{self, Forked};
use crate::segment::neighbourhood;
use std::cell::Cell;

/// A range of addresses and the token for it.
#[derive(Clone, Copy)]
struct Entry {
    start: usize,
    len: usize,
    attachments: u64,
    owner: Owner,
}

impl Entry {
    /// No address is in it.
    const NONE: Self = Self { start: 0, len: 0, attachments: 0, owner: Owner::local() };

    #[inline(always)]
    fn owner(&self, address: usize, attachments: u64) -> Option<Owner> {
        let hit = address.wrapping_sub(self.start) < self.len && self.attachments == attachments;
        hit.then_some(self.owner)
    }
}

/// How many ranges a thread remembers.
const ENTRIES: usize = 4;

thread_local! {
    /// The last one used.
    static LAST: Cell<Entry> = const { Cell::new(Entry::NONE) };
    /// Those before.
    static EARLIER: Cell<[Entry; ENTRIES - 1]> = const { Cell::new([Entry::NONE; ENTRIES - 1]) };
}

impl Owner {
    /// The token of this process for the memory at `place`. Outside of segments a token that stands for this process
    /// alone.
    ///
    /// Some loads if this thread has asked for the same memory lately. In a forked child the segment is attached again
    /// first (see [`Segment::ensure`](crate::segment::Segment::ensure)); `place` is not read.
    ///
    /// # Errors
    ///
    /// [`Forked`] if that is not possible, for whatever reason: out of descriptors, or of participant indices, too. The
    /// next call tries again.
    #[inline(always)]
    pub fn here<T>(place: *const T) -> Result<Self, Forked> {
        let address = place.addr();
        match LAST.get().owner(address, fork::attachments()) {
            Some(owner) => Ok(owner),
            None => find(address),
        }
    }

    /// Whether the process that wrote this token into the memory at `place` is dead. Exact, one system call, never
    /// blocks. Tokens of this process, and those that stand for memory that is not shared, are never dead.
    ///
    /// The answer proves that whoever wrote the token *before the call* is dead: read the word first, then ask.
    pub fn is_dead<T>(self, place: *const T) -> bool {
        self.index() != 0
            && neighbourhood(place.addr())
                .segment
                .is_some_and(|segment| segment.check().is_ok() && segment.is_owner_dead(self))
    }

    /// The process id of the holder, as it knows itself: for people. Nothing for memory that is not shared.
    pub fn process_id<T>(self, place: *const T) -> Option<u32> {
        let segment = neighbourhood(place.addr()).segment.filter(|segment| segment.check().is_ok())?;
        let is_current = Self::new(self.index(), segment.generation(self.index())) == self;
        segment.process_id(self.index()).filter(|_| is_current && self.index() != 0)
    }
}

#[cold]
fn find(address: usize) -> Result<Owner, Forked> {
    let attachments = fork::attachments();
    let mut earlier = EARLIER.get();
    let known = earlier.iter().position(|entry| entry.owner(address, attachments).is_some());
    let entry = match known {
        Some(at) => std::mem::replace(&mut earlier[at], LAST.get()),
        None => {
            earlier.rotate_right(1);
            earlier[0] = LAST.get();
            look_up(address)?
        }
    };
    LAST.set(entry);
    EARLIER.set(earlier);
    Ok(entry.owner)
}

fn look_up(address: usize) -> Result<Entry, Forked> {
    // Before the table: what changes meanwhile makes the entry outdated.
    let attachments = fork::known_attachments();
    let near = neighbourhood(address);
    let owner = match near.segment {
        Some(segment) => {
            segment.ensure().map_err(|_| Forked)?;
            segment.owner()
        }
        None => Owner::local(),
    };
    Ok(Entry { start: near.addresses.start, len: near.addresses.len(), attachments, owner })
}
