//! In the end as many vote as are to, nobody who is out of the cluster or against a wish, and spread over the failure domains: one of a
//! crowded zone makes place for one of an emptier zone.

use std::collections::BTreeMap;

use shoal_state::model::Voting;

use super::Events;
use crate::history::Event;

pub(super) fn check(events: &Events) -> Result<(), String> {
    let last = events.iter().rev().find_map(|(_, event)| match event {
        Event::MembersFinal { config, nodes } => Some((config, nodes)),
        _ => None,
    });
    let Some((config, nodes)) = last else { return Ok(()) };
    let wish = |wished: Voting| move |(_, _, voting): &&(usize, String, Option<Voting>)| *voting == Some(wished);
    let (must, may) = (nodes.iter().filter(wish(Voting::Must)).count(), nodes.len() - nodes.iter().filter(wish(Voting::MustNot)).count());
    let usual = match may {
        0..=2 => may,
        3 | 4 => 3,
        _ => 5,
    };
    // Four stand no more losses than three.
    let many = if must == 4 && may > 4 { 5 } else { usual.max(must) };
    let voters = &config.voters;
    if voters.len() != many {
        return Err(format!("in the end {voters:?} vote, and {many} are to, of {nodes:?}"));
    }
    if let Some(voter) = voters.iter().find(|voter| nodes.iter().all(|(node, ..)| node != *voter)) {
        return Err(format!("in the end {voters:?} vote, and node {voter} is out of the cluster: {nodes:?}"));
    }
    let against = nodes.iter().find(|(node, _, voting)| match voting {
        Some(Voting::Must) => !voters.contains(node),
        Some(Voting::MustNot) => voters.contains(node),
        None => false,
    });
    if let Some((node, _, voting)) = against {
        return Err(format!("in the end {voters:?} vote, and of node {node} is wished: {voting:?}"));
    }
    let mut crowds: BTreeMap<&str, usize> = BTreeMap::new();
    nodes.iter().filter(|(node, ..)| voters.contains(node)).for_each(|(_, zone, _)| *crowds.entry(zone).or_default() += 1);
    let crowd = |zone: &str| crowds.get(zone).copied().unwrap_or_default();
    let gives = nodes.iter().filter(|(node, _, voting)| voters.contains(node) && voting.is_none()).max_by_key(|(_, zone, _)| crowd(zone));
    let takes = nodes.iter().filter(|(node, _, voting)| !voters.contains(node) && voting.is_none()).min_by_key(|(_, zone, _)| crowd(zone));
    match (gives, takes) {
        (Some((one, from, _)), Some((other, to, _))) if crowd(from) > crowd(to) + 1 => {
            Err(format!("in the end {voters:?} vote, of {nodes:?}: node {other} should in place of node {one}"))
        }
        _ => Ok(()),
    }
}
