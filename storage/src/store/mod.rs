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
mod elsewhere;
mod gc;
mod packs;
mod record;
mod recover;
mod stored;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use shoal_state::Digest;

use crate::file::{self, Failed, Held, failed};
use crate::group::{Group, Synced, Unserved};
use crate::kv::{self, Batch, Kv, Tree};
pub use blob::{BlobReader, BlobRef};
pub use check::{Checked, Damage};
pub use elsewhere::Elsewhere;
pub use gc::{Condemned, Swept};
use packs::{Packs, Unsynced, Writer};
use record::{Entry, Place};
pub use stored::{Proven, Stored};

/// The longest run of bytes a store takes as one. Chunks of files are shorter; lists of chunks can be this long.
pub const OBJECT_BYTES_MAX: usize = 16 << 20;

/// Chunks up to this length are repeated in the index.
pub const INLINE_BYTES_MAX: usize = 4 << 10;

/// How long a chunk is kept after it was put, or said to be here, unless [`Options::keep`] says otherwise.
pub const KEEP: Duration = Duration::from_secs(24 * 60 * 60);

/// A promise is written for this part of [`Options::keep`] longer, so that repeating it soon needs no write.
const KEEP_AHEAD: u64 = 24;

/// How many chunks may wait for a sync. Beyond it, a put syncs.
const UNSYNCED_CHUNKS_MAX: usize = 32 << 10;

/// How many bytes may wait for a sync. Beyond it, a put syncs: so a sync has an end in sight.
const UNSYNCED_BYTES_MAX: u64 = 256 << 20;

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

/// What went wrong in a [`Store`].
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The chunk is not here. A peer may have it.
    #[error("chunk {digest} is not in this node's store")]
    Missing {
        /// The chunk.
        digest: Digest,
    },
    /// The chunk is not here, and whether another node has it could not be found out. Trying again may help.
    #[error("chunk {digest} is not on this node, and cannot be had from another: {why}")]
    Unreached {
        /// The chunk.
        digest: Digest,
        /// Who was asked, and what stood in the way.
        why: String,
    },
    /// The bytes on disk were not those of the chunk. It was dropped, unless the store is only looked at; a peer may have it.
    #[error("chunk {digest} was damaged at offset {offset} of {} and is dropped: {what}", pack.display())]
    Corrupt {
        /// The chunk.
        digest: Digest,
        /// The pack file.
        pack: PathBuf,
        /// Where in the pack the chunk's record begins.
        offset: u64,
        /// How the damage shows.
        what: &'static str,
    },
    /// The disk is too full for new chunks. Deleting something helps.
    #[error("the disk under {} is {used_percent} % full, and new chunks are refused from {limit_percent} % on (disk.full_percent): free some space", dir.display())]
    Full {
        /// The folder of the store.
        dir: PathBuf,
        /// How full the disk is.
        used_percent: u8,
        /// From where on chunks are refused.
        limit_percent: u8,
    },
    /// The store was opened to be looked at.
    #[error("the chunk store in {} was opened to be looked at, and takes nothing", dir.display())]
    LookOnly {
        /// The folder of the store.
        dir: PathBuf,
    },
    /// Too many bytes for one chunk.
    #[error("{bytes} bytes are too many for one chunk: the limit is {OBJECT_BYTES_MAX}")]
    TooLong {
        /// How many there were.
        bytes: usize,
    },
    /// An object that should be a list of chunks is something else.
    #[error("blob {digest} is not a list of chunks")]
    NotABlob {
        /// The object.
        digest: Digest,
        /// What is wrong with it.
        #[source]
        source: crate::chunk::NotAList,
    },
    /// A system call failed.
    #[error(transparent)]
    File(#[from] Failed),
    /// The index failed.
    #[error("the index of the chunk store failed")]
    Index(#[from] kv::Error),
    /// What was to be stored could not be read.
    #[error("cannot read what was to be stored, after {read_bytes} bytes")]
    Source {
        /// How much was read and stored before.
        read_bytes: u64,
        /// Why reading failed.
        #[source]
        source: Arc<io::Error>,
    },
    /// The disk did not answer in time. Trying again may help.
    #[error("waited {waited:?} for the chunk store in {} to reach the disk", dir.display())]
    Late {
        /// The folder of the store.
        dir: PathBuf,
        /// How long the caller waited.
        waited: Duration,
    },
    /// The thread that syncs is gone.
    #[error("the thread that syncs the chunk store in {} has ended", dir.display())]
    Ended {
        /// The folder of the store.
        dir: PathBuf,
    },
}

/// A result of a [`Store`].
pub type Result<T> = std::result::Result<T, Error>;

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
}

#[derive(Debug)]
struct Core {
    dir: Arc<Path>,
    options: Options,
    kv: Kv,
    /// Digest to [`Entry`].
    chunks: Tree,
    /// Pack number to how many of its bytes are in the index.
    marks: Tree,
    packs: Packs,
    /// Taken before `fresh`.
    writer: Mutex<Writer>,
    fresh: RwLock<Fresh>,
    _held: Held,
}

/// What the index does not know yet. Held for writing also while a chunk is deleted, so that a promise and a deletion
/// cannot cross.
#[derive(Debug, Default)]
struct Fresh {
    written: HashMap<Digest, Entry>,
    /// Chunks of the index that were promised anew, and until when.
    touched: HashMap<Digest, u64>,
}

/// What is known of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    No,
    /// Here, but the chunk or the promise to keep it is not on disk yet.
    Unsynced,
    Synced,
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
        Ok(Self { inner: Arc::new(Inner { core, group, elsewhere: OnceLock::new() }) })
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

fn explain(why: Unserved<Error>, dir: &Path) -> Error {
    match why {
        Unserved::Failed(error) => error,
        Unserved::Late(waited) => Error::Late { dir: dir.to_owned(), waited },
        Unserved::Ended => Error::Ended { dir: dir.to_owned() },
    }
}

impl Core {
    fn now(&self) -> u64 {
        (self.options.clock)()
    }

    /// Says what is known of a chunk; one that is here is kept for [`Options::keep`] from now on, once it is synced.
    fn touch(&self, digest: &Digest) -> Result<Known> {
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

    fn check_writable(&self) -> Result<()> {
        if self.options.look_only { Err(Error::LookOnly { dir: self.dir.to_path_buf() }) } else { Ok(()) }
    }

    fn check_room(&self) -> Result<()> {
        let used_percent = (self.options.disk_used_percent)(&self.dir).map_err(failed("look at the disk of", &self.dir))?;
        self.refuse_from(used_percent)
    }

    fn refuse_from(&self, used_percent: u8) -> Result<()> {
        let limit_percent = self.options.full_percent;
        if used_percent < limit_percent {
            return Ok(());
        }
        Err(Error::Full { dir: self.dir.to_path_buf(), used_percent, limit_percent })
    }

    /// Writes a chunk to the pack. Returns whether so much waits for a sync that it is time for one.
    fn write(&self, record: &record::Record<'_>, plain: &[u8]) -> Result<bool> {
        let inline = (plain.len() <= INLINE_BYTES_MAX).then(|| Bytes::copy_from_slice(plain));
        let keep_until = self.kept_from_now();
        self.write_record(record, inline, keep_until)
    }

    fn write_record(&self, record: &record::Record<'_>, inline: Option<Bytes>, keep_until: u64) -> Result<bool> {
        let mut writer = self.writer.lock();
        let place = writer.append(&self.packs, self.options.pack_bytes, record).map_err(|error| match error {
            full if full.is_full() => self.refuse_from(100).map_or_else(|refused| refused, |()| full.into()),
            other => other.into(),
        })?;
        let mut fresh = self.fresh.write();
        fresh.written.insert(record.header.digest, Entry { place, keep_until, inline });
        Ok(fresh.written.len() >= UNSYNCED_CHUNKS_MAX || writer.unsynced.bytes >= UNSYNCED_BYTES_MAX)
    }

    fn kept_from_now(&self) -> u64 {
        self.options.kept_from_now()
    }

    fn indexed(&self, digest: &Digest) -> Result<Option<Entry>> {
        let value = self.chunks.get(digest.as_bytes())?;
        Ok(value.and_then(|value| Entry::decode(&value)))
    }

    fn entry(&self, digest: &Digest) -> Result<Option<Entry>> {
        if let Some(entry) = self.fresh.read().written.get(digest) {
            return Ok(Some(entry.clone()));
        }
        // A sync moves entries to the index before it forgets them, so one of the two has it.
        self.indexed(digest)
    }

    fn get(&self, digest: &Digest) -> Result<Bytes> {
        self.find(digest, |entry| self.read(digest, entry))
    }

    fn get_stored(&self, digest: &Digest) -> Result<Stored> {
        self.find(digest, |entry| {
            if let Some(inline) = &entry.inline {
                return Ok(Ok(Stored::Plain(inline.clone())));
            }
            Ok(Ok(Stored::of(&entry.place.header(*digest), self.packs.read(&entry.place)?)))
        })
    }

    /// Reads a chunk where it lies, `read` says how. One that is found to be damaged is dropped.
    fn find<T>(
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

    fn read(&self, digest: &Digest, entry: &Entry) -> std::result::Result<std::result::Result<Bytes, &'static str>, Failed> {
        if let Some(inline) = entry.inline.as_ref().filter(|inline| Digest::of(inline) == *digest) {
            return Ok(Ok(inline.clone()));
        }
        let stored = self.packs.read(&entry.place)?;
        Ok(record::unpack(&entry.place.header(*digest), stored))
    }

    /// Drops a damaged chunk, unless the store is only looked at. Returns the error that tells of it, or why it could not.
    fn drop_corrupt(&self, digest: &Digest, place: &Place, what: &'static str) -> Error {
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
    fn sync(&self) -> Result<()> {
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

    fn sync_packs(&self, unsynced: &Unsynced) -> Result<()> {
        for (pack, (file, _)) in &unsynced.packs {
            file.sync_data().map_err(failed("sync", &self.packs.path(*pack)))?;
        }
        if unsynced.new_names {
            file::sync_dir(&self.packs.dir)?;
        }
        Ok(())
    }

    /// Writes to the index what is in the packs, then how far the packs are in the index.
    fn index(&self, written: &HashMap<Digest, Entry>, touched: &HashMap<Digest, u64>, unsynced: &Unsynced) -> Result<()> {
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
