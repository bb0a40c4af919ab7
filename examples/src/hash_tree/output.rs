//! The digests on stdout.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use super::digest::Digest;
use super::format::push_line;
use super::progress::Progress;

/// Bytes that are written at once.
const FLUSH_LEN: usize = 64 * 1024;
/// A line waits no longer than this for others, provided that another follows.
const FLUSH_EVERY: Duration = Duration::from_millis(100);

/// Lines on their way to `writer`, in large writes between which the progress bar is taken aside.
#[derive(Debug)]
pub struct Output<'p, W> {
    writer: W,
    progress: &'p Progress,
    pending: Vec<u8>,
    flushed: Instant,
}

impl<'p, W: Write> Output<'p, W> {
    /// Lines go to `writer`.
    pub fn new(writer: W, progress: &'p Progress) -> Output<'p, W> {
        Output { writer, progress, pending: Vec::new(), flushed: Instant::now() }
    }

    /// Adds one file's line.
    ///
    /// # Errors
    /// Those of the writer. The lines that it refused are dropped.
    pub fn line(&mut self, digest: &Digest, path: &OsStr) -> io::Result<()> {
        push_line(&mut self.pending, digest, path);
        if self.pending.len() >= FLUSH_LEN || self.flushed.elapsed() >= FLUSH_EVERY {
            self.flush()?;
        }
        Ok(())
    }

    /// Writes what is pending.
    ///
    /// # Errors
    /// Those of the writer. The lines that it refused are dropped.
    pub fn flush(&mut self) -> io::Result<()> {
        let written = self.progress.aside(|| {
            self.writer.write_all(&self.pending)?;
            self.writer.flush()
        });
        self.pending.clear();
        self.flushed = Instant::now();
        written.map_err(|error| io::Error::new(error.kind(), format!("writing the digests: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_out_in_order_and_complete() {
        let progress = Progress::silent();
        let mut written = Vec::new();
        let mut output = Output::new(&mut written, &progress);
        for name in 0..3_000 {
            output.line(&[0; 32], OsStr::new(&name.to_string())).expect("a Vec takes all");
        }
        output.flush().expect("a Vec takes all");
        let text = String::from_utf8(written).expect("ASCII");
        let names: Vec<u32> = text.lines().map(|line| line[66..].parse().expect("a number")).collect();
        assert_eq!(names, (0..3_000).collect::<Vec<_>>());
    }
}
