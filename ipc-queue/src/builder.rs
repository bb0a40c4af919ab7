//! Making queues.

use crate::codec::{Codec, Encoding, Postcard, Verbatim};
use crate::end::End;
use crate::error::Error;
use crate::ring::MAX_PAYLOAD;
use crate::{Consumer, PlainReceiver, PlainSender, Producer, Receiver, Sender};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shm_core::Plain;
use std::marker::PhantomData;

/// The longest message of a queue unless [`Builder::slot_bytes`] says otherwise.
const DEFAULT_SLOT_BYTES: usize = 240;
/// The capacity of a queue unless [`Builder::capacity`] says otherwise.
const DEFAULT_CAPACITY: usize = 1024;

/// Creates a queue of up to `capacity` messages of any serde type, of up to 240 bytes each; [`builder`] makes room
/// for longer ones.
///
/// # Errors
///
/// [`Error`]: a capacity of zero or above 1048576, too little memory, no descriptors left, no `/proc`.
///
/// # Across processes
///
/// Senders and receivers can be sent to other processes; the queue's memory is freed with the last of them.
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (tx, rx) = ipc_queue::bounded::<(u32, String)>(16)?;
/// tx.send((1, "one".into()))?;
/// assert_eq!(rx.recv()?, (1, "one".into()));
/// # Ok(()) }
/// ```
pub fn bounded<T: Serialize + DeserializeOwned>(capacity: usize) -> Result<(Sender<T>, Receiver<T>), Error> {
    builder().capacity(capacity).build()
}

/// Creates a queue of up to `capacity` messages of plain old data, which are copied as they are.
///
/// # Errors
///
/// As [`bounded`]; also a type of more than a MiB.
///
/// # Across processes
///
/// As [`bounded`]. Another process can put any bytes into the queue: any bytes are a value of a [`Plain`] type.
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (tx, rx) = ipc_queue::bounded_plain::<[u64; 4]>(16)?;
/// tx.send([1, 2, 3, 4])?;
/// assert_eq!(rx.recv()?, [1, 2, 3, 4]);
/// # Ok(()) }
/// ```
pub fn bounded_plain<T: Plain>(capacity: usize) -> Result<(PlainSender<T>, PlainReceiver<T>), Error> {
    create::<T, Verbatim>(capacity, size_of::<T>())
}

/// Starts to describe a queue of messages of any serde type.
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (tx, rx) = ipc_queue::builder::<String>().capacity(8).slot_bytes(4096).build()?;
/// tx.send("x".repeat(4000))?;
/// assert_eq!(rx.recv()?.len(), 4000);
/// # Ok(()) }
/// ```
pub fn builder<T: Serialize + DeserializeOwned>() -> Builder<T> {
    Builder { capacity: DEFAULT_CAPACITY, slot_bytes: DEFAULT_SLOT_BYTES, _messages: PhantomData }
}

/// Describes a queue; made by [`builder`].
pub struct Builder<T> {
    capacity: usize,
    slot_bytes: usize,
    _messages: PhantomData<fn(T) -> T>,
}

impl<T: Serialize + DeserializeOwned> Builder<T> {
    /// How many messages the queue holds at most; 1024 if not set.
    pub fn capacity(mut self, capacity: usize) -> Self {
        self.capacity = capacity;
        self
    }

    /// How many bytes a message has at most; 240 if not set. The queue's memory is about capacity times this.
    pub fn slot_bytes(mut self, slot_bytes: usize) -> Self {
        self.slot_bytes = slot_bytes;
        self
    }

    /// Creates the queue.
    ///
    /// # Errors
    ///
    /// [`Error`]: a number out of range, too little memory, no descriptors left, no `/proc`.
    pub fn build(self) -> Result<(Sender<T>, Receiver<T>), Error> {
        create::<T, Postcard>(self.capacity, self.checked_slot_bytes()?)
    }

    /// Creates a queue of one producer and one consumer; see [`spsc`](crate::spsc()).
    ///
    /// # Errors
    ///
    /// As [`Builder::build`].
    pub fn build_spsc(self) -> Result<(Producer<T>, Consumer<T>), Error> {
        crate::spsc::create::<T, Postcard>(self.capacity, self.checked_slot_bytes()?)
    }

    fn checked_slot_bytes(&self) -> Result<usize, Error> {
        // The codec's own bytes count too.
        let limit = <Postcard as Encoding<T>>::limit(MAX_PAYLOAD).unwrap_or(0);
        if !(1..=limit).contains(&self.slot_bytes) {
            return Err(Error::slot_bytes(self.slot_bytes, limit));
        }
        Ok(self.slot_bytes)
    }
}

impl<T> std::fmt::Debug for Builder<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder")
            .field("capacity", &self.capacity)
            .field("slot_bytes", &self.slot_bytes)
            .finish()
    }
}

type Ends<T, C> = (Sender<T, C>, Receiver<T, C>);

fn create<T, C: Codec<T>>(capacity: usize, slot_bytes: usize) -> Result<Ends<T, C>, Error> {
    let (sender, receiver) = End::pair::<T, C>(capacity, slot_bytes)?;
    Ok((Sender::new(sender), Receiver::new(receiver)))
}
