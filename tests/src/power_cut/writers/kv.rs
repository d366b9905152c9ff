//! `storage::kv`: batches of small values from several threads, overwrites, and removal of a prefix, as Raft's votes and a
//! chunk index do.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use shoal_storage::kv::{Batch, Kv, VALUE_BYTES_MAX};

use crate::power_cut::{Random, Sync, Writer, say};

pub(super) const WRITER: Writer =
    Writer { name: "kv", work, check, syncs: &[Sync { what: "Kv::sync", call: "fdatasync", path_end: "db" }] };

const THREADS: u64 = 3;
/// How often the database is opened.
const LIVES: u64 = 4;
const ROUNDS_OF_LIFE: u64 = 15;

fn key(thread: u64, round: u64, number: u64) -> Vec<u8> {
    [thread.to_be_bytes(), round.to_be_bytes(), number.to_be_bytes()].concat()
}

fn value(thread: u64, round: u64, number: u64) -> Vec<u8> {
    let mut random = Random::new(thread << 40 | round << 20 | number);
    // Mostly small, some near the limit.
    let length = if random.below(4) == 0 { random.below(VALUE_BYTES_MAX as u64) } else { random.below(600) };
    random.bytes(length as usize)
}

fn count(thread: u64, round: u64) -> u64 {
    1 + Random::new(thread << 32 | round).below(6)
}

fn work(dir: &Path, _seed: u64) -> Result<()> {
    for life in 0..LIVES {
        let kv = Kv::open(&dir.join("kv"))?;
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS).map(|thread| (thread, &kv)).collect();
            let threads: Vec<_> = threads.into_iter().map(|(thread, kv)| scope.spawn(move || work_thread(kv, thread, life))).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("a writing thread"))
        })?;
    }
    Ok(())
}

fn work_thread(kv: &Kv, thread: u64, life: u64) -> Result<()> {
    let (values, votes) = (kv.tree("values")?, kv.tree("votes")?);
    let first = life * ROUNDS_OF_LIFE + 1;
    for round in first..first + ROUNDS_OF_LIFE {
        let mut batch = Batch::default();
        for number in 0..count(thread, round) {
            batch.insert(key(thread, round, number), value(thread, round, number));
        }
        values.apply(batch)?;
        votes.insert(&thread.to_be_bytes(), &round.to_be_bytes())?;
        kv.sync()?;
        say(&format!("wrote {thread} {round}"));
        if round % 15 == 0 {
            say(&format!("removing {thread} {round}"));
            let before = key(thread, 0, 0)..key(thread, round - 5, 0);
            let old: Result<Vec<_>, _> = values.range(&before.start[..]..&before.end[..]).collect();
            old?.iter().try_for_each(|(key, _)| values.remove(key))?;
        }
    }
    Ok(())
}

fn check(dir: &Path, said: &[String]) -> Result<()> {
    let mut wrote: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for line in said {
        let words: Vec<_> = line.split(' ').collect();
        let [what, thread, round] = words[..] else { anyhow::bail!("what is this: {line}") };
        let rounds = wrote.entry(thread.parse()?).or_default();
        match what {
            "wrote" => rounds.push(round.parse()?),
            _ => {
                let kept = round.parse::<u64>()? - 5;
                rounds.retain(|round| *round >= kept);
            }
        }
    }
    let kv = Kv::open(&dir.join("kv"))?;
    let (values, votes) = (kv.tree("values")?, kv.tree("votes")?);
    for (thread, rounds) in wrote {
        for round in &rounds {
            for number in 0..count(thread, *round) {
                let found = values.get(&key(thread, *round, number))?;
                let found = found.with_context(|| format!("value {number} of round {round} of thread {thread} is not there"))?;
                ensure!(found == value(thread, *round, number), "value {number} of round {round} of thread {thread} is another");
            }
        }
        let vote = votes.get(&thread.to_be_bytes())?.context("the vote is not there")?;
        let vote = u64::from_be_bytes(vote[..].try_into()?);
        let last = rounds.iter().max().copied().unwrap_or_default();
        ensure!(vote >= last, "the vote of thread {thread} is {vote}, and {last} was acknowledged");
    }
    votes.insert(b"after the cut", b"yes")?;
    Ok(kv.sync()?)
}
