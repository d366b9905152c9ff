//! What a node's Raft is opened with.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use openraft::{Config, ConfigError, SnapshotPolicy};
use shoal_state::NodeId;

use crate::network::{NoTransport, Transport};

/// How long one piece of a snapshot may take to be sent and, for the last one, installed.
const SNAPSHOT_PIECE_MAX: Duration = Duration::from_secs(30);

/// The size of such a piece.
const SNAPSHOT_PIECE_BYTES: u64 = 1 << 20;

/// The most entries that one message to a follower carries; the log also bounds its bytes.
const MESSAGE_ENTRIES_MAX: u64 = 300;

/// Who this node is, where its Raft keeps its files, how it reaches its peers.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folder of Raft's files: the log, the facts beside it, snapshots. It belongs to this node alone, for ever.
    pub dir: PathBuf,
    /// This node's id.
    pub node: NodeId,
    /// Where peers reach this node, `host:port`; empty for a node that is alone.
    pub address: String,
    /// Carries messages to peers.
    pub transport: Arc<dyn Transport>,
    /// Times and sizes.
    pub tuning: Tuning,
}

impl Options {
    /// Returns the options of a node that is alone.
    pub fn alone(dir: impl Into<PathBuf>, node: NodeId) -> Self {
        let transport = Arc::new(NoTransport);
        Self { dir: dir.into(), node, address: String::new(), transport, tuning: Tuning::default() }
    }
}

/// Times and sizes of Raft.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    /// How often the leader tells its followers that it is there.
    pub heartbeat: Duration,
    /// How long a follower waits at least without a word of the leader before it stands for election.
    pub election_min: Duration,
    /// How long it waits at most.
    pub election_max: Duration,
    /// After how long without answers of a majority a leader gives up the lead. Longer than an election takes.
    pub quorum_lost: Duration,
    /// A snapshot is made after this many entries.
    pub snapshot_every: u64,
    /// How many entries that a snapshot holds already are kept for followers that are a little behind.
    ///
    /// At twice [`Self::snapshot_every`], the log goes on from the snapshot before the newest too.
    pub entries_kept: u64,
    /// Size of a segment file of the log: what a purge gives back at once.
    pub segment_bytes: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(200),
            election_min: Duration::from_millis(800),
            election_max: Duration::from_millis(1600),
            quorum_lost: Duration::from_secs(3),
            snapshot_every: 2000,
            entries_kept: 4000,
            segment_bytes: 16 << 20,
        }
    }
}

impl Tuning {
    pub(crate) fn config(&self) -> Result<Config, Box<ConfigError>> {
        let config = Config {
            cluster_name: "shoal".into(),
            heartbeat_interval: millis(self.heartbeat),
            election_timeout_min: millis(self.election_min),
            election_timeout_max: millis(self.election_max),
            install_snapshot_timeout: millis(SNAPSHOT_PIECE_MAX),
            snapshot_max_chunk_size: SNAPSHOT_PIECE_BYTES,
            max_payload_entries: MESSAGE_ENTRIES_MAX,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_every),
            // A follower that is further behind than the log reaches gets a snapshot.
            replication_lag_threshold: self.entries_kept.max(self.snapshot_every),
            max_in_snapshot_log_to_keep: self.entries_kept,
            ..Config::default()
        };
        config.validate().map_err(Box::new)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
