//! Two processes that wait for each other in turns.

use super::Permits;
use super::pthread::{PthreadBarrier, PthreadSemaphore};
use super::uncontended::sample;
use crate::child::{Child, Control, Result};
use crate::page::Page;
use crate::pin::{Pinning, Side};
use crate::run::{Failure, Sample};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use shm_array::{Barrier, Event, Shared};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// What the two processes wait with.
pub trait Turns: Sized {
    fn create() -> Result<Self>;

    /// The asker's turn: returns when the other side has answered.
    fn ask(&self) -> Result;

    /// The other side, before it notes the number of its turn.
    fn hear(&self) -> Result;

    /// And after.
    fn answer(&self) -> Result;
}

/// How far each side is.
type Notes = Page<[AtomicU64; 2]>;

/// Side A asks, side B answers; each sees the other's turn.
pub fn run<T: Turns + Serialize>(
    role: &'static str,
) -> impl FnMut(Pinning, u64) -> std::result::Result<Sample, Failure> {
    move |pinning, count| {
        let turns = T::create()?;
        let notes = Notes::new()?;
        let warm = (count / 10).max(16);
        let child = Child::spawn(role, pinning, &(&turns, &notes, warm + count))?;
        child.control.recv::<()>()?;
        let _pinned = pinning.enter(Side::A);
        let turn = |number: u64| {
            notes[0].store(number, Ordering::Relaxed);
            turns.ask()?;
            check(&notes[1], number)
        };
        (0..warm).try_for_each(turn)?;
        let begin = Instant::now();
        (warm..warm + count).try_for_each(turn)?;
        let elapsed = begin.elapsed();
        child.join()?;
        Ok(sample(elapsed, count))
    }
}

/// The other side is in the same turn, or in the next already.
fn check(note: &AtomicU64, number: u64) -> Result {
    match note.load(Ordering::Relaxed) {
        other if other == number || other == number + 1 => Ok(()),
        other => Err(format!("one side is at turn {number}, the other at {other}").into()),
    }
}

/// Side B.
pub fn act<T: Turns + DeserializeOwned>(control: &Control) -> Result {
    let (turns, notes, count): (T, Notes, u64) = control.recv()?;
    control.send(&())?;
    for number in 0..count {
        turns.hear()?;
        notes[1].store(number, Ordering::Relaxed);
        turns.answer()?;
        check(&notes[0], number)?;
    }
    Ok(())
}

/// Two events, one for each direction.
#[derive(Serialize, Deserialize)]
pub struct Events {
    asked: Shared<Event>,
    answered: Shared<Event>,
}

impl Turns for Events {
    fn create() -> Result<Self> {
        Ok(Self {
            asked: Shared::new(Event::new())?,
            answered: Shared::new(Event::new())?,
        })
    }

    fn ask(&self) -> Result {
        self.asked.set();
        self.answered.wait();
        self.answered.clear();
        Ok(())
    }

    fn hear(&self) -> Result {
        self.asked.wait();
        self.asked.clear();
        Ok(())
    }

    fn answer(&self) -> Result {
        self.answered.set();
        Ok(())
    }
}

/// Likewise of the C library.
#[derive(Serialize, Deserialize)]
pub struct Semaphores {
    asked: PthreadSemaphore,
    answered: PthreadSemaphore,
}

impl Turns for Semaphores {
    fn create() -> Result<Self> {
        Ok(Self {
            asked: PthreadSemaphore::create(0)?,
            answered: PthreadSemaphore::create(0)?,
        })
    }

    fn ask(&self) -> Result {
        self.asked.post()?;
        self.answered.wait()
    }

    fn hear(&self) -> Result {
        self.asked.wait()
    }

    fn answer(&self) -> Result {
        self.answered.post()
    }
}

impl Turns for Shared<Barrier> {
    fn create() -> Result<Self> {
        Ok(Shared::new(Barrier::try_new(2)?)?)
    }

    fn ask(&self) -> Result {
        self.wait()?;
        Ok(())
    }

    fn hear(&self) -> Result {
        Ok(())
    }

    fn answer(&self) -> Result {
        self.ask()
    }
}

impl Turns for PthreadBarrier {
    fn create() -> Result<Self> {
        PthreadBarrier::create()
    }

    fn ask(&self) -> Result {
        self.wait()
    }

    fn hear(&self) -> Result {
        Ok(())
    }

    fn answer(&self) -> Result {
        self.wait()
    }
}
