//! What the players do with a lock, and what they check each time they have it.
//!
//! * Whoever is inside alone writes its tag into the table, and finds nobody's there, unless it was warned of a death;
//!   then it may find the tag of one who was to be killed.
//! * Two numbers under the lock are equal, unless there was a warning.
//! * Nobody writes beside a reader. There are as many slots as permits, so whoever has a permit finds a slot that is free or
//!   belongs to somebody who was to be killed.
//! * A barrier lets nobody pass who has not met somebody, and goes on passing rounds.
//! * Whoever waits for a change is told of it, also when the one that was told first is killed.

use crate::Dice;
use serde::{Deserialize, Serialize};
use shm_array::{
    Barrier, BarrierError, Condvar, LockError, Mutex, MutexGuard, ReentrantMutex, RwLock, Semaphore, Shared,
    ShmSafe,
};
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Players at a time.
pub(crate) const SEATS: usize = 4;
pub(crate) const PERMITS: usize = 2;
/// Parties of a barrier, fewer than there are players.
pub(crate) const PARTIES: usize = 2;
/// Items that there is room for.
const ROOM: u64 = 2;
/// How long players wait who are not in earnest.
const SHORTLY: Duration = Duration::from_millis(1);

/// Two numbers that are equal whenever nobody is inside.
pub(crate) type Pair = [u64; 2];

/// The same for a lock that lends them by shared reference.
pub(crate) type Words = [AtomicU64; 2];

/// What is played.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Game {
    Mutex(Shared<Mutex<Pair>>),
    Reentrant(Shared<ReentrantMutex<Words>>),
    RwLock(Shared<RwLock<Pair>>),
    Semaphore(Shared<Semaphore<PERMITS>>),
    Condvar(Store),
    Barrier(Shared<Barrier<PARTIES>>),
}

/// A store of items, of which only the number is kept, twice.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Store {
    pub(crate) items: Shared<Mutex<Pair>>,
    pub(crate) not_empty: Shared<Condvar>,
    pub(crate) not_full: Shared<Condvar>,
    /// Not zero: nobody waits any more.
    pub(crate) is_closed: Shared<AtomicU64>,
}

/// Who plays: a place at the table, and which process had it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Player {
    pub(crate) seat: usize,
    pub(crate) incarnation: u64,
}

impl Player {
    fn tag(self) -> u64 {
        self.incarnation << 8 | (self.seat as u64 + 1)
    }

    fn of(tag: u64) -> Self {
        let seat = usize::try_from(tag & 0xff).expect("a byte") - 1;
        Self { seat, incarnation: tag >> 8 & 0xffff_ffff }
    }
}

/// What the players write down outside of the locks' protection.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Table {
    operations: AtomicU64,
    /// How often somebody was told of a death.
    warnings: AtomicU64,
    /// By seat: the last incarnation that was killed, or is about to be.
    doomed: [AtomicU64; SEATS],
    /// The tag of the one who is inside alone.
    alone: AtomicU64,
    /// By seat: the tag of a reader inside.
    reading: [AtomicU64; SEATS],
    /// The tags of those who have a permit, each with a stamp of its own in the upper bits.
    slots: [AtomicU64; PERMITS],
    /// How often somebody came to the barrier, and how many rounds had a leader.
    arrivals: AtomicU64,
    rounds: AtomicU64,
}

// SAFETY: `repr(C)`, 64-bit atomics only.
unsafe impl ShmSafe for Table {
    const LAYOUT: u64 = shm_core::portable::layout_of::<Self>("the table of the kill tests");
}

impl Table {
    pub(crate) fn operations(&self) -> u64 {
        self.operations.load(Ordering::SeqCst)
    }

    pub(crate) fn warnings(&self) -> u64 {
        self.warnings.load(Ordering::SeqCst)
    }

    /// Says that the player will be killed.
    pub(crate) fn doom(&self, player: Player) {
        self.doomed[player.seat].store(player.incarnation, Ordering::SeqCst);
    }

    /// Whether the player of this tag was killed, or is about to be. If not, it is alive.
    fn is_doomed(&self, tag: u64) -> bool {
        let player = Player::of(tag);
        self.doomed[player.seat].load(Ordering::SeqCst) >= player.incarnation
    }

    /// The seat of somebody inside, if there is one.
    pub(crate) fn seat_inside(&self) -> Option<usize> {
        let inside = [&self.alone].into_iter().chain(&self.reading).chain(&self.slots);
        let tags = inside.map(|word| word.load(Ordering::SeqCst));
        tags.filter(|&tag| tag != 0 && !self.is_doomed(tag)).map(|tag| Player::of(tag).seat).next()
    }

    fn enter_alone(&self, me: Player, is_warned: bool) {
        let before = self.alone.swap(me.tag(), Ordering::SeqCst);
        if is_warned {
            self.warnings.fetch_add(1, Ordering::SeqCst);
            assert!(
                before == 0 || self.is_doomed(before),
                "{me:?} takes the lock from the living {before:x}"
            );
        } else {
            assert_eq!(before, 0, "{me:?} is beside somebody, and not warned: {self:x?}");
        }
        for reader in &self.reading {
            let tag = reader.load(Ordering::SeqCst);
            assert!(tag == 0 || self.is_doomed(tag), "{me:?} writes beside a reader: {self:x?}");
        }
    }

    fn leave_alone(&self, me: Player) {
        let left = self.alone.compare_exchange(me.tag(), 0, Ordering::SeqCst, Ordering::SeqCst);
        assert!(left.is_ok(), "{me:?} was not alone: {self:x?}");
    }

    fn enter_reading(&self, me: Player) {
        self.reading[me.seat].store(me.tag(), Ordering::SeqCst);
        assert_eq!(self.alone.load(Ordering::SeqCst), 0, "{me:?} reads beside a writer: {self:x?}");
    }

    fn leave_reading(&self, me: Player) {
        assert_eq!(self.alone.load(Ordering::SeqCst), 0, "{me:?} read beside a writer: {self:x?}");
        self.reading[me.seat].store(0, Ordering::SeqCst);
    }

    /// Takes a slot that is free, or belongs to a doomed one. Returns it and what is in it.
    fn take_slot(&self, me: Player, dice: &mut Dice) -> (&AtomicU64, u64) {
        let mine = dice.below(1 << 24) << 40 | me.tag();
        let look = || [0, 1].map(|slot: usize| self.slots[slot].load(Ordering::SeqCst));
        let is_living = |tag: &u64| *tag != 0 && !self.is_doomed(*tag);
        loop {
            let tags = look();
            for (slot, tag) in self.slots.iter().zip(tags) {
                let may_be_had = !is_living(&tag);
                if may_be_had && slot.compare_exchange(tag, mine, Ordering::SeqCst, Ordering::SeqCst).is_ok()
                {
                    return (slot, mine);
                }
            }
            // Two looks that are the same: at some moment in between both slots were taken by the living.
            let are_full = look() == tags && tags.iter().all(is_living);
            assert!(!are_full, "{me:?} has a permit too many: {self:x?}");
        }
    }

    /// One operation more.
    fn count(&self) {
        self.operations.fetch_add(1, Ordering::SeqCst);
    }
}

/// Something that takes a while.
fn work(dice: &mut Dice) {
    for round in 0..dice.below(3000) {
        black_box(round);
    }
}

/// Changes both numbers, with some time in between.
fn step(pair: &mut Pair, dice: &mut Dice) {
    assert_eq!(pair[0], pair[1], "torn without a warning");
    let pair = black_box(pair);
    pair[0] += 1;
    work(dice);
    black_box(&mut *pair);
    pair[1] += 1;
}

fn repair(pair: &mut Pair) {
    assert!(pair[0] == pair[1] || pair[0] == pair[1] + 1, "{pair:?} was not left so by one death");
    pair[1] = pair[0];
}

impl Game {
    /// One operation, or none if the lock cannot be had soon.
    pub(crate) fn play(&self, table: &Table, me: Player, dice: &mut Dice) {
        match self {
            Self::Mutex(lock) => play_mutex(lock, table, me, dice),
            Self::Reentrant(lock) => play_reentrant(lock, table, me, dice),
            Self::RwLock(lock) if dice.below(3) == 0 => play_writer(lock, table, me, dice),
            Self::RwLock(lock) => play_reader(lock, table, me, dice),
            Self::Semaphore(semaphore) => play_semaphore(semaphore, table, me, dice),
            Self::Condvar(store) => store.play(table, me, dice),
            Self::Barrier(barrier) => play_barrier(barrier, table, me, dice),
        }
    }
}

fn play_mutex(lock: &Mutex<Pair>, table: &Table, me: Player, dice: &mut Dice) {
    let locked = match dice.below(8) {
        0 => lock.try_lock(),
        1 => lock.lock_timeout(SHORTLY),
        _ => lock.lock(),
    };
    let mut guard = match locked {
        Ok(guard) => {
            table.enter_alone(me, false);
            guard
        }
        Err(LockError::OwnerDied(mut guard)) => {
            table.enter_alone(me, true);
            repair(&mut guard);
            guard.mark_consistent();
            guard
        }
        Err(LockError::TimedOut | LockError::WouldBlock) => return,
        Err(error) => panic!("{error}"),
    };
    step(&mut guard, dice);
    table.leave_alone(me);
    drop(guard);
    table.count();
}

/// Two guards deep. Whoever is outside looks whether it is taken for the holder: every process numbers its threads alike.
pub(crate) fn play_reentrant(lock: &ReentrantMutex<Words>, table: &Table, me: Player, dice: &mut Dice) {
    for _ in 0..dice.below(100) {
        assert!(!lock.is_held_by_this_thread(), "{me:?} does not hold the lock: {lock:?}");
    }
    let locked = match dice.below(8) {
        0 => lock.try_lock(),
        1 => lock.lock_timeout(SHORTLY),
        _ => lock.lock(),
    };
    let outer = match locked {
        Ok(guard) => {
            table.enter_alone(me, false);
            guard
        }
        Err(LockError::OwnerDied(guard)) => {
            table.enter_alone(me, true);
            let mut pair = guard.each_ref().map(|word| word.load(Ordering::Relaxed));
            repair(&mut pair);
            guard[1].store(pair[1], Ordering::Relaxed);
            guard.mark_consistent();
            guard
        }
        Err(LockError::TimedOut | LockError::WouldBlock) => return,
        Err(error) => panic!("{error}"),
    };
    let inner = lock.lock().expect("it has it");
    let before = inner.each_ref().map(|word| word.load(Ordering::Relaxed));
    assert_eq!(before[0], before[1], "torn without a warning");
    for word in &*inner {
        word.store(before[0] + 1, Ordering::Relaxed);
        work(dice);
    }
    drop(inner);
    table.leave_alone(me);
    drop(outer);
    table.count();
}

fn play_writer(lock: &RwLock<Pair>, table: &Table, me: Player, dice: &mut Dice) {
    let locked = match dice.below(8) {
        0 => lock.try_write(),
        1 => lock.write_timeout(SHORTLY),
        _ => lock.write(),
    };
    let mut guard = match locked {
        Ok(guard) => {
            table.enter_alone(me, false);
            guard
        }
        Err(LockError::OwnerDied(mut guard)) => {
            table.enter_alone(me, true);
            repair(&mut guard);
            guard.mark_consistent();
            guard
        }
        Err(LockError::TimedOut | LockError::WouldBlock) => return,
        Err(error) => panic!("{error}"),
    };
    step(&mut guard, dice);
    table.leave_alone(me);
    drop(guard);
    table.count();
}

fn play_reader(lock: &RwLock<Pair>, table: &Table, me: Player, dice: &mut Dice) {
    let locked = match dice.below(8) {
        0 => lock.try_read(),
        1 => lock.read_timeout(SHORTLY),
        _ => lock.read(),
    };
    let guard = match locked {
        Ok(guard) => guard,
        Err(LockError::WriterDied) => return play_writer(lock, table, me, dice),
        Err(LockError::TimedOut | LockError::WouldBlock) => return,
        Err(error) => panic!("{error}"),
    };
    table.enter_reading(me);
    let before = *guard;
    assert_eq!(before[0], before[1], "torn, and a reader was let in");
    work(dice);
    assert_eq!(**black_box(&guard), before, "changed under a reader");
    table.leave_reading(me);
    drop(guard);
    table.count();
}

fn play_semaphore(semaphore: &Semaphore<PERMITS>, table: &Table, me: Player, dice: &mut Dice) {
    let permit = match dice.below(8) {
        0 => semaphore.try_acquire(),
        1 => semaphore.acquire_timeout(SHORTLY),
        _ => semaphore.acquire(),
    };
    let permit = match permit {
        Ok(permit) => permit,
        Err(LockError::TimedOut | LockError::WouldBlock) => return,
        Err(error) => panic!("{error}"),
    };
    let (slot, mine) = table.take_slot(me, dice);
    work(dice);
    // Somebody may have taken it over, if this one is about to be killed.
    let _ = slot.compare_exchange(mine, 0, Ordering::SeqCst, Ordering::SeqCst);
    drop(permit);
    table.count();
}

fn play_barrier(barrier: &Barrier<PARTIES>, table: &Table, me: Player, dice: &mut Dice) {
    table.arrivals.fetch_add(1, Ordering::SeqCst);
    match barrier.wait_timeout(Duration::from_millis(1 + dice.below(20))) {
        Ok(round) => {
            let rounds = table.rounds.fetch_add(u64::from(round.is_leader()), Ordering::SeqCst);
            let needed = (rounds + u64::from(round.is_leader())) * PARTIES as u64;
            assert!(table.arrivals.load(Ordering::SeqCst) >= needed, "{me:?} passes alone: {table:x?}");
            table.count();
        }
        Err(BarrierError::Broken | BarrierError::TimedOut) => barrier.reset(),
        Err(error) => panic!("{error}"),
    }
    work(dice);
}

type Items<'a> = MutexGuard<'a, Pair>;

impl Store {
    fn entered<'a>(
        &self,
        locked: Result<Items<'a>, LockError<Items<'a>>>,
        table: &Table,
        me: Player,
    ) -> Items<'a> {
        match locked {
            Ok(guard) => {
                table.enter_alone(me, false);
                assert_eq!(guard[0], guard[1], "torn without a warning");
                guard
            }
            Err(LockError::OwnerDied(mut guard)) => {
                table.enter_alone(me, true);
                guard[1] = guard[0];
                guard.mark_consistent();
                // Whatever the dead one was told, or would have told.
                self.not_empty.notify_all();
                self.not_full.notify_all();
                guard
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Puts an item in, or takes one out, when there is room or an item. Somebody in earnest waits for it as long as it
    /// takes; the others for a moment.
    pub(crate) fn change(&self, puts: bool, in_earnest: bool, table: &Table, me: Player, dice: &mut Dice) {
        let (wanted, other) = match puts {
            true => (&self.not_full, &self.not_empty),
            false => (&self.not_empty, &self.not_full),
        };
        let mut guard = self.entered(self.items.lock(), table, me);
        while guard[0] == if puts { ROOM } else { 0 } {
            let is_over = !in_earnest && dice.below(2) == 0;
            if is_over || self.is_closed.load(Ordering::SeqCst) != 0 {
                return table.leave_alone(me);
            }
            table.leave_alone(me);
            let locked = match in_earnest {
                true => wanted.wait(guard),
                false => match wanted.wait_timeout(guard, SHORTLY) {
                    Ok((guard, _)) => Ok(guard),
                    Err(error) => Err(error.map(|(guard, _)| guard)),
                },
            };
            guard = self.entered(locked, table, me);
        }
        for word in 0..2 {
            let items = black_box(&mut *guard);
            items[word] = if puts { items[word] + 1 } else { items[word] - 1 };
            work(dice);
        }
        table.leave_alone(me);
        drop(guard);
        other.notify_one();
        table.count();
    }

    /// Nobody waits any more.
    pub(crate) fn close(&self, table: &Table, me: Player) {
        self.is_closed.store(1, Ordering::SeqCst);
        // Whoever saw it open under the lock is registered for a notification by now.
        let guard = self.entered(self.items.lock(), table, me);
        table.leave_alone(me);
        drop(guard);
        self.not_empty.notify_all();
        self.not_full.notify_all();
    }

    fn play(&self, table: &Table, me: Player, dice: &mut Dice) {
        self.change(dice.below(2) == 0, false, table, me, dice);
    }
}
