//! On which node the data of a call are: that of the container which puts them.
//!
//! The node tells the call's home, which tells readers; they then read from node to node. Soft: a new home hears of it with what
//! the tasks of a node run. Several nodes may have the data of one try: where one was taken for lost by mistake, and where a container
//! ended and its input began anew elsewhere. Readers ask all of them, and take what comes first: any may have what comes next.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shoal_state::{CallId, NodeId, ShardId};
use tokio::sync::Notify;

use super::ground::Ground;
use super::streams::StreamKey;

/// Where one stream is.
#[derive(Debug)]
struct Known {
    /// On these nodes, as they or the home have said; who has said so last comes first. One that was taken for lost by mistake goes on
    /// beside the one that its input was given to.
    nodes: Vec<NodeId>,
    /// It is on this node, which has told this home so; none if this node was home itself.
    own: Option<Option<NodeId>>,
    touched: Instant,
}

/// Where streams are, as far as this node knows.
#[derive(Debug)]
pub(super) struct Origins {
    ground: Arc<dyn Ground>,
    calls: Mutex<HashMap<CallId, BTreeMap<StreamKey, Known>>>,
    changed: Notify,
}

impl Origins {
    /// Begins knowing nothing.
    pub(super) fn new(ground: Arc<dyn Ground>) -> Self {
        Self { ground, calls: Mutex::default(), changed: Notify::new() }
    }

    fn change(&self, key: &StreamKey, change: impl FnOnce(&mut Known) -> bool) {
        let now = self.ground.now();
        let mut calls = self.calls.lock();
        let streams = calls.entry(key.call).or_default();
        let known = streams.entry(key.clone()).or_insert_with(|| Known { nodes: vec![], own: None, touched: now });
        known.touched = now;
        let is_new = change(known);
        drop(calls);
        if is_new {
            self.changed.notify_waiters();
        }
    }

    /// Notes that a stream is on a node.
    pub(super) fn note(&self, key: &StreamKey, node: NodeId) {
        self.change(key, |known| {
            let is_new = !known.nodes.contains(&node);
            known.nodes.retain(|other| *other != node);
            known.nodes.insert(0, node);
            is_new
        });
    }

    /// Notes that a stream is on this node. `told` is the home that knows it, where that is another node.
    pub(super) fn note_own(&self, key: &StreamKey, told: Option<NodeId>) {
        self.change(key, |known| known.own.replace(told).is_none());
    }

    /// Says whether this home was told that a stream is on this node.
    pub(super) fn is_told(&self, key: &StreamKey, home: NodeId) -> bool {
        self.find(key, |known| known.own == Some(Some(home))) == Some(true)
    }

    fn find<T>(&self, key: &StreamKey, what: impl FnOnce(&Known) -> T) -> Option<T> {
        let mut calls = self.calls.lock();
        let known = calls.get_mut(&key.call)?.get_mut(key)?;
        known.touched = self.ground.now();
        Some(what(known))
    }

    /// Returns on which nodes a stream was found, or is said to be.
    pub(super) fn found(&self, key: &StreamKey) -> Vec<NodeId> {
        self.find(key, |known| known.nodes.clone()).unwrap_or_default()
    }

    /// Returns where a stream is, this node `me` as well; waits until that is known, up to `wait`. None is known then if it is empty.
    pub(super) async fn of(&self, key: &StreamKey, me: NodeId, wait: Duration) -> Vec<NodeId> {
        let found = async {
            loop {
                let changed = self.changed.notified();
                let nodes = self.find(key, |known| known.all(me)).unwrap_or_default();
                if !nodes.is_empty() {
                    return nodes;
                }
                changed.await;
            }
        };
        self.ground.within(wait, found).await.unwrap_or_default()
    }

    /// Returns the nodes where streams of a call are, this node `me` as well.
    pub(super) fn of_call(&self, call: CallId, me: NodeId) -> Vec<NodeId> {
        let calls = self.calls.lock();
        let mut nodes: Vec<NodeId> = calls.get(&call).into_iter().flatten().flat_map(|(_, known)| known.all(me)).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    /// Returns the streams on this node of calls in these shards.
    pub(super) fn own(&self, shards: &[ShardId]) -> Vec<StreamKey> {
        let calls = self.calls.lock();
        let wanted = calls.iter().filter(|(call, _)| call.shard().is_some_and(|shard| shards.contains(&shard)));
        let mut own: Vec<StreamKey> =
            wanted.flat_map(|(_, streams)| streams).filter(|(_, known)| known.own.is_some()).map(|(key, _)| key.clone()).collect();
        own.sort_unstable();
        own
    }

    /// Forgets where a stream was found: it may be elsewhere now.
    pub(super) fn doubt(&self, key: &StreamKey) {
        if let Some(known) = self.calls.lock().get_mut(&key.call).and_then(|streams| streams.get_mut(key)) {
            known.nodes.clear();
        }
    }

    /// Forgets what nobody has asked for or told for `idle`.
    pub(super) fn remove_idle(&self, idle: Duration) {
        let now = self.ground.now();
        self.calls.lock().retain(|_, streams| {
            streams.retain(|_, known| now.saturating_duration_since(known.touched) < idle);
            !streams.is_empty()
        });
    }

    pub(super) fn remove_call(&self, call: CallId) {
        self.calls.lock().remove(&call);
    }
}

impl Known {
    fn all(&self, me: NodeId) -> Vec<NodeId> {
        let own = self.own.map(|_| me).filter(|me| !self.nodes.contains(me));
        self.nodes.iter().copied().chain(own).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::ground::Machine;
    use super::super::streams::Direction;
    use super::*;

    fn node(number: u128) -> NodeId {
        NodeId::from_random(number)
    }

    #[tokio::test]
    async fn a_stream_is_found_wherever_it_was_put_last_first() {
        let shard = ShardId::new(3).unwrap();
        let call = CallId::in_shard(shard, 1);
        let key = StreamKey { call, input: None, attempt: String::new(), direction: Direction::Out };
        let origins = Origins::new(Arc::new(Machine));
        let me = node(7);
        let now = async |origins: &Origins| origins.of(&key, me, Duration::ZERO).await;
        assert!(now(&origins).await.is_empty());
        let (found, ()) = tokio::join!(origins.of(&key, me, Duration::from_secs(10)), async { origins.note(&key, node(1)) });
        assert_eq!(found, [node(1)], "a reader that waits is told");
        assert_eq!(origins.own(&[shard]), []);
        assert!(!origins.is_told(&key, node(9)));
        origins.note_own(&key, Some(node(9)));
        assert!(origins.is_told(&key, node(9)) && !origins.is_told(&key, node(8)));
        assert_eq!((now(&origins).await, origins.found(&key)), (vec![node(1), me], vec![node(1)]));
        origins.note(&key, node(2));
        assert_eq!(now(&origins).await, [node(2), node(1), me], "one that goes on beside is not forgotten");
        origins.doubt(&key);
        assert_eq!((now(&origins).await, origins.found(&key), origins.own(&[shard])), (vec![me], vec![], vec![key.clone()]));
        origins.remove_idle(Duration::from_secs(60));
        assert_eq!(origins.of_call(call, me), [me]);
        origins.remove_call(call);
        assert_eq!((origins.of_call(call, me), origins.own(&[shard])), (vec![], vec![]));
    }
}
