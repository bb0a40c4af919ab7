//! Segments: shared memory, anonymous or [`named`], with a header, a registry of participants and a body.
//!
//! # Memory
//!
//! ```text
//! 0      header     magic (stored last), version, kind, layout hash, sizes, random id, free-index hint
//! 4096   registry   one u64 per participant index: generation << 1 | attached        (see `registry`)
//! 20480  body       the user's: zeroed, page-aligned
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
//! mapping goes, and a detaching process owns nothing any more, or has swept up after itself before
//! ([`Segment::sweep_at_detach`]).
#![allow(unsafe_code)]
//! # Safety
//!
//! The header's mutable word and the registry are only accessed as atomics, at offsets inside the mapping whose
//! length was checked at attach and cannot shrink; everything else of the header is read once, by value, through
//! the file.

use crate::error::SegmentError;
use crate::fork::Forked;
use crate::mapping::{self, PAGE, SharedMapping};
use crate::named::Name;
use crate::owner::Owner;
use crate::registry::{REGISTRY_LEN, Registry};
use crate::sync::{AtomicBool, AtomicU32, Ordering};
use crate::sys::files::{self, Lock};
use parking_lot::Mutex;
use std::fmt;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

mod attached;
mod header;
mod inherit;
mod naming;
mod sweeping;

#[doc(inline)]
pub use crate::named;

pub(crate) use attached::neighbourhood;
use header::{Header, read_header, write_header};
pub(crate) use inherit::Leaving;
pub use sweeping::sweep_all;

/// The highest participant index; so many processes can be attached at once.
pub const MAX_PARTICIPANTS: u16 = 1023;
/// Lanes whose handles a fork passes on; see [`Segment::hold`].
pub const LANES: u32 = 4;
/// In-flight lanes of a segment, those included; see [`Segment::token`].
pub const MAX_LANES: u32 = 1 << 20;

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
    /// middle: every step must be idempotent. If the process asked for it ([`Segment::sweep_at_detach`]), it runs for its own
    /// index when it detaches. `fork` waits for it, so it must neither create, attach, sweep nor fork.
    /// It may run before this process has an index of its own: [`Segment::participant`] is then 0, or in a forked child
    /// that attaches again its parent's.
    pub sweep: fn(&Segment, dead: u16) -> bool,
    /// Counts what this process has of the segment, in a forked child that has just attached again (see
    /// [`Segment::ensure`]): its participant index owns nothing yet, and the handles that it inherited are in flight until
    /// this returns. `fork` waits for it, as for `sweep`.
    pub arrived: fn(&Segment),
}

impl Spec {
    /// The length of the file; more than any file can have, if the body is so long.
    fn file_len(&self) -> u64 {
        let len = (self.body_len as u64).checked_next_multiple_of(PAGE);
        len.and_then(|len| len.checked_add(BODY_OFFSET)).unwrap_or(u64::MAX)
    }
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
/// Passed on by descriptor ([`Segment::descriptor`], [`Segment::token`]). In a forked child it is not there until
/// [`Segment::ensure`] has attached again.
///
/// # Examples
///
/// ```
/// use shm_core::segment::{Segment, Spec};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let spec = Spec { kind: 7, layout_hash: 1, body_len: 4096, sweep: |_, _| true, arrived: |_| () };
/// let segment = Segment::create(&spec, |_body| {})?;
/// let same = Segment::attach(segment.descriptor(), &spec)?;
/// assert_eq!(segment.participant(), same.participant());   // one process, one participant
/// assert!(!segment.is_dead(segment.participant()));
/// # Ok(()) }
/// ```
pub struct Segment {
    mapping: SharedMapping,
    /// [`Owner::bits`] of this process; 0 until it has an index.
    owner: AtomicU32,
    key: Key,
    body_len: usize,
    sweep: fn(&Segment, u16) -> bool,
    arrived: fn(&Segment),
    kind: u32,
    layout_hash: u64,
    /// Handles of this process by lane. In private memory, so that a child starts with a copy.
    holds: [AtomicU32; LANES as usize],
    /// See [`Segment::sweep_at_detach`].
    leaves_things: AtomicBool,
    /// While forking, and in a child that has not attached again. Locked inside the fork window only.
    inherited: Mutex<Option<inherit::Inherited>>,
    /// Dropped last: the name goes if nobody is attached any more.
    name: Option<Name>,
}

/// What makes two descriptors name the same segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    device: u64,
    inode: u64,
    id: [u64; 2],
}

impl Segment {
    /// Creates a segment and attaches to it. `init` runs on the zeroed body before anybody else can see it.
    ///
    /// # Errors
    ///
    /// `is_too_large`, `is_out_of_memory`, or the system's error.
    pub fn create(spec: &Spec, init: impl FnOnce(NonNull<u8>)) -> Result<Arc<Self>, SegmentError> {
        Self::create_sparse(spec, spec.body_len, init)
    }

    /// As [`Segment::create`], with memory behind the first `committed` bytes of the body only. The others need
    /// [`Segment::commit`] or [`Segment::prefault`] before their first use.
    ///
    /// # Errors
    ///
    /// As [`Segment::create`].
    pub fn create_sparse(
        spec: &Spec,
        committed: usize,
        init: impl FnOnce(NonNull<u8>),
    ) -> Result<Arc<Self>, SegmentError> {
        crate::sync::register_asymmetric_fence();
        if spec.body_len == 0 {
            return Err(SegmentError::foreign("the length of a new body", 0, 1));
        }
        let file_len = spec.file_len();
        let committed = BODY_OFFSET.saturating_add(committed as u64);
        let descriptor = mapping::create_file("segment", file_len, committed)?;
        Ok(Self::make(descriptor, file_len, spec, init)?.publish())
    }

    /// Makes a segment of a file of zeros.
    fn make(
        descriptor: OwnedFd,
        file_len: u64,
        spec: &Spec,
        init: impl FnOnce(NonNull<u8>),
    ) -> Result<Self, SegmentError> {
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
            body_len: spec.body_len as u64,
            id,
        };
        write_header(&descriptor, &header)?;
        let segment = Self::enter(descriptor, &header, spec)?;
        init(segment.body());
        write_header(segment.mapping.descriptor(), &Header { magic: MAGIC, ..header })?;
        Ok(segment)
    }

    /// Attaches to a segment of another process, or shares this process's attachment if there is one. The
    /// descriptor is only looked at; it stays the caller's.
    ///
    /// # Errors
    ///
    /// `is_foreign` if it is not a segment of this version with this kind, layout and at least this body;
    /// `is_too_many_participants`; or the system's error (no `/proc`, no descriptors left).
    pub fn attach(descriptor: BorrowedFd<'_>, spec: &Spec) -> Result<Arc<Self>, SegmentError> {
        Self::attach_file(descriptor, mapping::checked_len(descriptor, BODY_OFFSET + 1)?, spec, None)
    }

    /// Attaches to a file of this length.
    fn attach_file(
        descriptor: BorrowedFd<'_>,
        file_len: u64,
        spec: &Spec,
        name: Option<Name>,
    ) -> Result<Arc<Self>, SegmentError> {
        crate::sync::register_asymmetric_fence();
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
        if header.body_len > file_len.saturating_sub(BODY_OFFSET) || header.body_len < spec.body_len as u64 {
            return Err(SegmentError::foreign("its body's length", header.body_len, spec.body_len as u64));
        }
        let key = Key::of(descriptor, header.id)?;
        let mut attached = attached::lookup(&key);
        match attached.as_ref().map_or(Ok(()), |attached| attached.ensure()) {
            // In a child whose fork skipped the handlers, the inherited attachment cannot be used: it gets another.
            Err(error) if error.is_forked() => attached = None,
            result => result?,
        }
        if let Some(attached) = attached {
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
        let mut segment = Self::enter(own, &header, spec)?;
        segment.name = name;
        Ok(segment.publish())
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
        let segment = Self {
            mapping,
            owner: AtomicU32::new(0),
            key,
            body_len,
            sweep: spec.sweep,
            arrived: spec.arrived,
            kind: header.kind,
            layout_hash: header.layout_hash,
            holds: Default::default(),
            leaves_things: AtomicBool::new(false),
            inherited: Mutex::new(None),
            name: None,
        };
        let owner = segment.registry().claim(own.as_fd(), |dead| (spec.sweep)(&segment, dead))?;
        // Relaxed: nobody else sees the segment yet.
        segment.owner.store(owner.bits(), Ordering::Relaxed);
        drop(own);
        drop(window);
        Ok(segment)
    }

    /// Makes the attachment the one of this process, unless another thread was first: then that one is returned, and
    /// this one detaches.
    fn publish(self) -> Arc<Self> {
        let (kind, layout_hash, body_len) = (self.kind, self.layout_hash, self.body_len);
        attached::publish(self, |other| {
            let same = (other.kind, other.layout_hash, other.body_len) == (kind, layout_hash, body_len);
            same && other.check().is_ok()
        })
    }

    /// Whether its addresses are the segment's in this process, be it for later.
    fn has_place(&self) -> bool {
        // In this order: see `is_reserved`.
        self.mapping.is_reserved() || self.check().is_ok()
    }

    /// Where the segment is mapped.
    fn addresses(&self) -> Range<usize> {
        let start = self.mapping.base().addr().get();
        start..start + self.mapping.len()
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

    /// The index of this process, 1 to [`MAX_PARTICIPANTS`]; 0 while the first attach [sweeps](Spec::sweep).
    #[inline(always)]
    pub fn participant(&self) -> u16 {
        Owner::index_of(self.owner.load(Ordering::Relaxed))
    }

    /// The token of this process, as locks write it. Changes only in a forked child that attaches again.
    #[inline]
    pub fn owner(&self) -> Owner {
        Owner::from_bits(self.owner.load(Ordering::Relaxed)).expect("an attached segment has an index")
    }

    /// Whether the process that holds this token is dead. Exact, a system call, never blocks; as
    /// [`Segment::is_dead`], and `true` also if the index went to somebody else since.
    pub fn is_owner_dead(&self, owner: Owner) -> bool {
        let (index, mine) = (owner.index(), self.owner());
        if index == 0 || owner == mine {
            return false;
        }
        // The generation first: a process takes its lock before it steps the generation.
        Owner::new(index, self.generation(index)) != owner || self.is_dead(index)
    }

    /// The process id of the holder of the index, as it knows itself: for people, and wrong across PID namespaces.
    pub fn process_id(&self, participant: u16) -> Option<u32> {
        Some(self.registry().process_id(participant)).filter(|&id| id != 0)
    }

    /// Whether no living process holds the index. Exact: a process that is slow or stopped is alive. A system
    /// call of 0.2 microseconds; never blocks.
    ///
    /// The answer proves that whoever held the index *before the call* is dead: read the owner out of shared
    /// memory first, then ask.
    pub fn is_dead(&self, participant: u16) -> bool {
        // An error (descriptor table in flux, exotic file system) must never declare the living dead.
        participant != self.participant()
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

    /// Puts memory behind a range of the body, so that touching it later cannot fail.
    ///
    /// # Errors
    ///
    /// `is_out_of_memory`, `is_too_large` if the range is not inside the body, `is_forked`.
    pub fn commit(&self, offset: usize, len: usize) -> Result<(), SegmentError> {
        self.check()?;
        self.mapping.commit((BODY_START as u64).saturating_add(offset as u64), len as u64)
    }

    /// Puts memory behind a range of the body and maps it into this process, so that touching it costs no page fault;
    /// see [`SharedMapping::prefault`].
    ///
    /// # Errors
    ///
    /// As [`Segment::commit`].
    pub fn prefault(&self, offset: usize, len: usize) -> Result<(), SegmentError> {
        self.check()?;
        self.mapping.prefault((BODY_START as u64).saturating_add(offset as u64), len as u64)
    }

    /// Gives the memory behind the whole pages of a range of the body back; they read as zeros afterwards, for everybody.
    ///
    /// # Errors
    ///
    /// The system's, `is_too_large` if the range is not inside the body, `is_forked`; the memory then stays.
    pub fn release(&self, offset: usize, len: usize) -> Result<(), SegmentError> {
        self.check()?;
        self.mapping.release((BODY_START as u64).saturating_add(offset as u64), len as u64)
    }

    /// As [`Segment::prefault`], for memory that somebody has written; see [`SharedMapping::map_in`].
    ///
    /// # Errors
    ///
    /// As [`Segment::commit`].
    pub fn map_in(&self, offset: usize, len: usize) -> Result<(), SegmentError> {
        self.check()?;
        self.mapping.map_in((BODY_START as u64).saturating_add(offset as u64), len as u64)
    }

    /// Writes `bytes` into the body from `offset` on, whether or not memory is behind it; see [`SharedMapping::write`].
    ///
    /// # Errors
    ///
    /// As [`Segment::commit`].
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), SegmentError> {
        self.check()?;
        self.mapping.write((BODY_START as u64).saturating_add(offset as u64), bytes)
    }

    /// Whether the segment can be used in this process.
    ///
    /// # Errors
    ///
    /// [`Forked`] in a child that was forked after the attach, until [`Segment::ensure`].
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
    /// If `lane` is not below [`MAX_LANES`].
    ///
    /// # If the peer dies
    ///
    /// With the last process or buffer that held the token it is gone, so nothing stays in flight.
    pub fn token(&self, lane: u32) -> Result<OwnedFd, SegmentError> {
        assert!(lane < MAX_LANES, "lane {lane} of {MAX_LANES}");
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
    pub fn in_flight(&self, lane: u32) -> bool {
        files::is_locked(self.descriptor(), TOKEN_BYTE + u64::from(lane)).unwrap_or(true)
    }

    /// Lets go of the lane of a token that is kept in the segment's own service (in a message of the queue that it is a
    /// handle of): such a handle keeps nobody alive. Whoever receives it holds another handle. Nothing happens if
    /// `token` is of another segment or lane.
    pub fn disarm(&self, token: BorrowedFd<'_>, lane: u32) {
        let ours = |fd| rustix::fs::fstat(fd).ok().map(|stat| (stat.st_dev, stat.st_ino));
        if ours(token).is_some_and(|key| key == (self.key.device, self.key.inode)) {
            // It cannot fail for a descriptor that is open; if it did, the handle would stay in flight.
            let _ = files::unlock(token, TOKEN_BYTE + u64::from(lane));
        }
    }

    /// Counts a handle of this process in a lane, so that a child of this process inherits it.
    ///
    /// A child that is forked while the count is not zero keeps the lane [in flight](Segment::in_flight) until it has
    /// attached again and [counted](Spec::arrived) what it inherited. The counts are private to the process.
    ///
    /// # Panics
    ///
    /// If `lane` is not below [`LANES`]; in the other two likewise.
    pub fn hold(&self, lane: u32) {
        // Relaxed: a count; a fork orders everything.
        self.holds[lane as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Takes one back.
    pub fn unhold(&self, lane: u32) {
        let before = self.holds[lane as usize].fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "let go of more handles than there were");
        if before == 1 && self.check().is_err() {
            self.let_go(lane);
        }
    }

    /// How many handles of this process are counted in a lane.
    pub fn held(&self, lane: u32) -> u32 {
        self.holds[lane as usize].load(Ordering::Relaxed)
    }

    fn registry(&self) -> Registry<'_> {
        // SAFETY: the registry lies inside the mapping, page-aligned, and is only accessed as atomics.
        unsafe { Registry::at(self.mapping.base().add(REGISTRY_OFFSET)) }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        attached::retire(self);
        let participant = self.participant();
        if participant != 0 && self.check().is_ok() {
            // A clean detach owns nothing, but what was forgotten. Nobody uses the attachment any more, and the lock is held
            // still: that is the right to sweep. The lock falls with the mapping.
            if self.sweep_own() {
                self.registry().free(participant);
            }
            crate::crash_point!("segment.detach.freed");
        }
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segment")
            .field("id", &format_args!("{:016x}{:016x}", self.key.id[0], self.key.id[1]))
            .field("participant", &self.participant())
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
}

const _: () = assert!(size_of::<Header>() as u64 <= PAGE && BODY_OFFSET % PAGE == 0);
