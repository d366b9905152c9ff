//! The streams by which records of shards go from their homes to the nodes that keep copies: see [`shoal_calls::calls::copies`].

use std::time::Duration;

use bytes::Bytes;
use shoal_calls::Calls;
use shoal_calls::calls::copies::{self, Outbox};
use shoal_peer::{Endpoint, Service, Stream};
use shoal_raft::Raft;
use shoal_state::NodeId;
use tokio_util::sync::CancellationToken;

use crate::peers::{self, Peers};

/// Records of calls for a node that keeps copies.
const RECORDS: Service = Service::new(8, "keep copies of calls");

/// How long a node that could not be reached is left alone.
const REST: Duration = Duration::from_millis(200);

struct Outgoing(shoal_peer::Outgoing);

impl copies::Outgoing for Outgoing {
    async fn send(&mut self, frame: Bytes) -> Result<(), String> {
        self.0.send(frame).await.map_err(|error| error.to_string())
    }
}

struct Incoming(shoal_peer::Incoming);

impl copies::Incoming for Incoming {
    async fn ready(&mut self) -> Result<(), String> {
        self.0.ready().await.map_err(|error| error.to_string())
    }

    async fn next(&mut self) -> Result<Option<Bytes>, String> {
        self.0.next().await.map_err(|error| error.to_string())
    }
}

fn halves(stream: Stream) -> (Outgoing, Incoming) {
    let (out, incoming) = stream.split();
    (Outgoing(out), Incoming(incoming))
}

/// Sends copies to the other members, and keeps theirs, until `stop`.
pub(super) async fn run(peers: Peers, raft: Raft, calls: Calls, outbox: Outbox, stop: CancellationToken) {
    let kept = calls.clone();
    peers.endpoint.serve(RECORDS, move |stream, _| keep(stream, kept.clone()));
    peers::for_each_other(&raft, &stop, |node, address| {
        let (endpoint, calls, outbox) = (peers.endpoint.clone(), calls.clone(), outbox.clone());
        async move {
            loop {
                if let Err(why) = copy(&endpoint, node, &address, &calls, &outbox).await {
                    tracing::debug!(%node, why, "records do not reach a node; it is fed once they do");
                }
                tokio::time::sleep(REST).await;
            }
        }
    })
    .await;
}

async fn copy(endpoint: &Endpoint, node: NodeId, address: &str, calls: &Calls, outbox: &Outbox) -> Result<(), String> {
    let stream = endpoint.open_stream(node, address, RECORDS).await.map_err(|error| error.to_string())?;
    let through = stream.through();
    tokio::select! {
        ended = copies::copy(node, halves(stream), calls, outbox) => ended,
        () = endpoint.outdated(node, through) => Err("the node is reached directly again".to_owned()),
    }
}

/// Keeps copies for the home at the other end of a stream.
async fn keep(stream: Stream, calls: Calls) {
    let home = stream.peer();
    if let Err(why) = copies::keep(home, halves(stream), &calls).await {
        tracing::debug!(%home, why, "a home sends no more records");
    }
}
