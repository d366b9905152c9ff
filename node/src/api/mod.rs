//! The API that clients and containers speak: one file a noun, thin methods in [`service`], who may call what in
//! [`policy`], gRPC codes in [`error`].
//!
//! Any node answers any call. What is found by id in the local state needs no confirmation; what is looked up by name,
//! listed, or *absent* is confirmed by a read index first.

mod absent;
pub(crate) mod app;
mod app_history;
mod blob;
mod blob_uses;
pub(crate) mod bound;
pub(crate) mod call;
mod call_info;
mod container;
mod dict;
mod environment;
pub(crate) mod error;
mod exec;
mod exec_by_server;
pub(crate) mod function;
mod function_history;
pub(crate) mod gpu;
mod health;
pub(crate) mod identity;
pub(crate) mod image;
mod input_plane;
mod input_token;
mod intake;
pub(crate) mod joined_logs;
mod lifecycle;
pub(crate) mod logs;
mod lookup;
mod metrics;
pub(crate) mod mount;
pub(crate) mod object;
mod outcome;
mod patience;
mod policy;
mod queue;
mod release;
pub(crate) mod sandbox;
mod scaling;
mod schedule;
pub(crate) mod secret;
mod service;
mod suggest;
mod task;
mod times;
pub(crate) mod token;
pub(crate) mod transport;
pub(crate) mod typing;
mod unserved;
mod yielded;

use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::bytes::Bytes;
use shoal_state::model::Definition;
use shoal_state::{AppId, Command, Event, FunctionId, State, Timestamp};

use crate::cluster::Cluster;
use crate::config::Config;

pub(crate) use blob::{Blobs, all_in as blobs_in};
pub(crate) use error::Error;
pub(crate) use identity::Identity;
pub(crate) use image::Told;
pub(crate) use intake::Intake;
pub(crate) use lifecycle::{Connection, Elsewhere, Lifecycle};
pub(crate) use mount::Files;
pub(crate) use secret::SealingKey;
pub(crate) use yielded::Yielded;

/// Who calls, with what came along in the metadata.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// Who calls.
    pub(crate) identity: Identity,
    /// What is called: the name of the method, without its service.
    pub(crate) method: String,
    /// Where the connection comes from, as `address:port`; empty for a task's own channel.
    pub(crate) from: String,
    /// The connection that the call came on.
    pub(crate) connection: Connection,
    /// The idempotency key: one per logical call, the same on each try; empty on streams.
    pub(crate) idempotency_key: String,
    /// Whether this call was tried before, and what came of it is not known to the client.
    pub(crate) retried: bool,
    /// The client's version, as `1.6.4`.
    pub(crate) client_version: String,
    /// The kind of client: 1 Python, 3 container, 8 JS, 9 Go.
    pub(crate) client_type: String,
    /// The host and port that the client used to reach us; what URLs for it are built from.
    pub(crate) authority: String,
    /// What this very connection was told of builds.
    pub(crate) told: Told,
}

impl Caller {
    /// Returns what derived ids use for this request. A client that sends no key gets a fresh one.
    pub(crate) fn key(&self) -> String {
        if self.idempotency_key.is_empty() { format!("{:032x}", rand::random::<u128>()) } else { self.idempotency_key.clone() }
    }
}

/// Definitions that the log carries by digest. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Kept {
    store: shoal_storage::store::Store,
    copies: crate::copies::Copies,
}

impl Kept {
    /// Keeps large definitions in `store`, with copies on other nodes.
    pub(crate) fn new(store: shoal_storage::store::Store, copies: crate::copies::Copies) -> Self {
        Self { store, copies }
    }

    /// Keeps a definition: small ones go into the log, larger ones into the store and to the nodes that are to keep them, durable
    /// before this returns.
    pub(crate) async fn keep(&self, bytes: &[u8]) -> Result<Definition, Error> {
        if bytes.len() <= Definition::INLINE_BYTES_MAX {
            return Ok(Definition::Inline(bytes.to_vec()));
        }
        let (store, bytes) = (self.store.clone(), bytes.to_vec());
        let digest = blocking(move || {
            let digest = store.put(&bytes)?;
            store.sync()?;
            Ok::<_, shoal_storage::store::Error>(digest)
        })
        .await
        .map_err(Error::failed("cannot store a definition"))?;
        self.copies.make(&[digest], &std::collections::HashSet::new()).await;
        Ok(Definition::Stored(digest))
    }

    /// Reads a definition back.
    pub(crate) async fn read(&self, definition: &Definition) -> Result<Bytes, Error> {
        match definition {
            Definition::Inline(bytes) => Ok(bytes.clone().into()),
            Definition::Stored(digest) => {
                let (store, digest) = (self.store.clone(), *digest);
                blocking(move || store.get_anywhere(&digest, None)).await.map_err(Error::failed(format!("cannot read definition {digest}")))
            }
        }
    }
}

/// Everything that API methods use. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) config: Arc<Config>,
    /// What containers of this node are made with.
    pub(crate) engine: shoal_runtime::Engine,
    pub(crate) cluster: Cluster,
    pub(crate) store: shoal_storage::store::Store,
    pub(crate) upkeep: crate::upkeep::Upkeep,
    pub(crate) kept: Kept,
    /// Copies of what this node names, on other nodes.
    pub(crate) copies: crate::copies::Copies,
    pub(crate) blobs: Blobs,
    pub(crate) files: Files,
    pub(crate) sealing: SealingKey,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) calls: shoal_calls::Calls,
    /// How much of what is put may be on its way.
    pub(crate) intake: Intake,
    pub(crate) logs: shoal_worker::log::LogStore,
    pub(crate) tasks: crate::tasks::Tasks,
    /// Processes that were started in this node's containers from outside.
    pub(crate) execs: shoal_worker::execs::Execs,
    /// Who reads through this node what such processes print.
    pub(crate) readings: crate::execs::Readings,
    /// Whose terminals are connected with which containers, through this node.
    pub(crate) terminals: crate::terminals::Connected,
    /// Who reads through this node what calls yield.
    pub(crate) yielded: yielded::Yielded,
    pub(crate) crashes: crate::scheduling::CrashLoops,
    /// Whom this node, when it leads, has asked to give way to others.
    pub(crate) yields: Arc<parking_lot::Mutex<shoal_scheduler::Yields>>,
    /// The gangs that have containers here.
    pub(crate) gangs: crate::gangs::Gangs,
    /// Where functions may run.
    pub(crate) placements: crate::placements::Placements,
    /// What all members tell of themselves.
    pub(crate) reports: crate::reports::Reports,
    pub(crate) images: crate::images::Images,
    pub(crate) build_functions: crate::build_functions::BuildFunctions,
    pub(crate) roots: crate::roots::Roots,
    /// What containers of images read first.
    pub(crate) touched: crate::touched::Touched,
    /// What containers printed on any node.
    pub(crate) joined: joined_logs::JoinedLogs,
    /// The road to other nodes.
    pub(crate) peers: crate::peers::Peers,
    /// What lets nodes into the cluster.
    pub(crate) gate: Arc<crate::authority::Gate>,
    pub(crate) audit: crate::audit::Audit,
    pub(crate) room: crate::room::Room,
    pub(crate) worker: Arc<OnceLock<shoal_worker::Handle>>,
}

impl Api {
    /// Returns the time of this node's clock.
    pub(crate) fn now(&self) -> Timestamp {
        now()
    }

    /// Returns the state as this node has it.
    pub(crate) fn local(&self) -> Arc<State> {
        self.cluster.local()
    }

    /// Returns a state that has everything which was acknowledged before this call.
    pub(crate) async fn read_latest(&self) -> Result<Arc<State>, Error> {
        self.cluster.read_latest().await
    }

    /// Returns the local state when it satisfies `found`, else the latest.
    pub(crate) async fn read_latest_unless(&self, found: impl Fn(&State) -> bool) -> Result<Arc<State>, Error> {
        let local = self.local();
        if found(&local) { Ok(local) } else { self.read_latest().await }
    }

    /// Puts one decision into the log and waits for its answer.
    pub(crate) async fn propose(&self, command: Command) -> Result<(), Error> {
        self.cluster.propose(command).await.map(|_: Vec<Event>| ())
    }

    /// Puts several decisions into one entry; the first refusal is the answer to all.
    pub(crate) async fn propose_all(&self, commands: Vec<Command>) -> Result<(), Error> {
        for answer in self.cluster.propose_all(commands).await? {
            answer?;
        }
        Ok(())
    }

    /// Makes sure that a tree is whole and stays, before the state names it.
    pub(crate) async fn promise(&self, tree: shoal_state::Digest) -> Result<(), Error> {
        self.upkeep.promise(tree).await
    }

    /// Keeps a definition: small ones go into the log, larger ones into the store, durable before this returns.
    pub(crate) async fn keep_definition(&self, bytes: &[u8]) -> Result<Definition, Error> {
        self.kept.keep(bytes).await
    }

    /// Reads a definition back.
    pub(crate) async fn definition(&self, definition: &Definition) -> Result<Bytes, Error> {
        self.kept.read(definition).await
    }

    /// Returns the page that tells of an app.
    pub(crate) fn page(&self, caller: &Caller, app: AppId) -> String {
        format!("http://{}/apps/{app}", caller.authority)
    }

    /// Keeps a refusal in the audit log; what is another error is none of its business.
    pub(crate) fn note_refusal(&self, who: Option<Identity>, method: &str, from: &str, error: &Error) {
        if error.is_refusal() {
            self.audit.note(crate::audit::Event {
                what: crate::audit::What::Refused,
                who: who.map_or_else(|| "nobody".to_owned(), |who| who.to_string()),
                method,
                from: from.to_owned(),
                why: error.to_string(),
            });
        }
    }

    /// Cancels what waits and runs in the functions of a stopped app.
    pub(crate) async fn calls_stop(&self, functions: &[FunctionId]) {
        if let Err(error) = self.calls.cancel_pools(functions.to_vec()).await {
            tracing::warn!(%error, "cannot cancel the calls of a stopped app");
        }
    }
}

/// Returns the time of this machine's clock in seconds since 1970, as certificates count it.
pub(crate) fn now_seconds() -> i64 {
    i64::try_from(now().0 / 1000).unwrap_or(i64::MAX)
}

/// Returns the time of this machine's clock.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Finds an environment by name, or says which there are.
pub(crate) fn environment_named(state: &State, name: &str) -> Result<shoal_state::EnvironmentId, Error> {
    environment::find(state, name).map(|found| found.id)
}

/// Returns the name of an app's environment; empty when the app is gone, and its environment with it.
pub(crate) fn environment_name(state: &State, app: AppId) -> String {
    let environment = state.apps.get(&app).and_then(|app| state.environments.get(&app.environment));
    environment.map(|environment| environment.name.clone()).unwrap_or_default()
}

/// Writes a time in milliseconds since 1970 for people, in UTC.
pub(crate) fn time(at_ms: u64) -> String {
    let at = i64::try_from(at_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    at.map_or_else(|| "-".to_owned(), |at| format!("{at:.0}"))
}

/// Turns a time into the wire's seconds.
#[expect(clippy::cast_precision_loss, reason = "the wire says seconds as a double; milliseconds are exact until the year 287396")]
pub(crate) fn seconds(time: Timestamp) -> f64 {
    time.0 as f64 / 1000.0
}

/// Runs what may touch the disk away from the threads that serve connections.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
