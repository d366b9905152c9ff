//! When each peer last answered this node, and when anything was last heard of any.
//!
//! openraft tells how far a follower's log is, not whether it is there: nothing new is no sign of death.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use shoal_state::NodeId;
use tokio::time::{Duration, Instant};

/// When each peer last answered a message of openraft's. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heard(Arc<Mutex<Times>>);

#[derive(Debug, Default)]
struct Times {
    answers: BTreeMap<NodeId, Instant>,
    /// When a peer last answered or asked.
    anything: Option<Instant>,
    /// When this node last agreed to what a leader said.
    leader: Option<Instant>,
}

impl Heard {
    /// Notes that a peer has answered.
    pub(crate) fn note(&self, node: NodeId) {
        let (now, mut times) = (Instant::now(), self.0.lock());
        times.answers.insert(node, now);
        times.anything = Some(now);
    }

    /// Notes that some peer has asked something.
    pub(crate) fn note_question(&self) {
        self.0.lock().anything = Some(Instant::now());
    }

    /// Notes that this node has agreed to what a leader said.
    pub(crate) fn note_leader(&self) {
        self.0.lock().leader = Some(Instant::now());
    }

    /// Returns how long ago this node agreed to what a leader said; none if it never did since this start.
    pub(crate) fn leader_ago(&self) -> Option<Duration> {
        self.0.lock().leader.map(|at| at.elapsed())
    }

    /// Says whether a peer has answered or asked since then.
    pub(crate) fn anything_since(&self, at: Instant) -> bool {
        self.0.lock().anything.is_some_and(|heard| heard > at)
    }

    /// Returns when a peer last answered; none if it never did since this start.
    pub(crate) fn at(&self, node: NodeId) -> Option<Instant> {
        self.0.lock().answers.get(&node).copied()
    }

    /// Returns how long ago a peer answered; none if it never did since this start.
    pub(crate) fn ago(&self, node: NodeId) -> Option<Duration> {
        self.at(node).map(|at| at.elapsed())
    }
}
