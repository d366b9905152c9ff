//! What a node sees to besides its calls: the members of its shards, and as a leader homes and tasks that are lost.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use shoal_calls::calls::Lost;
use shoal_calls::calls::gone::{EndedTasks, LEASED_ELSEWHERE_WITHIN, LostTasks};
use shoal_calls::shards::members::{Facts, Wanted, replaced, suspects_in, wanted};
use shoal_calls::shards::presence::{self, Presence};
use shoal_state::{FunctionId, NodeId, State, TaskId};

use crate::mutant::Mutant;
use crate::node::Node;
use crate::world::{World, shards};

/// How often is looked.
const EVERY: Duration = Duration::from_millis(200);
/// How long a node must have been there before shards move to it.
const SETTLE: Duration = Duration::from_secs(8);

/// Tells others which shards here may miss records.
pub async fn tell_suspects(node: &Rc<Node>) {
    if let Ok(views) = node.calls.views().await {
        *node.suspect.borrow_mut() = suspects_in(&views);
    }
}

/// Looks, for as long as the node runs.
pub async fn run(world: World, node: Rc<Node>) {
    let (mut presence, mut ended, mut lost, mut led) = (Presence::default(), EndedTasks::default(), LostTasks::default(), false);
    loop {
        world.time.sleep(EVERY).await;
        let state = world.council.local(node.me);
        let facts = look(&world, &node, &state, &mut presence);
        keep_own(&world, &node, &facts).await;
        free_ended(&world, &node, &mut ended).await;
        let leads = world.council.leads(node.me).is_some();
        if leads && !led && world.has(Mutant::NewLeaderHearsNobody) {
            node.forget_heard(&world);
        }
        led = leads;
        if leads {
            let gone = node.gone(&world, &state);
            replace_lost(&world, &node, &state, &gone).await;
            give_tasks_up(&world, &node, &state, gone, &mut lost).await;
        } else {
            lost.clear();
        }
    }
}

fn look(world: &World, node: &Rc<Node>, state: &State, presence: &mut Presence) -> Facts {
    let now = world.time.instant();
    let silent = |other| node.silent(world, world.net.number(other)).max(node.outbox.behind(other, now));
    presence.look(&presence::heard(state, silent, |other| node.is_lost(world, world.net.number(other))), now, SETTLE)
}

/// Asks for what this node's shards need.
async fn keep_own(world: &World, node: &Rc<Node>, facts: &Facts) {
    let Ok(views) = node.calls.views().await else { return };
    *node.suspect.borrow_mut() = suspects_in(&views);
    if node.hears_nobody(world, &world.council.local(node.me)) {
        return;
    }
    let mut asked = Vec::new();
    for one in wanted(&views, world.id(node.me), |shard| node.suspects(world, shard), facts) {
        if matches!(node.calls.ask_change(one.shard, one.epoch, one.change).await, Ok(Ok(()))) {
            asked.push(one);
        }
    }
    if asked.is_empty() {
        return;
    }
    let commands = asked.iter().map(|one| one.command()).collect();
    let Ok(answers) = world.council.propose(node.me, commands).await else { return };
    for (Wanted { shard, epoch, .. }, answer) in asked.into_iter().zip(answers) {
        if answer.is_err_and(|refused| Wanted::is_settled_by(&refused)) {
            let _ = node.calls.change_refused(shard, epoch).await;
        }
    }
}

/// Gives shards whose home is lost to a member that has all their records.
async fn replace_lost(world: &World, node: &Rc<Node>, state: &State, gone: &BTreeSet<NodeId>) {
    let commands = replaced(state, shards(), gone, |shard| node.suspects(world, shard));
    if !commands.is_empty() {
        let _ = world.council.propose(node.me, commands).await;
    }
}

/// Has inputs leased elsewhere whose task has ended without a word to this node.
async fn free_ended(world: &World, node: &Rc<Node>, ended: &mut EndedTasks) {
    let load = node.calls.load().borrow().clone();
    if ended.untold(&load, &world.council.local(node.me)).is_empty() || world.council.read_latest(node.me).await.is_err() {
        return;
    }
    for (task, pool) in ended.untold(&load, &world.council.local(node.me)) {
        if lease_elsewhere(world, node, task, pool, b"its container has ended with its node").await {
            ended.told(task);
        }
    }
}

/// Has what a task that is gone had leased elsewhere; false if nobody said that it is.
async fn lease_elsewhere(world: &World, node: &Rc<Node>, task: TaskId, pool: FunctionId, why: &'static [u8]) -> bool {
    let lost = Lost::Platform { result: Bytes::from_static(why) };
    matches!(world.time.within(LEASED_ELSEWHERE_WITHIN, node.calls.task_lost(task, pool, lost)).await, Some(Ok(())))
}

/// Has the inputs of a lost node's tasks leased elsewhere, and ends its tasks when they cannot run any more.
async fn give_tasks_up(world: &World, node: &Rc<Node>, state: &State, mut gone: BTreeSet<NodeId>, lost: &mut LostTasks) {
    gone.remove(&world.id(node.me));
    lost.look(&gone, world.time.instant());
    for other in gone {
        for (task, function) in lost.untold(other, state) {
            if lease_elsewhere(world, node, task, function, b"the node that ran it is lost").await {
                lost.told(other, task);
            }
        }
        let ends = lost.ends(other, state, world.time.instant(), world.timestamp());
        if !ends.is_empty() {
            let _ = world.council.propose(node.me, ends).await;
        }
    }
}
