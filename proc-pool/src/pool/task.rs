//! A call that was handed to a pool.

use super::dispatch::JobHandle;
use super::feed::only;
use super::load::Batch;
use crate::error::TaskError;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use std::fmt;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

/// A call on its way. From [`Pool::submit`](crate::Pool::submit).
///
/// Dropping it takes the call back if no worker has begun it; otherwise its result is thrown away.
///
/// # If the peer dies
///
/// The outcome is [`TaskError::WorkerDied`], with how the worker ended.
pub struct Task<R> {
    job: JobHandle,
    /// What came back; taken by the join that decodes it.
    state: Mutex<State<R>>,
    result: PhantomData<fn() -> R>,
}

enum State<R> {
    Waiting(Batch),
    Failed(TaskError),
    Done(Option<R>),
}

impl<R: DeserializeOwned> Task<R> {
    pub(super) fn new(job: JobHandle) -> Self {
        Self { job, state: Mutex::new(State::Waiting(Batch::default())), result: PhantomData }
    }

    /// Whether the outcome is there. Never blocks for a worker.
    pub fn is_done(&self) -> bool {
        // Whoever holds the lock is waiting for the outcome.
        let Some(mut state) = self.state.try_lock() else {
            return false;
        };
        Self::look(&self.job, &mut state);
        !matches!(*state, State::Waiting(_))
    }

    fn look(job: &JobHandle, state: &mut State<R>) {
        let State::Waiting(batch) = state else { return };
        if let Err(error) = job.try_outcomes(batch) {
            *state = State::Failed(error);
        } else if !batch.is_empty() {
            Self::open(state);
        }
    }

    /// Decodes the outcome that has come.
    fn open(state: &mut State<R>) {
        let State::Waiting(batch) = state else { return };
        let mut batch = std::mem::take(batch);
        // Decoding runs user code: should it panic, nobody waits again for what is gone.
        *state = State::Done(None);
        let outcome = batch.drain().next().map(|outcome| only(outcome));
        *state = match outcome {
            Some(Ok(result)) => State::Done(Some(result)),
            Some(Err(error)) => State::Failed(error),
            None => State::Failed(TaskError::PoolClosed),
        };
    }

    /// Waits for the outcome. Woken by the worker that has it, by its death, and by the pool's end.
    ///
    /// # Errors
    ///
    /// The task's failure. A failure can be asked for again; a result is moved out by the first join, and a second
    /// one gets [`TaskError::Unavailable`].
    pub fn join(&self) -> Result<R, TaskError> {
        match self.join_until(None)? {
            Some(result) => Ok(result),
            None => Err(TaskError::TimedOut),
        }
    }

    /// As [`Task::join`], at most for `timeout`; `None` if the outcome is not there by then, and the task goes on.
    ///
    /// # Errors
    ///
    /// As [`Task::join`].
    pub fn join_timeout(&self, timeout: Duration) -> Result<Option<R>, TaskError> {
        // A timeout beyond the clock's range is none.
        self.join_until(Instant::now().checked_add(timeout))
    }

    fn join_until(&self, deadline: Option<Instant>) -> Result<Option<R>, TaskError> {
        // Whoever holds the lock is waiting for the outcome too.
        let mut state = match deadline {
            None => self.state.lock(),
            Some(deadline) => match self.state.try_lock_until(deadline) {
                Some(state) => state,
                None => return Ok(None),
            },
        };
        if let State::Waiting(batch) = &mut *state {
            match self.job.outcomes(batch, deadline) {
                Ok(true) => Self::open(&mut state),
                Ok(false) => return Ok(None),
                Err(error) => *state = State::Failed(error),
            }
        }
        match &mut *state {
            State::Done(result) => result
                .take()
                .map(Some)
                .ok_or_else(|| TaskError::unavailable("the result was taken by an earlier join")),
            State::Failed(error) => Err(error.clone()),
            State::Waiting(_) => Ok(None),
        }
    }
}

impl<R> fmt::Debug for Task<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state.try_lock().as_deref() {
            None | Some(State::Waiting(_)) => "waiting",
            Some(State::Failed(_)) => "failed",
            Some(State::Done(Some(_))) => "done",
            Some(State::Done(None)) => "taken",
        };
        f.debug_struct("Task").field("state", &state).finish_non_exhaustive()
    }
}
