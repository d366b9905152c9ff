//! The leader's word to nodes that are no members of consensus: that they are none, and who votes.
//!
//! A new node knows nobody, one that was away may know nobody any more that is there, and one that lost its vote cannot read so in a log
//! that it is not sent any more. Each is told until it hears a voter, and then from time to time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use shoal_raft::{FOLLOWERS_SINCE, Peer, Raft, Status};
use shoal_state::{NodeId, State};
use tokio::task::JoinSet;

/// The pause after a node was told that hears no voter yet.
const AGAIN: Duration = Duration::from_secs(1);
/// The pause after a node was told that does.
const FROM_TIME_TO_TIME: Duration = Duration::from_secs(30);

/// Who was told, and is being told.
#[derive(Debug, Default)]
pub(super) struct Invites {
    /// When each was told last, and whether it heard a voter then.
    told: BTreeMap<NodeId, (Instant, bool)>,
    telling: BTreeSet<NodeId>,
    tasks: JoinSet<(NodeId, shoal_raft::Result<bool>)>,
}

impl Invites {
    /// Forgets everything: another node leads.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Tells those that are due.
    pub(super) fn look(&mut self, raft: &Raft, status: &Status, state: &State) {
        if status.version < FOLLOWERS_SINCE {
            return;
        }
        while let Some(done) = self.tasks.try_join_next() {
            let Ok((node, heard)) = done else { continue };
            if let Err(error) = &heard {
                tracing::debug!(%error, "a node does not follow yet");
            }
            self.telling.remove(&node);
            self.told.insert(node, (Instant::now(), heard.unwrap_or(false)));
        }
        let followers = followers(status, state);
        self.told.retain(|node, _| followers.iter().any(|peer| peer.node == *node));
        for peer in followers {
            if is_due(self.told.get(&peer.node).copied()) && self.telling.insert(peer.node) {
                let raft = raft.clone();
                self.tasks.spawn(async move { (peer.node, raft.invite(&peer).await) });
            }
        }
    }
}

fn is_due(told: Option<(Instant, bool)>) -> bool {
    told.is_none_or(|(at, heard)| at.elapsed() >= if heard { FROM_TIME_TO_TIME } else { AGAIN })
}

/// Returns the members of the cluster that are no members of consensus.
fn followers(status: &Status, state: &State) -> Vec<Peer> {
    let is_member = |id: &NodeId| status.voters.iter().chain(&status.learners).any(|peer| peer.node == *id);
    let others = state.members.iter().filter(|(id, _)| !is_member(id));
    others.map(|(id, member)| Peer { node: *id, address: member.address.clone() }).collect()
}
