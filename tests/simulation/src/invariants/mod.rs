//! What must hold, whatever goes wrong: one promise a file, held against all that happened.

use std::collections::BTreeMap;
use std::time::Duration;

use shoal_state::{Command, GangId, TaskId};

use crate::faults::OVER;
use crate::history::Event;

mod acked_survives;
mod cancelled_stays;
mod cursor_never_skips;
mod everything_ends;
mod fire_once;
mod formation_once;
mod gang_begins_together;
mod gang_ends_together;
mod gang_has_one_outcome;
mod goes_around;
mod joint_is_finished;
mod never_below_quorum;
mod new_leader_kills_nothing;
mod no_stale_read;
mod no_two_homes_ack;
mod one_outcome;
mod plan_after_barrier;
mod pop_not_lost;
mod reached_is_not_lost;
mod retry_is_once;
mod running_not_rerun_on_failover;
mod voters_as_wished;
mod wires;
mod yields_in_order;

/// What happened, in order, with times.
pub type Events = [(Duration, Event)];

/// A promise: its name, and what says in words where it is broken.
pub type Invariant = (&'static str, fn(&Events) -> Result<(), String>);

/// All promises. That everything ends is the last: where another is broken, that may follow.
pub const ALL: [Invariant; 23] = [
    ("acked_survives", acked_survives::check),
    ("no_two_homes_ack", no_two_homes_ack::check),
    ("one_outcome", one_outcome::check),
    ("retry_is_once", retry_is_once::check),
    ("running_not_rerun_on_failover", running_not_rerun_on_failover::check),
    ("new_leader_kills_nothing", new_leader_kills_nothing::check),
    ("plan_after_barrier", plan_after_barrier::check),
    ("no_stale_read", no_stale_read::check),
    ("cursor_never_skips", cursor_never_skips::check),
    ("yields_in_order", yields_in_order::check),
    ("pop_not_lost", pop_not_lost::check),
    ("fire_once", fire_once::check),
    ("cancelled_stays", cancelled_stays::check),
    ("gang_begins_together", gang_begins_together::check),
    ("gang_ends_together", gang_ends_together::check),
    ("gang_has_one_outcome", gang_has_one_outcome::check),
    ("reached_is_not_lost", reached_is_not_lost::check),
    ("goes_around", goes_around::check),
    ("formation_once", formation_once::check),
    ("joint_is_finished", joint_is_finished::check),
    ("never_below_quorum", never_below_quorum::check),
    ("voters_as_wished", voters_as_wished::check),
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

/// Of a task of a gang, which gang, and which place in it.
#[derive(Default)]
struct Ranks {
    of: BTreeMap<TaskId, (GangId, usize)>,
    all: BTreeMap<GangId, Vec<TaskId>>,
}

impl Ranks {
    /// Takes what is decided of gangs.
    fn hear(&mut self, event: &Event) {
        if let Event::Decided { command, taken: true, .. } = event
            && let Command::AssignGang { id, tasks } = &**command
        {
            let tasks: Vec<TaskId> = tasks.iter().map(|(task, _)| *task).collect();
            self.of.extend(tasks.iter().enumerate().map(|(rank, task)| (*task, (*id, rank))));
            self.all.insert(*id, tasks);
        }
    }

    /// Returns all tasks of a task's gang; none if it is of no gang.
    fn gang(&self, task: TaskId) -> Option<&[TaskId]> {
        let (gang, _) = self.of.get(&task)?;
        self.all.get(gang).map(Vec::as_slice)
    }
}
