//! Worlds of many seeds.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use shoal_simulation::{Failure, Mutant, Ran, run};

/// How many seeds are run where nobody says.
const SEEDS: u64 = 100;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

/// Runs seeds on all cores; returns what came of each.
fn run_all(seeds: std::ops::Range<u64>, mutant: Option<Mutant>) -> BTreeMap<u64, Result<Ran, Failure>> {
    let next = AtomicU64::new(seeds.start);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let some = || {
        let mut ran = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return ran;
            }
            ran.push((seed, run(seed, mutant)));
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(some)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a thread of worlds")).collect()
    })
}

#[test]
fn what_is_promised_holds_whatever_goes_wrong() {
    if let Some(seed) = number("SHOAL_SEED") {
        if let Ok(filter) = std::env::var("SHOAL_LOG") {
            tracing_subscriber::fmt().with_env_filter(filter).without_time().with_ansi(false).with_writer(std::io::stderr).init();
        }
        match run(seed, None) {
            Ok(ran) => return println!("seed {seed}: {ran:?}"),
            Err(failure) => panic!("{failure}"),
        }
    }
    let (count, began) = (number("SHOAL_SEEDS").unwrap_or(SEEDS), Instant::now());
    let ran = run_all(0..count, None);
    let events: usize = ran.values().flatten().map(|ran| ran.events).sum();
    println!("{count} seeds in {:?}: {events} events", began.elapsed());
    let failures: Vec<&Failure> = ran.values().filter_map(|ran| ran.as_ref().err()).collect();
    failures.iter().take(8).for_each(|failure| println!("{failure}"));
    assert!(failures.is_empty(), "{} of {count} worlds break a promise, the first: {}", failures.len(), failures[0]);
}

#[test]
fn a_seed_is_one_world() {
    for seed in 0..4 {
        let (one, other) = (run(seed, None), run(seed, None));
        let (one, other) = (one.unwrap_or_else(|failure| panic!("{failure}")), other.unwrap_or_else(|failure| panic!("{failure}")));
        assert_eq!(one, other, "seed {seed}");
    }
}
