//! Iterators over the messages of a receiver.

use super::Receiver;
use crate::codec::{Format, Postcard};
use crate::error::{RecvError, TryRecvError};
use crate::ring::MAX_SPAN;
use crate::wait::Patience;
use std::fmt;
use std::iter::FusedIterator;

/// The messages of a receiver until disconnect; see [`Receiver::iter`].
#[derive(Debug)]
pub struct Iter<'a, T, C: Format<T> = Postcard> {
    pub(super) receiver: &'a Receiver<T, C>,
    pub(super) ended: bool,
}

/// The messages that are there; see [`Receiver::try_iter`].
#[derive(Debug)]
pub struct TryIter<'a, T, C: Format<T> = Postcard> {
    pub(super) receiver: &'a Receiver<T, C>,
}

/// The messages that were there when it was made, taken in steps; see [`Receiver::drain`].
pub struct Drain<'a, T, C: Format<T> = Postcard> {
    receiver: &'a Receiver<T, C>,
    /// How many messages may still be taken.
    left: usize,
    /// Those of the last step that were not handed out yet.
    ready: std::vec::IntoIter<Result<T, RecvError>>,
}

/// The messages of a receiver until disconnect, owning it.
#[derive(Debug)]
pub struct IntoIter<T, C: Format<T> = Postcard> {
    receiver: Receiver<T, C>,
    ended: bool,
}

fn next<T, C: Format<T>>(receiver: &Receiver<T, C>, ended: &mut bool) -> Option<Result<T, RecvError>> {
    if *ended {
        return None;
    }
    let item = receiver.recv();
    *ended = !matches!(item, Ok(_) | Err(RecvError::Decode(_)));
    match item {
        Err(RecvError::Disconnected | RecvError::Closed) => None,
        item => Some(item),
    }
}

impl<T, C: Format<T>> Iterator for Iter<'_, T, C> {
    type Item = Result<T, RecvError>;

    fn next(&mut self) -> Option<Self::Item> {
        next(self.receiver, &mut self.ended)
    }
}

impl<T, C: Format<T>> FusedIterator for Iter<'_, T, C> {}

impl<T, C: Format<T>> Iterator for IntoIter<T, C> {
    type Item = Result<T, RecvError>;

    fn next(&mut self) -> Option<Self::Item> {
        next(&self.receiver, &mut self.ended)
    }
}

impl<T, C: Format<T>> FusedIterator for IntoIter<T, C> {}

impl<T, C: Format<T>> Iterator for TryIter<'_, T, C> {
    type Item = Result<T, RecvError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.receiver.try_recv() {
            Ok(value) => Some(Ok(value)),
            Err(TryRecvError::Decode(error)) => Some(Err(error.into())),
            Err(_) => None,
        }
    }
}

impl<'a, T, C: Format<T>> Drain<'a, T, C> {
    pub(super) fn new(receiver: &'a Receiver<T, C>) -> Self {
        Self { receiver, left: receiver.len().min(receiver.capacity()), ready: Vec::new().into_iter() }
    }

    /// The messages of the next step, none if there are none.
    fn step(&mut self) -> Vec<Result<T, RecvError>> {
        let mut messages = Vec::new();
        messages.resize_with(self.left.min(MAX_SPAN), C::blank);
        let taken = self.receiver.take_step(&mut messages, Some(Patience::None)).unwrap_or(0);
        let mut ready = Vec::with_capacity(taken);
        self.receiver.open_all(&mut messages[..taken], |message| {
            ready.push(message.map_err(RecvError::from));
        });
        self.left = if taken == 0 { 0 } else { self.left - taken };
        ready
    }
}

impl<T, C: Format<T>> Iterator for Drain<'_, T, C> {
    type Item = Result<T, RecvError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ready.as_slice().is_empty() && self.left > 0 {
            self.ready = self.step().into_iter();
        }
        self.ready.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let ready = self.ready.len();
        (ready, Some(ready + self.left))
    }
}

impl<T, C: Format<T>> FusedIterator for Drain<'_, T, C> {}

impl<T, C: Format<T>> fmt::Debug for Drain<'_, T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ready = self.ready.len();
        f.debug_struct("Drain").field("ready", &ready).field("left", &self.left).finish_non_exhaustive()
    }
}

impl<'a, T, C: Format<T>> IntoIterator for &'a Receiver<T, C> {
    type Item = Result<T, RecvError>;
    type IntoIter = Iter<'a, T, C>;

    fn into_iter(self) -> Iter<'a, T, C> {
        self.iter()
    }
}

impl<T, C: Format<T>> IntoIterator for Receiver<T, C> {
    type Item = Result<T, RecvError>;
    type IntoIter = IntoIter<T, C>;

    fn into_iter(self) -> IntoIter<T, C> {
        IntoIter { receiver: self, ended: false }
    }
}
