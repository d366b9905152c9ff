//! What is to be decided of schedules at a time.

use shoal_state::model::Schedule;
use shoal_state::{Command, FunctionId, State, Timestamp};

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

/// Says whether a schedule has seen times that are too far ahead to have been.
fn is_of_another_clock(schedule: &Schedule, now: Timestamp) -> bool {
    schedule.last.unwrap_or(schedule.since).0 > now.0.saturating_add(CLOCK_TRUSTED_MS)
}
