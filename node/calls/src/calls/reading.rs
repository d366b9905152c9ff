//! Payloads and results, read from the log for those who asked: the owner of the calls only says where they stand.

use bytes::Bytes;
use shoal_storage::log::{self, Position};

use super::error::Error;
use super::handle::Calls;
use super::model::{LeasedInput, Output, Outputs};
use super::record::Record;
use super::rules::{LeasedAt, OutputsAt};
use crate::shards::record::HEADER_BYTES;

/// Up to so many records are read from the log on the spot; more are read on a thread for blocking work.
const READ_INLINE_MAX: usize = 16;

impl Calls {
    pub(super) async fn read_outputs(&self, found: OutputsAt, places: Vec<Position>) -> Result<Outputs, Error> {
        let bodies = self.read(places, |number| format!("the output of input {}", found.items[number].input)).await?;
        let outputs = found.items.iter().zip(bodies).map(|(item, (record, result))| {
            let (started_ms, at_ms, task) = match record {
                Record::Outcome { started_ms, at_ms, task, .. } => (started_ms, at_ms, task),
                _ => (0, 0, None),
            };
            let (idx, input, entry) = (item.idx, item.input, item.entry);
            let (retry_count, client_count, status) = (item.retry_count, item.client_count, item.status);
            Output { idx, input, entry, retry_count, client_count, status, result, started_ms, at_ms, task }
        });
        Ok(Outputs { items: outputs.collect(), last: found.last, unfinished: found.unfinished })
    }

    pub(super) async fn read_inputs(&self, leased: Vec<LeasedAt>, places: Vec<Position>) -> Result<Vec<LeasedInput>, Error> {
        let bodies = self.read(places, |number| format!("input {}", leased[number].input)).await?;
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

    /// Reads records from the log. A few are read on the spot: what was written lately is in memory, and a thread costs more.
    async fn read(&self, places: Vec<Position>, what: impl Fn(usize) -> String) -> Result<Vec<(Record, Bytes)>, Error> {
        let log = self.log.clone();
        let inline = places.len() <= READ_INLINE_MAX;
        let read = move || places.into_iter().map(|place| log.read(place)).collect::<Vec<_>>();
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
