//! A bridge: descriptor, thread, and where a handle keeps them.
//!
//! # Safety
//!
//! * The thread writes to the descriptor by number, under a lock from which the number is taken before the descriptor is
//!   closed.
//! * In a forked child, the reference that the thread had to what it shares with the handle is dropped in its place, once,
//!   unless the thread had let go of it before the fork. It lets go inside the fork window, so it is known which.
#![allow(unsafe_code)]

use super::arming::{Arming, MORE, Watched, watch};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use shm_core::background;
use shm_core::fork::{ForkStamp, window};
use shm_core::sync::{AtomicBool, Ordering};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, OnceLock};

/// Where a handle keeps its bridge, if it ever was asked for one.
#[derive(Debug, Default)]
pub(crate) struct Slot(OnceLock<Box<Bridge>>);

impl Slot {
    /// The bridge of this process.
    fn here(&self) -> Option<&Bridge> {
        let bridge = self.0.get()?;
        if bridge.stamp.check().is_ok() { Some(bridge) } else { bridge.next.here() }
    }

    /// The descriptor, readable if an operation would not block now. Makes a bridge if there is none in this process; the
    /// caller has made sure that the queue is there.
    pub(crate) fn descriptor(
        &self,
        watched: impl FnOnce() -> Box<dyn Watched>,
    ) -> io::Result<BorrowedFd<'_>> {
        let bridge = match self.here() {
            Some(bridge) => bridge,
            None => self.build(watched)?,
        };
        bridge.glance();
        Ok(bridge.descriptor.as_fd())
    }

    #[cold]
    fn build(&self, watched: impl FnOnce() -> Box<dyn Watched>) -> io::Result<&Bridge> {
        // One at a time; and no child inherits a cell that is being filled.
        let _window = window();
        let mut slot = self;
        while let Some(bridge) = slot.0.get() {
            if bridge.stamp.check().is_ok() {
                // Another thread was first.
                return Ok(bridge);
            }
            slot = &bridge.next;
        }
        let bridge = Bridge::start(watched())?;
        Ok(slot.0.get_or_init(|| Box::new(bridge)))
    }

    /// An operation of the handle found nothing of what it `wanted`: the descriptor is not readable from here on, until that
    /// is there. Returns whether there is a bridge; if so the operation must try once more.
    #[inline]
    pub(crate) fn found_nothing(&self, wanted: u32) -> bool {
        // The usual case: one load.
        if self.0.get().is_none() {
            return false;
        }
        self.arm(wanted)
    }

    #[cold]
    fn arm(&self, wanted: u32) -> bool {
        let Some(bridge) = self.here() else {
            return false;
        };
        // Nothing to read: then it was not readable.
        let _ = rustix::io::read(&bridge.descriptor, &mut [0_u8; 8]);
        bridge.shared.arming.arm(wanted, &*bridge.shared.watched);
        true
    }
}

struct Bridge {
    descriptor: OwnedFd,
    shared: Arc<Shared>,
    stamp: ForkStamp,
    /// That of a forked child.
    next: Slot,
}

/// What the handle and the thread share.
struct Shared {
    arming: Arming,
    watched: Box<dyn Watched>,
    /// The descriptor, until it is closed.
    bell: Mutex<Option<RawFd>>,
    /// Whether the thread has let go of this.
    ended: AtomicBool,
}

/// The thread's reference.
struct Hold(Option<Arc<Shared>>);

impl Bridge {
    fn start(watched: Box<dyn Watched>) -> io::Result<Self> {
        let descriptor = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared {
            arming: Arming::new(MORE),
            watched,
            bell: Mutex::new(Some(descriptor.as_raw_fd())),
            ended: AtomicBool::new(false),
        });
        let hold = Hold(Some(Arc::clone(&shared)));
        background::spawn("queue-bridge", move || hold.run())?;
        Ok(Self { descriptor, shared, stamp: ForkStamp::now(), next: Slot::default() })
    }

    /// Looks in the thread's place, so that whoever polls now knows what is there now.
    fn glance(&self) {
        let wanted = self.shared.arming.wanted().unwrap_or(0);
        // At rest it may be that the thread has yet to write.
        if wanted == 0 || self.shared.watched.is_ready(wanted) {
            ring(self.descriptor.as_fd());
        }
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        if self.stamp.check().is_ok() {
            *self.shared.bell.lock() = None;
            self.shared.arming.stop(&*self.shared.watched);
        } else if !self.shared.ended.load(Ordering::Relaxed) {
            // SAFETY: in a forked child, where the thread is not: its reference was made and is nobody's. Relaxed: written
            // inside the fork window.
            unsafe { Arc::decrement_strong_count(Arc::as_ptr(&self.shared)) };
        }
    }
}

impl Hold {
    fn run(&self) {
        if let Some(shared) = &self.0 {
            watch(&shared.arming, &*shared.watched, || shared.ring());
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let _window = window();
        if let Some(shared) = self.0.take() {
            shared.ended.store(true, Ordering::Relaxed);
        }
    }
}

impl Shared {
    fn ring(&self) {
        let bell = self.bell.lock();
        if let Some(number) = *bell {
            // SAFETY: whoever closes it takes the number out first, which waits for this lock.
            ring(unsafe { BorrowedFd::borrow_raw(number) });
        }
    }
}

/// Makes an eventfd readable.
fn ring(descriptor: BorrowedFd<'_>) {
    // It cannot fail but by being as readable as can be.
    let _ = rustix::io::write(descriptor, &1_u64.to_ne_bytes());
}

impl fmt::Debug for Bridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bridge").field("arming", &self.shared.arming).finish_non_exhaustive()
    }
}
