//! Deleting chunks that nothing names any more.
//!
//! Whoever knows what is named (the state, the shards) asks twice. [`Store::condemn`] lists the chunks that are not named
//! and not promised to anyone; some time later [`Store::sweep`] deletes those of them that were not promised again
//! meanwhile. A promise and a deletion take the same lock, so a chunk that was said to be here stays.

use std::collections::{BTreeMap, HashSet};

use shoal_state::Digest;

use super::record::{self, Entry, Place};
use super::recover::Batches;
use super::{Core, INDEX_BATCH, Result, Store};
use crate::file::failed;
use crate::kv::Batch;

/// A pack with less than this share of its bytes in use is rewritten.
const REWRITE_BELOW_PERCENT: u64 = 40;

/// Chunks that nothing names.
#[derive(Debug, Clone, Default)]
pub struct Condemned {
    digests: Vec<Digest>,
    bytes: u64,
    /// When what is named was read, in seconds of the store's clock.
    as_of: u64,
}

impl Condemned {
    /// Returns how many chunks are to be deleted.
    pub fn len(&self) -> usize {
        self.digests.len()
    }

    /// Returns how much of the disk they take, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the chunks.
    pub fn digests(&self) -> &[Digest] {
        &self.digests
    }

    /// Spares the chunks of which `goes` is false.
    pub fn retain(&mut self, goes: impl FnMut(&Digest) -> bool) {
        self.digests.retain(goes);
    }

    /// Says whether there is nothing to delete.
    pub fn is_empty(&self) -> bool {
        self.digests.is_empty()
    }
}

/// What a sweep deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Chunks that are gone.
    pub chunks: u64,
    /// Their length on disk.
    pub bytes: u64,
}

impl Store {
    /// Lists the chunks that are not `named` and whose promises have ended. Nothing is deleted yet.
    pub fn condemn(&self, named: impl FnMut(&Digest) -> bool) -> Result<Condemned> {
        self.condemn_as_of(self.core().now(), named)
    }

    /// Lists the chunks that are not `named` and whose promises had ended when that was read, `as_of` seconds of the store's
    /// clock: what was promised then may be named by now, however the clock went on since. Nothing is deleted yet.
    pub fn condemn_as_of(&self, as_of: u64, mut named: impl FnMut(&Digest) -> bool) -> Result<Condemned> {
        let mut condemned = Condemned { as_of, ..Condemned::default() };
        self.core().each(|digest, entry| {
            if entry.keep_until <= as_of && !named(digest) {
                condemned.digests.push(*digest);
                condemned.bytes += entry.place.end() - entry.place.offset;
            }
            Ok(())
        })?;
        Ok(condemned)
    }

    /// Deletes condemned chunks, except those that were put or promised since.
    pub fn sweep(&self, condemned: &Condemned) -> Result<Swept> {
        let mut swept = Swept::default();
        for digests in condemned.digests.chunks(INDEX_BATCH) {
            let places = self.core().delete(digests, condemned.as_of)?;
            // Only when no crash can bring the entries back may their bytes go.
            self.core().kv.sync()?;
            for place in &places {
                self.core().packs.punch(place)?;
                swept.chunks += 1;
                swept.bytes += place.end() - place.offset;
            }
        }
        Ok(swept)
    }

    /// Rewrites packs that are mostly deleted, to get the rest of their space back. Returns how many went.
    pub fn compact(&self) -> Result<u64> {
        let core = self.core();
        let sparse = core.sparse_packs()?;
        if sparse.is_empty() {
            return Ok(0);
        }
        let mut moving = Vec::new();
        core.each(|digest, entry| {
            if sparse.contains(&entry.place.pack) {
                moving.push((*digest, entry.place));
            }
            Ok(())
        })?;
        for (digest, place) in moving {
            if core.rewrite(&digest, &place)? {
                self.sync()?;
            }
        }
        self.sync()?;
        sparse.iter().try_for_each(|pack| core.remove_pack(*pack))?;
        Ok(sparse.len() as u64)
    }
}

impl Core {
    pub(super) fn each(&self, mut visit: impl FnMut(&Digest, &Entry) -> Result<()>) -> Result<()> {
        for pair in self.chunks.range(..) {
            let (key, value) = pair?;
            let (Ok(digest), Some(entry)) = (key[..].try_into(), Entry::decode(&value)) else { continue };
            visit(&Digest::from_bytes(digest), &entry)?;
        }
        Ok(())
    }

    /// Removes chunks from the index unless they were promised, and returns where their bytes lie.
    fn delete(&self, digests: &[Digest], as_of: u64) -> Result<Vec<Place>> {
        let fresh = self.fresh.write();
        let mut places = Vec::new();
        let mut batches = Batches::new(&self.chunks);
        for digest in digests {
            if fresh.written.contains_key(digest) || fresh.touched.contains_key(digest) {
                continue;
            }
            if let Some(entry) = self.indexed(digest)?.filter(|entry| entry.keep_until <= as_of) {
                batches.remove(bytes::Bytes::copy_from_slice(digest.as_bytes()))?;
                places.push(entry.place);
            }
        }
        batches.finish()?;
        Ok(places)
    }

    /// Returns the packs, but for the one that is written, that are mostly deleted.
    fn sparse_packs(&self) -> Result<HashSet<u32>> {
        let mut used: BTreeMap<u32, u64> = BTreeMap::new();
        let written = self.writer.lock().pack;
        for pack in self.packs.list()?.into_iter().filter(|pack| *pack < written) {
            used.insert(pack, 0);
        }
        self.each(|_, entry| {
            if let Some(bytes) = used.get_mut(&entry.place.pack) {
                *bytes += entry.place.end() - entry.place.offset;
            }
            Ok(())
        })?;
        let mut sparse = HashSet::new();
        for (pack, used_bytes) in used {
            let file = self.packs.open(pack)?;
            let length = file.metadata().map_err(failed("look at", &self.packs.path(pack)))?.len();
            if used_bytes * 100 < length * REWRITE_BELOW_PERCENT {
                sparse.insert(pack);
            }
        }
        Ok(sparse)
    }

    /// Writes a chunk again, to the pack that is written now. Returns whether it is time for a sync.
    fn rewrite(&self, digest: &Digest, place: &Place) -> Result<bool> {
        let Some(entry) = self.entry(digest)?.filter(|entry| entry.place == *place) else { return Ok(false) };
        // A damaged chunk is dropped by the read, and so not moved.
        let plain = match self.get(digest) {
            Ok(plain) => plain,
            Err(super::Error::Corrupt { .. } | super::Error::Missing { .. }) => return Ok(false),
            Err(error) => return Err(error),
        };
        self.write_record(&record::pack(*digest, &plain), entry.inline, entry.keep_until)
    }

    /// Removes a pack whose chunks were all moved or deleted.
    fn remove_pack(&self, pack: u32) -> Result<()> {
        let mut left = false;
        self.each(|_, entry| {
            left |= entry.place.pack == pack;
            Ok(())
        })?;
        if left {
            return Ok(());
        }
        // The mark goes last: with the file gone and the mark there, opening finds nothing to forget.
        self.packs.remove(pack)?;
        let mut marks = Batch::default();
        marks.remove(pack.to_be_bytes());
        self.marks.apply(marks)?;
        Ok(self.kv.sync()?)
    }
}
