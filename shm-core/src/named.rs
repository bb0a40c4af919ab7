//! Shared memory with a name: for processes that are not related, and for other languages.
//!
//! *Raw*: no header, no participants, just bytes. It is what Python's `multiprocessing.shared_memory`, numpy and
//! `shm_open` create and attach to; the name `n` is the file `/dev/shm/n`.
//!
//! # Who creates, who removes
//!
//! ```text
//! create   first name ── mark ── open, lock, map ── memory behind every page ── rename (nobody has the name) ── there
//!          shm-core.new.RANDOM                                                 n
//! ```
//!
//! The `shared_memory` crate creates the file under a random *first name*, for everybody to see: of size 0 at first, then of
//! one byte, until it gets its length here. What is visible under its own name is whole: the last step is one rename that
//! fails if the name is taken.
//!
//! Everybody who attaches through this module holds a read lock on one byte far beyond the end of the file, through a
//! description that only its mapping keeps (as the death oracle of [`crate::segment`]). So the kernel knows exactly
//! whether a holder is left: whoever gets a *write* lock on the whole file is alone. The last holder that lets go tries
//! that, and takes the name away. If it is killed, the name stays until somebody looks: every create looks at what has its
//! name and at some others, [`scavenge`] at all.
//!
//! Only what was created here is removed: it bears a *mark*, the mode bit 01000, which means nothing for files.
//! [`NamedMemory::persist`] takes it off. What others created has no mark.
//!
//! # Races
//!
//! * *Attach against the last one's removal.* The remover holds the write lock before it takes the name away. Whoever opened
//!   the file before gets no read lock, or gets it later and sees that the file has no name any more; both look again.
//! * *A new file of the same name against a removal.* A remover compares the file behind the name with the one that
//!   it has locked. In between nobody else of this module can take the name away: that needs a lock on the same file, too
//!   ([`NamedMemory::unlink`] locks one byte). And a name that is there is never replaced. Somebody else who removes the
//!   name without a lock (`rm`, Python's `unlink`) while somebody creates it anew, both between two system calls of the
//!   remover, is the one case in which the new name goes; its memory stays with its holders.
//! * *A new process against the last holder.* Until a child that was made with `vfork` or `posix_spawn` runs its own
//!   program, it may have a copy of a descriptor with a lock. A last holder that lets go in this moment leaves the name to
//!   a scavenger.
//! * *A scavenger against a creator that has not locked yet.* The creator sees that its file has no name, and begins anew.
//!
//! # If a process dies at each step
//!
//! Before the lock: the first name is left, without any lock. Before the rename: likewise. After it: the name is left. Nobody
//! sees a half-made file, and a scavenger removes all three. A remover that dies: the lock falls, the name stays or went.

use crate::error::{Kind, SegmentError};
use crate::mapping::{self, MAX_LEN, SharedMapping};
use crate::sys::files::{self, Lock};
use crate::sys::names::{self, Facts};
use shared_memory::{ShmemConf, ShmemError};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

mod attached;
mod removal;

pub use removal::{scavenge, unlink};

use attached::Attached;
pub(crate) use removal::{Name, remove};
use removal::{remove_if_dead, scan};

/// The longest name, in bytes.
pub const MAX_NAME: usize = 255;

/// What first names begin with; no other name may.
const FIRST: &str = "shm-core.new.";
/// Holders have a read lock on this byte. Beyond everything that a segment locks.
const HELD: u64 = 1 << 62;
/// Who takes the name away while there are holders has the write lock on this byte.
const NAME: u64 = HELD + 1;
/// How long a removal in progress, or a creator that has not given its file a length yet, is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(1);
/// How often something is tried again that somebody else spoilt.
const ATTEMPTS: usize = 64;
/// How many names a create looks at for what the dead left.
const GLANCE: usize = 256;

/// Memory with a name, attached by this process.
///
/// Dropping the last one of all processes takes the name away, if this module created the memory and nobody
/// [persisted](NamedMemory::persist) it. The memory itself goes with its last user, as always.
///
/// # If the peer dies
///
/// Memory and name stay with the others. A name whose last holder was killed is removed by the next create that comes across
/// it, or by [`scavenge`].
///
/// # Across processes
///
/// In a forked child it attaches again at its first use; only from then on does the child keep the name.
///
/// # Examples
///
/// ```
/// use shm_core::named::NamedMemory;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let memory = NamedMemory::create_random("psm_", 4096)?;
/// let same = NamedMemory::open(memory.name())?;                // any process of this user
/// memory.write_at(4000, b"bytes")?;
/// let mut bytes = [0; 5];
/// same.read_at(4000, &mut bytes)?;
/// assert_eq!(&bytes, b"bytes");
/// # Ok(()) }
/// ```
pub struct NamedMemory {
    // Dropped first: the name is removed if this was the last holder.
    attached: Attached,
    name: Name,
}

impl NamedMemory {
    /// Creates `len` zero bytes with this name, and with memory behind them. Readable and writable for this user alone.
    ///
    /// Looks through some names on the way, and removes what the dead left. Does not block, but for that.
    ///
    /// # Errors
    ///
    /// `is_name_taken`; `is_bad_name` if it is empty, longer than [`MAX_NAME`], contains a slash or NUL, is `.` or
    /// `..`, or begins as the names that this module keeps for itself; `is_empty_size`, `is_too_large`,
    /// `is_out_of_memory` (of the machine, the control group, or the file system behind `/dev/shm`); or the system's error.
    pub fn create(name: &str, len: usize) -> Result<Self, SegmentError> {
        check_name(name)?;
        let mut memory = Self::under_first_name(len)?;
        memory.publish(name)?;
        Ok(memory)
    }

    /// As [`NamedMemory::create`], with a name that nobody has: `prefix` and 16 random hexadecimal digits.
    ///
    /// # Errors
    ///
    /// As [`NamedMemory::create`].
    pub fn create_random(prefix: &str, len: usize) -> Result<Self, SegmentError> {
        check_name(&format!("{prefix}{:016x}", 0))?;
        Self::create_drawn(len, || Ok(format!("{prefix}{:016x}", random()?)))
    }

    /// Draws names until one is free.
    fn create_drawn(
        len: usize,
        mut draw: impl FnMut() -> Result<String, SegmentError>,
    ) -> Result<Self, SegmentError> {
        let mut memory = Self::under_first_name(len)?;
        let mut attempt = 1;
        loop {
            match memory.publish(&draw()?) {
                Err(error) if error.is_name_taken() && attempt < ATTEMPTS => attempt += 1,
                result => return result.map(|()| memory),
            }
        }
    }

    /// Attaches to the memory that has this name, whoever created it.
    ///
    /// Waits up to two seconds for a creator that made the file but gave it no length yet (nothing created here is ever
    /// seen like that), and for a removal in progress.
    ///
    /// # Errors
    ///
    /// `is_not_found`; `is_bad_name`; `is_foreign` if it is not a regular file in memory, or has no length; or the
    /// system's error (no permission to read and write it, no `/proc`).
    pub fn open(name: &str) -> Result<Self, SegmentError> {
        check_name(name)?;
        let path = names::path(name);
        let give_up = Instant::now() + PATIENCE;
        loop {
            let descriptor = names::open(&path).map_err(not_found(name, "opening shared memory"))?;
            let facts = checked(descriptor.as_fd())?;
            if facts.len > 0 {
                if let Some(attached) = Attached::new(descriptor, facts.len)? {
                    if attached.facts()?.named {
                        let name = Name { name: name.to_owned(), id: Some(facts.id) };
                        return Ok(Self { attached, name });
                    }
                }
            }
            if Instant::now() >= give_up {
                return Err(match facts.len {
                    0 => SegmentError::foreign("its length", 0, 1),
                    _ => busy("attaching to shared memory that somebody is removing"),
                });
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Attaches to memory whose descriptor another process sent, with the name that it had there; it may have none any more.
    /// The descriptor is only looked at; it stays the caller's.
    ///
    /// # Errors
    ///
    /// As [`NamedMemory::open`].
    pub fn receive(name: &str, descriptor: BorrowedFd<'_>) -> Result<Self, SegmentError> {
        check_name(name)?;
        let facts = checked(descriptor)?;
        if facts.len == 0 {
            return Err(SegmentError::foreign("its length", 0, 1));
        }
        let own =
            files::reopen(descriptor).map_err(SegmentError::system("opening shared memory through /proc"))?;
        let attached = Attached::new(own, facts.len)?
            .ok_or_else(|| busy("attaching to shared memory that somebody is removing"))?;
        Ok(Self { attached, name: Name { name: name.to_owned(), id: Some(facts.id) } })
    }

    /// A descriptor to send to another process, which [receives](NamedMemory::receive) it. As long as it exists anywhere, it
    /// counts as a holder.
    ///
    /// # Errors
    ///
    /// The system's, when descriptors run out.
    pub fn token(&self) -> Result<OwnedFd, SegmentError> {
        let own = files::reopen(self.attached.here()?.descriptor())
            .map_err(SegmentError::system("opening shared memory through /proc"))?;
        match files::try_lock(own.as_fd(), Lock::Read, HELD) {
            Ok(true) => Ok(own),
            Ok(false) => Err(busy("marking shared memory in flight")),
            Err(error) => Err(SegmentError::system("marking shared memory in flight")(error)),
        }
    }

    /// The name, whether or not it leads here still.
    pub fn name(&self) -> &str {
        &self.name.name
    }

    /// The length in bytes, as it was at the attach.
    pub fn len(&self) -> usize {
        self.attached.first.len()
    }

    /// Never: there is at least one byte.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The first byte of the mapping, page-aligned; in a forked child at another address than in its parent. Other processes
    /// may change what is behind it at any time.
    ///
    /// The memory of what was created here is there. In that of others it may be missing: [`NamedMemory::commit`] it
    /// first. A peer that truncates the file (files with names cannot be sealed) takes it away all the same, and
    /// touching it is a `SIGBUS` then. [`NamedMemory::read_at`] and [`NamedMemory::write_at`] return errors instead.
    ///
    /// # Errors
    ///
    /// In a forked child: why it could not attach again.
    pub fn base(&self) -> Result<NonNull<u8>, SegmentError> {
        Ok(self.attached.here()?.base())
    }

    /// Puts memory behind every byte, where that is not done yet.
    ///
    /// # Errors
    ///
    /// `is_out_of_memory`.
    pub fn commit(&self) -> Result<(), SegmentError> {
        commit(self.attached.here()?)
    }

    /// Copies bytes out, from `offset` on. Through the file, so that it fails instead of faulting, whatever peers do to it.
    /// Nothing orders it with what they write meanwhile.
    ///
    /// # Errors
    ///
    /// `is_out_of_range`; `is_foreign` if a peer has truncated the file.
    pub fn read_at(&self, offset: usize, bytes: &mut [u8]) -> Result<(), SegmentError> {
        let (start, end) = self.range(offset, bytes.len())?;
        let file = self.attached.here()?.descriptor();
        let mut rest = bytes;
        while !rest.is_empty() {
            let at = end - rest.len() as u64;
            match rustix::io::pread(file, &mut *rest, at) {
                Ok(0) => return Err(SegmentError::foreign("its length", at.max(start), self.len() as u64)),
                Ok(count) => rest = rest.get_mut(count..).unwrap_or_default(),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(SegmentError::system("reading shared memory")(error.into())),
            }
        }
        Ok(())
    }

    /// Copies bytes in, from `offset` on, in the same way.
    ///
    /// # Errors
    ///
    /// `is_out_of_range`; `is_out_of_memory`, in memory that others created without any behind it: some bytes may be
    /// written then.
    pub fn write_at(&self, offset: usize, bytes: &[u8]) -> Result<(), SegmentError> {
        let (_, end) = self.range(offset, bytes.len())?;
        let file = self.attached.here()?.descriptor();
        let mut rest = bytes;
        while !rest.is_empty() {
            let at = end - rest.len() as u64;
            match rustix::io::pwrite(file, rest, at) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(mapping::out_of_memory(rest.len() as u64, error.into())),
            }
        }
        Ok(())
    }

    fn range(&self, offset: usize, len: usize) -> Result<(u64, u64), SegmentError> {
        let (start, len, limit) = (offset as u64, len as u64, self.len() as u64);
        match start.checked_add(len).filter(|&end| end <= limit) {
            Some(end) => Ok((start, end)),
            None => Err(Kind::OutOfRange { offset: start, len, limit }.into()),
        }
    }

    /// Takes the name away now. The memory stays with its holders, and the name is free for another.
    ///
    /// # Errors
    ///
    /// `is_not_found` if the name is gone, or leads to another memory by now.
    pub fn unlink(&self) -> Result<(), SegmentError> {
        remove(self.name(), self.name.id)
    }

    /// Keeps the name when the last holder lets go or dies: until somebody unlinks it, or the machine is restarted. For all
    /// holders; cannot be taken back.
    ///
    /// # Errors
    ///
    /// The system's: the memory belongs to another user.
    pub fn persist(&self) -> Result<(), SegmentError> {
        let file = self.attached.here()?.descriptor();
        match Facts::of(file) {
            Ok(facts) if !facts.marked => Ok(()),
            Ok(_) => names::unmark(file),
            Err(error) => Err(error),
        }
        .map_err(SegmentError::system("making shared memory persist"))
    }

    /// The file, which carries nobody's locks.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.attached.first.descriptor()
    }

    /// The name, for another that holds the memory.
    pub(crate) fn copy_name(&self) -> Name {
        Name { name: self.name.name.clone(), id: self.name.id }
    }

    /// Stops holding the memory, without looking whether anybody else does.
    pub(crate) fn into_name(self) -> Name {
        self.name
    }

    /// New memory that has its first name still.
    pub(crate) fn under_first_name(len: usize) -> Result<Self, SegmentError> {
        let len = len as u64;
        match len {
            0 => return Err(Kind::Empty.into()),
            1..=MAX_LEN => mapping::check_available(len)?,
            _ => return Err(Kind::TooLarge { len, limit: MAX_LEN }.into()),
        }
        // What the dead left is not worth an error here.
        let _ = scan(GLANCE);
        for _ in 0..ATTEMPTS {
            if let Some(memory) = Self::try_under_first_name(len)? {
                memory.fill()?;
                crate::crash_point!("named.create.filled");
                return Ok(memory);
            }
        }
        Err(busy("creating shared memory"))
    }

    /// Nothing if somebody took the file for left over before it was locked.
    fn try_under_first_name(len: u64) -> Result<Option<Self>, SegmentError> {
        let name = format!("{FIRST}{:016x}", random()?);
        if !create_file(&name, len)? {
            return Ok(None);
        }
        // Removes it on every way out but success.
        let mut name = Name { name, id: None };
        crate::crash_point!("named.create.first");
        let descriptor = match open_first(&names::path(&name.name), len) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(SegmentError::system("preparing shared memory"))?,
        };
        crate::crash_point!("named.create.marked");
        let Some(attached) = Attached::new(descriptor, len)? else { return Ok(None) };
        crate::crash_point!("named.create.locked");
        let facts = attached.facts()?;
        name.id = Some(facts.id);
        Ok(Some(Self { attached, name }).filter(|_| facts.named))
    }

    /// Puts memory behind it; if there is not enough, that of the dead is looked for.
    fn fill(&self) -> Result<(), SegmentError> {
        match commit(&self.attached.first) {
            Err(error) if error.is_out_of_memory() && scan(usize::MAX).is_ok_and(|removed| removed > 0) => {
                commit(&self.attached.first)
            }
            result => result,
        }
    }

    /// Replaces the first name by this one.
    pub(crate) fn publish(&mut self, name: &str) -> Result<(), SegmentError> {
        let path = names::path(name);
        for _ in 0..ATTEMPTS {
            match names::rename(&names::path(&self.name.name), &path) {
                Ok(()) => {
                    crate::crash_point!("named.create.published");
                    name.clone_into(&mut self.name.name);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    if !remove_if_dead(&path, None).unwrap_or(false) && Facts::at(&path).is_ok() {
                        break;
                    }
                }
                Err(error) => return Err(SegmentError::system("naming shared memory")(error)),
            }
        }
        Err(Kind::NameTaken { name: name.to_owned() }.into())
    }
}

impl fmt::Debug for NamedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NamedMemory")
            .field("name", &self.name())
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

/// Creates a file with a first name; `false` if there is one. Others see it without its length and its lock.
fn create_file(name: &str, len: u64) -> Result<bool, SegmentError> {
    // A child must not inherit that crate's mapping: it would keep the memory.
    let _window = crate::fork::window();
    match ShmemConf::new().os_id(format!("/{name}")).size(1).create() {
        Ok(mut created) => {
            // It would remove the name.
            created.set_owner(false);
            Ok(true)
        }
        Err(ShmemError::MappingIdExists) => Ok(false),
        Err(ShmemError::MapCreateFailed(code) | ShmemError::UnknownOsError(code)) => {
            let code = i32::try_from(code).unwrap_or(i32::MAX);
            Err(mapping::out_of_memory(len, io::Error::from_raw_os_error(code)))
        }
        Err(other) => Err(SegmentError::system("creating shared memory")(io::Error::other(other))),
    }
}

/// Marks a new file, opens it and gives it its length.
fn open_first(path: &Path, len: u64) -> io::Result<OwnedFd> {
    names::mark(path)?;
    let descriptor = names::open(path)?;
    names::set_len(&descriptor, len)?;
    Ok(descriptor)
}

/// Puts memory behind every byte. Not behind whole pages: that would lengthen the file.
fn commit(mapping: &SharedMapping) -> Result<(), SegmentError> {
    let len = mapping.len() as u64;
    files::commit(mapping.descriptor(), 0, len).map_err(|source| mapping::out_of_memory(len, source))
}

fn random() -> Result<u64, SegmentError> {
    let mut bits = [0; 8];
    rustix::rand::getrandom(&mut bits, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| SegmentError::system("drawing a name")(e.into()))?;
    Ok(u64::from_ne_bytes(bits))
}

pub(crate) fn check_name(name: &str) -> Result<(), SegmentError> {
    let why = if name.is_empty() {
        "it is empty"
    } else if name.len() > MAX_NAME {
        "it has more than 255 bytes"
    } else if name.contains('/') {
        "it contains a slash"
    } else if name.contains('\0') {
        "it contains NUL"
    } else if name == "." || name == ".." {
        "it is a directory"
    } else if name.starts_with(FIRST) {
        "it begins as the names of memory that is being made"
    } else {
        return Ok(());
    };
    Err(Kind::BadName { name: name.to_owned(), why }.into())
}

/// What is known of a file that may be anything.
fn checked(file: BorrowedFd<'_>) -> Result<Facts, SegmentError> {
    let failed = SegmentError::system("looking at shared memory");
    let (facts, in_memory) = match Facts::of(file).and_then(|facts| Ok((facts, names::is_memory(file)?))) {
        Ok(known) => known,
        Err(error) => return Err(failed(error)),
    };
    if !in_memory || !facts.regular {
        return Err(SegmentError::foreign("its kind of file", 0, 1));
    }
    if facts.len > MAX_LEN {
        return Err(SegmentError::foreign("its length", facts.len, MAX_LEN));
    }
    Ok(facts)
}

fn not_found(name: &str, operation: &'static str) -> impl FnOnce(io::Error) -> SegmentError {
    move |error| match error.kind() {
        io::ErrorKind::NotFound => Kind::NotFound { name: name.to_owned() }.into(),
        _ => SegmentError::system(operation)(error),
    }
}

fn busy(operation: &'static str) -> SegmentError {
    SegmentError::system(operation)(io::ErrorKind::WouldBlock.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drawn_name_that_is_taken_is_drawn_again() {
        let taken = NamedMemory::create_random("shm-core-test-", 1).expect("created");
        let free = format!("{}-2", taken.name());
        let mut names = [taken.name(), taken.name(), &free].into_iter();
        let draw = || Ok(names.next().expect("drawn three times at most").to_owned());
        assert_eq!(NamedMemory::create_drawn(1, draw).expect("created").name(), free);
        assert_eq!(names.next(), None);
    }

    #[test]
    fn drawing_ends_when_every_name_is_taken() {
        let taken = NamedMemory::create_random("shm-core-test-", 1).expect("created");
        let error = NamedMemory::create_drawn(1, || Ok(taken.name().to_owned())).expect_err("taken");
        assert!(error.is_name_taken(), "{error}");
    }

    #[test]
    fn a_first_name_cannot_be_attached_to() {
        let half = NamedMemory::under_first_name(1).expect("created");
        let error = NamedMemory::open(half.name()).expect_err("half made");
        assert!(error.is_bad_name(), "{error}");
    }

    #[test]
    fn a_living_creators_file_is_not_left_over() {
        let half = NamedMemory::under_first_name(1).expect("created");
        scavenge().expect("listed");
        assert!(half.attached.facts().expect("looked at").named);
    }

    #[test]
    fn a_creator_that_was_scavenged_before_it_locked_begins_anew() {
        // As far as a creator gets before its lock.
        let name = format!("{FIRST}{:016x}", random().expect("random"));
        assert!(create_file(&name, 1).expect("created"));
        let path = names::path(&name);
        let descriptor = open_first(&path, 1).expect("opened");
        while remove_if_dead(&path, None).is_ok_and(|removed| !removed) {}
        // Removed, by this thread or by one that creates meanwhile.
        let attached = Attached::new(descriptor, 1).expect("attached").expect("nobody removes it any more");
        assert!(!attached.facts().expect("looked at").named);
        assert_eq!(open_first(&path, 1).map(drop).expect_err("gone").kind(), io::ErrorKind::NotFound);
    }
}
