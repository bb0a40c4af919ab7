//! Models of the cells in which messages stay until they are acknowledged: the real code, over a ring that is abstracted to
//! what was published and released of each ticket.

use super::{Acquire, Arc, AtomicBool, RACE, Release, UnsafeCell, thread};
use ipc_queue::cells::{Cell, Cells, Notice, Place};
use shm_core::sync::{AtomicU64, AtomicUsize, light_fence};
use shm_core::wait::{Pace, WaitLine};

/// Which model notices which weakened ordering, and as what.
pub(super) const CONTROLS: &[(&str, fn(), &str)] = &[
    ("cells.look", cells_pass_from_one_message_to_the_next, RACE),
    ("cells.free", cells_pass_from_one_message_to_the_next, RACE),
    ("cells.queue", only_what_is_lost_is_brought_back, TWICE),
    ("cells.take", only_what_is_lost_is_brought_back, TWICE),
    ("cells.return", a_message_that_comes_back_is_whole, RACE),
    ("cells.drained", a_follow_up_is_waited_for, EARLY),
    ("cells.notice_up", two_that_come_back_are_both_found, MISSED),
    ("cells.notice_down", two_that_come_back_are_both_found, MISSED),
];

const TWICE: &str = "a message that lies in the ring comes back";
const EARLY: &str = "drained before the follow-up is done";
const MISSED: &str = "a message that came back is missed";

/// Cells with one word of memory each, the slots of a few tickets, and what a control block has.
struct Shelf {
    words: Vec<AtomicU64>,
    tags: Vec<AtomicU64>,
    memory: Vec<UnsafeCell<u64>>,
    /// 0, or the place that a slot refers to, plus one.
    published: Vec<AtomicU64>,
    released: Vec<AtomicBool>,
    dead: AtomicBool,
    notice: Notice,
    line: WaitLine,
}

// SAFETY: loom checks the protocol that makes it so.
unsafe impl Sync for Shelf {}
// SAFETY: as above.
unsafe impl Send for Shelf {}

impl Shelf {
    fn new(count: usize, tickets: usize) -> Arc<Self> {
        Arc::new(Self {
            words: (0..count).map(|_| AtomicU64::new(0)).collect(),
            tags: (0..count).map(|_| AtomicU64::new(0)).collect(),
            memory: (0..count).map(|_| UnsafeCell::new(0)).collect(),
            published: (0..tickets).map(|_| AtomicU64::new(0)).collect(),
            released: (0..tickets).map(|_| AtomicBool::new(false)).collect(),
            dead: AtomicBool::new(false),
            notice: Notice::new(),
            line: WaitLine::new(),
        })
    }

    fn cells(&self) -> Cells<'_> {
        Cells::new(&self.words, &self.tags)
    }

    /// Writes a message into a free cell.
    fn draft(&self, me: u16, message: u64) -> Cell {
        let cell = loop {
            if let Some(cell) = self.cells().claim(me, &AtomicUsize::new(0)) {
                break cell;
            }
            thread::yield_now();
        };
        // SAFETY: loom checks that nobody else uses it.
        self.memory[cell.index()].with_mut(|memory| unsafe { *memory = message });
        cell
    }

    fn send(&self, me: u16, ticket: usize, message: u64) {
        let cell = self.draft(me, message);
        let place = cell.place().bits();
        self.cells().queue(cell, ticket as u64);
        self.published[ticket].store(place + 1, Release);
    }

    fn receive(&self, me: u16, ticket: usize) -> Cell {
        let place = loop {
            match self.published[ticket].load(Acquire) {
                0 => thread::yield_now(),
                place => break Place::from_bits(place - 1),
            }
        };
        let cell = self.cells().take(me, place).expect("a published message has its cell");
        self.released[ticket].store(true, Release);
        cell
    }

    /// A message on lease that was sent with this ticket.
    fn leased(&self, me: u16, ticket: usize, message: u64) -> Cell {
        self.send(1, ticket, message);
        self.receive(me, ticket)
    }

    fn assert_holds(&self, cell: &Cell, message: u64) {
        // SAFETY: as in `draft`.
        self.memory[cell.index()].with(|memory| assert_eq!(unsafe { *memory }, message, "a torn message"));
    }

    fn collect(&self) -> usize {
        self.cells().collect(|ticket| self.released[ticket as usize].load(Acquire))
    }

    fn give_back(&self, cell: Cell) {
        self.cells().give_back(cell);
        self.notice.put_up();
        self.line.notify(1);
    }

    /// Acknowledges, and wakes whoever waits for the last one.
    fn acknowledge(&self, cell: Cell) {
        self.cells().release(cell);
        light_fence();
        if self.line.has_sleepers() && !self.cells().has_rest(&AtomicUsize::new(0)) {
            self.line.notify_all();
        }
    }

    /// As a receiver does before it looks at the ring.
    fn take_returned(&self, me: u16) -> Option<Cell> {
        if !self.notice.is_up() {
            return None;
        }
        self.notice.heed(|| self.cells().take_returned(me, &AtomicUsize::new(0)))
    }
}

fn spawn<R: 'static>(
    shelf: &Arc<Shelf>,
    body: impl FnOnce(&Shelf) -> R + 'static,
) -> loom::thread::JoinHandle<R> {
    let shelf = shelf.clone();
    loom::thread::spawn(move || body(&shelf))
}

/// A cell goes from hand to hand with what was done to it.
pub(super) fn cells_pass_from_one_message_to_the_next() {
    let shelf = Shelf::new(1, 2);
    let sender = spawn(&shelf, |s| {
        s.send(1, 0, 10);
        s.send(1, 1, 11);
    });
    for (ticket, message) in [(0, 10), (1, 11)] {
        let cell = shelf.receive(2, ticket);
        assert_eq!(cell.deliveries(), 1);
        shelf.assert_holds(&cell, message);
        shelf.cells().release(cell);
    }
    sender.join().unwrap();
    assert!(shelf.cells().is_drained(&mut Vec::new()));
}

/// Whoever brings lost messages back leaves those in the ring alone, though the tag of an earlier one stands in the table.
pub(super) fn only_what_is_lost_is_brought_back() {
    let shelf = Shelf::new(1, 2);
    let cell = shelf.leased(2, 0, 10);
    shelf.cells().release(cell);
    let sender = spawn(&shelf, |s| s.send(1, 1, 11));
    let collector = spawn(&shelf, |s| assert_eq!(s.collect(), 0, "{TWICE}"));
    sender.join().unwrap();
    collector.join().unwrap();
    let cell = shelf.receive(2, 1);
    shelf.assert_holds(&cell, 11);
}

/// The next receiver sees all of a message that another one gave back.
pub(super) fn a_message_that_comes_back_is_whole() {
    let shelf = Shelf::new(1, 1);
    let first = spawn(&shelf, |s| {
        let cell = s.leased(2, 0, 10);
        s.cells().give_back(cell);
    });
    let cell = loop {
        // Without the notice: the cell alone must do.
        match shelf.cells().take_returned(3, &AtomicUsize::new(0)) {
            Some(cell) => break cell,
            None => thread::yield_now(),
        }
    };
    assert_eq!(cell.deliveries(), 2);
    shelf.assert_holds(&cell, 10);
    first.join().unwrap();
}

/// A receiver dies with a message on lease; whoever finds out brings it back, for two to quarrel about.
pub(super) fn what_the_dead_had_goes_to_one() {
    let shelf = Shelf::new(1, 1);
    shelf.send(1, 0, 10);
    let victim = spawn(&shelf, |s| {
        std::mem::forget(s.receive(2, 0));
        s.dead.store(true, Release);
    });
    let survivor = |me| {
        move |s: &Shelf| {
            if s.dead.load(Acquire) {
                s.cells().sweep(2);
                s.notice.put_up();
            }
            let taken = s.take_returned(me);
            taken.inspect(|cell| s.assert_holds(cell, 10)).map_or(0, |cell| cell.deliveries())
        }
    };
    let other = spawn(&shelf, survivor(3));
    let taken = survivor(4)(&shelf) + other.join().unwrap();
    victim.join().unwrap();
    assert!(taken == 0 || taken == 2, "{taken}");
    shelf.cells().sweep(2);
    shelf.notice.put_up();
    assert_eq!(shelf.take_returned(4).is_some(), taken == 0, "{MISSED}");
}

/// A receiver sends a follow-up before it acknowledges its own: at no moment is everything done.
pub(super) fn a_follow_up_is_waited_for() {
    let shelf = Shelf::new(2, 3);
    // The follow-up gets the cell in front of the one that is acknowledged.
    let front = shelf.leased(2, 0, 10);
    let own = shelf.leased(2, 1, 11);
    shelf.cells().release(front);
    let worker = spawn(&shelf, |s| {
        s.send(2, 2, 12);
        s.cells().release(own);
    });
    assert!(!shelf.cells().is_drained(&mut Vec::new()), "{EARLY}");
    worker.join().unwrap();
    let cell = shelf.receive(3, 2);
    shelf.cells().release(cell);
    assert!(shelf.cells().is_drained(&mut Vec::new()));
}

/// Two messages come back at once, and one notice says so.
pub(super) fn two_that_come_back_are_both_found() {
    let shelf = Shelf::new(2, 2);
    let givers = [(2, 0), (3, 1)].map(|(me, ticket)| {
        let cell = shelf.leased(me, ticket, 10);
        spawn(&shelf, move |s| s.give_back(cell))
    });
    let mut found = 0;
    for _ in 0..3 {
        found += usize::from(shelf.take_returned(4).is_some());
    }
    for giver in givers {
        giver.join().unwrap();
    }
    while shelf.take_returned(4).is_some() {
        found += 1;
    }
    assert_eq!(found, 2, "{MISSED}");
}

/// Two receivers heed the notice of one message.
pub(super) fn one_that_comes_back_is_found_by_one() {
    let shelf = Shelf::new(1, 1);
    let cell = shelf.leased(2, 0, 10);
    let giver = spawn(&shelf, move |s| s.give_back(cell));
    let other = spawn(&shelf, |s| s.take_returned(3).is_some());
    let mut found = usize::from(shelf.take_returned(4).is_some());
    giver.join().unwrap();
    found += usize::from(other.join().unwrap());
    found += usize::from(shelf.take_returned(4).is_some());
    assert_eq!(found, 1, "{MISSED}");
}

/// A receiver sleeps without a deadline: a notice that it misses is a deadlock.
pub(super) fn a_sleeper_hears_of_what_comes_back() {
    let shelf = Shelf::new(1, 1);
    let cell = shelf.leased(2, 0, 10);
    let sleeper = spawn(&shelf, |s| {
        let found = s.line.wait(&Pace::new(), 0, None, || s.take_returned(3), || None);
        found.expect("no deadline").deliveries()
    });
    shelf.give_back(cell);
    assert_eq!(sleeper.join().unwrap(), 2);
}

/// Two acknowledge the last messages at once: one of them at least finds nothing left.
pub(super) fn one_of_two_knows_that_it_acknowledges_the_last() {
    let shelf = Shelf::new(2, 2);
    let [mine, theirs] = [(2, 0), (3, 1)].map(|(me, ticket)| shelf.leased(me, ticket, 10));
    let acknowledge = |s: &Shelf, cell| {
        s.cells().release(cell);
        s.cells().has_rest(&AtomicUsize::new(0))
    };
    let other = spawn(&shelf, move |s| acknowledge(s, theirs));
    let rest = acknowledge(&shelf, mine);
    assert!(!(other.join().unwrap() && rest), "each leaves it to the other");
}

/// Somebody sleeps without a deadline until both messages are acknowledged: a wake-up that it misses is a deadlock.
pub(super) fn the_last_acknowledgement_wakes_who_waits_for_it() {
    let shelf = Shelf::new(2, 2);
    let workers = [(2, 0), (3, 1)].map(|(me, ticket)| {
        let cell = shelf.leased(me, ticket, 10);
        spawn(&shelf, move |s| s.acknowledge(cell))
    });
    let look = || shelf.cells().is_drained(&mut Vec::new()).then_some(());
    shelf.line.wait(&Pace::new(), 0, None, look, || None).expect("no deadline");
    workers.into_iter().for_each(|worker| worker.join().unwrap());
}
