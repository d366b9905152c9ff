//! The containers of a gang are gone soon after one of them is, unless something goes wrong meanwhile; and while any of them runs no other
//! gang of their function does, though a node is cut off with them, or taken out of the cluster.

use std::collections::BTreeMap;
use std::time::Duration;

use shoal_state::{GangId, TaskId};

use super::{Events, Ranks};
use crate::history::Event;

/// All have ended within this time, in which nothing went wrong anywhere.
const ENDED_WITHIN: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Known {
    ranks: Ranks,
    /// What runs, and where.
    runs: BTreeMap<TaskId, usize>,
    /// Since when gangs have lost a container.
    broken: BTreeMap<GangId, Duration>,
    /// When anything went wrong last.
    wrong: Duration,
}

pub(super) fn check(events: &Events) -> Result<(), String> {
    let mut known = Known::default();
    for (at, event) in events {
        known.ranks.hear(event);
        known.goes_on(*at).map_err(|why| format!("at {at:?} {why}"))?;
        known.hear(*at, event).map_err(|why| format!("at {at:?} {why}"))?;
    }
    Ok(())
}

impl Known {
    /// Nothing of a gang that has lost a container runs for long.
    fn goes_on(&self, at: Duration) -> Result<(), String> {
        for (task, node) in &self.runs {
            let Some((gang, _)) = self.ranks.of.get(task) else { continue };
            if let Some(since) = self.broken.get(gang).filter(|since| (**since).max(self.wrong) + ENDED_WITHIN < at) {
                return Err(format!("{task} on node {node} runs, and another one of its gang is gone since {since:?}"));
            }
        }
        Ok(())
    }

    fn hear(&mut self, at: Duration, event: &Event) -> Result<(), String> {
        match event {
            Event::Trouble { .. } => self.wrong = at,
            Event::NodeStarted { .. } => self.wrong = at,
            Event::NodeStopped { node } => self.all_gone(at, *node),
            Event::ContainerBegan { task, node } => {
                let Some((gang, _)) = self.ranks.of.get(task) else { return Ok(()) };
                let is_other = |other: &TaskId| self.ranks.of.get(other).is_some_and(|(of, _)| of != gang);
                if let Some((other, of)) = self.runs.iter().find(|(other, _)| is_other(other)) {
                    return Err(format!("{task} of gang {gang} begins on node {node}, while {other} of another gang runs on node {of}"));
                }
                self.runs.insert(*task, *node);
            }
            Event::ContainerEnded { task, .. } => self.gone(at, *task),
            _ => {}
        }
        Ok(())
    }

    fn all_gone(&mut self, at: Duration, node: usize) {
        self.wrong = at;
        let gone: Vec<TaskId> = self.runs.iter().filter(|(_, of)| **of == node).map(|(task, _)| *task).collect();
        gone.into_iter().for_each(|task| self.gone(at, task));
    }

    fn gone(&mut self, at: Duration, task: TaskId) {
        self.runs.remove(&task);
        if let Some((gang, _)) = self.ranks.of.get(&task) {
            self.broken.entry(*gang).or_insert(at);
        }
    }
}
