//! What must hold, whatever goes wrong: one promise a file, held against all that happened.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::faults::OVER;
use crate::history::Event;

mod acked_survives;
mod cancelled_stays;
mod cursor_never_skips;
mod everything_ends;
mod fire_once;
mod new_leader_kills_nothing;
mod no_stale_read;
mod no_two_homes_ack;
mod one_outcome;
mod plan_after_barrier;
mod pop_not_lost;
mod retry_is_once;
mod running_not_rerun_on_failover;

/// What happened, in order, with times.
pub type Events = [(Duration, Event)];

/// A promise: its name, and what says in words where it is broken.
pub type Invariant = (&'static str, fn(&Events) -> Result<(), String>);

/// All promises. That everything ends is the last: where another is broken, that may follow.
pub const ALL: [Invariant; 13] = [
    ("acked_survives", acked_survives::check),
    ("no_two_homes_ack", no_two_homes_ack::check),
    ("one_outcome", one_outcome::check),
    ("retry_is_once", retry_is_once::check),
    ("running_not_rerun_on_failover", running_not_rerun_on_failover::check),
    ("new_leader_kills_nothing", new_leader_kills_nothing::check),
    ("plan_after_barrier", plan_after_barrier::check),
    ("no_stale_read", no_stale_read::check),
    ("cursor_never_skips", cursor_never_skips::check),
    ("pop_not_lost", pop_not_lost::check),
    ("fire_once", fire_once::check),
    ("cancelled_stays", cancelled_stays::check),
    ("everything_ends", everything_ends::check),
];

/// What is wrong with nodes, and when something was last.
#[derive(Default)]
struct Troubles {
    now: BTreeMap<usize, u32>,
    last: BTreeMap<usize, Duration>,
}

impl Troubles {
    fn hear(&mut self, node: usize, what: &str, at: Duration) {
        let now = self.now.entry(node).or_default();
        *now = if OVER.contains(&what) { now.saturating_sub(1) } else { *now + 1 };
        self.last.insert(node, at);
    }

    fn is_in_trouble(&self, node: usize) -> bool {
        self.now.get(&node).is_some_and(|now| *now > 0)
    }

    /// Says whether something was wrong with a node at this time or later.
    fn since(&self, node: usize, at: Duration) -> bool {
        self.is_in_trouble(node) || self.last.get(&node).is_some_and(|last| *last >= at)
    }
}

/// Says whether some machine restarted: what was not to last through that may then be lost.
fn machines_restarted(events: &Events) -> bool {
    events.iter().any(|(_, event)| matches!(event, Event::NodeStarted { machine_restarted: true, .. }))
}
