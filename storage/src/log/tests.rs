use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use proptest::prelude::*;

use super::segment::base_in_name;
use super::*;

const SMALL: Options = Options { segment_bytes: 4096 };

fn open(dir: &Path) -> Log {
    Log::open(dir, SMALL).unwrap()
}

fn all(log: &Log) -> Vec<(Position, Bytes)> {
    log.scan(Position::START).map(|record| record.unwrap()).collect()
}

fn payloads(log: &Log) -> Vec<Bytes> {
    all(log).into_iter().map(|(_, payload)| payload).collect()
}

/// The segment files that hold records, oldest first, with their lengths.
fn segments(dir: &Path) -> Vec<(std::path::PathBuf, u64)> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.filter(|path| base_in_name(path.file_name().unwrap().to_str().unwrap()).is_some()).collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), path.metadata().unwrap().len())).collect()
}

fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], offset).unwrap();
}

#[test]
fn records_are_there_at_once_and_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    assert_eq!(all(&log), []);
    let positions = log.append(&[b"one", b"", &[7; 9000]]).unwrap();
    assert_eq!(log.read(positions[0]).unwrap(), "one");
    assert_eq!(log.read(positions[2]).unwrap(), &[7; 9000][..]);
    log.sync().unwrap();
    assert_eq!(log.synced(), log.end());
    let before = all(&log);
    drop(log);
    let log = open(dir.path());
    assert_eq!(all(&log), before);
    assert_eq!(log.scan(positions[1]).count(), 2);
    assert_eq!(log.scan(log.end()).count(), 0);
    assert!(log.append(&[b"x"]).unwrap()[0] > positions[2]);
}

#[test]
fn a_log_belongs_to_one_owner() {
    let dir = tempfile::tempdir().unwrap();
    let _log = open(dir.path());
    assert!(matches!(Log::open(dir.path(), SMALL), Err(Error::File(_))));
}

#[test]
fn a_look_sees_what_opening_would_find_and_leaves_all_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let files = || -> BTreeMap<_, _> {
        let paths = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
        paths.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
    };
    let log = open(dir.path());
    let records: Vec<Vec<u8>> = (0..40u8).map(|number| vec![number; 500]).collect();
    let records: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
    let positions = log.append(&records).unwrap();
    log.truncate(positions[30]).unwrap();
    log.append(&[b"after the truncation"]).unwrap();
    assert!(matches!(Log::look(dir.path()), Err(Error::File(_))), "somebody has it open");
    let expected = payloads(&log);
    drop(log);
    // A tail that a crash tore.
    let (last, _) = segments(dir.path()).pop().unwrap();
    let file = OpenOptions::new().write(true).open(&last).unwrap();
    file.write_all_at(&[9; 100], 2000).unwrap();
    let before = files();
    let seen: Vec<Bytes> = Log::look(dir.path()).unwrap().map(|record| record.unwrap().1).collect();
    assert_eq!(seen, expected);
    assert!(files() == before, "a look changed files");
    assert_eq!(payloads(&open(dir.path())), expected);
    assert!(Log::look(&dir.path().join("none")).is_err());
}

#[test]
fn a_scan_ends_where_the_log_ended_when_it_began() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    log.append(&[b"a"]).unwrap();
    let scan = log.scan(Position::START);
    let end = log.end();
    log.append(&[b"b".as_slice(); 500]).unwrap();
    assert_eq!(scan.count(), 1);
    assert_eq!(log.scan(end).count(), 500, "the end of then is where the next records begin");
}

#[test]
fn a_torn_tail_is_cut_and_nothing_stands_behind_new_records() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let positions = log.append(&[b"kept", b"torn", b"later"]).unwrap();
    drop(log);
    let (path, _) = segments(dir.path()).pop().unwrap();
    flip(&path, positions[1].get() + 24);
    let log = open(dir.path());
    assert_eq!(payloads(&log), ["kept"]);
    let new = log.append(&[b"torn"]).unwrap();
    assert!(new[0] > positions[2], "a position was given twice");
    drop(log);
    assert_eq!(payloads(&open(dir.path())), ["kept", "torn"]);
}

#[test]
fn damage_in_synced_records_is_an_error_that_says_where() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let positions = log.append(&[b"one", b"two"]).unwrap();
    log.sync().unwrap();
    // This record is the witness that the others were synced.
    log.append(&[b"three"]).unwrap();
    drop(log);
    let (path, _) = segments(dir.path()).pop().unwrap();
    flip(&path, positions[1].get() + 24);
    match Log::open(dir.path(), SMALL) {
        Err(Error::Damaged { segment, offset, position, .. }) => {
            assert_eq!((segment, offset, position), (path, positions[1].get(), positions[1]));
        }
        other => panic!("damage was not seen: {other:?}"),
    }
}

#[test]
fn damage_in_an_older_segment_is_seen_when_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let positions = log.append(&[&[1; 1000][..]; 10]).unwrap();
    let (path, _) = segments(dir.path()).remove(0);
    flip(&path, positions[1].get() + 500);
    assert!(matches!(log.read(positions[1]), Err(Error::Damaged { .. })));
    log.read(positions[0]).unwrap();
    let scanned: Vec<_> = log.scan(Position::START).collect();
    assert_eq!(scanned.len(), 2, "a scan went on after damage");
    assert!(matches!(scanned[1], Err(Error::Damaged { position, .. }) if position == positions[1]));
}

#[test]
fn truncated_records_are_gone_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let positions = log.append(&[&[1; 1000][..]; 12]).unwrap();
    log.truncate(positions[2]).unwrap();
    assert_eq!(all(&log).len(), 2);
    assert!(matches!(log.read(positions[2]), Err(Error::NoRecord { .. })));
    assert!(matches!(log.truncate(positions[2]), Err(Error::NoRecord { .. })));
    let new = log.append(&[b"new"]).unwrap();
    assert!(new[0] > positions[11], "a position was given twice");
    assert!(matches!(log.read(positions[5]), Err(Error::NoRecord { .. })));
    log.truncate(log.end()).unwrap();
    drop(log);
    assert_eq!(all(&open(dir.path())).len(), 3);
}

#[test]
fn a_position_is_not_given_twice_after_truncating_and_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let positions = log.append(&[&[1; 1000][..]; 12]).unwrap();
    log.truncate(positions[0]).unwrap();
    drop(log);
    drop(open(dir.path()));
    let log = open(dir.path());
    assert_eq!(all(&log), []);
    assert!(log.append(&[b"x"]).unwrap()[0] > positions[11]);
}

#[test]
fn released_space_comes_back_by_whole_segments() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let positions = log.append(&[&[1; 1000][..]; 40]).unwrap();
    let before = segments(dir.path()).len();
    log.release_before(positions[20]).unwrap();
    assert!(segments(dir.path()).len() <= before / 2 + 1);
    assert!(log.front() <= positions[20]);
    assert!(matches!(log.read(positions[0]), Err(Error::Released { .. })));
    assert_eq!(log.scan(positions[20]).count(), 20);
    log.release_before(log.end()).unwrap();
    drop(log);
    let log = open(dir.path());
    assert!(log.append(&[b"x"]).unwrap()[0] > positions[39]);
    assert!(segments(dir.path()).len() <= 2);
}

/// Whoever chooses payloads must not be able to make a torn tail look like damage, which stops a node.
#[test]
fn a_record_inside_a_payload_is_not_taken_for_one() {
    for salt_is_known in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let log = open(dir.path());
        let (path, _) = segments(dir.path()).pop().unwrap();
        let header = record::SegmentHeader::parse(fs::read(&path).unwrap().first_chunk().unwrap()).unwrap();
        let salt = if salt_is_known { header.salt } else { 0 };
        let mut forged = Vec::new();
        record::encode(&mut forged, salt, log.end().get() + 24, u64::MAX, b"all was synced");
        let outer = log.append(&[&forged]).unwrap()[0];
        drop(log);
        flip(&path, outer.get() + 8);
        let opened = Log::open(dir.path(), SMALL);
        assert_eq!(opened.is_err(), salt_is_known, "{opened:?}");
    }
}

#[test]
fn many_threads_share_syncs_and_keep_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let log = log.clone();
            scope.spawn(move || {
                for number in 0..50u8 {
                    let position = log.append(&[&[thread, number]]).unwrap()[0];
                    log.sync().unwrap();
                    assert!(log.synced() > position);
                }
            });
        }
    });
    drop(log);
    let mut next = BTreeMap::from([(0, 0), (1, 0), (2, 0), (3, 0)]);
    for payload in payloads(&open(dir.path())) {
        assert_eq!(payload[1], next[&payload[0]]);
        *next.get_mut(&payload[0]).unwrap() += 1;
    }
    assert!(next.values().all(|count| *count == 50));
}

#[derive(Debug, Clone)]
enum Step {
    Append(Vec<usize>),
    Truncate(prop::sample::Index),
    Release(prop::sample::Index),
    Sync,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop::collection::vec(0..1500usize, 0..5).prop_map(Step::Append),
        1 => any::<prop::sample::Index>().prop_map(Step::Truncate),
        1 => any::<prop::sample::Index>().prop_map(Step::Release),
        1 => Just(Step::Sync),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever is done to a log, it holds what a plain list of records would hold.
    #[test]
    fn a_log_is_a_list(steps in prop::collection::vec(step(), 1..25)) {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path());
        let mut model: Vec<(Position, Vec<u8>)> = Vec::new();
        let mut greatest = Position::START;
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Append(lengths) => {
                    let records: Vec<_> = lengths.iter().map(|length| vec![number as u8; *length]).collect();
                    let slices: Vec<_> = records.iter().map(Vec::as_slice).collect();
                    for (position, record) in log.append(&slices).unwrap().into_iter().zip(records) {
                        prop_assert!(position > greatest);
                        greatest = position;
                        model.push((position, record));
                    }
                }
                Step::Truncate(index) if !model.is_empty() => {
                    let at = index.index(model.len());
                    log.truncate(model[at].0).unwrap();
                    model.truncate(at);
                }
                Step::Release(index) if !model.is_empty() => {
                    let at = index.index(model.len());
                    log.release_before(model[at].0).unwrap();
                    let front = log.front();
                    prop_assert!(front <= model[at].0);
                    model.retain(|(position, _)| *position >= front);
                }
                Step::Sync => log.sync().unwrap(),
                Step::Reopen => {
                    drop(log);
                    log = open(dir.path());
                }
                _ => {}
            }
            let found = all(&log);
            prop_assert_eq!(found.len(), model.len());
            for ((position, payload), (expected_position, expected)) in found.iter().zip(&model) {
                prop_assert_eq!(position, expected_position);
                prop_assert_eq!(payload, expected);
                prop_assert_eq!(&log.read(*position).unwrap(), expected);
            }
        }
    }
}
