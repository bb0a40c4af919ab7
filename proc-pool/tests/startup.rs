//! How processes begin: `init`, the guard, the handshake. This binary has a `main` of its own, because most of the
//! cases are about programs that call `init` late or never: it starts itself in another role.

mod common;

use common::{until_gone, watchdog};
use proc_pool::{Error, Process};
use std::process::{Command, Output};
use std::time::Duration;

/// What a process of this binary is to do, if it is not the one that runs the cases.
const ROLE: &str = "PROC_POOL_TEST_ROLE";
/// `0` keeps `init` from running before `main`.
const CONSTRUCTOR: &str = "PROC_POOL_CTOR";

fn square(x: u64) -> u64 {
    x * x
}

fn main() {
    let _dog = watchdog();
    match std::env::var(ROLE) {
        Ok(role) => play(&role),
        Err(_) => {
            let cases: &[(&str, fn())] = &[
                ("a_process_without_init_may_start_nothing", a_process_without_init_may_start_nothing),
                ("a_program_with_init_in_main_works", a_program_with_init_in_main_works),
                ("init_may_be_called_again", init_may_be_called_again),
                (
                    "a_child_that_never_reaches_init_is_an_error_and_no_fork_bomb",
                    a_child_that_never_reaches_init_is_an_error_and_no_fork_bomb,
                ),
                (
                    "a_child_that_exits_before_the_handshake_is_an_error",
                    a_child_that_exits_before_the_handshake_is_an_error,
                ),
                (
                    "a_child_that_hangs_before_the_handshake_is_killed",
                    a_child_that_hangs_before_the_handshake_is_killed,
                ),
                ("a_child_that_answers_noise_is_an_error", a_child_that_answers_noise_is_an_error),
                (
                    "nesting_ends_with_an_error_that_names_the_limit",
                    nesting_ends_with_an_error_that_names_the_limit,
                ),
                (
                    "a_count_of_nesting_that_is_no_number_is_refused",
                    a_count_of_nesting_that_is_no_number_is_refused,
                ),
                (
                    "a_program_that_inherits_the_marker_is_an_ordinary_one",
                    a_program_that_inherits_the_marker_is_an_ordinary_one,
                ),
                ("a_lack_of_descriptors_is_an_error", a_lack_of_descriptors_is_an_error),
            ];
            for (name, case) in cases {
                case();
                println!("test {name} ... ok");
            }
        }
    }
}

/// Runs this binary in a role and returns what it said. It must succeed.
fn act(role: &str, variables: &[(&str, &str)]) -> String {
    let mut command = Command::new(std::env::current_exe().expect("procfs"));
    command.env(ROLE, role).env_remove(CONSTRUCTOR).envs(variables.iter().copied());
    let Output { status, stdout, stderr } = command.output().expect("it starts");
    let text = String::from_utf8_lossy(&stdout).into_owned();
    assert!(status.success(), "{role}: {status}\n{text}{}", String::from_utf8_lossy(&stderr));
    text
}

/// The error of a child that plays `role` where a worker should be.
fn start_an_impostor(role: &str) -> Error {
    Process::builder()
        .env(CONSTRUCTOR, "0")
        .env(ROLE, role)
        .handshake_timeout(if role == "hang" { Duration::from_millis(300) } else { Duration::from_secs(30) })
        .spawn(square, 3)
        .expect_err("no worker")
}

fn play(role: &str) {
    match role {
        "without init" => {
            let error = Process::spawn(square, 3).expect_err("init was not called");
            assert!(error.is_not_initialised());
            println!("{error}");
        }
        "with init" => {
            proc_pool::init();
            println!("{:?}", Process::spawn(square, 3).expect("spawned").join());
            println!("{:?}", Process::spawn(deeper, 0).expect("spawned").join());
        }
        "lazy" => {
            let error = Process::spawn(square, 3).expect_err("a worker before init");
            assert!(error.is_not_initialised());
            eprintln!("{error}");
            std::process::exit(7);
        }
        "nested" => println!("{}", Process::spawn(square, 3).expect_err("too deep")),
        "exit" => std::process::exit(3),
        "hang" => common::sleep_forever(),
        "noise" => {
            let socket = std::io::stdin();
            rustix::io::write(&socket, &[0xff; 30]).expect("the socket is writable");
            common::sleep_forever();
        }
        "no descriptors" => {
            let before = Process::spawn(square, 3).expect("spawned").join();
            let open = std::fs::read_dir("/proc/self/fd").expect("procfs").count() as u64;
            for spare in 0..8 {
                let limit = rustix::process::Rlimit { current: Some(open + spare), maximum: Some(4096) };
                rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).expect("a lower limit");
                match Process::spawn(square, 4) {
                    Ok(child) => assert_eq!(child.join(), Ok(16)),
                    Err(error) => println!("{error}"),
                }
            }
            assert_eq!(before, Ok(9));
        }
        _ => panic!("no such role: {role}"),
    }
}

#[allow(unconditional_recursion, reason = "to overflow the stack")]
fn deeper(x: u64) -> u64 {
    std::hint::black_box(deeper(std::hint::black_box(x + 1)) + 1)
}

fn a_process_without_init_may_start_nothing() {
    let said = act("without init", &[(CONSTRUCTOR, "0")]);
    assert!(said.starts_with("init() was not called"), "{said}");
}

fn a_program_with_init_in_main_works() {
    let said = act("with init", &[(CONSTRUCTOR, "0")]);
    let mut lines = said.lines();
    assert_eq!(lines.next(), Some("Ok(9)"));
    // The runtime is in charge of the main thread there, and turns a stack overflow into an abort.
    let overflow = lines.next().expect("a second line");
    assert!(overflow.contains("WorkerDied") && overflow.contains("signal: Some(6)"), "{overflow}");
    assert!(overflow.contains("has overflowed its stack"), "{overflow}");
}

fn init_may_be_called_again() {
    proc_pool::init();
    proc_pool::init();
    assert_eq!(Process::spawn(square, 3).expect("spawned").join(), Ok(9));
}

fn a_child_that_never_reaches_init_is_an_error_and_no_fork_bomb() {
    let error = start_an_impostor("lazy");
    let text = error.to_string();
    assert!(error.is_handshake(), "{text}");
    assert!(text.contains("exited with code 7 before it was ready"), "{text}");
    assert!(text.contains("is proc_pool::init() the first statement of main?"), "{text}");
    // Its stderr: the guard's own error.
    assert!(text.contains("has not reached proc_pool::init()"), "{text}");
}

fn a_child_that_exits_before_the_handshake_is_an_error() {
    let error = start_an_impostor("exit");
    assert!(error.is_handshake() && error.to_string().contains("exited with code 3"), "{error}");
}

fn a_child_that_hangs_before_the_handshake_is_killed() {
    let error = start_an_impostor("hang");
    let text = error.to_string();
    assert!(error.is_handshake() && text.contains("not ready after 300ms"), "{text}");
    let pid = text.split(' ').nth(2).and_then(|pid| pid.parse().ok());
    until_gone(pid.expect("the error names the process"));
}

fn a_child_that_answers_noise_is_an_error() {
    let error = start_an_impostor("noise");
    assert!(error.is_handshake() && error.to_string().contains("no handshake"), "{error}");
}

/// Goes deeper until it fails: how deep it came, and why no deeper.
fn dive(depth: u32) -> (u32, String) {
    match Process::spawn(dive, depth + 1) {
        Ok(child) => child.join().expect("no failure"),
        Err(error) => {
            assert!(error.is_too_deep());
            (depth, error.to_string())
        }
    }
}

fn nesting_ends_with_an_error_that_names_the_limit() {
    let (depth, text) = dive(0);
    assert_eq!(depth, 8);
    assert!(text.contains("nested 8 deep") && text.contains("the limit is 8"), "{text}");
}

fn a_count_of_nesting_that_is_no_number_is_refused() {
    let said = act("nested", &[("PROC_POOL_DEPTH", "many")]);
    assert!(said.contains("the limit is 8"), "{said}");
}

fn a_program_that_inherits_the_marker_is_an_ordinary_one() {
    // As it would be if a worker that could not clean its environment ran another program.
    for marker in ["1:2", "", "nonsense"] {
        let said = act("with init", &[("PROC_POOL_WORKER", marker)]);
        assert!(said.starts_with("Ok(9)"), "{said}");
    }
}

fn a_lack_of_descriptors_is_an_error() {
    let said = act("no descriptors", &[]);
    assert!(said.contains("Too many open files"), "{said}");
}
