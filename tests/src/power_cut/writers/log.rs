//! `storage::log`: appends with a sync behind them, cuts of the tail, releases of the front.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use anyhow::{Context, Result, ensure};
use shoal_storage::log::{Log, Options, Position};

use crate::power_cut::{Random, Sync, Writer, say};

pub(super) const WRITER: Writer = Writer {
    name: "log",
    work,
    check,
    syncs: &[
        Sync { what: "Log::sync", call: "fdatasync", path_end: ".segment" },
        Sync { what: "ending and beginning a segment", call: "fsync", path_end: ".segment" },
        Sync { what: "the name of a new segment", call: "fsync", path_end: "" },
    ],
};

/// Small, so that many segments begin and end.
const OPTIONS: Options = Options { segment_bytes: 24 << 10 };

/// How often the log is opened.
const LIVES: u64 = 4;
const ROUNDS_OF_LIFE: u64 = 40;

/// A record: its number, how often the tail was cut before it, and bytes that follow from both.
fn record(number: u64, generation: u64) -> Vec<u8> {
    let mut random = Random::new(number << 20 | generation);
    let length = random.below(1800) as usize;
    let mut record = [number.to_le_bytes(), generation.to_le_bytes()].concat();
    record.extend(random.bytes(length));
    record
}

fn work(dir: &Path, seed: u64) -> Result<()> {
    let mut random = Random::new(seed);
    let mut written = Written::default();
    for _ in 0..LIVES {
        let log = Log::open(dir, OPTIONS)?;
        let (to_sync, appended) = sync_channel(QUEUE);
        let log = &log;
        std::thread::scope(|scope| {
            let syncing = scope.spawn(move || sync_all(log, appended));
            for round in 1..=ROUNDS_OF_LIFE {
                written.append(log, 1 + random.below(5), &to_sync)?;
                if round % 15 == 0 {
                    wait(&to_sync)?;
                    written.cut(log, random.below(20))?;
                }
                if round % 20 == 0 {
                    written.release(log)?;
                }
            }
            drop(to_sync);
            syncing.join().expect("the syncing thread")
        })?;
    }
    Ok(())
}

/// What was written so far.
#[derive(Default)]
struct Written {
    positions: BTreeMap<u64, Position>,
    next: u64,
    generation: u64,
}

impl Written {
    fn append(&mut self, log: &Log, count: u64, to_sync: &SyncSender<Appended>) -> Result<()> {
        let numbers = self.next..self.next + count;
        let records: Vec<_> = numbers.clone().map(|number| record(number, self.generation)).collect();
        let slices: Vec<_> = records.iter().map(Vec::as_slice).collect();
        self.positions.extend(numbers.clone().zip(log.append(&slices)?));
        self.next = numbers.end;
        Ok(to_sync.send(Some((numbers.start, numbers.end, self.generation)))?)
    }

    fn cut(&mut self, log: &Log, count: u64) -> Result<()> {
        self.next -= count.min(self.next);
        self.generation += 1;
        say(&format!("cutting {}", self.next));
        log.truncate(self.positions.get(&self.next).copied().unwrap_or(log.end()))?;
        say(&format!("cut {} {}", self.next, self.generation));
        self.positions.split_off(&self.next);
        Ok(())
    }

    fn release(&self, log: &Log) -> Result<()> {
        let first = self.next.saturating_sub(30);
        say(&format!("releasing {first}"));
        Ok(log.release_before(self.positions[&first])?)
    }
}

/// How many batches may wait for a sync.
const QUEUE: usize = 8;

/// Numbers of records and their generation; `None` asks to take another, at once.
type Appended = Option<(u64, u64, u64)>;

/// Syncs while the other thread goes on appending.
fn sync_all(log: &Log, appended: Receiver<Appended>) -> Result<()> {
    for (first, end, generation) in appended.into_iter().flatten() {
        log.sync()?;
        say(&format!("appended {first} {end} {generation}"));
    }
    Ok(())
}

/// Waits until all that was appended is synced: one more than the queue takes goes in only when the first was taken out.
fn wait(to_sync: &SyncSender<Appended>) -> Result<()> {
    for _ in 0..=QUEUE {
        to_sync.send(None)?;
    }
    Ok(())
}

/// What was said of the log.
#[derive(Default)]
struct Claims {
    /// Generation of each record that has to be there.
    there: BTreeMap<u64, u64>,
    /// The latest completed cut: no record from this number on may be older than the generation.
    cut: Option<(u64, u64)>,
}

fn claims(said: &[String]) -> Result<Claims> {
    let mut claims = Claims::default();
    for line in said {
        let mut words = line.split(' ');
        let what = words.next().unwrap_or_default();
        let numbers = words.map(str::parse).collect::<Result<Vec<u64>, _>>()?;
        match (what, &numbers[..]) {
            ("appended", [first, end, generation]) => claims.there.extend((*first..*end).map(|number| (number, *generation))),
            ("cutting", [first]) => drop(claims.there.split_off(first)),
            ("cut", [first, generation]) => claims.cut = Some((*first, *generation)),
            ("releasing", [first]) => claims.there = claims.there.split_off(first),
            _ => anyhow::bail!("what is this: {line}"),
        }
    }
    Ok(claims)
}

fn check(dir: &Path, said: &[String]) -> Result<()> {
    let claims = claims(said)?;
    let log = Log::open(dir, OPTIONS)?;
    let mut found = BTreeMap::new();
    for item in log.scan(Position::START) {
        let (_, payload) = item?;
        let field = |at: usize| Some(u64::from_le_bytes(payload.get(at..at + 8)?.try_into().ok()?));
        let (number, generation) = field(0).zip(field(8)).context("a record that nobody wrote")?;
        ensure!(payload == record(number, generation), "record {number} has other bytes");
        let previous = found.last_key_value().map(|(number, _)| *number);
        ensure!(previous.is_none_or(|previous| previous + 1 == number), "record {number} follows {previous:?}");
        found.insert(number, generation);
    }
    for (number, generation) in &claims.there {
        let here = found.get(number);
        ensure!(here == Some(generation), "record {number} of generation {generation} was acknowledged; found {here:?}");
    }
    if let Some((first, generation)) = claims.cut {
        let old = found.range(first..).find(|(_, found)| **found < generation);
        ensure!(old.is_none(), "a record was cut off and is there again: {old:?}");
    }
    goes_on(dir, log)
}

/// A log that survived has to take records.
fn goes_on(dir: &Path, log: Log) -> Result<()> {
    let position = log.append(&[b"after the cut"])?[0];
    log.sync()?;
    drop(log);
    ensure!(Log::open(dir, OPTIONS)?.read(position)? == "after the cut", "a new record is not there");
    Ok(())
}
