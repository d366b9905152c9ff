//! Whether a member of consensus is in touch with the rest, for those that follow it.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use serde::{Deserialize, Serialize};

use crate::heard::Heard;
use crate::route::{Route, route_in};
use crate::types::{Core, Metrics, Peer};

/// How often is looked.
const EVERY: Duration = Duration::from_millis(500);

/// A member that has agreed with no leader, or led without a majority, for so long is cut off. Longer than an election takes.
const TOUCH_LOST: Duration = Duration::from_secs(3);

/// What a member knows of the rest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pulse {
    /// Whether it votes.
    pub(crate) votes: bool,
    pub(crate) term: u64,
    pub(crate) leader: Option<Peer>,
    /// Whether it has lately agreed with a leader, or led with a majority behind it.
    pub(crate) in_touch: bool,
}

/// Looks until Raft ends. `me`: this node.
pub(crate) async fn watch(core: Core, heard: Heard, me: Peer, told: watch::Sender<Pulse>) {
    let mut changes = core.server_metrics();
    let mut round = interval(EVERY);
    round.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = round.tick() => {}
            changed = changes.changed() => if changed.is_err() { return },
        }
        let metrics = core.metrics().borrow().clone();
        if metrics.running_state.is_err() {
            return;
        }
        let now = pulse(&metrics, &heard, &me);
        told.send_if_modified(|last| (*last != now).then(|| *last = now).is_some());
    }
}

fn pulse(metrics: &Metrics, heard: &Heard, me: &Peer) -> Pulse {
    let votes = metrics.membership_config.voter_ids().any(|id| id == metrics.id);
    let alone = metrics.membership_config.voter_ids().count() < 2;
    let (leader, in_touch) = match route_in(metrics) {
        Route::Here => {
            let answered = metrics.millis_since_quorum_ack.map(Duration::from_millis);
            (Some(me.clone()), alone || answered.is_some_and(|ago| ago < TOUCH_LOST))
        }
        Route::There(leader) => (Some(leader), heard.leader_ago().is_some_and(|ago| ago < TOUCH_LOST)),
        Route::Nowhere => (None, heard.leader_ago().is_some_and(|ago| ago < TOUCH_LOST)),
    };
    Pulse { votes, term: metrics.current_term, leader, in_touch }
}
