//! Blobs: runs of bytes of any length, kept as chunks and a list of them.

use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use shoal_state::Digest;

use super::{Error, Result, Store};
use crate::chunk::{self, CHUNK_BYTES, List};

/// Names a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BlobRef {
    /// Name of the object that lists the blob's chunks.
    pub digest: Digest,
    /// Length of the blob.
    pub size: u64,
}

impl Store {
    /// Stores what can be read, cut as [`chunk`] says, and returns the names of the chunks. They last after a sync.
    pub fn put_stream(&self, source: impl Read) -> Result<List> {
        let mut list = List::default();
        let mut source = source;
        let mut buffer = Vec::with_capacity(CHUNK_BYTES);
        loop {
            buffer.clear();
            let read = (&mut source).take(CHUNK_BYTES as u64).read_to_end(&mut buffer);
            read.map_err(|source| Error::Source { read_bytes: list.size, source: Arc::new(source) })?;
            if buffer.is_empty() {
                return Ok(list);
            }
            list.chunks.push(self.put(&buffer)?);
            list.size += buffer.len() as u64;
        }
    }

    /// Stores what can be read as a blob. It lasts after a sync.
    pub fn put_blob(&self, source: impl Read) -> Result<BlobRef> {
        let list = self.put_stream(source)?;
        Ok(BlobRef { digest: self.put(&list.encode())?, size: list.size })
    }

    /// Opens a blob for reading, anywhere in it.
    pub fn open_blob(&self, digest: &Digest) -> Result<BlobReader> {
        let list = List::decode(&self.get_anywhere(digest, None)?).map_err(|source| Error::NotABlob { digest: *digest, source })?;
        Ok(BlobReader { store: self.clone(), list, at: 0, piece: Bytes::new() })
    }
}

/// Reads a blob chunk by chunk. One chunk is in memory at a time.
#[derive(Debug)]
pub struct BlobReader {
    store: Store,
    list: List,
    at: u64,
    /// What was read of the present chunk and not handed out yet.
    piece: Bytes,
}

impl BlobReader {
    /// Returns the length of the blob.
    pub fn size(&self) -> u64 {
        self.list.size
    }

    /// Returns the chunks of the blob.
    pub fn list(&self) -> &List {
        &self.list
    }

    /// Reads a range of the blob, cut to its size, one piece a chunk.
    pub fn range(&self, range: Range<u64>) -> impl Iterator<Item = Result<Bytes>> + '_ {
        chunk::pieces(self.list.size, range).map(|piece| {
            let chunk = self.store.get_anywhere(&self.list.chunks[piece.number as usize], None)?;
            let wrong = || io::Error::new(io::ErrorKind::InvalidData, "a chunk of the blob has another length");
            if chunk.len() != chunk::length(self.list.size, piece.number) {
                return Err(Error::Source { read_bytes: 0, source: Arc::new(wrong()) });
            }
            Ok(chunk.slice(piece.bytes))
        })
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() {
            let rest_of_chunk = self.at..(self.at / CHUNK_BYTES as u64 + 1) * CHUNK_BYTES as u64;
            let piece = self.range(rest_of_chunk).next();
            self.piece = piece.transpose().map_err(io::Error::other)?.unwrap_or_default();
        }
        let length = self.piece.len().min(buffer.len());
        buffer[..length].copy_from_slice(&self.piece.split_to(length));
        self.at += length as u64;
        Ok(length)
    }
}

impl Seek for BlobReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (base, offset) = match to {
            SeekFrom::Start(at) => (at, 0),
            SeekFrom::End(offset) => (self.list.size, offset),
            SeekFrom::Current(offset) => (self.at, offset),
        };
        let before = || io::Error::new(io::ErrorKind::InvalidInput, "seek before the beginning of a blob");
        self.at = base.checked_add_signed(offset).ok_or_else(before)?;
        self.piece = Bytes::new();
        Ok(self.at)
    }
}
