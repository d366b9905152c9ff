//! The files, who appends to them, and who reads.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use shoal_state::{AppId, FunctionId, TaskId};
use tokio::sync::watch;
use tokio::time::Instant;

use super::entry::{Cursor, Entry, Filter, Stream};
use super::file::{Summary, encode, scan};

/// How many entries one batch of [`LogStore::follow`] holds at most; the next call continues.
pub const FOLLOW_ENTRIES_MAX: usize = 1_000;

/// How many apps the store remembers the losses of. Beyond it, the app whose loss is the oldest is forgotten.
const LOSSES_MAX: usize = 10_000;

const LOSSES_FILE: &str = "dropped";

/// The log could not be kept or read.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct Error {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error { action, path: path.to_owned(), source }
}

/// How the store is bounded.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// A file is closed when it is larger, in bytes.
    pub file_bytes: u64,
    /// The oldest files are dropped while all together are larger, in bytes. The newest is always kept.
    pub retain_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { file_bytes: 8 << 20, retain_bytes: 1 << 30 }
    }
}

/// Entries, oldest first, and where to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// What was found.
    pub entries: Vec<Entry>,
    /// For [`LogStore::follow`]: everything before it is in `entries`, or did not match.
    pub cursor: Cursor,
}

impl Files {
    /// Returns the files that may have lines of a time, the newest first.
    fn parts(&self, filter: &Filter, since_ns: u64, until_ns: u64) -> Vec<Part> {
        let may = |summary: &Summary| summary.may_hold(filter, since_ns, until_ns);
        let current = may(&self.summary).then_some(Part { number: self.number, length: self.length });
        let sealed = self.sealed.iter().rev().filter(|file| may(&file.summary)).map(|file| file.part());
        current.into_iter().chain(sealed).collect()
    }
}

/// How many lines of each stream there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Of [`Stream::Stdout`].
    pub stdout: u64,
    /// Of [`Stream::Stderr`].
    pub stderr: u64,
    /// Of [`Stream::System`].
    pub system: u64,
}

impl Counts {
    fn add(&mut self, stream: Stream) {
        match stream {
            Stream::Stdout => self.stdout += 1,
            Stream::Stderr => self.stderr += 1,
            Stream::System => self.system += 1,
        }
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

#[derive(Debug)]
struct Files {
    sealed: VecDeque<Arc<Sealed>>,
    sealed_bytes: u64,
    losses: BTreeMap<u128, Loss>,
    number: u64,
    file: File,
    length: u64,
    summary: Summary,
    encoded: Vec<u8>,
}

/// A file that is not written to any more.
#[derive(Debug, Serialize, Deserialize)]
struct Sealed {
    number: u64,
    length: u64,
    summary: Summary,
}

/// Lines of an app that were dropped.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Loss {
    lines: u64,
    last_ns: u64,
}

/// A part of a file to read.
struct Part {
    number: u64,
    length: u64,
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
        fs::create_dir_all(&dir).map_err(failed("create", &dir))?;
        let numbers = numbers(&dir)?;
        let number = numbers.last().copied().unwrap_or(0) + 1;
        let mut sealed = VecDeque::new();
        for number in numbers {
            sealed.extend(Sealed::open(&dir, number)?.map(Arc::new));
        }
        let file = create(&dir, number)?;
        let losses = fs::read(dir.join(LOSSES_FILE)).ok().and_then(|bytes| postcard::from_bytes(&bytes).ok()).unwrap_or_default();
        let sealed_bytes = sealed.iter().map(|file| file.length).sum();
        let files = Files { sealed, sealed_bytes, losses, number, file, length: 0, summary: Summary::default(), encoded: Vec::new() };
        let (end, _) = watch::channel(Cursor { file: number, offset: 0 });
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
        let Some(last) = entries.last() else { return Ok(()) };
        let files = &mut *self.0.files.lock();
        files.encoded.clear();
        entries.iter().for_each(|entry| encode(entry, &mut files.encoded));
        let path = path_of(&self.0.dir, files.number);
        if let Err(error) = files.file.write_all(&files.encoded) {
            // A part may have been written: cut it off, so that what is appended next is found.
            let _ = files.file.set_len(files.length);
            return Err(failed("append to", &path)(error));
        }
        files.length += files.encoded.len() as u64;
        for entry in entries {
            files.summary.add(entry.timestamp_ns, entry.app.bits(), entry.task.bits(), entry.function.bits());
        }
        self.0.end.send_replace(Cursor { file: files.number, offset: files.length });
        if files.length >= self.0.options.file_bytes {
            self.rotate(files, last.timestamp_ns)?;
        }
        Ok(())
    }

    /// Begins a new file and drops the oldest ones that are too much.
    fn rotate(&self, files: &mut Files, now_ns: u64) -> Result<(), Error> {
        let dir = &self.0.dir;
        let next = create(dir, files.number + 1)?;
        let sealed = Sealed { number: files.number, length: files.length, summary: std::mem::take(&mut files.summary) };
        sealed.write_summary(dir);
        files.sealed_bytes += sealed.length;
        files.sealed.push_back(Arc::new(sealed));
        (files.file, files.length, files.number) = (next, 0, files.number + 1);
        let mut dropped = false;
        while files.sealed_bytes > self.0.options.retain_bytes {
            let Some(oldest) = files.sealed.pop_front() else { break };
            files.sealed_bytes -= oldest.length;
            for (app, lines) in &oldest.summary.apps {
                let loss = files.losses.entry(*app).or_default();
                loss.lines += lines;
                loss.last_ns = loss.last_ns.max(oldest.summary.last_ns.min(now_ns));
            }
            let path = path_of(dir, oldest.number);
            let _ = fs::remove_file(summary_path_of(dir, oldest.number));
            fs::remove_file(&path).map_err(failed("remove", &path))?;
            dropped = true;
        }
        if dropped {
            files.keep_losses(dir);
        }
        Ok(())
    }

    /// Returns the place after the newest entry.
    pub fn end(&self) -> Cursor {
        *self.0.end.borrow()
    }

    /// Finds the newest `limit` entries that match, with a time from `since_ns` up to but without `until_ns`; the oldest
    /// comes first.
    ///
    /// When the app of the filter lost lines to the bound within that time, and the limit leaves room, the first entry is
    /// a line of [`Stream::System`] that says so. The batch's cursor is the end of the store, for [`LogStore::follow`].
    /// Blocks for disk reads.
    ///
    /// # Errors
    /// When a file can't be read.
    pub fn fetch(&self, filter: &Filter, since_ns: Option<u64>, until_ns: Option<u64>, limit: usize) -> Result<Batch, Error> {
        let (since_ns, until_ns) = (since_ns.unwrap_or(0), until_ns.unwrap_or(u64::MAX));
        let (parts, loss, cursor) = {
            let files = self.0.files.lock();
            let loss = filter.app.and_then(|app| files.losses.get(&app.bits()).copied().map(|loss| (app, loss)));
            (files.parts(filter, since_ns, until_ns), loss, Cursor { file: files.number, offset: files.length })
        };
        let mut found: VecDeque<Entry> = VecDeque::new();
        for part in parts {
            let room = limit - found.len();
            if room == 0 {
                break;
            }
            let newest = self.newest_of(&part, filter, since_ns, until_ns, room)?;
            newest.into_iter().rev().for_each(|entry| found.push_front(entry));
        }
        let mut entries = Vec::from(found);
        entries.sort_by_key(|entry| entry.timestamp_ns);
        if let Some((app, loss)) = loss.filter(|(_, loss)| loss.last_ns >= since_ns && loss.last_ns < until_ns)
            && entries.len() < limit
        {
            entries.insert(0, loss.line(app, self.0.options.retain_bytes));
        }
        Ok(Batch { entries, cursor })
    }

    /// Counts what [`LogStore::fetch`] would find, by time: in buckets of `bucket_ns` that begin at multiples of it. Buckets
    /// without lines are left out; the earliest comes first. Blocks for disk reads.
    ///
    /// # Errors
    /// When a file can't be read.
    pub fn count(
        &self,
        filter: &Filter,
        since_ns: Option<u64>,
        until_ns: Option<u64>,
        bucket_ns: u64,
    ) -> Result<BTreeMap<u64, Counts>, Error> {
        let (since_ns, until_ns, bucket_ns) = (since_ns.unwrap_or(0), until_ns.unwrap_or(u64::MAX), bucket_ns.max(1));
        let mut buckets: BTreeMap<u64, Counts> = BTreeMap::new();
        let parts = self.0.files.lock().parts(filter, since_ns, until_ns);
        for part in parts {
            let Some(file) = self.reopen(part.number)? else { continue };
            let visit = |record: super::file::Record<'_>| {
                let at = record.timestamp_ns();
                if (since_ns..until_ns).contains(&at) && record.matches(filter) {
                    buckets.entry(at - at % bucket_ns).or_default().add(record.stream());
                }
                ControlFlow::Continue(())
            };
            scan(&file, 0, part.length, visit).map_err(failed("read", &path_of(&self.0.dir, part.number)))?;
        }
        Ok(buckets)
    }

    fn newest_of(&self, part: &Part, filter: &Filter, since_ns: u64, until_ns: u64, room: usize) -> Result<VecDeque<Entry>, Error> {
        let mut found = VecDeque::new();
        let Some(file) = self.reopen(part.number)? else { return Ok(found) };
        let visit = |record: super::file::Record<'_>| {
            if (since_ns..until_ns).contains(&record.timestamp_ns()) && record.matches(filter) {
                if found.len() == room {
                    found.pop_front();
                }
                found.push_back(record.entry());
            }
            ControlFlow::Continue(())
        };
        scan(&file, 0, part.length, visit).map_err(failed("read", &path_of(&self.0.dir, part.number)))?;
        Ok(found)
    }

    /// Opens a file for reading; `None` when it was dropped in the meantime.
    fn reopen(&self, number: u64) -> Result<Option<File>, Error> {
        let path = path_of(&self.0.dir, number);
        match File::open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("open", &path)(error)),
        }
    }

    /// Reads the entries after a cursor that match, at most [`FOLLOW_ENTRIES_MAX`]; does not wait. Blocks for disk reads.
    ///
    /// # Errors
    /// When a file can't be read.
    pub fn read_after(&self, filter: &Filter, cursor: Cursor) -> Result<Batch, Error> {
        let (parts, end) = {
            let files = self.0.files.lock();
            let sealed = files.sealed.iter().filter(|file| file.number >= cursor.file);
            let may = |file: &&Arc<Sealed>| file.summary.may_hold(filter, 0, u64::MAX);
            let current = Part { number: files.number, length: files.length };
            let parts: Vec<Part> = sealed.filter(may).map(|file| file.part()).chain([current]).collect();
            (parts, Cursor { file: files.number, offset: files.length })
        };
        let mut entries = Vec::new();
        for part in parts {
            let from = if part.number == cursor.file { cursor.offset } else { 0 };
            let Some(file) = self.reopen(part.number)? else { continue };
            let visit = |record: super::file::Record<'_>| {
                if record.matches(filter) {
                    entries.push(record.entry());
                }
                if entries.len() < FOLLOW_ENTRIES_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            };
            let at = scan(&file, from, part.length, visit).map_err(failed("read", &path_of(&self.0.dir, part.number)))?;
            if entries.len() == FOLLOW_ENTRIES_MAX {
                return Ok(Batch { entries, cursor: Cursor { file: part.number, offset: at } });
            }
        }
        Ok(Batch { entries, cursor: end.max(cursor) })
    }

    /// Returns the next entries after a cursor that match, as soon as there are any; after `wait`, an empty batch whose
    /// cursor says how far it looked.
    ///
    /// # Errors
    /// When a file can't be read.
    pub async fn follow(&self, filter: &Filter, cursor: Cursor, wait: Duration) -> Result<Batch, Error> {
        let deadline = Instant::now() + wait;
        let mut end = self.0.end.subscribe();
        let mut cursor = cursor.min(self.end());
        loop {
            end.borrow_and_update();
            let (store, wanted) = (self.clone(), filter.clone());
            let read = tokio::task::spawn_blocking(move || store.read_after(&wanted, cursor)).await;
            let batch = match read {
                Ok(batch) => batch?,
                Err(stopped) => return Err(failed("read", &self.0.dir)(io::Error::other(stopped))),
            };
            cursor = batch.cursor;
            if !batch.entries.is_empty() {
                return Ok(batch);
            }
            // The sender lives as long as `self`, so only the deadline ends this.
            if tokio::time::timeout_at(deadline, end.changed()).await.is_err() {
                return Ok(batch);
            }
        }
    }
}

impl Files {
    fn keep_losses(&mut self, dir: &Path) {
        while self.losses.len() > LOSSES_MAX {
            let oldest = self.losses.iter().min_by_key(|(_, loss)| loss.last_ns).map(|(app, _)| *app);
            oldest.and_then(|app| self.losses.remove(&app));
        }
        let path = dir.join(LOSSES_FILE);
        let bytes = postcard::to_allocvec(&self.losses).unwrap_or_default();
        if let Err(error) = fs::write(&path, bytes) {
            tracing::warn!(%error, path = %path.display(), "cannot write down which log lines were dropped");
        }
    }
}

impl Loss {
    fn line(&self, app: AppId, retain_bytes: u64) -> Entry {
        Entry {
            timestamp_ns: self.last_ns,
            stream: Stream::System,
            app,
            task: TaskId::from_random(0),
            function: FunctionId::from_random(0),
            input: None,
            call: None,
            data: format!("[{} older lines were dropped: a node keeps {} MiB of logs]\n", self.lines, retain_bytes >> 20),
        }
    }
}

impl Sealed {
    /// Takes a file as it is on disk: its summary if that fits, else by reading it. An empty file is removed.
    fn open(dir: &Path, number: u64) -> Result<Option<Self>, Error> {
        let path = path_of(dir, number);
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(failed("open", &path))?;
        let on_disk = file.metadata().map_err(failed("look at", &path))?.len();
        let summary = fs::read(summary_path_of(dir, number)).ok().and_then(|bytes| postcard::from_bytes::<Self>(&bytes).ok());
        if let Some(sealed) = summary.filter(|sealed| sealed.number == number && sealed.length == on_disk) {
            return Ok(Some(sealed));
        }
        let mut summary = Summary::default();
        let visit = |record: super::file::Record<'_>| {
            summary.add(record.timestamp_ns(), record.tag(0), record.tag(1), record.tag(2));
            ControlFlow::Continue(())
        };
        let length = scan(&file, 0, on_disk, visit).map_err(failed("read", &path))?;
        if length < on_disk {
            file.set_len(length).map_err(failed("cut the torn end of", &path))?;
        }
        if length == 0 {
            fs::remove_file(&path).map_err(failed("remove", &path))?;
            return Ok(None);
        }
        let sealed = Self { number, length, summary };
        sealed.write_summary(dir);
        Ok(Some(sealed))
    }

    /// Without the summary the next start reads the file, so a failure is no loss.
    fn write_summary(&self, dir: &Path) {
        if let Ok(bytes) = postcard::to_allocvec(self) {
            let _ = fs::write(summary_path_of(dir, self.number), bytes);
        }
    }

    fn part(&self) -> Part {
        Part { number: self.number, length: self.length }
    }
}

fn path_of(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}.log"))
}

fn summary_path_of(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}.sum"))
}

fn create(dir: &Path, number: u64) -> Result<File, Error> {
    let path = path_of(dir, number);
    OpenOptions::new().create(true).append(true).open(&path).map_err(failed("create", &path))
}

/// Lists the numbers of the files of a folder, in order.
fn numbers(dir: &Path) -> Result<Vec<u64>, Error> {
    let mut numbers = Vec::new();
    for item in fs::read_dir(dir).map_err(failed("list", dir))? {
        let item = item.map_err(failed("list", dir))?;
        let name = item.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".log")).and_then(|hex| u64::from_str_radix(hex, 16).ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}
