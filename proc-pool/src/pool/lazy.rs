//! Lazy maps: iterators over results that feed items to the workers as they are asked.

use super::Pool;
use super::feed::{Feed, Job};
use crate::error::{Error, TaskError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;

/// A feed that may not have started, or has ended.
enum Source<I: Iterator> {
    Feeding {
        feed: Box<Feed<I>>,
        /// Why there are no more items, told when those before have their outcomes.
        failure: Option<TaskError>,
    },
    Failed(TaskError),
    Over,
}

impl<I: Iterator<Item: Serialize + DeserializeOwned>> Source<I> {
    fn start<F, R>(options: &Job<'_, F, I::Item, R>, items: I) -> Self
    where
        F: Fn(I::Item) -> R + Copy + Send + Sync + 'static,
        R: Serialize + DeserializeOwned,
    {
        match Feed::start(options, items, 1) {
            Ok(mut feed) => {
                feed.lazy = true;
                Self::Feeding { feed: Box::new(feed), failure: None }
            }
            Err(error) => Self::Failed(into_task_error(error)),
        }
    }

    /// Feeds and waits until something was taken or the items are over. `taken` items count as out of the window.
    fn advance<R: DeserializeOwned>(
        &mut self,
        taken: u64,
        mut take: impl FnMut(u64, std::result::Result<R, TaskError>),
    ) -> Option<std::result::Result<(), TaskError>> {
        self.keep_supplied(taken);
        // Decoding results runs user code, which may panic; then this stays `Over`.
        match std::mem::replace(self, Self::Over) {
            Self::Feeding { mut feed, failure } => {
                if !feed.take_early(&mut take) {
                    if feed.is_done() {
                        return failure.map(Err);
                    }
                    if let Err(error) = feed.receive(&mut take) {
                        return Some(Err(error));
                    }
                }
                *self = Self::Feeding { feed, failure };
                Some(Ok(()))
            }
            Self::Failed(error) => Some(Err(error)),
            Self::Over => None,
        }
    }

    /// Keeps the workers supplied while there are results to yield. Errors show when they run out.
    fn keep_supplied(&mut self, taken: u64) {
        // The items' iterator may panic; then this stays `Over`.
        *self = match std::mem::replace(self, Self::Over) {
            Self::Feeding { mut feed, mut failure } => {
                if let Err(error) = feed.top_up(taken) {
                    feed.cut_off();
                    failure = Some(into_task_error(error));
                }
                Self::Feeding { feed, failure }
            }
            other => other,
        };
    }
}

fn into_task_error(error: Error) -> TaskError {
    if error.is_closed() {
        return TaskError::PoolClosed;
    }
    error.into_task().unwrap_or_else(|error| TaskError::unavailable(error.to_string()))
}

/// Results in the order of their items. From [`Pool::imap`].
///
/// Blocks while the next result is not there; woken by the worker that has it, or by its death. Dropping it takes
/// back what no worker has begun.
///
/// If the pool takes no more items ([`Pool::close`]), it yields the outcomes of those that the pool has, then the error
/// once, then nothing more. After an error that ends the pool it yields nothing more at once.
pub struct Imap<'p, I: Iterator, R> {
    feed: Source<I>,
    /// Outcomes from item `next` on, where they have come.
    ahead: VecDeque<Option<std::result::Result<R, TaskError>>>,
    next: u64,
    pool: PhantomData<&'p Pool>,
}

impl<'p, I, R> Imap<'p, I, R>
where
    I: Iterator<Item: Serialize + DeserializeOwned>,
    R: Serialize + DeserializeOwned,
{
    pub(super) fn start<F>(options: &Job<'p, F, I::Item, R>, items: I) -> Self
    where
        F: Fn(I::Item) -> R + Copy + Send + Sync + 'static,
    {
        Self { feed: Source::start(options, items), ahead: VecDeque::new(), next: 0, pool: PhantomData }
    }
}

impl<I, R> Iterator for Imap<'_, I, R>
where
    I: Iterator<Item: Serialize + DeserializeOwned>,
    R: DeserializeOwned,
{
    type Item = std::result::Result<R, TaskError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(Some(_)) = self.ahead.front() {
                // First: the items' iterator may panic, and the result is not lost by that.
                self.feed.keep_supplied(self.next + 1);
                self.next += 1;
                return self.ahead.pop_front().flatten();
            }
            let (next, ahead) = (self.next, &mut self.ahead);
            let advanced = self.feed.advance(next, |index, outcome| {
                // Each index comes once, and none below `next` is open.
                let at = usize::try_from(index.saturating_sub(next)).expect("the window fits into memory");
                if ahead.len() <= at {
                    ahead.resize_with(at + 1, || None);
                }
                ahead[at] = Some(outcome);
            });
            match advanced? {
                Ok(()) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// Results in the order in which they come. From [`Pool::imap_unordered`]; see [`Imap`].
pub struct ImapUnordered<'p, I: Iterator, R> {
    feed: Source<I>,
    arrived: VecDeque<std::result::Result<R, TaskError>>,
    pool: PhantomData<&'p Pool>,
}

impl<'p, I, R> ImapUnordered<'p, I, R>
where
    I: Iterator<Item: Serialize + DeserializeOwned>,
    R: Serialize + DeserializeOwned,
{
    pub(super) fn start<F>(options: &Job<'p, F, I::Item, R>, items: I) -> Self
    where
        F: Fn(I::Item) -> R + Copy + Send + Sync + 'static,
    {
        Self { feed: Source::start(options, items), arrived: VecDeque::new(), pool: PhantomData }
    }
}

impl<I, R> Iterator for ImapUnordered<'_, I, R>
where
    I: Iterator<Item: Serialize + DeserializeOwned>,
    R: DeserializeOwned,
{
    type Item = std::result::Result<R, TaskError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(outcome) = self.arrived.pop_front() {
                return Some(outcome);
            }
            let (settled, arrived) = (self.feed.settled(), &mut self.arrived);
            match self.feed.advance(settled, |_, outcome| arrived.push_back(outcome))? {
                Ok(()) => self.feed.keep_supplied(self.feed.settled()),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl<I: Iterator> Source<I> {
    fn settled(&self) -> u64 {
        match self {
            Self::Feeding { feed, .. } => feed.settled,
            Self::Failed(_) | Self::Over => 0,
        }
    }
}

impl<I: Iterator, R> fmt::Debug for Imap<'_, I, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Imap")
            .field("next", &self.next)
            .field("ahead", &self.ahead.len())
            .finish_non_exhaustive()
    }
}

impl<I: Iterator, R> fmt::Debug for ImapUnordered<'_, I, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImapUnordered").field("arrived", &self.arrived.len()).finish_non_exhaustive()
    }
}
