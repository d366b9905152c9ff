//! How sled's files are opened, so that what is in them lasts, and what is damaged is told from what a restart may heal.

use std::fs::{self, File};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Error, Result, sled_failed};
use crate::file::{self, failed};

/// Size of the parts of sled's file.
const SEGMENT_BYTES: usize = 1 << 20;

/// How long opening waits for a former owner, in this process, to let go.
const HELD_WAIT: Duration = Duration::from_secs(2);

/// How much memory sled may use for pages it has read.
const CACHE_BYTES: u64 = 32 << 20;

/// An empty file in the folder of a database that was opened, and synced, at least once.
pub(super) const READY: &str = "READY";

pub(super) fn open_sled(dir: &Path) -> Result<sled::Db> {
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
pub(super) fn or_unusable<T>(dir: &Path, doing: &'static str, found: impl FnOnce() -> sled::Result<T>) -> Result<T> {
    let unusable = |what| Error::Unusable { dir: dir.to_owned(), what };
    match catch_unwind(AssertUnwindSafe(found)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error @ sled::Error::Io(_))) => Err(sled_failed(dir, doing)(error)),
        Ok(Err(error)) => Err(unusable(error.to_string())),
        Err(panic) => Err(unusable(panic_text(&*panic))),
    }
}

pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("sled panicked").to_owned()
}

/// Syncs what sled made at open, and returns the file that every later sync is about.
pub(super) fn sync_new_files(dir: &Path) -> Result<File> {
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
pub(super) fn remove_half_snapshots(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(failed("list", dir))? {
        let path = entry.map_err(failed("list", dir))?.path();
        if path.extension().is_some_and(|extension| extension == "generating") {
            file::remove(&path)?;
        }
    }
    Ok(())
}

/// Removes what a first open left that a power cut ended: nobody was ever told that something is in it.
pub(super) fn clear_unfinished(dir: &Path) -> Result<()> {
    for name in ["conf", "db"] {
        file::remove(&dir.join(name))?;
    }
    let blobs = dir.join("blobs");
    match fs::remove_dir_all(&blobs) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed("remove", &blobs)(error).into()),
        _ => Ok(()),
    }
}

pub(super) fn set_aside(dir: &Path) -> Result<PathBuf> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let aside = (1..)
        .map(|number: u32| dir.with_file_name(format!("{name}.damaged-{number}")))
        .find(|path| !path.exists())
        .expect("a number is free");
    fs::rename(dir, &aside).map_err(failed("set aside", dir))?;
    file::sync_dir(file::parent_of(dir))?;
    Ok(aside)
}
