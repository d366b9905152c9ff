//! Runs a seed and holds what happened against all that must hold.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

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

/// A promise that was broken.
#[derive(Debug, Clone)]
pub struct Failure {
    /// In the world of this seed.
    pub seed: u64,
    /// Which.
    pub invariant: &'static str,
    /// How.
    pub why: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { seed, invariant, why } = self;
        write!(f, "seed {seed} breaks {invariant}: {why}\nreplay it by: SHOAL_SEED={seed} cargo test -p shoal-simulation --test cluster")
    }
}

/// Runs the world of a seed, with a bug put back or without.
pub fn run(seed: u64, mutant: Option<Mutant>) -> Result<Ran, Failure> {
    let events = match catch_unwind(AssertUnwindSafe(|| World::new(seed, mutant).run())) {
        Ok(events) => events,
        Err(panic) => {
            let words = panic.downcast_ref::<String>().cloned().or(panic.downcast_ref::<&str>().map(|words| (*words).to_owned()));
            return Err(Failure { seed, invariant: "no_panic", why: words.unwrap_or_default() });
        }
    };
    check(seed, &events)?;
    let lasted = events.last().map_or(Duration::ZERO, |(at, _)| *at);
    Ok(Ran { hash: hash(&events), events: events.len(), lasted })
}

fn check(seed: u64, events: &[(Duration, Event)]) -> Result<(), Failure> {
    for (invariant, check) in ALL {
        check(events).map_err(|why| Failure { seed, invariant, why })?;
    }
    Ok(())
}
