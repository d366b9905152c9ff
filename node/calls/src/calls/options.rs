//! How the calls of a node are kept, and why they cannot be, or have ended.

use std::path::PathBuf;

use shoal_state::{NodeId, ShardId};

use super::record::NotARecord;
use super::rules::INPUTS_WAITING_MAX;
use super::streams;
use crate::shards::StoreError;

/// How the calls of a node are kept.
#[derive(Debug, Clone)]
pub struct Options {
    /// Their folder, for this alone. Beside it, under its name with another extension, are `.streams` (emptied on open) and `.boot`.
    pub dir: PathBuf,
    /// This node.
    pub node: NodeId,
    /// Size of a segment of the log.
    pub segment_bytes: u64,
    /// On how many nodes records must be to count. While there are fewer, nothing is acknowledged.
    pub min_copies: usize,
    /// How many inputs of one function may wait.
    pub waiting_max: usize,
}

impl Options {
    /// Returns the usual ones.
    pub fn new(dir: impl Into<PathBuf>, node: NodeId) -> Self {
        Self { dir: dir.into(), node, segment_bytes: 64 << 20, min_copies: 1, waiting_max: INPUTS_WAITING_MAX }
    }
}

/// Why calls cannot be opened, or have ended.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// The log or a shard failed.
    #[error("the shards in {} failed", dir.display())]
    Shards {
        /// Their folder.
        dir: PathBuf,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The folder of the data streams failed.
    #[error("the folder of data streams failed")]
    Streams(#[from] streams::Error),
    /// A record of calls cannot be understood.
    #[error("{shard} has a record of calls that cannot be read, number {index}")]
    Record {
        /// Its shard.
        shard: ShardId,
        /// Its index.
        index: u64,
        /// Why.
        #[source]
        source: NotARecord,
    },
    /// The thread cannot be started, or the machine's boot cannot be told.
    #[error("cannot {what}")]
    System {
        /// What.
        what: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}
