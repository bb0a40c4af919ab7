//! Queues of one producer and one consumer: no compare-and-swap and no fence per message.
//!
//! [`Producer`] and [`Consumer`] do what [`Sender`](crate::Sender) and [`Receiver`](crate::Receiver) do, but cannot be
//! cloned or shared by threads, and their operations take `&mut self`.
//!
//! # One end, one user
//!
//! An end is used by one handle at a time, in all processes:
//!
//! * *Sending it on.* To serialise an end gives it up; the process where it arrives uses it from there on, and goes on
//!   exactly where this one stopped. An end that was given up and has not arrived anywhere can be used again (if sending it
//!   failed and the value came back, say): whoever uses it first has it. A handle whose end is elsewhere says `Taken`, in
//!   each operation; an end that arrives and is in use already does not deserialise.
//! * *Fork.* A forked child has copies of both ends, and its parent keeps using them: the copies say `Taken`. A copy works
//!   as soon as the original was dropped, or its process has ended. So a parent that drops one end and a child that drops
//!   the other are connected. A copy holds its side of the queue all the same: drop what is not needed.
//! * *Death.* An end whose process has died can be used by whoever has a handle of it: a forked copy, a handle that was
//!   given up, one that arrives late. Nothing is lost but what the dead consumer had taken. While nobody has one, the side
//!   is gone, and the other side is told.
//!
//! # The end
//!
//! There is no `close`: dropping the one end there is says the same. The consumer gets what is left and then
//! `Disconnected`, the producer gets `Disconnected` at once.
//!
//! # Examples
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (mut tx, rx) = ipc_queue::spsc::<String>(16)?;
//! std::thread::spawn(move || tx.send("hello".into()));
//! for message in rx {                        // ends when the producer is gone
//!     assert_eq!(message?, "hello");
//! }
//! # Ok(()) }
//! ```

#[cfg(not(loom))]
mod consumer;
#[cfg(not(loom))]
mod end;
#[cfg(not(loom))]
mod handles;
#[cfg(not(loom))]
mod iter;
#[cfg(not(loom))]
mod producer;
pub mod ring;
#[cfg(not(loom))]
mod travel;

#[cfg(not(loom))]
pub use api::*;

#[cfg(not(loom))]
mod api {
    pub use super::consumer::{Consumer, PlainConsumer};
    pub use super::iter::{IntoIter, Iter, TryIter};
    pub use super::producer::{PlainProducer, Producer};
    use crate::codec::{Format, Verbatim};
    use crate::error::Error;
    use serde::Serialize;
    use serde::de::DeserializeOwned;
    use shm_core::Plain;

    /// Creates a queue of up to `capacity` messages of any serde type, of up to 240 bytes each, for one producer and one
    /// consumer; [`Builder::build_spsc`](crate::Builder::build_spsc) makes room for longer ones.
    ///
    /// # Errors
    ///
    /// As [`bounded`](crate::bounded()).
    ///
    /// # Across processes
    ///
    /// Each end can be sent to another process; the queue's memory is freed with the last handle.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (mut tx, mut rx) = ipc_queue::spsc::<(u32, String)>(16)?;
    /// tx.send((1, "one".into()))?;
    /// assert_eq!(rx.recv()?, (1, "one".into()));
    /// # Ok(()) }
    /// ```
    pub fn spsc<T: Serialize + DeserializeOwned>(
        capacity: usize,
    ) -> Result<(Producer<T>, Consumer<T>), Error> {
        crate::builder().capacity(capacity).build_spsc()
    }

    /// Creates a queue of up to `capacity` messages of plain old data, which are copied as they are, for one producer and
    /// one consumer.
    ///
    /// # Errors
    ///
    /// As [`bounded_plain`](crate::bounded_plain()).
    ///
    /// # Across processes
    ///
    /// As [`spsc`]. Another process can put any bytes into the queue: any bytes are a value of a [`Plain`] type.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (mut tx, mut rx) = ipc_queue::spsc_plain::<u64>(1024)?;
    /// tx.send(7)?;
    /// assert_eq!(rx.recv()?, 7);
    /// # Ok(()) }
    /// ```
    pub fn spsc_plain<T: Plain>(capacity: usize) -> Result<(PlainProducer<T>, PlainConsumer<T>), Error> {
        create::<T, Verbatim>(capacity, size_of::<T>())
    }

    type Ends<T, C> = (Producer<T, C>, Consumer<T, C>);

    pub(crate) fn create<T, C: Format<T>>(capacity: usize, slot_bytes: usize) -> Result<Ends<T, C>, Error> {
        let (producer, consumer) = super::end::pair::<T, C>(capacity, slot_bytes)?;
        Ok((Producer::new(producer), Consumer::new(consumer)))
    }
}
