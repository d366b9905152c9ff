//! The leader's care for the members of consensus: those that vote, and those that are about to.
//!
//! Who belongs to the cluster is in the state; this brings Raft's own configuration there, one step after the other. What to do
//! next is decided in a pure function ([`shoal_members::voters`]); the loop only does it. All other members follow those that vote, and
//! are told so ([`invites`]); before all know of that, they are learners.

use std::time::{Duration, Instant};

use shoal_members::voters::{Step, Wanted, Watch, alive, next};
use shoal_raft::Raft;
use shoal_state::Command;
use tokio_util::sync::CancellationToken;

use crate::api::Api;

mod invites;

use invites::Invites;

/// How often is looked, should nothing change.
const EVERY: Duration = Duration::from_secs(1);
/// The pause after each look: entries come by the hundred.
const PAUSE: Duration = Duration::from_millis(200);
/// The pause after a change that failed.
const FAILED_PAUSE: Duration = Duration::from_secs(2);

/// Looks until `stop`.
pub(crate) async fn run(api: Api, stop: CancellationToken) {
    let gone_after = Duration::from_secs(api.config.cluster.replace_voter_seconds);
    let mut changes = api.cluster.raft().watch();
    let (mut watch, mut invites) = (Watch::default(), Invites::default());
    loop {
        let wait = async {
            tokio::time::sleep(PAUSE).await;
            tokio::select! {
                () = tokio::time::sleep(EVERY) => true,
                changed = changes.changed() => changed.is_ok(),
            }
        };
        tokio::select! {
            goes_on = wait => if !goes_on { return },
            () = stop.cancelled() => return,
        }
        let raft = api.cluster.raft();
        if !raft.leads() {
            // Whoever leads next gives everybody the whole time anew.
            watch.clear();
            invites.clear();
            continue;
        }
        let status = raft.status();
        if !raft.votes(raft.node()) {
            // It has lost its vote, and leads no more in a moment.
            continue;
        }
        let state = api.local();
        let reach = watch.look(&status, alive(&state, |node| api.reports.silent(node)), gone_after, Instant::now());
        invites.look(raft, &status, &state);
        let Some(step) = next(&Wanted::of(&state), &status, &reach) else { continue };
        tokio::select! {
            done = take(&api, raft, &step) => match done {
                Ok(()) => tracing::info!(?step, "the members of consensus have changed"),
                Err(error) => {
                    tracing::warn!(?step, %error, "cannot change the members of consensus; it is tried again");
                    tokio::time::sleep(FAILED_PAUSE).await;
                }
            },
            () = stop.cancelled() => return,
        }
    }
}

async fn take(api: &Api, raft: &Raft, step: &Step) -> Result<(), crate::api::Error> {
    let failed = |error: shoal_raft::Error| crate::api::Error::Unavailable(error.to_string());
    match step {
        Step::Address(peer) => raft.set_address(peer.clone()).await.map_err(failed),
        Step::Learn(peer) => raft.add_learner(peer.clone()).await.map_err(failed),
        Step::Vote(voters) => raft.set_voters(voters).await.map_err(failed),
        Step::Forget(node) => raft.remove_learner(*node).await.map_err(failed),
        Step::Version(version) => api.propose(Command::SetVersion { version: *version }).await.map(drop),
    }
}
