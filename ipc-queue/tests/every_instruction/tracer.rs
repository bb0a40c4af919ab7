//! A child process that is executed instruction by instruction (`ptrace`), so that it can be stopped or killed after any
//! one of them.
//!
//! The child is a fork, of one thread, made before the queue that it works on: what it has of the queue arrived through a
//! socket, as in any other process. It *marks* a moment by stopping itself with SIGSTOP.
//!
//! # Safety
//!
//! The forked child runs on the thread that forked, and ends without running what belongs to its parent. A
//! traced process is touched by system calls only, which name it by a process id that is not collected before its end was
//! seen here.
#![allow(unsafe_code)]
#![allow(dead_code, reason = "each test binary uses its part")]

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shm_core::handle::{ReceiveSession, SendSession};
use shm_core::socket;
use std::mem::offset_of;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a stop for a system call has in place of the signal.
const AT_CALL: i32 = Signal::TRAP.as_raw() | 0x80;

/// The instruction that a debugger puts in place of another, in one byte.
const BREAKPOINT: i64 = 0xcc;

/// Where the kernel has a stopped thread's instruction pointer.
fn instruction_pointer() -> i64 {
    let place = offset_of!(libc::user, regs) + offset_of!(libc::user_regs_struct, rip);
    i64::try_from(place).expect("small")
}

/// A traced child. Killed when dropped.
pub(crate) struct Victim {
    pid: Pid,
    socket: OwnedFd,
    has_ended: bool,
}

/// Why a traced child does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Halt {
    Signal(i32),
    End,
}

/// Handles, and what else belongs to them, on the way to another process.
pub(crate) struct Parcel {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Parcel {
    pub(crate) fn pack(things: &impl Serialize) -> Self {
        let session = SendSession::begin();
        let bytes = postcard::to_stdvec(things).expect("handles can be sent");
        Self { bytes, descriptors: session.finish() }
    }

    pub(crate) fn unpack<T: DeserializeOwned>(self) -> T {
        let _session = ReceiveSession::begin(self.descriptors);
        postcard::from_bytes(&self.bytes).expect("handles arrive")
    }

    /// The first descriptor: it leads to the memory of the first handle's queue.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptors[0].as_fd()
    }

    fn send(self, socket: impl AsFd) {
        let descriptors: Vec<_> = self.descriptors.iter().map(AsFd::as_fd).collect();
        socket::send(socket.as_fd(), &self.bytes, &descriptors, None).expect("the other end is there");
    }

    pub(crate) fn receive(socket: impl AsFd) -> Self {
        let (bytes, descriptors) =
            socket::recv(socket.as_fd(), None).expect("the socket works").expect("the other end is there");
        Self { bytes, descriptors }
    }
}

/// In a victim: tells its parent something.
pub(crate) fn report(socket: impl AsFd, what: &impl Serialize) {
    Parcel::pack(what).send(socket);
}

/// In a victim: stops it, until the tracer has seen it.
pub(crate) fn mark() {
    kill_process(rustix::process::getpid(), Signal::STOP).expect("a process may stop itself");
}

/// Whether processes may be traced here; prints why not. In CI they must be.
pub(crate) fn is_permitted() -> bool {
    let mut trial = Victim::start(|_| mark());
    let reason = match trial.wait() {
        Halt::Signal(signal) if signal == Signal::STOP.as_raw() => return true,
        halt => format!("skipped: this process may not trace its children ({halt:?})"),
    };
    assert!(std::env::var_os("CI_RUN").is_none(), "{reason}");
    println!("{reason}");
    false
}

impl Victim {
    /// Forks a child that runs `body` with its end of a socket.
    pub(crate) fn start(body: impl FnOnce(&OwnedFd)) -> Self {
        let (socket, theirs) = socket::pair().expect("a socket pair");
        // SAFETY: the child runs on the thread that forked, only what follows, and without a panic to the outside.
        let id = unsafe { libc::fork() };
        if id == 0 {
            drop(socket);
            let run = || {
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
                    .expect("a child may die");
                // SAFETY: takes no arguments.
                if unsafe { libc::ptrace(libc::PTRACE_TRACEME) } == 0 {
                    body(&theirs);
                }
            };
            let code = i32::from(catch_unwind(AssertUnwindSafe(run)).is_err());
            // SAFETY: ends the child without running what belongs to its parent.
            unsafe { libc::_exit(code) };
        }
        Self { pid: Pid::from_raw(id).expect("forked"), socket, has_ended: false }
    }

    pub(crate) fn give(&self, parcel: Parcel) {
        parcel.send(&self.socket);
    }

    /// What the victim reports next.
    pub(crate) fn reported<T: DeserializeOwned>(&self) -> T {
        Parcel::receive(&self.socket).unpack()
    }

    /// Waits for the victim's first mark.
    pub(crate) fn meet(&mut self) {
        assert_eq!(self.wait(), Halt::Signal(Signal::STOP.as_raw()), "the victim does not get to its mark");
        let options = libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACESYSGOOD;
        // SAFETY: the victim is stopped; see `request`.
        unsafe { self.request(libc::PTRACE_SETOPTIONS, 0, options.into()) };
    }

    /// Executes one instruction (of a repeated one, one repetition), a system call as a whole. Returns whether it did:
    /// not if the next mark or the end is reached.
    pub(crate) fn step(&mut self) -> bool {
        self.resume(libc::PTRACE_SINGLESTEP, Signal::TRAP.as_raw())
    }

    /// Executes everything up to and including the next system call. Returns as [`Victim::step`].
    pub(crate) fn call(&mut self) -> bool {
        // Once where it begins, once where it ends.
        (0..2).all(|_| self.resume(libc::PTRACE_SYSCALL, AT_CALL))
    }

    /// Where the next instruction is. The same in every victim of this process: forks have their parent's addresses.
    pub(crate) fn address(&self) -> i64 {
        // SAFETY: the victim is stopped; see `request`.
        unsafe { self.request(libc::PTRACE_PEEKUSER, instruction_pointer(), 0) }
    }

    /// Whether the instruction there is a system call.
    pub(crate) fn is_call(&self, address: i64) -> bool {
        self.code(address).to_le_bytes().starts_with(&[0x0f, 0x05])
    }

    /// Executes everything up to, and without, the next instruction at this address. Returns whether it got there: not if
    /// a system call, a mark or the end comes first.
    pub(crate) fn run_to(&mut self, address: i64) -> bool {
        let code = self.code(address);
        self.set_code(address, code & !0xff | BREAKPOINT);
        let has_arrived = self.resume(libc::PTRACE_SYSCALL, Signal::TRAP.as_raw());
        if !self.has_ended {
            self.set_code(address, code);
        }
        if has_arrived {
            // SAFETY: the victim is stopped; see `request`.
            unsafe { self.request(libc::PTRACE_POKEUSER, instruction_pointer(), address) };
        }
        has_arrived
    }

    /// Eight bytes of code.
    fn code(&self, address: i64) -> i64 {
        // SAFETY: the victim is stopped; see `request`.
        unsafe { self.request(libc::PTRACE_PEEKTEXT, address, 0) }
    }

    fn set_code(&self, address: i64, code: i64) {
        // SAFETY: as above; it changes the victim's own copy of the page.
        unsafe { self.request(libc::PTRACE_POKETEXT, address, code) };
    }

    /// Kills the victim, and waits until the system is done with it.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    /// Leaves the victim to itself, stopped as by SIGSTOP.
    pub(crate) fn leave_stopped(&mut self) {
        // SAFETY: the victim is stopped; see `request`.
        unsafe { self.request(libc::PTRACE_DETACH, 0, Signal::STOP.as_raw().into()) };
        let status = waitpid(Some(self.pid), WaitOptions::UNTRACED).expect("collected").expect("a status").1;
        assert_eq!(status.stopping_signal(), Some(Signal::STOP.as_raw()), "it does not stop: {status:?}");
    }

    /// Lets a victim that was left stopped go on.
    pub(crate) fn go_on(&self) {
        kill_process(self.pid, Signal::CONT).expect("a victim may go on");
    }

    /// Waits until a victim that goes on has ended by itself.
    pub(crate) fn ends(mut self) {
        assert_eq!(self.wait(), Halt::End);
    }

    fn end(&mut self) {
        let _ = kill_process(self.pid, Signal::KILL);
        while !self.has_ended {
            self.wait();
        }
    }

    fn resume(&mut self, how: libc::c_uint, expected: i32) -> bool {
        if self.has_ended {
            return false;
        }
        // SAFETY: the victim is stopped; see `request`.
        unsafe { self.request(how, 0, 0) };
        match self.wait() {
            Halt::Signal(signal) if signal == expected => true,
            Halt::Signal(signal) if signal == Signal::STOP.as_raw() || signal == AT_CALL => false,
            Halt::End => false,
            halt => panic!("the victim gets {halt:?}"),
        }
    }

    fn wait(&mut self) -> Halt {
        let status = waitpid(Some(self.pid), WaitOptions::empty()).expect("collected").expect("a status").1;
        match status.stopping_signal() {
            Some(signal) => Halt::Signal(signal),
            None => {
                self.has_ended = true;
                Halt::End
            }
        }
    }

    /// # Safety
    ///
    /// The victim is stopped, and the request is one that takes these arguments and writes nothing in this process.
    unsafe fn request(&self, request: libc::c_uint, address: i64, data: i64) -> i64 {
        // The library's wrapper returns what was looked at, and an error through `errno` alone.
        // SAFETY: a place of this thread.
        unsafe { *libc::__errno_location() = 0 };
        // SAFETY: the caller's promise.
        let result = unsafe { libc::ptrace(request, self.pid.as_raw_nonzero().get(), address, data) };
        let error = std::io::Error::last_os_error();
        assert_eq!(error.raw_os_error(), Some(0), "a traced child refuses request {request}: {error}");
        result
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        if !self.has_ended {
            self.end();
        }
    }
}
