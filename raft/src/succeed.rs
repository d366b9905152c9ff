//! Standing for election before the time is up, where the leader is known to be gone.

use shoal_state::NodeId;

use crate::handle::Raft;
use crate::route::{Route, route_by};

impl Raft {
    /// Stands for election at once if `gone` was the leader and nobody has taken its place: the caller knows that its process has ended,
    /// and the time without a word of it, which tells the end of a leader from a pause, need not pass.
    ///
    /// Others who vote reject this as long as they take `gone` for the leader, unless they stand too: whoever knows should say so. It
    /// may be asked for again until there is a leader.
    pub async fn succeed(&self, gone: NodeId) {
        let Some(member) = self.member() else { return };
        let is_vacant = match route_by(&member.core.server_metrics().borrow()) {
            Route::Here => false,
            Route::There(leader) => leader.node == gone,
            Route::Nowhere => true,
        };
        if is_vacant && let Err(error) = member.core.trigger().elect().await {
            tracing::debug!(%error, "this node does not stand for election");
        }
    }
}
