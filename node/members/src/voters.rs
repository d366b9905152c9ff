//! Who votes: the leader's next step that brings Raft's own members where the state wants them.
//!
//! Pure: what the leader knows comes in, one step comes out. It is taken by the binary, one after the other, and played from a seed by
//! the simulation.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use shoal_raft::{FOLLOWERS_SINCE, Peer, Status};
use shoal_state::model::{Member, Voting};
use shoal_state::{NodeId, State, VERSION_KNOWN, VOTERS_MAX};

/// A node that answered within this time is there.
const HEARD_WITHIN: Duration = Duration::from_secs(3);

/// Returns the members that have a process and were heard lately, by whatever they say; `silent` says for how long each was not.
pub fn alive(state: &State, silent: impl Fn(NodeId) -> Duration) -> BTreeSet<NodeId> {
    let is_heard = |node: &NodeId| state.nodes.contains_key(node) && silent(*node) < HEARD_WITHIN;
    state.members.keys().copied().filter(is_heard).collect()
}
/// How many entries a node may be behind that is to vote.
const BEHIND_MAX: u64 = 500;
/// A node that is to vote and has not got the log after this time is passed over …
const SLOW_AFTER: Duration = Duration::from_secs(60);
/// … for so long.
const SLOW_FOR: Duration = Duration::from_secs(600);
/// The label of a node that names its failure domain.
const ZONE: &str = "zone";

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A member has another address than Raft knows.
    Address(Peer),
    /// A member is to have the log as one that may vote has it.
    Learn(Peer),
    /// Who votes from now on.
    Vote(Vec<NodeId>),
    /// A node that does not vote, and need not, is no member of consensus any more.
    Forget(NodeId),
    /// Every member knows these rules.
    Version(u32),
}

/// What the state says of those that may vote.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    members: BTreeMap<NodeId, Member>,
    zones: BTreeMap<NodeId, String>,
    voting: BTreeMap<NodeId, Voting>,
}

impl Wanted {
    /// Reads it from the state.
    pub fn of(state: &State) -> Self {
        let zone = |(id, node): (&NodeId, &shoal_state::model::Node)| Some((*id, node.labels.get(ZONE)?.clone()));
        Self {
            members: state.members.iter().map(|(id, member)| (*id, member.clone())).collect(),
            zones: state.nodes.iter().filter_map(zone).collect(),
            voting: state.voting.iter().map(|(id, voting)| (*id, *voting)).collect(),
        }
    }

    /// Returns how many vote: an even number stands no more losses than the odd one below it.
    pub fn voters(&self) -> usize {
        let may = self.members.keys().filter(|id| self.voting.get(id) != Some(&Voting::MustNot)).count();
        let must = self.voting.values().filter(|voting| **voting == Voting::Must).count();
        let enough = voters_of(may).max(must);
        if enough > 2 && enough.is_multiple_of(2) && enough < may { enough + 1 } else { enough }.min(VOTERS_MAX)
    }
}

/// Whom the leader reaches.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    /// Those that answered lately; itself included.
    pub there: BTreeSet<NodeId>,
    /// Those of them that have almost all of the log.
    pub ready: BTreeSet<NodeId>,
    /// Those that have been silent for so long that another one should vote in their place.
    pub gone: BTreeSet<NodeId>,
    /// Those that say that they are alive, members of consensus or not.
    pub alive: BTreeSet<NodeId>,
    /// Those that were to vote, and did not get the log in time.
    pub slow: BTreeSet<NodeId>,
}

impl Reach {
    fn of(raft: &Status, silent: &BTreeMap<NodeId, Instant>, gone_after: Duration, now: Instant) -> Self {
        let mut reach = Self { there: BTreeSet::from([raft.node]), ready: BTreeSet::from([raft.node]), ..Self::default() };
        for follower in raft.followers.iter().filter(|follower| follower.heard.is_some_and(|heard| heard < HEARD_WITHIN)) {
            reach.there.insert(follower.node);
            if follower.matched + BEHIND_MAX >= raft.last_log {
                reach.ready.insert(follower.node);
            }
        }
        reach.gone = silent.iter().filter(|(_, since)| now - **since >= gone_after).map(|(node, _)| *node).collect();
        reach
    }

    /// Says whether enough of these are there to decide something.
    fn decides(&self, voters: impl ExactSizeIterator<Item = NodeId>) -> bool {
        let all = voters.len();
        voters.filter(|voter| self.there.contains(voter)).count() > all / 2
    }
}

/// Returns how many of so many members vote when nobody has decided anything.
pub fn voters_of(members: usize) -> usize {
    match members {
        0..=2 => members,
        _ => (members - (members + 1) % 2).min(VOTERS_MAX),
    }
}

/// Chooses who votes, one after the other: those that are there before those that have been gone for long, those that operators
/// want before others, zones with few voters before those with more, and those that vote already before those that do not, so
/// that nothing changes without need.
///
/// A node that follows may be chosen too: it gets the log first.
pub fn choose(wanted: &Wanted, raft: &Status, reach: &Reach) -> Vec<NodeId> {
    let votes = |id: &NodeId| raft.voters.iter().any(|peer| peer.node == *id);
    let learns = |id: &NodeId| raft.learners.iter().any(|peer| peer.node == *id);
    let comes = |id: &NodeId| raft.version >= FOLLOWERS_SINCE && reach.alive.contains(id) && !reach.slow.contains(id);
    let can = |id: &NodeId| votes(id) || reach.ready.contains(id) || comes(id);
    let may = |id: &&NodeId| wanted.voting.get(id) != Some(&Voting::MustNot) && can(id);
    let mut candidates: BTreeSet<NodeId> = wanted.members.keys().filter(may).copied().collect();
    let (mut chosen, mut in_zone) = (Vec::new(), BTreeMap::<&str, usize>::new());
    let zone = |id: &NodeId| wanted.zones.get(id).map_or("", String::as_str);
    while chosen.len() < wanted.voters() {
        let rank = |id: &NodeId| {
            let must = wanted.voting.get(id) == Some(&Voting::Must);
            let crowd = in_zone.get(zone(id)).copied().unwrap_or_default();
            let has = (!votes(id), raft.leader != Some(*id), !reach.ready.contains(id), !learns(id));
            (reach.gone.contains(id), !must, crowd, has, *id)
        };
        let Some(next) = candidates.iter().copied().min_by_key(rank) else { break };
        candidates.remove(&next);
        *in_zone.entry(zone(&next)).or_default() += 1;
        chosen.push(next);
    }
    chosen.sort_unstable();
    chosen
}

/// Says what to do next so that Raft's members are those of the state.
pub fn next(wanted: &Wanted, raft: &Status, reach: &Reach) -> Option<Step> {
    // A change that was begun by a former leader comes first.
    if let Some(voters) = &raft.changing_to {
        return Some(Step::Vote(voters.clone()));
    }
    let members = &wanted.members;
    let known: BTreeMap<NodeId, &Peer> = raft.voters.iter().chain(&raft.learners).map(|peer| (peer.node, peer)).collect();
    let peer = |id: &NodeId, member: &Member| Peer { node: *id, address: member.address.clone() };
    let moved = members.iter().find(|(id, member)| known.get(id).is_some_and(|peer| peer.address != member.address));
    if let Some((id, member)) = moved {
        return Some(Step::Address(peer(id, member)));
    }
    let voters = choose(wanted, raft, reach);
    let followers = raft.version >= FOLLOWERS_SINCE;
    let needed = |id: &NodeId| !followers || voters.contains(id);
    if let Some((id, member)) = members.iter().find(|(id, _)| needed(id) && !known.contains_key(id)) {
        return Some(Step::Learn(peer(id, member)));
    }
    let mut vote_now: Vec<NodeId> = raft.voters.iter().map(|peer| peer.node).collect();
    vote_now.sort_unstable();
    let have_the_log = voters.iter().all(|id| vote_now.contains(id) || reach.ready.contains(id));
    // Both the old and the new voters must agree to a change: without a majority of either it would stand half-way.
    let can = reach.decides(voters.iter().copied()) && reach.decides(vote_now.iter().copied());
    if voters != vote_now && have_the_log && can {
        return Some(Step::Vote(voters));
    }
    let gone = known.keys().find(|node| !(vote_now.contains(node) || members.contains_key(node) && needed(node)));
    if let Some(gone) = gone {
        return Some(Step::Forget(*gone));
    }
    let version = members.values().map(|member| member.version).min()?.min(VERSION_KNOWN);
    (version > raft.version).then_some(Step::Version(version))
}

/// What a leader remembers from one look to the next. Whoever leads next gives everybody the whole time anew.
#[derive(Debug, Default)]
pub struct Watch {
    /// Since when each member has been silent.
    silent: BTreeMap<NodeId, Instant>,
    /// Since when each that is about to vote lacks the log.
    late: BTreeMap<NodeId, Instant>,
}

impl Watch {
    /// Forgets everything: another node leads.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Returns whom the leader reaches. `alive`: those that say so to it; `gone_after`: how long a voter may be silent.
    pub fn look(&mut self, raft: &Status, alive: BTreeSet<NodeId>, gone_after: Duration, now: Instant) -> Reach {
        note_silent(&mut self.silent, raft, now);
        let mut reach = Reach::of(raft, &self.silent, gone_after, now);
        note_late(&mut self.late, raft, &reach, now);
        reach.alive = alive;
        reach.slow = self.late.iter().filter(|(_, since)| now - **since >= SLOW_AFTER).map(|(node, _)| *node).collect();
        reach
    }
}

/// Keeps since when each member has been silent.
fn note_silent(silent: &mut BTreeMap<NodeId, Instant>, raft: &Status, now: Instant) {
    let there = |heard: Option<Duration>| heard.is_some_and(|heard| heard < HEARD_WITHIN);
    silent.retain(|node, _| raft.followers.iter().any(|follower| follower.node == *node && !there(follower.heard)));
    for follower in raft.followers.iter().filter(|follower| !there(follower.heard)) {
        silent.entry(follower.node).or_insert(now);
    }
}

/// Keeps since when each that is about to vote lacks the log; for a while also of one that was given up.
fn note_late(late: &mut BTreeMap<NodeId, Instant>, raft: &Status, reach: &Reach, now: Instant) {
    let learns = |node: &NodeId| raft.learners.iter().any(|peer| peer.node == *node);
    let given_up = |since: &Instant| (SLOW_AFTER..SLOW_FOR).contains(&(now - *since));
    late.retain(|node, since| !reach.ready.contains(node) && (learns(node) && now - *since < SLOW_FOR || given_up(since)));
    for peer in raft.learners.iter().filter(|peer| !reach.ready.contains(&peer.node)) {
        late.entry(peer.node).or_insert(now);
    }
}

#[cfg(test)]
mod tests;
