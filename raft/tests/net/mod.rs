//! Nodes in one process, joined by a network in memory that can be cut.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shoal_raft::memory::Net;
use shoal_raft::{Options, Peer, Raft, Tuning};
use shoal_state::{Command, NodeId};
use tempfile::TempDir;
use tokio::time::Instant;

pub(crate) struct Cluster {
    pub(crate) net: Net,
    pub(crate) dirs: BTreeMap<NodeId, TempDir>,
    pub(crate) tuning: Tuning,
}

pub(crate) fn id(number: u128) -> NodeId {
    NodeId::from_random(number)
}

pub(crate) fn set(key: impl ToString, value: impl ToString) -> Command {
    Command::SetSetting { key: key.to_string(), value: value.to_string() }
}

pub(crate) fn peer(node: NodeId) -> Peer {
    Peer { node, address: format!("{node}:7470") }
}

pub(crate) fn tuning() -> Tuning {
    Tuning {
        heartbeat: Duration::from_millis(100),
        election_min: Duration::from_millis(500),
        election_max: Duration::from_millis(1000),
        ..Tuning::default()
    }
}

/// A leader that no majority answers leads on for a while.
pub(crate) fn patient() -> Tuning {
    Tuning { quorum_lost: Duration::from_secs(60), ..tuning() }
}

impl Cluster {
    /// Starts `voters` nodes that all vote.
    pub(crate) async fn new(voters: u128, tuning: Tuning) -> Self {
        let mut cluster = Self { net: Net::default(), dirs: BTreeMap::new(), tuning };
        let founder = cluster.start(id(1)).await;
        founder.bootstrap_alone().await.unwrap();
        for number in 2..=voters {
            cluster.start(id(number)).await;
            founder.add_learner(peer(id(number))).await.unwrap();
        }
        founder.set_voters(&(1..=voters).map(id).collect::<Vec<_>>()).await.unwrap();
        cluster
    }

    pub(crate) async fn start(&mut self, node: NodeId) -> Raft {
        let dir = self.dirs.entry(node).or_insert_with(|| tempfile::tempdir().unwrap());
        let options = Options {
            dir: dir.path().to_owned(),
            node,
            address: peer(node).address,
            transport: self.net.transport(node),
            tuning: self.tuning,
        };
        let raft = Raft::open(options).await.unwrap();
        self.net.attach(&raft);
        raft
    }

    pub(crate) async fn stop(&self, node: NodeId) {
        self.net.detach(node).unwrap().shutdown().await;
    }

    pub(crate) fn node(&self, node: NodeId) -> Raft {
        self.net.node(node).unwrap()
    }

    pub(crate) fn others(&self, node: NodeId) -> Vec<Raft> {
        self.net.nodes().into_iter().filter(|raft| raft.node() != node).collect()
    }

    /// Waits until these nodes agree on a leader among themselves.
    pub(crate) async fn leader_among(&self, nodes: &[Raft]) -> Raft {
        let ids: BTreeSet<_> = nodes.iter().map(Raft::node).collect();
        let mut found = None;
        until("a leader that all know", || {
            let leaders: BTreeSet<_> = nodes.iter().map(|raft| raft.leader().map(|peer| peer.node)).collect();
            found = leaders.first().copied().flatten().filter(|leader| leaders.len() == 1 && ids.contains(leader));
            found.is_some()
        })
        .await;
        self.node(found.unwrap())
    }

    pub(crate) async fn end(self) {
        for raft in self.net.nodes() {
            self.stop(raft.node()).await;
        }
    }
}

pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}
