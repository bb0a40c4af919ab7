//! The calls that the README promises, as a user writes them.
#![cfg(not(loom))]

use ipc_queue::{bounded, bounded_bytes, bounded_plain, builder};
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::time::Duration;

type Result = std::result::Result<(), Box<dyn Error>>;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Job {
    id: u64,
    path: String,
}

fn job(id: u64) -> Job {
    Job { id, path: format!("/tmp/{id}") }
}

const SOON: Duration = Duration::from_millis(10);

#[test]
fn values_of_any_type() -> Result {
    let (tx, rx) = bounded::<Job>(1024)?;
    tx.send(job(0))?;
    tx.try_send(job(1))?;
    tx.send_timeout(job(2), SOON)?;
    assert_eq!((rx.len(), rx.is_empty(), rx.is_full(), rx.capacity()), (3, false, false, 1024));
    assert_eq!(rx.recv()?, job(0));
    assert_eq!(rx.try_recv()?, job(1));
    assert_eq!(rx.recv_timeout(SOON)?, job(2));
    tx.send_batch([job(3), job(4)])?;
    let v: Vec<Job> = rx.recv_batch(64)?;
    assert_eq!(v, [job(3), job(4)]);
    let there = tx.clone();
    std::thread::spawn(move || (0..10).try_for_each(|id| there.send(job(id))));
    drop(tx);
    for (id, received) in (0..).zip(rx.iter()) {
        assert_eq!(received?, job(id));
    }
    Ok(())
}

#[test]
fn a_failed_send_hands_the_value_back() -> Result {
    let (tx, rx) = bounded::<Job>(1)?;
    tx.send(job(0))?;
    match tx.try_send(job(1)) {
        Err(ipc_queue::TrySendError::Full(value)) => assert_eq!(value, job(1)),
        other => panic!("{other:?}"),
    }
    drop(rx);
    assert_eq!(tx.send(job(2)).expect_err("nobody is there").into_inner(), job(2));
    Ok(())
}

#[test]
fn jobs_that_stay_until_they_are_done() -> Result {
    let (tx, rx) = builder::<Job>().capacity(1024).byte_budget(1 << 30).at_least_once().build()?;
    tx.send(job(0))?;
    let lease = rx.recv_lease()?;
    assert_eq!(lease.delivery_count(), 1);
    let work: &Job = &lease;
    assert_eq!(work, &job(0));
    lease.ack();
    tx.wait_drained(SOON)?;
    Ok(())
}

#[test]
fn plain_data_and_bytes() -> Result {
    let (tx, rx) = bounded_plain::<[u64; 4]>(1024)?;
    tx.send([1, 2, 3, 4])?;
    assert_eq!(rx.recv()?, [1, 2, 3, 4]);
    let (tx, rx) = bounded_bytes(1024)?;
    let mut g = tx.reserve(5)?;
    g.copy_from_slice(b"hello");
    g.commit()?;
    let m = rx.recv_ref()?;
    assert_eq!(&m[..], b"hello");
    Ok(())
}
