//! Nodes as machines: what they have, and whether they take tasks. Who belongs to the cluster is in `members`.

use super::{Applied, State};
use crate::model::Node;
use crate::{Event, NodeId, Refused};

impl State {
    pub(super) fn put_node(&mut self, id: NodeId, node: &Node) -> Applied {
        self.not_removed(id)?;
        let old = self.nodes.get(&id);
        let draining = old.is_some_and(|old| old.draining);
        // What operators have said of it outlives its restart.
        let labels = old.map_or_else(|| node.labels.clone(), |old| old.labels.clone());
        self.nodes.insert(id, Node { draining: draining || node.draining, labels, ..node.clone() });
        Ok(vec![Event::NodesChanged, Event::TasksChanged(id)])
    }

    pub(super) fn drain_node(&mut self, id: NodeId, draining: bool) -> Applied {
        self.nodes.get_mut(&id).ok_or(Refused::NoNode { id })?.draining = draining;
        Ok(vec![Event::NodesChanged])
    }

    pub(super) fn put_gpus(&mut self, id: NodeId, kinds: &[String]) -> Applied {
        let gpus = self.nodes.get(&id).ok_or(Refused::NoNode { id })?.capacity.gpus;
        if usize::try_from(gpus) != Ok(kinds.len()) {
            return Err(Refused::NotItsGpus { id, gpus, kinds: kinds.len() });
        }
        match kinds.is_empty() {
            true => drop(self.gpus.remove(&id)),
            false => drop(self.gpus.insert(id, kinds.to_vec())),
        }
        Ok(vec![Event::NodesChanged])
    }
}
