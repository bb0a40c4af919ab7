//! Descriptors for messages that travel without a socket: they wait with their sender until somebody fetches them.
//!
//! A message in shared memory (a queue's item) is bytes. The descriptors of the handles in it stay in the process that
//! sent it, as a *deposit*; the bytes carry a [`Claim`], which says where the deposit is and proves the right to it.
//! Whoever takes the message fetches the deposit over a Unix socket from a thread of the sender's process, the *broker*.
//! It starts with the first deposit of a process, sleeps while nothing happens, blocks all signals, and ends with the
//! process, which does not wait for it.
//!
//! ```text
//! depositor                 broker of its process          whoever has the claim
//! deposit    -------------> PENDING
//! (sends the claim)
//! leave      -------------> LEFT
//!                           <---------------- connect, key
//!                           LENT, descriptors ---------->  received
//!                           <---------------- acknowledged
//!                           gone, hang up --------------->  done
//! ```
//!
//! A deposit is closed when its arrival was acknowledged; when its [`Deposit`] is dropped before it was left; and, within
//! about a second, when the keeper that it was left with says that nobody wants it any more. The process that fetches
//! waits until the broker has closed its copies, so that a handle is never in two places for long.
//!
//! # Whom it serves
//!
//! An abstract socket with a random name of 128 bits, so nothing is left on disk; it is found by processes of the same
//! network namespace. Both sides ask the kernel for the other's user: it has to be the same, unless root fetches; and then
//! it has to be the user that the claim names, since anybody can take the name of a broker that has ended. A key of 128
//! random bits per deposit is what the claim proves. Visitors are limited to 64 at a time and 5 seconds each.
//!
//! # If the peer dies
//!
//! With the sender's process its deposits are gone, at its normal end too: [`FetchError::Gone`]. A sender that is stopped
//! is alive: fetching gives up after 5 seconds ([`FetchError::Silent`]), and the deposit stays for another try. A fetcher
//! that dies before it acknowledged leaves the deposit as it was.
//!
//! # Across processes
//!
//! A forked child has a broker of its own; deposits stay with the parent, and the child's copies are closed.
//!
//! # Examples
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use shm_core::broker::{Claim, deposit, fetch};
//! let deposit = deposit(vec![std::fs::File::open("/dev/null")?.into()])?;
//! let bytes = deposit.claim().to_bytes();                       // travels in shared memory
//! deposit.leave(std::sync::Arc::new(|| true));
//!
//! let descriptors = fetch(&Claim::from_bytes(&bytes))?;         // in any process
//! assert_eq!(descriptors.len(), 1);
//! assert!(fetch(&Claim::from_bytes(&bytes)).is_err());          // each deposit is fetched once
//! # Ok(()) }
//! ```

mod client;
mod serve;
mod table;

pub use client::FETCH_TIMEOUT;

use crate::crash_point;
use crate::socket::MAX_DESCRIPTORS;
use serve::Broker;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use table::Key;

/// What a message says about the deposit that belongs to it. Keep it secret: who has it can fetch the deposit.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    address: Address,
    key: Key,
    /// The network namespace of the broker, to tell why it cannot be found.
    namespace: u32,
    count: u32,
    /// The user of the broker, as it knows itself.
    user: u32,
}

/// The random part of a broker's name.
type Address = [u8; 16];

impl Claim {
    /// The length of a claim in bytes.
    pub const LEN: usize = 44;

    /// The claim as bytes, for a message.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..16].copy_from_slice(&self.address);
        bytes[16..32].copy_from_slice(&self.key);
        bytes[32..36].copy_from_slice(&self.namespace.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.count.to_le_bytes());
        bytes[40..].copy_from_slice(&self.user.to_le_bytes());
        bytes
    }

    /// The claim in a message. Any bytes are a claim; a wrong one is found out by [`fetch`].
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let four = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        Self {
            address: std::array::from_fn(|i| bytes[i]),
            key: std::array::from_fn(|i| bytes[16 + i]),
            namespace: four(32),
            count: four(36),
            user: four(40),
        }
    }

    /// How many descriptors the deposit has, as the message says.
    pub fn count(&self) -> u32 {
        self.count
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim").field("count", &self.count).finish_non_exhaustive()
    }
}

/// Tells whether somebody may still come for a deposit. Asked by the broker's thread, about once a second; it must not
/// block, nor make or fetch deposits.
pub type Keeper = Arc<dyn Fn() -> bool + Send + Sync>;

/// A deposit whose claim was not sent yet. Dropping it closes the descriptors.
#[derive(Debug)]
#[must_use = "dropping the deposit closes its descriptors"]
pub struct Deposit {
    claim: Claim,
}

/// Hands descriptors to the broker of this process, which is started if there is none.
///
/// # Errors
///
/// [`DepositError`]; the descriptors are closed.
///
/// # Examples
///
/// See the [module](self).
pub fn deposit(descriptors: Vec<OwnedFd>) -> Result<Deposit, DepositError> {
    let asked = descriptors.len();
    if asked > MAX_DESCRIPTORS {
        return Err(DepositError::TooLarge { asked, limit: MAX_DESCRIPTORS });
    }
    let key = random().map_err(DepositError::Start)?;
    let limit = limit();
    let refused = serve::with_started(|broker| {
        let held = broker.table.pieces();
        if held.saturating_add(asked) > limit {
            // Closed behind the lock.
            return Err((DepositError::TooMany { asked, held, limit }, descriptors));
        }
        broker.table.deposit(key, descriptors, asked);
        broker.wake();
        let count = u32::try_from(asked).unwrap_or(u32::MAX);
        let (address, namespace, user) = (broker.address, broker.namespace, broker.user);
        Ok(Claim { address, key, namespace, count, user })
    });
    let claim = refused.map_err(DepositError::Start)?.map_err(|(error, _descriptors)| error)?;
    crash_point!("broker.deposited");
    Ok(Deposit { claim })
}

impl Deposit {
    /// What the message has to carry.
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// Looks at each descriptor of the deposit. Inside the fork window: `look` makes system calls only.
    pub fn inspect(&self, mut look: impl FnMut(BorrowedFd<'_>)) {
        serve::with_running(|broker| {
            let goods = broker.table.goods(&self.claim.key);
            goods.into_iter().flatten().for_each(|descriptor| look(descriptor.as_fd()));
        });
    }

    /// Leaves the deposit to whoever gets the claim. It is closed when it was fetched, or within about a second after
    /// `keeper` says that nobody will.
    pub fn leave(&self, keeper: Keeper) {
        // A keeper that is not needed is dropped behind the lock.
        drop(serve::with_running(|broker| broker.table.leave(&self.claim.key, keeper)));
    }
}

impl Drop for Deposit {
    fn drop(&mut self) {
        // Closed behind the lock.
        drop(serve::with_running(|broker| broker.table.withdraw(&self.claim.key)));
    }
}

/// Fetches the descriptors of a deposit, from this process or another. Blocks for the other process, at most
/// [`FETCH_TIMEOUT`], whatever timeout the caller has for the message.
///
/// # Errors
///
/// [`FetchError`]. After [`FetchError::is_temporary`] ones the deposit may still be there.
///
/// # If the peer dies
///
/// [`FetchError::Gone`], at once.
///
/// # Examples
///
/// See the [module](self).
pub fn fetch(claim: &Claim) -> Result<Vec<OwnedFd>, FetchError> {
    let own = |broker: &mut Broker| {
        (broker.address == claim.address).then(|| broker.table.take(&claim.key).ok_or(FetchError::Unknown))
    };
    match serve::with_running(own).flatten() {
        // The keeper is dropped behind the lock.
        Some(found) => found.map(|(descriptors, _keeper)| descriptors),
        None => client::fetch(claim),
    }
}

/// Descriptors that deposits of this process may hold together: a quarter of what it may open.
fn limit() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| usize::try_from(limit / 4).unwrap_or(usize::MAX))
}

/// 128 random bits.
fn random() -> io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    let flags = rustix::rand::GetRandomFlags::empty();
    // The kernel does not split so few.
    rustix::rand::getrandom(&mut bytes, flags)?;
    Ok(bytes)
}

/// Where a broker listens.
fn name(address: &Address) -> io::Result<rustix::net::SocketAddrUnix> {
    let name = format!("shm-core.broker.{:032x}", u128::from_be_bytes(*address));
    Ok(rustix::net::SocketAddrUnix::new_abstract_name(name.as_bytes())?)
}

/// The network namespace of this thread; 0 if it cannot be told.
fn namespace() -> u32 {
    let stat = rustix::fs::stat("/proc/thread-self/ns/net");
    stat.ok().and_then(|stat| u32::try_from(stat.st_ino).ok()).unwrap_or(0)
}

/// The user of this process, as peers see it.
fn me() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Why descriptors could not be deposited.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DepositError {
    /// One message has too many.
    #[error("{asked} descriptors are more than the {limit} that one message can have")]
    TooLarge {
        /// How many it has.
        asked: usize,
        /// How many it may have.
        limit: usize,
    },
    /// Too many are waiting already in this process.
    #[error(
        "{asked} descriptors beside the {held} that wait in this process already are more than its limit of {limit}"
    )]
    TooMany {
        /// How many this message has.
        asked: usize,
        /// How many wait.
        held: usize,
        /// How many may wait: a quarter of what the process may open.
        limit: usize,
    },
    /// The broker of this process cannot be started.
    #[error("the thread that hands out descriptors cannot be started: {0}")]
    Start(#[source] io::Error),
}

/// Why a deposit could not be fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The process that made the deposit has ended, and the deposit with it.
    #[error("the process that sent the handles has ended")]
    Gone,
    /// The process that made the deposit is in another network namespace.
    #[error("the process that sent the handles is in another network namespace")]
    Elsewhere,
    /// The process that made the deposit did not answer: it is stopped or very busy. The deposit is still there.
    #[error("the process that sent the handles did not answer within {0:?}")]
    Silent(Duration),
    /// There is no such deposit (any more): it was fetched, or given up because nobody seemed to want it.
    #[error("the process that sent the handles does not have them any more")]
    Unknown,
    /// The processes belong to different users, and this one not to root; or the claim names another user than the one
    /// that answers.
    #[error("the process that sent the handles belongs to another user")]
    Stranger,
    /// The process that made the deposit could not pass it on now. The deposit is still there.
    #[error("the process that sent the handles could not pass them on")]
    Unable,
    /// A system call failed; the deposit is still there.
    #[error("{operation}: {source}")]
    System {
        /// What was done.
        operation: &'static str,
        /// What the system says.
        source: io::Error,
    },
}

impl FetchError {
    /// Whether another try may succeed.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Silent(_) | Self::Unable | Self::System { .. })
    }
}
