//! Handles in a forked child: it attaches again, and nothing that it inherited looks let go of before.
#![cfg(not(loom))]
#![allow(unsafe_code, reason = "forks, and touches shared words")]

use parking_lot::{Mutex, MutexGuard};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use shm_core::owner::Owner;
use shm_core::segment::{MAX_PARTICIPANTS, Segment, Spec};
use shm_core::sync::{AtomicU64, Ordering};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

/// Word 0 counts arrivals, word 1 is for the test.
const SPEC: Spec = Spec { kind: 2, layout_hash: 1, body_len: 64, sweep: |_, _| true, arrived: count };
const LANE: u32 = 1;

fn count(segment: &Segment) {
    word(segment, 0).fetch_add(u64::from(segment.held(LANE)), Ordering::SeqCst);
}

fn word(segment: &Segment, index: usize) -> &AtomicU64 {
    assert!(index < 8);
    // SAFETY: inside the body, aligned, atomics only; the caller has made sure that the segment is there.
    unsafe { segment.body().cast::<AtomicU64>().add(index).as_ref() }
}

fn wait_for(word: &AtomicU64, value: u64) {
    while word.load(Ordering::SeqCst) != value {
        std::thread::yield_now();
    }
}

/// A fork copies what other tests have open: one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock()
}

/// A forked process that runs `body`; killed when dropped.
struct Child(Pid);

impl Child {
    fn fork(body: impl FnOnce() -> bool) -> Self {
        // SAFETY: the child runs on the thread that forked, and only `body`.
        Self::of(unsafe { libc::fork() }, body)
    }

    /// A fork behind the back of the C library.
    fn clone(body: impl FnOnce() -> bool) -> Self {
        // SAFETY: as a fork: nothing is shared, no stack is given.
        let id = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
        Self::of(i32::try_from(id).expect("a process id"), body)
    }

    fn of(id: i32, body: impl FnOnce() -> bool) -> Self {
        if id == 0 {
            let fine = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(false);
            // SAFETY: ends the child without running what belongs to its parent.
            unsafe { libc::_exit(if fine { 0 } else { 1 }) };
        }
        Self(Pid::from_raw(id).expect("forked"))
    }

    /// Waits for the end of a child that is to die by SIGKILL.
    #[cfg(feature = "crash-points")]
    #[track_caller]
    fn dies(self) {
        let status = waitpid(Some(self.0), WaitOptions::empty()).expect("collected").expect("a status").1;
        std::mem::forget(self);
        assert_eq!(status.terminating_signal(), Some(Signal::KILL.as_raw()), "{status:?}");
    }

    #[track_caller]
    fn succeeds(self) {
        let status = waitpid(Some(self.0), WaitOptions::empty()).expect("collected").expect("a status").1;
        std::mem::forget(self);
        assert_eq!(status.exit_status(), Some(0), "what the child found is not as it should be: {status:?}");
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::KILL);
        let _ = waitpid(Some(self.0), WaitOptions::empty());
    }
}

fn created() -> Arc<Segment> {
    Segment::create(&SPEC, |_| {}).expect("created")
}

#[test]
fn a_child_attaches_again_at_the_same_address_with_an_index_of_its_own() {
    let _alone = alone();
    let segment = created();
    let (body, mine) = (segment.body(), segment.participant());
    word(&segment, 1).store(7, Ordering::SeqCst);
    Child::fork(|| {
        assert!(segment.check().is_err());
        segment.ensure().expect("attached again");
        assert!(segment.check().is_ok() && segment.body() == body);
        assert_ne!(segment.participant(), mine);
        assert!(!segment.is_dead(mine));
        word(&segment, 1).fetch_add(1, Ordering::SeqCst) == 7
    })
    .succeeds();
    assert_eq!(word(&segment, 1).load(Ordering::SeqCst), 8);
}

#[test]
fn a_second_look_for_the_segment_finds_the_inherited_attachment() {
    let _alone = alone();
    let segment = created();
    Child::fork(|| {
        let again = Segment::attach(segment.descriptor(), &SPEC).expect("attached");
        Arc::ptr_eq(&again, &segment) && segment.check().is_ok()
    })
    .succeeds();
}

#[test]
fn what_a_child_inherits_is_in_flight_until_it_was_counted() {
    let _alone = alone();
    let segment = created();
    segment.hold(LANE);
    segment.hold(LANE);
    let child = Child::fork(|| {
        segment.ensure().expect("attached again");
        // Still alive, so that the parent sees the token go, and not the process.
        wait_for(word(&segment, 1), 1);
        true
    });
    segment.unhold(LANE);
    segment.unhold(LANE);
    wait_for(word(&segment, 0), 2);
    while segment.in_flight(LANE) {
        std::thread::yield_now();
    }
    word(&segment, 1).store(1, Ordering::SeqCst);
    child.succeeds();
}

#[test]
fn a_child_that_uses_nothing_keeps_what_it_inherited_in_flight_until_it_ends() {
    let _alone = alone();
    let segment = created();
    segment.hold(LANE);
    let child = Child::fork(|| {
        loop {
            // SAFETY: waits for a signal.
            unsafe { libc::pause() };
        }
    });
    segment.unhold(LANE);
    assert!(segment.in_flight(LANE));
    assert!(!segment.in_flight(LANE + 1), "nothing was held there");
    drop(child);
    assert!(!segment.in_flight(LANE));
}

#[test]
fn a_child_that_lets_go_without_use_releases_it() {
    let _alone = alone();
    let segment = created();
    segment.hold(LANE);
    let same = Segment::attach(segment.descriptor(), &SPEC).expect("attached");
    let done = rustix::pipe::pipe().expect("a pipe");
    let child = Child::fork(|| {
        // SAFETY: the child's copies of the two handles, each let go of once.
        unsafe {
            drop(std::ptr::read(&segment));
            drop(std::ptr::read(&same));
        }
        rustix::io::write(&done.1, &[1]).expect("told");
        loop {
            // SAFETY: waits for a signal.
            unsafe { libc::pause() };
        }
    });
    segment.unhold(LANE);
    rustix::io::read(&done.0, &mut [0_u8; 1]).expect("heard");
    assert!(!segment.in_flight(LANE));
    drop(child);
}

#[test]
fn a_grandchild_inherits_from_a_child_that_used_nothing() {
    let _alone = alone();
    let segment = created();
    segment.hold(LANE);
    let child = Child::fork(|| {
        let grandchild = Child::fork(|| {
            segment.ensure().expect("attached again");
            true
        });
        grandchild.succeeds();
        segment.ensure().is_ok()
    });
    segment.unhold(LANE);
    child.succeeds();
    assert_eq!(word(&segment, 0).load(Ordering::SeqCst), 2, "each counted its one handle");
    assert!(!segment.in_flight(LANE));
}

#[test]
fn a_fork_that_skips_the_handlers_is_refused() {
    let _alone = alone();
    let segment = created();
    Child::clone(|| {
        let refused = segment.ensure().is_err_and(|error| error.is_forked());
        // What it cannot inherit it can still attach to by itself.
        let own = Segment::attach(segment.descriptor(), &SPEC).expect("attached");
        refused && segment.check().is_err() && own.check().is_ok()
    })
    .succeeds();
}

#[test]
fn a_token_is_found_by_address_and_dies_with_its_process() {
    let _alone = alone();
    let segment = created();
    let mine = Owner::here(word(&segment, 1)).expect("attached");
    assert_eq!(mine, segment.owner());
    assert_eq!(mine.process_id(word(&segment, 1)), Some(std::process::id()));
    assert!(!mine.is_dead(word(&segment, 1)));
    let child = Child::fork(|| {
        let place = segment.body().cast::<AtomicU64>().as_ptr();
        let owner = Owner::here(place).expect("attached again");
        word(&segment, 1).store(owner.bits().into(), Ordering::SeqCst);
        !mine.is_dead(place) && owner != mine
    });
    child.succeeds();
    let bits = u32::try_from(word(&segment, 1).load(Ordering::SeqCst)).expect("a token");
    let theirs = Owner::from_bits(bits).expect("a token");
    assert!(theirs.is_dead(word(&segment, 1)));
    segment.sweep();
    assert!(theirs.is_dead(word(&segment, 1)), "swept is dead too");
}

#[test]
fn memory_outside_of_segments_has_a_local_token_and_ranges_are_forgotten_in_time() {
    let _alone = alone();
    let outside = AtomicU64::new(0);
    assert_eq!(Owner::here(&outside).expect("local").index(), 0);
    for _ in 0..20 {
        let segments: Vec<_> = (0..6).map(|_| created()).collect();
        for _ in 0..2 {
            for segment in &segments {
                assert_eq!(Owner::here(word(segment, 0)).expect("attached"), segment.owner());
            }
            assert_eq!(Owner::here(&outside).expect("local").index(), 0);
        }
        let freed = segments[0].body().cast::<AtomicU64>().as_ptr();
        drop(segments);
        assert_eq!(Owner::here(freed).expect("nobody's").index(), 0);
    }
}

/// Every participant index from `first` on, until it is dropped in all processes or unlocked in one.
struct Taken(OwnedFd);

impl Taken {
    fn from(segment: &Segment, first: i64) -> Self {
        let path = format!("/proc/self/fd/{}", segment.descriptor().as_raw_fd());
        let file = std::fs::File::options().read(true).write(true).open(path).expect("opened");
        let taken = Self(file.into());
        taken.lock(libc::F_WRLCK, first);
        taken
    }

    fn lock(&self, kind: libc::c_int, first: i64) {
        let range = libc::flock {
            l_type: kind.try_into().expect("small"),
            l_whence: 0,
            l_start: first,
            l_len: i64::from(MAX_PARTICIPANTS) + 1 - first,
            l_pid: 0,
        };
        // SAFETY: a descriptor of the test's, and a range that lives for the call.
        let result = unsafe { libc::fcntl(self.0.as_raw_fd(), libc::F_OFD_SETLK, &raw const range) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }
}

/// Maps a page of the test's own where the body of the segment was, if nothing is there.
fn page_in_place_of(segment: &Segment) -> Option<&'static AtomicU64> {
    let at = segment.body().as_ptr().cast();
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: replaces nothing.
    let page = unsafe { libc::mmap(at, 4096, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    // SAFETY: mapped just now, and left alone.
    (page != libc::MAP_FAILED).then(|| unsafe { page.cast::<AtomicU64>().as_ref() }.expect("not null"))
}

#[test]
fn a_child_that_finds_no_index_keeps_the_place_free_for_its_own_children() {
    let _alone = alone();
    let segment = created();
    let taken = Taken::from(&segment, 2);
    Child::fork(|| {
        assert!(segment.ensure().is_err_and(|error| error.is_too_many_participants()));
        Child::fork(|| {
            assert!(page_in_place_of(&segment).is_none());
            taken.lock(libc::F_UNLCK, 2);
            segment.ensure().is_ok() && word(&segment, 1).load(Ordering::SeqCst) == 0
        })
        .succeeds();
        segment.ensure().is_ok()
    })
    .succeeds();
}

#[test]
fn what_lies_in_the_place_of_memory_that_was_attached_again_is_left_alone() {
    let _alone = alone();
    let segment = created();
    Child::fork(|| {
        segment.ensure().expect("attached again");
        Child::clone(|| {
            let page = page_in_place_of(&segment).expect("mapped");
            page.store(42, Ordering::SeqCst);
            // SAFETY: this process's copy of the handle, let go of once.
            drop(unsafe { std::ptr::read(&segment) });
            page.load(Ordering::SeqCst) == 42
        })
        .succeeds();
        true
    })
    .succeeds();
}

#[test]
fn memory_in_the_place_of_a_segment_that_is_not_there_belongs_to_no_segment() {
    let _alone = alone();
    let segment = created();
    Child::clone(|| {
        let page = page_in_place_of(&segment).expect("mapped");
        let owner = Owner::here(page).expect("memory of this process");
        owner.index() == 0 && !segment.owner().is_dead(page)
    })
    .succeeds();
}

#[test]
fn a_child_that_cannot_attach_again_does_not_attach_beside_it() {
    /// How often a sweep fails.
    static REFUSALS: AtomicU64 = AtomicU64::new(0);
    let sweep = |_: &Segment, _| {
        let refuses = |left: u64| left.checked_sub(1);
        REFUSALS.fetch_update(Ordering::SeqCst, Ordering::SeqCst, refuses).is_err()
    };
    let _alone = alone();
    let spec = Spec { sweep, ..SPEC };
    let segment = Segment::create(&spec, |_| {}).expect("created");
    // The one index that is free is that of a dead process.
    Child::fork(|| segment.ensure().is_ok()).succeeds();
    let _taken = Taken::from(&segment, 3);
    Child::fork(|| {
        REFUSALS.store(1, Ordering::SeqCst);
        let refused = Segment::attach(segment.descriptor(), &spec);
        assert!(refused.is_err_and(|error| error.is_too_many_participants()));
        let again = Segment::attach(segment.descriptor(), &spec).expect("attached");
        Arc::ptr_eq(&again, &segment)
    })
    .succeeds();
}

#[test]
fn handles_can_be_let_go_of_while_a_child_counts_them() {
    let _alone = alone();
    let arrived = |segment: &Segment| {
        segment.unhold(LANE);
        segment.hold(LANE);
    };
    let segment = Segment::create(&Spec { arrived, ..SPEC }, |_| {}).expect("created");
    segment.hold(LANE);
    Child::fork(|| {
        // SAFETY: ends the process if it hangs.
        unsafe { libc::alarm(60) };
        segment.ensure().expect("attached again");
        // The parent may still have its token.
        while segment.in_flight(LANE) {
            std::thread::yield_now();
        }
        segment.held(LANE) == 1
    })
    .succeeds();
}

#[cfg(feature = "crash-points")]
#[test]
fn a_child_that_dies_while_it_attaches_again_leaves_nothing_but_an_index_to_sweep() {
    let _alone = alone();
    for (point, counted) in [
        ("segment.attach.locked", 0),
        ("segment.attach.entered", 0),
        ("segment.inherit.attached", 0),
        ("segment.inherit.arrived", 1),
    ] {
        let segment = created();
        segment.hold(LANE);
        Child::fork(|| {
            shm_core::crash::arm(point, 1);
            segment.ensure().is_ok()
        })
        .dies();
        assert!(!segment.in_flight(LANE), "{point}");
        assert_eq!(word(&segment, 0).load(Ordering::SeqCst), counted, "{point}");
        assert!(segment.sweep() <= 1, "{point}");
        assert_eq!(segment.sweep(), 0, "{point}");
        // And nobody is in the way of the next one.
        Child::fork(|| segment.ensure().is_ok()).succeeds();
    }
}
