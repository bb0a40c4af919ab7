//! Models of the chunks in which large messages lie: the real code, over a ring of one slot per ticket that is abstracted to
//! a flag.

use super::{Acquire, Arc, AtomicBool, Release, UnsafeCell, thread};
use ipc_queue::chunks::{Chunks, Run};
use shm_core::sync::{AtomicU32, AtomicU64};

/// Chunks with one cell of memory each, the slots of a few tickets, and a flag for each that has died.
pub(super) struct Store {
    words: Vec<AtomicU64>,
    tags: Vec<AtomicU64>,
    memory: Vec<UnsafeCell<u64>>,
    /// 0, or what a slot refers to: head + 1.
    published: Vec<AtomicU32>,
    generations: Vec<AtomicU32>,
    released: Vec<AtomicBool>,
    dead: Vec<AtomicBool>,
}

// SAFETY: loom checks the protocol that makes it so.
unsafe impl Sync for Store {}
// SAFETY: as above.
unsafe impl Send for Store {}

impl Store {
    fn new(count: usize, tickets: usize) -> Arc<Self> {
        Arc::new(Self {
            words: (0..count).map(|_| AtomicU64::new(0)).collect(),
            tags: (0..count).map(|_| AtomicU64::new(0)).collect(),
            memory: (0..count).map(|_| UnsafeCell::new(0)).collect(),
            published: (0..tickets).map(|_| AtomicU32::new(0)).collect(),
            generations: (0..tickets).map(|_| AtomicU32::new(0)).collect(),
            released: (0..tickets).map(|_| AtomicBool::new(false)).collect(),
            dead: (0..4).map(|_| AtomicBool::new(false)).collect(),
        })
    }

    fn chunks(&self) -> Chunks<'_> {
        Chunks::new(&self.words, &self.tags)
    }

    fn claim(&self, me: u16, len: usize) -> Run {
        loop {
            if let Ok(run) = self.chunks().claim(me, len) {
                return run;
            }
            thread::yield_now();
        }
    }

    fn write(&self, run: &Run, message: u64) {
        for chunk in run.head()..run.head() + run.len() {
            // SAFETY: loom checks that nobody else uses the cell.
            self.memory[chunk].with_mut(|cell| unsafe { *cell = message });
        }
    }

    fn assert_holds(&self, run: &Run, message: u64) {
        for chunk in run.head()..run.head() + run.len() {
            // SAFETY: as above.
            self.memory[chunk].with(|cell| assert_eq!(unsafe { *cell }, message, "a torn message"));
        }
    }

    fn publish(&self, ticket: usize, run: Run) {
        let (head, generation) = (run.head() as u32, run.generation() as u32);
        self.chunks().queue(run, ticket as u64);
        self.generations[ticket].store(generation, Release);
        self.published[ticket].store(head + 1, Release);
    }

    fn send(&self, me: u16, len: usize, ticket: usize, message: u64) {
        let run = self.claim(me, len);
        self.write(&run, message);
        self.publish(ticket, run);
    }

    fn take(&self, me: u16, ticket: usize) -> Run {
        let head = loop {
            match self.published[ticket].load(Acquire) {
                0 => thread::yield_now(),
                head => break head as usize - 1,
            }
        };
        let generation = self.generations[ticket].load(Acquire).into();
        let run = self.chunks().take(me, head, generation).expect("a published message has its run");
        self.released[ticket].store(true, Release);
        run
    }

    fn collect(&self, me: u16) -> usize {
        self.chunks().collect(me, |ticket| self.released[ticket as usize].load(Acquire))
    }

    fn die(&self, me: u16) {
        self.dead[usize::from(me)].store(true, Release);
    }

    fn is_dead(&self, me: u16) -> bool {
        self.dead[usize::from(me)].load(Acquire)
    }
}

fn spawn(store: &Arc<Store>, body: impl FnOnce(&Store) + 'static) -> loom::thread::JoinHandle<()> {
    let store = store.clone();
    loom::thread::spawn(move || body(&store))
}

/// Chunks go from hand to hand with what was done to them.
pub(super) fn chunks_pass_from_one_owner_to_the_next() {
    let store = Store::new(2, 2);
    let sender = spawn(&store, |s| {
        s.send(1, 2, 0, 10);
        s.send(1, 2, 1, 11);
    });
    for (ticket, message) in [(0, 10), (1, 11)] {
        let run = store.take(2, ticket);
        store.assert_holds(&run, message);
        store.chunks().release(run);
    }
    sender.join().unwrap();
    assert_eq!(store.chunks().in_use(), 0);
}

/// Two claims that overlap never share a chunk.
pub(super) fn overlapping_claims_share_nothing() {
    let store = Store::new(3, 0);
    let claimer = |me: u16, len: usize| {
        move |s: &Store| {
            if let Ok(run) = s.chunks().claim(me, len) {
                s.write(&run, me.into());
                s.assert_holds(&run, me.into());
                s.chunks().release(run);
            }
        }
    };
    let claimers = [1, 2].map(|me| spawn(&store, claimer(me, 2)));
    claimers.map(|claimer| claimer.join().unwrap());
    assert_eq!(store.chunks().in_use(), 0);
}

/// A collector frees what was lost, and never what is published: not even if it is looked at with an old tag.
pub(super) fn a_collector_frees_only_what_is_lost() {
    let store = Store::new(1, 2);
    // Ticket 0 is taken and released before: its tag stands in the table.
    store.send(1, 1, 0, 10);
    let run = store.take(2, 0);
    store.chunks().release(run);
    let sender = spawn(&store, |s| s.send(1, 1, 1, 11));
    let collector = spawn(&store, |s| assert_eq!(s.collect(3), 0, "a living message is freed"));
    sender.join().unwrap();
    collector.join().unwrap();
    let run = store.take(2, 1);
    store.assert_holds(&run, 11);
}

/// A consumer dies between the claim of a slot and the claim of its run; a collector frees the run for the next.
pub(super) fn what_a_collector_frees_can_be_used_again() {
    let store = Store::new(1, 1);
    let sender = spawn(&store, |s| {
        let run = s.claim(1, 1);
        s.write(&run, 10);
        s.chunks().queue(run, 0);
    });
    let collector = spawn(&store, |s| {
        s.released[0].store(true, Release);
        if s.collect(2) == 1 {
            let run = s.claim(3, 1);
            s.write(&run, 12);
            s.chunks().release(run);
        }
    });
    sender.join().unwrap();
    collector.join().unwrap();
    store.collect(2);
    assert_eq!(store.chunks().in_use(), 0);
}

/// A claimant dies with tails half claimed; a sweep frees them while another claims.
pub(super) fn a_sweep_frees_what_the_dead_had() {
    let store = Store::new(2, 1);
    let victim = spawn(&store, |s| {
        let run = s.claim(1, 2);
        s.write(&run, 10);
        std::mem::forget(run);
        s.die(1);
    });
    let survivor = spawn(&store, |s| {
        if s.is_dead(1) {
            s.chunks().sweep(1);
            s.send(2, 1, 0, 12);
        }
    });
    victim.join().unwrap();
    survivor.join().unwrap();
    store.chunks().sweep(1);
    assert!(store.chunks().in_use() <= 1);
}
