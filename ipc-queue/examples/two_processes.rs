//! A queue between two processes, without proc-pool: the parent starts itself again, hands a receiver and a sender to
//! the child through a socket, and sums what comes back.
//!
//! Type `cargo run -p ipc-queue --example two_processes`; see `the child squared 1000 numbers, sum 332833500`.

use ipc_queue::{Receiver, Sender, bounded};
use shm_core::handle::{ReceiveSession, SendSession};
use shm_core::socket;
use std::error::Error;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

type Orders = (Receiver<u64>, Sender<u64>);

fn main() -> Result<(), Box<dyn Error>> {
    if std::env::args().nth(1).as_deref() == Some("child") {
        return child();
    }
    let (work, child_work) = bounded::<u64>(64)?;
    let (child_results, results) = bounded::<u64>(64)?;

    // The child's standard input is a socket.
    let (ours, theirs) = socket::pair()?;
    let mut child = Command::new(std::env::current_exe()?).arg("child").stdin(Stdio::from(theirs)).spawn()?;

    // The bytes say which descriptors are whose; those travel beside the bytes.
    let session = SendSession::begin();
    let orders: Orders = (child_work, child_results);
    let bytes = postcard::to_stdvec(&orders)?;
    drop(orders);
    let descriptors = session.finish();
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    socket::send(ours.as_fd(), &bytes, &borrowed, None)?;
    drop(descriptors);

    let feeder = std::thread::spawn(move || (0..1000).try_for_each(|n| work.send(n)));
    let squares = results.iter().collect::<Result<Vec<_>, _>>()?;
    let (count, sum) = (squares.len(), squares.iter().sum::<u64>());
    println!("the child squared {count} numbers, sum {sum}");
    feeder.join().expect("the feeder does not panic")?;
    child.wait()?;
    Ok(())
}

fn child() -> Result<(), Box<dyn Error>> {
    let (bytes, descriptors) = socket::recv(std::io::stdin().as_fd(), None)?.ok_or("the parent is gone")?;
    let session = ReceiveSession::begin(descriptors);
    let (work, results): Orders = postcard::from_bytes(&bytes)?;
    drop(session);
    for number in work {
        results.send(number?.pow(2))?;
    }
    Ok(())
}
