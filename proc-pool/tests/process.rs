//! One function in one process: arguments, results, handles, names, environment.

mod common;

use common::*;
use proc_pool::{Process, TaskError};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::time::Duration;

fn square(x: u64) -> u64 {
    x * x
}

fn sleeper((): ()) {
    sleep_forever()
}

#[test]
fn a_result_comes_back() {
    let _dog = watchdog();
    let child = Process::spawn(square, 12).expect("spawned");
    assert_eq!(child.join(), Ok(144));
}

#[test]
fn join_may_be_asked_again() {
    let _dog = watchdog();
    let child = Process::spawn(|x: u64| vec![x; 3], 7).expect("spawned");
    assert_eq!(child.join(), Ok(vec![7; 3]));
    assert_eq!(child.join(), Ok(vec![7; 3]));
}

#[test]
fn several_threads_may_join() {
    let _dog = watchdog();
    let (reader, gate) = pipe();
    let child = Process::spawn(
        |gate: Handle| {
            until_ready(&gate.0);
            5u8
        },
        Handle(reader.into_inner().into()),
    )
    .expect("spawned");
    std::thread::scope(|scope| {
        let joins: Vec<_> = (0..3).map(|_| scope.spawn(|| child.join())).collect();
        drop(gate);
        for join in joins {
            assert_eq!(join.join().expect("no panic"), Ok(5));
        }
    });
}

#[test]
fn join_timeout_gives_up_and_the_child_goes_on() {
    let _dog = watchdog();
    let child = Process::spawn(sleeper, ()).expect("spawned");
    assert_eq!(child.join_timeout(Duration::from_millis(20)), Ok(None));
    assert_eq!(child.join_timeout(Duration::ZERO), Ok(None));
    assert!(child.is_alive());
    child.kill().expect("killed");
    assert_eq!(death(child.join_timeout(Duration::MAX)), (Some(SIGKILL), None));
}

#[test]
fn large_arguments_and_results_come_back() {
    let _dog = watchdog();
    let value: Vec<u64> = (0..2 << 20).map(|i| i << 20).collect();
    let reversed = |mut value: Vec<u64>| {
        value.reverse();
        value
    };
    let child = Process::spawn(reversed, value.clone()).expect("spawned");
    assert!(child.join().expect("a result").iter().rev().eq(&value));
}

#[test]
fn a_large_result_that_nobody_asks_for_does_not_block_the_child() {
    let _dog = watchdog();
    let child = Process::spawn(|len: usize| vec![1u8; len], 1 << 20).expect("spawned");
    until_ready(&child);
    assert_eq!(child.exit_status().and_then(|status| status.code()), Some(0));
    assert_eq!(child.join().expect("a result").len(), 1 << 20);
}

#[test]
fn handles_travel_in_arguments() {
    let _dog = watchdog();
    let (mut reader, writer) = pipe();
    let child = Process::spawn(|(writer, text): (Handle, String)| writer.say(text), (writer, "hello".into()))
        .expect("spawned");
    assert_eq!(line(&mut reader), "hello");
    assert_eq!(child.join(), Ok(()));
    assert_eq!(line(&mut reader), "", "nobody else holds the writing end");
}

#[test]
fn handles_travel_in_results_and_go_to_the_first_that_asks() {
    let _dog = watchdog();
    let child = Process::spawn(
        |()| {
            let (reader, writer) = pipe();
            writer.say("from the child");
            Handle(reader.into_inner().into())
        },
        (),
    )
    .expect("spawned");
    let handle = child.join().expect("a result");
    assert_eq!(line(&mut std::io::BufReader::new(handle.0.into())), "from the child");
    assert!(matches!(child.join(), Err(TaskError::Unavailable { .. })));
}

struct Picky;

impl Serialize for Picky {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(3)
    }
}

impl<'de> Deserialize<'de> for Picky {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u8::deserialize(deserializer)?;
        Err(serde::de::Error::custom("never good enough"))
    }
}

#[derive(Deserialize)]
struct Secret;

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("nobody may know"))
    }
}

#[test]
fn a_result_that_does_not_decode_is_a_codec_error() {
    let _dog = watchdog();
    let child = Process::spawn(|()| Picky, ()).expect("spawned");
    let error = child.join().map(drop).expect_err("it never decodes");
    assert!(
        matches!(&error, TaskError::Codec { message, .. } if message.starts_with("the result cannot be decoded"))
    );
}

#[test]
fn a_result_that_does_not_encode_is_a_codec_error() {
    let _dog = watchdog();
    let child = Process::spawn(|()| Secret, ()).expect("spawned");
    let error = child.join().map(drop).expect_err("it never encodes");
    assert!(
        matches!(&error, TaskError::Codec { message, .. } if message.starts_with("the result cannot be encoded"))
    );
    assert_eq!(child.exit_status().and_then(|status| status.code()), Some(1));
}

#[test]
fn an_argument_that_does_not_decode_is_a_codec_error() {
    let _dog = watchdog();
    let child = Process::spawn(|_: Picky| (), Picky).expect("spawned");
    let error = child.join().expect_err("it never decodes");
    assert!(matches!(&error, TaskError::Codec { message, .. } if message.starts_with("the argument")));
}

#[test]
fn an_argument_that_does_not_encode_starts_nothing() {
    let error = Process::spawn(|_: Secret| (), Secret).expect_err("it never encodes");
    assert!(matches!(error.task(), Some(TaskError::Codec { .. })), "{error}");
}

#[test]
fn too_many_handles_are_refused_with_the_limit() {
    let (_, writer) = pipe();
    let many: Vec<Handle> = (0..241).map(|_| Handle(writer.0.try_clone().expect("a descriptor"))).collect();
    let error = Process::spawn(|_: Vec<Handle>| (), many).expect_err("too many");
    assert!(error.to_string().contains("241 handles, and the limit is 240"), "{error}");
}

#[test]
fn the_environment_of_the_builder_is_the_childs() {
    let _dog = watchdog();
    let child = Process::builder()
        .env("PROC_POOL_TEST_KEY", "value")
        .env_remove("PATH")
        .spawn(|()| ["PROC_POOL_TEST_KEY", "PATH", "PROC_POOL_WORKER"].map(|key| std::env::var(key).ok()), ())
        .expect("spawned");
    assert_eq!(child.join(), Ok([Some("value".into()), None, None]));
}

#[test]
fn a_name_is_the_childs() {
    let _dog = watchdog();
    let comm = |()| std::fs::read_to_string("/proc/self/comm").expect("procfs");
    let child = Process::builder().name("a-name").spawn(comm, ()).expect("spawned");
    assert_eq!(child.name(), "a-name");
    assert_eq!(child.join().as_deref(), Ok("a-name\n"));
    let child = Process::spawn(square, 1).expect("spawned");
    assert!(child.name().starts_with("process-"), "{}", child.name());
}

#[test]
fn bad_names_and_variables_are_refused_with_their_value() {
    let error = Process::builder().name("x".repeat(256)).spawn(square, 1).expect_err("too long");
    assert!(error.is_invalid_input() && error.to_string().contains("256 bytes"), "{error}");
    for (key, value) in [("", "x"), ("A=B", "x"), ("A\0", "x"), ("A", "x\0")] {
        let error = Process::builder().env(key, value).spawn(square, 1).expect_err("not a variable");
        assert!(error.is_invalid_input(), "{error}");
    }
}

#[test]
fn stdin_of_a_child_is_empty() {
    let _dog = watchdog();
    let read = |()| std::io::read_to_string(std::io::stdin()).expect("readable");
    assert_eq!(Process::spawn(read, ()).expect("spawned").join().as_deref(), Ok(""));
}

#[test]
fn a_child_leads_a_process_group_of_its_own() {
    let _dog = watchdog();
    let group = |()| rustix::process::getpgrp().as_raw_nonzero().get().unsigned_abs();
    let child = Process::spawn(group, ()).expect("spawned");
    assert_eq!(child.join(), Ok(child.id()));
}

#[test]
fn debug_shows_name_and_function() {
    let _dog = watchdog();
    let child = Process::spawn(square, 1).expect("spawned");
    let text = format!("{child:?}");
    assert!(text.contains("process::square") && text.contains(child.name()), "{text}");
}

#[test]
fn a_blocked_signal_of_the_parent_is_not_blocked_in_the_child() {
    let _dog = watchdog();
    let parent = Process::spawn(
        |()| {
            // SAFETY: plain calls with valid arguments.
            unsafe {
                let mut set: libc::sigset_t = std::mem::zeroed();
                libc::sigfillset(&mut set);
                libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            }
            let child = Process::spawn(sleeper, ()).expect("spawned");
            child.terminate().expect("signalled");
            child.join().map_err(|error| error.to_string())
        },
        (),
    )
    .expect("spawned");
    let error = parent.join().expect("a result").expect_err("terminated");
    assert!(error.contains("SIGTERM"), "{error}");
}
