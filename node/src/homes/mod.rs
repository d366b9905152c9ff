//! Where calls are at home: told to the records of calls whenever it changes, and the way to those that are at home elsewhere.
//!
//! | file | subject |
//! |---|---|
//! | `records` | copies of records, from their homes to the nodes that keep them |
//! | `members` | who holds a shard, and who takes a lost home's place |

mod members;
mod records;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use shoal_calls::calls::Road;
use shoal_calls::shards::members::suspects_in;
use shoal_calls::shards::told::{News, Told};
use shoal_calls::{Calls, Error};
use shoal_peer::{Endpoint, Service};
use shoal_raft::Raft;
use shoal_state::NodeId;
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::peers::Peers;
use crate::reports::Reports;

pub(crate) use members::vacate;
pub(crate) use shoal_calls::calls::copies::Outbox;

/// Requests to the calls of another node.
const CALLS: Service = Service::new(3, "answer for the calls that are at home there");

/// Carries requests to the homes of calls.
#[derive(Debug)]
struct PeerCalls {
    endpoint: Endpoint,
    raft: Raft,
}

impl Road for PeerCalls {
    fn ask<'a>(&'a self, home: NodeId, request: Bytes, patience: Duration) -> BoxFuture<'a, Result<Bytes, String>> {
        Box::pin(async move {
            let member = self.raft.local().members.get(&home).cloned();
            let member = member.ok_or_else(|| format!("node {home} is no member of this cluster any more"))?;
            let answer = self.endpoint.call(home, &member.address, CALLS, request, patience).await;
            answer.map_err(|error| error.to_string())
        })
    }
}

/// Answers other nodes for the calls that are at home here, and asks them for the others, from now on.
pub(crate) fn start(peers: &Peers, raft: &Raft, calls: &Calls) {
    calls.set_road(Arc::new(PeerCalls { endpoint: peers.endpoint.clone(), raft: raft.clone() }));
    let calls = calls.clone();
    peers.endpoint.serve(CALLS, move |mut stream, _| {
        let calls = calls.clone();
        async move {
            let Ok(Some(request)) = stream.next().await else { return };
            tokio::select! {
                answer = calls.serve(request) => {
                    if let Err(error) = stream.send(answer).await.and_then(|()| stream.finish()) {
                        tracing::debug!(peer = %stream.peer(), %error, "a node did not wait for the answer of calls");
                    }
                }
                // Whoever asked is gone: what was leased to it must not wait for it.
                () = stream.closed() => {}
            }
        }
    });
}

/// Keeps records where they belong, and tells the calls where shards are at home, now and whenever that changes, until `stop`.
/// `told` is what they were told before.
pub(crate) async fn run(api: Api, outbox: Outbox, told: Told, stop: CancellationToken) {
    let (raft, calls) = (api.cluster.raft().clone(), api.calls.clone());
    let copying = records::run(api.peers.clone(), raft.clone(), calls.clone(), outbox.clone(), stop.clone());
    let deciding = members::run(api.clone(), outbox, stop.clone());
    let giving_up = members::run_lost_tasks(api.clone(), stop.clone());
    let freeing = members::run_ended_tasks(api.clone(), stop.clone());
    tokio::join!(follow(raft, calls, api.reports.clone(), told, stop), copying, deciding, giving_up, freeing);
}

async fn follow(raft: Raft, calls: Calls, reports: Reports, mut told: Told, stop: CancellationToken) {
    let mut changes = raft.watch();
    loop {
        let state = raft.local();
        calls.take_up(&state);
        if let Err(error) = tell(&raft, &calls, &reports, told.take(raft.node(), &state)).await {
            tracing::error!(%error, "the calls of this node do not learn where shards are at home");
            return;
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
    }
}

async fn tell(raft: &Raft, calls: &Calls, reports: &Reports, News { changed, came_home: came }: News) -> Result<(), Error> {
    if !changed.is_empty() {
        calls.configure(changed).await?;
    }
    if came.is_empty() {
        return Ok(());
    }
    // What a lost node's tasks ran is leased again, without waiting for its answer.
    let (lost, members): (Vec<NodeId>, Vec<NodeId>) = raft.local().members.keys().copied().partition(|node| reports.is_lost(*node));
    if members.len() < 2 {
        return calls.take_over(came, &members, lost, |_| std::future::pending()).await;
    }
    // Others must hear that this node is home before they answer; what happens to shards meanwhile must not wait for them.
    let (calls, reports) = (calls.clone(), reports.clone());
    tokio::spawn(async move {
        if let Err(error) = calls.take_over(came, &members, lost, |node| reports.clone().until_lost(node)).await {
            tracing::warn!(%error, "cannot hear what tasks run of shards that came home; what nobody claims waits a little longer");
        }
    });
    Ok(())
}

/// Takes home the shards that the state gives to this node. A cluster of one knows at once what its tasks run: nothing,
/// since they died with the node's former process. Returns what the state says.
pub(crate) async fn open(raft: &Raft, calls: &Calls, reports: &Reports) -> Result<Told, Error> {
    let mut told = Told::default();
    tell(raft, calls, reports, told.take(raft.node(), &raft.local())).await?;
    // Nobody is to hear of this node before that.
    reports.set_suspect(suspects_in(&calls.views().await?));
    Ok(told)
}
