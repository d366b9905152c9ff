//! Who belongs to the cluster.
//!
//! A node is a member from the command that admits it to the one that removes it, whether it is up or not. A token admits one
//! node. A node that was removed never comes back under its id: what it may still hold is of a cluster that went on without it.

use imbl::OrdMap;

use super::{Applied, State};
use crate::model::{Cluster, Member, Removed, TokenPurpose};
use crate::{Event, NodeId, Refused, ShardId, TaskId, Timestamp, TokenId};

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
        if let Some((shard, _)) = self.shards.iter().find(|(_, shard)| shard.home == id || shard.in_sync.contains(&id)) {
            let count = self.shards.values().filter(|shard| shard.home == id || shard.in_sync.contains(&id)).count();
            return Err(Refused::NodeHoldsShards { id, shard: *shard, count: u32::try_from(count).unwrap_or(u32::MAX) });
        }
        let mut events = vec![Event::NodesChanged];
        let tasks: Vec<(TaskId, u64)> =
            self.tasks.iter().filter(|(_, task)| task.node == id).map(|(task, about)| (*task, about.generation)).collect();
        for (task, generation) in tasks {
            events.extend(self.end_task(task, generation)?);
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
        self.nodes.remove(&id);
        self.removed.insert(id, Removed { at, why: why.to_owned() });
        Ok(events)
    }

    pub(super) fn label_node(&mut self, id: NodeId, labels: &OrdMap<String, String>) -> Applied {
        self.nodes.get_mut(&id).ok_or(Refused::NoNode { id })?.labels = labels.clone();
        Ok(vec![Event::NodesChanged])
    }
}
