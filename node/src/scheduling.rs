//! The scheduler: where calls are at home it plans on every change and on a timer, and puts the decisions into the log.
//!
//! What to prefer is in `shoal-scheduler`, what can't be is refused by the state; this loop only brings them together.
//! Waking from zero takes one message (a pool's first input changes the load) and one command.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use shoal_calls::calls::Load as CallsLoad;
use shoal_scheduler::{Load, PoolLoad};
use shoal_state::{Command, FunctionId, NodeId, State, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::api::{Api, now};

/// How long the leader waits at most before it plans again, should nothing change and nothing be due. It knows when
/// something will be, so this only bounds how long a mistake about that could last.
const PLAN_EVERY: Duration = Duration::from_secs(10);
/// The shortest time between two plans, unless a function waits that has no container at all: calls come and go faster
/// than a plan is made, and what one more call changes can wait so long.
const PLAN_GAP: Duration = Duration::from_millis(50);
/// How long a function whose containers can't start is left alone, from the first time to the last.
const HOLD_MS: [u64; 6] = [0, 1_000, 5_000, 15_000, 30_000, 60_000];

/// Functions whose containers failed to start, one after another. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct CrashLoops {
    failed: Arc<Mutex<BTreeMap<FunctionId, (usize, Timestamp)>>>,
}

impl CrashLoops {
    /// Notes that a container ended before it took an input.
    pub(crate) fn failed(&self, function: FunctionId, now: Timestamp) {
        let mut failed = self.failed.lock();
        let (times, until) = failed.entry(function).or_insert((0, now));
        *until = Timestamp(now.0 + HOLD_MS[(*times).min(HOLD_MS.len() - 1)]);
        *times += 1;
    }

    /// Notes that a container works.
    pub(crate) fn works(&self, function: FunctionId) {
        self.failed.lock().remove(&function);
    }

    fn held(&self, now: Timestamp) -> BTreeMap<FunctionId, Timestamp> {
        let failed = self.failed.lock();
        failed.iter().filter(|(_, (_, until))| *until > now).map(|(function, (_, until))| (*function, *until)).collect()
    }
}

/// Turns what calls report into what the scheduler plans by. Every function of the state has a report: its shard is here.
pub(crate) fn load(state: &State, calls: &CallsLoad, crashes: &CrashLoops, now: Timestamp) -> Load {
    let pool = |function: &FunctionId| {
        let load = calls.pools.get(function).copied().unwrap_or_default();
        PoolLoad {
            waiting: load.waiting.into(),
            running: load.running.into(),
            input_ms: load.input_ms,
            oldest_waiting_ms: load.oldest_waiting_ms.map_or(0, |since| now.0.saturating_sub(since)),
        }
    };
    let idle = calls.tasks.iter().filter_map(|(task, load)| Some((*task, Timestamp(load.idle_since_ms?))));
    Load {
        pools: state.functions.keys().map(|function| (*function, pool(function))).collect(),
        idle_since: idle.collect(),
        asked: calls.tasks.keys().copied().collect(),
        used: calls.tasks.iter().filter(|(_, load)| load.used && load.running == 0).map(|(task, _)| *task).collect(),
        held_until: crashes.held(now),
        down: BTreeSet::<NodeId>::new(),
    }
}

/// Plans until `stop`.
pub(crate) async fn run(api: Api, stop: CancellationToken) {
    let (mut changes, mut load_changes) = (api.cluster.raft().watch(), api.calls.load());
    let mut next = tokio::time::Instant::now();
    let mut due = PLAN_EVERY;
    loop {
        tokio::select! {
            () = tokio::time::sleep(due) => {}
            changed = changes.changed() => if changed.is_err() { return },
            changed = load_changes.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
        while !wakes(&api.local(), &load_changes.borrow_and_update()) {
            tokio::select! {
                () = tokio::time::sleep_until(next) => break,
                changed = load_changes.changed() => if changed.is_err() { return },
                () = stop.cancelled() => return,
            }
        }
        next = tokio::time::Instant::now() + PLAN_GAP;
        due = if is_home(&api.local(), api.cluster.node) { round(&api).await } else { PLAN_EVERY };
    }
}

/// Says whether a node is the home of all calls. Only there is known what waits: so it plans, whoever leads.
pub(crate) fn is_home(state: &State, node: NodeId) -> bool {
    !state.shards.is_empty() && state.shards.values().all(|shard| shard.home == node)
}

/// Says whether a function has work and no container.
fn wakes(state: &State, calls: &CallsLoad) -> bool {
    calls.pools.iter().any(|(pool, load)| load.waiting > 0 && state.tasks_of.get(pool).is_none_or(|tasks| tasks.is_empty()))
}

/// Plans and carries it out. Returns how long the plan holds if nothing changes.
async fn round(api: &Api) -> Duration {
    let (state, now) = (api.local(), now());
    let load = load(&state, &api.calls.load().borrow().clone(), &api.crashes, now);
    let plan = shoal_scheduler::plan(&state, &load, now, &mut || rand::random());
    let due = shoal_scheduler::next_at(&state, &load, &plan, now);
    let due = due.map_or(PLAN_EVERY, |at| Duration::from_millis(at.0.saturating_sub(now.0)).min(PLAN_EVERY));
    if plan.commands.is_empty() {
        return due;
    }
    for stopping in &plan.commands {
        if let Command::StopTask { id, .. } = stopping
            && let Err(error) = api.calls.stop_task(*id).await
        {
            tracing::warn!(task = %id, %error, "cannot keep inputs from a task that is to stop");
        }
    }
    match api.cluster.propose_all(plan.commands).await {
        Ok(answers) => {
            for refused in answers.into_iter().filter_map(Result::err) {
                tracing::debug!(%refused, "a decision was refused");
            }
        }
        Err(error) => tracing::warn!(%error, "cannot put decisions into the log"),
    }
    due
}
