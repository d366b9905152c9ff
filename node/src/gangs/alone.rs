//! A node that is cut off from the leader stops its containers of gangs: others are started elsewhere after a while, and a gang must
//! not run twice.
//!
//! The others wait longer than this node does ([`STOPS_AFTER`]), each by its own clock, and both begin when they hear nothing any more.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api::Api;

/// How long a node may be without a leader. What ends the tasks of a lost node waits some seconds longer.
const STOPS_AFTER: Duration = Duration::from_secs(15);
/// How often is looked.
const EVERY: Duration = Duration::from_millis(500);
/// A leader that had no answers of a majority for so long may have been replaced.
const MAJORITY_WITHIN: Duration = Duration::from_secs(3);

/// Looks until `stop`.
pub(crate) async fn run(api: Api, stop: CancellationToken) {
    let mut heard = Instant::now();
    loop {
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = stop.cancelled() => return,
        }
        if hears_leader(&api) {
            heard = Instant::now();
        } else if heard.elapsed() >= STOPS_AFTER {
            kill_all(&api, heard.elapsed()).await;
        }
    }
}

fn hears_leader(api: &Api) -> bool {
    let status = api.cluster.raft().status();
    match status.leader {
        Some(leader) if leader == status.node => {
            status.voters.len() < 2 || status.quorum_heard.is_some_and(|heard| heard < MAJORITY_WITHIN)
        }
        Some(leader) => !api.reports.is_lost(leader),
        None => false,
    }
}

async fn kill_all(api: &Api, alone: Duration) {
    let (state, Some(worker)) = (api.local(), api.worker.get()) else { return };
    let here = worker.containers();
    for container in here.iter().filter(|container| state.gang_of.contains_key(&container.task)) {
        worker
            .kill(container.task, format!("killed: its node heard no leader for {} s, and its gang may be replaced", alone.as_secs()))
            .await;
    }
}
