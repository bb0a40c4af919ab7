//! The rivals between threads.

use super::{CAPACITY, Message, Plan, check, consume_with, produce_with};
use crate::child::Result;
use crate::clock::spin;
use crate::pin::{Pinning, Side};
use crate::run::{Failure, Sample};
use std::sync::Barrier;

/// `crossbeam_queue::ArrayQueue`, spinning on full and empty.
pub fn array_queue<M: Message>(pinning: Pinning, count: u64) -> std::result::Result<Sample, Failure> {
    let queue = crossbeam_queue::ArrayQueue::<M>::new(CAPACITY);
    between(
        pinning,
        Plan::new(count),
        |message: &M| {
            spin(|| queue.push(*message).ok());
            Ok(())
        },
        |seq| check(&spin(|| queue.pop()), seq),
    )
}

/// `crossbeam_channel::bounded`, spinning on full and empty: faster here than its blocking calls.
pub fn channel<M: Message>(pinning: Pinning, count: u64) -> std::result::Result<Sample, Failure> {
    let (sender, receiver) = crossbeam_channel::bounded::<M>(CAPACITY);
    between(
        pinning,
        Plan::new(count),
        move |message: &M| {
            spin(|| sender.try_send(*message).ok());
            Ok(())
        },
        |seq| check(&spin(|| receiver.try_recv().ok()), seq),
    )
}

/// `rtrb`, spinning on full and empty: for one producer and one consumer only.
pub fn rtrb<M: Message>(pinning: Pinning, count: u64) -> std::result::Result<Sample, Failure> {
    let (mut producer, mut consumer) = rtrb::RingBuffer::<M>::new(CAPACITY);
    between(
        pinning,
        Plan::new(count),
        move |message: &M| {
            spin(|| producer.push(*message).ok());
            Ok(())
        },
        |seq| check(&spin(|| consumer.pop().ok()), seq),
    )
}

fn between<M: Message>(
    pinning: Pinning,
    plan: Plan,
    send: impl FnMut(&M) -> Result + Send,
    recv: impl FnMut(u64) -> Result,
) -> std::result::Result<Sample, Failure> {
    let barrier = Barrier::new(2);
    let gate = || {
        barrier.wait();
        Ok(())
    };
    std::thread::scope(|scope| {
        let producer = scope.spawn(|| {
            let _pinned = pinning.enter(Side::B);
            produce_with(plan, gate, send).map_err(|error| error.to_string())
        });
        let _pinned = pinning.enter(Side::A);
        let end = consume_with(plan, gate, recv)?;
        let begin = producer.join().map_err(|_| "the producing thread panicked")??;
        Ok(plan.sample(end.saturating_sub(begin)))
    })
}
