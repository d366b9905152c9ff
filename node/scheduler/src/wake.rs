//! When to plan again though nothing changes: what time alone brings.

use shoal_state::{State, TaskId, Timestamp};

use crate::{Load, Plan, demand};

/// How soon to plan again while something is to be done or waited for, in milliseconds: the longer inputs have waited, the
/// more containers they are worth, and containers that start count for less the longer it takes.
pub const LOOK_AGAIN_MS: u64 = 500;

/// Returns when another plan than `made`, the one of now, may come out, if neither state nor load change; `None`: never.
pub fn next_at(state: &State, load: &Load, made: &Plan, now: Timestamp) -> Option<Timestamp> {
    let unsettled = !made.commands.is_empty() || !made.waiting.is_empty() || load.pools.values().any(|pool| pool.waiting > 0);
    let again = unsettled.then(|| Timestamp(now.0 + LOOK_AGAIN_MS));
    let idle = load.idle_since.iter().filter_map(|(task, since)| idle_until(state, *task, *since));
    again.into_iter().chain(idle.filter(|at| *at > now)).min()
}

/// Returns when a task has been idle for as long as its function allows.
fn idle_until(state: &State, task: TaskId, since: Timestamp) -> Option<Timestamp> {
    let task = state.tasks.get(&task).filter(|task| task.stopping.is_none())?;
    let function = state.functions.get(&task.function)?;
    Some(Timestamp(since.0 + demand::idle_max_ms(function)))
}
