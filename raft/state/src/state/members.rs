//! Who belongs to the cluster.
//!
//! A node is a member from the command that admits it to the one that removes it, whether it is up or not. A token admits one
//! node. A node that was removed never comes back under its id: what it may still hold is of a cluster that went on without it.

use imbl::OrdMap;

use super::{Applied, State};
use crate::model::{Cluster, Member, Removed, Shard, TaskEnd, TokenPurpose, Voting};
use crate::{Event, NodeId, Refused, ShardId, TaskId, Timestamp, TokenId};

/// The most nodes that vote: with more of them a decision takes longer, and five stand the loss of two.
pub const VOTERS_MAX: usize = 5;

impl State {
    pub(super) fn found_cluster(&mut self, cluster: &Cluster) -> Applied {
        if self.cluster.is_none() {
            self.cluster = Some(cluster.clone());
        }
        Ok(vec![Event::NodesChanged])
    }

    pub(super) fn admit_node(&mut self, id: NodeId, member: &Member, token: Option<TokenId>, at: Timestamp) -> Applied {
        self.not_removed(id)?;
        match (self.members.get(&id), token) {
            // Its new start, or the same request again.
            (Some(held), _) => {
                let member = Member { joined: held.joined, ..member.clone() };
                self.members.insert(id, member);
            }
            // Who founds the cluster has nobody to ask.
            (None, None) if self.members.is_empty() => drop(self.members.insert(id, member.clone())),
            (None, None) => return Err(Refused::NoNode { id }),
            (None, Some(token)) => {
                self.use_up(token, id, at)?;
                self.members.insert(id, member.clone());
            }
        }
        Ok(vec![Event::NodesChanged])
    }

    fn use_up(&mut self, id: TokenId, node: NodeId, at: Timestamp) -> Result<(), Refused> {
        let token = self.tokens.get(&id).filter(|token| token.purpose == TokenPurpose::Node).ok_or(Refused::NoToken { id })?;
        if let Some(by) = self.tokens_used.get(&id) {
            return Err(Refused::TokenUsed { id, by: *by });
        }
        if token.revoked.is_some() {
            return Err(Refused::TokenRevoked { id });
        }
        if token.expires.is_some_and(|expires| expires <= at) {
            return Err(Refused::TokenExpired { id });
        }
        self.tokens_used.insert(id, node);
        Ok(())
    }

    /// Refuses what a removed node still asks for.
    pub(super) fn not_removed(&self, id: NodeId) -> Result<(), Refused> {
        match self.removed.get(&id) {
            Some(removed) => Err(Refused::NodeRemoved { id, why: removed.why.clone() }),
            None => Ok(()),
        }
    }

    pub(super) fn remove_node(&mut self, id: NodeId, at: Timestamp, why: &str) -> Applied {
        if self.removed.contains_key(&id) {
            return Ok(vec![]);
        }
        if !self.members.contains_key(&id) && !self.nodes.contains_key(&id) {
            return Err(Refused::NoNode { id });
        }
        if self.members.keys().all(|member| *member == id) {
            return Err(Refused::LastNode { id });
        }
        if let Some(shard) = self.shards_on(id).next() {
            let count = self.shards_on(id).count();
            return Err(Refused::NodeHoldsShards { id, shard, count: u32::try_from(count).unwrap_or(u32::MAX) });
        }
        self.voter_besides(id)?;
        self.leave(id, at, why)
    }

    /// Returns the shards whose records a node has.
    pub fn shards_on(&self, node: NodeId) -> impl Iterator<Item = ShardId> {
        let is_held = move |shard: &Shard| shard.home == node || shard.in_sync.contains(&node);
        self.shards.iter().filter(move |(_, shard)| is_held(shard)).map(|(id, _)| *id)
    }

    /// Refuses what would leave nobody who may vote.
    fn voter_besides(&self, id: NodeId) -> Result<(), Refused> {
        let may_vote = |other: &NodeId| *other != id && self.voting.get(other) != Some(&Voting::MustNot);
        if self.members.keys().any(may_vote) { Ok(()) } else { Err(Refused::NoVoterLeft { id }) }
    }

    /// Takes a node out, with what it ran.
    fn leave(&mut self, id: NodeId, at: Timestamp, why: &str) -> Applied {
        let mut events = vec![Event::NodesChanged];
        let tasks: Vec<(TaskId, u64)> =
            self.tasks.iter().filter(|(_, task)| task.node == id).map(|(task, about)| (*task, about.generation)).collect();
        let end = TaskEnd { at, how: format!("its node has left the cluster: {why}") };
        for (task, generation) in tasks {
            events.extend(self.end_task(task, generation, &end)?);
        }
        let joining: Vec<ShardId> = self.shards.iter().filter(|(_, shard)| shard.joining.contains(&id)).map(|(shard, _)| *shard).collect();
        for shard in joining {
            if let Some(held) = self.shards.get_mut(&shard) {
                held.joining.retain(|node| *node != id);
                held.epoch += 1;
                events.push(Event::ShardChanged(shard));
            }
        }
        self.members.remove(&id);
        self.voting.remove(&id);
        self.nodes.remove(&id);
        self.gpus.remove(&id);
        self.removed.insert(id, Removed { at, why: why.to_owned() });
        Ok(events)
    }

    pub(super) fn label_node(&mut self, id: NodeId, labels: &OrdMap<String, String>) -> Applied {
        self.nodes.get_mut(&id).ok_or(Refused::NoNode { id })?.labels = labels.clone();
        Ok(vec![Event::NodesChanged])
    }

    pub(super) fn set_voting(&mut self, id: NodeId, voting: Option<Voting>) -> Applied {
        self.not_removed(id)?;
        if !self.members.contains_key(&id) {
            return Err(Refused::NoNode { id });
        }
        match voting {
            Some(Voting::Must) if self.nodes.get(&id).is_some_and(|node| node.draining) => return Err(Refused::DrainingVoter { id }),
            Some(Voting::Must) => {
                let others = self.voting.iter().filter(|(other, voting)| **other != id && **voting == Voting::Must).count();
                if others >= VOTERS_MAX {
                    return Err(Refused::VotersMax { id });
                }
            }
            Some(Voting::MustNot) => self.voter_besides(id)?,
            None => {}
        }
        match voting {
            Some(voting) => drop(self.voting.insert(id, voting)),
            None => drop(self.voting.remove(&id)),
        }
        Ok(vec![Event::NodesChanged])
    }

    pub(super) fn recover_cluster(&mut self, survivor: NodeId, generation: u32, at: Timestamp) -> Applied {
        let Some(cluster) = self.cluster.as_mut().filter(|cluster| cluster.generation < generation) else { return Ok(vec![]) };
        if !self.members.contains_key(&survivor) {
            return Err(Refused::NoNode { id: survivor });
        }
        cluster.generation = generation;
        self.voting.clear();
        let mut events = vec![Event::NodesChanged];
        let shards: Vec<ShardId> = self.shards.keys().copied().collect();
        for id in shards {
            let Some(shard) = self.shards.get_mut(&id) else { continue };
            let alone = Shard { epoch: shard.epoch, home: survivor, in_sync: vec![survivor], joining: vec![] };
            if *shard != alone {
                *shard = Shard { epoch: shard.epoch + 1, ..alone };
                events.push(Event::ShardChanged(id));
            }
        }
        let others: Vec<NodeId> = self.members.keys().chain(self.nodes.keys()).copied().filter(|id| *id != survivor).collect();
        for other in others {
            if !self.removed.contains_key(&other) {
                events.extend(self.leave(other, at, "the cluster was recovered without it")?);
            }
        }
        Ok(events)
    }
}
