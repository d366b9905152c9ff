//! Confirms that the state here is the latest: one round for everybody who waits.
//!
//! The leader asks a majority whether it still leads and so learns up to which entry a state must be to be the latest;
//! any other node asks the leader. Who comes while a round runs waits for the next: a round that began before the
//! question proves nothing about it.

use std::time::Duration;

use shoal_state::NodeId;
use tokio::sync::{mpsc, oneshot, watch};

use crate::confirm::ask_majority;
use crate::follow::Fed;
use crate::network::{Declined, Index, Links, Request, Transport, decode, encode};
use crate::route::{Route, replaced, replaced_in, route_by, route_of};
use crate::types::{Core, Peer};

/// How many readers may wait for the next round. Further ones wait for a place, up to their deadline.
pub(crate) const READS_QUEUED_MAX: usize = 4096;

/// How long one round may take before those who wait are told to try again.
const ROUND_MAX: Duration = Duration::from_secs(2);

/// Somebody who waits for a round.
#[derive(Debug)]
pub(crate) struct Read {
    /// Whether the question came from another node: then it is not passed on.
    pub(crate) from_peer: bool,
    pub(crate) reply: oneshot::Sender<Index>,
}

/// How a node finds the leader.
#[derive(Clone)]
pub(crate) enum Way {
    Member(Core),
    Follower(watch::Receiver<Fed>),
}

impl Way {
    fn route(&self) -> Route {
        match self {
            Self::Member(core) => route_by(&core.server_metrics().borrow()),
            Self::Follower(fed) => route_of(&fed.borrow()),
        }
    }

    async fn replaced(&self, leader: NodeId) {
        match self {
            Self::Member(core) => replaced(core, leader).await,
            Self::Follower(fed) => replaced_in(fed, leader).await,
        }
    }
}

/// Serves until every handle is gone.
pub(crate) async fn run(way: Way, links: Links, mut inbox: mpsc::Receiver<Read>) {
    while let Some(first) = inbox.recv().await {
        let mut readers = vec![first];
        while let Ok(reader) = inbox.try_recv() {
            readers.push(reader);
        }
        let route = way.route();
        let leads = matches!(route, Route::Here);
        let index = tokio::time::timeout(ROUND_MAX, ask(&way, &links, route)).await.unwrap_or(Err(Declined::Unanswered));
        for reader in readers {
            let answer = if reader.from_peer && !leads { Err(Declined::NotLeader) } else { index.clone() };
            // A reader that gave up is fine.
            let _ = reader.reply.send(answer);
        }
    }
}

async fn ask(way: &Way, links: &Links, route: Route) -> Index {
    match (route, way) {
        (Route::Here, Way::Member(core)) => ask_majority(core, links, ROUND_MAX).await,
        (Route::There(leader), _) => tokio::select! {
            index = ask_leader(&*links.transport, &leader) => index,
            // One that is lost would be waited for in vain.
            () = way.replaced(leader.node) => Err(Declined::NotLeader),
        },
        (Route::Here, Way::Follower(_)) | (Route::Nowhere, _) => Err(Declined::NotLeader),
    }
}

async fn ask_leader(transport: &dyn Transport, leader: &Peer) -> Index {
    let reply = transport.call(leader, encode(&Request::ReadIndex), ROUND_MAX).await;
    let reply = reply.map_err(|_| Declined::Unanswered)?;
    decode::<Index>(&reply).unwrap_or(Err(Declined::Unanswered))
}
