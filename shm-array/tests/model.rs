//! Explores every interleaving of the locks' protocols, with a crash before every step.
//!
//! The memory is sequentially consistent here (weak memory is the business of the loom models, on the real code), the
//! bounds are small:
//!
//! * `model/mutex.rs`: the lock in one word, and who takes it over;
//! * `model/read_counts.rs`, `model/rwlock.rs`: the idea of the reader-writer lock, and the lock as it is;
//! * `model/semaphore.rs`, `model/barrier.rs`, `model/once.rs`: permits, parties, and what is done once;
//! * `model/condvar.rs`: notifications, and who they are for;
//! * `model/line.rs`, `model/seats.rs`: what they share, sleeping and dying.
//!
//! A model is worth something only if it notices mistakes. So each design rule is broken once, in a *control*, and a
//! test asserts that the explorer finds the harm at bounds at which the right design is sound. Numbers of states are
//! asserted too: a change that makes a model explore less must not pass unseen.
#![cfg(not(loom))]

#[path = "model/barrier.rs"]
mod barrier;
#[path = "model/condvar.rs"]
mod condvar;
#[path = "../../ipc-queue/tests/model/explore.rs"]
mod explore;
#[path = "model/line.rs"]
mod line;
#[path = "model/mutex.rs"]
mod mutex;
#[path = "model/once.rs"]
mod once;
#[path = "model/read_counts.rs"]
mod read_counts;
#[path = "model/rwlock.rs"]
mod rwlock;
#[path = "model/seats.rs"]
mod seats;
#[path = "model/semaphore.rs"]
mod semaphore;

use barrier::Barrier;
use condvar::Condvar;
use explore::{Outcome, assert_breaks, assert_sound, assert_wedges, explore};
use mutex::Mutex;
use once::Once;
use read_counts::ReadCounts;
use rwlock::RwLock;
use semaphore::Semaphore;

mod read_counts_are {
    use super::*;
    use read_counts::Control;

    fn counts(control: Option<Control>) -> ReadCounts {
        ReadCounts { readers: 2, writers: 2, rounds: 2, crashes: 2, control }
    }

    #[test]
    fn sound_for_two_readers_and_two_writers() {
        assert_sound(&counts(None), 47_565);
    }

    #[test]
    fn stuck_without_a_take_over() {
        assert_wedges(&counts(Some(Control::NoTakeOver)));
    }

    #[test]
    fn stuck_without_zeroing() {
        assert_wedges(&counts(Some(Control::NoZeroing)));
    }

    #[test]
    fn unsafe_if_readers_look_first() {
        assert_breaks(&counts(Some(Control::LooksFirst)), "a writer is not alone");
    }

    #[test]
    fn unsafe_with_a_timeout_for_an_oracle() {
        assert_breaks(&counts(Some(Control::Timeout)), "a writer is not alone");
    }
}

mod mutex_is {
    use super::*;
    use mutex::{Control, Slices};

    fn mutex(processes: usize, rounds: u8, crashes: u8, reissues: u8) -> Mutex {
        Mutex {
            processes,
            rounds,
            crashes,
            reissues,
            slices: Slices::AfterDeath,
            impatient: false,
            careless: false,
            control: None,
        }
    }

    fn careless(processes: usize, rounds: u8, crashes: u8, reissues: u8) -> Mutex {
        Mutex { careless: true, ..mutex(processes, rounds, crashes, reissues) }
    }

    fn impatient(processes: usize, rounds: u8, crashes: u8) -> Mutex {
        Mutex { impatient: true, ..mutex(processes, rounds, crashes, 0) }
    }

    /// The mutex with one rule broken, at bounds at which the right one is sound.
    #[track_caller]
    fn broken(control: Control, right: Mutex) -> Mutex {
        let report = explore(&right);
        assert!(matches!(report.outcome, Outcome::Sound), "the right one is not: {:?}", report.outcome);
        Mutex { control: Some(control), ..right }
    }

    #[test]
    fn sound_with_two_crashes_and_an_index_that_is_issued_again() {
        assert_sound(&mutex(3, 3, 2, 1), 812_881);
    }

    #[test]
    fn sound_if_sleepers_look_around_at_any_time() {
        assert_sound(&Mutex { slices: Slices::Anytime, ..mutex(3, 2, 2, 1) }, 274_004);
    }

    #[test]
    fn sound_with_panics_and_torn_data_that_is_left_alone() {
        assert_sound(&careless(3, 2, 2, 0), 156_481);
    }

    #[test]
    fn sound_with_waiters_that_give_up() {
        assert_sound(&impatient(3, 3, 1), 121_096);
    }

    #[test]
    fn sound_with_four_processes_of_which_one_dies() {
        assert_sound(&mutex(4, 2, 1, 0), 2_155_097);
    }

    #[test]
    fn stuck_without_a_take_over() {
        assert_wedges(&broken(Control::NoTakeOver, mutex(2, 1, 1, 0)));
    }

    #[test]
    fn stuck_if_the_owner_is_written_later() {
        assert_wedges(&broken(Control::OwnerWrittenLater, mutex(2, 1, 1, 0)));
    }

    #[test]
    fn stuck_without_slices_when_an_owner_dies() {
        assert_wedges(&Mutex { slices: Slices::Never, ..mutex(2, 1, 1, 0) });
    }

    #[test]
    fn stuck_if_the_oracle_ignores_generations() {
        assert_wedges(&broken(Control::GenerationIgnored, mutex(2, 1, 1, 1)));
    }

    #[test]
    fn unsafe_with_a_timeout_for_an_oracle() {
        assert_breaks(&broken(Control::Timeout, mutex(2, 1, 0, 0)), "two are inside");
    }

    #[test]
    fn unsafe_if_a_take_over_does_not_compare() {
        let mutex = broken(Control::TakeOverStores, mutex(2, 1, 1, 0));
        assert_breaks(&mutex, "the next one's error do not match");
    }

    #[test]
    fn unsafe_if_a_take_over_is_silent() {
        let mutex = broken(Control::TakeOverForgetsDeath, mutex(2, 1, 1, 0));
        assert_breaks(&mutex, "the next one's error do not match");
    }

    #[test]
    fn losing_wake_ups_if_a_take_over_drops_waiters() {
        assert_wedges(&broken(Control::TakeOverDropsWaiters, mutex(3, 1, 1, 0)));
    }

    #[test]
    fn losing_wake_ups_if_the_woken_drops_waiters() {
        assert_wedges(&broken(Control::WokenDropsWaiters, mutex(3, 1, 0, 0)));
    }

    #[test]
    fn losing_wake_ups_if_whoever_gives_up_keeps_one() {
        assert_wedges(&broken(Control::GivesUpSilently, impatient(4, 1, 0)));
    }

    #[test]
    fn losing_wake_ups_if_a_sleeper_does_not_compare() {
        assert_wedges(&broken(Control::SleepDoesNotCompare, mutex(2, 1, 0, 0)));
    }

    #[test]
    fn losing_wake_ups_if_retiring_wakes_only_one() {
        assert_wedges(&broken(Control::RetireWakesOne, careless(4, 1, 1, 0)));
    }
}

mod semaphore_is {
    use super::*;
    use semaphore::Control;

    fn semaphore(permits: usize, processes: usize, rounds: u8, crashes: u8, reissues: u8) -> Semaphore {
        Semaphore { permits, processes, keepers: 0, rounds, crashes, reissues, control: None }
    }

    /// Two who give their permits back, and two who wait for them and keep them.
    fn kept(crashes: u8) -> Semaphore {
        Semaphore { keepers: 2, ..semaphore(2, 4, 1, crashes, 0) }
    }

    /// The semaphore with one rule broken, at bounds at which the right one is sound.
    #[track_caller]
    fn broken(control: Control, right: Semaphore) -> Semaphore {
        let report = explore(&right);
        assert!(matches!(report.outcome, Outcome::Sound), "the right one is not: {:?}", report.outcome);
        Semaphore { control: Some(control), ..right }
    }

    #[test]
    fn sound_with_one_permit_and_an_index_that_is_issued_again() {
        assert_sound(&semaphore(1, 3, 1, 2, 1), 92_454);
    }

    #[test]
    fn sound_with_two_permits_and_two_crashes() {
        assert_sound(&semaphore(2, 3, 1, 2, 0), 5_684);
    }

    #[test]
    fn sound_with_three_rounds() {
        assert_sound(&semaphore(2, 3, 3, 1, 1), 3_496_375);
    }

    #[test]
    fn sound_with_two_permits_for_four_of_which_two_keep_theirs() {
        assert_sound(&kept(1), 119_867);
    }

    #[test]
    fn stuck_if_the_permits_of_the_dead_are_lost() {
        assert_wedges(&broken(Control::NoGiveBack, semaphore(1, 2, 1, 1, 0)));
    }

    #[test]
    fn stuck_if_the_oracle_ignores_generations() {
        assert_wedges(&broken(Control::GenerationIgnored, semaphore(1, 2, 1, 1, 1)));
    }

    #[test]
    fn unsafe_with_a_timeout_for_an_oracle() {
        assert_breaks(&broken(Control::Timeout, semaphore(1, 2, 1, 0, 0)), "more holders than permits");
    }

    #[test]
    fn unsafe_if_a_dead_permit_is_taken_by_a_store() {
        assert_breaks(
            &broken(Control::GiveBackStores, semaphore(1, 3, 1, 1, 0)),
            "more holders than permits",
        );
    }

    #[test]
    fn unsafe_if_a_dead_permit_is_freed_by_a_store() {
        assert_breaks(&broken(Control::GiveBackFrees, semaphore(1, 3, 1, 1, 0)), "more holders than permits");
    }

    #[test]
    fn losing_wake_ups_if_nobody_passes_them_on() {
        assert_wedges(&broken(Control::NobodyPassesOn, kept(0)));
    }

    #[test]
    fn losing_wake_ups_without_a_second_try() {
        assert_wedges(&broken(Control::NoSecondTry, semaphore(1, 2, 1, 0, 0)));
    }
}

mod rwlock_is {
    use super::*;
    use rwlock::Control;

    fn rwlock(readers: usize, writers: usize, rounds: u8, crashes: u8, reissues: u8) -> RwLock {
        RwLock {
            readers,
            writers,
            rounds,
            crashes,
            reissues,
            impatient: false,
            downgrades: false,
            gives_up: false,
            control: None,
        }
    }

    /// The lock with one rule broken, at bounds at which the right one is sound.
    #[track_caller]
    fn broken(control: Control, right: RwLock) -> RwLock {
        let report = explore(&right);
        assert!(matches!(report.outcome, Outcome::Sound), "the right one is not: {:?}", report.outcome);
        RwLock { control: Some(control), ..right }
    }

    #[test]
    fn sound_for_a_reader_and_a_writer_who_die_and_come_again() {
        assert_sound(&rwlock(1, 1, 2, 2, 2), 239_634);
    }

    #[test]
    fn sound_for_two_readers_and_an_index_that_is_issued_again() {
        assert_sound(&rwlock(2, 1, 1, 1, 1), 574_977);
    }

    #[test]
    fn sound_for_two_writers_and_two_crashes() {
        assert_sound(&rwlock(1, 2, 1, 2, 0), 35_738);
    }

    #[test]
    fn sound_for_writers_that_withdraw_or_become_readers_or_leave_the_data_torn() {
        let moody = RwLock { impatient: true, downgrades: true, gives_up: true, ..rwlock(1, 2, 1, 1, 1) };
        assert_sound(&moody, 2_509_121);
    }

    #[test]
    fn sound_for_two_readers_and_two_writers() {
        assert_sound(&rwlock(2, 2, 1, 1, 0), 2_235_962);
    }

    #[test]
    fn stuck_without_a_take_over() {
        assert_wedges(&broken(Control::NoTakeOver, rwlock(1, 1, 1, 1, 0)));
    }

    #[test]
    fn stuck_without_zeroing() {
        assert_wedges(&broken(Control::NoZeroing, rwlock(1, 1, 1, 1, 0)));
    }

    #[test]
    fn stuck_if_the_oracle_ignores_generations() {
        assert_wedges(&broken(Control::GenerationIgnored, rwlock(1, 1, 1, 1, 1)));
    }

    #[test]
    fn stuck_if_a_cell_keeps_what_a_dead_process_left_in_it() {
        assert_wedges(&broken(Control::StaleCountKept, rwlock(1, 1, 1, 1, 1)));
    }

    #[test]
    fn unsafe_with_a_timeout_for_an_oracle() {
        assert_breaks(&broken(Control::Timeout, rwlock(0, 2, 1, 0, 0)), "a writer is not alone");
        assert_breaks(&broken(Control::Timeout, rwlock(1, 1, 1, 0, 0)), "a count falls below zero");
    }

    #[test]
    fn unsafe_if_a_dead_cell_is_zeroed_by_a_store() {
        let rwlock = broken(Control::ZeroingStores, rwlock(1, 1, 1, 1, 1));
        assert_breaks(&rwlock, "a count falls below zero");
    }

    #[test]
    fn unsafe_if_readers_look_first() {
        assert_breaks(&broken(Control::LooksFirst, rwlock(1, 1, 1, 0, 0)), "a writer is not alone");
    }

    #[test]
    fn unsafe_if_writers_drain_first() {
        assert_breaks(&broken(Control::DrainsFirst, rwlock(1, 1, 1, 0, 0)), "a writer is not alone");
    }

    #[test]
    fn unsafe_if_a_reader_does_not_say_that_its_index_is_used() {
        assert_breaks(&broken(Control::UsedNotRaised, rwlock(1, 1, 1, 0, 0)), "a writer is not alone");
    }

    #[test]
    fn unsafe_if_readers_take_over_from_a_writer_that_died_inside() {
        let rwlock = broken(Control::ReaderTakesOver, rwlock(1, 1, 1, 1, 0));
        assert_breaks(&rwlock, "a reader sees torn data");
    }

    #[test]
    fn unsafe_if_a_writer_that_died_waiting_counts_as_one_inside() {
        let rwlock = broken(Control::PendingWarns, rwlock(1, 2, 1, 1, 0));
        assert_breaks(&rwlock, "the next writer's error do not match");
    }

    /// One look around after each death must be enough, however many have died.
    #[test]
    fn slow_if_a_writer_forgets_one_dead_reader_between_two_sleeps() {
        assert_wedges(&broken(Control::ForgetsOne, rwlock(2, 1, 1, 2, 0)));
    }

    #[test]
    fn losing_wake_ups_if_readers_leave_silently() {
        assert_wedges(&broken(Control::LeavesSilently, rwlock(1, 1, 1, 0, 0)));
    }

    #[test]
    fn losing_wake_ups_if_readers_step_back_silently() {
        assert_wedges(&broken(Control::StepsBackSilently, rwlock(1, 1, 1, 0, 0)));
    }

    #[test]
    fn losing_wake_ups_if_a_leaving_writer_wakes_only_one() {
        assert_wedges(&broken(Control::WakesOne, rwlock(1, 2, 1, 0, 0)));
    }
}

mod barrier_is {
    use super::*;
    use barrier::Control;

    fn barrier(parties: usize, processes: usize, rounds: u8, crashes: u8, reissues: u8) -> Barrier {
        Barrier { parties, processes, rounds, crashes, reissues, ..Barrier::default() }
    }

    /// The barrier with one rule broken, at bounds at which the right one is sound.
    #[track_caller]
    fn broken(control: Control, right: Barrier) -> Barrier {
        let report = explore(&right);
        assert!(matches!(report.outcome, Outcome::Sound), "the right one is not: {:?}", report.outcome);
        Barrier { control: Some(control), ..right }
    }

    /// Calls give up and reset, and one party of a round runs an action.
    fn moody(processes: usize, rounds: u8, crashes: u8, reissues: u8) -> Barrier {
        Barrier {
            impatient: true,
            resets: true,
            acts: true,
            ..barrier(2, processes, rounds, crashes, reissues)
        }
    }

    #[test]
    fn sound_over_two_rounds_with_an_index_that_is_issued_again() {
        assert_sound(&barrier(2, 2, 2, 1, 1), 116_851);
    }

    #[test]
    fn sound_for_three_processes_of_which_two_pass() {
        assert_sound(&barrier(2, 3, 1, 2, 0), 371_010);
    }

    #[test]
    fn sound_for_three_parties() {
        assert_sound(&barrier(3, 3, 1, 1, 0), 484_385);
    }

    #[test]
    fn sound_with_an_action_with_calls_that_give_up_and_with_resets() {
        assert_sound(&moody(2, 2, 1, 1), 958_361);
    }

    #[test]
    fn unsafe_if_nobody_asks_whether_the_waiting_live() {
        assert_breaks(&broken(Control::NoOracle, barrier(2, 2, 1, 1, 0)), "was dead is counted");
    }

    #[test]
    fn unsafe_if_the_oracle_ignores_generations() {
        assert_breaks(&broken(Control::GenerationIgnored, barrier(2, 2, 1, 1, 1)), "was dead is counted");
    }

    #[test]
    fn stuck_if_newcomers_do_not_ask_about_those_who_wait() {
        assert_wedges(&broken(Control::NewcomersDoNotAsk, barrier(2, 3, 1, 2, 0)));
    }

    #[test]
    fn unsafe_if_somebody_who_was_not_counted_breaks_the_round_of_a_leader() {
        let right = Barrier { impatient: true, acts: true, ..barrier(2, 3, 1, 0, 0) };
        assert_breaks(&broken(Control::BreaksTheLeader, right), "nobody died, gave up or reset");
    }

    #[test]
    fn stuck_if_nobody_frees_the_cells_of_the_dead() {
        assert_wedges(&broken(Control::NoForgetting, barrier(2, 3, 1, 1, 0)));
    }

    #[test]
    fn unsafe_with_a_timeout_for_an_oracle() {
        let barrier = broken(Control::Timeout, barrier(2, 2, 1, 0, 0));
        assert_breaks(&barrier, "nobody died, gave up or reset");
    }

    #[test]
    fn unsafe_if_newcomers_do_not_wait_until_all_have_left() {
        let barrier = broken(Control::NewcomersDoNotWait, barrier(2, 2, 2, 0, 0));
        assert_breaks(&barrier, "that was counted does not pass");
    }

    #[test]
    fn unsafe_if_a_freed_cell_forgets_its_round() {
        let barrier = broken(Control::CellsForgetRound, barrier(2, 3, 1, 0, 0));
        assert_breaks(&barrier, "and not all have passed");
    }

    /// It frees the cell of somebody who died in the round after.
    #[test]
    fn unsafe_if_an_old_state_tells_whose_round_is_over() {
        let barrier = broken(Control::ForgetsByOldState, barrier(2, 2, 2, 1, 1));
        assert_breaks(&barrier, "was dead is counted");
    }

    #[test]
    fn unsafe_if_a_round_is_completed_by_a_store() {
        assert_breaks(&broken(Control::PassesByStore, barrier(2, 2, 1, 0, 0)), "and not all have passed");
    }

    #[test]
    fn losing_wake_ups_if_completing_a_round_wakes_only_one() {
        assert_wedges(&broken(Control::WakesOne, barrier(3, 3, 1, 0, 0)));
    }
}

mod condvar_is {
    use super::*;
    use condvar::Control;

    fn condvar(waiters: usize, notifications: u8, crashes: u8) -> Condvar {
        Condvar { waiters, notifications, crashes, impatient: false, control: None }
    }

    /// The condition variable with one rule broken, at bounds at which the right one is sound.
    #[track_caller]
    fn broken(control: Control, right: Condvar) -> Condvar {
        let report = explore(&right);
        assert!(matches!(report.outcome, Outcome::Sound), "the right one is not: {:?}", report.outcome);
        Condvar { control: Some(control), ..right }
    }

    #[test]
    fn sound_without_deaths() {
        assert_sound(&condvar(3, 3, 0), 425_977);
    }

    #[test]
    fn sound_with_two_crashes() {
        assert_sound(&condvar(2, 3, 2), 21_643);
    }

    #[test]
    fn sound_for_three_waiters_or_their_notifier_of_whom_one_dies() {
        assert_sound(&condvar(3, 2, 1), 499_736);
    }

    #[test]
    fn sound_with_waiters_that_give_up() {
        assert_sound(&Condvar { impatient: true, ..condvar(3, 2, 0) }, 325_363);
    }

    #[test]
    fn starving_if_late_ones_take_the_signals_of_others() {
        assert_wedges(&broken(Control::LateOnesTake, condvar(2, 1, 0)));
    }

    #[test]
    fn starving_if_a_notification_forgets_the_late_ones() {
        assert_wedges(&broken(Control::LateOnesForgotten, condvar(3, 2, 0)));
    }

    #[test]
    fn losing_wake_ups_if_late_ones_are_woken_in_place_of_others() {
        assert_wedges(&broken(Control::LateOnesSleepOn, condvar(2, 1, 0)));
    }

    #[test]
    fn losing_wake_ups_if_waiters_read_the_counts_first() {
        assert_wedges(&broken(Control::CountsBeforeSequence, condvar(1, 1, 0)));
    }

    #[test]
    fn losing_wake_ups_if_notifiers_step_first() {
        assert_wedges(&broken(Control::StepsFirst, condvar(1, 1, 0)));
    }

    #[test]
    fn losing_a_signal_with_the_dead_if_it_is_taken_outside_the_lock() {
        assert_wedges(&broken(Control::TakesOutsideTheLock, condvar(2, 1, 1)));
    }
}

mod once_is {
    use super::*;
    use once::Control;

    fn once(processes: usize, crashes: u8, reissues: u8) -> Once {
        Once { processes, crashes, reissues, panics: false, control: None }
    }

    /// The once with one rule broken, at bounds at which the right one is sound.
    #[track_caller]
    fn broken(control: Control, right: Once) -> Once {
        let report = explore(&right);
        assert!(matches!(report.outcome, Outcome::Sound), "the right one is not: {:?}", report.outcome);
        Once { control: Some(control), ..right }
    }

    #[test]
    fn sound_with_crashes_and_an_index_that_is_issued_again() {
        assert_sound(&once(3, 2, 1), 36_481);
    }

    #[test]
    fn sound_with_panics() {
        assert_sound(&Once { panics: true, ..once(4, 1, 0) }, 370_049);
    }

    #[test]
    fn stuck_without_a_take_over() {
        assert_wedges(&broken(Control::NoTakeOver, once(2, 1, 0)));
    }

    #[test]
    fn stuck_if_the_oracle_ignores_generations() {
        assert_wedges(&broken(Control::GenerationIgnored, once(2, 1, 1)));
    }

    #[test]
    fn unsafe_with_a_timeout_for_an_oracle() {
        assert_breaks(&broken(Control::Timeout, once(2, 0, 0)), "two run it");
    }

    #[test]
    fn unsafe_if_a_take_over_does_not_compare() {
        assert_breaks(&broken(Control::TakeOverStores, once(3, 1, 0)), "two run it");
    }

    #[test]
    fn unsafe_if_it_is_complete_before_it_is_done() {
        assert_breaks(&broken(Control::CompleteFirst, once(2, 0, 0)), "not done");
    }

    #[test]
    fn losing_wake_ups_if_the_end_wakes_one() {
        assert_wedges(&broken(Control::WakesOne, once(3, 0, 0)));
    }
}
