//! Which voter to follow: pure rules, by what was heard.
//!
//! Each follower has an order of the voters of its own, so that they spread over them; the leader comes last, since it has most to do.
//! It leaves the one that it follows when that is silent, knows nothing of a leader, lags, or votes no more, and leaves one that gave
//! trouble alone for a while. Where all give trouble it goes round: what one of them tells is better than nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use shoal_state::{Digest, NodeId};

/// A voter that said nothing for so long is left. Several times the pace at which it says that it is there.
const SILENT: Duration = Duration::from_secs(3);
/// A node that itself did nothing for a while listens for so long at least before it takes that for silence.
const LISTENS: Duration = Duration::from_secs(1);
/// One that is behind what is known to be decided for so long is left.
const LAGS: Duration = Duration::from_secs(3);
/// One that says for so long that it is cut off from the others is left: while a new leader is found all say so, and need no crowd.
const CUT_OFF: Duration = Duration::from_secs(2);
/// … and for so long where nobody better is known.
const HELD: Duration = Duration::from_secs(5);
/// One that gave trouble is left alone for so long, if there is another one.
const SHUNNED: Duration = Duration::from_secs(10);
/// The pause before the next try where all gave trouble.
const PAUSE: Duration = Duration::from_millis(500);
/// A better one is gone over to when it has given no trouble for so long.
const SETTLED: Duration = Duration::from_secs(60);

/// Why a voter is not followed any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// It cannot be reached, or has ended what it told.
    Broken,
    /// It said nothing for too long.
    Silent,
    /// It says that it is cut off from the others.
    CutOff,
    /// It does not have what is known to be decided.
    Lags,
    /// It votes no more.
    VotesNot,
    /// Another one is better for this node. No trouble at all.
    Better,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Broken => "it is not reached",
            Self::Silent => "it is silent",
            Self::CutOff => "it is cut off from the others",
            Self::Lags => "it does not have what is known to be decided",
            Self::VotesNot => "it votes no more",
            Self::Better => "another one is nearer to this node",
        })
    }
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Follow this one.
    Follow(NodeId),
    /// Look again after this time.
    Wait(Duration),
    /// No voter is known.
    Nobody,
}

/// The voter that is followed.
#[derive(Debug, Clone, Copy)]
struct Followed {
    node: NodeId,
    since: Duration,
    heard: Duration,
    cut_off_since: Option<Duration>,
    applied: u64,
}

/// What is known of the voters. Times are those since some beginning.
#[derive(Debug)]
pub(crate) struct Choice {
    me: NodeId,
    voters: Vec<NodeId>,
    leader: Option<NodeId>,
    trouble: BTreeMap<NodeId, (Duration, Trouble)>,
    followed: Option<Followed>,
    /// Up to where the log is known to be decided, and since when more of it than the voter has.
    decided: u64,
    lags_since: Option<Duration>,
}

impl Choice {
    pub(crate) fn new(me: NodeId) -> Self {
        Self { me, voters: vec![], leader: None, trouble: BTreeMap::new(), followed: None, decided: 0, lags_since: None }
    }

    /// These vote, as far as is known.
    pub(crate) fn vote(&mut self, voters: impl IntoIterator<Item = NodeId>) {
        self.voters = voters.into_iter().filter(|voter| *voter != self.me).collect();
        self.voters.sort_by_key(|voter| rank(self.me, *voter));
        self.trouble.retain(|node, _| self.voters.contains(node));
    }

    /// Returns whom to follow.
    pub(crate) fn next(&self, now: Duration) -> Next {
        let best = self.voters.iter().min_by_key(|voter| self.class(**voter, now));
        match best.map(|best| (*best, self.trouble.get(best).map(|(at, _)| now.saturating_sub(*at)))) {
            None => Next::Nobody,
            Some((_, Some(ago))) if ago < PAUSE => Next::Wait(PAUSE - ago),
            Some((best, _)) => Next::Follow(best),
        }
    }

    /// Ranks a voter: those that gave no trouble lately first, then those that can at least be heard, and of them those whose trouble is
    /// the longest ago.
    fn class(&self, voter: NodeId, now: Duration) -> (Option<(bool, Duration)>, bool) {
        let trouble = self.shunned(voter, now).map(|(at, why)| (matches!(why, Trouble::Broken | Trouble::Silent), at));
        (trouble, self.leader == Some(voter))
    }

    fn shunned(&self, voter: NodeId, now: Duration) -> Option<(Duration, Trouble)> {
        self.trouble.get(&voter).copied().filter(|(at, _)| now.saturating_sub(*at) < SHUNNED)
    }

    /// This one is followed from now on.
    pub(crate) fn begin(&mut self, node: NodeId, now: Duration) {
        self.followed = Some(Followed { node, since: now, heard: now, cut_off_since: None, applied: 0 });
        self.lags_since = None;
    }

    /// It said how it stands.
    pub(crate) fn stands(&mut self, now: Duration, in_touch: bool, leader: Option<NodeId>, applied: u64) {
        if let Some(followed) = &mut self.followed {
            (followed.heard, followed.applied) = (now, applied.max(followed.applied));
            followed.cut_off_since = if in_touch { None } else { followed.cut_off_since.or(Some(now)) };
            self.leader = leader.filter(|_| in_touch);
            self.compare(now);
        }
    }

    /// It told something, up to this entry.
    pub(crate) fn told(&mut self, now: Duration, upto: u64) {
        if let Some(followed) = &mut self.followed {
            (followed.heard, followed.applied) = (now, upto.max(followed.applied));
            self.decided(now, upto);
        }
    }

    /// This node itself did nothing for a while: that was no silence of the one that it follows.
    pub(crate) fn stood_still(&mut self, now: Duration) {
        if let Some(followed) = &mut self.followed {
            followed.heard = followed.heard.max((now + LISTENS).saturating_sub(SILENT));
        }
    }

    /// The log is known to be decided up to here.
    pub(crate) fn decided(&mut self, now: Duration, upto: u64) {
        self.decided = self.decided.max(upto);
        self.compare(now);
    }

    fn compare(&mut self, now: Duration) {
        let lags = self.followed.is_some_and(|followed| followed.applied < self.decided);
        self.lags_since = if lags { self.lags_since.or(Some(now)) } else { None };
    }

    /// Says why the one that is followed is to be left, if so.
    pub(crate) fn leave(&self, now: Duration) -> Option<Trouble> {
        let followed = self.followed?;
        let held = now.saturating_sub(followed.since);
        let better = self.voters.iter().any(|voter| *voter != followed.node && self.shunned(*voter, now).is_none());
        let patience = if better { CUT_OFF } else { HELD };
        let cut_off = followed.cut_off_since.is_some_and(|since| now.saturating_sub(since) >= patience);
        if !self.voters.contains(&followed.node) {
            Some(Trouble::VotesNot)
        } else if now.saturating_sub(followed.heard) >= SILENT {
            Some(Trouble::Silent)
        } else if cut_off && self.voters.len() > 1 {
            Some(Trouble::CutOff)
        } else if self.lags_since.is_some_and(|since| now.saturating_sub(since) >= LAGS) && self.voters.len() > 1 {
            Some(Trouble::Lags)
        } else if held >= SETTLED && self.next(now) != Next::Follow(followed.node) && self.is_settled(now) {
            Some(Trouble::Better)
        } else {
            None
        }
    }

    /// Says whether the one to be gone over to has given no trouble for long.
    fn is_settled(&self, now: Duration) -> bool {
        match self.next(now) {
            Next::Follow(node) => self.trouble.get(&node).is_none_or(|(at, _)| now.saturating_sub(*at) >= SETTLED),
            _ => false,
        }
    }

    /// The one that was followed is left.
    pub(crate) fn left(&mut self, now: Duration, why: Trouble) {
        if let Some(followed) = self.followed.take()
            && why != Trouble::Better
        {
            self.trouble.insert(followed.node, (now, why));
        }
    }

    /// Returns when [`Self::leave`] may say something else, should nothing be heard.
    pub(crate) fn look_again(&self) -> Duration {
        self.followed.map_or(PAUSE, |followed| followed.heard + SILENT)
    }
}

/// Where a voter stands in a node's own order: the same for ever, and another one for each node.
fn rank(me: NodeId, voter: NodeId) -> Digest {
    let mut bytes = me.bits().to_le_bytes().to_vec();
    bytes.extend(voter.bits().to_le_bytes());
    Digest::of(&bytes)
}

#[cfg(test)]
mod tests;
