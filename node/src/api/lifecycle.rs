//! Which apps still have a client: soft state, started anew with the node.
//!
//! An ephemeral app ends when its client was silent for [`SILENT_MAX`], and never because this node was away: after a
//! start, every app has the full time again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shoal_state::{AppId, State};

use super::app;

/// How long a client may be silent: three of its heartbeats.
pub(crate) const SILENT_MAX: Duration = Duration::from_secs(45);

/// When each app's client was last heard of. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Lifecycle {
    heard: Arc<Mutex<HashMap<AppId, Instant>>>,
    started: Instant,
}

impl Lifecycle {
    /// Begins with no knowledge.
    pub(crate) fn new() -> Self {
        Self { heard: Arc::default(), started: Instant::now() }
    }

    /// Notes that an app's client is there.
    pub(crate) fn beat(&self, app: AppId) {
        self.heard.lock().insert(app, Instant::now());
    }

    /// Returns the apps whose clients are gone, and forgets what is no longer in the state.
    pub(crate) fn abandoned(&self, state: &State, now: Instant) -> Vec<AppId> {
        let mut heard = self.heard.lock();
        heard.retain(|id, _| state.apps.get(id).is_some_and(app::needs_client));
        let waiting = state.apps.iter().filter(|(_, app)| app::needs_client(app));
        let silent = |id: &AppId| now.duration_since(heard.get(id).copied().unwrap_or(self.started)) > SILENT_MAX;
        waiting.map(|(id, _)| *id).filter(silent).collect()
    }
}
