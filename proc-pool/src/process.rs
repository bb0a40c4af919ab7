//! One function in one process of its own.

use crate::child::{Child, HANDSHAKE_TIMEOUT, Launch, Received};
use crate::control::{ToChild, ToParent};
use crate::error::{Error, Result, TaskError};
use crate::function::assert_stateless;
use crate::oneshot;
use crate::payload::{self, Payload};
use parking_lot::Mutex;
use rustix::process::Signal;
use serde::Serialize;
use serde::de::DeserializeOwned;
use shm_core::handle::ReceiveSession;
use shm_core::sync::{AtomicU64, Ordering};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitStatus {
    code: Option<i32>,
    signal: Option<i32>,
}

impl ExitStatus {
    pub(crate) fn new(code: Option<i32>, signal: Option<i32>) -> Self {
        Self { code, signal }
    }

    /// The code that it exited with, if it exited.
    pub fn code(&self) -> Option<i32> {
        self.code
    }

    /// The signal that ended it, if one did. Neither code nor signal: somebody else collected the status.
    pub fn signal(&self) -> Option<i32> {
        self.signal
    }

    /// Whether it exited with code 0.
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }
}

/// A function that runs in a process of its own, and the handle to its result: `std::thread::spawn` with a process.
///
/// Every method works on `&self`, and a `Process` can be shared between threads.
///
/// # Dropping it
///
/// Kills the child if it still runs, with everything in its process group, and collects its exit status: nothing
/// survives, no zombie stays. [`join`](Process::join) first what should finish.
///
/// # If the peer dies
///
/// [`join`](Process::join) returns [`TaskError::WorkerDied`] with signal or exit code and the end of its stderr. If
/// *this* process dies, the child is killed, whatever killed this one.
///
/// # Across processes
///
/// In a process forked from this one the handle is dead: its methods return errors, and its drop does nothing.
///
/// # Examples
///
/// ```
/// use proc_pool::{Process, Result};
///
/// fn square(x: u64) -> u64 { x * x }
///
/// fn main() -> Result<()> {
///     proc_pool::init();
///     let child = Process::spawn(square, 12)?;
///     assert_eq!(child.join()?, 144);
///     Ok(())
/// }
/// ```
#[must_use = "dropping a Process kills the child; join it"]
pub struct Process<R> {
    child: Child,
    name: String,
    label: &'static str,
    outcome: Mutex<Outcome>,
    result: PhantomData<fn() -> R>,
}

/// What is known of the result.
#[derive(Debug)]
enum Outcome {
    /// Nothing yet; `listen` until the child's end of the socket is closed.
    Pending {
        listen: bool,
    },
    Returned {
        bytes: Arc<Vec<u8>>,
        /// The descriptors of the handles inside; `None` once somebody got them.
        handles: Option<Vec<OwnedFd>>,
    },
    Failed(TaskError),
}

impl Process<()> {
    /// Sets name, environment and time limits of a child before it is started.
    ///
    /// # Examples
    ///
    /// ```
    /// # use proc_pool::{Process, Result};
    /// # fn main() -> Result<()> {
    /// # proc_pool::init();
    /// fn greet(key: String) -> Option<String> { std::env::var(key).ok() }
    ///
    /// let child = Process::builder().name("greeter").env("GREETING", "hello").spawn(greet, "GREETING".into())?;
    /// assert_eq!(child.name(), "greeter");
    /// assert_eq!(child.join()?.as_deref(), Some("hello"));
    /// # Ok(()) }
    /// ```
    pub fn builder() -> ProcessBuilder {
        ProcessBuilder { name: None, environment: Vec::new(), handshake_timeout: HANDSHAKE_TIMEOUT }
    }
}

impl<R> Process<R> {
    /// Calls `function(argument)` in a new process.
    ///
    /// `function` is a function or a closure without captures; captures do not compile. The argument may carry
    /// handles (queue ends and the like). Blocks until the child is ready, about two milliseconds.
    ///
    /// # Errors
    ///
    /// `is_not_initialised` without [`init`](crate::init); `is_too_deep`; `is_foreign_function`; `is_handshake` for a
    /// child that does not become ready within ten seconds; a codec error of the argument; the system's errors.
    ///
    /// # Examples
    ///
    /// What the function needs goes into its argument. A closure that captures does not compile:
    ///
    /// ```compile_fail
    /// # use proc_pool::Process;
    /// # proc_pool::init();
    /// let factor = 3;
    /// let child = Process::spawn(move |x: u64| x * factor, 12);
    /// ```
    ///
    /// ```
    /// # use proc_pool::Process;
    /// # proc_pool::init();
    /// let factor = 3;
    /// let child = Process::spawn(|(x, factor): (u64, u64)| x * factor, (12, factor))?;
    /// assert_eq!(child.join()?, 36);
    /// # Ok::<(), proc_pool::Error>(())
    /// ```
    pub fn spawn<F, A>(function: F, argument: A) -> Result<Process<R>>
    where
        F: Fn(A) -> R + Copy + Send + Sync + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        Process::builder().spawn(function, argument)
    }

    /// The process id. It stays the child's until the exit status was collected.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The name given to the builder, or `process-N`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the child still runs. May be stale at once. Never blocks.
    pub fn is_alive(&self) -> bool {
        self.child.check_owner().is_ok() && self.child.try_status().is_none()
    }

    /// How the child ended; `None` while it runs. Never blocks.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.child.try_status()
    }

    /// Kills the child with SIGKILL, and with it everything in its process group. Does nothing if it has ended.
    ///
    /// Does not wait for the end; [`join`](Process::join) does.
    ///
    /// # Errors
    ///
    /// The system's; a forked process has no child to kill.
    pub fn kill(&self) -> Result<()> {
        self.child.check_owner()?;
        self.child.kill().map_err(Error::system("killing a child process"))
    }

    /// Sends SIGTERM to the child, which ends it unless its code handles the signal. Does nothing if it has ended.
    ///
    /// # Errors
    ///
    /// As for [`kill`](Process::kill).
    pub fn terminate(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// Sends SIGINT to the child, as a Ctrl-C would. Does nothing if it has ended.
    ///
    /// # Errors
    ///
    /// As for [`kill`](Process::kill).
    pub fn interrupt(&self) -> Result<()> {
        self.signal(Signal::INT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        self.child.check_owner()?;
        self.child.signal(signal).map_err(Error::system("signalling a child process"))
    }
}

impl<R: DeserializeOwned> Process<R> {
    /// Waits until the child has ended and returns the function's result. May be asked again, by several threads.
    ///
    /// A result that carries handles gives them to the first that asks; later ones get
    /// [`TaskError::Unavailable`].
    ///
    /// # Errors
    ///
    /// The function's failure: [`Panicked`](TaskError::Panicked), [`WorkerDied`](TaskError::WorkerDied) (killed,
    /// crashed, or `exit` was called), [`Codec`](TaskError::Codec).
    pub fn join(&self) -> std::result::Result<R, TaskError> {
        loop {
            if let Some(result) = self.join_until(None)? {
                return Ok(result);
            }
        }
    }

    /// [`join`](Process::join) for at most `timeout`; `None` if the child still runs then.
    ///
    /// # Errors
    ///
    /// As for [`join`](Process::join).
    pub fn join_timeout(&self, timeout: Duration) -> std::result::Result<Option<R>, TaskError> {
        // A time beyond the range of the clock is for ever.
        self.join_until(Instant::now().checked_add(timeout))
    }

    fn join_until(&self, deadline: Option<Instant>) -> std::result::Result<Option<R>, TaskError> {
        loop {
            self.child.check_owner()?;
            // In this order: what a child sent before it ended is in the socket when its end is seen.
            let ended = self.child.try_status().is_some();
            let listen = {
                let mut outcome = self.outcome.lock();
                self.receive(&mut outcome);
                match &mut *outcome {
                    Outcome::Pending { .. } if ended => {
                        *outcome = Outcome::Failed(self.child.death(None, self.label));
                        continue;
                    }
                    Outcome::Pending { listen } => *listen,
                    Outcome::Failed(error) if ended => {
                        self.child.flush_stderr();
                        return Err(error.clone());
                    }
                    Outcome::Returned { bytes, handles } if ended => {
                        let bytes = Arc::clone(bytes);
                        // A result without handles can be decoded again and again.
                        let handles = match handles {
                            Some(none) if none.is_empty() => Some(Vec::new()),
                            some => some.take(),
                        };
                        drop(outcome);
                        self.child.flush_stderr();
                        return Self::decode(&bytes, handles).map(Some);
                    }
                    Outcome::Failed(_) | Outcome::Returned { .. } => false,
                }
            };
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(None);
            }
            self.child.wait(listen, deadline);
        }
    }

    /// Takes the child's message if it is there.
    fn receive(&self, outcome: &mut Outcome) {
        if !matches!(outcome, Outcome::Pending { listen: true }) {
            return;
        }
        *outcome = match self.child.try_receive() {
            Ok(Received::Nothing) => return,
            Ok(Received::End) => Outcome::Pending { listen: false },
            Ok(Received::Message(ToParent::Done { result }, descriptors)) => {
                match Payload::unpack(result, descriptors) {
                    Ok(Payload { bytes, descriptors }) => {
                        Outcome::Returned { bytes: Arc::new(bytes), handles: Some(descriptors) }
                    }
                    Err(error) => Outcome::Failed(error),
                }
            }
            Ok(Received::Message(ToParent::Failed(error), _)) => Outcome::Failed(error),
            Ok(Received::Message(
                ToParent::Attached { .. } | ToParent::Fetch { .. } | ToParent::Spill { .. },
                _,
            )) => Outcome::Failed(TaskError::unavailable("the child spoke as a worker of a pool")),
            Err(error) => Outcome::Failed(TaskError::unavailable(format!(
                "receiving the result of process {}: {error}",
                self.id()
            ))),
        };
    }

    fn decode(bytes: &[u8], handles: Option<Vec<OwnedFd>>) -> std::result::Result<R, TaskError> {
        let handles = handles.ok_or_else(|| {
            TaskError::unavailable("the result carried handles, and an earlier join was given them")
        })?;
        let _session = ReceiveSession::begin(handles);
        payload::decode(bytes, "the result")
    }
}

/// The sentinel: readable once the child has ended. For `poll` and the like; do not wait for the process through it.
impl<R> AsFd for Process<R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.child.pidfd()
    }
}

impl<R> fmt::Debug for Process<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("name", &self.name)
            .field("function", &self.label)
            .field("id", &self.id())
            .field("exit_status", &self.exit_status())
            .finish_non_exhaustive()
    }
}

/// A child before it is started; from [`Process::builder`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until spawn"]
pub struct ProcessBuilder {
    name: Option<String>,
    environment: Vec<(OsString, Option<OsString>)>,
    handshake_timeout: Duration,
}

impl ProcessBuilder {
    /// Names the child, for [`Process::name`] and for tools like `ps`, which show the first 15 bytes.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets an environment variable of the child.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        let value = Some(value.as_ref().to_owned());
        self.environment.push((key.as_ref().to_owned(), value));
        self
    }

    /// Removes an environment variable that the child would inherit.
    pub fn env_remove(mut self, key: impl AsRef<OsStr>) -> Self {
        self.environment.push((key.as_ref().to_owned(), None));
        self
    }

    /// How long the child may take until it is ready, 10 seconds unless set. It is killed then.
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.handshake_timeout = timeout;
        self
    }

    /// Calls `function(argument)` in a new process; see [`Process::spawn`].
    ///
    /// # Errors
    ///
    /// As for [`Process::spawn`]; `is_invalid_input` for a name beyond 255 bytes, and for an environment variable
    /// whose name is empty or has `=` or a zero byte in it, or whose value has a zero byte.
    pub fn spawn<F, A, R>(&self, function: F, argument: A) -> Result<Process<R>>
    where
        F: Fn(A) -> R + Copy + Send + Sync + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        static COUNT: AtomicU64 = AtomicU64::new(0);

        const { assert_stateless::<F>() };
        let label = std::any::type_name::<F>();
        self.check()?;
        let code = oneshot::code_of(&function, label)?;
        let argument = Payload::encode(&argument, "the argument")?;
        let name = self.name.clone().unwrap_or_else(|| {
            // Relaxed: only distinct.
            format!("process-{}", COUNT.fetch_add(1, Ordering::Relaxed) + 1)
        });
        let child = Child::launch(&Launch {
            name: name.clone(),
            environment: self.environment.clone(),
            handshake_timeout: self.handshake_timeout,
        })?;
        child.handshake()?;
        let (argument, descriptors) = argument.pack()?;
        // A child that ended meanwhile is found out by `join`, which tells how.
        match child.send(&ToChild::Run { code, argument }, &descriptors, None) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                return Err(Error::system("sending the argument")(error));
            }
            _ => {}
        }
        Ok(Process {
            child,
            name,
            label,
            outcome: Mutex::new(Outcome::Pending { listen: true }),
            result: PhantomData,
        })
    }

    fn check(&self) -> Result<()> {
        const MAX_NAME: usize = 255;

        if let Some(len) = self.name.as_ref().map(String::len).filter(|&len| len > MAX_NAME) {
            return Err(Error::invalid(format!("a name of {len} bytes; the limit is {MAX_NAME}")));
        }
        check_environment(&self.environment)
    }
}

/// Variables that a child can have.
///
/// # Errors
///
/// `is_invalid_input` for the first one that it cannot.
pub(crate) fn check_environment(variables: &[(OsString, Option<OsString>)]) -> Result<()> {
    use std::os::unix::ffi::OsStrExt;

    for (key, value) in variables {
        let bytes = key.as_bytes();
        let value = value.as_ref().map_or(&[][..], |value| value.as_bytes());
        if bytes.is_empty() || bytes.contains(&b'=') || bytes.contains(&0) || value.contains(&0) {
            return Err(Error::invalid(format!(
                "{key:?} cannot be an environment variable: names are not empty and have no '=', \
                 and nothing has a zero byte"
            )));
        }
    }
    Ok(())
}
