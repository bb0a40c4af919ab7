//! Python's tutorial of queues: a producer reads a CSV file, and as many processes as there are processors add up what
//! is in it. Three times: ended by sentinels, ended by disconnect, and with a consumer that is killed halfway.

use std::error::Error;
use std::fs::File;
use std::iter::Sum;
use std::num::NonZeroUsize;
use std::ops::Add;
use std::path::Path;
use std::time::Instant;

use proc_pool::queue::{Receiver, Sender, bounded};
use proc_pool::{Process, TaskError};
use serde::{Deserialize, Serialize};

/// How many rows the file has.
const ROWS: u32 = 200_000;
/// How many of them are one message.
const CHUNK: usize = 100;
/// How many messages may wait.
const CAPACITY: usize = 64;

#[derive(Serialize, Deserialize)]
struct Row {
    order: u32,
    product: String,
    cents: u64,
    note: String,
}

type Chunk = Vec<Row>;

#[derive(Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Totals {
    rows: u64,
    cents: u64,
}

impl Totals {
    fn of(chunk: &[Row]) -> Self {
        Self { rows: chunk.len() as u64, cents: chunk.iter().map(|row| row.cents).sum() }
    }
}

impl Add for Totals {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { rows: self.rows + other.rows, cents: self.cents + other.cents }
    }
}

impl Sum for Totals {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self { rows: 0, cents: 0 }, Add::add)
    }
}

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Adds up the file at this path with so many consumers.
type Way = fn(&Path, usize) -> Outcome<Totals>;

fn main() -> Outcome<()> {
    proc_pool::init();
    let file = tempfile::Builder::new().suffix(".csv").tempfile()?;
    let all = generate(file.path())?;
    println!("file: {} rows, {} bytes", all.rows, file.as_file().metadata()?.len());
    // Two at least: of one that is killed nobody would be left.
    let consumers = std::thread::available_parallelism().map_or(2, NonZeroUsize::get).max(2);
    let ways: [(_, Way, u64); 3] = [
        ("sentinels", with_sentinels, 0),
        ("disconnect", |file, consumers| with_disconnect(file, consumers, false), 0),
        ("killed", |file, consumers| with_disconnect(file, consumers, true), CHUNK as u64),
    ];
    for (title, way, may_miss) in ways {
        let started = Instant::now();
        let Totals { rows, cents } = way(file.path(), consumers)?;
        let missing = all.rows.wrapping_sub(rows);
        if missing > may_miss || (missing == 0 && cents != all.cents) {
            return Err(
                format!("{title}: {rows} rows of {} and {cents} cents of {}", all.rows, all.cents).into()
            );
        }
        let ms = started.elapsed().as_secs_f64() * 1e3;
        println!(
            "{title}: {consumers} consumers, {rows} rows, {cents} cents, {missing} missing ({ms:.1} ms)"
        );
    }
    Ok(())
}

/// The same file every time. Returns what is in it.
fn generate(path: &Path) -> Outcome<Totals> {
    let mut file = csv::Writer::from_path(path)?;
    let mut random = 1_u64;
    let mut all = Totals { rows: 0, cents: 0 };
    for order in 0..ROWS {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let product =
            ["nut", "bolt, M8", "washer \"large\"", "nail\nbox of 100"][(random >> 62) as usize % 4];
        let row = Row {
            order,
            product: product.into(),
            cents: random >> 40,
            note: "x".repeat((random >> 58) as usize % 40),
        };
        all = all + Totals::of(std::slice::from_ref(&row));
        file.serialize(row)?;
    }
    file.flush()?;
    Ok(all)
}

/// Reads the file, chunk by chunk.
fn chunks(path: &Path) -> Outcome<impl Iterator<Item = csv::Result<Chunk>>> {
    let mut rows = csv::Reader::from_reader(File::open(path)?).into_deserialize();
    Ok(std::iter::from_fn(move || {
        let chunk: csv::Result<Chunk> = rows.by_ref().take(CHUNK).collect();
        Some(chunk).filter(|chunk| !matches!(chunk, Ok(chunk) if chunk.is_empty()))
    }))
}

/// As Python does it: one `None` for each consumer says that nothing more comes. So the producer must know how many there
/// are, and must live to say it.
fn with_sentinels(file: &Path, consumers: usize) -> Outcome<Totals> {
    fn consume(rows: Receiver<Option<Chunk>>) -> Totals {
        let chunk = || rows.recv().expect("the producer says when it is done");
        std::iter::from_fn(chunk).map(|chunk| Totals::of(&chunk)).sum()
    }

    let (tx, rx) = bounded(CAPACITY)?;
    let start = |_| Process::spawn(consume, rx.clone());
    let consumers = (0..consumers).map(start).collect::<Result<Vec<_>, _>>()?;
    for chunk in chunks(file)? {
        tx.send(Some(chunk?))?;
    }
    for _ in &consumers {
        tx.send(None)?;
    }
    Ok(consumers.iter().map(Process::join).sum::<Result<_, _>>()?)
}

/// Better: the queue ends when nobody is left who could send. The consumers' totals come back through a queue too, one for each
/// chunk, so what a consumer has counted outlives it: the death of one loses the chunk that it had in hand, and no
/// other.
fn with_disconnect(file: &Path, consumers: usize, kill_one: bool) -> Outcome<Totals> {
    fn consume((rows, totals): (Receiver<Chunk>, Sender<Totals>)) {
        for chunk in rows.iter() {
            let chunk = chunk.expect("both sides run the same program");
            totals.send(Totals::of(&chunk)).expect("somebody adds them up");
        }
    }

    let (tx, rx) = bounded(CAPACITY)?;
    let (totals, counted) = bounded::<Totals>(CAPACITY)?;
    let start = |_| Process::spawn(consume, (rx.clone(), totals.clone()));
    let consumers = (0..consumers).map(start).collect::<Result<Vec<_>, _>>()?;
    // Only the consumers have these ends now.
    drop((rx, totals));
    let adder = std::thread::spawn(move || counted.iter().sum::<Result<_, _>>());
    for (number, chunk) in chunks(file)?.enumerate() {
        if kill_one && number == ROWS as usize / CHUNK / 2 {
            consumers[0].kill()?;
        }
        tx.send(chunk?)?;
    }
    drop(tx);
    for consumer in &consumers {
        match consumer.join() {
            Err(TaskError::WorkerDied { signal: Some(9), .. }) if kill_one => {}
            joined => joined?,
        }
    }
    Ok(adder.join().expect("no panic")?)
}
