//! The paths whose results are awaited, by item index.

use std::collections::HashMap;
use std::ffi::OsString;
use std::sync::Arc;

use parking_lot::Mutex;

/// Remembers each path from the moment the pool takes it until its result is in, so that results need not carry it back and a
/// file that no worker survived can be named. As large as the pool's window, not as the tree.
#[derive(Debug, Default)]
pub struct InFlight {
    paths: Mutex<HashMap<u64, OsString>>,
}

impl InFlight {
    /// Numbers `paths` as the pool does, from 0, and remembers each as it is taken.
    pub fn track<P>(self: &Arc<Self>, paths: P) -> impl Iterator<Item = (u64, OsString)> + use<P>
    where
        P: Iterator<Item = OsString>,
    {
        let table = Arc::clone(self);
        (0..).zip(paths).inspect(move |(index, path)| {
            table.paths.lock().insert(*index, path.clone());
        })
    }

    /// The path of `index`, once.
    pub fn take(&self, index: u64) -> Option<OsString> {
        self.paths.lock().remove(&index)
    }

    /// The paths that are still awaited.
    pub fn take_all(&self) -> Vec<OsString> {
        self.paths.lock().drain().map(|(_, path)| path).collect()
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
    }
}
