//! Who counts as lost: by whom a node is silent to, and by what its machine says of its process.

use std::collections::BTreeSet;
use std::time::Duration;

use shoal_calls::shards::members::DROPPED_AFTER;
use shoal_calls::shards::presence::{self, DOUBTFUL_AFTER};
use shoal_state::{NodeId, State};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{EVERY, Reports};

/// After so long without a word of a member it counts as lost if its machine says that its process has ended. Until then it may have
/// been started anew, which takes no more than that where all is well.
const ENDED_AFTER: Duration = Duration::from_secs(1);
/// How often is looked who is not heard any more.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long, about, an election is waited for that was begun because the leader's process has ended, and how often it is begun. Two that
/// stand at the same moment may keep each other from winning: how long each waits is chance.
const ELECTION_WAIT: Duration = Duration::from_millis(300);
const ELECTIONS_MAX: usize = 5;

impl Reports {
    /// Returns for how long a node was out of reach, by the time that this node ran; zero for this one. It was not heard, or does not hear
    /// this node: what is sent to it is not acknowledged. Over a wire that is broken in one way a node is heard that can do nothing.
    pub(crate) fn silent(&self, node: NodeId) -> Duration {
        if node == self.inner.me {
            return Duration::ZERO;
        }
        let clock = self.inner.clock();
        let heard = self.inner.others.lock().get(&node).map(|heard| heard.at);
        let acknowledged = self.inner.acknowledged.lock().get(&node).map_or(clock, |(_, at)| *at);
        clock.saturating_sub(heard.unwrap_or_default().min(acknowledged))
    }

    /// Says whether this node has heard no other member for [`DROPPED_AFTER`], or none has heard it, and can do nothing without them.
    pub(crate) fn is_cut_off(&self, state: &State) -> bool {
        let mut others = state.members.keys().filter(|node| **node != self.inner.me).peekable();
        // Half of that time has passed when others, who are heard, say no more that they hear it.
        let heard = self.inner.others.lock().values().map(|heard| heard.at).max().unwrap_or_default();
        let unheard = heard.saturating_sub(*self.inner.heard_by_others.lock()) >= DROPPED_AFTER / 2;
        others.peek().is_some() && (unheard || others.all(|node| self.silent(*node) >= DROPPED_AFTER)) && !self.decides_alone()
    }

    /// Says whether this node has not heard any other member for a moment and can do nothing without them: then it is more likely out of
    /// reach itself than all of them are.
    pub(crate) fn hears_nobody(&self, state: &State) -> bool {
        presence::hears_nobody(self.inner.me, state, |node| self.silent(node)) && !self.decides_alone()
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
        voters.iter().filter(|voter| self.silent(voter.node) < DOUBTFUL_AFTER).count() * 2 > voters.len()
    }

    /// Says whether neither this node nor any that it hears has heard a node for [`DROPPED_AFTER`], or since its process has ended.
    pub(crate) fn is_lost(&self, node: NodeId) -> bool {
        let is_gone = |node: NodeId| self.silent(node) >= DROPPED_AFTER || self.inner.ended.borrow().contains(&node);
        let others = self.inner.others.lock();
        let hearing: Vec<NodeId> =
            others.iter().filter(|(other, heard)| **other != node && heard.hears.contains(&node)).map(|(other, _)| *other).collect();
        drop(others);
        presence::is_lost(node, is_gone, hearing)
    }

    /// Says whether a node has been silent for a moment, and is not lost.
    pub(crate) fn is_doubtful(&self, node: NodeId) -> bool {
        let gone = || self.inner.ended.borrow().contains(&node);
        (self.silent(node) >= DOUBTFUL_AFTER || gone()) && !self.is_lost(node)
    }

    /// Says whether the process of a node has ended: it is silent, and since then its machine has said that nobody listens on its port.
    fn has_ended(&self, node: NodeId) -> bool {
        let silent = self.silent(node);
        silent >= ENDED_AFTER && self.inner.endpoint.closed(node).is_some_and(|ago| ago < silent)
    }

    /// Looks on which connections packets were acknowledged since the last look.
    fn look_at_acknowledged(&self) {
        let (clock, now) = (self.inner.clock(), self.inner.endpoint.acknowledged());
        let mut known = self.inner.acknowledged.lock();
        known.retain(|node, _| now.contains_key(node));
        for (node, now) in now {
            let (before, at) = known.entry(node).or_insert((now, clock));
            if *before != now {
                (*before, *at) = (now, clock);
            }
        }
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
        reports.look_at_acknowledged();
        let members = raft.local().members.clone();
        let now: BTreeSet<NodeId> = members.keys().copied().filter(|node| reports.has_ended(*node)).collect();
        ended.send_if_modified(|before| {
            // One that was never heard has not started yet: it has just been let in.
            for node in now.difference(before).filter(|node| reports.inner.others.lock().contains_key(node)) {
                tracing::info!(%node, "nobody listens on the port of a node any more: its process has ended");
            }
            std::mem::replace(before, now.clone()) != now
        });
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
