//! Ids of dicts and queues: what is kept of either is kept alike.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{DictId, NotAnId, QueueId, ShardId};

/// A dict or a queue. Its shard, where its contents are, is in the first two characters of its id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ObjectId {
    /// A dict.
    Dict(DictId),
    /// A queue.
    Queue(QueueId),
}

impl ObjectId {
    /// Returns the shard that the first two characters name; `None` when no cluster has that shard.
    pub fn shard(self) -> Option<ShardId> {
        match self {
            Self::Dict(id) => id.shard(),
            Self::Queue(id) => id.shard(),
        }
    }

    /// Returns the id's number.
    pub const fn bits(self) -> u128 {
        match self {
            Self::Dict(id) => id.bits(),
            Self::Queue(id) => id.bits(),
        }
    }

    /// Returns what people call such a thing.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Dict(_) => "Dict",
            Self::Queue(_) => "Queue",
        }
    }

    /// Says whether another is of the same kind.
    pub const fn is_like(self, other: Self) -> bool {
        matches!((self, other), (Self::Dict(_), Self::Dict(_)) | (Self::Queue(_), Self::Queue(_)))
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dict(id) => id.fmt(f),
            Self::Queue(id) => id.fmt(f),
        }
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ObjectId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        if text.starts_with(QueueId::PREFIX) { text.parse().map(Self::Queue) } else { text.parse().map(Self::Dict) }
    }
}

impl From<DictId> for ObjectId {
    fn from(id: DictId) -> Self {
        Self::Dict(id)
    }
}

impl From<QueueId> for ObjectId {
    fn from(id: QueueId) -> Self {
        Self::Queue(id)
    }
}
