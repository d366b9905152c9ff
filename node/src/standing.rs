//! How each member stands, in its own words: how far its log is, whom it takes for the leader, whether it lets nodes in.
//!
//! It is asked by operators' commands on whatever node they are, so it must come without a leader and without a majority.

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use shoal_peer::Service;
use shoal_raft::{Raft, Role};
use shoal_state::NodeId;

use crate::api::Api;
use crate::peers;

/// A node's word about itself.
const STANDING: Service = Service::new(10, "say how it stands");
/// The form of the answer.
const FORMAT: u8 = 1;
/// How long a node may take to say it.
const PATIENCE: Duration = Duration::from_secs(2);
/// A leader that had no answers of a majority for so long may have been replaced, and decides nothing.
const MAJORITY_WITHIN: Duration = Duration::from_secs(3);

/// How a node stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Standing {
    /// The last entry that it applied.
    pub(crate) applied: u64,
    /// The term it is in.
    pub(crate) term: u64,
    /// Whom it takes for the leader.
    pub(crate) leader: Option<NodeId>,
    /// Whether it has the key of the cluster's CA.
    pub(crate) lets_in: bool,
    /// By which voter it is told what is decided, where it is no member of consensus. Stands behind the rest: nodes of older releases do
    /// not tell it, and overlook it.
    #[serde(skip)]
    pub(crate) told_by: Option<NodeId>,
}

/// Tells peers how this node stands, from now on.
pub(crate) fn serve(api: &Api) {
    let held = api.clone();
    api.peers.endpoint.serve(STANDING, move |mut stream, _| {
        let api = held.clone();
        async move {
            let mut bytes = vec![FORMAT];
            let own = own(&api);
            bytes.extend(postcard::to_stdvec(&own).unwrap_or_default());
            bytes.extend(postcard::to_stdvec(&own.told_by).unwrap_or_default());
            if let Err(error) = stream.send(bytes.into()).await.and_then(|()| stream.finish()) {
                tracing::debug!(peer = %stream.peer(), %error, "a peer did not wait to hear how this node stands");
            }
        }
    });
}

/// Says how this node stands.
pub(crate) fn own(api: &Api) -> Standing {
    let raft = api.cluster.raft().status();
    let told_by = match raft.role {
        Role::Follower(by) => by,
        Role::Member => None,
    };
    Standing { applied: raft.applied, term: raft.term, leader: raft.leader, lets_in: api.gate.lets_in(), told_by }
}

/// Asks all members at once, this one too; those that do not answer are named with the reason.
pub(crate) async fn of_all(api: &Api) -> Vec<(NodeId, Result<Standing, String>)> {
    let ask = |(node, address): (NodeId, String)| async move {
        let answer = api.peers.endpoint.call(node, &address, STANDING, Bytes::new(), PATIENCE).await;
        let heard = |bytes: Bytes| match bytes.split_first() {
            Some((&FORMAT, rest)) => read(rest).map_err(|error| error.to_string()),
            _ => Err("it is of another release".to_owned()),
        };
        (node, answer.map_err(|error| error.to_string()).and_then(heard))
    };
    let mut all = join_all(peers::others(api.cluster.raft()).into_iter().map(ask)).await;
    all.push((api.cluster.node, Ok(own(api))));
    all.sort_by_key(|(node, _)| *node);
    all
}

fn read(bytes: &[u8]) -> Result<Standing, postcard::Error> {
    let (standing, rest) = postcard::take_from_bytes::<Standing>(bytes)?;
    let told_by = if rest.is_empty() { None } else { postcard::from_bytes(rest)? };
    Ok(Standing { told_by, ..standing })
}

/// Says why the cluster decides nothing at the moment, as far as this node knows.
pub(crate) fn undecided(raft: &Raft) -> Option<String> {
    let status = raft.status();
    let voters = status.voters.len();
    let needed = format!(
        "{} of {voters} voters must be up and reach each other. Start those that are missing; if they are gone for good, stop this \
         node and run `shoal recover` on it",
        voters / 2 + 1
    );
    match (status.leader, status.quorum_heard) {
        (None, _) => Some(format!("the cluster has no leader, so nothing can be decided: {needed}")),
        (Some(leader), Some(heard)) if leader == status.node && heard > MAJORITY_WITHIN && voters > 1 => {
            Some(format!("this node leads, and no majority answers it, so nothing can be decided: {needed}"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use shoal_state::written::hold;

    use super::*;

    #[test]
    fn what_nodes_of_version_6_say_is_read() {
        hold::<Standing>("how a node stands", include_str!("../tests/written/6/standing.txt"), 0);
    }
}
