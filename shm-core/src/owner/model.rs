//! Owners in a loom model: participants are threads, and a thread says when its process dies.
//!
//! [`Process`] does it for whole functions: a thread runs one as a process of its own, and the process may be killed at
//! any step that the code below marks with [`crash_point!`](crate::crash_point).
//!
//! # A death
//!
//! A killed process does nothing more, and the kernel closes what it had open. In a model its stack unwinds, and
//! destructors run; so whoever has something that a dead process cannot give back by itself hands that to [`at_death`].
//! After it, everybody who sleeps looks at its peers, as natively when a time slice ends ([`when_slices_end`]).

use super::Owner;
use crate::fork::Forked;
use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use parking_lot::Mutex;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

loom::thread_local! {
    static ME: Cell<u16> = Cell::new(0);
    static LIFE: RefCell<Life> = RefCell::new(Life::default());
}

loom::lazy_static! {
    /// One bit per index whose process is dead.
    static ref DEAD: AtomicU32 = AtomicU32::new(0);
    static ref ENDED: Mutex<Vec<Arc<dyn Fn() + Send + Sync>>> = Mutex::new(Vec::new());
}

/// Makes the calling model thread (a thread of) the process with participant index `index`, 1 to 31. A thread that did
/// not say so belongs to the one process that holds index 0, whose token never dies.
pub fn enter(index: u16) {
    assert!((1..32).contains(&index), "a model has few processes");
    ME.with(|me| me.set(index));
}

/// The calling thread's process dies here: from now on its token is dead for everybody. What it holds it must not
/// give back any more (`mem::forget` the guards), and the thread must end.
pub fn die() {
    let me = index();
    assert!(me > 0, "the process at index 0 does not die");
    // Release: whoever is told of the death sees everything that the dead one did, as with the kernel's lock.
    DEAD.fetch_or(1 << me, Ordering::Release);
}

/// The calling thread's process: what [`enter`] said, or 0.
pub fn index() -> u16 {
    ME.with(Cell::get)
}

/// Whether the process with this index has died. Never waits: for a look before a sleep.
pub fn is_dead(index: u16) -> bool {
    index < 32 && DEAD.load(Ordering::Acquire) & (1 << index) != 0
}

/// The part of a thread in its process's life.
#[derive(Default)]
struct Life {
    process: Option<Process>,
    /// Passages through the step at which the process is to die.
    passed: u32,
    dying: bool,
    estate: Vec<Box<dyn FnOnce()>>,
}

/// What a dying process's stack unwinds with.
struct Killed;

/// A process of a model, for functions that run as they are: it may die at every step of theirs.
///
/// Clones are the same process.
#[derive(Clone, Debug)]
pub struct Process {
    index: u16,
    /// A kill is under way.
    killed: Arc<AtomicBool>,
    at: Option<(&'static str, u32)>,
}

impl Process {
    /// A process with participant index `index`, 1 to 31, which no other process of the model has.
    pub fn new(index: u16) -> Self {
        assert!((1..32).contains(&index), "a model has few processes");
        Self { index, killed: Arc::new(AtomicBool::new(false)), at: None }
    }

    /// A process that dies at its `passage`-th passage (from 1) through the step `name`, if it comes there, and at no
    /// other. Far less to explore than [`Process::kill`], which it ignores.
    pub fn dying_at(index: u16, name: &'static str, passage: u32) -> Self {
        Self { at: Some((name, passage)), ..Self::new(index) }
    }

    /// Runs `body` in the calling model thread as this process. `None` if the process died in it.
    ///
    /// # Panics
    ///
    /// As `body`.
    pub fn run<R>(&self, body: impl FnOnce() -> R) -> Option<R> {
        let before = index();
        enter(self.index);
        LIFE.with(|life| *life.borrow_mut() = Life { process: Some(self.clone()), ..Life::default() });
        let outcome = catch_unwind(AssertUnwindSafe(body));
        let estate = LIFE.with(|life| std::mem::take(&mut *life.borrow_mut())).estate;
        let result = match outcome {
            Ok(result) => Some(result),
            Err(payload) if payload.is::<Killed>() => {
                die();
                estate.into_iter().for_each(|settle| settle());
                end_slices();
                None
            }
            Err(payload) => resume_unwind(payload),
        };
        ME.with(|me| me.set(before));
        result
    }

    /// Kills the process: it dies at its next step, or at a later one, or comes to its end first; a model explores each.
    /// Never waits. One that sleeps wakes up to die.
    pub fn kill(&self) {
        // Relaxed: nobody learns anything from it but that it may die.
        self.killed.store(true, Ordering::Relaxed);
        end_slices();
    }

    /// Whether the process is dead. May be stale at once.
    pub fn is_dead(&self) -> bool {
        is_dead(self.index)
    }
}

/// A step at which the calling thread's process dies if it was killed, or was to die at the step `name`.
pub fn step(name: &str) {
    let doomed = LIFE.with(|life| {
        let life = &mut *life.borrow_mut();
        let process = life.process.as_ref().filter(|_| !life.dying)?;
        let at = process.at.is_some_and(|(at, passage)| {
            life.passed += u32::from(at == name);
            at == name && life.passed == passage
        });
        // A look at the kill is one more step to explore, so only where one may come.
        Some((at, process.at.is_none().then(|| process.killed.clone())))
    });
    let Some((at, killed)) = doomed else { return };
    if at || killed.is_some_and(|killed| killed.load(Ordering::Relaxed)) {
        LIFE.with(|life| life.borrow_mut().dying = true);
        resume_unwind(Box::new(Killed));
    }
}

/// Calls `settle`: now, or once the calling thread's process is dead, if it is dying. For destructors of handles: what
/// the kernel and whoever sweeps up do for a dead process. Does nothing while a model fails with a panic.
pub fn at_death(settle: impl FnOnce() + 'static) {
    if !std::thread::panicking() {
        return settle();
    }
    LIFE.with(|life| {
        let mut life = life.borrow_mut();
        if life.dying {
            life.estate.push(Box::new(settle));
        }
    });
}

/// Has `look` called whenever a process was killed or has died: it wakes whoever sleeps and would natively look at its
/// peers when its time slice ends.
pub fn when_slices_end(look: impl Fn() + Send + Sync + 'static) {
    ENDED.lock().push(Arc::new(look));
}

fn end_slices() {
    // Without the lock: a look lets other threads run.
    let looks = ENDED.lock().clone();
    looks.iter().for_each(|look| look());
}

impl Owner {
    /// The token of the calling model thread; see [`enter`].
    ///
    /// # Errors
    ///
    /// Never, in a model.
    pub fn here<T>(_place: *const T) -> Result<Self, Forked> {
        Ok(Self::new(index(), 1))
    }

    /// Whether the process of this token has died; see [`die`].
    pub fn is_dead<T>(self, _place: *const T) -> bool {
        let dead = is_dead(self.index());
        if !dead {
            // Whoever waits for it must let others run.
            loom::thread::yield_now();
        }
        dead
    }

    /// A model has no process ids.
    pub fn process_id<T>(self, _place: *const T) -> Option<u32> {
        None
    }
}
