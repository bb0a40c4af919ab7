//! Explores every interleaving of the locks' protocols, with a crash before every step.
#![cfg(not(loom))]

#[path = "../../ipc-queue/tests/model/explore.rs"]
mod explore;
#[path = "model/read_counts.rs"]
mod read_counts;

use explore::{assert_breaks, assert_sound, assert_wedges};
use read_counts::ReadCounts;

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
