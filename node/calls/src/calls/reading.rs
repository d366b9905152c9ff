//! Payloads and results, read from the log for those who asked: the owner of the calls only says where they stand.

use bytes::Bytes;
use shoal_storage::log::{self, Log, Position};

use super::error::Error;
use super::handle::Calls;
use super::model::{LeasedInput, Output, Outputs};
use super::record::Record;
use super::rules::{LeasedAt, OutputsAt};
use crate::objects::record::ObjectRecord;
use crate::objects::{Found, ObjectAnswer, Piece, Place};
use crate::shards::record::HEADER_BYTES;

/// One answer has outputs of so many bytes, or one: the reader asks for the next. Below what a message to a client may have, and
/// little beside what a node's memory is for.
const OUTPUTS_BYTES_MAX: usize = 32 << 20;

/// Up to so many records are read from the log on the spot; more are read on a thread for blocking work.
const READ_INLINE_MAX: usize = 16;

impl Calls {
    pub(super) async fn read_outputs(&self, found: OutputsAt, places: Vec<Position>) -> Result<Outputs, Error> {
        let bodies = self.read(places, OUTPUTS_BYTES_MAX, |number| format!("the output of input {}", found.items[number].input)).await?;
        let last = bodies.len().checked_sub(1).and_then(|last| found.items.get(last));
        let last = if bodies.len() < found.items.len() { last.map_or(found.last, |last| last.entry) } else { found.last };
        let outputs = found.items.iter().zip(bodies).map(|(item, (record, result))| {
            let (started_ms, at_ms, task) = match record {
                Record::Outcome { started_ms, at_ms, task, .. } => (started_ms, at_ms, task),
                _ => (0, 0, None),
            };
            let (idx, input, entry) = (item.idx, item.input, item.entry);
            let (retry_count, client_count, status) = (item.retry_count, item.client_count, item.status);
            Output { idx, input, entry, retry_count, client_count, status, result, started_ms, at_ms, task }
        });
        Ok(Outputs { items: outputs.collect(), last, unfinished: found.unfinished })
    }

    pub(super) async fn read_inputs(&self, leased: Vec<LeasedAt>, places: Vec<Position>) -> Result<Vec<LeasedInput>, Error> {
        let bodies = self.read(places, usize::MAX, |number| format!("input {}", leased[number].input)).await?;
        let inputs = leased.iter().zip(bodies).map(|(item, (_, payload))| LeasedInput {
            call: item.call,
            input: item.input,
            idx: item.idx,
            retry_count: item.retry_count,
            invocation: item.invocation,
            function: item.function,
            payload,
        });
        Ok(inputs.collect())
    }

    pub(super) async fn read_objects(&self, answer: ObjectAnswer<Place>, places: Vec<Position>) -> Result<ObjectAnswer, Error> {
        let found = match answer {
            ObjectAnswer::Found(found) => found,
            ObjectAnswer::Done => return Ok(ObjectAnswer::Done),
            ObjectAnswer::Bool(yes) => return Ok(ObjectAnswer::Bool(yes)),
            ObjectAnswer::Count { items, partitions } => return Ok(ObjectAnswer::Count { items, partitions }),
            ObjectAnswer::Objects(objects) => return Ok(ObjectAnswer::Objects(objects)),
            ObjectAnswer::Blobs(blobs) => return Ok(ObjectAnswer::Blobs(blobs)),
        };
        let log = self.log.clone();
        let inline = found.len() <= READ_INLINE_MAX;
        let read = move || pieces(&log, found, &places);
        if inline {
            return read();
        }
        let read = tokio::task::spawn_blocking(read).await;
        read.map_err(|_| Error::Ended { why: "the thread that read for a caller is gone".to_owned() })?
    }

    /// Reads records from the log. A few are read on the spot: what was written lately is in memory, and a thread costs more.
    ///
    /// Stops before the first that would make them more than `bytes_max`, but not before the first of all.
    async fn read(&self, places: Vec<Position>, bytes_max: usize, what: impl Fn(usize) -> String) -> Result<Vec<(Record, Bytes)>, Error> {
        let log = self.log.clone();
        let inline = places.len() <= READ_INLINE_MAX;
        let read = move || {
            let (mut bytes, mut first) = (0, true);
            let fits = |record: &log::Result<Bytes>| {
                bytes += record.as_ref().map_or(0, Bytes::len);
                std::mem::take(&mut first) || bytes <= bytes_max
            };
            places.into_iter().map(|place| log.read(place)).take_while(fits).collect::<Vec<_>>()
        };
        let records = if inline {
            read()
        } else {
            let read = tokio::task::spawn_blocking(read).await;
            read.map_err(|_| Error::Ended { why: "the thread that read for a caller is gone".to_owned() })?
        };
        records.into_iter().enumerate().map(|(number, record)| parts(record, || what(number))).collect()
    }
}

/// Takes a record of the log apart: its head, and what follows.
fn parts(record: log::Result<Bytes>, what: impl Fn() -> String) -> Result<(Record, Bytes), Error> {
    let record = record.map_err(|source| Error::Payload { what: what(), source })?;
    let body = record.slice(HEADER_BYTES.min(record.len())..);
    let (head, at) = Record::decode(&body).map_err(|source| Error::Record { what: what(), source })?;
    Ok((head, body.slice(at..)))
}

/// Reads what was found: each record once, though it may have much of it.
fn pieces(log: &Log, found: Vec<Found<Place>>, places: &[Position]) -> Result<ObjectAnswer, Error> {
    let mut last: Option<(u64, Bytes)> = None;
    let mut read = Vec::with_capacity(found.len());
    for (Found { at, entry, key_bytes, piece: place }, position) in found.into_iter().zip(places) {
        let piece = match place.blob {
            Some(blob) => Piece::Blob { blob, offset: place.offset, bytes: place.bytes },
            None => {
                let content = match last.take().filter(|(record, _)| *record == place.record) {
                    Some((_, content)) => content,
                    None => content(log, *position, place.record)?,
                };
                let from = usize::try_from(place.offset).unwrap_or(usize::MAX).min(content.len());
                let to = from.saturating_add(usize::try_from(place.bytes).unwrap_or(usize::MAX)).min(content.len());
                let piece = content.slice(from..to);
                last = Some((place.record, content));
                Piece::Inline(piece)
            }
        };
        read.push(Found { at, entry, key_bytes, piece });
    }
    Ok(ObjectAnswer::Found(read))
}

/// Reads what follows the head of a record of objects.
fn content(log: &Log, position: Position, index: u64) -> Result<Bytes, Error> {
    let what = || format!("record {index} of a dict or a queue");
    let record = log.read(position).map_err(|source| Error::Payload { what: what(), source })?;
    let body = record.slice(HEADER_BYTES.min(record.len())..);
    let (_, at) = ObjectRecord::decode(&body).map_err(|source| Error::Record { what: what(), source })?;
    Ok(body.slice(at..))
}
