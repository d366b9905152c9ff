//! The types that openraft works with, and nothing that leaves this crate.

use serde::{Deserialize, Serialize};
use shoal_state::{Event, NodeId, Refused};

use crate::batch::Batch;
use crate::snapshot::SnapshotData;

/// What one command came to: what it changed, or why it changed nothing. The same on every node.
pub type Answer = Result<Vec<Event>, Refused>;

/// One answer for each command of an entry; none for openraft's own entries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answers(pub(crate) Vec<Answer>);

/// A member as Raft's configuration knows it: who it is and where it listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// The node's id.
    pub node: NodeId,
    /// Where its peers reach it, `host:port`; empty for a node that is alone.
    pub address: String,
}

impl Default for Peer {
    /// Names no node; openraft asks for a default where a node is not known.
    fn default() -> Self {
        Self { node: NodeId::from_random(0), address: String::new() }
    }
}

openraft::declare_raft_types!(
    pub(crate) TypeConfig:
        D = Batch,
        R = Answers,
        NodeId = u64,
        Node = Peer,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = SnapshotData,
        AsyncRuntime = openraft::TokioRuntime,
);

pub(crate) type Core = openraft::Raft<TypeConfig>;
pub(crate) type Entry = openraft::Entry<TypeConfig>;
pub(crate) type LogId = openraft::LogId<u64>;
pub(crate) type Vote = openraft::Vote<u64>;
pub(crate) type StorageError = openraft::StorageError<u64>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<u64, Peer>;
pub(crate) type Metrics = openraft::RaftMetrics<u64, Peer>;
pub(crate) type RaftState = openraft::RaftState<u64, Peer, <openraft::TokioRuntime as openraft::AsyncRuntime>::Instant>;
pub(crate) type StoredMembership = openraft::StoredMembership<u64, Peer>;

/// Returns the number under which Raft knows a node: the low half of its id.
///
/// Ids are random, so two members of one cluster share it with a chance of 2⁻⁶⁴ a pair; a member whose number is
/// taken by another node is refused when it is added.
pub(crate) fn raft_id(node: NodeId) -> u64 {
    u64::try_from(node.bits() & u128::from(u64::MAX)).unwrap_or_default()
}
