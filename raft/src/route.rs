//! Where a proposal or a read has to go.

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

pub(crate) fn route(core: &Core) -> Route {
    let metrics = core.metrics();
    let metrics = metrics.borrow();
    match metrics.current_leader {
        Some(leader) if leader == metrics.id => Route::Here,
        Some(leader) => metrics.membership_config.membership().get_node(&leader).cloned().map_or(Route::Nowhere, Route::There),
        None => Route::Nowhere,
    }
}
