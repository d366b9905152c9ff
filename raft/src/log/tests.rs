use openraft::storage::RaftLogStorageExt;
use openraft::{CommittedLeaderId, EntryPayload, LogId as OpenraftLogId};
use shoal_state::NodeId;

use super::*;

/// The vote is of a later term than every entry, as Raft sees to.
fn open(dir: &Path) -> LogStore {
    let meta = Meta::open(&dir.join("meta"), NodeId::from_random(1)).unwrap();
    meta.save_vote(&Vote::new(9, 1)).unwrap();
    LogStore::open(&dir.join("log"), 1 << 20, meta, Stop::default()).unwrap()
}

fn id(term: u64, index: u64) -> LogId {
    OpenraftLogId::new(CommittedLeaderId::new(term, 1), index)
}

fn blanks(term: u64, indexes: std::ops::Range<u64>) -> Vec<Entry> {
    indexes.map(|index| Entry { log_id: id(term, index), payload: EntryPayload::Blank }).collect()
}

async fn ids(store: &mut LogStore) -> Vec<LogId> {
    store.try_get_log_entries(..).await.unwrap().into_iter().map(|entry| entry.log_id).collect()
}

#[tokio::test]
async fn what_was_truncated_and_written_anew_stays_so_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    store.blocking_append(blanks(1, 0..10)).await.unwrap();
    store.truncate(id(1, 5)).await.unwrap();
    store.blocking_append(blanks(2, 5..7)).await.unwrap();
    let expected = ids(&mut store).await;
    assert_eq!(expected[4..], [id(1, 4), id(2, 5), id(2, 6)]);
    drop(store);
    assert_eq!(ids(&mut open(dir.path())).await, expected);
}

#[tokio::test]
async fn a_purge_beyond_the_end_leaves_an_empty_log_that_goes_on_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    store.blocking_append(blanks(1, 0..10)).await.unwrap();
    // What openraft does after it installed a snapshot from the leader.
    store.purge(id(3, 20)).await.unwrap();
    assert!(ids(&mut store).await.is_empty());
    store.blocking_append(blanks(3, 21..23)).await.unwrap();
    drop(store);
    let mut store = open(dir.path());
    assert_eq!(ids(&mut store).await, [id(3, 21), id(3, 22)]);
    let state = store.get_log_state().await.unwrap();
    assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(id(3, 20)), Some(id(3, 22))));
}

#[tokio::test]
async fn a_hole_in_the_log_is_found_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    store.blocking_append(blanks(1, 0..3)).await.unwrap();
    store.inner.log.append(&[&encode(&blanks(1, 7..8)[0])]).unwrap();
    drop(store);
    let meta = Meta::open(&dir.path().join("meta"), NodeId::from_random(1)).unwrap();
    let refused = LogStore::open(&dir.path().join("log"), 1 << 20, meta, Stop::default()).unwrap_err();
    assert!(matches!(refused, Error::Hole { before: 2, found: 7 }), "{refused}");
}

#[tokio::test]
async fn a_node_whose_vote_is_older_than_its_log_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    store.blocking_append(blanks(10, 0..3)).await.unwrap();
    drop(store);
    let meta = Meta::open(&dir.path().join("meta"), NodeId::from_random(1)).unwrap();
    let refused = LogStore::open(&dir.path().join("log"), 1 << 20, meta, Stop::default()).unwrap_err();
    assert!(matches!(refused, Error::VoteForgotten { vote: 9, log: 10 }), "{refused}");
}

#[tokio::test]
async fn a_torn_tail_is_cut_and_the_log_goes_on_behind_what_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    store.blocking_append(blanks(1, 0..10)).await.unwrap();
    // Written, not synced, and half of it lost with the power.
    store.write(blanks(1, 10..11)).unwrap();
    drop(store);
    tear(&dir.path().join("log"), &encode(&blanks(1, 10..11)[0]));
    let mut store = open(dir.path());
    assert_eq!(ids(&mut store).await.last(), Some(&id(1, 9)));
    store.blocking_append(blanks(2, 10..12)).await.unwrap();
    drop(store);
    assert_eq!(ids(&mut open(dir.path())).await[9..], [id(1, 9), id(2, 10), id(2, 11)]);
}

/// Overwrites the end of a record with zeros, as a file system may after a power cut.
fn tear(dir: &Path, record: &[u8]) {
    use std::os::unix::fs::FileExt;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap_or_default();
        if let Some(at) = bytes.windows(record.len()).rposition(|window| window == record) {
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            file.write_all_at(&[0; 2], (at + record.len() - 2) as u64).unwrap();
            return;
        }
    }
    panic!("the record is in no segment");
}

#[tokio::test]
async fn one_message_carries_at_least_one_entry_and_not_much_more_than_its_limit() {
    use crate::batch::{Batch, encode as encode_command};
    use shoal_state::Command;
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let command = encode_command(&Command::SetSetting { key: "k".into(), value: "v".repeat(MESSAGE_BYTES_MAX * 2 / 5) });
    let entries = (0..6).map(|index| {
        let payload = EntryPayload::Normal(Batch::new(1, std::iter::once(&command)));
        Entry { log_id: id(1, index), payload }
    });
    store.blocking_append(entries.collect::<Vec<_>>()).await.unwrap();
    assert_eq!(store.limited_get_log_entries(0, 6).await.unwrap().len(), 2);
    assert_eq!(store.limited_get_log_entries(5, 6).await.unwrap().len(), 1);
    assert_eq!(store.read(0..6, 1).unwrap().len(), 1);
    assert_eq!(store.try_get_log_entries(0..6).await.unwrap().len(), 6);
}

#[test]
fn entries_that_version_6_wrote_are_read() {
    shoal_state::written::hold::<Entry>("an entry", include_str!("../../tests/written/6/entry.txt"), 1);
}
