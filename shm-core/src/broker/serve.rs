//! The broker of this process: the state that depositors and the thread share, and the thread itself.
//!
//! The state is locked inside the fork window only, so no forked child inherits it locked. While it is locked nothing is
//! done but system calls and bookkeeping: keepers are asked, and dropped, outside.
//!
//! In a forked child the thread does not exist. A handler closes what the child has inherited at once, so that a
//! listener without a thread answers nobody and a deposit is not kept open; the rest goes when the child makes its own
//! broker.
//!
//! # If the process dies
//!
//! Everything here is descriptors and private memory: the kernel closes it.
#![allow(unsafe_code)]
//! # Safety
//!
//! The thread polls descriptors while the state is not locked. The listener and the bell belong to the state, which is
//! only replaced in a forked child, where the thread is not; the lines to visitors are closed by the thread alone.
//! Otherwise only `pthread_atfork` is called.

use super::table::{Key, Reply, Table, VISIT};
use super::{Address, Keeper, me, name, namespace, random};
use crate::background;
use crate::crash_point;
use crate::fork::{ForkStamp, window};
use crate::socket;
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SocketFlags, SocketType, accept_with, bind, listen, recv, socket_with, sockopt,
};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How often keepers are asked while there are deposits.
const ROUND: Duration = Duration::from_secs(1);
/// How long nobody is let in after the system had no descriptor for a visitor.
const SHORTAGE: Duration = Duration::from_millis(100);
/// May fetch from everybody.
pub(super) const ROOT: u32 = 0;
/// Visitors that wait in the socket's queue.
const QUEUE: i32 = 128;

/// What a visitor says first.
#[derive(Debug)]
pub(super) struct Request {
    key: Key,
}

/// Marks a request of this version.
const HELLO: [u8; 8] = *b"shmbrok\x01";

impl Request {
    pub(super) fn new(key: Key) -> Self {
        Self { key }
    }

    pub(super) fn to_bytes(&self) -> [u8; 24] {
        std::array::from_fn(|i| if i < 8 { HELLO[i] } else { self.key[i - 8] })
    }

    fn of(bytes: &[u8]) -> Option<Self> {
        let key = bytes.strip_prefix(&HELLO)?;
        Some(Self { key: key.try_into().ok()? })
    }
}

/// What a visitor says when it has its descriptors.
pub(super) const ACKNOWLEDGED: &[u8] = b"!";

/// The broker's answer, one byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// The descriptors are beside this byte.
    Here = 1,
    Unknown = 2,
    Stranger = 3,
    /// The system does not let them through now.
    Unable = 4,
}

impl Status {
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        let all = [Self::Here, Self::Unknown, Self::Stranger, Self::Unable];
        all.into_iter().find(|status| bytes == [*status as u8])
    }
}

/// The broker of this process.
pub(super) struct Broker {
    pub(super) address: Address,
    pub(super) namespace: u32,
    /// As visitors see it: the kernel notes it when the socket starts to listen.
    pub(super) user: u32,
    pub(super) table: Table<Vec<OwnedFd>, Keeper, OwnedFd>,
    /// Closed in a forked child at once.
    sockets: Option<Sockets>,
    /// Whether the thread knows that there are deposits, and wakes up by itself.
    awake: bool,
    stamp: ForkStamp,
}

struct Sockets {
    /// Until it is closed, visitors find the broker.
    _listener: OwnedFd,
    /// Wakes the thread.
    bell: OwnedFd,
}

impl Broker {
    /// Makes sure that the thread looks after deposits.
    pub(super) fn wake(&mut self) {
        if let Some(sockets) = self.sockets.as_ref().filter(|_| !self.awake) {
            // It cannot fail but by being rung already.
            let _ = rustix::io::write(&sockets.bell, &1_u64.to_ne_bytes());
            self.awake = true;
        }
    }

    /// Opens the sockets and starts the thread.
    fn start() -> io::Result<Self> {
        let address = random()?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        bind(&listener, &name(&address)?)?;
        listen(&listener, QUEUE)?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        close_in_children();
        // SAFETY: both stay open as long as the thread runs; see the top.
        let (door, ring) = unsafe { (lasting(&listener), lasting(&bell)) };
        background::spawn("handle-broker", move || run(door, ring))?;
        let sockets = Some(Sockets { _listener: listener, bell });
        let (namespace, user, stamp) = (namespace(), me(), ForkStamp::now());
        Ok(Self { address, namespace, user, table: Table::new(), sockets, awake: false, stamp })
    }
}

/// # Safety
///
/// The descriptor must stay open for as long as the result is used.
unsafe fn lasting(descriptor: &OwnedFd) -> BorrowedFd<'static> {
    // SAFETY: the caller's promise.
    unsafe { BorrowedFd::borrow_raw(descriptor.as_raw_fd()) }
}

/// Locked inside the fork window only.
static BROKER: Mutex<Option<Broker>> = Mutex::new(None);

/// Runs `f` on the broker of this process, started if need be.
pub(super) fn with_started<R>(f: impl FnOnce(&mut Broker) -> R) -> io::Result<R> {
    locked(|broker| match broker {
        Some(broker) => Ok(f(broker)),
        None => Ok(f(broker.insert(Broker::start()?))),
    })
}

/// Runs `f` on the broker of this process, if it has one.
pub(super) fn with_running<R>(f: impl FnOnce(&mut Broker) -> R) -> Option<R> {
    locked(|broker| broker.as_mut().map(f))
}

fn locked<R>(f: impl FnOnce(&mut Option<Broker>) -> R) -> R {
    let (result, _parents) = {
        let _window = window();
        let mut broker = BROKER.lock();
        let parents = broker.take_if(|broker| broker.stamp.check().is_err());
        (f(&mut broker), parents)
    };
    result
}

/// Has a handler close what a forked child inherits.
fn close_in_children() {
    static REGISTERED: OnceLock<()> = OnceLock::new();
    REGISTERED.get_or_init(|| {
        // SAFETY: the handler is a function of this image, which is never unloaded while it runs; it closes descriptors.
        let result = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
        assert_eq!(result, 0, "pthread_atfork fails only without memory");
    });
}

extern "C" fn in_child() {
    // Locked only if the fork came from a thread that could not hold the window; then nothing is closed.
    if let Some(broker) = BROKER.try_lock().as_mut().and_then(|broker| broker.as_mut()) {
        if broker.stamp.check().is_err() {
            broker.sockets = None;
            drop(broker.table.abandon());
        }
    }
}

/// What the thread remembers from one turn to the next.
struct Schedule {
    /// When keepers are to be asked.
    round: Instant,
    /// Until when nobody is let in.
    closed: Option<Instant>,
}

fn run(door: BorrowedFd<'static>, bell: BorrowedFd<'static>) {
    let mut schedule = Schedule { round: Instant::now() + ROUND, closed: None };
    loop {
        let Some((lines, timeout)) = prepare(&mut schedule) else {
            return;
        };
        let open = schedule.closed.is_none() && lines.len() < super::table::MAX_VISITORS;
        let mut polled: Vec<PollFd<'static>> = Vec::with_capacity(lines.len() + 2);
        polled.push(PollFd::from_borrowed_fd(bell, PollFlags::IN));
        polled.push(PollFd::from_borrowed_fd(door, if open { PollFlags::IN } else { PollFlags::empty() }));
        polled.extend(lines.iter().map(|(_, line)| PollFd::from_borrowed_fd(*line, PollFlags::IN)));
        // An error can only be an interruption or a shortage: look again.
        let _ = poll(&mut polled, timeout.and_then(|left| Timespec::try_from(left).ok()).as_ref());
        let mut ready = polled.iter().map(|polled| !polled.revents().is_empty());
        if ready.next() == Some(true) {
            let _ = rustix::io::read(bell, &mut [0_u8; 8]);
        }
        let knocked = ready.next() == Some(true);
        for ((visitor, line), _) in lines.iter().zip(ready).filter(|(_, ready)| *ready) {
            listen_to(*visitor, *line);
        }
        if knocked && open {
            schedule.closed = let_in(door).err().and_then(|_| Instant::now().checked_add(SHORTAGE));
        }
        look_around(&mut schedule);
    }
}

type Lines = Vec<(u64, BorrowedFd<'static>)>;

/// Whom to listen to, and for how long.
fn prepare(schedule: &mut Schedule) -> Option<(Lines, Option<Duration>)> {
    let now = Instant::now();
    schedule.closed = schedule.closed.filter(|until| *until > now);
    with_running(|broker| {
        // SAFETY: only this thread closes lines; see the top.
        let lines = broker.table.visitors().map(|(visitor, line)| (visitor, unsafe { lasting(line) }));
        let lines = lines.collect();
        if !broker.awake || broker.table.is_empty() {
            // The first deposit after none: keepers get a whole round.
            schedule.round = now + ROUND;
        }
        broker.awake = !broker.table.is_empty();
        let round = broker.awake.then_some(schedule.round);
        let next = [round, broker.table.deadline(), schedule.closed].into_iter().flatten().min();
        (lines, next.map(|next| next.saturating_duration_since(now)))
    })
}

/// Lets in who is at the door. Fails if the system has no descriptors left.
fn let_in(door: BorrowedFd<'_>) -> io::Result<()> {
    while with_running(|broker| broker.table.has_room()) == Some(true) {
        let line = match accept_with(door, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(line) => line,
            Err(Errno::AGAIN) => return Ok(()),
            Err(Errno::INTR | Errno::CONNABORTED) => continue,
            Err(error) => return Err(error.into()),
        };
        let user = sockopt::socket_peercred(&line).map(|peer| peer.uid.as_raw());
        if user.is_ok_and(|user| user == me() || user == ROOT) {
            with_running(|broker| broker.table.arrive(line, Instant::now()));
        } else {
            let _ = answer(line.as_fd(), Status::Stranger, &[]);
        }
    }
    Ok(())
}

/// Hears what a visitor has to say.
fn listen_to(visitor: u64, line: BorrowedFd<'static>) {
    // Descriptors that it sends are dropped by the kernel: there is no room for them.
    let mut heard = [0_u8; 32];
    let len = match recv(line, &mut heard, RecvFlags::DONTWAIT) {
        Ok((len, _)) => len,
        Err(Errno::AGAIN | Errno::INTR) => return,
        Err(_) => 0,
    };
    let said = &heard[..len];
    if said == ACKNOWLEDGED {
        let theirs = with_running(|broker| broker.table.acknowledge(visitor));
        if let Some((given, line)) = theirs {
            // Our copies first: the end of the line tells that they are closed. The keeper last: it is somebody else's code.
            let (descriptors, keeper) = given.unzip();
            drop(descriptors);
            crash_point!("broker.gave");
            drop(line);
            drop(keeper);
        }
    } else if Request::of(said).is_none_or(|request| !serve(visitor, &request)) {
        drop(with_running(|broker| broker.table.end(visitor)));
    }
}

/// Answers a request. Returns whether the visitor may stay.
fn serve(visitor: u64, request: &Request) -> bool {
    let served = with_running(|broker| match broker.table.ask(visitor, &request.key) {
        Reply::Lend(line, descriptors) => {
            let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
            let sent = answer(line.as_fd(), Status::Here, &borrowed);
            if sent.is_err() {
                let _ = answer(line.as_fd(), Status::Unable, &[]);
            }
            sent.is_ok()
        }
        Reply::Unknown(line) => {
            let _ = answer(line.as_fd(), Status::Unknown, &[]);
            false
        }
        Reply::HangUp => false,
    });
    crash_point!("broker.lent");
    served == Some(true)
}

/// Sends without waiting: a line with nothing in it has room for an answer.
fn answer(line: BorrowedFd<'_>, status: Status, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    socket::send(line, &[status as u8], descriptors, Some(Instant::now()))
}

/// Sends away who has been here for too long, and closes what nobody wants any more.
fn look_around(schedule: &mut Schedule) {
    let now = Instant::now();
    let late = with_running(|broker| {
        let late = broker.table.late(now);
        late.into_iter().filter_map(|visitor| broker.table.end(visitor)).collect::<Vec<_>>()
    });
    drop(late);
    if now < schedule.round {
        return;
    }
    schedule.round = now + ROUND;
    let kept = with_running(|broker| broker.table.kept()).unwrap_or_default();
    for (key, keeper) in kept {
        if !keeper() {
            drop(with_running(|broker| broker.table.take(&key)));
        }
    }
}

const _: () = assert!(ROUND.as_millis() < VISIT.as_millis());
