//! One file of a log: a header, then records, written once from front to back.

use std::collections::hash_map::RandomState;
use std::fs::{File, OpenOptions};
use std::hash::BuildHasher;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use rustix::fs::{FallocateFlags, fallocate};

use super::record::{HEADER_BYTES, Header, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::{Error, Position, RECORD_BYTES_MAX, Result};
use crate::file::{self, Failed, failed};

/// How much of a record is read with its header: most records need one read.
const READ_AHEAD_BYTES: usize = 4 << 10;

/// What an opened log is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Reading and writing: what a crash left half done is finished.
    Use,
    /// Reading alone: nothing on disk changes.
    Look,
}

/// A segment file.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) header: SegmentHeader,
    pub(super) path: PathBuf,
    pub(super) file: File,
    /// Offset after the last record.
    end: AtomicU64,
}

impl Segment {
    /// Makes a segment file, so that it and its name last, with its space set aside.
    ///
    /// With it, durably and at once, the records from `void_from` up to `base` are truncated.
    pub(super) fn create(dir: &Path, base: u64, capacity: u64, void_from: u64) -> std::result::Result<Self, Failed> {
        let path = dir.join(file_name(base));
        // One with this name was never finished: opening the log found no header in it.
        file::remove(&path)?;
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).map_err(failed("create", &path))?;
        match fallocate(&file, FallocateFlags::empty(), 0, capacity) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(failed("set space aside for", &path)(errno)),
        }
        // Random keys of the standard library: a number that no payload can know.
        let salt = RandomState::new().hash_one(base);
        let header = SegmentHeader { base, capacity, salt, void_from };
        file.write_all_at(&header.encode(), 0).map_err(failed("write", &path))?;
        file.sync_all().map_err(failed("sync", &path))?;
        file::sync_dir(dir)?;
        Ok(Self { header, path, file, end: AtomicU64::new(SEGMENT_HEADER_BYTES) })
    }

    /// Opens a segment file whose records reach to its end; `None` when it has no header.
    pub(super) fn open(path: PathBuf, access: Access) -> std::result::Result<Option<Self>, Failed> {
        let file = OpenOptions::new().read(true).write(access == Access::Use).open(&path).map_err(failed("open", &path))?;
        let length = file.metadata().map_err(failed("look at", &path))?.len();
        let mut header = [0; SEGMENT_HEADER_BYTES as usize];
        match file.read_exact_at(&mut header, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            result => result.map_err(failed("read", &path))?,
        }
        let segment = |header| Self { header, path, file, end: AtomicU64::new(length) };
        Ok(SegmentHeader::parse(&header).map(segment))
    }

    /// Offset after the last record.
    pub(super) fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    /// Position after the last record.
    pub(super) fn end_position(&self) -> u64 {
        self.header.base + self.end()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.end() <= SEGMENT_HEADER_BYTES
    }

    /// Writes encoded records at the end.
    pub(super) fn append(&self, records: &[u8]) -> std::result::Result<(), Failed> {
        let end = self.end();
        self.file.write_all_at(records, end).map_err(failed("append to", &self.path))?;
        self.end.store(end + records.len() as u64, Ordering::Release);
        Ok(())
    }

    /// Makes `offset` the end, and leaves the file as it is.
    pub(super) fn end_at(&self, offset: u64) {
        self.end.store(offset, Ordering::Release);
    }

    /// Makes `offset` the end, and the file no longer than that, durably.
    pub(super) fn cut(&self, offset: u64) -> std::result::Result<(), Failed> {
        self.end_at(offset);
        self.file.set_len(offset).map_err(failed("cut", &self.path))?;
        self.file.sync_all().map_err(failed("sync", &self.path))
    }

    /// Reads the record at `offset`.
    pub(super) fn read(&self, offset: u64) -> Result<(Header, Bytes)> {
        let available = self.end().saturating_sub(offset);
        let mut bytes = vec![0; READ_AHEAD_BYTES.min(available as usize)];
        self.read_at(&mut bytes, offset)?;
        let header = self.check_header(&bytes, offset)?;
        let end = HEADER_BYTES + header.length as usize;
        if end > bytes.len() {
            let have = bytes.len();
            bytes.resize(end, 0);
            self.read_at(&mut bytes[have..], offset + have as u64)?;
        }
        let payload = Bytes::from(bytes).slice(HEADER_BYTES..end);
        if !header.matches(self.header.salt, &payload) {
            return Err(self.damaged(offset, "its checksum does not match"));
        }
        Ok((header, payload))
    }

    /// Returns the header at the beginning of `bytes` if it can be that of a record at `offset`.
    pub(super) fn check_header(&self, bytes: &[u8], offset: u64) -> Result<Header> {
        let Some(header) = bytes.first_chunk::<HEADER_BYTES>().map(Header::parse) else {
            return Err(self.damaged(offset, "its header is cut off"));
        };
        if header.position != self.header.base + offset {
            return Err(self.damaged(offset, "its header names another position"));
        }
        if header.length as usize > RECORD_BYTES_MAX || offset + header.stride() > self.end() {
            return Err(self.damaged(offset, "its length reaches beyond the end"));
        }
        Ok(header)
    }

    pub(super) fn read_at(&self, bytes: &mut [u8], offset: u64) -> std::result::Result<(), Failed> {
        self.file.read_exact_at(bytes, offset).map_err(failed("read", &self.path))
    }

    pub(super) fn damaged(&self, offset: u64, what: &'static str) -> Error {
        let position = Position(self.header.base + offset);
        Error::Damaged { segment: self.path.clone(), offset, position, what }
    }
}

/// Names sort as positions do.
pub(super) fn file_name(base: u64) -> String {
    format!("{base:020}.segment")
}

/// Returns the base position in the name of a segment file.
pub(super) fn base_in_name(name: &str) -> Option<u64> {
    name.strip_suffix(".segment")?.parse().ok()
}
