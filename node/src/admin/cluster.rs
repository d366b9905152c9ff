//! How consensus stands, for `shoal status`: who leads, who votes, how far behind each is, and what is wrong.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use shoal_members::removal::{name, name_alone};
use shoal_raft::Status;
use shoal_state::{NodeId, State};

use crate::standing::Standing;

/// A member, as far as the node that answers could find out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemberStands {
    /// The node's id.
    pub(crate) node_id: String,
    /// What people call it.
    pub(crate) name: String,
    /// Whether it answered.
    pub(crate) answers: bool,
    /// Why it did not.
    pub(crate) why: Option<String>,
    /// How many entries it has applied less than whoever has applied most; none when it did not answer.
    pub(crate) behind: Option<u64>,
    /// By which voter it is told what is decided; none where it is a member of consensus, looks for one, or did not answer.
    #[serde(default)]
    pub(crate) told_by: Option<String>,
    /// Whether nodes can join there: it has the key of the cluster's CA.
    pub(crate) lets_in: bool,
}

/// Who votes and who only follows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Consensus {
    /// Members that vote.
    pub(crate) voters: Vec<MemberStands>,
    /// Members that follow: they are told by those that vote what is decided, or have the log and are about to vote.
    pub(crate) learners: Vec<MemberStands>,
    /// What is wrong, and what to do; empty when all is well.
    pub(crate) trouble: Vec<String>,
}

/// Puts together what members said of themselves. `undecided`: why nothing is decided, if so.
pub(super) fn consensus(
    state: &State,
    raft: &Status,
    standings: &[(NodeId, Result<Standing, String>)],
    undecided: Option<String>,
) -> Consensus {
    let newest = standings.iter().filter_map(|(_, said)| said.as_ref().ok()).map(|said| said.applied).max().unwrap_or(raft.applied);
    let stands = |node: NodeId| {
        let said = standings.iter().find(|(asked, _)| *asked == node).map(|(_, said)| said);
        let heard = said.and_then(|said| said.as_ref().ok());
        MemberStands {
            node_id: node.to_string(),
            name: name(state, node),
            answers: heard.is_some(),
            why: said.and_then(|said| said.as_ref().err().cloned()),
            behind: heard.map(|said| newest.saturating_sub(said.applied)),
            lets_in: heard.is_some_and(|said| said.lets_in),
            told_by: heard.and_then(|said| said.told_by).map(|voter| name(state, voter)),
        }
    };
    let voters: Vec<MemberStands> = raft.voters.iter().map(|peer| stands(peer.node)).collect();
    // A member of consensus that is none of the cluster any more is shown as long as it is one.
    let of_consensus = raft.voters.iter().chain(&raft.learners).map(|peer| peer.node);
    let all: BTreeSet<NodeId> = state.members.keys().copied().chain(of_consensus).collect();
    let votes = |node: &NodeId| raft.voters.iter().any(|peer| peer.node == *node);
    let learners = all.into_iter().filter(|node| !votes(node)).map(stands).collect();
    let mut trouble: Vec<String> = undecided.into_iter().collect();
    for (peer, _) in raft.voters.iter().zip(&voters).filter(|(_, voter)| !voter.answers) {
        trouble.push(format!("{} votes and does not answer", name_alone(state, peer.node)));
    }
    if voters.len() == 2 {
        trouble.push("two nodes vote: the loss of either stops the cluster; a third one would make up for it".to_owned());
    }
    if voters.iter().filter(|voter| voter.answers).all(|voter| !voter.lets_in) {
        trouble.push("no node that answers has the key of the cluster's CA: nobody can join, and certificates are not renewed".to_owned());
    }
    Consensus { voters, learners, trouble }
}

#[cfg(test)]
mod tests {
    use shoal_raft::Peer;

    use super::*;

    fn id(number: u128) -> NodeId {
        NodeId::from_random(number)
    }

    #[test]
    fn each_member_is_shown_with_what_it_lacks_and_trouble_is_named() {
        let peer = |number| Peer { node: id(number), address: String::new() };
        let raft = Status { applied: 90, last_log: 100, ..Status::of_leader(id(1), vec![peer(1), peer(2)], vec![peer(3)]) };
        let stands = |applied, lets_in| Ok(Standing { applied, term: 1, leader: None, lets_in, told_by: (applied == 60).then(|| id(1)) });
        let said = [(id(1), stands(100, true)), (id(2), Err("nobody answers there".to_owned())), (id(3), stands(60, false))];
        let seen = consensus(&State::default(), &raft, &said, None);
        assert_eq!(seen.voters.iter().map(|one| one.behind).collect::<Vec<_>>(), [Some(0), None]);
        assert_eq!((seen.voters[1].answers, seen.voters[1].why.as_deref()), (false, Some("nobody answers there")));
        assert_eq!((seen.learners[0].behind, seen.learners[0].told_by.as_deref()), (Some(40), Some(&*id(1).to_string())));
        assert_eq!(seen.trouble.len(), 2, "{:?}", seen.trouble);
        let lost = [(id(1), stands(100, false))];
        let seen = consensus(&State::default(), &raft, &lost, Some("nothing is decided".to_owned()));
        assert!(seen.trouble[0].contains("nothing is decided") && seen.trouble.iter().any(|line| line.contains("nobody can join")));
    }
}
