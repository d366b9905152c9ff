//! Through whom a stream goes to a peer that is not reached directly, how long such a way is looked for, and when one is left. Pure.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use shoal_state::NodeId;

pub use crate::endpoint::{IDLE_MAX, LOOK_EVERY};
pub use crate::links::AGAIN_WAIT;

/// How long it may take until a stream through another peer is open.
pub const OPEN_WAIT: Duration = Duration::from_secs(1);
/// How long a peer to which there was no way around is left alone.
const REST: Duration = Duration::from_secs(1);
/// Through how many peers a way is looked for.
const TRIES: usize = 3;

/// Returns through whom a way to a peer is to be tried, best first. `connected` are the peers that this node reaches directly, each
/// with how long a packet takes there and back.
pub fn between(goal: NodeId, connected: impl IntoIterator<Item = (NodeId, Duration)>) -> Vec<NodeId> {
    let mut between: Vec<(NodeId, Duration)> = connected.into_iter().filter(|(peer, _)| *peer != goal).collect();
    between.sort_by_key(|(_, there_and_back)| *there_and_back);
    between.into_iter().take(TRIES).map(|(peer, _)| peer).collect()
}

/// Says whether a stream that goes through a peer, if it does, is to be left for a direct one. The peer between may be lost one day, and
/// neither end would notice.
pub fn is_outdated(through: Option<NodeId>, is_direct: bool) -> bool {
    through.is_some() && is_direct
}

/// Peers to which no way around was found lately.
#[derive(Debug, Default)]
pub struct DeadEnds(HashMap<NodeId, Instant>);

impl DeadEnds {
    /// Says whether a way to a peer is not to be looked for now.
    pub fn is_one(&self, node: NodeId, now: Instant) -> bool {
        self.0.get(&node).is_some_and(|at| now.saturating_duration_since(*at) < REST)
    }

    /// Notes whether a way to a peer was found.
    pub fn note(&mut self, node: NodeId, dead_end: bool, now: Instant) {
        match dead_end {
            true => drop(self.0.insert(node, now)),
            false => drop(self.0.remove(&node)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u128) -> NodeId {
        NodeId::from_random(number)
    }

    #[test]
    fn the_nearest_of_those_that_are_reached_are_asked_for_a_way() {
        let ms = Duration::from_millis;
        let connected = [(node(1), ms(9)), (node(2), ms(1)), (node(3), ms(5)), (node(4), ms(2)), (node(5), ms(7))];
        assert_eq!(between(node(2), connected), [node(4), node(3), node(5)], "not the one that is looked for, and not all");
        assert_eq!(between(node(1), [(node(1), ms(1))]), [], "who is reached alone leads nowhere");
    }

    #[test]
    fn a_way_around_is_left_when_there_is_a_direct_one() {
        assert!(is_outdated(Some(node(1)), true));
        assert!(!is_outdated(Some(node(1)), false), "else there is none at all");
        assert!(!is_outdated(None, true));
    }

    #[test]
    fn where_no_way_was_found_none_is_looked_for_until_a_little_later() {
        let (mut ends, now) = (DeadEnds::default(), Instant::now());
        ends.note(node(1), true, now);
        assert!(ends.is_one(node(1), now + REST / 2) && !ends.is_one(node(2), now));
        assert!(!ends.is_one(node(1), now + REST));
        ends.note(node(1), false, now);
        assert!(!ends.is_one(node(1), now), "one was found since");
    }
}
