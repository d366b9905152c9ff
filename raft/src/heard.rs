//! When each peer last answered this node.
//!
//! openraft tells how far a follower's log is, not whether it is there: nothing new is no sign of death.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use shoal_state::NodeId;
use tokio::time::{Duration, Instant};

/// When each peer last answered a message of openraft's. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heard(Arc<Mutex<BTreeMap<NodeId, Instant>>>);

impl Heard {
    /// Notes that a peer has answered.
    pub(crate) fn note(&self, node: NodeId) {
        self.0.lock().insert(node, Instant::now());
    }

    /// Returns how long ago a peer answered; none if it never did since this start.
    pub(crate) fn ago(&self, node: NodeId) -> Option<Duration> {
        self.0.lock().get(&node).map(Instant::elapsed)
    }
}
