//! The time as calls count it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::model::Millis;

/// Wall-clock time that never goes back or jumps: read once, then counted on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    began: Instant,
    began_ms: Millis,
}

impl Clock {
    pub(super) fn start() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { began: Instant::now(), began_ms: u64::try_from(since.as_millis()).unwrap_or(0) }
    }

    pub(super) fn now(&self) -> Millis {
        self.began_ms + u64::try_from(self.began.elapsed().as_millis()).unwrap_or(0)
    }

    /// Returns the instant at which [`Self::now`] gives `at`.
    pub(super) fn instant(&self, at: Millis) -> Instant {
        self.began + Duration::from_millis(at.saturating_sub(self.began_ms))
    }
}
