//! The bridge of a polled end: its thread's code, over a ring and a line, with a descriptor that is a word.

use super::{Parked, STUCK, park};
use ipc_queue::pollable::arming::{Arming, MORE, Watched, watch};
use ipc_queue::ring::Cursor;
use shm_core::futex::Futex;
use shm_core::sync::Arc;
use shm_core::sync::Ordering::{AcqRel, Acquire};
use shm_core::wait::WaitLine;

/// A queue of which one end is polled.
struct Polled {
    order: Order,
    parked: Arc<Parked>,
    arming: Arming,
    /// 1 while it is readable. As the kernel has it: whoever finds a write sees what came before it.
    descriptor: Futex,
    /// The bridge's.
    cursor: Cursor,
}

impl Watched for Polled {
    fn line(&self, _wanted: u32) -> &WaitLine {
        &self.parked.not_empty
    }

    fn is_ready(&self, _wanted: u32) -> bool {
        let ready = self.parked.world.ring().is_ready(&self.cursor);
        if ready && self.order == Order::RingsFirst {
            self.ring();
        }
        ready
    }

    fn look_around(&self, _wanted: u32) -> bool {
        false
    }
}

/// In which order things are done: the right one, and controls.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Right,
    ArmsFirst,
    DoesNotArm,
    RingsFirst,
}

impl Polled {
    fn new(parked: &Arc<Parked>, order: Order) -> Arc<Polled> {
        Arc::new(Polled {
            order,
            parked: parked.clone(),
            arming: Arming::new(MORE),
            descriptor: Futex::new(0),
            cursor: Cursor::new(),
        })
    }

    fn ring(&self) {
        self.descriptor.word().swap(1, AcqRel);
        self.descriptor.wake(1);
    }

    fn drain(&self) {
        self.descriptor.word().swap(0, AcqRel);
    }

    /// Sleeps until the descriptor is readable: for ever, if nobody makes it so.
    fn poll(&self) {
        while self.descriptor.load(Acquire) == 0 {
            self.descriptor.wait(0, None);
        }
    }

    fn try_recv(&self, cursor: &Cursor) -> Option<u64> {
        let attempt = || self.parked.world.try_pop(cursor, 2).ok();
        attempt().or_else(|| {
            if self.order == Order::ArmsFirst {
                self.arming.arm(MORE, self);
            }
            self.drain();
            if !matches!(self.order, Order::ArmsFirst | Order::DoesNotArm) {
                self.arming.arm(MORE, self);
            }
            attempt()
        })
    }

    fn recv(&self, cursor: &Cursor) -> u64 {
        loop {
            match self.try_recv(cursor) {
                Some(message) => return message,
                None => self.poll(),
            }
        }
    }
}

fn bridge(polled: &Arc<Polled>) -> loom::thread::JoinHandle<()> {
    let polled = polled.clone();
    loom::thread::spawn(move || {
        watch(&polled.arming, &*polled, || {
            if polled.order != Order::RingsFirst {
                polled.ring();
            }
        });
    })
}

/// The bridge may ring for the first message when that was taken already, while its end looks for the second.
fn polled_messages(order: Order) {
    let parked = Parked::new(2);
    let sent = Cursor::new();
    parked.send(&sent, 5);
    let polled = Polled::new(&parked, order);
    let bridge = bridge(&polled);
    let producer = {
        let parked = parked.clone();
        loom::thread::spawn(move || parked.send(&sent, 6))
    };
    let cursor = Cursor::new();
    assert_eq!([polled.recv(&cursor), polled.recv(&cursor)], [5, 6]);
    polled.arming.stop(&*polled);
    producer.join().unwrap();
    bridge.join().unwrap();
}

pub(crate) fn a_polled_end_gets_its_messages() {
    polled_messages(Order::Right);
}

/// Somebody sleeps on the line, and a bridge too: whoever gets the wake-up, the sleeper gets the message.
pub(crate) fn a_bridge_passes_a_wake_up_on() {
    let parked = Parked::new(1);
    let polled = Polled::new(&parked, Order::Right);
    let bridge = bridge(&polled);
    let sleeper = park(&parked, 3);
    parked.send(&Cursor::new(), 5);
    assert_eq!(sleeper.join().unwrap(), Some(5));
    polled.arming.stop(&*polled);
    bridge.join().unwrap();
}

/// An idle bridge, at rest or asleep on the line, ends when its handle goes.
pub(crate) fn a_bridge_that_is_stopped_ends() {
    let parked = Parked::new(1);
    let polled = Polled::new(&parked, Order::Right);
    let bridge = bridge(&polled);
    parked.send(&Cursor::new(), 5);
    polled.arming.stop(&*polled);
    bridge.join().unwrap();
}

/// What a model must notice.
pub(crate) const CONTROLS: &[(&str, fn(), &str)] = &[
    ("pollable: arms before it drains", || polled_messages(Order::ArmsFirst), STUCK),
    ("pollable: rings before it disarms", || polled_messages(Order::RingsFirst), STUCK),
    ("pollable: does not arm", || polled_messages(Order::DoesNotArm), STUCK),
];
