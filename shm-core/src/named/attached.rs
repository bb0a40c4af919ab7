//! The hold on named memory: a lock that its mapping keeps, in each process that uses it.

use super::{HELD, busy};
use crate::error::SegmentError;
use crate::mapping::SharedMapping;
use crate::sys::files::{self, Lock};
use crate::sys::names::Facts;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

/// The mappings of this process: the first one, and in a forked child the one that it made itself.
pub(super) struct Attached {
    /// The mapping of the process that attached.
    pub(super) first: SharedMapping,
    /// Set inside the fork window only, so that no child inherits it half set.
    again: OnceLock<Box<Attached>>,
}

impl Attached {
    /// Takes a holder's lock and maps. Nothing if somebody has locked the file to remove it.
    pub(super) fn new(descriptor: OwnedFd, len: u64) -> Result<Option<Self>, SegmentError> {
        let _window = crate::fork::window();
        let own = files::reopen(descriptor.as_fd())
            .map_err(SegmentError::system("opening shared memory through /proc"))?;
        if !files::try_lock(own.as_fd(), Lock::Read, HELD)
            .map_err(SegmentError::system("locking shared memory"))?
        {
            return Ok(None);
        }
        // From here on the mapping keeps the lock, and nothing else does.
        let map = SharedMapping::map(own.as_fd(), len)?;
        Ok(Some(Self { first: SharedMapping::from_parts(map, descriptor), again: OnceLock::new() }))
    }

    pub(super) fn facts(&self) -> Result<Facts, SegmentError> {
        Facts::of(self.first.descriptor()).map_err(SegmentError::system("looking at shared memory"))
    }

    /// The mapping of the present process.
    pub(super) fn here(&self) -> Result<&SharedMapping, SegmentError> {
        let mut last = self;
        loop {
            if last.first.check().is_ok() {
                return Ok(&last.first);
            }
            last = match last.again.get() {
                Some(again) => again,
                None => last.attach_again()?,
            };
        }
    }

    #[cold]
    fn attach_again(&self) -> Result<&Self, SegmentError> {
        let file = self.first.descriptor();
        let own = files::reopen(file).map_err(SegmentError::system("opening shared memory through /proc"))?;
        let again = Self::new(own, self.first.len() as u64)?
            .ok_or_else(|| busy("attaching again to shared memory that somebody is removing"))?;
        let window = crate::fork::window();
        let surplus = self.again.set(Box::new(again));
        drop(window);
        // Another thread was first.
        drop(surplus);
        Ok(self.again.get().expect("somebody has set it"))
    }
}
