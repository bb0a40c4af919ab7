//! The paths whose results are awaited, by item index.

use std::collections::HashMap;
use std::ffi::OsString;
use std::iter;
use std::sync::Arc;

use parking_lot::Mutex;

/// Remembers each path from the moment the pool takes it until its result is in, so that results need not carry it back and a
/// file that no worker survived can be named. As large as the pool's window, not as the tree.
#[derive(Debug, Default)]
pub struct InFlight {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    paths: HashMap<u64, OsString>,
    taken: u64,
    complete: bool,
}

impl InFlight {
    /// Numbers `paths` as the pool does, from 0, and remembers each as it is taken.
    pub fn track<P>(self: &Arc<Self>, mut paths: P) -> impl Iterator<Item = (u64, OsString)> + use<P>
    where
        P: Iterator<Item = OsString>,
    {
        let shared = Arc::clone(self);
        iter::from_fn(move || {
            let path = paths.next(); // not under the lock: it may block
            let mut table = shared.table.lock();
            let Some(path) = path else {
                table.complete = true;
                return None;
            };
            let index = table.taken;
            table.taken += 1;
            table.paths.insert(index, path.clone());
            Some((index, path))
        })
    }

    /// The path of `index`, once.
    pub fn take(&self, index: u64) -> Option<OsString> {
        self.table.lock().paths.remove(&index)
    }

    /// The paths that are still awaited.
    pub fn take_all(&self) -> Vec<OsString> {
        self.table.lock().paths.drain().map(|(_, path)| path).collect()
    }

    /// Whether the last path has been taken.
    pub fn is_complete(&self) -> bool {
        self.table.lock().complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_remembered_from_when_it_is_taken_until_its_result() {
        let table = Arc::new(InFlight::default());
        let mut items = table.track(["a", "b", "c"].map(OsString::from).into_iter());
        assert_eq!(items.next(), Some((0, "a".into())));
        assert_eq!(items.next(), Some((1, "b".into())));
        assert_eq!(table.take(0), Some("a".into()));
        assert_eq!(table.take(0), None, "a second result for the same item");
        assert_eq!(table.take(2), None, "not taken yet");
        assert_eq!(table.take_all(), ["b"]);
        assert!(!table.is_complete());
        assert_eq!(items.next(), Some((2, "c".into())));
        assert_eq!(items.next(), None);
        assert!(table.is_complete());
    }
}
