//! Who holds a shard: decided by its home for its own shards, and by the leader for those whose home is lost.
//!
//! Where a shard belongs follows from the members alone (rendezvous hashing), so that every home comes to the same wish and little
//! moves when a node comes or goes. What to do next is decided in pure functions; the loop looks, asks Raft, and looks again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use futures::future::join_all;
use shoal_calls::calls::Lost;
use shoal_calls::shards::{Mark, Role, ShardView};
use shoal_state::model::{Shard, ShardChange, TaskEnd};
use shoal_state::{Command, NodeId, Refused, ShardId, State, TaskId, Timestamp};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::records::Outbox;
use crate::api::{Api, Error, now};
use crate::reports::{Reports, SILENT_AFTER};

/// How often is looked, should nothing change.
const EVERY: Duration = Duration::from_millis(200);
/// After so long without a word of a member another node is invited in its place, while it is waited for.
const REPLACED_AFTER: Duration = Duration::from_secs(1);
/// The most changes that are asked for at once.
const CHANGES_MAX: usize = 256;
/// How many nodes hold a shard.
const COPIES: usize = 2;
/// How long a node that is to leave is waited for.
const VACATE_WAIT: Duration = Duration::from_secs(60);
/// How long the tasks of a lost node count: what may not run twice is not started elsewhere meanwhile.
const FENCE_AFTER: Duration = Duration::from_secs(20);

/// What a decision starts from, besides the shard.
#[derive(Debug, Default)]
struct Facts {
    /// The nodes that could hold shards now, in order of their ids.
    up: BTreeSet<NodeId>,
    /// The nodes that have been so for long enough that moving to them, or away from others, is worth it.
    settled: BTreeSet<NodeId>,
    /// For how long a node has not been heard, or has not answered.
    silent: BTreeMap<NodeId, Duration>,
}

impl Facts {
    fn silent(&self, node: NodeId) -> Duration {
        self.silent.get(&node).copied().unwrap_or_default()
    }
}

/// Says whether fewer nodes have all records of a shard than should. A cluster of one has what it can have.
pub(crate) fn lacks_copies(state: &State, shard: &Shard) -> bool {
    shard.in_sync.len() < COPIES.min(state.members.len())
}

/// Orders nodes by how much a shard belongs to them.
fn ranked(shard: ShardId, nodes: impl IntoIterator<Item = NodeId>) -> Vec<NodeId> {
    let weight = |node: &NodeId| {
        let name = [&node.bits().to_le_bytes()[..], &shard.number().to_le_bytes()].concat();
        *blake3::hash(&name).as_bytes()
    };
    let mut nodes: Vec<NodeId> = nodes.into_iter().collect();
    nodes.sort_by_cached_key(|node| std::cmp::Reverse(weight(node)));
    nodes
}

/// Says what a shard's home should ask for next. `suspects` are members whose records may miss some.
fn next(view: &ShardView, me: NodeId, suspects: &BTreeMap<NodeId, Mark>, facts: &Facts) -> Option<ShardChange> {
    let Shard { in_sync, joining, .. } = &view.config;
    if view.role != Role::Home {
        return None;
    }
    // What was asked for and not answered is asked for again: Raft takes one of them.
    if view.asked.is_some() {
        return view.asked;
    }
    let caught_up = |node: &NodeId| view.caught_up.contains(node);
    let silent = |node: &NodeId, for_long: Duration| facts.silent(*node) >= for_long;
    let partners = || in_sync.iter().filter(|node| **node != me);

    let joins = joining.iter().find(|node| caught_up(node) && !silent(node, REPLACED_AFTER));
    if let Some(node) = joins {
        return Some(ShardChange::Join(*node));
    }
    if let Some(node) = joining.iter().find(|node| silent(node, SILENT_AFTER) || !facts.up.contains(*node)) {
        return Some(ShardChange::Abort(*node));
    }
    let gone = partners().find(|node| silent(node, SILENT_AFTER) || suspects.contains_key(*node));
    if let Some(node) = gone {
        return Some(ShardChange::Drop(*node));
    }
    // Who is to be there now: the best of those that are up.
    let ranked_up = ranked(view.shard, facts.up.iter().copied());
    let live = in_sync.iter().chain(joining).filter(|node| facts.up.contains(*node) && !silent(node, REPLACED_AFTER)).count();
    let invited = ranked_up.iter().find(|node| !in_sync.contains(node) && !joining.contains(node));
    if live < COPIES
        && let Some(node) = invited
    {
        return Some(ShardChange::Invite(*node));
    }
    if !joining.is_empty() {
        return None;
    }
    // A node that drains may go: its copy is none.
    if live >= COPIES.min(facts.up.len())
        && let Some(node) = partners().find(|node| !facts.up.contains(*node) && !silent(node, REPLACED_AFTER))
    {
        return Some(ShardChange::Drop(*node));
    }
    // Where it belongs in the long run; a home that drains waits for nobody to settle.
    let lasting = if facts.up.contains(&me) { &facts.settled } else { &facts.up };
    let wanted: Vec<NodeId> = ranked(view.shard, lasting.iter().copied()).into_iter().take(COPIES).collect();
    // Nothing moves while one of those that matter is away for a moment.
    let all_up = wanted.iter().all(|node| facts.up.contains(node));
    if wanted.is_empty() || !all_up || partners().any(|node| facts.up.contains(node) && !caught_up(node)) {
        return None;
    }
    if let Some(node) = wanted.iter().find(|node| !in_sync.contains(node)) {
        return Some(ShardChange::Invite(*node));
    }
    if wanted[0] != me {
        return Some(ShardChange::Promote(wanted[0]));
    }
    let extra = partners().find(|node| !wanted.contains(node));
    extra.filter(|_| wanted.len() >= COPIES && in_sync.len() > COPIES).map(|node| ShardChange::Drop(*node))
}

/// Says whom the leader makes the home of a shard: none while its home does what it is for, or nobody can take its place.
fn successor(shard: &Shard, is_lost: impl Fn(NodeId) -> bool, suspects: &BTreeMap<NodeId, Mark>) -> Option<NodeId> {
    let home_serves = !is_lost(shard.home) && !suspects.contains_key(&shard.home);
    if home_serves {
        return None;
    }
    let sound = shard.in_sync.iter().find(|node| !is_lost(**node) && !suspects.contains_key(*node));
    if sound.is_some() {
        return sound.copied();
    }
    // All may miss records: whoever has the most has everything that any of them still has. A lost one may have more.
    let all_are_known = shard.in_sync.iter().all(|node| suspects.contains_key(node) && !is_lost(*node));
    let most = suspects.iter().filter(|(node, _)| shard.in_sync.contains(node)).max_by_key(|(_, mark)| **mark);
    most.filter(|_| all_are_known).map(|(node, _)| *node)
}

/// Since when nodes can hold shards, and since when they cannot.
#[derive(Debug, Default)]
struct Presence {
    since: HashMap<NodeId, (bool, Instant)>,
}

impl Presence {
    /// Returns the nodes that can hold shards now, and those that have been able to, or were away for shorter, than `settle`.
    fn look(&mut self, state: &State, reports: &Reports, outbox: &Outbox, settle: Duration) -> Facts {
        let mut facts = Facts::default();
        let nodes: BTreeSet<NodeId> = state.members.keys().copied().filter(|node| state.nodes.contains_key(node)).collect();
        self.since.retain(|node, _| nodes.contains(node));
        let first_look = self.since.is_empty();
        for node in nodes {
            let silent = reports.silent(node).max(outbox.behind(node));
            facts.silent.insert(node, silent);
            let draining = state.nodes.get(&node).is_some_and(|node| node.draining);
            let is_up = silent < REPLACED_AFTER;
            // What is there when this node begins to look is taken as settled.
            let now = Instant::now();
            let long_ago = now.checked_sub(settle).unwrap_or(now);
            let (was_up, since) = self.since.entry(node).or_insert((is_up, if first_look { long_ago } else { now }));
            if *was_up != is_up {
                (*was_up, *since) = (is_up, now);
            }
            let settled = since.elapsed() >= settle;
            if draining {
                continue;
            }
            if is_up {
                facts.up.insert(node);
            }
            // Up for long, or away for a moment only.
            if is_up == settled {
                facts.settled.insert(node);
            }
        }
        facts
    }
}

/// Looks until `stop`.
pub(super) async fn run(api: Api, outbox: Outbox, stop: CancellationToken) {
    let (mut changes, mut presence, mut lost) = (api.cluster.raft().watch(), Presence::default(), HashMap::new());
    let settle = Duration::from_secs(api.config.calls.settle_seconds);
    let mut leads_since: Option<Instant> = None;
    loop {
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            changed = changes.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
        let state = api.local();
        if state.members.len() < 2 && state.shards.values().all(|shard| shard.home == api.cluster.node) {
            continue;
        }
        let facts = presence.look(&state, &api.reports, &outbox, settle);
        if let Err(error) = keep_own(&api, &facts).await {
            tracing::warn!(%error, "cannot see to the copies of this node's shards; it is tried again");
        }
        // A new leader takes nobody for lost whom it had no time to hear.
        let leads = api.cluster.raft().leads();
        leads_since = if leads { leads_since.or_else(|| Some(Instant::now())) } else { None };
        if leads_since.is_some_and(|since| since.elapsed() >= SILENT_AFTER) {
            replace_lost(&api, &state).await;
            give_tasks_up(&api, &state, &mut lost).await;
        } else {
            lost.clear();
        }
    }
}

/// Asks for what this node's shards need.
async fn keep_own(api: &Api, facts: &Facts) -> Result<(), shoal_calls::Error> {
    let views = api.calls.views().await?;
    let suspect = views.iter().filter(|view| view.role == Role::Suspect).map(|view| (view.shard, view.tail));
    api.reports.set_suspect(suspect.collect());
    let me = api.cluster.node;
    let wanted =
        views.iter().filter_map(|view| Some((view.shard, view.config.epoch, next(view, me, &api.reports.suspects(view.shard), facts)?)));
    ask(api, wanted.take(CHANGES_MAX).collect()).await
}

/// Puts changes into the log. A change that was surely refused is settled; one without an answer is asked for again.
async fn ask(api: &Api, wanted: Vec<(ShardId, u64, ShardChange)>) -> Result<(), shoal_calls::Error> {
    let mut asked = Vec::new();
    for (shard, epoch, change) in wanted {
        if api.calls.ask_change(shard, epoch, change).await?.is_ok() {
            asked.push((shard, epoch, change));
        }
    }
    if asked.is_empty() {
        return Ok(());
    }
    let commands = asked.iter().map(|(shard, epoch, change)| Command::ChangeShard { shard: *shard, epoch: *epoch, change: *change });
    match api.cluster.propose_all(commands.collect()).await {
        Ok(answers) => {
            tell(&asked);
            for ((shard, epoch, change), answer) in asked.into_iter().zip(answers) {
                match answer {
                    // What it is now comes with the state.
                    Ok(_) | Err(Refused::OldEpoch { .. }) => {}
                    Err(refused) => {
                        tracing::warn!(%shard, ?change, %refused, "a shard's members are not changed");
                        api.calls.change_refused(shard, epoch).await?;
                    }
                }
            }
        }
        Err(error) => tracing::debug!(%error, "nobody decides about shards at the moment"),
    }
    Ok(())
}

/// Says what was asked for, without naming each of many shards.
fn tell(asked: &[(ShardId, u64, ShardChange)]) {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for (_, _, change) in asked {
        *counts.entry(format!("{change:?}")).or_default() += 1;
    }
    tracing::info!(?counts, "the members of shards change");
}

/// Gives shards whose home is lost to a member that has all their records.
async fn replace_lost(api: &Api, state: &State) {
    let is_lost = |node: NodeId| !state.members.contains_key(&node) || api.reports.is_lost(node);
    let promoted = state.shards.iter().filter_map(|(id, shard)| {
        let node = successor(shard, is_lost, &api.reports.suspects(*id))?;
        Some(Command::ChangeShard { shard: *id, epoch: shard.epoch, change: ShardChange::Promote(node) })
    });
    let commands: Vec<Command> = promoted.collect();
    if commands.is_empty() {
        return;
    }
    tracing::info!(shards = commands.len(), "the home of shards is lost: others that have their records take its place");
    if let Err(error) = api.cluster.propose_all(commands).await {
        tracing::warn!(%error, "cannot replace the home of shards; it is tried again");
    }
}

/// Has the inputs of a lost node's tasks leased elsewhere, and ends its tasks when they cannot run any more.
async fn give_tasks_up(api: &Api, state: &State, lost: &mut HashMap<NodeId, (Instant, BTreeSet<TaskId>)>) {
    lost.retain(|node, _| api.reports.is_lost(*node));
    let gone: Vec<NodeId> = state.nodes.keys().copied().filter(|node| *node != api.cluster.node && api.reports.is_lost(*node)).collect();
    for node in gone {
        let (since, told) = lost.entry(node).or_insert_with(|| (Instant::now(), BTreeSet::new()));
        let tasks: Vec<_> = state.tasks.iter().filter(|(_, task)| task.node == node).map(|(id, task)| (*id, task.clone())).collect();
        let untold = tasks.iter().filter(|(id, _)| !told.contains(id));
        let given_up = join_all(untold.map(async |(id, task)| {
            let result = crate::provider::platform_failure("the node that ran it is lost");
            api.calls.task_lost(*id, task.function, Lost::Platform { result }).await.map(|()| *id)
        }));
        for given_up in given_up.await {
            match given_up {
                Ok(task) => drop(told.insert(task)),
                Err(error) => {
                    tracing::warn!(%node, %error, "cannot have the inputs of a lost node's task leased elsewhere; it is tried again")
                }
            }
        }
        if since.elapsed() < FENCE_AFTER || tasks.is_empty() {
            continue;
        }
        let end = |at: Timestamp| TaskEnd { at, how: "its node is lost".to_owned() };
        let commands = tasks.iter().map(|(id, task)| Command::EndTask { id: *id, generation: task.generation, end: end(now()) });
        if let Err(error) = api.cluster.propose_all(commands.collect()).await {
            tracing::warn!(%node, %error, "cannot end the tasks of a lost node; it is tried again");
        }
    }
}

/// Has everything moved away from a node that is to leave: it drains, and others take its shards. Where the node does not answer,
/// those that have its records take its place.
///
/// # Errors
/// When that takes longer than [`VACATE_WAIT`], with what is still there. The node stays drained.
pub(crate) async fn vacate(api: &Api, node: NodeId) -> Result<(), Error> {
    let held = |state: &State| state.shards.values().filter(|shard| shard.home == node || shard.in_sync.contains(&node)).count();
    let state = api.read_latest().await?;
    if held(&state) == 0 || state.members.len() < 2 {
        return Ok(());
    }
    if state.nodes.get(&node).is_some_and(|node| !node.draining) {
        api.propose(Command::DrainNode { id: node, draining: true }).await?;
    }
    let mut changes = api.cluster.raft().watch();
    let left = async { while held(&api.local()) > 0 && changes.changed().await.is_ok() {} };
    if tokio::time::timeout(VACATE_WAIT, left).await.is_err() {
        return Err(Error::Unavailable(format!(
            "waited {VACATE_WAIT:?} for the records of calls to leave node {node}: it still has those of {} of {} shards, and nobody else has all of them. It stays drained; try again, and see `shoal status`",
            held(&api.local()),
            ShardId::all().count(),
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u128) -> NodeId {
        NodeId::from_random(number)
    }

    fn ids(numbers: &[u128]) -> Vec<NodeId> {
        numbers.iter().map(|number| id(*number)).collect()
    }

    fn shard() -> ShardId {
        ShardId::new(7).unwrap()
    }

    /// The shard as its home, node 1, sees it: who is caught up besides it.
    fn view(in_sync: &[u128], joining: &[u128], caught_up: &[u128]) -> ShardView {
        let config = Shard { epoch: 5, home: id(1), in_sync: ids(in_sync), joining: ids(joining) };
        ShardView { shard: shard(), config, role: Role::Home, tail: Mark::default(), asked: None, caught_up: ids(caught_up) }
    }

    fn facts(up: &[u128], settled: &[u128]) -> Facts {
        Facts { up: ids(up).into_iter().collect(), settled: ids(settled).into_iter().collect(), silent: BTreeMap::new() }
    }

    fn silent(mut facts: Facts, node: u128, seconds: u64) -> Facts {
        facts.silent.insert(id(node), Duration::from_secs(seconds));
        if seconds > 0 {
            facts.up.remove(&id(node));
        }
        facts
    }

    fn step(view: &ShardView, facts: &Facts) -> Option<ShardChange> {
        next(view, id(1), &BTreeMap::new(), facts)
    }

    /// Nodes 1 to `count` in the order in which the shard belongs to them.
    fn order(count: u128) -> Vec<NodeId> {
        ranked(shard(), (1..=count).map(id))
    }

    #[test]
    fn a_node_alone_changes_nothing() {
        assert_eq!(step(&view(&[1], &[], &[]), &facts(&[1], &[1])), None);
    }

    #[test]
    fn a_second_copy_is_made_at_once_and_kept() {
        let new = facts(&[1, 2], &[1]);
        assert_eq!(step(&view(&[1], &[], &[]), &new), Some(ShardChange::Invite(id(2))));
        assert_eq!(step(&view(&[1], &[2], &[]), &new), None, "it is being fed");
        assert_eq!(step(&view(&[1], &[2], &[2]), &new), Some(ShardChange::Join(id(2))));
        assert_eq!(step(&view(&[1, 2], &[], &[2]), &new), None, "it is not moved before the node has been there for a while");
    }

    #[test]
    fn what_was_asked_for_is_asked_for_again() {
        let asked = ShardView { asked: Some(ShardChange::Join(id(2))), ..view(&[1], &[2], &[]) };
        assert_eq!(step(&asked, &facts(&[1, 2], &[1, 2])), Some(ShardChange::Join(id(2))));
    }

    #[test]
    fn a_silent_partner_is_replaced_and_then_dropped() {
        let two = || silent(facts(&[1, 2], &[1, 2]), 2, 2);
        assert_eq!(step(&view(&[1, 2], &[], &[2]), &two()), None, "nobody else is there");
        assert_eq!(step(&view(&[1, 2], &[], &[2]), &silent(two(), 2, 3)), Some(ShardChange::Drop(id(2))));
        let three = || silent(facts(&[1, 2, 3], &[1, 2, 3]), 2, 2);
        assert_eq!(step(&view(&[1, 2], &[], &[2]), &three()), Some(ShardChange::Invite(id(3))));
        assert_eq!(step(&view(&[1, 2], &[3], &[3]), &three()), Some(ShardChange::Join(id(3))));
        assert_eq!(step(&view(&[1, 2, 3], &[], &[3]), &silent(three(), 2, 3)), Some(ShardChange::Drop(id(2))));
    }

    #[test]
    fn nothing_moves_to_a_node_that_is_away_for_a_moment() {
        let belongs = order(3);
        let away = if belongs[..2].contains(&id(2)) { 2 } else { 3 };
        let facts = silent(facts(&[1, 2, 3], &[1, 2, 3]), away, 2);
        let other = 5 - away;
        assert_eq!(step(&view(&[1, other], &[], &[other]), &facts), None);
    }

    #[test]
    fn who_may_miss_records_or_goes_while_joining_begins_anew() {
        let suspects = BTreeMap::from([(id(2), Mark::default())]);
        let up = facts(&[1, 2], &[1, 2]);
        assert_eq!(next(&view(&[1, 2], &[], &[]), id(1), &suspects, &up), Some(ShardChange::Drop(id(2))));
        assert_eq!(step(&view(&[1], &[2], &[]), &silent(up, 2, 3)), Some(ShardChange::Abort(id(2))));
    }

    #[test]
    fn a_shard_moves_to_where_it_belongs_with_a_copy_at_each_moment() {
        let all = facts(&[1, 2, 3, 4], &[1, 2, 3, 4]);
        let belongs = &order(4)[..2];
        let mut held = Shard { epoch: 1, home: id(1), in_sync: ids(&[1]), joining: vec![] };
        for _ in 0..20 {
            let home = held.home;
            let caught_up: Vec<NodeId> = held.in_sync.iter().chain(&held.joining).copied().filter(|node| *node != home).collect();
            let view = ShardView { config: held.clone(), caught_up, ..view(&[], &[], &[]) };
            let Some(change) = next(&view, home, &BTreeMap::new(), &all) else { break };
            let (copies, put) = (held.in_sync.len(), |nodes: &mut Vec<NodeId>, node| {
                nodes.push(node);
                nodes.sort_unstable();
            });
            match change {
                ShardChange::Invite(node) => put(&mut held.joining, node),
                ShardChange::Join(node) => {
                    held.joining.retain(|joining| *joining != node);
                    put(&mut held.in_sync, node);
                }
                ShardChange::Promote(node) => {
                    assert!(copies >= 2, "a home leaves while there is one copy");
                    (held.home, held.in_sync) = (node, vec![node]);
                }
                ShardChange::Drop(node) => {
                    assert!(copies > 2, "a copy goes before another one is there");
                    held.in_sync.retain(|member| *member != node);
                }
                ShardChange::Abort(_) => panic!("nobody went away"),
            }
        }
        assert_eq!(held.home, belongs[0]);
        assert_eq!(held.in_sync.iter().collect::<BTreeSet<_>>(), belongs.iter().collect());
    }

    #[test]
    fn a_home_that_drains_gives_its_shards_away() {
        let drains = facts(&[2], &[]);
        assert_eq!(step(&view(&[1, 2], &[], &[2]), &drains), Some(ShardChange::Promote(id(2))));
        assert_eq!(step(&view(&[1], &[], &[]), &drains), Some(ShardChange::Invite(id(2))));
        // As a member it is dropped once others have copies, or nobody else is there.
        assert_eq!(step(&view(&[1, 2], &[], &[2]), &facts(&[1], &[1])), Some(ShardChange::Drop(id(2))));
        assert_eq!(step(&view(&[1, 2], &[], &[2]), &facts(&[1, 3], &[1, 3])), Some(ShardChange::Invite(id(3))));
    }

    #[test]
    fn shards_spread_evenly_and_stay_when_a_node_comes() {
        let homes = |count: u128| -> Vec<NodeId> { ShardId::all().map(|shard| ranked(shard, (1..=count).map(id))[0]).collect() };
        let (three, four) = (homes(3), homes(4));
        for node in 1..=3 {
            let has = three.iter().filter(|home| **home == id(node)).count();
            assert!((60..=110).contains(&has), "node {node} is home of {has} of 256");
        }
        assert!(three.iter().zip(&four).all(|(before, after)| before == after || *after == id(4)));
    }

    #[test]
    fn a_lost_home_is_replaced_by_who_has_all_records() {
        let shard = Shard { epoch: 1, home: id(1), in_sync: ids(&[1, 2]), joining: ids(&[3]) };
        let lost = |gone: &'static [u128]| move |node: NodeId| ids(gone).contains(&node);
        let none = BTreeMap::new();
        assert_eq!(successor(&shard, lost(&[]), &none), None);
        assert_eq!(successor(&shard, lost(&[2]), &none), None, "its home drops it");
        assert_eq!(successor(&shard, lost(&[1]), &none), Some(id(2)));
        assert_eq!(successor(&shard, lost(&[1, 2]), &none), None, "one that joins has not all of them");
    }

    #[test]
    fn where_all_may_miss_records_the_longest_log_counts_once_all_are_seen() {
        let shard = Shard { epoch: 1, home: id(1), in_sync: ids(&[1, 2]), joining: vec![] };
        let mark = |index| Mark { epoch: 1, index };
        let up = |_: NodeId| false;
        let both = BTreeMap::from([(id(1), mark(5)), (id(2), mark(7))]);
        assert_eq!(successor(&shard, up, &both), Some(id(2)));
        assert_eq!(successor(&shard, up, &BTreeMap::from([(id(1), mark(5))])), Some(id(2)), "the other one is sound");
        assert_eq!(successor(&shard, |node| node == id(2), &BTreeMap::from([(id(1), mark(5))])), None, "the other one may have more");
    }
}
