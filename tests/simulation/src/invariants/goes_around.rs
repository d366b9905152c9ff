//! As long as all nodes are connected somehow, what a container has worked on counts a moment later: nothing waits for a wire.

use std::collections::BTreeMap;
use std::time::Duration;

use shoal_state::{InputId, TaskId};

use super::Events;
use super::wires::Wires;
use crate::history::Event;

/// After so long in which nothing changed about the wires all has found its way around those that are cut: their ends notice within some
/// seconds, one after the other, and requests on their way are given up and sent again.
const FOUND_AFTER: Duration = Duration::from_secs(16);

pub(super) fn check(events: &Events) -> Result<(), String> {
    if !events.iter().any(|(_, event)| matches!(event, Event::Wire { .. })) {
        return Ok(());
    }
    let (mut wires, mut node_of) = (Wires::default(), BTreeMap::new());
    let mut done: BTreeMap<(TaskId, InputId), Duration> = BTreeMap::new();
    for (at, event) in events {
        let late = |since: &Duration| *since.max(&wires.calm_since()) + FOUND_AFTER <= *at;
        if let Some(((task, input), since)) = done.iter().find(|(_, since)| late(since))
            && wires.is_connected(wires.calm_since())
        {
            let node = node_of.get(task).copied().unwrap_or_default();
            return Err(format!("at {at:?} {task} on node {node} cannot say what became of {input}, on which it worked until {since:?}"));
        }
        wires.hear(*at, event);
        match event {
            Event::ContainerBegan { task, node } => drop(node_of.insert(*task, *node)),
            Event::WorkDone { task, input } => drop(done.insert((*task, *input), *at)),
            Event::RunEnded { task, input, .. } => drop(done.remove(&(*task, *input))),
            Event::ContainerEnded { task, .. } => done.retain(|(of, _), _| of != task),
            Event::NodeStopped { node } => done.retain(|(task, _), _| node_of.get(task) != Some(node)),
            _ => {}
        }
    }
    Ok(())
}
