//! The chunk store beside plain files, interleaved: every sample does both and counts one, so that both see the same disk.
//!
//! Plain files are one per chunk, named by its digest, with one `syncfs` for all: the cheapest way in which plain files
//! last. Chunks are half compressible. "Cold" means that the page cache was asked to forget the files.

use std::cell::RefCell;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngCore, SeedableRng};
use rustix::fs::{Advice, fadvise, syncfs};
use shoal_state::Digest;
use shoal_storage::store::{Options, Store};

/// Sizes to measure: many small chunks, few large ones.
const SHAPES: [(&str, usize, usize); 3] = [("2KiB", 2 << 10, 1000), ("64KiB", 64 << 10, 256), ("1MiB", 1 << 20, 32)];

fn chunk(random: &mut StdRng, bytes: usize) -> Vec<u8> {
    let mut chunk = vec![0; bytes];
    // Every other 256 bytes are zeros.
    chunk.chunks_mut(512).for_each(|part| {
        let half = part.len() / 2;
        random.fill_bytes(&mut part[..half]);
    });
    chunk
}

fn chunks(seed: u64, bytes: usize, count: usize) -> Vec<Vec<u8>> {
    let mut random = StdRng::seed_from_u64(seed);
    (0..count).map(|_| chunk(&mut random, bytes)).collect()
}

fn dir() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("bench-store-").tempdir().expect("a temporary folder")
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

/// Measures both, each sample running one after the other.
fn beside(group: &mut BenchmarkGroup<'_, WallTime>, shape: &str, mut store: impl FnMut() -> Duration, mut files: impl FnMut() -> Duration) {
    for (name, ours) in [("store", true), ("files", false)] {
        group.bench_function(format!("{shape}/{name}"), |bencher| {
            bencher.iter_custom(|rounds| {
                let both = (0..rounds).map(|_| (store(), files()));
                both.map(|(store, files)| if ours { store } else { files }).sum()
            });
        });
    }
}

fn write(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("write");
    group.sample_size(10);
    for (shape, bytes, count) in SHAPES {
        let mut seed = 0;
        let mut fresh = || {
            seed += 1;
            chunks(seed, bytes, count)
        };
        let (of_store, of_files) = (dir(), dir());
        let store = Store::open(of_store.path(), Options::default()).expect("a store");
        group.throughput(Throughput::Bytes((bytes * count) as u64));
        let written = RefCell::new(Vec::new());
        let write_store = || {
            let chunks = fresh();
            let time = timed(|| {
                for chunk in &chunks {
                    store.put(chunk).expect("a put");
                }
                store.sync().expect("a sync");
            });
            *written.borrow_mut() = chunks;
            time
        };
        let write_files = || timed(|| write_plain(of_files.path(), &written.borrow()));
        beside(&mut group, shape, write_store, write_files);
    }
}

fn write_plain(dir: &Path, chunks: &[Vec<u8>]) {
    for chunk in chunks {
        fs::write(plain(dir, &Digest::of(chunk)), chunk).expect("a file");
    }
    syncfs(File::open(dir).expect("the folder")).expect("a sync");
}

fn plain(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join(digest.to_string())
}

fn forget(dir: &Path) {
    for entry in fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            forget(&path);
        } else {
            let file = File::open(&path).expect("a file");
            fadvise(&file, 0, None, Advice::DontNeed).expect("advice");
        }
    }
}

fn read(criterion: &mut Criterion) {
    for cold in [false, true] {
        let mut group = criterion.benchmark_group(if cold { "read cold" } else { "read warm" });
        group.sample_size(10);
        for (shape, bytes, count) in SHAPES {
            let chunks = chunks(7, bytes, count);
            let (of_store, of_files) = (dir(), dir());
            let store = Store::open(of_store.path(), Options::default()).expect("a store");
            let mut digests: Vec<_> = chunks.iter().map(|chunk| store.put(chunk).expect("a put")).collect();
            store.sync().expect("a sync");
            write_plain(of_files.path(), &chunks);
            digests.shuffle(&mut StdRng::seed_from_u64(8));
            group.throughput(Throughput::Bytes((bytes * count) as u64));
            let prepare = |dir: &Path| {
                if cold {
                    forget(dir)
                }
            };
            let read_store = || {
                prepare(of_store.path());
                timed(|| digests.iter().for_each(|digest| drop(store.get(digest).expect("a chunk"))))
            };
            let read_files = || {
                prepare(of_files.path());
                timed(|| digests.iter().for_each(|digest| drop(fs::read(plain(of_files.path(), digest)).expect("a file"))))
            };
            beside(&mut group, shape, read_store, read_files);
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    targets = write, read
}
criterion_main!(benches);
