//! Segments with a name, for processes that are not related.
//!
//! The file is made and named as [`crate::named`] tells: what has its name is whole, magic included, so whoever attaches
//! never waits for a creator. Participants hold the file by their indices, which are locks as well: the name goes
//! when the last one detaches, and a scavenger removes it when the last one was killed.
//!
//! A file with a name cannot be sealed. Whoever may write it may truncate it, and then touching it is a `SIGBUS` for
//! everybody: a named segment trusts the processes of its user that far. That is why [`Segment::attach`], which takes
//! descriptors from anywhere, refuses it, and why files of other users are not opened, not even by root.

use super::{Segment, Spec};
use crate::error::{Kind, SegmentError};
use crate::named::{self, NamedMemory};
use crate::sys::files;
use crate::sys::names::{self, Facts};
use std::ptr::NonNull;
use std::sync::Arc;

impl Segment {
    /// As [`Segment::create`], in a file with a name, which any process of this user can [open](Segment::open_named).
    ///
    /// # Errors
    ///
    /// As [`Segment::create`] and [`NamedMemory::create`].
    ///
    /// # If the peer dies
    ///
    /// If the creator dies, there is the whole segment or none with this name.
    ///
    /// # Examples
    ///
    /// ```
    /// use shm_core::segment::{Segment, Spec};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let name = format!("shm-core-doc-{}", std::process::id());
    /// let spec = Spec { kind: 7, layout_hash: 1, body_len: 4096, sweep: |_, _| true, arrived: |_| () };
    /// let segment = Segment::create_named(&name, &spec, |_body| {})?;
    /// let same = Segment::open_named(&name, &spec)?;
    /// assert_eq!(segment.name(), Some(name.as_str()));
    /// assert_eq!(segment.participant(), same.participant());   // one process, one participant
    /// # Ok(()) }
    /// ```
    pub fn create_named(
        name: &str,
        spec: &Spec,
        init: impl FnOnce(NonNull<u8>),
    ) -> Result<Arc<Self>, SegmentError> {
        crate::sync::register_asymmetric_fence();
        named::check_name(name)?;
        if spec.body_len == 0 {
            return Err(Kind::Empty.into());
        }
        let file_len = spec.file_len();
        let mut memory = NamedMemory::under_first_name(usize::try_from(file_len).unwrap_or(usize::MAX))?;
        let own = files::reopen(memory.descriptor())
            .map_err(SegmentError::system("opening a segment through /proc"))?;
        let mut segment = Self::make(own, file_len, spec, init)?;
        memory.publish(name)?;
        segment.name = Some(memory.into_name());
        Ok(segment.publish())
    }

    /// Attaches to the segment that has this name, or shares this process's attachment if there is one.
    ///
    /// # Errors
    ///
    /// As [`Segment::attach`] and [`NamedMemory::open`]; `is_foreign` if the file belongs to another user.
    pub fn open_named(name: &str, spec: &Spec) -> Result<Arc<Self>, SegmentError> {
        // Holds it until the participant's lock does.
        let memory = NamedMemory::open(name)?;
        let facts =
            Facts::of(memory.descriptor()).map_err(SegmentError::system("looking at shared memory"))?;
        if !facts.own {
            let me = rustix::process::geteuid().as_raw();
            return Err(SegmentError::foreign("its user", facts.user.into(), me.into()));
        }
        Self::attach_file(memory.descriptor(), memory.len() as u64, spec, Some(memory.copy_name()))
    }

    /// The name, whether or not it leads here still.
    pub fn name(&self) -> Option<&str> {
        self.name.as_ref().map(|name| name.name.as_str())
    }

    /// Takes the name away now. Those who are attached stay so, and the name is free for another.
    ///
    /// # Errors
    ///
    /// `is_not_found` if there is no name, it is gone, or leads to something else by now.
    pub fn unlink(&self) -> Result<(), SegmentError> {
        match &self.name {
            Some(name) => named::remove(&name.name, name.id),
            None => Err(Kind::NotFound { name: String::new() }.into()),
        }
    }

    /// Keeps a name when the last participant detaches or dies: until somebody unlinks it, or the machine is restarted. For
    /// all participants; cannot be taken back. Nothing happens if there is no name.
    ///
    /// # Errors
    ///
    /// The system's: the file belongs to another user.
    pub fn persist(&self) -> Result<(), SegmentError> {
        match &self.name {
            Some(_) => {
                names::unmark(self.descriptor()).map_err(SegmentError::system("making a segment persist"))
            }
            None => Ok(()),
        }
    }
}
