//! Where waiters sleep: the protocol of `src/lock/line.rs`, one word of SLEEPERS | sequence.
//!
//! ```text
//! waker    change the state; SLEEPERS set? clear it and step the sequence, then wake
//! waiter   set SLEEPERS; look; sleep while the sequence is as it was; again
//! ```
//!
//! The sequence itself grows for ever. What a waiter compares is whether it was stepped since: so each process keeps
//! whether its arming is still good.
//!
//! Sleeps end when somebody wakes them, or, once for each death, by themselves: whoever died may have owed the
//! wake-up, and a process that waited then looks around once more, at the end of its slice. A wake-up that is lost
//! without a death leaves somebody asleep for good, which the explorer reports.

use crate::seats::MAX;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Line {
    sleepers: bool,
    waiters: [Waiter; MAX],
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Waiter {
    /// The sequence is as this process read it when it set SLEEPERS.
    armed: bool,
    asleep: bool,
    /// Somebody died since it set SLEEPERS.
    may_look: bool,
}

const AWAKE: Waiter = Waiter { armed: false, asleep: false, may_look: false };

impl Line {
    pub(crate) fn new() -> Self {
        Self { sleepers: false, waiters: [AWAKE; MAX] }
    }

    /// Sets SLEEPERS, in one step.
    pub(crate) fn arm(&mut self, me: usize) {
        self.sleepers = true;
        self.waiters[me] = Waiter { armed: true, ..AWAKE };
    }

    /// Goes to sleep unless the sequence was stepped since. Whoever does not is awake, and arms again.
    pub(crate) fn sleep(&mut self, me: usize) {
        self.waiters[me].asleep = self.waiters[me].armed;
    }

    pub(crate) fn is_asleep(&self, me: usize) -> bool {
        self.waiters[me].asleep
    }

    /// The end of a slice after somebody's death.
    pub(crate) fn look_around(&mut self, me: usize) -> bool {
        let may = self.waiters[me].may_look;
        if may {
            self.waiters[me] = AWAKE;
        }
        may
    }

    /// Clears SLEEPERS and steps the sequence, if SLEEPERS is set, in one step; then the caller wakes.
    pub(crate) fn clear(&mut self) -> bool {
        if self.sleepers {
            self.waiters.iter_mut().for_each(|waiter| waiter.armed = false);
        }
        std::mem::replace(&mut self.sleepers, false)
    }

    pub(crate) fn wake_all(mut self) -> Self {
        self.waiters.iter_mut().filter(|waiter| waiter.asleep).for_each(|waiter| *waiter = AWAKE);
        self
    }

    /// What a wake of one may lead to: any one sleeper wakes, or there is none.
    pub(crate) fn wake_one(self) -> impl Iterator<Item = Self> {
        let sleepers = (0..MAX).filter(move |&p| self.waiters[p].asleep);
        let nobody = sleepers.clone().next().is_none().then_some(self);
        let awake = move |sleeper: usize| {
            let mut line = self;
            line.waiters[sleeper] = AWAKE;
            line
        };
        sleepers.map(awake).chain(nobody)
    }

    /// `me` waits no longer.
    pub(crate) fn leave(&mut self, me: usize) {
        self.waiters[me] = AWAKE;
    }

    /// `me` has died: whoever waits will look around.
    pub(crate) fn die(&mut self, me: usize) {
        self.waiters[me] = AWAKE;
        for waiter in &mut self.waiters {
            waiter.may_look |= waiter.armed || waiter.asleep;
        }
    }
}
