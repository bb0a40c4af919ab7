//! A pool of worker processes.

mod arena;
mod cell;
mod chunk;
mod core;
mod dispatch;
mod ending;
mod feed;
mod lazy;
mod load;
pub mod scheduler;
mod supervisor;
mod task;
pub(crate) mod worker;

pub(crate) use cell::{Geometry, Record};
pub(crate) use chunk::RunItems;
pub use feed::Job;
pub use lazy::{Imap, ImapUnordered};
pub use task::Task;

use self::core::{Phase, Slot};
use crate::child::{HANDSHAKE_TIMEOUT, Launch};
use crate::error::{Error, Result};
use crate::process::check_environment;
use cell::MAX_WORKERS;
use dispatch::Dispatcher;
use load::Batch;
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use supervisor::Supervisor;

/// How often a join looks whether the pool is done.
const JOIN_SLICE: Duration = Duration::from_millis(50);

/// Worker processes that call functions.
///
/// A task that panics, exits, crashes or is killed fails alone: its item gets a [`TaskError`](crate::TaskError) that says what
/// happened, the worker is replaced, the other items of its chunk run again or keep the results that they had. The
/// pool itself never breaks over a task. All methods take `&self`, so threads can share a pool.
///
/// Dropping a pool is [`Pool::terminate`]: its workers are killed and collected.
///
/// # Across processes
///
/// A pool belongs to the process that made it; in a forked child its methods return errors. A worker may have a pool
/// of its own.
///
/// # Examples
///
/// ```
/// fn square(x: u64) -> u64 { x * x }
///
/// fn main() -> proc_pool::Result<()> {
///     proc_pool::init();                                                   // first statement of main
///     let pool = proc_pool::Pool::new(2)?;
///     assert_eq!(pool.call(square, 7)?, 49);
///     assert_eq!(pool.map(square, 0..4)?, [0, 1, 4, 9]);
///     let sum: u64 = pool.imap_unordered(|x: u64| x + 1, 0..10).map(|r| r.unwrap()).sum();
///     assert_eq!(sum, 55);
///     Ok(())
/// }
/// ```
pub struct Pool {
    dispatcher: Arc<Dispatcher>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    receiver: Mutex<bool>,
}

/// Settings of a pool, and its start.
#[derive(Clone, Debug)]
pub struct PoolBuilder {
    workers: Option<usize>,
    launch: Launch,
}

impl PoolBuilder {
    /// The number of workers, 1 to 512. Without it, as many as there are processors for this process.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers);
        self
    }

    /// Sets an environment variable of the workers.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        let (key, value): (OsString, OsString) = (key.as_ref().into(), value.as_ref().into());
        self.launch.environment.push((key, Some(value)));
        self
    }

    /// How long a worker may take to become ready; 10 seconds without it.
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.launch.handshake_timeout = timeout;
        self
    }

    /// Starts the workers, and waits until each has become ready.
    ///
    /// # Errors
    ///
    /// `is_invalid_input` for no or too many workers, and for an environment variable whose name is empty or has `=` or a
    /// zero byte in it, or whose value has a zero byte; `is_not_initialised`, `is_too_deep`; `is_handshake` with the
    /// child's last words; `is_out_of_memory`, or the system's error. Workers that had started are ended.
    pub fn build(self) -> Result<Pool> {
        let workers = match self.workers {
            Some(workers) => workers,
            None => std::thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS as usize),
        };
        let slots = u32::try_from(workers).ok().filter(|workers| (1..=MAX_WORKERS).contains(workers));
        let slots = slots
            .ok_or_else(|| Error::invalid(format!("a pool has 1 to {MAX_WORKERS} workers, not {workers}")))?;
        check_environment(&self.launch.environment)?;
        let dispatcher = Arc::new(Dispatcher::new(slots)?);
        let pool = Pool { dispatcher, threads: Mutex::default(), receiver: Mutex::new(false) };
        let slots: Vec<u32> = (0..slots).collect();
        // An error drops the pool, which ends the workers that had started.
        supervisor::launch(&self.launch, &pool.dispatcher, &slots)?;
        let thread = Supervisor::start(Arc::clone(&pool.dispatcher), self.launch);
        pool.threads.lock().push(thread.map_err(Error::system("starting a thread"))?);
        Ok(pool)
    }
}

impl Pool {
    /// Settings for a new pool.
    pub fn builder() -> PoolBuilder {
        let name = "proc-pool worker".to_owned();
        let launch = Launch { name, environment: Vec::new(), handshake_timeout: HANDSHAKE_TIMEOUT };
        PoolBuilder { workers: None, launch }
    }

    /// A pool of `workers` processes, 1 to 512.
    ///
    /// # Errors
    ///
    /// See [`PoolBuilder::build`].
    pub fn new(workers: usize) -> Result<Self> {
        Self::builder().workers(workers).build()
    }

    /// A pool with as many workers as there are processors for this process (its affinity and control group count).
    ///
    /// # Errors
    ///
    /// See [`PoolBuilder::build`].
    pub fn with_default_workers() -> Result<Self> {
        Self::builder().build()
    }

    /// The process ids of the workers that are there now. Stale at once: one may die and be replaced.
    pub fn workers(&self) -> Vec<u32> {
        if self.dispatcher.shared().segment().check().is_err() {
            return Vec::new();
        }
        let core = self.dispatcher.core.lock();
        let running = |slot: &Slot| match slot {
            Slot::Running(worker) => Some(worker.child.id()),
            Slot::Empty | Slot::Starting => None,
        };
        core.slots.iter().filter_map(running).collect()
    }

    /// A job: options for calls of one function. See [`Job`].
    pub fn job<F, A, R>(&self, function: F) -> Job<'_, F, A, R>
    where
        F: Fn(A) -> R + Copy + Send + Sync + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        Job::new(self, function)
    }

    /// Calls `function` in a worker, and waits for its result. Python's `apply`.
    ///
    /// # Errors
    ///
    /// The task's failure ([`Error::task`]), or why the pool did not run it (`is_closed`, ..).
    ///
    /// # If the peer dies
    ///
    /// The error says how the worker ended. The call is not repeated: it may have had effects.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> proc_pool::Result<()> {
    /// # proc_pool::init();
    /// let pool = proc_pool::Pool::new(1)?;
    /// assert_eq!(pool.call(|name: String| name.len(), "four".to_owned())?, 4);
    /// # Ok(()) }
    /// ```
    pub fn call<F, A, R>(&self, function: F, argument: A) -> Result<R>
    where
        F: Fn(A) -> R + Copy + Send + Sync + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        self.job(function).call(argument)
    }

    /// Hands a call to the pool and returns at once. Python's `apply_async`, an executor's `submit`.
    ///
    /// # Errors
    ///
    /// If the argument cannot be encoded, or the pool does not accept tasks any more.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> proc_pool::Result<()> {
    /// # proc_pool::init();
    /// let pool = proc_pool::Pool::new(2)?;
    /// let tasks: Vec<_> = (1..4_u64).map(|n| pool.submit(|n: u64| n * n, n)).collect::<Result<_, _>>()?;
    /// let squares: Vec<u64> = tasks.iter().map(|task| task.join()).collect::<Result<_, _>>()?;
    /// assert_eq!(squares, [1, 4, 9]);
    /// # Ok(()) }
    /// ```
    pub fn submit<F, A, R>(&self, function: F, argument: A) -> Result<Task<R>>
    where
        F: Fn(A) -> R + Copy + Send + Sync + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        self.job(function).submit(argument)
    }

    /// Calls `function` with every item and returns the results in the items' order. Items travel in chunks; see
    /// [`Job::chunk_size`].
    ///
    /// # Errors
    ///
    /// The failure of the first item that failed, in the items' order, after all were run.
    ///
    /// # If the peer dies
    ///
    /// Only the item that the dead worker was running fails.
    pub fn map<F, A, R>(&self, function: F, items: impl IntoIterator<Item = A>) -> Result<Vec<R>>
    where
        F: Fn(A) -> R + Copy + Send + Sync + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        self.job(function).map(items)
    }

    /// Calls `function` with every item; the iterator yields the results in the items' order, each with its own
    /// error. Lazy: items are taken as results are, a bounded number ahead.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> proc_pool::Result<()> {
    /// # proc_pool::init();
    /// let pool = proc_pool::Pool::new(2)?;
    /// let outcomes: Vec<_> = pool.imap(|n: u32| 10 / n, [5, 0, 2]).collect();
    /// assert_eq!(outcomes[0], Ok(2));
    /// assert!(matches!(&outcomes[1], Err(proc_pool::TaskError::Panicked { .. })));
    /// assert_eq!(outcomes[2], Ok(5));
    /// # Ok(()) }
    /// ```
    pub fn imap<F, A, R, I>(&self, function: F, items: I) -> Imap<'_, I::IntoIter, R>
    where
        F: Fn(A) -> R + Copy + Send + Sync + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        I: IntoIterator<Item = A>,
    {
        self.job(function).imap(items)
    }

    /// As [`Pool::imap`], in the order in which results come.
    pub fn imap_unordered<F, A, R, I>(&self, function: F, items: I) -> ImapUnordered<'_, I::IntoIter, R>
    where
        F: Fn(A) -> R + Copy + Send + Sync + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        I: IntoIterator<Item = A>,
    {
        self.job(function).imap_unordered(items)
    }

    /// Accepts no new task; those that were handed over are still run, and then the workers end. An [`Imap`] that has
    /// not taken all its items yields the outcomes of those that it handed over, and then one error for the rest. Never blocks; see [`Pool::join`].
    pub fn close(&self) {
        if self.dispatcher.shared().segment().check().is_ok() {
            self.dispatcher.close();
        }
    }

    /// Ends everything at once: workers are killed, tasks that have no result yet fail with `PoolClosed`. Blocks until
    /// the workers have ended and were collected (a kill takes milliseconds; a worker inside an uninterruptible system call
    /// ends after that).
    pub fn terminate(&self) {
        if self.dispatcher.shared().segment().check().is_ok() {
            self.dispatcher.break_off(supervisor::ended());
            self.join_threads();
        }
    }

    /// Waits until every task has run and every worker has ended, after [`Pool::close`] or [`Pool::terminate`].
    ///
    /// # Errors
    ///
    /// `is_invalid_input` if the pool was not closed before: it would never end. If the pool broke meanwhile, why.
    pub fn join(&self) -> Result<()> {
        self.dispatcher.shared().segment().check()?;
        loop {
            let phase = self.dispatcher.core.lock().phase.clone();
            match phase {
                Phase::Open => {
                    return Err(Error::invalid("a pool must be closed or terminated before it is joined"));
                }
                Phase::Closed => {
                    let slice = Some(Instant::now() + JOIN_SLICE);
                    // What breaks the pool shows in its phase.
                    let _ = self.dispatcher.outcomes(None, &mut Batch::default(), slice);
                }
                Phase::Drained => break,
                Phase::Broken(error) => {
                    self.join_threads();
                    return if error == supervisor::ended() { Ok(()) } else { Err(error.into()) };
                }
            }
        }
        self.dispatcher.poke();
        self.join_threads();
        Ok(())
    }

    fn join_threads(&self) {
        // It sleeps while there is nothing to collect; the phase says that there will not be.
        self.dispatcher.unattended_changed.notify_all();
        // Locked until all have ended, so that whoever else waits for them waits as long.
        for thread in self.threads.lock().drain(..) {
            // A panic there was printed there; nothing of it is left to do here.
            let _ = thread.join();
        }
    }

    /// Starts the thread that collects for tasks nobody waits for.
    fn need_receiver(&self) -> Result<()> {
        self.dispatcher.shared().segment().check()?;
        let mut started = self.receiver.lock();
        if !*started {
            let dispatcher = Arc::clone(&self.dispatcher);
            let thread = std::thread::Builder::new().name("proc-pool-receiver".into());
            let thread = thread.spawn(move || supervisor::receive(&dispatcher));
            self.threads.lock().push(thread.map_err(Error::system("starting a thread"))?);
            *started = true;
        }
        Ok(())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.terminate();
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Debugging must not wait for whoever holds the lock, nor for ever in a forked child.
        let Some(core) = self.dispatcher.core.try_lock() else {
            return f.debug_struct("Pool").finish_non_exhaustive();
        };
        f.debug_struct("Pool")
            .field("workers", &core.slots.len())
            .field("phase", &core.phase)
            .finish_non_exhaustive()
    }
}
