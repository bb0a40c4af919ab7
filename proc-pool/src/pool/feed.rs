//! Jobs: options for calls of one function, and how their items are fed to the workers.

use super::Pool;
use super::chunk::{RunItems, push_item, run_items};
use super::dispatch::JobHandle;
use super::lazy::{Imap, ImapUnordered};
use super::load::{Batch, Outcome, Prepared};
use super::task::Task;
use crate::error::{Error, Result, TaskError};
use crate::payload::{MAX_HANDLES, too_many_handles};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shm_core::handle::{ReceiveSession, SendSession};
use std::collections::VecDeque;
use std::fmt;
use std::iter::Fuse;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

/// Chunks in flight of one job, unless there are so many workers that they need more.
const WINDOW: usize = 512;
/// Chunks in flight per worker, at least.
const WINDOW_PER_WORKER: usize = 4;
/// Chunks handed over together, at most, and for how many a feed waits for room: every hand-over takes a lock.
const HAND_OVER: usize = 32;
/// A feed hands over every chunk by itself and looks for outcomes once the source has taken so long.
const SOURCE_PATIENCE: Duration = Duration::from_micros(100);
/// A chunk is cut before its items have more bytes than this, whatever its size in items: with what a larger item adds
/// it still fits into a block of 256 KiB.
const CHUNK_BYTES: usize = 240 << 10;
/// The most bytes of arguments in flight of one job; what is large has a descriptor each, too.
const WINDOW_BYTES: u64 = 64 << 20;
/// Items in flight per worker, at least, however large they are.
const LARGE_PER_WORKER: u64 = 2;
/// The largest automatic chunk, in items: beyond it dispatch costs nothing compared with the items.
const AUTOMATIC_CHUNK: usize = 1024;
/// Automatic chunks per worker, so that the last ones even out.
const CHUNKS_PER_WORKER: usize = 16;

/// Calls of one function with options. From [`Pool::job`].
///
/// # Examples
///
/// ```
/// # fn main() -> proc_pool::Result<()> {
/// # proc_pool::init();
/// let pool = proc_pool::Pool::new(2)?;
/// let doubled = pool.job(|n: u32| n * 2).chunk_size(10).retries(1).map(0..100)?;
/// assert_eq!(doubled[99], 198);
/// # Ok(()) }
/// ```
pub struct Job<'p, F, A, R> {
    pool: &'p Pool,
    function: F,
    retries: u32,
    chunk_size: Option<usize>,
    in_flight: Option<usize>,
    types: PhantomData<fn(A) -> R>,
}

impl<F: Copy, A, R> Clone for Job<'_, F, A, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F: Copy, A, R> Copy for Job<'_, F, A, R> {}

impl<F, A, R> fmt::Debug for Job<'_, F, A, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("function", &std::any::type_name::<F>())
            .field("retries", &self.retries)
            .field("chunk_size", &self.chunk_size)
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

impl<'p, F, A, R> Job<'p, F, A, R>
where
    F: Fn(A) -> R + Copy + Send + Sync + 'static,
    A: Serialize + DeserializeOwned,
    R: Serialize + DeserializeOwned,
{
    pub(super) fn new(pool: &'p Pool, function: F) -> Self {
        Self { pool, function, retries: 0, chunk_size: None, in_flight: None, types: PhantomData }
    }

    /// How often an item whose worker died is tried again before it fails. A panic is an answer, and not tried again.
    /// Without it: never, because the item may have had effects.
    ///
    /// Apart from that, an item that was finished runs again if its worker dies before the result is safe. A result is
    /// safe at once if it is small; one that is large or carries handles is so with those of the other items of its
    /// chunk. Chunks of one item ([`Job::chunk_size`]) leave only the moment in which a result is sent.
    pub fn retries(mut self, retries: u32) -> Self {
        self.retries = retries;
        self
    }

    /// How many items travel together. Without it, `map` chooses by their number (at most 1024), and the lazy
    /// iterators send each alone.
    pub fn chunk_size(mut self, items: usize) -> Self {
        self.chunk_size = Some(items);
        self
    }

    /// How many items may be on their way at once (for [`Job::imap`]: and not taken yet). Without it, about 512 chunks.
    pub fn in_flight(mut self, items: usize) -> Self {
        self.in_flight = Some(items);
        self
    }

    fn open(&self, attended: bool) -> Result<JobHandle> {
        // It is enough that there is one: the trampoline makes its own.
        let _: F = self.function;
        let (code, label) = (run_items::<F, A, R> as RunItems, std::any::type_name::<F>());
        self.pool.dispatcher.open_job(code, label, self.retries, attended)
    }

    /// See [`Pool::call`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn call(&self, argument: A) -> Result<R> {
        let job = self.open(true)?;
        let mut prepared = prepare_one(&argument)?;
        let mut batch = Batch::default();
        job.dispatcher().call(&job, &mut prepared, &mut batch)?;
        let outcome = batch.drain().next().map(|outcome| only(outcome));
        Ok(outcome.unwrap_or(Err(TaskError::PoolClosed))?)
    }

    /// See [`Pool::submit`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn submit(&self, argument: A) -> Result<Task<R>> {
        self.pool.need_receiver()?;
        let mut prepared = prepare_one(&argument)?;
        let job = self.open(false)?;
        job.submit(&mut prepared, false)?;
        Ok(Task::new(job))
    }

    /// See [`Pool::map`].
    ///
    /// An iterator of items that waits until earlier items have run belongs to [`Job::imap`], which hands over every
    /// chunk before it asks for the next: here, items may wait until several chunks are together.
    ///
    /// # Errors
    ///
    /// As there; `is_invalid_input` for a chunk size or a number in flight of 0.
    pub fn map(&self, items: impl IntoIterator<Item = A>) -> Result<Vec<R>> {
        let items = items.into_iter();
        let (least, most) = items.size_hint();
        let mut results: Vec<Option<R>> = Vec::new();
        let mut first_failure: Option<(u64, TaskError)> = None;
        let mut take = |index: u64, outcome: std::result::Result<R, TaskError>| match outcome {
            Ok(result) => {
                let at = usize::try_from(index).expect("indices of items in memory");
                if results.len() == at {
                    return results.push(Some(result));
                }
                if results.len() < at {
                    results.resize_with(at + 1, || None);
                }
                results[at] = Some(result);
            }
            Err(error) if first_failure.as_ref().is_none_or(|(first, _)| index < *first) => {
                first_failure = Some((index, error));
            }
            Err(_) => {}
        };
        let workers = self.pool.dispatcher.workers();
        let automatic = match most {
            Some(most) if most == least => (least / (workers * CHUNKS_PER_WORKER)).clamp(1, AUTOMATIC_CHUNK),
            _ => 64,
        };
        let mut feed = Feed::start(self, items, automatic)?;
        loop {
            feed.top_up(feed.settled)?;
            if feed.take_early(&mut take) {
                // They may have been all that was under way.
                continue;
            }
            if feed.is_done() {
                break;
            }
            feed.receive(&mut take)?;
        }
        if let Some((_, error)) = first_failure {
            return Err(error.into());
        }
        let count = results.len();
        let results: Vec<R> = results.into_iter().flatten().collect();
        // Every index was sent and settled once, so this does not happen.
        if results.len() == count {
            Ok(results)
        } else {
            Err(TaskError::unavailable("a result is missing").into())
        }
    }

    /// See [`Pool::imap`]. What is wrong with the options or the pool is the first item.
    pub fn imap<I: IntoIterator<Item = A>>(&self, items: I) -> Imap<'p, I::IntoIter, R> {
        Imap::start(self, items.into_iter())
    }

    /// See [`Pool::imap_unordered`]. What is wrong with the options or the pool is the first item.
    pub fn imap_unordered<I: IntoIterator<Item = A>>(&self, items: I) -> ImapUnordered<'p, I::IntoIter, R> {
        ImapUnordered::start(self, items.into_iter())
    }
}

fn prepare_one<A: Serialize>(argument: &A) -> Result<Prepared> {
    let mut prepared = Prepared::default();
    let session = SendSession::begin();
    push_item(prepared.bytes(), argument)?;
    if session.len() > MAX_HANDLES {
        return Err(too_many_handles(session.len(), "the argument").into());
    }
    prepared.seal(0, 0, 1, session.finish())?;
    Ok(prepared)
}

/// The outcome of a job of one item.
pub(super) fn only<R: DeserializeOwned>(outcome: Outcome<'_>) -> std::result::Result<R, TaskError> {
    let _session = ReceiveSession::begin(outcome.descriptors);
    outcome.content?.next()
}

/// Items on their way in and outcomes on their way out, for one job.
pub(super) struct Feed<I: Iterator> {
    job: JobHandle,
    items: Fuse<I>,
    /// An item whose handles found no room in the last chunk.
    held: Option<I::Item>,
    chunk: usize,
    /// Every chunk is handed over before the source is asked again: it may wait for what earlier items bring about.
    pub(super) lazy: bool,
    window: u64,
    /// Items in flight with which no worker runs dry soon.
    plenty: u64,
    /// The least room in the window, however large the items are.
    least: u64,
    /// Bytes of an item, times 8: an average in which the last chunks weigh most.
    weight: u64,
    /// Items taken from the iterator.
    sent: u64,
    /// Those of them that the pool has, or that have an outcome without it.
    handed: u64,
    /// Items with an outcome.
    pub(super) settled: u64,
    exhausted: bool,
    prepared: Prepared,
    batch: Batch,
    /// Items that could not be encoded.
    early: VecDeque<(u64, TaskError)>,
}

impl<I: Iterator<Item: Serialize + DeserializeOwned>> Feed<I> {
    pub(super) fn start<F, R>(options: &Job<'_, F, I::Item, R>, items: I, automatic: usize) -> Result<Self>
    where
        F: Fn(I::Item) -> R + Copy + Send + Sync + 'static,
        R: Serialize + DeserializeOwned,
    {
        let chunk = options.chunk_size.unwrap_or(automatic);
        if chunk == 0 || u32::try_from(chunk).is_err() {
            return Err(Error::invalid(format!("a chunk has 1 to {} items, not {chunk}", u32::MAX)));
        }
        if options.in_flight == Some(0) {
            return Err(Error::invalid("at least 1 item must be allowed in flight, not 0"));
        }
        let job = options.open(true)?;
        let workers = job.dispatcher().workers();
        let window = WINDOW.max(workers * WINDOW_PER_WORKER);
        let window = options.in_flight.unwrap_or(window.saturating_mul(chunk));
        Ok(Self {
            job,
            items: items.fuse(),
            held: None,
            chunk: chunk.min(window),
            lazy: false,
            window: window as u64,
            plenty: (workers * WINDOW_PER_WORKER).saturating_mul(chunk) as u64,
            least: (workers as u64 * LARGE_PER_WORKER).min(window as u64),
            weight: 0,
            sent: 0,
            handed: 0,
            settled: 0,
            exhausted: false,
            prepared: Prepared::default(),
            batch: Batch::default(),
            early: VecDeque::new(),
        })
    }

    pub(super) fn is_done(&self) -> bool {
        self.exhausted && self.settled == self.sent
    }

    /// Room in the window, in items; `taken` items count as out of it.
    fn room(&self, taken: u64) -> u64 {
        let mut window = self.window;
        if self.weight.saturating_mul(window) > 8 * WINDOW_BYTES {
            window = window.min((8 * WINDOW_BYTES / self.weight).max(self.least));
        }
        window.saturating_sub(self.sent - taken)
    }

    /// Takes items and hands them over until the window is full, or the source is slow, each worker has some chunks, and
    /// there are outcomes to look after; `taken` items count as out of the window.
    ///
    /// A lazy feed hands over every chunk by itself. Another one hands over a few at first, then as many together as
    /// half of those in flight, and every one once the source was slow.
    pub(super) fn top_up(&mut self, taken: u64) -> Result<()> {
        // Wait for room for a good many chunks at once.
        let enough = ((HAND_OVER * self.chunk) as u64).min(self.window / 2).max(1);
        if self.exhausted || (self.room(taken) < enough && self.sent > self.settled) {
            return Ok(());
        }
        let since = Instant::now();
        let (mut chunks, mut slow) = (0_usize, false);
        while !self.exhausted {
            let room = self.room(taken);
            if room == 0 {
                break;
            }
            self.next_chunk(room)?;
            chunks += 1;
            slow = slow || ((chunks < 8 || chunks % 8 == 0) && since.elapsed() > SOURCE_PATIENCE);
            let in_flight = self.handed.saturating_sub(self.settled);
            let together = self.prepared.len();
            if self.lazy
                || slow
                || together >= HAND_OVER
                || (2 * together).saturating_mul(self.chunk) as u64 > in_flight
            {
                self.hand_over()?;
            }
            if slow && in_flight >= self.plenty && self.job.has_outcomes() {
                return Ok(());
            }
        }
        self.hand_over()
    }

    fn hand_over(&mut self) -> Result<()> {
        if self.prepared.len() > 0 {
            self.job.submit(&mut self.prepared, true)?;
        }
        self.handed = self.sent;
        Ok(())
    }

    /// No more items: those that the pool does not have are as if they had never been taken.
    pub(super) fn cut_off(&mut self) {
        self.exhausted = true;
        self.held = None;
        self.sent = self.handed;
        let sent = self.sent;
        self.early.retain(|(index, _)| *index < sent);
    }

    fn next_chunk(&mut self, room: u64) -> Result<()> {
        let most = u64::min(self.chunk as u64, room);
        let (start, first) = (self.prepared.bytes().len(), self.sent);
        let session = SendSession::begin();
        let mut largest = 0;
        while self.sent - first < most && self.prepared.bytes().len() - start + largest <= CHUNK_BYTES {
            let Some(item) = self.held.take().or_else(|| self.items.next()) else {
                self.exhausted = true;
                break;
            };
            let (len, handles) = (self.prepared.bytes().len(), session.len());
            let mut pushed = push_item(self.prepared.bytes(), &item);
            let fits = session.len() <= MAX_HANDLES;
            if !fits {
                self.prepared.bytes().truncate(len);
                pushed = Err(too_many_handles(session.len() - handles, "the argument"));
            }
            match pushed {
                Ok(()) => {
                    self.sent += 1;
                    largest = largest.max(self.prepared.bytes().len() - len);
                }
                // Alone in a chunk, or it ends this one: a chunk's items are numbered without gaps.
                Err(error) => {
                    let count = self.sent - first;
                    if fits || count == 0 {
                        self.early.push_back((self.sent, error));
                        self.sent += 1;
                    } else {
                        self.held = Some(item);
                    }
                    return self.seal(start, first, count, session, handles);
                }
            }
        }
        let handles = session.len();
        self.seal(start, first, self.sent - first, session, handles)
    }

    /// Makes a load of the last `count` items and the session's first `handles` descriptors.
    fn seal(
        &mut self,
        start: usize,
        first: u64,
        count: u64,
        session: SendSession,
        handles: usize,
    ) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        let mut descriptors = session.finish();
        descriptors.truncate(handles);
        let bytes = (self.prepared.bytes().len() - start) as u64;
        self.weight = self.weight - self.weight / 8 + if count == 1 { bytes } else { bytes / count };
        let count = u32::try_from(count).expect("a chunk fits");
        self.prepared.seal(start, first, count, descriptors)
    }

    /// Outcomes of items that never left; whether there were any.
    pub(super) fn take_early<R>(
        &mut self,
        take: &mut impl FnMut(u64, std::result::Result<R, TaskError>),
    ) -> bool {
        let settled = self.settled;
        while let Some((index, error)) = self.early.pop_front() {
            self.settled += 1;
            take(index, Err(error));
        }
        self.settled > settled
    }

    /// Waits for outcomes and passes them on.
    pub(super) fn receive<R: DeserializeOwned>(
        &mut self,
        take: &mut impl FnMut(u64, std::result::Result<R, TaskError>),
    ) -> std::result::Result<(), TaskError> {
        self.job.outcomes(&mut self.batch, None)?;
        let settled = &mut self.settled;
        for outcome in self.batch.drain() {
            // Only when a hand-over failed half-way.
            if outcome.first >= self.sent {
                continue;
            }
            let _session = ReceiveSession::begin(outcome.descriptors);
            let indices = outcome.first..outcome.first + u64::from(outcome.count);
            *settled += u64::from(outcome.count);
            // Each result goes on as it was decoded: moving it first costs more than decoding a number.
            match outcome.content {
                Ok(mut results) => indices.for_each(|index| take(index, results.next())),
                Err(error) => indices.for_each(|index| take(index, Err(error.clone()))),
            }
        }
        self.batch.clear();
        Ok(())
    }
}
