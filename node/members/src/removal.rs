//! Whether a node can be taken out of the cluster, and what that costs.

use std::collections::{BTreeMap, BTreeSet};

use shoal_raft::Status;
use shoal_state::model::Voting;
use shoal_state::{NodeId, State};

use crate::voters::voters_of;

/// Returns what people call a node.
pub fn name(state: &State, node: NodeId) -> String {
    state.nodes.get(&node).map_or_else(|| node.to_string(), |known| known.name.clone())
}

/// Returns what people call a node, with its id where they call another one the same, as when its machine was wiped and joined anew.
pub fn name_alone(state: &State, node: NodeId) -> String {
    let name = name(state, node);
    let others = state.nodes.iter().any(|(id, other)| *id != node && other.name == name);
    if others { format!("{name} ({node})") } else { name }
}

/// Says what the removal of a node costs, or why it cannot be. What the rules forbid is not looked at. `lets_in`: those that answered,
/// and whether each has the key of the cluster's CA.
pub fn judge(state: &State, raft: &Status, lets_in: &BTreeMap<NodeId, bool>, id: NodeId) -> Result<String, String> {
    let left: BTreeSet<NodeId> = state.members.keys().copied().filter(|node| *node != id).collect();
    if left.is_empty() || !state.members.contains_key(&id) {
        return Ok(String::new());
    }
    if !left.iter().any(|node| lets_in.get(node).is_some_and(|lets_in| *lets_in)) {
        return Err(format!(
            "cannot remove node {id}: of the others none that answers has the key of the cluster's CA, so that nobody could join any more. \
             Nodes that vote fetch it within seconds: see `shoal status`, and try again"
        ));
    }
    let may_vote: Vec<NodeId> = left.iter().copied().filter(|node| state.voting.get(node) != Some(&Voting::MustNot)).collect();
    let votes = |node: &NodeId| raft.voters.iter().any(|peer| peer.node == *node);
    // Those that vote stay; those that answer may take the places of others.
    let voters = voters_of(may_vote.len());
    let (there, away): (Vec<NodeId>, Vec<NodeId>) = may_vote.into_iter().partition(|node| lets_in.contains_key(node));
    if there.len() <= voters / 2 {
        let away: Vec<String> = away.iter().filter(|node| votes(node)).map(|node| name(state, *node)).collect();
        return Err(format!(
            "cannot remove node {id}: {voters} nodes would be left to vote, and of them these do not answer: {}. Nothing could be decided \
             any more. Start them, or remove them first",
            away.join(", ")
        ));
    }
    Ok(cost(state, voters, id))
}

fn cost(state: &State, voters: usize, id: NodeId) -> String {
    let tasks = state.tasks.values().filter(|task| task.node == id).count();
    let ended = if tasks == 0 { String::new() } else { format!(" Its {tasks} task(s) have ended; their inputs run again elsewhere.") };
    let stands = match voters {
        1 => "one node votes: should it be lost, all is lost",
        2 => "two nodes vote: should either be lost, nothing is decided until it is back",
        3 => "three nodes vote, and the cluster stands the loss of one of them",
        _ => "five nodes vote, and the cluster stands the loss of two of them",
    };
    format!("What is left: {stands}.{ended}")
}

#[cfg(test)]
mod tests {
    use shoal_raft::Peer;
    use shoal_state::model::{Member, Node, Resources};
    use shoal_state::{BootId, Timestamp};

    use super::*;

    fn id(number: u128) -> NodeId {
        NodeId::from_random(number)
    }

    /// Asks to remove node 1 of a cluster in which these vote, these answer, and these have the key of the CA.
    fn judged(members: u128, voters: &[u128], there: &[u128], keys: &[u128]) -> Result<String, String> {
        let member = Member { address: String::new(), version: 4, release: String::new(), joined: Timestamp(0) };
        let mut state = State::default();
        state.members = (1..=members).map(|number| (id(number), member.clone())).collect();
        let voters = voters.iter().map(|number| Peer { node: id(*number), address: String::new() }).collect();
        let raft = Status { leader: None, ..Status::of_leader(id(1), voters, vec![]) };
        let lets_in = there.iter().map(|number| (id(*number), keys.contains(number))).collect();
        judge(&state, &raft, &lets_in, id(1))
    }

    #[test]
    fn nodes_of_one_name_are_told_apart() {
        let mut state = State::default();
        for (number, name) in [(1, "a"), (2, "b"), (3, "b")] {
            let node = Node {
                name: name.to_owned(),
                boot: BootId::from_random(1),
                capacity: Resources::default(),
                labels: Default::default(),
                address: String::new(),
                draining: false,
                started: Timestamp(0),
            };
            state.nodes.insert(id(number), node);
        }
        assert_eq!(name_alone(&state, id(1)), "a");
        assert_eq!(name_alone(&state, id(2)), format!("b ({})", id(2)));
    }

    #[test]
    fn what_is_left_is_said() {
        assert!(judged(5, &[1, 2, 3, 4, 5], &[1, 2, 3, 4, 5], &[1, 2]).unwrap().contains("three nodes vote"));
        assert!(judged(3, &[1, 2, 3], &[1, 2, 3], &[1, 2]).unwrap().contains("two nodes vote"));
        assert!(judged(3, &[1, 2, 3], &[2, 3], &[2, 3]).unwrap().contains("two nodes vote"), "one that is down can be removed");
        assert!(judged(2, &[1, 2], &[1, 2], &[1, 2]).unwrap().contains("one node votes"));
    }

    #[test]
    fn a_removal_that_would_end_the_cluster_is_refused() {
        let keyless = judged(3, &[1, 2, 3], &[1, 2, 3], &[1]).unwrap_err();
        assert!(keyless.contains("key of the cluster's CA"), "{keyless}");
        let away = judged(3, &[1, 2, 3], &[1, 2], &[1, 2]).unwrap_err();
        assert!(away.contains("2 nodes would be left to vote, and of them these do not answer: no-"), "{away}");
        assert!(judged(4, &[1, 2, 3], &[1, 2, 4], &[1, 2]).is_ok(), "another one takes the place of the one that is down");
    }
}
