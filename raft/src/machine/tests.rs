use std::path::Path;

use openraft::StorageError as OpenraftError;
use openraft::testing::{StoreBuilder, Suite};
use shoal_state::NodeId;
use tempfile::TempDir;

use super::*;
use crate::batch::encode;
use crate::handle::Raft;
use crate::log::LogStore;
use crate::meta::Meta;
use crate::options::Options;

struct Stores;

impl StoreBuilder<TypeConfig, LogStore, Machine, TempDir> for Stores {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), OpenraftError<u64>> {
        let dir = tempfile::tempdir().unwrap();
        let (log, machine) = open(dir.path());
        Ok((dir, log, machine))
    }
}

fn open(dir: &Path) -> (LogStore, Machine) {
    let stop = Stop::default();
    let meta = Meta::open(&dir.join("meta"), NodeId::from_random(1)).unwrap();
    let log = LogStore::open(&dir.join("log"), 1 << 20, meta, stop.clone()).unwrap();
    let (folder, newest) = Folder::open(&dir.join("snapshots"), log.first_index()).unwrap();
    (log, Machine::new(folder, newest, stop))
}

#[test]
fn openrafts_own_suite_passes() {
    Suite::test_all(Stores).unwrap();
}

fn batch_of(version: u32, command: &Command) -> Batch {
    Batch::new(version, [&encode(command)].into_iter())
}

async fn alone(dir: &Path) -> crate::Result<Raft> {
    Raft::open(Options::alone(dir, NodeId::from_random(1))).await
}

/// A newer node led, and this one was not upgraded: it must say so and go no further, also after a restart.
async fn stops_at(batch: Batch, sentence: &str) {
    let dir = tempfile::tempdir().unwrap();
    let raft = alone(dir.path()).await.unwrap();
    raft.bootstrap_alone().await.unwrap();
    let before = raft.local();
    raft.member().unwrap().core.client_write(batch).await.unwrap_err();
    let stopped = raft.stopped().await.to_string();
    assert!(stopped.contains(sentence), "{stopped}");
    let proposed = raft.propose(vec![Command::SetSetting { key: "k".into(), value: "v".into() }]).await.unwrap_err();
    assert!(proposed.to_string().contains(sentence), "{proposed}");
    let read = raft.read_latest().await.unwrap_err();
    assert!(read.to_string().contains(sentence), "{read}");
    assert_eq!(raft.local(), before);
    assert!(raft.status().stopped.unwrap().contains(sentence));
    raft.shutdown().await;
    let again = alone(dir.path()).await;
    let refused = match again {
        Err(error) => error,
        Ok(raft) => raft.stopped().await,
    };
    assert!(refused.to_string().contains(sentence), "{refused}");
}

#[tokio::test]
async fn an_entry_of_an_unknown_version_stops_the_node_with_a_sentence() {
    let command = Command::SetSetting { key: "k".into(), value: "v".into() };
    stops_at(batch_of(VERSION_KNOWN + 1, &command), "upgrade this node").await;
}

#[tokio::test]
async fn an_entry_that_activates_an_unknown_version_stops_the_node_with_a_sentence() {
    let command = Command::SetVersion { version: VERSION_KNOWN + 7 };
    stops_at(batch_of(1, &command), "upgrade this node").await;
}

#[tokio::test]
async fn an_entry_that_cannot_be_read_stops_the_node_with_a_sentence() {
    let nonsense = bytes::Bytes::from_static(&[0xff; 8]);
    stops_at(Batch::new(1, [&nonsense].into_iter()), "not a list of commands").await;
}
