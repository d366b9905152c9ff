//! What the handles of a store share: its index, its packs, and what of these is not on disk yet.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use shoal_state::Digest;

use super::packs::{self, Packs, Unsynced, Writer};
use super::record::{self, Entry, Place};
use super::stored::Stored;
use super::{Error, INLINE_BYTES_MAX, Options, Result, recover};
use crate::file::{self, Failed, Held, failed};
use crate::kv::{Batch, Kv, Tree};

/// How many chunks may wait for a sync. Beyond it, a put syncs.
const UNSYNCED_CHUNKS_MAX: usize = 32 << 10;

/// How many bytes may wait for a sync. Beyond it, a put syncs: so a sync has an end in sight.
const UNSYNCED_BYTES_MAX: u64 = 256 << 20;

#[derive(Debug)]
pub(super) struct Core {
    pub(super) dir: Arc<Path>,
    pub(super) options: Options,
    pub(super) kv: Kv,
    /// Digest to [`Entry`].
    pub(super) chunks: Tree,
    /// Pack number to how many of its bytes are in the index.
    pub(super) marks: Tree,
    pub(super) packs: Packs,
    /// Taken before `fresh`.
    pub(super) writer: Mutex<Writer>,
    pub(super) fresh: RwLock<Fresh>,
    pub(super) _held: Held,
}

/// What the index does not know yet. Held for writing also while a chunk is deleted, so that a promise and a deletion
/// cannot cross.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    pub(super) written: HashMap<Digest, Entry>,
    /// Chunks of the index that were promised anew, and until when.
    pub(super) touched: HashMap<Digest, u64>,
}

/// What is known of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    No,
    /// Here, but the chunk or the promise to keep it is not on disk yet.
    Unsynced,
    Synced,
}

impl Core {
    pub(super) fn now(&self) -> u64 {
        (self.options.clock)()
    }

    /// Says what is known of a chunk; one that is here is kept for [`Options::keep`] from now on, once it is synced.
    pub(super) fn touch(&self, digest: &Digest) -> Result<Known> {
        let mut fresh = self.fresh.write();
        let keep_until = self.kept_from_now();
        let fresh = &mut *fresh;
        // A sync that is under way may be writing an earlier promise: what is longer now stays for the next one.
        let promised = fresh.written.get_mut(digest).map(|entry| &mut entry.keep_until).or_else(|| fresh.touched.get_mut(digest));
        if let Some(until) = promised {
            *until = keep_until.max(*until);
            return Ok(Known::Unsynced);
        }
        let Some(entry) = self.indexed(digest)? else { return Ok(Known::No) };
        if entry.keep_until >= keep_until {
            return Ok(Known::Synced);
        }
        fresh.touched.insert(*digest, keep_until);
        Ok(Known::Unsynced)
    }

    pub(super) fn check_writable(&self) -> Result<()> {
        if self.options.look_only { Err(Error::LookOnly { dir: self.dir.to_path_buf() }) } else { Ok(()) }
    }

    pub(super) fn check_room(&self) -> Result<()> {
        let used_percent = (self.options.disk_used_percent)(&self.dir).map_err(failed("look at the disk of", &self.dir))?;
        self.refuse_from(used_percent)
    }

    pub(super) fn refuse_from(&self, used_percent: u8) -> Result<()> {
        let limit_percent = self.options.full_percent;
        if used_percent < limit_percent {
            return Ok(());
        }
        Err(Error::Full { dir: self.dir.to_path_buf(), used_percent, limit_percent })
    }

    /// Writes a chunk to the pack. Returns whether so much waits for a sync that it is time for one.
    pub(super) fn write(&self, record: &record::Record<'_>, plain: &[u8]) -> Result<bool> {
        let inline = (plain.len() <= INLINE_BYTES_MAX).then(|| Bytes::copy_from_slice(plain));
        let keep_until = self.kept_from_now();
        self.write_record(record, inline, keep_until)
    }

    pub(super) fn write_record(&self, record: &record::Record<'_>, inline: Option<Bytes>, keep_until: u64) -> Result<bool> {
        let mut writer = self.writer.lock();
        let place = writer.append(&self.packs, self.options.pack_bytes, record).map_err(|error| match error {
            full if full.is_full() => self.refuse_from(100).map_or_else(|refused| refused, |()| full.into()),
            other => other.into(),
        })?;
        let mut fresh = self.fresh.write();
        fresh.written.insert(record.header.digest, Entry { place, keep_until, inline });
        Ok(fresh.written.len() >= UNSYNCED_CHUNKS_MAX || writer.unsynced.bytes >= UNSYNCED_BYTES_MAX)
    }

    pub(super) fn kept_from_now(&self) -> u64 {
        self.options.kept_from_now()
    }

    pub(super) fn indexed(&self, digest: &Digest) -> Result<Option<Entry>> {
        let value = self.chunks.get(digest.as_bytes())?;
        Ok(value.and_then(|value| Entry::decode(&value)))
    }

    pub(super) fn entry(&self, digest: &Digest) -> Result<Option<Entry>> {
        if let Some(entry) = self.fresh.read().written.get(digest) {
            return Ok(Some(entry.clone()));
        }
        // A sync moves entries to the index before it forgets them, so one of the two has it.
        self.indexed(digest)
    }

    pub(super) fn get(&self, digest: &Digest) -> Result<Bytes> {
        self.find(digest, |entry| self.read(digest, entry))
    }

    pub(super) fn get_stored(&self, digest: &Digest) -> Result<Stored> {
        self.find(digest, |entry| {
            if let Some(inline) = &entry.inline {
                return Ok(Ok(Stored::Plain(inline.clone())));
            }
            Ok(Ok(Stored::of(&entry.place.header(*digest), self.packs.read(&entry.place)?)))
        })
    }

    /// Reads a chunk where it lies, `read` says how. One that is found to be damaged is dropped.
    pub(super) fn find<T>(
        &self,
        digest: &Digest,
        read: impl Fn(&Entry) -> std::result::Result<std::result::Result<T, &'static str>, Failed>,
    ) -> Result<T> {
        let mut before = None;
        loop {
            let Some(entry) = self.entry(digest)? else { return Err(Error::Missing { digest: *digest }) };
            let what = match read(&entry) {
                Ok(Ok(bytes)) => return Ok(bytes),
                Ok(Err(what)) => what,
                Err(error) if packs::is_lost(&error) => "the pack ends before it",
                Err(error) => return Err(error.into()),
            };
            // The chunk may have been moved or deleted meanwhile: only the same place twice is damage.
            if before == Some(entry.place) {
                return Err(self.drop_corrupt(digest, &entry.place, what));
            }
            before = Some(entry.place);
        }
    }

    pub(super) fn read(&self, digest: &Digest, entry: &Entry) -> std::result::Result<std::result::Result<Bytes, &'static str>, Failed> {
        if let Some(inline) = entry.inline.as_ref().filter(|inline| Digest::of(inline) == *digest) {
            return Ok(Ok(inline.clone()));
        }
        let stored = self.packs.read(&entry.place)?;
        Ok(record::unpack(&entry.place.header(*digest), stored))
    }

    /// Drops a damaged chunk, unless the store is only looked at. Returns the error that tells of it, or why it could not.
    pub(super) fn drop_corrupt(&self, digest: &Digest, place: &Place, what: &'static str) -> Error {
        let (pack, offset) = (self.packs.path(place.pack), place.offset);
        if !self.options.look_only {
            let mut fresh = self.fresh.write();
            fresh.written.remove(digest);
            fresh.touched.remove(digest);
            if let Err(error) = self.chunks.remove(digest.as_bytes()) {
                return error.into();
            }
            tracing::error!(%digest, pack = %pack.display(), offset, what, "a damaged chunk was dropped");
        }
        Error::Corrupt { digest: *digest, pack, offset, what }
    }

    /// Makes durable what was put and promised before this call. Runs on the syncing thread alone.
    pub(super) fn sync(&self) -> Result<()> {
        let (unsynced, written, touched) = {
            let mut writer = self.writer.lock();
            let fresh = self.fresh.read();
            if writer.unsynced.is_empty() && fresh.written.is_empty() && fresh.touched.is_empty() {
                return Ok(());
            }
            (std::mem::take(&mut writer.unsynced), fresh.written.clone(), fresh.touched.clone())
        };
        self.sync_packs(&unsynced)?;
        self.index(&written, &touched, &unsynced)?;
        self.kv.sync()?;
        let mut fresh = self.fresh.write();
        fresh.written.retain(|digest, entry| written.get(digest) != Some(entry));
        fresh.touched.retain(|digest, until| touched.get(digest) != Some(until));
        Ok(())
    }

    pub(super) fn sync_packs(&self, unsynced: &Unsynced) -> Result<()> {
        for (pack, (file, _)) in &unsynced.packs {
            file.sync_data().map_err(failed("sync", &self.packs.path(*pack)))?;
        }
        if unsynced.new_names {
            file::sync_dir(&self.packs.dir)?;
        }
        Ok(())
    }

    /// Writes to the index what is in the packs, then how far the packs are in the index.
    pub(super) fn index(&self, written: &HashMap<Digest, Entry>, touched: &HashMap<Digest, u64>, unsynced: &Unsynced) -> Result<()> {
        let mut batches = recover::Batches::new(&self.chunks);
        for (digest, entry) in written {
            let mut entry = entry.clone();
            // A chunk that was only moved keeps a promise made before and meanwhile.
            let indexed = self.indexed(digest)?.map(|old| old.keep_until);
            let promised = indexed.max(touched.get(digest).copied());
            entry.keep_until = promised.unwrap_or(0).max(entry.keep_until);
            batches.insert(digest, &entry)?;
        }
        for (digest, keep_until) in touched.iter().filter(|(digest, _)| !written.contains_key(*digest)) {
            if let Some(entry) = self.indexed(digest)? {
                batches.insert(digest, &Entry { keep_until: *keep_until, ..entry })?;
            }
        }
        batches.finish()?;
        let mut marks = Batch::default();
        for (pack, (_, end)) in &unsynced.packs {
            marks.insert(pack.to_be_bytes(), end.to_le_bytes());
        }
        Ok(self.marks.apply(marks)?)
    }
}
