//! Ends that can be polled: a descriptor that is readable whenever an operation would not block.
//!
//! Queues have no descriptor to wait on: whoever makes them ready writes to memory, and wakes a futex only if somebody
//! sleeps. So a *bridge* sleeps on behalf of an end that shall be polled, and makes an eventfd readable. It is made by the
//! first [`as_fd`](std::os::fd::AsFd::as_fd) of a handle; until then a handle pays one load and one branch when it finds
//! nothing, and nothing when it finds something.
//!
//! A bridge belongs to one handle. It is a thread, which sleeps on the handle's line like whoever waits there for messages or
//! room (see `shm_core::wait`). It takes nothing and counts as nobody: it holds the attachment only. (Of an at-least-once queue it sweeps up after
//! the dead, because otherwise nobody may be there to bring back what they had on lease.)
//! One thread for all handles of a process would have to sleep on many lines at once; `futex_waitv` takes 128 words, and is
//! younger than the kernels that this crate runs on.
//!
//! # States
//!
//! One word per bridge, private to the process: what somebody found missing since the descriptor was made readable.
//!
//! ```text
//! 0          at rest: the descriptor is readable, the thread sleeps until it is armed
//! MORE       armed: wants messages, or room for one         the thread sleeps on the line
//! CHUNKS     armed: a sender wants chunks of memory          and looks whenever it wakes up
//! STOPPED    the handle is gone: the thread ends
//! ```
//!
//! # Protocol
//!
//! ```text
//! an end that found nothing:   drain the descriptor;  word |= what is missing;  (was 0: wake the thread);  try once more
//! bridge:   sleep while word == 0;
//!           sleep on the line until what is wanted is there;
//!           word = 0;  make the descriptor readable;  wake the next sleeper of the line
//! ```
//!
//! Whoever drains arms, and whoever is armed looks before it sleeps, so something that came between the miss and the sleep
//! is found. What a bridge sees, it tells everybody who polls the descriptor: several threads may, and all but one of
//! them may find nothing. To try once more is for chunks: a bridge cannot tell whether *enough* are free, so it reports
//! that some were freed since it reported last, and what was freed before the arming must be found by the end itself.
//!
//! The bridge may have used up a wake-up that was meant for somebody who would have taken the message. So it wakes the next
//! sleeper, always: that one finds the message and takes it, or finds nothing and sleeps again.
//!
//! # The scary race
//!
//! Were the descriptor made readable first and the word cleared afterwards, an end could drain and arm in between: its arming
//! would be erased, the descriptor would not be readable, and the thread would rest for ever. In the order above an end that
//! drains in between (before the write) leaves a descriptor that is readable for nothing, and the next miss drains it.
//! Drained before armed, for the same reason: an arming may be answered at once, and the answer must not be drained.
//! `tests/loom/pollable.rs` explores the thread's code, with each order reversed as a control.
//!
//! # If a process dies
//!
//! Everything here is a descriptor, a thread and private memory. A bridge that dies with the wake-up of somebody else in its
//! hand is a woken sleeper that dies: it costs one time slice. A bridge looks at its peers in every slice, as all sleepers:
//! when no living process holds the other side, or the owner of what stands in the way is dead, the descriptor becomes
//! readable, and the operation that follows says so, or repairs.
//!
//! # Fork
//!
//! A child has no such thread, and its copy of the eventfd is its parent's too. So a bridge works in its own process only;
//! the next `as_fd` in the child makes another one. What the thread held of the attachment at the fork is nobody's in the
//! child: the drop of the child's handle lets go of it.

pub mod arming;
#[cfg(not(loom))]
mod bridge;
#[cfg(not(loom))]
mod observer;

#[cfg(not(loom))]
pub(crate) use arming::{CHUNKS, MORE};
#[cfg(not(loom))]
pub(crate) use bridge::Slot;
#[cfg(not(loom))]
pub(crate) use observer::{Observer, SpscWatch, Watch};

/// What an end with the methods `descriptor` and `lasting_descriptor` has for whoever polls it: `Name<parameters>: when`. The
/// doc comment in front is the example.
#[cfg(not(loom))]
macro_rules! pollable {
    ($(#[$example:meta])+ $name:ident $(<$($parameter:ident),*>)?: $when:literal) => {
        impl$(<$($parameter),*>)? $name$(<$($parameter),*>)? {
            #[doc = concat!("The descriptor of this handle for `poll`, `epoll` and async runtimes: readable when ", $when, ".")]
            ///
            /// Poll for *reading*, on either side of a queue. The first call makes an eventfd and starts a thread, which watches
            /// the queue while the descriptor is not readable, asleep until there is something to see; both go with the handle.
            /// Clones have their own.
            ///
            /// * It becomes readable soon after the queue is ready (some 50 microseconds), and within about 100 ms after the last
            ///   peer was killed. This call looks too: directly behind it, `poll` is up to date.
            /// * It may be readable for nothing, so go on with a `try_` operation.
            /// * It *stays* readable until an operation finds nothing. With edge-triggered polling (`EPOLLET`, tokio) go on until
            ///   one does. `len` and its like are no operations.
            /// * Neither read from it nor write to it.
            ///
            /// # Errors
            ///
            /// There is no room for a descriptor or a thread; the process was forked and cannot attach. The next call tries
            /// again. `as_fd`, which cannot fail, lends the descriptor of the queue's memory instead: for `poll` it is always
            /// readable, so that whoever polls is busy rather than stuck; `epoll` refuses it (`EPERM`).
            ///
            /// # If the peer dies
            ///
            /// The descriptor becomes readable when no living process holds the other side, and stays so.
            ///
            /// # Across processes
            ///
            /// A descriptor is good in the process that asked for it. A handle that was sent, or copied by a fork, makes a new
            /// one there; an epoll instance that a child inherits goes on to watch its parent's.
            ///
            /// # Examples
            ///
            $(#[$example])+
            pub fn try_as_fd(&self) -> std::io::Result<std::os::fd::BorrowedFd<'_>> {
                self.end.descriptor()
            }
        }

        impl$(<$($parameter),*>)? std::os::fd::AsFd for $name$(<$($parameter),*>)? {
            #[doc = concat!("As [`", stringify!($name), "::try_as_fd`], which says what there is to know.")]
            fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
                self.end.descriptor().unwrap_or_else(|_| self.end.lasting_descriptor())
            }
        }

        impl$(<$($parameter),*>)? std::os::fd::AsRawFd for $name$(<$($parameter),*>)? {
            #[doc = concat!("As [`", stringify!($name), "::try_as_fd`], which says what there is to know.")]
            fn as_raw_fd(&self) -> std::os::fd::RawFd {
                std::os::fd::AsFd::as_fd(self).as_raw_fd()
            }
        }
    };
}

#[cfg(not(loom))]
pub(crate) use pollable;
