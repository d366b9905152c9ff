//! The leader's care for the members of consensus: who follows the log, and who votes.
//!
//! Who belongs to the cluster is in the state; this brings Raft's own configuration there, one step after the other. What to do
//! next is decided in a pure function; the loop only does it.

use std::collections::BTreeMap;
use std::time::Duration;

use shoal_raft::{Peer, Raft, Status};
use shoal_state::model::Member;
use shoal_state::{Command, NodeId, VERSION_KNOWN};
use tokio_util::sync::CancellationToken;

use crate::api::Api;

/// How often is looked, should nothing change.
const EVERY: Duration = Duration::from_secs(2);
/// The most members that vote.
const VOTERS_MAX: usize = 5;

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// A member has another address than Raft knows.
    Address(Peer),
    /// A member does not follow the log yet.
    Follow(Peer),
    /// Who votes from now on.
    Vote(Vec<NodeId>),
    /// A node that is no member any more still follows.
    Forget(NodeId),
    /// Every member knows these rules.
    Version(u32),
}

/// Returns how many of so many members vote: an even number stands no more losses than the odd one below it.
fn voters_of(members: usize) -> usize {
    match members {
        0..=2 => members,
        _ => (members - (members + 1) % 2).min(VOTERS_MAX),
    }
}

/// Says what to do next so that Raft's members are those of the state.
fn next(members: &BTreeMap<NodeId, Member>, raft: &Status) -> Option<Step> {
    let known: BTreeMap<NodeId, &Peer> = raft.voters.iter().chain(&raft.learners).map(|peer| (peer.node, peer)).collect();
    let peer = |id: &NodeId, member: &Member| Peer { node: *id, address: member.address.clone() };
    let moved = members.iter().find(|(id, member)| known.get(id).is_some_and(|peer| peer.address != member.address));
    if let Some((id, member)) = moved {
        return Some(Step::Address(peer(id, member)));
    }
    if let Some((id, member)) = members.iter().find(|(id, _)| !known.contains_key(id)) {
        return Some(Step::Follow(peer(id, member)));
    }
    // Those that vote stay, so that nothing changes without need; then those that follow.
    let ordered = raft.voters.iter().chain(&raft.learners).map(|peer| peer.node).filter(|node| members.contains_key(node));
    let mut voters: Vec<NodeId> = ordered.take(voters_of(members.len())).collect();
    voters.sort_unstable();
    let mut vote_now: Vec<NodeId> = raft.voters.iter().map(|peer| peer.node).collect();
    vote_now.sort_unstable();
    if voters != vote_now && !voters.is_empty() {
        return Some(Step::Vote(voters));
    }
    if let Some(gone) = known.keys().find(|node| !members.contains_key(node)) {
        return Some(Step::Forget(*gone));
    }
    let version = members.values().map(|member| member.version).min()?.min(VERSION_KNOWN);
    (version > raft.version).then_some(Step::Version(version))
}

/// Looks until `stop`.
pub(crate) async fn run(api: Api, stop: CancellationToken) {
    let mut changes = api.cluster.raft().watch();
    loop {
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            changed = changes.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
        let raft = api.cluster.raft();
        if !raft.leads() {
            continue;
        }
        let members = api.local().members.into_iter().collect();
        let Some(step) = next(&members, &raft.status()) else { continue };
        tokio::select! {
            done = take(&api, raft, &step) => match done {
                Ok(()) => tracing::info!(?step, "the members of consensus have changed"),
                Err(error) => {
                    tracing::warn!(?step, %error, "cannot change the members of consensus; it is tried again");
                    tokio::time::sleep(EVERY).await;
                }
            },
            () = stop.cancelled() => return,
        }
    }
}

async fn take(api: &Api, raft: &Raft, step: &Step) -> Result<(), crate::api::Error> {
    let failed = |error: shoal_raft::Error| crate::api::Error::Unavailable(error.to_string());
    match step {
        Step::Address(peer) => raft.set_address(peer.clone()).await.map_err(failed),
        Step::Follow(peer) => raft.add_learner(peer.clone()).await.map_err(failed),
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
        Status {
            node: id(1),
            leader: Some(id(1)),
            term: 1,
            applied: 1,
            last_log: 1,
            snapshot: 0,
            purged: 0,
            voters: voters.iter().map(|number| peer(*number)).collect(),
            learners: learners.iter().map(|number| peer(*number)).collect(),
            version: VERSION_KNOWN,
            marks: vec![],
            stopped: None,
        }
    }

    fn members(numbers: std::ops::RangeInclusive<u128>) -> BTreeMap<NodeId, Member> {
        numbers.map(|number| member(number, VERSION_KNOWN)).collect()
    }

    #[test]
    fn an_odd_number_votes() {
        assert_eq!([1, 2, 3, 4, 5, 6, 20].map(voters_of), [1, 2, 3, 3, 5, 5, 5]);
    }

    #[test]
    fn a_new_member_follows_and_then_votes() {
        assert_eq!(next(&members(1..=2), &raft(&[1], &[])), Some(Step::Follow(peer(2))));
        assert_eq!(next(&members(1..=2), &raft(&[1], &[2])), Some(Step::Vote(vec![id(1), id(2)])));
        assert_eq!(next(&members(1..=2), &raft(&[1, 2], &[])), None);
        assert_eq!(next(&members(1..=4), &raft(&[1, 2, 3], &[4])), None, "four are no better than three");
        assert_eq!(next(&members(1..=5), &raft(&[1, 2, 3], &[4, 5])), Some(Step::Vote((1..=5).map(id).collect())));
    }

    #[test]
    fn who_was_removed_votes_no_more_and_is_forgotten() {
        let mut three = members(1..=4);
        three.remove(&id(2));
        assert_eq!(next(&three, &raft(&[1, 2, 3], &[4])), Some(Step::Vote(vec![id(1), id(3), id(4)])));
        assert_eq!(next(&three, &raft(&[1, 3, 4], &[2])), Some(Step::Forget(id(2))));
        assert_eq!(next(&three, &raft(&[1, 3, 4], &[])), None);
    }

    #[test]
    fn a_member_that_has_moved_is_found_where_it_is() {
        let mut two = members(1..=2);
        two.insert(id(2), Member { address: "elsewhere:1".into(), ..member(2, 1).1 });
        assert_eq!(next(&two, &raft(&[1, 2], &[])), Some(Step::Address(Peer { node: id(2), address: "elsewhere:1".into() })));
    }

    #[test]
    fn rules_wait_for_the_oldest_member() {
        let old = Status { version: VERSION_KNOWN - 1, ..raft(&[1, 2], &[]) };
        assert_eq!(next(&members(1..=2), &old), Some(Step::Version(VERSION_KNOWN)));
        let mut mixed = members(1..=1);
        mixed.extend([member(2, VERSION_KNOWN - 1)]);
        assert_eq!(next(&mixed, &old), None);
    }
}
