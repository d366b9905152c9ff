//! Shards: who holds them, and each change of that, one epoch after the other.

use super::{Applied, State};
use crate::model::{Shard, ShardChange};
use crate::refused::MemberIs;
use crate::{Event, NodeId, Refused, ShardId};

impl State {
    pub(super) fn init_shards(&mut self, home: NodeId) -> Applied {
        if !self.nodes.contains_key(&home) {
            return Err(Refused::NoNode { id: home });
        }
        let mut events = Vec::new();
        for shard in ShardId::all() {
            if !self.shards.contains_key(&shard) {
                self.shards.insert(shard, Shard { epoch: 1, home, in_sync: vec![home], joining: vec![] });
                events.push(Event::ShardChanged(shard));
            }
        }
        Ok(events)
    }

    pub(super) fn change_shard(&mut self, id: ShardId, epoch: u64, change: ShardChange) -> Applied {
        let shard = self.shards.get(&id).ok_or(Refused::NoShard { shard: id })?;
        if shard.epoch != epoch {
            return Err(Refused::OldEpoch { shard: id, epoch, current: shard.epoch });
        }
        let next = changed(id, shard, change)?;
        self.shards.insert(id, next);
        Ok(vec![Event::ShardChanged(id)])
    }
}

/// Returns a shard after a change, one epoch later.
fn changed(id: ShardId, shard: &Shard, change: ShardChange) -> Result<Shard, Refused> {
    let refuse = |node, is| Err(Refused::ShardMember { shard: id, node, is });
    let mut next = shard.clone();
    next.epoch += 1;
    match change {
        ShardChange::Promote(node) => {
            if !shard.in_sync.contains(&node) {
                return refuse(node, MemberIs::NotInSync);
            }
            next.home = node;
            next.in_sync = vec![node];
            next.joining.clear();
        }
        ShardChange::Invite(node) => {
            if shard.in_sync.contains(&node) {
                return refuse(node, MemberIs::InSync);
            }
            insert_sorted(&mut next.joining, node);
        }
        ShardChange::Join(node) => {
            if !shard.joining.contains(&node) {
                return refuse(node, MemberIs::NotJoining);
            }
            next.joining.retain(|joining| *joining != node);
            insert_sorted(&mut next.in_sync, node);
        }
        ShardChange::Drop(node) => {
            if shard.home == node {
                return refuse(node, MemberIs::Home);
            }
            if !shard.in_sync.contains(&node) {
                return refuse(node, MemberIs::NotInSync);
            }
            next.in_sync.retain(|member| *member != node);
        }
        ShardChange::Abort(node) => {
            if !shard.joining.contains(&node) {
                return refuse(node, MemberIs::NotJoining);
            }
            next.joining.retain(|joining| *joining != node);
        }
    }
    Ok(next)
}

fn insert_sorted(nodes: &mut Vec<NodeId>, node: NodeId) {
    if let Err(place) = nodes.binary_search(&node) {
        nodes.insert(place, node);
    }
}
