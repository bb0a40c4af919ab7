//! Making queues.

use crate::bytes;
use crate::codec::{Custom, Format, Postcard, Verbatim};
use crate::end::{End, Shape, Sizes};
use crate::error::Error;
use crate::ring::MAX_PAYLOAD;
use crate::{
    BytesReceiver, BytesSender, Consumer, LeaseReceiver, LeaseSender, PlainReceiver, PlainSender, Producer,
    Receiver, Sender,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shm_core::Plain;
use shm_core::codec::Codec;
use std::marker::PhantomData;

/// The longest message in a slot unless [`Builder::slot_bytes`] says otherwise.
const DEFAULT_SLOT_BYTES: usize = 240;
/// The capacity of a queue unless [`Builder::capacity`] says otherwise.
const DEFAULT_CAPACITY: usize = 1024;

/// The bytes of all messages outside of slots unless [`Builder::byte_budget`] says otherwise.
const DEFAULT_BYTE_BUDGET: usize = 256 << 20;

/// Creates a queue of up to `capacity` messages of any serde type. Those of up to 240 bytes lie in slots, longer ones in a
/// budget of 256 MiB for all of them together; [`builder`] changes both.
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
    create::<T, Verbatim>(capacity, size_of::<T>(), 0)
}

/// Starts to describe a queue of messages of any serde type, or of any type with a [codec](Builder::codec).
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
pub fn builder<T>() -> Builder<T> {
    Builder {
        capacity: DEFAULT_CAPACITY,
        slot_bytes: DEFAULT_SLOT_BYTES,
        byte_budget: DEFAULT_BYTE_BUDGET,
        _messages: PhantomData,
    }
}

/// Describes a queue; made by [`builder`].
pub struct Builder<T, C = Postcard> {
    capacity: usize,
    slot_bytes: usize,
    byte_budget: usize,
    _messages: PhantomData<fn(T) -> C>,
}

impl<T, C> Builder<T, C> {
    /// How many messages the queue holds at most; 1024 if not set.
    pub fn capacity(mut self, capacity: usize) -> Self {
        self.capacity = capacity;
        self
    }

    /// How many bytes a message has at most that lies in a slot, without a further step; 240 if not set. The queue's memory
    /// is about capacity times this.
    pub fn slot_bytes(mut self, slot_bytes: usize) -> Self {
        self.slot_bytes = slot_bytes;
        self
    }

    /// How many bytes all messages together have at most that do not fit a slot; 256 MiB if not set, rounded up to whole
    /// chunks of 64 KiB, or a 4096th of it if that is more. Each such message takes whole chunks. Only what is used has memory
    /// behind it, and what lies idle beyond 16 MiB, or an eighth of the budget, is given back: within some two seconds while
    /// anybody waits at the queue or polls it, otherwise with the next large message that is received. With 0, messages must
    /// fit a slot.
    ///
    /// A large message waits until as many neighbouring chunks as it needs are free at one time. Nothing is reserved for it:
    /// while shorter ones keep coming, they may take each chunk first, for as long as they come. Give the queue several times
    /// its longest message.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (tx, _rx) = ipc_queue::builder::<String>().capacity(100).byte_budget(1 << 20).build()?;
    /// tx.send("x".repeat(1_000_000))?;
    /// assert!(tx.try_send("x".repeat(100_000)).unwrap_err().is_full());
    /// assert!(tx.send("x".repeat(2_000_000)).unwrap_err().is_too_large());
    /// # Ok(()) }
    /// ```
    pub fn byte_budget(mut self, byte_budget: usize) -> Self {
        self.byte_budget = byte_budget;
        self
    }

    /// Turns messages into bytes with a codec of your own instead of postcard. The message's type need not be serde's then.
    /// A message that the codec refuses takes no place in the queue and comes back with the error; bytes that it refuses are
    /// in the receiver's error, and the queue goes on. If the codec panics, at most the messages of that call are lost.
    ///
    /// # Across processes
    ///
    /// Both ends must be of the same [`Codec::ID`]: a handle of a queue of another does not deserialise.
    ///
    /// # Examples
    ///
    /// ```
    /// use ipc_queue::{Codec, Sink};
    ///
    /// struct Job { number: u32, name: String }          // nothing of serde
    ///
    /// enum JobCodec {}
    ///
    /// impl Codec<Job> for JobCodec {
    ///     const ID: u64 = 0x5f0c_9d3a_1e77_b264;
    ///     type Error = std::io::Error;
    ///
    ///     fn encode(job: &Job, out: &mut Sink<'_>) -> Result<(), Self::Error> {
    ///         out.put(&job.number.to_le_bytes());
    ///         out.put(job.name.as_bytes());
    ///         Ok(())
    ///     }
    ///
    ///     fn decode(bytes: &[u8]) -> Result<Job, Self::Error> {
    ///         let (number, name) = bytes.split_first_chunk().ok_or(std::io::ErrorKind::UnexpectedEof)?;
    ///         let name = std::str::from_utf8(name).map_err(std::io::Error::other)?;
    ///         Ok(Job { number: u32::from_le_bytes(*number), name: name.into() })
    ///     }
    /// }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (tx, rx) = ipc_queue::builder::<Job>().codec::<JobCodec>().capacity(8).build()?;
    /// tx.send(Job { number: 7, name: "seven".into() })?;
    /// let job = rx.recv()?;
    /// assert_eq!((job.number, &*job.name), (7, "seven"));
    /// # Ok(()) }
    /// ```
    pub fn codec<D: Codec<T>>(self) -> Builder<T, Custom<D>> {
        let Self { capacity, slot_bytes, byte_budget, _messages } = self;
        Builder { capacity, slot_bytes, byte_budget, _messages: PhantomData }
    }
}

impl<T, C: Format<T>> Builder<T, C> {
    /// Creates the queue.
    ///
    /// # Errors
    ///
    /// [`Error`]: a number out of range, too little memory, no descriptors left, no `/proc`.
    pub fn build(self) -> Result<Ends<T, C>, Error> {
        create::<T, C>(self.capacity, self.checked_slot_bytes()?, self.byte_budget)
    }

    /// Creates a queue of one producer and one consumer; see [`spsc`](crate::spsc()). Its messages lie in slots; the byte
    /// budget is not used.
    ///
    /// # Errors
    ///
    /// As [`Builder::build`].
    pub fn build_spsc(self) -> Result<SpscEnds<T, C>, Error> {
        crate::spsc::create::<T, C>(self.capacity, self.checked_slot_bytes()?)
    }

    /// Makes it a queue whose messages stay until they are acknowledged: what a dead receiver had in hand is delivered again.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (tx, rx) = ipc_queue::builder::<String>().capacity(100).at_least_once().build()?;
    /// tx.send("a job".into())?;
    /// let lease = rx.recv_lease()?;
    /// assert_eq!((lease.as_str(), lease.delivery_count()), ("a job", 1));
    /// lease.ack();
    /// # Ok(()) }
    /// ```
    pub fn at_least_once(self) -> LeaseBuilder<T, C> {
        LeaseBuilder { queue: self, unfinished: None }
    }

    fn checked_slot_bytes(&self) -> Result<usize, Error> {
        // The codec's own bytes count too.
        let limit = C::limit(MAX_PAYLOAD).unwrap_or(0);
        if !(1..=limit).contains(&self.slot_bytes) {
            return Err(Error::slot_bytes(self.slot_bytes, limit));
        }
        Ok(self.slot_bytes)
    }
}

impl<T, C> std::fmt::Debug for Builder<T, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder")
            .field("capacity", &self.capacity)
            .field("slot_bytes", &self.slot_bytes)
            .field("byte_budget", &self.byte_budget)
            .finish()
    }
}

/// Makes an at-least-once queue; see [`Builder::at_least_once`].
pub struct LeaseBuilder<T, C = Postcard> {
    queue: Builder<T, C>,
    unfinished: Option<usize>,
}

impl<T, C: Format<T>> LeaseBuilder<T, C> {
    /// How many messages may be sent and not acknowledged at a time, from the capacity to 2,097,152: those in the queue and those
    /// on lease. Twice the capacity unless said otherwise.
    pub fn unfinished(mut self, unfinished: usize) -> Self {
        self.unfinished = Some(unfinished);
        self
    }

    /// As [`Builder::capacity`].
    pub fn capacity(mut self, capacity: usize) -> Self {
        self.queue = self.queue.capacity(capacity);
        self
    }

    /// As [`Builder::slot_bytes`].
    pub fn slot_bytes(mut self, slot_bytes: usize) -> Self {
        self.queue = self.queue.slot_bytes(slot_bytes);
        self
    }

    /// As [`Builder::byte_budget`].
    pub fn byte_budget(mut self, byte_budget: usize) -> Self {
        self.queue = self.queue.byte_budget(byte_budget);
        self
    }

    /// Creates the queue.
    ///
    /// # Errors
    ///
    /// As [`Builder::build`], and [`Error::is_unfinished`].
    pub fn build(self) -> Result<LeaseEnds<T, C>, Error> {
        let Builder { capacity, byte_budget: budget, .. } = self.queue;
        let payload_len = C::payload_len(self.queue.checked_slot_bytes()?, budget);
        let cells = self.unfinished.unwrap_or(capacity.saturating_mul(2));
        if cells < capacity {
            return Err(Error::unfinished(cells));
        }
        let sizes = Sizes { capacity, payload_len, budget, chunk_len: 0, cells: Some(cells) };
        let (sender, receiver) = End::pair(&Shape::leased::<T, C>(), sizes)?;
        Ok((LeaseSender::new(sender), LeaseReceiver::new(receiver)))
    }
}

impl<T, C> std::fmt::Debug for LeaseBuilder<T, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LeaseBuilder")
            .field("queue", &self.queue)
            .field("unfinished", &self.unfinished)
            .finish()
    }
}

/// Both ends of a queue.
type Ends<T, C> = (Sender<T, C>, Receiver<T, C>);
/// Likewise.
type SpscEnds<T, C> = (Producer<T, C>, Consumer<T, C>);
/// Likewise.
type LeaseEnds<T, C> = (LeaseSender<T, C>, LeaseReceiver<T, C>);

fn create<T, C: Format<T>>(capacity: usize, slot_bytes: usize, budget: usize) -> Result<Ends<T, C>, Error> {
    let payload_len = C::payload_len(slot_bytes, budget);
    let (sender, receiver) =
        End::pair(&Shape::of::<T, C>(), Sizes { capacity, payload_len, budget, chunk_len: 0, cells: None })?;
    Ok((Sender::new(sender), Receiver::new(receiver)))
}

/// Creates a queue of up to `capacity` messages that are bytes, of 256 MiB together, written and read in place. Each takes
/// at least a chunk of 64 KiB of the budget (and a page of memory); [`bytes_builder`] changes the budget.
///
/// # Errors
///
/// As [`bounded`].
///
/// # Across processes
///
/// As [`bounded`].
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (tx, rx) = ipc_queue::bounded_bytes(16)?;
/// let mut frame = tx.reserve(1 << 20)?;                // memory of the queue
/// frame[..5].copy_from_slice(b"hello");
/// frame.commit()?;
/// let frame = rx.recv_ref()?;                          // the same memory
/// assert_eq!((&frame[..5], frame.len()), (&b"hello"[..], 1 << 20));
/// # Ok(()) }
/// ```
pub fn bounded_bytes(capacity: usize) -> Result<(BytesSender, BytesReceiver), Error> {
    bytes_builder().capacity(capacity).build()
}

/// Starts to describe a queue of bytes.
pub fn bytes_builder() -> BytesBuilder {
    BytesBuilder { capacity: DEFAULT_CAPACITY, byte_budget: DEFAULT_BYTE_BUDGET, chunk_bytes: 0 }
}

/// Describes a queue of bytes; made by [`bytes_builder`].
#[derive(Clone, Debug)]
pub struct BytesBuilder {
    capacity: usize,
    byte_budget: usize,
    chunk_bytes: usize,
}

impl BytesBuilder {
    /// How many messages the queue holds at most; 1024 if not set.
    pub fn capacity(mut self, capacity: usize) -> Self {
        self.capacity = capacity;
        self
    }

    /// How many bytes all messages together have at most; as [`Builder::byte_budget`], but not 0.
    pub fn byte_budget(mut self, byte_budget: usize) -> Self {
        self.byte_budget = byte_budget;
        self
    }

    /// How long a chunk is, rounded up to a power of two; 64 KiB, or a 4096th of the budget if that is more, if not set. A
    /// message that fits one chunk is the cheapest: set this where most have the same length. Only pages that are used have
    /// memory behind them.
    pub fn chunk_bytes(mut self, chunk_bytes: usize) -> Self {
        self.chunk_bytes = chunk_bytes;
        self
    }

    /// Creates the queue.
    ///
    /// # Errors
    ///
    /// As [`Builder::build`]; also a byte budget of 0.
    pub fn build(self) -> Result<(BytesSender, BytesReceiver), Error> {
        if self.byte_budget == 0 {
            return Err(Error::byte_budget(0));
        }
        let (sender, receiver) = End::pair(
            &bytes::SHAPE,
            Sizes {
                capacity: self.capacity,
                payload_len: bytes::PAYLOAD,
                budget: self.byte_budget,
                chunk_len: self.chunk_bytes,
                cells: None,
            },
        )?;
        Ok((BytesSender::new(sender), BytesReceiver::new(receiver)))
    }
}
