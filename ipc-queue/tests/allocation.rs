//! What the handles allocate. A test binary of its own: it counts every large allocation of the process.
#![cfg(not(loom))]
#![allow(unsafe_code, reason = "an allocator that counts")]

use ipc_queue::builder;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

struct Counting;

const LIMIT: usize = 1 << 19;
static LARGE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() >= LIMIT {
            LARGE.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn polling_an_empty_queue_of_large_messages_allocates_no_room() {
    let (tx, rx) = builder::<u8>().capacity(2).slot_bytes(LIMIT).build().expect("a queue");
    let before = LARGE.load(Ordering::Relaxed);
    for _ in 0..10 {
        assert!(rx.try_recv().expect_err("empty").is_empty());
        assert!(rx.try_recv_batch(64).expect("nothing").is_empty());
        let timeout = Duration::from_micros(10);
        assert!(rx.recv_timeout(timeout).expect_err("empty").is_timeout());
    }
    assert_eq!(LARGE.load(Ordering::Relaxed), before);
    tx.send(7).expect("sent");
    assert_eq!(rx.try_recv_batch(64).expect("received"), [7]);
    let after = LARGE.load(Ordering::Relaxed);
    assert_eq!(after - before, 1, "room for the message that is there");
}
