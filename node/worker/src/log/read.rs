//! Reading the store: the newest lines, a window of time, what comes after a place.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::ops::{ControlFlow, Range};
use std::time::Duration;

use tokio::time::Instant;

use serde::{Deserialize, Serialize};

use super::entry::{Cursor, Entry, Filter, Stream};
use super::file::{Record, scan};
use super::files::{Parts, path_of};
use super::index::joined;
use super::store::{Error, LogStore, failed};

/// How many entries one batch of [`LogStore::follow`] holds at most; the next call continues.
pub const FOLLOW_ENTRIES_MAX: usize = 5_000;

/// With so many bytes a batch of [`LogStore::follow`] is full.
pub const FOLLOW_BYTES_MAX: usize = 2 << 20;

/// How many bytes [`LogStore::fetch`] finds at most: as many as go into one message. Older entries are left out, and a line says so.
pub const FETCH_BYTES_MAX: usize = 32 << 20;

/// What an entry counts as besides its text.
const ENTRY_COST_BYTES: usize = 128;

fn cost(entry: &Entry) -> usize {
    entry.data.len() + ENTRY_COST_BYTES
}

/// Leaves the newest entries that are [`FETCH_BYTES_MAX`] bytes, and at least one; the first one then says that others are left out.
pub fn fitting(mut entries: Vec<Entry>) -> Vec<Entry> {
    let mut bytes = 0;
    let fits = |entry: &&Entry| {
        bytes += cost(entry);
        bytes <= FETCH_BYTES_MAX
    };
    let kept = entries.iter().rev().take_while(fits).count().max(1);
    if kept < entries.len() {
        entries.drain(..entries.len() - kept);
        let oldest = &entries[0];
        let data = format!("[older lines of this time are left out: an answer has {} MiB; ask for less time]\n", FETCH_BYTES_MAX >> 20);
        entries.insert(0, Entry { stream: Stream::System, input: None, call: None, data, ..oldest.clone() });
    }
    entries
}

/// Entries, oldest first, and where to go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// What was found.
    pub entries: Vec<Entry>,
    /// For [`LogStore::follow`]: everything before it is in `entries`, or did not match.
    pub cursor: Cursor,
}

/// How many lines of each stream there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
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

impl LogStore {
    /// Finds the newest `limit` entries that match; the oldest comes first.
    ///
    /// When the app of the filter lost lines within the filter's time, and the limit leaves room, the first entry is a line of
    /// [`Stream::System`] that says so; so it is where the entries are more than [`FETCH_BYTES_MAX`]. The batch's cursor is the end of the store, for [`LogStore::follow`]. Reads from the
    /// newest line back, only where the index says that there are lines of what is wanted. Blocks for disk reads.
    ///
    /// # Errors
    /// When a file can't be read.
    pub fn fetch(&self, filter: &Filter, limit: usize) -> Result<Batch, Error> {
        let (files, loss, cursor) = {
            let files = self.files();
            (files.newest(filter), files.losses.line(filter, self.options()), files.end())
        };
        let (mut found, mut bytes): (VecDeque<Entry>, usize) = (VecDeque::new(), 0);
        for parts in files {
            if found.len() >= limit || bytes > FETCH_BYTES_MAX {
                break;
            }
            let Some(file) = self.reopen(parts.number)? else { continue };
            for range in parts.ranges.into_iter().rev() {
                let room = limit - found.len();
                if room == 0 || bytes > FETCH_BYTES_MAX {
                    break;
                }
                let newest = self.newest_of(&file, parts.number, range, filter, room)?;
                bytes += newest.iter().map(cost).sum::<usize>();
                newest.into_iter().rev().for_each(|entry| found.push_front(entry));
            }
        }
        let mut entries = Vec::from(found);
        entries.sort_by_key(|entry| entry.timestamp_ns);
        let mut entries = fitting(entries);
        if let Some(loss) = loss.filter(|_| entries.len() < limit) {
            entries.insert(0, loss);
        }
        Ok(Batch { entries, cursor })
    }

    /// Returns the newest `room` entries of a part of a file.
    fn newest_of(&self, file: &File, number: u64, range: Range<u64>, filter: &Filter, room: usize) -> Result<VecDeque<Entry>, Error> {
        let mut found = VecDeque::new();
        let visit = |record: Record<'_>| {
            if record.matches(filter) {
                if found.len() == room {
                    found.pop_front();
                }
                found.push_back(record.entry());
            }
            ControlFlow::Continue(())
        };
        scan(file, range.start, range.end, visit).map_err(failed("read", &path_of(self.dir(), number)))?;
        Ok(found)
    }

    /// Counts what [`LogStore::fetch`] would find, by time: in buckets of `bucket_ns` that begin at multiples of it. Buckets
    /// without lines are left out; the earliest comes first. Blocks for disk reads.
    ///
    /// # Errors
    /// When a file can't be read.
    pub fn count(&self, filter: &Filter, bucket_ns: u64) -> Result<BTreeMap<u64, Counts>, Error> {
        let bucket_ns = bucket_ns.max(1);
        let mut buckets: BTreeMap<u64, Counts> = BTreeMap::new();
        let files = self.files().newest(filter);
        for parts in files {
            let visit = |record: Record<'_>| {
                let at = record.timestamp_ns();
                if record.matches(filter) {
                    buckets.entry(at - at % bucket_ns).or_default().add(record.stream());
                }
                ControlFlow::Continue(())
            };
            self.scan(parts, visit)?;
        }
        Ok(buckets)
    }

    /// Reads the entries after a cursor that match, at most [`FOLLOW_ENTRIES_MAX`], and no more once they are [`FOLLOW_BYTES_MAX`] bytes;
    /// does not wait. Blocks for disk reads.
    ///
    /// When lines of the filter's app that came after the cursor were dropped, the first entry says so.
    ///
    /// # Errors
    /// When a file can't be read.
    pub fn read_after(&self, filter: &Filter, cursor: Cursor) -> Result<Batch, Error> {
        let (files, end, loss) = {
            let files = self.files();
            let loss = if files.is_before_oldest(cursor) { files.losses.line(filter, self.options()) } else { None };
            (files.after(filter, cursor), files.end(), loss)
        };
        let (mut entries, mut bytes) = (Vec::from_iter(loss), 0);
        let mut full = false;
        for parts in files {
            let number = parts.number;
            let visit = |record: Record<'_>| {
                if record.matches(filter) {
                    let entry = record.entry();
                    bytes += cost(&entry);
                    entries.push(entry);
                }
                full = entries.len() >= FOLLOW_ENTRIES_MAX || bytes >= FOLLOW_BYTES_MAX;
                if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            let at = self.scan(parts, visit)?;
            if full {
                return Ok(Batch { entries, cursor: Cursor { file: number, offset: at } });
            }
        }
        Ok(Batch { entries, cursor: end.max(cursor) })
    }

    /// Reads parts of a file, in order, until `visit` breaks; returns the offset after the last record that was visited. A
    /// file that was dropped in the meantime has none.
    fn scan(&self, parts: Parts, mut visit: impl FnMut(Record<'_>) -> ControlFlow<()>) -> Result<u64, Error> {
        let Some(file) = self.reopen(parts.number)? else { return Ok(0) };
        let (mut at, mut broken) = (0, false);
        for range in joined(parts.ranges) {
            let visit = |record: Record<'_>| {
                let flow = visit(record);
                broken = flow.is_break();
                flow
            };
            at = scan(&file, range.start, range.end, visit).map_err(failed("read", &path_of(self.dir(), parts.number)))?;
            if broken {
                break;
            }
        }
        Ok(at)
    }

    /// Opens a file for reading; `None` when it was dropped in the meantime.
    fn reopen(&self, number: u64) -> Result<Option<File>, Error> {
        let path = path_of(self.dir(), number);
        match File::open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("open", &path)(error)),
        }
    }

    /// Returns the next entries after a cursor that match, as soon as there are any; after `wait`, an empty batch whose
    /// cursor says how far it looked.
    ///
    /// # Errors
    /// When a file can't be read.
    pub async fn follow(&self, filter: &Filter, cursor: Cursor, wait: Duration) -> Result<Batch, Error> {
        let deadline = Instant::now() + wait;
        let mut end = self.subscribe();
        let mut cursor = cursor.min(self.end());
        loop {
            end.borrow_and_update();
            let (store, wanted) = (self.clone(), filter.clone());
            let read = tokio::task::spawn_blocking(move || store.read_after(&wanted, cursor)).await;
            let batch = match read {
                Ok(batch) => batch?,
                Err(stopped) => return Err(failed("read", self.dir())(io::Error::other(stopped))),
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
