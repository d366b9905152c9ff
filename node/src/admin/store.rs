//! The chunk store, for `shoal store`: what takes long is answered in lines, empty ones while it goes on and the answer last.

use std::future::Future;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State as Shared;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use futures::stream;
use serde::{Deserialize, Serialize};
use shoal_state::NodeId;
use tokio::sync::mpsc;

use super::{Failure, Refusal};
use crate::api::{self, Api};
use crate::copies::everywhere::Heard;
use crate::copies::repair::{Progress, Report};
use crate::upkeep::{self, check, gc};

/// How often who waits hears that the node is alive.
const ALIVE_EVERY: Duration = Duration::from_secs(5);
/// How long nodes are waited for that repair, where nobody says it.
const REPAIR_WAIT: Duration = Duration::from_secs(3600);

/// What `shoal store gc` asks.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct GcWanted {
    /// How much the store may take afterwards, in bytes; none = what the configuration says.
    pub(crate) budget_bytes: Option<u64>,
    /// Only say what would be deleted.
    pub(crate) dry_run: bool,
}

/// What `shoal store repair` asks.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct RepairWanted {
    /// How long is waited for the nodes, in seconds.
    pub(crate) within_seconds: u64,
}

/// A line of an answer that takes long. The last one is the answer, or why there is none.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum LongAnswer<T> {
    /// Why there is none.
    BrokeOff(Refusal),
    /// How far it is.
    Doing {
        /// Of what.
        doing: DoingLine,
    },
    /// The answer.
    Done(T),
}

/// How far a node has come with what takes long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DoingLine {
    /// The node's name.
    pub(crate) node: String,
    /// How far it is; none while it does not answer.
    pub(crate) progress: Option<Progress>,
}

/// What is sent of how far it is, and not taken yet. Beyond it lines are left out: later ones say more.
const DOING_MAX: usize = 64;

pub(super) async fn check(Shared(api): Shared<Api>) -> Response {
    // Whoever leaves ends it.
    long(async move { check::check(&api).await })
}

pub(super) async fn collect(Shared(api): Shared<Api>, Json(wanted): Json<GcWanted>) -> Result<Response, Failure> {
    let budget = match wanted.budget_bytes {
        Some(budget) => budget,
        None => upkeep::budget_bytes(&api)?,
    };
    // It goes on when whoever asked has left.
    let work = tokio::spawn(async move { gc::collect(&api, budget, wanted.dry_run).await });
    Ok(long(async move { work.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())) }))
}

/// What `shoal store repair` did on one node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct RepairedLine {
    /// The node's id.
    pub(crate) node_id: String,
    /// Its name.
    pub(crate) name: String,
    /// How many objects it is to keep.
    pub(crate) mine: u64,
    /// How many chunks it brought, and their length.
    pub(crate) brought: u64,
    /// Their length, in bytes.
    pub(crate) brought_bytes: u64,
    /// How many of those that it is to keep it still lacks.
    pub(crate) lacking: u64,
    /// One of those.
    pub(crate) first: Option<String>,
}

/// What `shoal store repair` did.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Repaired {
    /// How many objects the state names.
    pub(crate) named: u64,
    /// How many copies of them are missing still.
    pub(crate) copies_missing: u64,
    /// Why, in sentences.
    pub(crate) why: Vec<String>,
    /// What each node did that could be asked.
    pub(crate) nodes: Vec<RepairedLine>,
}

pub(super) async fn repair(Shared(api): Shared<Api>, Json(wanted): Json<Option<RepairWanted>>) -> Response {
    let within = wanted.map_or(REPAIR_WAIT, |wanted| Duration::from_secs(wanted.within_seconds));
    let (tell, told) = mpsc::channel(DOING_MAX);
    let work = async move {
        let state = api.read_latest().await?;
        let name = |id: NodeId| state.nodes.get(&id).map_or_else(|| id.to_string(), |node| node.name.clone());
        let say = |id, heard| {
            let progress = match heard {
                Heard::Nothing => None,
                Heard::Progress(progress) => Some(progress),
            };
            let _ = tell.try_send(DoingLine { node: name(id), progress });
        };
        let (reports, missing) = api.copies.repair_all(&state, within, &say).await;
        let line = |(id, report): (NodeId, Report)| RepairedLine {
            node_id: id.to_string(),
            name: name(id),
            mine: report.mine,
            brought: report.brought,
            brought_bytes: report.brought_bytes,
            lacking: report.lacking,
            first: report.first.map(|digest| digest.to_string()),
        };
        let named = reports.values().map(|report| report.named).max().unwrap_or(0);
        let nodes = reports.into_iter().map(line).collect();
        Ok(Repaired { named, copies_missing: missing.copies, why: missing.why, nodes })
    };
    telling(told, work)
}

/// Answers with empty lines while the work goes on, and then with what came of it.
pub(super) fn long<T: Serialize + Send + 'static>(work: impl Future<Output = Result<T, api::Error>> + Send + 'static) -> Response {
    telling(mpsc::channel(1).1, work)
}

/// Answers with what is told of the work while it goes on, with empty lines where nothing is, and then with what came of it.
fn telling<T: Serialize + Send + 'static>(
    told: mpsc::Receiver<DoingLine>,
    work: impl Future<Output = Result<T, api::Error>> + Send + 'static,
) -> Response {
    let lines = stream::unfold(Some((Box::pin(work), told)), |rest| async move {
        let (mut work, mut told) = rest?;
        let line = tokio::select! {
            biased;
            Some(doing) = told.recv() => line(&LongAnswer::<T>::Doing { doing }),
            done = &mut work => return Some((Ok::<_, std::convert::Infallible>(last(done)), None)),
            () = tokio::time::sleep(ALIVE_EVERY) => Bytes::from_static(b"\n"),
        };
        Some((Ok(line), Some((work, told))))
    });
    ([(header::CONTENT_TYPE, "application/jsonl")], Body::from_stream(lines)).into_response()
}

fn last<T: Serialize>(done: Result<T, api::Error>) -> Bytes {
    line(&match done {
        Ok(done) => LongAnswer::Done(done),
        Err(error) => LongAnswer::BrokeOff(Refusal { error: Failure::from(error).1 }),
    })
}

fn line<T: Serialize>(answer: &LongAnswer<T>) -> Bytes {
    let mut line = serde_json::to_vec(answer).unwrap_or_default();
    line.push(b'\n');
    line.into()
}
