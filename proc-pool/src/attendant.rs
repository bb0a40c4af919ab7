//! One thread per process that looks after children: it forwards what they write to stderr, and collects the exit
//! status of those whose handle is gone.
//!
//! A child's stderr is a pipe to here. Of what arrives, the last 4 KiB stay with the child's [`Tail`], for the error
//! that tells how it ended, and everything goes to the tail's backlog, which the thread writes to this process's own
//! stderr. A pipe may outlive its child (a grandchild holds it), so nobody ever waits for its end: whoever needs the
//! tail of a dead child takes in what lies in the pipe itself, which is all that the child ever wrote.
//!
//! # When this process's stderr blocks
//!
//! Only the thread writes, without a lock, and only what a stderr that polls as writable takes without blocking. While
//! nobody reads it the backlogs fill up, then the children's pipes, and then a child that writes waits, as it would
//! with this stderr as its own. Nobody else waits: not who reaps or drops a child, and not who asks for its last words.
//! A stderr that somebody else fills between the look and the write stops the thread alone.

use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use shm_core::fork::ForkStamp;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How much of a child's stderr is kept.
const TAIL_BYTES: usize = 4 << 10;
/// How much is read per turn, so that one loud child does not starve the others.
const TURN_BYTES: usize = 256 << 10;
/// How much of a child's stderr may wait to be forwarded before the thread leaves the rest in the pipe.
const BACKLOG_BYTES: usize = 64 << 10;
/// How much may wait at most: a child that is dead is read to its end, which adds what its pipe holds. What is too much is
/// not forwarded.
const LARGEST_BACKLOG: usize = BACKLOG_BYTES + TURN_BYTES;
/// A pipe that polls as writable takes so much without blocking (`PIPE_BUF`).
const WRITE_BYTES: usize = 4 << 10;
/// When stderr is to be tried again, if it takes nothing although it polls as writable.
const REFUSED_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
/// How long whoever wants a child's words to come first waits for a stderr that blocks.
const FLUSH_PATIENCE: Duration = Duration::from_secs(1);

/// Longer than anybody holds the lock of the thread's place.
pub(crate) const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// The reading end of a child's stderr, and its last words.
#[derive(Debug)]
pub(crate) struct Tail {
    pipe: OwnedFd,
    words: Mutex<Words>,
    /// The backlog is empty.
    flushed: Condvar,
    /// Of the thread that forwards.
    inbox: OnceLock<Arc<Inbox>>,
}

/// What a child wrote.
#[derive(Debug, Default)]
struct Words {
    last: VecDeque<u8>,
    /// Read and not yet forwarded; what is being written stays here until it is.
    backlog: VecDeque<u8>,
    /// The pipe is at its end.
    ended: bool,
}

impl Tail {
    /// The pipe; the second value is the end for the child.
    pub(crate) fn new() -> io::Result<(Arc<Self>, OwnedFd)> {
        let (pipe, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&pipe, true)?;
        let tail = Self { pipe, words: Mutex::default(), flushed: Condvar::new(), inbox: OnceLock::new() };
        Ok((Arc::new(tail), writer))
    }

    /// The last words, with everything that lies in the pipe now. Waits neither for the child nor for stderr.
    pub(crate) fn text(&self) -> String {
        let mut words = self.words.lock();
        self.take_in(&mut words, usize::MAX);
        if let (false, Some(inbox)) = (words.backlog.is_empty(), self.inbox.get()) {
            inbox.ring();
        }
        String::from_utf8_lossy(words.last.make_contiguous()).into_owned()
    }

    /// Has everything that lies in the pipe now forwarded. Waits for that, but not long for a stderr that blocks.
    pub(crate) fn flush(&self) {
        let deadline = Instant::now() + FLUSH_PATIENCE;
        let mut words = self.words.lock();
        self.take_in(&mut words, usize::MAX);
        let Some(inbox) = self.inbox.get() else { return };
        while !words.backlog.is_empty() {
            inbox.ring();
            if self.flushed.wait_until(&mut words, deadline).timed_out() {
                return;
            }
        }
    }

    /// Reads what lies in the pipe, while the backlog is below `limit`.
    fn take_in(&self, words: &mut Words, limit: usize) {
        let mut buffer = [0; 8 << 10];
        let mut turn = 0;
        while turn < TURN_BYTES && words.backlog.len() < limit && !words.ended {
            match rustix::io::read(&self.pipe, &mut buffer) {
                Ok(count @ 1..) => {
                    keep(&mut words.last, &buffer[..count]);
                    let room = LARGEST_BACKLOG.saturating_sub(words.backlog.len());
                    words.backlog.extend(&buffer[..count.min(room)]);
                    turn += count;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Ok(0) | Err(_) => words.ended = true,
            }
        }
    }

    /// Whether there is more to read, and room for it.
    fn is_open(&self) -> bool {
        let words = self.words.lock();
        !words.ended && words.backlog.len() < BACKLOG_BYTES
    }

    fn has_backlog(&self) -> bool {
        !self.words.lock().backlog.is_empty()
    }

    fn is_over(&self) -> bool {
        let words = self.words.lock();
        words.ended && words.backlog.is_empty()
    }

    /// Writes from the backlog while stderr takes it, so much per turn.
    fn forward(&self) -> Forwarded {
        let mut buffer = [0; WRITE_BYTES];
        let mut turn = 0;
        while turn < TURN_BYTES {
            let part = {
                let words = self.words.lock();
                next_part(&words.backlog, &mut buffer)
            };
            if part == 0 {
                break;
            }
            if !is_writable() {
                return Forwarded::Full;
            }
            // The lock is not held: a write that blocks after all stops this thread alone.
            let written = match rustix::io::write(io::stderr(), &buffer[..part]) {
                Ok(written @ 1..) => written.min(part),
                Err(Errno::INTR) => continue,
                Ok(0) | Err(Errno::AGAIN) => return Forwarded::Refused,
                // It is closed or broken; so are the words.
                Err(_) => part,
            };
            turn += written;
            let mut words = self.words.lock();
            // Still the same bytes: only this thread takes any out.
            words.backlog.drain(..written);
            if words.backlog.is_empty() {
                self.flushed.notify_all();
            }
        }
        Forwarded::Taken
    }
}

/// What became of a try to forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Forwarded {
    Taken,
    /// Nobody reads: poll tells when there is room.
    Full,
    /// No room although poll says that there is.
    Refused,
}

/// Adds to the last words and forgets what was too long ago.
fn keep(last: &mut VecDeque<u8>, bytes: &[u8]) {
    last.extend(bytes);
    let surplus = last.len().saturating_sub(TAIL_BYTES);
    last.drain(..surplus);
}

/// Copies what is to be written next: whole lines if possible, so that those of several children do not mix.
fn next_part(backlog: &VecDeque<u8>, buffer: &mut [u8; WRITE_BYTES]) -> usize {
    let mut len = 0;
    for (place, byte) in buffer.iter_mut().zip(backlog) {
        *place = *byte;
        len += 1;
    }
    if len < backlog.len() {
        let lines = buffer.iter().rposition(|byte| *byte == b'\n');
        len = lines.map_or(len, |at| at + 1);
    }
    len
}

/// Whether this process's stderr takes a write now, or is closed or broken.
fn is_writable() -> bool {
    let stderr = io::stderr();
    let mut polled = [PollFd::from_borrowed_fd(stderr.as_fd(), PollFlags::OUT)];
    matches!(poll(&mut polled, Some(&Timespec::default())), Ok(1..))
}

/// Something to look after.
#[derive(Debug)]
enum Duty {
    Stderr(Arc<Tail>),
    Reap(Arc<OwnedFd>),
}

impl Duty {
    /// What to wait for; nothing while there is no room for what a child writes.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Stderr(tail) => tail.is_open().then(|| tail.pipe.as_fd()),
            Self::Reap(pidfd) => Some(pidfd.as_fd()),
        }
    }

    fn tail(&self) -> Option<&Tail> {
        match self {
            Self::Stderr(tail) => Some(tail),
            Self::Reap(_) => None,
        }
    }

    /// Looks after it; `false` when there is nothing more to do.
    fn attend(&self, ready: bool) -> bool {
        match self {
            Self::Stderr(tail) => {
                if ready {
                    tail.take_in(&mut tail.words.lock(), BACKLOG_BYTES);
                }
                !tail.is_over()
            }
            Self::Reap(_) if !ready => true,
            Self::Reap(pidfd) => {
                let status =
                    waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
                let lives = matches!(status, Ok(None) | Err(Errno::INTR));
                if !lives {
                    // Nobody else knows of this death at once.
                    shm_core::segment::sweep_all();
                }
                lives
            }
        }
    }
}

/// What the thread shares with the rest of the process.
#[derive(Debug)]
struct Inbox {
    duties: Mutex<Vec<Duty>>,
    bell: OwnedFd,
}

impl Inbox {
    fn assign(&self, duty: Duty) {
        self.duties.lock().push(duty);
        self.ring();
    }

    /// Wakes the thread.
    fn ring(&self) {
        // Only an overflow can fail, and then the bell rings already.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }
}

/// The thread of this process; a forked child has none and starts its own.
static ATTENDANT: Mutex<Option<(ForkStamp, Arc<Inbox>)>> = Mutex::new(None);

/// Forwards a child's stderr from now on, until its end.
///
/// # Errors
///
/// The system's, when the thread cannot be started.
pub(crate) fn forward_stderr(tail: Arc<Tail>) -> io::Result<()> {
    let inbox = inbox()?;
    // A tail is given here once.
    let _ = tail.inbox.set(Arc::clone(&inbox));
    inbox.assign(Duty::Stderr(tail));
    Ok(())
}

/// Collects the exit status of a child as soon as it ends.
pub(crate) fn reap(pidfd: Arc<OwnedFd>) {
    // Without a thread a zombie stays until this process ends: nothing else can be done in a `drop`.
    if let Ok(inbox) = inbox() {
        inbox.assign(Duty::Reap(pidfd));
    }
}

fn inbox() -> io::Result<Arc<Inbox>> {
    // A fork may have copied a lock whose holder did not come along: an error then, not a hang.
    let mut attendant = ATTENDANT
        .try_lock_for(LOCK_PATIENCE)
        .ok_or_else(|| io::Error::other("forked while a child was being started"))?;
    if let Some((stamp, inbox)) = &*attendant {
        if stamp.check().is_ok() {
            return Ok(Arc::clone(inbox));
        }
    }
    let inbox = Arc::new(Inbox {
        duties: Mutex::new(Vec::new()),
        bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
    });
    let theirs = Arc::clone(&inbox);
    std::thread::Builder::new().name("proc-pool-attend".into()).spawn(move || run(&theirs))?;
    *attendant = Some((ForkStamp::now(), Arc::clone(&inbox)));
    Ok(inbox)
}

fn run(inbox: &Inbox) {
    let mut duties: Vec<Duty> = Vec::new();
    let mut forwarded = Forwarded::Taken;
    loop {
        duties.append(&mut inbox.duties.lock());
        let stderr = io::stderr();
        let mut polled = vec![PollFd::from_borrowed_fd(inbox.bell.as_fd(), PollFlags::IN)];
        let places: Vec<Option<usize>> = duties
            .iter()
            .map(|duty| {
                duty.descriptor().map(|descriptor| {
                    polled.push(PollFd::from_borrowed_fd(descriptor, PollFlags::IN));
                    polled.len() - 1
                })
            })
            .collect();
        let backlog = duties.iter().filter_map(Duty::tail).any(Tail::has_backlog);
        let refused = backlog && forwarded == Forwarded::Refused;
        if backlog && !refused {
            polled.push(PollFd::from_borrowed_fd(stderr.as_fd(), PollFlags::OUT));
        }
        // An error (a signal, no memory) means that some are looked after in vain.
        let _ = poll(&mut polled, refused.then_some(&REFUSED_PAUSE));
        let is_ready = |place: Option<usize>| place.is_some_and(|at| !polled[at].revents().is_empty());
        let ready: Vec<bool> = places.into_iter().map(is_ready).collect();
        let _ = rustix::io::read(&inbox.bell, &mut [0; 8]);
        let mut ready = ready.into_iter();
        duties.retain(|duty| duty.attend(ready.next().unwrap_or(false)));
        forwarded = Forwarded::Taken;
        for tail in duties.iter().filter_map(Duty::tail) {
            forwarded = tail.forward();
            if forwarded != Forwarded::Taken {
                break;
            }
        }
        if let Some(last) = duties.len().checked_sub(1).filter(|_| forwarded != Forwarded::Taken) {
            duties.rotate_left(last.min(1));
        }
        duties.retain(|duty| duty.tail().is_none_or(|tail| !tail.is_over()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_keeps_the_last_words_only() {
        let mut last = VecDeque::new();
        for number in 0..2000 {
            keep(&mut last, format!("{number:07}\n").as_bytes());
        }
        assert_eq!(last.len(), TAIL_BYTES);
        assert!(last.make_contiguous().ends_with(b"0001999\n"));
    }

    #[test]
    fn the_tail_of_an_open_pipe_does_not_wait() {
        let (tail, writer) = Tail::new().expect("a pipe");
        rustix::io::write(&writer, b"last words").expect("written");
        assert_eq!(tail.text(), "last words");
    }
    #[test]
    fn whole_lines_are_forwarded_where_possible() {
        let mut buffer = [0; WRITE_BYTES];
        let part = |backlog: &str, buffer: &mut _| next_part(&backlog.bytes().collect(), buffer);
        assert_eq!(part("one\ntw", &mut buffer), 6);
        assert_eq!(part(&("line\n".repeat(2000)), &mut buffer), WRITE_BYTES / 5 * 5);
        assert_eq!(part(&"x".repeat(5000), &mut buffer), WRITE_BYTES);
        assert_eq!(part("", &mut buffer), 0);
    }
}
