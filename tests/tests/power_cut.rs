//! Power cuts: what a writer acknowledged is there after one, at any moment; and it is not when a sync is left out.
//!
//! `POWER_CUT_SEED` repeats a run (as far as threads allow), `POWER_CUT_COUNT` sets how many cuts are tried per writer.

use std::env;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use shoal_tests::power_cut::{Cuts, Trace, Writer, cut, record, strace_is_here, writers};

const PROGRAM: &str = env!("CARGO_BIN_EXE_power-cut-writer");

/// How many cuts are tried per writer.
const CUTS: usize = 300;

/// How many are tried with a sync left out: enough that a loss is certain to show.
const CUTS_WITHOUT: usize = 100;

fn seed() -> u64 {
    let given = env::var("POWER_CUT_SEED").ok().map(|seed| seed.parse().expect("POWER_CUT_SEED is a number"));
    given.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64)
}

fn count() -> usize {
    let given = env::var("POWER_CUT_COUNT").ok().map(|count| count.parse().expect("POWER_CUT_COUNT is a number"));
    given.unwrap_or(CUTS)
}

/// Both halves on one trace: all syncs, then each left out.
fn power_cuts(name: &str) {
    if let Err(reason) = strace_is_here() {
        assert!(env::var("SHOAL_REQUIRE_STRACE").is_err(), "{reason:#}");
        eprintln!("skipped: {reason:#}");
        return;
    }
    let writer = writers::named(name).expect("the writer is in the list");
    let seed = seed();
    let trace = record(writer, Path::new(PROGRAM), seed).expect("the workload runs");
    println!("{name}: {} events, {} lines said, POWER_CUT_SEED={seed}", trace.len(), trace.lines());
    nothing_is_lost(writer, &trace, seed);
    something_is_lost_without_each_sync(writer, &trace, seed);
}

fn nothing_is_lost(writer: &Writer, trace: &Trace, seed: u64) {
    let report = cut(trace, Cuts { count: count(), seed, without: None }).expect("the trace is understood");
    let lost = report.failures.len();
    println!("{}: {} power cuts, {} without a loss", writer.name, report.tried, report.tried - lost);
    assert!(lost == 0, "POWER_CUT_SEED={seed}: {lost} of {} power cuts lost something; the first: {:#?}", report.tried, report.failures[0]);
}

fn something_is_lost_without_each_sync(writer: &Writer, trace: &Trace, seed: u64) {
    for sync in writer.syncs {
        let cuts = Cuts { count: CUTS_WITHOUT, seed, without: Some(*sync) };
        let report = cut(trace, cuts).expect("the trace is understood");
        let first = report.failures.first().map_or("nothing", |failure| &failure.what);
        println!(
            "{}: without {} of {:?} ({}): {} of {} power cuts lose something; the first: {first}",
            writer.name,
            sync.call,
            sync.path_end,
            sync.what,
            report.failures.len(),
            report.tried,
        );
        assert!(!report.failures.is_empty(), "POWER_CUT_SEED={seed}: {} can be left out, or the rig is blind", sync.what);
    }
}

#[test]
fn files_and_the_folders_they_are_in_stay() {
    power_cuts("folders");
}

#[test]
fn the_log_keeps_what_it_acknowledged() {
    power_cuts("log");
}

#[test]
fn small_values_stay() {
    power_cuts("kv");
}

#[test]
fn chunks_and_promises_stay() {
    power_cuts("store");
}

#[test]
fn what_is_named_outlives_collections() {
    power_cuts("gc");
}

#[test]
fn rafts_log_and_snapshots_keep_what_was_acknowledged() {
    power_cuts("raft");
}

#[test]
fn a_vote_is_not_forgotten() {
    power_cuts("raft-vote");
}

#[test]
fn every_writer_is_tested() {
    let here = include_str!("power_cut.rs");
    for writer in writers::ALL {
        assert!(here.contains(&format!("power_cuts({:?})", writer.name)), "{} has no test", writer.name);
    }
}
