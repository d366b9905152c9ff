//! What the leader does next about the members, for a view of them.

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
    Status::of_leader(id(1), peers(voters), peers(learners))
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
    let (three, four) = (raft(&[1, 2, 3], &[]), raft(&[1, 2, 3], &[4]));
    assert_eq!(next(&wanted(1..=4), &three, &reach(&[1, 2, 4], &[])), None, "it may come back soon");
    assert_eq!(next(&wanted(1..=4), &three, &reach(&[1, 2, 4], &[3])), Some(Step::Learn(peer(4))));
    assert_eq!(next(&wanted(1..=4), &four, &reach(&[1, 2, 4], &[3])), vote(&[1, 2, 4]));
    assert_eq!(next(&wanted(1..=4), &three, &reach(&[1, 2], &[3])), None, "nobody else is there");
    let behind = Reach { ready: ids(&[1, 2]), ..reach(&[1, 2, 4], &[3]) };
    assert_eq!(next(&wanted(1..=4), &four, &behind), None, "the other one has not got the log yet");
    let back = raft(&[1, 2, 4], &[3]);
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
    let (mut silent, at) = (BTreeMap::new(), Instant::now());
    let down = status(vec![follower(2, now), follower(3, None)]);
    note_silent(&mut silent, &down, at);
    assert_eq!(Reach::of(&down, &silent, Duration::from_secs(600), at).gone, ids(&[]));
    let reach = Reach::of(&down, &silent, Duration::ZERO, at);
    assert_eq!((reach.gone, reach.there, reach.ready), (ids(&[3]), ids(&[1, 2]), ids(&[1])));
    note_silent(&mut silent, &status(vec![follower(2, now), follower(3, now)]), at);
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

/// Leaders that come and go while voters are changed, from a seed. What must hold, however they follow each other:
///
/// - `joint_is_finished`: a change that was begun is finished before anything else is done, whoever leads then;
/// - a change is begun only where both the old and the new voters have a majority that is there;
/// - in the end, when all are there, none is under way and those vote that are to.
///
/// `SHOAL_SEED=n` replays one, `SHOAL_SEEDS=n` runs that many: `cargo test -p shoal-members joint_is_finished`.
mod changes {
    use super::*;

    struct World {
        random: u64,
        wanted: Wanted,
        raft: Status,
        up: BTreeSet<NodeId>,
        gone: BTreeSet<NodeId>,
    }

    impl World {
        fn below(&mut self, below: u64) -> u64 {
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.random >> 33) % below
        }

        fn reach(&self) -> Reach {
            let known = |id: &NodeId| self.raft.voters.iter().chain(&self.raft.learners).any(|peer| peer.node == *id);
            let there: BTreeSet<NodeId> = self.up.iter().copied().filter(known).collect();
            Reach { ready: there.clone(), there, gone: self.gone.clone(), alive: self.up.clone(), slow: BTreeSet::new() }
        }

        fn voters(&self) -> Vec<NodeId> {
            let mut voters: Vec<NodeId> = self.raft.voters.iter().map(|peer| peer.node).collect();
            voters.sort_unstable();
            voters
        }

        fn majority_is_up(&self, voters: &[NodeId]) -> bool {
            voters.iter().filter(|voter| self.up.contains(voter)).count() * 2 > voters.len()
        }

        /// A leader looks once, and may be gone before it is done.
        fn lead(&mut self, seed: u64) {
            let begun = self.raft.changing_to.clone();
            let mut electorate = self.voters();
            if !self.majority_is_up(&electorate) || !begun.as_ref().is_none_or(|new| self.majority_is_up(new)) {
                return;
            }
            electorate.extend(begun.iter().flatten());
            self.raft.leader = electorate.iter().copied().find(|voter| self.up.contains(voter));
            let Some(step) = next(&self.wanted, &self.raft, &self.reach()) else {
                assert_eq!(begun, None, "seed {seed}: a change was begun, and nobody finishes it");
                return;
            };
            if let Some(new) = &begun {
                assert_eq!(step, Step::Vote(new.clone()), "seed {seed}: a change was begun, and another one is made");
            }
            let cut_short = self.below(3) == 0;
            match step {
                Step::Vote(new) => {
                    let both = self.majority_is_up(&self.voters()) && self.majority_is_up(&new);
                    assert!(both, "seed {seed}: {new:?} are to vote, and no majority of them or of the old ones is there");
                    self.raft.changing_to = Some(new.clone());
                    if !cut_short {
                        self.finish(&new);
                    }
                }
                Step::Learn(peer) => self.raft.learners.push(peer),
                Step::Forget(node) => self.raft.learners.retain(|peer| peer.node != node),
                Step::Address(_) | Step::Version(_) => panic!("seed {seed}: nobody has moved"),
            }
        }

        fn finish(&mut self, new: &[NodeId]) {
            let known: Vec<Peer> = self.raft.voters.iter().chain(&self.raft.learners).cloned().collect();
            (self.raft.voters, self.raft.learners) = known.into_iter().partition(|peer| new.contains(&peer.node));
            self.raft.changing_to = None;
        }

        fn happens(&mut self, seed: u64) {
            let node = id(u128::from(self.below(7)) + 1);
            match self.below(10) {
                0 => drop(self.up.remove(&node)),
                1 | 2 => drop((self.up.insert(node), self.gone.remove(&node))),
                3 if !self.up.contains(&node) => drop(self.gone.insert(node)),
                // The state lets nobody take away the last one that may vote.
                4 | 6 if node == id(1) => {}
                4 if self.wanted.members.len() > 3 && !self.voters().contains(&node) => drop(self.wanted.members.remove(&node)),
                5 => {
                    let number = node.bits();
                    self.wanted.members.extend([member(number, VERSION_KNOWN)]);
                }
                6 => {
                    let voting = if self.below(2) == 0 { Voting::Must } else { Voting::MustNot };
                    self.wanted.voting.insert(node, voting);
                }
                7 => drop(self.wanted.voting.remove(&node)),
                _ => self.lead(seed),
            }
        }
    }

    #[test]
    fn joint_is_finished() {
        let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
        let seeds = number("SHOAL_SEED").map_or(0..number("SHOAL_SEEDS").unwrap_or(3_000), |seed| seed..seed + 1);
        for seed in seeds {
            let (up, gone) = ((1..=7).map(id).collect(), BTreeSet::new());
            let mut world = World { random: seed, wanted: wanted(1..=5), raft: raft(&[1, 2, 3], &[]), up, gone };
            for _ in 0..60 {
                world.happens(seed);
            }
            world.up = (1..=7).map(id).collect();
            world.gone.clear();
            for _ in 0..60 {
                world.lead(seed);
            }
            assert_eq!(world.raft.changing_to, None, "seed {seed}");
            let (chosen, voters) = (choose(&world.wanted, &world.raft, &world.reach()), world.voters());
            assert_eq!(voters, chosen, "seed {seed}: others vote in the end than are to");
        }
    }
}
