//! A scheduler of two lanes: workers take urgent tasks first, then normal ones, and sleep when there are none.
//!
//! Each lane is a queue, and a third one is the bell. A client puts a task into its lane and then rings; a worker that
//! finds both lanes empty waits for a ring and looks again. So a ring says "look", not "take one": rings that find
//! nothing are harmless, and a bell that is full rings already.
//!
//! ```text
//! client    lane.send(task)                 bell.try_send(ring)
//! worker    urgent? normal? -> run it       nothing: bell.recv(), and again; bell without clients: one last look
//! ```
//!
//! # The scary races
//!
//! * *The worker looks, then the task comes, then the worker sleeps.* The ring comes after the task and stays in the
//!   bell until a worker has heard it, who looks after that.
//! * *A task lies behind one that another client is still writing.* The worker sees nothing and sleeps; that other
//!   client rings after its own task, and whoever hears it takes both.
//!
//! # If a process dies
//!
//! A worker takes the task with it that it had in hand, and the ring that it had heard; a client, the ring that it had not
//! given. Tasks in the lanes stay. Whoever learns of the death calls [`Client::ring`], and the last look at shutdown
//! finds everything. `tests/loom.rs` kills workers and clients at every step.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

use ipc_queue::{Error, PlainReceiver, PlainSender, SendError, bounded_plain, crash_point};
use serde::{Deserialize, Serialize};

/// What a task is about; any plain data would do.
pub type Task = u64;

/// Which tasks go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Before all normal ones.
    Urgent,
    /// When nothing urgent is there.
    Normal,
}

/// Puts tasks into the lanes. Clones, in any process, are further clients.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Client {
    urgent: PlainSender<Task>,
    normal: PlainSender<Task>,
    bell: PlainSender<u8>,
    mistake: Mistake,
}

/// Takes tasks out of the lanes. Clones, in any process, are further workers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Worker {
    urgent: PlainReceiver<Task>,
    normal: PlainReceiver<Task>,
    bell: PlainReceiver<u8>,
    mistake: Mistake,
}

/// What the scheduler gets wrong, for models that show that they would notice.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mistake {
    None,
    /// A client rings first: a worker may look before the task is there, and sleep.
    RingsFirst,
    /// A worker stops at the last ring, without a last look.
    NoLastLook,
}

/// A client and a worker of a new scheduler, with lanes of `capacity` tasks each.
///
/// # Errors
///
/// As [`bounded_plain`].
pub fn two_lanes(capacity: usize) -> Result<(Client, Worker), Error> {
    two_lanes_with(capacity, Mistake::None)
}

/// As [`two_lanes`], with a mistake.
///
/// # Errors
///
/// As [`two_lanes`].
#[doc(hidden)]
pub fn two_lanes_with(capacity: usize, mistake: Mistake) -> Result<(Client, Worker), Error> {
    let (urgent, urgent_tasks) = bounded_plain(capacity)?;
    let (normal, normal_tasks) = bounded_plain(capacity)?;
    let (bell, rings) = bounded_plain(capacity)?;
    let worker = Worker { urgent: urgent_tasks, normal: normal_tasks, bell: rings, mistake };
    Ok((Client { urgent, normal, bell, mistake }, worker))
}

impl Client {
    /// Hands a task in. Blocks while its lane is full; woken when a worker takes one, or when no worker is left.
    ///
    /// # Errors
    ///
    /// [`SendError::Disconnected`] with the task: no worker is left.
    pub fn submit(&self, lane: Lane, task: Task) -> Result<(), SendError<Task>> {
        let lane = match lane {
            Lane::Urgent => &self.urgent,
            Lane::Normal => &self.normal,
        };
        if self.mistake == Mistake::RingsFirst {
            self.ring();
            return lane.send(task);
        }
        lane.send(task)?;
        crash_point!("lanes.sent");
        self.ring();
        Ok(())
    }

    /// Has a worker look at the lanes. Never blocks. Call it when a worker or a client has died, from a thread that does
    /// not wait for room itself.
    pub fn ring(&self) {
        // A bell that is full rings already, and one without workers has nobody to hear it.
        let _ = self.bell.try_send(0);
    }
}

impl Worker {
    /// The next task, urgent ones first. Blocks while there is none; `None` once there is none and no client is left.
    pub fn next(&self) -> Option<Task> {
        loop {
            if let Some(task) = self.look() {
                return Some(task);
            }
            if self.bell.recv().is_err() {
                // What was there when the last client went is still there.
                return if self.mistake == Mistake::NoLastLook { None } else { self.look() };
            }
            crash_point!("lanes.heard");
        }
    }

    fn look(&self) -> Option<Task> {
        self.urgent.try_recv().or_else(|_| self.normal.try_recv()).ok()
    }
}
