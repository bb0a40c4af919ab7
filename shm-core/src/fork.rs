//! Telling a forked process from its parent, and keeping `fork` out of the moments that it must not copy.
//!
//! A segment's death oracle is a lock that lives as long as a *mapping* (see [`crate::segment`]). A forked child
//! must not inherit it, or its parent would look alive for as long as the child lives. So mappings are excluded
//! from `fork` (`MADV_DONTFORK`), which has two consequences:
//!
//! * between opening the description that carries the lock and excluding the mapping, a fork would copy it.
//!   [`window`] is a process-wide lock around those moments; a `pthread_atfork` handler takes it before a fork;
//! * in the child the mapping is simply not there. Every operation asks first, one load of a page that the kernel zeroes
//!   in children (`MADV_WIPEONFORK`). A handle attaches again then
//!   ([`Segment::ensure`](crate::segment::Segment::ensure)); what was *held* at the fork (guards, leases) belongs to the
//!   parent: it carries a [`ForkStamp`] and returns [`Forked`] or panics with that word.
//!
//! Raw `clone` and `_Fork` skip the handlers, and a `vfork` child keeps a copy of the descriptor table until it
//! executes: there the lock may outlive its owner until that child has executed or ended. A child that is forked while
//! a handle is on its way ([`crate::segment::Segment::token`]) inherits the token's descriptor: the handle counts as
//! in flight until that child executes or ends.

#[cfg(not(any(loom, miri)))]
mod early;
#[cfg(loom)]
mod model;
#[cfg(not(loom))]
mod process;

#[cfg(loom)]
pub use model::ForkStamp;
#[cfg(not(loom))]
pub use process::ForkStamp;
#[cfg(not(loom))]
pub(crate) use process::{RenewableStamp, attachments, known_attachments, step_attachments};
#[cfg(not(loom))]
pub use process::{Window, is_first, window};

/// The process was forked after it had attached: the attachment stayed with the parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this process was forked after it had attached to the shared segment; the attachment belongs to its parent"
)]
pub struct Forked;
