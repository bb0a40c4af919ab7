//! Kills an operation at one moment after the other; see the top of `every_instruction.rs`.

use super::common::{PATIENCE, watchdog_after};
use super::memory::Memory;
use super::tracer::{Parcel, Victim, is_permitted, mark};
use parking_lot::{Mutex, MutexGuard};
use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

/// More instructions than any operation here has: beyond, it is a loop that waits for something.
const MOST_INSTRUCTIONS: u32 = 1_000_000;

/// One operation and what may be found when its process has died in it. `S` is what survivors have, `V` what the victim has.
pub(crate) struct Operation<S, V> {
    pub(crate) name: &'static str,
    /// What may be found: first what is found if the victim dies before the operation, last if it dies after it.
    pub(crate) outcomes: &'static [&'static str],
    /// Makes a queue.
    pub(crate) prepare: fn() -> Scene<S>,
    /// In the victim, before the operation.
    pub(crate) arrive: fn(Parcel) -> V,
    /// In the victim: the operation.
    pub(crate) operate: fn(&mut V),
    /// After the victim's death: checks that everybody can go on, and says what is found.
    pub(crate) check: fn(S, &Memory) -> &'static str,
}

/// A queue that is ready for a victim.
pub(crate) struct Scene<S> {
    pub(crate) survivors: S,
    pub(crate) memory: Memory,
    /// For the victim.
    pub(crate) parcel: Parcel,
    /// Looks at what survivors have while the victim is stopped, before it is killed.
    pub(crate) watch: fn(&mut S),
}

/// A moment of a victim: so many system calls were made, and behind the last of them the next instruction is so often the
/// one at this address. (A repeated instruction is there before each repetition.)
#[derive(Clone, Copy, Debug)]
struct Moment {
    calls: u32,
    address: i64,
    visits: u32,
}

impl Moment {
    /// Lets a victim that stands at its first mark go on until then. Returns whether it has got there; if not, it is somewhere
    /// else, perhaps at its end.
    fn reach(self, victim: &mut Victim) -> bool {
        if !(0..self.calls).all(|_| victim.call()) {
            return false;
        }
        let mut visits = u32::from(victim.address() == self.address);
        while visits < self.visits {
            let went =
                if victim.address() == self.address { victim.step() } else { victim.run_to(self.address) };
            if !went {
                return false;
            }
            visits += u32::from(victim.address() == self.address);
        }
        true
    }
}

/// What a victim does from its first mark on, instruction by instruction.
struct Walk {
    instructions: u32,
    now: Moment,
    /// How often each address was visited since the last system call.
    visits: HashMap<i64, u32>,
}

impl Walk {
    fn begin(victim: &Victim) -> Self {
        let address = victim.address();
        let now = Moment { calls: 0, address, visits: 1 };
        Self { instructions: 0, now, visits: HashMap::from([(address, 1)]) }
    }

    /// One instruction. Returns whether it was a system call; nothing at the end.
    fn step(&mut self, victim: &mut Victim) -> Option<bool> {
        let is_call = victim.is_call(self.now.address);
        if !victim.step() {
            return None;
        }
        self.instructions += 1;
        assert!(self.instructions < MOST_INSTRUCTIONS, "the victim goes on for ever");
        if is_call {
            self.now.calls += 1;
            self.visits.clear();
        }
        self.now.address = victim.address();
        let visits = self.visits.entry(self.now.address).or_default();
        *visits += 1;
        self.now.visits = *visits;
        Some(is_call)
    }
}

/// Which instructions count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Count {
    /// Those that change the queue's memory.
    Changes,
    All,
}

/// A fork copies what other tests have open, handles included: one test at a time.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock()
}

/// Starts a victim that will do this when it is given a parcel.
pub(crate) fn victim<V>(arrive: fn(Parcel) -> V, operate: fn(&mut V)) -> Victim {
    Victim::start(|socket| {
        let mut mine = arrive(Parcel::receive(socket));
        mark();
        operate(&mut mine);
        mark();
        // What it has goes with the process, not before.
        std::mem::forget(mine);
    })
}

/// Somebody who dies in an operation before another one's victim comes.
pub(crate) struct Forerunner {
    name: &'static str,
    victim: Victim,
}

/// When forerunners die: by name and number of changes.
static FORERUNNERS: Mutex<BTreeMap<(&str, u32), Moment>> = Mutex::new(BTreeMap::new());

impl Forerunner {
    /// Starts it: before the queue is made. The name stands for what it does.
    pub(crate) fn start<V>(name: &'static str, arrive: fn(Parcel) -> V, operate: fn(&mut V)) -> Self {
        Self { name, victim: victim(arrive, operate) }
    }

    /// Kills it after it has changed the memory of its queue so often. `None` if it went astray: then nobody knows where it
    /// died, and another one must try on another queue.
    pub(crate) fn dies(mut self, parcel: Parcel, after_changes: u32) -> Option<()> {
        let mut memory = Memory::of(parcel.descriptor());
        self.victim.give(parcel);
        self.victim.meet();
        memory.has_changed();
        let name = (self.name, after_changes);
        let known = FORERUNNERS.lock().get(&name).copied();
        if let Some(moment) = known {
            if !moment.reach(&mut self.victim) {
                FORERUNNERS.lock().remove(&name);
                return None;
            }
        } else {
            let mut walk = Walk::begin(&self.victim);
            for _ in 0..after_changes {
                while !memory.has_changed() {
                    walk.step(&mut self.victim).expect("it is not done yet");
                }
            }
            FORERUNNERS.lock().insert(name, walk.now);
        }
        self.victim.kill();
        Some(())
    }
}

/// What the first attempt that does not go astray makes.
pub(crate) fn without_straying<T>(attempt: impl FnMut() -> Option<T>) -> T {
    std::iter::repeat_with(attempt).flatten().next().expect("it never ends")
}

impl<S, V> Operation<S, V> {
    /// Kills a victim at every moment that others can tell from the one before; in the full form after each instruction.
    pub(crate) fn die_everywhere(&self) {
        let _alone = alone();
        if !is_permitted() {
            return;
        }
        let is_full = std::env::var_os("EVERY_INSTRUCTION").is_some();
        let count = if is_full { Count::All } else { Count::Changes };
        let start = Instant::now();
        // What a process does once in its life is done when the first victim is forked, as for all others.
        drop((self.prepare)());
        let (instructions, moments) = self.survey(count);
        let mut found = BTreeMap::new();
        let mut astray = 0;
        for (i, &moment) in moments.iter().enumerate() {
            let (outcome, has_arrived) = self.die(moment);
            let legal = match i {
                _ if !has_arrived => self.outcomes,
                0 => &self.outcomes[..1],
                _ if i + 1 == moments.len() => &self.outcomes[self.outcomes.len() - 1..],
                _ => self.outcomes,
            };
            assert!(legal.contains(&outcome), "{}, killed at {moment:?}: {outcome}", self.name);
            *found.entry(outcome).or_insert(0) += 1;
            astray += u32::from(!has_arrived);
        }
        println!(
            "{}: {instructions} instructions, {} kills, found {found:?}, {astray} went astray; {:.1} s",
            self.name,
            moments.len(),
            start.elapsed().as_secs_f64()
        );
        for outcome in self.outcomes {
            assert!(found.contains_key(outcome), "{}: never '{outcome}', only {found:?}", self.name);
        }
    }

    /// A victim that stands before the operation.
    fn start(&self) -> (Victim, S, Memory, fn(&mut S)) {
        // It is forked before there is a queue, so that it inherits nothing of it.
        let mut victim = victim(self.arrive, self.operate);
        let Scene { survivors, mut memory, parcel, watch } = (self.prepare)();
        victim.give(parcel);
        victim.meet();
        memory.has_changed();
        (victim, survivors, memory, watch)
    }

    /// Lets one victim do the whole operation. Returns how many instructions that were, and all moments that count.
    fn survey(&self, count: Count) -> (u32, Vec<Moment>) {
        let _dog = watchdog_after(PATIENCE);
        let (mut victim, _survivors, mut memory, _) = self.start();
        let mut walk = Walk::begin(&victim);
        let mut moments = vec![walk.now];
        while let Some(is_call) = walk.step(&mut victim) {
            let has_changed = memory.has_changed();
            if is_call || has_changed || count == Count::All {
                moments.push(walk.now);
            }
        }
        (walk.instructions, moments)
    }

    /// Kills a victim at this moment. Returns what is found then, and whether the moment has come.
    fn die(&self, moment: Moment) -> (&'static str, bool) {
        let _dog = watchdog_after(PATIENCE);
        let (mut victim, mut survivors, memory, watch) = self.start();
        let has_arrived = moment.reach(&mut victim);
        watch(&mut survivors);
        victim.kill();
        ((self.check)(survivors, &memory), has_arrived)
    }
}
