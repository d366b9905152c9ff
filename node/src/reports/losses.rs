//! Who counts as lost: by whom a node is silent to, and by what its machine says of its process.

use std::collections::BTreeSet;
use std::time::Duration;

#[cfg(doc)]
use shoal_calls::shards::hearing::Hearing;
use shoal_state::{NodeId, State};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{EVERY, Reports};

/// How often is looked who is not heard any more.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long, about, an election is waited for that was begun because the leader's process has ended, and how often it is begun. Two that
/// stand at the same moment may keep each other from winning: how long each waits is chance.
const ELECTION_WAIT: Duration = Duration::from_millis(300);
const ELECTIONS_MAX: usize = 5;

impl Reports {
    /// Returns for how long a node was out of reach, by the time that this node ran; see [`Hearing::silent`].
    pub(crate) fn silent(&self, node: NodeId) -> Duration {
        self.inner.hearing.lock().silent(node, self.inner.clock())
    }

    /// Says whether what goes through a peer, if it does, is believed to come through.
    pub(super) fn is_good_way(&self, through: Option<NodeId>) -> bool {
        self.inner.hearing.lock().is_good_way(through, self.inner.clock())
    }

    /// Says whether this node hears no other member, or none hears it, for long enough, and can do nothing without them.
    pub(crate) fn is_cut_off(&self, state: &State) -> bool {
        self.inner.hearing.lock().is_cut_off(state.members.keys().copied(), self.inner.clock()) && !self.decides_alone()
    }

    /// Says whether this node has not heard any other member for a moment and can do nothing without them.
    pub(crate) fn hears_nobody(&self, state: &State) -> bool {
        self.inner.hearing.lock().hears_nobody(state.members.keys().copied(), self.inner.clock()) && !self.decides_alone()
    }

    fn decides_alone(&self) -> bool {
        self.inner.raft.status().voters.iter().all(|voter| voter.node == self.inner.me)
    }

    /// Waits until a node counts as lost.
    pub(crate) async fn until_lost(self, node: NodeId) {
        let mut changes = self.watch();
        while !self.is_lost(node) && changes.changed().await.is_ok() {}
    }

    /// Says whether most of those that vote are in reach, this node among them.
    fn reaches_most(&self) -> bool {
        let voters = self.inner.raft.status().voters;
        self.inner.hearing.lock().reaches_most(voters.iter().map(|voter| voter.node), self.inner.clock())
    }

    /// Says whether a node counts as lost, see [`Hearing::is_lost`].
    pub(crate) fn is_lost(&self, node: NodeId) -> bool {
        self.inner.hearing.lock().is_lost(node, self.inner.clock())
    }

    /// Says whether a node has been silent for a moment, and is not lost.
    pub(crate) fn is_doubtful(&self, node: NodeId) -> bool {
        self.inner.hearing.lock().is_doubtful(node, self.inner.clock())
    }

    /// Says whether the process of a node has ended.
    fn has_ended(&self, node: NodeId) -> bool {
        let closed = self.inner.endpoint.closed(node);
        self.inner.hearing.lock().has_ended(node, closed, self.inner.clock())
    }
}

/// Takes the times for which this node stood still out of its clock.
pub(super) async fn notice_pauses(reports: Reports, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = stop.cancelled() => return,
        }
        if let Some(paused) = reports.inner.awake.lock().is_awake(std::time::Instant::now()) {
            tracing::warn!(?paused, "this node stood still: that is no silence of the others");
        }
    }
}

/// Notes who is not heard any more and whose process has ended, and has the place of a leader taken that is lost.
pub(super) async fn notice_losses(reports: Reports, stop: CancellationToken) {
    let (raft, ended) = (&reports.inner.raft, &reports.inner.ended);
    let (mut leader, mut elections, mut next_election, mut seen) = (None, 0, Instant::now(), Vec::new());
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = stop.cancelled() => return,
        }
        let acknowledged = reports.inner.endpoint.acknowledged();
        reports.inner.hearing.lock().look_at_acknowledged(acknowledged, reports.inner.clock());
        let members = raft.local().members.clone();
        let now: BTreeSet<NodeId> = members.keys().copied().filter(|node| reports.has_ended(*node)).collect();
        let news: Vec<NodeId> = {
            let mut hearing = reports.inner.hearing.lock();
            // One that was never heard has not started yet: it has just been let in.
            let is_new = |node: &NodeId| hearing.was_heard(*node) && !hearing.is_known_ended(*node);
            let news = now.iter().copied().filter(is_new).collect();
            if hearing.set_ended(now.clone()) {
                ended.send_replace(());
            }
            news
        };
        for node in news {
            tracing::info!(%node, "nobody listens on the port of a node any more: its process has ended");
        }
        // Whoever plans by it is to look again.
        let unheard: Vec<_> = members.keys().map(|node| (*node, reports.is_doubtful(*node), reports.is_lost(*node))).collect();
        if unheard != seen {
            seen = unheard;
            reports.inner.changed.send_replace(());
        }
        if let Some(known) = raft.leader() {
            (leader, elections) = (Some(known.node), if leader == Some(known.node) { elections } else { 0 });
        }
        // Followers of a leader that is silent stand by themselves. Of one that hears nobody, and is heard, they would not.
        if let Some(gone) = leader.filter(|leader| reports.is_lost(*leader))
            && (now.contains(&gone) || reports.reaches_most())
            && elections < ELECTIONS_MAX
            && Instant::now() >= next_election
        {
            let wait = ELECTION_WAIT.mul_f64(0.5 + rand::random::<f64>());
            (elections, next_election) = (elections + 1, Instant::now() + wait);
            raft.succeed(gone).await;
        }
    }
}
