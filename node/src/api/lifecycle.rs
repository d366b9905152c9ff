//! Which apps still have a client: soft state, started anew with the node.
//!
//! An ephemeral app ends when its client was silent for [`SILENT_MAX`], and never because this node was away or has just
//! heard of it: the time of an app begins when this node first looks at it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shoal_state::{AppId, State};

use super::app;

/// How long a client may be silent: three of its heartbeats.
pub(crate) const SILENT_MAX: Duration = Duration::from_secs(45);

/// When each app's client was last heard of, or the app first looked at. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Lifecycle {
    heard: Arc<Mutex<HashMap<AppId, Instant>>>,
}

impl Lifecycle {
    /// Begins with no knowledge.
    pub(crate) fn new() -> Self {
        Self { heard: Arc::default() }
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
        let mut silent = |id: &AppId| now.saturating_duration_since(*heard.entry(*id).or_insert(now)) > SILENT_MAX;
        waiting.map(|(id, _)| *id).filter(&mut silent).collect()
    }
}

#[cfg(test)]
mod tests {
    use shoal_state::imbl::Vector;
    use shoal_state::model::{App, AppLayout, AppState, Environment};
    use shoal_state::{Command, EnvironmentId, Timestamp};

    use super::*;

    #[test]
    fn an_app_has_its_full_time_from_when_it_is_first_looked_at() {
        let (mut state, environment, id) = (State::default(), EnvironmentId::from_random(1), AppId::from_random(1));
        let named = Environment { id: environment, name: "main".into(), webhook_suffix: String::new(), created: Timestamp(0) };
        state.apply(&Command::CreateEnvironment { environment: named }).unwrap();
        let app = App {
            environment,
            name: String::new(),
            description: String::new(),
            state: AppState::Ephemeral,
            created: Timestamp(0),
            stopped: None,
            layout: AppLayout::default(),
            deployments: Vector::new(),
        };
        state.apply(&Command::CreateApp { id, app }).unwrap();
        let (lifecycle, begin) = (Lifecycle::new(), Instant::now());
        // The node has run for an hour when the app comes, and looks before the client's first word.
        let later = begin + Duration::from_secs(3600);
        assert!(lifecycle.abandoned(&state, later).is_empty());
        assert!(lifecycle.abandoned(&state, later + SILENT_MAX).is_empty());
        assert_eq!(lifecycle.abandoned(&state, later + SILENT_MAX + Duration::from_secs(1)), [id]);
        lifecycle.beat(id);
        assert!(lifecycle.abandoned(&state, begin + SILENT_MAX).is_empty());
    }
}
