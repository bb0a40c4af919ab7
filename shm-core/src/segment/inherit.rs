//! What a fork does to attachments.
//!
//! A mapping is not inherited, because the lock that proves its owner alive must not be. But handles are: a forked child
//! has copies of every queue end and every shared value, and they work there too. In steps:
//!
//! 1. *prepare*, in the parent: for each segment and each lane with handles of this process a token (as for a handle that
//!    is sent), which the child inherits. So nothing that the child has a handle of looks let go of, whatever the parent
//!    does next;
//! 2. in the parent: the tokens are closed;
//! 3. in the child: the addresses of the mappings are reserved, nothing more. A child that executes another program, or
//!    never uses a handle, pays one system call for each;
//! 4. the first use of a handle in the child ([`Segment::ensure`]): attach with an index of its own, at the *same
//!    address*; count the handles that it inherited (`Spec::arrived`); close the tokens.
//!
//! # If a process dies at each step
//!
//! The kernel keeps a token exactly as long as one of the two processes has it. A child that dies before 4 ends is
//! attached and unlocked at worst, as any other (see [`crate::segment`]).
//!
//! # Forks that skip the handlers
//!
//! Raw `clone` and `_Fork`: there are no tokens and no reservation, so attaching again is refused with
//! [`Forked`](crate::fork::Forked), and what the child maps at the old addresses has nothing to do with the segment.

use super::{LANES, Segment, attached};
use crate::error::SegmentError;
use crate::fork::{self, Forked, Window};
use crate::sync::Ordering;
use crate::sys::files;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// What keeps a child's handles from looking let go of until the child has attached.
#[derive(Debug)]
pub(super) struct Inherited {
    /// With their lanes.
    tokens: Vec<(u32, OwnedFd)>,
}

/// The attachments of a process that is forking.
pub(crate) struct Leaving(Vec<Arc<Segment>>);

impl Leaving {
    /// Step 1. The caller holds the window, until after step 2 or 3.
    pub(crate) fn prepare(window: &Window) -> Self {
        let mut segments = attached::all(window);
        // A child that has not attached again hands on what it inherited itself, as it is.
        segments.retain(|segment| segment.check().is_ok());
        for segment in &segments {
            let held = (0..LANES).filter(|&lane| segment.held(lane) > 0);
            let tokens: Result<Vec<_>, SegmentError> =
                held.map(|lane| Ok((lane, segment.token(lane)?))).collect();
            // Without descriptors the child cannot be protected, and will be refused.
            *segment.inherited.lock() = tokens.ok().map(|tokens| Inherited { tokens });
        }
        Self(segments)
    }

    /// Step 2.
    pub(crate) fn in_parent(&self) {
        for segment in &self.0 {
            *segment.inherited.lock() = None;
        }
    }

    /// Step 3.
    pub(crate) fn in_child(&self) {
        for segment in &self.0 {
            segment.mapping.reserve();
        }
    }
}

impl Segment {
    /// Makes sure that the segment can be used in this process: in a forked child it attaches again, with a participant
    /// index of its own and at the same address.
    ///
    /// One load if there is nothing to do. References into the body that a child has from before the fork must not be
    /// used before it was called.
    ///
    /// # Errors
    ///
    /// `is_forked` if the fork skipped the handlers of `pthread_atfork`, or the parent was out of descriptors then;
    /// otherwise as [`Segment::attach`].
    #[inline(always)]
    pub fn ensure(&self) -> Result<(), SegmentError> {
        if self.check().is_ok() { Ok(()) } else { self.attach_again() }
    }

    /// In a child that has not attached again: it has no handle of the lane any more.
    #[cold]
    pub(super) fn let_go(&self, lane: u32) {
        let _window = fork::window();
        if let Some(inherited) = &mut *self.inherited.lock() {
            inherited.tokens.retain(|(kept, _)| *kept != lane);
        }
    }

    /// Step 4.
    #[cold]
    fn attach_again(&self) -> Result<(), SegmentError> {
        let _window = fork::window();
        if self.check().is_ok() {
            // Another thread was first.
            return Ok(());
        }
        // Taken out, so that it is not locked while the callbacks run: they may let go of handles.
        let mut inherited = self.inherited.lock().take().ok_or(Forked)?;
        let result = self.attach_inherited();
        if result.is_err() {
            inherited.tokens.retain(|(lane, _)| self.held(*lane) > 0);
            *self.inherited.lock() = Some(inherited);
            return result;
        }
        drop(inherited);
        self.mapping.renew();
        fork::step_attachments();
        Ok(())
    }

    /// Maps, takes an index and counts. On an error the place is reserved as before.
    fn attach_inherited(&self) -> Result<(), SegmentError> {
        crate::sync::register_asymmetric_fence();
        let own = files::reopen(self.descriptor())
            .map_err(SegmentError::system("opening a segment through /proc"))?;
        self.mapping.map_again(own.as_fd())?;
        let claimed = self.registry().claim(own.as_fd(), |dead| (self.sweep)(self, dead));
        let owner = claimed.inspect_err(|_| self.mapping.unmap_again())?;
        // Relaxed: the mapping's `renew` publishes it.
        self.owner.store(owner.bits(), Ordering::Relaxed);
        crate::crash_point!("segment.inherit.attached");
        (self.arrived)(self);
        crate::crash_point!("segment.inherit.arrived");
        Ok(())
    }
}
