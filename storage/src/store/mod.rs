//! The chunks this node has, by digest.
//!
//! A chunk is written to a *pack*, an append-only file, and named in the *index*, a [`Kv`], which also repeats the
//! bytes of small chunks so that reading one takes no seek. [`Store::put`] writes to the pack and returns: the chunk is
//! readable at once. [`Store::sync`] makes it last, always in this order: sync the packs, write the index, sync the index. It comes by
//! itself some seconds after a put at the latest, so that a start after a crash has little to read again.
//! So an index entry never points at bytes that a power cut can take away; and as the packs hold every chunk with its
//! digest, an index that is lost is rebuilt from them.
//!
//! Every read proves the bytes by their digest. A chunk that fails is dropped, and whoever wants it fetches it again.
//!
//! Nothing may name a chunk in a log before a sync after its put has ended. Saying that a chunk is here
//! ([`Store::missing`]) is a promise: it is not deleted for [`Options::keep`], and that is on disk before the answer is given.
//!
//! Calls block on the disk; async callers go through `spawn_blocking`.
//!
//! Caveats: a small chunk is on disk twice. Deleting gives space back in whole blocks; the rest comes back when the
//! pack is rewritten. Dedupe trusts the index: a chunk damaged on disk is noticed when it is read.

mod blob;
mod check;
mod core;
mod elsewhere;
mod error;
mod gc;
mod packs;
mod record;
mod recover;
mod stored;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use shoal_state::Digest;

use self::core::{Core, Known};
use crate::file::{self, failed};
use crate::group::{Group, Synced};
use crate::kv::Kv;
pub use blob::{BlobReader, BlobRef};
pub use check::{Checked, Damage};
pub use elsewhere::Elsewhere;
use error::explain;
pub use error::{Error, Result};
pub use gc::{Condemned, Swept};
use packs::{Packs, Writer};
pub use stored::{Proven, Stored};

/// The longest run of bytes a store takes as one. Chunks of files are shorter; lists of chunks can be this long.
pub const OBJECT_BYTES_MAX: usize = 16 << 20;

/// Chunks up to this length are repeated in the index.
pub const INLINE_BYTES_MAX: usize = 4 << 10;

/// How long a chunk is kept after it was put, or said to be here, unless [`Options::keep`] says otherwise.
pub const KEEP: Duration = Duration::from_secs(24 * 60 * 60);

/// A promise is written for this part of [`Options::keep`] longer, so that repeating it soon needs no write.
const KEEP_AHEAD: u64 = 24;

/// After how long what was put is synced, if nobody asks for it before. A start after a crash reads what was not.
const UNSYNCED_FOR_MAX: Duration = Duration::from_secs(5);

/// How many index entries are written in one batch.
const INDEX_BATCH: usize = 1000;

/// How a store is kept.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// A pack that has reached this size is not written any more.
    pub pack_bytes: u64,
    /// New chunks are refused while the disk is at least this full.
    pub full_percent: u8,
    /// How long a chunk is kept after it was put, or said to be here: longer than whoever puts it needs to name it.
    pub keep: Duration,
    /// Returns the time, in seconds of the Unix clock.
    pub clock: fn() -> u64,
    /// Returns how full the disk under a folder is.
    pub disk_used_percent: fn(&Path) -> io::Result<u8>,
    /// Nothing is put into the store, and nothing about it is put right: what is wrong stays as it is, to be told.
    pub look_only: bool,
}

impl Options {
    /// Returns until when a chunk is kept that is put or promised now.
    fn kept_from_now(&self) -> u64 {
        let keep = self.keep.as_secs();
        (self.clock)() + keep + keep / KEEP_AHEAD
    }
}

impl Default for Options {
    fn default() -> Self {
        let disk_used_percent = packs::disk_used_percent;
        Self { pack_bytes: 256 << 20, full_percent: 90, keep: KEEP, clock: unix_seconds, disk_used_percent, look_only: false }
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A handle on a store; clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    core: Arc<Core>,
    group: Group<Error>,
    elsewhere: OnceLock<Arc<dyn Elsewhere>>,
    unreached: elsewhere::Unreached,
}

impl Store {
    /// Opens the store in `dir`, or makes one.
    ///
    /// What a crash kept out of the index is found in the packs. An index that is damaged is set aside and rebuilt
    /// from the packs, which takes as long as reading them. With [`Options::look_only`] there must be a store, whose index is
    /// taken as it is.
    pub fn open(dir: &Path, options: Options) -> Result<Self> {
        let index = dir.join("index");
        if !options.look_only {
            file::create_dir(&dir.join("packs"))?;
        }
        let held = file::hold(dir)?;
        let kv = if options.look_only { Kv::open_there(&index)? } else { Kv::open_or_set_aside(&index)?.0 };
        let (chunks, marks) = (kv.tree("chunks")?, kv.tree("packs")?);
        let packs = Packs::new(dir.join("packs"));
        let index = recover::Index { chunks: &chunks, marks: &marks };
        let writer = if options.look_only { Writer::new(0, None, 0) } else { recover::recover(&index, &packs, &options)? };
        let core = Arc::new(Core {
            dir: dir.into(),
            options,
            kv,
            chunks,
            marks,
            packs,
            writer: Mutex::new(writer),
            fresh: RwLock::default(),
            _held: held,
        });
        let of_thread = core.clone();
        let group = Group::start_restless("store-sync", UNSYNCED_FOR_MAX, move || of_thread.sync())
            .map_err(failed("start the syncing thread of", dir))?;
        Ok(Self { inner: Arc::new(Inner { core, group, elsewhere: OnceLock::new(), unreached: elsewhere::Unreached::default() }) })
    }

    /// Stores a chunk and returns its name. It is readable at once, and lasts after [`Self::sync`].
    pub fn put(&self, bytes: &[u8]) -> Result<Digest> {
        let core = self.core();
        core.check_writable()?;
        if bytes.len() > OBJECT_BYTES_MAX {
            return Err(Error::TooLong { bytes: bytes.len() });
        }
        let digest = Digest::of(bytes);
        self.put_new(&digest, |core| core.write(&record::pack(digest, bytes), bytes))?;
        Ok(digest)
    }

    /// Stores a chunk that another node kept, as it kept it; else as [`Self::put`].
    pub fn put_proven(&self, proven: &Proven) -> Result<()> {
        self.core().check_writable()?;
        self.put_new(&proven.digest(), |core| core.write(&record::Record::of(proven), proven.plain()))
    }

    /// Has a chunk written that is not here; one that is, is kept from now on. Returns after a sync when it is time for one.
    fn put_new(&self, digest: &Digest, write: impl FnOnce(&Core) -> Result<bool>) -> Result<()> {
        let core = self.core();
        if core.touch(digest)? != Known::No {
            return Ok(());
        }
        core.check_room()?;
        if write(core)? { self.sync() } else { Ok(()) }
    }

    /// Stores chunks, as [`Self::put`] does, and returns their names in the same order.
    pub fn put_many(&self, chunks: &[&[u8]]) -> Result<Vec<Digest>> {
        chunks.iter().map(|chunk| self.put(chunk)).collect()
    }

    /// Blocks until every chunk put before this call is on disk.
    pub fn sync(&self) -> Result<()> {
        self.inner.group.wait().map_err(|why| explain(why, &self.core().dir))
    }

    /// Returns why nothing can be made durable here any more, if that is so: until the store is opened anew.
    pub fn broken(&self) -> Option<Error> {
        self.inner.group.over().map(|why| explain(why, &self.core().dir))
    }

    /// Asks for a sync, and returns a future that ends when every chunk put before this call is on disk.
    pub fn sync_async(&self) -> Synced<Error> {
        Synced::new(&self.inner.group, self.core().dir.clone(), explain)
    }

    /// Returns the bytes of a chunk, proven by its digest.
    pub fn get(&self, digest: &Digest) -> Result<Bytes> {
        self.core().get(digest)
    }

    /// Returns a chunk as it is kept. Nothing proves it: that is for whoever gets it.
    ///
    /// # Errors
    /// As [`Self::get`], but for damage that only the proof shows.
    pub fn get_stored(&self, digest: &Digest) -> Result<Stored> {
        self.core().get_stored(digest)
    }

    /// Says whether a chunk is here now. This is no promise: see [`Self::missing`].
    pub fn has(&self, digest: &Digest) -> Result<bool> {
        Ok(self.core().entry(digest)?.is_some())
    }

    /// Returns how much of the disk a chunk takes, in bytes; none when it is not here. This is no promise.
    pub fn stored_bytes(&self, digest: &Digest) -> Result<Option<u64>> {
        Ok(self.core().entry(digest)?.map(|entry| entry.place.end() - entry.place.offset))
    }

    /// Returns how much of the disk the store takes, in bytes: the packs, without what was given back of them, and the index.
    pub fn disk_bytes(&self) -> Result<u64> {
        Ok(self.core().packs.disk_bytes()? + self.core().kv.disk_bytes()?)
    }

    /// Returns how long a chunk is kept after it was put, or said to be here.
    pub fn keep(&self) -> Duration {
        self.core().options.keep
    }

    /// Returns the time of the store's clock, in seconds.
    pub fn now(&self) -> u64 {
        self.core().now()
    }

    /// Returns those of these chunks that are not here, and promises to keep the others for [`Options::keep`].
    ///
    /// The others are on disk, and the promise is, when this returns.
    pub fn missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        let mut missing = Vec::new();
        let mut all_synced = true;
        for digest in digests {
            match self.core().touch(digest)? {
                Known::No => missing.push(*digest),
                Known::Unsynced => all_synced = false,
                Known::Synced => {}
            }
        }
        if !all_synced {
            self.sync()?;
        }
        Ok(missing)
    }

    fn core(&self) -> &Arc<Core> {
        &self.inner.core
    }
}
