//! Lists of mixed values.

use crate::start::Start;
use proc_pool::shared::{ListValue, SharedList};

conformance! {
    conformance_shareable_list_basics
    conformance_shareable_list_change_type
    conformance_shareable_list_too_long
    conformance_shareable_list_count_index
    conformance_shareable_list_copy
    conformance_shareable_list_empty
    conformance_shareable_list_pickling
    conformance_shareable_list_pickling_dead_object
}

/// CPython's list of everything.
fn everything() -> [ListValue; 7] {
    ["howdy".into(), b"HoWdY".into(), (-273.154).into(), 100.into(), ListValue::None, true.into(), 42.into()]
}

fn made(values: impl IntoIterator<Item = ListValue>) -> SharedList {
    SharedList::new(values).expect("made")
}

#[track_caller]
fn assert_is(list: &SharedList, values: &[ListValue]) {
    assert_eq!(list.to_vec().expect("whole"), values);
}

fn conformance_shareable_list_basics(start: Start) {
    let list = made(everything());
    assert_eq!(list.len(), 7);
    assert_is(&list, &everything());
    assert!(list.iter().map(|value| value.expect("whole")).eq(everything()));
    for index in [7, usize::MAX] {
        assert!(list.get(index).expect_err("not there").is_out_of_range());
        assert!(list.set(index, 1).expect_err("not there").reason().is_out_of_range());
    }
    // The same type, there; seen here.
    let change = |list: SharedList| {
        assert_is(&list, &everything());
        list.set(0, "hello").expect("as long");
        list.set(2, 1.5).expect("as long");
        list.update(6, |value| value.as_int().expect("a number") + 1).expect("as long");
    };
    start.run(change, list.clone());
    assert_eq!(list.get(0).expect("there"), "hello".into());
    assert_eq!(list.get(2).expect("there"), 1.5.into());
    assert_eq!(list.get(6).expect("there"), 43.into());
    assert_eq!(list.get(1).expect("there"), b"HoWdY".into());
}

fn conformance_shareable_list_change_type(start: Start) {
    let list = made(everything());
    let change = |list: SharedList| {
        list.set(3, "a word").expect("eight bytes are enough");
        list.set(0, 7).expect("shorter");
        list.set(4, b"\x00\x01\x00").expect("eight bytes are enough");
        list.set(5, ListValue::None).expect("nothing");
    };
    start.run(change, list.clone());
    let changed: [ListValue; 7] = [
        7.into(),
        b"HoWdY".into(),
        (-273.154).into(),
        "a word".into(),
        // With its zeros: Python's loses the last.
        b"\x00\x01\x00".into(),
        ListValue::None,
        42.into(),
    ];
    assert_is(&list, &changed);
    list.set(3, 100).expect("back again");
    assert_eq!(list.get(3).expect("there"), 100.into());
}

fn conformance_shareable_list_too_long(start: Start) {
    let list = made(["howdy".into(), ListValue::Int(-1), "é€".into(), "".into()]);
    let refused = |list: SharedList| {
        // One byte more than there is room for, next to others.
        for (index, too_long) in [(0, "123456789"), (1, "a number's"), (2, "ééééé"), (3, "123456789")] {
            let before = list.get(index).expect("there");
            let error = list.set(index, too_long).expect_err("too long");
            assert!(error.reason().is_out_of_range(), "{error}");
            assert_eq!(error.into_value(), too_long.into());
            assert_eq!(list.get(index).expect("there"), before);
        }
        // As many bytes as there is room for, of two each.
        list.set(2, "éééé").expect("eight bytes");
        list.set(3, "12345678").expect("eight bytes");
    };
    start.run(refused, list.clone());
    // Nothing spilt.
    assert_is(&list, &["howdy".into(), ListValue::Int(-1), "éééé".into(), "12345678".into()]);
}

fn conformance_shareable_list_count_index(start: Start) {
    let list = made([1, 2, 3, 2, 2].map(ListValue::from).into_iter().chain([true.into(), "2".into()]));
    let look = |list: SharedList| {
        assert_eq!(list.count(2).expect("whole"), 3);
        assert_eq!(list.count("2").expect("whole"), 1);
        assert_eq!(list.count("no").expect("whole"), 0);
        assert_eq!(list.index(2).expect("whole"), Some(1));
        assert_eq!(list.index(true).expect("whole"), Some(5));
        assert_eq!(list.index(100).expect("whole"), None);
    };
    look(list.clone());
    start.run(look, list);
}

fn conformance_shareable_list_copy(start: Start) {
    let list = made(everything());
    let copy = list.copy().expect("made");
    assert!(!SharedList::ptr_eq(&list, &copy));
    start.run(|copy: SharedList| copy.set(0, "copied").expect("it has room"), copy.clone());
    assert_eq!(copy.get(0).expect("there"), "copied".into());
    assert_is(&list, &everything());
    // A handle is no copy.
    let same = list.clone();
    start.run(|list: SharedList| list.set(0, "same").expect("it has room"), list);
    assert_eq!(same.get(0).expect("there"), "same".into());
}

fn conformance_shareable_list_empty(start: Start) {
    let list = made([]);
    let look = |list: SharedList| {
        assert!(list.is_empty());
        assert_is(&list, &[]);
        assert!(list.get(0).expect_err("not there").is_out_of_range());
        assert_eq!(list.count(1).expect("whole"), 0);
        assert_eq!(list.index(1).expect("whole"), None);
        assert_eq!(list.iter().count(), 0);
    };
    start.run(look, list);
}

fn conformance_shareable_list_pickling(start: Start) {
    let encoded = |list: &SharedList| {
        let _session = proc_pool::shm::handle::SendSession::begin();
        postcard::to_stdvec(list).expect("in a session").len()
    };
    let (short, long) = (made(["a".into()]), made((0..1000).map(|_| "a".repeat(100).into())));
    assert_eq!(encoded(&short), encoded(&long));
    let travelled = |list: SharedList| {
        assert_eq!(list.len(), 1000);
        list.set(999, 1).expect("it has room");
    };
    start.run(travelled, long.clone());
    assert_eq!(long.get(999).expect("there"), 1.into());
}

/// In Python a list whose memory was unlinked does not travel. Here a list lives as long as a handle of it does.
fn conformance_shareable_list_pickling_dead_object(start: Start) {
    let list = made(everything());
    // The one that made it lets go at once.
    start.run(|list: SharedList| assert_is(&list, &everything()), list);
}
