//! What a handle does when the ring gives it nothing: poll, sleep, look after its peers.

use crate::end::{End, Miss};
use crate::layout::Side;
use crate::pollable::{CHUNKS, MORE};
use shm_core::wait::WaitLine;
use std::cell::RefCell;
use std::time::{Duration, Instant};

/// How long an operation may take.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Patience {
    None,
    For(Duration),
    Until(Instant),
    Forever,
}

impl Patience {
    /// For several waits one after the other: all together.
    pub(crate) fn over_all(self) -> Self {
        match self {
            // A deadline beyond the end of time is none.
            Self::For(timeout) => Instant::now().checked_add(timeout).map_or(Self::Forever, Self::Until),
            patience => patience,
        }
    }
}

/// Repeats an operation until it has succeeded or failed. `None` for an error: patience ran out, which it never should.
#[inline(always)]
pub(crate) fn forever<R, E>(mut attempt: impl FnMut(Patience) -> Result<R, Option<E>>) -> Result<R, E> {
    loop {
        match attempt(Patience::Forever) {
            Ok(done) => return Ok(done),
            Err(Some(error)) => return Err(error),
            Err(None) => {}
        }
    }
}

/// Why an operation ended without success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Patience ran out.
    Late,
    /// The other side is gone (for a receiver: and nothing is left).
    Disconnected,
    /// The queue is closed (likewise).
    Closed,
    Exhausted,
    Forked,
}

impl From<shm_core::fork::Forked> for Stop {
    fn from(_: shm_core::fork::Forked) -> Self {
        Self::Forked
    }
}

/// How often a handle that waits for chunks or cells looks at most after everything that could keep them from it: it is woken
/// whenever somebody frees some, be they too few.
const TIDY_MICROS: u64 = 10_000;

/// Looks that a repair may make worthwhile, in a row. Each dead process leaves one claim, so more of them mean that
/// somebody scribbles on the ring.
const REPAIRS: usize = 2 * shm_core::segment::MAX_PARTICIPANTS as usize;

impl End {
    /// After a miss: tries again as `patience` allows. `attempt` is one try on the ring.
    #[cold]
    #[inline(never)]
    pub(crate) fn retry<R>(
        &self,
        miss: Miss,
        patience: Patience,
        attempt: impl FnMut() -> Result<R, Miss>,
    ) -> Result<R, Stop> {
        self.retry_on(self.control().sleeps(self.side()), miss, patience, attempt)
    }

    /// As [`End::retry`], sleeping on another line.
    #[cold]
    #[inline(never)]
    pub(crate) fn retry_on<R>(
        &self,
        line: &WaitLine,
        miss: Miss,
        patience: Patience,
        mut attempt: impl FnMut() -> Result<R, Miss>,
    ) -> Result<R, Stop> {
        if miss == Miss::Closed {
            return Err(Stop::Closed);
        }
        let wanted = if miss == Miss::Scarce { CHUNKS } else { MORE };
        match self.wait_on(line, miss, patience, &mut attempt) {
            // Somebody may poll this end, and wait for what comes from here on.
            Err(Stop::Late) if self.bridge.found_nothing(wanted) => {
                self.try_once(&mut attempt).unwrap_or(Err(Stop::Late))
            }
            outcome => outcome,
        }
    }

    fn wait_on<R>(
        &self,
        line: &WaitLine,
        miss: Miss,
        patience: Patience,
        attempt: &mut impl FnMut() -> Result<R, Miss>,
    ) -> Result<R, Stop> {
        let control = self.control();
        // Whoever waits for us should know where we run.
        control.sleeps(self.side().other()).note_cpu();
        let deadline = match patience {
            Patience::None => return self.glance(miss, attempt),
            // A deadline beyond the end of time is none.
            Patience::For(timeout) => Instant::now().checked_add(timeout),
            Patience::Until(deadline) => Some(deadline),
            Patience::Forever => None,
        };
        let attempt = RefCell::new(attempt);
        let done = line.wait(
            &self.pace,
            self.ticket(),
            deadline,
            || self.try_once(*attempt.borrow_mut()),
            || self.look_around(*attempt.borrow_mut(), false),
        );
        done.unwrap_or(Err(Stop::Late))
    }

    /// After a miss that must not wait: repairs what a dead process blocks, and asks now and then whether the other
    /// side is alive.
    fn glance<R>(&self, miss: Miss, attempt: &mut impl FnMut() -> Result<R, Miss>) -> Result<R, Stop> {
        let known = self.control().has_ended_for(self.side());
        match miss {
            Miss::Exhausted => return Err(Stop::Exhausted),
            Miss::Nothing if !known && !self.may_look() => return Err(Stop::Late),
            Miss::Scarce if !known && !self.is_hoard_of_the_dead() && !self.may_look() => {
                return Err(Stop::Late);
            }
            Miss::Claimed(claim) if !known && !self.recover(claim) && !self.may_look() => {
                return Err(Stop::Late);
            }
            _ => {}
        }
        self.look_around(attempt, true).unwrap_or(Err(Stop::Late))
    }

    /// One try that asks no system call.
    #[inline(always)]
    fn try_once<R>(&self, attempt: &mut impl FnMut() -> Result<R, Miss>) -> Option<Result<R, Stop>> {
        match attempt() {
            Ok(done) => Some(Ok(done)),
            Err(Miss::Exhausted) => Some(Err(Stop::Exhausted)),
            Err(Miss::Closed) => Some(Err(Stop::Closed)),
            Err(miss) if self.is_on_its_way(miss) => None,
            Err(_) if self.control().has_ended_for(self.side()) => self.last_look(attempt),
            Err(_) => None,
        }
    }

    /// A try with everything that the system can tell: are the owner of a claim and the other side alive?
    /// What takes long is done now and then, or with `thoroughly` now: for whoever does not come back by itself.
    #[cold]
    fn look_around<R>(
        &self,
        attempt: &mut impl FnMut() -> Result<R, Miss>,
        thoroughly: bool,
    ) -> Option<Result<R, Stop>> {
        let mut tidied = false;
        self.look_after_the_dead();
        if let Some(bulk) = &self.bulk {
            bulk.trim_idle(self.segment(), self.control());
        }
        for _ in 0..REPAIRS {
            match attempt() {
                Ok(done) => return Some(Ok(done)),
                Err(Miss::Exhausted) => return Some(Err(Stop::Exhausted)),
                Err(Miss::Closed) => return Some(Err(Stop::Closed)),
                Err(Miss::Claimed(claim)) if self.recover(claim) => {}
                Err(Miss::Scarce) if !tidied && (thoroughly || self.may_tidy()) => {
                    self.tidy();
                    tidied = true;
                }
                Err(_) => break,
            }
        }
        let alone = self.is_alone();
        if alone || self.control().flags().is_closed() { self.last_look(attempt) } else { None }
    }

    fn may_tidy(&self) -> bool {
        self.is_due(&self.tidied_at, TIDY_MICROS)
    }

    /// Whether a receiver that missed waits for a sender that has claimed a slot and is not known to be gone.
    fn is_on_its_way(&self, miss: Miss) -> bool {
        let pending = matches!(miss, Miss::Claimed(claim) if claim.is_writing());
        pending && self.side() == Side::Receiver && !self.control().is_gone(Side::Sender)
    }

    /// The other side is gone or the queue is closed: what was sent before is still there. Nothing if it cannot be told
    /// yet: a sender may still publish or withdraw what it had claimed; a dead sender's claim may lie in front of messages,
    /// and while somebody else sweeps up after the dead one it does not look dead.
    #[cold]
    fn last_look<R>(&self, attempt: &mut impl FnMut() -> Result<R, Miss>) -> Option<Result<R, Stop>> {
        // Before the looks at the ring.
        let end = if self.control().flags().is_final() { Stop::Closed } else { Stop::Disconnected };
        if self.side() == Side::Sender {
            return Some(Err(end));
        }
        let mut before = None;
        for _ in 0..REPAIRS {
            match attempt() {
                Ok(done) => return Some(Ok(done)),
                Err(Miss::Exhausted) => return Some(Err(Stop::Exhausted)),
                Err(Miss::Nothing | Miss::Scarce | Miss::Closed) => break,
                Err(miss) if self.is_on_its_way(miss) => return None,
                Err(Miss::Claimed(claim)) if self.recover(claim) => {}
                Err(Miss::Claimed(claim)) if self.is_swept_elsewhere(claim) => return None,
                // A claim that somebody else has just repaired looks different the second time.
                Err(Miss::Claimed(claim)) if before != Some(claim) => before = Some(claim),
                Err(Miss::Claimed(_)) => break,
            }
        }
        // Behind the looks at the ring. Another one's death may bring something.
        if self.is_needed_still() {
            return None;
        }
        if end == Stop::Closed {
            // Others may have gone to sleep over a claim that was still on its way.
            self.control().wake_all(Side::Receiver);
        }
        Some(Err(end))
    }

    /// After `count` successes from `ticket` on: wakes the other side, if it sleeps, and passes a wake-up on to this
    /// side's other sleepers, if there is more for them.
    #[inline(always)]
    pub(crate) fn done(&self, count: usize) {
        let control = self.control();
        let theirs = control.sleeps(self.side().other());
        #[allow(clippy::cast_possible_truncation, reason = "a batch has 64 messages at most")]
        theirs.notify(count as u32);
        let ticket = self.ticket();
        if (ticket ^ ticket.wrapping_sub(count as u64)) & !63 != 0 {
            self.now_and_then();
        }
        if control.sleeps(self.side()).has_sleepers() {
            self.pass_on();
        }
    }

    /// What every 64th ticket is good for. A receiver without senders finds the queue empty; a sender without
    /// receivers may find room for long, so it asks.
    #[cold]
    #[inline(never)]
    fn now_and_then(&self) {
        self.control().sleeps(self.side().other()).note_cpu();
        if self.side() == Side::Sender && self.may_look() {
            self.is_alone();
        }
    }

    #[cold]
    fn pass_on(&self) {
        if self.is_ready() || self.control().flags().is_closed() {
            self.control().sleeps(self.side()).notify(1);
        }
    }
}
