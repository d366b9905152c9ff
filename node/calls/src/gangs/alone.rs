//! When a node that is cut off from the leader stops its containers of gangs: others are started elsewhere after a while, and a gang must
//! not run twice.
//!
//! The others wait longer than this node does ([`STOPS_AFTER`]), each by its own clock, and both begin when they hear nothing any more.

use std::time::{Duration, Instant};

/// How long a node may be without a leader. What ends the tasks of a lost node ([`crate::calls::gone`]) waits some seconds longer.
pub(crate) const STOPS_AFTER: Duration = Duration::from_secs(15);
/// How often is to be looked.
pub const EVERY: Duration = Duration::from_millis(500);
/// A leader that had no answers of a majority for so long may have been replaced.
pub const MAJORITY_WITHIN: Duration = Duration::from_secs(3);

/// Since when no leader is heard.
#[derive(Debug)]
pub struct Hearing {
    last: Instant,
}

impl Hearing {
    /// Begins as if a leader were heard now.
    pub fn new(now: Instant) -> Self {
        Self { last: now }
    }

    /// Notes whether a leader is heard now; returns for how long none was, once that is too long.
    pub fn look(&mut self, hears: bool, now: Instant) -> Option<Duration> {
        if hears {
            self.last = now;
        }
        let alone = now.saturating_duration_since(self.last);
        (alone >= STOPS_AFTER).then_some(alone)
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
