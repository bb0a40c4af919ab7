//! Which functions can be sent, and which one arrives.

mod common;

use common::watchdog;
use proc_pool::Process;
use serde::Serialize;
use serde::de::DeserializeOwned;

fn run<F, A, R>(function: F, argument: A) -> R
where
    F: Fn(A) -> R + Copy + Send + Sync + 'static,
    A: Serialize + DeserializeOwned,
    R: Serialize + DeserializeOwned,
{
    Process::spawn(function, argument).expect("spawned").join().expect("a result")
}

fn name_of<T>(_: ()) -> String {
    std::any::type_name::<T>().to_owned()
}

#[test]
fn functions_and_closures_of_one_type_are_told_apart() {
    let _dog = watchdog();
    let functions = (|x: u32| x + 1, |x: u32| x + 2, |x: u32| x + 1);
    assert_eq!(run(functions.0, 10), 11);
    assert_eq!(run(functions.1, 10), 12);
    assert_eq!(run(functions.2, 10), 11);
}

#[test]
fn generic_functions_keep_their_types() {
    let _dog = watchdog();
    assert_eq!(run(name_of::<u8>, ()), "u8");
    assert_eq!(run(name_of::<Vec<String>>, ()), "alloc::vec::Vec<alloc::string::String>");
}

#[test]
fn functions_of_the_standard_library_can_be_sent() {
    let _dog = watchdog();
    assert_eq!(run(u64::swap_bytes, 1), 1 << 56);
    assert_eq!(run(|text: String| text.to_uppercase(), "straße".into()), "STRASSE");
}

#[test]
fn a_constructor_is_a_function() {
    let _dog = watchdog();
    assert_eq!(run(Some::<u8>, 4), Some(4));
}

#[test]
fn a_function_may_return_a_result_as_its_value() {
    let _dog = watchdog();
    let risky = |x: u32| if x == 3 { Err("three".to_owned()) } else { Ok(x) };
    assert_eq!(run(risky, 3), Err("three".to_owned()));
    assert_eq!(run(risky, 4), Ok(4));
}
