//! The audit log of all nodes, for `shoal audit`: one JSON object a line, as they come.
//!
//! While a follower waits, empty lines tell it that the node is alive.

use axum::body::{Body, Bytes};
use axum::extract::State as Shared;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures::stream;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::lists::find;
use super::{Failure, Refusal};
use crate::api::Api;
use crate::audit::joined::{self, Joined, Next};
use crate::audit::{Record, Wanted};

/// What `shoal audit` asks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AuditWanted {
    /// Which records.
    pub(crate) records: Wanted,
    /// Only what this node keeps, by name or id; none = all nodes.
    pub(crate) node: Option<String>,
}

/// A record and where it is kept.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AuditLine {
    /// The name of the node.
    pub(crate) node: String,
    /// The record.
    #[serde(flatten)]
    pub(crate) record: Record,
}

/// One object of the answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum AuditAnswer {
    /// A record.
    Record(AuditLine),
    /// From here on, what a node has is missing.
    Missing {
        /// The name of the node.
        node: String,
        /// Why.
        missing: String,
    },
    /// Why there is no more.
    BrokeOff(Refusal),
}

/// Answers with records until there are no more; a follower, until it or the node goes.
pub(super) async fn audit(
    Shared(api): Shared<Api>,
    Extension(stop): Extension<CancellationToken>,
    Json(wanted): Json<AuditWanted>,
) -> Result<Response, Failure> {
    let only = wanted.node.map(|node| find(&api.local(), &node)).transpose()?;
    let reading = Some((joined::read(&api, &wanted.records, only), stop));
    let lines = stream::unfold(reading, |reading| async move {
        let (mut joined, stop) = reading?;
        let next = tokio::select! {
            next = next(&mut joined) => next,
            () = stop.cancelled() => {
                let last = line_of(&AuditAnswer::BrokeOff(Refusal { error: "the node stops".to_owned() }));
                return Some((Ok::<_, std::convert::Infallible>(last.into()), None));
            }
        };
        Some((Ok(next?), Some((joined, stop))))
    });
    Ok(([(header::CONTENT_TYPE, "application/jsonl")], Body::from_stream(lines)).into_response())
}

async fn next(joined: &mut Joined) -> Option<Bytes> {
    Some(match joined.next().await? {
        Next::Records(records) if records.is_empty() => Bytes::from_static(b"\n"),
        Next::Records(records) => {
            let lines = records.into_iter().map(|(node, record)| line_of(&AuditAnswer::Record(AuditLine { node, record })));
            lines.flatten().collect::<Vec<u8>>().into()
        }
        Next::Missing { node, why } => line_of(&AuditAnswer::Missing { node, missing: why }).into(),
    })
}

fn line_of(answer: &AuditAnswer) -> Vec<u8> {
    let mut line = serde_json::to_vec(answer).unwrap_or_default();
    line.push(b'\n');
    line
}
