//! The leader's care for the members of consensus: those that vote, and those that are about to.
//!
//! Who belongs to the cluster is in the state; this brings Raft's own configuration there, one step after the other. What to do
//! next is decided in a pure function; the loop only does it. All other members follow those that vote, and are told so ([`invites`]);
//! before all know of that, they are learners.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use shoal_raft::{FOLLOWERS_SINCE, Peer, Raft, Status};
use shoal_state::model::{Member, Voting};
use shoal_state::{Command, NodeId, State, VERSION_KNOWN, VOTERS_MAX};
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::reports::Reports;

mod invites;

use invites::Invites;

/// How often is looked, should nothing change.
const EVERY: Duration = Duration::from_secs(1);
/// The pause after each look: entries come by the hundred.
const PAUSE: Duration = Duration::from_millis(200);
/// The pause after a change that failed.
const FAILED_PAUSE: Duration = Duration::from_secs(2);
/// A node that answered within this time is there.
const HEARD_WITHIN: Duration = Duration::from_secs(3);
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
enum Step {
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
struct Wanted {
    members: BTreeMap<NodeId, Member>,
    zones: BTreeMap<NodeId, String>,
    voting: BTreeMap<NodeId, Voting>,
}

impl Wanted {
    fn of(state: &State) -> Self {
        let zone = |(id, node): (&NodeId, &shoal_state::model::Node)| Some((*id, node.labels.get(ZONE)?.clone()));
        Self {
            members: state.members.iter().map(|(id, member)| (*id, member.clone())).collect(),
            zones: state.nodes.iter().filter_map(zone).collect(),
            voting: state.voting.iter().map(|(id, voting)| (*id, *voting)).collect(),
        }
    }

    /// Returns how many vote: an even number stands no more losses than the odd one below it.
    fn voters(&self) -> usize {
        let may = self.members.keys().filter(|id| self.voting.get(id) != Some(&Voting::MustNot)).count();
        let must = self.voting.values().filter(|voting| **voting == Voting::Must).count();
        let enough = voters_of(may).max(must);
        if enough > 2 && enough.is_multiple_of(2) && enough < may { enough + 1 } else { enough }.min(VOTERS_MAX)
    }
}

/// Whom the leader reaches.
#[derive(Debug, Clone, Default)]
struct Reach {
    /// Those that answered lately; itself included.
    there: BTreeSet<NodeId>,
    /// Those of them that have almost all of the log.
    ready: BTreeSet<NodeId>,
    /// Those that have been silent for so long that another one should vote in their place.
    gone: BTreeSet<NodeId>,
    /// Those that say that they are alive, members of consensus or not.
    alive: BTreeSet<NodeId>,
    /// Those that were to vote, and did not get the log in time.
    slow: BTreeSet<NodeId>,
}

impl Reach {
    fn of(raft: &Status, silent: &BTreeMap<NodeId, Instant>, gone_after: Duration) -> Self {
        let mut reach = Self { there: BTreeSet::from([raft.node]), ready: BTreeSet::from([raft.node]), ..Self::default() };
        for follower in raft.followers.iter().filter(|follower| follower.heard.is_some_and(|heard| heard < HEARD_WITHIN)) {
            reach.there.insert(follower.node);
            if follower.matched + BEHIND_MAX >= raft.last_log {
                reach.ready.insert(follower.node);
            }
        }
        reach.gone = silent.iter().filter(|(_, since)| since.elapsed() >= gone_after).map(|(node, _)| *node).collect();
        reach
    }

    /// Says whether enough of these are there to decide something.
    fn decides(&self, voters: impl ExactSizeIterator<Item = NodeId>) -> bool {
        let all = voters.len();
        voters.filter(|voter| self.there.contains(voter)).count() > all / 2
    }
}

/// Returns how many of so many members vote when nobody has decided anything.
pub(crate) fn voters_of(members: usize) -> usize {
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
fn choose(wanted: &Wanted, raft: &Status, reach: &Reach) -> Vec<NodeId> {
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
fn next(wanted: &Wanted, raft: &Status, reach: &Reach) -> Option<Step> {
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
    let gone = known.keys().find(|node| !vote_now.contains(node) && !(members.contains_key(node) && needed(node)));
    if let Some(gone) = gone {
        return Some(Step::Forget(*gone));
    }
    let version = members.values().map(|member| member.version).min()?.min(VERSION_KNOWN);
    (version > raft.version).then_some(Step::Version(version))
}

/// Looks until `stop`.
pub(crate) async fn run(api: Api, stop: CancellationToken) {
    let gone_after = Duration::from_secs(api.config.cluster.replace_voter_seconds);
    let mut changes = api.cluster.raft().watch();
    let (mut silent, mut late, mut invites) = (BTreeMap::new(), BTreeMap::new(), Invites::default());
    loop {
        let wait = async {
            tokio::time::sleep(PAUSE).await;
            tokio::select! {
                () = tokio::time::sleep(EVERY) => true,
                changed = changes.changed() => changed.is_ok(),
            }
        };
        tokio::select! {
            goes_on = wait => if !goes_on { return },
            () = stop.cancelled() => return,
        }
        let raft = api.cluster.raft();
        if !raft.leads() {
            // Whoever leads next gives everybody the whole time anew.
            silent.clear();
            late.clear();
            invites.clear();
            continue;
        }
        let status = raft.status();
        if status.voters.iter().all(|voter| voter.node != raft.node()) {
            // It has lost its vote, and leads no more in a moment.
            continue;
        }
        note_silent(&mut silent, &status);
        let (state, mut reach) = (api.local(), Reach::of(&status, &silent, gone_after));
        note_late(&mut late, &status, &reach);
        reach.alive = alive(&state, &api.reports);
        reach.slow = late.iter().filter(|(_, since)| since.elapsed() >= SLOW_AFTER).map(|(node, _)| *node).collect();
        invites.look(raft, &status, &state);
        let Some(step) = next(&Wanted::of(&state), &status, &reach) else { continue };
        tokio::select! {
            done = take(&api, raft, &step) => match done {
                Ok(()) => tracing::info!(?step, "the members of consensus have changed"),
                Err(error) => {
                    tracing::warn!(?step, %error, "cannot change the members of consensus; it is tried again");
                    tokio::time::sleep(FAILED_PAUSE).await;
                }
            },
            () = stop.cancelled() => return,
        }
    }
}

/// Keeps since when each member has been silent.
fn note_silent(silent: &mut BTreeMap<NodeId, Instant>, raft: &Status) {
    let there = |heard: Option<Duration>| heard.is_some_and(|heard| heard < HEARD_WITHIN);
    silent.retain(|node, _| raft.followers.iter().any(|follower| follower.node == *node && !there(follower.heard)));
    for follower in raft.followers.iter().filter(|follower| !there(follower.heard)) {
        silent.entry(follower.node).or_insert_with(Instant::now);
    }
}

/// Keeps since when each that is about to vote lacks the log; for a while also of one that was given up.
fn note_late(late: &mut BTreeMap<NodeId, Instant>, raft: &Status, reach: &Reach) {
    let learns = |node: &NodeId| raft.learners.iter().any(|peer| peer.node == *node);
    let given_up = |since: &Instant| (SLOW_AFTER..SLOW_FOR).contains(&since.elapsed());
    late.retain(|node, since| !reach.ready.contains(node) && (learns(node) && since.elapsed() < SLOW_FOR || given_up(since)));
    for peer in raft.learners.iter().filter(|peer| !reach.ready.contains(&peer.node)) {
        late.entry(peer.node).or_insert_with(Instant::now);
    }
}

/// Returns the members that this node has heard lately, by whatever they say.
fn alive(state: &State, reports: &Reports) -> BTreeSet<NodeId> {
    state.members.keys().copied().filter(|node| state.nodes.contains_key(node) && reports.silent(*node) < HEARD_WITHIN).collect()
}

async fn take(api: &Api, raft: &Raft, step: &Step) -> Result<(), crate::api::Error> {
    let failed = |error: shoal_raft::Error| crate::api::Error::Unavailable(error.to_string());
    match step {
        Step::Address(peer) => raft.set_address(peer.clone()).await.map_err(failed),
        Step::Learn(peer) => raft.add_learner(peer.clone()).await.map_err(failed),
        Step::Vote(voters) => raft.set_voters(voters).await.map_err(failed),
        Step::Forget(node) => raft.remove_learner(*node).await.map_err(failed),
        Step::Version(version) => api.propose(Command::SetVersion { version: *version }).await.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use shoal_state::Timestamp;

    use super::*;

    fn id(number: u128) -> NodeId {
        NodeId::from_random(number)
    }

    fn member(number: u128, version: u32) -> (NodeId, Member) {
        let member = Member { address: format!("n{number}:1"), version, release: String::new(), joined: Timestamp(0) };
        (id(number), member)
    }

    fn peer(number: u128) -> Peer {
        Peer { node: id(number), address: format!("n{number}:1") }
    }

    fn raft(voters: &[u128], learners: &[u128]) -> Status {
        let peers = |numbers: &[u128]| numbers.iter().map(|number| peer(*number)).collect();
        crate::standing::led_by(id(1), peers(voters), peers(learners))
    }

    fn wanted(numbers: std::ops::RangeInclusive<u128>) -> Wanted {
        Wanted { members: numbers.map(|number| member(number, VERSION_KNOWN)).collect(), ..Wanted::default() }
    }

    fn without(mut wanted: Wanted, number: u128) -> Wanted {
        wanted.members.remove(&id(number));
        wanted
    }

    fn zones(mut wanted: Wanted, zones: &[(u128, &str)]) -> Wanted {
        wanted.zones = zones.iter().map(|(number, zone)| (id(*number), (*zone).to_owned())).collect();
        wanted
    }

    fn voting(mut wanted: Wanted, voting: &[(u128, Voting)]) -> Wanted {
        wanted.voting = voting.iter().map(|(number, voting)| (id(*number), *voting)).collect();
        wanted
    }

    fn ids(numbers: &[u128]) -> BTreeSet<NodeId> {
        numbers.iter().copied().map(id).collect()
    }

    /// These are there and have the whole log; those of `gone` have been silent for long.
    fn reach(there: &[u128], gone: &[u128]) -> Reach {
        Reach { there: ids(there), ready: ids(there), gone: ids(gone), alive: ids(there), slow: ids(&[]) }
    }

    fn all() -> Reach {
        reach(&(1..=20).collect::<Vec<_>>(), &[])
    }

    fn vote(numbers: &[u128]) -> Option<Step> {
        Some(Step::Vote(numbers.iter().copied().map(id).collect()))
    }

    #[test]
    fn an_odd_number_votes() {
        assert_eq!([1, 2, 3, 4, 5, 6, 20].map(voters_of), [1, 2, 3, 3, 5, 5, 5]);
    }

    #[test]
    fn a_new_member_follows_and_votes_where_one_more_is_needed() {
        let alive = |there: &[u128]| Reach { alive: ids(&[2, 3, 4, 5]), ..reach(there, &[]) };
        assert_eq!(next(&wanted(1..=2), &raft(&[1], &[]), &reach(&[1], &[])), None, "nobody has heard it yet");
        assert_eq!(next(&wanted(1..=2), &raft(&[1], &[]), &alive(&[1])), Some(Step::Learn(peer(2))));
        assert_eq!(next(&wanted(1..=2), &raft(&[1], &[2]), &alive(&[1])), None, "it has not got the log yet");
        assert_eq!(next(&wanted(1..=2), &raft(&[1], &[2]), &all()), vote(&[1, 2]));
        assert_eq!(next(&wanted(1..=2), &raft(&[1, 2], &[]), &all()), None);
        assert_eq!(next(&wanted(1..=4), &raft(&[1, 2, 3], &[]), &all()), None, "four are no better than three");
        assert_eq!(next(&wanted(1..=5), &raft(&[1, 2, 3], &[]), &alive(&[1, 2, 3])), Some(Step::Learn(peer(4))));
        assert_eq!(next(&wanted(1..=5), &raft(&[1, 2, 3], &[4]), &alive(&[1, 2, 3, 4])), Some(Step::Learn(peer(5))));
        assert_eq!(next(&wanted(1..=5), &raft(&[1, 2, 3], &[4, 5]), &alive(&[1, 2, 3, 4])), None, "both at once");
        assert_eq!(next(&wanted(1..=5), &raft(&[1, 2, 3], &[4, 5]), &all()), vote(&[1, 2, 3, 4, 5]));
    }

    /// Members of an older release know nothing of following: all have the log as those that vote have it.
    #[test]
    fn before_all_know_of_followers_every_member_learns() {
        let old = |voters: &[u128], learners: &[u128]| Status { version: FOLLOWERS_SINCE - 1, ..raft(voters, learners) };
        let mixed = || {
            let mut mixed = wanted(1..=4);
            mixed.members.extend([member(2, FOLLOWERS_SINCE - 1)]);
            mixed
        };
        assert_eq!(next(&mixed(), &old(&[1, 2, 3], &[]), &all()), Some(Step::Learn(peer(4))));
        assert_eq!(next(&mixed(), &old(&[1, 2, 3], &[4]), &all()), None);
        // Once all know of it, and the rules are active, those that need not vote follow.
        assert_eq!(next(&wanted(1..=4), &old(&[1, 2, 3], &[4]), &all()), Some(Step::Version(VERSION_KNOWN)));
        assert_eq!(next(&wanted(1..=4), &raft(&[1, 2, 3], &[4]), &all()), Some(Step::Forget(id(4))));
    }

    #[test]
    fn one_that_does_not_get_the_log_is_passed_over_for_another() {
        let wanted = || wanted(1..=5);
        let reach = |slow: &[u128], gone: &[u128]| Reach { alive: ids(&[1, 2, 4, 5]), slow: ids(slow), ..reach(&[1, 2], gone) };
        let three = || voting(wanted(), &[(3, Voting::MustNot), (5, Voting::MustNot)]);
        assert_eq!(next(&three(), &raft(&[1, 2, 3], &[4]), &reach(&[], &[])), None, "it is waited for");
        assert_eq!(next(&three(), &raft(&[1, 2, 3], &[4]), &reach(&[4], &[])), vote(&[1, 2]), "and not for ever");
        let free = || voting(wanted(), &[(3, Voting::MustNot)]);
        let late = next(&free(), &raft(&[1, 2, 3], &[4]), &reach(&[4], &[]));
        assert_eq!(late, Some(Step::Learn(peer(5))));
    }

    #[test]
    fn who_was_removed_votes_no_more_and_is_forgotten() {
        let three = || without(wanted(1..=4), 2);
        assert_eq!(next(&three(), &raft(&[1, 2, 3], &[]), &all()), Some(Step::Learn(peer(4))));
        assert_eq!(next(&three(), &raft(&[1, 2, 3], &[4]), &all()), vote(&[1, 3, 4]));
        assert_eq!(next(&three(), &raft(&[1, 3, 4], &[2]), &all()), Some(Step::Forget(id(2))));
        assert_eq!(next(&three(), &raft(&[1, 3, 4], &[]), &all()), None);
    }

    #[test]
    fn one_after_the_other_is_removed_down_to_one_the_leader_too() {
        assert_eq!(next(&without(wanted(1..=3), 1), &raft(&[1, 2, 3], &[]), &all()), vote(&[2, 3]));
        assert_eq!(next(&without(wanted(2..=3), 3), &raft(&[2, 3], &[]), &all()), vote(&[2]));
        let down = reach(&[1, 2], &[]);
        assert_eq!(next(&without(wanted(1..=3), 3), &raft(&[1, 2, 3], &[]), &down), vote(&[1, 2]), "one that is down can be removed");
    }

    #[test]
    fn a_voter_that_is_gone_for_long_is_replaced_and_no_sooner() {
        let (three, raft) = (super::tests::raft(&[1, 2, 3], &[]), super::tests::raft(&[1, 2, 3], &[4]));
        assert_eq!(next(&wanted(1..=4), &three, &reach(&[1, 2, 4], &[])), None, "it may come back soon");
        assert_eq!(next(&wanted(1..=4), &three, &reach(&[1, 2, 4], &[3])), Some(Step::Learn(peer(4))));
        assert_eq!(next(&wanted(1..=4), &raft, &reach(&[1, 2, 4], &[3])), vote(&[1, 2, 4]));
        assert_eq!(next(&wanted(1..=4), &three, &reach(&[1, 2], &[3])), None, "nobody else is there");
        let behind = Reach { ready: ids(&[1, 2]), ..reach(&[1, 2, 4], &[3]) };
        assert_eq!(next(&wanted(1..=4), &raft, &behind), None, "the other one has not got the log yet");
        let back = super::tests::raft(&[1, 2, 4], &[3]);
        assert_eq!(next(&wanted(1..=4), &back, &all()), Some(Step::Forget(id(3))), "one that comes back follows");
    }

    #[test]
    fn no_change_is_begun_that_could_not_be_finished() {
        // The removed one is one of two that are there: without it nobody could decide anything.
        assert_eq!(next(&without(wanted(1..=3), 3), &raft(&[1, 2, 3], &[]), &reach(&[1, 3], &[])), None);
        assert_eq!(next(&wanted(1..=6), &raft(&[1, 2, 3], &[4, 5, 6]), &reach(&[1, 4, 5, 6], &[2, 3])), None);
        let half_way = Status { changing_to: Some(vec![id(2), id(3)]), ..raft(&[1, 2, 3], &[]) };
        assert_eq!(next(&wanted(1..=3), &half_way, &all()), vote(&[2, 3]), "what was begun comes first");
    }

    #[test]
    fn voters_are_spread_over_zones() {
        let spread = || zones(wanted(1..=5), &[(1, "a"), (2, "a"), (3, "a"), (4, "b"), (5, "c")]);
        let three = || voting(spread(), &[(3, Voting::MustNot), (2, Voting::MustNot)]);
        assert_eq!(next(&three(), &raft(&[1, 2, 3], &[4, 5]), &all()), vote(&[1, 4, 5]));
        let six = || zones(wanted(1..=6), &[(1, "a"), (2, "a"), (3, "a"), (4, "a"), (5, "a"), (6, "b")]);
        assert_eq!(next(&six(), &raft(&[1, 2, 3, 4, 5], &[6]), &all()), vote(&[1, 2, 3, 4, 6]));
        assert_eq!(next(&six(), &raft(&[1, 2, 3, 4, 6], &[]), &all()), None, "it stays so");
        // The leader stays where one of its zone is to vote.
        let leads_3 = Status { node: id(3), leader: Some(id(3)), ..raft(&[1, 2, 3], &[4]) };
        let two_zones = || zones(wanted(1..=4), &[(1, "a"), (2, "a"), (3, "a"), (4, "b")]);
        assert_eq!(next(&two_zones(), &leads_3, &all()), vote(&[1, 3, 4]));
        // The place of one that is gone is taken in its own zone.
        let seven = || zones(wanted(1..=4), &[(1, "a"), (2, "b"), (3, "c"), (4, "c")]);
        assert_eq!(next(&seven(), &raft(&[1, 2, 3], &[4]), &reach(&[1, 2, 4], &[3])), vote(&[1, 2, 4]));
    }

    #[test]
    fn what_operators_decide_comes_first() {
        let four = || voting(wanted(1..=4), &[(4, Voting::Must)]);
        assert_eq!(next(&four(), &raft(&[1, 2, 3], &[4]), &all()), vote(&[1, 2, 4]));
        assert_eq!(next(&four(), &raft(&[1, 2, 3], &[]), &reach(&[1, 2, 3], &[])), None, "it votes when it is there");
        let not_1 = || voting(wanted(1..=4), &[(1, Voting::MustNot)]);
        assert_eq!(next(&not_1(), &raft(&[1, 2, 3], &[4]), &all()), vote(&[2, 3, 4]));
        let many = || voting(wanted(1..=6), &[1, 2, 3, 4].map(|number| (number, Voting::Must)));
        assert_eq!(many().voters(), 5);
        let even = || voting(wanted(1..=6), &[1, 2, 3, 4].map(|number| (number, Voting::MustNot)));
        assert_eq!((even().voters(), next(&even(), &raft(&[5, 6], &[]), &all())), (2, None));
    }

    /// Whatever the beginning, the same view gives a last step after which there is none: nothing goes to and fro.
    #[test]
    fn steps_come_to_an_end() {
        let names = ["", "a", "b", "c"];
        for seed in 0..2000_u128 {
            let bit = |place: u128, of: u128| (seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (place * 3)) % of;
            let members = 1 + bit(0, 8);
            let zoned: Vec<(u128, &str)> = (1..=members).map(|node| (node, names[bit(node, 4) as usize])).collect();
            let pins = (1..=members).filter(|node| bit(node + 9, 7) == 0).map(|node| (node, Voting::MustNot));
            let pins: Vec<_> = pins.filter(|(node, _)| *node != 1).collect();
            let view = voting(zones(wanted(1..=members), &zoned), &pins);
            let there: Vec<u128> = (1..=members).filter(|node| *node == 1 || bit(node + 3, 5) != 0).collect();
            let gone: Vec<u128> = (1..=members).filter(|node| !there.contains(node)).collect();
            let reach = reach(&there, &gone);
            let (mut raft, mut steps) = (raft(&[1], &[]), 0);
            while let Some(step) = next(&view, &raft, &reach) {
                steps += 1;
                assert!(steps < 30, "seed {seed}: {step:?} follows {raft:?}");
                let (voters, learners) = match step {
                    Step::Learn(peer) => (raft.voters.clone(), raft.learners.iter().cloned().chain([peer]).collect()),
                    Step::Vote(ids) => {
                        assert!(reach.decides(ids.iter().copied()), "seed {seed}: {ids:?} cannot decide");
                        raft.voters.iter().chain(&raft.learners).cloned().partition(|peer| ids.contains(&peer.node))
                    }
                    Step::Forget(node) => (raft.voters.clone(), raft.learners.iter().filter(|peer| peer.node != node).cloned().collect()),
                    other => panic!("seed {seed}: {other:?}"),
                };
                (raft.voters, raft.learners) = (voters, learners);
            }
        }
    }

    #[test]
    fn a_node_counts_as_gone_only_after_it_was_silent_for_the_whole_time() {
        let follower = |number, heard| shoal_raft::Follower { node: id(number), matched: 0, heard };
        let status = |followers| Status { followers, last_log: 1000, ..raft(&[1, 2, 3], &[]) };
        let now = Some(Duration::ZERO);
        let mut silent = BTreeMap::new();
        let down = status(vec![follower(2, now), follower(3, None)]);
        note_silent(&mut silent, &down);
        assert_eq!(Reach::of(&down, &silent, Duration::from_secs(600)).gone, ids(&[]));
        let reach = Reach::of(&down, &silent, Duration::ZERO);
        assert_eq!((reach.gone, reach.there, reach.ready), (ids(&[3]), ids(&[1, 2]), ids(&[1])));
        note_silent(&mut silent, &status(vec![follower(2, now), follower(3, now)]));
        assert!(silent.is_empty(), "it has come back");
    }

    #[test]
    fn a_member_that_has_moved_is_found_where_it_is() {
        let mut two = wanted(1..=2);
        two.members.insert(id(2), Member { address: "elsewhere:1".into(), ..member(2, 1).1 });
        let step = Step::Address(Peer { node: id(2), address: "elsewhere:1".into() });
        assert_eq!(next(&two, &raft(&[1, 2], &[]), &all()), Some(step));
    }

    #[test]
    fn rules_wait_for_the_oldest_member() {
        let old = Status { version: VERSION_KNOWN - 1, ..raft(&[1, 2], &[]) };
        assert_eq!(next(&wanted(1..=2), &old, &all()), Some(Step::Version(VERSION_KNOWN)));
        let mut mixed = wanted(1..=1);
        mixed.members.extend([member(2, VERSION_KNOWN - 1)]);
        assert_eq!(next(&mixed, &old, &all()), None);
    }
}
