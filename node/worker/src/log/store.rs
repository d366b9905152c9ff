//! The store: who appends, how it is bounded, how it fails. [`super::read`] reads it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use super::entry::{Cursor, Entry};
use super::files::Files;

/// A file has this part of all bytes at most, so that dropping the oldest drops little.
const FILES_MIN: u64 = 8;

/// A file is not closed before it has so many bytes, however little is to be kept.
const FILE_BYTES_MIN: u64 = 64 << 10;

/// The log could not be kept or read.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct Error {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error { action, path: path.to_owned(), source }
}

/// How the store is bounded.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// A file is closed when it is larger, in bytes.
    pub file_bytes: u64,
    /// The oldest files are dropped while all together could become larger, in bytes. The newest is always kept.
    pub retain_bytes: u64,
    /// Files whose lines are all older are dropped.
    pub retain: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { file_bytes: 8 << 20, retain_bytes: 1 << 30, retain: Duration::from_secs(30 * 24 * 3600) }
    }
}

impl Options {
    /// Keeps at most so many bytes, and nothing for longer than `retain`.
    pub fn keeping(retain_bytes: u64, retain: Duration) -> Self {
        let file_bytes = Self::default().file_bytes.min((retain_bytes / FILES_MIN).max(FILE_BYTES_MIN));
        Self { file_bytes, retain_bytes, retain }
    }

    pub(super) fn retain_ns(&self) -> u64 {
        u64::try_from(self.retain.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// What containers print. Cheap to clone: all clones are one store.
#[derive(Debug, Clone)]
pub struct LogStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    options: Options,
    files: Mutex<Files>,
    end: watch::Sender<Cursor>,
}

impl LogStore {
    /// Opens the store of a folder with the usual bounds, creating it if it is missing.
    ///
    /// A record that was being written when the process died is cut off.
    ///
    /// # Errors
    /// When files can't be listed, read or created.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, Error> {
        Self::open_with(dir, Options::default())
    }

    /// Opens the store of a folder, creating it if it is missing.
    ///
    /// # Errors
    /// As [`LogStore::open`].
    pub fn open_with(dir: impl AsRef<Path>, options: Options) -> Result<Self, Error> {
        let dir = dir.as_ref().to_owned();
        let files = Files::open(&dir, options)?;
        let (end, _) = watch::channel(files.end());
        Ok(Self(Arc::new(Inner { dir, options, files: Mutex::new(files), end })))
    }

    /// Appends one entry. See [`LogStore::append_all`].
    ///
    /// # Errors
    /// When the disk refuses; the entry is then not in the store.
    pub fn append(&self, entry: &Entry) -> Result<(), Error> {
        self.append_all(std::slice::from_ref(entry))
    }

    /// Appends entries by one write, and wakes followers. They are readable when this returns.
    ///
    /// Blocks for a write to the page cache; a full disk is an error, not a wait.
    ///
    /// # Errors
    /// When the disk refuses; none of the entries is then in the store.
    pub fn append_all(&self, entries: &[Entry]) -> Result<(), Error> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut files = self.files();
        files.append(entries)?;
        self.0.end.send_replace(files.end());
        files.bound()
    }

    /// Drops what is too old at this time, in nanoseconds since 1970. The store has no clock: whoever owns it calls this now
    /// and then.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn tidy(&self, now_ns: u64) -> Result<(), Error> {
        self.files().tidy(now_ns)
    }

    /// Returns the place after the newest entry.
    pub fn end(&self) -> Cursor {
        *self.0.end.borrow()
    }

    /// Returns how long the files are, all together, in bytes.
    pub fn bytes(&self) -> u64 {
        self.files().bytes()
    }

    /// Returns how the store is bounded.
    pub fn options(&self) -> &Options {
        &self.0.options
    }

    pub(super) fn files(&self) -> MutexGuard<'_, Files> {
        self.0.files.lock()
    }

    pub(super) fn dir(&self) -> &Path {
        &self.0.dir
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Cursor> {
        self.0.end.subscribe()
    }
}
