//! Who holds a shard: decided by its home for its own shards, and by the leader for those whose home is lost.
//!
//! What to do next is decided in pure functions, [`shoal_calls::shards::members`] and [`shoal_calls::calls::gone`]; the loops look, ask
//! Raft, and look again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use shoal_calls::calls::Lost;
use shoal_calls::calls::copies::Outbox;
use shoal_calls::calls::gone::{EndedTasks, FENCE_AFTER, LEASED_ELSEWHERE_WITHIN, LostTasks};
use shoal_calls::shards::members::{Facts, Wanted, replaced, suspects_in, wanted};
use shoal_calls::shards::presence::{self, Presence};
use shoal_state::model::Task;
use shoal_state::{Command, FunctionId, NodeId, SandboxId, ShardId, State, TaskId};
use tokio::time::{MissedTickBehavior, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::api::{Api, Error, now};
use crate::reports::Reports;

/// How often is looked, should nothing change.
const EVERY: Duration = Duration::from_millis(200);
/// How long a node that is to leave is waited for.
const VACATE_WAIT: Duration = Duration::from_secs(60);

/// Looks until `stop`.
pub(super) async fn run(api: Api, outbox: Outbox, stop: CancellationToken) {
    let (mut changes, mut presence) = (api.cluster.raft().watch(), Presence::default());
    let settle = Duration::from_secs(api.config.calls.settle_seconds);
    let (mut look, mut seen) = (tokio::time::interval(EVERY), Arc::<State>::default());
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let due = tokio::select! {
            _ = look.tick() => true,
            changed = changes.changed() => match changed {
                Ok(()) => false,
                Err(_) => return,
            },
            () = stop.cancelled() => return,
        };
        let state = api.local();
        // Most of what is decided has nothing to do with who holds what.
        let same = state.shards.ptr_eq(&seen.shards) && state.nodes.ptr_eq(&seen.nodes) && state.members.ptr_eq(&seen.members);
        if same && !due {
            continue;
        }
        seen = Arc::clone(&state);
        if state.members.len() < 2 && state.shards.values().all(|shard| shard.home == api.cluster.node) {
            continue;
        }
        let facts = presence.look(&heard(&state, &api.reports, &outbox), Instant::now(), settle);
        if let Err(error) = keep_own(&api, &facts).await {
            tracing::warn!(%error, "cannot see to the copies of this node's shards; it is tried again");
        }
        // Each node hears all others, whoever leads: a new leader need not begin to listen.
        if api.cluster.raft().leads() {
            replace_lost(&api, &state, &gone(&api, &state)).await;
        }
    }
}

/// Gives up the tasks of lost nodes, where this node leads, until `stop`.
///
/// Apart from [`run`]: it asks the homes of calls, and while one does not answer, those that are lost are replaced.
pub(super) async fn run_lost_tasks(api: Api, stop: CancellationToken) {
    let (mut look, mut lost) = (tokio::time::interval(EVERY), LostTasks::default());
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = look.tick() => {}
            () = stop.cancelled() => return,
        }
        let state = api.local();
        if api.cluster.raft().leads() {
            give_tasks_up(&api, &state, gone(&api, &state), &mut lost).await;
        } else {
            lost.clear();
        }
    }
}

/// Has inputs of this node's shards leased elsewhere whose task has ended without a word to this node, until `stop`: its node was removed
/// from the cluster, or this node did not answer whoever gave the task up.
pub(super) async fn run_ended_tasks(api: Api, stop: CancellationToken) {
    let (mut look, mut ended) = (tokio::time::interval(EVERY), EndedTasks::default());
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = look.tick() => free_ended(&api, &mut ended).await,
            () = stop.cancelled() => return,
        }
    }
}

async fn free_ended(api: &Api, ended: &mut EndedTasks) {
    let load = api.calls.load().borrow().clone();
    if ended.untold(&load, &api.local()).is_empty() {
        return;
    }
    // Nobody decides at the moment? It is looked again.
    let Ok(state) = api.read_latest().await else { return };
    for (task, pool) in ended.untold(&load, &state) {
        match lease_elsewhere(api, task, pool, "the container that ran it has ended with its node").await {
            Ok(()) => ended.told(task),
            Err(error) => tracing::warn!(%task, %error, "cannot lease the inputs of an ended task elsewhere; it is tried again"),
        }
    }
}

/// Has what a task that is gone had leased elsewhere, as the platform's doing.
async fn lease_elsewhere(api: &Api, task: TaskId, pool: FunctionId, why: &str) -> Result<(), shoal_calls::Error> {
    let lost = Lost::Platform { result: crate::provider::platform_failure(why) };
    let late = |_| shoal_calls::Error::Late { what: "have inputs leased elsewhere", waited: LEASED_ELSEWHERE_WITHIN };
    tokio::time::timeout(LEASED_ELSEWHERE_WITHIN, api.calls.task_lost(task, pool, lost)).await.map_err(late)?
}

/// Returns the nodes that count as lost.
fn gone(api: &Api, state: &State) -> BTreeSet<NodeId> {
    state.nodes.keys().copied().filter(|node| api.reports.is_lost(*node)).collect()
}

/// Returns for how long each node has been silent, whatever it should have said, and whether it drains.
fn heard(state: &State, reports: &Reports, outbox: &Outbox) -> BTreeMap<NodeId, (Duration, bool)> {
    let silent = |node| reports.silent(node).max(outbox.behind(node, Instant::now()));
    presence::heard(state, silent, |node| reports.is_lost(node))
}

/// Asks for what this node's shards need.
async fn keep_own(api: &Api, facts: &Facts) -> Result<(), shoal_calls::Error> {
    let views = api.calls.views().await?;
    api.reports.set_suspect(suspects_in(&views));
    // What a node asks that hears nobody may be heard: it would be left alone with its shards, and nobody reaches it.
    if api.reports.hears_nobody(&api.local()) {
        return Ok(());
    }
    ask(api, wanted(&views, api.cluster.node, |shard| api.reports.suspects(shard), facts)).await
}

/// Puts changes into the log. A change that was surely refused is settled; one without an answer is asked for again.
async fn ask(api: &Api, wanted: Vec<Wanted>) -> Result<(), shoal_calls::Error> {
    let mut asked = Vec::new();
    for one in wanted {
        if api.calls.ask_change(one.shard, one.epoch, one.change).await?.is_ok() {
            asked.push(one);
        }
    }
    if asked.is_empty() {
        return Ok(());
    }
    match api.cluster.propose_all(asked.iter().map(|one| one.command()).collect()).await {
        Ok(answers) => {
            tell(&asked);
            for (Wanted { shard, epoch, change }, answer) in asked.into_iter().zip(answers) {
                if let Err(refused) = answer
                    && Wanted::is_settled_by(&refused)
                {
                    tracing::warn!(%shard, ?change, %refused, "a shard's members are not changed");
                    api.calls.change_refused(shard, epoch).await?;
                }
            }
        }
        Err(error) => tracing::debug!(%error, "nobody decides about shards at the moment"),
    }
    Ok(())
}

/// Says what was asked for, without naming each of many shards.
fn tell(asked: &[Wanted]) {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for one in asked {
        *counts.entry(format!("{:?}", one.change)).or_default() += 1;
    }
    tracing::info!(?counts, "the members of shards change");
}

/// Gives shards whose home is lost to a member that has all their records.
async fn replace_lost(api: &Api, state: &State, gone: &BTreeSet<NodeId>) {
    let commands = replaced(state, state.shards.keys().copied(), gone, |shard| api.reports.suspects(shard));
    if commands.is_empty() {
        return;
    }
    tracing::info!(shards = commands.len(), "the home of shards is lost: others that have their records take its place");
    if let Err(error) = api.cluster.propose_all(commands).await {
        tracing::warn!(%error, "cannot replace the home of shards; it is tried again");
    }
}

/// Has the inputs of a lost node's tasks leased elsewhere, and ends its tasks when they cannot run any more.
async fn give_tasks_up(api: &Api, state: &State, mut gone: BTreeSet<NodeId>, lost: &mut LostTasks) {
    gone.remove(&api.cluster.node);
    lost.look(&gone, Instant::now());
    for node in gone {
        let given_up = join_all(
            lost.untold(node, state)
                .into_iter()
                .map(async |(id, function)| lease_elsewhere(api, id, function, "the node that ran it is lost").await.map(|()| id)),
        );
        for given_up in given_up.await {
            match given_up {
                Ok(task) => lost.told(node, task),
                Err(error) => {
                    tracing::warn!(%node, %error, "cannot have the inputs of a lost node's task leased elsewhere; it is tried again")
                }
            }
        }
        let ends = lost.ends(node, state, Instant::now(), now());
        if !ends.is_empty()
            && let Err(error) = api.cluster.propose_all(ends).await
        {
            tracing::warn!(%node, %error, "cannot end the tasks of a lost node; it is tried again");
        }
    }
}

/// Has everything moved away from a node that is to leave: it drains, others take its shards, and its containers end. Where the node does
/// not answer, those that have its records take its place, and its containers count until they are sure to have ended.
///
/// So nothing that may not run twice does: what is decided of a removed node reaches it later than those that go on.
///
/// # Errors
/// When that takes longer than [`VACATE_WAIT`], with what is still there. The node stays drained.
pub(crate) async fn vacate(api: &Api, node: NodeId) -> Result<(), Error> {
    let state = api.read_latest().await?;
    let (held, runs) = (state.shards_on(node).count(), tasks_on(&state, node).count());
    if held + runs == 0 || state.members.len() < 2 {
        return Ok(());
    }
    if state.nodes.get(&node).is_some_and(|node| !node.draining) {
        api.propose(Command::DrainNode { id: node, draining: true }).await?;
    }
    let deadline = tokio::time::Instant::now() + VACATE_WAIT;
    if !until(api, deadline, |state| state.shards_on(node).next().is_none()).await {
        return Err(Error::Unavailable(format!(
            "waited {VACATE_WAIT:?} for the records of calls to leave node {node}: it still has those of {} of {} shards, and nobody else has all of them. It stays drained; try again, and see `shoal status`",
            api.local().shards_on(node).count(),
            ShardId::all().count(),
        )));
    }
    let state = api.local();
    let stops = tasks_on(&state, node).filter(|(_, task)| task.stopping.is_none());
    let stops = stops.map(|(id, _)| Command::StopTask { id, why: "its node is being removed".to_owned() });
    // One that has ended meanwhile refuses.
    api.cluster.propose_all(stops.collect()).await?;
    if !until(api, deadline, |state| tasks_on(state, node).next().is_none()).await {
        return Err(Error::Unavailable(format!(
            "waited {VACATE_WAIT:?} for the containers of node {node} to end: {} are left. It stays drained; try again, or stop the machine: {FENCE_AFTER:?} later they count as ended",
            tasks_on(&api.local(), node).count(),
        )));
    }
    Ok(())
}

/// Waits until the state is as it should be; false at the deadline.
async fn until(api: &Api, deadline: tokio::time::Instant, is_so: impl Fn(&State) -> bool) -> bool {
    let mut changes = api.cluster.raft().watch();
    let wait = async { while !is_so(&api.local()) && changes.changed().await.is_ok() {} };
    timeout_at(deadline, wait).await.is_ok()
}

/// Returns the tasks of a node that must not run beside others in their place. What a sandbox ran ends with it.
fn tasks_on(state: &State, node: NodeId) -> impl Iterator<Item = (TaskId, &Task)> {
    let is_sandbox = |task: &Task| state.sandboxes.contains_key(&SandboxId::of(task.function));
    state.tasks.iter().filter(move |(_, task)| task.node == node && !is_sandbox(task)).map(|(id, task)| (*id, task))
}
