//! Shared memory files and the locks on them.
#![allow(unsafe_code)]
//! # Safety
//!
//! `fcntl` is called with a valid descriptor and a `flock` that lives for the call; nothing else is unsafe here.

use rustix::fs::{FallocateFlags, MemfdFlags, Mode, OFlags, SealFlags};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// An anonymous file of `len` zero bytes whose first `committed` bytes have memory behind them. It can neither
/// shrink nor grow, whoever holds it.
pub(crate) fn create_memory(name: &str, len: u64, committed: u64) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&fd, len)?;
    if committed > 0 {
        commit(&fd, 0, committed)?;
    }
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW)?;
    Ok(fd)
}

/// Puts memory behind a range of the file, so that touching it later cannot fail.
pub(crate) fn commit(fd: impl std::os::fd::AsFd, offset: u64, len: u64) -> io::Result<()> {
    loop {
        match rustix::fs::fallocate(&fd, FallocateFlags::empty(), offset, len) {
            Err(rustix::io::Errno::INTR) => {}
            result => return result.map_err(io::Error::from),
        }
    }
}

/// Writes all of `bytes`.
pub(crate) fn write(fd: impl std::os::fd::AsFd, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(&fd, bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                bytes = &bytes[written..];
                offset += written as u64;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Gives the memory behind a range back to the system; the range reads as zeros afterwards.
pub(crate) fn release(fd: impl std::os::fd::AsFd, offset: u64, len: u64) -> io::Result<()> {
    rustix::fs::fallocate(fd, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)?;
    Ok(())
}

/// A description of the same file that shares nothing with `fd`: locks on it are its own. Through the calling thread's
/// directory, because the process's is empty once its main thread has ended.
pub(crate) fn reopen(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let path = format!("/proc/thread-self/fd/{}", fd.as_raw_fd());
    Ok(rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

/// The kind of an open-file-description lock.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Lock {
    /// Excludes everybody.
    Write,
    /// Excludes writers.
    Read,
}

fn flock(kind: Lock, byte: u64) -> libc::flock {
    let kind = match kind {
        Lock::Write => libc::F_WRLCK,
        Lock::Read => libc::F_RDLCK,
    };
    // SAFETY: `flock` is plain data for which all zeros are valid.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = i16::try_from(kind).expect("lock kinds are small");
    lock.l_whence = i16::try_from(libc::SEEK_SET).expect("SEEK_SET is small");
    lock.l_start = i64::try_from(byte).expect("lock bytes are small");
    lock.l_len = 1;
    lock
}

/// Takes an open-file-description lock on one byte; `false` if another description holds it.
pub(crate) fn try_lock(fd: BorrowedFd<'_>, kind: Lock, byte: u64) -> io::Result<bool> {
    set_lock(fd, &flock(kind, byte))
}

fn set_lock(fd: BorrowedFd<'_>, lock: &libc::flock) -> io::Result<bool> {
    // SAFETY: a valid descriptor and a live `flock` with `l_pid` 0, as the call demands.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, std::ptr::from_ref(lock)) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}

/// Takes a write lock on the whole file, beyond its end too; `false` if another description holds any lock on any byte.
pub(crate) fn try_lock_all(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut lock = flock(Lock::Write, 0);
    lock.l_len = 0;
    set_lock(fd, &lock)
}

/// Gives an open-file-description lock on one byte back.
pub(crate) fn unlock(fd: BorrowedFd<'_>, byte: u64) -> io::Result<()> {
    let mut lock = flock(Lock::Write, byte);
    lock.l_type = i16::try_from(libc::F_UNLCK).expect("lock kinds are small");
    // SAFETY: as in `try_lock`.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Whether a description other than that of `fd` holds any lock on the byte.
pub(crate) fn is_locked(fd: BorrowedFd<'_>, byte: u64) -> io::Result<bool> {
    let mut lock = flock(Lock::Write, byte);
    // SAFETY: a valid descriptor and a live, writable `flock` with `l_pid` 0.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) } == 0 {
        Ok(i32::from(lock.l_type) != libc::F_UNLCK)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The memory that this process may still use, as far as the system and its control groups tell.
pub(crate) fn available_memory() -> Option<u64> {
    let system = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
    });
    [system, cgroup_headroom()].into_iter().flatten().min()
}

fn cgroup_headroom() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    groups
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let (root, limit, usage) = match controllers {
                "" => ("/sys/fs/cgroup", "memory.max", "memory.current"),
                "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
                _ => return None,
            };
            let read = |name: &str| -> Option<u64> {
                std::fs::read_to_string(format!("{root}{path}/{name}")).ok()?.trim().parse().ok()
            };
            Some(read(limit)?.saturating_sub(read(usage)?))
        })
        .min()
}
