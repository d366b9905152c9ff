//! What the members tell each other all the time: how busy the calls are that are at home with each, which of their shards need
//! somebody else, whom they hear.
//!
//! All of it is soft, and the sign of life of a node besides. The leader hears of a change at once, the others a little later: any
//! node can say how busy a function is, and a new leader knows what the last one knew.

mod losses;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use shoal_calls::Calls;
use shoal_calls::calls::Load;
use shoal_calls::shards::Mark;
use shoal_calls::shards::hearing::Hearing;
use shoal_calls::shards::members::DROPPED_AFTER;
use shoal_calls::shards::presence::Awake;
use shoal_peer::{Acknowledged, Endpoint, Service, Stream};
use shoal_raft::Raft;
use shoal_state::{AppId, FunctionId, NodeId, ShardId, State, Timestamp};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::losses::{notice_losses, notice_pauses};
use crate::api::{Elsewhere, Lifecycle, now};
use crate::peers::{self, Peers};
use crate::scheduling::CrashLoops;

/// What a node tells of itself.
const REPORTS: Service = Service::new(9, "hear how busy a node is");

/// How often a node says that it lives.
const EVERY: Duration = Duration::from_millis(300);
/// The least time between two reports to the leader, and to the others.
const LEADER_GAP: Duration = Duration::from_millis(10);
const GAP: Duration = Duration::from_millis(300);
/// How long a report may take to go out. Then the way is opened anew.
const SEND_WAIT: Duration = Duration::from_secs(2);

/// What a node tells. Times within are ages in milliseconds: clocks differ.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Report {
    load: Load,
    /// Functions whose containers end as soon as they start, and for how long they get none.
    held: BTreeMap<FunctionId, u64>,
    /// Shards whose records here may be missing some, and how far they go.
    suspect: BTreeMap<ShardId, Mark>,
    /// The members that this node hears.
    hears: Vec<NodeId>,
}

/// What stands behind a report since a later release. Older nodes overlook it, and tell nothing of it: new fields are added at the
/// end of a struct of their own, never to one that nodes tell already.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Besides {
    /// The apps whose clients this node hears.
    clients: BTreeSet<AppId>,
}

impl Report {
    /// Turns the times of a load into ages, or ages into times.
    fn turn(mut load: Load, now: Timestamp) -> Load {
        for pool in load.pools.values_mut() {
            pool.oldest_waiting_ms = pool.oldest_waiting_ms.map(|at| now.0.saturating_sub(at));
        }
        for task in load.tasks.values_mut() {
            task.idle_since_ms = task.idle_since_ms.map(|at| now.0.saturating_sub(at));
        }
        load
    }
}

struct Heard {
    /// By the clock of [`Inner::clock`].
    at: Duration,
    /// With times by this node's clock.
    load: Arc<Load>,
    held: BTreeMap<FunctionId, Timestamp>,
    suspect: BTreeMap<ShardId, Mark>,
    /// None if the node is of a release that does not tell.
    besides: Option<Besides>,
}

struct Inner {
    me: NodeId,
    endpoint: Endpoint,
    calls: Calls,
    raft: Raft,
    crashes: CrashLoops,
    lifecycle: Lifecycle,
    others: Mutex<HashMap<NodeId, Heard>>,
    /// Whom this node hears, by the clock of [`Inner::clock`].
    hearing: Mutex<Hearing<Acknowledged>>,
    /// For how long this node has been awake.
    awake: Mutex<Awake>,
    /// The shards of this node that may miss records.
    suspect: Mutex<BTreeMap<ShardId, Mark>>,
    changed: watch::Sender<()>,
    /// Changes with the members whose process has ended, as far as this node can tell.
    ended: watch::Sender<()>,
}

/// What the members tell. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Reports {
    inner: Arc<Inner>,
}

impl Inner {
    /// Returns for how long this node has run, without the times for which it stood still.
    fn clock(&self) -> Duration {
        self.awake.lock().clock(std::time::Instant::now())
    }
}

impl Reports {
    /// Begins with nothing heard.
    pub(crate) fn new(peers: &Peers, raft: &Raft, calls: &Calls, crashes: &CrashLoops, lifecycle: &Lifecycle) -> Self {
        let inner = Inner {
            me: raft.node(),
            endpoint: peers.endpoint.clone(),
            calls: calls.clone(),
            raft: raft.clone(),
            crashes: crashes.clone(),
            lifecycle: lifecycle.clone(),
            others: Mutex::default(),
            hearing: Mutex::new(Hearing::new(raft.node())),
            awake: Mutex::new(Awake::new(EVERY, std::time::Instant::now())),
            suspect: Mutex::default(),
            changed: watch::channel(()).0,
            ended: watch::channel(()).0,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Returns a watch that changes with every report of another node.
    pub(crate) fn watch(&self) -> watch::Receiver<()> {
        self.inner.changed.subscribe()
    }

    /// Returns how busy everything is, as far as the homes of all shards have told.
    pub(crate) fn load(&self, state: &State) -> Arc<Load> {
        let own = self.inner.calls.load().borrow().clone();
        let others = self.inner.others.lock();
        if others.is_empty() {
            return own;
        }
        Arc::new(Load::at_homes(state, self.fresh(&others).chain([(self.inner.me, &*own)])))
    }

    /// Says whether a function has work and no container, by what its home told. Nothing is put together for that: it is asked at each
    /// change.
    pub(crate) fn wakes(&self, state: &State) -> bool {
        let own = self.inner.calls.load().borrow().clone();
        let others = self.inner.others.lock();
        self.fresh(&others).chain([(self.inner.me, &*own)]).any(|(node, load)| load.wakes(state, node))
    }

    /// What a home said long ago says nothing of now: it is as one that has not told yet.
    fn fresh<'a>(&self, others: &'a HashMap<NodeId, Heard>) -> impl Iterator<Item = (NodeId, &'a Load)> + use<'a> {
        let clock = self.inner.clock();
        let fresh = others.iter().filter(move |(_, heard)| clock.saturating_sub(heard.at) < DROPPED_AFTER);
        fresh.map(|(node, heard)| (*node, &*heard.load))
    }

    /// Returns the functions whose containers end as soon as they start on some node, each with when it may get one again.
    pub(crate) fn held(&self) -> BTreeMap<FunctionId, Timestamp> {
        let mut held = self.inner.crashes.held(now());
        for heard in self.inner.others.lock().values() {
            for (function, until) in &heard.held {
                let longest = held.entry(*function).or_insert(*until);
                *longest = (*longest).max(*until);
            }
        }
        held
    }

    /// Returns which clients other nodes hear, if this one hears enough of them to know: most of the members, and all that tell it
    /// something at all, each since a moment ago.
    pub(crate) fn clients_elsewhere(&self, state: &State) -> Option<Elsewhere> {
        let (clock, mut heard, mut elsewhere) = (self.inner.clock(), 1, Elsewhere { all_tell: true, ..Elsewhere::default() });
        for node in state.members.keys().filter(|node| **node != self.inner.me) {
            let others = self.inner.others.lock();
            match others.get(node).filter(|heard| clock.saturating_sub(heard.at) < DROPPED_AFTER / 2) {
                Some(one) => {
                    heard += 1;
                    match &one.besides {
                        Some(besides) => elsewhere.apps.extend(&besides.clients),
                        None => elsewhere.all_tell = false,
                    }
                }
                None => {
                    drop(others);
                    elsewhere.all_tell &= self.is_lost(*node);
                }
            }
        }
        (heard * 2 > state.members.len()).then_some(elsewhere)
    }

    /// Returns where a shard's records may be missing some, and how far they go there.
    pub(crate) fn suspects(&self, shard: ShardId) -> BTreeMap<NodeId, Mark> {
        let own = self.inner.suspect.lock().get(&shard).map(|mark| (self.inner.me, *mark));
        let others = self.inner.others.lock();
        own.into_iter().chain(others.iter().filter_map(|(node, heard)| Some((*node, *heard.suspect.get(&shard)?)))).collect()
    }

    /// Notes which shards of this node may miss records.
    pub(crate) fn set_suspect(&self, suspect: BTreeMap<ShardId, Mark>) {
        *self.inner.suspect.lock() = suspect;
    }

    fn report(&self) -> Report {
        let now = now();
        let load = Report::turn((**self.inner.calls.load().borrow()).clone(), now);
        let held = self.inner.crashes.held(now).into_iter().map(|(function, until)| (function, until.0.saturating_sub(now.0)));
        let hears = self.inner.hearing.lock().hears(self.inner.clock());
        Report { load, held: held.collect(), suspect: self.inner.suspect.lock().clone(), hears }
    }

    fn besides(&self) -> Besides {
        Besides { clients: self.inner.lifecycle.heard() }
    }

    /// Writes what another node is to be told.
    fn written(&self) -> Bytes {
        let mut told = postcard::to_stdvec(&self.report()).expect("a report can be written");
        told.extend(postcard::to_stdvec(&self.besides()).expect("what is besides can be written"));
        told.into()
    }

    fn hear(&self, node: NodeId, report: Report, besides: Option<Besides>) {
        let (now, clock) = (now(), self.inner.clock());
        let held = report.held.into_iter().map(|(function, ms)| (function, Timestamp(now.0 + ms))).collect();
        let load = Arc::new(Report::turn(report.load, now));
        self.inner.hearing.lock().hear(node, report.hears, clock);
        let heard = Heard { at: clock, load, held, suspect: report.suspect, besides };
        self.inner.others.lock().insert(node, heard);
        self.inner.changed.send_replace(());
    }
}

/// Hears others and tells them until `stop`.
pub(crate) async fn run(reports: Reports, peers: Peers, stop: CancellationToken) {
    let heard = reports.clone();
    peers.endpoint.serve(REPORTS, move |stream, _| hear(heard.clone(), stream));
    let watching = tokio::spawn(notice_pauses(reports.clone(), stop.clone()));
    let looking = tokio::spawn(notice_losses(reports.clone(), stop.clone()));
    let raft = reports.inner.raft.clone();
    peers::for_each_other(&raft, &stop, |node, address| {
        let (reports, endpoint) = (reports.clone(), peers.endpoint.clone());
        async move { tell(&reports, &endpoint, node, &address).await }
    })
    .await;
    let _ = watching.await;
    let _ = looking.await;
}

async fn hear(reports: Reports, mut stream: Stream) {
    while let Ok(Some(frame)) = stream.next().await {
        let read = postcard::take_from_bytes(&frame).and_then(|(report, rest)| {
            let besides = if rest.is_empty() { None } else { Some(postcard::from_bytes(rest)?) };
            Ok((report, besides))
        });
        match read {
            Ok((report, besides)) => reports.hear(stream.peer(), report, besides),
            Err(error) => return tracing::warn!(node = %stream.peer(), %error, "a report cannot be read: are the nodes of one release?"),
        }
    }
}

/// Tells one node how this one is, for as long as it is a member.
async fn tell(reports: &Reports, endpoint: &Endpoint, node: NodeId, address: &str) {
    let (mut load, mut ended) = (reports.inner.calls.load(), reports.inner.ended.subscribe());
    loop {
        if let Ok(mut stream) = endpoint.open_stream(node, address, REPORTS).await {
            loop {
                let told = reports.written();
                load.borrow_and_update();
                ended.borrow_and_update();
                match tokio::time::timeout(SEND_WAIT, stream.send(told)).await {
                    Ok(Ok(())) if !endpoint.is_outdated(&stream) && reports.is_good_way(stream.through()) => {}
                    _ => break,
                }
                let leads = reports.inner.raft.leader().is_some_and(|leader| leader.node == node);
                let gap = tokio::time::sleep(if leads { LEADER_GAP } else { GAP });
                let more = async {
                    gap.await;
                    let _ = tokio::time::timeout(EVERY, load.changed()).await;
                };
                // Whom this node does not hear any more others want to know at once.
                tokio::select! {
                    () = more => {}
                    _ = ended.changed() => {}
                }
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use shoal_state::written::hold;

    use super::*;

    #[test]
    fn what_nodes_of_version_6_report_is_read() {
        hold::<(Report, Besides)>("a report", include_str!("../tests/written/6/report.txt"), 0);
    }
}
