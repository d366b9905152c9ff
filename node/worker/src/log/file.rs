//! How entries lie in a file.
//!
//! A record is: length u32 (of all that follows it) · crc32 u32 (of all that follows it) · time u64 · stream u8 · app,
//! task, function, input, call u128 (0 = none) · text. Little-endian. Tags are at fixed places, so a scan looks at the
//! text of those lines only that it wants.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

use shoal_state::{AppId, CallId, FunctionId, InputId, TaskId};

use super::cutter::LINE_BYTES_MAX;
use super::entry::{Entry, Filter, Stream};

const PREFIX: usize = 8;
const TAGS: usize = PREFIX + 9;
const HEAD: usize = TAGS + 5 * 16;
/// U+FFFD is longer than the byte it stands for.
const RECORD_BYTES_MAX: usize = HEAD + 3 * LINE_BYTES_MAX;
/// How much a scan reads at a time, in bytes.
const READ_BYTES: usize = 1 << 20;

/// Appends an entry's record to `out`. A text over the limit is cut.
pub(crate) fn encode(entry: &Entry, out: &mut Vec<u8>) {
    let start = out.len();
    let text = &entry.data.as_bytes()[..floor_char(&entry.data, RECORD_BYTES_MAX - HEAD)];
    out.extend_from_slice(&[0; PREFIX]);
    out.extend_from_slice(&entry.timestamp_ns.to_le_bytes());
    out.push(entry.stream.fd());
    let input = entry.input.map_or(0, InputId::bits);
    let call = entry.call.map_or(0, CallId::bits);
    for tag in [entry.app.bits(), entry.task.bits(), entry.function.bits(), input, call] {
        out.extend_from_slice(&tag.to_le_bytes());
    }
    out.extend_from_slice(text);
    let crc = crc32fast::hash(&out[start + PREFIX..]);
    out[start + 4..start + PREFIX].copy_from_slice(&crc.to_le_bytes());
    let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

fn floor_char(text: &str, max: usize) -> usize {
    if text.len() <= max {
        return text.len();
    }
    (0..=max).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// A record that lies in a buffer.
#[derive(Clone, Copy)]
pub(crate) struct Record<'a>(&'a [u8]);

impl<'a> Record<'a> {
    /// Takes the first record of `bytes`: `None` when it is not whole or not intact.
    fn first(bytes: &'a [u8]) -> Option<Self> {
        let length = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let whole = 4 + length;
        if !(HEAD..=RECORD_BYTES_MAX).contains(&whole) {
            return None;
        }
        let record = bytes.get(..whole)?;
        let crc = u32::from_le_bytes(record[4..PREFIX].try_into().ok()?);
        (crc32fast::hash(&record[PREFIX..]) == crc).then_some(Self(record))
    }

    /// Returns the length of the whole record.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.len() as u64
    }

    pub(crate) fn timestamp_ns(&self) -> u64 {
        u64::from_le_bytes(self.0[PREFIX..PREFIX + 8].try_into().unwrap_or_default())
    }

    pub(crate) fn tag(&self, number: usize) -> u128 {
        let at = TAGS + 16 * number;
        u128::from_le_bytes(self.0[at..at + 16].try_into().unwrap_or_default())
    }

    pub(crate) fn stream(&self) -> Stream {
        Stream::of_fd(self.0[TAGS - 1]).unwrap_or(Stream::System)
    }

    fn text(&self) -> &'a [u8] {
        &self.0[HEAD..]
    }

    pub(crate) fn matches(&self, filter: &Filter) -> bool {
        let tag = |number: usize, wanted: Option<u128>| wanted.is_none_or(|wanted| self.tag(number) == wanted);
        let holds = |text: &str| self.text().windows(text.len()).any(|window| window == text.as_bytes());
        filter.times().contains(&self.timestamp_ns())
            && tag(0, filter.app.map(AppId::bits))
            && tag(1, filter.task.map(TaskId::bits))
            && (filter.functions.is_empty() || filter.functions.iter().any(|function| function.bits() == self.tag(2)))
            && tag(3, filter.input.map(InputId::bits))
            && tag(4, filter.call.map(CallId::bits))
            && filter.stream.is_none_or(|stream| stream.fd() == self.0[TAGS - 1])
            && filter.search.as_ref().is_none_or(|text| text.is_empty() || holds(text))
    }

    pub(crate) fn entry(&self) -> Entry {
        let some = |bits: u128| (bits != 0).then_some(bits);
        Entry {
            timestamp_ns: self.timestamp_ns(),
            stream: Stream::of_fd(self.0[TAGS - 1]).unwrap_or(Stream::System),
            app: AppId::from_random(self.tag(0)),
            task: TaskId::from_random(self.tag(1)),
            function: FunctionId::from_random(self.tag(2)),
            input: some(self.tag(3)).map(InputId::from_random),
            call: some(self.tag(4)).map(CallId::from_random),
            data: String::from_utf8_lossy(self.text()).into_owned(),
        }
    }
}

/// Reads the records of a file between two offsets, in order, until `visit` breaks. Returns the offset after the last
/// record that was visited; it is less than `to` after a break, and where a record is torn or damaged.
pub(crate) fn scan(file: &File, from: u64, to: u64, mut visit: impl FnMut(Record<'_>) -> ControlFlow<()>) -> io::Result<u64> {
    let mut at = from;
    let mut buffer = vec![0; READ_BYTES.min(usize::try_from(to.saturating_sub(from)).unwrap_or(READ_BYTES))];
    while at < to {
        let want = buffer.len().min(usize::try_from(to - at).unwrap_or(buffer.len()));
        let got = read_up_to(file, &mut buffer[..want], at)?;
        let mut used = 0;
        while let Some(record) = Record::first(&buffer[used..got]) {
            used += record.0.len();
            if visit(record).is_break() {
                return Ok(at + used as u64);
            }
        }
        if used == 0 {
            break;
        }
        at += used as u64;
    }
    Ok(at)
}

fn read_up_to(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read_at(&mut buffer[got..], at + got as u64) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

#[cfg(test)]
mod tests {
    use shoal_state::written::bytes;

    use super::*;

    /// Two lines, as they follow each other in a file.
    const WRITTEN: &str = include_str!("../../tests/written/6/lines.txt");

    #[test]
    fn lines_that_version_6_wrote_are_read_and_written_alike() {
        for line in WRITTEN.lines() {
            let on_disk = bytes(line);
            let record = Record::first(&on_disk).unwrap_or_else(|| panic!("no record: {line}"));
            let mut again = Vec::new();
            encode(&record.entry(), &mut again);
            assert!(
                record.bytes() == on_disk.len() as u64 && again == on_disk,
                "written in another way now: {line}, read as {:?}",
                record.entry()
            );
        }
        let texts: Vec<_> = WRITTEN.lines().map(|line| Record::first(&bytes(line)).map(|record| record.entry().data)).collect();
        assert_eq!(texts, [Some("grüße\n".to_owned()), Some("the container has ended\n".to_owned())]);
    }
}
