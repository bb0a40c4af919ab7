//! Deposits, their broker and those who fetch. One fact per test; other processes are forked children.
#![cfg(not(loom))]
#![allow(unsafe_code, reason = "forks")]

use parking_lot::{Mutex, MutexGuard};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept, bind, connect, listen, send, shutdown,
    socket_with,
};
use shm_core::broker::{Claim, DepositError, FetchError, deposit, fetch};
use shm_core::socket;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// One test at a time, because a fork copies what others have open; aborts the process unless the test ends in time.
#[expect(dead_code, reason = "their end is what others wait for")]
struct Watchdog(std::sync::mpsc::Sender<()>, MutexGuard<'static, ()>);

fn watchdog() -> Watchdog {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock();
    let (watched, end) = std::sync::mpsc::channel();
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    std::thread::spawn(move || {
        let patience = Duration::from_secs(60);
        if end.recv_timeout(patience) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            eprintln!("{test} hangs");
            std::process::abort();
        }
    });
    Watchdog(watched, alone)
}

/// A forked child, killed when it is dropped.
struct Child(i32);

/// Forks a child that ends with what `body` returns.
fn fork(body: impl FnOnce() -> bool) -> Child {
    // SAFETY: the child uses what the C library keeps usable in children, and this crate; then it ends.
    let id = unsafe { libc::fork() };
    assert!(id >= 0, "{}", std::io::Error::last_os_error());
    if id == 0 {
        // SAFETY: the child of a test dies with it.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        let ok = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        // SAFETY: ends the child without running anything of the parent's.
        unsafe { libc::_exit(i32::from(!matches!(ok, Ok(true)))) };
    }
    Child(id)
}

impl Child {
    /// Waits for the end of the child; whether all was well there.
    fn ends_well(self) -> bool {
        let mut status = 0;
        // SAFETY: a child of this test that nobody else waits for.
        assert_eq!(unsafe { libc::waitpid(self.0, &raw mut status, 0) }, self.0);
        std::mem::forget(self);
        status == 0
    }

    fn signal(&self, signal: i32) {
        // SAFETY: a child of this test that was not waited for.
        assert_eq!(unsafe { libc::kill(self.0, signal) }, 0);
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.signal(libc::SIGKILL);
        // SAFETY: as above.
        unsafe { libc::waitpid(self.0, std::ptr::null_mut(), 0) };
    }
}

/// Waits until every thread of the process is stopped.
fn wait_until_stopped(id: i32) {
    let is_stopped = |task: std::io::Result<std::fs::DirEntry>| {
        let stat = task.and_then(|task| std::fs::read_to_string(task.path().join("stat")));
        // The state is behind the name in parentheses.
        stat.is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')))
    };
    while !std::fs::read_dir(format!("/proc/{id}/task")).expect("procfs").all(is_stopped) {
        std::thread::yield_now();
    }
}

/// The reading and the writing end.
fn pipe() -> (File, File) {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe");
    (reader.into(), writer.into())
}

/// One end of a pipe, deposited and left for as long as `keeper` is true; and the other end, whose end of file tells
/// that nobody holds the deposited one.
fn example(keeper: impl Fn() -> bool + Send + Sync + 'static) -> (Claim, File) {
    let (reader, writer) = pipe();
    let deposit = deposit(vec![writer.into()]).expect("deposited");
    let claim = *deposit.claim();
    deposit.leave(Arc::new(keeper));
    (claim, reader)
}

/// Writes through a fetched pipe.
fn write(descriptors: Vec<OwnedFd>) {
    let [writer] = <[OwnedFd; 1]>::try_from(descriptors).expect("one descriptor");
    File::from(writer).write_all(b"hello").expect("written");
}

fn read(reader: &mut File) -> String {
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("readable");
    text
}

/// Where the broker of a claim listens.
fn address_of(claim: &Claim) -> SocketAddrUnix {
    let address: String = claim.to_bytes()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    let name = format!("shm-core.broker.{address}");
    SocketAddrUnix::new_abstract_name(name.as_bytes()).expect("a short name")
}

/// Connects to the broker of a claim, as anybody could.
fn connect_to(claim: &Claim) -> OwnedFd {
    let line = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let line = line.expect("a socket");
    connect(&line, &address_of(claim)).expect("the broker listens");
    line
}

#[test]
fn a_deposit_is_fetched_once_in_its_own_process() {
    let _dog = watchdog();
    let (claim, mut reader) = example(|| true);
    write(fetch(&claim).expect("fetched"));
    assert_eq!(read(&mut reader), "hello");
    assert!(matches!(fetch(&claim), Err(FetchError::Unknown)));
}

#[test]
fn a_deposit_is_fetched_once_by_another_process() {
    let _dog = watchdog();
    let (claim, mut reader) = example(|| true);
    let child = fork(|| {
        write(fetch(&claim).expect("fetched"));
        matches!(fetch(&claim), Err(FetchError::Unknown))
    });
    assert_eq!(read(&mut reader), "hello");
    assert!(child.ends_well());
}

#[test]
fn a_wrong_key_gets_nothing() {
    let _dog = watchdog();
    let (claim, mut reader) = example(|| true);
    let mut bytes = claim.to_bytes();
    bytes[31] ^= 1;
    let wrong = Claim::from_bytes(&bytes);
    assert!(matches!(fetch(&wrong), Err(FetchError::Unknown)));
    assert!(fork(|| matches!(fetch(&wrong), Err(FetchError::Unknown))).ends_well());
    write(fetch(&claim).expect("the right one is still good"));
    assert_eq!(read(&mut reader), "hello");
}

#[test]
fn a_claim_that_says_another_number_leaves_the_deposit() {
    let _dog = watchdog();
    let (claim, mut reader) = example(|| true);
    let mut bytes = claim.to_bytes();
    bytes[36] += 1;
    let wrong = Claim::from_bytes(&bytes);
    assert!(fork(|| matches!(fetch(&wrong), Err(FetchError::Unable))).ends_well());
    assert!(fork(|| fetch(&claim).map(write).is_ok()).ends_well());
    assert_eq!(read(&mut reader), "hello");
}

#[test]
fn a_deposit_that_was_not_left_is_withdrawn_with_its_value() {
    let _dog = watchdog();
    let (mut reader, writer) = pipe();
    let deposit = deposit(vec![writer.into()]).expect("deposited");
    let claim = *deposit.claim();
    drop(deposit);
    assert_eq!(read(&mut reader), "");
    assert!(matches!(fetch(&claim), Err(FetchError::Unknown)));
}

#[test]
fn a_deposit_that_nobody_wants_any_more_is_closed() {
    let _dog = watchdog();
    let wanted = Arc::new(AtomicBool::new(true));
    let still = Arc::clone(&wanted);
    let (claim, mut reader) = example(move || still.load(Ordering::Relaxed));
    wanted.store(false, Ordering::Relaxed);
    assert_eq!(read(&mut reader), "");
    assert!(matches!(fetch(&claim), Err(FetchError::Unknown)));
    // The keeper goes with it.
    while Arc::strong_count(&wanted) > 1 {
        std::thread::yield_now();
    }
}

#[test]
fn a_process_that_has_ended_is_gone() {
    let _dog = watchdog();
    let (mut from_child, to_parent) = pipe();
    let child = fork(|| {
        let (claim, _reader) = example(|| true);
        (&to_parent).write_all(&claim.to_bytes()).expect("written");
        true
    });
    assert!(child.ends_well());
    let mut bytes = [0; Claim::LEN];
    from_child.read_exact(&mut bytes).expect("a claim");
    assert!(matches!(fetch(&Claim::from_bytes(&bytes)), Err(FetchError::Gone)));
}

#[test]
fn root_takes_nothing_from_another_user_under_the_name_of_a_broker_that_has_ended() {
    // SAFETY: asks for a number.
    if unsafe { libc::geteuid() } != 0 {
        return;
    }
    let _dog = watchdog();
    let (mut from_child, to_parent) = pipe();
    let child = fork(|| {
        let (claim, _reader) = example(|| true);
        (&to_parent).write_all(&claim.to_bytes()).expect("written");
        true
    });
    assert!(child.ends_well());
    let mut bytes = [0; Claim::LEN];
    from_child.read_exact(&mut bytes).expect("a claim");
    let claim = Claim::from_bytes(&bytes);
    let other = fork(|| {
        // SAFETY: gives up rights.
        assert_eq!(unsafe { libc::setuid(65534) }, 0);
        let door = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let door = door.expect("a socket");
        bind(&door, &address_of(&claim)).expect("nobody has the name any more");
        listen(&door, 1).expect("listens");
        (&to_parent).write_all(&[1]).expect("written");
        let line = accept(&door).expect("a visitor");
        // Not even the key.
        socket::recv(line.as_fd(), None).expect("no error").is_none()
    });
    from_child.read_exact(&mut [0]).expect("it listens");
    assert!(matches!(fetch(&claim), Err(FetchError::Stranger)));
    assert!(other.ends_well());
}

#[test]
fn a_keeper_may_own_deposits() {
    let _dog = watchdog();
    let (mut reader, writer) = pipe();
    let owned = deposit(vec![writer.into()]).expect("deposited");
    let (claim, _reader) = example(move || owned.claim().count() == 1);
    drop(fetch(&claim).expect("fetched"));
    assert_eq!(read(&mut reader), "", "it was withdrawn");
}

#[test]
fn another_network_namespace_is_told_from_an_end() {
    let _dog = watchdog();
    let (claim, _reader) = example(|| true);
    let mut bytes = claim.to_bytes();
    // Nobody listens there, and the namespace is not ours.
    bytes[0] ^= 1;
    bytes[32] ^= 1;
    assert!(matches!(fetch(&Claim::from_bytes(&bytes)), Err(FetchError::Elsewhere)));
}

#[test]
fn a_stopped_process_keeps_its_deposits_for_another_try() {
    let _dog = watchdog();
    let (mut from_child, to_parent) = pipe();
    let child = fork(|| {
        let (claim, mut reader) = example(|| true);
        (&to_parent).write_all(&claim.to_bytes()).expect("written");
        read(&mut reader) == "hello"
    });
    let mut bytes = [0; Claim::LEN];
    from_child.read_exact(&mut bytes).expect("a claim");
    let claim = Claim::from_bytes(&bytes);
    child.signal(libc::SIGSTOP);
    wait_until_stopped(child.0);
    let error = fetch(&claim).expect_err("it is stopped");
    assert!(matches!(error, FetchError::Silent(_)) && error.is_temporary());
    child.signal(libc::SIGCONT);
    write(fetch(&claim).expect("it goes on"));
    assert!(child.ends_well());
}

#[test]
fn a_visitor_that_ends_before_it_acknowledges_leaves_the_deposit() {
    let _dog = watchdog();
    let (claim, mut reader) = example(|| true);
    let line = connect_to(&claim);
    let mut request = b"shmbrok\x01".to_vec();
    request.extend_from_slice(&claim.to_bytes()[16..32]);
    socket::send(line.as_fd(), &request, &[], None).expect("sent");
    let (answer, descriptors) = socket::recv(line.as_fd(), None).expect("received").expect("an answer");
    assert_eq!((answer.as_slice(), descriptors.len()), (&[1][..], 1));
    drop((line, descriptors));
    // Lent until the broker has seen the end.
    let descriptors = loop {
        match fetch(&claim) {
            Ok(descriptors) => break descriptors,
            Err(FetchError::Unknown) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    };
    write(descriptors);
    assert_eq!(read(&mut reader), "hello");
}

#[test]
fn who_breaks_the_rules_is_hung_up_on() {
    let _dog = watchdog();
    let (claim, mut reader) = example(|| true);
    for request in [&b"x"[..], &[0; 24], &[0; 100]] {
        let line = connect_to(&claim);
        let null: OwnedFd = File::open("/dev/null").expect("/dev/null exists").into();
        socket::send(line.as_fd(), request, &[null.as_fd()], None).expect("sent");
        assert!(socket::recv(line.as_fd(), None).expect("no error").is_none(), "{request:?}");
    }
    let silent = connect_to(&claim);
    shutdown(&silent, rustix::net::Shutdown::Write).expect("shut down");
    assert!(socket::recv(silent.as_fd(), None).expect("no error").is_none());
    write(fetch(&claim).expect("nothing happened"));
    assert_eq!(read(&mut reader), "hello");
}

#[test]
fn silent_visitors_do_not_keep_others_out_for_long() {
    let _dog = watchdog();
    let (claim, mut reader) = example(|| true);
    let silent: Vec<_> = (0..64).map(|_| connect_to(&claim)).collect();
    // The second try comes when the first ones have been sent away.
    let fetches = || fetch(&claim).or_else(|_| fetch(&claim));
    assert!(fork(|| fetches().map(write).is_ok()).ends_well());
    assert_eq!(read(&mut reader), "hello");
    for line in silent {
        let _ = send(&line, b"late", rustix::net::SendFlags::NOSIGNAL);
    }
}

#[test]
fn deposits_stay_with_the_parent_of_a_fork() {
    let _dog = watchdog();
    let (claim, mut reader) = example(|| true);
    let (mut wait, mut go) = pipe();
    let child = fork(|| {
        // Until the parent has seen the end of file that a copy in here would hold up.
        wait.read_exact(&mut [0]).expect("told to go on");
        let (claim, mut reader) = example(|| true);
        write(fetch(&claim).expect("the child has a broker of its own"));
        read(&mut reader) == "hello"
    });
    drop(fetch(&claim).expect("fetched"));
    assert_eq!(read(&mut reader), "");
    go.write_all(&[1]).expect("written");
    assert!(child.ends_well());
}

#[test]
fn too_many_descriptors_are_refused_with_the_limit() {
    let null = || OwnedFd::from(File::open("/dev/null").expect("/dev/null exists"));
    let child = fork(|| {
        let limit = rustix::process::Rlimit { current: Some(1000), maximum: Some(1000) };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).expect("lowered");
        let first = deposit((0..200).map(|_| null()).collect()).expect("200 of 250");
        let refused = deposit((0..100).map(|_| null()).collect());
        let refused = matches!(refused, Err(DepositError::TooMany { asked: 100, held: 200, limit: 250 }));
        drop(first);
        let again = deposit((0..250).map(|_| null()).collect()).is_ok();
        let large = deposit((0..251).map(|_| null()).collect());
        refused && again && matches!(large, Err(DepositError::TooLarge { asked: 251, limit: 250 }))
    });
    assert!(child.ends_well());
}

#[test]
fn the_thread_takes_no_signals() {
    let _dog = watchdog();
    let child = fork(|| {
        let (claim, _reader) = example(|| true);
        drop(fetch(&claim).expect("fetched"));
        let is_broker = |task: &std::path::PathBuf| {
            std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name == "handle-broker\n")
        };
        let find = || {
            let tasks = std::fs::read_dir("/proc/self/task").expect("procfs");
            tasks.map(|task| task.expect("a task").path()).find(is_broker)
        };
        // It gives itself its name.
        let broker = loop {
            if let Some(broker) = find() {
                break broker;
            }
            std::thread::yield_now();
        };
        let status = std::fs::read_to_string(broker.join("status")).expect("procfs");
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).expect("a line");
        let blocked = u64::from_str_radix(blocked.trim(), 16).expect("hexadecimal");
        let wanted = [libc::SIGTERM, libc::SIGINT, libc::SIGCHLD, libc::SIGALRM, libc::SIGUSR1];
        wanted.into_iter().all(|signal| blocked >> (signal - 1) & 1 == 1)
    });
    assert!(child.ends_well());
}

#[test]
fn deposits_leave_nothing_behind() {
    let _dog = watchdog();
    let child = fork(|| {
        let open = || std::fs::read_dir("/proc/self/fd").expect("procfs").count();
        let round = || {
            let (claim, _reader) = example(|| true);
            let other = fork(|| fetch(&claim).map(write).is_ok());
            assert!(other.ends_well());
        };
        round();
        let before = open();
        (0..50).for_each(|_| round());
        // The broker closes the line after the visitor.
        let start = Instant::now();
        while open() > before && start.elapsed() < Duration::from_secs(10) {
            std::thread::yield_now();
        }
        open() == before
    });
    assert!(child.ends_well());
}
