//! The files of the store: the newest, which is written, and those that are closed, the oldest of which go.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use serde::{Deserialize, Serialize};

use super::entry::{Cursor, Entry, Filter};
use super::file::{encode, scan};
use super::index::Index;
use super::losses::Losses;
use super::store::{Error, Options, failed};

/// A file with lines older than this is closed, so that it can go when they are too old; in nanoseconds.
const FILE_SPAN_NS: u64 = 24 * 3600 * 1_000_000_000;

/// How many files are synced at a time. With more the disk does not keep up, and further ones get no index.
const SEALING_MAX: usize = 16;

/// All files of a store.
#[derive(Debug)]
pub(super) struct Files {
    dir: PathBuf,
    options: Options,
    sealed: VecDeque<Arc<Sealed>>,
    sealed_bytes: u64,
    pub(super) losses: Losses,
    number: u64,
    file: File,
    length: u64,
    index: Index,
    encoded: Vec<u8>,
    /// Threads that sync files which were closed, and write their indexes.
    sealing: Vec<JoinHandle<()>>,
}

/// A file that is not written to any more.
#[derive(Debug, Serialize, Deserialize)]
struct Sealed {
    number: u64,
    length: u64,
    index: Index,
}

/// Parts of a file that may hold what is wanted, in order, a block each.
pub(super) struct Parts {
    pub(super) number: u64,
    pub(super) ranges: Vec<Range<u64>>,
}

impl Files {
    /// Takes the files as they are on disk. A record that was being written when the process died is cut off.
    pub(super) fn open(dir: &Path, options: Options) -> Result<Self, Error> {
        fs::create_dir_all(dir).map_err(failed("create", dir))?;
        let numbers = numbers(dir)?;
        let number = numbers.last().copied().unwrap_or(0) + 1;
        let mut sealed = VecDeque::new();
        for number in numbers {
            sealed.extend(Sealed::open(dir, number)?.map(Arc::new));
        }
        let sealed_bytes = sealed.iter().map(|file| file.length).sum();
        let (file, losses) = (create(dir, number)?, Losses::read(dir));
        let (index, encoded) = (Index::default(), Vec::new());
        let sealing = Vec::new();
        Ok(Self { dir: dir.to_owned(), options, sealed, sealed_bytes, losses, number, file, length: 0, index, encoded, sealing })
    }

    /// Returns the place after the newest record.
    pub(super) fn end(&self) -> Cursor {
        Cursor { file: self.number, offset: self.length }
    }

    /// Returns the length of all files, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.sealed_bytes + self.length
    }

    /// Writes entries at the end, by one write.
    pub(super) fn append(&mut self, entries: &[Entry]) -> Result<(), Error> {
        self.encoded.clear();
        let mut offsets = Vec::with_capacity(entries.len());
        for entry in entries {
            offsets.push(self.length + self.encoded.len() as u64);
            encode(entry, &mut self.encoded);
        }
        if let Err(error) = self.file.write_all(&self.encoded) {
            // A part may have been written: cut it off, so that what is appended next is found.
            let _ = self.file.set_len(self.length);
            return Err(failed("append to", &path_of(&self.dir, self.number))(error));
        }
        self.length += self.encoded.len() as u64;
        for (entry, offset) in entries.iter().zip(offsets) {
            self.index.add(offset, entry.timestamp_ns, entry.app.bits(), entry.task.bits(), entry.function.bits());
        }
        Ok(())
    }

    /// Closes the newest file when it is large, and drops the oldest while they are too much.
    pub(super) fn bound(&mut self) -> Result<(), Error> {
        if self.length >= self.options.file_bytes {
            self.rotate()?;
            self.drop_oldest(0)?;
        }
        Ok(())
    }

    /// Closes the newest file when its lines are old, and drops the oldest that are too old or too much.
    ///
    /// The time is this node's: lines may carry that of another clock.
    pub(super) fn tidy(&mut self, now_ns: u64) -> Result<(), Error> {
        let span_ns = FILE_SPAN_NS.min(self.options.retain_ns());
        if self.index.times().is_some_and(|(first_ns, _)| now_ns.saturating_sub(first_ns) > span_ns) {
            self.rotate()?;
        }
        self.drop_oldest(now_ns.saturating_sub(self.options.retain_ns()))
    }

    fn rotate(&mut self) -> Result<(), Error> {
        let next = create(&self.dir, self.number + 1)?;
        let sealed = Sealed { number: self.number, length: self.length, index: std::mem::take(&mut self.index) };
        let file = std::mem::replace(&mut self.file, next);
        self.sealed_bytes += sealed.length;
        let sealed = Arc::new(sealed);
        self.sealed.push_back(sealed.clone());
        (self.length, self.number) = (0, self.number + 1);
        self.seal(file, sealed);
        Ok(())
    }

    /// Syncs a file that was closed and writes its index, on a thread: the disk may take its time, and nobody waits for it. Without
    /// an index the next start reads the file.
    fn seal(&mut self, file: File, sealed: Arc<Sealed>) {
        self.sealing.retain(|sealing| !sealing.is_finished());
        if self.sealing.len() >= SEALING_MAX {
            return;
        }
        let dir = self.dir.clone();
        let seal = move || {
            if file.sync_data().is_ok() {
                sealed.write_index(&dir);
            }
            // It may have been dropped meanwhile: its index goes after it.
            if !path_of(&dir, sealed.number).exists() {
                let _ = fs::remove_file(index_path_of(&dir, sealed.number));
            }
        };
        self.sealing.extend(thread::Builder::new().name("log-seal".to_owned()).spawn(seal));
    }

    fn drop_oldest(&mut self, from_ns: u64) -> Result<(), Error> {
        let mut dropped = false;
        while let Some(oldest) = self.sealed.front() {
            let too_old = oldest.index.times().is_none_or(|(_, last_ns)| last_ns < from_ns);
            if self.sealed_bytes + self.options.file_bytes <= self.options.retain_bytes && !too_old {
                break;
            }
            let Some(oldest) = self.sealed.pop_front() else { break };
            self.sealed_bytes -= oldest.length;
            let last_ns = oldest.index.times().map_or(from_ns, |(_, last_ns)| last_ns);
            oldest.index.lines_by_app().for_each(|(app, lines)| self.losses.add(app, lines, last_ns));
            let path = path_of(&self.dir, oldest.number);
            fs::remove_file(&path).map_err(failed("remove", &path))?;
            let _ = fs::remove_file(index_path_of(&self.dir, oldest.number));
            dropped = true;
        }
        if dropped {
            self.losses.write(&self.dir);
        }
        Ok(())
    }

    /// Returns what may hold lines that are wanted, the newest file first.
    pub(super) fn newest(&self, filter: &Filter) -> Vec<Parts> {
        let sealed = self.sealed.iter().rev().map(|file| file.parts(filter));
        [self.current(filter)].into_iter().chain(sealed).filter(|parts| !parts.ranges.is_empty()).collect()
    }

    /// Returns what may hold lines that are wanted from a place on, in order.
    pub(super) fn after(&self, filter: &Filter, cursor: Cursor) -> Vec<Parts> {
        let sealed = self.sealed.iter().filter(|file| file.number >= cursor.file).map(|file| file.parts(filter));
        let mut parts: Vec<Parts> = sealed.chain([self.current(filter)]).collect();
        for file in parts.iter_mut().filter(|file| file.number == cursor.file) {
            file.ranges.retain(|range| range.end > cursor.offset);
            file.ranges.iter_mut().for_each(|range| range.start = range.start.max(cursor.offset));
        }
        parts.retain(|file| !file.ranges.is_empty());
        parts
    }

    /// Says whether a place is one that was dropped, or before all.
    pub(super) fn is_before_oldest(&self, cursor: Cursor) -> bool {
        cursor.file < self.sealed.front().map_or(self.number, |oldest| oldest.number)
    }

    fn current(&self, filter: &Filter) -> Parts {
        Parts { number: self.number, ranges: self.index.parts(filter, self.length) }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for sealing in self.sealing.drain(..) {
            let _ = sealing.join();
        }
    }
}

impl Sealed {
    /// Takes a file as it is on disk: its index if that fits, else by reading it. An empty file is removed.
    ///
    /// An index is written once its file is synced, and has a checksum: one that is whole says what a power cut left of the file,
    /// which is all. Those that earlier versions wrote have none, and are not believed.
    fn open(dir: &Path, number: u64) -> Result<Option<Self>, Error> {
        let path = path_of(dir, number);
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(failed("open", &path))?;
        let on_disk = file.metadata().map_err(failed("look at", &path))?.len();
        let index = fs::read(index_path_of(dir, number)).ok().and_then(|bytes| Self::read_index(&bytes));
        if let Some(sealed) = index.filter(|sealed| sealed.number == number && sealed.length == on_disk) {
            return Ok(Some(sealed));
        }
        let (mut index, mut offset) = (Index::default(), 0);
        let visit = |record: super::file::Record<'_>| {
            index.add(offset, record.timestamp_ns(), record.tag(0), record.tag(1), record.tag(2));
            offset += record.bytes();
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
        let sealed = Self { number, length, index };
        // What was read may be in memory alone.
        if file.sync_data().is_ok() {
            sealed.write_index(dir);
        }
        Ok(Some(sealed))
    }

    /// Without the index the next start reads the file, so a failure is no loss.
    fn write_index(&self, dir: &Path) {
        if let Ok(index) = postcard::to_allocvec(self) {
            let bytes = [&crc32fast::hash(&index).to_le_bytes()[..], &index].concat();
            let _ = fs::write(index_path_of(dir, self.number), bytes);
        }
    }

    /// Reads what [`Self::write_index`] wrote; none if it is not whole.
    fn read_index(bytes: &[u8]) -> Option<Self> {
        let (crc, index) = bytes.split_first_chunk::<4>()?;
        let whole = crc32fast::hash(index) == u32::from_le_bytes(*crc);
        whole.then(|| postcard::from_bytes(index).ok()).flatten()
    }

    fn parts(&self, filter: &Filter) -> Parts {
        Parts { number: self.number, ranges: self.index.parts(filter, self.length) }
    }
}

pub(super) fn path_of(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}.log"))
}

fn index_path_of(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}.index"))
}

fn create(dir: &Path, number: u64) -> Result<File, Error> {
    let path = path_of(dir, number);
    OpenOptions::new().create(true).append(true).open(&path).map_err(failed("create", &path))
}

/// Lists the numbers of the files of a folder, in order. What earlier versions kept beside them is removed.
fn numbers(dir: &Path) -> Result<Vec<u64>, Error> {
    let mut numbers = Vec::new();
    for item in fs::read_dir(dir).map_err(failed("list", dir))? {
        let item = item.map_err(failed("list", dir))?;
        let name = item.file_name();
        let name = name.to_str().unwrap_or_default();
        if name.ends_with(".sum") {
            let _ = fs::remove_file(item.path());
        }
        numbers.extend(name.strip_suffix(".log").and_then(|hex| u64::from_str_radix(hex, 16).ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use shoal_state::written::hold;

    use super::*;

    #[test]
    fn what_version_6_wrote_of_a_closed_file_is_read() {
        hold::<Sealed>("the index of a closed file", include_str!("../../tests/written/6/index.txt"), 4);
    }
}
