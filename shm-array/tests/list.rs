//! Shared lists within one process and between several. One fact per test.
#![cfg(not(loom))]
#![allow(unsafe_code, reason = "forks")]

mod common;

use common::{Peer, Reporter, child as child_of_test, was_killed, watchdog};
use serde::{Deserialize, Serialize};
use shm_array::{ListValue, SharedArray, SharedList};
use shm_core::handle::{ReceiveSession, SendSession};
use std::sync::atomic::AtomicU64;

/// What a child does.
#[derive(Serialize, Deserialize)]
enum Orders {
    Set(SharedList),
    Add(SharedList, u32),
    /// Changes the cells until its end; reports when it has begun.
    Scribe(SharedList),
    /// Holds the list's lock, reports, and waits for its end.
    Hold(SharedList),
}

#[test]
fn child() {
    child_of_test(|orders, reporter: &Reporter| match orders {
        Orders::Set(list) => list.set(1, "child").expect("fits"),
        Orders::Add(list, times) => (0..times).for_each(|_| {
            list.update(0, |n| n.as_int().expect("a number") + 1).expect("fits");
        }),
        Orders::Scribe(list) => {
            for i in 0.. {
                let text = if i % 2 == 0 { "even, and quite long" } else { "odd" };
                list.set(0, text).expect("fits");
                list.set(1, i).expect("fits");
                if i == 50 {
                    reporter.report(&true);
                }
            }
        }
        Orders::Hold(list) => {
            let _ = list.update(0, |_| -> ListValue {
                reporter.report(&true);
                loop {
                    std::thread::park();
                }
            });
        }
    });
}

fn mixed() -> SharedList {
    let builder = SharedList::builder().cell("howdy").cell(b"HoWdY").cell(-273.154).cell(100).cell(());
    builder.cell(true).cell(42).build().expect("a list")
}

/// The bytes of a handle, and the handle that they become.
fn travel(list: &SharedList) -> (Vec<u8>, postcard::Result<SharedList>) {
    let session = SendSession::begin();
    let bytes = postcard::to_stdvec(list).expect("in a session");
    let _session = ReceiveSession::begin(session.finish());
    let arrived = postcard::from_bytes(&bytes);
    (bytes, arrived)
}

#[test]
fn values_of_every_kind_come_back() {
    let list = mixed();
    let expected: [ListValue; 7] =
        ["howdy".into(), b"HoWdY".into(), (-273.154).into(), 100.into(), ().into(), true.into(), 42.into()];
    assert_eq!(list.to_vec().expect("copied"), expected);
    assert!(list.iter().map(|value| value.expect("read")).eq(expected));
    assert_eq!(list.len(), 7);
}

#[test]
fn a_cell_that_is_not_there_is_an_error_that_names_it() {
    let list = mixed();
    assert_eq!(list.get(7).expect_err("seven").to_string(), "cell 7 is out of range: there are 7");
    let error = list.set(7, "value").expect_err("seven");
    assert!(error.reason().is_out_of_range());
    assert_eq!(error.into_value(), "value".into());
}

#[test]
fn a_value_may_become_one_of_another_kind() {
    let list = mixed();
    for value in [7.into(), "some".into(), (-1.25).into(), ListValue::None, false.into(), b"12345678".into()]
    {
        list.set(3, value.clone()).expect("fits");
        assert_eq!(list.get(3).expect("read"), value);
    }
}

#[test]
fn what_is_too_long_is_handed_back_and_the_old_value_kept() {
    let list = mixed();
    let error = list.set(0, "far too many").expect_err("twelve bytes into eight");
    assert_eq!(error.to_string(), "the length in bytes of a cell's value is 12; the limit is 8");
    assert_eq!(error.into_value(), "far too many".into());
    assert_eq!(list.get(0).expect("kept"), "howdy".into());
}

#[test]
fn eight_bytes_of_utf8_fit_and_nine_do_not() {
    let list = mixed();
    list.set(0, "encodés").expect("eight bytes");
    assert_eq!(list.get(0).expect("read"), "encodés".into());
    list.set(0, "encodées").expect_err("nine bytes");
    assert_eq!(list.get(0).expect("kept"), "encodés".into());
    assert_eq!(list.get(1).expect("the neighbour"), b"HoWdY".into());
}

#[test]
fn lengths_are_kept_as_they_are() {
    let list = SharedList::new([&b"\0\0"[..], b"", b"x\0"]).expect("a list");
    assert_eq!(list.get(0).expect("read"), b"\0\0".into());
    assert_eq!(list.get(1).expect("read"), b"".into());
    assert_eq!(list.get(2).expect("read"), b"x\0".into());
}

#[test]
fn cells_have_the_room_of_pythons_and_more_where_asked_for() {
    let list = SharedList::builder().cell("").cell("1234567").cell("12345678").cell(1);
    let list = list.cell_with_capacity("x", 30).build().expect("a list");
    let capacities: Vec<_> = (0..6).map(|i| list.capacity(i)).collect();
    assert_eq!(capacities, [Some(8), Some(8), Some(16), Some(8), Some(32), None]);
}

#[test]
fn values_are_counted_and_found() {
    let list = SharedList::new([2, 5, 2, 7]).expect("a list");
    assert_eq!((list.count(2).expect("counted"), list.count(3).expect("counted")), (2, 0));
    assert_eq!((list.index(7).expect("looked"), list.index("7").expect("looked")), (Some(3), None));
}

#[test]
fn a_copy_is_independent_and_has_the_same_room() {
    let list = SharedList::builder().cell_with_capacity("a", 40).cell(1).build().expect("a list");
    let copy = list.copy().expect("copied");
    assert!(!SharedList::ptr_eq(&list, &copy));
    list.set(1, 2).expect("fits");
    assert_eq!((copy.get(1).expect("read"), copy.capacity(0)), (1.into(), Some(40)));
}

#[test]
fn there_may_be_no_cells() {
    let list = SharedList::new::<i64>([]).expect("a list");
    assert!(list.is_empty() && list.to_vec().expect("copied").is_empty());
    assert!(travel(&list).1.expect("arrived").is_empty());
}

#[test]
fn an_update_returns_what_was_before() {
    let list = SharedList::new([1, 2]).expect("a list");
    assert_eq!(list.update(1, |n| n.as_int().expect("a number") * 10).expect("fits"), 2.into());
    assert_eq!(list.get(1).expect("read"), 20.into());
    let error = list.update(1, |_| "much too long").expect_err("too long");
    assert_eq!(error.into_value(), "much too long".into());
}

#[test]
fn a_second_handle_sees_writes() {
    let list = mixed();
    let other = travel(&list).1.expect("arrived");
    other.set(0, "x").expect("fits");
    assert_eq!(list.get(0).expect("read"), "x".into());
    let clone = list.clone();
    drop((list, other));
    assert_eq!(clone.get(0).expect("read"), "x".into());
}

#[test]
fn a_handle_takes_as_many_bytes_whatever_is_in_the_list() {
    let long = SharedList::new(vec!["x".repeat(1000); 100]).expect("a list");
    assert_eq!(travel(&mixed()).0.len(), travel(&long).0.len());
}

#[test]
fn an_array_is_not_a_list() {
    let array = SharedArray::<AtomicU64>::zeroed(100).expect("an array");
    let session = SendSession::begin();
    let bytes = postcard::to_stdvec(&array).expect("in a session");
    let _session = ReceiveSession::begin(session.finish());
    postcard::from_bytes::<SharedList>(&bytes).expect_err("no list");
}

#[test]
fn a_list_shows_what_is_in_it() {
    let list = SharedList::builder().cell("a").cell(1).cell(()).build().expect("a list");
    assert_eq!(format!("{list:?}"), "[Str(\"a\"), Int(1), None]");
}

#[test]
fn another_process_sees_and_changes_it() {
    let _dog = watchdog();
    let list = mixed();
    assert!(Peer::start(&Orders::Set(list.clone()), None).wait().success());
    assert_eq!(list.get(1).expect("read"), "child".into());
}

#[test]
fn no_update_of_several_processes_is_lost() {
    let _dog = watchdog();
    let list = SharedList::new([0]).expect("a list");
    let children: Vec<_> = (0..3).map(|_| Peer::start(&Orders::Add(list.clone(), 3000), None)).collect();
    children.into_iter().for_each(|child| assert!(child.wait().success()));
    assert_eq!(list.get(0).expect("read"), 9000.into());
}

#[test]
fn writers_killed_at_any_moment_leave_whole_values() {
    let _dog = watchdog();
    let list = SharedList::builder().cell_with_capacity("", 40).cell(0).build().expect("a list");
    for _ in 0..10 {
        let scribe = Peer::start(&Orders::Scribe(list.clone()), None);
        assert_eq!(scribe.report(), Some(true));
        for _ in 0..500 {
            let text = list.get(0).expect("whole");
            assert!(["even, and quite long", "odd", "mine"].contains(&text.as_str().expect("a string")));
        }
        assert!(was_killed(scribe.kill()));
        list.set(0, "mine").expect("nobody has to repair anything");
        assert_eq!(list.get(0).expect("read"), "mine".into());
        assert!(list.to_vec().is_ok());
    }
}

#[test]
fn a_writer_that_dies_with_the_lock_is_waited_for_no_longer() {
    let _dog = watchdog();
    let list = SharedList::new([5]).expect("a list");
    let holder = Peer::start(&Orders::Hold(list.clone()), None);
    assert_eq!(holder.report(), Some(true));
    assert_eq!(list.get(0).expect("readers do not wait"), 5.into());
    assert!(was_killed(holder.kill()));
    list.set(0, 6).expect("as ever");
    assert_eq!(list.to_vec().expect("as ever"), [6.into()]);
}

#[test]
fn a_forked_child_goes_on_with_its_handle() {
    let _dog = watchdog();
    let list = SharedList::new([5]).expect("a list");
    // SAFETY: the child uses the list and ends.
    let id = unsafe { libc::fork() };
    if id == 0 {
        let fine = list.get(0).is_ok_and(|n| n == 5.into()) && list.set(0, 6).is_ok();
        // SAFETY: ends the child without running anything of the parent's.
        unsafe { libc::_exit(if fine { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: waits for the child of this test.
    assert_eq!(unsafe { libc::waitpid(id, &raw mut status, 0) }, id);
    assert_eq!((status, list.get(0).expect("read")), (0, 6.into()));
}
