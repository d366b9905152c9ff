//! The time as calls count it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ground::Ground;
use super::model::Millis;

/// Wall-clock time that never goes back or jumps: read once, then counted on.
#[derive(Debug, Clone)]
pub(super) struct Clock {
    ground: Arc<dyn Ground>,
    began: Instant,
    began_ms: Millis,
}

impl Clock {
    pub(super) fn start(ground: Arc<dyn Ground>) -> Self {
        let (began, began_ms) = (ground.now(), ground.wall_ms());
        Self { ground, began, began_ms }
    }

    pub(super) fn now(&self) -> Millis {
        self.began_ms + u64::try_from(self.ground.now().saturating_duration_since(self.began).as_millis()).unwrap_or(0)
    }

    /// Returns the instant at which [`Self::now`] gives `at`.
    pub(super) fn instant(&self, at: Millis) -> Instant {
        self.began + Duration::from_millis(at.saturating_sub(self.began_ms))
    }
}
