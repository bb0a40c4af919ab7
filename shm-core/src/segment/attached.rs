//! This process's attachments: by segment, so that a process attaches once, and by address, so that a lock finds out
//! whose memory it lies in.
//!
//! The table is locked inside the fork window only, so that no child inherits it locked.

use super::{Key, Segment};
use crate::fork::{self, Window};
use parking_lot::{Mutex, MutexGuard};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, Weak};

static ATTACHED: Mutex<Option<Attached>> = Mutex::new(None);

#[derive(Default)]
struct Attached {
    by_key: HashMap<Key, Weak<Segment>>,
    /// By first address: the address behind the last one, and whose it is. Ranges do not overlap.
    by_address: BTreeMap<usize, (usize, Weak<Segment>)>,
}

/// The table, for as long as the window is held.
fn table(_window: &Window) -> MutexGuard<'static, Option<Attached>> {
    ATTACHED.lock()
}

/// This process's attachment to a segment.
pub(super) fn lookup(key: &Key) -> Option<Arc<Segment>> {
    let window = fork::window();
    table(&window).as_ref()?.by_key.get(key)?.upgrade()
}

/// Makes `ours` the attachment of this process, unless `is_same` finds another thread's to be as good: then that one is
/// returned, and `ours` detaches.
pub(super) fn publish(ours: Segment, is_same: impl Fn(&Segment) -> bool) -> Arc<Segment> {
    let ours = Arc::new(ours);
    let first = {
        let window = fork::window();
        let mut guard = table(&window);
        let attached = guard.get_or_insert_default();
        let first = attached.by_key.get(&ours.key).and_then(Weak::upgrade);
        if first.is_none() || first.as_ref().is_some_and(|first| !is_same(first)) {
            attached.by_key.insert(ours.key, Arc::downgrade(&ours));
            let Range { start, end } = ours.addresses();
            // What was there has left a hole, in a child whose fork skipped the handlers.
            let overlapping = attached.by_address.range(..end).rev().take_while(|(_, (end, _))| *end > start);
            for gone in overlapping.map(|(&start, _)| start).collect::<Vec<_>>() {
                attached.by_address.remove(&gone);
            }
            attached.by_address.insert(start, (end, Arc::downgrade(&ours)));
            fork::step_attachments();
        }
        first
    };
    // Handles are let go of outside of the table: the last one takes itself out of it.
    match first {
        Some(first) if is_same(&first) => first,
        _ => ours,
    }
}

/// Takes a segment that goes away out of the table.
pub(super) fn retire(segment: &Segment) {
    let window = fork::window();
    let mut guard = table(&window);
    let Some(attached) = guard.as_mut() else {
        return;
    };
    // Another attachment may have taken the place already.
    let is_it = |entry: &Weak<Segment>| std::ptr::eq(entry.as_ptr(), segment);
    if attached.by_key.get(&segment.key).is_some_and(is_it) {
        attached.by_key.remove(&segment.key);
    }
    let start = segment.addresses().start;
    if attached.by_address.get(&start).is_some_and(|(_, entry)| is_it(entry)) {
        attached.by_address.remove(&start);
        fork::step_attachments();
    }
}

/// Whose memory an address lies in.
pub(crate) struct Neighbourhood {
    /// The segment, if there is one.
    pub(crate) segment: Option<Arc<Segment>>,
    /// The addresses for which the answer is the same.
    pub(crate) addresses: Range<usize>,
}

/// Finds out whose memory `address` lies in. Where a child has inherited an attachment without its place, whatever
/// is there now is not the segment's.
pub(crate) fn neighbourhood(address: usize) -> Neighbourhood {
    let Neighbourhood { segment, addresses } = entered(address);
    // Outside of the table: it may be the last handle.
    Neighbourhood { segment: segment.filter(|segment| segment.has_place()), addresses }
}

/// What the table says about an address.
fn entered(address: usize) -> Neighbourhood {
    let window = fork::window();
    let guard = table(&window);
    let Some(attached) = guard.as_ref() else {
        return Neighbourhood { segment: None, addresses: 0..usize::MAX };
    };
    let before = attached.by_address.range(..=address).next_back();
    if let Some((&start, (end, segment))) = before {
        if address < *end {
            return Neighbourhood { segment: segment.upgrade(), addresses: start..*end };
        }
    }
    let start = before.map_or(0, |(_, (end, _))| *end);
    let end = attached.by_address.range(address..).next().map_or(usize::MAX, |(&next, _)| next);
    Neighbourhood { segment: None, addresses: start..end }
}

/// Every attachment of this process: by address, because a child that could not use the one that it inherited has
/// two of a segment. The caller holds the window.
pub(super) fn all(window: &Window) -> Vec<Arc<Segment>> {
    let guard = table(window);
    let entries = guard.iter().flat_map(|attached| attached.by_address.values());
    entries.filter_map(|(_, segment)| segment.upgrade()).collect()
}
