//! Iterators over the messages of a consumer.

use super::Consumer;
use crate::codec::{Format, Postcard};
use crate::error::{RecvError, TryRecvError};
use std::iter::FusedIterator;

/// The messages of a consumer until disconnect; see [`Consumer::iter`].
#[derive(Debug)]
pub struct Iter<'a, T, C: Format<T> = Postcard> {
    pub(super) consumer: &'a mut Consumer<T, C>,
    pub(super) ended: bool,
}

/// The messages that are there; see [`Consumer::try_iter`].
#[derive(Debug)]
pub struct TryIter<'a, T, C: Format<T> = Postcard> {
    pub(super) consumer: &'a mut Consumer<T, C>,
}

/// The messages of a consumer until disconnect, owning it.
#[derive(Debug)]
pub struct IntoIter<T, C: Format<T> = Postcard> {
    consumer: Consumer<T, C>,
    pub(super) ended: bool,
}

fn next<T, C: Format<T>>(consumer: &mut Consumer<T, C>, ended: &mut bool) -> Option<Result<T, RecvError>> {
    if *ended {
        return None;
    }
    let item = consumer.recv();
    *ended = !matches!(item, Ok(_) | Err(RecvError::Decode(_)));
    match item {
        Err(RecvError::Disconnected) => None,
        item => Some(item),
    }
}

impl<T, C: Format<T>> Iterator for Iter<'_, T, C> {
    type Item = Result<T, RecvError>;

    fn next(&mut self) -> Option<Self::Item> {
        next(self.consumer, &mut self.ended)
    }
}

impl<T, C: Format<T>> FusedIterator for Iter<'_, T, C> {}

impl<T, C: Format<T>> Iterator for IntoIter<T, C> {
    type Item = Result<T, RecvError>;

    fn next(&mut self) -> Option<Self::Item> {
        next(&mut self.consumer, &mut self.ended)
    }
}

impl<T, C: Format<T>> FusedIterator for IntoIter<T, C> {}

impl<T, C: Format<T>> Iterator for TryIter<'_, T, C> {
    type Item = Result<T, RecvError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.consumer.try_recv() {
            Ok(value) => Some(Ok(value)),
            Err(TryRecvError::Decode(error)) => Some(Err(error.into())),
            Err(_) => None,
        }
    }
}

impl<'a, T, C: Format<T>> IntoIterator for &'a mut Consumer<T, C> {
    type Item = Result<T, RecvError>;
    type IntoIter = Iter<'a, T, C>;

    fn into_iter(self) -> Iter<'a, T, C> {
        self.iter()
    }
}

impl<T, C: Format<T>> IntoIterator for Consumer<T, C> {
    type Item = Result<T, RecvError>;
    type IntoIter = IntoIter<T, C>;

    fn into_iter(self) -> IntoIter<T, C> {
        IntoIter { consumer: self, ended: false }
    }
}
