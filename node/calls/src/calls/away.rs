//! Calls whose shards are at home on other nodes: where a request belongs, and how it gets there.
//!
//! Any node is asked about any call. What is at home here is answered here; for the rest the request goes to the home as it is,
//! and the answer comes back with its payloads. Where a home is not reached, or has just moved, the request is tried again for a
//! while: requests that change something carry keys, so twice is once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::{BoxFuture, join_all};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use shoal_state::model::Shard;
use shoal_state::{CallId, InputId, NodeId, ShardId};
use tokio::sync::watch;

use super::error::Error;
use super::handle::{ANSWER_DEADLINE, Calls, millis};
use super::info::{CallInfo, InputInfo};
use super::model::{Cancelled, LeasedInput, Outputs, PutInput};
use super::refused::Refused;
use super::rules::Request;
use super::running::Held;
use super::streams::{DataChunk, StreamKey};
use crate::objects::{ObjectAnswer, ObjectRequest};

/// How long a request is tried again whose home is not reached, or is not the home any more: a home that is lost is replaced
/// within seconds.
const HOME_WAIT: Duration = Duration::from_secs(30);

/// How long is waited between two tries.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// Carries requests to the calls of other nodes, whose [`Calls::serve`] answers them.
pub trait Road: Debug + Send + Sync + 'static {
    /// Sends a request to the calls of a node and waits for the answer, up to `patience`. Fails with words.
    fn ask<'a>(&'a self, home: NodeId, request: Bytes, patience: Duration) -> BoxFuture<'a, Result<Bytes, String>>;
}

/// Where shards are at home, and the way there.
#[derive(Debug)]
pub(super) struct Away {
    pub(super) me: NodeId,
    homes: RwLock<BTreeMap<ShardId, Noted>>,
    /// Changes whenever anything is noted.
    noted: watch::Sender<()>,
    /// No shard is known to be at home elsewhere.
    all_here: AtomicBool,
    /// All nodes know [`Request::OpenWith`].
    opens_with: AtomicBool,
    road: OnceLock<Arc<dyn Road>>,
}

/// Where a shard is at home.
#[derive(Debug, Clone, Copy)]
struct Noted {
    home: NodeId,
    epoch: u64,
    /// How often it was noted to have moved.
    moves: u64,
}

/// What one node asks of the calls of another. Times are in milliseconds.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Asked {
    Calls {
        wait_ms: u64,
        request: Request,
    },
    /// Data of the node that is asked.
    GetData {
        key: StreamKey,
        after: u64,
        bytes_max: u64,
        wait_ms: u64,
    },
    /// Whether what a call put out at the node that is asked was read.
    ReadUp {
        call: CallId,
        wait_ms: u64,
    },
    /// The asker has data of a call that is at home at the node that is asked.
    DataHere {
        key: StreamKey,
        node: NodeId,
    },
    /// On which node data of a call are.
    WhereData {
        key: StreamKey,
        wait_ms: u64,
    },
    /// On which nodes any data of a call are.
    WhereAll {
        call: CallId,
    },
    Running {
        home: NodeId,
        shards: Vec<ShardId>,
    },
    /// Of which of these shards the node that is asked cannot say that nobody was home in a later epoch.
    Vouch {
        epochs: Vec<(ShardId, u64)>,
    },
}

/// An answer with all that belongs to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Told {
    Done,
    Refused(Refused),
    Put(Vec<PutInput>),
    Retried(Vec<(InputId, u32)>),
    Outputs(Outputs),
    Leased(Vec<LeasedInput>),
    Stop,
    Cancelled(Cancelled),
    HeldCancels(Vec<InputId>),
    Infos(Vec<CallInfo>),
    Inputs(Vec<InputInfo>),
    Data(Vec<DataChunk>),
    Chunks(u32),
    Nodes(Vec<NodeId>),
    Running(Vec<Held>, Vec<StreamKey>),
    /// The home could not answer, in its words.
    Failed(String),
    NotVouched(Vec<ShardId>),
    Object(ObjectAnswer),
}

impl Told {
    /// Puts the answers of several homes together: each knows a part.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Infos(one), Self::Infos(more)) => Self::Infos([one, more].concat()),
            (Self::HeldCancels(one), Self::HeldCancels(more)) => Self::HeldCancels([one, more].concat()),
            (Self::Cancelled(one), Self::Cancelled(more)) => Self::Cancelled(Cancelled { running: [one.running, more.running].concat() }),
            (no @ (Self::Refused(_) | Self::Failed(_)), _) | (_, no @ (Self::Refused(_) | Self::Failed(_))) => no,
            (one, _) => one,
        }
    }
}

/// What a request is about.
#[derive(Debug, Clone, Copy)]
pub(super) enum About {
    /// Something in this shard; none when the id names no shard.
    One(Option<ShardId>),
    /// Anything anywhere.
    All,
}

pub(super) fn about(request: &Request) -> About {
    match request {
        Request::Open(open) | Request::OpenWith { open, .. } => About::One(open.call.shard()),
        Request::Put { call, .. }
        | Request::FinishInputs { call }
        | Request::Outputs { call, .. }
        | Request::CancelCall { call }
        | Request::Info { call }
        | Request::Inputs { call } => About::One(call.shard()),
        Request::CallOf { input } => About::One(input.shard()),
        Request::Retry { items, .. } => About::One(items.first().and_then(|item| item.input.shard())),
        Request::CancelInputs { inputs } => About::One(inputs.first().and_then(|input| input.shard())),
        // A task serves one function, and the calls of a function are in its shard.
        Request::Finish { outcomes, .. } => About::One(outcomes.first().and_then(|outcome| outcome.input.shard())),
        Request::Lease(lease) => About::One(lease.pool.shard()),
        Request::FailPool { pool, .. }
        | Request::Adopt { pool, .. }
        | Request::TaskLost { pool, .. }
        | Request::StopTask { pool, .. }
        | Request::HeldCancels { pool, .. } => About::One(pool.shard()),
        Request::CallsOf { function } => About::One(function.shard()),
        Request::Object(ObjectRequest::Named { blobs }) => About::One(blobs.first().and_then(|blob| blob.shard())),
        Request::Object(request) => request.object().map_or(About::All, |object| About::One(object.shard())),
        Request::Undelivered { .. } | Request::CancelPools { .. } | Request::ReportsComplete { .. } | Request::Children { .. } => {
            About::All
        }
    }
}

impl Away {
    pub(super) fn new(me: NodeId) -> Self {
        Self {
            me,
            homes: RwLock::default(),
            noted: watch::channel(()).0,
            all_here: AtomicBool::new(true),
            opens_with: AtomicBool::new(false),
            road: OnceLock::new(),
        }
    }

    pub(super) fn set_road(&self, road: Arc<dyn Road>) {
        // The first one counts: there is one, set when the node starts.
        let _ = self.road.set(road);
    }

    /// Notes where shards are at home.
    pub(super) fn note(&self, shards: &[(ShardId, Shard)]) {
        let mut homes = self.homes.write();
        for (id, Shard { home, epoch, .. }) in shards {
            let before = homes.get(id).copied();
            let moves = before.map_or(0, |before| before.moves + u64::from(before.home != *home));
            homes.insert(*id, Noted { home: *home, epoch: *epoch, moves });
        }
        self.all_here.store(homes.values().all(|noted| noted.home == self.me), Ordering::Relaxed);
        drop(homes);
        self.noted.send_replace(());
    }

    /// Waits until what is noted satisfies `holds`.
    pub(super) async fn until(&self, holds: impl Fn() -> bool) {
        let mut noted = self.noted.subscribe();
        while !holds() {
            if noted.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits until these epochs of shards are noted, or later ones.
    pub(super) async fn epochs_noted(&self, epochs: &[(ShardId, u64)]) {
        let have = || {
            let homes = self.homes.read();
            epochs.iter().all(|(shard, epoch)| homes.get(shard).is_some_and(|noted| noted.epoch >= *epoch))
        };
        self.until(have).await;
    }

    /// Waits until a shard is not at home at `home` any more. For none, for ever.
    async fn moved_from(&self, home: NodeId, shard: Option<ShardId>) {
        match shard {
            Some(_) => self.until(|| !self.is_home(home, shard)).await,
            None => std::future::pending().await,
        }
    }

    /// Says whether every request is answered here.
    pub(super) fn is_all_here(&self) -> bool {
        self.all_here.load(Ordering::Relaxed) || self.road.get().is_none()
    }

    pub(super) fn opens_with(&self) -> bool {
        self.opens_with.load(Ordering::Relaxed)
    }

    /// Says whether a shard is known to be at home at a node.
    pub(super) fn is_home(&self, home: NodeId, shard: Option<ShardId>) -> bool {
        shard.is_none_or(|shard| self.homes.read().get(&shard).is_some_and(|noted| noted.home == home))
    }

    /// Returns how often a shard was noted to have moved.
    pub(super) fn moves(&self, shard: ShardId) -> u64 {
        self.homes.read().get(&shard).map_or(0, |noted| noted.moves)
    }

    /// Says whether this is the newest epoch of a shard that was noted.
    pub(super) fn is_in_epoch(&self, shard: ShardId, epoch: u64) -> bool {
        self.homes.read().get(&shard).is_some_and(|noted| noted.epoch == epoch)
    }

    /// Returns where a call is at home, if that is elsewhere.
    pub(super) fn home_of(&self, call: CallId) -> Option<NodeId> {
        if self.is_all_here() {
            return None;
        }
        self.homes.read().get(&call.shard()?).map(|noted| noted.home).filter(|home| *home != self.me)
    }

    /// Returns which nodes are to be asked. This one where nobody else is known to be right: it knows the words of a no.
    fn homes_for(&self, request: &Request) -> Vec<NodeId> {
        let homes = self.homes.read();
        let found: BTreeSet<NodeId> = match about(request) {
            About::One(shard) => shard.and_then(|shard| homes.get(&shard)).map(|noted| noted.home).into_iter().collect(),
            About::All => homes.values().map(|noted| noted.home).collect(),
        };
        if found.is_empty() { vec![self.me] } else { found.into_iter().collect() }
    }
}

impl Calls {
    /// Says whether all nodes are of a release that opens a call with its inputs. Until then homes elsewhere are asked for one after the
    /// other.
    pub fn open_with_inputs(&self, known: bool) {
        self.away.opens_with.store(known, Ordering::Relaxed);
    }

    /// Sets the way to the calls of other nodes. Before, a shard that is not at home here is refused.
    pub fn set_road(&self, road: Arc<dyn Road>) {
        self.away.set_road(road);
    }

    /// Answers what another node asks by its [`Road`].
    pub async fn serve(&self, request: Bytes) -> Bytes {
        let told = match postcard::from_bytes::<Asked>(&request) {
            Ok(asked) => self.answer_asked(asked).await.unwrap_or_else(|error| Told::Failed(explain(&error))),
            Err(error) => Told::Failed(format!("what was asked cannot be read ({error}): are the nodes of one release?")),
        };
        postcard::to_stdvec(&told).expect("an answer can be written").into()
    }

    async fn answer_asked(&self, asked: Asked) -> Result<Told, Error> {
        let millis = Duration::from_millis;
        match asked {
            Asked::Calls { wait_ms, request } => self.told_here("answer another node", millis(wait_ms), request).await,
            Asked::GetData { key, after, bytes_max, wait_ms } => {
                Ok(Told::Data(self.streams().get(&key, after, bytes_max, millis(wait_ms)).await?))
            }
            Asked::Running { home, shards } => self.report(home, &shards).await,
            Asked::ReadUp { call, wait_ms } => Ok(Told::Chunks(self.streams().read_up(call, millis(wait_ms)).await)),
            Asked::DataHere { key, node } => {
                self.streams().origins().note(&key, node);
                Ok(Told::Done)
            }
            Asked::WhereData { key, wait_ms } => Ok(Told::Nodes(self.streams().origins().of(&key, self.away.me, millis(wait_ms)).await)),
            Asked::Vouch { epochs } => Ok(Told::NotVouched(self.not_vouched(epochs).await?)),
            Asked::WhereAll { call } => Ok(Told::Nodes(self.streams().origins().of_call(call, self.away.me))),
        }
    }

    /// Asks whoever is home, wherever.
    pub(super) async fn told(&self, what: &'static str, wait: Duration, request: Request) -> Result<Told, Error> {
        // While an answer waits to be confirmed, a shard may move.
        if self.away.is_all_here() && !self.confirms() {
            return self.told_here(what, wait, request).await;
        }
        let mut failing: Option<Instant> = None;
        loop {
            let homes = self.away.homes_for(&request);
            let last = failing.is_some_and(|since| self.ground.now() >= since + HOME_WAIT);
            let found = match homes[..] {
                [only] => self.told_by(only, what, wait, request.clone()).await,
                _ => {
                    let all = join_all(homes.iter().map(|home| self.told_by(*home, what, wait, request.clone()))).await;
                    all.into_iter().reduce(|one, other| Ok(one?.and(other?))).unwrap_or(Ok(Told::Done))
                }
            };
            match found {
                // A shard has just moved, or its home is being replaced.
                Ok(Told::Refused(Refused::NotHome { .. })) | Err(Error::Away { .. }) if !last => {
                    failing.get_or_insert_with(|| self.ground.now());
                    self.ground.sleep(TRY_AGAIN_AFTER).await;
                }
                found => return found,
            }
        }
    }

    async fn told_by(&self, home: NodeId, what: &'static str, wait: Duration, request: Request) -> Result<Told, Error> {
        if home == self.away.me {
            return self.told_here(what, wait, request).await;
        }
        let About::One(shard) = about(&request) else {
            return self.ask_away(home, what, wait, &Asked::Calls { wait_ms: millis(wait), request }).await;
        };
        let moved = || Error::Away { home, what, why: "they have moved to another node meanwhile".to_owned() };
        let asked = Asked::Calls { wait_ms: millis(wait), request };
        tokio::select! {
            biased;
            told = self.ask_away(home, what, wait, &asked) => match told {
                // The new home was told what this node's tasks run, without this.
                Ok(Told::Leased(_)) if !self.away.is_home(home, shard) => Err(moved()),
                told => told,
            },
            () = self.away.moved_from(home, shard) => Err(moved()),
        }
    }

    pub(super) async fn ask_away(&self, home: NodeId, what: &'static str, wait: Duration, asked: &Asked) -> Result<Told, Error> {
        let away = |why| Error::Away { home, what, why };
        let road = self.away.road.get().ok_or_else(|| away("there is no way to other nodes".to_owned()))?;
        let request = postcard::to_stdvec(asked).expect("a request can be written");
        let answer = road.ask(home, request.into(), wait + ANSWER_DEADLINE).await.map_err(away)?;
        match postcard::from_bytes(&answer).map_err(|error| away(format!("its answer cannot be read ({error})")))? {
            Told::Failed(why) => Err(away(why)),
            told => Ok(told),
        }
    }
}

pub(super) fn strange(home: NodeId, told: &Told) -> Error {
    Error::Away { home, what: "understand the answer", why: format!("it is about something else: {told:?}") }
}

/// Writes an error with all its causes.
pub(super) fn explain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nodes_of_version_6_ask_and_tell_is_understood() {
        shoal_state::written::hold::<Asked>("what is asked", include_str!("../../tests/written/6/asked.txt"), 0);
        shoal_state::written::hold::<Told>("what is told", include_str!("../../tests/written/6/told.txt"), 0);
        shoal_state::written::hold::<Asked>("what is asked of an object", include_str!("../../tests/written/6/objects-asked.txt"), 0);
        shoal_state::written::hold::<Told>("what is told of an object", include_str!("../../tests/written/6/objects-told.txt"), 0);
    }
}
