//! Confirms that the state here is the latest: one round for everybody who waits.
//!
//! The leader asks a majority whether it still leads and so learns up to which entry a state must be to be the latest;
//! any other node asks the leader. Who comes while a round runs waits for the next: a round that began before the
//! question proves nothing about it.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::confirm::ask_majority;
use crate::network::{Declined, Index, Links, Request, Transport, decode, encode};
use crate::route::{Route, replaced, route};
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

/// Serves until every handle is gone.
pub(crate) async fn run(core: Core, links: Links, mut inbox: mpsc::Receiver<Read>) {
    while let Some(first) = inbox.recv().await {
        let mut readers = vec![first];
        while let Ok(reader) = inbox.try_recv() {
            readers.push(reader);
        }
        let way = route(&core);
        let leads = matches!(way, Route::Here);
        let index = tokio::time::timeout(ROUND_MAX, ask(&core, &links, way)).await.unwrap_or(Err(Declined::Unanswered));
        for reader in readers {
            let answer = if reader.from_peer && !leads { Err(Declined::NotLeader) } else { index.clone() };
            // A reader that gave up is fine.
            let _ = reader.reply.send(answer);
        }
    }
}

async fn ask(core: &Core, links: &Links, way: Route) -> Index {
    match way {
        Route::Here => ask_majority(core, links, ROUND_MAX).await,
        Route::There(leader) => tokio::select! {
            index = ask_leader(&*links.transport, &leader) => index,
            // One that is lost would be waited for in vain.
            () = replaced(core, leader.node) => Err(Declined::NotLeader),
        },
        Route::Nowhere => Err(Declined::NotLeader),
    }
}

async fn ask_leader(transport: &dyn Transport, leader: &Peer) -> Index {
    let reply = transport.call(leader, encode(&Request::ReadIndex), ROUND_MAX).await;
    let reply = reply.map_err(|_| Declined::Unanswered)?;
    decode::<Index>(&reply).unwrap_or(Err(Declined::Unanswered))
}
