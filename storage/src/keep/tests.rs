//! Promises and marks on a real store.

use std::collections::BTreeMap;
use std::path::Path as HostPath;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use shoal_state::Digest;
use tempfile::TempDir;

use super::{Added, Mark, Promises};
use crate::chunk::{CHUNK_BYTES, List};
use crate::manifest::{Entry, Kind, Path, Tree, put_content};
use crate::store::{Options, Store};

/// Each test has a clock of its own, in seconds.
macro_rules! store {
    ($name:ident, $clock:ident) => {
        static $clock: AtomicU64 = AtomicU64::new(1_000_000);
        let dir = TempDir::new().unwrap();
        let $name = open(dir.path(), || $clock.load(Ordering::Relaxed));
    };
}

const KEEP: Duration = Duration::from_secs(1000);

fn open(dir: &HostPath, clock: fn() -> u64) -> Store {
    Store::open(dir, Options { clock, keep: KEEP, disk_used_percent: |_| Ok(0), ..Options::default() }).unwrap()
}

fn tree(store: &Store, files: &BTreeMap<&str, Vec<u8>>) -> Digest {
    let mut tree = Tree::new();
    for (name, bytes) in files {
        let (size, content) = put_content(&bytes[..], name, store).unwrap();
        tree.insert(&Path::parse(name).unwrap(), Entry::new(Kind::File { size, content }, 0o644)).unwrap();
    }
    let digest = tree.write(store).unwrap();
    store.sync().unwrap();
    digest
}

fn sweep(store: &Store, mark: &Mark) -> u64 {
    let condemned = store.condemn(|digest| mark.contains(digest)).unwrap();
    store.sweep(&condemned).unwrap().chunks
}

fn mark(store: &Store, roots: &[Digest]) -> (Mark, Added) {
    let (mut mark, mut added) = (Mark::new(store.clone()), Added::default());
    roots.iter().for_each(|root| mark.tree(*root, &mut added).unwrap());
    mark.take(&added);
    (mark, added)
}

#[test]
fn what_a_tree_needs_outlives_a_sweep_and_the_rest_does_not() {
    store!(store, NOW);
    let long = vec![7; 70 * CHUNK_BYTES + 5];
    let kept = tree(&store, &BTreeMap::from([("a", b"in both".to_vec()), ("b", b"only here".to_vec()), ("long", long.clone())]));
    let gone = tree(&store, &BTreeMap::from([("a", b"in both".to_vec()), ("c", b"only there".to_vec())]));
    NOW.fetch_add(KEEP.as_secs() * 2, Ordering::Relaxed);
    let (marked, added) = mark(&store, &[kept]);
    assert!(added.missing.is_empty() && added.bytes == marked.bytes() && marked.bytes() > 0);
    assert!(sweep(&store, &marked) > 0);
    assert!(!store.has(&gone).unwrap() && !store.has(&Digest::of(b"only there")).unwrap());
    let read = Tree::read(&store, &kept).unwrap();
    assert_eq!(read.read_file(&Path::parse("long").unwrap(), u64::MAX, &store).unwrap(), Some(long));
    assert_eq!(read.read_file(&Path::parse("a").unwrap(), 100, &store).unwrap().unwrap(), b"in both");
}

#[test]
fn a_promise_of_a_tree_covers_all_of_it_and_tells_what_is_missing() {
    store!(store, NOW);
    let root = tree(&store, &BTreeMap::from([("a", b"alpha".to_vec()), ("b", vec![1; 100_000])]));
    NOW.fetch_add(KEEP.as_secs() * 2, Ordering::Relaxed);
    assert_eq!(Promises::new(store.clone()).tree(&root).unwrap(), []);
    let nothing = Mark::new(store.clone());
    assert_eq!(sweep(&store, &nothing), 0, "all of it was promised");
    NOW.fetch_add(KEEP.as_secs() * 2, Ordering::Relaxed);
    let (mut all_but_one, mut added) = mark(&store, &[root]);
    all_but_one.undo(&added);
    added.missing.clear();
    // A sweep that knows of all but one chunk.
    let alpha = Digest::of(b"alpha");
    let condemned = store.condemn(|digest| *digest != alpha).unwrap();
    assert_eq!(store.sweep(&condemned).unwrap().chunks, 1);
    assert_eq!(Promises::new(store).tree(&root).unwrap(), [alpha]);
}

#[test]
fn a_promise_that_is_remembered_is_not_believed_for_longer_than_it_holds() {
    store!(store, NOW);
    let root = tree(&store, &BTreeMap::from([("a", b"alpha".to_vec())]));
    let promises = Promises::new(store.clone());
    assert_eq!(promises.tree(&root).unwrap(), []);
    NOW.fetch_add(KEEP.as_secs() / 2 + 1, Ordering::Relaxed);
    assert_eq!(promises.tree(&root).unwrap(), [], "looked at and promised anew");
    NOW.fetch_add(KEEP.as_secs() / 2 + 1, Ordering::Relaxed);
    assert_eq!(sweep(&store, &Mark::new(store.clone())), 0, "else the first promise would be over now");
}

#[test]
fn marks_that_are_taken_back_leave_what_others_need() {
    store!(store, NOW);
    let one = tree(&store, &BTreeMap::from([("a", b"in both".to_vec())]));
    let two = tree(&store, &BTreeMap::from([("a", b"in both".to_vec()), ("b", vec![2; 100_000])]));
    let (mut marked, _) = mark(&store, &[one]);
    let before = (marked.bytes(), marked.len());
    let mut added = Added::default();
    marked.tree(two, &mut added).unwrap();
    assert!(added.bytes > 0);
    marked.undo(&added);
    assert_eq!((marked.bytes(), marked.len()), before);
    assert!(marked.contains(&Digest::of(b"in both")) && !marked.contains(&two));
    marked.tree(two, &mut Added::default()).unwrap();
    assert!(marked.contains(&two) && marked.contains(&Digest::of(&vec![2; 100_000])), "it can be marked again");
    NOW.load(Ordering::Relaxed);
}

#[test]
fn a_file_with_the_bytes_of_a_tree_does_not_hide_the_tree() {
    store!(store, NOW);
    let inner = tree(&store, &BTreeMap::from([("secret", b"of the inner tree".to_vec())]));
    let bytes = store.get(&inner).unwrap().to_vec();
    let outer = tree(&store, &BTreeMap::from([("copy", bytes)]));
    let (marked, _) = mark(&store, &[outer, inner]);
    assert!(marked.contains(&Digest::of(b"of the inner tree")));
    let promises = Promises::new(store.clone());
    NOW.fetch_add(KEEP.as_secs() * 2, Ordering::Relaxed);
    assert_eq!((promises.tree(&outer).unwrap(), promises.tree(&inner).unwrap()), (vec![], vec![]));
    assert_eq!(sweep(&store, &Mark::new(store.clone())), 0);
}

#[test]
fn lists_are_marked_with_their_chunks_and_what_is_not_there_is_told() {
    store!(store, NOW);
    let blob = store.put_blob(&vec![3; CHUNK_BYTES + 1][..]).unwrap();
    let (mut marked, mut added) = (Mark::new(store.clone()), Added::default());
    marked.list(blob.digest, &mut added).unwrap();
    assert_eq!((marked.len(), added.missing.len()), (3, 0));
    let absent = List { size: 1, chunks: vec![Digest::of(b"never put")] };
    let list = store.put(&absent.encode()).unwrap();
    marked.list(list, &mut added).unwrap();
    marked.tree(Digest::of(b"no tree"), &mut added).unwrap();
    assert_eq!(added.missing, [Digest::of(b"never put"), Digest::of(b"no tree")]);
    NOW.load(Ordering::Relaxed);
}

#[test]
fn what_is_missing_is_told_of_each_thing_that_lacks_it() {
    store!(store, NOW);
    let one = tree(&store, &BTreeMap::from([("a", b"alpha".to_vec())]));
    let two = tree(&store, &BTreeMap::from([("a", b"alpha".to_vec()), ("b", b"beta".to_vec())]));
    NOW.fetch_add(KEEP.as_secs() * 2, Ordering::Relaxed);
    let alpha = Digest::of(b"alpha");
    store.sweep(&store.condemn(|digest| *digest != alpha).unwrap()).unwrap();
    let mut marked = Mark::new(store.clone());
    for root in [one, one, two] {
        let mut added = Added::default();
        marked.tree(root, &mut added).unwrap();
        assert_eq!(added.missing, [alpha]);
        marked.take(&added);
    }
    assert!(marked.contains(&two) && marked.contains(&Digest::of(b"beta")), "what is there is marked all the same");
}
