//! Opening a log: which segments there are, and where the last one really ends.
//!
//! Only the last segment can have a torn tail: the one before was synced to its end before the next was made. A
//! record that does not check out in the last segment is the torn tail, unless a later record says that the log was
//! already synced beyond it: then synced bytes were damaged, which a log must not hide.
//!
//! A truncation that a crash cut short is finished here.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::record::{ALIGN, HEADER_BYTES, Header, SEGMENT_HEADER_BYTES};
use super::segment::{Access, Segment, base_in_name};
use super::{Error, Position, RECORD_BYTES_MAX, Result};
use crate::file::{self, Failed, failed};

/// The segments of a log by base position, oldest first.
pub(super) type Segments = BTreeMap<u64, Arc<Segment>>;

/// What was found in a folder.
pub(super) struct Found {
    pub(super) segments: Segments,
    /// No position from here on was ever given to a record.
    pub(super) next_base: u64,
}

/// Opens all segments and cuts the torn tail of the last; where the log is only looked at, passes over it.
pub(super) fn recover(dir: &Path, access: Access) -> Result<Found> {
    let mut bases = list(dir)?;
    bases.sort_unstable();
    let mut found = Found { segments: Segments::new(), next_base: 0 };
    for (number, base) in bases.iter().enumerate() {
        let last = number + 1 == bases.len();
        let path = dir.join(super::segment::file_name(*base));
        match Segment::open(path.clone(), access)? {
            Some(segment) => {
                if last {
                    cut_torn_tail(&segment, access)?;
                }
                found.next_base = base + segment.header.capacity;
                found.segments.insert(*base, Arc::new(segment));
            }
            // A crash came before the header was synced, so nothing was ever promised of this file.
            None if last && is_blank(&path)? => found.next_base = *base,
            None => {
                let position = Position(*base);
                return Err(Error::Damaged { segment: path, offset: 0, position, what: "it has no header" });
            }
        }
    }
    let voided: Vec<_> = found.segments.values().map(|segment| (segment.header.void_from, segment.header.base)).collect();
    for (from, until) in voided {
        match access {
            Access::Use => void(dir, &mut found.segments, from, until)?,
            Access::Look => pass_over(&mut found.segments, from, until),
        }
    }
    Ok(found)
}

/// Forgets the records that [`void`] removes.
fn pass_over(segments: &mut Segments, from: u64, until: u64) {
    segments.retain(|base, _| !(from..until).contains(base));
    let part = segments.range(..from.min(until)).next_back().map(|(_, segment)| segment);
    if let Some(segment) = part.filter(|segment| from < until && segment.end_position() > from) {
        segment.end_at(from - segment.header.base);
    }
}

/// Removes the records from one position up to another where a segment begins whose header says so.
///
/// A power cut on the way may leave any mixture of them: the header stays, and this is done again on open.
pub(super) fn void(dir: &Path, segments: &mut Segments, from: u64, until: u64) -> std::result::Result<(), Failed> {
    let whole: Vec<u64> = segments.range(from..until.max(from)).map(|(base, _)| *base).collect();
    for base in whole {
        if let Some(segment) = segments.remove(&base) {
            file::remove(&segment.path)?;
            file::sync_dir(dir)?;
        }
    }
    let part = segments.range(..from.min(until)).next_back().map(|(_, segment)| segment);
    match part {
        Some(segment) if from < until && segment.end_position() > from => segment.cut(from - segment.header.base),
        _ => Ok(()),
    }
}

fn list(dir: &Path) -> Result<Vec<u64>> {
    let mut bases = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed("list", dir))? {
        let entry = entry.map_err(failed("list", dir))?;
        bases.extend(entry.file_name().to_str().and_then(base_in_name));
    }
    Ok(bases)
}

fn is_blank(path: &Path) -> Result<bool> {
    let bytes = fs::read(path).map_err(failed("read", path))?;
    let after_header = bytes.get(SEGMENT_HEADER_BYTES as usize..).unwrap_or_default();
    Ok(after_header.iter().all(|byte| *byte == 0))
}

fn cut_torn_tail(segment: &Segment, access: Access) -> Result<()> {
    let bytes = fs::read(&segment.path).map_err(failed("read", &segment.path))?;
    let tail = tail(&bytes, segment.header.base, segment.header.salt);
    if let Some(synced) = tail.synced_beyond {
        tracing::error!(segment = %segment.path.display(), offset = tail.end, synced, "synced records are damaged");
        return Err(segment.damaged(tail.end, "it was synced, and does not check out now"));
    }
    match access {
        Access::Use => Ok(segment.cut(tail.end)?),
        Access::Look => {
            segment.end_at(tail.end);
            Ok(())
        }
    }
}

/// Where the good records of a segment end.
#[derive(Debug, PartialEq, Eq)]
struct Tail {
    /// Offset of the first record that does not check out, or of the end.
    end: u64,
    /// A position after `end` up to which the log was synced, if a later record says so.
    synced_beyond: Option<u64>,
}

fn tail(bytes: &[u8], base: u64, salt: u64) -> Tail {
    let mut end = SEGMENT_HEADER_BYTES;
    while let Some(header) = record_at(bytes, end, base, salt) {
        end += header.stride();
    }
    let synced_beyond = (end..without_zero_blocks(bytes).len() as u64)
        .step_by(ALIGN)
        .filter_map(|offset| record_at(bytes, offset, base, salt))
        .map(|header| header.synced)
        .find(|synced| *synced > base + end);
    Tail { end, synced_beyond }
}

/// Leaves out the blocks at the end that were set aside and never written.
fn without_zero_blocks(bytes: &[u8]) -> &[u8] {
    const BLOCK: [u8; 4096] = [0; 4096];
    let written = bytes.chunks(BLOCK.len()).rposition(|block| block != &BLOCK[..block.len()]);
    &bytes[..written.map_or(0, |last| (last + 1) * BLOCK.len()).min(bytes.len())]
}

/// Returns the header of the record at `offset`, if there is a good one.
fn record_at(bytes: &[u8], offset: u64, base: u64, salt: u64) -> Option<Header> {
    let bytes = bytes.get(offset as usize..)?;
    let header = Header::parse(bytes.first_chunk::<HEADER_BYTES>()?);
    if header.position != base + offset || header.length as usize > RECORD_BYTES_MAX {
        return None;
    }
    let payload = bytes.get(HEADER_BYTES..HEADER_BYTES + header.length as usize)?;
    // The padding belongs to the record too: the next one begins after it.
    let whole = bytes.len() as u64 >= header.stride();
    (whole && header.matches(salt, payload)).then_some(header)
}

/// Removes empty segments, which hold nothing but their base.
pub(super) fn remove_empty(dir: &Path, segments: &mut Segments) -> Result<()> {
    let empty: Vec<_> = segments.values().filter(|segment| segment.is_empty()).cloned().collect();
    for segment in &empty {
        segments.remove(&segment.header.base);
        file::remove(&segment.path)?;
    }
    if !empty.is_empty() {
        file::sync_dir(dir)?;
    }
    Ok(())
}
