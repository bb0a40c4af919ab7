//! The C library's locks, in memory shared by processes.
//!
//! # Safety
//!
//! Each lock is initialised by whoever creates its page, before the page goes anywhere, and is never moved. The number
//! beside it is reached only by the holder of the lock.
#![allow(unsafe_code)]

use super::{Counter, Permits, Readable, Survivor};
use crate::child::Result;
use crate::page::{InPage, Page};
use serde::{Deserialize, Serialize};
use std::cell::UnsafeCell;
use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// Which mutex.
pub trait Kind {
    const ROBUST: libc::c_int;
}

/// `PTHREAD_MUTEX_ROBUST`
pub struct Robust;

/// Just shared by processes.
pub struct Shared;

impl Kind for Robust {
    const ROBUST: libc::c_int = libc::PTHREAD_MUTEX_ROBUST;
}

impl Kind for Shared {
    const ROBUST: libc::c_int = libc::PTHREAD_MUTEX_STALLED;
}

/// A lock and what it guards.
#[repr(C)]
pub struct Guarded<L> {
    lock: UnsafeCell<L>,
    number: UnsafeCell<u64>,
}

// SAFETY: the C library's lock keeps two holders apart.
unsafe impl<L> Sync for Guarded<L> {}
// SAFETY: zeroes are numbers to both types of the C library, and `init` follows; shared by processes by attribute.
unsafe impl<L> InPage for Guarded<L> {}

/// What the C library returns.
fn check(code: libc::c_int) -> Result {
    match code {
        0 => Ok(()),
        code => Err(failed(code)),
    }
}

#[cold]
fn failed(code: libc::c_int) -> Box<dyn std::error::Error> {
    io::Error::from_raw_os_error(code).into()
}

/// A mutex.
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
pub struct Pthread<K>(Page<Guarded<libc::pthread_mutex_t>>, PhantomData<K>);

impl<K: Kind> Pthread<K> {
    /// Returns whether the last holder died.
    #[inline(always)]
    fn lock(&self) -> Result<bool> {
        // SAFETY: initialised in `create`.
        match unsafe { libc::pthread_mutex_lock(self.0.lock.get()) } {
            0 => Ok(false),
            libc::EOWNERDEAD => Ok(true),
            code => Err(failed(code)),
        }
    }

    #[inline(always)]
    fn unlock(&self) -> Result {
        // SAFETY: as above.
        check(unsafe { libc::pthread_mutex_unlock(self.0.lock.get()) })
    }
}

impl<K: Kind> Counter for Pthread<K> {
    fn create() -> Result<Self> {
        let page = Page::<Guarded<libc::pthread_mutex_t>>::new()?;
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: the attributes are initialised first; the lock is in its place and nobody's yet.
        unsafe {
            check(libc::pthread_mutexattr_init(attributes.as_mut_ptr()))?;
            check(libc::pthread_mutexattr_setpshared(
                attributes.as_mut_ptr(),
                libc::PTHREAD_PROCESS_SHARED,
            ))?;
            check(libc::pthread_mutexattr_setrobust(
                attributes.as_mut_ptr(),
                K::ROBUST,
            ))?;
            check(libc::pthread_mutex_init(page.lock.get(), attributes.as_ptr()))?;
        }
        Ok(Self(page, PhantomData))
    }

    #[inline(always)]
    fn with<R>(&self, f: impl FnOnce(&mut u64) -> R) -> Result<R> {
        if self.lock()? {
            return Err("nobody should have died here".into());
        }
        // SAFETY: the lock is held, and nothing else borrows the number.
        let result = f(unsafe { &mut *self.0.number.get() });
        self.unlock()?;
        Ok(result)
    }
}

impl Survivor for Pthread<Robust> {
    fn hold(&self) -> Result {
        self.lock().map(drop)
    }

    fn take_over(&self) -> Result<bool> {
        let died = self.lock()?;
        if died {
            // SAFETY: held, and its last holder died.
            check(unsafe { libc::pthread_mutex_consistent(self.0.lock.get()) })?;
        }
        self.unlock()?;
        Ok(died)
    }
}

/// A lock of many readers.
pub struct PthreadRwLock(Page<Guarded<libc::pthread_rwlock_t>>);

impl Readable for PthreadRwLock {
    fn create(value: u64) -> Result<Self> {
        let page = Page::<Guarded<libc::pthread_rwlock_t>>::new()?;
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: the attributes are initialised first; the lock is in its place and nobody's yet.
        unsafe {
            check(libc::pthread_rwlockattr_init(attributes.as_mut_ptr()))?;
            check(libc::pthread_rwlockattr_setpshared(
                attributes.as_mut_ptr(),
                libc::PTHREAD_PROCESS_SHARED,
            ))?;
            check(libc::pthread_rwlock_init(page.lock.get(), attributes.as_ptr()))?;
            *page.number.get() = value;
        }
        Ok(Self(page))
    }

    #[inline(always)]
    fn read(&self) -> Result<u64> {
        // SAFETY: initialised in `create`; the number is read while the lock is held for reading.
        unsafe {
            check(libc::pthread_rwlock_rdlock(self.0.lock.get()))?;
            let value = self.0.number.get().read();
            check(libc::pthread_rwlock_unlock(self.0.lock.get()))?;
            Ok(value)
        }
    }
}

/// Permits.
#[derive(Serialize, Deserialize)]
pub struct PthreadSemaphore(Page<Guarded<libc::sem_t>>);

impl PthreadSemaphore {
    #[inline(always)]
    pub fn wait(&self) -> Result {
        loop {
            // SAFETY: initialised in `create`.
            match unsafe { libc::sem_wait(self.0.lock.get()) } {
                0 => return Ok(()),
                _ => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error.into()),
                },
            }
        }
    }

    #[inline(always)]
    pub fn post(&self) -> Result {
        // SAFETY: as above.
        match unsafe { libc::sem_post(self.0.lock.get()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error().into()),
        }
    }
}

impl Permits for PthreadSemaphore {
    fn create(permits: u32) -> Result<Self> {
        let page = Page::<Guarded<libc::sem_t>>::new()?;
        // SAFETY: the semaphore is in its place and nobody's yet.
        match unsafe { libc::sem_init(page.lock.get(), 1, permits) } {
            0 => Ok(Self(page)),
            _ => Err(io::Error::last_os_error().into()),
        }
    }

    #[inline(always)]
    fn take_and_give(&self) -> Result {
        self.wait()?;
        self.post()
    }

    fn free(&self) -> Result<u32> {
        let mut free = 0;
        // SAFETY: initialised in `create`.
        unsafe { libc::sem_getvalue(self.0.lock.get(), &mut free) };
        Ok(u32::try_from(free)?)
    }
}

/// A barrier of two.
#[derive(Serialize, Deserialize)]
pub struct PthreadBarrier(Page<Guarded<libc::pthread_barrier_t>>);

impl PthreadBarrier {
    pub fn create() -> Result<Self> {
        let page = Page::<Guarded<libc::pthread_barrier_t>>::new()?;
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: the attributes are initialised first; the barrier is in its place and nobody's yet.
        unsafe {
            check(libc::pthread_barrierattr_init(attributes.as_mut_ptr()))?;
            check(libc::pthread_barrierattr_setpshared(
                attributes.as_mut_ptr(),
                libc::PTHREAD_PROCESS_SHARED,
            ))?;
            check(libc::pthread_barrier_init(
                page.lock.get(),
                attributes.as_ptr(),
                2,
            ))?;
        }
        Ok(Self(page))
    }

    pub fn wait(&self) -> Result {
        // SAFETY: initialised in `create`.
        match unsafe { libc::pthread_barrier_wait(self.0.lock.get()) } {
            libc::PTHREAD_BARRIER_SERIAL_THREAD => Ok(()),
            code => check(code),
        }
    }
}
