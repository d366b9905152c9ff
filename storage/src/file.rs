//! Files and folders whose names last: the few steps that every writer needs around a power cut.
//!
//! A new file survives only after its folder was synced too, and a new folder only after its parent was.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::io::Errno;

/// A system call on a file failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot {doing} {}", path.display())]
pub struct Failed {
    /// What was tried, as a verb: "open", "sync".
    pub doing: &'static str,
    /// The file or folder it was tried on.
    pub path: PathBuf,
    /// What the kernel said.
    #[source]
    pub source: Arc<io::Error>,
}

impl Failed {
    /// Says whether the disk, or the quota on it, is full.
    pub fn is_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

/// Names the file and the attempt in an I/O error: `.map_err(failed("open", &path))`.
pub fn failed<E: Into<io::Error>>(doing: &'static str, path: &Path) -> impl FnOnce(E) -> Failed {
    let path = path.to_owned();
    move |source| Failed { doing, path, source: Arc::new(source.into()) }
}

/// Makes the names in a folder last.
pub fn sync_dir(dir: &Path) -> Result<(), Failed> {
    let folder = File::open(dir).map_err(failed("open", dir))?;
    folder.sync_all().map_err(failed("sync", dir))
}

/// Makes a folder and its missing parents, so that their names last.
///
/// That of a folder that is there is synced too: whoever made it may have died, or may not care.
pub fn create_dir(dir: &Path) -> Result<(), Failed> {
    let parent = parent_of(dir);
    if dir.is_dir() {
        return sync_dir(parent);
    }
    create_dir(parent)?;
    match fs::create_dir(dir) {
        Ok(()) => sync_dir(parent),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => sync_dir(parent),
        Err(error) => Err(failed("create", dir)(error)),
    }
}

/// Writes a file that only its owner may read, so that it is there whole, or as before, also after a power cut.
///
/// On the way there the bytes are in a file with the extension `new`.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), Failed> {
    let fresh = path.with_extension("new");
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh).map_err(failed("make", &fresh))?;
    file.write_all(bytes).map_err(failed("write", &fresh))?;
    file.sync_all().map_err(failed("sync", &fresh))?;
    fs::rename(&fresh, path).map_err(failed("make", path))?;
    sync_dir(parent_of(path))
}

/// Writes parts at `offset` of a file, one behind the other, without copying them together.
pub fn write_parts_at<const N: usize>(file: &File, parts: [&[u8]; N], mut offset: u64) -> io::Result<()> {
    let mut parts = parts.map(IoSlice::new);
    let mut left = &mut parts[..];
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        let written = match rustix::io::pwritev(file, left, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Err(Errno::INTR) => continue,
            other => other?,
        };
        IoSlice::advance_slices(&mut left, written);
        offset += written as u64;
    }
    Ok(())
}

/// Reads so many bytes at `offset` of a file, into memory that nobody clears before.
///
/// # Errors
/// [`io::ErrorKind::UnexpectedEof`] when the file ends before.
pub fn read_at(file: &File, length: usize, offset: u64) -> io::Result<Bytes> {
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let at = offset + bytes.len() as u64;
        match rustix::io::pread(file, spare_capacity(&mut bytes), at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    bytes.truncate(length);
    Ok(bytes.into())
}

/// Removes a file; its name is gone for good only after [`sync_dir`]. A file that is not there is fine.
pub fn remove(path: &Path) -> Result<(), Failed> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Returns the folder that holds `path`.
pub(crate) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        Some(_) => Path::new("."),
        None => Path::new("/"),
    }
}

/// A folder that only this process may use, held by a lock on the file `LOCK` in it until dropped.
#[derive(Debug)]
pub(crate) struct Held {
    _lock: File,
}

/// Takes a folder for this process alone.
pub(crate) fn hold(dir: &Path) -> Result<Held, Failed> {
    let path = dir.join("LOCK");
    let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed("open", &path))?;
    lock.try_lock().map_err(|error| failed("lock (is another process using it?)", &path)(io::Error::from(error)))?;
    Ok(Held { _lock: lock })
}
