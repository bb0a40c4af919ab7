//! Parent and child make sure that they are the same program before a function's name crosses.
//!
//! The parent says who it is; the child compares, answers who it is itself, and the parent compares too. Compared are
//! the version of the protocol, the build id (the linker's, or the identity of the executable file where there is
//! none), and a canary: where a known function lies and how its code begins.

use crate::control;
use crate::function::Image;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

/// The version of everything that crosses between parent and child.
const PROTOCOL: u32 = 1;
/// Begins both greetings.
const MAGIC: u64 = u64::from_be_bytes(*b"procpool");

/// Which program a process is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    magic: u64,
    protocol: u32,
    build: Vec<u8>,
    canary: (u64, u64),
}

impl Identity {
    /// This process.
    ///
    /// # Errors
    ///
    /// The system's, when the program has no build id and `/proc/self/exe` cannot be read.
    pub(crate) fn of_this_process() -> io::Result<Self> {
        let image = Image::of_this_process();
        let build = match image.build_id() {
            Some(id) => id.to_vec(),
            None => {
                let file = std::fs::metadata("/proc/self/exe")?;
                [
                    file.dev().to_be_bytes(),
                    file.ino().to_be_bytes(),
                    file.len().to_be_bytes(),
                    file.mtime().to_be_bytes(),
                    file.mtime_nsec().to_be_bytes(),
                ]
                .concat()
            }
        };
        Ok(Self { magic: MAGIC, protocol: PROTOCOL, build, canary: image.canary() })
    }

    /// Whether `theirs` is the same program.
    fn compare(&self, theirs: &Self) -> Result<(), Mismatch> {
        if (self.magic, self.protocol) != (theirs.magic, theirs.protocol) {
            Err(Mismatch::Protocol { ours: self.protocol, theirs: theirs.protocol })
        } else if self.build != theirs.build {
            Err(Mismatch::Build { ours: self.build.clone(), theirs: theirs.build.clone() })
        } else if self.canary != theirs.canary {
            Err(Mismatch::Canary)
        } else {
            Ok(())
        }
    }
}

/// How two processes differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Mismatch {
    Protocol { ours: u32, theirs: u32 },
    Build { ours: Vec<u8>, theirs: Vec<u8> },
    Canary,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protocol { ours, theirs } => {
                write!(f, "speaks version {theirs} of the control protocol, not version {ours}")
            }
            Self::Build { ours, theirs } => {
                write!(f, "is another build of the program: {}, not {}", Hex(theirs), Hex(ours))
            }
            Self::Canary => f.write_str("has the same build id, but its code lies elsewhere"),
        }
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The parent's greeting.
#[derive(Debug, Serialize, Deserialize)]
struct Hello {
    identity: Identity,
    name: String,
}

/// The child's answer.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Ready(Identity),
    Refused(Mismatch),
}

/// What ended a handshake.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The other process ended, or never spoke and its socket was closed.
    End,
    TimedOut,
    Mismatch(Mismatch),
    Garbled(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut => Self::TimedOut,
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::End,
            _ => Self::Garbled(error),
        }
    }
}

/// The parent's first half: greets the child, which need not run yet. Never blocks: the socket is empty.
pub(crate) fn greet(socket: BorrowedFd<'_>, identity: &Identity, name: &str) -> io::Result<()> {
    let hello = Hello { identity: identity.clone(), name: name.to_owned() };
    control::send(socket, &hello, &[], None)
}

/// The parent's second half: waits for the child's answer until `deadline`.
pub(crate) fn await_answer(
    socket: BorrowedFd<'_>,
    identity: &Identity,
    deadline: Instant,
) -> Result<(), Failure> {
    match control::receive(socket, Some(deadline))?.ok_or(Failure::End)?.0 {
        Answer::Ready(theirs) => identity.compare(&theirs).map_err(Failure::Mismatch),
        // The child compared from its side.
        Answer::Refused(Mismatch::Protocol { ours, theirs }) => {
            Err(Failure::Mismatch(Mismatch::Protocol { ours: theirs, theirs: ours }))
        }
        Answer::Refused(Mismatch::Build { ours, theirs }) => {
            Err(Failure::Mismatch(Mismatch::Build { ours: theirs, theirs: ours }))
        }
        Answer::Refused(Mismatch::Canary) => Err(Failure::Mismatch(Mismatch::Canary)),
    }
}

/// The child's side: waits for the greeting until `deadline`, compares, answers. Returns the name that the parent
/// gave this process.
pub(crate) fn answer(
    socket: BorrowedFd<'_>,
    identity: &Identity,
    deadline: Instant,
) -> Result<String, Failure> {
    let hello: Hello = control::receive(socket, Some(deadline))?.ok_or(Failure::End)?.0;
    match identity.compare(&hello.identity) {
        Ok(()) => {
            control::send(socket, &Answer::Ready(identity.clone()), &[], Some(deadline))?;
            Ok(hello.name)
        }
        Err(mismatch) => {
            control::send(socket, &Answer::Refused(mismatch.clone()), &[], Some(deadline))?;
            Err(Failure::Mismatch(mismatch))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shm_core::socket;
    use std::os::fd::AsFd;
    use std::time::Duration;

    fn ours() -> Identity {
        Identity::of_this_process().expect("this program can be identified")
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    /// Both sides' verdicts when the child is `theirs`.
    fn meet(theirs: &Identity) -> (Result<(), Failure>, Result<String, Failure>) {
        let (parent, child) = socket::pair().expect("a pair");
        greet(parent.as_fd(), &ours(), "name").expect("greeted");
        let child_says = answer(child.as_fd(), theirs, soon());
        (await_answer(parent.as_fd(), &ours(), soon()), child_says)
    }

    #[test]
    fn the_same_program_is_accepted_on_both_sides() {
        let (parent, child) = meet(&ours());
        assert!(parent.is_ok());
        assert_eq!(child.expect("accepted"), "name");
    }

    #[test]
    fn another_build_is_refused_on_both_sides() {
        let mut theirs = ours();
        theirs.build = vec![1, 2, 3];
        let (parent, child) = meet(&theirs);
        let Err(Failure::Mismatch(Mismatch::Build { ours: a, theirs: b })) = parent else {
            panic!("not refused: {parent:?}");
        };
        assert_eq!((a, b), (ours().build, vec![1, 2, 3]));
        assert!(matches!(child, Err(Failure::Mismatch(Mismatch::Build { .. }))));
    }

    #[test]
    fn another_protocol_is_refused_on_both_sides() {
        let mut theirs = ours();
        theirs.protocol += 1;
        let (parent, child) = meet(&theirs);
        let Err(Failure::Mismatch(Mismatch::Protocol { ours: a, theirs: b })) = parent else {
            panic!("not refused: {parent:?}");
        };
        assert_eq!((a, b), (PROTOCOL, PROTOCOL + 1));
        assert!(child.is_err());
    }

    #[test]
    fn another_canary_is_refused_on_both_sides() {
        let mut theirs = ours();
        theirs.canary.0 += 16;
        let (parent, child) = meet(&theirs);
        assert!(matches!(parent, Err(Failure::Mismatch(Mismatch::Canary))));
        assert!(matches!(child, Err(Failure::Mismatch(Mismatch::Canary))));
    }

    #[test]
    fn a_child_that_answers_noise_is_an_error() {
        let (parent, child) = socket::pair().expect("a pair");
        socket::send(child.as_fd(), &[0xff; 20], &[], None).expect("sent");
        assert!(matches!(await_answer(parent.as_fd(), &ours(), soon()), Err(Failure::Garbled(_))));
    }

    #[test]
    fn silence_ends_with_the_deadline() {
        let (parent, _child) = socket::pair().expect("a pair");
        let deadline = Instant::now() + Duration::from_millis(5);
        assert!(matches!(await_answer(parent.as_fd(), &ours(), deadline), Err(Failure::TimedOut)));
    }
}
