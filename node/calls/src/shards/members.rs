//! Who should hold a shard: asked by its home for its own shards, by the leader for those whose home is lost. Pure.
//!
//! Where a shard belongs follows from the members alone (rendezvous hashing), so that every home comes to the same wish and little
//! moves when a node comes or goes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shoal_state::model::{Shard, ShardChange};
use shoal_state::{Command, Digest, NodeId, Refused, ShardId, State};
use shoal_storage::replicate::Placement;

use super::replica::{Mark, Role};
use super::store::ShardView;

/// How many nodes hold a shard.
pub const COPIES: usize = 2;

/// After so long without a word of a member another node is invited in its place, while it is waited for.
pub const REPLACED_AFTER: Duration = Duration::from_secs(1);

/// After so long a member is dropped, and a home's shards are given to others.
pub const DROPPED_AFTER: Duration = Duration::from_secs(3);

/// The most changes that are asked for at once.
const CHANGES_MAX: usize = 256;

/// What a decision starts from, besides the shard.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The nodes that could hold shards now, in order of their ids.
    pub up: BTreeSet<NodeId>,
    /// The nodes that have been so for long enough that moving to them, or away from others, is worth it.
    pub settled: BTreeSet<NodeId>,
    /// For how long a node has not been heard, or has not answered.
    pub silent: BTreeMap<NodeId, Duration>,
}

impl Facts {
    fn silent(&self, node: NodeId) -> Duration {
        self.silent.get(&node).copied().unwrap_or_default()
    }
}

/// A change of a shard that its home asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The shard.
    pub shard: ShardId,
    /// As of which it is to change.
    pub epoch: u64,
    /// What is to change.
    pub change: ShardChange,
}

impl Wanted {
    /// Returns the command for it.
    pub fn command(self) -> Command {
        let Self { shard, epoch, change } = self;
        Command::ChangeShard { shard, epoch, change }
    }

    /// Says whether a refusal settles it. One of an old epoch does not: the shard is another by now, which comes with the state.
    pub fn is_settled_by(refused: &Refused) -> bool {
        !matches!(refused, Refused::OldEpoch { .. })
    }
}

/// Returns what a node asks for of the shards that are at home with it.
pub fn wanted(views: &[ShardView], me: NodeId, suspects: impl Fn(ShardId) -> BTreeMap<NodeId, Mark>, facts: &Facts) -> Vec<Wanted> {
    let of_one = |view: &ShardView| {
        let change = next(view, me, &suspects(view.shard), facts)?;
        Some(Wanted { shard: view.shard, epoch: view.config.epoch, change })
    };
    views.iter().filter_map(of_one).take(CHANGES_MAX).collect()
}

/// Returns the shards that may miss records here, and how far they go: what others are told.
pub fn suspects_in(views: &[ShardView]) -> BTreeMap<ShardId, Mark> {
    views.iter().filter(|view| view.role == Role::Suspect).map(|view| (view.shard, view.tail)).collect()
}

/// Returns what the leader asks for of these shards: those whose home is among the lost, or no member any more, go to a member that has
/// all their records.
pub fn replaced(
    state: &State,
    shards: impl IntoIterator<Item = ShardId>,
    lost: &BTreeSet<NodeId>,
    suspects: impl Fn(ShardId) -> BTreeMap<NodeId, Mark>,
) -> Vec<Command> {
    let is_lost = |node: NodeId| !state.members.contains_key(&node) || lost.contains(&node);
    let of_one = |id: ShardId| {
        let shard = state.shards.get(&id)?;
        let change = ShardChange::Promote(successor(shard, is_lost, &suspects(id))?);
        Some(Wanted { shard: id, epoch: shard.epoch, change }.command())
    };
    shards.into_iter().filter_map(of_one).collect()
}

/// Says whether fewer nodes have all records of a shard than should, of so many members. A cluster of one has what it can have.
pub fn lacks_copies(shard: &Shard, members: usize) -> bool {
    shard.in_sync.len() < COPIES.min(members)
}

/// Orders nodes by how much a shard belongs to them.
pub fn ranked(shard: ShardId, nodes: impl IntoIterator<Item = NodeId>) -> Vec<NodeId> {
    Placement::new(nodes, COPIES).ranked(&Digest::of(&shard.number().to_le_bytes()))
}

/// Says what a shard's home should ask for next. `suspects` are members whose records may miss some.
pub fn next(view: &ShardView, me: NodeId, suspects: &BTreeMap<NodeId, Mark>, facts: &Facts) -> Option<ShardChange> {
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
    if let Some(node) = joining.iter().find(|node| silent(node, DROPPED_AFTER) || !facts.up.contains(*node)) {
        return Some(ShardChange::Abort(*node));
    }
    let gone = partners().find(|node| silent(node, DROPPED_AFTER) || suspects.contains_key(*node));
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
pub fn successor(shard: &Shard, is_lost: impl Fn(NodeId) -> bool, suspects: &BTreeMap<NodeId, Mark>) -> Option<NodeId> {
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

#[cfg(test)]
mod tests {
    use shoal_state::Timestamp;
    use shoal_state::model::Member;

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
        ShardView {
            shard: shard(),
            config,
            role: Role::Home,
            tail: Mark::default(),
            asked: None,
            caught_up: ids(caught_up),
            fed: ids(caught_up),
        }
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
            let view = ShardView { config: held.clone(), fed: caught_up.clone(), caught_up, ..view(&[], &[], &[]) };
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
    fn the_leader_replaces_homes_that_are_lost_or_out_of_the_cluster() {
        let [kept, lost, out] = [3, 7, 70].map(|number| ShardId::new(number).unwrap());
        let held = |home| Shard { epoch: 4, home: id(home), in_sync: ids(&[1, home]), joining: vec![] };
        let mut state = State::default();
        state.shards = [(kept, held(1)), (lost, held(2)), (out, held(3))].into_iter().collect();
        let member = Member { address: String::new(), version: 1, release: String::new(), joined: Timestamp(0) };
        state.members.extend([1, 2].map(|node| (id(node), member.clone())));
        let promote = |shard| Wanted { shard, epoch: 4, change: ShardChange::Promote(id(1)) }.command();
        let replaced = replaced(&state, [kept, lost, out], &BTreeSet::from([id(2)]), |_| BTreeMap::new());
        assert_eq!(replaced, [promote(lost), promote(out)]);
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
