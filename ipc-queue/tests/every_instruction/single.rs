//! Operations of queues of one producer and one consumer: whoever takes a dead one's place goes on where it was.

use super::common::PATIENCE;
use super::harness::{Operation, Scene};
use super::line::{CAPACITY, Message};
use super::memory::Memory;
use super::operations::{numbered, unpacked};
use super::tracer::Parcel;
use ipc_queue::{Consumer, Producer, RecvTimeoutError, SendTimeoutError, spsc};
use shm_core::segment::sweep_all;

type Tx = Producer<Message>;
type Rx = Consumer<Message>;

/// Behind everything that was sent.
const LAST: u32 = 1_000_000;

/// Both ends; one may have given its place to the victim.
struct Pair {
    tx: Tx,
    rx: Rx,
}

impl Pair {
    /// A queue that has been through some laps, with these messages.
    fn with(numbers: std::ops::Range<u32>) -> Self {
        let (tx, rx) = spsc(CAPACITY as usize).expect("a queue");
        let mut pair = Self { tx, rx };
        (0..CAPACITY * 2 + 2).for_each(|number| pair.pass(number));
        numbers.for_each(|number| pair.send(number));
        pair
    }

    fn scene(self, parcel: Parcel) -> Scene<Self> {
        Scene { memory: Memory::of(parcel.descriptor()), survivors: self, parcel, watch: |_| () }
    }

    /// Sends, in the place of whoever is dead. The system may not be done with it yet.
    fn send(&mut self, number: u32) {
        while let Err(error) = self.tx.send_timeout(Message::new(number), PATIENCE) {
            assert!(matches!(error, SendTimeoutError::Taken(_)), "{error:?}");
        }
    }

    /// Receives, as [`Pair::send`] sends.
    fn recv(&mut self) -> u32 {
        loop {
            match self.rx.recv_timeout(PATIENCE) {
                Err(RecvTimeoutError::Taken) => {}
                message => return message.expect("a message").number(),
            }
        }
    }

    fn pass(&mut self, number: u32) {
        self.send(number);
        assert_eq!(self.recv(), number);
    }

    /// What is left in the queue, which goes on.
    fn rest(mut self, memory: &Memory) -> Vec<u32> {
        self.send(LAST);
        let rest = std::iter::from_fn(|| Some(self.recv()).filter(|number| *number != LAST)).collect();
        (0..4 * CAPACITY).for_each(|number| self.pass(number));
        for number in 0..CAPACITY {
            self.tx.try_send(Message::new(number)).expect("every slot is usable");
        }
        assert!(self.tx.try_send(Message::new(0)).expect_err("no more than that").is_full());
        (0..CAPACITY).for_each(|number| assert_eq!(self.recv(), number));
        sweep_all();
        assert_eq!(memory.attached(), 1, "only this process is attached");
        let Self { tx, mut rx } = self;
        drop(tx);
        assert!(rx.recv().expect_err("no producer is left").is_disconnected());
        rest
    }
}

/// `COUNT` messages, from number 1 on.
fn sends<const COUNT: u32>(name: &'static str, operate: fn(&mut Tx)) {
    let send = Operation {
        name,
        outcomes: &["not sent", "sent"],
        prepare: || {
            let pair = Pair::with(0..1);
            let parcel = Parcel::pack(&pair.tx);
            pair.scene(parcel)
        },
        arrive: unpacked::<Tx>,
        operate,
        check: |pair, memory| match pair.rest(memory)[..] {
            [0] => "not sent",
            ref rest if rest.iter().copied().eq(0..1 + COUNT) => "sent",
            ref other => panic!("{other:?} is left"),
        },
    };
    send.die_everywhere();
}

#[test]
fn a_producers_message_arrives_whole_or_not_at_all() {
    sends::<1>("send of a producer", |tx| tx.send(Message::new(1)).expect("room"));
}

#[test]
fn a_producers_batch_arrives_whole_or_not_at_all() {
    sends::<3>("send_batch of a producer", |tx| tx.send_batch(numbered(1..4)).expect("room"));
}

/// The first `COUNT` messages.
fn receives<const COUNT: u32>(name: &'static str, operate: fn(&mut Rx)) {
    let recv = Operation {
        name,
        outcomes: &["not taken", "taken"],
        prepare: || {
            let pair = Pair::with(0..4);
            let parcel = Parcel::pack(&pair.rx);
            pair.scene(parcel)
        },
        arrive: unpacked::<Rx>,
        operate,
        check: |pair, memory| match pair.rest(memory)[..] {
            [0, 1, 2, 3] => "not taken",
            ref rest if rest.iter().copied().eq(COUNT..4) => "taken",
            ref other => panic!("{other:?} is left"),
        },
    };
    recv.die_everywhere();
}

#[test]
fn a_consumers_message_is_lost_or_stays() {
    receives::<1>("recv of a consumer", |rx| assert_eq!(rx.recv().expect("there").number(), 0));
}

#[test]
fn a_consumers_batch_is_lost_or_stays() {
    receives::<3>("recv_batch of a consumer", |rx| {
        assert_eq!(rx.recv_batch(3).expect("there"), numbered(0..3));
    });
}
