//! Machines that become one cluster, in worlds of many seeds. `SHOAL_SEED=n` replays one (`SHOAL_TRACE=1` prints all that happens);
//! `SHOAL_SEEDS=n` runs that many, from `SHOAL_FROM` on.

use shoal_simulation::{Mutant, form};

/// How many seeds are run where nobody says: such worlds are short.
const SEEDS: u64 = 3_000;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn one_cluster_comes_of_equal_machines_whatever_goes_wrong() {
    let first = number("SHOAL_SEED").or_else(|| number("SHOAL_FROM")).unwrap_or(0);
    let count = number("SHOAL_SEED").map_or_else(|| number("SHOAL_SEEDS").unwrap_or(SEEDS), |_| 1);
    let failures: Vec<_> = (first..first + count).filter_map(|seed| form(seed, None).err()).collect();
    failures.iter().take(8).for_each(|failure| println!("{failure}"));
    assert!(failures.is_empty(), "{} of {count} worlds break a promise, the first: {}", failures.len(), failures[0]);
}

#[test]
fn a_seed_is_one_world() {
    for seed in 0..20 {
        let (one, other) = (form(seed, None), form(seed, None));
        assert_eq!(one.expect("it holds"), other.expect("it holds"), "seed {seed}");
    }
}

#[test]
fn each_bug_shows() {
    for mutant in Mutant::FORMATION {
        let shows = |seed: &u64| form(*seed, Some(mutant)).is_err_and(|failure| failure.breaks("formation_once"));
        let seed = (0..number("SHOAL_SEEDS").unwrap_or(SEEDS)).find(shows);
        println!("{mutant:?}: it shows in seed {seed:?}");
        assert!(seed.is_some(), "{mutant:?} does not show");
    }
}
