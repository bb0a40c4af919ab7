//! Operations on messages that lie in chunks.

use super::common::PATIENCE;
use super::harness::{Forerunner, Operation, Scene, without_straying};
use super::line::{CHUNK, Line, Message};
use super::memory::Memory;
use super::operations::{unpacked, what_is_left};
use super::tracer::Parcel;
use ipc_queue::{BytesReceiver, BytesSender, Receiver, Sender, bytes_builder};
use shm_core::segment::sweep_all;

type Tx = Sender<Message>;
type Rx = Receiver<Message>;

#[test]
fn a_large_message_arrives_whole_or_not_at_all() {
    let send = Operation {
        name: "send a large message",
        outcomes: &["not sent", "sent"],
        prepare: || {
            let line = Line::of_large_messages().with(0..2);
            let parcel = Parcel::pack(line.tx());
            line.scene(parcel)
        },
        arrive: unpacked::<Tx>,
        operate: |tx| tx.send(Message::new(2)).expect("room"),
        check: |line, memory| what_is_left(line, memory, &[("not sent", &[0, 1]), ("sent", &[0, 1, 2])]),
    };
    send.die_everywhere();
}

#[test]
fn a_receive_loses_its_large_message_or_nothing() {
    let recv = Operation {
        name: "recv a large message",
        outcomes: &["not taken", "taken"],
        prepare: || {
            let line = Line::of_large_messages().with(0..2);
            let parcel = Parcel::pack(line.rx());
            line.scene(parcel)
        },
        arrive: unpacked::<Rx>,
        operate: |rx| assert_eq!(rx.recv().expect("there").number(), 0),
        check: |line, memory| what_is_left(line, memory, &[("not taken", &[0, 1]), ("taken", &[1])]),
    };
    recv.die_everywhere();
}

/// How far a forerunner gets: its slot or its chunk is claimed, and not much more.
const BEGUN: u32 = 3;

#[test]
fn chunks_of_the_dead_are_freed_however_often_their_sweeper_dies() {
    const OUTCOMES: [&str; 2] = ["not swept", "swept"];
    let sweep = Operation {
        name: "sweep up after a sender and a receiver of large messages",
        outcomes: &OUTCOMES,
        prepare: || {
            let line = without_straying(|| {
                let sender = Forerunner::start("a sender of a large message", unpacked::<Tx>, |tx| {
                    tx.send(Message::new(9)).expect("room");
                });
                let receiver = Forerunner::start("a receiver of a large message", unpacked::<Rx>, |rx| {
                    assert_eq!(rx.recv().expect("there").number(), 0);
                });
                let line = Line::of_large_messages().with(0..2);
                sender.dies(Parcel::pack(line.tx()), BEGUN)?;
                receiver.dies(Parcel::pack(line.rx()), BEGUN)?;
                Some(line)
            });
            let parcel = Parcel::pack(line.tx());
            line.scene(parcel)
        },
        arrive: unpacked::<Tx>,
        operate: |_| assert_eq!(sweep_all(), 2),
        check: |line, memory| {
            // This process, the victim, and those of the two whom it did not get to.
            let outcome = OUTCOMES[usize::from(memory.attached() == 2)];
            assert_eq!(line.rest(), [1]);
            line.goes_on(memory);
            outcome
        },
    };
    sweep.die_everywhere();
}

/// Chunks of the queues below, and bytes of a message that takes two of them; there is always room for one more.
const CHUNKS: usize = 4;
const LEN: usize = CHUNK + 1000;

/// Both ends of a queue of bytes.
struct Bytes {
    tx: BytesSender,
    rx: BytesReceiver,
}

impl Bytes {
    /// With one message, of one chunk.
    fn new() -> Self {
        let builder = bytes_builder().capacity(CHUNKS).byte_budget(CHUNKS * CHUNK);
        let (tx, rx) = builder.build().expect("a queue");
        tx.send(&[1]).expect("room");
        Self { tx, rx }
    }

    fn scene(self, parcel: Parcel) -> Scene<Self> {
        Scene { memory: Memory::of(parcel.descriptor()), survivors: self, parcel, watch: |_| () }
    }

    /// Takes what is there; then all chunks serve as if nobody had died. Returns the last byte of each message.
    fn goes_on(&self, memory: &Memory) -> Vec<u8> {
        self.tx.send_timeout(&[0], PATIENCE).expect("room");
        let recv = || self.rx.recv_timeout(PATIENCE).expect("sent");
        let rest = std::iter::from_fn(|| recv().last().copied().filter(|last| *last != 0)).collect();
        for _ in 0..3 {
            let all = vec![7; CHUNKS * CHUNK];
            self.tx.send_timeout(&all, PATIENCE).expect("every chunk is usable");
            assert_eq!(recv(), all);
        }
        for _ in 0..CHUNKS {
            self.tx.try_send(&[7]).expect("every chunk is usable");
        }
        assert!(self.tx.try_send(&[7]).expect_err("no more than that").is_full());
        (0..CHUNKS).for_each(|_| assert_eq!(recv(), [7]));
        sweep_all();
        assert_eq!(memory.attached(), 1, "only this process is attached");
        rest
    }
}

#[test]
fn a_message_in_several_chunks_arrives_whole_or_not_at_all() {
    let send = Operation {
        name: "reserve and commit",
        outcomes: &["not sent", "sent"],
        prepare: || {
            let bytes = Bytes::new();
            let parcel = Parcel::pack(&bytes.tx);
            bytes.scene(parcel)
        },
        arrive: unpacked::<BytesSender>,
        operate: |tx| {
            let mut grant = tx.reserve(LEN).expect("room");
            grant[LEN - 1] = 2;
            grant.commit().expect("room");
        },
        check: |bytes, memory| match bytes.goes_on(memory)[..] {
            [1] => "not sent",
            [1, 2] => "sent",
            ref other => panic!("{other:?} is left"),
        },
    };
    send.die_everywhere();
}

#[test]
fn a_receive_in_place_loses_its_message_or_nothing() {
    let recv = Operation {
        name: "recv_ref and drop",
        outcomes: &["not taken", "taken"],
        prepare: || {
            let bytes = Bytes::new();
            let mut grant = bytes.tx.reserve(LEN).expect("room");
            grant[LEN - 1] = 2;
            grant.commit().expect("room");
            drop(bytes.rx.recv_ref().expect("sent"));
            bytes.tx.send(&[3]).expect("room");
            let parcel = Parcel::pack(&bytes.rx);
            bytes.scene(parcel)
        },
        arrive: unpacked::<BytesReceiver>,
        operate: |rx| assert_eq!(rx.recv_ref().expect("sent").last(), Some(&2)),
        check: |bytes, memory| match bytes.goes_on(memory)[..] {
            [2, 3] => "not taken",
            [3] => "taken",
            ref other => panic!("{other:?} is left"),
        },
    };
    recv.die_everywhere();
}
