//! iceoryx2's publish-subscribe between two processes, by copy, with a buffer as large as the other queues and
//! nothing overwritten: the publisher tries again until the message is delivered. Its own way of trying again
//! (`RetryUntilDelivered`) is half as fast here as a spinning caller.

use super::{CAPACITY, Message, Plan, check, consume, produce as drive};
use crate::child::{Child, Control, Result};
use crate::clock::{now, spin};
use crate::pin::{Pinning, Side};
use crate::run::{Failure, Sample};
use iceoryx2::prelude::*;
use iceoryx2::service::port_factory::publish_subscribe::PortFactory;

fn service<M: Message>(node: &Node<ipc::Service>, name: &str) -> Result<PortFactory<ipc::Service, M, ()>> {
    Ok(node
        .service_builder(&name.try_into()?)
        .publish_subscribe::<M>()
        .max_publishers(1)
        .max_subscribers(1)
        .enable_safe_overflow(false)
        .history_size(0)
        .subscriber_max_buffer_size(CAPACITY)
        .open_or_create()?)
}

pub fn run<M: Message>(pinning: Pinning, count: u64) -> std::result::Result<Sample, Failure> {
    set_log_level(LogLevel::Error);
    let plan = Plan::new(count);
    let node = NodeBuilder::new()
        .signal_handling_mode(SignalHandlingMode::Disabled)
        .create::<ipc::Service>()?;
    let name = format!("bench/{}/{}", std::process::id(), now().as_nanos());
    let service = service::<M>(&node, &name)?;
    let subscriber = service.subscriber_builder().buffer_size(CAPACITY).create()?;
    let child = Child::spawn(&format!("queue.iceoryx2.{}", M::SIZE), pinning, &(plan, name))?;
    let _pinned = pinning.enter(Side::A);
    let sample = consume(&child.control, plan, |seq| {
        let sample = spin(|| subscriber.receive().transpose())?;
        check(&*sample, seq)
    })?;
    child.join()?;
    Ok(sample)
}

pub fn produce<M: Message>(control: &Control) -> Result {
    set_log_level(LogLevel::Error);
    let (plan, name): (Plan, String) = control.recv()?;
    let node = NodeBuilder::new()
        .signal_handling_mode(SignalHandlingMode::Disabled)
        .create::<ipc::Service>()?;
    let service = service::<M>(&node, &name)?;
    let publisher = service
        .publisher_builder()
        .backpressure_strategy(BackpressureStrategy::DiscardData)
        .create()?;
    drive(control, plan, |message: &M| {
        // 0: the buffer is full.
        spin(|| match publisher.send_copy(*message) {
            Ok(0) => None,
            Ok(_) => Some(Ok(())),
            Err(error) => Some(Err(error.into())),
        })
    })
}
