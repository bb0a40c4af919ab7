//! The pool's decisions, without the pool: events in, actions out.
//!
//! No descriptor, no clock, no memory of another process: what happened is told as an [`Event`], what is to be
//! done comes back as [`Action`]s. So deaths are test inputs, and ten thousand workers can be simulated in one
//! thread. The pool executes the actions (`dispatch.rs`); a custom scheduler is a [`Policy`].
//!
//! # Vocabulary
//!
//! A *load* is the encoded items of one chunk. A [`Piece`] is a range of a load's items: the whole of it at
//! first; after a death, the parts that must run again. A *cell* is a place in shared memory that one piece in
//! flight occupies; there is a fixed number of them, which bounds what is in flight.
//!
//! # What is decided here
//!
//! * which waiting piece gets the next free cell (the policy);
//! * what becomes of the piece that a dead worker had: the items it saved are kept, the one it was running is
//!   tried again or failed, the ones whose results died with it and those it had not begun run again;
//! * whether a dead worker is replaced, and when a pool whose workers die without ever doing anything gives up.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;

/// Workers that may die in a row without having finished or begun anything although there was work, per worker slot,
/// before the pool gives up.
const FUTILE_DEATHS: usize = 10;

/// A range of the items of one load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which job it belongs to.
    pub job: u32,
    /// Which load it is a part of.
    pub load: u32,
    /// Which items of the load.
    pub items: Range<u32>,
    /// How often a failed item of it may still be tried again.
    pub retries: u32,
}

/// The order in which waiting pieces get cells.
pub trait Policy {
    /// A new piece.
    fn push(&mut self, piece: Piece);
    /// A piece that runs again: it waited once already.
    fn push_again(&mut self, piece: Piece);
    /// The next piece to run.
    fn pop(&mut self) -> Option<Piece>;
}

/// First come, first served.
#[derive(Debug, Default)]
pub struct Fifo(VecDeque<Piece>);

impl Policy for Fifo {
    fn push(&mut self, piece: Piece) {
        self.0.push_back(piece);
    }

    fn push_again(&mut self, piece: Piece) {
        self.0.push_front(piece);
    }

    fn pop(&mut self) -> Option<Piece> {
        self.0.pop_front()
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A piece is to run.
    Submitted(Piece),
    /// The piece in this cell has its outcome; the cell is free.
    Finished {
        /// The cell.
        cell: u32,
    },
    /// A worker died. Everything it had in its hands is told.
    WorkerDied {
        /// Its slot.
        worker: u32,
        /// The cells that it was running.
        running: Vec<Running>,
        /// The cells that it took and had not begun.
        lost: Vec<u32>,
        /// Whether work is offered that no worker has begun.
        waiting: bool,
    },
    /// A job begins under this number, which an earlier job may have had.
    JobOpened {
        /// The job.
        job: u32,
    },
    /// Nothing more of a job is wanted: what waits of it is discarded when its turn comes.
    JobDropped {
        /// The job.
        job: u32,
    },
    /// No more pieces will come.
    Closed,
}

/// How far a dead worker had got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// The cell of the piece.
    pub cell: u32,
    /// Items of the *load* before this one have results that outlived the worker.
    pub saved: u32,
    /// The item of the load that was running; the end of the piece if all were done.
    pub current: u32,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Put the piece into the cell and offer it to the workers.
    Send {
        /// The cell, free until now.
        cell: u32,
        /// The piece.
        piece: Piece,
    },
    /// Tell the job that this item failed with its worker, for good.
    Fail {
        /// The job.
        job: u32,
        /// The load.
        load: u32,
        /// The item of the load.
        item: u32,
    },
    /// The piece will not run: its job was dropped or its pool gave up.
    Discard(Piece),
    /// Start a worker in this slot.
    Spawn {
        /// The slot.
        worker: u32,
    },
    /// Workers die without doing anything: fail what waits, accept nothing more.
    GiveUp,
    /// Closed, and everything is done: the workers may go.
    Drained,
}

/// The state of the decisions.
#[derive(Debug)]
pub struct Scheduler<P> {
    policy: P,
    /// The piece in each cell.
    cells: Vec<Option<Piece>>,
    free: Vec<u32>,
    /// Pieces that wait or are in flight.
    outstanding: usize,
    /// Jobs that nobody wants any more; some of their pieces may wait or be in flight.
    dropped: HashSet<u32>,
    closed: bool,
    drained: bool,
    gave_up: bool,
    futile: usize,
    futile_limit: usize,
}

impl<P: Policy> Scheduler<P> {
    /// A scheduler for so many workers and cells.
    pub fn new(policy: P, workers: u32, cells: u32) -> Self {
        Self {
            policy,
            cells: (0..cells).map(|_| None).collect(),
            // Popped from the end: low cells first.
            free: (0..cells).rev().collect(),
            outstanding: 0,
            dropped: HashSet::new(),
            closed: false,
            drained: false,
            gave_up: false,
            futile: 0,
            futile_limit: FUTILE_DEATHS * workers.max(1) as usize,
        }
    }

    /// The piece in a cell.
    pub fn piece(&self, cell: u32) -> Option<&Piece> {
        self.cells.get(cell as usize)?.as_ref()
    }

    /// The cells in flight.
    pub fn in_flight(&self) -> impl Iterator<Item = (u32, &Piece)> {
        (0..).zip(&self.cells).filter_map(|(cell, piece)| Some((cell, piece.as_ref()?)))
    }

    /// Pieces that wait or are in flight.
    pub fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Whether pieces are still accepted.
    pub fn is_open(&self) -> bool {
        !self.closed && !self.gave_up
    }

    /// Whether the workers died too often.
    pub fn has_given_up(&self) -> bool {
        self.gave_up
    }

    /// Takes note of what happened and appends what is to be done. An event about a cell that is not in flight
    /// changes nothing.
    pub fn handle(&mut self, event: Event, actions: &mut Vec<Action>) {
        match event {
            Event::Submitted(piece) => {
                if self.gave_up {
                    return actions.push(Action::Discard(piece));
                }
                self.outstanding += 1;
                match self.free.pop() {
                    // Nothing waits while a cell is free, so this piece overtakes nobody.
                    Some(cell) => self.send(cell, piece, actions),
                    None => self.policy.push(piece),
                }
            }
            Event::Finished { cell } => {
                self.futile = 0;
                self.vacate(cell);
                self.fill(actions);
            }
            Event::WorkerDied { worker, running, lost, waiting } => {
                self.count_death(waiting && running.is_empty());
                self.worker_died(worker, running, lost, actions);
            }
            Event::JobOpened { job } => {
                if !self.dropped.is_empty() {
                    self.dropped.remove(&job);
                }
            }
            Event::JobDropped { job } => {
                self.dropped.insert(job);
            }
            Event::Closed => self.closed = true,
        }
        if self.closed && self.outstanding == 0 && !self.drained {
            self.drained = true;
            actions.push(Action::Drained);
        }
    }

    fn send(&mut self, cell: u32, piece: Piece, actions: &mut Vec<Action>) {
        self.cells[cell as usize] = Some(piece.clone());
        actions.push(Action::Send { cell, piece });
    }

    /// Ends the stay of a piece in a cell.
    fn vacate(&mut self, cell: u32) -> Option<Piece> {
        let piece = self.cells.get_mut(cell as usize)?.take()?;
        self.outstanding -= 1;
        self.free.push(cell);
        Some(piece)
    }

    /// Gives free cells to waiting pieces.
    fn fill(&mut self, actions: &mut Vec<Action>) {
        while let Some(&cell) = self.free.last() {
            let Some(piece) = self.next(actions) else { return };
            self.free.pop();
            self.send(cell, piece, actions);
        }
    }

    /// The next piece that somebody wants.
    fn next(&mut self, actions: &mut Vec<Action>) -> Option<Piece> {
        loop {
            let piece = self.policy.pop()?;
            if !self.dropped.contains(&piece.job) {
                return Some(piece);
            }
            self.outstanding -= 1;
            actions.push(Action::Discard(piece));
        }
    }

    /// A death beside work that waits, of a worker that had begun nothing, may be the only thing that workers still do.
    /// One that had work, or had none to do, proves nothing: whoever kills idle workers may do so for ever.
    fn count_death(&mut self, futile: bool) {
        self.futile = if futile { self.futile + 1 } else { 0 };
    }

    fn worker_died(&mut self, worker: u32, running: Vec<Running>, lost: Vec<u32>, actions: &mut Vec<Action>) {
        if self.drained {
            return;
        }
        // What runs again goes to the front, so the last pushed is the first to run: push in reverse.
        for cell in lost {
            if let Some(piece) = self.vacate(cell) {
                self.again(piece, actions);
            }
        }
        for Running { cell, saved, current } in running {
            let Some(piece) = self.vacate(cell) else { continue };
            // Numbers from shared memory: brought into range.
            let saved = saved.clamp(piece.items.start, piece.items.end);
            let current = current.clamp(saved, piece.items.end);
            let behind = (current + 1).min(piece.items.end)..piece.items.end;
            self.again(Piece { items: behind, ..piece.clone() }, actions);
            if current < piece.items.end {
                if piece.retries > 0 {
                    let retries = piece.retries - 1;
                    let once_more = Piece { items: current..current + 1, retries, ..piece.clone() };
                    self.again(once_more, actions);
                } else {
                    actions.push(Action::Fail { job: piece.job, load: piece.load, item: current });
                }
            }
            self.again(Piece { items: saved..current, ..piece }, actions);
        }
        if self.futile >= self.futile_limit && !self.gave_up {
            self.gave_up = true;
            while let Some(piece) = self.policy.pop() {
                self.outstanding -= 1;
                actions.push(Action::Discard(piece));
            }
            actions.push(Action::GiveUp);
        } else if !self.gave_up {
            self.fill(actions);
            if !(self.closed && self.outstanding == 0) {
                actions.push(Action::Spawn { worker });
            }
        }
    }

    fn again(&mut self, piece: Piece, actions: &mut Vec<Action>) {
        if piece.items.is_empty() {
            return;
        }
        if self.dropped.contains(&piece.job) {
            actions.push(Action::Discard(piece));
        } else {
            self.outstanding += 1;
            self.policy.push_again(piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn piece(load: u32, items: Range<u32>) -> Piece {
        Piece { job: 1, load, items, retries: 0 }
    }

    fn handle(scheduler: &mut Scheduler<Fifo>, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        scheduler.handle(event, &mut actions);
        actions
    }

    #[test]
    fn a_piece_waits_when_no_cell_is_free() {
        let mut s = Scheduler::new(Fifo::default(), 1, 1);
        assert_eq!(
            handle(&mut s, Event::Submitted(piece(0, 0..3))),
            [Action::Send { cell: 0, piece: piece(0, 0..3) }]
        );
        assert_eq!(handle(&mut s, Event::Submitted(piece(1, 0..3))), []);
        assert_eq!(
            handle(&mut s, Event::Finished { cell: 0 }),
            [Action::Send { cell: 0, piece: piece(1, 0..3) }]
        );
        assert_eq!(s.outstanding(), 1);
    }

    #[test]
    fn a_death_fails_only_the_item_that_ran() {
        let mut s = Scheduler::new(Fifo::default(), 1, 8);
        handle(&mut s, Event::Submitted(piece(0, 0..10)));
        let running = vec![Running { cell: 0, saved: 3, current: 5 }];
        let actions = handle(&mut s, Event::WorkerDied { worker: 0, running, lost: vec![], waiting: true });
        // Saved 0..3 are kept, 3..5 were done but their results died, 5 is to blame, 6..10 never began.
        assert_eq!(actions[0], Action::Fail { job: 1, load: 0, item: 5 });
        assert_eq!(actions[1], Action::Send { cell: 0, piece: piece(0, 3..5) });
        assert_eq!(actions[2], Action::Send { cell: 1, piece: piece(0, 6..10) });
        assert_eq!(actions[3], Action::Spawn { worker: 0 });
    }

    #[test]
    fn a_retry_comes_before_the_rest_and_counts_down() {
        let mut s = Scheduler::new(Fifo::default(), 1, 1);
        let first = Piece { retries: 1, ..piece(0, 0..3) };
        handle(&mut s, Event::Submitted(first.clone()));
        let died = |saved, current| Event::WorkerDied {
            worker: 0,
            running: vec![Running { cell: 0, saved, current }],
            lost: vec![],
            waiting: true,
        };
        let actions = handle(&mut s, died(1, 1));
        assert_eq!(actions[0], Action::Send { cell: 0, piece: piece(0, 1..2) });
        let actions = handle(&mut s, died(1, 1));
        assert_eq!(actions[0], Action::Fail { job: 1, load: 0, item: 1 });
        assert_eq!(actions[1], Action::Send { cell: 0, piece: Piece { items: 2..3, ..first } });
    }

    #[test]
    fn what_was_taken_but_not_begun_is_sent_again_unharmed() {
        let mut s = Scheduler::new(Fifo::default(), 1, 1);
        handle(&mut s, Event::Submitted(piece(0, 0..3)));
        let actions =
            handle(&mut s, Event::WorkerDied { worker: 4, running: vec![], lost: vec![0], waiting: true });
        assert_eq!(actions, [Action::Send { cell: 0, piece: piece(0, 0..3) }, Action::Spawn { worker: 4 }]);
    }

    #[test]
    fn idle_workers_may_die_as_often_as_they_like() {
        let mut s = Scheduler::new(Fifo::default(), 1, 1);
        let died = || Event::WorkerDied { worker: 0, running: vec![], lost: vec![], waiting: false };
        for _ in 0..10 * FUTILE_DEATHS {
            assert_eq!(handle(&mut s, died()), [Action::Spawn { worker: 0 }]);
        }
        assert!(s.is_open());
    }

    #[test]
    fn a_pool_whose_workers_only_die_gives_up() {
        let mut s = Scheduler::new(Fifo::default(), 2, 1);
        handle(&mut s, Event::Submitted(piece(0, 0..1)));
        handle(&mut s, Event::Submitted(piece(1, 0..1)));
        let died = || Event::WorkerDied { worker: 0, running: vec![], lost: vec![], waiting: true };
        for _ in 1..2 * FUTILE_DEATHS {
            assert_eq!(handle(&mut s, died()), [Action::Spawn { worker: 0 }]);
        }
        assert_eq!(handle(&mut s, died()), [Action::Discard(piece(1, 0..1)), Action::GiveUp]);
        assert!(!s.is_open());
        assert_eq!(handle(&mut s, Event::Submitted(piece(2, 0..1))), [Action::Discard(piece(2, 0..1))]);
    }

    #[test]
    fn closing_drains_once_everything_is_done() {
        let mut s = Scheduler::new(Fifo::default(), 1, 1);
        handle(&mut s, Event::Submitted(piece(0, 0..1)));
        assert_eq!(handle(&mut s, Event::Closed), []);
        assert_eq!(handle(&mut s, Event::Finished { cell: 0 }), [Action::Drained]);
        let died = Event::WorkerDied { worker: 0, running: vec![], lost: vec![], waiting: true };
        assert_eq!(handle(&mut s, died), [], "nobody is replaced any more");
    }

    #[test]
    fn numbers_out_of_range_change_nothing_that_is_not_theirs() {
        let mut s = Scheduler::new(Fifo::default(), 1, 2);
        handle(&mut s, Event::Submitted(piece(0, 4..6)));
        assert_eq!(handle(&mut s, Event::Finished { cell: 77 }), []);
        let running =
            vec![Running { cell: 0, saved: u32::MAX, current: 0 }, Running { cell: 9, saved: 0, current: 0 }];
        let actions =
            handle(&mut s, Event::WorkerDied { worker: 0, running, lost: vec![1, 99], waiting: true });
        assert_eq!(actions, [Action::Spawn { worker: 0 }], "all items counted as saved");
        assert_eq!(s.outstanding(), 0);
    }

    #[test]
    fn dropping_a_job_discards_what_waits_of_it() {
        let mut s = Scheduler::new(Fifo::default(), 1, 1);
        handle(&mut s, Event::Submitted(piece(0, 0..1)));
        let other = Piece { job: 2, ..piece(1, 0..1) };
        handle(&mut s, Event::Submitted(other.clone()));
        handle(&mut s, Event::Submitted(piece(2, 0..1)));
        assert_eq!(handle(&mut s, Event::JobDropped { job: 1 }), []);
        assert_eq!(handle(&mut s, Event::Finished { cell: 0 }), [Action::Send { cell: 0, piece: other }]);
        assert_eq!(handle(&mut s, Event::Finished { cell: 0 }), [Action::Discard(piece(2, 0..1))]);
        assert_eq!(s.outstanding(), 0);
        handle(&mut s, Event::JobOpened { job: 1 });
        assert_eq!(
            handle(&mut s, Event::Submitted(piece(3, 0..1))),
            [Action::Send { cell: 0, piece: piece(3, 0..1) }],
            "the number is that of a new job"
        );
    }

    #[test]
    fn what_a_dead_worker_had_of_a_dropped_job_does_not_run_again() {
        let mut s = Scheduler::new(Fifo::default(), 1, 1);
        handle(&mut s, Event::Submitted(Piece { retries: 9, ..piece(0, 0..3) }));
        handle(&mut s, Event::JobDropped { job: 1 });
        let running = vec![Running { cell: 0, saved: 0, current: 0 }];
        let actions = handle(&mut s, Event::WorkerDied { worker: 0, running, lost: vec![], waiting: true });
        assert!(matches!(actions[..], [Action::Discard(_), Action::Discard(_), Action::Spawn { worker: 0 }]));
        assert_eq!(s.outstanding(), 0);
    }

    /// Ten thousand workers that die at random: every item gets exactly one outcome.
    #[test]
    fn ten_thousand_mortal_workers_finish_every_item_once() {
        let (workers, cells) = (10_000, 20_000);
        let mut s = Scheduler::new(Fifo::default(), workers, cells);
        let mut random = 0x2545_F491_4F6C_DD1D_u64;
        let mut draw = move |below: u32| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            u32::try_from(random % u64::from(below)).expect("below a u32")
        };
        let mut outcomes: HashMap<(u32, u32), u32> = HashMap::new();
        let mut queue: VecDeque<(u32, Piece)> = VecDeque::new();
        let mut actions = Vec::new();
        for load in 0..30_000 {
            s.handle(Event::Submitted(Piece { job: 0, load, items: 0..5, retries: 1 }), &mut actions);
        }
        loop {
            for action in actions.drain(..) {
                match action {
                    Action::Send { cell, piece } => queue.push_back((cell, piece)),
                    Action::Fail { load, item, .. } => *outcomes.entry((load, item)).or_default() += 1,
                    Action::Spawn { .. } => {}
                    other => panic!("unexpected {other:?}"),
                }
            }
            let Some((cell, piece)) = queue.pop_front() else {
                break;
            };
            let mut done =
                |items: Range<u32>| items.for_each(|i| *outcomes.entry((piece.load, i)).or_default() += 1);
            if draw(4) == 0 {
                let saved = piece.items.start + draw(piece.items.end - piece.items.start + 1);
                let current = saved + draw(piece.items.end - saved + 1);
                done(piece.items.start..saved);
                let running = vec![Running { cell, saved, current }];
                s.handle(
                    Event::WorkerDied { worker: draw(workers), running, lost: vec![], waiting: true },
                    &mut actions,
                );
            } else {
                done(piece.items.clone());
                s.handle(Event::Finished { cell }, &mut actions);
            }
        }
        assert_eq!(s.outstanding(), 0);
        assert_eq!(outcomes.len(), 150_000);
        assert!(outcomes.values().all(|&count| count == 1));
    }
}
