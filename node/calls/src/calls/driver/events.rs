//! What reaches the owner of the calls: requests, records, what is decided of shards.

use serde::{Deserialize, Serialize};
use shoal_state::model::{Shard, ShardChange};
use shoal_state::{NodeId, ShardId};
use tokio::sync::oneshot;

use super::Reply;
use crate::calls::rules::Request;
use crate::shards::replica::Refused;
use crate::shards::{Ack, Append, Mark, ShardView};

/// What reaches the owner.
#[derive(Debug)]
pub(in crate::calls) enum Event {
    Ask {
        request: Request,
        reply: oneshot::Sender<Reply>,
    },
    Configure {
        shards: Vec<(ShardId, Shard)>,
        reply: oneshot::Sender<()>,
    },
    Received {
        appends: Vec<Append>,
        reply: oneshot::Sender<Vec<Result<Ack, Starved>>>,
    },
    Acked {
        from: NodeId,
        acks: Vec<Ack>,
    },
    Feed {
        to: NodeId,
        shard: ShardId,
        tail: Mark,
        reply: oneshot::Sender<Append>,
    },
    /// Answered with what was synced for this home, at once or after a sync that begins from now on.
    Synced {
        home: NodeId,
        anew: bool,
        reply: oneshot::Sender<Vec<Ack>>,
    },
    Gone {
        node: NodeId,
        shard: Option<ShardId>,
    },
    /// Answered with those shards for which this node does not vouch in these epochs.
    Vouch {
        epochs: Vec<(ShardId, u64)>,
        reply: oneshot::Sender<Vec<ShardId>>,
    },
    Views {
        reply: oneshot::Sender<Vec<ShardView>>,
    },
    AskChange {
        shard: ShardId,
        epoch: u64,
        change: ShardChange,
        reply: oneshot::Sender<Result<(), Refused>>,
    },
    ChangeRefused {
        shard: ShardId,
        epoch: u64,
    },
    Stop {
        reply: oneshot::Sender<()>,
    },
}

/// Records of a shard's home were refused. It feeds this node from where its own log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{why}")]
pub struct Starved {
    /// The shard.
    pub shard: ShardId,
    /// The last record here.
    pub tail: Mark,
    /// Why.
    #[source]
    pub why: Refused,
}
