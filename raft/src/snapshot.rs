//! Snapshots: files that hold the whole state as of one entry.
//!
//! The state lives in memory, so the newest snapshot and the log behind it are what a node starts from. A file is
//! written under another name, synced, renamed, and its folder synced: under its own name it is whole. The one
//! before it is kept, in case the disk spoils the newest; the log is kept long enough to go on from there.
//!
//! | bytes | meaning |
//! |---|---|
//! | 8 | `SHOALRSN` |
//! | 1 | format of this layout |
//! | 4 | length of the header, little-endian |
//! | … | header: what openraft needs to know, and the version of the rules that the state is of |
//! | … | the state and the rolling hash of answers, postcard |
//! | 4 | crc32 of everything before, little-endian |
//!
//! Caveats: a file is read into memory as a whole when a node starts or takes it over; it is written in pieces.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use shoal_state::{State, VERSION_KNOWN};
use shoal_storage::file::{self, Failed, failed};

use crate::tally::Tally;
use crate::types::{LogId, SnapshotMeta};

mod data;

pub(crate) use data::SnapshotData;

const MAGIC: &[u8; 8] = b"SHOALRSN";
const FORMAT: u8 = 1;
const SUFFIX: &str = "snapshot";
const TEMPORARY_SUFFIX: &str = "part";
const DAMAGED_SUFFIX: &str = "damaged";

/// How many snapshots are kept: the newest and the one before.
const KEPT: usize = 2;

/// How much is collected in memory before it is written.
const BUFFER_BYTES: usize = 1 << 20;

/// Everything that a snapshot must hold: all that `apply` works on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Contents {
    pub(crate) state: State,
    pub(crate) tally: Tally,
}

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    version: u32,
    meta: SnapshotMeta,
}

/// What is wrong with a snapshot.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    File(#[from] Failed),
    #[error("snapshot {} is damaged: {what}", path.display())]
    Damaged { path: PathBuf, what: &'static str },
    #[error("snapshot {} is in format {format}, and this build knows format {FORMAT}: upgrade this node", path.display())]
    Format { path: PathBuf, format: u8 },
    #[error("snapshot {} needs version {version} of the rules, and this build knows versions up to {VERSION_KNOWN}: upgrade this node", path.display())]
    Version { path: PathBuf, version: u32 },
    #[error("no whole snapshot reaches entry {first}, where the log begins; remove this node's folder and let it join anew")]
    Gap { first: u64 },
}

/// The folder of snapshots; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    /// The newest snapshot. Held while files come and go, so that an older one never takes its place.
    current: Mutex<Option<(SnapshotMeta, PathBuf)>>,
    next_temporary: AtomicU64,
}

impl Folder {
    /// Opens the folder and reads the newest whole snapshot from which the log goes on; `first` is where the log begins.
    ///
    /// Damaged ones are renamed aside. No snapshot at all is fine where the log begins at its beginning.
    pub(crate) fn open(dir: &Path, first: u64) -> Result<(Self, Option<(SnapshotMeta, Contents)>), Error> {
        file::create_dir(dir)?;
        // What an earlier process left half-written.
        for path in files(dir, TEMPORARY_SUFFIX)? {
            file::remove(&path)?;
        }
        let mut found = None;
        for path in files(dir, SUFFIX)? {
            match read(&path) {
                Ok((meta, contents)) => {
                    found = Some((meta, contents, path));
                    break;
                }
                Err(error @ Error::Damaged { .. }) => {
                    tracing::error!(%error, "a damaged snapshot is set aside");
                    fs::rename(&path, path.with_extension(DAMAGED_SUFFIX)).map_err(failed("set aside", &path))?;
                }
                Err(error) => return Err(error),
            }
        }
        if found.as_ref().map_or(0, |(meta, ..)| next_index(meta)) < first {
            return Err(Error::Gap { first });
        }
        let current = found.as_ref().map(|(meta, _, path)| (meta.clone(), path.clone()));
        let inner = Inner { dir: dir.to_owned(), current: Mutex::new(current), next_temporary: AtomicU64::new(0) };
        Ok((Self { inner: Arc::new(inner) }, found.map(|(meta, contents, _)| (meta, contents))))
    }

    /// Writes a snapshot. It is on disk, and the newest unless a newer one came meanwhile, when this returns.
    pub(crate) fn write(&self, meta: &SnapshotMeta, contents: &Contents) -> Result<(), Error> {
        let temporary = self.temporary();
        let file = File::create(&*temporary).map_err(failed("create", &temporary))?;
        write_to(&file, meta, contents).map_err(failed("write", &temporary))?;
        self.adopt(file, temporary, meta)
    }

    /// Makes an empty file for a snapshot that another node sends.
    pub(crate) fn receive(&self) -> Result<SnapshotData, Error> {
        let temporary = self.temporary();
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(true).open(&*temporary);
        Ok(SnapshotData::new(file.map_err(failed("create", &temporary))?, Some(temporary)))
    }

    /// Takes over a file that another node sent, durably, and returns what it holds.
    pub(crate) fn install(&self, mut file: File, temporary: Option<Temporary>) -> Result<(SnapshotMeta, Contents), Error> {
        let path = temporary.as_deref().unwrap_or(&self.inner.dir).to_owned();
        let mut bytes = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut bytes)).map_err(failed("read", &path))?;
        let (meta, contents) = parse(&path, &bytes)?;
        match temporary {
            Some(temporary) => self.adopt(file, temporary, &meta)?,
            // A file of another folder: openraft's own tests hand one over.
            None => self.write(&meta, &contents)?,
        }
        Ok((meta, contents))
    }

    /// Returns the last entry that the newest snapshot holds.
    pub(crate) fn newest(&self) -> Option<LogId> {
        self.inner.current.lock().as_ref().and_then(|(meta, _)| meta.last_log_id)
    }

    /// Opens the newest snapshot for reading, and sees first that it is whole: the node that gets a damaged one stops.
    pub(crate) fn current(&self) -> Result<Option<(SnapshotMeta, SnapshotData)>, Error> {
        let Some((meta, path, mut file)) = self.open_current()? else { return Ok(None) };
        if !is_whole(&file).and_then(|whole| file.rewind().map(|()| whole)).map_err(failed("read", &path))? {
            return Err(Error::Damaged { path, what: "its checksum does not match" });
        }
        Ok(Some((meta, SnapshotData::new(file, None))))
    }

    fn open_current(&self) -> Result<Option<(SnapshotMeta, PathBuf, File)>, Error> {
        let current = self.inner.current.lock();
        let Some((meta, path)) = current.as_ref() else { return Ok(None) };
        let file = File::open(path).map_err(failed("open", path))?;
        Ok(Some((meta.clone(), path.clone(), file)))
    }

    fn temporary(&self) -> Temporary {
        let number = self.inner.next_temporary.fetch_add(1, Ordering::Relaxed);
        Temporary(self.inner.dir.join(format!("{number}.{TEMPORARY_SUFFIX}")))
    }

    /// Syncs a whole file, gives it its name, and removes those it replaces.
    fn adopt(&self, file: File, temporary: Temporary, meta: &SnapshotMeta) -> Result<(), Error> {
        file.sync_all().map_err(failed("sync", &temporary))?;
        let mut current = self.inner.current.lock();
        if current.as_ref().is_some_and(|(newest, _)| newest.last_log_id > meta.last_log_id) {
            return Ok(());
        }
        let path = self.inner.dir.join(name(meta));
        fs::rename(&*temporary, &path).map_err(failed("rename", &temporary))?;
        file::sync_dir(&self.inner.dir)?;
        *current = Some((meta.clone(), path));
        for old in files(&self.inner.dir, SUFFIX)?.iter().skip(KEPT) {
            file::remove(old)?;
        }
        Ok(())
    }
}

/// A file that is removed unless it was renamed before.
#[derive(Debug)]
pub(crate) struct Temporary(PathBuf);

impl std::ops::Deref for Temporary {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After the rename there is nothing under this name; what stays behind is removed at the next start.
        let _ = fs::remove_file(&self.0);
    }
}

/// Lists the files that end so, the last by name first: the newest snapshot.
fn files(dir: &Path, suffix: &str) -> Result<Vec<PathBuf>, Error> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed("list", dir))? {
        let path = entry.map_err(failed("list", dir))?.path();
        if path.extension().is_some_and(|found| found == suffix) {
            paths.push(path);
        }
    }
    paths.sort_unstable_by(|one, other| other.cmp(one));
    Ok(paths)
}

/// Names sort like the entries they reach.
fn name(meta: &SnapshotMeta) -> String {
    let (index, term) = meta.last_log_id.map_or((0, 0), |id| (id.index, id.leader_id.term));
    format!("{index:020}-{term:020}.{SUFFIX}")
}

fn next_index(meta: &SnapshotMeta) -> u64 {
    meta.last_log_id.map_or(0, |id| id.index + 1)
}

fn write_to(file: &File, meta: &SnapshotMeta, contents: &Contents) -> std::io::Result<()> {
    let header = Header { version: contents.state.version(), meta: meta.clone() };
    let header = postcard::to_stdvec(&header).map_err(std::io::Error::other)?;
    let length = u32::try_from(header.len()).map_err(std::io::Error::other)?;
    let mut out = Summed { out: BufWriter::with_capacity(BUFFER_BYTES, file), sum: crc32fast::Hasher::new() };
    out.write_all(MAGIC)?;
    out.write_all(&[FORMAT])?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(&header)?;
    postcard::to_io(contents, &mut out).map_err(std::io::Error::other)?;
    let sum = out.sum.finalize();
    out.out.write_all(&sum.to_le_bytes())?;
    out.out.flush()
}

/// Sums up what passes through.
struct Summed<W> {
    out: W,
    sum: crc32fast::Hasher,
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.sum.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

/// Sums up a file in pieces, and compares with the sum at its end.
fn is_whole(mut file: &File) -> std::io::Result<bool> {
    let summed = file.metadata()?.len().saturating_sub(4);
    let mut sum = crc32fast::Hasher::new();
    let mut piece = vec![0; BUFFER_BYTES];
    let mut left = file.take(summed);
    loop {
        match left.read(&mut piece)? {
            0 => break,
            read => sum.update(&piece[..read]),
        }
    }
    let mut expected = [0; 4];
    file.read_exact(&mut expected)?;
    Ok(sum.finalize() == u32::from_le_bytes(expected))
}

/// Reads the newest whole snapshot in `dir`, and changes nothing.
pub(crate) fn look(dir: &Path) -> Result<Option<(SnapshotMeta, Contents)>, Error> {
    for path in files(dir, SUFFIX)? {
        match read(&path) {
            Ok(found) => return Ok(Some(found)),
            Err(error @ Error::Damaged { .. }) => tracing::error!(%error, "a damaged snapshot is passed over"),
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn read(path: &Path) -> Result<(SnapshotMeta, Contents), Error> {
    parse(path, &fs::read(path).map_err(failed("read", path))?)
}

fn parse(path: &Path, bytes: &[u8]) -> Result<(SnapshotMeta, Contents), Error> {
    let damaged = |what| Error::Damaged { path: path.to_owned(), what };
    let (summed, sum) = bytes.split_last_chunk::<4>().ok_or(damaged("it is too short"))?;
    if crc32fast::hash(summed) != u32::from_le_bytes(*sum) {
        return Err(damaged("its checksum does not match"));
    }
    let rest = summed.strip_prefix(MAGIC).ok_or(damaged("it is not a snapshot of Raft's state"))?;
    let (&format, rest) = rest.split_first().ok_or(damaged("it is too short"))?;
    if format != FORMAT {
        return Err(Error::Format { path: path.to_owned(), format });
    }
    let (length, rest) = rest.split_first_chunk::<4>().ok_or(damaged("it is too short"))?;
    let (header, body) = rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or(damaged("it is too short"))?;
    let header: Header = postcard::from_bytes(header).map_err(|_| damaged("its header cannot be read"))?;
    if header.version > VERSION_KNOWN {
        return Err(Error::Version { path: path.to_owned(), version: header.version });
    }
    let contents = postcard::from_bytes(body).map_err(|_| damaged("the state in it cannot be read"))?;
    Ok((header.meta, contents))
}

#[cfg(test)]
mod tests;
