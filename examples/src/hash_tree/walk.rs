//! The regular files below a directory, found by a thread that runs ahead of the hashing.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use walkdir::WalkDir;

use super::progress::Progress;

/// How many paths may be found and not yet taken: enough that the progress bar knows the total of most trees early, and a
/// bound for the rest.
pub const AHEAD: usize = 1 << 16;

/// The paths of a tree, as `find DIR -type f` prints them, in no particular order.
#[derive(Debug)]
pub struct Walk {
    found: Receiver<OsString>,
}

impl Walk {
    /// Starts to walk `dir`. Symbolic links are not followed, not even `dir` itself (`dir/` is the directory it points to).
    /// What cannot be read below `dir` is reported to `progress` and left out.
    ///
    /// # Errors
    /// `dir` does not exist or cannot be looked at, or no thread can be started.
    pub fn start(dir: &Path, progress: Arc<Progress>) -> io::Result<Walk> {
        dir.symlink_metadata()?;
        let (sender, found) = sync_channel(AHEAD);
        let dir = dir.to_owned();
        std::thread::Builder::new().name("walk".into()).spawn(move || walk(&dir, &sender, &progress))?;
        Ok(Walk { found })
    }
}

/// Blocks until the thread has found one more file; `None` when the tree is done.
impl Iterator for Walk {
    type Item = OsString;

    fn next(&mut self) -> Option<OsString> {
        self.found.recv().ok()
    }
}

fn walk(dir: &Path, sender: &SyncSender<OsString>, progress: &Progress) {
    for entry in WalkDir::new(dir).follow_links(false).follow_root_links(false) {
        match entry {
            Ok(entry) if entry.file_type().is_file() => {
                progress.found();
                if sender.send(entry.into_path().into_os_string()).is_err() {
                    return; // nobody wants more
                }
            }
            Ok(_) => {}
            Err(error) => {
                let path = error.path().unwrap_or(dir);
                match error.io_error() {
                    Some(cause) => progress.problem(path.as_os_str(), cause),
                    None => progress.problem(path.as_os_str(), &error),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use super::*;

    /// `tree/{a, sub/b, link -> sub, pipe}` and `alias -> tree` in a fresh directory.
    fn tree() -> (tempfile::TempDir, String) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let root = dir.path().join("tree");
        fs::create_dir_all(root.join("sub")).expect("mkdir");
        fs::write(root.join("a"), "a").expect("write");
        fs::write(root.join("sub/b"), "b").expect("write");
        symlink("sub", root.join("link")).expect("symlink");
        symlink("tree", dir.path().join("alias")).expect("symlink");
        let name = dir.path().to_str().expect("a temporary directory has a UTF-8 name").to_owned();
        (dir, name)
    }

    fn files(dir: &str) -> Vec<PathBuf> {
        let progress = Arc::new(Progress::silent());
        let mut files: Vec<_> =
            Walk::start(Path::new(dir), progress).expect("exists").map(PathBuf::from).collect();
        files.sort();
        files
    }

    /// Compared as text: `PathBuf` takes `a//b` and `a/b` for the same.
    fn texts(files: &[PathBuf]) -> Vec<&str> {
        files.iter().map(|path| path.to_str().expect("UTF-8")).collect()
    }

    #[test]
    fn the_prefix_is_the_argument_as_typed() {
        let (_dir, name) = tree();
        for suffix in ["/tree", "/tree/", "/tree//", "/tree/.", "/tree/../tree/sub/.."] {
            let start = format!("{name}{suffix}");
            let slash = if start.ends_with('/') { "" } else { "/" };
            assert_eq!(texts(&files(&start)), [format!("{start}{slash}a"), format!("{start}{slash}sub/b")]);
        }
    }

    #[test]
    fn a_file_is_its_own_tree() {
        let (_dir, name) = tree();
        assert_eq!(texts(&files(&format!("{name}/tree/a"))), [format!("{name}/tree/a")]);
    }

    #[test]
    fn a_link_is_followed_only_with_a_slash_behind_it() {
        let (_dir, name) = tree();
        assert_eq!(files(&format!("{name}/alias")), [] as [PathBuf; 0]);
        assert_eq!(
            texts(&files(&format!("{name}/alias/"))),
            [format!("{name}/alias/a"), format!("{name}/alias/sub/b")]
        );
    }

    #[test]
    fn a_missing_start_is_an_error() {
        let (_dir, name) = tree();
        for start in ["/none", "/tree/a/"] {
            let start = format!("{name}{start}");
            assert!(Walk::start(Path::new(&start), Arc::new(Progress::silent())).is_err(), "{start}");
        }
    }
}
