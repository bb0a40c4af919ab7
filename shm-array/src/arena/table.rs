//! The arenas of this process. The table does not keep them: a process without handles has no descriptor.
//!
//! It is locked inside the fork window only, so that no child inherits it locked, and never while an arena is let go of:
//! the last one takes itself out of it.

use super::Arena;
use super::layout::Geometry;
use crate::error::{Error, Kind};
use parking_lot::Mutex;
use shm_core::fork::window;
use shm_core::segment::Segment;
use std::collections::HashMap;
use std::sync::{Arc, Weak};

static ARENAS: Mutex<Option<Arenas>> = Mutex::new(None);

#[derive(Default)]
struct Arenas {
    /// By the address of the attachment.
    by_segment: HashMap<usize, Weak<Arena>>,
    /// By the length of their blocks, those that this process made, oldest first.
    made: HashMap<usize, Vec<Weak<Arena>>>,
}

/// Runs `f` on the table. It must not drop an arena.
fn with<R>(f: impl FnOnce(&mut Arenas) -> R) -> R {
    let _window = window();
    f(ARENAS.lock().get_or_insert_default())
}

fn key(segment: &Segment) -> usize {
    std::ptr::from_ref(segment).addr()
}

/// The arena of an attachment.
pub(super) fn find(segment: &Segment) -> Option<Arc<Arena>> {
    with(|arenas| arenas.by_segment.get(&key(segment))?.upgrade())
}

/// All of them.
pub(super) fn all() -> Vec<Arc<Arena>> {
    with(|arenas| arenas.by_segment.values().filter_map(Weak::upgrade).collect())
}

pub(super) fn insert(arena: &Arc<Arena>) {
    with(|arenas| arenas.by_segment.insert(key(&arena.segment), Arc::downgrade(arena)));
}

/// Takes out an arena that goes away.
pub(super) fn remove(arena: &Arena) {
    with(|arenas| {
        // Another may have taken its place already, for the same attachment.
        let key = key(&arena.segment);
        if arenas.by_segment.get(&key).is_some_and(|entry| std::ptr::eq(entry.as_ptr(), arena)) {
            arenas.by_segment.remove(&key);
        }
    });
}

/// A free object in an arena that this process made, with blocks of this length; makes an arena if need be. The caller
/// holds the fork window until the object is alive.
///
/// The oldest arena that has one: so the younger ones get empty, and go. When none has, everything that nobody has any more
/// is looked for first. If that is less than a quarter, another arena is made, so that such a look is rare.
pub(super) fn free_object(block_len: usize) -> Result<(Arc<Arena>, usize), Error> {
    let made = || with(|arenas| arenas.made.get(&block_len).cloned().unwrap_or_default());
    let first = |arenas: &[Weak<Arena>]| {
        arenas.iter().filter_map(Weak::upgrade).find_map(|arena| Some((arena.take()?, arena)))
    };
    if let Some((object, arena)) = first(&made()) {
        return Ok((arena, object));
    }
    // Those of a parent are not this process's to give out.
    let mut mine: Vec<_> = made().iter().filter_map(Weak::upgrade).collect();
    mine.retain(|arena| arena.stock().is_some());
    let total: usize = mine.iter().map(|arena| arena.geometry.capacity()).sum();
    let free: usize = mine.iter().filter_map(|arena| arena.collect()).sum();
    if free < total.div_ceil(4).max(1) {
        let geometry = Geometry::grown(total, block_len).expect("the length of blocks is one of a few");
        match Arena::create(geometry) {
            Ok(arena) => {
                insert(&arena);
                mine.push(arena);
            }
            Err(error) if free == 0 => return Err(error),
            // What was found will do.
            Err(_) => {}
        }
    }
    let list: Vec<_> = mine.iter().map(Arc::downgrade).collect();
    with(|arenas| arenas.made.insert(block_len, list.clone()));
    // Only somebody who scribbles can have changed what was found free.
    let (object, arena) =
        first(&list).ok_or(Error::from(Kind::Corrupt { what: "the state of a free block" }))?;
    Ok((arena, object))
}
