//! A process that overwrites random bytes of live segments, control words, registry and all, while another works with
//! them. What the other reads may be nonsense; it must neither crash nor panic nor hang.
//!
//! Run it under a memory checker with `SCRIBBLE_ROUNDS=20` or so: `ci/valgrind.sh`.
#![cfg(not(loom))]
#![allow(unsafe_code, reason = "maps segments a second time, to scribble over them")]

mod common;

use common::{Peer, watchdog_after};
use memmap2::{MmapOptions, MmapRaw};
use serde::{Deserialize, Serialize};
use shm_array::{
    Barrier, Condvar, Event, ListValue, Mutex, Once, OnceLock, ReentrantMutex, RwLock, Semaphore, Shared,
    SharedArray, SharedList, SharedValue, Signal,
};
use shm_core::handle::{ReceiveSession, SendSession};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

/// Calls of the victim that have a deadline wait no longer. Those that have none (a chunk's `set`, a list's) wait for
/// whoever a scribbled word names, if that happens to be a living process that does not hold the lock; the scribbler
/// overwrites that word, too, sooner or later. The watchdog is for those.
const BRIEFLY: Duration = Duration::from_micros(200);

/// One of everything, of types for which any bytes are a value.
#[derive(Clone, Serialize, Deserialize)]
struct Everything {
    mutex: Shared<Mutex<[u64; 4]>>,
    own: Shared<Mutex<u64>>,
    reentrant: Shared<ReentrantMutex<AtomicU64>>,
    rwlock: Shared<RwLock<[f64; 16]>>,
    semaphore: Shared<Semaphore>,
    signal: Shared<Signal>,
    event: Shared<Event>,
    barrier: Shared<Barrier>,
    condvar: Shared<Condvar>,
    once: Shared<Once>,
    once_lock: Shared<OnceLock<u64>>,
    atomic: Shared<AtomicU64>,
    value: SharedValue<[u64; 3]>,
    list: SharedList,
    array: SharedArray<i64>,
    read_write: SharedArray<u32>,
    atomics: SharedArray<AtomicU64>,
}

impl Everything {
    fn new() -> shm_array::Result<Self> {
        let cells =
            [ListValue::from(1_i64), "some text".into(), ListValue::None, 2.5.into(), vec![7_u8; 30].into()];
        Ok(Self {
            mutex: Shared::new(Mutex::new([0; 4]))?,
            own: Shared::builder().own_segment().build(Mutex::new(0))?,
            reentrant: Shared::new(ReentrantMutex::new(AtomicU64::new(0)))?,
            rwlock: Shared::new(RwLock::new([0.0; 16]))?,
            semaphore: Shared::new(Semaphore::new(4))?,
            signal: Shared::new(Signal::new(3))?,
            event: Shared::new(Event::new())?,
            barrier: Shared::new(Barrier::new(1))?,
            condvar: Shared::new(Condvar::new())?,
            once: Shared::new(Once::new())?,
            once_lock: Shared::new(OnceLock::new())?,
            atomic: Shared::new(AtomicU64::new(0))?,
            value: SharedValue::new([1, 2, 3])?,
            list: SharedList::new(cells)?,
            array: SharedArray::chunked(1000, 100)?,
            read_write: SharedArray::builder(500).chunk_len(50).read_write().build()?,
            atomics: SharedArray::zeroed(100)?,
        })
    }

    /// Uses everything once. What the calls return is of no interest.
    fn use_all(&self, round: u64) {
        let place = usize::try_from(round).expect("few rounds") % 1100;
        with(self.mutex.lock_timeout(BRIEFLY), |guard| guard[0] = guard[1].wrapping_add(1));
        with(self.own.try_lock(), |guard| **guard = round);
        if let Ok(outer) = self.reentrant.lock_timeout(BRIEFLY) {
            let inner = self.reentrant.try_lock();
            outer.fetch_add(u64::from(inner.is_ok()), Ordering::Relaxed);
        }
        let sum: f64 = self.rwlock.read_timeout(BRIEFLY).map_or(0.0, |guard| guard.iter().sum());
        with(self.rwlock.write_timeout(BRIEFLY), |guard| guard[3] = sum);
        drop(self.semaphore.acquire_timeout(BRIEFLY));
        let _ = (self.semaphore.available(), self.semaphore.release(), self.signal.post(1));
        let _ = (
            self.signal.wait_timeout(BRIEFLY),
            self.event.wait_timeout(BRIEFLY),
            self.barrier.wait_timeout(BRIEFLY),
        );
        self.event.set();
        self.event.clear();
        self.barrier.reset();
        if let Ok(guard) = self.mutex.try_lock() {
            drop(self.condvar.wait_timeout(guard, BRIEFLY));
        }
        self.condvar.notify_all();
        let _ = (self.once.wait_timeout(BRIEFLY), self.once_lock.set(round), self.once_lock.get().copied());
        let _ = (self.once.call_once(|| ()), self.once_lock.wait_timeout(BRIEFLY).copied());
        let _ = self.barrier.wait_with_timeout(BRIEFLY, || ());
        self.atomic.fetch_add(1, Ordering::Relaxed);
        let seen = self.value.get();
        with(self.value.lock_timeout(BRIEFLY), |guard| **guard = seen);
        self.value.set(seen);
        self.value.update(|value| value.map(|word| word.wrapping_add(1)));
        for index in 0..6 {
            let _ = (self.list.get(index), self.list.set(index, ListValue::from("replaced")));
        }
        let _ = (self.list.to_vec(), self.array.get(place), self.array.set(place, 5));
        with(self.array.lock_timeout(BRIEFLY), |guard| guard.iter_mut().for_each(|x| *x = x.wrapping_mul(2)));
        for chunk in self.array.chunks() {
            with(chunk.lock_timeout(BRIEFLY), |guard| guard[0] = guard[0].wrapping_add(1));
        }
        let mut copy = [0; 200];
        let _ =
            (self.array.copy_to(place, &mut copy), self.array.copy_from(place, &copy), self.array.freeze());
        drop(self.read_write.read_timeout(BRIEFLY));
        with(self.read_write.write_timeout(BRIEFLY), |guard| guard[1] = 1);
        self.atomics[place % 100].fetch_add(1, Ordering::Relaxed);
        let _ = format!("{:?} {:?} {:?} {:?}", self.mutex, self.rwlock, self.semaphore, self.list);
    }

    /// Sends everything to itself, as bytes and descriptors.
    fn travel(&self) {
        let session = SendSession::begin();
        let bytes = postcard::to_stdvec(self);
        let _session = ReceiveSession::begin(session.finish());
        let arrived = bytes.ok().and_then(|bytes| postcard::from_bytes::<Self>(&bytes).ok());
        if let Some(arrived) = arrived {
            arrived.use_all(1);
        }
    }
}

/// Runs `f` with the guard if there is one, marked consistent or not.
fn with<G>(locked: Result<G, shm_array::LockError<G>>, f: impl FnOnce(&mut G)) {
    if let Some(mut guard) = locked.map_or_else(shm_array::LockError::into_guard, Some) {
        f(&mut guard);
    }
}

/// The rounds of a run.
fn rounds() -> u64 {
    std::env::var("SCRIBBLE_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(300)
}

#[test]
fn child() {
    common::child(|everything: Everything, reporter| {
        reporter.report(&true);
        for round in 0..rounds() {
            everything.use_all(round);
            if round % 10 == 0 {
                everything.travel();
                let new: Option<Shared<Mutex<u64>>> = Shared::new(Mutex::new(round)).ok();
                shm_core::segment::sweep_all();
                drop(new);
            }
        }
        drop(everything);
        reporter.report(&true);
    });
}

/// Second mappings of all segments behind the handles.
fn map_all(everything: &Everything) -> Vec<MmapRaw> {
    let session = SendSession::begin();
    postcard::to_stdvec(everything).expect("handles can be sent");
    let descriptors = session.finish();
    let map = |fd: &std::os::fd::OwnedFd| {
        let len = rustix::fs::fstat(fd).expect("a file").st_size;
        MmapOptions::new()
            .len(usize::try_from(len).expect("a length"))
            .map_raw(fd.as_raw_fd())
            .expect("mapped")
    };
    descriptors.iter().map(map).collect()
}

#[test]
fn a_scribbling_peer_spoils_data_and_nothing_else() {
    let _dog = watchdog_after(Duration::from_secs(600));
    let everything = Everything::new().expect("created");
    let maps = map_all(&everything);
    let victims: Vec<Peer> = (0..2).map(|_| Peer::start(&everything, None)).collect();
    // Whoever attaches to scribbled memory is refused.
    assert!(victims.iter().all(|victim| victim.report() == Some(true)), "the victims attach");
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    // A stop now and then, so that there are also whole rounds.
    std::thread::scope(|scope| {
        let victims = scope.spawn(move || {
            for victim in victims {
                assert_eq!(victim.report(), Some(true), "a victim did not get to its end");
                let status = victim.wait();
                assert!(status.success(), "a victim ended with {status}");
            }
        });
        while !victims.is_finished() {
            for _ in 0..64 {
                random.scribble(&maps);
            }
            std::thread::sleep(Duration::from_micros(random.below(300) as u64));
        }
        victims.join().expect("the victims are fine");
    });
    // The scribbler's own handles, too.
    everything.use_all(7);
    everything.travel();
}

/// A random number generator (xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 16).expect("48 bits") % limit
    }

    /// Overwrites one byte somewhere; mostly where control words are.
    fn scribble(&mut self, maps: &[MmapRaw]) {
        let map = &maps[self.below(maps.len())];
        // Header and registry; the first pages of the body; anywhere.
        let range = match self.below(4) {
            0 => 0..20480,
            1 | 2 => 20480..map.len().min(20480 + 8192),
            _ => 0..map.len(),
        };
        let at = range.start + self.below(range.len());
        let byte = match self.below(3) {
            0 => 0,
            1 => 0xff,
            _ => u8::try_from(self.next() & 0xff).expect("a byte"),
        };
        assert!(at < map.len());
        // SAFETY: inside the mapping, which cannot shrink; a byte of its own.
        unsafe { &*map.as_mut_ptr().add(at).cast::<AtomicU8>() }.store(byte, Ordering::Relaxed);
    }
}
