//! The chunk store beside plain files: the same chunks, made durable by both, then read by both, in turn.
//!
//! Plain files are one a chunk, named by its digest, with one `syncfs` for all: the cheapest way in which plain files last.
//! Half of each chunk compresses. Reads are warm, as those of a node that has just used an image, in another order than
//! writes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngCore as _, SeedableRng as _};
use serde_json::json;
use shoal_state::Digest;
use shoal_storage::store::{self, Store};

use crate::say;

/// What is written: (name, bytes a chunk, chunks). Most files of an image are of the first kind, most bytes of the last.
const SHAPES: [(&str, usize, usize); 3] = [("2kib", 2 << 10, 1000), ("64kib", 64 << 10, 256), ("1mib", 1 << 20, 64)];
/// How often all chunks are read for one measurement: a single pass over small ones is too short.
const READS: u32 = 4;

/// Where to write, and how often.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// An empty folder to work in.
    #[arg(long)]
    work: PathBuf,
    /// How many rounds.
    #[arg(long, default_value_t = 10)]
    times: u64,
}

/// Measures, and prints a line for each: {"shape", "do", "by", "mib_per_s"}.
pub(crate) fn run(options: Options) -> anyhow::Result<()> {
    let store = Store::open(&options.work.join("store"), store::Options::default()).context("cannot open a store")?;
    let files = options.work.join("files");
    fs::create_dir_all(&files).with_context(|| format!("cannot make {}", files.display()))?;
    // The first round is not counted.
    for round in 0..=options.times {
        for (shape, bytes, count) in SHAPES {
            let chunks = chunks(round * 16 + shape.len() as u64, bytes, count);
            let (mut written, mut read) = (Vec::new(), Vec::new());
            for turn in 0..2 {
                let ours = (round + turn) % 2 == 0;
                written.push((ours, timed(|| if ours { write_store(&store, &chunks) } else { write_files(&files, &chunks) })?));
            }
            let mut digests: Vec<Digest> = chunks.iter().map(|chunk| Digest::of(chunk)).collect();
            digests.shuffle(&mut StdRng::seed_from_u64(round));
            for turn in 0..2 {
                let ours = (round + turn) % 2 == 0;
                let all = || (0..READS).try_for_each(|_| if ours { read_store(&store, &digests) } else { read_files(&files, &digests) });
                read.push((ours, timed(all)? / READS));
            }
            if round > 0 {
                report(shape, "write", bytes * count, &written);
                report(shape, "read", bytes * count, &read);
            }
        }
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "some MiB")]
fn report(shape: &str, action: &str, bytes: usize, times: &[(bool, Duration)]) {
    for (ours, time) in times {
        let rate = bytes as f64 / f64::from(1 << 20) / time.as_secs_f64();
        say(&json!({"shape": shape, "do": action, "by": if *ours { "store" } else { "files" }, "mib_per_s": rate}));
    }
}

fn timed(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Duration> {
    let began = Instant::now();
    work()?;
    Ok(began.elapsed())
}

fn chunks(seed: u64, bytes: usize, count: usize) -> Vec<Vec<u8>> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut one = || {
        let mut chunk = vec![0; bytes];
        chunk.chunks_mut(512).for_each(|part| {
            let half = part.len() / 2;
            random.fill_bytes(&mut part[..half]);
        });
        chunk
    };
    (0..count).map(|_| one()).collect()
}

fn write_store(store: &Store, chunks: &[Vec<u8>]) -> anyhow::Result<()> {
    for chunk in chunks {
        store.put(chunk).context("cannot put a chunk")?;
    }
    store.sync().context("cannot sync the store")
}

/// Digests count for both: who names files by content must know them.
fn write_files(dir: &Path, chunks: &[Vec<u8>]) -> anyhow::Result<()> {
    for chunk in chunks {
        let path = plain(dir, &Digest::of(chunk));
        fs::write(&path, chunk).with_context(|| format!("cannot write {}", path.display()))?;
    }
    rustix::fs::syncfs(File::open(dir)?).context("cannot sync the files")
}

fn read_store(store: &Store, digests: &[Digest]) -> anyhow::Result<()> {
    for digest in digests {
        ensure!(!store.get(digest).context("cannot get a chunk")?.is_empty(), "chunk {digest} is empty");
    }
    Ok(())
}

fn read_files(dir: &Path, digests: &[Digest]) -> anyhow::Result<()> {
    for digest in digests {
        let path = plain(dir, digest);
        let read = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        ensure!(!read.is_empty(), "file {} is empty", path.display());
    }
    Ok(())
}

fn plain(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join(digest.to_string())
}
