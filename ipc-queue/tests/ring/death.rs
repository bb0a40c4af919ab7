//! What the dead leave, and how survivors repair it.

use super::{End, claim_of_pop, claim_of_push, memory, put, steps};
use ipc_queue::ring::{PushError, Step};

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
        End::new(&memory, victim).abandon_push(0, 3, Step::Claimed).unwrap();
        end.ring.recover_owner(victim);
    }
    for message in 5..8 {
        assert!(end.push(message).is_ok(), "no consumer has come by to free the tombs");
    }
    assert_eq!(end.push(8), Err(PushError::Full));
    assert_eq!(end.drain(), [5, 6, 7]);
}
