//! Explores every interleaving of the queue's protocols, with a crash before every step.
//!
//! Five models, each with small bounds and a sequentially consistent memory (weak memory is the business of the
//! loom models, on the real code):
//!
//! * `model/ring.rs`, `model/turn.rs`: the ring itself, single messages and batches, deaths and recovery;
//! * `model/parking.rs`: how sleepers are woken;
//! * `model/chunks.rs`: the chunks in which large messages lie, deaths and sweeps;
//! * `model/lease.rs`: the cells in which messages stay until they are acknowledged, deaths, sweeps, redelivery;
//! * `model/disconnect.rs`: how the end of the last sender or receiver is noticed.
//!
//! A model is worth something only if it notices mistakes. So each design rule is broken once, in a *control*,
//! and a test asserts that the explorer finds the harm at bounds at which the right design is sound.
//!
//! Numbers of states are asserted too: a change that makes a model explore less must not pass unseen.

#[path = "model/chunks.rs"]
mod chunks;
#[path = "model/disconnect.rs"]
mod disconnect;
#[path = "model/explore.rs"]
mod explore;
#[path = "model/lease.rs"]
mod lease;
#[path = "model/parking.rs"]
mod parking;
#[path = "model/ring.rs"]
mod ring;
#[path = "model/turn.rs"]
mod turn;

use chunks::Chunks;
use disconnect::Disconnect;
use explore::{Outcome, assert_breaks, assert_sound, assert_wedges, explore};
use lease::Lease;
use parking::Parking;
use ring::{Control, Ring};

/// Bounds of a ring: capacity, producers, messages of each, consumers, crashes, longest push, longest pop.
type Bounds = [u8; 7];

fn ring(bounds: Bounds) -> Ring {
    let [capacity, producers, messages, consumers, crashes, push_span, pop_span] = bounds;
    Ring {
        capacity,
        producers: producers.into(),
        messages,
        consumers: consumers.into(),
        crashes,
        push_span,
        pop_span,
        whole_batches: false,
        producers_free_tombs: true,
        late_oracle: true,
        control: None,
    }
}

/// A ring with fewer steps: only consumers free tombs, and the oracle answers together with the look.
fn plainer_ring(bounds: Bounds) -> Ring {
    Ring { producers_free_tombs: false, late_oracle: false, ..ring(bounds) }
}

/// The ring with one rule broken, at bounds at which the right ring is sound.
#[track_caller]
fn broken(control: Control, bounds: Bounds) -> Ring {
    let right = ring(bounds);
    let report = explore(&right);
    assert!(
        matches!(report.outcome, Outcome::Sound),
        "the right ring is not sound at {bounds:?}: {:?}",
        report.outcome
    );
    Ring { control: Some(control), ..right }
}

mod ring_is_sound {
    use super::*;

    #[test]
    fn with_batches_of_two_in_three_slots_and_two_crashes() {
        assert_sound(&ring([3, 2, 3, 2, 2, 2, 2]), 994_534);
    }

    #[test]
    fn with_batches_of_three_in_four_slots() {
        assert_sound(&ring([4, 2, 4, 2, 1, 3, 3]), 1_067_340);
    }

    #[test]
    fn with_batches_of_two_in_four_slots_and_two_crashes() {
        assert_sound(&ring([4, 2, 3, 2, 2, 2, 2]), 724_036);
    }

    #[test]
    fn with_batches_of_two_in_two_slots_and_two_crashes() {
        assert_sound(&ring([2, 2, 4, 2, 2, 2, 2]), 854_748);
    }

    #[test]
    fn with_a_capacity_below_the_longest_batch() {
        assert_sound(&ring([1, 2, 3, 2, 2, 2, 2]), 991_586);
    }

    #[test]
    fn with_batches_pushed_and_single_messages_popped() {
        assert_sound(&ring([2, 2, 3, 2, 2, 2, 1]), 1_035_432);
    }

    #[test]
    fn with_single_messages_pushed_and_batches_popped() {
        assert_sound(&ring([2, 2, 3, 2, 1, 1, 2]), 1_832_054);
    }

    #[test]
    fn with_single_messages_and_two_crashes() {
        assert_sound(&ring([2, 2, 3, 2, 2, 1, 1]), 1_659_221);
    }

    #[test]
    fn with_batches_that_are_pushed_whole_or_not_at_all() {
        let ring = Ring { whole_batches: true, ..ring([2, 2, 4, 2, 1, 2, 2]) };
        assert_sound(&ring, 297_713);
    }

    /// More messages or crashes than above. With `LARGE_MODELS` set, as `ci/nightly.sh` does; takes 1.5 GB of memory.
    #[test]
    fn with_larger_bounds() {
        if std::env::var_os("LARGE_MODELS").is_none() {
            return;
        }
        assert_sound(&ring([3, 2, 4, 2, 2, 2, 2]), 6_581_808);
        assert_sound(&ring([2, 2, 4, 2, 1, 2, 1]), 3_691_409);
        assert_sound(&ring([2, 2, 3, 2, 2, 1, 2]), 2_919_585);
        assert_sound(&ring([2, 2, 4, 2, 1, 1, 2]), 6_781_880);
    }

    mod with_fewer_steps {
        use super::*;

        #[test]
        fn with_batches_of_two_in_three_slots_and_two_crashes() {
            assert_sound(&plainer_ring([3, 2, 4, 2, 2, 2, 2]), 3_281_156);
        }

        #[test]
        fn with_batches_of_three_in_four_slots() {
            assert_sound(&plainer_ring([4, 2, 4, 2, 1, 3, 3]), 641_494);
        }

        #[test]
        fn with_batches_of_two_in_four_slots_and_two_crashes() {
            assert_sound(&plainer_ring([4, 2, 3, 2, 2, 2, 2]), 424_510);
        }

        #[test]
        fn with_a_capacity_below_the_longest_batch() {
            assert_sound(&plainer_ring([1, 2, 3, 2, 2, 2, 2]), 226_788);
        }

        #[test]
        fn with_batches_that_are_pushed_whole_or_not_at_all() {
            let ring = Ring { whole_batches: true, ..plainer_ring([2, 2, 4, 2, 1, 2, 2]) };
            assert_sound(&ring, 114_247);
        }
    }
}

mod ring_without {
    use super::*;

    #[test]
    fn recovery_wedges() {
        assert_wedges(&broken(Control::NoRecovery, [2, 2, 2, 2, 1, 1, 1]));
    }

    #[test]
    fn an_exact_oracle_robs_the_living() {
        let ring = broken(Control::Timeout, [2, 1, 2, 1, 0, 1, 1]);
        assert_breaks(&ring, "published over somebody else's slot");
    }

    #[test]
    fn a_skip_of_its_own_for_consumers_reorders() {
        let ring = broken(Control::ConsumerSkipsLikeProducer, [2, 1, 4, 2, 0, 1, 1]);
        assert_breaks(&ring, "twice or out of order");
    }

    #[test]
    fn care_for_free_slots_in_the_skip_of_producers_is_full_when_empty() {
        let ring = broken(Control::FreeCountsAsTaken, [2, 2, 2, 1, 0, 1, 1]);
        assert_breaks(&ring, "full, and yet nothing is queued");
    }

    #[test]
    fn care_for_free_slots_in_the_skip_of_producers_wedges() {
        let ring = broken(Control::FreeCountsAsTaken, [2, 2, 2, 1, 0, 1, 1]);
        assert_wedges(&Ring { producers_free_tombs: false, ..ring });
    }

    #[test]
    fn the_span_in_a_jump_over_laps_lands_inside_a_batch() {
        let ring = broken(Control::JumpIgnoresSpan, [2, 2, 4, 1, 0, 2, 2]);
        assert_breaks(&ring, "published over somebody else's");
        let ring = broken(Control::JumpIgnoresSpan, [2, 1, 4, 2, 0, 2, 2]);
        assert_breaks(&ring, "twice or out of order");
    }

    #[test]
    fn a_second_look_after_the_oracle_buries_what_was_published() {
        assert_wedges(&broken(Control::NoSecondLook, [2, 1, 3, 1, 1, 2, 1]));
        let ring = broken(Control::NoSecondLook, [2, 1, 4, 2, 1, 2, 2]);
        assert_breaks(&ring, "released over somebody else's");
    }

    #[test]
    fn recovery_of_the_interior_delivers_part_of_a_dead_batch() {
        let ring = broken(Control::TombHeaderOnly, [2, 2, 2, 1, 1, 2, 1]);
        assert_breaks(&ring, "whose batch is not published");
    }

    #[test]
    fn tombs_for_the_interior_delivers_part_of_a_dead_batch() {
        let ring = broken(Control::TombKeepsSpan, [2, 2, 2, 1, 1, 2, 1]);
        assert_breaks(&ring, "whose batch is not published");
    }

    #[test]
    fn release_of_the_interior_delivers_what_a_dead_consumer_had_claimed() {
        let ring = broken(Control::ReleaseHeaderOnly, [2, 1, 3, 2, 1, 2, 2]);
        assert_breaks(&ring, "twice or out of order");
    }

    /// Smaller bounds than these miss it: it takes a jump into the middle of a batch that is being published.
    #[test]
    fn backward_publication_lets_a_laggard_into_a_batch() {
        let ring = broken(Control::PublishForward, [4, 2, 7, 1, 0, 3, 3]);
        assert_breaks(&ring, "published over somebody else's");
    }

    #[test]
    fn backward_release_lets_a_laggard_into_a_batch() {
        let ring = broken(Control::FreeForward, [3, 1, 6, 2, 1, 3, 3]);
        assert_breaks(&ring, "twice or out of order");
    }

    #[test]
    fn the_header_published_last_wedges() {
        assert_wedges(&broken(Control::PublishHeaderFirst, [2, 1, 2, 1, 1, 2, 1]));
    }

    #[test]
    fn a_look_at_the_interior_claims_what_is_still_queued() {
        let ring = broken(Control::NoInteriorCheck, [2, 1, 4, 2, 0, 2, 1]);
        assert_breaks(&ring, "published over somebody else's");
    }

    #[test]
    fn producers_that_free_tombs_is_full_when_it_holds_nothing_else() {
        let ring = broken(Control::TombsCountAsFull, [2, 2, 2, 1, 1, 2, 1]);
        assert_breaks(&ring, "full, and yet nothing is queued");
    }
}

/// A slot that a consumer's batch covers looks queued. Whoever takes a message back has to do it elsewhere.
#[test]
fn taking_back_a_slot_collides_with_a_batch_claim() {
    let ring = broken(Control::Revoke { ticket: 1 }, [2, 1, 2, 1, 0, 1, 2]);
    assert_breaks(&ring, "taken back");
}

#[test]
fn taking_back_a_slot_is_harmless_without_batch_claims() {
    let control = Some(Control::Revoke { ticket: 1 });
    let ring = Ring { control, ..ring([2, 1, 3, 2, 0, 1, 1]) };
    assert_sound(&ring, 1_683);
}

mod parking_protocol {
    use super::*;

    fn parking(producers: usize, messages: u8, consumers: usize) -> Parking {
        Parking { producers, messages, consumers, control: None }
    }

    #[test]
    fn loses_no_wakeup() {
        assert_sound(&parking(2, 2, 3), 566_445);
        assert_sound(&parking(1, 2, 2), 1_720);
    }

    fn without(control: parking::Control) -> Parking {
        Parking { control: Some(control), ..parking(1, 2, 2) }
    }

    #[test]
    fn loses_one_if_the_woken_do_not_arm_again() {
        assert_wedges(&without(parking::Control::WokenDoesNotArm));
    }

    #[test]
    fn loses_one_if_takers_do_not_pass_it_on() {
        assert_wedges(&without(parking::Control::TakerDoesNotPassOn));
    }

    #[test]
    fn loses_one_if_sleepers_do_not_look_again() {
        assert_wedges(&without(parking::Control::SleeperDoesNotLookAgain));
    }
}

mod disconnect_scan {
    use super::*;

    #[test]
    fn never_calls_a_living_side_gone_and_always_finds_a_dead_one() {
        for (crashes, states) in [(0, 325), (1, 1_090), (2, 1_367)] {
            let uses_epoch = true;
            assert_sound(&Disconnect { crashes, uses_epoch }, states);
        }
    }

    #[test]
    fn calls_a_living_side_gone_without_the_epoch() {
        for crashes in 0..=2 {
            let uses_epoch = false;
            assert_breaks(&Disconnect { crashes, uses_epoch }, "a living side is called gone");
        }
    }
}

mod chunk_protocol {
    use super::*;
    use chunks::Control;

    /// Two producers with runs of these lengths, two messages each.
    fn chunks(count: usize, lengths: [u8; 2], crashes: u8) -> Chunks {
        Chunks { chunks: count, lengths, messages: 2, crashes, control: None }
    }

    #[test]
    fn loses_no_chunk_and_no_message() {
        assert_sound(&chunks(2, [2, 0], 2), 6_754);
        assert_sound(&Chunks { messages: 1, ..chunks(2, [1, 2], 1) }, 7_125);
        assert_sound(&Chunks { messages: 1, ..chunks(3, [2, 2], 2) }, 145_135);
        assert_sound(&chunks(2, [1, 2], 1), 124_090);
        assert_sound(&chunks(2, [1, 2], 2), 837_518);
        assert_sound(&chunks(3, [2, 2], 1), 450_787);
    }

    #[track_caller]
    fn broken(control: Control, right: Chunks) -> Chunks {
        assert!(matches!(explore(&right).outcome, Outcome::Sound));
        Chunks { control: Some(control), ..right }
    }

    #[test]
    fn loses_chunks_without_a_sweep() {
        assert_wedges(&broken(Control::NoSweep, chunks(2, [2, 0], 1)));
    }

    #[test]
    fn loses_chunks_without_a_collection() {
        assert_wedges(&broken(Control::NoCollect, chunks(2, [2, 0], 1)));
    }

    #[test]
    fn frees_living_messages_without_a_look_at_the_tag() {
        let model = broken(Control::NoTagCheck, chunks(2, [2, 0], 0));
        assert_breaks(&model, "a published message has lost its run");
    }

    #[test]
    fn frees_the_next_message_without_generations() {
        let model = broken(Control::NoGeneration, chunks(2, [2, 0], 0));
        assert_breaks(&model, "a published message has lost its run");
    }

    #[test]
    fn loses_tails_if_the_head_goes_first() {
        assert_wedges(&broken(Control::HeadFreedFirst, chunks(2, [2, 0], 1)));
    }

    #[test]
    fn frees_living_messages_if_the_sweep_takes_what_is_queued() {
        let model = broken(Control::SweepsQueued, chunks(2, [2, 0], 1));
        assert_breaks(&model, "a published message has lost its run");
    }

    #[test]
    fn frees_chunks_of_others_if_the_sweep_takes_any_tail() {
        let model = broken(Control::SweepsAnyTail, Chunks { messages: 1, ..chunks(2, [2, 1], 1) });
        assert_breaks(&model, "a published message has lost its run");
    }

    #[test]
    fn publishes_messages_without_a_run_if_the_slot_goes_first() {
        let model = broken(Control::PublishesFirst, chunks(2, [2, 0], 0));
        assert_breaks(&model, "a published message has lost its run");
    }

    #[test]
    fn frees_living_messages_if_the_tag_comes_after_the_word() {
        let model = broken(Control::TagsLast, chunks(2, [2, 0], 0));
        assert_breaks(&model, "a published message has lost its run");
    }

    #[test]
    fn frees_what_is_being_taken_if_the_slot_is_released_first() {
        let model = broken(Control::ReleasesFirst, chunks(2, [2, 0], 0));
        assert_breaks(&model, "a published message has lost its run");
    }
}

mod leases {
    use super::*;
    use lease::Control;

    /// Cells, messages of each producer, consumers, crashes, nacks, follow-ups.
    fn lease(cells: usize, messages: [u8; 2], numbers: [u8; 4]) -> Lease {
        let [consumers, crashes, nacks, follow_ups] = numbers;
        let observer = follow_ups > 0;
        Lease { cells, messages, consumers, crashes, nacks, follow_ups, observer, control: None }
    }

    /// The protocol with one rule broken, at bounds at which the right one is sound.
    #[track_caller]
    fn broken(control: Control, right: Lease) -> Lease {
        let report = explore(&right);
        assert!(matches!(report.outcome, Outcome::Sound), "not sound at {right:?}: {:?}", report.outcome);
        Lease { control: Some(control), ..right }
    }

    /// One cell, so that everything that is left in it is in the way.
    fn tight() -> Lease {
        lease(1, [1, 1], [2, 1, 1, 0])
    }

    /// Two cells, so that a message is overtaken.
    fn loose() -> Lease {
        lease(2, [1, 1], [2, 1, 1, 0])
    }

    /// Somebody asks whether all is done, while a consumer sends more.
    fn observed() -> Lease {
        lease(2, [1, 0], [2, 0, 0, 1])
    }

    #[test]
    fn are_sound_with_one_death_and_one_refusal() {
        assert_sound(&tight(), 45_725);
        assert_sound(&loose(), 398_213);
    }

    #[test]
    fn are_sound_with_two_deaths() {
        assert_sound(&lease(1, [2, 0], [2, 2, 1, 0]), 180_999);
        assert_sound(&lease(2, [2, 0], [2, 2, 1, 0]), 1_784_240);
        assert_sound(&lease(2, [1, 1], [2, 2, 0, 0]), 2_462_972);
    }

    #[test]
    fn are_sound_with_three_messages() {
        assert_sound(&lease(2, [2, 1], [2, 1, 0, 0]), 350_404);
    }

    #[test]
    fn say_that_all_is_done_only_when_it_is() {
        assert_sound(&observed(), 1_364);
        assert_sound(&lease(2, [1, 0], [2, 1, 0, 1]), 98_097);
        assert_breaks(&broken(Control::LooksOnce, observed()), "drained");
    }

    #[test]
    fn of_the_dead_are_swept() {
        assert_wedges(&broken(Control::NoSweep, tight()));
        assert_wedges(&broken(Control::SweepLoses, tight()));
    }

    #[test]
    fn are_collected_if_nobody_will_come_for_them() {
        assert_wedges(&broken(Control::NoCollect, tight()));
        assert_breaks(&broken(Control::NoTagCheck, loose()), "lost its cell");
        assert_breaks(&broken(Control::TagsLast, lease(2, [1, 1], [2, 1, 0, 0])), "lost its cell");
        assert_breaks(&broken(Control::NoGeneration, lease(1, [2, 0], [2, 1, 0, 0])), "lost its cell");
    }

    #[test]
    fn that_come_back_are_noticed() {
        assert_wedges(&broken(Control::SweepIsSilent, tight()));
        assert_wedges(&broken(Control::NoticeFirst, lease(1, [1, 0], [2, 0, 1, 0])));
        assert_wedges(&broken(Control::NoSecondLook, lease(1, [1, 0], [2, 0, 2, 0])));
        assert_wedges(&broken(Control::NoticeOnce, lease(2, [1, 1], [2, 0, 3, 0])));
    }

    #[test]
    fn are_linked_to_their_slots_in_the_right_order() {
        assert_breaks(&broken(Control::PublishesFirst, tight()), "lost its cell");
        assert_breaks(&broken(Control::ReleasesFirst, loose()), "lost its cell");
    }

    #[test]
    fn say_that_they_were_delivered_before() {
        assert_breaks(&broken(Control::CountsOnce, tight()), "does not say so");
    }
}
