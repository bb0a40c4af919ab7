//! The memory that small values live in.

use crate::start::{Start, until};
use proc_pool::shared::{Event, Mutex, Shared, SharedArray, arena_usage};

conformance! {
    conformance_heap
    conformance_free_from_gc
}

/// As many as CPython makes.
const ROUNDS: u64 = 5000;
const MOST: usize = 50;

/// Blocks of six sizes.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
enum Block {
    A(Shared<Mutex<u64>>),
    B(Shared<Mutex<[u64; 4]>>),
    C(Shared<Mutex<[u64; 15]>>),
    D(Shared<Mutex<[u64; 60]>>),
    E(Shared<Mutex<[u64; 200]>>),
    F(Shared<Mutex<[u64; 1000]>>),
}

impl Block {
    /// With the same number in every word.
    fn new(size: u64, number: u64) -> Self {
        match size {
            0 => Self::A(Shared::new(Mutex::new(number)).expect("made")),
            1 => Self::B(Shared::new(Mutex::new([number; 4])).expect("made")),
            2 => Self::C(Shared::new(Mutex::new([number; 15])).expect("made")),
            3 => Self::D(Shared::new(Mutex::new([number; 60])).expect("made")),
            4 => Self::E(Shared::new(Mutex::new([number; 200])).expect("made")),
            _ => Self::F(Shared::new(Mutex::new([number; 1000])).expect("made")),
        }
    }

    /// Asserts that every word is this number, and makes it the next one.
    fn step(&self, number: u64) {
        let step = |words: &mut [u64]| {
            assert!(words.iter().all(|&word| word == number), "somebody else wrote here");
            words.fill(number + 1);
        };
        match self {
            Self::A(block) => step(std::slice::from_mut(&mut *block.lock().expect("free"))),
            Self::B(block) => step(&mut *block.lock().expect("free")),
            Self::C(block) => step(&mut *block.lock().expect("free")),
            Self::D(block) => step(&mut *block.lock().expect("free")),
            Self::E(block) => step(&mut *block.lock().expect("free")),
            Self::F(block) => step(&mut *block.lock().expect("free")),
        }
    }
}

/// Numbers that look random, the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

fn conformance_heap(start: Start) {
    let before = arena_usage();
    let mut random = Random(7);
    let mut blocks: Vec<(u64, Block)> = Vec::new();
    for number in 0..ROUNDS {
        let size = random.below(6);
        blocks.push((number << 8, Block::new(size, number << 8)));
        if blocks.len() > MOST {
            let at = random.below(blocks.len() as u64);
            let (number, block) = blocks.swap_remove(usize::try_from(at).expect("an index"));
            block.step(number);
        }
    }
    let usage = arena_usage();
    assert_eq!(usage.live - before.live, blocks.len());
    assert_eq!(usage.live + usage.free, usage.blocks);

    // They belong to whoever has them.
    let done = Shared::builder().own_segment().build(Event::new()).expect("made");
    let holder = |(blocks, done): (Vec<(u64, Block)>, Shared<Event>)| {
        done.wait();
        blocks.iter().for_each(|(number, block)| block.step(*number));
    };
    let child = start.start(holder, (blocks.clone(), done.clone()));
    drop(blocks);
    // If they were free, these would take them.
    let others: Vec<Block> = (0..6).flat_map(|size| [size; MOST]).map(|size| Block::new(size, 1)).collect();
    done.set();
    child.join();
    others.iter().for_each(|block| block.step(1));
    drop(others);
    // A process lets go when it is gone, a moment after its end.
    until(|| arena_usage() == before);
}

/// A value may hold the last handle of another, and be dropped wherever it is: under a lock, while a thread ends.
fn conformance_free_from_gc(start: Start) {
    std::thread_local! {
        static KEPT: std::cell::RefCell<Vec<Shared<Mutex<u64>>>> = const { std::cell::RefCell::new(Vec::new()) };
    }
    let before = arena_usage();
    let drops_everywhere = |log: SharedArray<u64>| {
        for number in 0..500 {
            let value = Shared::new(Mutex::new(number)).expect("made");
            let other = Shared::new(Mutex::new(number)).expect("made");
            // Kept by the thread until it ends, and freed while it does.
            KEPT.with_borrow_mut(|kept| kept.push(other.clone()));
            let mut guard = log.lock().expect("free");
            guard[0] += *value.lock().expect("free");
            let locked = other.lock().expect("free");
            // Frees a block under two locks, one of them in the same arena.
            drop(value);
            drop(locked);
            drop(other);
        }
    };
    let log = SharedArray::zeroed(1).expect("made");
    let thread = {
        let log = log.clone();
        std::thread::spawn(move || drops_everywhere(log))
    };
    start.run(drops_everywhere, log.clone());
    thread.join().expect("no panic");
    assert_eq!(log.get(0).expect("there"), 2 * (0..500).sum::<u64>());
    until(|| arena_usage() == before);
}
