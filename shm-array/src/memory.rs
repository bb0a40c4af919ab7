//! Named shared memory: bytes that unrelated processes, and programs in other languages, find by name.
//!
//! How names come and go is told in [`shm_core::named`].

use crate::error::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use shm_core::handle::{send_descriptor, take_descriptor};
use shm_core::named::{self, NamedMemory};
use std::fmt;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;

/// What Python's names begin with.
const PREFIX: &str = "psm_";
/// How often `open_or_create` tries both in turn.
const ATTEMPTS: usize = 100;

/// Raw bytes in shared memory with a name: what Python calls `multiprocessing.shared_memory.SharedMemory`.
///
/// There is no header and no lock: everybody who knows the name and runs as the same user reads and writes. Among Rust
/// processes that can pass handles to each other, prefer [`Shared`](crate::Shared) and its like.
///
/// The name goes with the last `SharedMemory` of all processes, unless somebody called [`persist`](Self::persist); the memory
/// itself goes with its last user of any kind. Memory that others created is only used here, never destroyed. A clone is
/// the same attachment.
///
/// # Names
///
/// 1 to 255 bytes without `/` and NUL, and not `.` or `..`; a colon or a line feed is fine. The name that Python shows
/// (`psm_1a2b3c4d`) is the name here. The slash in front that C's `shm_open` wants is not part of it, and refused.
///
/// # Python
///
/// ```python
/// from multiprocessing import shared_memory
/// import numpy
/// memory = shared_memory.SharedMemory(name="numbers")          # created in Rust, or the other way round
/// numbers = numpy.ndarray((10,), dtype=numpy.int64, buffer=memory.buf)
/// ```
///
/// *Python's resource tracker* believes that whoever attaches owns: when a Python process ends that attached and did not unlink,
/// the tracker takes the name away, and prints a warning about leaked memory. Nothing happens to the bytes and
/// to those who are attached, here or there; but nobody can attach by name any more, and [`unlink`](Self::unlink) returns
/// an error that is `is_not_found`. To prevent it, attach in Python 3.13 and later with
///
/// ```python
/// memory = shared_memory.SharedMemory(name="numbers", track=False)
/// ```
///
/// and before that with
///
/// ```python
/// memory = shared_memory.SharedMemory(name="numbers")
/// resource_tracker.unregister(memory._name, "shared_memory")  # from multiprocessing import resource_tracker
/// ```
///
/// The other way round: a Python process that is attached does not count as a holder here. When the last Rust holder lets go,
/// the name goes; Python keeps its memory. Call [`persist`](Self::persist) where Python is to have the last word.
///
/// # If the peer dies
///
/// Nothing changes for the others. The name of memory whose last holder was killed is removed by the next that creates
/// something and comes across it, or by [`scavenge`](Self::scavenge).
///
/// # Across processes
///
/// Travels in any message, and finds its memory there even if the name is gone by then (where Python raises
/// `FileNotFoundError`). A handle that a forked child inherited attaches again at its first use.
///
/// # Examples
///
/// ```
/// use shm_array::SharedMemory;
/// # fn main() -> shm_array::Result<()> {
/// let memory = SharedMemory::create_random(4096)?;                 // or `create("numbers", 4096)`
/// memory.write_at(8, &7_i64.to_le_bytes())?;
///
/// let same = SharedMemory::open(memory.name())?;                   // any process of this user
/// let mut seven = [0; 8];
/// same.read_at(8, &mut seven)?;
/// assert_eq!(i64::from_le_bytes(seven), 7);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct SharedMemory(Arc<NamedMemory>);

impl SharedMemory {
    /// Creates `len` zero bytes with this name, and with memory behind them. Does not block.
    ///
    /// # Errors
    ///
    /// `is_name_taken`; `is_bad_name`; `is_out_of_range` if `len` is 0 or beyond what can be mapped; `is_out_of_memory`
    /// if the machine, the control group or the file system behind `/dev/shm` (in containers often 64 MiB) has not
    /// enough; or the system's error.
    ///
    /// # If the peer dies
    ///
    /// A name that the dead left is free. A process that was killed a moment ago may keep it for some milliseconds.
    pub fn create(name: &str, len: usize) -> Result<Self> {
        Ok(Self(Arc::new(NamedMemory::create(name, len)?)))
    }

    /// As [`create`](Self::create), with a name that nobody has: `psm_` and 16 hexadecimal digits.
    ///
    /// # Errors
    ///
    /// As [`create`](Self::create).
    pub fn create_random(len: usize) -> Result<Self> {
        Ok(Self(Arc::new(NamedMemory::create_random(PREFIX, len)?)))
    }

    /// Attaches to the memory that has this name, whoever created it. Its length is what it is.
    ///
    /// Does not block, unless another program is just creating or removing it: then up to two seconds.
    ///
    /// # Errors
    ///
    /// `is_not_found`; `is_bad_name`; `is_mismatch` if it is something else than memory, or empty; or the system's error.
    pub fn open(name: &str) -> Result<Self> {
        Ok(Self(Arc::new(NamedMemory::open(name)?)))
    }

    /// Attaches to the memory that has this name, or creates it with `len` bytes. What exists keeps its length: ask
    /// [`len`](Self::len).
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open) and [`create`](Self::create); `is_name_taken` only if others create and remove it all the time.
    pub fn open_or_create(name: &str, len: usize) -> Result<Self> {
        let mut attempt = 1;
        loop {
            match Self::open(name) {
                Err(error) if error.is_not_found() => {}
                opened => return opened,
            }
            match Self::create(name, len) {
                Err(error) if error.is_name_taken() && attempt < ATTEMPTS => attempt += 1,
                created => return created,
            }
        }
    }

    /// The name, whether or not it leads here still.
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// The length in bytes, as it was at the attach.
    #[allow(clippy::len_without_is_empty, reason = "memory is never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Copies bytes out, from byte `offset` on. Whatever peers do to the memory, the worst is wrong data or an error.
    /// Nothing orders it with what they write meanwhile.
    ///
    /// # Errors
    ///
    /// `is_out_of_range`, and nothing is copied; `is_mismatch` if a peer has cut the memory off.
    pub fn read_at(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        Ok(self.0.read_at(offset, bytes)?)
    }

    /// Copies bytes in, from byte `offset` on, in the same way.
    ///
    /// # Errors
    ///
    /// `is_out_of_range`, and nothing is copied; `is_out_of_memory` in memory of others that has nothing behind it.
    pub fn write_at(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        Ok(self.0.write_at(offset, bytes)?)
    }

    /// The first byte of this process's mapping, page-aligned, for who knows what peers do. Valid as long as a clone of this
    /// handle is.
    ///
    /// Other processes change what is behind it at any time: use raw pointers and atomics, never references. Memory
    /// that others created may have nothing behind it: [`commit`](Self::commit) it before. Where a peer cuts the memory off,
    /// touching it is a `SIGBUS`; [`read_at`](Self::read_at) and [`write_at`](Self::write_at) return errors instead.
    ///
    /// # Errors
    ///
    /// In a forked child: why it could not attach again. There the address is another than in its parent.
    pub fn as_ptr(&self) -> Result<NonNull<u8>> {
        Ok(self.0.base()?)
    }

    /// Puts memory behind every byte of what others created without.
    ///
    /// # Errors
    ///
    /// `is_out_of_memory`.
    pub fn commit(&self) -> Result<()> {
        Ok(self.0.commit()?)
    }

    /// Takes the name away now. The memory stays with those who are attached, and the name is free for another.
    ///
    /// # Errors
    ///
    /// `is_not_found` if the name is gone, or leads to other memory by now.
    pub fn unlink(&self) -> Result<()> {
        Ok(self.0.unlink()?)
    }

    /// Keeps name and memory when the last holder lets go or dies: until somebody unlinks it, or the machine is restarted.
    /// For all holders; cannot be taken back.
    ///
    /// # Errors
    ///
    /// The system's: the memory belongs to another user.
    pub fn persist(&self) -> Result<()> {
        Ok(self.0.persist()?)
    }

    /// Takes a name away without attaching, whoever created the memory.
    ///
    /// # Errors
    ///
    /// `is_not_found`, `is_bad_name`, or the system's error.
    pub fn remove(name: &str) -> Result<()> {
        Ok(named::unlink(name)?)
    }

    /// Removes what was created here, of this user, and whose every holder was killed; what persists stays. Returns how many
    /// names it removed. Every create does it for some names; a supervisor may want to do it for all. Never blocks.
    ///
    /// # Errors
    ///
    /// The system's, if the names cannot be listed.
    pub fn scavenge() -> Result<usize> {
        Ok(named::scavenge()?)
    }
}

impl fmt::Debug for SharedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedMemory").field("name", &self.name()).field("len", &self.len()).finish()
    }
}

/// A handle in bytes.
#[derive(Serialize, Deserialize)]
#[serde(rename = "SharedMemory")]
struct Ticket {
    name: String,
    /// The token's place in the session.
    descriptor: u32,
}

impl Serialize for SharedMemory {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let token = self.0.token().map_err(ser::Error::custom)?;
        let descriptor = send_descriptor(token).map_err(ser::Error::custom)?;
        Ticket { name: self.name().to_owned(), descriptor }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SharedMemory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ticket = Ticket::deserialize(deserializer)?;
        let token = take_descriptor(ticket.descriptor).map_err(de::Error::custom)?;
        let memory = NamedMemory::receive(&ticket.name, token.as_fd()).map_err(Error::from);
        Ok(Self(Arc::new(memory.map_err(de::Error::custom)?)))
    }
}
