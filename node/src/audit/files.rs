//! The files of the audit log: numbered, appended to, removed from the oldest on.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::{Keep, Record};

/// The log is cut into so many files, so that old lines can be removed without rewriting others.
const FILES: u64 = 8;
const SUFFIX: &str = "jsonl";
const MS_PER_DAY: u64 = 24 * 3600 * 1000;
/// The longest line that is read, in bytes; longer ones are damage.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// The files. Written by one thread, read by any.
#[derive(Debug)]
pub(super) struct Files {
    dir: PathBuf,
    keep: Keep,
    last: Mutex<Last>,
}

/// The file that is appended to.
#[derive(Debug)]
struct Last {
    number: u64,
    file: File,
    bytes: u64,
}

impl Files {
    /// Opens the folder; returns the id of the next record too.
    pub(super) fn open(dir: &Path, keep: Keep) -> io::Result<(Self, u64)> {
        fs::create_dir_all(dir)?;
        let numbers = numbers(dir)?;
        let last = open_last(dir, numbers.last().copied().unwrap_or(1))?;
        let files = Self { dir: dir.to_owned(), keep, last: Mutex::new(last) };
        let mut next = 1;
        // The newest file may be empty.
        for number in numbers.iter().rev() {
            files.read_file(*number, &mut |record| next = record.id + 1)?;
            if next > 1 {
                break;
            }
        }
        Ok((files, next))
    }

    /// Appends a record, in a new file when the present one is full.
    pub(super) fn append(&self, record: &Record, now_ms: u64) -> io::Result<()> {
        let mut line = serde_json::to_vec(record).map_err(io::Error::other)?;
        line.push(b'\n');
        let mut last = self.last.lock();
        if last.bytes > 0 && last.bytes + line.len() as u64 > self.keep.bytes / FILES {
            last.file.sync_data()?;
            *last = open_last(&self.dir, last.number + 1)?;
            self.remove_old(last.number, now_ms);
        }
        if let Err(error) = last.file.write_all(&line) {
            // Half a line would spoil the next one too.
            let _ = last.file.set_len(last.bytes);
            return Err(error);
        }
        last.bytes += line.len() as u64;
        Ok(())
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.last.lock().file.sync_data()
    }

    /// Removes whole files that are too many or too old; never the one that is written.
    fn remove_old(&self, last: u64, now_ms: u64) {
        let Ok(numbers) = numbers(&self.dir) else { return };
        for number in numbers.into_iter().filter(|number| *number < last) {
            let mut newest_ms = 0;
            let _ = self.read_file(number, &mut |record| newest_ms = record.at_ms);
            let old = newest_ms.saturating_add(self.keep.days.saturating_mul(MS_PER_DAY)) < now_ms;
            if (old || number + FILES <= last)
                && let Err(error) = fs::remove_file(path(&self.dir, number))
            {
                tracing::warn!(%error, number, "cannot remove an old file of the audit log");
            }
        }
    }

    /// Shows all records, the oldest first.
    pub(super) fn read(&self, mut visit: impl FnMut(Record)) -> io::Result<()> {
        for number in numbers(&self.dir)? {
            self.read_file(number, &mut visit)?;
        }
        Ok(())
    }

    /// Shows the records of a file; lines that are none are left out: a crash may have cut the last one short.
    fn read_file(&self, number: u64, visit: &mut impl FnMut(Record)) -> io::Result<()> {
        let file = match File::open(path(&self.dir, number)) {
            Ok(file) => file,
            // Removed meanwhile, as too old.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let (mut reader, mut line) = (BufReader::new(file), Vec::new());
        loop {
            line.clear();
            if reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            if let Ok(record) = serde_json::from_slice(&line) {
                visit(record);
            }
        }
    }
}

fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:010}.{SUFFIX}"))
}

/// Opens a file for appending, after the end of its last line.
fn open_last(dir: &Path, number: u64) -> io::Result<Last> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path(dir, number))?;
    let mut bytes = file.seek(SeekFrom::End(0))?;
    let mut end = [b'\n'];
    if bytes > 0 {
        file.seek(SeekFrom::Start(bytes - 1))?;
        file.read_exact(&mut end)?;
    }
    if end != [b'\n'] {
        file.write_all(b"\n")?;
        bytes += 1;
    }
    Ok(Last { number, file, bytes })
}

/// Lists the files by number, the oldest first. What is named otherwise is somebody else's.
fn numbers(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let number: Option<u64> = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)?.strip_suffix('.')?.parse().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}
