//! The node's own door for its operators: JSON over a unix socket that only root can open.
//!
//! The command line uses it; nothing else does. What it answers is the command line's `--json`, field for field.

mod audit;
mod cluster;
mod explain;
mod images;
mod lists;
mod logs;
mod schedules;
mod store;
mod tokens;
mod undecided;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use axum::extract::{Path as UrlPath, Query, State as Shared};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Extension, Json, Router};
use serde::{Deserialize, Serialize};
use shoal_state::model::{App, Task};
use shoal_state::{AppId, Command, State, TaskId};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use crate::api::{self, Api, environment_name};
use shoal_calls::shards::members::lacks_copies;
use shoal_runtime::ShortPath;

pub(crate) use audit::{AuditAnswer, AuditLine, AuditWanted};
pub(crate) use cluster::{Consensus, MemberStands};
pub(crate) use explain::{ExplainWanted, Explanation};
pub(crate) use images::{ImageLine, WarmLine, WarmWanted};
pub(crate) use lists::{NodeLine, NodeWish};
pub(crate) use logs::{LogAnswer, LogLine, LogsWanted, TAIL_MAX};
pub(crate) use schedules::ScheduleLine;
pub(crate) use store::{DoingLine, GcWanted, LongAnswer, RepairWanted, Repaired, RepairedLine};
pub(crate) use tokens::{TokenLine, TokenMade, TokenPurpose, TokenWanted};
pub(crate) use undecided::UNDECIDED;

/// A refusal, as the command line prints it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Refusal {
    /// What was attempted, on which thing, what stood in the way, and what to do.
    pub(crate) error: String,
}

struct Failure(StatusCode, String);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(Refusal { error: self.1 })).into_response()
    }
}

impl From<api::Error> for Failure {
    fn from(error: api::Error) -> Self {
        let code = match &error {
            api::Error::NotFound(_) => StatusCode::NOT_FOUND,
            api::Error::Failed { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            api::Error::Unavailable(_) | api::Error::Heals(_) => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_REQUEST,
        };
        Self(code, tonic::Status::from(error).message().to_owned())
    }
}

impl From<shoal_state::NotAnId> for Failure {
    fn from(error: shoal_state::NotAnId) -> Self {
        Self(StatusCode::BAD_REQUEST, error.to_string())
    }
}

type Answer<T> = Result<Json<T>, Failure>;

/// A line of `shoal app list`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AppLine {
    /// The app's id.
    pub(crate) app_id: String,
    /// The name it is deployed under.
    pub(crate) name: String,
    /// What the client calls it.
    pub(crate) description: String,
    /// Its environment.
    pub(crate) environment: String,
    /// Where it is in its life.
    pub(crate) state: String,
    /// How many tasks it has.
    pub(crate) tasks: usize,
    /// When it was created, in milliseconds since 1970.
    pub(crate) created_ms: u64,
    /// Why it was stopped.
    pub(crate) stopped: Option<String>,
}

/// A line of `shoal task list`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TaskLine {
    /// The task's id.
    pub(crate) task_id: String,
    /// The app's id.
    pub(crate) app_id: String,
    /// The function's tag.
    pub(crate) function: String,
    /// The node's name.
    pub(crate) node: String,
    /// When it was decided, in milliseconds since 1970.
    pub(crate) created_ms: u64,
    /// Reserved CPU, in thousandths of a core.
    pub(crate) cpu_milli: u32,
    /// Reserved memory, in bytes.
    pub(crate) memory_bytes: u64,
    /// The numbers of the node's GPUs that it holds.
    #[serde(default)]
    pub(crate) gpus: Vec<u32>,
    /// Why it is to stop, once it is.
    pub(crate) stopping: Option<String>,
}

/// What `shoal status` is answered.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StatusReport {
    /// This build's version.
    pub(crate) version: String,
    /// The node's name.
    pub(crate) node: String,
    /// The node's id.
    pub(crate) node_id: String,
    /// Where clients are answered.
    pub(crate) api: String,
    /// Where web endpoints are answered.
    pub(crate) web: String,
    /// The node's folder.
    pub(crate) data: String,
    /// What the names of the node's links, cgroups and mounts on this machine carry.
    #[serde(default)]
    pub(crate) tag: String,
    /// The leader of the cluster, by its id; none while there is none.
    pub(crate) leader: Option<String>,
    /// What people call the leader.
    #[serde(default)]
    pub(crate) leader_name: Option<String>,
    /// How often the cluster was started anew from one survivor, and once for its founding.
    #[serde(default)]
    pub(crate) generation: u32,
    /// Who votes, who follows, and how far each is.
    #[serde(default)]
    pub(crate) consensus: Consensus,
    /// The term of the consensus.
    pub(crate) term: u64,
    /// The last entry that this node applied.
    pub(crate) applied: u64,
    /// Nodes of the cluster.
    pub(crate) nodes: usize,
    /// Shards that have a home.
    pub(crate) shards: usize,
    /// Those at home at this node.
    #[serde(default)]
    pub(crate) shards_here: usize,
    /// Those with fewer copies than they should have.
    #[serde(default)]
    pub(crate) shards_missing_copies: usize,
    /// Those whose home is lost and not replaced: their calls wait.
    #[serde(default)]
    pub(crate) shards_waiting: usize,
    /// Apps that live.
    pub(crate) apps: usize,
    /// Tasks that live.
    pub(crate) tasks: usize,
    /// Images.
    pub(crate) images: usize,
    /// How many copies of what is named are missing, as far as it can be found out: [`Self::copies_why`] says what is not known. None
    /// while some node has not looked yet for what it is to keep, and none is known to be missing.
    #[serde(default)]
    pub(crate) copies_missing: Option<u64>,
    /// Why, in sentences.
    #[serde(default)]
    pub(crate) copies_why: Vec<String>,
    /// Bytes of files of images that were brought from the store since this process began, for what containers and builds read.
    #[serde(default)]
    pub(crate) files_read_bytes: u64,
    /// The process that answers.
    pub(crate) pid: u32,
}

/// Answers on `path` until `stop`.
pub(crate) async fn serve(api: Api, path: &Path, stop: CancellationToken) -> anyhow::Result<()> {
    let _ = std::fs::remove_file(path);
    let bound = ShortPath::to(path).and_then(|short| UnixListener::bind(short.path()));
    let listener = bound.with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot close {} to others", path.display()))?;
    let router = Router::new()
        .route("/status", get(status))
        .route("/tokens", get(tokens::list).post(tokens::create))
        .route("/tokens/{id}", delete(tokens::revoke))
        .route("/audit", post(audit::audit))
        .route("/apps", get(apps))
        .route("/apps/{id}/stop", post(app_stop))
        .route("/schedules", get(schedules::schedules))
        .route("/tasks", get(tasks))
        .route("/tasks/{id}/stop", post(task_stop))
        .route("/nodes", get(lists::nodes))
        .route("/nodes/{id}", post(lists::node_do))
        .route("/images", get(images::images))
        .route("/images/{id}", delete(images::remove))
        .route("/images/{id}/warm", post(images::warm))
        .route("/store/check", post(store::check))
        .route("/store/gc", post(store::collect))
        .route("/store/repair", post(store::repair))
        .route("/logs", post(logs::logs))
        .route("/explain", post(explain::explain))
        .fallback(unknown)
        .layer(axum::middleware::from_fn_with_state(api.clone(), undecided::note))
        // What follows ends with the node: it would hold up the end of the server.
        .layer(Extension(stop.clone()))
        .with_state(api);
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await.context("cannot answer operators")
}

/// Answers a command line that is newer than this node.
async fn unknown(uri: axum::http::Uri) -> Failure {
    Failure(StatusCode::NOT_FOUND, format!("the node (version {}) knows nothing of {uri}", env!("CARGO_PKG_VERSION")))
}

async fn status(Shared(api): Shared<Api>) -> Answer<StatusReport> {
    let state = api.local();
    let standings = crate::standing::of_all(&api).await;
    let raft = api.cluster.raft().status();
    let consensus = cluster::consensus(&state, &raft, &standings, crate::standing::undecided(api.cluster.raft()));
    let missing = api.copies.missing().await;
    Ok(Json(StatusReport {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node: api.config.node_name(),
        node_id: api.cluster.node.to_string(),
        api: api.config.api.to_string(),
        web: api.config.web.to_string(),
        data: api.config.data.display().to_string(),
        tag: api.engine.tag().to_string(),
        leader: raft.leader.map(|leader| leader.to_string()),
        leader_name: raft.leader.map(|leader| shoal_members::removal::name(&state, leader)),
        generation: api.gate.cluster.generation,
        consensus,
        term: raft.term,
        applied: raft.applied,
        nodes: state.nodes.len(),
        shards: state.shards.len(),
        shards_here: state.shards.values().filter(|shard| shard.home == api.cluster.node).count(),
        shards_missing_copies: state.shards.values().filter(|shard| lacks_copies(shard, state.members.len())).count(),
        shards_waiting: state.shards.values().filter(|shard| api.reports.is_lost(shard.home)).count(),
        apps: state.apps.values().filter(|app| app.stopped.is_none()).count(),
        tasks: state.tasks.len(),
        images: state.images.len(),
        copies_missing: missing.known(),
        copies_why: missing.why,
        files_read_bytes: api.roots.bytes_brought(),
        pid: std::process::id(),
    }))
}

async fn apps(Shared(api): Shared<Api>) -> Answer<Vec<AppLine>> {
    let state = undecided::latest_or_known(&api).await;
    let line = |(id, app): (&AppId, &App)| AppLine {
        app_id: id.to_string(),
        name: app.name.clone(),
        description: app.description.clone(),
        environment: environment_name(&state, *id),
        state: app.state.to_string(),
        tasks: state.tasks.values().filter(|task| task.app == *id).count(),
        created_ms: app.created.0,
        stopped: app.stopped.as_ref().map(|(_, why)| why.clone()),
    };
    let mut lines: Vec<AppLine> = state.apps.iter().map(line).collect();
    lines.sort_by_key(|line| std::cmp::Reverse(line.created_ms));
    Ok(Json(lines))
}

/// Finds an app by id, or by the name it is deployed under; an empty environment is the default one.
fn find_app(state: &State, which: &str, environment: &str) -> Option<AppId> {
    let by_name = || state.environment_named(environment).and_then(|environment| state.app_deployed(environment.id, which));
    which.parse::<AppId>().ok().filter(|id| state.apps.contains_key(id)).or_else(by_name)
}

/// The longest label of a token or a node, in bytes: every node has all of them in memory.
const LABEL_BYTES_MAX: usize = 256;

/// Refuses what is too long to be a label.
fn check_label(what: &str, text: &str) -> Result<(), api::Error> {
    if text.len() <= LABEL_BYTES_MAX {
        return Ok(());
    }
    let (length, begin) = (text.len(), text.chars().take(20).collect::<String>());
    Err(api::Error::Invalid(format!("{begin:?}… cannot be the {what}: it has {length} bytes, and the limit is {LABEL_BYTES_MAX}")))
}

/// Refuses an environment that there is none of.
fn check_environment(state: &State, name: &str) -> Result<(), api::Error> {
    // The default one is there for as long as the cluster, and not before.
    if name.is_empty() { Ok(()) } else { api::environment_named(state, name).map(drop) }
}

async fn app_stop(
    Shared(api): Shared<Api>,
    UrlPath(which): UrlPath<String>,
    Query(query): Query<std::collections::BTreeMap<String, String>>,
) -> Answer<()> {
    let state = api.read_latest().await?;
    let environment = query.get("environment").map_or("", String::as_str);
    check_environment(&state, environment)?;
    let absent = || api::Error::NotFound(format!("cannot stop app {which:?}: no app has that id or name; `shoal app list` shows them"));
    let id = find_app(&state, &which, environment).ok_or_else(absent)?;
    api::app::stop(&api, id, "stopped by an operator").await?;
    Ok(Json(()))
}

async fn tasks(Shared(api): Shared<Api>) -> Answer<Vec<TaskLine>> {
    let state = undecided::latest_or_known(&api).await;
    let line = |(id, task): (&TaskId, &Task)| TaskLine {
        task_id: id.to_string(),
        app_id: task.app.to_string(),
        function: state.functions.get(&task.function).map(|function| function.tag.clone()).unwrap_or_default(),
        node: state.nodes.get(&task.node).map(|node| node.name.clone()).unwrap_or_default(),
        created_ms: task.created.0,
        cpu_milli: task.resources.cpu_milli,
        memory_bytes: task.resources.memory_bytes,
        gpus: task.gpus.clone(),
        stopping: task.stopping.clone(),
    };
    Ok(Json(state.tasks.iter().map(line).collect()))
}

async fn task_stop(Shared(api): Shared<Api>, UrlPath(id): UrlPath<String>) -> Answer<()> {
    let id: TaskId = id.parse()?;
    let absent = || api::Error::NotFound(format!("cannot stop task {id}: there is none with this id; `shoal task list` shows them"));
    api.read_latest_unless(|state| state.tasks.contains_key(&id)).await?.tasks.get(&id).ok_or_else(absent)?;
    api.propose(Command::StopTask { id, why: "stopped by an operator".to_owned() }).await?;
    Ok(Json(()))
}
