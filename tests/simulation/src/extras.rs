//! What there is in some worlds and not in others: so that a world that showed something stays the same when others get more.

use std::collections::BTreeSet;

use crate::dice::Dice;

/// Something that there may be in a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extra {
    /// Calls that work for long, until a client cancels them.
    Cancels,
    /// Calls that yield data.
    Generators,
    /// A clustered function, and a node that is apart for long enough that its gang is replaced.
    Gangs,
    /// Others vote by and by: nodes join later and are taken out, operators wish and label, who is gone for long is replaced.
    Voters,
    /// What is said over a wire that is cut goes through a third node; there are wires that are cut for long, and often.
    Detours,
}

/// All that there may be besides.
pub const ALL: [Extra; 5] = [Extra::Cancels, Extra::Generators, Extra::Gangs, Extra::Voters, Extra::Detours];

/// Returns what there is in the world of a seed.
pub fn of(seed: u64) -> BTreeSet<Extra> {
    let mut dice = Dice::new(seed, 9);
    ALL.into_iter().filter(|_| dice.one_in(2)).collect()
}
