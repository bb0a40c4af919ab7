//! A queue as survivors see it, and what must hold of it after any death.

use super::common::PATIENCE;
use super::harness::Scene;
use super::memory::Memory;
use super::tracer::Parcel;
use ipc_queue::{Builder, Receiver, Sender, builder};
use serde::{Deserialize, Serialize};
use shm_core::segment::sweep_all;

/// A number, and copies of it that may be torn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Message {
    number: u32,
    copies: [u32; 5],
}

impl Message {
    pub(crate) fn new(number: u32) -> Self {
        // Of the same length, whatever the number.
        Self { number, copies: [number | 1 << 31; 5] }
    }

    #[track_caller]
    pub(crate) fn number(self) -> u32 {
        assert_eq!(self, Self::new(self.number), "a torn message");
        self.number
    }
}

/// Behind everything that was sent.
const LAST: u32 = 1_000_000;

/// Slots of every queue here: a batch of three goes around the end of the ring.
pub(crate) const CAPACITY: u32 = 5;

/// The shortest chunk of memory for large messages.
pub(crate) const CHUNK: usize = 64 << 10;

/// Both ends of a queue, one of which may be gone.
pub(crate) struct Line {
    pub(crate) tx: Option<Sender<Message>>,
    pub(crate) rx: Option<Receiver<Message>>,
}

impl Line {
    /// A queue whose messages lie in slots.
    pub(crate) fn new() -> Self {
        Self::of(builder().byte_budget(0))
    }

    /// A queue whose messages lie in chunks, one for each that there is room for.
    pub(crate) fn of_large_messages() -> Self {
        Self::of(builder().slot_bytes(16).byte_budget(CAPACITY as usize * CHUNK))
    }

    /// A queue that has been through some laps.
    fn of(builder: Builder<Message>) -> Self {
        let (tx, rx) = builder.capacity(CAPACITY as usize).build().expect("a queue");
        let line = Self { tx: Some(tx), rx: Some(rx) };
        (0..CAPACITY * 2 + 2).for_each(|_| line.pass(0));
        line
    }

    pub(crate) fn tx(&self) -> &Sender<Message> {
        self.tx.as_ref().expect("there")
    }

    pub(crate) fn rx(&self) -> &Receiver<Message> {
        self.rx.as_ref().expect("there")
    }

    /// Queues these messages.
    pub(crate) fn with(self, numbers: std::ops::Range<u32>) -> Self {
        numbers.for_each(|number| self.send(number));
        self
    }

    pub(crate) fn send(&self, number: u32) {
        self.tx().send_timeout(Message::new(number), PATIENCE).expect("room");
    }

    pub(crate) fn recv(&self) -> u32 {
        self.rx().recv_timeout(PATIENCE).expect("a message").number()
    }

    fn pass(&self, number: u32) {
        self.send(number);
        assert_eq!(self.recv(), number);
    }

    /// A scene with this queue, whose victim gets `parcel`.
    pub(crate) fn scene(self, parcel: Parcel) -> Scene<Self> {
        Scene { memory: Memory::of(parcel.descriptor()), survivors: self, parcel, watch: |_| () }
    }

    /// Everything that is queued.
    pub(crate) fn rest(&self) -> Vec<u32> {
        self.send(LAST);
        std::iter::from_fn(|| Some(self.recv()).filter(|number| *number != LAST)).collect()
    }

    /// An empty queue goes on as if nobody had died, nothing of the dead is left, and they hold no side of it open.
    pub(crate) fn goes_on(mut self, memory: &Memory) {
        (0..4 * CAPACITY).for_each(|number| self.pass(number));
        for number in 0..CAPACITY {
            self.tx().try_send(Message::new(number)).expect("every slot is usable");
        }
        assert!(self.tx().try_send(Message::new(0)).expect_err("no more than that").is_full());
        for number in 0..CAPACITY {
            assert_eq!(self.rx().try_recv().expect("sent").number(), number);
        }
        assert!(self.rx().try_recv().expect_err("no more than that").is_empty());
        if memory.highest_participant() % 2 == 0 {
            self.tx = None;
        }
        self.ends(memory);
    }

    /// Nobody but the dead holds the side that is missing, or the receiving one, and nothing is left of them.
    pub(crate) fn ends(mut self, memory: &Memory) {
        if let Some(tx) = &self.tx {
            self.rx = None;
            // A sender looks at the latest when it finds no room.
            let error = (0..=CAPACITY).find_map(|_| tx.send_timeout(Message::new(0), PATIENCE).err());
            assert!(error.is_some_and(|error| error.is_disconnected()), "no receiver is left");
        } else {
            let error = self.rx().recv_timeout(PATIENCE).expect_err("no sender is left");
            assert!(error.is_disconnected(), "{error:?}");
        }
        sweep_all();
        assert_eq!(memory.attached(), 1, "only this process is attached");
    }
}
