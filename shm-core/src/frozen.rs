//! Bytes that nobody can change any more: sealed memory files, for messages too large for a socket or a slot, and for
//! data that every process may borrow ([`FrozenBytes`]).

use crate::error::SegmentError;
use memmap2::{Mmap, MmapOptions};
use rustix::fs::SealFlags;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// What may no longer happen to a frozen file.
const FROZEN: SealFlags = SealFlags::WRITE.union(SealFlags::SHRINK).union(SealFlags::GROW);

/// Puts `bytes` into a new memory file and seals it. Pass the descriptor on; memory goes with the last one.
///
/// # Errors
///
/// `is_out_of_memory`, or the system's error.
pub fn sealed_memfd(bytes: &[u8]) -> Result<OwnedFd, SegmentError> {
    let len = bytes.len() as u64;
    crate::mapping::check_available(len)?;
    // Memory files cannot be empty and sealed against growth by `create_file`; one byte of slack is not read. Writing
    // puts memory behind it: committing it before would clear every page only to overwrite it.
    let file = File::from(crate::mapping::create_file("frozen", len.max(1), 0)?);
    (&file).write_all(bytes).map_err(|source| crate::mapping::out_of_memory(len, source))?;
    rustix::fs::fcntl_add_seals(&file, FROZEN | SealFlags::SEAL)
        .map_err(|e| SegmentError::system("sealing a frozen file")(e.into()))?;
    Ok(file.into())
}

/// Frozen bytes, mapped for reading. Page-aligned; a forked child inherits the mapping.
///
/// # Across processes
///
/// Nobody can change or cut the bytes, whoever holds the file: the kernel keeps the seals. So they are lent as a slice.
#[derive(Debug)]
pub struct FrozenBytes {
    map: Mmap,
    file: OwnedFd,
}

impl FrozenBytes {
    /// Freezes a copy of `bytes`.
    ///
    /// # Errors
    ///
    /// As [`sealed_memfd`].
    pub fn new(bytes: &[u8]) -> Result<Self, SegmentError> {
        Self::attach(sealed_memfd(bytes)?, bytes.len())
    }

    /// Maps the `len` frozen bytes that another process announced.
    ///
    /// # Errors
    ///
    /// `is_foreign` if the file can still change, or has another length; or the system's error.
    pub fn attach(file: OwnedFd, len: usize) -> Result<Self, SegmentError> {
        let seals = rustix::fs::fcntl_get_seals(&file)
            .map_err(|_| SegmentError::foreign("its kind of file", 0, 1))?;
        if !seals.contains(FROZEN) {
            return Err(SegmentError::foreign("its seals", seals.bits().into(), FROZEN.bits().into()));
        }
        let stat = rustix::fs::fstat(&file)
            .map_err(|e| SegmentError::system("reading a frozen file's size")(e.into()))?;
        // A file of no bytes has one of slack.
        let (found, expected) = (u64::try_from(stat.st_size).unwrap_or(0), (len as u64).max(1));
        if found != expected {
            return Err(SegmentError::foreign("its length", found, expected));
        }
        let map = MmapOptions::new().len(len).map_if_safe(&file);
        let map = map.map_err(|e| SegmentError::system("mapping a frozen file")(e.into()))?;
        Ok(Self { map, file })
    }

    /// The file, for passing it on.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Deref for FrozenBytes {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.map
    }
}

/// Reads the first `len` bytes of a frozen file that another process sent. Allocates `len` bytes: bound it before.
///
/// # Errors
///
/// `InvalidData` if the file is not sealed or shorter than `len`; `OutOfMemory`.
pub fn read_sealed(file: OwnedFd, len: usize) -> io::Result<Vec<u8>> {
    let seals = rustix::fs::fcntl_get_seals(&file)?;
    let stat = rustix::fs::fstat(&file)?;
    if !seals.contains(FROZEN) || usize::try_from(stat.st_size).is_ok_and(|size| size < len) {
        let size = stat.st_size;
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "a frozen file of at least {len} bytes was announced; it has {size} and the seals {seals:?}"
            ),
        ));
    }
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
    bytes.resize(len, 0);
    // By place: the offset of the description is shared with whoever else holds it.
    File::from(file).read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::files;

    #[test]
    fn frozen_bytes_come_back() {
        for len in [0, 1, 5000, 3 << 20] {
            let bytes: Vec<u8> = (0..=250).cycle().take(len).collect();
            let file = sealed_memfd(&bytes).expect("frozen");
            assert_eq!(read_sealed(file, len).expect("read"), bytes);
        }
    }

    #[test]
    fn a_file_that_can_still_change_is_refused() {
        let file = files::create_memory("test", 4096, 4096).expect("created");
        assert_eq!(read_sealed(file, 1).expect_err("not frozen").kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn only_a_frozen_file_of_the_announced_length_is_mapped() {
        let bytes = FrozenBytes::attach(sealed_memfd(b"abc").expect("frozen"), 3).expect("mapped");
        assert_eq!(&*bytes, b"abc");
        assert!(
            FrozenBytes::attach(sealed_memfd(b"abc").expect("frozen"), 4).expect_err("short").is_foreign()
        );
        let file = files::create_memory("test", 3, 3).expect("created");
        assert!(FrozenBytes::attach(file, 3).expect_err("not frozen").is_foreign());
        assert!(FrozenBytes::new(b"").expect("mapped").is_empty());
    }

    #[test]
    fn a_length_beyond_the_file_is_refused() {
        let file = sealed_memfd(b"abc").expect("frozen");
        assert_eq!(read_sealed(file, 4).expect_err("too short").kind(), io::ErrorKind::InvalidData);
    }
}
