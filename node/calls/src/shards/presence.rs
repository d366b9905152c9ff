//! Since when nodes can hold shards: what [`super::members`] decides by. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use shoal_state::NodeId;

use super::members::{Facts, REPLACED_AFTER};

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

/// Says whether a node counts as lost: it is gone for this node, and for all that are not gone themselves and said that they hear it.
pub fn is_lost(node: NodeId, is_gone: impl Fn(NodeId) -> bool, hearing: impl IntoIterator<Item = NodeId>) -> bool {
    is_gone(node) && hearing.into_iter().all(is_gone)
}
