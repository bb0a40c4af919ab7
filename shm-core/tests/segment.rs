//! Segments, their participants and the death oracle, across real processes.
#![allow(unsafe_code, reason = "forks, stops and kills processes")]

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use shm_core::segment::{MAX_PARTICIPANTS, Segment, Spec};
use shm_core::sync::{AtomicU64, Ordering};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SPEC: Spec = Spec { kind: 42, layout_hash: 7, body_len: 4096, sweep: count_sweep, arrived: |_| () };
const ROLE: &str = "SEGMENT_TEST_ROLE";

/// The first word of the body counts sweeps.
fn count_sweep(segment: &Segment, dead: u16) -> bool {
    word(segment, 0).fetch_add(1, Ordering::Relaxed);
    word(segment, 1).store(dead.into(), Ordering::Relaxed);
    true
}

fn word(segment: &Segment, index: usize) -> &AtomicU64 {
    // SAFETY: the body has 4096 bytes and is only used as atomics here.
    unsafe { segment.body().cast::<AtomicU64>().add(index).as_ref() }
}

fn segment() -> Arc<Segment> {
    Segment::create(&SPEC, |_| {}).expect("a small segment can be created")
}

/// A child that attached to the segment it got as descriptor 0, reports its index and waits for the end of a pipe.
struct Peer {
    child: Child,
    _hold: ChildStdin,
    output: ChildStdout,
    participant: u16,
}

impl Peer {
    fn start(segment: &Segment) -> Self {
        // The child gets one pipe as stdin to wait on, and the segment under a number of its own.
        let shared = rustix::io::fcntl_dupfd_cloexec(segment.descriptor(), 100).expect("a descriptor");
        rustix::io::fcntl_setfd(&shared, rustix::io::FdFlags::empty()).expect("inheritable");
        let mut child = Command::new(std::env::current_exe().expect("own path"))
            .args(["--exact", "child_role", "--nocapture", "--test-threads=1"])
            .env(ROLE, shared.as_raw_fd().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a child");
        drop(shared);
        let hold = child.stdin.take().expect("piped");
        let mut output = child.stdout.take().expect("piped");
        let participant = loop {
            let line = read_line(&mut output);
            if let Some((_, index)) = line.split_once("participant ") {
                break index.trim().parse().expect("an index");
            }
        };
        Self { child, _hold: hold, output, participant }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn kill(mut self) -> u16 {
        self.child.kill().expect("killed");
        self.child.wait().expect("reaped");
        let _ = self.output.read(&mut [0]);
        self.participant
    }
}

fn read_line(from: &mut impl Read) -> String {
    let (mut line, mut byte) = (String::new(), [0]);
    while from.read(&mut byte).expect("the child talks") == 1 && byte[0] != b'\n' {
        line.push(byte[0].into());
    }
    line
}

#[test]
fn child_role() {
    let Ok(number) = std::env::var(ROLE) else { return };
    // SAFETY: the parent made this descriptor inheritable for us alone.
    let fd = unsafe { OwnedFd::from_raw_fd(number.parse().expect("a number")) };
    let segment = Segment::attach(fd.as_fd(), &SPEC).expect("attached");
    println!("\nparticipant {}", segment.participant());
    std::io::stdout().flush().expect("flushed");
    let _ = std::io::stdin().read(&mut [0]);
    std::mem::forget(segment);
    std::process::exit(0);
}

/// Waits for a condition that the kernel brings about a moment later.
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < give_up, "never happened: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn one_process_has_one_participant() {
    let first = segment();
    let second = Segment::attach(first.descriptor(), &SPEC).expect("attached");
    assert!(Arc::ptr_eq(&first, &second));
}

#[test]
fn a_detached_segment_can_be_attached_again() {
    let first = segment();
    let descriptor = first.descriptor().try_clone_to_owned().expect("a descriptor");
    drop(first);
    for _ in 0..1000 {
        let again = Segment::attach(descriptor.as_fd(), &SPEC).expect("attached");
        assert_eq!(again.participant(), 1, "a clean detach frees the index");
        assert_eq!(word(&again, 0).load(Ordering::Relaxed), 0, "and needs no sweep");
    }
}

#[test]
fn a_killed_process_is_dead_and_swept_once() {
    let segment = segment();
    let peer = Peer::start(&segment);
    assert_ne!(peer.participant, segment.participant());
    assert!(!segment.is_dead(peer.participant));
    assert_eq!(segment.sweep(), 0);
    let dead = peer.kill();
    eventually("the lock falls", || segment.is_dead(dead));
    assert!(segment.is_attached(dead));
    assert_eq!(segment.sweep(), 1);
    assert_eq!(segment.sweep(), 0);
    assert!(!segment.is_attached(dead));
    assert_eq!(word(&segment, 0).load(Ordering::Relaxed), 1);
    assert_eq!(word(&segment, 1).load(Ordering::Relaxed), u64::from(dead));
}

#[test]
fn a_stopped_process_is_alive() {
    let segment = segment();
    let peer = Peer::start(&segment);
    kill_process(peer.pid(), Signal::STOP).expect("stopped");
    waitpid(Some(peer.pid()), WaitOptions::UNTRACED).expect("it stopped");
    assert!(!segment.is_dead(peer.participant));
    kill_process(peer.pid(), Signal::CONT).expect("continued");
    peer.kill();
}

#[test]
fn a_newcomer_sweeps_the_index_that_it_takes() {
    let segment = segment();
    let dead = Peer::start(&segment).kill();
    eventually("the lock falls", || segment.is_dead(dead));
    // Whether the newcomer comes to the dead index first depends on the hint: let one take each index in reach.
    let peers: Vec<Peer> = (0..2).map(|_| Peer::start(&segment)).collect();
    segment.sweep();
    assert_eq!(word(&segment, 0).load(Ordering::Relaxed), 1, "swept by whoever came first");
    for peer in peers {
        peer.kill();
    }
}

#[test]
fn a_forked_child_gets_an_error_and_does_not_keep_its_parent_alive() {
    let segment = segment();
    // SAFETY: the child only makes async-signal-safe calls besides the code under test, and exits at once.
    match unsafe { libc::fork() } {
        0 => {
            let ok = segment.check().is_err() && segment.sweep() == 0;
            // SAFETY: ends the child without running the test harness.
            unsafe { libc::_exit(if ok { 0 } else { 1 }) };
        }
        child => {
            let child = Pid::from_raw(child).expect("forked");
            let (_, status) = waitpid(Some(child), WaitOptions::empty()).expect("reaped").expect("ended");
            assert_eq!(status.exit_status(), Some(0));
            assert!(segment.check().is_ok());
        }
    }
}

#[test]
fn a_token_is_in_flight_as_long_as_it_exists_anywhere() {
    let segment = segment();
    assert!(!segment.in_flight(0));
    let token = segment.token(0).expect("a token");
    assert!(segment.in_flight(0) && !segment.in_flight(1));
    let (ours, theirs) = shm_core::socket::pair().expect("a pair");
    shm_core::socket::send(ours.as_fd(), b"token", &[token.as_fd()], None).expect("sent");
    drop(token);
    assert!(segment.in_flight(0), "it lies in the socket buffer");
    drop(ours);
    assert!(segment.in_flight(0), "its sender is gone, the buffer is not");
    drop(theirs);
    eventually("the token goes with the buffer", || !segment.in_flight(0));
}

#[test]
fn two_tokens_of_a_lane_coexist() {
    let segment = segment();
    let (a, b) = (segment.token(2).expect("a token"), segment.token(2).expect("another"));
    drop(a);
    assert!(segment.in_flight(2));
    drop(b);
    assert!(!segment.in_flight(2));
}

#[test]
fn an_attachment_made_from_a_token_does_not_keep_it_in_flight() {
    let segment = segment();
    let token = segment.token(0).expect("a token");
    drop(segment);
    let again = Segment::attach(token.as_fd(), &SPEC).expect("attached");
    assert!(again.in_flight(0));
    drop(token);
    assert!(!again.in_flight(0));
}

#[test]
fn a_full_registry_names_its_limit() {
    let segment = segment();
    let path = format!("/proc/self/fd/{}", segment.descriptor().as_raw_fd());
    let others: Vec<std::fs::File> = (1..=MAX_PARTICIPANTS)
        .map(|index| {
            let file = std::fs::File::options().read(true).write(true).open(&path).expect("opened");
            // SAFETY: plain data, all zeros are valid.
            let mut lock: libc::flock = unsafe { std::mem::zeroed() };
            lock.l_type = i16::try_from(libc::F_WRLCK).expect("small");
            lock.l_start = index.into();
            lock.l_len = 1;
            // SAFETY: a valid descriptor and lock; our own index is refused, which is what we want.
            unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
            file
        })
        .collect();
    let descriptor = segment.descriptor().try_clone_to_owned().expect("a descriptor");
    let ours = segment.participant();
    drop(segment);
    // Our own index is free again now: take it as well.
    let last = Segment::attach(descriptor.as_fd(), &SPEC).expect("one index is free");
    assert_eq!(last.participant(), ours);
    // SAFETY: the child only attaches and exits.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let refused = Segment::attach(descriptor.as_fd(), &SPEC).is_err_and(|e| e.is_too_many_participants());
        // SAFETY: ends the child without running the test harness.
        unsafe { libc::_exit(if refused { 0 } else { 1 }) };
    }
    let child = Pid::from_raw(child).expect("forked");
    let (_, status) = waitpid(Some(child), WaitOptions::empty()).expect("reaped").expect("ended");
    assert_eq!(status.exit_status(), Some(0));
    drop(others);
}

#[test]
fn what_is_not_the_expected_segment_is_refused() {
    let segment = segment();
    let other = |change: fn(&mut Spec)| {
        let mut spec = SPEC;
        change(&mut spec);
        // The table of attachments must not hide the check.
        Segment::attach(segment.descriptor(), &spec).expect_err("another spec")
    };
    for error in [other(|s| s.kind = 1), other(|s| s.layout_hash = 1), other(|s| s.body_len = 1 << 20)] {
        assert!(error.is_foreign(), "{error}");
    }
    let file = std::fs::File::open("/dev/null").expect("opened");
    assert!(Segment::attach(file.as_fd(), &SPEC).expect_err("not memory").is_foreign());
    let memory = shm_core::frozen::sealed_memfd(&[0; 32768]).expect("frozen");
    assert!(Segment::attach(memory.as_fd(), &SPEC).expect_err("no magic").is_foreign());
}

#[test]
fn a_segment_of_another_version_is_refused_by_number() {
    let segment = segment();
    let descriptor = segment.descriptor().try_clone_to_owned().expect("a descriptor");
    drop(segment);
    rustix::io::pwrite(&descriptor, &99_u32.to_le_bytes(), 8).expect("the version lies behind the magic");
    let error = Segment::attach(descriptor.as_fd(), &SPEC).expect_err("another version");
    assert!(error.is_foreign() && error.to_string().contains("0x63"), "{error}");
}

#[test]
fn impossible_sizes_are_typed_errors() {
    let create = |body_len| Segment::create(&Spec { body_len, ..SPEC }, |_| {}).expect_err("impossible");
    assert!(create(0).to_string().contains("is 0x0, not 0x1"), "{}", create(0));
    assert!(create(usize::MAX).is_too_large());
    let error = create(1 << 45);
    assert!(error.is_out_of_memory(), "{error}");
    assert!(error.to_string().contains("available"), "{error}");
}

#[test]
fn an_attachment_is_not_shared_with_another_expectation() {
    let segment = segment();
    // A hostile creator could rewrite the header after the first attach: what was validated then counts.
    rustix::io::pwrite(segment.descriptor(), &(1_u64 << 40).to_le_bytes(), 40).expect("the body's length");
    let larger = Spec { body_len: 1 << 30, ..SPEC };
    assert!(Segment::attach(segment.descriptor(), &larger).expect_err("too small").is_foreign());
}

#[test]
fn threads_that_attach_at_once_are_one_participant() {
    let descriptor = segment().descriptor().try_clone_to_owned().expect("a descriptor");
    for _ in 0..200 {
        let barrier = std::sync::Barrier::new(3);
        let attach = || {
            barrier.wait();
            Segment::attach(descriptor.as_fd(), &SPEC).expect("attached")
        };
        std::thread::scope(|scope| {
            let threads = [(); 3].map(|()| scope.spawn(attach));
            let all = threads.map(|thread| thread.join().expect("attached"));
            assert!(all.iter().all(|one| Arc::ptr_eq(one, &all[0])));
        });
    }
}

#[test]
fn what_cannot_be_swept_stays_taken() {
    let stubborn = Spec { sweep: |_, _| false, ..SPEC };
    let segment = Segment::create(&stubborn, |_| {}).expect("created");
    let dead = Peer::start(&segment).kill();
    eventually("the lock falls", || segment.is_dead(dead));
    assert_eq!(segment.sweep(), 0);
    assert!(segment.is_attached(dead));
}
