//! Large messages: 64 KiB by copy, 1 MiB in place, ours against iceoryx2.
//!
//! *By copy*: the producer copies the message from its own memory into the queue's, the consumer copies it out into its
//! own, and checks it as the small ones. *In place*: the producer takes memory of the queue and writes the message's number
//! into its first and last word; the consumer reads the first one where it lies (and the last one, in one message of 64).
//! Both have room for 16 messages.
//!
//! # Safety
//!
//! iceoryx2's memory for a message is called initialised without being written as a whole: it consists of bytes in shared
//! memory, which the system or an earlier message has filled.
#![allow(unsafe_code)]

use super::{Plan, check_words, consume, pattern, produce as drive, rate, wrong};
use crate::child::{Child, Control, Result};
use crate::clock::{now, spin};
use crate::pin::{Pinning, Side};
use crate::run::{Case, Count, Failure, OURS, Sample, Variant};
use iceoryx2::prelude::*;
use iceoryx2::service::port_factory::publish_subscribe::PortFactory;
use ipc_queue::{BytesSender, bytes_builder};

/// Messages of room.
const CAPACITY: usize = 16;
/// Bytes of a number.
const WORD: usize = size_of::<u64>();

/// How messages get in and out.
pub trait Way: 'static {
    /// As in the names of the ratios.
    const NAME: &'static str;
    /// Bytes of a message.
    const LEN: usize;
    /// Whether they are copied.
    const COPIES: bool;
}

/// 64 KiB, copied in and out.
pub struct ByCopy;
/// 1 MiB, written and read where it lies.
pub struct InPlace;

impl Way for ByCopy {
    const NAME: &'static str = "64KiB";
    const LEN: usize = 1 << 16;
    const COPIES: bool = true;
}

impl Way for InPlace {
    const NAME: &'static str = "1MiB";
    const LEN: usize = 1 << 20;
    const COPIES: bool = false;
}

/// A message with the pattern in its inner words.
fn blank(len: usize) -> Vec<u8> {
    (0..len / WORD)
        .flat_map(|index| pattern(index).to_ne_bytes())
        .collect()
}

/// Puts the number in.
#[inline]
fn stamp(message: &mut [u8], seq: u64) {
    let last = message.len() - WORD;
    message[..WORD].copy_from_slice(&seq.to_ne_bytes());
    message[last..].copy_from_slice(&seq.to_ne_bytes());
}

/// The consumer's part: `own` is its own memory.
#[inline]
fn take<W: Way>(message: &[u8], own: &mut [u8], seq: u64) -> Result {
    if message.len() != W::LEN {
        return wrong(seq);
    }
    if W::COPIES {
        own.copy_from_slice(message);
        return check_words(own, W::LEN, seq);
    }
    let last = W::LEN - WORD;
    let right = message[..WORD] == seq.to_ne_bytes()
        && (!seq.is_multiple_of(64) || message[last..] == seq.to_ne_bytes());
    if right { Ok(()) } else { wrong(seq) }
}

/// `ipc_queue::bounded_bytes`, blocking calls, a chunk as long as a message.
fn run<W: Way>(pinning: Pinning, count: u64) -> std::result::Result<Sample, Failure> {
    let plan = Plan::new(count);
    let queue = bytes_builder()
        .capacity(CAPACITY)
        .byte_budget(CAPACITY * W::LEN)
        .chunk_bytes(W::LEN);
    let (sender, receiver) = queue.build()?;
    let child = Child::spawn(&format!("queue.ours.{}", W::NAME), pinning, &(plan, sender))?;
    let _pinned = pinning.enter(Side::A);
    let mut own = vec![0; W::LEN];
    let sample = consume(&child.control, plan, |seq| {
        take::<W>(&receiver.recv_ref()?, &mut own, seq)
    })?;
    child.join()?;
    Ok(sample)
}

pub fn produce<W: Way>(control: &Control) -> Result {
    let (plan, sender): (Plan, BytesSender) = control.recv()?;
    let mut own = blank(W::LEN);
    drive(control, plan, |seq: &u64| {
        if W::COPIES {
            stamp(&mut own, *seq);
            return Ok(sender.send(&own)?);
        }
        let mut grant = sender.reserve(W::LEN)?;
        stamp(&mut grant, *seq);
        Ok(grant.commit()?)
    })
}

type Service = PortFactory<ipc::Service, [u8], ()>;

fn node() -> Result<Node<ipc::Service>> {
    set_log_level(LogLevel::Error);
    Ok(NodeBuilder::new()
        .signal_handling_mode(SignalHandlingMode::Disabled)
        .create()?)
}

fn service(node: &Node<ipc::Service>, name: &str) -> Result<Service> {
    Ok(node
        .service_builder(&name.try_into()?)
        .publish_subscribe::<[u8]>()
        .max_publishers(1)
        .max_subscribers(1)
        .enable_safe_overflow(false)
        .history_size(0)
        .subscriber_max_buffer_size(CAPACITY)
        .open_or_create()?)
}

/// iceoryx2's publish-subscribe of slices. Where the buffer is full, the publisher begins anew until the message is
/// delivered, spinning; with `retry` it leaves that to the library, which keeps the message and sleeps.
fn run_iceoryx<W: Way>(retry: bool) -> impl FnMut(Pinning, u64) -> std::result::Result<Sample, Failure> {
    move |pinning, count| {
        let plan = Plan::new(count);
        let node = node()?;
        let name = format!("bench/{}/{}", std::process::id(), now().as_nanos());
        let service = service(&node, &name)?;
        let subscriber = service.subscriber_builder().buffer_size(CAPACITY).create()?;
        let child = Child::spawn(
            &format!("queue.iceoryx2.{}", W::NAME),
            pinning,
            &(plan, name, retry),
        )?;
        let _pinned = pinning.enter(Side::A);
        let mut own = vec![0; W::LEN];
        let sample = consume(&child.control, plan, |seq| {
            let sample = spin(|| subscriber.receive().transpose())?;
            take::<W>(sample.payload(), &mut own, seq)
        })?;
        child.join()?;
        Ok(sample)
    }
}

pub fn produce_iceoryx<W: Way>(control: &Control) -> Result {
    let (plan, name, retry): (Plan, String, bool) = control.recv()?;
    let node = node()?;
    let service = service(&node, &name)?;
    let strategy = if retry {
        BackpressureStrategy::RetryUntilDelivered
    } else {
        BackpressureStrategy::DiscardData
    };
    let publisher = service
        .publisher_builder()
        .initial_max_slice_len(W::LEN)
        .max_loaned_samples(1)
        .backpressure_strategy(strategy)
        .create()?;
    let mut own = blank(W::LEN);
    drive(control, plan, |seq: &u64| {
        if W::COPIES {
            stamp(&mut own, *seq);
        }
        let publish = || -> Result<usize> {
            let sample = publisher.loan_slice_uninit(W::LEN)?;
            if W::COPIES {
                return Ok(sample.write_from_slice(&own).send()?);
            }
            // SAFETY: see the head of the file.
            let mut sample = unsafe { sample.assume_init() };
            stamp(sample.payload_mut(), *seq);
            Ok(sample.send()?)
        };
        // 0: the buffer is full.
        spin(|| match publish() {
            Ok(0) => None,
            published => Some(published.map(drop)),
        })
    })
}

fn case<W: Way>() -> Case {
    Case {
        bench: "queue",
        name: W::NAME,
        about: "Messages of bytes from one producer to one consumer process, room for 16. 64 KiB by copy: copied from the                 producer's memory into the queue's and from there into the consumer's. 1 MiB in place: the producer takes                 memory of the queue and writes the number at both ends, the consumer reads it where it lies. Ours block;                 iceoryx2 spins (128 pauses, then `sched_yield`), or its publisher retries by itself.",
        pinnings: &Pinning::ALL,
        metrics: rate(),
        variants: vec![
            Variant::new(OURS, Count::From(500), run::<W>),
            Variant::new("iceoryx2", Count::From(500), run_iceoryx::<W>(false)),
            Variant::new("iceoryx2_retrying", Count::From(500), run_iceoryx::<W>(true)),
        ],
    }
}

/// The cases.
pub fn cases() -> Vec<Case> {
    vec![case::<ByCopy>(), case::<InPlace>()]
}
