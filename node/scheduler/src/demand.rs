//! How many containers one function should have. Of a clustered function its gangs are counted, each as one container.

use std::collections::BTreeSet;

use shoal_state::model::{AppState, Function, Gang, Task};
use shoal_state::{FunctionId, NodeId, SandboxId, State, TaskId, Timestamp};

use crate::{Load, Placement, PoolLoad};

/// How many containers a function may have that sets no maximum of its own.
pub const CONTAINERS_LIMIT: u32 = 2_000;

/// How long a container may be idle when its function does not say, in milliseconds.
pub const SCALEDOWN_DEFAULT_MS: u64 = 60_000;

/// What waits is to be done within this time, in milliseconds: about as long as a container takes to start. A thousand
/// inputs of a few milliseconds each need two more containers, not a thousand.
const DRAIN_MS: u64 = 2_000;

/// An input that has waited for so long (milliseconds) shows that the average is no guide: others hold their containers
/// for longer. Then each input that waits counts as one that needs a slot.
const PATIENCE_MS: u64 = 5_000;

/// A function's tasks, sorted by what can be expected of them.
#[derive(Debug, Default)]
pub(crate) struct Pool<'a> {
    /// Take inputs, now or soon.
    pub(crate) serving: Vec<(TaskId, &'a Task)>,
    /// Run, but are to be replaced: an older deployment, or a node that drains. With the reason.
    pub(crate) outgoing: Vec<(TaskId, &'a Task, &'static str)>,
    /// Were asked to stop or to give way, or end by themselves because they are used only once.
    pub(crate) stopping: usize,
    /// Are on a node that may be down.
    pub(crate) doubtful: usize,
    /// Are of an older start of their node, or on a node that is down.
    pub(crate) lost: usize,
    /// Of gangs that have lost a container, one that was not asked to stop yet, with the node that is down.
    pub(crate) broken: Vec<(TaskId, NodeId)>,
}

impl Pool<'_> {
    /// Returns how many tasks the state counts against `containers_max`.
    pub(crate) fn held(&self) -> usize {
        self.serving.len() + self.outgoing.len() + self.stopping + self.doubtful + self.lost
    }
}

/// Sorts the tasks of a function.
pub(crate) fn pool<'a>(state: &'a State, load: &Load, id: FunctionId) -> Pool<'a> {
    let mut pool = Pool::default();
    let single_use = state.functions.get(&id).is_some_and(|function| function.single_use);
    let tasks = state.tasks_of.get(&id).into_iter().flatten();
    let alone = tasks.filter(|task| !state.gang_of.contains_key(*task));
    for (id, task) in alone.filter_map(|id| state.tasks.get(id).map(|task| (*id, task))) {
        let node = state.nodes.get(&task.node);
        if node.is_none_or(|node| node.boot != task.boot) || load.down.contains(&task.node) {
            pool.lost += 1;
        } else if task.stopping.is_some() || load.yielding.contains(&id) || (single_use && load.used.contains(&id)) {
            pool.stopping += 1;
        } else if load.doubtful.contains(&task.node) {
            pool.doubtful += 1;
        } else if node.is_some_and(|node| node.draining) {
            pool.outgoing.push((id, task, "node drains"));
        } else if redeployed(state, task) {
            pool.outgoing.push((id, task, "replaced by a newer deployment"));
        } else {
            pool.serving.push((id, task));
        }
    }
    for gang in gangs(state, id) {
        add_gang(state, load, gang, single_use, &mut pool);
    }
    pool
}

/// Returns the gangs of a function.
fn gangs(state: &State, id: FunctionId) -> impl Iterator<Item = &Gang> {
    let of = state.tasks_of.get(&id).into_iter().flatten().filter_map(|task| state.gang_of.get(task));
    of.collect::<BTreeSet<_>>().into_iter().filter_map(|gang| state.gangs.get(gang))
}

/// Counts a gang as the container of rank 0, which takes its inputs. It is as well off as the worst of its containers.
fn add_gang<'a>(state: &'a State, load: &Load, gang: &Gang, single_use: bool, pool: &mut Pool<'a>) {
    let live: Vec<(TaskId, &Task)> = gang.tasks.iter().filter_map(|id| state.tasks.get(id).map(|task| (*id, task))).collect();
    let Some((id, task)) = live.first().copied() else { return };
    let node = |task: &Task| state.nodes.get(&task.node);
    let is_lost = |task: &&Task| node(task).is_none_or(|node| node.boot != task.boot) || load.down.contains(&task.node);
    if let Some(lost) = live.iter().map(|(_, task)| *task).find(is_lost) {
        pool.lost += 1;
        if task.stopping.is_none() {
            pool.broken.push((id, lost.node));
        }
    } else if live.len() < gang.tasks.len()
        || task.stopping.is_some()
        || load.yielding.contains(&id)
        || (single_use && load.used.contains(&id))
    {
        pool.stopping += 1;
    } else if live.iter().any(|(_, task)| node(task).is_some_and(|node| node.draining)) {
        pool.outgoing.push((id, task, "node drains"));
    } else if redeployed(state, task) {
        pool.outgoing.push((id, task, "replaced by a newer deployment"));
    } else {
        pool.serving.push((id, task));
    }
}

/// Returns of how many containers each gang of a function is; 1 for those that are alone.
pub(crate) fn at_once(load: &Load, id: FunctionId) -> u32 {
    load.placements.get(&id).map_or(1, Placement::at_once)
}

fn redeployed(state: &State, task: &Task) -> bool {
    let deployed = state.apps.get(&task.app).and_then(|app| app.deployments.last());
    deployed.is_some_and(|deployment| task.created < deployment.at)
}

/// Returns how many inputs one container of a function has at a time.
pub(crate) fn slots(function: &Function) -> u64 {
    let at_a_time = if function.single_use { 1 } else { function.inputs_concurrent.max(1) };
    u64::from(at_a_time) * u64::from(function.batch_max.max(1))
}

/// Returns the most containers a function may have.
pub(crate) fn containers_max(function: &Function) -> u32 {
    match function.scaling.containers_max {
        0 => CONTAINERS_LIMIT,
        max => max,
    }
}

/// Returns how many serving containers the function should have, before what is possible is considered.
pub(crate) fn wanted(state: &State, load: &Load, id: FunctionId, function: &Function, pool: &Pool<'_>) -> u64 {
    if let Some(sandbox) = state.sandboxes.get(&SandboxId::of(id)) {
        // One container, once: it is replaced by no other, and ends when it is done.
        return if pool.held() == 0 { u64::from(sandbox.ended.is_none()) } else { pool.serving.len() as u64 };
    }
    let PoolLoad { waiting, running, oldest_waiting_ms, input_ms } = load.pools.get(&id).copied().unwrap_or_default();
    let (slots, at_once) = (slots(function), at_once(load, id));
    let waiting = match input_ms.filter(|_| oldest_waiting_ms < PATIENCE_MS && !function.single_use) {
        // So many slots get through what waits in the time that another container needs to start.
        Some(input_ms) => waiting.min(waiting.saturating_mul(input_ms.max(1)).div_ceil(DRAIN_MS)),
        None => waiting,
    };
    let outgoing_busy = pool.outgoing.iter().filter(|(task, _, _)| !load.idle_since.contains_key(task)).count() as u64;
    let here = running.saturating_sub(outgoing_busy * slots);
    let mut wanted = (waiting + here).div_ceil(slots);
    if waiting + running > 0 {
        wanted += u64::from(function.scaling.containers_buffer.div_ceil(at_once));
    }
    if keeps_minimum(state, id, function) {
        wanted = wanted.max(u64::from(function.scaling.containers_min.div_ceil(at_once)));
    }
    wanted.min(u64::from(containers_max(function) / at_once))
}

/// Says whether a container with inputs may be asked to give way: not one of a sandbox, which is that one container, nor of a build, nor
/// of those that are to be there whatever comes.
pub(crate) fn may_yield(state: &State, load: &Load, id: FunctionId, function: &Function, serving: usize) -> bool {
    let least = if keeps_minimum(state, id, function) { function.scaling.containers_min.div_ceil(at_once(load, id)) as usize } else { 0 };
    !state.sandboxes.contains_key(&SandboxId::of(id)) && !function.builder && serving > least
}

/// A minimum holds for what the app has published, not for what it once had, nor for builds.
fn keeps_minimum(state: &State, id: FunctionId, function: &Function) -> bool {
    let Some(app) = state.apps.get(&function.app) else { return false };
    let lives = matches!(app.state, AppState::Ephemeral | AppState::Detached | AppState::Deployed);
    let published = function.parent.unwrap_or(id);
    function.scaling.containers_min > 0 && lives && !function.builder && app.layout.functions.values().any(|other| *other == published)
}

/// Returns how long a container of a function may be idle, in milliseconds.
pub(crate) fn idle_max_ms(function: &Function) -> u64 {
    match function.scaling.scaledown_ms {
        0 => SCALEDOWN_DEFAULT_MS,
        limit => limit,
    }
}

/// Returns the serving tasks that have been idle for too long, the longest idle first.
pub(crate) fn idle_too_long(load: &Load, function: &Function, pool: &Pool<'_>, now: Timestamp) -> Vec<(TaskId, u64)> {
    let limit_ms = idle_max_ms(function);
    idle(load, pool, now).into_iter().filter(|(_, idle_ms)| *idle_ms >= limit_ms).collect()
}

/// Returns the serving tasks that are idle and for how long (milliseconds), the longest idle first.
pub(crate) fn idle(load: &Load, pool: &Pool<'_>, now: Timestamp) -> Vec<(TaskId, u64)> {
    let since = |task: &TaskId| load.idle_since.get(task).map(|since| now.0.saturating_sub(since.0));
    let mut idle: Vec<(TaskId, u64)> = pool.serving.iter().filter_map(|(task, _)| since(task).map(|ms| (*task, ms))).collect();
    idle.sort_by_key(|(task, ms)| (std::cmp::Reverse(*ms), *task));
    idle
}
