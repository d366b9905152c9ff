//! A node that another reaches is not taken for lost by a third one that hears that other, however the wire between those two is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shoal_state::model::ShardChange;
use shoal_state::{Command, NodeId, ShardId, TaskId};

use super::Events;
use super::wires::Wires;
use crate::history::Event;

/// What was so for this long everybody knows.
const KNOWN_AFTER: Duration = Duration::from_secs(10);
/// What is begun because a node counts as lost may take so long.
const FENCED_FOR: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Known {
    wires: Wires,
    numbers: BTreeMap<NodeId, usize>,
    homes: BTreeMap<ShardId, usize>,
    node_of: BTreeMap<TaskId, usize>,
    /// Nodes whose machine restarted: they may miss records, and others take their shards for that.
    restarted: BTreeSet<usize>,
}

impl Known {
    fn takes_for_lost(&self, by: usize, node: usize, since: Duration) -> bool {
        by != node && self.wires.is_well(by, since) && self.wires.is_well(node, since) && self.wires.is_around(by, node, since)
    }

    fn decided(&mut self, by: usize, command: &Command, at: Duration) -> Result<(), String> {
        match command {
            Command::ChangeShard { shard, change: ShardChange::Promote(to), .. } => {
                let to = self.numbers.get(to).copied().unwrap_or_default();
                let home = self.homes.insert(*shard, to).unwrap_or_default();
                match !self.restarted.contains(&home) && self.takes_for_lost(by, home, at.saturating_sub(KNOWN_AFTER)) {
                    true => Err(format!("node {by} takes {shard} from node {home}, which is reached through another")),
                    false => Ok(()),
                }
            }
            Command::EndTask { id, end, .. } if end.how == "its node is lost" => match self.node_of.get(id) {
                Some(node) if self.takes_for_lost(by, *node, at.saturating_sub(FENCED_FOR)) => {
                    Err(format!("node {by} ends {id} on node {node}, which is reached through another"))
                }
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

pub(super) fn check(events: &Events) -> Result<(), String> {
    if !events.iter().any(|(_, event)| matches!(event, Event::Wire { .. })) {
        return Ok(());
    }
    let mut known = Known::default();
    for (at, event) in events {
        known.wires.hear(*at, event);
        match event {
            Event::NodeStarted { node, id, machine_restarted } => {
                known.numbers.insert(*id, *node);
                if *machine_restarted {
                    known.restarted.insert(*node);
                }
            }
            Event::ContainerBegan { task, node } => drop(known.node_of.insert(*task, *node)),
            Event::Decided { by, command, taken: true } => {
                known.decided(*by, command, *at).map_err(|why| format!("at {at:?} {why}"))?;
            }
            _ => {}
        }
    }
    Ok(())
}
