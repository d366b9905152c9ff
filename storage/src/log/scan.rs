//! Walking a log in order.

use std::sync::Arc;

use bytes::Bytes;

use super::record::{HEADER_BYTES, Header, SEGMENT_HEADER_BYTES};
use super::segment::Segment;
use super::{Core, Position, Result};

/// How much is read at once.
const BLOCK_BYTES: u64 = 1 << 20;

/// Records shorter than this are copied out of the block they were read with.
const COPIED_BYTES_MAX: usize = 64 << 10;

/// Walks the records of a log in order. After an error it ends.
#[derive(Debug)]
pub struct Scan {
    core: Arc<Core>,
    /// Where the next record stands, or a position before it where none stands.
    at: u64,
    end: u64,
    segment: Option<Arc<Segment>>,
    /// Bytes of the segment from `at` on.
    block: Bytes,
}

impl Scan {
    pub(super) fn new(core: Arc<Core>, from: Position, end: Position) -> Self {
        Self { core, at: from.get(), end: end.get(), segment: None, block: Bytes::new() }
    }

    fn step(&mut self) -> Result<Option<(Position, Bytes)>> {
        let Some(segment) = self.seek() else { return Ok(None) };
        let offset = self.at - segment.header.base;
        self.fill(&segment, offset, HEADER_BYTES as u64)?;
        let header = segment.check_header(&self.block, offset)?;
        let payload = self.payload(&segment, offset, &header)?;
        self.at += header.stride();
        Ok(Some((Position(header.position), payload)))
    }

    /// Moves to the next record's segment; `None` at the end.
    fn seek(&mut self) -> Option<Arc<Segment>> {
        if let Some(segment) = self.segment.as_ref().filter(|segment| self.at < segment.end_position()) {
            return (self.at < self.end).then(|| segment.clone());
        }
        let segments = self.core.segments.read();
        let before = segments.range(..=self.at).next_back().map(|(_, segment)| segment.clone());
        let here = before.filter(|segment| !segment.is_empty() && self.at < segment.end_position());
        let segment = here.or_else(|| {
            let mut after = segments.range(self.at..).map(|(_, segment)| segment);
            after.find(|segment| !segment.is_empty()).cloned()
        })?;
        self.at = self.at.max(segment.header.base + SEGMENT_HEADER_BYTES);
        self.block = Bytes::new();
        self.segment = Some(segment.clone());
        (self.at < self.end).then_some(segment)
    }

    /// Reads on until the block has `bytes` bytes, or the segment ends.
    fn fill(&mut self, segment: &Segment, offset: u64, bytes: u64) -> Result<()> {
        if self.block.len() as u64 >= bytes {
            return Ok(());
        }
        let available = segment.end().saturating_sub(offset);
        let mut block = vec![0; bytes.max(BLOCK_BYTES).min(available) as usize];
        segment.read_at(&mut block, offset)?;
        self.block = block.into();
        Ok(())
    }

    fn payload(&mut self, segment: &Segment, offset: u64, header: &Header) -> Result<Bytes> {
        self.fill(segment, offset, header.stride())?;
        let record = self.block.split_to(header.stride() as usize);
        let payload = record.slice(HEADER_BYTES..HEADER_BYTES + header.length as usize);
        if !header.matches(segment.header.salt, &payload) {
            return Err(segment.damaged(offset, "its checksum does not match"));
        }
        // A small record that is kept must not keep its whole block.
        Ok(if payload.len() < COPIED_BYTES_MAX { Bytes::copy_from_slice(&payload) } else { payload })
    }
}

impl Iterator for Scan {
    type Item = Result<(Position, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step().transpose();
        if !matches!(step, Some(Ok(_))) {
            self.end = 0;
        }
        step
    }
}
