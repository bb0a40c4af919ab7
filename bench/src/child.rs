//! The other side of a measurement between processes: this program again, in a role, with a control socket as
//! its standard input.
//!
//! The control messages are small postcard values; descriptors and handles of the queue travel beside them.

use crate::pin::{self, Pinning, Side};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, pidfd_open,
    set_parent_process_death_signal, waitid,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use shm_core::handle::{ReceiveSession, SendSession, send_descriptor, take_descriptor};
use shm_core::socket;
use std::error::Error;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// A control message that takes longer than this means that the other side is stuck or dead.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the first argument of a child is.
const MARK: &str = "--child";

/// What a child does once it has its socket.
pub type Role = fn(&Control) -> Result;

/// One end of the control socket.
pub struct Control(OwnedFd);

impl Control {
    /// Sends a value, with the handles in it.
    pub fn send(&self, value: &impl Serialize) -> Result {
        let session = SendSession::begin();
        // The length in front keeps the message from being empty, as a unit would be.
        let bytes = postcard::to_stdvec(&(0xB5u8, value))?;
        let descriptors = session.finish();
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        Ok(socket::send(
            self.0.as_fd(),
            &bytes,
            &borrowed,
            Some(Instant::now() + PATIENCE),
        )?)
    }

    /// Receives a value.
    pub fn recv<T: DeserializeOwned>(&self) -> Result<T> {
        self.take()?.open()
    }

    /// Receives a value as it came.
    pub fn take(&self) -> Result<Message> {
        let message = socket::recv(self.0.as_fd(), Some(Instant::now() + PATIENCE))?;
        let (bytes, descriptors) = message.ok_or("the other side of the measurement is gone")?;
        Ok(Message { bytes, descriptors })
    }
}

/// A value as it came: bytes, and the descriptors of the handles in it.
pub struct Message {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Message {
    /// The value.
    pub fn open<T: DeserializeOwned>(self) -> Result<T> {
        let _session = ReceiveSession::begin(self.descriptors);
        let (mark, value) = postcard::from_bytes::<(u8, T)>(&self.bytes)?;
        if mark != 0xB5 {
            return Err("not a control message".into());
        }
        Ok(value)
    }
}

/// A running child; killed on drop unless it was joined.
pub struct Child {
    process: std::process::Child,
    pub control: Control,
}

impl Child {
    /// Starts this program again in `role`, on side B of `pinning`, and sends it `args`.
    pub fn spawn(role: &str, pinning: Pinning, args: &impl Serialize) -> Result<Child> {
        Self::spawn_on(Side::B, role, pinning, args)
    }

    /// Likewise on side A, as the caller of a pool whose workers belong on side B.
    pub fn spawn_caller(role: &str, pinning: Pinning, args: &impl Serialize) -> Result<Child> {
        Self::spawn_on(Side::A, role, pinning, args)
    }

    /// Likewise on either side.
    pub fn spawn_on(side: Side, role: &str, pinning: Pinning, args: &impl Serialize) -> Result<Child> {
        let (ours, theirs) = socket::pair()?;
        let process = Command::new(std::env::current_exe()?)
            .args([MARK, role, &pin::list(&pinning.cpus(side))])
            .env(pin::WORKER_CPUS, pin::list(&pinning.cpus(Side::B)))
            .stdin(Stdio::from(theirs))
            .spawn()?;
        let child = Child {
            process,
            control: Control(ours),
        };
        child.control.send(args)?;
        Ok(child)
    }

    /// A descriptor that is readable when the child is dead.
    pub fn sentinel(&self) -> Result<OwnedFd> {
        let pid = Pid::from_child(&self.process);
        Ok(pidfd_open(pid, PidfdFlags::empty())?)
    }

    /// Sends SIGKILL; the drop waits for the end.
    pub fn kill(&mut self) -> Result {
        Ok(self.process.kill()?)
    }

    /// Stops the child (SIGSTOP); returns when it stands still.
    pub fn stop(&self) -> Result {
        let pid = Pid::from_child(&self.process);
        kill_process(pid, Signal::STOP)?;
        waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED)?;
        Ok(())
    }

    /// Lets it go on.
    pub fn resume(&self) -> Result {
        Ok(kill_process(Pid::from_child(&self.process), Signal::CONT)?)
    }

    /// Waits for the end of the child, which must be a success.
    pub fn join(mut self) -> Result {
        let status = self.process.wait()?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("a child of the benchmark ended with {status}").into())
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Both fail harmlessly for a child that was joined: std remembers the status.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs this process as a child if it was started as one, and ends it.
pub fn run_if_child(roles: &[(&str, Role)]) {
    let args: Vec<String> = std::env::args().collect();
    let [_, mark, role, cpus] = args.as_slice() else {
        return;
    };
    if mark != MARK {
        return;
    }
    let result = run(roles, role, cpus);
    if let Err(error) = &result {
        eprintln!("bench child {role}: {error}");
    }
    std::process::exit(i32::from(result.is_err()));
}

fn run(roles: &[(&str, Role)], role: &str, cpus: &str) -> Result {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    pin::set(&pin::parse(cpus).ok_or("a list of processors is expected")?);
    let stdin = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let (_, run) = roles
        .iter()
        .find(|(name, _)| *name == role)
        .ok_or("no such role")?;
    run(&Control(stdin))
}

/// A descriptor that can be sent in a control message.
pub struct Fd(pub OwnedFd);

impl Serialize for Fd {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let copy = self.0.try_clone().map_err(serde::ser::Error::custom)?;
        send_descriptor(copy)
            .map_err(serde::ser::Error::custom)?
            .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Fd {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        take_descriptor(u32::deserialize(deserializer)?)
            .map(Fd)
            .map_err(serde::de::Error::custom)
    }
}

impl std::fmt::Debug for Fd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Fd({})", self.0.as_raw_fd())
    }
}
