//! What people and dashboards want to know about a node's Raft.

use shoal_state::NodeId;

use crate::handle::Raft;
use crate::tally::Mark;
use crate::types::Peer;

/// A node's Raft at one moment. Indexes are those of entries; 0 where there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// This node.
    pub node: NodeId,
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
    /// Members that don't.
    pub learners: Vec<Peer>,
    /// The active version of the rules.
    pub version: u32,
    /// Hashes of all answers, to be compared with other nodes'.
    pub marks: Vec<Mark>,
    /// Why Raft has stopped here, if it has.
    pub stopped: Option<String>,
}

impl Raft {
    /// Returns the leader, as far as this node knows.
    pub fn leader(&self) -> Option<Peer> {
        let metrics = self.inner.running.core.metrics();
        let metrics = metrics.borrow();
        metrics.membership_config.membership().get_node(&metrics.current_leader?).cloned()
    }

    /// Says whether this node leads, as far as it knows.
    pub fn leads(&self) -> bool {
        self.leader().is_some_and(|leader| leader.node == self.node())
    }

    /// Returns the current term, as far as this node knows.
    pub fn term(&self) -> u64 {
        self.inner.running.core.metrics().borrow().current_term
    }

    /// Returns how this node's Raft is doing.
    pub fn status(&self) -> Status {
        let running = &self.inner.running;
        let leader = self.leader().map(|leader| leader.node);
        let metrics = running.core.metrics();
        let metrics = metrics.borrow().clone();
        let members = metrics.membership_config.membership();
        let of = |ids: &mut dyn Iterator<Item = u64>| ids.filter_map(|id| members.get_node(&id).cloned()).collect();
        let stopped = metrics.running_state.is_err().then(|| self.why_stopped());
        Status {
            node: self.node(),
            leader,
            term: metrics.current_term,
            applied: running.view.watch().borrow().index,
            last_log: metrics.last_log_index.unwrap_or(0),
            snapshot: metrics.snapshot.map_or(0, |id| id.index),
            purged: metrics.purged.map_or(0, |id| id.index),
            voters: of(&mut members.voter_ids()),
            learners: of(&mut members.learner_ids()),
            version: running.view.version(),
            marks: running.view.marks(),
            stopped: running.stop.get().map(str::to_owned).or(stopped),
        }
    }
}
