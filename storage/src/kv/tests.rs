use std::fs;

use bytes::Bytes;

use super::*;

fn keys(pairs: impl Iterator<Item = Result<Pair>>) -> Vec<Bytes> {
    pairs.map(|pair| pair.unwrap().0).collect()
}

#[test]
fn what_was_synced_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let kv = Kv::open(&dir.path().join("a/b")).unwrap();
    let tree = kv.tree("t").unwrap();
    tree.insert(b"one", b"1").unwrap();
    let mut batch = Batch::default();
    batch.insert("two", "2");
    batch.insert("three", "3");
    batch.remove("one");
    tree.apply(batch).unwrap();
    kv.sync().unwrap();
    drop((kv, tree));
    let tree = Kv::open(&dir.path().join("a/b")).unwrap().tree("t").unwrap();
    assert_eq!(tree.get(b"one").unwrap(), None);
    assert_eq!(tree.get(b"two").unwrap().unwrap(), "2");
    assert_eq!(keys(tree.range(..).rev()), ["two", "three"]);
    assert_eq!(keys(tree.range(&b"tw"[..]..)), ["two"]);
    assert_eq!(keys(tree.prefix(b"th")), ["three"]);
}

#[test]
fn a_value_that_sled_would_not_sync_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let tree = Kv::open(dir.path()).unwrap().tree("t").unwrap();
    let big = vec![7; VALUE_BYTES_MAX];
    assert!(matches!(tree.insert(b"k", &big), Err(Error::TooBig { .. })));
    let mut batch = Batch::default();
    batch.insert("small", "fits");
    batch.insert("big", big.clone());
    assert!(matches!(tree.apply(batch), Err(Error::TooBig { .. })));
    assert_eq!(tree.get(b"small").unwrap(), None, "half a batch was applied");
    tree.insert(b"k", &big[1..]).unwrap();
    assert!(matches!(tree.insert(&[1; KEY_BYTES_MAX], b"v"), Err(Error::TooBig { .. })));
}

/// The trap: a value may be small enough and the page it shares with others too large.
#[test]
fn no_page_goes_to_a_file_that_is_not_synced() {
    let dir = tempfile::tempdir().unwrap();
    let kv = Kv::open(dir.path()).unwrap();
    let tree = kv.tree("t").unwrap();
    let (value, padding) = (vec![7; VALUE_BYTES_MAX - 1], vec![8; KEY_BYTES_MAX - 9]);
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            let (tree, value, padding) = (&tree, &value, &padding);
            scope.spawn(move || {
                for number in 0..300u32 {
                    let key = [&(number * 7919 % 1024).to_be_bytes()[..], &thread.to_be_bytes(), padding].concat();
                    tree.insert(&key, value).unwrap();
                }
            });
        }
    });
    kv.sync().unwrap();
    let blobs: Vec<_> = fs::read_dir(dir.path().join("blobs")).unwrap().collect();
    assert!(blobs.is_empty(), "{blobs:?}");
}

#[test]
fn a_damaged_database_is_set_aside_but_not_one_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("kv");
    let kv = Kv::open(&at).unwrap();
    assert!(matches!(Kv::open_or_set_aside(&at), Err(Error::Sled { .. })), "it is in use");
    drop(kv);
    fs::write(at.join("conf"), [0; 62]).unwrap();
    assert!(matches!(Kv::open(&at), Err(Error::Unusable { .. })));
    let (kv, aside) = Kv::open_or_set_aside(&at).unwrap();
    assert_eq!(aside.unwrap(), dir.path().join("kv.damaged-1"));
    kv.tree("t").unwrap().insert(b"k", b"v").unwrap();
    kv.sync().unwrap();
}

/// Opens, and some of it cannot be read.
fn is_spoiled(at: &Path) -> bool {
    let read = || Kv::open(at).map(|kv| kv.tree("t").and_then(|tree| tree.range(..).try_for_each(|pair| pair.map(drop))).is_err());
    catch_unwind(AssertUnwindSafe(read)).map_or(true, |read| read.unwrap_or(false))
}

#[test]
fn what_is_spoiled_in_the_middle_is_set_aside_though_it_opens() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("kv");
    let kv = Kv::open(&at).unwrap();
    let tree = kv.tree("t").unwrap();
    for number in 0..20_000u32 {
        tree.insert(&number.to_be_bytes(), &[number as u8; 100]).unwrap();
    }
    kv.sync().unwrap();
    drop((tree, kv));
    // Now it has a snapshot, and what that covers is not looked at when it opens.
    drop(Kv::open(&at).unwrap());
    let whole = fs::read(at.join("db")).unwrap();
    let mut spoiled = 0;
    for place in 1..12 {
        let (one, other) = (dir.path().join(format!("one-{place}")), dir.path().join(format!("other-{place}")));
        let mut bytes = whole.clone();
        let from = bytes.len() / 12 * place;
        bytes[from..from + 2000].fill(7);
        for copy in [&one, &other] {
            fs::create_dir(copy).unwrap();
            for entry in fs::read_dir(&at).unwrap().map(|entry| entry.unwrap()).filter(|entry| entry.path().is_file()) {
                fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
            }
            fs::write(copy.join("db"), &bytes).unwrap();
        }
        if is_spoiled(&one) {
            spoiled += 1;
            let (kv, aside) = Kv::open_or_set_aside(&other).unwrap();
            assert!(aside.is_some());
            assert_eq!(kv.tree("t").unwrap().range(..).count(), 0, "a new one was made");
        }
    }
    assert!(spoiled > 0, "nothing of what was spoiled opened");
}

#[test]
fn a_first_open_that_was_cut_off_is_begun_again() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("kv")).unwrap();
    fs::write(dir.path().join("kv/conf"), [0; 62]).unwrap();
    Kv::open(&dir.path().join("kv")).unwrap();
}

#[test]
fn a_snapshot_that_was_cut_short_does_not_stop_an_open() {
    let dir = tempfile::tempdir().unwrap();
    let kv = Kv::open(dir.path()).unwrap();
    kv.tree("t").unwrap().insert(b"k", b"v").unwrap();
    kv.sync().unwrap();
    drop(kv);
    fs::write(dir.path().join("snap.7FFFFFFFFFFFFFFF.generating"), b"").unwrap();
    let tree = Kv::open(dir.path()).unwrap().tree("t").unwrap();
    assert_eq!(tree.get(b"k").unwrap().unwrap(), "v");
}

#[test]
fn many_threads_share_syncs() {
    let dir = tempfile::tempdir().unwrap();
    let kv = Kv::open(dir.path()).unwrap();
    let tree = kv.tree("t").unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8u8 {
            let (kv, tree) = (kv.clone(), tree.clone());
            scope.spawn(move || {
                for number in 0..20u8 {
                    tree.insert(&[thread, number], b"x").unwrap();
                    kv.sync().unwrap();
                }
            });
        }
    });
    assert_eq!(tree.range(..).count(), 160);
}
