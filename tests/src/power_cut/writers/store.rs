//! `storage::store`: chunks put by several threads, promises, deletion and rewriting of packs.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};
use shoal_state::Digest;
use shoal_storage::store::Store;

use super::aged::{NOW, PROMISES_END, options};
use crate::power_cut::{Random, Sync, Writer, say};

pub(super) const WRITER: Writer = Writer {
    name: "store",
    work,
    check,
    syncs: &[
        Sync { what: "the bytes of a pack", call: "fdatasync", path_end: ".pack" },
        Sync { what: "the name of a new pack", call: "fsync", path_end: "packs" },
        Sync { what: "the index", call: "fdatasync", path_end: "index/db" },
    ],
};

const THREADS: u64 = 2;
/// How often the store is opened.
const LIVES: u64 = 3;
const ROUNDS_OF_LIFE: u64 = 20;

/// The chunks that something names.
type Named = Mutex<HashSet<Digest>>;

fn work(dir: &Path, seed: u64) -> Result<()> {
    let named = Named::default();
    for life in 0..LIVES {
        let store = Store::open(dir, options())?;
        std::thread::scope(|scope| {
            let worker = |thread| {
                let (store, named) = (&store, &named);
                scope.spawn(move || work_thread(store, named, thread, (seed << 8) | (life << 4) | thread))
            };
            let threads: Vec<_> = (0..THREADS).map(worker).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("a writing thread"))
        })?;
    }
    Ok(())
}

fn work_thread(store: &Store, named: &Named, thread: u64, seed: u64) -> Result<()> {
    let mut random = Random::new(seed);
    let mut said = Vec::new();
    for round in 1..=ROUNDS_OF_LIFE {
        let mut digests = Vec::new();
        for number in 0..1 + random.below(5) {
            let length = [300, 5_000, 40_000][random.below(3) as usize];
            let bytes = random.bytes(random.clone().below(length) as usize);
            // Every third is named by nothing, and deleted one day.
            if number % 3 != 2 {
                named.lock().expect("no panic").insert(Digest::of(&bytes));
                digests.push(Digest::of(&bytes));
            }
            store.put(&bytes)?;
        }
        store.sync()?;
        say(&format!("stored {}", digests.iter().map(Digest::to_string).collect::<Vec<_>>().join(" ")));
        said.extend(digests);
        if thread == 0 && round % 9 == 0 {
            delete(store, named)?;
        }
        if round % 6 == 0 {
            promise(store, &said[random.below(said.len() as u64) as usize])?;
        }
    }
    Ok(())
}

fn delete(store: &Store, named: &Named) -> Result<()> {
    NOW.fetch_add(PROMISES_END, Ordering::Relaxed);
    let condemned = store.condemn(|digest| named.lock().expect("no panic").contains(digest))?;
    store.sweep(&condemned)?;
    store.compact()?;
    Ok(())
}

fn promise(store: &Store, digest: &Digest) -> Result<()> {
    let now = NOW.load(Ordering::Relaxed);
    ensure!(store.missing(&[*digest])?.is_empty(), "a chunk that is named is missing");
    say(&format!("promised {digest} {now}"));
    Ok(())
}

fn check(dir: &Path, said: &[String]) -> Result<()> {
    let mut stored = BTreeSet::new();
    let mut promised = Vec::new();
    for line in said {
        match line.split_once(' ') {
            Some(("stored", digests)) => {
                for digest in digests.split_whitespace() {
                    stored.insert(digest.parse::<Digest>()?);
                }
            }
            Some(("promised", words)) => {
                let (digest, at) = words.split_once(' ').context("no time")?;
                promised.push((digest.parse::<Digest>()?, at.parse::<u64>()?));
            }
            _ => anyhow::bail!("what is this: {line}"),
        }
    }
    // What is found in a pack and not in the index is promised anew at open: at a time when that promise is over, only what the
    // index says of it counts.
    NOW.store(0, Ordering::Relaxed);
    let store = Store::open(dir, options())?;
    for digest in &stored {
        store.get(digest).with_context(|| format!("chunk {digest} was acknowledged"))?;
    }
    for (digest, at) in promised {
        NOW.store(at + 24 * 60 * 60 - 1, Ordering::Relaxed);
        let condemned = store.condemn(|other| *other != digest)?;
        ensure!(condemned.is_empty(), "chunk {digest} was promised at {at}, and may be deleted a day later");
    }
    NOW.store(1_000_000, Ordering::Relaxed);
    let digest = store.put(b"after the cut")?;
    store.sync()?;
    drop(store);
    ensure!(Store::open(dir, options())?.get(&digest)? == "after the cut", "a new chunk is not there");
    Ok(())
}
