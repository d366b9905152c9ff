//! Worlds of many seeds. `SHOAL_SEED=n` replays one (`SHOAL_TRACE=1` prints all that happens, `SHOAL_LOG=debug` what the nodes log);
//! `SHOAL_SEEDS=n` runs that many, from `SHOAL_FROM` on. `SHOAL_BUG=name` puts one bug back alone.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use shoal_simulation::{Extra, Failure, Mutant, Ran, run, run_with};

/// How many seeds are run where nobody says.
const SEEDS: u64 = 1_000;
/// Among so many seeds a bug shows; most do in a few dozen.
const SEEDS_WITH_A_BUG: u64 = 1_000;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

/// Runs seeds on all cores, until `enough` says so of what came of one; returns what came of each.
fn run_all(
    seeds: Range<u64>,
    mutant: Option<(Mutant, &[Extra])>,
    enough: impl Fn(&Result<Ran, Failure>) -> bool + Sync,
) -> BTreeMap<u64, Result<Ran, Failure>> {
    let (next, over) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let some = || {
        let mut ran = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end || over.load(Ordering::Relaxed) {
                return ran;
            }
            let came = match mutant {
                Some((mutant, extras)) => run_with(seed, Some(mutant), extras.iter().copied().collect()),
                None => run(seed, None),
            };
            over.fetch_or(enough(&came), Ordering::Relaxed);
            ran.push((seed, came));
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
    let (count, from, began) = (number("SHOAL_SEEDS").unwrap_or(SEEDS), number("SHOAL_FROM").unwrap_or(0), Instant::now());
    let ran = run_all(from..from + count, None, |_| false);
    let events: usize = ran.values().flatten().map(|ran| ran.events).sum();
    println!("{count} seeds in {:?}: {events} events", began.elapsed());
    let failures: Vec<&Failure> = ran.values().filter_map(|ran| ran.as_ref().err()).collect();
    failures.iter().take(8).for_each(|failure| println!("{failure}"));
    assert!(failures.is_empty(), "{} of {count} worlds break a promise, the first: {}", failures.len(), failures[0]);
}

/// Worlds that broke a promise once, each with what was wrong.
const FOUND: [(u64, &[Extra], &str); 12] = [
    (3152, &[], "a home that took over gave an input away that was put again, before it knew that a task had it from the home before"),
    (3725, &[], "the same, with a try that a client asked for"),
    (
        3483,
        &[],
        "a leader waited half a minute until a home that it did not reach heard that a task is to stop, and then stopped it at work",
    ),
    (4, &[Extra::Cancels], "a container that a new home heard of second went on with what was cancelled, and was stopped as idle"),
    (583, &[Extra::Cancels], "a node was silent when a new home asked what runs: its container went on with what was cancelled"),
    (193, &[Extra::Cancels], "the same, where the container counted as lost before its node was heard again"),
    (3946, &[], "a home that took over believed a report that was older than what the task said since: its input waited for ever"),
    (22, &[Extra::Cancels, Extra::Generators], "data of a try were read where they were put last, by a node that had been taken for lost"),
    (373, &[Extra::Gangs, Extra::Voters], "a node was removed at work: its tasks ended in the state, and what they had waited for ever"),
    (230, &[Extra::Cancels, Extra::Voters], "the same, with calls that are cancelled"),
    (606, &[Extra::Gangs, Extra::Voters], "a voter that was removed was not let in again after a restart, led, and decided nothing"),
    (
        4230,
        &[Extra::Cancels, Extra::Voters, Extra::Detours],
        "a leader that had stood still planned by what it knew, asked itself as a home that it was no more, and stopped a container at work",
    ),
];

#[test]
fn what_was_found_stays_mended() {
    for (seed, extras, what) in FOUND {
        if let Err(failure) = run_with(seed, None, extras.iter().copied().collect()) {
            panic!("{what}: {failure}");
        }
    }
}

#[test]
fn a_seed_is_one_world() {
    for seed in 0..6 {
        let (one, other) = (run(seed, None), run(seed, None));
        let (one, other) = (one.unwrap_or_else(|failure| panic!("{failure}")), other.unwrap_or_else(|failure| panic!("{failure}")));
        assert_eq!(one, other, "seed {seed}");
    }
}

/// Which promises each bug breaks, if it is put back.
fn shows(mutant: Mutant) -> &'static [&'static str] {
    match mutant {
        Mutant::AckedWhenSent => &["acked_survives", "no_two_homes_ack", "one_outcome"],
        Mutant::LyingDisk => &["acked_survives"],
        Mutant::AsksNobodyWhatRuns => &["running_not_rerun_on_failover"],
        Mutant::PlansBeforeTheBarrier => &["plan_after_barrier"],
        Mutant::NewLeaderHearsNobody => &["new_leader_kills_nothing"],
        Mutant::AnswersUnconfirmed => &["no_stale_read"],
        Mutant::TriesAgainByAnotherKey => &["retry_is_once", "pop_not_lost"],
        Mutant::CursorRunsAhead => &["cursor_never_skips"],
        Mutant::DataCursorRunsAhead => &["yields_in_order"],
        Mutant::FiringHasNoId => &["fire_once"],
        Mutant::DeafToCancels | Mutant::CancelledWhenAsked => &["cancelled_stays"],
        Mutant::GangWaitsForNobody => &["gang_begins_together"],
        Mutant::GangGoesOnAlone => &["gang_ends_together"],
        Mutant::GangOthersBringOutcomes => &["gang_has_one_outcome"],
        Mutant::ForgetsBegunChanges => &["joint_is_finished"],
        Mutant::ChangesVotersBlindly => &["never_below_quorum"],
        Mutant::SeesNoZones => &["voters_as_wished"],
        Mutant::BelievesNobodyElse => &["reached_is_not_lost"],
        Mutant::NoWayAround => &["goes_around"],
        Mutant::FoundsWhileASeedIsSilent => &["formation_once"],
    }
}

#[test]
fn each_bug_shows() {
    let (count, from) = (number("SHOAL_SEEDS").unwrap_or(SEEDS_WITH_A_BUG), number("SHOAL_FROM").unwrap_or(0));
    let one = std::env::var("SHOAL_BUG").ok();
    for mutant in Mutant::ALL.into_iter().filter(|mutant| one.as_ref().is_none_or(|name| *name == format!("{mutant:?}"))) {
        let began = Instant::now();
        let left: std::sync::Mutex<BTreeSet<&str>> = std::sync::Mutex::new(shows(mutant).iter().copied().collect());
        let enough = |came: &Result<Ran, Failure>| {
            let mut left = left.lock().expect("nobody panics with it");
            if let Err(failure) = came {
                left.retain(|invariant| !failure.breaks(invariant));
            }
            left.is_empty()
        };
        let extras: &[Extra] = match mutant {
            Mutant::DeafToCancels | Mutant::CancelledWhenAsked => &[Extra::Cancels],
            Mutant::DataCursorRunsAhead => &[Extra::Generators],
            Mutant::GangWaitsForNobody | Mutant::GangGoesOnAlone | Mutant::GangOthersBringOutcomes => &[Extra::Gangs],
            Mutant::ForgetsBegunChanges | Mutant::ChangesVotersBlindly | Mutant::SeesNoZones => &[Extra::Voters],
            Mutant::BelievesNobodyElse | Mutant::NoWayAround => &[Extra::Detours],
            _ => &[],
        };
        let ran = run_all(from..from + count, Some((mutant, extras)), enough);
        let mut broken: BTreeMap<&str, u64> = BTreeMap::new();
        for (invariant, _) in ran.values().filter_map(|ran| ran.as_ref().err()).flat_map(|failure| &failure.broken) {
            *broken.entry(invariant).or_default() += 1;
        }
        println!("{mutant:?}: {broken:?} in {} seeds, {:?}", ran.len(), began.elapsed());
        let left = left.lock().expect("nobody panics with it");
        assert!(left.is_empty(), "{mutant:?} does not show in {left:?} among {} seeds", ran.len());
    }
}
