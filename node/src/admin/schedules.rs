//! Schedules, as `shoal schedule list` shows them.

use axum::Json;
use axum::extract::State as Shared;
use serde::{Deserialize, Serialize};
use shoal_state::model::Schedule;
use shoal_state::{FunctionId, State, Timestamp};

use super::Answer;
use crate::api::{Api, environment_name};

/// A line of `shoal schedule list`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ScheduleLine {
    /// The function's id.
    pub(crate) function_id: String,
    /// The function's tag.
    pub(crate) function: String,
    /// The app's id.
    pub(crate) app_id: String,
    /// The name the app is deployed under.
    pub(crate) app: String,
    /// Its environment.
    pub(crate) environment: String,
    /// When it is due, as its user wrote it.
    pub(crate) schedule: String,
    /// The next time, as the clocks of its zone show it; none when it is never due again.
    pub(crate) next: Option<String>,
    /// The next time, in milliseconds since 1970.
    pub(crate) next_ms: u64,
    /// The time that it was last called for, as the clocks of its zone show it.
    pub(crate) last: Option<String>,
    /// The time that it was last called for, in milliseconds since 1970.
    pub(crate) last_ms: Option<u64>,
    /// From when a period counts, in milliseconds since 1970.
    pub(crate) since_ms: u64,
    /// Calls that were decided and are yet to be made.
    pub(crate) waiting: usize,
}

pub(super) async fn schedules(Shared(api): Shared<Api>) -> Answer<Vec<ScheduleLine>> {
    let state = super::undecided::latest_or_known(&api).await;
    let mut lines: Vec<ScheduleLine> = state.schedules.iter().map(|(id, schedule)| line(&state, *id, schedule)).collect();
    lines.sort_by_key(|line| line.next_ms);
    Ok(Json(lines))
}

fn line(state: &State, id: FunctionId, schedule: &Schedule) -> ScheduleLine {
    let shown = |at: Timestamp| shoal_timing::local(&schedule.timing, at);
    ScheduleLine {
        function_id: id.to_string(),
        function: state.functions.get(&id).map(|function| function.tag.clone()).unwrap_or_default(),
        app_id: schedule.app.to_string(),
        app: state.apps.get(&schedule.app).map(|app| app.name.clone()).unwrap_or_default(),
        environment: environment_name(state, schedule.app),
        schedule: shoal_timing::describe(&schedule.timing),
        next: shown(schedule.next),
        next_ms: schedule.next.0,
        last: schedule.last.and_then(shown),
        last_ms: schedule.last.map(|last| last.0),
        since_ms: schedule.since.0,
        waiting: state.firings_of(id),
    }
}
