//! One thread per process that looks after children: it forwards what they write to stderr, and collects the exit
//! status of those whose handle is gone.
//!
//! A child's stderr is a pipe to here. What arrives is written to this process's own stderr, and the last 4 KiB stay
//! with the child's [`Tail`], for the error that tells how it ended. A pipe may outlive its child (a grandchild holds
//! it), so nobody ever waits for its end: whoever needs the tail of a dead child drains what lies in the pipe itself,
//! which is all that the child ever wrote.

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use shm_core::fork::ForkStamp;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// How much of a child's stderr is kept.
const TAIL_BYTES: usize = 4 << 10;
/// How much is read per turn, so that one loud child does not starve the others.
const TURN_BYTES: usize = 256 << 10;

/// Longer than anybody holds the lock of the thread's place.
pub(crate) const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// The reading end of a child's stderr, and its last words.
#[derive(Debug)]
pub(crate) struct Tail {
    pipe: OwnedFd,
    last: Mutex<VecDeque<u8>>,
}

impl Tail {
    /// The pipe; the second value is the end for the child.
    pub(crate) fn new() -> io::Result<(Arc<Self>, OwnedFd)> {
        let (pipe, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&pipe, true)?;
        let last = Mutex::new(VecDeque::new());
        Ok((Arc::new(Self { pipe, last }), writer))
    }

    /// The last words, with everything that lies in the pipe now. Never waits for the child.
    pub(crate) fn text(&self) -> String {
        self.drain();
        let mut last = self.last.lock();
        let bytes = last.make_contiguous();
        String::from_utf8_lossy(bytes).into_owned()
    }

    /// Forwards what lies in the pipe; `false` at its end.
    pub(crate) fn drain(&self) -> bool {
        let mut last = self.last.lock();
        let mut buffer = [0; 8 << 10];
        let mut turn = 0;
        while turn < TURN_BYTES {
            match rustix::io::read(&self.pipe, &mut buffer) {
                Ok(0) => return false,
                Ok(count) => {
                    let bytes = &buffer[..count];
                    forward(bytes);
                    keep(&mut last, bytes);
                    turn += count;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return true,
                Err(_) => return false,
            }
        }
        true
    }
}

/// Adds to the last words and forgets what was too long ago.
fn keep(last: &mut VecDeque<u8>, bytes: &[u8]) {
    last.extend(bytes);
    let surplus = last.len().saturating_sub(TAIL_BYTES);
    last.drain(..surplus);
}

/// Writes to this process's stderr. If that is closed or broken, so are the words.
fn forward(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match rustix::io::write(io::stderr(), bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

/// Something to look after.
#[derive(Debug)]
enum Duty {
    Stderr(Arc<Tail>),
    Reap(Arc<OwnedFd>),
}

impl Duty {
    fn descriptor(&self) -> BorrowedFd<'_> {
        match self {
            Self::Stderr(tail) => tail.pipe.as_fd(),
            Self::Reap(pidfd) => pidfd.as_fd(),
        }
    }

    /// Looks after it; `false` when there is nothing more to do.
    fn attend(&self) -> bool {
        match self {
            Self::Stderr(tail) => tail.drain(),
            Self::Reap(pidfd) => {
                let status = waitid(
                    WaitId::PidFd(pidfd.as_fd()),
                    WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
                );
                matches!(status, Ok(None) | Err(Errno::INTR))
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

/// The thread of this process; a forked child has none and starts its own.
static ATTENDANT: Mutex<Option<(ForkStamp, Arc<Inbox>)>> = Mutex::new(None);

/// Forwards a child's stderr from now on, until its end.
///
/// # Errors
///
/// The system's, when the thread cannot be started.
pub(crate) fn forward_stderr(tail: Arc<Tail>) -> io::Result<()> {
    assign(Duty::Stderr(tail))
}

/// Collects the exit status of a child as soon as it ends.
pub(crate) fn reap(pidfd: Arc<OwnedFd>) {
    // Without a thread a zombie stays until this process ends: nothing else can be done in a `drop`.
    let _ = assign(Duty::Reap(pidfd));
}

fn assign(duty: Duty) -> io::Result<()> {
    let inbox = inbox()?;
    inbox.duties.lock().push(duty);
    // Only an overflow can fail, and then the bell rings already.
    let _ = rustix::io::write(&inbox.bell, &1u64.to_ne_bytes());
    Ok(())
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
    std::thread::Builder::new()
        .name("proc-pool-attend".into())
        .spawn(move || run(&theirs))?;
    *attendant = Some((ForkStamp::now(), Arc::clone(&inbox)));
    Ok(inbox)
}

fn run(inbox: &Inbox) {
    let mut duties: Vec<Duty> = Vec::new();
    loop {
        duties.append(&mut inbox.duties.lock());
        let mut polled: Vec<PollFd<'_>> = std::iter::once(inbox.bell.as_fd())
            .chain(duties.iter().map(Duty::descriptor))
            .map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN))
            .collect();
        // An error (a signal, no memory) means that some are looked after in vain.
        let _ = poll(&mut polled, None);
        let ready: Vec<bool> = polled[1..].iter().map(|fd| !fd.revents().is_empty()).collect();
        let _ = rustix::io::read(&inbox.bell, &mut [0; 8]);
        let mut ready = ready.into_iter();
        duties.retain(|duty| !ready.next().unwrap_or(false) || duty.attend());
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
}
