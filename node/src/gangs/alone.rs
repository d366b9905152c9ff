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

/// Since when no leader is heard.
#[derive(Debug)]
struct Hearing {
    last: Instant,
}

impl Hearing {
    fn new(now: Instant) -> Self {
        Self { last: now }
    }

    /// Notes whether a leader is heard now; returns for how long none was, once that is too long.
    fn look(&mut self, hears: bool, now: Instant) -> Option<Duration> {
        if hears {
            self.last = now;
        }
        let alone = now.saturating_duration_since(self.last);
        (alone >= STOPS_AFTER).then_some(alone)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_gives_up_before_another_may_replace_what_it_runs() {
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let mut hearing = Hearing::new(begin);
        assert_eq!(hearing.look(false, at(14)), None);
        assert_eq!(hearing.look(true, at(14)), None);
        assert_eq!(hearing.look(false, at(28)), None, "it counts from when a leader was heard last");
        assert_eq!(hearing.look(false, at(29)), Some(Duration::from_secs(15)));
        assert_eq!(hearing.look(false, at(40)), Some(Duration::from_secs(26)), "again and again: what was started meanwhile is killed too");
        assert_eq!(hearing.look(true, at(41)), None);
    }
}
