//! Plain shared memory: an anonymous file, mapped. No header, no participants.
//!
//! [`crate::segment`] is built on it; alone it serves where one process hands out the space and the others only
//! follow its offsets. The file is sparse: [`SharedMapping::commit`] puts memory behind a range before its first
//! use, so that running out of memory is an error there and not a `SIGBUS` at the first touch.
#![allow(unsafe_code)]
//! # Safety
//!
//! The mapping stays until the value is dropped in the process that made it, and the file cannot shrink (it is
//! sealed), so every byte of it stays addressable. Nothing here dereferences it, but for atomics that change nothing.

use crate::error::{Kind, SegmentError};
use crate::fork::{Forked, RenewableStamp};
use crate::sync::{AtomicBool, Ordering};
use crate::sys::files;
use memmap2::{Advice, MmapRaw};
use rustix::fs::SealFlags;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

/// The page size that offsets and lengths of [`SharedMapping::commit`] are rounded to.
pub const PAGE: u64 = 4096;
/// The longest mapping, in bytes (64 TiB: half of the address space).
pub const MAX_LEN: u64 = 1 << 46;
/// Below this a missing page is the system's business; above it, `create` compares with the memory left.
const CHECKED_FROM: u64 = 1 << 20;

/// A shared mapping of this process. Freed with the last process that maps it or holds its descriptor.
///
/// # Across processes
///
/// Not inherited by `fork`: in the child every use must be preceded by [`SharedMapping::check`].
#[derive(Debug)]
pub struct SharedMapping {
    map: ManuallyDrop<MmapRaw>,
    /// Kept to pass the memory on and to commit; never locked through.
    descriptor: OwnedFd,
    stamp: RenewableStamp,
    /// In a forked child that has not mapped again: whether the place of the mapping is kept free.
    reserved: AtomicBool,
}

impl SharedMapping {
    /// Creates `len` zero bytes, the first `committed` of them with memory behind them.
    ///
    /// # Errors
    ///
    /// `is_too_large`, `is_out_of_memory`, or the system's error. Inside a tight control group the system may
    /// still kill instead of refusing.
    pub fn create(name: &str, len: u64, committed: u64) -> Result<Self, SegmentError> {
        let descriptor = create_file(name, len, committed)?;
        let _window = crate::fork::window();
        Self::map(descriptor.as_fd(), len).map(|map| Self::from_parts(map, descriptor))
    }

    /// Maps what another process created.
    ///
    /// # Errors
    ///
    /// `is_foreign` if it is not memory of at least `min_len` bytes that is sealed against shrinking.
    pub fn attach(descriptor: OwnedFd, min_len: u64) -> Result<Self, SegmentError> {
        let len = checked_len(descriptor.as_fd(), min_len)?;
        let _window = crate::fork::window();
        Self::map(descriptor.as_fd(), len).map(|map| Self::from_parts(map, descriptor))
    }

    /// Maps through `description`. The caller holds the fork window.
    pub(crate) fn map(description: BorrowedFd<'_>, len: u64) -> Result<MmapRaw, SegmentError> {
        let len = usize::try_from(len).map_err(|_| Kind::TooLarge { len, limit: MAX_LEN })?;
        use std::os::fd::AsRawFd;
        let map = memmap2::MmapOptions::new()
            .len(len)
            .map_raw(description.as_raw_fd())
            .map_err(SegmentError::system("mapping shared memory"))?;
        map.advise(Advice::DontFork).map_err(SegmentError::system("excluding shared memory from fork"))?;
        // Without it core dumps are larger; nothing else depends on it.
        let _ = map.advise(Advice::DontDump);
        Ok(map)
    }

    pub(crate) fn from_parts(map: MmapRaw, descriptor: OwnedFd) -> Self {
        Self {
            map: ManuallyDrop::new(map),
            descriptor,
            stamp: RenewableStamp::now(),
            reserved: AtomicBool::new(false),
        }
    }

    /// The first byte; page-aligned. Bytes behind it may change at any time: other processes map them.
    #[inline]
    pub fn base(&self) -> NonNull<u8> {
        NonNull::new(self.map.as_mut_ptr()).expect("a mapping is not at address zero")
    }

    /// The length in bytes.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Never: a mapping has at least one byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the mapping is there; see [`crate::fork`].
    ///
    /// # Errors
    ///
    /// [`Forked`] in a child that was forked after the mapping was made: it must not touch it.
    #[inline(always)]
    pub fn check(&self) -> Result<(), Forked> {
        self.stamp.check()
    }

    /// In the child handler of a fork: keeps the place free for [`SharedMapping::map_again`]. One system call.
    pub(crate) fn reserve(&self) {
        // SAFETY: nothing is replaced: in the child there is nothing at this address, or the call fails.
        let placed = unsafe { self.place_reservation(MapFlags::FIXED_NOREPLACE) };
        // Relaxed: a child has one thread here.
        self.reserved.store(placed.is_ok(), Ordering::Relaxed);
    }

    /// Maps nothing, where the mapping has its place.
    ///
    /// # Safety
    ///
    /// With `FIXED` in `how`, nobody uses what is there.
    unsafe fn place_reservation(&self, how: MapFlags) -> rustix::io::Result<()> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | how;
        let (base, len) = (self.base().as_ptr().cast(), self.len());
        // SAFETY: the caller's promise; without `FIXED` nothing is replaced.
        let at = unsafe { mmap_anonymous(base, len, ProtFlags::empty(), flags) }?;
        if at != base {
            // A kernel before 4.17 takes the address for a hint.
            // SAFETY: mapped just now, and nobody knows of it.
            let _ = unsafe { rustix::mm::munmap(at, len) };
            return Err(rustix::io::Errno::EXIST);
        }
        Ok(())
    }

    /// In a forked child: whether the place is kept free until the memory is mapped again. Once this is false,
    /// [`SharedMapping::check`] tells whether it is mapped.
    pub(crate) fn is_reserved(&self) -> bool {
        // SYNC map-again: Acquire, so that whoever finds it cleared by `renew` finds the stamp renewed.
        self.reserved.load(Ordering::Acquire)
    }

    /// Maps the same memory at the same address, in a child that has [reserved](SharedMapping::reserve) the place. The
    /// caller holds the fork window, and [renews](SharedMapping::renew) the mapping or [gives it
    /// up](SharedMapping::unmap_again) when it is done. On an error the place is as before.
    pub(crate) fn map_again(&self, description: BorrowedFd<'_>) -> Result<(), SegmentError> {
        if !self.reserved.load(Ordering::Relaxed) {
            return Err(Forked.into());
        }
        let at = self.base().as_ptr().cast();
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        let failed =
            |error: rustix::io::Errno| SegmentError::system("mapping shared memory again")(error.into());
        // SAFETY: what is replaced is the reservation, which nobody uses.
        let mapped = unsafe {
            rustix::mm::mmap(at, self.len(), rights, MapFlags::SHARED | MapFlags::FIXED, description, 0)
        };
        if let Err(error) = mapped {
            // The kernel may have taken the reservation away before it failed, or not.
            // SAFETY: nothing is replaced.
            let still = unsafe { self.place_reservation(MapFlags::FIXED_NOREPLACE) };
            let still = matches!(still, Ok(()) | Err(rustix::io::Errno::EXIST));
            self.reserved.store(still, Ordering::Release);
            return Err(failed(error));
        }
        // SAFETY: the mapping made just now; the advice changes nothing in this process.
        if let Err(error) = unsafe { rustix::mm::madvise(at, self.len(), rustix::mm::Advice::LinuxDontFork) }
        {
            self.unmap_again();
            return Err(failed(error));
        }
        let _ = self.map.advise(Advice::DontDump);
        Ok(())
    }

    /// Puts the reservation back in the place of what [`SharedMapping::map_again`] has mapped, and nobody uses yet.
    pub(crate) fn unmap_again(&self) {
        // SAFETY: only whoever attaches again knows of the mapping, and it calls this.
        let kept = unsafe { self.place_reservation(MapFlags::FIXED) };
        // Without it this process cannot attach any more; the mapping stays, and no child inherits its place.
        self.reserved.store(kept.is_ok(), Ordering::Release);
    }

    /// The mapping is this process's from here on, and no reservation any more: the next child has to make its own.
    pub(crate) fn renew(&self) {
        self.stamp.renew();
        // SYNC map-again: Release, pairs with `is_reserved`.
        self.reserved.store(false, Ordering::Release);
    }

    /// The descriptor, for passing the memory on.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// Puts memory behind the pages of a range.
    ///
    /// # Errors
    ///
    /// `is_out_of_memory`; the range is then partly committed and can be released.
    pub fn commit(&self, offset: u64, len: u64) -> Result<(), SegmentError> {
        let (offset, len) = self.pages(offset, len)?;
        check_available(len)?;
        files::commit(&self.descriptor, offset, len).map_err(|source| out_of_memory(len, source))
    }

    /// Puts memory behind the pages of a range and maps them into this process, so that touching them costs no page
    /// fault. Other processes may use them meanwhile. Cheaper than a commit and a first touch of each page.
    ///
    /// # Errors
    ///
    /// As [`SharedMapping::commit`].
    pub fn prefault(&self, offset: u64, len: u64) -> Result<(), SegmentError> {
        // Pages that are made by the dozen here, and mapped one by one, cost less than those that are made one by one.
        self.commit(offset, len)?;
        self.populate(Advice::PopulateWrite, offset, len)
    }

    /// As [`SharedMapping::prefault`], for pages that somebody has written: several times as fast for them, and slower for
    /// others. Touching them costs no page fault where the processor notes itself what is written.
    ///
    /// # Errors
    ///
    /// As [`SharedMapping::commit`].
    pub fn map_in(&self, offset: u64, len: u64) -> Result<(), SegmentError> {
        check_available(len)?;
        // The kernel maps pages that are there by the dozen if they are read, with the rights of the mapping.
        self.populate(Advice::PopulateRead, offset, len)
    }

    fn populate(&self, how: Advice, offset: u64, len: u64) -> Result<(), SegmentError> {
        let (offset, len) = self.pages(offset, len)?;
        let fits = |n| usize::try_from(n).expect("inside a mapping");
        let (start, pages, page) = (fits(offset), fits(len), fits(PAGE));
        match self.map.advise_range(how, start, pages.min(self.len() - start)) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            // A page that cannot be had is reported as a bad address.
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => {
                return Err(out_of_memory(len, std::io::ErrorKind::OutOfMemory.into()));
            }
            result => return result.map_err(|source| out_of_memory(len, source)),
        }
        // Before Linux 5.14.
        files::commit(&self.descriptor, offset, len).map_err(|source| out_of_memory(len, source))?;
        for at in (start..start + pages).step_by(page) {
            // SAFETY: inside the mapping, with memory behind it; an atomic that changes nothing may meet any other use.
            unsafe { crate::sync::AtomicU8::from_ptr(self.base().as_ptr().add(at)) }
                .fetch_or(0, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Writes `bytes` into the memory from `offset` on, and puts memory behind what had none: pages that are written as a
    /// whole are not cleared before, as they are for a touch. Whoever reads them meanwhile sees some of the bytes.
    ///
    /// # Errors
    ///
    /// As [`SharedMapping::commit`]; a part may be written.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), SegmentError> {
        if !bytes.is_empty() {
            self.pages(offset, bytes.len() as u64)?;
        }
        files::write(&self.descriptor, offset, bytes)
            .map_err(|source| out_of_memory(bytes.len() as u64, source))
    }

    /// Gives the memory behind the *whole* pages of a range back; they read as zeros afterwards, for everybody.
    ///
    /// # Errors
    ///
    /// The system's; the memory then stays.
    pub fn release(&self, offset: u64, len: u64) -> Result<(), SegmentError> {
        let (offset, len) = self.pages(offset, len)?;
        files::release(&self.descriptor, offset, len).map_err(SegmentError::system("releasing shared memory"))
    }

    /// The range, checked and widened to pages.
    fn pages(&self, offset: u64, len: u64) -> Result<(u64, u64), SegmentError> {
        let limit = self.len() as u64;
        let start = offset / PAGE * PAGE;
        let end = offset.checked_add(len).filter(|&end| end <= limit && len > 0);
        let end = end.ok_or(Kind::TooLarge { len: offset.saturating_add(len), limit })?;
        Ok((start, end.next_multiple_of(PAGE) - start))
    }
}

impl Drop for SharedMapping {
    fn drop(&mut self) {
        // In a forked child there is no mapping at this address, or somebody else's; unless the place was reserved.
        if self.check().is_ok() || self.is_reserved() {
            // SAFETY: dropped once, here, and not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.map) };
        }
    }
}

/// Creates the sealed file behind a mapping.
pub(crate) fn create_file(name: &str, len: u64, committed: u64) -> Result<OwnedFd, SegmentError> {
    if len == 0 || len > MAX_LEN {
        return Err(Kind::TooLarge { len, limit: MAX_LEN }.into());
    }
    check_available(committed)?;
    files::create_memory(name, len, committed.min(len)).map_err(|source| out_of_memory(committed, source))
}

/// The real length of a file that was received, if it is long enough and can never change its length.
pub(crate) fn checked_len(fd: BorrowedFd<'_>, min_len: u64) -> Result<u64, SegmentError> {
    let seals =
        rustix::fs::fcntl_get_seals(fd).map_err(|_| SegmentError::foreign("its kind of file", 0, 1))?;
    let wanted = SealFlags::SHRINK | SealFlags::GROW;
    if !seals.contains(wanted) {
        return Err(SegmentError::foreign("its seals", seals.bits().into(), wanted.bits().into()));
    }
    let stat =
        rustix::fs::fstat(fd).map_err(|e| SegmentError::system("reading a segment's size")(e.into()))?;
    let len = u64::try_from(stat.st_size).unwrap_or(0);
    if len < min_len || len > MAX_LEN {
        return Err(SegmentError::foreign("its length", len, min_len));
    }
    Ok(len)
}

/// Whether the system has so much memory left, as far as it tells: it may not say so until it is used.
///
/// # Errors
///
/// `is_out_of_memory`.
pub fn check_available(needed: u64) -> Result<(), SegmentError> {
    if needed < CHECKED_FROM {
        return Ok(());
    }
    match files::available_memory() {
        Some(available) if available < needed => {
            Err(Kind::OutOfMemory { needed, available: Some(available), source: None }.into())
        }
        _ => Ok(()),
    }
}

pub(crate) fn out_of_memory(needed: u64, source: std::io::Error) -> SegmentError {
    use std::io::ErrorKind::{OutOfMemory, StorageFull};
    if matches!(source.kind(), OutOfMemory | StorageFull) {
        Kind::OutOfMemory { needed, available: None, source: Some(source) }.into()
    } else {
        SegmentError::system("creating shared memory")(source)
    }
}
