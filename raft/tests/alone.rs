//! A cluster of one, through the public handle.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use shoal_raft::{ENTRY_BYTES_MAX, Error, Notice, Options, Raft, Tuning};
use shoal_state::{Command, Event, NodeId, Refused, VERSION_KNOWN};
use tokio::time::{Instant, timeout};

fn node() -> NodeId {
    NodeId::from_random(1)
}

fn set(key: impl ToString, value: impl ToString) -> Command {
    Command::SetSetting { key: key.to_string(), value: value.to_string() }
}

async fn open(dir: &Path) -> Raft {
    let raft = Raft::open(Options::alone(dir, node())).await.unwrap();
    raft.bootstrap_alone().await.unwrap();
    raft
}

async fn open_with(dir: &Path, snapshot_every: u64, entries_kept: u64) -> Raft {
    let tuning = Tuning { snapshot_every, entries_kept, ..Tuning::default() };
    let raft = Raft::open(Options { tuning, ..Options::alone(dir, node()) }).await.unwrap();
    raft.bootstrap_alone().await.unwrap();
    raft
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn each_command_has_its_own_answer_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let raft = open(dir.path()).await;
    let unknown = NodeId::from_random(99);
    let commands = vec![set("a", 1), Command::DrainNode { id: unknown, draining: true }, set("b", 2)];
    let answers = raft.propose(commands).await.unwrap();
    assert_eq!(answers[1], Err(Refused::NoNode { id: unknown }));
    assert_eq!(answers[2], Ok(vec![Event::RegistryChanged]));
    assert_eq!(answers.len(), 3);
    let state = raft.read_latest().await.unwrap();
    assert_eq!((state.settings["a"].as_str(), state.settings["b"].as_str()), ("1", "2"));
    assert_eq!(raft.propose(vec![]).await.unwrap(), []);
    assert_eq!(raft.leader().unwrap().node, node());
    raft.shutdown().await;
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_restart_and_after_a_drop_without_farewell() {
    let dir = tempfile::tempdir().unwrap();
    let mut term = 0;
    for round in 0..4 {
        let raft = open(dir.path()).await;
        let state = raft.read_latest().await.unwrap();
        assert_eq!(state.settings.len(), round, "round {round}");
        assert!(raft.status().term >= term);
        term = raft.status().term;
        raft.propose(vec![set(round, "kept")]).await.unwrap();
        if round % 2 == 0 {
            raft.shutdown().await;
        } else {
            drop(raft);
            // The folder is free once the thread has let go of it.
            let freed = dir.path().to_owned();
            wait_for_free(&freed).await;
        }
    }
}

async fn wait_for_free(dir: &Path) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match Raft::open(Options::alone(dir, node())).await {
            Ok(raft) => return raft.shutdown().await,
            Err(error) => assert!(Instant::now() < deadline, "the folder is still held: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_folder_is_not_opened_twice_nor_by_another_node() {
    let dir = tempfile::tempdir().unwrap();
    let raft = open(dir.path()).await;
    assert!(matches!(Raft::open(Options::alone(dir.path(), node())).await, Err(Error::Unusable { .. })));
    raft.shutdown().await;
    let other = Raft::open(Options::alone(dir.path(), NodeId::from_random(2))).await.unwrap_err().to_string();
    assert!(other.contains("never handed to another node"), "{other}");
}

#[tokio::test]
async fn a_crowd_shares_few_entries() {
    const CALLERS: u64 = 2000;
    let dir = tempfile::tempdir().unwrap();
    let raft = open(dir.path()).await;
    let before = raft.status().last_log;
    let calls = (0..CALLERS).map(|n| {
        let raft = raft.clone();
        tokio::spawn(async move { raft.propose(vec![set(n, "x")]).await.unwrap() })
    });
    for call in calls.collect::<Vec<_>>() {
        assert_eq!(call.await.unwrap(), [Ok(vec![Event::RegistryChanged])]);
    }
    let entries = raft.status().last_log - before;
    assert!(entries < CALLERS / 10, "{CALLERS} proposals took {entries} entries");
    assert_eq!(raft.local().settings.len() as u64, CALLERS);
    raft.shutdown().await;
}

#[tokio::test]
async fn a_long_list_is_split_over_entries_and_keeps_its_order() {
    let dir = tempfile::tempdir().unwrap();
    let raft = open(dir.path()).await;
    let before = raft.status().last_log;
    let filler = "x".repeat(1000);
    let commands: Vec<_> = (0..500).map(|n| set("same", format!("{n} {filler}"))).collect();
    let answers = raft.propose(commands).await.unwrap();
    assert_eq!(answers.len(), 500);
    let entries = raft.status().last_log - before;
    assert!(entries as usize >= 500 * 1000 / ENTRY_BYTES_MAX, "500 kB went into {entries} entries");
    assert!(raft.local().settings["same"].starts_with("499 "));
    // Larger than an entry, it travels alone; larger than the limit, it is refused before anything is written.
    raft.propose(vec![set("big", "x".repeat(2 * ENTRY_BYTES_MAX))]).await.unwrap();
    let refused = raft.propose(vec![set("a", 1), set("big", "x".repeat(1 << 20))]).await.unwrap_err();
    assert!(matches!(refused, Error::CommandTooLong { .. }), "{refused}");
    assert!(!raft.local().settings.contains_key("a"));
    raft.shutdown().await;
}

#[tokio::test]
async fn a_version_that_this_build_does_not_know_is_refused_when_it_is_proposed() {
    let dir = tempfile::tempdir().unwrap();
    let raft = open(dir.path()).await;
    let before = raft.status().last_log;
    let refused = raft.propose(vec![Command::SetVersion { version: VERSION_KNOWN + 1 }]).await.unwrap_err();
    assert!(matches!(refused, Error::VersionUnknown { .. }), "{refused}");
    assert_eq!(raft.status().last_log, before, "it reached the log");
    raft.propose(vec![Command::SetVersion { version: VERSION_KNOWN }]).await.unwrap()[0].as_ref().unwrap();
    raft.shutdown().await;
}

#[tokio::test]
async fn snapshots_and_purges_keep_the_state_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let mut written = 0;
    for _ in 0..3 {
        let raft = open_with(dir.path(), 20, 5).await;
        assert_eq!(raft.read_latest().await.unwrap().settings.len(), written);
        for _ in 0..50 {
            raft.propose(vec![set(written, "kept")]).await.unwrap();
            written += 1;
        }
        let status = raft.status();
        until("a snapshot and a purge", || {
            // Entries that came while a snapshot was written count for the next one.
            let now = raft.status();
            now.snapshot + 45 > status.applied && now.purged + 50 > status.applied
        })
        .await;
        raft.shutdown().await;
    }
    // Without the log, the newest snapshot alone must hold the rest: what is not in the log came from it.
    let raft = open_with(dir.path(), 20, 5).await;
    let status = raft.status();
    assert!(status.purged > 100, "{status:?}");
    assert_eq!(raft.read_latest().await.unwrap().settings.len(), written);
    raft.shutdown().await;
}

/// The files of a folder and of those below it, with what they hold; the small database beside the log aside, whose own files an opening may tidy.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let folders = ["log", "snapshots"].map(|name| dir.join(name));
    let paths = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap()).map(|entry| entry.unwrap().path());
    paths.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

#[tokio::test]
async fn the_state_of_a_node_that_does_not_run_is_read_from_its_disk_and_nothing_changes() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = shoal_raft::look(dir.path()).unwrap_err().to_string();
    assert!(nowhere.contains("cannot open Raft's folder"), "{nowhere}");
    // Few entries: all are in the log. Many: there is a snapshot, and the log goes on behind it.
    for count in [3, 70] {
        let raft = open_with(dir.path(), 20, 5).await;
        for number in 0..count {
            raft.propose(vec![set(number, count)]).await.unwrap();
        }
        let (expected, applied) = (raft.local(), raft.status().applied);
        raft.shutdown().await;
        let before = files(dir.path());
        let left = shoal_raft::look(dir.path()).unwrap();
        assert_eq!((&left.state, left.applied, left.undecided), (&*expected, applied, 0), "{count} entries");
        assert!(files(dir.path()) == before, "a look changed files");
    }
    // The newest snapshot is spoilt: the one before it does not reach the log, which says so.
    for path in std::fs::read_dir(dir.path().join("snapshots")).unwrap().map(|entry| entry.unwrap().path()) {
        std::fs::write(&path, b"spoilt").unwrap();
    }
    let hole = shoal_raft::look(dir.path()).unwrap_err().to_string();
    assert!(hole.contains("has a hole"), "{hole}");
}

#[tokio::test]
async fn marks_go_on_over_snapshots_and_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let (straight, twice) = (tempfile::tempdir().unwrap(), dir);
    let mut all = Vec::new();
    for (dir, restarts) in [(&straight, 1), (&twice, 1)] {
        let raft = open_with(dir.path(), 100, 10).await;
        let commands: Vec<_> = (0..20).map(|n| set(n, n)).collect();
        // Entry by entry, so that both logs are equal.
        while raft.status().applied < 1500 {
            for command in &commands {
                raft.propose(vec![command.clone()]).await.unwrap();
            }
        }
        all.push(raft.status().marks);
        raft.shutdown().await;
        for _ in 0..restarts {
            let raft = open_with(dir.path(), 100, 10).await;
            raft.read_latest().await.unwrap();
            assert_eq!(raft.status().marks, all[all.len() - 1], "a restart from a snapshot lost the marks");
            raft.shutdown().await;
        }
    }
    assert_eq!(all[0].last().map(|mark| mark.index), Some(shoal_raft::MARK_EVERY));
    assert_eq!(shoal_raft::first_difference(&all[0], &all[1]), None);
}

#[tokio::test]
async fn listeners_are_woken_and_one_that_lags_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let raft = open(dir.path()).await;
    raft.read_latest().await.unwrap();
    let (mut applied, mut notices, mut lagging) = (raft.watch(), raft.notices(), raft.notices());
    let before = applied.borrow_and_update().index;
    raft.propose(vec![set("a", 1)]).await.unwrap();
    timeout(Duration::from_secs(5), applied.changed()).await.unwrap().unwrap();
    assert!(applied.borrow().index > before);
    match timeout(Duration::from_secs(5), notices.recv()).await.unwrap().unwrap() {
        Notice::Changed { events, .. } => assert_eq!(&*events, [Event::RegistryChanged]),
        other => panic!("{other:?}"),
    }
    for n in 0..1200 {
        raft.propose(vec![set("n", n)]).await.unwrap();
    }
    assert!(matches!(lagging.recv().await, Err(tokio::sync::broadcast::error::RecvError::Lagged(_))));
    raft.shutdown().await;
}

#[tokio::test]
async fn without_a_cluster_a_proposal_and_a_read_end_with_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let raft = Raft::open(Options::alone(dir.path(), node())).await.unwrap();
    let soon = || Instant::now() + Duration::from_millis(200);
    let proposed = raft.propose_by(&[set("a", 1)], soon()).await.unwrap_err();
    assert!(matches!(proposed, Error::NoLeader { .. }), "{proposed}");
    let read = raft.read_latest_by(soon()).await.unwrap_err();
    assert!(matches!(read, Error::NoLeader { .. } | Error::Unconfirmed { .. }), "{read}");
    // A proposal that came early is served once there is a leader.
    let early = tokio::spawn({
        let raft = raft.clone();
        async move { raft.propose(vec![set("early", 1)]).await }
    });
    raft.bootstrap_alone().await.unwrap();
    early.await.unwrap().unwrap();
    raft.bootstrap_alone().await.unwrap();
    assert_eq!(raft.read_latest().await.unwrap().settings.len(), 1);
    raft.shutdown().await;
    assert!(matches!(raft.propose(vec![set("late", 1)]).await, Err(Error::Stopped { .. })));
    assert!(matches!(raft.read_latest().await, Err(Error::Stopped { .. })));
}
