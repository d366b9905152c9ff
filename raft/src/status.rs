//! What people and dashboards want to know about a node's Raft.

use std::time::Duration;

use shoal_state::NodeId;

use crate::handle::Raft;
use crate::log::LogStore;
use crate::part::Part;
use crate::route::{Route, route};
use crate::tally::Mark;
use crate::types::{Peer, RaftState, raft_id};

/// What the leader knows of another member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Follower {
    /// Which node.
    pub node: NodeId,
    /// Up to which entry its log is known to be the leader's; 0 = nothing is known.
    pub matched: u64,
    /// How long ago it last answered; none if it never did since this node's start.
    pub heard: Option<Duration>,
}

/// What a node is to consensus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It takes part: it votes, or is about to.
    Member,
    /// It is told by one that votes what is decided; none while it looks for one.
    Follower(Option<NodeId>),
}

/// A node's Raft at one moment. Indexes are those of entries; 0 where there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// This node.
    pub node: NodeId,
    /// What it is to consensus.
    pub role: Role,
    /// The leader, as far as this node knows.
    pub leader: Option<NodeId>,
    /// The current term.
    pub term: u64,
    /// The last entry that was applied.
    pub applied: u64,
    /// The last entry of the log.
    pub last_log: u64,
    /// The last entry that the newest snapshot holds.
    pub snapshot: u64,
    /// The last entry that is no longer in the log.
    pub purged: u64,
    /// Members that vote.
    pub voters: Vec<Peer>,
    /// Members of consensus that don't, since they are about to, or of a cluster that has no followers yet.
    pub learners: Vec<Peer>,
    /// Who will vote once a change of the voters that has begun is finished; none while none is under way.
    pub changing_to: Option<Vec<NodeId>>,
    /// What the leader knows of the others; empty elsewhere.
    pub followers: Vec<Follower>,
    /// How long ago the leader last had the answers of a majority; none elsewhere, and before it had them.
    pub quorum_heard: Option<Duration>,
    /// The active version of the rules.
    pub version: u32,
    /// Hashes of all answers, to be compared with other nodes'.
    pub marks: Vec<Mark>,
    /// Why Raft has stopped here, if it has.
    pub stopped: Option<String>,
}

impl Status {
    /// Returns how a node stands that leads these, if nothing else is known of it.
    pub fn of_leader(node: NodeId, voters: Vec<Peer>, learners: Vec<Peer>) -> Self {
        Self {
            node,
            role: Role::Member,
            leader: Some(node),
            term: 1,
            applied: 1,
            last_log: 1,
            snapshot: 0,
            purged: 0,
            voters,
            learners,
            changing_to: None,
            followers: vec![],
            quorum_heard: None,
            version: shoal_state::VERSION_KNOWN,
            marks: vec![],
            stopped: None,
        }
    }
}

impl Raft {
    /// Returns the leader, as far as this node knows.
    pub fn leader(&self) -> Option<Peer> {
        match route(&self.part()) {
            Route::Here => Some(self.inner.me.clone()),
            Route::There(leader) => Some(leader),
            Route::Nowhere => None,
        }
    }

    /// Says whether this node leads, as far as it knows.
    pub fn leads(&self) -> bool {
        route(&self.part()) == Route::Here
    }

    /// Says whether a node votes, by the last word that this one has of the members, decided or not.
    pub fn votes(&self, node: NodeId) -> bool {
        self.members().voter_ids().any(|voter| voter == raft_id(node))
    }

    /// Says whether it is decided for good that this node has no vote, so that the others need it no more.
    pub async fn has_no_vote(&self) -> bool {
        let id = raft_id(self.node());
        let committed = move |state: &RaftState| {
            let members = [state.membership_state.committed(), state.membership_state.effective()];
            members.iter().all(|members| members.voter_ids().all(|voter| voter != id))
        };
        match self.part() {
            Part::Member(member) => member.core.with_raft_state(committed).await.unwrap_or(false),
            // What it takes part in no more is decided.
            Part::Follower(_) => self.members().voter_ids().all(|voter| voter != id),
            Part::Ended(_) => false,
        }
    }

    /// Returns the current term, as far as this node knows.
    pub fn term(&self) -> u64 {
        match self.part() {
            Part::Member(member) => member.core.metrics().borrow().current_term,
            Part::Follower(following) => following.follower.fed.borrow().term,
            Part::Ended(_) => 0,
        }
    }

    /// Returns how this node's Raft is doing.
    pub fn status(&self) -> Status {
        let running = &self.inner.running;
        let leader = self.leader().map(|leader| leader.node);
        let part = self.part();
        let metrics = match &part {
            Part::Member(member) => Some(member.core.metrics().borrow().clone()),
            Part::Follower(_) | Part::Ended(_) => None,
        };
        let stored = self.members();
        let members = stored.membership();
        let of = |ids: &mut dyn Iterator<Item = u64>| ids.filter_map(|id| members.get_node(&id).cloned()).collect();
        let joint = members.get_joint_config();
        let changing_to = (joint.len() > 1).then(|| joint.last().map(|last| of(&mut last.iter().copied())).unwrap_or_default());
        let node_of = |peers: Vec<Peer>| peers.into_iter().map(|peer| peer.node).collect();
        let follower = |(id, matched): (&u64, &Option<crate::types::LogId>)| {
            let node = members.get_node(id)?.node;
            Some(Follower { node, matched: matched.map_or(0, |id| id.index), heard: running.heard.ago(node) })
        };
        let replication = metrics.iter().flat_map(|metrics| metrics.replication.iter().flatten());
        let followers = replication.filter_map(follower).filter(|follower| follower.node != self.node());
        Status {
            node: self.node(),
            role: match &part {
                Part::Follower(following) => Role::Follower(following.follower.fed.borrow().by),
                Part::Member(_) | Part::Ended(_) => Role::Member,
            },
            leader,
            term: self.term(),
            applied: running.view.watch().borrow().index,
            last_log: part.log().and_then(LogStore::last).map_or(0, |id| id.index),
            snapshot: running.machine.folder().newest().map_or(0, |id| id.index),
            purged: part.log().and_then(LogStore::purged).map_or(0, |id| id.index),
            voters: of(&mut members.voter_ids()),
            learners: of(&mut members.learner_ids()),
            changing_to: changing_to.map(node_of),
            followers: followers.collect(),
            quorum_heard: metrics.as_ref().and_then(|metrics| metrics.millis_since_quorum_ack).map(Duration::from_millis),
            version: running.view.version(),
            marks: running.view.marks(),
            stopped: self.has_ended().then(|| self.why_stopped()),
        }
    }
}
