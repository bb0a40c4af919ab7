//! How long to poll, and how closely: what a handle learns from its waits.

use crate::sync::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

/// What one handle remembers of its waits: private to the process, shared by the handle's threads as a hint.
///
/// Its main number is the gap between two polls. A poll of a line that the peer is about to write takes the line away
/// from the peer, so polling a stream closely slows both: let the peer get far ahead, and each works on lines of its
/// own. But a pause delays an answer that is about to come. The two look alike, so the pace tries: for a few misses, and
/// the more seldom the less it pays, it pauses long, and keeps to that as long as long runs reward it.
#[derive(Debug)]
pub struct Pace {
    /// Pauses between two polls while the gap is short.
    gap: AtomicU32,
    /// [`SHORT`], [`TRIAL`] or [`LONG`].
    mode: AtomicU32,
    /// Misses until the present window ends.
    left: AtomicU32,
    /// Windows until the next trial, and how many there were before the last one.
    trial_in: AtomicU32,
    trial_every: AtomicU32,
    /// The caller's progress at its last miss, and at the start of the window.
    last_miss: AtomicU64,
    window_progress: AtomicU64,
    /// When the window started, in nanoseconds since `born`.
    window_start: AtomicU64,
    /// Successes per 2^20 nanoseconds in the last window with a short gap.
    rate: AtomicU64,
    born: Instant,
    /// Poll episodes that may still fail before polling becomes the exception.
    credit: AtomicU32,
    /// Episodes without credit, to let one in [`PROBE_EVERY`] poll.
    probes: AtomicU32,
    /// Whether to poll at all.
    polls: bool,
}

/// Pauses spent polling before a sleep: about what a wake-up across processors costs.
const POLL_PAUSES: u32 = 4000;
/// The most pauses between two polls while the gap is short.
const MAX_BACKOFF: u32 = 15;
/// Poll episodes that may fail in a row before polling becomes the exception.
const MAX_CREDIT: u32 = 8;
/// Without credit, one episode in this many still polls.
const PROBE_EVERY: u32 = 16;
/// The gap follows the run between two misses, up to [`MAX_BACKOFF`].
const SHORT: u32 = 0;
/// The gap is [`LONG_GAP`], to see what that does to the rate.
const TRIAL: u32 = 1;
/// The gap is [`LONG_GAP`], because that made the rate better.
const LONG: u32 = 2;

/// Some microseconds: time for the peer to get hundreds of operations ahead.
const LONG_GAP: u32 = 511;
/// A shorter run between two misses is no stream: back to the short gap.
const LONG_RUN: u64 = 32;
/// Misses in a window, and in one that is a trial.
const WINDOW: u32 = 32;
const TRIAL_WINDOW: u32 = 8;
/// The most windows between two trials: a trial where answers are waited for costs a thousandth then.
const MAX_TRIAL_EVERY: u32 = 256;

// Every access is Relaxed: the values only steer how long to poll.
impl Pace {
    /// A handle that has not waited yet: polling gets the benefit of the doubt.
    pub fn new() -> Self {
        Self {
            gap: AtomicU32::new(1),
            mode: AtomicU32::new(SHORT),
            left: AtomicU32::new(WINDOW),
            trial_in: AtomicU32::new(1),
            trial_every: AtomicU32::new(1),
            last_miss: AtomicU64::new(0),
            window_progress: AtomicU64::new(0),
            window_start: AtomicU64::new(0),
            rate: AtomicU64::new(0),
            born: Instant::now(),
            credit: AtomicU32::new(MAX_CREDIT),
            probes: AtomicU32::new(0),
            polls: true,
        }
    }

    /// For a thread that nobody waits for so closely that it should poll: it sleeps at once.
    pub fn sleeper() -> Self {
        Self { polls: false, ..Self::new() }
    }

    /// Notes a miss and returns the pauses to make between polls.
    pub(super) fn miss(&self, progress: u64) -> u32 {
        let run = progress.wrapping_sub(self.last_miss.load(Ordering::Relaxed));
        self.last_miss.store(progress, Ordering::Relaxed);
        match self.left.load(Ordering::Relaxed) {
            0 => self.next_window(progress),
            left => self.left.store(left - 1, Ordering::Relaxed),
        }
        match self.mode.load(Ordering::Relaxed) {
            TRIAL => return LONG_GAP,
            LONG if run >= LONG_RUN => return LONG_GAP,
            LONG => self.mode.store(SHORT, Ordering::Relaxed),
            _ => {}
        }
        let gap = self.gap.load(Ordering::Relaxed);
        let next = if run >= 2 { (2 * gap + 1).min(MAX_BACKOFF) } else { gap / 2 }.max(1);
        self.gap.store(next, Ordering::Relaxed);
        next
    }

    /// Judges the window that ended, and starts the next.
    #[cold]
    fn next_window(&self, progress: u64) {
        let now = u64::try_from(self.born.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let elapsed = now.saturating_sub(self.window_start.swap(now, Ordering::Relaxed));
        let done = progress.wrapping_sub(self.window_progress.swap(progress, Ordering::Relaxed));
        let rate = done.saturating_mul(1 << 20) / elapsed.max(1);
        let mut left = WINDOW;
        match self.mode.load(Ordering::Relaxed) {
            SHORT => {
                self.rate.store(rate, Ordering::Relaxed);
                let trial_in = self.trial_in.load(Ordering::Relaxed);
                self.trial_in.store(trial_in.saturating_sub(1), Ordering::Relaxed);
                if trial_in <= 1 {
                    self.mode.store(TRIAL, Ordering::Relaxed);
                    left = TRIAL_WINDOW;
                }
            }
            TRIAL => {
                let before = self.rate.load(Ordering::Relaxed);
                let (mode, every) = if rate > before + before / 4 {
                    (LONG, 1)
                } else {
                    let every = 2 * self.trial_every.load(Ordering::Relaxed);
                    (SHORT, every.min(MAX_TRIAL_EVERY))
                };
                self.mode.store(mode, Ordering::Relaxed);
                self.trial_every.store(every, Ordering::Relaxed);
                self.trial_in.store(every, Ordering::Relaxed);
            }
            _ => {}
        }
        self.left.store(left, Ordering::Relaxed);
    }

    /// The pauses that the next poll episode may spend.
    pub(super) fn budget(&self) -> u32 {
        if !self.polls {
            return 0;
        }
        if self.credit.load(Ordering::Relaxed) > 0 {
            return POLL_PAUSES;
        }
        let probes = self.probes.load(Ordering::Relaxed).wrapping_add(1);
        self.probes.store(probes, Ordering::Relaxed);
        if probes % PROBE_EVERY == 0 { POLL_PAUSES } else { 0 }
    }

    pub(super) fn paid(&self) {
        let credit = self.credit.load(Ordering::Relaxed);
        self.credit.store((credit + 1).min(MAX_CREDIT), Ordering::Relaxed);
    }

    pub(super) fn wasted(&self) {
        let credit = self.credit.load(Ordering::Relaxed);
        self.credit.store(credit.saturating_sub(1), Ordering::Relaxed);
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self::new()
    }
}
