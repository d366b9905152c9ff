//! Runs a seed and holds what happened against all that must hold.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::extras::{self, Extra};
use crate::formation;
use crate::history::{Event, hash};
use crate::invariants::ALL;
use crate::mutant::Mutant;
use crate::world::World;

/// What a world did in which all held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ran {
    /// Tells whether two worlds were the same.
    pub hash: u64,
    /// How many things happened.
    pub events: usize,
    /// How much time passed in it.
    pub lasted: Duration,
}

/// Promises that were broken.
#[derive(Debug, Clone)]
pub struct Failure {
    /// In the world of this seed.
    pub seed: u64,
    /// Which, and how.
    pub broken: Vec<(&'static str, String)>,
    /// Which test replays it.
    pub test: &'static str,
}

impl Failure {
    /// Says whether this promise is broken.
    pub fn breaks(&self, invariant: &str) -> bool {
        self.broken.iter().any(|(broken, _)| *broken == invariant)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (invariant, why) in &self.broken {
            writeln!(f, "seed {} breaks {invariant}: {why}", self.seed)?;
        }
        write!(f, "replay it by: SHOAL_SEED={} cargo test -p shoal-simulation --test {}", self.seed, self.test)
    }
}

/// Runs the world of a seed, with a bug put back or without.
pub fn run(seed: u64, mutant: Option<Mutant>) -> Result<Ran, Failure> {
    run_with(seed, mutant, extras::of(seed))
}

/// As [`run`], with these things in it besides.
pub fn run_with(seed: u64, mutant: Option<Mutant>, extras: BTreeSet<Extra>) -> Result<Ran, Failure> {
    let world = || {
        let world = World::new(seed, mutant, extras);
        let events = world.run();
        assert!(world.council.agrees(), "nodes that have applied the same have different states");
        events
    };
    judge(seed, "cluster holds", world)
}

/// Runs the world of a seed in which machines become one cluster.
pub fn form(seed: u64, mutant: Option<Mutant>) -> Result<Ran, Failure> {
    judge(seed, "formation", || formation::run(seed, mutant))
}

fn judge(seed: u64, test: &'static str, world: impl FnOnce() -> Vec<(Duration, Event)>) -> Result<Ran, Failure> {
    let events = match catch_unwind(AssertUnwindSafe(world)) {
        Ok(events) => events,
        Err(panic) => {
            let words = panic.downcast_ref::<String>().cloned().or(panic.downcast_ref::<&str>().map(|words| (*words).to_owned()));
            return Err(Failure { seed, broken: vec![("no_panic", words.unwrap_or_default())], test });
        }
    };
    let broken = broken(&events);
    if !broken.is_empty() {
        return Err(Failure { seed, broken, test });
    }
    let lasted = events.last().map_or(Duration::ZERO, |(at, _)| *at);
    Ok(Ran { hash: hash(&events), events: events.len(), lasted })
}

fn broken(events: &[(Duration, Event)]) -> Vec<(&'static str, String)> {
    ALL.iter().filter_map(|(invariant, check)| Some((*invariant, check(events).err()?))).collect()
}
