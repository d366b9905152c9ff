//! A log of records in segment files, on this node's disk.
//!
//! Raft keeps its log in one, all shards of a node share another. A record is some bytes; its [`Position`] is given by the
//! log, grows, and is never given twice, so that it can serve as a cursor for as long as the record lives.
//!
//! [`Log::append`] writes and returns: the record is readable at once and survives the end of this process.
//! [`Log::sync`] makes it survive a power cut too. Space is given back at the front by whole segments
//! ([`Log::release_before`]); [`Log::truncate`] cuts records off the end.
//!
//! A segment file is written once, front to back, and never again after it was cut: opening the log, truncating it and a
//! failed write all begin a new file beyond every position given before. So no byte of an earlier life can stand behind a
//! new record. On open a torn tail is cut away; damage in records that were synced is an error that says where.
//!
//! Caveats: records of one `append` are not one unit, a crash may keep only the first of them. Damage to the very last synced
//! records, with nothing written after them, looks like a torn tail. Segments before the last are checked when
//! they are read, not when the log is opened.

mod error;
mod record;
mod recover;
mod scan;
mod segment;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};

use crate::file::{self, Failed, Held, failed};
use crate::group::{Group, Synced};
use error::explain;
pub use error::{Error, Result};
use record::{SEGMENT_HEADER_BYTES, encode, stride};
use recover::Segments;
pub use scan::Scan;
use segment::{Access, Segment};

/// The longest record a log takes.
pub const RECORD_BYTES_MAX: usize = 32 << 20;

/// Where a record stands in its log. Later records have greater positions; the numbers have gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Position(u64);

impl Position {
    /// Before every record.
    pub const START: Self = Self(0);

    /// Takes a number that [`Self::get`] returned before.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Returns the position as a number, to be kept or sent.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// How a log is kept.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Size of a segment file. Its space is set aside when it is made, and given back when all its records are released.
    pub segment_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { segment_bytes: 64 << 20 }
    }
}

/// A handle on a log; clones share it.
#[derive(Debug, Clone)]
pub struct Log {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    core: Arc<Core>,
    group: Group<Error>,
}

#[derive(Debug)]
struct Core {
    dir: Arc<Path>,
    options: Options,
    writer: Mutex<Writer>,
    segments: RwLock<Segments>,
    /// Records before this position are on disk.
    synced: AtomicU64,
    _held: Held,
}

/// Held while the log changes.
#[derive(Debug)]
struct Writer {
    /// The segment that takes records, the last of all; none after a failed write, until the next one.
    active: Option<Arc<Segment>>,
    /// No position from here on was given to a record when `active` is none.
    next_base: u64,
    buffer: Vec<u8>,
}

impl Log {
    /// Opens the log in `dir`, or makes one. A torn tail is cut away; damage before it is an error.
    pub fn open(dir: &Path, options: Options) -> Result<Self> {
        file::create_dir(dir)?;
        let held = file::hold(dir)?;
        let found = recover::recover(dir, Access::Use)?;
        let mut segments = found.segments;
        let active = Arc::new(Segment::create(dir, found.next_base, options.segment_bytes, found.next_base)?);
        recover::remove_empty(dir, &mut segments)?;
        segments.insert(found.next_base, active.clone());
        let core = Arc::new(Core {
            dir: dir.into(),
            options,
            synced: AtomicU64::new(active.end_position()),
            writer: Mutex::new(Writer { active: Some(active), next_base: 0, buffer: Vec::new() }),
            segments: RwLock::new(segments),
            _held: held,
        });
        let of_thread = core.clone();
        let group = Group::start("log-sync", move || of_thread.sync()).map_err(failed("start the syncing thread of", dir))?;
        Ok(Self { inner: Arc::new(Inner { core, group }) })
    }

    /// Walks the records of the log in `dir` that nobody has open, and changes nothing there: a torn tail, and what a truncation
    /// left behind, are passed over.
    pub fn look(dir: &Path) -> Result<Scan> {
        let held = file::hold(dir)?;
        let segments = recover::recover(dir, Access::Look)?.segments;
        let core = Core {
            dir: dir.into(),
            options: Options::default(),
            synced: AtomicU64::new(0),
            writer: Mutex::new(Writer { active: None, next_base: 0, buffer: Vec::new() }),
            segments: RwLock::new(segments),
            _held: held,
        };
        let end = core.end();
        Ok(Scan::new(Arc::new(core), Position::START, end))
    }

    /// Writes records at the end, in order, and returns their positions.
    ///
    /// They can be read at once, and last after [`Self::sync`]. When this fails, some of the first records may have been
    /// written and will be read after them.
    pub fn append(&self, records: &[&[u8]]) -> Result<Vec<Position>> {
        self.check_going()?;
        if let Some(long) = records.iter().find(|record| record.len() > RECORD_BYTES_MAX) {
            return Err(Error::TooLong { bytes: long.len() });
        }
        let core = &self.core();
        let mut writer = core.writer.lock();
        let mut positions = Vec::with_capacity(records.len());
        for payload in records {
            self.make_room(&mut writer, stride(payload.len()))?;
            positions.push(writer.add(payload, core.synced.load(Ordering::Acquire)));
        }
        self.flush(&mut writer)?;
        Ok(positions)
    }

    /// Blocks until every record appended before this call is on disk.
    pub fn sync(&self) -> Result<()> {
        self.inner.group.wait().map_err(|why| explain(why, &self.core().dir))
    }

    /// Asks for a sync, and returns a future that ends when every record appended before this call is on disk.
    pub fn sync_async(&self) -> Synced<Error> {
        Synced::new(&self.inner.group, self.core().dir.clone(), explain)
    }

    /// Returns the position before which every record is known to be on disk.
    pub fn synced(&self) -> Position {
        Position(self.core().synced.load(Ordering::Acquire))
    }

    /// Returns a position after every record, and not after the next one.
    pub fn end(&self) -> Position {
        self.core().end()
    }

    /// Returns a position not after the first record.
    pub fn front(&self) -> Position {
        self.core().front()
    }

    /// Reads one record. A position that the log did not give, amid a record, reads as damage.
    pub fn read(&self, position: Position) -> Result<Bytes> {
        let (segment, offset) = self.core().find(position)?;
        Ok(segment.read(offset)?.1)
    }

    /// Walks the records from `from` to the end that the log has now, in order.
    ///
    /// `from` is the position of a record, or one where none ever stood ([`Position::START`], [`Self::end`]). What was
    /// released is left out without a word: compare with [`Self::front`] where it matters.
    pub fn scan(&self, from: Position) -> Scan {
        Scan::new(self.core().clone(), from, self.end())
    }

    /// Removes the record at `from` and all after it, durably. Readers of these records that are on their way may fail.
    ///
    /// A position where no record stands is refused, except [`Self::end`], where there is nothing to remove.
    pub fn truncate(&self, from: Position) -> Result<()> {
        self.check_going()?;
        let core = self.core();
        let mut writer = core.writer.lock();
        if from == core.end() {
            return Ok(());
        }
        let (segment, offset) = core.find(from)?;
        segment.read(offset)?;
        // The new segment's header is the moment of truncation; what follows only gives the space back.
        let until = self.roll(&mut writer, core.options.segment_bytes, Some(from))?;
        let mut segments = core.segments.write();
        self.poison_on_error(recover::void(&core.dir, &mut segments, from.0, until))
    }

    /// Gives back the space of records before `position`, as far as whole segments allow.
    ///
    /// Records before `position` may or may not be readable afterwards.
    pub fn release_before(&self, position: Position) -> Result<()> {
        let core = self.core();
        let _writer = core.writer.lock();
        let mut released = false;
        while let Some(segment) = core.first_to_release(position) {
            core.segments.write().remove(&segment.header.base);
            file::remove(&segment.path)?;
            released = true;
        }
        if released {
            file::sync_dir(&core.dir)?;
        }
        Ok(())
    }

    fn core(&self) -> &Arc<Core> {
        &self.inner.core
    }

    /// Refuses once a sync has failed: nobody knows what the disk holds.
    fn check_going(&self) -> Result<()> {
        self.inner.group.over().map_or(Ok(()), |why| Err(explain(why, &self.core().dir)))
    }

    fn poison_on_error<T>(&self, result: std::result::Result<T, Failed>) -> Result<T> {
        result.map_err(|failed| {
            let error = Error::File(failed);
            self.inner.group.fail(error.clone());
            error
        })
    }

    /// Sees to it that a record of this size can be added to the writer's buffer.
    fn make_room(&self, writer: &mut Writer, bytes: u64) -> Result<()> {
        if writer.room() >= bytes {
            return Ok(());
        }
        self.flush(writer)?;
        let least = SEGMENT_HEADER_BYTES + bytes;
        self.roll(writer, self.core().options.segment_bytes.max(least), None)?;
        Ok(())
    }

    /// Writes the writer's buffer to the active segment.
    fn flush(&self, writer: &mut Writer) -> Result<()> {
        let buffer = std::mem::take(&mut writer.buffer);
        let Some(active) = writer.active.clone().filter(|_| !buffer.is_empty()) else { return Ok(()) };
        let written = active.append(&buffer);
        if written.is_err() {
            // Part of it may stand there now. Nothing is written behind it: the next append begins a new segment.
            writer.next_base = active.header.base + active.header.capacity;
            writer.active = None;
            self.poison_on_error(active.cut(active.end()))?;
        }
        writer.reuse(buffer);
        Ok(written?)
    }

    /// Ends the active segment, synced, and begins another. Returns its base.
    fn roll(&self, writer: &mut Writer, capacity: u64, void_from: Option<Position>) -> Result<u64> {
        let core = self.core();
        if let Some(active) = writer.active.take() {
            writer.next_base = active.end_position();
            self.poison_on_error(active.cut(active.end()))?;
            core.synced.fetch_max(active.end_position(), Ordering::AcqRel);
        }
        let base = writer.next_base;
        let void_from = void_from.map_or(base, Position::get);
        // A full disk is no reason to stop for ever: the next append tries again.
        let segment = Arc::new(Segment::create(&core.dir, base, capacity, void_from)?);
        core.segments.write().insert(base, segment.clone());
        writer.active = Some(segment);
        Ok(base)
    }
}

impl Writer {
    /// How many more bytes fit into the active segment.
    fn room(&self) -> u64 {
        let Some(active) = &self.active else { return 0 };
        active.header.capacity.saturating_sub(active.end() + self.buffer.len() as u64)
    }

    /// Adds a record to the buffer. There must be room.
    fn add(&mut self, payload: &[u8], synced: u64) -> Position {
        let active = self.active.as_ref().expect("make_room came before");
        let position = active.end_position() + self.buffer.len() as u64;
        encode(&mut self.buffer, active.header.salt, position, synced, payload);
        Position(position)
    }

    fn reuse(&mut self, mut buffer: Vec<u8>) {
        /// A larger buffer is not kept for the next append.
        const KEPT_BYTES_MAX: usize = 4 << 20;
        if buffer.capacity() <= KEPT_BYTES_MAX {
            buffer.clear();
            self.buffer = buffer;
        }
    }
}

impl Core {
    /// Makes what was appended before this call durable.
    fn sync(&self) -> Result<()> {
        let active = self.writer.lock().active.as_ref().map(|active| (active.clone(), active.end_position()));
        // Without an active segment all were ended, and ending one syncs it.
        let Some((active, end)) = active else { return Ok(()) };
        active.file.sync_data().map_err(failed("sync", &active.path))?;
        self.synced.fetch_max(end, Ordering::AcqRel);
        Ok(())
    }

    fn front(&self) -> Position {
        Position(self.segments.read().keys().next().copied().unwrap_or_default())
    }

    fn end(&self) -> Position {
        Position(self.segments.read().values().next_back().map_or(0, |segment| segment.end_position()))
    }

    /// Returns the segment and the offset in it where the record at `position` begins.
    fn find(&self, position: Position) -> Result<(Arc<Segment>, u64)> {
        if position < self.front() {
            return Err(Error::Released { position, front: self.front() });
        }
        let segment = self.segments.read().range(..=position.0).next_back().map(|(_, segment)| segment.clone());
        let none = || Error::NoRecord { position, end: self.end() };
        let segment = segment.ok_or_else(none)?;
        let offset = position.0 - segment.header.base;
        let aligned = offset.is_multiple_of(record::ALIGN as u64);
        if offset < SEGMENT_HEADER_BYTES || offset >= segment.end() || !aligned {
            return Err(none());
        }
        Ok((segment, offset))
    }

    /// Returns the oldest segment if all its records stand before `position` and another follows it.
    fn first_to_release(&self, position: Position) -> Option<Arc<Segment>> {
        let segments = self.segments.read();
        let mut both = segments.values();
        let (first, next) = (both.next()?, both.next()?);
        (next.header.base <= position.0 || first.end_position() <= position.0).then(|| first.clone())
    }
}
