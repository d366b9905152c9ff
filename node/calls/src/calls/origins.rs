//! On which node the data of a call are: that of the container which puts them.
//!
//! The node tells the call's home, which tells readers; they then read from node to node. Soft: a new home hears of it with what
//! the tasks of a node run.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shoal_state::{CallId, NodeId, ShardId};
use tokio::sync::Notify;

use super::streams::StreamKey;

/// Where one stream is, and which home was told so last.
#[derive(Debug, Clone, Copy)]
struct Origin {
    node: NodeId,
    told: Option<NodeId>,
    touched: Instant,
}

/// Where streams are, as far as this node knows.
#[derive(Debug, Default)]
pub(super) struct Origins {
    calls: Mutex<HashMap<CallId, BTreeMap<StreamKey, Origin>>>,
    changed: Notify,
}

impl Origins {
    /// Notes where a stream is. `told` is the home that knows it, where that is another node.
    pub(super) fn note(&self, key: &StreamKey, node: NodeId, told: Option<NodeId>) {
        let known = self.calls.lock().entry(key.call).or_default().insert(key.clone(), Origin { node, told, touched: Instant::now() });
        if known.is_none_or(|known| known.node != node) {
            self.changed.notify_waiters();
        }
    }

    /// Says whether this home was told that a stream is at this node.
    pub(super) fn is_told(&self, key: &StreamKey, node: NodeId, home: NodeId) -> bool {
        self.find(key).is_some_and(|origin| origin.node == node && origin.told == Some(home))
    }

    fn find(&self, key: &StreamKey) -> Option<Origin> {
        let mut calls = self.calls.lock();
        let origin = calls.get_mut(&key.call)?.get_mut(key)?;
        origin.touched = Instant::now();
        Some(*origin)
    }

    /// Returns where a stream is; waits until that is known, up to `wait`.
    pub(super) async fn of(&self, key: &StreamKey, wait: Duration) -> Option<NodeId> {
        let found = async {
            loop {
                let changed = self.changed.notified();
                if let Some(origin) = self.find(key) {
                    return origin.node;
                }
                changed.await;
            }
        };
        tokio::time::timeout(wait, found).await.ok()
    }

    /// Returns the nodes where streams of a call are.
    pub(super) fn of_call(&self, call: CallId) -> Vec<NodeId> {
        let mut nodes: Vec<NodeId> = self.calls.lock().get(&call).into_iter().flatten().map(|(_, origin)| origin.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    /// Returns the streams at a node of calls in these shards.
    pub(super) fn at(&self, node: NodeId, shards: &[ShardId]) -> Vec<StreamKey> {
        let calls = self.calls.lock();
        let wanted = calls.iter().filter(|(call, _)| call.shard().is_some_and(|shard| shards.contains(&shard)));
        wanted.flat_map(|(_, streams)| streams).filter(|(_, origin)| origin.node == node).map(|(key, _)| key.clone()).collect()
    }

    /// Forgets where a stream was found: it may be elsewhere now.
    pub(super) fn doubt(&self, key: &StreamKey) {
        if let Some(streams) = self.calls.lock().get_mut(&key.call) {
            streams.remove(key);
        }
    }

    /// Forgets what nobody has asked for or told for `idle`.
    pub(super) fn remove_idle(&self, idle: Duration) {
        self.calls.lock().retain(|_, streams| {
            streams.retain(|_, origin| origin.touched.elapsed() < idle);
            !streams.is_empty()
        });
    }

    pub(super) fn remove_call(&self, call: CallId) {
        self.calls.lock().remove(&call);
    }
}

#[cfg(test)]
mod tests {
    use super::super::streams::Direction;
    use super::*;

    fn node(number: u128) -> NodeId {
        NodeId::from_random(number)
    }

    #[tokio::test]
    async fn a_stream_is_found_where_it_was_put_last() {
        let shard = ShardId::new(3).unwrap();
        let call = CallId::in_shard(shard, 1);
        let key = StreamKey { call, input: None, attempt: String::new(), direction: Direction::Out };
        let origins = Origins::default();
        assert_eq!(origins.of(&key, Duration::ZERO).await, None);
        let (found, ()) = tokio::join!(origins.of(&key, Duration::from_secs(10)), async { origins.note(&key, node(1), None) });
        assert_eq!(found, Some(node(1)), "a reader that waits is told");
        assert_eq!(origins.at(node(1), &[shard]), std::slice::from_ref(&key));
        assert!(!origins.is_told(&key, node(1), node(9)));
        origins.note(&key, node(1), Some(node(9)));
        assert!(origins.is_told(&key, node(1), node(9)) && !origins.is_told(&key, node(1), node(8)));
        origins.note(&key, node(2), None);
        assert_eq!((origins.of(&key, Duration::ZERO).await, origins.of_call(call)), (Some(node(2)), vec![node(2)]));
        origins.remove_idle(Duration::from_secs(60));
        assert_eq!(origins.of_call(call), [node(2)]);
        origins.remove_call(call);
        assert_eq!((origins.of_call(call), origins.at(node(2), &[shard])), (vec![], vec![]));
    }
}
