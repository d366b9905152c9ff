//! The scheduler: the leader plans on every change and on a timer, and puts the decisions into the log.
//!
//! What to prefer is in `shoal-scheduler`, what can't be is refused by the state; this loop only brings them together.
//! Waking from zero takes one message (a pool's first input changes the load) and one command.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shoal_scheduler::{Barrier, Load};
use shoal_state::{FunctionId, State, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::api::{Api, now};
use crate::reports::Reports;

/// How long the leader waits at most before it plans again, should nothing change and nothing be due. It knows when
/// something will be, so this only bounds how long a mistake about that could last.
const PLAN_EVERY: Duration = Duration::from_secs(10);
/// The shortest time between two plans, unless a function waits that has no container at all: calls come and go faster
/// than a plan is made, and what one more call changes can wait so long.
const PLAN_GAP: Duration = Duration::from_millis(50);
/// How long the leader waits until it tries again to read definitions that it could not read.
const READ_AGAIN: Duration = Duration::from_secs(1);
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

    /// Returns the functions that get no container for now, each until when.
    pub(crate) fn held(&self, now: Timestamp) -> BTreeMap<FunctionId, Timestamp> {
        let failed = self.failed.lock();
        failed.iter().filter(|(_, (_, until))| *until > now).map(|(function, (_, until))| (*function, *until)).collect()
    }
}

/// Gathers what the scheduler plans by.
pub(crate) async fn load(api: &Api, state: &State, now: Timestamp) -> Load {
    let mut load = reported(state, &api.reports, now);
    load.yielding = api.yields.lock().tasks();
    api.placements.add_to(api, state, &mut load).await;
    load
}

/// Adds to what the homes of calls report what is known of nodes.
fn reported(state: &State, reports: &Reports, now: Timestamp) -> Load {
    let nodes = || state.nodes.keys().copied();
    Load {
        held_until: reports.held(),
        down: nodes().filter(|node| reports.is_lost(*node)).collect(),
        doubtful: nodes().filter(|node| reports.is_doubtful(*node)).collect(),
        ..reports.load(state).reported(state, now)
    }
}

/// Plans until `stop`.
pub(crate) async fn run(api: Api, stop: CancellationToken) {
    let (mut changes, mut load_changes, mut told) = (api.cluster.raft().watch(), api.calls.load(), api.reports.watch());
    let mut barrier = Barrier::default();
    let mut next = tokio::time::Instant::now();
    let mut due = PLAN_EVERY;
    loop {
        tokio::select! {
            () = tokio::time::sleep(due) => {}
            changed = changes.changed() => if changed.is_err() { return },
            changed = load_changes.changed() => if changed.is_err() { return },
            changed = told.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
        if !leads(&api, &mut barrier).await {
            due = PLAN_EVERY;
            api.yields.lock().clear();
            continue;
        }
        loop {
            load_changes.borrow_and_update();
            told.borrow_and_update();
            let state = api.local();
            if api.reports.wakes(&state) {
                break;
            }
            tokio::select! {
                () = tokio::time::sleep_until(next) => break,
                changed = load_changes.changed() => if changed.is_err() { return },
                changed = told.changed() => if changed.is_err() { return },
                () = stop.cancelled() => return,
            }
        }
        next = tokio::time::Instant::now() + PLAN_GAP;
        due = round(&api).await;
    }
}

/// Says whether this node leads, and has everything that was decided before.
pub(crate) async fn leads(api: &Api, barrier: &mut Barrier) -> bool {
    let raft = api.cluster.raft();
    if !raft.leads() {
        return false;
    }
    let term = raft.term();
    if !barrier.is_passed(term) {
        if api.read_latest().await.is_err() || !raft.leads() {
            return false;
        }
        barrier.pass(term);
    }
    true
}

/// Plans and carries it out. Returns how long the plan holds if nothing changes.
async fn round(api: &Api) -> Duration {
    let term = api.cluster.raft().term();
    let (state, now) = (api.local(), now());
    let load = load(api, &state, now).await;
    let mut plan = shoal_scheduler::plan(&state, &load, now, &mut || rand::random());
    let due = shoal_scheduler::next_at(&state, &load, &plan, now);
    let due = due.map_or(PLAN_EVERY, |at| Duration::from_millis(at.0.saturating_sub(now.0)).min(PLAN_EVERY));
    let due = if load.unread.is_empty() { due } else { due.min(READ_AGAIN) };
    let told = api.yields.lock().take_up(&state, &plan, Instant::now());
    plan.stop_idle_only(&api.calls.stop_tasks(told).await);
    // Another may lead by now, who knows better: what a leader that stood still has of the others, and as a home itself, is old.
    let raft = api.cluster.raft();
    if plan.commands.is_empty() || !raft.leads() || raft.term() != term {
        return due;
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
