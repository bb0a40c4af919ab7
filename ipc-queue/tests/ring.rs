//! The ring through its public interface: one fact per test, then threads that race and "die".
#![cfg(not(loom))]
#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

#[path = "ring/death.rs"]
mod death;
#[path = "ring/race.rs"]
mod race;

use ipc_queue::ring::{
    Claim, Cursor, Layout, LayoutError, MAX_CAPACITY, MAX_PAYLOAD, MAX_SPAN, Memory, PopError, PushError,
    Ring, Step,
};
use std::ptr::NonNull;
use std::time::Duration;

fn memory(capacity: usize) -> Memory {
    Memory::new(Layout::new(capacity, 8).unwrap())
}

fn put(slot: *mut u8, message: u64) {
    // SAFETY: a slot of these rings has 8 bytes, aligned.
    unsafe { slot.cast::<u64>().write(message) }
}

fn get(slot: *const u8) -> u64 {
    // SAFETY: as in `put`.
    unsafe { slot.cast::<u64>().read() }
}

/// One participant's two ends of a ring.
struct End<'m> {
    ring: Ring<'m>,
    me: u16,
    pushed: Cursor,
    popped: Cursor,
}

impl<'m> End<'m> {
    fn new(memory: &'m Memory, me: u16) -> Self {
        End { ring: memory.ring(), me, pushed: Cursor::new(), popped: Cursor::new() }
    }

    fn push(&self, message: u64) -> Result<u64, PushError> {
        self.ring.try_push(&self.pushed, self.me, |slot| put(slot, message))
    }

    fn push_batch(&self, first: u64, count: usize) -> Result<(u64, usize), PushError> {
        self.ring.try_push_batch(&self.pushed, self.me, count, |i, slot| put(slot, first + i as u64))
    }

    fn abandon_push(&self, first: u64, count: usize, step: Step) -> Result<(u64, usize), PushError> {
        self.ring.abandon_push(&self.pushed, self.me, count, |i, slot| put(slot, first + i as u64), step)
    }

    fn pop(&self) -> Result<u64, PopError> {
        self.ring.try_pop(&self.popped, self.me, get)
    }

    fn pop_batch(&self, max: usize) -> Result<Vec<u64>, PopError> {
        let mut got = Vec::new();
        self.ring
            .try_pop_batch(&self.popped, self.me, max, |_, slot| got.push(get(slot)))
            .map(|count| assert_eq!(count, got.len()))
            .map(|()| got)
    }

    fn abandon_pop(&self, max: usize, step: Step) -> Result<usize, PopError> {
        self.ring.abandon_pop(&self.popped, self.me, max, |_, slot| _ = get(slot), step)
    }

    /// Everything that can be popped now.
    fn drain(&self) -> Vec<u64> {
        std::iter::from_fn(|| self.pop().ok()).collect()
    }
}

fn claim_of_push(result: Result<u64, PushError>) -> Claim {
    match result {
        Err(PushError::Claimed(claim)) => claim,
        other => panic!("a claim expected, not {other:?}"),
    }
}

fn claim_of_pop(result: Result<u64, PopError>) -> Claim {
    match result {
        Err(PopError::Claimed(claim)) => claim,
        other => panic!("a claim expected, not {other:?}"),
    }
}

/// Every step at which a participant can die in a batch of `span`.
fn steps(span: usize) -> impl Iterator<Item = Step> {
    std::iter::once(Step::Claimed).chain((0..span).map(Step::Interior))
}

/// A generator good enough for tests (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// Ends the test process if the test takes minutes: it hangs.
fn watchdog() -> impl Drop {
    struct Watchdog(std::sync::mpsc::Sender<()>);
    impl Drop for Watchdog {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }
    let (alive, done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        if done.recv_timeout(Duration::from_secs(180)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            eprintln!("the watchdog barks");
            std::process::exit(86);
        }
    });
    Watchdog(alive)
}

// ---- layout

#[test]
fn a_layout_names_the_value_that_is_out_of_range() {
    assert_eq!(Layout::new(0, 8), Err(LayoutError::Capacity(0)));
    assert_eq!(Layout::new(MAX_CAPACITY + 1, 8), Err(LayoutError::Capacity(MAX_CAPACITY + 1)));
    assert_eq!(Layout::new(1, MAX_PAYLOAD + 1), Err(LayoutError::Payload(MAX_PAYLOAD + 1)));
    let text = Layout::new(0, 8).unwrap_err().to_string();
    assert!(text.contains('0') && text.contains("1048576"), "{text}");
}

#[test]
fn the_largest_layout_is_accepted() {
    let layout = Layout::new(MAX_CAPACITY, MAX_PAYLOAD).unwrap();
    assert!(layout.len_bytes() > MAX_CAPACITY * MAX_PAYLOAD);
}

#[test]
fn a_payload_of_any_size_keeps_its_bytes() {
    for len in [0, 1, 7, 8, 9, 24, 25, 63, 64, 65, 100, 240, 255, 256, 257, 1000, 1024, 5000] {
        let memory = Memory::new(Layout::new(3, len).unwrap());
        let ring = memory.ring();
        let (pushed, popped) = (Cursor::new(), Cursor::new());
        for round in 0..3u8 {
            for i in 0..3u8 {
                // SAFETY: a slot has `len` bytes.
                ring.try_push(&pushed, 1, |slot| unsafe { slot.write_bytes(1 + i + 3 * round, len) })
                    .unwrap();
            }
            for i in 0..3u8 {
                // SAFETY: a slot has `len` bytes, and all were written.
                let got = ring
                    .try_pop(&popped, 1, |slot| unsafe { std::slice::from_raw_parts(slot, len).to_vec() });
                assert_eq!(got, Ok(vec![1 + i + 3 * round; len]), "payload of {len} bytes");
            }
        }
    }
}

#[test]
fn payloads_are_aligned_to_eight_bytes() {
    for len in [1, 8, 13, 64, 100, 1024] {
        let memory = Memory::new(Layout::new(3, len).unwrap());
        let pushed = Cursor::new();
        for _ in 0..3 {
            let at = memory.ring().try_push(&pushed, 1, |slot| {
                assert_eq!(slot.addr() % 8, 0, "payload of {len} bytes");
            });
            assert!(at.is_ok());
        }
    }
}

// ---- normal life

#[test]
fn a_new_ring_is_empty() {
    assert_eq!(End::new(&memory(3), 1).pop(), Err(PopError::Empty));
}

#[test]
fn full_is_exact() {
    for capacity in [1, 2, 3, 5, 64, 100] {
        let memory = memory(capacity);
        let end = End::new(&memory, 1);
        for lap in 0..3 {
            for i in 0..capacity {
                assert!(end.push(i as u64).is_ok(), "{i} of {capacity} in lap {lap}");
            }
            assert_eq!(end.push(0), Err(PushError::Full));
            assert_eq!(end.pop(), Ok(0));
            assert!(end.push(0).is_ok(), "one was taken");
            assert_eq!(end.push(0), Err(PushError::Full));
            assert_eq!(end.drain().len(), capacity);
        }
    }
}

#[test]
fn empty_is_exact() {
    let memory = memory(3);
    let end = End::new(&memory, 1);
    for message in 0..10 {
        assert_eq!(end.pop(), Err(PopError::Empty));
        end.push(message).unwrap();
        assert_eq!(end.pop(), Ok(message));
    }
}

#[test]
fn messages_come_out_in_the_order_of_their_tickets() {
    for capacity in [1, 2, 3, 7, 8] {
        let memory = memory(capacity);
        let end = End::new(&memory, 1);
        let mut next = 0;
        for ticket in 0..100 {
            assert_eq!(end.push(ticket), Ok(ticket));
            if ticket % 3 == 0 || end.ring.len(&end.pushed, &end.popped) == capacity {
                for message in end.drain() {
                    assert_eq!(message, next);
                    next += 1;
                }
            }
        }
    }
}

#[test]
fn a_batch_takes_the_room_there_is() {
    let memory = memory(5);
    let end = End::new(&memory, 1);
    end.push(0).unwrap();
    assert_eq!(end.push_batch(1, 10), Ok((1, 4)));
    assert_eq!(end.push_batch(5, 10), Err(PushError::Full));
    assert_eq!(end.pop_batch(3), Ok(vec![0, 1, 2]));
    assert_eq!(end.push_batch(5, 2), Ok((5, 2)));
    assert_eq!(end.pop_batch(10), Ok(vec![3, 4, 5, 6]));
    assert_eq!(end.pop_batch(10), Err(PopError::Empty));
}

#[test]
fn a_batch_has_at_most_64_messages() {
    let memory = memory(100);
    let end = End::new(&memory, 1);
    assert_eq!(end.push_batch(0, 100), Ok((0, MAX_SPAN)));
    assert_eq!(end.push_batch(64, usize::MAX), Ok((64, 36)));
    assert_eq!(end.pop_batch(usize::MAX).map(|got| got.len()), Ok(MAX_SPAN));
    assert_eq!(end.pop_batch(MAX_SPAN), Ok((64..100).collect()));
}

#[test]
fn a_batch_of_nothing_does_nothing() {
    let memory = memory(1);
    let end = End::new(&memory, 1);
    assert_eq!(end.push_batch(0, 0), Ok((0, 0)));
    assert_eq!(end.pop_batch(0), Ok(vec![]));
    assert_eq!(end.pop(), Err(PopError::Empty));
}

#[test]
fn a_published_batch_is_single_messages_to_its_consumers() {
    let memory = memory(4);
    let (one, two) = (End::new(&memory, 1), End::new(&memory, 2));
    one.push_batch(0, 4).unwrap();
    assert_eq!((one.pop(), two.pop(), two.pop(), one.pop()), (Ok(0), Ok(1), Ok(2), Ok(3)));
}

#[test]
fn lagging_ends_find_the_true_place() {
    for capacity in [1, 2, 3, 8] {
        let memory = memory(capacity);
        let end = End::new(&memory, 1);
        for message in 0..50 {
            // A newcomer starts at ticket 0 and must neither take what is taken nor skip what is not.
            let newcomer = End::new(&memory, 2);
            assert_eq!(newcomer.push(message), Ok(message));
            assert_eq!(End::new(&memory, 3).pop(), Ok(message));
            assert_eq!(End::new(&memory, 3).pop(), Err(PopError::Empty));
            assert_eq!(end.ring.len(&end.pushed, &end.popped), 0);
        }
    }
}

#[test]
fn a_lagging_consumer_keeps_what_is_still_there() {
    let memory = memory(2);
    let (end, laggard) = (End::new(&memory, 1), End::new(&memory, 2));
    for message in 0..4 {
        end.push(message).unwrap();
        if message < 2 {
            end.pop().unwrap();
        }
    }
    // Both slots are FULL in lap 1: lap 0 was consumed, lap 1 was not.
    assert_eq!(laggard.drain(), [2, 3]);
}

#[test]
fn a_lagging_producer_that_meets_a_batch_in_flight_passes_all_of_it() {
    let memory = memory(2);
    let (end, laggard) = (End::new(&memory, 1), End::new(&memory, 2));
    end.push_batch(0, 2).unwrap();
    end.pop_batch(2).unwrap();
    assert_eq!(end.abandon_push(2, 2, Step::Claimed), Ok((2, 2)));
    // Its second slot looks free.
    assert_eq!(claim_of_push(laggard.push(9)).owner(), 1);
}

#[test]
fn a_lagging_consumer_that_meets_a_batch_in_flight_passes_all_of_it() {
    let memory = memory(3);
    let (end, laggard) = (End::new(&memory, 1), End::new(&memory, 2));
    end.push_batch(0, 3).unwrap();
    end.pop_batch(3).unwrap();
    end.push_batch(3, 3).unwrap();
    assert_eq!(end.abandon_pop(2, Step::Claimed), Ok(2));
    // Its second slot looks full.
    assert_eq!(laggard.pop(), Ok(5));
}

#[test]
fn a_claim_in_flight_is_reported_with_its_owner() {
    let memory = memory(1);
    let (victim, end) = (End::new(&memory, 1023), End::new(&memory, 2));
    victim.abandon_push(0, 1, Step::Claimed).unwrap();
    assert_eq!(claim_of_pop(end.pop()).owner(), 1023);
    assert_eq!(claim_of_push(end.push(1)).owner(), 1023);
}

#[test]
fn the_closures_run_while_the_slot_is_claimed() {
    let memory = memory(2);
    let (one, other) = (End::new(&memory, 1), End::new(&memory, 2));
    one.ring
        .try_push(&one.pushed, 1, |slot| {
            put(slot, 7);
            assert_eq!(claim_of_pop(other.pop()).owner(), 1);
        })
        .unwrap();
    one.ring
        .try_pop(&one.popped, 1, |_| {
            assert_eq!(other.pop(), Err(PopError::Empty));
            other.push(8).unwrap();
            assert_eq!(claim_of_push(other.push(9)).owner(), 1);
        })
        .unwrap();
    assert_eq!(other.pop(), Ok(8));
}

#[test]
fn a_closure_that_panics_gives_its_claim_back() {
    let memory = memory(2);
    let end = End::new(&memory, 1);
    let quietly = |f: &dyn Fn()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).unwrap_err();
    quietly(&|| _ = end.ring.try_push(&end.pushed, 1, |_| std::panic::resume_unwind(Box::new(()))));
    assert_eq!(end.pop(), Err(PopError::Empty));
    end.push_batch(5, 2).unwrap();
    quietly(&|| {
        _ = end.ring.try_pop_batch(&end.popped, 1, 2, |i, _| {
            if i == 1 {
                std::panic::resume_unwind(Box::new(()));
            }
        });
    });
    assert_eq!(end.pop(), Err(PopError::Empty));
    assert_eq!(end.push_batch(7, 2).map(|(_, count)| count), Ok(2));
    assert_eq!(end.drain(), [7, 8]);
}

// ---- looks that take nothing

#[test]
fn a_ticket_is_released_once_its_slot_is_free_again() {
    let memory = memory(2);
    let end = End::new(&memory, 1);
    assert!(!end.ring.is_released(0));
    let ticket = end.push(5).unwrap();
    assert!(!end.ring.is_released(ticket));
    end.ring.try_pop(&end.popped, 1, |_| assert!(!end.ring.is_released(ticket))).unwrap();
    assert!(end.ring.is_released(ticket));
    for message in 0..10 {
        end.push(message).unwrap();
        end.pop().unwrap();
        assert!(end.ring.is_released(ticket), "for ever");
    }
}

#[test]
fn a_buried_ticket_is_released() {
    let memory = memory(2);
    let end = End::new(&memory, 1);
    let (ticket, _) = end.abandon_push(0, 2, Step::Claimed).unwrap();
    end.ring.recover_owner(1);
    assert!(end.ring.is_released(ticket) && end.ring.is_released(ticket + 1));
}

#[test]
fn len_counts_what_is_pushed_and_not_popped() {
    let memory = memory(3);
    let (end, stranger) = (End::new(&memory, 1), End::new(&memory, 2));
    let len = |end: &End<'_>| end.ring.len(&end.pushed, &end.popped);
    for message in 0..20 {
        assert!(end.ring.is_empty(&end.pushed, &end.popped));
        end.push(message).unwrap();
        end.push(message).unwrap();
        assert_eq!((len(&end), len(&stranger)), (2, 2));
        end.pop().unwrap();
        assert_eq!((len(&end), len(&stranger)), (1, 1));
        end.pop().unwrap();
    }
}

#[test]
fn a_consumer_that_died_does_not_count_as_messages() {
    let memory = memory(4);
    let (victim, end) = (End::new(&memory, 1), End::new(&memory, 2));
    end.push_batch(0, 3).unwrap();
    victim.abandon_pop(3, Step::Claimed).unwrap();
    assert_eq!(end.ring.len(&end.pushed, &end.popped), 0);
    assert!(!end.ring.is_ready(&end.popped));
}

#[test]
fn ready_means_that_a_pop_would_find_a_message() {
    let memory = memory(3);
    let (victim, end) = (End::new(&memory, 1), End::new(&memory, 2));
    assert!(!end.ring.is_ready(&end.popped));
    victim.abandon_push(0, 1, Step::Claimed).unwrap();
    assert!(!end.ring.is_ready(&end.popped));
    end.push(5).unwrap();
    assert!(!end.ring.is_ready(&end.popped), "the first is pending");
    end.ring.recover_owner(1);
    assert!(end.ring.is_ready(&end.popped), "behind a tomb");
    assert_eq!(end.pop(), Ok(5));
    assert!(!end.ring.is_ready(&end.popped));
}

// ---- bounds

#[test]
fn the_last_lap_ends_with_exhausted_and_loses_nothing() {
    let memory = Memory::at_lap(Layout::new(3, 8).unwrap(), (1 << 45) - 3);
    let end = End::new(&memory, 1);
    let mut got = Vec::new();
    for message in 0..6 {
        assert!(end.push(message).is_ok(), "message {message} of the last two laps");
        got.extend(if message == 5 { vec![] } else { end.drain() });
    }
    assert_eq!(end.push(6), Err(PushError::Exhausted));
    assert_eq!(end.push_batch(6, 2), Err(PushError::Exhausted));
    got.extend(end.drain());
    assert_eq!(got, [0, 1, 2, 3, 4, 5]);
    assert_eq!(end.pop(), Err(PopError::Exhausted));
    assert!(!end.ring.is_ready(&end.popped));
}

#[test]
fn a_batch_at_the_end_of_the_last_lap_is_cut() {
    let memory = Memory::at_lap(Layout::new(4, 8).unwrap(), (1 << 45) - 2);
    let end = End::new(&memory, 1);
    end.push(0).unwrap();
    assert_eq!(end.pop(), Ok(0));
    assert_eq!(end.push_batch(1, 4).map(|(_, count)| count), Ok(3));
    assert_eq!(end.pop_batch(4), Ok(vec![1, 2, 3]));
    assert_eq!(end.push_batch(1, 4), Err(PushError::Exhausted));
}

#[test]
fn scribbled_words_cause_no_panic_and_no_endless_loop() {
    let _watchdog = watchdog();
    let mut random = Random(42);
    for round in 0..20_000 {
        let layout = Layout::new(1 + random.below(5), 8).unwrap();
        let mut bytes = vec![0u64; layout.len_bytes() / 8 + 8];
        for word in &mut bytes {
            // Whole garbage, or plausible words of the first laps.
            *word = match round % 2 {
                0 => random.next(),
                _ => ((random.next() % 4) << 19) | (random.next() % (1 << 19)),
            };
        }
        let skip = bytes.as_ptr().align_offset(64);
        let base = NonNull::from(&mut bytes[skip]).cast();
        // SAFETY: aligned, and the vector is 64 bytes longer than the ring.
        let ring = unsafe { Ring::attach(base, layout) };
        let end = End { ring, me: 1, pushed: Cursor::new(), popped: Cursor::new() };
        for _ in 0..4 {
            let _ = end.push(1);
            let _ = end.push_batch(1, 3);
            let _ = (end.pop(), end.pop_batch(3), end.ring.len(&end.pushed, &end.popped));
            if let Err(PopError::Claimed(claim)) = end.pop() {
                end.ring.recover(claim);
            }
            if let Err(PushError::Claimed(claim)) = end.push(1) {
                end.ring.recover(claim);
            }
            end.ring.recover_owner((random.next() % 1024) as u16);
            let _ = (end.ring.is_ready(&end.popped), end.ring.is_released(random.next()));
        }
    }
}
