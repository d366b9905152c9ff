//! Starting the cluster anew with one survivor, when the majority of those that vote is gone for good.
//!
//! The survivor becomes the only voter of what its disk has, and its cluster gets a new generation: nodes of the old one are refused
//! in words from then on. The state follows at the next start, by a command of its own.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Serialize;
use shoal_raft::{Left, Peer};
use shoal_state::{NodeId, State};

use crate::api;
use crate::folder::{self, Folder};
use crate::keys::Orphan;

/// What a recovery would leave behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Plan {
    /// The folder.
    pub(crate) data: PathBuf,
    /// The node that goes on.
    pub(crate) survivor: String,
    /// The generation that the cluster gets.
    pub(crate) generation: u32,
    /// The members that are out for good, by their names.
    pub(crate) left_behind: Vec<String>,
    /// The last entry of the log that is known to be decided.
    pub(crate) applied: u64,
    /// How many entries follow of which this node does not know that; they count as decided.
    pub(crate) undecided: usize,
    /// Shards of calls that this node has no copy of: what they hold is lost.
    pub(crate) shards_lost: usize,
    /// Shards of calls that this node has a copy of and was not the home of: the newest records may be missing.
    pub(crate) shards_taken: usize,
    /// Tasks of the other nodes: they are over for this cluster.
    pub(crate) tasks_ended: usize,
    /// Whether the key of the cluster's CA is not here: there will be another CA.
    pub(crate) new_authority: bool,
}

impl Plan {
    fn of(data: &Path, node: NodeId, left: &Left, orphan: &Orphan) -> anyhow::Result<Self> {
        let state = &left.state;
        anyhow::ensure!(
            state.members.contains_key(&node),
            "node {node} is no member of its cluster, as far as its disk knows: there is nothing to go on with"
        );
        let name = |id: &NodeId| state.nodes.get(id).map_or_else(|| id.to_string(), |known| format!("{} ({id})", known.name));
        let left_behind: Vec<String> = state.members.keys().filter(|id| **id != node).map(name).collect();
        anyhow::ensure!(!left_behind.is_empty(), "node {node} is the only one of its cluster: start it, there is nothing to recover from");
        let of_state = state.cluster.as_ref().map_or(0, |cluster| cluster.generation);
        let shards = || state.shards.values();
        Ok(Self {
            data: data.to_owned(),
            survivor: name(&node),
            generation: of_state.max(orphan.cluster.generation) + 1,
            left_behind,
            applied: left.applied,
            undecided: left.undecided,
            shards_lost: shards().filter(|shard| !shard.in_sync.contains(&node)).count(),
            shards_taken: shards().filter(|shard| shard.in_sync.contains(&node) && shard.home != node).count(),
            tasks_ended: tasks_elsewhere(state, node),
            new_authority: !orphan.has_authority,
        })
    }

    /// Says what may be lost, a line each.
    pub(crate) fn costs(&self) -> Vec<String> {
        let mut costs = vec![
            format!("these nodes are out for good, and must be wiped before they join anew: {}", self.left_behind.join(", ")),
            format!("what the others decided after entry {} of the log, and this node never got", self.applied + self.undecided as u64),
        ];
        if self.undecided > 0 {
            let undecided = self.undecided;
            costs.push(format!("{undecided} entries count as decided of which this node does not know that the others had agreed to them"));
        }
        if self.shards_lost > 0 {
            costs.push(format!("all calls and results of {} shards, of which this node has no copy", self.shards_lost));
        }
        if self.shards_taken > 0 {
            costs.push(format!("the newest records of {} shards, if this node's copies were behind", self.shards_taken));
        }
        if self.tasks_ended > 0 {
            costs.push(format!("{} tasks of the other nodes; their inputs run again here", self.tasks_ended));
        }
        costs.push("images, files and blobs that only the others had".to_owned());
        if self.new_authority {
            costs.push("the key of the cluster's CA is not here, so that there will be another CA".to_owned());
        }
        costs
    }
}

fn tasks_elsewhere(state: &State, node: NodeId) -> usize {
    state.tasks.values().filter(|task| task.node != node).count()
}

/// Says what a recovery of the node in a data folder would leave behind. The node must not run.
pub(crate) fn plan(data: &Path) -> anyhow::Result<Plan> {
    let _folder = stopped(Folder::look(data))?;
    planned(data).map(|(plan, _)| plan)
}

/// Says what to look at first where the node runs: its cluster may have all that it needs.
fn stopped(folder: anyhow::Result<Folder>) -> anyhow::Result<Folder> {
    folder.map_err(|error| match error.downcast_ref() {
        Some(folder::Error::Runs { .. }) => {
            anyhow::anyhow!("{error}. Look at `shoal status` before: while it names a leader there is nothing to recover from")
        }
        _ => error,
    })
}

fn planned(data: &Path) -> anyhow::Result<(Plan, Orphan)> {
    let orphan = Orphan::open(data)?;
    let left = shoal_raft::look(&data.join("raft")).context("cannot read what this node has of the cluster")?;
    Ok((Plan::of(data, orphan.node, &left, &orphan)?, orphan))
}

/// Makes the node in a data folder the only one of its cluster, durably. Once more is fine, should it have been interrupted.
pub(crate) fn recover(data: &Path) -> anyhow::Result<Plan> {
    let _folder = stopped(Folder::take_stopped(data))?;
    let (plan, orphan) = planned(data)?;
    let left = shoal_raft::look(&data.join("raft"))?;
    let address = left.state.members.get(&orphan.node).map(|member| member.address.clone()).unwrap_or_default();
    shoal_raft::recover(&data.join("raft"), Peer { node: orphan.node, address })
        .context("cannot make this node the only one that votes")?;
    orphan.begin(plan.generation, api::now_seconds())?;
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use shoal_raft::Raft;
    use shoal_state::model::{self, Member, Node, Resources};
    use shoal_state::{BootId, Command, Timestamp, TokenId};

    use super::*;
    use crate::keys::Keys;

    /// Leaves the disk of a node whose cluster has this many members, of which it founded one.
    async fn left_by(data: &Path, members: u128) -> Keys {
        let folder = Folder::take(data).unwrap();
        let keys = Keys::open(data, 1_800_000_000).unwrap();
        let raft = Raft::open(shoal_raft::Options::alone(data.join("raft"), keys.node)).await.unwrap();
        raft.bootstrap_alone().await.unwrap();
        let cluster = model::Cluster { id: keys.cluster.id, generation: 1, founded: Timestamp(1) };
        let member = |id: NodeId| Member { address: format!("{id}:1"), version: 4, release: String::new(), joined: Timestamp(1) };
        let token = |number| model::Token {
            secret_hash: shoal_state::Digest::of(b""),
            purpose: model::TokenPurpose::Node,
            label: format!("{number}"),
            created: Timestamp(1),
            expires: None,
            revoked: None,
        };
        raft.propose(vec![Command::SetVersion { version: shoal_state::VERSION_KNOWN }]).await.unwrap();
        let mut commands = vec![Command::FoundCluster { cluster }];
        commands.push(Command::AdmitNode { id: keys.node, member: member(keys.node), token: None, at: Timestamp(1) });
        let node = |name: String| Node::new(name, BootId::from_random(1), Resources::default(), Timestamp(2));
        commands.push(Command::PutNode { id: keys.node, node: node("own".to_owned()) });
        for number in 1..members {
            let (id, token_id) = (NodeId::from_random(number), TokenId::from_random(number));
            commands.push(Command::CreateToken { id: token_id, token: token(number) });
            commands.push(Command::AdmitNode { id, member: member(id), token: Some(token_id), at: Timestamp(2) });
            commands.push(Command::PutNode { id, node: node(format!("n{number}")) });
        }
        commands.push(Command::InitShards { home: if members > 1 { NodeId::from_random(1) } else { keys.node } });
        for answer in raft.propose(commands).await.unwrap() {
            answer.unwrap();
        }
        raft.shutdown().await;
        drop(folder);
        keys
    }

    #[tokio::test]
    async fn what_may_be_lost_is_said_and_nothing_is_changed_before() {
        let dir = tempfile::tempdir().unwrap();
        let keys = left_by(dir.path(), 3).await;
        let plan = plan(dir.path()).unwrap();
        assert_eq!((plan.generation, plan.left_behind.len(), plan.shards_lost, plan.new_authority), (2, 2, 256, false));
        let costs = plan.costs().join("\n");
        assert!(costs.contains("n1 (no-") && costs.contains("all calls and results of 256 shards"), "{costs}");
        assert_eq!(Keys::open(dir.path(), 1_800_000_000).unwrap().cluster, keys.cluster);
    }

    #[tokio::test]
    async fn the_survivor_is_the_only_one_of_a_new_generation() {
        let dir = tempfile::tempdir().unwrap();
        let keys = left_by(dir.path(), 2).await;
        // It never voted, or has deleted the key: the cluster gets another CA, and this node a certificate of it.
        std::fs::remove_file(dir.path().join("keys/ca.key")).unwrap();
        assert!(recover(dir.path()).unwrap().new_authority);
        let after = Keys::open(dir.path(), 1_800_000_000).unwrap();
        assert_eq!((after.node, after.cluster.id, after.cluster.generation), (keys.node, keys.cluster.id, 2));
        assert_ne!(after.identity.fingerprint(), keys.identity.fingerprint());
        assert!(after.authority.is_some());
        let again = recover(dir.path()).unwrap();
        assert!(!again.new_authority && again.generation == 3, "once more is fine");
    }

    #[tokio::test]
    async fn a_cluster_of_one_has_nothing_to_recover_from() {
        let dir = tempfile::tempdir().unwrap();
        left_by(dir.path(), 1).await;
        let said = plan(dir.path()).unwrap_err().to_string();
        assert!(said.contains("is the only one of its cluster: start it"), "{said}");
        let empty = tempfile::tempdir().unwrap();
        assert!(plan(empty.path()).is_err());
    }
}
