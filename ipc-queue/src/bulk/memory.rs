//! The memory behind chunks: put there when a message needs it, given back when it lies idle.
//!
//! What the counts and words say comes from shared memory: each is read once, and the sums are about right at best.

use super::Bulk;
use crate::chunks::Run;
use crate::layout::{Control, PAGE};
use rustix::time::{ClockId, clock_gettime};
use shm_core::crash_point;
use shm_core::mapping::check_available;
use shm_core::segment::Segment;
use shm_core::sync::Ordering;
use std::ops::Range;

/// Free memory that is kept at least, in bytes.
const KEPT: usize = 16 << 20;
/// Or this part of the budget.
const KEPT_SHARE: usize = 8;
/// How often anybody looks at most whether memory lies idle, in microseconds. What was in use in between is kept.
const LOOK_MICROS: u64 = 1_000_000;
/// Bytes of new memory after which somebody asks the system how much is left: messages that are short come together.
const ASK_BYTES: usize = 1 << 20;

impl Bulk {
    /// Puts memory behind the first `len` bytes of a run. No system call if it is there. What is there stays, also after an
    /// error.
    pub(super) fn commit(
        &self,
        segment: &Segment,
        control: &Control,
        run: &Run,
        len: usize,
    ) -> Result<(), ()> {
        // The pages of a chunk that have no memory yet.
        let lack = |index: usize| {
            let before = (index - run.head()) * self.place.chunk_len;
            let wanted = len.saturating_sub(before).div_ceil(PAGE).min(self.pages_per_chunk());
            let there = self.pages(index);
            (there < wanted).then_some((index, there..wanted))
        };
        let mut chunks = run.head()..run.head() + run.len();
        let Some(first) = chunks.find_map(lack) else {
            return Ok(());
        };
        let lacking: Vec<_> = std::iter::once(first).chain(chunks.filter_map(lack)).collect();
        let mut missing: usize = lacking.iter().map(|(_, pages)| pages.len()).sum();
        // Relaxed: about. Before, so that a death leaves it too high, which the next look corrects.
        let resident = &control.freed.0.resident;
        let before = resident.fetch_add(missing as u64, Ordering::Relaxed);
        let asked = |pages: u64| pages / (ASK_BYTES / PAGE) as u64;
        let may_ask = asked(before) != asked(before.wrapping_add(missing as u64));
        let mut outcome = Ok(());
        if may_ask {
            outcome = check_available((missing * PAGE).max(ASK_BYTES) as u64).map_err(drop);
        }
        // Where the end of a chunk and the start of the next are lacking, both at once.
        let is_one = |(a, left): &(usize, Range<usize>), (b, right): &(usize, Range<usize>)| {
            a + 1 == *b && left.end == self.pages_per_chunk() && right.start == 0
        };
        for part in lacking.chunk_by(is_one) {
            outcome = outcome.and_then(|()| self.commit_part(segment, part));
            if outcome.is_err() {
                break;
            }
            missing -= part.iter().map(|(_, pages)| pages.len()).sum::<usize>();
        }
        if outcome.is_err() {
            resident.fetch_sub(missing as u64, Ordering::Relaxed);
        }
        outcome
    }

    /// Puts memory behind pages that are neighbours, or behind none of them.
    fn commit_part(&self, segment: &Segment, part: &[(usize, Range<usize>)]) -> Result<(), ()> {
        let [(first, Range { start, .. }), ..] = part else {
            return Ok(());
        };
        let start = self.offset(*first) + start * PAGE;
        let len = part.iter().map(|(_, pages)| pages.len()).sum::<usize>() * PAGE;
        if segment.prefault(start, len).is_err() {
            // What is there in part is in no count.
            let _ = segment.release(start, len);
            return Err(());
        }
        crash_point!("queue.bulk.committed");
        part.iter().for_each(|(index, pages)| self.set_pages(*index, pages.end));
        Ok(())
    }

    /// How many pages of idle memory are kept.
    fn kept(&self) -> usize {
        KEPT.max(self.place.len_bytes() / KEPT_SHARE) / PAGE
    }

    /// Whether there is so much memory that some could be given back.
    fn has_plenty(&self, control: &Control) -> bool {
        // Relaxed: about.
        control.freed.0.resident.load(Ordering::Relaxed) > self.kept() as u64
    }

    /// Gives memory back before a run is freed, if otherwise too much would lie idle.
    pub(super) fn trim(&self, segment: &Segment, control: &Control, run: &Run) {
        if self.has_plenty(control) {
            let is_due = is_due(control);
            if is_due || run.len() * self.pages_per_chunk() > self.kept() {
                self.look(segment, control, Some(run), is_due);
            }
        }
    }

    /// Gives back what nobody has used for a while. For whoever waits, in each slice.
    pub(crate) fn trim_idle(&self, segment: &Segment, control: &Control) {
        if self.has_plenty(control) && is_due(control) && self.look(segment, control, None, true) {
            // Somebody may have found them taken.
            control.note_freed();
        }
    }

    /// Gives memory back, if otherwise too much would lie idle: that of a run that is about to be freed, and with `everywhere`
    /// that of chunks which nobody has used since the last time. Returns whether it has claimed any for that.
    #[cold]
    fn look(&self, segment: &Segment, control: &Control, run: Option<&Run>, everywhere: bool) -> bool {
        let chunks = self.chunks();
        let own = run.map_or(0..0, |run| run.head()..run.head() + run.len());
        let (mut total, mut idle) = (0_usize, 0_usize);
        for index in 0..self.place.count {
            let pages = self.pages(index);
            total += pages;
            idle += if own.contains(&index) || chunks.is_free(index) { pages } else { 0 };
        }
        let mut first = own.end;
        while idle > self.kept() && first > own.start {
            first -= 1;
            let pages = self.pages(first);
            (total, idle) = (total.saturating_sub(pages), idle.saturating_sub(pages));
        }
        self.give_back(segment, first..own.end);
        let mut claimed = false;
        // Relaxed: about.
        let high = if everywhere { control.freed.0.high.swap(0, Ordering::Relaxed) } else { u64::MAX };
        let high = usize::try_from(high).unwrap_or(usize::MAX);
        for index in (high.min(self.place.count)..self.place.count).rev() {
            let pages = self.pages(index);
            if idle <= self.kept() || pages == 0 {
                continue;
            }
            if let Some(run) = chunks.claim_one(segment.participant(), index) {
                claimed = true;
                self.give_back(segment, index..index + 1);
                chunks.release(run);
                (total, idle) = (total.saturating_sub(pages), idle.saturating_sub(pages));
            }
        }
        control.freed.0.resident.store(total as u64, Ordering::Relaxed);
        claimed
    }

    /// Gives the memory of chunks that are this process's back to the system.
    fn give_back(&self, segment: &Segment, chunks: Range<usize>) {
        if chunks.is_empty() {
            return;
        }
        chunks.clone().for_each(|index| self.set_pages(index, 0));
        crash_point!("queue.bulk.trimming");
        let start = self.offset(chunks.start);
        // If it fails, the memory stays.
        let _ = segment.release(start, self.offset(chunks.end) - start);
    }
}

/// Whether nobody has looked for a second; then it is the caller who does.
fn is_due(control: &Control) -> bool {
    let now = clock_gettime(ClockId::Monotonic);
    let now =
        now.tv_sec.unsigned_abs().wrapping_mul(1_000_000).wrapping_add(now.tv_nsec.unsigned_abs() / 1000);
    let looked = &control.freed.0.looked;
    // Relaxed: how often to look is a matter of cost only. A time to come, which nobody writes who keeps the rules, is long ago.
    let last = looked.load(Ordering::Relaxed);
    now.wrapping_sub(last) >= LOOK_MICROS
        && looked.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
}
