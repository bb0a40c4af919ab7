//! The fork stamp, and the process-wide lock around moments that a fork must not copy; see [`crate::fork`].
#![allow(unsafe_code)]
//! # Safety
//!
//! The one invariant: the page behind `page` is mapped for ever, so a reference to it is `'static`.

use super::Forked;
use crate::sync::{AtomicU64, Ordering};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
use std::cell::RefCell;
use std::sync::OnceLock;
#[allow(
    clippy::disallowed_types,
    reason = "a std mutex is one futex word: safe to unlock in a forked child"
)]
use std::sync::{Mutex, MutexGuard};

/// The process in which something was attached; cheap to compare with the present one.
#[derive(Clone, Copy, Debug)]
pub struct ForkStamp {
    page: &'static AtomicU64,
    generation: u64,
}

impl ForkStamp {
    /// The present process.
    ///
    /// # Panics
    ///
    /// On the first call of a process, if not even a page can be mapped or the kernel is older than 4.14.
    pub fn now() -> Self {
        let page = page();
        let mut generation = page.load(Ordering::Relaxed);
        if generation == 0 {
            // A child: number it after its parent. Of several threads that do, the first decides.
            let next = LAST.load(Ordering::Relaxed) + 1;
            generation = match page.compare_exchange(0, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => next,
                Err(first) => first,
            };
        }
        // Before the stamp is out, so that a child of this process gets another number.
        LAST.fetch_max(generation, Ordering::Relaxed);
        Self { page, generation }
    }

    /// Whether this is still the process of the stamp. One load; never blocks.
    ///
    /// # Errors
    ///
    /// [`Forked`] in a child that was forked after the stamp was taken.
    #[inline(always)]
    pub fn check(&self) -> Result<(), Forked> {
        // Relaxed: only fork changes it, and a fork orders everything.
        if self.page.load(Ordering::Relaxed) == self.generation { Ok(()) } else { Err(Forked) }
    }
}

/// The generation of the process that last took a stamp; copied into children.
static LAST: AtomicU64 = AtomicU64::new(1);

/// A word that reads 0 in a newly forked child, and otherwise the generation of the process.
fn page() -> &'static AtomicU64 {
    static PAGE: OnceLock<usize> = OnceLock::new();
    let address = *PAGE.get_or_init(|| {
        let (flags, rights) = (MapFlags::PRIVATE, ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: a new anonymous mapping, at an address of the kernel's choice; never unmapped.
        let base = unsafe { mmap_anonymous(std::ptr::null_mut(), 4096, rights, flags) };
        let base = base.expect("one anonymous page can be mapped");
        // SAFETY: the page mapped above.
        unsafe { madvise(base, 4096, Advice::LinuxWipeOnFork) }
            .expect("Linux 4.14 and later wipe pages on fork");
        let address = base.expose_provenance();
        // SAFETY: freshly mapped, page-aligned, never unmapped.
        unsafe { &*std::ptr::with_exposed_provenance::<AtomicU64>(address) }.store(1, Ordering::Relaxed);
        address
    });
    // SAFETY: mapped for ever, aligned, accessed as an atomic only.
    unsafe { &*std::ptr::with_exposed_provenance::<AtomicU64>(address) }
}

#[allow(clippy::disallowed_types, reason = "see the import")]
static WINDOW: Mutex<()> = Mutex::new(());

thread_local! {
    /// The window, held by the forking thread over the fork.
    #[allow(clippy::disallowed_types, reason = "see the import")]
    static HELD: RefCell<Option<MutexGuard<'static, ()>>> = const { RefCell::new(None) };
}

/// Takes the lock that keeps `fork` away until the guard is dropped. Hold it for system calls only.
#[allow(clippy::disallowed_types, reason = "see the import")]
pub(crate) fn window() -> MutexGuard<'static, ()> {
    static REGISTERED: OnceLock<()> = OnceLock::new();
    REGISTERED.get_or_init(|| {
        // SAFETY: the handlers are functions of this image, which is never unloaded while it runs; they only
        // lock and unlock a futex mutex, which is allowed on both sides of a fork.
        let result = unsafe { libc::pthread_atfork(Some(before_fork), Some(after_fork), Some(after_fork)) };
        assert_eq!(result, 0, "pthread_atfork fails only without memory");
    });
    WINDOW.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

extern "C" fn before_fork() {
    let guard = WINDOW.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // A thread that is being torn down forks without the protection rather than not at all.
    let _ = HELD.try_with(|held| *held.borrow_mut() = Some(guard));
}

extern "C" fn after_fork() {
    let _ = HELD.try_with(|held| held.borrow_mut().take());
}
