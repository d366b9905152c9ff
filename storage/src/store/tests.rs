use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;

/// A few small packs.
fn small() -> Options {
    Options { pack_bytes: 256 << 10, disk_used_percent: |_| Ok(10), ..Options::default() }
}

fn open(dir: &Path) -> Store {
    Store::open(dir, small()).unwrap()
}

/// Bytes that do not compress.
fn noise(seed: u32, bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut noise);
    noise
}

fn packs(dir: &Path) -> Vec<PathBuf> {
    let mut packs: Vec<_> = fs::read_dir(dir.join("packs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    packs.sort();
    packs
}

/// Where the bytes of a chunk lie that is stored as it is.
fn find(dir: &Path, bytes: &[u8]) -> (PathBuf, u64) {
    let found = packs(dir).into_iter().find_map(|pack| {
        let content = fs::read(&pack).unwrap();
        let at = content.windows(64).position(|window| window == &bytes[..64])?;
        Some((pack, at as u64))
    });
    found.expect("the chunk is in a pack")
}

fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

fn assert_missing(store: &Store, digest: &Digest) {
    assert!(matches!(store.get(digest), Err(Error::Missing { .. })), "a chunk is here that should not be");
}

#[test]
fn chunks_are_there_at_once_and_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let text = b"words and ".repeat(20_000);
    let chunks = [&b""[..], b"small", &noise(1, 5000), &text, &noise(2, 300 << 10)];
    let digests = store.put_many(&chunks).unwrap();
    for _ in 0..2 {
        for (digest, chunk) in digests.iter().zip(chunks) {
            assert_eq!(store.get(digest).unwrap(), chunk);
        }
        store.sync().unwrap();
    }
    assert_eq!(store.put_many(&chunks).unwrap(), digests);
    drop(store);
    let store = open(dir.path());
    for (digest, chunk) in digests.iter().zip(chunks) {
        assert_eq!(store.get(digest).unwrap(), chunk);
    }
    assert_missing(&store, &Digest::of(b"other"));
    assert!(packs(dir.path()).len() > 1);
    let on_disk: u64 = packs(dir.path()).iter().map(|pack| pack.metadata().unwrap().len()).sum();
    assert!(on_disk < 400 << 10, "a chunk was stored twice, or not compressed: {on_disk} bytes");
}

#[test]
fn what_the_index_missed_is_found_in_the_packs() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let synced = store.put(&noise(1, 9000)).unwrap();
    store.sync().unwrap();
    // As after a kill: the packs have these, the index does not.
    let unsynced: Vec<_> = (2..50).map(|seed| store.put(&noise(seed, 9000)).unwrap()).collect();
    drop(store);
    let store = open(dir.path());
    for digest in unsynced.iter().chain([&synced]) {
        store.get(digest).unwrap();
    }
}

#[test]
fn a_lost_index_is_rebuilt_from_the_packs() {
    for damage in ["gone", "damaged"] {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let digests: Vec<_> = (0..100).map(|seed| store.put(&noise(seed, 1 + seed as usize * 100)).unwrap()).collect();
        store.sync().unwrap();
        drop(store);
        // Damage in the middle of a pack costs one chunk, not those after it.
        let (pack, at) = find(dir.path(), &noise(50, 5001));
        flip(&pack, at - 20);
        match damage {
            "gone" => fs::remove_dir_all(dir.path().join("index")).unwrap(),
            _ => fs::write(dir.path().join("index/conf"), [0; 62]).unwrap(),
        }
        let store = open(dir.path());
        for (seed, digest) in digests.iter().enumerate() {
            assert_eq!(store.has(digest).unwrap(), seed != 50, "chunk {seed}, index {damage}");
        }
    }
}

#[test]
fn a_torn_tail_is_cut_off_and_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let kept = store.put(&noise(1, 9000)).unwrap();
    store.sync().unwrap();
    let torn = store.put(&noise(2, 9000)).unwrap();
    drop(store);
    let pack = packs(dir.path()).pop().unwrap();
    let length = pack.metadata().unwrap().len();
    OpenOptions::new().write(true).open(&pack).unwrap().set_len(length - 100).unwrap();
    let store = open(dir.path());
    assert!(pack.metadata().unwrap().len() < 9200);
    assert_missing(&store, &torn);
    let new = store.put(&noise(3, 20_000)).unwrap();
    store.sync().unwrap();
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.get(&kept).unwrap(), noise(1, 9000));
    assert_eq!(store.get(&new).unwrap(), noise(3, 20_000));
}

#[test]
fn a_pack_that_lost_bytes_is_forgotten_from_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let digests: Vec<_> = (0..60).map(|seed| store.put(&noise(seed, 9000)).unwrap()).collect();
    store.sync().unwrap();
    drop(store);
    let lost = packs(dir.path());
    fs::remove_file(&lost[1]).unwrap();
    OpenOptions::new().write(true).open(&lost[0]).unwrap().set_len(20_000).unwrap();
    let store = open(dir.path());
    let here: Vec<_> = digests.iter().enumerate().filter(|(_, digest)| store.has(digest).unwrap()).map(|(seed, _)| seed).collect();
    assert_eq!(here[..2], [0, 1]);
    assert!(here[2] > 50, "chunks of a pack that is gone: {here:?}");
    here.iter().for_each(|seed| assert_eq!(store.get(&digests[*seed]).unwrap(), noise(*seed as u32, 9000)));
    // Put again, they are there again.
    (0..60).for_each(|seed| assert_eq!(store.put(&noise(seed, 9000)).unwrap(), digests[seed as usize]));
    store.sync().unwrap();
    drop(store);
    let store = open(dir.path());
    digests.iter().for_each(|digest| drop(store.get(digest).unwrap()));
}

#[test]
fn a_damaged_chunk_is_dropped_and_can_be_put_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (large, small) = (noise(1, 9000), noise(2, 900));
    let (of_large, of_small) = (store.put(&large).unwrap(), store.put(&small).unwrap());
    store.sync().unwrap();
    for chunk in [&large, &small] {
        let (pack, at) = find(dir.path(), chunk);
        flip(&pack, at + 100);
    }
    let error = store.get(&of_large).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    assert_missing(&store, &of_large);
    assert_eq!(store.missing(&[of_large, of_small]).unwrap(), [of_large]);
    assert_eq!(store.get(&of_small).unwrap(), small, "the index has its bytes too");
    store.put(&large).unwrap();
    assert_eq!(store.get(&of_large).unwrap(), large);
}

#[test]
fn a_full_disk_refuses_new_chunks_in_words() {
    static USED: AtomicU64 = AtomicU64::new(89);
    let dir = tempfile::tempdir().unwrap();
    let options = Options { disk_used_percent: |_| Ok(USED.load(Ordering::Relaxed) as u8), ..small() };
    let store = Store::open(dir.path(), options).unwrap();
    let digest = store.put(b"fits").unwrap();
    USED.store(90, Ordering::Relaxed);
    let refused = store.put(b"does not").unwrap_err();
    assert!(matches!(refused, Error::Full { used_percent: 90, limit_percent: 90, .. }), "{refused}");
    assert!(refused.to_string().ends_with("is 90 % full, and new chunks are refused from 90 % on (disk.full_percent): free some space"));
    assert_eq!(store.put(b"fits").unwrap(), digest, "it is here already");
    assert_eq!(store.get(&digest).unwrap(), "fits");
    store.sync().unwrap();
    USED.store(50, Ordering::Relaxed);
    store.put(b"does not").unwrap();
}

#[test]
fn too_long_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = open(dir.path()).put(&vec![0; OBJECT_BYTES_MAX + 1]);
    assert!(matches!(refused, Err(Error::TooLong { .. })));
}

#[test]
fn a_blob_is_read_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let bytes = noise(1, 2_500_000);
    let blob = store.put_blob(&bytes[..]).unwrap();
    assert_eq!(blob.size, 2_500_000);
    let mut reader = store.open_blob(&blob.digest).unwrap();
    let range = |range: std::ops::Range<u64>| -> Vec<u8> { reader.range(range).flat_map(|piece| piece.unwrap()).collect() };
    assert_eq!(range(1_000_000..2_200_000), bytes[1_000_000..2_200_000]);
    assert_eq!(range(2_499_999..9_000_000), bytes[2_499_999..]);
    assert_eq!(range(3_000_000..9_000_000), b"");
    let mut all = Vec::new();
    reader.read_to_end(&mut all).unwrap();
    assert_eq!(all, bytes);
    reader.seek(SeekFrom::End(-1_500_001)).unwrap();
    let mut some = [0; 10];
    reader.read_exact(&mut some).unwrap();
    assert_eq!(some, bytes[999_999..1_000_009]);
    let empty = store.put_blob(&b""[..]).unwrap();
    assert_eq!(store.open_blob(&empty.digest).unwrap().range(0..10).count(), 0);
    let other = store.put(b"no list").unwrap();
    assert!(matches!(store.open_blob(&other), Err(Error::NotABlob { .. })));
}

/// A store whose clock the test moves.
macro_rules! with_clock {
    ($dir:expr, $now:ident) => {{
        static $now: AtomicU64 = AtomicU64::new(1_000_000);
        let options = Options { clock: || $now.load(Ordering::Relaxed), ..small() };
        (Store::open($dir, options).unwrap(), &$now)
    }};
}

/// Longer than any promise made now.
const PROMISES_END: u64 = 26 * 60 * 60;

#[test]
fn what_was_promised_is_not_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let (store, now) = with_clock!(dir.path(), NOW);
    let digests: Vec<_> = (0..6).map(|seed| store.put(&noise(seed, 9000)).unwrap()).collect();
    store.sync().unwrap();
    assert!(store.condemn(|_| false).unwrap().is_empty(), "every put is a promise");
    now.fetch_add(PROMISES_END, Ordering::Relaxed);
    // 0 is named; 1 was said to be here before the mark, 2 and 3 after it.
    assert_eq!(store.missing(&digests[1..2]).unwrap(), []);
    let condemned = store.condemn(|digest| *digest == digests[0]).unwrap();
    assert_eq!(condemned.len(), 4);
    assert_eq!(store.missing(&digests[2..3]).unwrap(), []);
    store.put(&noise(3, 9000)).unwrap();
    let swept = store.sweep(&condemned).unwrap();
    assert_eq!((swept.chunks, swept.bytes), (2, 2 * 9056));
    digests[..4].iter().for_each(|digest| drop(store.get(digest).unwrap()));
    digests[4..].iter().for_each(|digest| assert_missing(&store, digest));
    store.sync().unwrap();
    drop(store);
    let (store, _) = with_clock!(dir.path(), LATER);
    assert_eq!(store.missing(&digests).unwrap(), digests[4..]);
}

#[test]
fn a_promise_is_on_disk_when_it_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let (store, now) = with_clock!(dir.path(), NOW);
    let digest = store.put(&noise(1, 9000)).unwrap();
    store.sync().unwrap();
    now.fetch_add(PROMISES_END, Ordering::Relaxed);
    store.missing(&[digest]).unwrap();
    let keep_until = store.core().indexed(&digest).unwrap().unwrap().keep_until;
    assert!(keep_until >= now.load(Ordering::Relaxed) + KEEP.as_secs());
    assert!(store.core().fresh.read().touched.is_empty(), "the promise waits for a sync");
}

#[test]
fn a_promise_counts_from_when_it_is_given_though_the_chunk_waits_for_a_sync() {
    let dir = tempfile::tempdir().unwrap();
    let (store, now) = with_clock!(dir.path(), NOW);
    let digest = store.put(&noise(1, 9000)).unwrap();
    now.fetch_add(PROMISES_END, Ordering::Relaxed);
    assert_eq!(store.missing(&[digest]).unwrap(), []);
    assert!(store.condemn(|_| false).unwrap().is_empty(), "the promise is as old as the chunk");
    // The same of a promise that waits itself.
    now.fetch_add(PROMISES_END, Ordering::Relaxed);
    store.put(&noise(1, 9000)).unwrap();
    now.fetch_add(PROMISES_END, Ordering::Relaxed);
    assert_eq!(store.missing(&[digest]).unwrap(), []);
    assert!(store.condemn(|_| false).unwrap().is_empty(), "the promise is as old as the one before");
}

#[test]
fn moving_a_chunk_keeps_a_promise_that_waits_for_a_sync() {
    let dir = tempfile::tempdir().unwrap();
    let (store, now) = with_clock!(dir.path(), NOW);
    let digests: Vec<_> = (0..50).map(|seed| store.put(&noise(seed, 20 << 10)).unwrap()).collect();
    store.sync().unwrap();
    now.fetch_add(PROMISES_END, Ordering::Relaxed);
    let condemned = store.condemn(|digest| *digest == digests[0]).unwrap();
    store.sweep(&condemned).unwrap();
    store.put(&noise(0, 20 << 10)).unwrap();
    assert!(store.compact().unwrap() >= 2);
    assert!(store.condemn(|_| false).unwrap().is_empty(), "moving the chunk lost its promise");
}

#[test]
fn deleting_gives_space_back() {
    let dir = tempfile::tempdir().unwrap();
    let (store, now) = with_clock!(dir.path(), NOW);
    let digests: Vec<_> = (0..20).map(|seed| store.put(&noise(seed, 100 << 10)).unwrap()).collect();
    store.sync().unwrap();
    let used = || -> u64 { packs(dir.path()).iter().map(|pack| pack.metadata().unwrap().blocks() * 512).sum() };
    let before = used();
    now.fetch_add(PROMISES_END, Ordering::Relaxed);
    let condemned = store.condemn(|digest| digests[15..].contains(digest)).unwrap();
    assert_eq!(store.sweep(&condemned).unwrap().chunks, 15);
    assert!(used() < before * 2 / 5, "{before} bytes before, {} after", used());
    let files = packs(dir.path()).len();
    assert_eq!(store.compact().unwrap(), 7, "packs with nothing in use");
    assert_eq!(packs(dir.path()).len(), files - 7);
    drop(store);
    // A rebuilt index brings nothing back.
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    let store = open(dir.path());
    assert_eq!(store.missing(&digests).unwrap(), digests[..15]);
    digests[15..].iter().for_each(|digest| drop(store.get(digest).unwrap()));
}

#[test]
fn rewriting_a_pack_keeps_chunks_and_promises() {
    let dir = tempfile::tempdir().unwrap();
    let (store, now) = with_clock!(dir.path(), NOW);
    let digests: Vec<_> = (0..50).map(|seed| store.put(&noise(seed, 20 << 10)).unwrap()).collect();
    store.sync().unwrap();
    now.fetch_add(PROMISES_END, Ordering::Relaxed);
    let kept: Vec<_> = digests.iter().copied().step_by(12).collect();
    let condemned = store.condemn(|digest| kept.contains(digest)).unwrap();
    store.sweep(&condemned).unwrap();
    store.missing(&kept[..1]).unwrap();
    let first = packs(dir.path()).remove(0);
    assert!(store.compact().unwrap() >= 2);
    assert!(!first.exists());
    let still = store.condemn(|_| false).unwrap();
    assert_eq!(still.len(), kept.len() - 1, "moving a chunk changed what was promised");
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.missing(&digests).unwrap().len(), digests.len() - kept.len());
    kept.iter().for_each(|digest| drop(store.get(digest).unwrap()));
    assert!(!first.exists());
}

#[test]
fn many_threads_put_get_and_sync() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            let store = store.clone();
            scope.spawn(move || {
                for number in 0..40 {
                    // Half of the chunks are put by all threads.
                    let seed = if number % 2 == 0 { number } else { 1000 * (thread + 1) + number };
                    let digest = store.put(&noise(seed, 6000)).unwrap();
                    store.sync().unwrap();
                    assert_eq!(store.get(&digest).unwrap(), noise(seed, 6000));
                }
            });
        }
    });
    assert_eq!(store.core().chunks.range(..).count(), 20 + 4 * 20);
}

#[derive(Debug, Clone)]
enum Step {
    Put(u32, usize),
    Sync,
    Reopen,
    LoseIndex,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..30u32, 0..9000usize).prop_map(|(seed, bytes)| Step::Put(seed, bytes)),
        2 => Just(Step::Sync),
        1 => Just(Step::Reopen),
        1 => Just(Step::LoseIndex),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever happens, short of losing packs, a store has what was put.
    #[test]
    fn a_store_is_a_set_of_chunks(steps in prop::collection::vec(step(), 1..40)) {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { pack_bytes: 30_000, ..small() };
        let mut store = Some(Store::open(dir.path(), options).unwrap());
        let mut put: Vec<(Digest, Vec<u8>)> = Vec::new();
        for step in steps {
            let open = store.as_ref().unwrap();
            match step {
                Step::Put(seed, bytes) => {
                    let chunk = noise(seed, bytes);
                    put.push((open.put(&chunk).unwrap(), chunk));
                }
                Step::Sync => open.sync().unwrap(),
                Step::Reopen | Step::LoseIndex => {
                    drop(store.take());
                    if matches!(step, Step::LoseIndex) {
                        fs::remove_dir_all(dir.path().join("index")).unwrap();
                    }
                    store = Some(Store::open(dir.path(), options).unwrap());
                }
            }
        }
        for (digest, chunk) in put {
            prop_assert_eq!(store.as_ref().unwrap().get(&digest).unwrap(), chunk);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Packs that a disk spoiled: the store opens, and a chunk is what was put, or is said to be gone or damaged.
    #[test]
    fn a_damaged_pack_never_gives_other_bytes(
        damages in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 1..80)), 1..6),
        cut in prop::option::weighted(0.3, any::<prop::sample::Index>()),
        lose_index: bool,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { pack_bytes: 30_000, ..small() };
        let store = Store::open(dir.path(), options).unwrap();
        let chunks: Vec<Vec<u8>> = (0..12).map(|seed| if seed % 3 == 0 { b"words and ".repeat(300) } else { noise(seed, 1000 * seed as usize) }).collect();
        let put: Vec<Digest> = chunks.iter().map(|chunk| store.put(chunk).unwrap()).collect();
        store.sync().unwrap();
        drop(store);
        for (pack, at, bytes) in damages {
            let packs = packs(dir.path());
            let pack = pack.get(&packs);
            let length = fs::metadata(pack).unwrap().len() as usize;
            let file = OpenOptions::new().write(true).open(pack).unwrap();
            file.write_all_at(&bytes, at.index(length) as u64).unwrap();
        }
        if let (Some(cut), Some(last)) = (cut, packs(dir.path()).last()) {
            let length = fs::metadata(last).unwrap().len() as usize;
            OpenOptions::new().write(true).open(last).unwrap().set_len(cut.index(length) as u64).unwrap();
        }
        if lose_index {
            fs::remove_dir_all(dir.path().join("index")).unwrap();
        }
        let store = Store::open(dir.path(), options).unwrap();
        for (digest, chunk) in put.iter().zip(&chunks) {
            match store.get(digest) {
                Ok(bytes) => prop_assert_eq!(&bytes, chunk),
                Err(Error::Missing { .. } | Error::Corrupt { .. }) => {}
                Err(other) => prop_assert!(false, "{other}"),
            }
            // What is gone can be put again.
            store.put(chunk).unwrap();
            prop_assert_eq!(&store.get(digest).unwrap(), chunk);
        }
    }
}

#[test]
fn a_check_finds_what_is_damaged_mends_what_it_can_and_drops_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (small, headless, broken, whole) = (noise(1, 1000), noise(2, 50_000), noise(3, 60_000), noise(4, 70_000));
    let [small_name, headless_name, broken_name, whole_name] = [&small, &headless, &broken, &whole].map(|bytes| store.put(bytes).unwrap());
    store.sync().unwrap();
    let nothing = store.check(|_, _| ControlFlow::Continue(())).unwrap();
    assert_eq!((nothing.chunks, nothing.repaired.len(), nothing.dropped.len()), (4, 0, 0));
    for (bytes, before) in [(&small, 0), (&headless, 20), (&broken, 0)] {
        let (pack, at) = find(dir.path(), bytes);
        flip(&pack, at - before);
    }
    let checked = store.check(|_, _| ControlFlow::Continue(())).unwrap();
    let mended: Vec<Digest> = checked.repaired.iter().map(|damage| damage.digest).collect();
    assert_eq!(mended, [small_name, headless_name], "a copy in the index, a header without its bytes");
    assert_eq!(checked.dropped.iter().map(|damage| damage.digest).collect::<Vec<_>>(), [broken_name]);
    assert_missing(&store, &broken_name);
    let again = store.check(|_, _| ControlFlow::Continue(())).unwrap();
    assert_eq!((again.chunks, again.repaired.len(), again.dropped.len()), (3, 0, 0));
    drop(store);
    // All that is left is whole in the packs alone.
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    let store = open(dir.path());
    assert_eq!([small_name, headless_name, whole_name].map(|name| store.get(&name).unwrap()), [small, headless, whole]);
}

/// Every pack with what it holds; the index's database may tidy its own files.
fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    packs(dir).into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

#[test]
fn a_store_that_is_only_looked_at_tells_of_damage_and_leaves_it() {
    let look = Options { look_only: true, ..small() };
    let dir = tempfile::tempdir().unwrap();
    let missing = Store::open(&dir.path().join("none"), look).unwrap_err();
    assert!(matches!(missing, Error::File(_)), "{missing}");
    let store = open(dir.path());
    let (small, broken, whole) = (noise(1, 1000), noise(3, 60_000), noise(4, 7000));
    let [small_name, broken_name, whole_name] = [&small, &broken, &whole].map(|bytes| store.put(bytes).unwrap());
    store.sync().unwrap();
    drop(store);
    for bytes in [&small, &broken] {
        let (pack, at) = find(dir.path(), bytes);
        flip(&pack, at);
    }
    // A crash in the middle of a write.
    let last = packs(dir.path()).pop().unwrap();
    let length = last.metadata().unwrap().len();
    OpenOptions::new().write(true).open(&last).unwrap().set_len(length + 500).unwrap();
    let before = files(dir.path());
    for _ in 0..2 {
        let store = Store::open(dir.path(), look).unwrap();
        let checked = store.check(|_, _| ControlFlow::Continue(())).unwrap();
        let names = |damage: &[Damage]| damage.iter().map(|damage| damage.digest).collect::<Vec<_>>();
        assert_eq!((checked.chunks, names(&checked.mendable), names(&checked.lost)), (3, vec![small_name], vec![broken_name]));
        assert!(checked.repaired.is_empty() && checked.dropped.is_empty());
        assert!(matches!(store.get(&broken_name), Err(Error::Corrupt { .. })));
        assert_eq!(store.get(&whole_name).unwrap(), whole);
        assert!(matches!(store.put(b"new"), Err(Error::LookOnly { .. })));
    }
    assert!(files(dir.path()) == before, "a look changed packs");
    // What was damaged on the disk is whole again: nothing was dropped for it.
    let (pack, _) = find(dir.path(), &whole);
    fs::remove_file(&pack).unwrap();
    let store = Store::open(dir.path(), look).unwrap();
    let checked = store.check(|_, _| ControlFlow::Continue(())).unwrap();
    assert!(checked.lost.iter().any(|damage| damage.digest == whole_name), "its pack is gone: {checked:?}");
}

#[test]
fn a_check_can_be_ended() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for seed in 0..5 {
        store.put(&noise(seed, 5000)).unwrap();
    }
    let three = |done, all| if (done, all) == (3, 5) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    assert_eq!(store.check(three).unwrap().chunks, 3);
}
