//! What the records of a node's calls have to do with other nodes: keeping copies of them, and taking shards over.

use std::time::Duration;

use shoal_state::model::ShardChange;
use shoal_state::{NodeId, ShardId};
use tokio::sync::oneshot;

use super::driver::{Event, Starved};
use super::error::Error;
use super::handle::Calls;
use crate::shards::replica::Refused;
use crate::shards::{Ack, Append, Mark, ShardView};

/// How long records wait for this node to hear of their epoch.
const EPOCH_WAIT: Duration = Duration::from_secs(2);

impl Calls {
    /// Takes records from the homes of their shards, in order. Returns for each how far this node has come, the acknowledgement,
    /// or that its home must feed this node first.
    ///
    /// Records of an epoch that this node has not heard of wait for it a little.
    pub async fn receive(&self, appends: Vec<Append>) -> Result<Vec<Result<Ack, Starved>>, Error> {
        let epochs: Vec<_> = appends.iter().map(|append| (append.shard, append.epoch)).collect();
        self.ground.within(EPOCH_WAIT, self.away.epochs_noted(&epochs)).await;
        let (reply, acks) = oneshot::channel();
        self.send(Event::Received { appends, reply }).await?;
        self.wait("take records", Duration::ZERO, acks).await
    }

    /// Notes how far another node has come with shards that are at home here.
    pub async fn acked(&self, from: NodeId, acks: Vec<Ack>) -> Result<(), Error> {
        self.send(Event::Acked { from, acks }).await
    }

    /// Returns what was synced here of shards that are at home at a node, and that it was not told: after a sync of all
    /// that was received, where `anew` is set.
    pub async fn synced_for(&self, home: NodeId, anew: bool) -> Result<Vec<Ack>, Error> {
        let (reply, acks) = oneshot::channel();
        self.send(Event::Synced { home, anew, reply }).await?;
        self.wait("sync records", Duration::ZERO, acks).await
    }

    /// Reads records for a node that catches up and whose log of the shard ends at `tail`. Once these are the last, new ones are
    /// sent to it as they come.
    pub async fn feed(&self, to: NodeId, shard: ShardId, tail: Mark) -> Result<Append, Error> {
        let (reply, append) = oneshot::channel();
        self.send(Event::Feed { to, shard, tail, reply }).await?;
        self.wait("read records", Duration::ZERO, append).await
    }

    /// Notes that what was sent to a node may not have come, of one shard or of all: it must be fed anew.
    pub async fn gone(&self, node: NodeId, shard: Option<ShardId>) -> Result<(), Error> {
        self.send(Event::Gone { node, shard }).await
    }

    /// Returns what this node knows of every shard.
    pub async fn views(&self) -> Result<Vec<ShardView>, Error> {
        let (reply, views) = oneshot::channel();
        self.send(Event::Views { reply }).await?;
        self.wait("look at the shards", Duration::ZERO, views).await
    }

    /// Notes that the home is about to ask Raft for a change of a shard: until the answer is known, records count only when the
    /// members before and after it have them. Refused while another change is not settled.
    pub async fn ask_change(&self, shard: ShardId, epoch: u64, change: ShardChange) -> Result<Result<(), Refused>, Error> {
        let (reply, noted) = oneshot::channel();
        self.send(Event::AskChange { shard, epoch, change, reply }).await?;
        self.wait("note a change", Duration::ZERO, noted).await
    }

    /// Notes that Raft will not make the change that was asked for.
    pub async fn change_refused(&self, shard: ShardId, epoch: u64) -> Result<(), Error> {
        self.send(Event::ChangeRefused { shard, epoch }).await
    }
}
