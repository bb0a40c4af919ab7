//! Shared arrays within one process and between several. One fact per test.
#![cfg(not(loom))]
#![allow(unsafe_code, reason = "forks")]

mod common;

use common::{Peer, Reporter, child as child_of_test, was_killed, watchdog};
use serde::{Deserialize, Serialize};
use shm_array::{LockError, SharedArray};
use shm_core::handle::{ReceiveSession, SendSession};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a child does.
#[derive(Serialize, Deserialize)]
enum Orders {
    /// Doubles every element, under the lock of the whole array.
    Double(SharedArray<i64>),
    /// Doubles the elements of one chunk.
    DoubleChunk(SharedArray<i64>, usize),
    /// Locks some chunks, sets their elements to -1, reports, and waits for its end.
    Hold(SharedArray<i64>, Vec<usize>),
    /// Adds to the first atomic.
    Count(SharedArray<AtomicU64>, u64),
    /// Adds 1 to each element of a random walk over the chunks.
    Walk(SharedArray<i64>, usize),
    /// Holds chunk 0 for reading, reports, and waits for its end.
    Read(SharedArray<i64>),
}

#[test]
fn child() {
    child_of_test(|orders, reporter: &Reporter| match orders {
        Orders::Double(a) => a.lock().expect("locked").iter_mut().for_each(|x| *x *= 2),
        Orders::DoubleChunk(a, chunk) => {
            a.chunk(chunk).expect("there").lock().expect("locked").iter_mut().for_each(|x| *x *= 2);
            reporter.report(&true);
        }
        Orders::Hold(a, chunks) => {
            let mut guards: Vec<_> =
                chunks.iter().map(|&i| a.chunk(i).expect("there").lock().expect("locked")).collect();
            guards.iter_mut().for_each(|guard| guard.fill(-1));
            reporter.report(&true);
            park();
        }
        Orders::Count(counts, times) => (0..times).for_each(|_| {
            counts[0].fetch_add(1, Ordering::Relaxed);
        }),
        Orders::Walk(a, rounds) => {
            for round in 0..rounds {
                let chunk = a.chunk(round % a.chunk_count()).expect("there");
                chunk.lock().expect("locked").iter_mut().for_each(|x| *x += 1);
            }
        }
        Orders::Read(a) => {
            let _guard = a.chunk(0).expect("there").read().expect("locked");
            reporter.report(&true);
            park();
        }
    });
}

fn park() -> ! {
    loop {
        std::thread::park();
    }
}

/// An array of 30 elements, 0 to 29, in three chunks.
fn three_chunks() -> SharedArray<i64> {
    let elements: Vec<i64> = (0..30).collect();
    SharedArray::builder(30).chunk_len(10).build_from(&elements).expect("an array")
}

/// A child that has locked chunks.
fn holder(a: &SharedArray<i64>, chunks: &[usize]) -> Peer {
    let peer = Peer::start(&Orders::Hold(a.clone(), chunks.to_vec()), None);
    assert_eq!(peer.report(), Some(true));
    peer
}

/// Serialises and deserialises within this process.
fn travel<A: Serialize, B: for<'de> Deserialize<'de>>(handle: &A) -> postcard::Result<B> {
    let session = SendSession::begin();
    let bytes = postcard::to_stdvec(handle).expect("in a session");
    let _session = ReceiveSession::begin(session.finish());
    postcard::from_bytes(&bytes)
}

#[test]
fn a_new_array_is_zero_even_where_memory_is_used_again() {
    for _ in 0..3 {
        let a = SharedArray::<i32>::zeroed(5000).expect("an array");
        assert!(a.lock().expect("locked").iter().all(|&x| x == 0));
        a.lock().expect("locked").fill(7);
    }
}

#[test]
fn elements_come_back() {
    let a = SharedArray::from_slice(&[1.5_f64, 2.5]).expect("an array");
    assert_eq!(a.to_vec().expect("copied"), [1.5, 2.5]);
    let a = SharedArray::from_iter((0..2000).map(|i| i * 3)).expect("an array");
    assert_eq!((a.len(), a.get(1999).expect("read")), (2000, 5997));
}

#[test]
fn the_whole_array_is_one_slice() {
    let a = three_chunks();
    let guard = a.lock().expect("locked");
    assert_eq!(guard.len(), 30);
    assert!(guard.iter().copied().eq(0..30));
}

#[test]
fn a_chunk_is_its_part_of_the_array() {
    let a = SharedArray::<i64>::chunked(25, 10).expect("an array");
    assert_eq!((a.chunk_count(), a.chunk_len()), (3, 10));
    let last = a.chunk(2).expect("there");
    assert_eq!((last.index(), last.range(), last.len()), (2, 20..25, 5));
    last.lock().expect("locked").fill(1);
    assert_eq!(a.to_vec().expect("copied")[19..], [0, 1, 1, 1, 1, 1]);
    assert!(a.chunks().map(|chunk| chunk.range()).eq([0..10, 10..20, 20..25]));
}

#[test]
fn a_chunk_that_is_not_there_is_an_error_that_names_it() {
    let error = three_chunks().chunk(3).expect_err("three").to_string();
    assert_eq!(error, "chunk 3 is out of range: there are 3");
}

#[test]
fn an_array_of_no_elements_is_refused() {
    assert!(SharedArray::<u8>::zeroed(0).expect_err("none").is_out_of_range());
    assert!(SharedArray::<u8>::from_slice(&[]).expect_err("none").is_out_of_range());
    assert!(SharedArray::<u8>::chunked(1, 0).expect_err("no chunk").is_out_of_range());
}

#[test]
fn a_length_beyond_every_address_is_refused() {
    for len in [usize::MAX, usize::MAX / 8, 1 << 50] {
        assert!(SharedArray::<u64>::zeroed(len).expect_err("too long").is_out_of_range());
    }
}

#[test]
fn more_than_the_memory_there_is_is_an_error() {
    assert!(SharedArray::<u64>::zeroed(1 << 40).expect_err("8 TiB").is_out_of_memory());
    let prefaulted = SharedArray::<u64>::builder(1 << 40).prefault().build();
    assert!(prefaulted.expect_err("8 TiB").is_out_of_memory());
    let sparse = SharedArray::<u64>::builder(1 << 40).sparse().build().expect("address space only");
    assert!(sparse.commit(0..1 << 40).expect_err("8 TiB").is_out_of_memory());
    sparse.commit(1 << 30..(1 << 30) + 10).expect("a page");
}

#[test]
fn an_array_above_four_gigabytes_works_at_both_ends() {
    let len = 5 << 27;
    let a = SharedArray::<u64>::builder(len).chunk_len(len / 5).sparse().build().expect("5 GiB of addresses");
    a.set(0, 1).expect("set");
    a.set(len - 1, 2).expect("set");
    let same: SharedArray<u64> = travel(&a).expect("arrived");
    assert_eq!((same.get(0).expect("read"), same.get(len - 1).expect("read")), (1, 2));
    let guard = a.lock().expect("locked");
    assert_eq!((guard[0], guard[len / 2], guard[len - 1]), (1, 0, 2));
}

#[test]
fn prefaulted_memory_is_zero_and_writable() {
    let a = SharedArray::<u8>::builder(3 << 20).prefault().build().expect("an array");
    a.lock().expect("locked").iter_mut().for_each(|x| *x += 1);
    a.prefault(0..a.len()).expect("again");
    assert!(a.lock().expect("locked").iter().all(|&x| x == 1));
    assert!(a.prefault(0..a.len() + 1).expect_err("beyond").is_out_of_range());
}

#[test]
fn chunks_lock_separately() {
    let _dog = watchdog();
    let a = three_chunks();
    let _first = a.chunk(0).expect("there").lock().expect("locked");
    let second = a.chunk(1).expect("there");
    second.try_lock().expect("free").fill(5);
    assert!(matches!(a.chunk(0).expect("there").try_lock(), Err(LockError::WouldBlock)));
}

#[test]
fn the_whole_array_is_not_had_while_a_chunk_is_locked() {
    let _dog = watchdog();
    let a = three_chunks();
    let guard = a.chunk(1).expect("there").lock().expect("locked");
    assert!(matches!(a.try_lock(), Err(LockError::WouldBlock)));
    assert!(matches!(a.lock_timeout(Duration::from_millis(3)), Err(LockError::TimedOut)));
    // What the attempts had of it is free again.
    a.chunk(0).expect("there").try_lock().expect("free").fill(1);
    drop(guard);
    drop(a.try_lock().expect("free"));
}

#[test]
fn a_panic_poisons_its_chunk_until_it_is_repaired() {
    let a = three_chunks();
    let b = a.clone();
    let panicked = std::thread::spawn(move || {
        let _guard = b.chunk(1).expect("there").lock().expect("locked");
        panic!("on purpose");
    });
    panicked.join().expect_err("it panicked");
    drop(a.chunk(0).expect("there").lock().expect("not poisoned"));
    let Err(LockError::Poisoned(guard)) = a.lock() else { panic!("not poisoned") };
    guard.mark_consistent();
    drop(guard);
    drop(a.lock().expect("repaired"));
}

#[test]
fn copies_cross_the_borders_of_chunks() {
    let a = three_chunks();
    let mut copy = [0; 12];
    a.copy_to(9, &mut copy).expect("copied");
    assert!(copy.into_iter().eq(9..21));
    a.copy_from(19, &[-1, -2]).expect("copied");
    assert_eq!((a.get(19).expect("read"), a.get(20).expect("read")), (-1, -2));
}

#[test]
fn a_range_that_is_not_there_is_an_error_and_nothing_is_copied() {
    let a = three_chunks();
    assert!(a.copy_from(29, &[7, 7]).expect_err("beyond").is_out_of_range());
    assert_eq!(a.get(29).expect("read"), 29);
    assert!(a.get(30).expect_err("beyond").is_out_of_range());
    assert!(a.copy_to(usize::MAX, &mut [0, 0]).expect_err("beyond").is_out_of_range());
    a.copy_to(30, &mut []).expect("nothing is everywhere");
}

#[test]
fn atomics_need_no_lock() {
    let counts = SharedArray::<AtomicU64>::zeroed(4).expect("an array");
    counts[2].fetch_add(5, Ordering::Relaxed);
    assert_eq!(counts.iter().map(|n| n.load(Ordering::Relaxed)).sum::<u64>(), 5);
    assert_eq!(counts.get(2).map(|n| n.load(Ordering::Relaxed)), Some(5));
}

#[test]
fn a_handle_outside_of_a_session_is_an_error() {
    postcard::to_stdvec(&three_chunks()).expect_err("no session");
}

#[test]
fn a_handle_that_travelled_is_the_same_array() {
    let a = three_chunks();
    let b: SharedArray<i64> = travel(&a).expect("arrived");
    assert!(SharedArray::ptr_eq(&a, &b));
    drop(a);
    b.set(3, 9).expect("set");
    assert_eq!(b.chunk_len(), 10);
}

#[test]
fn a_handle_of_other_elements_is_refused() {
    let error = travel::<_, SharedArray<u64>>(&three_chunks());
    assert!(error.is_err(), "i64 is not u64");
}

#[test]
fn an_array_says_what_it_is_and_not_what_is_in_it() {
    assert_eq!(
        format!("{:?}", three_chunks()),
        "SharedArray { element: \"i64\", len: 30, chunk_len: 10, .. }"
    );
    let a = SharedArray::from_slice(&[1_u8, 2]).expect("an array");
    assert_eq!(format!("{:?}", a.lock().expect("locked")), "[1, 2]");
}

#[test]
fn readers_share_and_writers_do_not() {
    let _dog = watchdog();
    let a = SharedArray::<i64>::builder(20).chunk_len(10).read_write().build().expect("an array");
    let one = a.read().expect("locked");
    let other = a.chunk(0).expect("there").try_read().expect("shared");
    assert!(matches!(a.chunk(0).expect("there").try_write(), Err(LockError::WouldBlock)));
    assert!(matches!(a.write_timeout(Duration::from_millis(3)), Err(LockError::TimedOut)));
    assert_eq!(one.len() + other.len(), 30);
    drop((one, other));
    a.chunk(1).expect("there").write().expect("free").fill(4);
    assert_eq!(a.read().expect("free").iter().sum::<i64>(), 40);
}

#[test]
fn where_locks_are_exclusive_reading_is_too() {
    let _dog = watchdog();
    let a = three_chunks();
    let _reader = a.read().expect("locked");
    assert!(matches!(a.try_read(), Err(LockError::WouldBlock)));
}

#[test]
fn a_child_doubles_what_its_parent_wrote() {
    let _dog = watchdog();
    let a = SharedArray::from_iter(0..10_000_i64).expect("an array");
    let child = Peer::start(&Orders::Double(a.clone()), None);
    assert!(child.wait().success());
    assert!(a.lock().expect("locked").iter().copied().eq((0..10_000).map(|x| x * 2)));
}

#[test]
fn processes_work_on_disjoint_chunks_at_once() {
    let _dog = watchdog();
    let a = three_chunks();
    let mut mine = a.chunk(0).expect("there").lock().expect("locked");
    let child = Peer::start(&Orders::DoubleChunk(a.clone(), 1), None);
    assert_eq!(child.report(), Some(true), "while chunk 0 is locked here");
    mine[1] = 100;
    drop(mine);
    assert_eq!((a.get(1).expect("read"), a.get(19).expect("read")), (100, 38));
}

#[test]
fn no_update_of_several_processes_is_lost() {
    let _dog = watchdog();
    let a = SharedArray::<i64>::chunked(40, 10).expect("an array");
    let children: Vec<_> = (0..3).map(|_| Peer::start(&Orders::Walk(a.clone(), 4000), None)).collect();
    children.into_iter().for_each(|child| assert!(child.wait().success()));
    assert!(a.lock().expect("locked").iter().all(|&x| x == 3000));
}

#[test]
fn atomics_count_in_several_processes() {
    let _dog = watchdog();
    let counts = SharedArray::<AtomicU64>::zeroed(1).expect("an array");
    let children: Vec<_> = (0..2).map(|_| Peer::start(&Orders::Count(counts.clone(), 5000), None)).collect();
    children.into_iter().for_each(|child| assert!(child.wait().success()));
    assert_eq!(counts[0].load(Ordering::Relaxed), 10_000);
}

#[test]
fn the_next_one_after_a_death_is_told_and_repairs() {
    let _dog = watchdog();
    let a = three_chunks();
    assert!(was_killed(holder(&a, &[1]).kill()));
    drop(a.chunk(0).expect("there").lock().expect("not the dead one's"));
    let Err(LockError::OwnerDied(mut guard)) = a.chunk(1).expect("there").lock() else { panic!("not told") };
    assert!(guard.iter().all(|&x| x == -1), "half changed");
    guard.fill(0);
    guard.mark_consistent();
    drop(guard);
    drop(a.lock().expect("repaired"));
}

#[test]
fn whoever_locks_everything_is_told_of_a_death_in_any_chunk() {
    let _dog = watchdog();
    let a = three_chunks();
    assert!(was_killed(holder(&a, &[0, 2]).kill()));
    let Err(LockError::OwnerDied(guard)) = a.lock() else { panic!("not told") };
    guard.mark_consistent();
    drop(guard);
    drop(a.lock().expect("repaired"));
}

#[test]
fn a_chunk_that_nobody_repaired_is_out_of_use_until_it_is_renewed() {
    let _dog = watchdog();
    let a = three_chunks();
    assert!(was_killed(holder(&a, &[1]).kill()));
    let chunk = a.chunk(1).expect("there");
    drop(chunk.lock().expect_err("died").into_guard());
    assert!(matches!(chunk.lock(), Err(LockError::Unrecoverable)));
    assert!(matches!(a.lock(), Err(LockError::Unrecoverable)));
    chunk.renew().expect("out of use").fill(0);
    drop(a.lock().expect("as new"));
}

#[test]
fn a_copy_after_a_death_fails_and_leaves_the_repair_to_the_next_lock() {
    let _dog = watchdog();
    for read_write in [false, true] {
        let builder = SharedArray::<i64>::builder(30).chunk_len(10);
        let a = if read_write { builder.read_write() } else { builder }.build().expect("an array");
        assert!(was_killed(holder(&a, &[1]).kill()));
        let mut copy = [5; 30];
        for _ in 0..2 {
            assert!(a.copy_to(0, &mut copy).expect_err("died").is_owner_died());
            assert!(a.copy_from(5, &copy[..10]).expect_err("died").is_owner_died());
            assert!(a.to_vec().expect_err("died").is_owner_died());
            assert!(a.freeze().expect_err("died").is_owner_died());
        }
        assert_eq!(copy, [5; 30]);
        assert_eq!(a.get(5).expect("not the dead one's"), 0);
        let Err(LockError::OwnerDied(guard)) = a.chunk(1).expect("there").lock() else { panic!("not told") };
        guard.mark_consistent();
    }
}

#[test]
fn a_death_is_not_forgotten_when_the_whole_array_is_not_had_in_time() {
    let _dog = watchdog();
    for read_write in [false, true] {
        let builder = SharedArray::<i64>::builder(30).chunk_len(10);
        let a = if read_write { builder.read_write() } else { builder }.build().expect("an array");
        assert!(was_killed(holder(&a, &[0]).kill()));
        let last = a.chunk(2).expect("there").lock().expect("locked");
        assert!(matches!(a.lock_timeout(Duration::from_millis(1)), Err(LockError::TimedOut)));
        assert!(matches!(a.try_lock(), Err(LockError::WouldBlock)));
        drop(last);
        assert!(matches!(a.lock(), Err(LockError::OwnerDied(_))));
    }
}

#[test]
fn a_dead_reader_hinders_nobody() {
    let _dog = watchdog();
    let a = SharedArray::<i64>::builder(10).read_write().build().expect("an array");
    let reader = Peer::start(&Orders::Read(a.clone()), None);
    assert_eq!(reader.report(), Some(true));
    assert!(matches!(a.try_write(), Err(LockError::WouldBlock)));
    assert!(was_killed(reader.kill()));
    a.write().expect("free").fill(1);
}

/// Runs `body` in a forked child, which must return true.
fn in_a_fork(body: impl FnOnce() -> bool) {
    // SAFETY: the child uses what `body` does, which takes no lock that another thread could hold, and ends.
    let id = unsafe { libc::fork() };
    if id == 0 {
        let fine = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(false);
        // SAFETY: ends the child without running anything of the parent's.
        unsafe { libc::_exit(if fine { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: waits for the child of this test.
    assert_eq!(unsafe { libc::waitpid(id, &raw mut status, 0) }, id);
    assert_eq!(status, 0, "the child found everything as it should be");
}

#[test]
fn a_forked_child_goes_on_with_its_handles() {
    let _dog = watchdog();
    let (a, counts) = (three_chunks(), SharedArray::<AtomicU64>::zeroed(1).expect("an array"));
    in_a_fork(|| {
        a.chunk(2).expect("there").lock().expect("locked").fill(8);
        counts[0].fetch_add(1, Ordering::Relaxed);
        a.get(25).is_ok_and(|x| x == 8)
    });
    assert_eq!((a.get(29).expect("read"), counts[0].load(Ordering::Relaxed)), (8, 1));
}

#[test]
fn a_guard_is_of_no_use_in_a_forked_child_and_stays_its_parents() {
    let _dog = watchdog();
    let a = three_chunks();
    let guard = a.lock().expect("locked");
    in_a_fork(move || {
        let guard = guard;
        std::panic::set_hook(Box::new(|_| ()));
        let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| guard[0])).is_err();
        drop(guard);
        refused
    });
}

#[test]
fn a_forked_child_that_drops_a_guard_unlocks_nothing() {
    let _dog = watchdog();
    let a = three_chunks();
    let guard = a.lock().expect("locked");
    let slot = std::cell::RefCell::new(Some(guard));
    in_a_fork(|| {
        drop(slot.borrow_mut().take());
        matches!(a.try_lock(), Err(LockError::WouldBlock))
    });
    assert!(matches!(a.try_lock(), Err(LockError::WouldBlock)));
    assert_eq!(slot.borrow().as_ref().map(|guard| guard[7]), Some(7));
}

#[cfg(feature = "ndarray")]
#[test]
fn a_shape_that_does_not_fit_is_an_error() {
    use ndarray::ShapeBuilder;
    let a = SharedArray::from_iter(0..6).expect("an array");
    let mut guard = a.lock().expect("locked");
    assert_eq!(guard.view((3, 2)).expect("six")[[2, 0]], 4);
    assert_eq!(guard.view((3, 2).f()).expect("six, by columns")[[2, 0]], 2);
    assert_eq!(guard.view((2, 2).strides((3, 1))).expect("inside")[[1, 1]], 4);
    assert!(guard.view((4, 2)).expect_err("eight").is_mismatch());
    assert!(guard.view((3, 2).strides((3, 1))).expect_err("beyond the end").is_mismatch());
    assert!(guard.view_mut((2, 2).strides((1, 1))).expect_err("an element twice").is_mismatch());
    guard.view_mut(6).expect("six").fill(7);
    drop(guard);
    assert_eq!(a.freeze().expect("frozen").view((2, 3)).expect("six").sum(), 42);
}

/// A process dies at each step of a lock.
#[cfg(feature = "crash-points")]
#[test]
fn a_death_at_every_step_is_told_unless_it_held_nothing() {
    let _dog = watchdog();
    for (point, told) in [("lock.taken", true), ("lock.releasing", true), ("lock.released", false)] {
        let a = three_chunks();
        let child = Peer::start(&Orders::DoubleChunk(a.clone(), 1), Some(point));
        assert!(was_killed(child.wait()), "at {point}");
        match a.lock() {
            Ok(guard) => assert!(!told && guard[10] == 20, "after {point}"),
            Err(LockError::OwnerDied(guard)) => {
                assert!(told, "after {point}");
                guard.mark_consistent();
            }
            Err(error) => panic!("{error:?}"),
        }
        drop(a.lock().expect("as before"));
    }
}

/// A process dies in the middle of taking or giving back the lock of a sharable array.
#[cfg(feature = "crash-points")]
#[test]
fn a_death_at_every_step_of_a_reader_hinders_nobody() {
    let _dog = watchdog();
    for point in ["rwlock.read.raised", "rwlock.read.inside"] {
        let a = SharedArray::<i64>::builder(10).read_write().build().expect("an array");
        assert!(was_killed(Peer::start(&Orders::Read(a.clone()), Some(point)).wait()), "at {point}");
        a.write().expect("free").fill(1);
        assert_eq!(a.read().expect("free")[9], 1);
    }
}

/// Claims a length that is not its own.
struct Liar {
    left: i64,
    claim: usize,
}

impl Iterator for Liar {
    type Item = i64;

    fn next(&mut self) -> Option<i64> {
        self.left -= 1;
        (self.left >= 0).then_some(self.left)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.claim, Some(self.claim))
    }
}

#[test]
fn an_iterator_that_is_wrong_about_its_length_is_stored_as_it_is() {
    for claim in [0, 1, 2, 3, 4, 5] {
        let array = SharedArray::from_iter(Liar { left: 3, claim }).expect("memory for three");
        assert_eq!(array.to_vec().expect("in service"), [2, 1, 0], "with a claim of {claim}");
    }
}
