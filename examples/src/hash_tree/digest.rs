//! What a worker does with one path.

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Bytes read at a time. Larger buffers fall out of the second-level cache before they are hashed.
const BUFFER_LEN: usize = 256 * 1024;

/// One file's result, as it travels back from a worker.
#[derive(Debug, Serialize, Deserialize)]
pub struct Hashed {
    /// The index that came with the path.
    pub index: u64,
    /// The process that did the work.
    pub worker: u32,
    /// Digest and length, or why the file could not be read.
    pub outcome: Result<(Digest, u64), String>,
}

/// A SHA-256 value.
pub type Digest = [u8; 32];

/// Hashes one file. This is the function that the pool calls in its workers.
pub fn hash_file((index, path): (u64, OsString)) -> Hashed {
    let outcome = read_and_hash(&path).map_err(|error| error.to_string());
    Hashed { index, worker: std::process::id(), outcome }
}

fn read_and_hash(path: &OsString) -> io::Result<(Digest, u64)> {
    thread_local!(static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER_LEN]));
    // What was a regular file when the walk met it may be a pipe or a link by now: neither may block or lead elsewhere.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let mut file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("no longer a regular file"));
    }
    BUFFER.with_borrow_mut(|buffer| {
        let mut hash = Sha256::new();
        let mut len = 0;
        loop {
            match file.read(buffer) {
                Ok(0) => return Ok((hash.finalize().into(), len)),
                Ok(count) => {
                    hash.update(&buffer[..count]);
                    len += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashed(path: impl Into<OsString>) -> Result<(Digest, u64), String> {
        hash_file((0, path.into())).outcome
    }

    fn hex(digest: &Digest) -> String {
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn a_file_longer_than_the_buffer_is_hashed_whole() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("million");
        std::fs::write(&path, vec![b'a'; 1_000_000]).expect("writable");
        let (digest, len) = hashed(path).expect("readable");
        assert_eq!(len, 1_000_000);
        // FIPS 180-2, appendix B.3: one million times "a".
        assert_eq!(hex(&digest), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    }

    #[test]
    fn an_empty_file_has_the_digest_of_nothing() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let (digest, len) = hashed(file.path()).expect("readable");
        assert_eq!(len, 0);
        assert_eq!(hex(&digest), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[test]
    fn what_became_a_pipe_or_a_link_is_an_error_and_does_not_block() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, Mode::RUSR, 0)
            .expect("mkfifo");
        assert!(hashed(&pipe).is_err());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&pipe, &link).expect("symlink");
        assert!(hashed(link).is_err());
    }

    #[test]
    fn a_missing_file_says_so() {
        let error = hashed("/nonexistent/file").expect_err("missing");
        assert!(error.contains("No such file"), "{error}");
    }
}
