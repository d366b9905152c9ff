//! Where a proposal or a read has to go.

use openraft::RaftMetrics;
use shoal_state::NodeId;
use tokio::sync::watch;

use crate::follow::Fed;
use crate::part::Part;
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
pub(crate) fn route(part: &Part) -> Route {
    match part {
        Part::Member(member) => route_by(&member.core.metrics().borrow()),
        Part::Follower(following) => route_of(&following.follower.fed.borrow()),
        Part::Ended(_) => Route::Nowhere,
    }
}

/// Returns the way that a follower knows.
pub(crate) fn route_of(fed: &Fed) -> Route {
    fed.leader.clone().map_or(Route::Nowhere, Route::There)
}

/// Waits until another node than `leader` is known to lead, or openraft has ended here.
pub(crate) async fn replaced(core: &Core, leader: NodeId) {
    // An error says that it has ended, which is what was waited for.
    let _ = core.metrics().wait_for(|metrics| is_other(&route_by(metrics), leader)).await;
}

/// As [`replaced`], by what a follower hears.
pub(crate) async fn replaced_in(fed: &watch::Receiver<Fed>, leader: NodeId) {
    let _ = fed.clone().wait_for(|fed| is_other(&route_of(fed), leader)).await;
}

fn is_other(route: &Route, leader: NodeId) -> bool {
    match route {
        Route::Here => true,
        Route::There(now) => now.node != leader,
        Route::Nowhere => false,
    }
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
