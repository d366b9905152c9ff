//! Who takes part: founding a cluster, and changing its voters.
//!
//! A change is a step by step affair that openraft keeps safe; who should vote is decided elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::error::{InitializeError, RaftError};
use shoal_state::NodeId;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::error::{Error, Result};
use crate::handle::Raft;
use crate::part::{Part, Wish};
use crate::types::{Core, Peer, RaftState, StoredMembership, raft_id};

/// How long founding a cluster waits for its leader.
const FOUNDING_DEADLINE: Duration = Duration::from_secs(10);

/// How long a change of the members may take.
const CHANGE_DEADLINE: Duration = Duration::from_secs(60);

impl Raft {
    /// Founds a cluster of this node alone, unless its folder holds one already; returns when it has a leader.
    pub async fn bootstrap_alone(&self) -> Result<()> {
        let founder = BTreeMap::from([(raft_id(self.node()), self.inner.me.clone())]);
        let is_new = self.part().log().is_some_and(|log| log.last().is_none()) && self.inner.running.machine.applied().is_none();
        if is_new && self.member().is_none() {
            let (done, joined) = oneshot::channel();
            let _ = self.inner.running.wishes.send(Wish::Join { done: Some(done) }).await;
            joined.await.map_err(|_| self.stop_error())?;
        }
        let Some(core) = self.member().map(|member| member.core.clone()) else { return self.hear_leader().await };
        // Asked first: openraft logs an error for a cluster that is founded twice.
        let founded = core.is_initialized().await.map_err(|_| self.stop_error())?;
        if !founded {
            match core.initialize(founder).await {
                Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
                Err(RaftError::APIError(error)) => return Err(Error::Membership { why: error.to_string() }),
                Err(RaftError::Fatal(_)) => return Err(self.stop_error()),
            }
        }
        let mut metrics = core.metrics();
        let led = timeout(FOUNDING_DEADLINE, metrics.wait_for(|metrics| metrics.current_leader.is_some())).await;
        match led {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(self.stop_error()),
            Err(_) => Err(Error::NoLeader { waited: FOUNDING_DEADLINE, voters: self.voters() }),
        }
    }

    /// Waits until this node, which founded a cluster once and only follows now, hears of a leader.
    async fn hear_leader(&self) -> Result<()> {
        let Part::Follower(following) = self.part() else { return Err(self.stop_error()) };
        let mut fed = following.follower.fed.clone();
        match timeout(FOUNDING_DEADLINE, fed.wait_for(|fed| fed.leader.is_some())).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(self.stop_error()),
            Err(_) => Err(Error::NoLeader { waited: FOUNDING_DEADLINE, voters: self.voters() }),
        }
    }

    /// Adds a member without a vote; it gets what it lacks by and by, see [`crate::Status::followers`]. Only the leader can.
    pub async fn add_learner(&self, peer: Peer) -> Result<()> {
        let id = raft_id(peer.node);
        let core = self.changing()?;
        let held = core.metrics().borrow().membership_config.membership().get_node(&id).cloned();
        if let Some(held) = held.filter(|held| held.node != peer.node) {
            let why = format!("node {} shares its number with member {}: give it another id", peer.node, held.node);
            return Err(Error::Membership { why });
        }
        self.check_votes().await?;
        let adding = core.add_learner(id, peer, false);
        finish(timeout(CHANGE_DEADLINE, adding).await, "a majority of the voters")
    }

    /// Makes exactly these members vote; others that voted only follow from then on. Finishes a change that was begun. Only the
    /// leader can. A leader that is none of them leaves with all who lose their votes: it would go on to lead as long as it is a
    /// member at all.
    pub async fn set_voters(&self, voters: &[NodeId]) -> Result<()> {
        let stays = voters.contains(&self.node());
        let voters: BTreeSet<u64> = voters.iter().copied().map(raft_id).collect();
        self.check_votes().await?;
        let core = self.changing()?;
        let changing = timeout(CHANGE_DEADLINE, core.change_membership(voters.clone(), stays)).await;
        match &changing {
            Ok(Err(RaftError::Fatal(_))) if !stays => self.left_to(&voters).await,
            _ => finish(changing, "a majority of the old and the new voters"),
        }
    }

    /// Says whether this node has left these as the voters: once that is decided, openraft ends here, maybe before it answers.
    async fn left_to(&self, voters: &BTreeSet<u64>) -> Result<()> {
        let mut part = self.inner.running.part.clone();
        let settled = timeout(CHANGE_DEADLINE, part.wait_for(|part| !matches!(part, Part::Member(_)))).await;
        match settled.map(|part| part.map(|part| part.clone())) {
            Ok(Ok(Part::Follower(_))) if self.members().voter_ids().eq(voters.iter().copied()) => Ok(()),
            Ok(Ok(Part::Follower(_))) => Err(Error::Membership { why: "this node was left out by another change meanwhile".to_owned() }),
            Ok(_) => Err(self.stop_error()),
            Err(_) => Err(Error::Membership { why: format!("waited {CHANGE_DEADLINE:?} for openraft to end on this node") }),
        }
    }

    /// Tells all members where one of them is reached from now on. Only the leader can.
    pub async fn set_address(&self, peer: Peer) -> Result<()> {
        let moved = ChangeMembers::SetNodes(BTreeMap::from([(raft_id(peer.node), peer)]));
        self.check_votes().await?;
        let core = self.changing()?;
        let changing = core.change_membership(moved, true);
        finish(timeout(CHANGE_DEADLINE, changing).await, "a majority of the voters")
    }

    /// Takes a member without a vote away. Only the leader can.
    pub async fn remove_learner(&self, node: NodeId) -> Result<()> {
        let gone = ChangeMembers::RemoveNodes(BTreeSet::from([raft_id(node)]));
        self.check_votes().await?;
        let core = self.changing()?;
        let changing = core.change_membership(gone, true);
        finish(timeout(CHANGE_DEADLINE, changing).await, "a majority of the voters")
    }

    /// Says no where this node has lost its vote: openraft lets such a leader lead on for a moment, and breaks at a change by it.
    async fn check_votes(&self) -> Result<()> {
        let id = raft_id(self.node());
        let votes = move |state: &RaftState| state.membership_state.effective().voter_ids().any(|voter| voter == id);
        match self.changing()?.with_raft_state(votes).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::Membership { why: "this node votes no more: whoever leads next is to do it".to_owned() }),
            Err(_) => Err(self.stop_error()),
        }
    }

    /// Returns openraft, or says why the members cannot be changed from here.
    fn changing(&self) -> Result<Core> {
        match self.part() {
            Part::Member(member) => Ok(member.core.clone()),
            Part::Follower(_) => Err(Error::Membership { why: "this node follows, and only the leader can do it".to_owned() }),
            Part::Ended(_) => Err(self.stop_error()),
        }
    }

    pub(crate) fn voters(&self) -> usize {
        self.members().voter_ids().count()
    }

    /// Returns the members by the last word of them that this node has; on a member this may not be decided yet.
    pub(crate) fn members(&self) -> StoredMembership {
        match self.part() {
            Part::Member(member) => (*member.core.metrics().borrow().membership_config).clone(),
            Part::Follower(_) | Part::Ended(_) => self.inner.running.machine.membership(),
        }
    }
}

fn finish<T, E: std::fmt::Display>(
    done: std::result::Result<std::result::Result<T, E>, tokio::time::error::Elapsed>,
    what: &str,
) -> Result<()> {
    match done {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(Error::Membership { why: error.to_string() }),
        Err(_) => Err(Error::Membership { why: format!("waited {CHANGE_DEADLINE:?} for {what}") }),
    }
}
