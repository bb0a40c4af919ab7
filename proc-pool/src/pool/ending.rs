//! How pieces end that no worker finished: its worker died, its job was dropped, the pool broke.

use super::cell::{Cell, INLINE_RESULT, Record, Shared, State, Worker};
use super::chunk::Results;
use super::core::{Body, Core, Lane, Phase, Slot};
use super::load::Batch;
use super::scheduler::{Event, Piece, Running};
use crate::error::TaskError;
use shm_core::sync::Ordering;

impl Core {
    /// Nothing more of a job is wanted: what waits is discarded, what nobody began is taken back.
    pub(super) fn drop_job(&mut self, shared: &Shared, job: u32) {
        let Some(owner) = self.jobs.get_mut(job as usize) else {
            return;
        };
        owner.dropped = true;
        owner.inbox = Batch::default();
        if owner.loads == 0 {
            self.jobs.remove(job as usize);
            return;
        }
        self.orphan();
        if matches!(self.phase, Phase::Broken(_)) {
            return;
        }
        self.handle(Event::JobDropped { job });
        let of_job = |(cell, piece): (u32, &Piece)| (piece.job == job).then(|| (cell, piece.clone()));
        let in_flight: Vec<(u32, Piece)> = self.scheduler.in_flight().filter_map(of_job).collect();
        for (number, piece) in in_flight {
            let generation = self.cells[number as usize].generation;
            if shared.cell(number).is_some_and(|cell| cell.revoke(generation)) {
                self.vacate(number);
                self.handle(Event::Finished { cell: number });
                self.settle(piece.load, u32::try_from(piece.items.len()).expect("ranges of u32"));
            }
        }
    }

    /// Finds out what a dead worker had in its hands, keeps what it saved, and lets the scheduler decide.
    pub(super) fn bury(&mut self, shared: &Shared, slot: u32, incarnation: u16, death: TaskError) {
        let worker = shared.worker(slot);
        worker.status.store(Worker::ABSENT, Ordering::Relaxed);
        worker.mailbox.store(0, Ordering::Relaxed);
        self.slots[slot as usize] = Slot::Empty;
        let (mut running, mut lost, mut waiting) = (Vec::new(), Vec::new(), false);
        let in_flight: Vec<(u32, Piece)> =
            self.scheduler.in_flight().map(|(cell, piece)| (cell, piece.clone())).collect();
        for (number, piece) in in_flight {
            let (generation, lane) =
                (self.cells[number as usize].generation, self.cells[number as usize].lane);
            let Some(cell) = shared.cell(number) else { continue };
            match cell.state(generation) {
                State::Done(by) if by == incarnation => {
                    let record = Record { cell: number, generation };
                    self.complete(shared, record);
                    if self.current(record).is_some() {
                        // The rest of its result never arrived.
                        running.push(self.salvage(cell, number, &piece));
                        cell.fail(generation);
                    }
                }
                State::Running(by) if by == incarnation => {
                    running.push(self.salvage(cell, number, &piece));
                    cell.fail(generation);
                }
                // First the look at the ring, then the CAS: a living worker begins before it frees the slot.
                State::Pending if self.was_lost(shared, slot, lane) && cell.lose(generation) => {
                    lost.push(number);
                    waiting = true;
                }
                State::Pending => waiting = true,
                _ => {}
            }
        }
        for &cell in lost.iter().chain(running.iter().map(|running| &running.cell)) {
            self.vacate(cell);
        }
        self.death = Some(death);
        self.handle(Event::WorkerDied { worker: slot, running, lost, waiting });
    }

    /// Whether an offer that nobody began was in a dead worker's hands.
    pub(super) fn was_lost(&self, shared: &Shared, slot: u32, lane: Lane) -> bool {
        match lane {
            Lane::Mailbox(of) => of == slot,
            // Whoever lives begins a record before it frees the slot; only a death frees it unbegun.
            Lane::Shared(Some(ticket)) => shared.tasks().is_released(ticket),
            Lane::Shared(None) => false,
        }
    }

    /// Delivers the results that a dead worker saved of a piece.
    pub(super) fn salvage(&mut self, cell: Cell<'_>, number: u32, piece: &Piece) -> Running {
        let (current, saved) = cell.last_progress();
        let items = piece.items.clone();
        let claimed = saved.clamp(items.start, items.end) - items.start;
        let mut bytes = Vec::new();
        match self.cells[number as usize].result {
            Some(block) => self.arena.read(block, block.len(), &mut bytes),
            None => cell.read_result(INLINE_RESULT, &mut bytes),
        }
        let (count, len) = Results::whole(&bytes, claimed);
        if count > 0 {
            self.deliver(cell, number, piece, count, len, &[], Vec::new());
            self.settle(piece.load, count);
        }
        let saved = items.start + count;
        Running { cell: number, saved, current: current.clamp(saved, items.end) }
    }

    /// Nothing will be delivered any more.
    pub(super) fn break_off(&mut self, shared: &Shared, error: TaskError) {
        if matches!(self.phase, Phase::Broken(_)) {
            return;
        }
        self.phase = Phase::Broken(error);
        // Whoever waits for outcomes looks up, and finds the phase.
        for (_, job) in &self.jobs {
            job.ready.store(true, Ordering::Release);
        }
        // Arguments go at once, and with them the handles inside: others wait for their end.
        for (_, load) in &mut self.loads {
            load.body = Body::Small(Box::default());
        }
        for slot in &self.slots {
            if let Slot::Running(worker) = slot {
                let _ = worker.child.kill();
            }
        }
        for (number, info) in (0..).zip(&self.cells) {
            if let Some(cell) = shared.cell(number) {
                cell.fail(info.generation);
            }
        }
    }
}
