//! Taking names away: by whoever wants it, by the last holder, and from the dead.

use super::{FIRST, NAME, PATIENCE, PAUSE, busy, check_name, checked, not_found};
use crate::error::{Kind, SegmentError};
use crate::sys::files::{self, Lock};
use crate::sys::names::{self, Facts};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

/// Takes a name away, whatever memory it leads to and whoever created it. The memory stays with its holders.
///
/// # Errors
///
/// `is_not_found`, `is_bad_name`, or the system's error.
pub fn unlink(name: &str) -> Result<(), SegmentError> {
    check_name(name)?;
    remove(name, None)
}

/// Removes the names of what was created here and whose every holder is gone, of this user. Returns how many.
///
/// Only locks count as holding. A process that uses the memory in another way, as Python does, keeps it, but
/// loses the name; [`NamedMemory::persist`](super::NamedMemory::persist) prevents it. Never blocks.
///
/// # Errors
///
/// The system's, if the names cannot be listed.
pub fn scavenge() -> Result<usize, SegmentError> {
    scan(usize::MAX).map_err(SegmentError::system("listing shared memory"))
}

/// Takes the name away when it is dropped, if nobody holds the memory.
pub(crate) struct Name {
    pub(crate) name: String,
    /// The file that it must lead to, once that is known.
    pub(crate) id: Option<(u64, u64)>,
}

impl Drop for Name {
    fn drop(&mut self) {
        crate::crash_point!("named.drop.unmapped");
        // What cannot be removed now is left to a scavenger.
        let _ = remove_if_dead(&names::path(&self.name), self.id);
    }
}

/// Looks at so many names for what the dead left. Returns how many it removed.
pub(super) fn scan(limit: usize) -> io::Result<usize> {
    let removed = names::list()?.take(limit).map(names::path).filter(|path| {
        // Entries that vanish meanwhile, or that this process must not open, are none of its business.
        remove_if_dead(path, None).unwrap_or(false)
    });
    Ok(removed.count())
}

/// Removes a name if it leads to memory that was created here and nobody holds; and, if so wanted, to no other than this.
pub(super) fn remove_if_dead(path: &Path, id: Option<(u64, u64)>) -> io::Result<bool> {
    let facts = Facts::at(path)?;
    if !is_made_here(path, facts) || id.is_some_and(|id| facts.id != id) {
        return Ok(false);
    }
    // A child that inherited the description would keep its lock.
    let _window = crate::fork::window();
    let file = names::open(path)?;
    if !files::try_lock_all(file.as_fd())? {
        return Ok(false);
    }
    crate::crash_point!("named.remove.locked");
    remove_locked(path, &file)
}

/// Removes a name from a file that this process has locked as a whole: so nobody can attach to it, make it persist or take
/// a name away from it.
fn remove_locked(path: &Path, file: &OwnedFd) -> io::Result<bool> {
    let facts = Facts::of(file)?;
    if !is_made_here(path, facts) || Facts::at(path)?.id != facts.id {
        return Ok(false);
    }
    names::unlink(path)?;
    Ok(true)
}

/// Whether it is this module's, and this user's, to remove.
fn is_made_here(path: &Path, facts: Facts) -> bool {
    let first = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(FIRST.as_bytes()));
    facts.own && (facts.marked || first)
}

/// Takes a name away from whatever it leads to, or from this file only.
pub(crate) fn remove(name: &str, id: Option<(u64, u64)>) -> Result<(), SegmentError> {
    let path = names::path(name);
    let operation = "removing shared memory";
    let give_up = Instant::now() + PATIENCE;
    loop {
        // A child that inherited the description would keep its lock.
        let window = crate::fork::window();
        let file = names::open(&path).map_err(not_found(name, operation))?;
        let facts = checked(file.as_fd())?;
        if id.is_some_and(|id| facts.id != id) {
            return Err(Kind::NotFound { name: name.to_owned() }.into());
        }
        if files::try_lock(file.as_fd(), Lock::Write, NAME).map_err(SegmentError::system(operation))? {
            let now = Facts::at(&path).map_err(not_found(name, operation))?;
            if now.id == facts.id {
                crate::crash_point!("named.unlink.locked");
                return names::unlink(&path).map_err(not_found(name, operation));
            }
        }
        drop((file, window));
        if Instant::now() >= give_up {
            return Err(busy(operation));
        }
        // Somebody else is about to remove it.
        std::thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::named::create_file;

    #[test]
    fn a_successor_that_comes_in_the_middle_of_a_removal_keeps_its_name() {
        let name = format!("shm-core-test-removal-{}", std::process::id());
        let path = names::path(&name);
        assert!(create_file(&name, 1).expect("created"));
        let file = names::open(&path).expect("opened");
        assert!(files::try_lock_all(file.as_fd()).expect("locked"));
        names::mark(&path).expect("marked");
        // Somebody else takes the name away, and gives it to another file.
        std::fs::remove_file(&path).expect("removed");
        std::fs::write(&path, "successor").expect("written");
        assert!(!remove_locked(&path, &file).expect("looked at"));
        assert_eq!(std::fs::read(&path).expect("still there"), b"successor");
        std::fs::remove_file(&path).expect("removed");
    }
}
