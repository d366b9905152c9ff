//! Opening a store: making the index and the packs agree.
//!
//! The index says of each pack how far it knows it. Beyond that a crash may have left records that were never
//! acknowledged, and torn ones: the good ones are taken in, the rest of the last pack is cut off. A pack that is shorter than the
//! index believes, or gone, has lost chunks (a disk restored from an older copy): the index forgets them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use shoal_state::Digest;

use super::packs::{Packs, Writer};
use super::record::{self, ALIGN, Entry, HEADER_BYTES, Header, PACK_HEADER_BYTES, Place};
use super::{INDEX_BATCH, INLINE_BYTES_MAX, Options, Result};
use crate::file::{self, failed};
use crate::kv::{Batch, Tree};

/// How much is searched at once for the next record after damage.
const SEARCH_BYTES: u64 = 1 << 20;

/// The trees of the index.
pub(super) struct Index<'a> {
    pub(super) chunks: &'a Tree,
    pub(super) marks: &'a Tree,
}

/// Makes index and packs agree, and returns where writing goes on.
pub(super) fn recover(index: &Index<'_>, packs: &Packs, options: &Options) -> Result<Writer> {
    let found = packs.list()?;
    forget_lost(index, packs, &found)?;
    let keep_until = options.kept_from_now();
    let mut ends = Vec::new();
    for pack in &found {
        ends.push((*pack, take_in(index, packs, *pack, keep_until)?));
    }
    index.chunks.kv().sync()?;
    let Some((pack, end)) = ends.pop() else { return Ok(Writer::new(0, None, 0)) };
    let file = packs.open(pack)?;
    let intact = end >= PACK_HEADER_BYTES as u64;
    cut(&file, &packs.path(pack), end)?;
    // A last pack without a header was never finished: it is made anew.
    Ok(Writer::new(pack, intact.then_some(file), end))
}

fn cut(file: &File, path: &Path, end: u64) -> Result<()> {
    let length = file.metadata().map_err(failed("look at", path))?.len();
    if length > end {
        tracing::warn!(pack = %path.display(), bytes = length - end, "cut off what a crash left at the end of a pack");
        file.set_len(end).map_err(failed("cut", path))?;
        file.sync_all().map_err(failed("sync", path))?;
    }
    Ok(())
}

/// Removes from the index what its packs have lost.
fn forget_lost(index: &Index<'_>, packs: &Packs, found: &[u32]) -> Result<()> {
    let mut lost = Vec::new();
    for pair in index.marks.range(..) {
        let (key, _) = pair?;
        let pack = u32::from_be_bytes(key[..].try_into().unwrap_or_default());
        let length = if found.contains(&pack) { length(packs, pack)? } else { 0 };
        if length < mark(index, pack)? {
            lost.push((pack, length));
        }
    }
    for (pack, length) in &lost {
        tracing::error!(pack = %packs.path(*pack).display(), length, "a pack has lost bytes that the index names");
    }
    if !lost.is_empty() {
        forget(index, &lost)?;
    }
    Ok(())
}

fn forget(index: &Index<'_>, lost: &[(u32, u64)]) -> Result<()> {
    let mut batches = Batches::new(index.chunks);
    for pair in index.chunks.range(..) {
        let (key, value) = pair?;
        let Some(entry) = Entry::decode(&value) else { continue };
        let end = lost.iter().find(|(pack, _)| *pack == entry.place.pack).map(|(_, length)| *length);
        if end.is_some_and(|end| entry.place.end() > end) {
            batches.remove(key)?;
        }
    }
    batches.finish()?;
    let mut marks = Batch::default();
    for (pack, length) in lost {
        match length {
            0 => marks.remove(pack.to_be_bytes()),
            length => marks.insert(pack.to_be_bytes(), length.to_le_bytes()),
        }
    }
    Ok(index.marks.apply(marks)?)
}

/// Returns how many bytes of a pack the index knows.
fn mark(index: &Index<'_>, pack: u32) -> Result<u64> {
    let value = index.marks.get(&pack.to_be_bytes())?;
    Ok(value.and_then(|value| Some(u64::from_le_bytes(value[..].try_into().ok()?))).unwrap_or_default())
}

fn length(packs: &Packs, pack: u32) -> Result<u64> {
    let file = packs.open(pack)?;
    Ok(file.metadata().map_err(failed("look at", &packs.path(pack)))?.len())
}

/// Takes the records of a pack into the index that it does not know. Returns the end of the last good one.
fn take_in(index: &Index<'_>, packs: &Packs, pack: u32, keep_until: u64) -> Result<u64> {
    let known = mark(index, pack)?;
    let length = length(packs, pack)?;
    let file = packs.open(pack)?;
    let path = packs.path(pack);
    let mut walk = Walk { file: &file, path: &path, at: known.max(PACK_HEADER_BYTES as u64), length };
    let mut end = if known > 0 { known } else { header_end(&file, &path, pack, length)? };
    if walk.at >= length {
        return Ok(end);
    }
    // What is taken in may be in memory alone: the process died, not the machine.
    file.sync_all().map_err(failed("sync", &path))?;
    let mut batches = Batches::new(index.chunks);
    let mut chunks = 0;
    while let Some((offset, header, plain)) = walk.next()? {
        let place = Place::new(pack, offset, &header);
        let inline = (plain.len() <= INLINE_BYTES_MAX).then_some(plain);
        batches.insert(&header.digest, &Entry { place, keep_until, inline })?;
        end = place.end();
        chunks += 1;
    }
    batches.finish()?;
    if chunks > 0 {
        tracing::info!(pack = %path.display(), chunks, "took chunks of a pack into the index");
        index.marks.insert(&pack.to_be_bytes(), &end.to_le_bytes())?;
    }
    Ok(end)
}

/// Returns the end of the header of a pack, or 0 where it has none.
fn header_end(file: &File, path: &Path, pack: u32, length: u64) -> Result<u64> {
    let mut bytes = [0; PACK_HEADER_BYTES];
    if length < PACK_HEADER_BYTES as u64 {
        return Ok(0);
    }
    file.read_exact_at(&mut bytes, 0).map_err(failed("read", path))?;
    Ok(if bytes == record::pack_header(pack) { PACK_HEADER_BYTES as u64 } else { 0 })
}

/// Walks the good records of a pack, over damaged ones to the next that is good.
struct Walk<'a> {
    file: &'a File,
    path: &'a Path,
    at: u64,
    length: u64,
}

impl Walk<'_> {
    fn next(&mut self) -> Result<Option<(u64, Header, Bytes)>> {
        while let Some((offset, header)) = self.next_header()? {
            let start = offset + HEADER_BYTES as u64;
            if start + u64::from(header.stored_bytes) <= self.length {
                let stored = file::read_at(self.file, header.stored_bytes as usize, start).map_err(failed("read", self.path))?;
                if let Ok(plain) = record::unpack(&header, stored) {
                    self.at = offset + header.stride();
                    return Ok(Some((offset, header, plain)));
                }
            }
            // A header whose bytes are not there: deleted, or torn.
            self.at = offset + ALIGN as u64;
        }
        Ok(None)
    }

    /// Returns the next place where a header stands.
    fn next_header(&mut self) -> Result<Option<(u64, Header)>> {
        while self.at + HEADER_BYTES as u64 <= self.length {
            let mut bytes = vec![0; SEARCH_BYTES.min(self.length - self.at) as usize];
            self.file.read_exact_at(&mut bytes, self.at).map_err(failed("read", self.path))?;
            let starts = (0..=bytes.len() - HEADER_BYTES).step_by(ALIGN);
            let header = |start: usize| Header::parse(bytes[start..].first_chunk()?);
            if let Some((start, header)) = starts.clone().find_map(|start| Some((start, header(start)?))) {
                return Ok(Some((self.at + start as u64, header)));
            }
            self.at += starts.count() as u64 * ALIGN as u64;
        }
        Ok(None)
    }
}

/// Changes to the index, written some at a time.
pub(super) struct Batches<'a> {
    tree: &'a Tree,
    batch: Batch,
}

impl<'a> Batches<'a> {
    pub(super) fn new(tree: &'a Tree) -> Self {
        Self { tree, batch: Batch::default() }
    }

    pub(super) fn insert(&mut self, digest: &Digest, entry: &Entry) -> Result<()> {
        self.batch.insert(digest.as_bytes().as_slice(), entry.encode());
        self.apply_from(INDEX_BATCH)
    }

    pub(super) fn remove(&mut self, key: Bytes) -> Result<()> {
        self.batch.remove(key);
        self.apply_from(INDEX_BATCH)
    }

    pub(super) fn finish(mut self) -> Result<()> {
        self.apply_from(1)
    }

    fn apply_from(&mut self, changes: usize) -> Result<()> {
        if self.batch.len() >= changes {
            self.tree.apply(std::mem::take(&mut self.batch))?;
        }
        Ok(())
    }
}
