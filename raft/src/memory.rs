//! A network in memory that can be cut and slowed down, for tests of several nodes in one process.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use shoal_state::NodeId;

use crate::handle::Raft;
use crate::network::{Feed, Transport, Unsent};
use crate::types::Peer;

/// Joins the nodes of one process. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Net {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    nodes: BTreeMap<NodeId, Raft>,
    cut_off: BTreeSet<NodeId>,
    deaf: BTreeSet<NodeId>,
    vanished: BTreeSet<NodeId>,
    /// How long everything takes, one way.
    delay: Duration,
}

impl Net {
    /// Returns the transport of one node.
    pub fn transport(&self, node: NodeId) -> Arc<dyn Transport> {
        Arc::new(Wire { from: node, net: self.clone() })
    }

    /// Lets others reach a node from now on. The network holds it until [`Net::detach`].
    pub fn attach(&self, raft: &Raft) {
        self.inner.lock().nodes.insert(raft.node(), raft.clone());
    }

    /// Takes a node off the network.
    pub fn detach(&self, node: NodeId) -> Option<Raft> {
        self.inner.lock().nodes.remove(&node)
    }

    /// Returns an attached node.
    pub fn node(&self, node: NodeId) -> Option<Raft> {
        self.inner.lock().nodes.get(&node).cloned()
    }

    /// Returns all attached nodes, in the order of their ids.
    pub fn nodes(&self) -> Vec<Raft> {
        self.inner.lock().nodes.values().cloned().collect()
    }

    /// Cuts a node off from all others, in both directions; answers on their way are lost.
    pub fn cut_off(&self, node: NodeId) {
        self.inner.lock().cut_off.insert(node);
    }

    /// Lets nothing come to a node any more, neither questions nor answers, while what it says arrives.
    pub fn deafen(&self, node: NodeId) {
        self.inner.lock().deaf.insert(node);
    }

    /// Lets a node be gone as one that is switched off: whoever asks it something waits for an answer, and none comes.
    pub fn vanish(&self, node: NodeId) {
        self.inner.lock().vanished.insert(node);
    }

    /// Lets everything that is said take so long from now on, one way.
    pub fn slow(&self, delay: Duration) {
        self.inner.lock().delay = delay;
    }

    /// Joins all nodes again, by wires that take no time.
    pub fn heal(&self) {
        let mut inner = self.inner.lock();
        inner.delay = Duration::ZERO;
        inner.cut_off.clear();
        inner.deaf.clear();
        inner.vanished.clear();
    }

    /// Lets time pass as on a slow wire.
    async fn travel(&self) {
        let delay = self.inner.lock().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
    }

    fn is_deaf(&self, node: NodeId) -> bool {
        self.inner.lock().deaf.contains(&node)
    }

    fn is_vanished(&self, one: NodeId, other: NodeId) -> bool {
        let inner = self.inner.lock();
        inner.vanished.contains(&one) || inner.vanished.contains(&other)
    }

    fn is_cut(&self, one: NodeId, other: NodeId) -> bool {
        let inner = self.inner.lock();
        inner.cut_off.contains(&one) || inner.cut_off.contains(&other)
    }
}

/// One node's end of the network.
#[derive(Debug)]
struct Wire {
    from: NodeId,
    net: Net,
}

impl Transport for Wire {
    fn call<'a>(&'a self, peer: &'a Peer, request: Bytes, _patience: Duration) -> BoxFuture<'a, Result<Bytes, Unsent>> {
        Box::pin(async move {
            self.net.travel().await;
            if self.net.is_vanished(self.from, peer.node) {
                std::future::pending::<()>().await;
            }
            if self.net.is_cut(self.from, peer.node) || self.net.is_deaf(peer.node) {
                return Err(Unsent::Unreachable { why: "the wire is cut".into() });
            }
            let raft = self.net.node(peer.node).ok_or_else(|| Unsent::Unreachable { why: "nobody listens".into() })?;
            // What has arrived is done, whether or not somebody waits for the answer.
            let answering = tokio::spawn(async move { raft.answer(request).await });
            let answer = answering.await.map_err(|why| Unsent::Lost { why: why.to_string() })?;
            let answer = answer.map_err(|why| Unsent::Lost { why: why.to_string() })?;
            self.net.travel().await;
            if self.net.is_cut(self.from, peer.node) || self.net.is_deaf(self.from) {
                return Err(Unsent::Lost { why: "the wire was cut".into() });
            }
            Ok(answer)
        })
    }

    fn follow<'a>(&'a self, peer: &'a Peer, request: Bytes) -> BoxFuture<'a, Result<Feed, Unsent>> {
        Box::pin(async move {
            self.net.travel().await;
            let (from, to, net) = (self.from, peer.node, self.net.clone());
            if net.is_cut(from, to) || net.is_deaf(to) {
                return Err(Unsent::Unreachable { why: "the wire is cut".into() });
            }
            let raft = net.node(to).ok_or_else(|| Unsent::Unreachable { why: "nobody listens".into() })?;
            let feed = raft.feed(&request).map_err(|why| Unsent::Lost { why: why.to_string() })?;
            drop(raft);
            let carried = stream::unfold((feed, net), move |(mut feed, net)| async move {
                let word = feed.next().await?;
                net.travel().await;
                if net.is_cut(from, to) || net.is_deaf(from) {
                    // Nobody says that a wire is cut: nothing comes any more.
                    std::future::pending::<()>().await;
                }
                Some((word, (feed, net)))
            });
            Ok(carried.boxed())
        })
    }
}
