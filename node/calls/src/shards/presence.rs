//! Since when nodes can hold shards, and who counts as lost: what [`super::members`] decides by. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use shoal_state::{NodeId, State};

use super::members::{DROPPED_AFTER, Facts, REPLACED_AFTER};

/// Since when nodes can hold shards, and since when they cannot.
#[derive(Debug, Default)]
pub struct Presence {
    since: BTreeMap<NodeId, (bool, Instant)>,
}

impl Presence {
    /// Returns the nodes that can hold shards now, and those that have been able to, or were away for shorter, than `settle`.
    ///
    /// `heard` says of each member for how long it has been silent, and whether it drains.
    pub fn look(&mut self, heard: &BTreeMap<NodeId, (Duration, bool)>, now: Instant, settle: Duration) -> Facts {
        let mut facts = Facts::default();
        self.since.retain(|node, _| heard.contains_key(node));
        let first_look = self.since.is_empty();
        for (node, (silent, draining)) in heard {
            facts.silent.insert(*node, *silent);
            let is_up = *silent < REPLACED_AFTER;
            // What is there when this node begins to look is taken as settled.
            let long_ago = now.checked_sub(settle).unwrap_or(now);
            let (was_up, since) = self.since.entry(*node).or_insert((is_up, if first_look { long_ago } else { now }));
            if *was_up != is_up {
                (*was_up, *since) = (is_up, now);
            }
            let settled = now.saturating_duration_since(*since) >= settle;
            if *draining {
                continue;
            }
            if is_up {
                facts.up.insert(*node);
            }
            // Up for long, or away for a moment only.
            if is_up == settled {
                facts.settled.insert(*node);
            }
        }
        facts
    }
}

/// A time for which a node did nothing, so long or longer, is no silence of others.
const PAUSED_AFTER: Duration = Duration::from_secs(1);

/// The time of a node without that for which it stood still: by it others are silent.
///
/// Something of the node says every so often that it is awake. When it was not for long, that counts from the first look on, whoever looks
/// first: before the node has noticed it, and so before it has heard again those that were there all the time.
#[derive(Debug, Clone, Copy)]
pub struct Awake {
    every: Duration,
    began: Instant,
    last: Instant,
    paused: Duration,
}

impl Awake {
    /// Begins now. [`Self::is_awake`] is to be called every so often.
    pub fn new(every: Duration, now: Instant) -> Self {
        Self { every, began: now, last: now, paused: Duration::ZERO }
    }

    /// Notes that the node is awake. Returns for how long it was not, if that was long.
    pub fn is_awake(&mut self, now: Instant) -> Option<Duration> {
        let passed = now.saturating_duration_since(self.last);
        self.last = now;
        if passed <= self.every + PAUSED_AFTER {
            return None;
        }
        self.paused += passed - self.every;
        Some(passed)
    }

    /// Returns for how long the node has been awake.
    pub fn clock(&self, now: Instant) -> Duration {
        let now = now.min(self.last + self.every + PAUSED_AFTER);
        now.saturating_duration_since(self.began).saturating_sub(self.paused)
    }
}

/// Says of each member for how long nothing speaks for it, and whether it drains. `silent` says for how long it has not been heard, or has
/// not kept what it was sent.
pub fn heard(state: &State, silent: impl Fn(NodeId) -> Duration, is_lost: impl Fn(NodeId) -> bool) -> BTreeMap<NodeId, (Duration, bool)> {
    let nodes = state.nodes.iter().filter(|(node, _)| state.members.contains_key(*node));
    let heard = nodes.map(|(node, known)| {
        let unheard = if is_lost(*node) { DROPPED_AFTER } else { Duration::ZERO };
        (*node, (silent(*node).max(unheard), known.draining))
    });
    heard.collect()
}

/// Says whether a node counts as lost: it is gone for this node, and for all that are not gone themselves and said that they hear it.
pub fn is_lost(node: NodeId, is_gone: impl Fn(NodeId) -> bool, hearing: impl IntoIterator<Item = NodeId>) -> bool {
    is_gone(node) && hearing.into_iter().all(is_gone)
}

#[cfg(test)]
mod tests {
    use shoal_state::model::{Member, Node, Resources};
    use shoal_state::{BootId, Timestamp};

    use super::*;

    #[test]
    fn a_node_that_counts_as_lost_is_silent_for_all() {
        let [me, other, out] = [1, 2, 3].map(NodeId::from_random);
        let mut state = State::default();
        let member = Member { address: String::new(), version: 1, release: String::new(), joined: Timestamp(0) };
        let node = |name: &str| Node::new(name.to_owned(), BootId::from_random(1), Resources::default(), Timestamp(0));
        state.nodes.extend([(me, node("me")), (other, Node { draining: true, ..node("other") }), (out, node("out"))]);
        state.members.insert(me, member.clone());
        state.members.insert(other, member);
        let silent = |node| if node == me { Duration::ZERO } else { DROPPED_AFTER / 2 };
        let lost = heard(&state, silent, |node| node == other);
        assert_eq!(lost, [(me, (Duration::ZERO, false)), (other, (DROPPED_AFTER, true))].into(), "one that is out is none of them");
    }

    #[test]
    fn time_in_which_a_node_stood_still_does_not_count_before_it_is_noticed_either() {
        let began = Instant::now();
        let at = |ms: u64| began + Duration::from_millis(ms);
        let mut awake = Awake::new(Duration::from_millis(300), began);
        assert_eq!(awake.is_awake(at(400)), None);
        assert_eq!(awake.clock(at(900)), Duration::from_millis(900));
        // Nothing for a minute. Who looks first is not told that others were silent for that long.
        assert_eq!(awake.clock(at(60_000)), Duration::from_millis(1_700));
        assert_eq!(awake.is_awake(at(60_000)), Some(Duration::from_millis(59_600)));
        assert_eq!(awake.clock(at(60_000)), Duration::from_millis(700));
        assert_eq!(awake.clock(at(61_000)), Duration::from_millis(1_700));
    }
}
