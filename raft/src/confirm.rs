//! Whether this node still leads, in the words of a majority, and up to which entry a state must be to be the latest.
//!
//! openraft can ask that too, and waits a heartbeat's time for the answers, which is too short where packets take longer there and back.
//! The question is an append without entries, as any member answers it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use openraft::CommittedLeaderId;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse};

use crate::network::{Declined, Index, Links};
use crate::types::{Core, Peer, RaftState, Vote};

/// A leader at one moment.
struct Leading {
    vote: Vote,
    /// The last entry that is committed; none as long as it has committed nothing of its own: until then it does not know what of its
    /// log its predecessors have.
    committed: Option<u64>,
    /// All who vote; while a change of them is under way, those before and those after.
    configs: Vec<BTreeSet<u64>>,
    peers: BTreeMap<u64, Peer>,
}

impl Leading {
    /// None where this node does not lead.
    fn of(state: &RaftState) -> Option<Self> {
        let vote = *state.vote_ref();
        if !state.server_state.is_leader() {
            return None;
        }
        let of_this_leader = CommittedLeaderId::new(vote.leader_id.term, vote.leader_id.node_id);
        let committed = state.committed.filter(|id| id.leader_id == of_this_leader);
        let members = state.membership_state.effective().membership();
        let peers = members.nodes().map(|(id, peer)| (*id, peer.clone())).collect();
        let committed = committed.map(|id| id.index);
        Some(Self { vote, committed, configs: members.get_joint_config().clone(), peers })
    }

    fn me(&self) -> u64 {
        self.vote.leader_id.node_id
    }

    fn is_enough(&self, agree: &BTreeSet<u64>) -> bool {
        self.configs.iter().all(|voters| voters.intersection(agree).count() > voters.len() / 2)
    }
}

/// Asks all who vote, and returns the index when a majority has agreed. Whoever asks sees to it that this comes to an end: nobody
/// is waited for longer than `patience`.
pub(crate) async fn ask_majority(core: &Core, links: &Links, patience: Duration) -> Index {
    let leading = core.with_raft_state(Leading::of).await.map_err(|fatal| Declined::Stopped { why: fatal.to_string() })?;
    let leading = leading.ok_or(Declined::NotLeader)?;
    let index = leading.committed.ok_or(Declined::Unanswered)?;
    let mut agree = BTreeSet::from([leading.me()]);
    let others: BTreeSet<u64> = leading.configs.iter().flatten().copied().filter(|id| *id != leading.me()).collect();
    let ask = |id: &u64| {
        let (id, wire) = (*id, links.wire(*id, &leading.peers[id]));
        let question = AppendEntriesRequest { vote: leading.vote, prev_log_id: None, leader_commit: None, entries: vec![] };
        async move { (id, wire.append(question, patience).await) }
    };
    let mut answers: FuturesUnordered<_> = others.iter().map(ask).collect();
    while !leading.is_enough(&agree) {
        match answers.next().await {
            Some((id, Ok(AppendEntriesResponse::Success | AppendEntriesResponse::PartialSuccess(_)))) => drop(agree.insert(id)),
            Some((_, Ok(AppendEntriesResponse::HigherVote(_)))) => return Err(Declined::NotLeader),
            Some((_, Ok(AppendEntriesResponse::Conflict) | Err(_))) => {}
            None => return Err(Declined::Unanswered),
        }
    }
    Ok(index)
}
