//! What a node sees to besides its calls: the members of its shards, and as a leader homes and tasks that are lost.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use shoal_calls::calls::Lost;
use shoal_calls::shards::ShardView;
use shoal_calls::shards::members::{DROPPED_AFTER, Facts, next, successor};
use shoal_calls::shards::presence::Presence;
use shoal_state::model::{ShardChange, TaskEnd};
use shoal_state::{Command, NodeId, Refused, ShardId, State, TaskId};

use crate::mutant::Mutant;
use crate::node::{Node, suspects_in};
use crate::world::{World, shards};

/// How often is looked.
const EVERY: Duration = Duration::from_millis(200);
/// How long the home of inputs may take to have them leased elsewhere.
const TASK_LOST_WAIT: Duration = Duration::from_secs(2);
/// How long the tasks of a lost node count.
const FENCE_AFTER: Duration = Duration::from_secs(20);
/// How long a node must have been there before shards move to it.
const SETTLE: Duration = Duration::from_secs(8);

/// Since when a node counts as lost, and which of its tasks were given up.
type GivenUp = BTreeMap<usize, (Duration, BTreeSet<TaskId>)>;

/// Tells others which shards here may miss records.
pub async fn tell_suspects(node: &Rc<Node>) {
    if let Ok(views) = node.calls.views().await {
        *node.suspect.borrow_mut() = suspects_in(&views);
    }
}

/// Looks, for as long as the node runs.
pub async fn run(world: World, node: Rc<Node>) {
    let (mut presence, mut lost, mut led) = (Presence::default(), GivenUp::new(), false);
    let mut told = BTreeSet::new();
    loop {
        world.time.sleep(EVERY).await;
        let state = world.council.local(node.me);
        let facts = look(&world, &node, &state, &mut presence);
        keep_own(&world, &node, &facts).await;
        free_ended(&world, &node, &mut told).await;
        let leads = world.council.leads(node.me).is_some();
        if leads && !led && world.has(Mutant::NewLeaderHearsNobody) {
            node.forget_heard();
        }
        led = leads;
        if leads {
            let gone: BTreeSet<usize> = (0..world.size).filter(|other| node.is_lost(&world, *other)).collect();
            replace_lost(&world, &node, &state, &gone).await;
            give_tasks_up(&world, &node, &state, &gone, &mut lost).await;
        } else {
            lost.clear();
        }
    }
}

fn look(world: &World, node: &Rc<Node>, state: &State, presence: &mut Presence) -> Facts {
    let heard = state.nodes.iter().map(|(id, known)| {
        let other = world.net.number(*id);
        let unheard = if node.is_lost(world, other) { DROPPED_AFTER } else { Duration::ZERO };
        let behind = node.outbox.behind(*id, world.time.instant());
        (*id, (node.silent(world, other).max(behind).max(unheard), known.draining))
    });
    presence.look(&heard.collect(), world.time.instant(), SETTLE)
}

/// Asks for what this node's shards need.
async fn keep_own(world: &World, node: &Rc<Node>, facts: &Facts) {
    let Ok(views) = node.calls.views().await else { return };
    *node.suspect.borrow_mut() = suspects_in(&views);
    let me = world.id(node.me);
    let of_world = |view: &&ShardView| shards().contains(&view.shard);
    let wanted = views
        .iter()
        .filter(of_world)
        .filter_map(|view| Some((view.shard, view.config.epoch, next(view, me, &node.suspects(world, view.shard), facts)?)));
    let mut asked = Vec::new();
    for (shard, epoch, change) in wanted {
        if matches!(node.calls.ask_change(shard, epoch, change).await, Ok(Ok(()))) {
            asked.push((shard, epoch, change));
        }
    }
    if asked.is_empty() {
        return;
    }
    let commands = asked.iter().map(|(shard, epoch, change)| Command::ChangeShard { shard: *shard, epoch: *epoch, change: *change });
    let Ok(answers) = world.council.propose(node.me, commands.collect()).await else { return };
    for ((shard, epoch, _), answer) in asked.into_iter().zip(answers) {
        if !matches!(answer, Ok(()) | Err(Refused::OldEpoch { .. })) {
            let _ = node.calls.change_refused(shard, epoch).await;
        }
    }
}

/// Gives shards whose home is lost to a member that has all their records.
async fn replace_lost(world: &World, node: &Rc<Node>, state: &State, gone: &BTreeSet<usize>) {
    let is_lost = |id: NodeId| gone.contains(&world.net.number(id));
    let promoted = shards().into_iter().filter_map(|id: ShardId| {
        let shard = state.shards.get(&id)?;
        let to = successor(shard, is_lost, &node.suspects(world, id))?;
        Some(Command::ChangeShard { shard: id, epoch: shard.epoch, change: ShardChange::Promote(to) })
    });
    let commands: Vec<Command> = promoted.collect();
    if !commands.is_empty() {
        let _ = world.council.propose(node.me, commands).await;
    }
}

/// Has inputs leased elsewhere whose task has ended without a word to this node.
async fn free_ended(world: &World, node: &Rc<Node>, told: &mut BTreeSet<TaskId>) {
    let load = node.calls.load().borrow().clone();
    told.retain(|task| load.tasks.contains_key(task));
    if load.ended(&world.council.local(node.me)).iter().all(|(task, _)| told.contains(task)) {
        return;
    }
    if world.council.read_latest(node.me).await.is_err() {
        return;
    }
    for (task, pool) in load.ended(&world.council.local(node.me)) {
        let lost = Lost::Platform { result: Bytes::from_static(b"its container has ended with its node") };
        if !told.contains(&task) && matches!(world.time.within(TASK_LOST_WAIT, node.calls.task_lost(task, pool, lost)).await, Some(Ok(())))
        {
            told.insert(task);
        }
    }
}

/// Has the inputs of a lost node's tasks leased elsewhere, and ends its tasks when they cannot run any more.
async fn give_tasks_up(world: &World, node: &Rc<Node>, state: &State, gone: &BTreeSet<usize>, lost: &mut GivenUp) {
    lost.retain(|other, _| gone.contains(other));
    for other in gone.iter().copied().filter(|other| *other != node.me) {
        let (since, told) = lost.entry(other).or_insert_with(|| (world.time.now(), BTreeSet::new()));
        let tasks: Vec<_> = state.tasks.iter().filter(|(_, task)| task.node == world.id(other)).collect();
        for (id, task) in tasks.iter().filter(|(id, _)| !told.contains(*id)).copied().collect::<Vec<_>>() {
            let lost = Lost::Platform { result: Bytes::from_static(b"the node that ran it is lost") };
            let given_up = world.time.within(TASK_LOST_WAIT, node.calls.task_lost(*id, task.function, lost)).await;
            if matches!(given_up, Some(Ok(()))) {
                told.insert(*id);
            }
        }
        if world.time.now().saturating_sub(*since) < FENCE_AFTER || tasks.is_empty() {
            continue;
        }
        let end = || TaskEnd { at: world.timestamp(), how: "its node is lost".to_owned() };
        let commands = tasks.iter().map(|(id, task)| Command::EndTask { id: **id, generation: task.generation, end: end() });
        let _ = world.council.propose(node.me, commands.collect()).await;
    }
}
