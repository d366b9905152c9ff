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

mod opening;
mod tree;

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use self::opening::{READY, clear_unfinished, open_sled, or_unusable, panic_text, remove_half_snapshots, set_aside, sync_new_files};
pub use self::tree::{Batch, KEY_BYTES_MAX, Pair, Pairs, Tree, VALUE_BYTES_MAX};
use crate::file::{self, Failed, failed};
use crate::group::{Group, Synced, Unserved};

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
        Ok(Tree::new(tree, self.clone()))
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

fn sync(dir: &Path, db: &sled::Db, data: &File) -> Result<()> {
    catch_unwind(AssertUnwindSafe(|| db.flush()))
        .map_err(|panic| Error::Unusable { dir: dir.to_owned(), what: panic_text(&*panic) })?
        .map_err(sled_failed(dir, "flush"))?;
    Ok(data.sync_data().map_err(failed("sync", &dir.join("db")))?)
}

#[cfg(test)]
mod tests;
