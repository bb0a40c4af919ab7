//! Python's tutorial of shared memory, with processes: a counter, an array, names, ten million numbers.

use std::error::Error;
use std::time::Instant;

use proc_pool::Process;
use proc_pool::shared::{LockError, SharedArray, SharedValue};

type Said = Result<String, Box<dyn Error>>;

/// How many processes count, and how far each.
const PROCESSES: i32 = 4;
const STEPS: i32 = 100_000;
/// How many numbers the large array has.
const LEN: usize = 10_000_000;
/// A name, with zeros behind it.
type Name = [u8; 16];

fn main() -> Result<(), Box<dyn Error>> {
    proc_pool::init();
    let ideas: [(_, fn() -> Said); 4] =
        [("counter", counter), ("squares", squares), ("names", names), ("doubled", doubled)];
    for (title, idea) in ideas {
        let started = Instant::now();
        let said = idea()?;
        println!("{title}: {said} ({:.1} ms)", started.elapsed().as_secs_f64() * 1e3);
    }
    Ok(())
}

/// `Value('i', 0)`: several processes add to one number, each step under its lock.
fn counter() -> Said {
    fn count(counter: SharedValue<i32>) {
        for _ in 0..STEPS {
            // A panic here would come back from `join`.
            *counter.lock().expect("a lock") += 1;
        }
    }

    let counter = SharedValue::new(0)?;
    let start = |_| Process::spawn(count, counter.clone());
    let processes = (0..PROCESSES).map(start).collect::<Result<Vec<_>, _>>()?;
    for process in processes {
        process.join()?;
    }
    expect(counter.get(), PROCESSES * STEPS)?;
    Ok(format!("{PROCESSES} processes, {STEPS} steps each, {} in the end", counter.get()))
}

/// `Array('i', range(10))`: every child squares a chunk. Each chunk has a lock, so they work at the same time.
fn squares() -> Said {
    fn square((numbers, chunk): (SharedArray<i32>, usize)) {
        let chunk = numbers.chunk(chunk).expect("there are so many");
        chunk.lock().expect("a lock").iter_mut().for_each(|number| *number *= *number);
    }

    let numbers = SharedArray::<i32>::builder(10).chunk_len(5).build_from(&Vec::from_iter(0..10))?;
    let start = |chunk| Process::spawn(square, (numbers.clone(), chunk));
    let processes = (0..numbers.chunk_count()).map(start).collect::<Result<Vec<_>, _>>()?;
    for process in processes {
        process.join()?;
    }
    expect(numbers.to_vec()?, (0..10).map(|number| number * number).collect())?;
    Ok(format!("{:?}", numbers.to_vec()?))
}

/// `Array('c', 16)`: a name is an array of bytes, and these are three. A child changes them.
fn names() -> Said {
    fn capitalize(names: SharedArray<Name>) {
        for name in names.lock().expect("a lock").iter_mut() {
            name[0].make_ascii_uppercase();
        }
    }

    let names = SharedArray::from_slice(&["ada", "grace", "edsger"].map(to_name))?;
    Process::spawn(capitalize, names.clone())?.join()?;
    let names: Vec<String> = names.to_vec()?.iter().map(from_name).collect();
    expect(names.join(" "), "Ada Grace Edsger".into())?;
    Ok(names.join(", "))
}

/// What is too long for a name is cut off.
fn to_name(text: &str) -> Name {
    let mut name = [0; 16];
    name.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
    name
}

fn from_name(name: &Name) -> String {
    String::from_utf8_lossy(name).trim_end_matches('\0').to_owned()
}

/// A numpy array in shared memory: nothing is copied to the child and back.
fn doubled() -> Said {
    fn double(numbers: SharedArray<i64>) {
        numbers.lock().expect("a lock").iter_mut().for_each(|number| *number *= 2);
    }

    let numbers = SharedArray::<i64>::builder(LEN).prefault().build()?;
    let mut filling = numbers.lock().map_err(LockError::into_error)?;
    (0..).zip(filling.iter_mut()).for_each(|(index, number)| *number = index);
    drop(filling);
    let started = Instant::now();
    Process::spawn(double, numbers.clone())?.join()?;
    let in_the_child = started.elapsed().as_secs_f64() * 1e3;
    let result = numbers.lock().map_err(LockError::into_error)?;
    let right = (0..).zip(result.iter()).filter(|&(index, &number)| number == 2 * index).count();
    expect(right, LEN)?;
    Ok(format!("{LEN} numbers, all as they should be, {in_the_child:.1} ms for the child"))
}

/// An error that says what is there instead.
fn expect<T: PartialEq + std::fmt::Debug>(found: T, expected: T) -> Result<(), Box<dyn Error>> {
    if found == expected { Ok(()) } else { Err(format!("{found:?} instead of {expected:?}").into()) }
}
