//! What is written to a shard, what goes between its nodes, and what is told of it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use shoal_state::model::{Shard, ShardChange};
use shoal_state::{NodeId, ShardId};
use shoal_storage::log::{self, Position};

use crate::shards::record::{HEADER_BYTES, Header, Kind, NotARecord};
use crate::shards::replica::{Counted, Mark, Refused, Role};

/// A record to be written.
#[derive(Debug, Clone)]
pub struct Draft {
    /// The shard it belongs to.
    pub shard: ShardId,
    /// What it is for.
    pub kind: Kind,
    /// What it belongs to within the shard.
    pub owner: u128,
    /// Its body in parts, which are written one after the other.
    pub body: [Bytes; 2],
}

/// Records of one shard on their way from its home to another node. Without records it asks how far the node has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Append {
    /// The shard.
    pub shard: ShardId,
    /// The home's epoch. Records may be of older ones.
    pub epoch: u64,
    /// The record before the first one.
    pub after: Mark,
    /// The records, headers included.
    pub records: Vec<Bytes>,
}

/// How far a node has come with a shard: what it tells the shard's home.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// The shard.
    pub shard: ShardId,
    /// The epoch that the node has applied.
    pub epoch: u64,
    /// Up to which record it has written and synced.
    pub far: Counted,
}

/// The way to the other nodes.
pub trait Replicas: Send + 'static {
    /// Sends records to a node, in order of the calls. Must not block. Once something was lost on the way,
    /// [`super::Shards::gone`] must be told, and the node be fed anew ([`super::Shards::feed`]).
    fn send(&mut self, to: NodeId, append: Append);

    /// Asks a node to sync what it was sent so far, and to say when that is done.
    fn sync(&mut self, to: NodeId);
}

/// What is known of a shard at one node, for whoever decides about its members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardView {
    /// Which.
    pub shard: ShardId,
    /// The members as this node knows them.
    pub config: Shard,
    /// What this node is to it.
    pub role: Role,
    /// The last record here.
    pub tail: Mark,
    /// The change that the home has asked for and not heard of.
    pub asked: Option<ShardChange>,
    /// The nodes that have told that they have everything that counts, and are sent each new record; known by its home.
    pub caught_up: Vec<NodeId>,
    /// The nodes that are sent each new record.
    pub fed: Vec<NodeId>,
}

/// What went wrong in [`Shards`](super::Shards).
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The log failed. What was not acknowledged may or may not be there; nothing works until the node process starts anew.
    #[error("the log of the shards failed")]
    Log(#[from] log::Error),
    /// A record cannot be understood.
    #[error("the record at {position} of the log of the shards cannot be read")]
    Record {
        /// Where it stands.
        position: Position,
        /// Why not.
        #[source]
        source: NotARecord,
    },
    /// The body of a record cannot be understood.
    #[error("record {index} of {shard} cannot be understood")]
    Body {
        /// Its shard.
        shard: ShardId,
        /// Its index.
        index: u64,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The rules of the shard say no.
    #[error(transparent)]
    Refused(#[from] Refused),
}

impl Append {
    /// Returns the last record that it brings, or after which it would.
    pub fn end(&self) -> Mark {
        let headers = self.records.iter().rev().filter_map(|record| Header::decode(record).ok());
        headers.filter(|header| header.kind != Kind::Kept).map(|header| header.mark).next().unwrap_or(self.after)
    }

    /// Says whether it brings no record.
    pub fn is_empty(&self) -> bool {
        self.records.iter().all(|record| is_kept(record))
    }
}

fn is_kept(record: &[u8]) -> bool {
    Header::decode(record).is_ok_and(|header| header.kind == Kind::Kept)
}

pub(super) fn encode(draft: &Draft, mark: Mark) -> Bytes {
    let header = Header { kind: draft.kind, shard: draft.shard, mark, owner: draft.owner };
    let mut out = Vec::with_capacity(HEADER_BYTES + draft.body[0].len() + draft.body[1].len());
    out.extend_from_slice(&header.encode());
    out.extend_from_slice(&draft.body[0]);
    out.extend_from_slice(&draft.body[1]);
    out.into()
}
