//! Nodes, as `shoal node list` shows them.

use axum::Json;
use axum::extract::State as Shared;
use serde::{Deserialize, Serialize};
use shoal_state::NodeId;
use shoal_state::model::Node;

use super::Answer;
use crate::api::Api;

/// A line of `shoal node list`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct NodeLine {
    /// The node's id.
    pub(crate) node_id: String,
    /// What people call it.
    pub(crate) name: String,
    /// Where it is reached.
    pub(crate) address: String,
    /// `accepts tasks`, or `drains`.
    pub(crate) state: String,
    /// Its tasks.
    pub(crate) tasks: usize,
    /// CPU that containers may use, in thousandths of a core.
    pub(crate) cpu_milli: u32,
    /// CPU that no task holds, in thousandths of a core.
    pub(crate) cpu_milli_free: u32,
    /// Memory that containers may use, in bytes.
    pub(crate) memory_bytes: u64,
    /// Memory that no task holds, in bytes.
    pub(crate) memory_bytes_free: u64,
    /// Its GPUs.
    pub(crate) gpus: u32,
    /// When its process started, in milliseconds since 1970.
    pub(crate) started_ms: u64,
}

pub(super) async fn nodes(Shared(api): Shared<Api>) -> Answer<Vec<NodeLine>> {
    let state = api.read_latest().await?;
    let line = |(id, node): (&NodeId, &Node)| {
        let (cpu_milli_free, memory_bytes_free) = state.free(*id);
        NodeLine {
            node_id: id.to_string(),
            name: node.name.clone(),
            address: node.address.clone(),
            state: if node.draining { "drains" } else { "accepts tasks" }.to_owned(),
            tasks: state.tasks.values().filter(|task| task.node == *id).count(),
            cpu_milli: node.capacity.cpu_milli,
            cpu_milli_free,
            memory_bytes: node.capacity.memory_bytes,
            memory_bytes_free,
            gpus: node.capacity.gpus,
            started_ms: node.started.0,
        }
    };
    Ok(Json(state.nodes.iter().map(line).collect()))
}
