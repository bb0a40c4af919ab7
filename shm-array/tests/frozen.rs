//! Frozen arrays within one process and between several. One fact per test.
#![cfg(not(loom))]
#![allow(unsafe_code, reason = "forks, and maps memory")]

mod common;

use common::{Peer, Reporter, child as child_of_test, watchdog};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, ftruncate, memfd_create};
use serde::Serialize;
use shm_array::{FrozenArray, SharedArray};
use shm_core::handle::{ReceiveSession, SendSession};
use std::os::fd::OwnedFd;

#[test]
fn child() {
    child_of_test(|numbers: FrozenArray<u64>, reporter: &Reporter| {
        reporter.report(&numbers.iter().sum::<u64>());
    });
}

/// The bytes and the file of a handle on its way.
fn leave(handle: &impl Serialize) -> (Vec<u8>, Vec<OwnedFd>) {
    let session = SendSession::begin();
    let bytes = postcard::to_stdvec(handle).expect("in a session");
    (bytes, session.finish())
}

fn arrive<T: shm_array::Plain>(bytes: &[u8], files: Vec<OwnedFd>) -> postcard::Result<FrozenArray<T>> {
    let _session = ReceiveSession::begin(files);
    postcard::from_bytes(bytes)
}

#[test]
fn elements_come_back() {
    let numbers = FrozenArray::from_iter(0..5000_u64).expect("frozen");
    assert!(numbers.iter().copied().eq(0..5000));
    assert_eq!(&*FrozenArray::from_slice(&[1.5_f32]).expect("frozen"), [1.5]);
}

#[test]
fn there_may_be_none() {
    let none = FrozenArray::<u64>::from_slice(&[]).expect("frozen");
    let (bytes, files) = leave(&none);
    assert!(arrive::<u64>(&bytes, files).expect("arrived").is_empty());
}

#[test]
fn what_is_frozen_is_a_copy_as_of_then() {
    let a = SharedArray::from_slice(&[1, 2, 3]).expect("an array");
    let frozen = a.freeze().expect("frozen");
    a.set(0, 9).expect("set");
    assert_eq!(&*frozen, [1, 2, 3]);
}

#[test]
fn handles_are_compared_by_what_they_lend() {
    let (one, other) = (FrozenArray::from_slice(&[1_u8]), FrozenArray::from_slice(&[1_u8]));
    let (one, other) = (one.expect("frozen"), other.expect("frozen"));
    assert_eq!(one, other);
    assert!(FrozenArray::ptr_eq(&one, &one.clone()) && !FrozenArray::ptr_eq(&one, &other));
    assert_eq!(format!("{one:?}"), "[1]");
}

#[test]
fn another_process_borrows_it() {
    let _dog = watchdog();
    let numbers = FrozenArray::from_iter(0..100_000_u64).expect("frozen");
    let peer = Peer::start(&numbers, None);
    assert_eq!(peer.report(), Some(numbers.iter().sum::<u64>()));
}

#[test]
fn a_handle_on_its_way_keeps_the_memory() {
    let numbers = FrozenArray::from_slice(&[4_u64, 5]).expect("frozen");
    let (bytes, files) = leave(&numbers);
    drop(numbers);
    assert_eq!(&*arrive::<u64>(&bytes, files).expect("arrived"), [4, 5]);
}

#[test]
fn the_file_is_sealed_for_good() {
    let (_, files) = leave(&FrozenArray::from_slice(&[4_u64]).expect("frozen"));
    let seals = fcntl_get_seals(&files[0]).expect("a memory file");
    assert!(seals.contains(SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL));
    assert!(rustix::io::pwrite(&files[0], b"x", 0).is_err());
    assert!(ftruncate(&files[0], 0).is_err());
}

#[test]
fn a_file_that_can_still_change_is_refused() {
    let (bytes, _) = leave(&FrozenArray::from_slice(&[4_u64]).expect("frozen"));
    for seals in [SealFlags::empty(), SealFlags::SHRINK | SealFlags::GROW, SealFlags::WRITE | SealFlags::GROW]
    {
        let file = memfd_create("test", MemfdFlags::ALLOW_SEALING).expect("created");
        ftruncate(&file, 8).expect("as long as announced");
        fcntl_add_seals(&file, seals).expect("sealed");
        let error = arrive::<u64>(&bytes, vec![file]);
        assert!(error.is_err(), "with {seals:?}");
    }
    let file = tempfile::tempfile().expect("created");
    assert!(arrive::<u64>(&bytes, vec![file.into()]).is_err(), "not even a memory file");
}

#[test]
fn a_file_of_another_length_is_refused() {
    let (bytes, _) = leave(&FrozenArray::from_slice(&[4_u64, 5]).expect("frozen"));
    for other in [1, 3] {
        let (_, files) = leave(&FrozenArray::from_iter(0..other as u64).expect("frozen"));
        assert!(arrive::<u64>(&bytes, files).is_err(), "{other} elements");
    }
}

#[test]
fn other_elements_are_refused() {
    let (bytes, files) = leave(&FrozenArray::from_slice(&[4_u64]).expect("frozen"));
    assert!(arrive::<i64>(&bytes, files).is_err());
}

#[test]
fn a_forked_child_reads_on() {
    let _dog = watchdog();
    let numbers = FrozenArray::from_iter(0..5000_u64).expect("frozen");
    // SAFETY: the child reads memory and ends.
    let id = unsafe { libc::fork() };
    if id == 0 {
        let right = numbers[4999] == 4999 && numbers.clone().len() == 5000;
        // SAFETY: ends the child without running anything of the parent's.
        unsafe { libc::_exit(if right { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: waits for the child of this test.
    assert_eq!(unsafe { libc::waitpid(id, &raw mut status, 0) }, id);
    assert_eq!(status, 0);
}
