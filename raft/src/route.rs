//! Where a proposal or a read has to go.

use openraft::RaftMetrics;
use shoal_state::NodeId;

use crate::types::{Core, Peer};

/// The way to the leader, as far as this node knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    /// This node leads.
    Here,
    /// Another node leads.
    There(Peer),
    /// No leader is known.
    Nowhere,
}

/// Returns the way that this node knows now.
pub(crate) fn route(core: &Core) -> Route {
    route_by(&core.metrics().borrow())
}

/// Waits until another node than `leader` is known to lead, or Raft has ended here.
pub(crate) async fn replaced(core: &Core, leader: NodeId) {
    let is_other = |metrics: &RaftMetrics<u64, Peer>| match route_by(metrics) {
        Route::Here => true,
        Route::There(now) => now.node != leader,
        Route::Nowhere => false,
    };
    // An error says that it has ended, which is what was waited for.
    let _ = core.metrics().wait_for(is_other).await;
}

/// Returns the way that these metrics know. For use where they are borrowed: a second borrow may wait for ever.
pub(crate) fn route_by(metrics: &RaftMetrics<u64, Peer>) -> Route {
    match metrics.current_leader {
        Some(leader) if leader == metrics.id && metrics.state.is_leader() => Route::Here,
        // It led until it lost its vote, and has not heard of another leader yet.
        Some(leader) if leader == metrics.id => Route::Nowhere,
        Some(leader) => metrics.membership_config.membership().get_node(&leader).cloned().map_or(Route::Nowhere, Route::There),
        None => Route::Nowhere,
    }
}
