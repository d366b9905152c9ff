//! `raft`: what a cluster of one acknowledged, over snapshots, purges and a restart; and the votes of one voter of three.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use shoal_raft::memory::Net;
use shoal_raft::{Options, Peer, Raft, Tuning};
use shoal_state::{Command, NodeId};

use crate::power_cut::{Random, Sync, Writer, say};

pub(super) const WRITER: Writer = Writer {
    name: "raft",
    work,
    check,
    syncs: &[
        Sync { what: "entries of the log", call: "fdatasync", path_end: ".segment" },
        Sync { what: "the name of a new segment", call: "fsync", path_end: "log" },
        Sync { what: "how far the log is purged", call: "fdatasync", path_end: "meta/db" },
        Sync { what: "the bytes of a snapshot", call: "fsync", path_end: ".part" },
        Sync { what: "the name of a snapshot", call: "fsync", path_end: "snapshots" },
    ],
};

pub(super) const VOTE_WRITER: Writer = Writer {
    name: "raft-vote",
    work: work_votes,
    check: check_votes,
    syncs: &[Sync { what: "the vote", call: "fdatasync", path_end: "meta/db" }],
};

const CALLERS: u64 = 3;
const CALLS: u64 = 40;
const KEYS: u64 = 12;

/// How often the leader of three is cut off.
const ELECTIONS: u64 = 12;

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn id(number: u128) -> NodeId {
    NodeId::from_random(number)
}

fn run<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(work)
}

/// Small, so that there are many snapshots, purges and segments.
fn tuning() -> Tuning {
    Tuning { snapshot_every: 15, entries_kept: 0, segment_bytes: 16 << 10, ..Tuning::default() }
}

async fn open(dir: &Path) -> Result<Raft> {
    let raft = Raft::open(Options { tuning: tuning(), ..Options::alone(dir, id(1)) }).await?;
    raft.bootstrap_alone().await?;
    Ok(raft)
}

fn work(dir: &Path, seed: u64) -> Result<()> {
    run(async {
        for life in 0..2 {
            let raft = open(dir).await?;
            let callers: Vec<_> = (0..CALLERS)
                .map(|caller| {
                    tokio::spawn(propose(raft.clone(), caller, life * CALLS, Random::new((seed << 8) | (life * CALLERS + caller))))
                })
                .collect();
            for caller in callers {
                caller.await??;
            }
            raft.shutdown().await;
        }
        Ok(())
    })
}

/// Sets keys of its own to growing numbers.
async fn propose(raft: Raft, caller: u64, first: u64, mut random: Random) -> Result<()> {
    for number in first..first + CALLS {
        let keys: Vec<_> = (0..1 + random.below(4)).map(|_| format!("{caller}-{}", random.below(KEYS))).collect();
        let filler = "x".repeat(random.below(800) as usize);
        let set = |key: &String| Command::SetSetting { key: key.clone(), value: format!("{number} {filler}") };
        for answer in raft.propose(keys.iter().map(set).collect()).await? {
            answer?;
        }
        say(&format!("set {number} {}", keys.join(" ")));
    }
    Ok(())
}

fn check(dir: &Path, said: &[String]) -> Result<()> {
    let mut claims = BTreeMap::new();
    for line in said {
        let mut words = line.split(' ').skip(1);
        let number: u64 = words.next().context("no number")?.parse()?;
        claims.extend(words.map(|key| (key.to_owned(), number)));
    }
    run(async {
        let raft = open(dir).await?;
        let state = raft.read_latest().await?;
        for (key, number) in claims {
            let found = state.settings.get(&key).with_context(|| format!("{key} was acknowledged"))?;
            let found: u64 = found.split(' ').next().unwrap_or_default().parse()?;
            ensure!(found >= number, "{key} is {found}, and {number} was acknowledged");
        }
        // A log that survived has to go on.
        for answer in raft.propose(vec![Command::SetSetting { key: "after".into(), value: "the cut".into() }]).await? {
            answer?;
        }
        raft.shutdown().await;
        Ok(())
    })
}

/// One voter in the folder that is watched; the two others elsewhere make it vote, by losing their leader again and again.
fn work_votes(dir: &Path, _: u64) -> Result<()> {
    let elsewhere = tempfile::tempdir()?;
    run(async {
        let net = Net::default();
        let dirs = [dir.to_owned(), elsewhere.path().join("2"), elsewhere.path().join("3")];
        let peer = |number| Peer { node: id(number), address: String::new() };
        for (number, dir) in (1..).zip(dirs) {
            let tuning = Tuning {
                heartbeat: Duration::from_millis(30),
                election_min: Duration::from_millis(150),
                election_max: Duration::from_millis(300),
                ..Tuning::default()
            };
            let transport = net.transport(id(number));
            let raft = Raft::open(Options { transport, tuning, ..Options::alone(dir, id(number)) }).await?;
            net.attach(&raft);
        }
        let watched = net.node(id(1)).context("it was attached")?;
        watched.bootstrap_alone().await?;
        watched.add_learner(peer(2)).await?;
        watched.add_learner(peer(3)).await?;
        watched.set_voters(&[id(1), id(2), id(3)]).await?;
        for _ in 0..ELECTIONS {
            elect(&net, &watched).await?;
        }
        for raft in net.nodes() {
            net.detach(raft.node());
            raft.shutdown().await;
        }
        Ok(())
    })
}

/// Cuts the leader off until another leads, and says in which term the watched node is meanwhile.
async fn elect(net: &Net, watched: &Raft) -> Result<()> {
    let status = watched.status();
    let began = status.term;
    let deadline = Instant::now() + PATIENCE;
    let mut said = began;
    // Nobody else may be cut off: one that leads no more may not know it yet.
    net.cut_off(status.leader.context("a round ends with a leader")?);
    loop {
        ensure!(Instant::now() < deadline, "no other leader after {PATIENCE:?}");
        let status = watched.status();
        if status.term > said {
            // It tells of a term once the vote of that term is on disk.
            said = status.term;
            say(&format!("term {said}"));
        }
        let led = net.nodes().iter().any(|raft| raft.leads() && raft.status().term > began);
        if led {
            net.heal();
            if said > began && status.leader.is_some() {
                return Ok(());
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn check_votes(dir: &Path, said: &[String]) -> Result<()> {
    let claimed = said.last().map_or("0", |line| line.trim_start_matches("term ")).parse::<u64>()?;
    run(async {
        let tuning = Tuning { election_min: Duration::from_secs(3600), election_max: Duration::from_secs(7200), ..Tuning::default() };
        let raft = Raft::open(Options { tuning, ..Options::alone(dir, id(1)) }).await?;
        let term = raft.status().term;
        raft.shutdown().await;
        ensure!(term >= claimed, "it is in term {term}, and may vote again in term {claimed}");
        Ok(())
    })
}
