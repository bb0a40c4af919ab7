//! A small file system behind `/dev/shm`.

use super::common::Reporter;
use super::forked::{in_forked_child, returned_true};
use super::*;

/// In a child that has `/dev/shm` for itself, with 1 MiB of memory.
pub(crate) fn fill_up(reporter: &Reporter) {
    // SAFETY: plain system calls with literal arguments; this thread gets file systems of its own.
    let alone = unsafe {
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(
                c"".as_ptr(),
                c"/".as_ptr(),
                c"".as_ptr(),
                libc::MS_REC | libc::MS_PRIVATE,
                c"".as_ptr().cast(),
            ) == 0
            && libc::mount(
                c"tmpfs".as_ptr(),
                c"/dev/shm".as_ptr(),
                c"tmpfs".as_ptr(),
                0,
                c"size=1m".as_ptr().cast(),
            ) == 0
    };
    reporter.report(&alone);
    if !alone {
        return;
    }
    let entries = || std::fs::read_dir("/dev/shm").expect("listed").count();
    let error = NamedMemory::create("too-large", 2 << 20).expect_err("there is not enough");
    assert!(error.is_out_of_memory(), "{error}");
    assert_eq!(entries(), 0, "nothing is left of it");
    let half = NamedMemory::create("half", 512 << 10).expect("there is enough");
    let error = NamedMemory::create("rest", 600 << 10).expect_err("there is not enough left");
    assert!(error.is_out_of_memory(), "{error}");
    // Every byte can be touched, though the file system is full.
    let mut fillers: Vec<NamedMemory> = Vec::new();
    while let Ok(filler) = NamedMemory::create_random("filler-", 4096) {
        fillers.push(filler);
    }
    let base = half.base().expect("mapped");
    (0..half.len()).for_each(|at| {
        // SAFETY: inside the mapping.
        unsafe { base.add(at).write_volatile(1) }
    });
    // What others create has no memory behind it: an error, no signal.
    std::fs::File::create("/dev/shm/sparse").expect("created").set_len(1 << 20).expect("sparse");
    let sparse = NamedMemory::open("sparse").expect("attached");
    assert!(sparse.write_at(0, &[1; 4096]).expect_err("full").is_out_of_memory());
    assert!(sparse.commit().expect_err("full").is_out_of_memory());
    sparse.read_at(0, &mut [0; 4096]).expect("zeros");
    drop((half, fillers));
    sparse.write_at(0, &[1; 4096]).expect("there is room again");
    sparse.unlink().expect("unlinked");
    drop(sparse);
    assert_eq!(entries(), 0);
    // What the dead left makes room for the living.
    left_by_the_dead(900 << 10);
    NamedMemory::create("large", 900 << 10).expect("scavenged");
    reporter.report(&true);
}

/// Leaves memory behind as a killed holder does.
fn left_by_the_dead(len: usize) {
    let child = in_forked_child(|| {
        std::mem::forget(NamedMemory::create("left", len).expect("created"));
        true
    });
    returned_true(child);
    assert!(exists("left"));
}

#[test]
fn a_full_file_system_is_an_error_and_no_signal() {
    let _watchdog = watchdog();
    let peer = start(&Orders::FillUp, None);
    match peer.report() {
        Some(true) => assert_eq!(peer.report(), Some(true), "it survived"),
        Some(false) => eprintln!("skipped: only root may mount a file system"),
        None => panic!("the child died"),
    }
}
