//! Where calls are at home: told to the records of calls whenever it changes, and the way to those that are at home elsewhere.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use shoal_calls::Calls;
use shoal_calls::calls::Road;
use shoal_peer::{Endpoint, Service};
use shoal_raft::Raft;
use shoal_state::NodeId;
use tokio_util::sync::CancellationToken;

use crate::peers::Peers;

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

/// Tells the calls where shards are at home, now and whenever that changes, until `stop`.
pub(crate) async fn follow(raft: Raft, calls: Calls, stop: CancellationToken) {
    let mut changes = raft.watch();
    let mut told = raft.local().shards;
    loop {
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
        let shards = raft.local().shards;
        if shards.ptr_eq(&told) || shards == told {
            continue;
        }
        let changed = shards.iter().filter(|(id, shard)| told.get(*id) != Some(*shard)).map(|(id, shard)| (*id, shard.clone()));
        if let Err(error) = calls.configure(changed.collect()).await {
            tracing::error!(%error, "the calls of this node do not learn where shards are at home");
            return;
        }
        told = shards;
    }
}
