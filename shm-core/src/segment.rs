//! Segments: anonymous shared memory with a header, a registry of participants and a body.
//!
//! # Memory
//!
//! ```text
//! 0      header     magic (stored last), version, kind, layout hash, sizes, random id, free-index hint
//! 4096   registry   one u64 per participant index: generation << 1 | attached        (see `registry`)
//! 16384  body       the user's: zeroed, page-aligned
//! ```
//!
//! # The death oracle
//!
//! A process attaches once (all its handles share the attachment) and holds a participant index 1..=1023. The
//! index is an open-file-description write lock on byte `index` of the file, taken through a description of its
//! own that is mapped and then closed, so that only the *mapping* keeps the lock. The kernel drops it when the
//! mapping goes: on detach, exit, exec and SIGKILL, after the last thread ended, never because a process is
//! slow, stopped or in another PID namespace. Asking costs 0.2 microseconds and cannot be wrong about the living.
//!
//! 1. open an own description `g` of the file (one that was received shares its sender's locks);
//! 2. lock a free byte through `g`;   3. map through `g`, exclude the mapping from fork;   4. close `g`.
//!
//! # If a process dies at each step
//!
//! Before 2: nothing happened. Between 2 and the registry entry: the lock falls, the index was never attached.
//! After the entry: the index is attached and unlocked, which is what [`Segment::sweep`] looks for. While it
//! sweeps another: the lock falls, the entry still says attached, the next sweeper repeats. After a sweep's clean-up and
//! before the entry is freed: likewise (clean-up is idempotent). While it detaches: the entry is freed before the
//! mapping goes, and a detaching process owns nothing any more.
#![allow(unsafe_code)]
//! # Safety
//!
//! The header's mutable word and the registry are only accessed as atomics, at offsets inside the mapping whose
//! length was checked at attach and cannot shrink; everything else of the header is read once, by value, through
//! the file.

use crate::error::SegmentError;
use crate::fork::Forked;
use crate::mapping::{self, PAGE, SharedMapping};
use crate::registry::{REGISTRY_LEN, Registry};
use crate::sys::files::{self, Lock};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::{Arc, Weak};

/// The highest participant index; so many processes can be attached at once.
pub const MAX_PARTICIPANTS: u16 = 1023;
/// In-flight lanes of a segment; see [`Segment::token`].
pub const LANES: u8 = 4;

const MAGIC: u64 = u64::from_le_bytes(*b"shmsegm\x01");
const VERSION: u32 = 1;
const REGISTRY_OFFSET: usize = 4096;
const BODY_START: usize = REGISTRY_OFFSET + REGISTRY_LEN;
const BODY_OFFSET: u64 = BODY_START as u64;
const TOKEN_BYTE: u64 = 4096;

/// What a segment is for, and how big it is.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// Which crate or structure the body belongs to.
    pub kind: u32,
    /// A hash of everything that both sides must agree on about the body.
    pub layout_hash: u64,
    /// The body's length in bytes; at attach the least that is accepted.
    pub body_len: usize,
    /// Cleans up what the dead participant owned in the body; `false` if it cannot (the body makes no sense), and the
    /// index stays taken then. Runs under the exclusive right to do so, possibly again after a sweeper died in the
    /// middle: every step must be idempotent. `fork` waits for it, so it must neither create, attach, sweep nor fork.
    pub sweep: fn(&Segment, dead: u16) -> bool,
}

/// The fixed part of the header, as bytes in the file.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Header {
    magic: u64,
    version: u32,
    kind: u32,
    layout_hash: u64,
    file_len: u64,
    body_offset: u64,
    body_len: u64,
    id: [u64; 2],
}

/// One attachment of this process to a segment, shared by all handles of the process. Dropping the last one
/// detaches.
///
/// # If the peer dies
///
/// Its index stays attached until somebody sweeps; [`Segment::is_dead`] tells at once.
///
/// # Across processes
///
/// Passed on by descriptor ([`Segment::descriptor`], [`Segment::token`]); not usable in a forked child, which
/// gets [`Forked`].
///
/// # Examples
///
/// ```
/// use shm_core::segment::{Segment, Spec};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let spec = Spec { kind: 7, layout_hash: 1, body_len: 4096, sweep: |_, _| true };
/// let segment = Segment::create(&spec, |_body| {})?;
/// let same = Segment::attach(segment.descriptor(), &spec)?;
/// assert_eq!(segment.participant(), same.participant());   // one process, one participant
/// assert!(!segment.is_dead(segment.participant()));
/// # Ok(()) }
/// ```
pub struct Segment {
    mapping: SharedMapping,
    participant: u16,
    key: Key,
    body_len: usize,
    sweep: fn(&Segment, u16) -> bool,
    kind: u32,
    layout_hash: u64,
    /// Serialises this process's sweeps of the segment.
    sweeping: Mutex<()>,
}

/// What makes two descriptors name the same segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    device: u64,
    inode: u64,
    id: [u64; 2],
}

/// This process's attachments. Locked inside the fork window only, so that no child inherits it locked.
static ATTACHED: Mutex<Option<HashMap<Key, Weak<Segment>>>> = Mutex::new(None);

impl Segment {
    /// Creates a segment and attaches to it. `init` runs on the zeroed body before anybody else can see it.
    ///
    /// # Errors
    ///
    /// `is_too_large`, `is_out_of_memory`, or the system's error.
    pub fn create(spec: &Spec, init: impl FnOnce(NonNull<u8>)) -> Result<Arc<Self>, SegmentError> {
        crate::sync::register_asymmetric_fence();
        if spec.body_len == 0 {
            return Err(SegmentError::foreign("the length of a new body", 0, 1));
        }
        let body_len = spec.body_len as u64;
        let file_len = body_len.checked_next_multiple_of(PAGE).and_then(|len| len.checked_add(BODY_OFFSET));
        let file_len = file_len.unwrap_or(u64::MAX);
        let descriptor = mapping::create_file("segment", file_len, file_len)?;
        let mut id = [0_u64; 2];
        rustix::rand::getrandom(bytemuck::bytes_of_mut(&mut id), rustix::rand::GetRandomFlags::empty())
            .map_err(|e| SegmentError::system("drawing a segment's id")(e.into()))?;
        let header = Header {
            magic: 0,
            version: VERSION,
            kind: spec.kind,
            layout_hash: spec.layout_hash,
            file_len,
            body_offset: BODY_OFFSET,
            body_len,
            id,
        };
        write_header(&descriptor, &header)?;
        let segment = Self::enter(descriptor, &header, spec)?;
        init(segment.body());
        write_header(segment.mapping.descriptor(), &Header { magic: MAGIC, ..header })?;
        Ok(segment.publish())
    }

    /// Attaches to a segment of another process, or shares this process's attachment if there is one. The
    /// descriptor is only looked at; it stays the caller's.
    ///
    /// # Errors
    ///
    /// `is_foreign` if it is not a segment of this version with this kind, layout and at least this body;
    /// `is_too_many_participants`; or the system's error (no `/proc`, no descriptors left).
    pub fn attach(descriptor: BorrowedFd<'_>, spec: &Spec) -> Result<Arc<Self>, SegmentError> {
        crate::sync::register_asymmetric_fence();
        let file_len = mapping::checked_len(descriptor, BODY_OFFSET + 1)?;
        let header = read_header(descriptor)?;
        let expect = |what, found: u64, expected: u64| {
            if found == expected { Ok(()) } else { Err(SegmentError::foreign(what, found, expected)) }
        };
        expect("its magic", header.magic, MAGIC)?;
        expect("its version", header.version.into(), VERSION.into())?;
        expect("its kind", header.kind.into(), spec.kind.into())?;
        expect("its layout", header.layout_hash, spec.layout_hash)?;
        expect("its length", header.file_len, file_len)?;
        expect("its body's place", header.body_offset, BODY_OFFSET)?;
        if header.body_len > file_len - BODY_OFFSET || header.body_len < spec.body_len as u64 {
            return Err(SegmentError::foreign("its body's length", header.body_len, spec.body_len as u64));
        }
        let key = Key::of(descriptor, header.id)?;
        if let Some(attached) = key.lookup() {
            // What it was validated against, not what the header says by now.
            expect("its kind", attached.kind.into(), spec.kind.into())?;
            expect("its layout", attached.layout_hash, spec.layout_hash)?;
            if attached.body_len < spec.body_len {
                return Err(SegmentError::foreign(
                    "its body's length",
                    attached.body_len as u64,
                    spec.body_len as u64,
                ));
            }
            return Ok(attached);
        }
        // A description without anybody's locks, to ask the oracle through and to pass on.
        let own =
            files::reopen(descriptor).map_err(SegmentError::system("opening a segment through /proc"))?;
        Ok(Self::enter(own, &header, spec)?.publish())
    }

    /// Takes a participant index and maps.
    fn enter(descriptor: OwnedFd, header: &Header, spec: &Spec) -> Result<Self, SegmentError> {
        let key = Key::of(descriptor.as_fd(), header.id)?;
        let body_len = usize::try_from(header.body_len).expect("a body fits into its mapping");
        let window = crate::fork::window();
        let own = files::reopen(descriptor.as_fd())
            .map_err(SegmentError::system("opening a segment through /proc"))?;
        // Map first to reach the hint and the entries: the lock is pinned as soon as it is taken through `own`.
        let map = SharedMapping::map(own.as_fd(), header.file_len)?;
        let mapping = SharedMapping::from_parts(map, descriptor);
        let mut segment = Self {
            mapping,
            participant: 0,
            key,
            body_len,
            sweep: spec.sweep,
            kind: header.kind,
            layout_hash: header.layout_hash,
            sweeping: Mutex::new(()),
        };
        segment.participant = segment.registry().claim(own.as_fd(), |dead| (spec.sweep)(&segment, dead))?;
        drop(own);
        drop(window);
        Ok(segment)
    }

    /// Makes the attachment the one of this process, unless another thread was first: then that one is returned, and
    /// this one detaches.
    fn publish(self) -> Arc<Self> {
        let ours = Arc::new(self);
        let _window = crate::fork::window();
        let mut attached = ATTACHED.lock();
        let table = attached.get_or_insert_default();
        table.retain(|_, other| other.strong_count() > 0);
        let first = table.get(&ours.key).and_then(Weak::upgrade).filter(|other| {
            let same = (other.kind, other.layout_hash) == (ours.kind, ours.layout_hash);
            same && other.body_len == ours.body_len && other.check().is_ok()
        });
        if let Some(first) = first {
            return first;
        }
        table.insert(ours.key, Arc::downgrade(&ours));
        ours
    }

    /// The first byte of the body. Other processes may change what is behind it at any time.
    #[inline]
    pub fn body(&self) -> NonNull<u8> {
        // SAFETY: the body lies inside the mapping, whose length was checked when it was made.
        unsafe { self.mapping.base().add(BODY_START) }
    }

    /// The length of the body in bytes.
    pub fn body_len(&self) -> usize {
        self.body_len
    }

    /// The index of this process, 1 to [`MAX_PARTICIPANTS`].
    #[inline]
    pub fn participant(&self) -> u16 {
        self.participant
    }

    /// Whether no living process holds the index. Exact: a process that is slow or stopped is alive. A system
    /// call of 0.2 microseconds; never blocks.
    ///
    /// The answer proves that whoever held the index *before the call* is dead: read the owner out of shared
    /// memory first, then ask.
    pub fn is_dead(&self, participant: u16) -> bool {
        // An error (descriptor table in flux, exotic file system) must never declare the living dead.
        participant != self.participant
            && (1..=MAX_PARTICIPANTS).contains(&participant)
            && files::is_locked(self.mapping.descriptor(), participant.into()).is_ok_and(|locked| !locked)
    }

    /// Whether the registry says that the index is taken, by the living or by the dead that nobody swept yet.
    pub fn is_attached(&self, participant: u16) -> bool {
        self.registry().is_attached(participant)
    }

    /// How often the index was taken so far. With [`Segment::is_attached`] it tells whether a certain holder was swept:
    /// then the index is free, or has another generation.
    pub fn generation(&self, participant: u16) -> u64 {
        self.registry().generation(participant)
    }

    /// The highest index that was ever taken.
    pub fn participants(&self) -> u16 {
        self.registry().highest()
    }

    /// Cleans up after every participant that died, and frees its index. Returns how many it swept.
    ///
    /// Makes a system call per attached participant. Blocks only for another sweep by this process. A dead
    /// process's lock falls some time after its pidfd or socket shows the death (0.2 ms for a small process,
    /// 27 ms per GiB): a supervisor sweeps again until it counts what it expects.
    ///
    /// # If the peer dies
    ///
    /// If another sweeper dies in the middle, this or the next sweep repeats its work.
    pub fn sweep(&self) -> usize {
        if self.check().is_err() {
            return 0;
        }
        let _one = self.sweeping.lock();
        let registry = self.registry();
        (1..=registry.highest())
            .filter(|&index| registry.is_attached(index) && self.is_dead(index) && self.sweep_one(index))
            .count()
    }

    /// Sweeps one index if its lock can be had: proof of death and exclusive right in one.
    fn sweep_one(&self, index: u16) -> bool {
        let _window = crate::fork::window();
        let Ok(own) = files::reopen(self.mapping.descriptor()) else {
            return false;
        };
        if !matches!(files::try_lock(own.as_fd(), Lock::Write, index.into()), Ok(true)) {
            return false;
        }
        if !self.registry().is_attached(index) {
            return false;
        }
        crate::crash_point!("segment.sweep.locked");
        let clean = (self.sweep)(self, index);
        crate::crash_point!("segment.sweep.cleaned");
        if clean {
            self.registry().free(index);
        }
        clean
    }

    /// Whether the segment can be used in this process.
    ///
    /// # Errors
    ///
    /// [`Forked`] in a child that was forked after the attach.
    #[inline(always)]
    pub fn check(&self) -> Result<(), Forked> {
        self.mapping.check()
    }

    /// The descriptor, for passing the segment on. Locks are never taken through it.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.mapping.descriptor()
    }

    /// A descriptor of the segment that marks a handle in flight: as long as it exists in any descriptor table or
    /// socket buffer, [`Segment::in_flight`] is true for its lane. Whoever receives the handle attaches, counts
    /// itself, and then closes it.
    ///
    /// # Errors
    ///
    /// The system's, when descriptors run out.
    ///
    /// # Panics
    ///
    /// If `lane` is not below [`LANES`].
    ///
    /// # If the peer dies
    ///
    /// With the last process or buffer that held the token it is gone, so nothing stays in flight.
    pub fn token(&self, lane: u8) -> Result<OwnedFd, SegmentError> {
        assert!(lane < LANES, "lane {lane} of {LANES}");
        self.check()?;
        let own = files::reopen(self.descriptor())
            .map_err(SegmentError::system("opening a segment through /proc"))?;
        let failed = || SegmentError::system("marking a handle in flight");
        match files::try_lock(own.as_fd(), Lock::Read, TOKEN_BYTE + u64::from(lane)) {
            Ok(true) => Ok(own),
            // Nobody takes a write lock there; a peer that does must not make a handle look gone.
            Ok(false) => Err(failed()(std::io::ErrorKind::WouldBlock.into())),
            Err(error) => Err(failed()(error)),
        }
    }

    /// Whether a token of the lane exists anywhere. A system call; `true` if the system cannot tell.
    pub fn in_flight(&self, lane: u8) -> bool {
        files::is_locked(self.descriptor(), TOKEN_BYTE + u64::from(lane)).unwrap_or(true)
    }

    fn registry(&self) -> Registry<'_> {
        // SAFETY: the registry lies inside the mapping, page-aligned, and is only accessed as atomics.
        unsafe { Registry::at(self.mapping.base().add(REGISTRY_OFFSET)) }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        if self.participant != 0 && self.check().is_ok() {
            // A clean detach owns nothing, so the index needs no sweep. The lock falls with the mapping.
            self.registry().free(self.participant);
            crate::crash_point!("segment.detach.freed");
        }
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segment")
            .field("id", &format_args!("{:016x}{:016x}", self.key.id[0], self.key.id[1]))
            .field("participant", &self.participant)
            .field("body_len", &self.body_len)
            .finish_non_exhaustive()
    }
}

impl Key {
    fn of(descriptor: BorrowedFd<'_>, id: [u64; 2]) -> Result<Self, SegmentError> {
        let stat = rustix::fs::fstat(descriptor)
            .map_err(|e| SegmentError::system("reading a segment's identity")(e.into()))?;
        Ok(Self { device: stat.st_dev, inode: stat.st_ino, id })
    }

    fn lookup(&self) -> Option<Arc<Segment>> {
        let _window = crate::fork::window();
        let attached = ATTACHED.lock();
        attached.as_ref()?.get(self)?.upgrade().filter(|segment| segment.check().is_ok())
    }
}

/// Writes the header through the file: a system call orders it for everybody who reads it that way.
fn write_header(fd: impl AsFd, header: &Header) -> Result<(), SegmentError> {
    match rustix::io::pwrite(fd, bytemuck::bytes_of(header), 0) {
        Ok(len) if len == size_of::<Header>() => Ok(()),
        Ok(_) => Err(SegmentError::foreign("its header", 0, size_of::<Header>() as u64)),
        Err(error) => Err(SegmentError::system("writing a segment's header")(error.into())),
    }
}

/// One private copy of the header, never read again.
fn read_header(fd: BorrowedFd<'_>) -> Result<Header, SegmentError> {
    let mut header: Header = bytemuck::Zeroable::zeroed();
    match rustix::io::pread(fd, bytemuck::bytes_of_mut(&mut header), 0) {
        Ok(len) if len == size_of::<Header>() => Ok(header),
        Ok(len) => Err(SegmentError::foreign("its header's length", len as u64, size_of::<Header>() as u64)),
        Err(error) => Err(SegmentError::system("reading a segment's header")(error.into())),
    }
}

const _: () = assert!(size_of::<Header>() as u64 <= PAGE && BODY_OFFSET % PAGE == 0);
