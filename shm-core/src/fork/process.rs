//! The fork stamp, and the process-wide lock around moments that a fork must not copy; see [`crate::fork`].
#![allow(unsafe_code)]
//! # Safety
//!
//! The one invariant: the page behind `page` is mapped for ever, so a reference to it is `'static`.

use super::Forked;
use crate::segment::Leaving;
use crate::sync::{AtomicPtr, AtomicU64, Ordering};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::sync::OnceLock;
#[allow(
    clippy::disallowed_types,
    reason = "a std mutex is one futex word: safe to unlock in a forked child"
)]
use std::sync::{Mutex, MutexGuard};

/// The process in which something was attached; cheap to compare with the present one.
#[derive(Clone, Copy, Debug)]
pub struct ForkStamp {
    generation: u64,
}

impl ForkStamp {
    /// The present process. Two loads.
    ///
    /// # Panics
    ///
    /// On the first call of a process, if not even a page can be mapped or the kernel is older than 4.14.
    #[inline(always)]
    pub fn now() -> Self {
        match known_page().generation.load(Ordering::Relaxed) {
            0 => Self::first(),
            generation => Self { generation },
        }
    }

    /// Before the page is mapped, or in a new child.
    #[cold]
    fn first() -> Self {
        Self { generation: page().generation() }
    }

    /// Whether this is still the process of the stamp. Two loads; never blocks.
    ///
    /// # Errors
    ///
    /// [`Forked`] in a child that was forked after the stamp was taken.
    #[inline(always)]
    pub fn check(&self) -> Result<(), Forked> {
        // Relaxed: only fork changes it, and a fork orders everything.
        if known_page().generation.load(Ordering::Relaxed) == self.generation { Ok(()) } else { Err(Forked) }
    }
}

/// A stamp that can be renewed, for what attaches again in a forked child.
#[derive(Debug)]
pub(crate) struct RenewableStamp {
    page: &'static Page,
    generation: AtomicU64,
}

impl RenewableStamp {
    pub(crate) fn now() -> Self {
        let page = page();
        Self { page, generation: AtomicU64::new(page.generation()) }
    }

    #[inline(always)]
    pub(crate) fn check(&self) -> Result<(), Forked> {
        // SYNC attach-again: Acquire, so that a thread of the child that finds the stamp renewed sees the new attachment;
        // pairs with `renew`. The page: as in `ForkStamp::check`.
        let generation = self.generation.load(Ordering::Acquire);
        if self.page.generation.load(Ordering::Relaxed) == generation { Ok(()) } else { Err(Forked) }
    }

    /// From here on this is the process of the stamp.
    pub(crate) fn renew(&self) {
        // SYNC attach-again: Release, pairs with `check`.
        self.generation.store(self.page.generation(), Ordering::Release);
    }
}

/// The page that the kernel zeroes in a newly forked child.
#[derive(Debug)]
#[repr(C)]
struct Page {
    /// 0 in a new child, otherwise the number of the process.
    generation: AtomicU64,
    /// 0 in a new child, otherwise stepped whenever this process attaches to memory or detaches.
    attachments: AtomicU64,
}

/// Before the first stamp; never written.
static BLANK: Page = Page { generation: AtomicU64::new(0), attachments: AtomicU64::new(0) };
/// The page, once it is mapped.
static PAGE: AtomicPtr<Page> = AtomicPtr::new((&raw const BLANK).cast_mut());
/// The number of the process that maps the page; its children get others.
const FIRST: u64 = 1;
/// The last number given out; copied into children.
static LAST: AtomicU64 = AtomicU64::new(FIRST);
/// The attachment count that was last given out; copied into children.
static LAST_ATTACHMENTS: AtomicU64 = AtomicU64::new(1);

impl Page {
    /// The number of this process; a new child numbers itself.
    #[inline(always)]
    fn generation(&self) -> u64 {
        match self.generation.load(Ordering::Relaxed) {
            0 => self.number(),
            generation => generation,
        }
    }

    #[cold]
    fn number(&self) -> u64 {
        // Given out before it is used, so that a child of this process gets another. Of several threads that number the
        // process, the first decides.
        let next = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        match self.generation.compare_exchange(0, next, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => next,
            Err(first) => first,
        }
    }
}

/// The page, or zeroes as long as nobody has asked for it.
#[inline(always)]
fn known_page() -> &'static Page {
    // SAFETY: `BLANK` or a page that is mapped for ever.
    unsafe { &*PAGE.load(Ordering::Acquire) }
}

/// Whether everything that this process has attached to, it has attached to itself: it is the first one of its line that
/// attached to anything. `false` in a child that was forked from such a process. Two loads: may be asked in a signal handler.
#[inline]
pub fn is_first() -> bool {
    let page = known_page();
    std::ptr::eq(page, &raw const BLANK) || page.generation.load(Ordering::Relaxed) == FIRST
}

/// A number that changes whenever this process attaches or detaches, and is 0 in a new child and before the first
/// attachment: what was found out about addresses is valid while it stays. Two loads.
#[inline(always)]
pub(crate) fn attachments() -> u64 {
    // Relaxed: whoever learns of an attachment learns of the number, which was stepped before.
    known_page().attachments.load(Ordering::Relaxed)
}

/// As [`attachments`], but never 0: gives a new child a number of its own first.
pub(crate) fn known_attachments() -> u64 {
    if attachments() == 0 {
        let _window = window();
        step_attachments();
    }
    attachments()
}

/// Steps [`attachments`]. The caller holds the window.
pub(crate) fn step_attachments() {
    let next = LAST_ATTACHMENTS.fetch_add(1, Ordering::Relaxed) + 1;
    page().attachments.store(next, Ordering::Relaxed);
}

/// The page, mapped before `main` or at the first call.
fn page() -> &'static Page {
    match known_page() {
        page if std::ptr::eq(page, &BLANK) => first_page(),
        page => page,
    }
}

#[cold]
fn first_page() -> &'static Page {
    let page =
        map_page().expect("Linux 4.14 and later have pages that are wiped on fork, and one can be mapped");
    let blank = (&raw const BLANK).cast_mut();
    match PAGE.compare_exchange(blank, page, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {}
        // Another thread was first.
        // SAFETY: mapped just now, and nobody else knows of it.
        Err(_) => drop(unsafe { rustix::mm::munmap(page.cast(), PAGE_LEN) }),
    }
    known_page()
}

const PAGE_LEN: usize = 4096;

/// A page for one process, whose generation is 1.
fn map_page() -> rustix::io::Result<*mut Page> {
    let (flags, rights) = (MapFlags::PRIVATE, ProtFlags::READ | ProtFlags::WRITE);
    // SAFETY: a new anonymous mapping, at an address of the kernel's choice.
    let base = unsafe { mmap_anonymous(std::ptr::null_mut(), PAGE_LEN, rights, flags) }?;
    // SAFETY: the page mapped above.
    if let Err(error) = unsafe { madvise(base, PAGE_LEN, Advice::LinuxWipeOnFork) } {
        // SAFETY: as above, and nobody knows of it.
        let _ = unsafe { rustix::mm::munmap(base, PAGE_LEN) };
        return Err(error);
    }
    // SAFETY: freshly mapped and zero, page-aligned.
    unsafe { &*base.cast::<Page>() }.generation.store(FIRST, Ordering::Relaxed);
    Ok(base.cast())
}

#[allow(clippy::disallowed_types, reason = "see the import")]
static WINDOW: Mutex<()> = Mutex::new(());

/// What a thread holds of the window.
#[derive(Default)]
struct Held {
    depth: usize,
    #[allow(clippy::disallowed_types, reason = "see the import")]
    guard: Option<MutexGuard<'static, ()>>,
    /// What the fork that this thread is executing does to the attachments.
    leaving: Option<Leaving>,
}

thread_local! {
    /// Without a destructor, so that it is there until the thread has ended.
    static HELD: ManuallyDrop<RefCell<Held>> =
        const { ManuallyDrop::new(RefCell::new(Held { depth: 0, guard: None, leaving: None })) };
}

/// Keeps `fork` away until it is dropped; see [`window`].
#[derive(Debug)]
#[must_use = "a fork may come as soon as it is dropped"]
pub struct Window(std::marker::PhantomData<*mut ()>);

impl Drop for Window {
    fn drop(&mut self) {
        leave_window();
    }
}

/// Waits until no thread of this process is in such a moment, and keeps `fork` away until the guard is dropped. A thread
/// that holds it may enter again.
///
/// For what a forked child must find whole: tables of this process that are locked only inside of it are never
/// inherited locked. Hold it for system calls at most. Blocks for other holders and for a fork in progress.
///
/// # Across processes
///
/// The handlers are registered before `main`. Not so in a library that is loaded while the program runs (`dlopen`): a
/// `fork` of another thread that is in progress meanwhile does not know them yet, and its child must not use this crate.
pub fn window() -> Window {
    register().expect("pthread_atfork fails only without memory");
    enter_window();
    Window(std::marker::PhantomData)
}

/// Maps the page and registers the handlers, if that is still to be done.
#[cfg(not(miri))]
pub(super) fn prepare() -> Result<(), i32> {
    if std::ptr::eq(known_page(), &BLANK) {
        let page = map_page().map_err(|error| error.raw_os_error())?;
        PAGE.store(page, Ordering::Release);
    }
    register()
}

/// Registers the handlers once. Fails with the number of the system's error.
fn register() -> Result<(), i32> {
    static REGISTERED: OnceLock<Result<(), i32>> = OnceLock::new();
    *REGISTERED.get_or_init(|| {
        // SAFETY: the handlers are functions of this image, which is never unloaded while it runs. In the child they
        // make system calls and unlock a futex mutex.
        match unsafe { libc::pthread_atfork(Some(before_fork), Some(in_parent), Some(in_child)) } {
            0 => Ok(()),
            error => Err(error),
        }
    })
}

fn enter_window() {
    // A thread that is being torn down goes without the protection rather than not at all.
    let outer = HELD.try_with(|held| {
        let mut held = held.borrow_mut();
        held.depth += 1;
        held.depth == 1
    });
    if outer == Ok(true) {
        let guard = WINDOW.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let _ = HELD.try_with(|held| held.borrow_mut().guard = Some(guard));
    }
}

fn leave_window() {
    let guard = HELD.try_with(|held| {
        let mut held = held.borrow_mut();
        held.depth = held.depth.saturating_sub(1);
        if held.depth == 0 { held.guard.take() } else { None }
    });
    // Unlocked after the borrow.
    drop(guard);
}

extern "C" fn before_fork() {
    enter_window();
    // The window is left in the handlers behind the fork.
    let window = ManuallyDrop::new(Window(std::marker::PhantomData));
    let _ = HELD.try_with(|held| {
        let leaving = Leaving::prepare(&window);
        held.borrow_mut().leaving = Some(leaving);
    });
}

extern "C" fn in_parent() {
    let leaving = HELD.try_with(|held| held.borrow_mut().leaving.take()).ok().flatten();
    if let Some(leaving) = &leaving {
        leaving.in_parent();
    }
    leave_window();
    // Outside of the window: it may hold the last handle of a segment.
    drop(leaving);
}

extern "C" fn in_child() {
    let leaving = HELD.try_with(|held| held.borrow_mut().leaving.take()).ok().flatten();
    if let Some(leaving) = &leaving {
        leaving.in_child();
    }
    leave_window();
    drop(leaving);
}
