//! The audit log, for `shoal audit`: one JSON object a line, as they come.
//!
//! While a follower waits, empty lines tell it that the node is alive.

use std::collections::VecDeque;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State as Shared;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures::stream;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio_util::sync::CancellationToken;

use super::{Failure, Refusal};
use crate::api::{self, Api, blocking};
use crate::audit::{Filter, Record};

/// How often a follower without lines hears of the node.
const ALIVE_EVERY: Duration = Duration::from_secs(5);
/// Records in one piece of an answer.
const PIECE: usize = 500;

/// What `shoal audit` asks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AuditWanted {
    /// Which records.
    pub(crate) filter: Filter,
    /// Only the newest so many.
    pub(crate) tail: Option<usize>,
    /// Go on with what is refused from now on.
    pub(crate) follow: bool,
}

/// One object of the answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum AuditAnswer {
    /// A record.
    Record(Record),
    /// Why there is no more.
    BrokeOff(Refusal),
}

/// Answers with records until there are no more; a follower, until it or the node goes.
pub(super) async fn audit(
    Shared(api): Shared<Api>,
    Extension(stop): Extension<CancellationToken>,
    Json(wanted): Json<AuditWanted>,
) -> Result<Response, Failure> {
    // Asked for before the read: what is written meanwhile is then in one of them, or in both.
    let later = wanted.follow.then(|| api.audit.follow());
    let (audit, filter, tail) = (api.audit.clone(), wanted.filter.clone(), wanted.tail);
    let found = blocking(move || audit.read(&filter, tail)).await.map_err(api::Error::failed("cannot read the audit log"))?;
    let last = found.last().map_or(0, |record| record.id);
    let reader = Reader { filter: wanted.filter, found: found.into(), last, later, stop };
    let lines = stream::unfold(reader, |mut reader| async move { Some((Ok::<_, std::convert::Infallible>(reader.next().await?), reader)) });
    Ok(([(header::CONTENT_TYPE, "application/jsonl")], Body::from_stream(lines)).into_response())
}

struct Reader {
    filter: Filter,
    found: VecDeque<Record>,
    /// The id of the last record that was read from the files.
    last: u64,
    later: Option<Receiver<Record>>,
    stop: CancellationToken,
}

impl Reader {
    async fn next(&mut self) -> Option<Bytes> {
        if !self.found.is_empty() {
            let piece = self.found.drain(..self.found.len().min(PIECE));
            return Some(piece.flat_map(|record| line_of(&AuditAnswer::Record(record))).collect::<Vec<u8>>().into());
        }
        let later = self.later.as_mut()?;
        let said = tokio::select! {
            said = tokio::time::timeout(ALIVE_EVERY, later.recv()) => said,
            () = self.stop.cancelled() => return self.break_off("the node stops"),
        };
        match said {
            Ok(Ok(record)) if record.id > self.last && self.filter.matches(&record) => Some(line_of(&AuditAnswer::Record(record)).into()),
            Ok(Ok(_)) | Err(_) => Some(Bytes::from_static(b"\n")),
            Ok(Err(RecvError::Lagged(_))) => self.break_off("more was refused than could be followed; ask again with --since"),
            Ok(Err(RecvError::Closed)) => None,
        }
    }

    fn break_off(&mut self, why: &str) -> Option<Bytes> {
        self.later = None;
        Some(line_of(&AuditAnswer::BrokeOff(Refusal { error: why.to_owned() })).into())
    }
}

fn line_of(answer: &AuditAnswer) -> Vec<u8> {
    let mut line = serde_json::to_vec(answer).unwrap_or_default();
    line.push(b'\n');
    line
}
