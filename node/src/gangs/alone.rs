//! A node that is cut off from the leader stops its containers of gangs: see [`shoal_calls::gangs::alone`].

use std::time::{Duration, Instant};

use shoal_calls::gangs::alone::{EVERY, Hearing, MAJORITY_WITHIN};
use tokio_util::sync::CancellationToken;

use crate::api::Api;

/// Looks until `stop`.
pub(crate) async fn run(api: Api, stop: CancellationToken) {
    let mut hearing = Hearing::new(Instant::now());
    loop {
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = stop.cancelled() => return,
        }
        if let Some(alone) = hearing.look(hears_leader(&api), Instant::now()) {
            kill_all(&api, alone).await;
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
        worker.kill(container.task, format!("its node heard no leader for {} s, and its gang may be replaced", alone.as_secs())).await;
    }
}
