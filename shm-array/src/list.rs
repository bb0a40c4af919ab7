//! [`SharedList`]: a fixed number of cells with values of different kinds, as Python's `ShareableList`.
//!
//! # Memory
//!
//! ```text
//! word 0      what this is
//! word 1      number of cells n
//! 2 .. 2 + n  capacity of each cell, in bytes: a multiple of 8
//! then        the cells: sequence word, and two slots of a head and as many words as the capacity has
//! ```
//!
//! A head is `length in bytes << 8 | kind`. Everything is an atomic word. A process reads what is before the cells once, when
//! it attaches, and checks it.
//!
//! Each cell is a value of its own that is replaced as a whole (see [`Latch`]), and writers take the list's lock.
//!
//! # If a process dies
//!
//! In the middle of a change: the cell has the old value, whole, and the lock goes to the next writer, who need not know.

use crate::array::SharedArray;
use crate::error::{Error, Kind, Result};
use crate::latch::Latch;
use crate::lock::LockError;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use shm_core::sync::{AtomicU64, Ordering};
use std::fmt;
use std::iter::FusedIterator;
use std::ops::Range;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;

mod value;

pub use value::{ListValue, SetError};

const MAGIC: u64 = u64::from_le_bytes(*b"shmlist\x01");
/// Where the capacities start.
const CAPACITIES: usize = 2;

/// A fixed number of cells that processes share, each with a number, a string, bytes or nothing in it.
///
/// Each cell has room for a fixed number of bytes: of a string or bytes, for the next multiple of 8 above the length that it
/// was created with, as in Python; of anything else, for 8. A value may be replaced by one of another kind if it fits. Lengths
/// are kept as they are: trailing zeros of bytes stay.
///
/// A clone, in this process or another, is the same list. Reading one cell never blocks. Changes, and looks at all cells at
/// once, take the list's lock in turn.
///
/// # If the peer dies
///
/// A process that dies while it changes a cell leaves the old value, whole. Nobody is told, because nothing has to be
/// repaired.
///
/// # Across processes
///
/// Travels in any message, in few bytes whatever is in it, and works in a forked child. What another process wrote is
/// checked when it is read: a string that is not UTF-8, or a length beyond the cell, is an error.
///
/// # Examples
///
/// ```
/// use shm_array::{ListValue, SharedList};
/// # fn main() -> shm_array::Result<()> {
/// let list = SharedList::builder().cell("howdy").cell(42).cell(-1.5).cell_with_capacity("", 100).build()?;
/// list.set(1, "a string")?;                       // another kind, eight bytes
/// assert_eq!(list.get(1)?, "a string".into());
/// let error = list.set(0, "much too long").unwrap_err();
/// assert_eq!(error.into_value(), "much too long".into());
/// assert_eq!(list.get(0)?, ListValue::Str("howdy".into()));
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct SharedList {
    words: SharedArray<AtomicU64>,
    /// Read once, and private.
    cells: Arc<[Cell]>,
}

/// Where a cell lies.
#[derive(Clone, Copy)]
struct Cell {
    /// Its first word.
    start: usize,
    /// Words of a value.
    room: usize,
}

impl Cell {
    /// A slot's head and the words behind it.
    fn slot(self, slot: usize) -> Range<usize> {
        let start = self.start + 1 + slot * (1 + self.room);
        start..start + 1 + self.room
    }

    fn capacity(self) -> usize {
        self.room * 8
    }
}

/// Options for a new list; see [`SharedList::builder`].
#[derive(Clone, Debug, Default)]
#[must_use = "it does nothing until it is built"]
pub struct ListBuilder {
    cells: Vec<(ListValue, usize)>,
}

impl ListBuilder {
    /// Adds a cell with room for its value, and a little more.
    pub fn cell(self, value: impl Into<ListValue>) -> Self {
        self.cell_with_capacity(value, 0)
    }

    /// Adds a cell with room for its value and for `capacity` bytes.
    pub fn cell_with_capacity(mut self, value: impl Into<ListValue>, capacity: usize) -> Self {
        let value = value.into();
        let room = value.usual_capacity().max(capacity.div_ceil(8).saturating_mul(8));
        self.cells.push((value, room));
        self
    }

    /// Creates the list.
    ///
    /// # Errors
    ///
    /// `is_out_of_range` if it is too large, `is_out_of_memory`, or the system's error.
    pub fn build(self) -> Result<SharedList> {
        let first = CAPACITIES + self.cells.len();
        let cells = place(first, self.cells.iter().map(|(_, capacity)| capacity / 8));
        let Some((cells, len)) = cells else {
            return Err(Kind::Argument { what: "a list's capacity", value: u64::MAX, limit: 1 << 45 }.into());
        };
        let words = SharedArray::<AtomicU64>::zeroed(len)?;
        // Relaxed: nobody else has it yet, and whoever gets it gets it by a message.
        words[0].store(MAGIC, Ordering::Relaxed);
        words[1].store(cells.len() as u64, Ordering::Relaxed);
        let list = SharedList { words, cells: cells.into() };
        for (index, (value, _)) in self.cells.into_iter().enumerate() {
            let cell = list.cells[index];
            list.words[CAPACITIES + index].store(cell.capacity() as u64, Ordering::Relaxed);
            list.put(cell, &value);
        }
        Ok(list)
    }
}

/// The places of cells, one behind the other, and their end; nothing if that is beyond every address.
fn place(first: usize, rooms: impl Iterator<Item = usize>) -> Option<(Vec<Cell>, usize)> {
    let mut next = first;
    let cells = rooms.map(|room| {
        let start = next;
        next = room.checked_add(1)?.checked_mul(2)?.checked_add(1)?.checked_add(start)?;
        Some(Cell { start, room })
    });
    let cells = cells.collect::<Option<Vec<_>>>()?;
    Some((cells, next))
}

impl SharedList {
    /// Creates a list of these values.
    ///
    /// # Errors
    ///
    /// `is_out_of_range` if it is too large, `is_out_of_memory`, or the system's error.
    ///
    /// # Examples
    ///
    /// ```
    /// let list = shm_array::SharedList::new(["one", "two"])?;
    /// assert_eq!(list.len(), 2);
    /// # Ok::<_, shm_array::Error>(())
    /// ```
    pub fn new<V: Into<ListValue>>(values: impl IntoIterator<Item = V>) -> Result<Self> {
        values.into_iter().fold(Self::builder(), ListBuilder::cell).build()
    }

    /// A list cell by cell, with more room than usual where it is needed.
    pub fn builder() -> ListBuilder {
        ListBuilder::default()
    }

    /// The number of cells.
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// Whether there are no cells.
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// How many bytes the cell at `index` has room for.
    pub fn capacity(&self, index: usize) -> Option<usize> {
        self.cells.get(index).map(|cell| cell.capacity())
    }

    /// Whether both are handles of the same list in this process.
    pub fn ptr_eq(this: &Self, other: &Self) -> bool {
        SharedArray::ptr_eq(&this.words, &other.words)
    }

    /// The value in the cell at `index`. Never blocks.
    ///
    /// # Errors
    ///
    /// `is_out_of_range` if there is no such cell; `is_corrupt` if what is in it makes no sense; `is_forked`.
    pub fn get(&self, index: usize) -> Result<ListValue> {
        // As an error, where the slice would panic.
        self.words.as_ptr()?;
        self.take(self.cell(index)?)
    }

    /// Replaces the value in the cell at `index`, which may be of another kind. Blocks while somebody else has the list's
    /// lock.
    ///
    /// # Errors
    ///
    /// With the value, and the old one kept: `is_out_of_range` if it is too long for the cell, or there is no such cell;
    /// `is_forked`.
    pub fn set(&self, index: usize, value: impl Into<ListValue>) -> Result<(), SetError> {
        let value = value.into();
        match self.fitting(index, &value).and_then(|cell| Ok((cell, self.words.exclude()?))) {
            Ok((cell, _exclusion)) => {
                self.put(cell, &value);
                Ok(())
            }
            Err(reason) => Err(SetError::new(value, reason)),
        }
    }

    /// Replaces the value in the cell at `index` by what `f` makes of it, while nobody else can come in between. Returns the
    /// one before. Blocks while somebody else has the list's lock.
    ///
    /// `f` runs under the lock: it must not change the same list.
    ///
    /// # Errors
    ///
    /// With the new value, as [`SharedList::set`]; without one (`None` in its place), as [`SharedList::get`].
    pub fn update<V: Into<ListValue>>(
        &self,
        index: usize,
        f: impl FnOnce(ListValue) -> V,
    ) -> Result<ListValue, SetError> {
        let begin = || {
            let exclusion = self.words.exclude()?;
            Ok((exclusion, self.take(self.cell(index)?)?))
        };
        let (exclusion, before) = begin().map_err(|reason| SetError::new(ListValue::None, reason))?;
        let value = f(before.clone()).into();
        let cell = if exclusion.is_here() {
            self.fitting(index, &value)
        } else {
            Err(LockError::<()>::Forked.into())
        };
        match cell {
            Ok(cell) => {
                self.put(cell, &value);
                Ok(before)
            }
            Err(reason) => Err(SetError::new(value, reason)),
        }
    }

    /// All values as of one moment. Blocks while somebody else has the list's lock.
    ///
    /// # Errors
    ///
    /// `is_corrupt`, `is_forked`.
    pub fn to_vec(&self) -> Result<Vec<ListValue>> {
        let _exclusion = self.words.exclude()?;
        self.cells.iter().map(|&cell| self.take(cell)).collect()
    }

    /// A list of its own with the same values and the same room. Blocks while somebody else has the list's lock.
    ///
    /// # Errors
    ///
    /// As [`SharedList::to_vec`] and [`SharedList::new`].
    pub fn copy(&self) -> Result<Self> {
        let cells = self.to_vec()?.into_iter().zip(self.cells.iter().map(|cell| cell.capacity()));
        ListBuilder { cells: cells.collect() }.build()
    }

    /// How many cells have this value. Blocks while somebody else has the list's lock.
    ///
    /// # Errors
    ///
    /// As [`SharedList::to_vec`].
    pub fn count(&self, value: impl Into<ListValue>) -> Result<usize> {
        let value = value.into();
        Ok(self.to_vec()?.into_iter().filter(|other| *other == value).count())
    }

    /// The first cell that has this value. Blocks while somebody else has the list's lock.
    ///
    /// # Errors
    ///
    /// As [`SharedList::to_vec`].
    pub fn index(&self, value: impl Into<ListValue>) -> Result<Option<usize>> {
        let value = value.into();
        Ok(self.to_vec()?.into_iter().position(|other| other == value))
    }

    /// The values one after the other, each as of the moment when it is read. Never blocks.
    pub fn iter(&self) -> ListIter<'_> {
        ListIter { list: self, indices: 0..self.len() }
    }

    fn cell(&self, index: usize) -> Result<Cell> {
        let (len, index_wide) = (self.len() as u64, index as u64);
        let cell = self.cells.get(index).copied();
        cell.ok_or_else(|| Kind::OutOfRange { what: "cell", index: index_wide, len }.into())
    }

    /// The cell at `index`, if `value` fits into it.
    fn fitting(&self, index: usize, value: &ListValue) -> Result<Cell> {
        let cell = self.cell(index)?;
        let (len, limit) = (value.len(), cell.capacity());
        if len > limit {
            let (value, limit) = (len as u64, limit as u64);
            return Err(Kind::Argument { what: "the length in bytes of a cell's value", value, limit }.into());
        }
        Ok(cell)
    }

    /// Replaces the value of a cell that it fits into. The caller has the list's lock, or the list for itself.
    fn put(&self, cell: Cell, value: &ListValue) {
        let words: &[AtomicU64] = &self.words;
        Latch(&words[cell.start]).write(|slot| {
            let mut slot = words[cell.slot(slot)].iter();
            // Relaxed: the latch orders them.
            let mut store = |word| slot.next().expect("the value fits").store(word, Ordering::Relaxed);
            store(value.head());
            value.with_bytes(|bytes| {
                for part in bytes.chunks(8) {
                    let mut word = [0; 8];
                    word[..part.len()].copy_from_slice(part);
                    store(u64::from_le_bytes(word));
                }
            });
        });
    }

    /// Copies the value of a cell out and checks it.
    fn take(&self, cell: Cell) -> Result<ListValue> {
        let words: &[AtomicU64] = &self.words;
        let (head, first, rest) = Latch(&words[cell.start]).read(|slot| {
            let slot = &words[cell.slot(slot)];
            // Relaxed: the latch orders them.
            let head = slot[0].load(Ordering::Relaxed);
            // No more than there is room for, whatever the head says.
            let len = ListValue::len_of(head).div_ceil(8).min(cell.room);
            let mut payload = slot[1..=len].iter().map(|word| word.load(Ordering::Relaxed));
            // Of a number there is no rest, and nothing is allocated.
            (head, payload.next().unwrap_or(0), payload.collect::<Vec<u64>>())
        });
        ListValue::decode(head, first, &rest).ok_or_else(|| Kind::Corrupt { what: "a cell of a list" }.into())
    }

    /// A list in words that another process announced as one.
    fn of(words: SharedArray<AtomicU64>) -> Result<Self> {
        let corrupt = || Error::from(Kind::Corrupt { what: "the geometry of a list" });
        // Relaxed: a message brought it; and a scribbled value is as good as any other.
        let read = |at: usize| words.get(at).map(|word| word.load(Ordering::Relaxed));
        if read(0) != Some(MAGIC) {
            return Err(Kind::Mismatch { what: "the kind of an array" }.into());
        }
        let count = read(1).and_then(|count| usize::try_from(count).ok());
        let count = count.filter(|&count| count <= words.len() - CAPACITIES).ok_or_else(corrupt)?;
        let rooms = words[CAPACITIES..CAPACITIES + count].iter();
        let rooms = rooms.map(|word| usize::try_from(word.load(Ordering::Relaxed) / 8).unwrap_or(usize::MAX));
        let (cells, len) = place(CAPACITIES + count, rooms).ok_or_else(corrupt)?;
        if len != words.len() {
            return Err(corrupt());
        }
        Ok(Self { cells: cells.into(), words })
    }
}

// Whatever panics, each value is whole.
impl UnwindSafe for SharedList {}
impl RefUnwindSafe for SharedList {}

impl Serialize for SharedList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.words.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SharedList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::of(SharedArray::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl fmt::Debug for SharedList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = f.debug_list();
        for value in self {
            match value {
                Ok(value) => list.entry(&value),
                Err(error) => list.entry(&format_args!("<{error}>")),
            };
        }
        list.finish()
    }
}

impl<'a> IntoIterator for &'a SharedList {
    type Item = Result<ListValue>;
    type IntoIter = ListIter<'a>;

    fn into_iter(self) -> ListIter<'a> {
        self.iter()
    }
}

/// The values of a list; see [`SharedList::iter`].
#[derive(Debug)]
pub struct ListIter<'a> {
    list: &'a SharedList,
    indices: Range<usize>,
}

impl Iterator for ListIter<'_> {
    type Item = Result<ListValue>;

    fn next(&mut self) -> Option<Self::Item> {
        self.indices.next().map(|index| self.list.get(index))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.indices.size_hint()
    }
}

impl DoubleEndedIterator for ListIter<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.indices.next_back().map(|index| self.list.get(index))
    }
}

impl ExactSizeIterator for ListIter<'_> {}
impl FusedIterator for ListIter<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scribbled_cells_are_corrupt_and_nothing_worse() {
        let list = SharedList::new(["howdy"]).expect("a list");
        let slot = list.cells[0].slot(1);
        // Filled once, so slot 1 has the value.
        let head = list.words[slot.start].load(Ordering::Relaxed);
        for scribble in [u64::MAX, head | 0xff, head + (9 << 8), (7 << 8) | 1] {
            list.words[slot.start].store(scribble, Ordering::Relaxed);
            assert!(list.get(0).expect_err("nonsense").is_corrupt(), "{scribble:#x}");
        }
        list.words[slot.start].store(head, Ordering::Relaxed);
        list.words[slot.start + 1].store(u64::MAX, Ordering::Relaxed);
        assert!(list.get(0).expect_err("not UTF-8").is_corrupt());
        list.set(0, 1).expect("as ever");
        assert_eq!(list.get(0).expect("as ever"), 1.into());
    }

    #[test]
    fn scribbled_geometry_is_refused() {
        for (word, scribble) in [(0, 1), (1, u64::MAX), (1, 2), (2, u64::MAX), (2, 16), (2, 1 << 62)] {
            let list = SharedList::new(["howdy"]).expect("a list");
            list.words[word].store(scribble, Ordering::Relaxed);
            SharedList::of(list.words.clone()).expect_err("nonsense");
        }
    }
}
