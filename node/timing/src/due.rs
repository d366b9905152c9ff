//! What is to be decided of schedules at a time, and whose calls are then to be made by whom.

use shoal_state::model::{App, AppState, Function, Schedule};
use shoal_state::{Command, FunctionId, NodeId, State, Timestamp};

use crate::next_after;

/// How many firings are decided at once; what more is due is decided right after.
pub const FIRINGS_AT_ONCE: usize = 200;
/// How far clocks may be apart, in milliseconds, before what the one says is not believed by the other.
pub const CLOCK_TRUSTED_MS: u64 = 3_600_000;
/// Where a schedule stands that is never due again.
const NEVER: Timestamp = Timestamp(u64::MAX);

/// Returns what is to be decided of schedules: those that are due, and those that a wrong clock has set.
pub fn due(state: &State, now: Timestamp) -> Vec<Command> {
    let next_after = |id: &FunctionId, schedule: &Schedule, after| {
        next_after(&schedule.timing, schedule.since, after).unwrap_or_else(|wrong| {
            tracing::warn!(function = %id, %wrong, "a schedule is not due any more");
            NEVER
        })
    };
    let decision = |(id, schedule): (&FunctionId, &Schedule)| {
        let (id, due) = (*id, schedule.next);
        if due <= now {
            let waits = state.firings_of(id) >= Schedule::FIRINGS_MAX;
            return (!waits).then(|| Command::Fire { id, due, next: next_after(&id, schedule, now) });
        }
        if !is_of_another_clock(schedule, now) {
            return None;
        }
        let next = next_after(&id, schedule, now);
        (next < due).then_some(Command::Reschedule { id, from: due, next })
    };
    state.schedules.iter().filter_map(decision).take(FIRINGS_AT_ONCE).collect()
}

/// Returns the firings of which a node makes the calls: it is the home of the functions' calls.
pub fn firings_at(state: &State, home: NodeId) -> Vec<(FunctionId, Timestamp)> {
    let is_home = |id: FunctionId| id.shard().and_then(|shard| state.shards.get(&shard)).is_some_and(|shard| shard.home == home);
    state.firings.iter().filter(|(id, _)| is_home(*id)).copied().collect()
}

/// Returns the function that a firing calls; none when nothing is there to be called any more.
pub fn called(state: &State, id: FunctionId) -> Option<&Function> {
    let is_deployed = |app: &App| app.state == AppState::Deployed && app.layout.functions.values().any(|other| *other == id);
    state.functions.get(&id).filter(|function| state.apps.get(&function.app).is_some_and(is_deployed))
}

/// Says whether a schedule has seen times that are too far ahead to have been.
fn is_of_another_clock(schedule: &Schedule, now: Timestamp) -> bool {
    schedule.last.unwrap_or(schedule.since).0 > now.0.saturating_add(CLOCK_TRUSTED_MS)
}
