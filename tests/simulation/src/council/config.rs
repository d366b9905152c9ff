//! Who takes part: members that vote, in a change the old and the new ones, and members that have the log and do not vote.

use std::collections::BTreeSet;

/// The members of consensus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Those that vote; while a change is under way, those that did before it.
    pub voters: BTreeSet<usize>,
    /// Those that vote after a change that is under way; until then both must agree.
    pub next: Option<BTreeSet<usize>>,
    /// Those that have the log and do not vote.
    pub learners: BTreeSet<usize>,
}

impl Config {
    /// Makes these vote.
    pub fn of(voters: BTreeSet<usize>) -> Self {
        Self { voters, next: None, learners: BTreeSet::new() }
    }

    /// Returns all that vote, before and after a change.
    pub fn all_voters(&self) -> BTreeSet<usize> {
        self.voters.iter().chain(self.next.iter().flatten()).copied().collect()
    }

    /// Says whether a node votes.
    pub fn votes(&self, node: usize) -> bool {
        self.voters.contains(&node) || self.next.as_ref().is_some_and(|next| next.contains(&node))
    }

    /// Says whether a node takes part.
    pub fn has(&self, node: usize) -> bool {
        self.votes(node) || self.learners.contains(&node)
    }

    /// Says whether these decide: a majority of those that vote, in a change of the old and of the new ones.
    pub fn decides(&self, says: impl Fn(usize) -> bool) -> bool {
        let majority = |voters: &BTreeSet<usize>| voters.iter().filter(|voter| says(**voter)).count() * 2 > voters.len();
        majority(&self.voters) && self.next.as_ref().is_none_or(majority)
    }
}
