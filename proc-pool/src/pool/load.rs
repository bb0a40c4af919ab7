//! Loads on their way into a pool, and outcomes on their way out: bytes, with what belongs to whom beside them.

use super::arena::LARGEST;
use super::chunk::Results;
use crate::error::{Result, TaskError};
use crate::payload::{Packed, Payload};
use std::ops::Range;
use std::os::fd::OwnedFd;

/// Encoded items on their way into the pool.
#[derive(Debug, Default)]
pub(super) struct Prepared {
    pub(super) bytes: Vec<u8>,
    pub(super) loads: Vec<PreparedLoad>,
}

/// One load of a [`Prepared`].
#[derive(Debug)]
pub(super) struct PreparedLoad {
    pub(super) first: u64,
    pub(super) items: u32,
    pub(super) range: Range<usize>,
    /// In place of `range`: what cannot go through shared memory.
    pub(super) sent: Option<(Packed, Vec<OwnedFd>)>,
}

impl Prepared {
    pub(super) fn len(&self) -> usize {
        self.loads.len()
    }

    /// Where the next load's bytes go.
    pub(super) fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Makes a load of the bytes from `start` on.
    ///
    /// # Errors
    ///
    /// When a large load's memory file cannot be made.
    pub(super) fn seal(&mut self, start: usize, first: u64, items: u32, handles: Vec<OwnedFd>) -> Result<()> {
        let range = start..self.bytes.len();
        let sent = if range.len() > LARGEST || !handles.is_empty() {
            let payload = Payload { bytes: self.bytes.split_off(start), descriptors: handles };
            Some(payload.pack()?)
        } else {
            None
        };
        self.loads.push(PreparedLoad { first, items, range, sent });
        Ok(())
    }
}

/// Outcomes of a job, in the order of their arrival.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) bytes: Vec<u8>,
    pub(super) entries: Vec<Entry>,
}

/// The outcomes of some items of a load, in a [`Batch`].
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) first: u64,
    pub(super) count: u32,
    pub(super) range: Range<usize>,
    pub(super) failure: Option<TaskError>,
    pub(super) descriptors: Vec<OwnedFd>,
}

/// The outcomes of some items of a load.
#[derive(Debug)]
pub(super) struct Outcome<'b> {
    pub(super) first: u64,
    pub(super) count: u32,
    pub(super) content: std::result::Result<Results<'b>, TaskError>,
    pub(super) descriptors: Vec<OwnedFd>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes the outcomes out.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Outcome<'_>> {
        let bytes = &self.bytes;
        self.entries.drain(..).map(move |entry| Outcome {
            first: entry.first,
            count: entry.count,
            content: match entry.failure {
                None => Ok(Results::new(&bytes[entry.range])),
                Some(error) => Err(error),
            },
            descriptors: entry.descriptors,
        })
    }

    /// Forgets what was drained, and keeps the space.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.bytes.clear();
    }
}
