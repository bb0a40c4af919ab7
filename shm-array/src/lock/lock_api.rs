//! The robust lock for code that is generic over the locks of the `lock_api` crate.
//!
//! ```
//! use shm_array::lock_api::Mutex;
//!
//! let counter = Mutex::new(0);
//! *counter.lock() += 1;
//! assert_eq!(counter.into_inner(), 1);
//! ```
//!
//! `lock_api` knows no locks that can fail. So where [`shm_array::Mutex`](crate::Mutex) returns an error, this one
//! panics, and says why.
//!
//! # If the peer dies
//!
//! If a process was killed while it held the lock, the data may be half changed, and nobody gets it as if nothing had
//! happened: the next call that would have taken the lock, a `try_lock` too, panics, and so does every call after it, in all
//! processes. To go on, one of them takes the lock with [`RawMutex::recover`], repairs the data and unlocks:
//!
//! ```
//! # use shm_array::lock_api::Mutex;
//! fn repair(account: &Mutex<u64>, balance: u64) {
//!     // SAFETY: `recover` is no unlock.
//!     if unsafe { account.raw() }.recover() {
//!         // SAFETY: `recover` has taken the lock, for this one guard.
//!         let mut guard = unsafe { account.make_guard_unchecked() };
//!         *guard = balance;
//!     }
//! }
//! # let account = Mutex::new(1);
//! # repair(&account, 2);       // nothing is wrong with it
//! # assert_eq!(*account.lock(), 1);
//! ```
//!
//! As with all locks of `lock_api`, a panic under the lock unlocks it and leaves no trace.
//!
//! # Across processes
//!
//! [`RawMutex`] may live in shared memory. `lock_api::Mutex` promises no layout: put a [`RawMutex`] and the data into a
//! `repr(C)` struct of your own there.
#![allow(unsafe_code)]
//! # Safety
//!
//! The lock excludes, as `lock_api` demands: it is the one of [`shm_array::Mutex`](crate::Mutex).

use super::raw::{Data, Held, RawLock, Refused};
use ::lock_api::GuardNoSend;
use shm_core::ShmSafe;
use shm_core::portable::layout_of;
use std::time::{Duration, Instant};

/// A robust mutex that panics where [`shm_array::Mutex`](crate::Mutex) returns an error.
pub type Mutex<T> = ::lock_api::Mutex<RawMutex, T>;
/// The guard of [`Mutex`].
pub type MutexGuard<'a, T> = ::lock_api::MutexGuard<'a, RawMutex, T>;

/// The robust lock without data, for the crate `lock_api`.
///
/// # Panics
///
/// The calls that take the lock, if a process died while it held the lock and nobody has [recovered](RawMutex::recover)
/// it, and in a forked child that could not attach to the memory again. See the [module](self).
#[derive(Debug)]
#[repr(transparent)]
pub struct RawMutex(RawLock);

// SAFETY: one atomic word, without an address or a destructor.
unsafe impl ShmSafe for RawMutex {
    const LAYOUT: u64 = layout_of::<Self>("shm_array::lock_api::RawMutex");
}

impl RawMutex {
    /// Takes a lock whose holder died, so that the data can be repaired. Returns whether it did: not if the lock is in
    /// order, or somebody else was faster. Never blocks.
    ///
    /// Whoever got `true` holds the lock, and unlocks it when the data is good.
    ///
    /// # If the peer dies
    ///
    /// If it dies before it unlocks, all is as it was before.
    pub fn recover(&self) -> bool {
        // If nobody has noticed the death yet, this call takes over.
        match self.0.try_lock() {
            Ok(held) if held.data() == Data::OwnerDied => true,
            Ok(held) => {
                self.0.unlock(&held);
                false
            }
            Err(_) => self.0.renew().is_ok(),
        }
    }

    #[inline(always)]
    fn taken(&self, taken: Result<Held, Refused>) -> bool {
        match taken {
            Ok(held) if held.data() != Data::OwnerDied => true,
            Err(Refused::WouldBlock | Refused::TimedOut) => false,
            refused => self.fail(refused),
        }
    }

    #[cold]
    fn fail(&self, refused: Result<Held, Refused>) -> ! {
        match refused {
            Ok(held) => {
                // Out of use: nobody takes it as if nothing had happened.
                self.0.unlock(&held);
                panic!(
                    "the process that held this lock died, and the data may be half changed: \
                     take the lock with RawMutex::recover, repair the data and unlock"
                );
            }
            Err(Refused::Unrecoverable) => panic!(
                "a process died while it held this lock, and nobody has repaired the data: \
                 take the lock with RawMutex::recover, repair the data and unlock"
            ),
            Err(_) => panic!("this process was forked and could not attach to the lock's memory again"),
        }
    }
}

// SAFETY: between a call that returned `true` (or `lock`) and `unlock` no other call returns so: the word names the holder.
unsafe impl ::lock_api::RawMutex for RawMutex {
    #[allow(clippy::declare_interior_mutable_const, reason = "a value to start from, as lock_api has it")]
    const INIT: Self = Self(RawLock::new());
    type GuardMarker = GuardNoSend;

    #[inline]
    fn lock(&self) {
        self.taken(self.0.lock(None));
    }

    #[inline]
    fn try_lock(&self) -> bool {
        self.taken(self.0.try_lock())
    }

    #[inline]
    unsafe fn unlock(&self) {
        self.0.unlock_here();
    }

    fn is_locked(&self) -> bool {
        self.0.is_locked()
    }
}

// SAFETY: as above.
unsafe impl ::lock_api::RawMutexTimed for RawMutex {
    type Duration = Duration;
    type Instant = Instant;

    fn try_lock_for(&self, timeout: Duration) -> bool {
        // What the clock cannot express is for ever.
        self.taken(self.0.lock(Instant::now().checked_add(timeout)))
    }

    fn try_lock_until(&self, deadline: Instant) -> bool {
        self.taken(self.0.lock(Some(deadline)))
    }
}
