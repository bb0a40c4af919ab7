//! The fixed part of a segment's header, read and written through the file.

use crate::error::SegmentError;
use std::os::fd::{AsFd, BorrowedFd};

/// The fixed part of the header, as bytes in the file.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Header {
    pub(super) magic: u64,
    pub(super) version: u32,
    pub(super) kind: u32,
    pub(super) layout_hash: u64,
    pub(super) file_len: u64,
    pub(super) body_offset: u64,
    pub(super) body_len: u64,
    pub(super) id: [u64; 2],
}

/// Writes the header through the file: a system call orders it for everybody who reads it that way.
pub(super) fn write_header(fd: impl AsFd, header: &Header) -> Result<(), SegmentError> {
    match rustix::io::pwrite(fd, bytemuck::bytes_of(header), 0) {
        Ok(len) if len == size_of::<Header>() => Ok(()),
        Ok(_) => Err(SegmentError::foreign("its header", 0, size_of::<Header>() as u64)),
        Err(error) => Err(SegmentError::system("writing a segment's header")(error.into())),
    }
}

/// One private copy of the header, never read again.
pub(super) fn read_header(fd: BorrowedFd<'_>) -> Result<Header, SegmentError> {
    let mut header: Header = bytemuck::Zeroable::zeroed();
    match rustix::io::pread(fd, bytemuck::bytes_of_mut(&mut header), 0) {
        Ok(len) if len == size_of::<Header>() => Ok(header),
        Ok(len) => Err(SegmentError::foreign("its header's length", len as u64, size_of::<Header>() as u64)),
        Err(error) => Err(SegmentError::system("reading a segment's header")(error.into())),
    }
}
