//! Small values by key, on sled, so that a sync survives a power cut.
//!
//! sled 0.34 does not get there by itself on Linux, and this wrapper closes the gaps:
//!
//! - Its `flush` writes without fdatasync. [`Kv::sync`] does both, from one thread that serves all callers at once.
//! - The files it makes at open are never synced. [`Kv::open`] syncs them and their folder.
//! - Large pages go to files of their own that are never synced. Values of [`VALUE_BYTES_MAX`] or more are refused, so
//!   that no page gets that large.
//! - A crash while it opens can leave a half-written snapshot of its page table, which it then refuses to open with.
//!   [`Kv::open`] removes that first.
//! - Opening a damaged database may panic. That becomes [`Error::Unusable`], and [`Kv::open_or_set_aside`] moves
//!   the remains away, for owners that can rebuild theirs from elsewhere.
//!
//! Calls block on the disk; async callers go through `spawn_blocking`.
//!
//! Caveats: one folder belongs to one process; a folder on FUSE or overlayfs is not safe; iterating is not a
//! snapshot, it sees writes made meanwhile.

use std::fs::{self, File};
use std::ops::{Bound, RangeBounds};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::file::{self, Failed, failed};
use crate::group::{Group, Synced, Unserved};

/// Values must be shorter than this.
///
/// What sled must never see is a *page* over a quarter of `SEGMENT_BYTES`: it would go to a file that is never synced. A page
/// is a leaf of up to 17 entries, some more while threads write to it at once.
pub const VALUE_BYTES_MAX: usize = 6 << 10;

/// Keys must be shorter than this: a page of the upper levels holds up to 257 of them.
pub const KEY_BYTES_MAX: usize = 512;

/// Size of the parts of sled's file.
const SEGMENT_BYTES: usize = 1 << 20;

/// How long opening waits for a former owner, in this process, to let go.
const HELD_WAIT: Duration = Duration::from_secs(2);

/// How much memory sled may use for pages it has read.
const CACHE_BYTES: u64 = 32 << 20;

/// An empty file in the folder of a database that was opened, and synced, at least once.
const READY: &str = "READY";

/// What went wrong in a [`Kv`].
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error(transparent)]
    File(#[from] Failed),
    /// The database cannot be read: its owner must do without what it held.
    #[error("the database in {} is damaged: {what}", dir.display())]
    Unusable {
        /// The folder of the database.
        dir: PathBuf,
        /// What sled says about it.
        what: String,
    },
    /// There is no database.
    #[error("there is no database in {}", dir.display())]
    Absent {
        /// The folder in which it was looked for.
        dir: PathBuf,
    },
    /// sled refused or failed; with a lock error, another process has the database open.
    #[error("the database in {} failed to {doing}", dir.display())]
    Sled {
        /// The folder of the database.
        dir: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What sled says about it.
        #[source]
        source: sled::Error,
    },
    /// A key or a value is too long to be kept safely.
    #[error(
        "a key of {key_bytes} bytes with a value of {value_bytes} bytes is too big for a database: keys stay under {KEY_BYTES_MAX}, values under {VALUE_BYTES_MAX}"
    )]
    TooBig {
        /// Length of the key.
        key_bytes: usize,
        /// Length of the value.
        value_bytes: usize,
    },
    /// The disk did not answer in time. Trying again may help.
    #[error("waited {waited:?} for the database in {} to reach the disk", dir.display())]
    Late {
        /// The folder of the database.
        dir: PathBuf,
        /// How long the caller waited.
        waited: Duration,
    },
    /// The thread that syncs is gone.
    #[error("the thread that syncs the database in {} has ended", dir.display())]
    Ended {
        /// The folder of the database.
        dir: PathBuf,
    },
}

/// A result of a [`Kv`].
pub type Result<T> = std::result::Result<T, Error>;

/// A handle on a database; clones share it.
#[derive(Debug, Clone)]
pub struct Kv {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: Arc<Path>,
    db: sled::Db,
    group: Group<Error>,
}

impl Kv {
    /// Opens the database in `dir`, or makes one.
    pub fn open(dir: &Path) -> Result<Self> {
        if dir.join(READY).exists() {
            remove_half_snapshots(dir)?;
        } else {
            clear_unfinished(dir)?;
        }
        file::create_dir(dir)?;
        let dir: Arc<Path> = dir.into();
        let db = open_sled(&dir)?;
        let data = sync_new_files(&dir)?;
        let of_thread = (dir.clone(), db.clone());
        let group = Group::start("kv-sync", move || sync(&of_thread.0, &of_thread.1, &data))
            .map_err(failed("start the syncing thread of", &dir))?;
        Ok(Self { inner: Arc::new(Inner { dir, db, group }) })
    }

    /// Opens the database in `dir`, which must be there: an owner had opened it before.
    pub fn open_there(dir: &Path) -> Result<Self> {
        if dir.join(READY).exists() { Self::open(dir) } else { Err(Error::Absent { dir: dir.to_owned() }) }
    }

    /// Opens the database in `dir`; one that is damaged is renamed aside and a new one made. It is read once from end to end: what a
    /// power cut has spoiled may lie anywhere in it, where a place of the file was used anew.
    ///
    /// Returns where the damaged one lies now, if there was one. An error that a restart may heal (no memory, disk full,
    /// held by another process) stays an error.
    pub fn open_or_set_aside(dir: &Path) -> Result<(Self, Option<PathBuf>)> {
        match Self::open(dir).and_then(Self::read_whole) {
            Err(Error::Unusable { what, .. }) => {
                let aside = set_aside(dir)?;
                tracing::error!(dir = %dir.display(), aside = %aside.display(), %what, "a damaged database was set aside");
                Ok((Self::open(dir)?, Some(aside)))
            }
            opened => Ok((opened?, None)),
        }
    }

    /// Finds out whether all of it can be read.
    fn read_whole(self) -> Result<Self> {
        let read = || -> sled::Result<()> {
            for name in self.inner.db.tree_names() {
                self.inner.db.open_tree(name)?.iter().try_for_each(|pair| pair.map(drop))?;
            }
            Ok(())
        };
        or_unusable(&self.inner.dir, "be read whole", read)?;
        Ok(self)
    }

    /// Returns the tree of this name, made if it is not there. Trees are dear: a handful, never one per object.
    pub fn tree(&self, name: &str) -> Result<Tree> {
        let tree = self.inner.db.open_tree(name).map_err(self.failed("open a tree"))?;
        Ok(Tree { tree, kv: self.clone() })
    }

    /// Blocks until everything written before this call is on disk.
    pub fn sync(&self) -> Result<()> {
        self.inner.group.wait().map_err(|why| explain(why, &self.inner.dir))
    }

    /// Returns how much of the disk the database takes, in bytes.
    pub fn disk_bytes(&self) -> Result<u64> {
        self.inner.db.size_on_disk().map_err(self.failed("measure itself"))
    }

    /// Asks for a sync, and returns a future that ends with it.
    pub fn sync_async(&self) -> Synced<Error> {
        Synced::new(&self.inner.group, self.inner.dir.clone(), explain)
    }

    /// Returns why nothing can be made durable here any more, if that is so: until the database is opened anew.
    pub fn broken(&self) -> Option<Error> {
        self.inner.group.over().map(|why| explain(why, &self.inner.dir))
    }

    fn failed(&self, doing: &'static str) -> impl FnOnce(sled::Error) -> Error {
        sled_failed(&self.inner.dir, doing)
    }
}

fn sled_failed(dir: &Path, doing: &'static str) -> impl FnOnce(sled::Error) -> Error {
    let dir = dir.to_owned();
    move |source| Error::Sled { dir, doing, source }
}

fn explain(why: Unserved<Error>, dir: &Path) -> Error {
    match why {
        Unserved::Failed(error) => error,
        Unserved::Late(waited) => Error::Late { dir: dir.to_owned(), waited },
        Unserved::Ended => Error::Ended { dir: dir.to_owned() },
    }
}

fn open_sled(dir: &Path) -> Result<sled::Db> {
    let deadline = Instant::now() + HELD_WAIT;
    loop {
        match try_open_sled(dir) {
            // After the last handle is dropped, threads of sled hold the lock a little longer.
            Err(Error::Sled { source, .. }) if is_held(&source) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            opened => return opened,
        }
    }
}

fn is_held(error: &sled::Error) -> bool {
    error.to_string().contains("could not acquire lock")
}

fn try_open_sled(dir: &Path) -> Result<sled::Db> {
    let config = sled::Config::new().path(dir).cache_capacity(CACHE_BYTES).segment_size(SEGMENT_BYTES).flush_every_ms(None);
    or_unusable(dir, "open", || config.open())
}

/// Does what may find the database damaged, and tells that from what a restart may heal. sled may panic over damage.
fn or_unusable<T>(dir: &Path, doing: &'static str, found: impl FnOnce() -> sled::Result<T>) -> Result<T> {
    let unusable = |what| Error::Unusable { dir: dir.to_owned(), what };
    match catch_unwind(AssertUnwindSafe(found)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error @ sled::Error::Io(_))) => Err(sled_failed(dir, doing)(error)),
        Ok(Err(error)) => Err(unusable(error.to_string())),
        Err(panic) => Err(unusable(panic_text(&*panic))),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("sled panicked").to_owned()
}

/// Syncs what sled made at open, and returns the file that every later sync is about.
fn sync_new_files(dir: &Path) -> Result<File> {
    let sync_file = |name: &str| -> Result<File> {
        let path = dir.join(name);
        let file = File::open(&path).map_err(failed("open", &path))?;
        file.sync_all().map_err(failed("sync", &path))?;
        Ok(file)
    };
    sync_file("conf")?;
    let data = sync_file("db")?;
    let ready = dir.join(READY);
    File::create(&ready).map_err(failed("create", &ready))?;
    file::sync_dir(dir)?;
    file::sync_dir(file::parent_of(dir))?;
    Ok(data)
}

/// Removes snapshots of sled's page table that a crash cut short.
///
/// sled would take one for the newest, find it damaged, and refuse to open. Its log has all that was to be in it.
fn remove_half_snapshots(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(failed("list", dir))? {
        let path = entry.map_err(failed("list", dir))?.path();
        if path.extension().is_some_and(|extension| extension == "generating") {
            file::remove(&path)?;
        }
    }
    Ok(())
}

/// Removes what a first open left that a power cut ended: nobody was ever told that something is in it.
fn clear_unfinished(dir: &Path) -> Result<()> {
    for name in ["conf", "db"] {
        file::remove(&dir.join(name))?;
    }
    let blobs = dir.join("blobs");
    match fs::remove_dir_all(&blobs) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed("remove", &blobs)(error).into()),
        _ => Ok(()),
    }
}

fn sync(dir: &Path, db: &sled::Db, data: &File) -> Result<()> {
    catch_unwind(AssertUnwindSafe(|| db.flush()))
        .map_err(|panic| Error::Unusable { dir: dir.to_owned(), what: panic_text(&*panic) })?
        .map_err(sled_failed(dir, "flush"))?;
    Ok(data.sync_data().map_err(failed("sync", &dir.join("db")))?)
}

fn set_aside(dir: &Path) -> Result<PathBuf> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let aside = (1..)
        .map(|number: u32| dir.with_file_name(format!("{name}.damaged-{number}")))
        .find(|path| !path.exists())
        .expect("a number is free");
    fs::rename(dir, &aside).map_err(failed("set aside", dir))?;
    file::sync_dir(file::parent_of(dir))?;
    Ok(aside)
}

/// Keys and values in key order, within a [`Kv`]. Clones share it.
#[derive(Debug, Clone)]
pub struct Tree {
    tree: sled::Tree,
    kv: Kv,
}

/// A key with its value.
pub type Pair = (Bytes, Bytes);

impl Tree {
    /// Returns the value of `key`.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let value = self.tree.get(key).map_err(self.kv.failed("read"))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    /// Sets the value of `key`. It is readable at once, and lasts after [`Kv::sync`].
    pub fn insert(&self, key: &[u8], value: &[u8]) -> Result<()> {
        check(key, value)?;
        self.tree.insert(key, value).map_err(self.kv.failed("write"))?;
        Ok(())
    }

    /// Removes `key`; one that is not there is fine.
    pub fn remove(&self, key: &[u8]) -> Result<()> {
        self.tree.remove(key).map_err(self.kv.failed("write"))?;
        Ok(())
    }

    /// Makes all changes of the batch or, after a crash, none.
    pub fn apply(&self, batch: Batch) -> Result<()> {
        let mut of_sled = sled::Batch::default();
        for (key, change) in batch.changes {
            check(&key, change.as_deref().unwrap_or_default())?;
            match change {
                Some(value) => of_sled.insert(key, value),
                None => of_sled.remove(key),
            }
        }
        self.tree.apply_batch(of_sled).map_err(self.kv.failed("write"))
    }

    /// Walks the keys of a range in order; `.rev()` walks backwards.
    pub fn range<'k>(&self, keys: impl RangeBounds<&'k [u8]>) -> Pairs {
        let owned = |bound: Bound<&&[u8]>| bound.map(|key| key.to_vec());
        let keys = (owned(keys.start_bound()), owned(keys.end_bound()));
        self.pairs(self.tree.range(keys))
    }

    /// Walks the keys that begin with `prefix`, in order.
    pub fn prefix(&self, prefix: &[u8]) -> Pairs {
        self.pairs(self.tree.scan_prefix(prefix))
    }

    /// Returns the database this tree is part of.
    pub fn kv(&self) -> &Kv {
        &self.kv
    }

    fn pairs(&self, iter: sled::Iter) -> Pairs {
        Pairs { iter, kv: self.kv.clone() }
    }
}

/// Walks keys with their values in key order, or backwards.
pub struct Pairs {
    iter: sled::Iter,
    kv: Kv,
}

impl Pairs {
    fn owned(&self, pair: sled::Result<(sled::IVec, sled::IVec)>) -> Result<Pair> {
        let (key, value) = pair.map_err(self.kv.failed("read"))?;
        Ok((Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value)))
    }
}

impl Iterator for Pairs {
    type Item = Result<Pair>;

    fn next(&mut self) -> Option<Self::Item> {
        let pair = self.iter.next()?;
        Some(self.owned(pair))
    }
}

impl DoubleEndedIterator for Pairs {
    fn next_back(&mut self) -> Option<Self::Item> {
        let pair = self.iter.next_back()?;
        Some(self.owned(pair))
    }
}

impl std::fmt::Debug for Pairs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pairs").finish_non_exhaustive()
    }
}

fn check(key: &[u8], value: &[u8]) -> Result<()> {
    if key.len() < KEY_BYTES_MAX && value.len() < VALUE_BYTES_MAX {
        return Ok(());
    }
    Err(Error::TooBig { key_bytes: key.len(), value_bytes: value.len() })
}

/// Changes to one [`Tree`] that are made together.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    changes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Batch {
    /// Adds "set `key` to `value`". Sizes are checked when the batch is applied.
    pub fn insert(&mut self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.changes.push((key.into(), Some(value.into())));
    }

    /// Adds "remove `key`".
    pub fn remove(&mut self, key: impl Into<Vec<u8>>) {
        self.changes.push((key.into(), None));
    }

    /// Says whether the batch changes nothing.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Returns how many changes the batch makes.
    pub fn len(&self) -> usize {
        self.changes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(pairs: impl Iterator<Item = Result<Pair>>) -> Vec<Bytes> {
        pairs.map(|pair| pair.unwrap().0).collect()
    }

    #[test]
    fn what_was_synced_is_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let kv = Kv::open(&dir.path().join("a/b")).unwrap();
        let tree = kv.tree("t").unwrap();
        tree.insert(b"one", b"1").unwrap();
        let mut batch = Batch::default();
        batch.insert("two", "2");
        batch.insert("three", "3");
        batch.remove("one");
        tree.apply(batch).unwrap();
        kv.sync().unwrap();
        drop((kv, tree));
        let tree = Kv::open(&dir.path().join("a/b")).unwrap().tree("t").unwrap();
        assert_eq!(tree.get(b"one").unwrap(), None);
        assert_eq!(tree.get(b"two").unwrap().unwrap(), "2");
        assert_eq!(keys(tree.range(..).rev()), ["two", "three"]);
        assert_eq!(keys(tree.range(&b"tw"[..]..)), ["two"]);
        assert_eq!(keys(tree.prefix(b"th")), ["three"]);
    }

    #[test]
    fn a_value_that_sled_would_not_sync_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Kv::open(dir.path()).unwrap().tree("t").unwrap();
        let big = vec![7; VALUE_BYTES_MAX];
        assert!(matches!(tree.insert(b"k", &big), Err(Error::TooBig { .. })));
        let mut batch = Batch::default();
        batch.insert("small", "fits");
        batch.insert("big", big.clone());
        assert!(matches!(tree.apply(batch), Err(Error::TooBig { .. })));
        assert_eq!(tree.get(b"small").unwrap(), None, "half a batch was applied");
        tree.insert(b"k", &big[1..]).unwrap();
        assert!(matches!(tree.insert(&[1; KEY_BYTES_MAX], b"v"), Err(Error::TooBig { .. })));
    }

    /// The trap: a value may be small enough and the page it shares with others too large.
    #[test]
    fn no_page_goes_to_a_file_that_is_not_synced() {
        let dir = tempfile::tempdir().unwrap();
        let kv = Kv::open(dir.path()).unwrap();
        let tree = kv.tree("t").unwrap();
        let (value, padding) = (vec![7; VALUE_BYTES_MAX - 1], vec![8; KEY_BYTES_MAX - 9]);
        std::thread::scope(|scope| {
            for thread in 0..4u32 {
                let (tree, value, padding) = (&tree, &value, &padding);
                scope.spawn(move || {
                    for number in 0..300u32 {
                        let key = [&(number * 7919 % 1024).to_be_bytes()[..], &thread.to_be_bytes(), padding].concat();
                        tree.insert(&key, value).unwrap();
                    }
                });
            }
        });
        kv.sync().unwrap();
        let blobs: Vec<_> = fs::read_dir(dir.path().join("blobs")).unwrap().collect();
        assert!(blobs.is_empty(), "{blobs:?}");
    }

    #[test]
    fn a_damaged_database_is_set_aside_but_not_one_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("kv");
        let kv = Kv::open(&at).unwrap();
        assert!(matches!(Kv::open_or_set_aside(&at), Err(Error::Sled { .. })), "it is in use");
        drop(kv);
        fs::write(at.join("conf"), [0; 62]).unwrap();
        assert!(matches!(Kv::open(&at), Err(Error::Unusable { .. })));
        let (kv, aside) = Kv::open_or_set_aside(&at).unwrap();
        assert_eq!(aside.unwrap(), dir.path().join("kv.damaged-1"));
        kv.tree("t").unwrap().insert(b"k", b"v").unwrap();
        kv.sync().unwrap();
    }

    /// Opens, and some of it cannot be read.
    fn is_spoiled(at: &Path) -> bool {
        let read = || Kv::open(at).map(|kv| kv.tree("t").and_then(|tree| tree.range(..).try_for_each(|pair| pair.map(drop))).is_err());
        catch_unwind(AssertUnwindSafe(read)).map_or(true, |read| read.unwrap_or(false))
    }

    #[test]
    fn what_is_spoiled_in_the_middle_is_set_aside_though_it_opens() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("kv");
        let kv = Kv::open(&at).unwrap();
        let tree = kv.tree("t").unwrap();
        for number in 0..20_000u32 {
            tree.insert(&number.to_be_bytes(), &[number as u8; 100]).unwrap();
        }
        kv.sync().unwrap();
        drop((tree, kv));
        // Now it has a snapshot, and what that covers is not looked at when it opens.
        drop(Kv::open(&at).unwrap());
        let whole = fs::read(at.join("db")).unwrap();
        let mut spoiled = 0;
        for place in 1..12 {
            let (one, other) = (dir.path().join(format!("one-{place}")), dir.path().join(format!("other-{place}")));
            let mut bytes = whole.clone();
            let from = bytes.len() / 12 * place;
            bytes[from..from + 2000].fill(7);
            for copy in [&one, &other] {
                fs::create_dir(copy).unwrap();
                for entry in fs::read_dir(&at).unwrap().map(|entry| entry.unwrap()).filter(|entry| entry.path().is_file()) {
                    fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
                }
                fs::write(copy.join("db"), &bytes).unwrap();
            }
            if is_spoiled(&one) {
                spoiled += 1;
                let (kv, aside) = Kv::open_or_set_aside(&other).unwrap();
                assert!(aside.is_some());
                assert_eq!(kv.tree("t").unwrap().range(..).count(), 0, "a new one was made");
            }
        }
        assert!(spoiled > 0, "nothing of what was spoiled opened");
    }

    #[test]
    fn a_first_open_that_was_cut_off_is_begun_again() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("kv")).unwrap();
        fs::write(dir.path().join("kv/conf"), [0; 62]).unwrap();
        Kv::open(&dir.path().join("kv")).unwrap();
    }

    #[test]
    fn a_snapshot_that_was_cut_short_does_not_stop_an_open() {
        let dir = tempfile::tempdir().unwrap();
        let kv = Kv::open(dir.path()).unwrap();
        kv.tree("t").unwrap().insert(b"k", b"v").unwrap();
        kv.sync().unwrap();
        drop(kv);
        fs::write(dir.path().join("snap.7FFFFFFFFFFFFFFF.generating"), b"").unwrap();
        let tree = Kv::open(dir.path()).unwrap().tree("t").unwrap();
        assert_eq!(tree.get(b"k").unwrap().unwrap(), "v");
    }

    #[test]
    fn many_threads_share_syncs() {
        let dir = tempfile::tempdir().unwrap();
        let kv = Kv::open(dir.path()).unwrap();
        let tree = kv.tree("t").unwrap();
        std::thread::scope(|scope| {
            for thread in 0..8u8 {
                let (kv, tree) = (kv.clone(), tree.clone());
                scope.spawn(move || {
                    for number in 0..20u8 {
                        tree.insert(&[thread, number], b"x").unwrap();
                        kv.sync().unwrap();
                    }
                });
            }
        });
        assert_eq!(tree.range(..).count(), 160);
    }
}
