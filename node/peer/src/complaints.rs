//! What is wrong with peers, said at once and then once in a while: they try again several times a second.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shoal_state::NodeId;

/// How often the same is said of a peer.
const EVERY: Duration = Duration::from_secs(60);

/// When what was last said of whom. There are as many as members ever were.
#[derive(Debug, Default)]
pub(crate) struct Complaints {
    said: Mutex<HashMap<NodeId, (String, Instant)>>,
}

impl Complaints {
    /// Says whether to say this of a peer now.
    pub(crate) fn due(&self, node: NodeId, what: &str) -> bool {
        self.due_at(node, what, Instant::now())
    }

    fn due_at(&self, node: NodeId, what: &str, now: Instant) -> bool {
        let mut said = self.said.lock();
        let held = said.get(&node).is_some_and(|(before, at)| before == what && now.duration_since(*at) < EVERY);
        if !held {
            said.insert(node, (what.to_owned(), now));
        }
        !held
    }

    /// Forgets what was wrong with a peer that is well; says whether something was.
    pub(crate) fn over(&self, node: NodeId) -> bool {
        self.said.lock().remove(&node).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_said_once_a_minute_and_something_else_at_once() {
        let (complaints, node, start) = (Complaints::default(), NodeId::from_random(1), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(complaints.due_at(node, "it is away", start));
        assert!(!complaints.due_at(node, "it is away", after(59)));
        assert!(complaints.due_at(node, "it is away", after(60)));
        assert!(complaints.due_at(node, "it was removed", after(61)));
        assert!(complaints.due_at(NodeId::from_random(2), "it was removed", after(61)));
        assert!(complaints.over(node) && !complaints.over(node));
        assert!(complaints.due_at(node, "it was removed", after(62)));
    }
}
