//! The end of a node that is out of the cluster: it was removed, or the cluster was recovered without it.
//!
//! It goes on while the others need its vote to go on without it, and then stops with a sentence. Its containers end with it: the
//! cluster has given their work to others.

use std::time::{Duration, Instant};

use shoal_state::model::Removed;
use shoal_state::{NodeId, Refused};

use crate::api::Api;
use crate::standing;

/// How often is looked, should nothing change.
const EVERY: Duration = Duration::from_secs(2);
/// When nothing could be decided for so long the others are asked whether they still want this node.
const UNDECIDED_MAX: Duration = Duration::from_secs(8);
/// How long the others have to take over what only this node could tell them.
const FAREWELL: Duration = Duration::from_secs(1);

/// Why a node is out.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Departed(pub(crate) String);

impl Departed {
    /// Says that a node was removed by an operator, or by a recovery.
    pub(crate) fn removed(id: NodeId, removed: &Removed) -> Self {
        Self(Refused::NodeRemoved { id, why: removed.why.clone() }.to_string())
    }
}

/// Waits until this node is out of the cluster and the others need it no more.
pub(crate) async fn out(api: &Api) -> Departed {
    let raft = api.cluster.raft();
    let mut decided = Instant::now();
    loop {
        tokio::time::sleep(EVERY).await;
        // A leader without a majority takes itself for one still.
        if standing::undecided(raft).is_none() {
            decided = Instant::now();
        }
        let state = api.local();
        let departed = match state.removed.get(&api.cluster.node) {
            Some(removed) if raft.has_no_vote().await => Departed::removed(api.cluster.node, removed),
            // Whoever was cut off when it was removed hears it from the others alone.
            _ if decided.elapsed() > UNDECIDED_MAX => match api.peers.refusal(raft).await {
                Some(refused) => Departed(refused.to_string()),
                None => continue,
            },
            _ => continue,
        };
        if let Err(error) = api.gate.forget() {
            tracing::warn!(%error, "cannot delete the key of the cluster's CA");
        }
        tokio::time::sleep(FAREWELL).await;
        return departed;
    }
}
