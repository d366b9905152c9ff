//! Where a proposal or a read has to go.

use openraft::metrics::RaftServerMetrics;
use openraft::{RaftMetrics, ServerState, StoredMembership};
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
        Part::Member(member) => route_by(&member.core.server_metrics().borrow()),
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
    // An error says that it has ended, which is what was waited for. Not by `metrics()`, which change with each entry: everybody who
    // waits for an answer of the leader would be woken several times an entry.
    let _ = core.server_metrics().wait_for(|metrics| is_other(&route_by(metrics), leader)).await;
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
pub(crate) fn route_by(metrics: &RaftServerMetrics<u64, Peer>) -> Route {
    let RaftServerMetrics { id, state, current_leader, membership_config, .. } = metrics;
    way(*id, *state, *current_leader, membership_config)
}

/// As [`route_by`], by the metrics of all.
pub(crate) fn route_in(metrics: &RaftMetrics<u64, Peer>) -> Route {
    let RaftMetrics { id, state, current_leader, membership_config, .. } = metrics;
    way(*id, *state, *current_leader, membership_config)
}

fn way(id: u64, state: ServerState, leader: Option<u64>, members: &StoredMembership<u64, Peer>) -> Route {
    match leader {
        Some(leader) if leader == id && state.is_leader() => Route::Here,
        // It led until it lost its vote, and has not heard of another leader yet.
        Some(leader) if leader == id => Route::Nowhere,
        Some(leader) => members.membership().get_node(&leader).cloned().map_or(Route::Nowhere, Route::There),
        None => Route::Nowhere,
    }
}
