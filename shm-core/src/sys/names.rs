//! Entries of the directory in which the system keeps named shared memory.

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Stat};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Where `shm_open` keeps its files on Linux.
const DIRECTORY: &str = "/dev/shm";
/// `f_type` of the file system that lies there.
const TMPFS: u64 = 0x0102_1994;

/// The mark: a mode bit that means something for directories only.
const MARK: Mode = Mode::SVTX;

/// The path of a name.
pub(crate) fn path(name: impl AsRef<Path>) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// All names that are there, in no order; other processes add and remove some meanwhile.
pub(crate) fn list() -> io::Result<impl Iterator<Item = OsString>> {
    Ok(std::fs::read_dir(DIRECTORY)?.filter_map(|entry| Some(entry.ok()?.file_name())))
}

/// An own description of the entry. Does not follow links, nor wait for the other end of a pipe.
pub(crate) fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// What is known of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    /// Device and inode: the file itself, whatever its names are.
    pub(crate) id: (u64, u64),
    /// Not a directory, pipe, link or device.
    pub(crate) regular: bool,
    pub(crate) len: u64,
    /// Whether it has a name, anywhere.
    pub(crate) named: bool,
    /// Whose it is.
    pub(crate) user: u32,
    /// A regular file of this user.
    pub(crate) own: bool,
    /// It bears the mark; see [`mark`].
    pub(crate) marked: bool,
}

impl Facts {
    fn new(stat: &Stat) -> Self {
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        Self {
            id: (stat.st_dev, stat.st_ino),
            regular,
            len: u64::try_from(stat.st_size).unwrap_or(0),
            named: stat.st_nlink > 0,
            user: stat.st_uid,
            own: regular && stat.st_uid == rustix::process::geteuid().as_raw(),
            marked: Mode::from_raw_mode(stat.st_mode).contains(MARK),
        }
    }

    /// Of whatever has this name now.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        Ok(Self::new(&rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)?))
    }

    /// Of an open file.
    pub(crate) fn of(fd: impl AsFd) -> io::Result<Self> {
        Ok(Self::new(&rustix::fs::fstat(fd)?))
    }
}

/// Whether the file lies in memory.
pub(crate) fn is_memory(fd: impl AsFd) -> io::Result<bool> {
    Ok(u64::try_from(rustix::fs::fstatfs(fd)?.f_type).is_ok_and(|kind| kind == TMPFS))
}

/// Marks a new file, and makes it readable and writable for this user alone, whatever the process's mask was.
pub(crate) fn mark(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::chmod(path, Mode::RUSR | Mode::WUSR | MARK)?)
}

/// Takes the mark away, and nothing else.
pub(crate) fn unmark(fd: impl AsFd) -> io::Result<()> {
    let mode = Mode::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
    Ok(rustix::fs::fchmod(fd, mode - MARK)?)
}

/// Gives the file another name in one step, if nobody has that name.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
}

/// Takes the name away. The file goes with its last user.
pub(crate) fn unlink(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::unlink(path)?)
}

/// Gives an empty file its length; zeros without memory behind them.
pub(crate) fn set_len(fd: impl AsFd, len: u64) -> io::Result<()> {
    Ok(rustix::fs::ftruncate(fd, len)?)
}
