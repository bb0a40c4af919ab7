//! The ring through its public interface: one fact per test, then threads that race and "die".
#![cfg(not(loom))]

use ipc_queue::ring::{
    Claim, Cursor, Layout, LayoutError, MAX_CAPACITY, MAX_PAYLOAD, MAX_SPAN, Memory, PopError, PushError,
    Ring, Step,
};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
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
        End {
            ring: memory.ring(),
            me,
            pushed: Cursor::new(),
            popped: Cursor::new(),
        }
    }

    fn push(&self, message: u64) -> Result<u64, PushError> {
        self.ring
            .try_push(&self.pushed, self.me, |slot| put(slot, message))
    }

    fn push_batch(&self, first: u64, count: usize) -> Result<(u64, usize), PushError> {
        self.ring.try_push_batch(&self.pushed, self.me, count, |i, slot| {
            put(slot, first + i as u64)
        })
    }

    fn abandon_push(&self, first: u64, count: usize, step: Step) -> Result<(u64, usize), PushError> {
        self.ring.abandon_push(
            &self.pushed,
            self.me,
            count,
            |i, slot| put(slot, first + i as u64),
            step,
        )
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
        self.ring
            .abandon_pop(&self.popped, self.me, max, |_, slot| _ = get(slot), step)
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

// ---- layout

#[test]
fn a_layout_names_the_value_that_is_out_of_range() {
    assert_eq!(Layout::new(0, 8), Err(LayoutError::Capacity(0)));
    assert_eq!(
        Layout::new(MAX_CAPACITY + 1, 8),
        Err(LayoutError::Capacity(MAX_CAPACITY + 1))
    );
    assert_eq!(
        Layout::new(1, MAX_PAYLOAD + 1),
        Err(LayoutError::Payload(MAX_PAYLOAD + 1))
    );
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
    for len in [
        0, 1, 7, 8, 9, 24, 25, 63, 64, 65, 100, 240, 255, 256, 257, 1000, 1024, 5000,
    ] {
        let memory = Memory::new(Layout::new(3, len).unwrap());
        let ring = memory.ring();
        let (pushed, popped) = (Cursor::new(), Cursor::new());
        for round in 0..3u8 {
            for i in 0..3u8 {
                // SAFETY: a slot has `len` bytes.
                ring.try_push(&pushed, 1, |slot| unsafe {
                    slot.write_bytes(1 + i + 3 * round, len)
                })
                .unwrap();
            }
            for i in 0..3u8 {
                // SAFETY: a slot has `len` bytes, and all were written.
                let got = ring.try_pop(&popped, 1, |slot| unsafe {
                    std::slice::from_raw_parts(slot, len).to_vec()
                });
                assert_eq!(got, Ok(vec![1 + i + 3 * round; len]), "payload of {len} bytes");
            }
        }
    }
}

#[test]
fn payloads_are_aligned_to_their_size_up_to_a_cache_line() {
    for (len, align) in [(8, 8), (16, 8), (64, 64), (100, 64), (1024, 64)] {
        let memory = Memory::new(Layout::new(3, len).unwrap());
        let pushed = Cursor::new();
        for _ in 0..3 {
            let at = memory.ring().try_push(&pushed, 1, |slot| {
                assert_eq!(slot.addr() % align, 0, "payload of {len} bytes");
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
    assert_eq!(
        (one.pop(), two.pop(), two.pop(), one.pop()),
        (Ok(0), Ok(1), Ok(2), Ok(3))
    );
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
    quietly(&|| {
        _ = end
            .ring
            .try_push(&end.pushed, 1, |_| std::panic::resume_unwind(Box::new(())))
    });
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
    end.ring
        .try_pop(&end.popped, 1, |_| assert!(!end.ring.is_released(ticket)))
        .unwrap();
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

// ---- death

/// Every step at which a participant can die in a batch of `span`.
fn steps(span: usize) -> impl Iterator<Item = Step> {
    std::iter::once(Step::Claimed).chain((0..span).map(Step::Interior))
}

#[test]
fn a_dead_producers_batch_is_buried_whole() {
    for (span, step) in (1..=4).flat_map(|span| steps(span).map(move |step| (span, step))) {
        let memory = memory(6);
        let (victim, end) = (End::new(&memory, 1), End::new(&memory, 2));
        end.push(0).unwrap();
        victim.abandon_push(100, span, step).unwrap();
        end.push(1).unwrap();
        assert_eq!(end.pop(), Ok(0));
        assert_eq!(end.ring.recover(claim_of_pop(end.pop())), 0);
        assert_eq!(end.drain(), [1], "span {span}, died at {step:?}");
        // Whole again.
        assert_eq!(end.push_batch(10, 6).map(|(_, count)| count), Ok(6));
        assert_eq!(End::new(&memory, 3).drain(), [10, 11, 12, 13, 14, 15]);
    }
}

#[test]
fn a_dead_consumers_batch_is_lost_whole() {
    for (span, step) in (1..=4).flat_map(|span| steps(span).map(move |step| (span, step))) {
        let memory = memory(5);
        let (victim, end) = (End::new(&memory, 1), End::new(&memory, 2));
        end.push_batch(0, 5).unwrap();
        assert_eq!(victim.abandon_pop(span, step), Ok(span));
        // Others go on without any repair.
        assert_eq!(end.drain(), (span as u64..5).collect::<Vec<_>>());
        // Producers need its slots.
        let claim = claim_of_push(end.push(10));
        assert_eq!(end.ring.recover(claim), span, "died at {step:?}");
        assert_eq!(end.push_batch(10, 5).map(|(_, count)| count), Ok(5));
        assert_eq!(End::new(&memory, 3).drain(), [10, 11, 12, 13, 14]);
    }
}

#[test]
fn recovery_counts_a_lost_message_once() {
    let memory = memory(3);
    let (victim, end) = (End::new(&memory, 1), End::new(&memory, 2));
    end.push_batch(0, 3).unwrap();
    victim.abandon_pop(3, Step::Interior(1)).unwrap();
    let claim = claim_of_push(end.push(10));
    assert_eq!(end.ring.recover(claim), 3);
    assert_eq!(end.ring.recover(claim), 0);
    assert_eq!(end.ring.recover_owner(1), 0);
}

#[test]
fn a_sweep_repairs_everything_of_one_owner_and_nothing_else() {
    let memory = memory(8);
    let (victim, end) = (End::new(&memory, 1), End::new(&memory, 2));
    end.push_batch(0, 4).unwrap();
    victim.abandon_pop(2, Step::Claimed).unwrap();
    end.abandon_pop(1, Step::Claimed).unwrap();
    victim.abandon_push(100, 2, Step::Interior(1)).unwrap();
    end.abandon_push(200, 1, Step::Claimed).unwrap();
    assert_eq!(end.ring.recover_owner(1), 2);
    assert_eq!(end.ring.recover_owner(1), 0);
    let survivor = End::new(&memory, 3);
    assert_eq!(survivor.pop(), Ok(3));
    assert_eq!(claim_of_pop(survivor.pop()).owner(), 2);
    assert_eq!(survivor.push_batch(9, 9).map(|(_, count)| count), Ok(3));
    assert_eq!(claim_of_push(survivor.push(9)).owner(), 2);
}

#[test]
fn a_claim_that_was_finished_in_the_meantime_is_left_alone() {
    let memory = memory(2);
    let (victim, end) = (End::new(&memory, 1), End::new(&memory, 2));
    // The claim is read while the batch is written; the batch is published before its producer dies.
    let mut seen = None;
    victim
        .ring
        .try_push_batch(&victim.pushed, 1, 2, |i, slot| {
            put(slot, i as u64);
            seen = Some(claim_of_pop(end.pop()));
        })
        .unwrap();
    assert_eq!(end.ring.recover(seen.unwrap()), 0);
    assert_eq!(end.drain(), [0, 1]);
    // Laps later the same claim still matches nothing.
    end.push_batch(2, 2).unwrap();
    assert_eq!(end.ring.recover(seen.unwrap()), 0);
    assert_eq!(end.drain(), [2, 3]);
}

#[test]
fn a_batch_claimed_over_the_end_of_the_ring_is_repaired() {
    for step in steps(3) {
        let memory = memory(4);
        let (victim, end) = (End::new(&memory, 1), End::new(&memory, 2));
        end.push_batch(0, 3).unwrap();
        assert_eq!(end.drain(), [0, 1, 2]);
        assert_eq!(victim.abandon_push(100, 3, step), Ok((3, 3)));
        end.ring.recover_owner(1);
        assert_eq!(end.drain(), []);
        end.push_batch(3, 4).unwrap();
        assert_eq!(victim.abandon_pop(3, step), Ok(3));
        assert_eq!(end.ring.recover_owner(1), 3);
        assert_eq!(End::new(&memory, 3).drain(), [6]);
    }
}

#[test]
fn a_ring_of_tombs_is_not_full() {
    let memory = memory(3);
    let end = End::new(&memory, 2);
    for victim in 10..30 {
        End::new(&memory, victim)
            .abandon_push(0, 3, Step::Claimed)
            .unwrap();
        end.ring.recover_owner(victim);
    }
    for message in 5..8 {
        assert!(end.push(message).is_ok(), "no consumer has come by to free the tombs");
    }
    assert_eq!(end.push(8), Err(PushError::Full));
    assert_eq!(end.drain(), [5, 6, 7]);
}

// ---- bounds

#[test]
fn the_last_lap_ends_with_exhausted_and_loses_nothing() {
    let memory = Memory::at_lap(Layout::new(3, 8).unwrap(), (1 << 45) - 3);
    let end = End::new(&memory, 1);
    let mut got = Vec::new();
    for message in 0..6 {
        assert!(
            end.push(message).is_ok(),
            "message {message} of the last two laps"
        );
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
                _ => random.next() % 4 << 19 | random.next() % (1 << 19),
            };
        }
        let skip = bytes.as_ptr().align_offset(64);
        let base = NonNull::from(&mut bytes[skip]).cast();
        // SAFETY: aligned, and the vector is 64 bytes longer than the ring.
        let ring = unsafe { Ring::attach(base, layout) };
        let end = End {
            ring,
            me: 1,
            pushed: Cursor::new(),
            popped: Cursor::new(),
        };
        for _ in 0..4 {
            let _ = end.push(1);
            let _ = end.push_batch(1, 3);
            let _ = (
                end.pop(),
                end.pop_batch(3),
                end.ring.len(&end.pushed, &end.popped),
            );
            if let Err(PopError::Claimed(claim)) = end.pop() {
                end.ring.recover(claim);
            }
            if let Err(PushError::Claimed(claim)) = end.push(1) {
                end.ring.recover(claim);
            }
            end.ring.recover_owner((random.next() % 1024) as u16);
            let _ = (
                end.ring.is_ready(&end.popped),
                end.ring.is_released(random.next()),
            );
        }
    }
}

// ---- threads

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

/// Messages say who sent them and as which: `producer << 32 | number`.
fn message(producer: usize, number: u64) -> u64 {
    (producer as u64) << 32 | number
}

/// Checks what one consumer sees: the numbers of each producer only grow.
struct Witness {
    last: Vec<Option<u64>>,
    count: u64,
    sum: u64,
}

impl Witness {
    fn new(producers: usize) -> Self {
        Witness {
            last: vec![None; producers],
            count: 0,
            sum: 0,
        }
    }

    fn see(&mut self, message: u64) {
        let (producer, number) = ((message >> 32) as usize, message & 0xffff_ffff);
        assert!(
            self.last[producer] < Some(number),
            "order of producer {producer} broken"
        );
        self.last[producer] = Some(number);
        self.count += 1;
        self.sum += number;
    }
}

/// `producers` and `consumers` race over a ring; with `span` above 1 in batches of random length, and with `lag`
/// everybody forgets its place now and then.
fn race(capacity: usize, producers: usize, consumers: usize, each: u64, span: usize, lag: bool) {
    let _watchdog = watchdog();
    let memory = memory(capacity);
    let total = each * producers as u64;
    let (count, sum) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for producer in 0..producers {
            let memory = &memory;
            scope.spawn(move || {
                let mut end = End::new(memory, 1 + producer as u16);
                let mut random = Random(7 + producer as u64);
                let mut number = 0;
                while number < each {
                    if lag && random.below(1000) == 0 {
                        end.pushed = Cursor::new();
                    }
                    let want = (1 + random.below(span)).min((each - number) as usize);
                    let pushed = match want {
                        1 => end.push(message(producer, number)).map(|_| 1),
                        _ => end
                            .push_batch(message(producer, number), want)
                            .map(|(_, count)| count as u64),
                    };
                    match pushed {
                        Ok(count) => number += count,
                        Err(_) => std::thread::yield_now(),
                    }
                }
            });
        }
        for consumer in 0..consumers {
            let (memory, count, sum) = (&memory, &count, &sum);
            scope.spawn(move || {
                let mut end = End::new(memory, 500 + consumer as u16);
                let mut random = Random(99 + consumer as u64);
                let mut witness = Witness::new(producers);
                while count.load(SeqCst) < total {
                    if lag && random.below(1000) == 0 {
                        end.popped = Cursor::new();
                    }
                    let before = witness.count;
                    match 1 + random.below(span) {
                        1 => end.pop().into_iter().for_each(|m| witness.see(m)),
                        max => end
                            .pop_batch(max)
                            .into_iter()
                            .flatten()
                            .for_each(|m| witness.see(m)),
                    }
                    match witness.count - before {
                        0 => std::thread::yield_now(),
                        new => _ = count.fetch_add(new, SeqCst),
                    }
                }
                sum.fetch_add(witness.sum, SeqCst);
            });
        }
    });
    assert_eq!(count.into_inner(), total);
    assert_eq!(sum.into_inner(), producers as u64 * (each * (each - 1) / 2));
    assert_eq!(End::new(&memory, 1).pop(), Err(PopError::Empty));
}

#[test]
fn one_producer_and_one_consumer_race() {
    race(64, 1, 1, 300_000, 1, false);
}

#[test]
fn two_producers_and_two_consumers_race() {
    race(8, 2, 2, 200_000, 1, false);
}

#[test]
fn a_ring_of_one_slot_survives_a_race() {
    race(1, 2, 2, 50_000, 2, true);
}

#[test]
fn a_ring_of_three_slots_survives_a_race() {
    race(3, 2, 2, 100_000, 4, true);
}

#[test]
fn batches_and_single_messages_race() {
    race(16, 2, 2, 200_000, 16, false);
}

#[test]
fn laggards_race_over_batches() {
    race(13, 3, 3, 100_000, 8, true);
}

#[test]
fn threads_that_share_a_cursor_race() {
    let _watchdog = watchdog();
    let memory = memory(8);
    let end = End::new(&memory, 1);
    let each = 100_000;
    let (count, sum) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for number in 0..each {
                    while end.push(number).is_err() {
                        std::thread::yield_now();
                    }
                }
            });
            scope.spawn(|| {
                while count.load(SeqCst) < 2 * each {
                    match end.pop_batch(3) {
                        Ok(got) => {
                            sum.fetch_add(got.iter().sum(), SeqCst);
                            count.fetch_add(got.len() as u64, SeqCst);
                        }
                        Err(_) => std::thread::yield_now(),
                    }
                }
            });
        }
    });
    assert_eq!(count.into_inner(), 2 * each);
    assert_eq!(sum.into_inner(), each * (each - 1));
}

/// Producers and consumers that abandon an operation now and then and go on as somebody else: whoever meets what
/// they left repairs it. Nothing is lost but what dead consumers had claimed, nothing arrives twice or out of order.
#[test]
fn survivors_of_random_deaths_finish() {
    let _watchdog = watchdog();
    const EACH: u64 = 100_000;
    let memory = memory(7);
    let dead: Vec<AtomicBool> = (0..1024).map(|_| AtomicBool::new(false)).collect();
    let next_owner = AtomicUsize::new(1);
    let (received, lost, finished) = (AtomicU64::new(0), AtomicU64::new(0), AtomicUsize::new(0));

    let repair = |ring: &Ring<'_>, claim: Claim| {
        if dead[usize::from(claim.owner())].load(SeqCst) {
            lost.fetch_add(ring.recover(claim) as u64, SeqCst);
        } else {
            std::thread::yield_now();
        }
    };
    let reborn = || End::new(&memory, next_owner.fetch_add(1, SeqCst) as u16);
    let may_die = || next_owner.load(SeqCst) < 1000;

    std::thread::scope(|scope| {
        for producer in 0..2usize {
            let (repair, reborn, may_die, dead, finished) = (&repair, &reborn, &may_die, &dead, &finished);
            scope.spawn(move || {
                let mut end = reborn();
                let mut random = Random(3 + producer as u64);
                let mut number = 0;
                while number < EACH {
                    let want = (1 + random.below(4)).min((EACH - number) as usize);
                    if random.below(200) == 0 && may_die() {
                        // What it had not published it sends again under its new name.
                        let step = steps(want).nth(random.below(want + 1)).unwrap();
                        if end.abandon_push(message(producer, number), want, step).is_ok() {
                            dead[usize::from(end.me)].store(true, SeqCst);
                            end = reborn();
                        }
                        continue;
                    }
                    match end.push_batch(message(producer, number), want) {
                        Ok((_, count)) => number += count as u64,
                        Err(PushError::Claimed(claim)) => repair(&end.ring, claim),
                        Err(_) => std::thread::yield_now(),
                    }
                }
                finished.fetch_add(1, SeqCst);
            });
        }
        for consumer in 0..2usize {
            let (repair, reborn, may_die, dead) = (&repair, &reborn, &may_die, &dead);
            let (received, finished) = (&received, &finished);
            scope.spawn(move || {
                let mut end = reborn();
                let mut random = Random(11 + consumer as u64);
                let mut witness = Witness::new(2);
                loop {
                    let all_sent = finished.load(SeqCst) == 2;
                    let max = 1 + random.below(4);
                    if random.below(200) == 0 && may_die() {
                        let step = steps(max).nth(random.below(max + 1)).unwrap();
                        if end.abandon_pop(max, step).is_ok() {
                            dead[usize::from(end.me)].store(true, SeqCst);
                            end = reborn();
                        }
                        continue;
                    }
                    match end.pop_batch(max) {
                        Ok(got) => got.into_iter().for_each(|m| witness.see(m)),
                        Err(PopError::Claimed(claim)) => repair(&end.ring, claim),
                        Err(PopError::Empty) if all_sent => break,
                        Err(_) => std::thread::yield_now(),
                    }
                }
                received.fetch_add(witness.count, SeqCst);
            });
        }
    });
    let swept: usize = (1..1024)
        .map(|owner| memory.ring().recover_owner(owner as u16))
        .sum();
    let lost = lost.into_inner() + swept as u64;
    assert!(lost > 0, "consumers died");
    assert_eq!(received.into_inner() + lost, 2 * EACH);
    assert_eq!(
        End::new(&memory, 1).push_batch(0, 7).map(|(_, count)| count),
        Ok(7)
    );
}
